"""Digital twins of visual neurons: one shared core, one readout for each recording session."""

from .clip import Batch
from .config import load_dataset_configs, load_model_config
from .data.session import Session
from .models.spec import SessionSpec
from .models.twin import TwinModel, load_twin

__all__ = [
    "Batch",
    "Session",
    "SessionSpec",
    "TwinModel",
    "load_dataset_configs",
    "load_model_config",
    "load_twin",
]
