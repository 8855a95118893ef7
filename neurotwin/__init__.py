"""Digital twins of visual neurons: one shared core, one readout for each recording session."""

from .clip import Clip, Sample, Target
from .config import load_dataset_configs, load_model_config
from .data.session import Session
from .data.spec import SessionSpec
from .models import TwinModel, load_twin

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
