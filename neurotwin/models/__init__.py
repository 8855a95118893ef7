"""Models: the stages of a twin, and the twin that composes them. Importing this makes all components known."""

from . import convnet, frontend, history, modulator, penalties, pools, readout, recurrent, shifter, transformer
from .ensemble import Ensemble
from .shared_sessions import EnsembleError
from .storage import check_run, load_twin
from .twin import TwinModel

__all__ = [
    "Ensemble",
    "EnsembleError",
    "TwinModel",
    "check_run",
    "convnet",
    "frontend",
    "history",
    "load_twin",
    "modulator",
    "penalties",
    "pools",
    "readout",
    "recurrent",
    "shifter",
    "transformer",
]
