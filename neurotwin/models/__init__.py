"""Models: the stages of a twin, and the twin that composes them."""

from .registry import register
from .spec import SessionSpec
from .twin import CheckpointError, TwinModel, load_twin

__all__ = ["CheckpointError", "SessionSpec", "TwinModel", "load_twin", "register"]
