"""Digital twins of visual neurons: one shared core, one readout for each recording session.

The names below are imported when they are first used, so that a command which needs none of them starts at once.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .clip import Clip, Sample, Target
    from .config import load_dataset_configs, load_model_config
    from .data.session import Session
    from .data.spec import SessionSpec
    from .models import TwinModel, load_twin

__version__ = "0.1.0"

__all__ = [
    "Clip",
    "Sample",
    "Session",
    "SessionSpec",
    "Target",
    "TwinModel",
    "load_dataset_configs",
    "load_model_config",
    "load_twin",
]

_HOMES = {
    "Clip": "clip",
    "Sample": "clip",
    "Session": "data.session",
    "SessionSpec": "data.spec",
    "Target": "clip",
    "TwinModel": "models",
    "load_dataset_configs": "config",
    "load_model_config": "config",
    "load_twin": "models",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
