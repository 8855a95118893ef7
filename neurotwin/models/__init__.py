"""Models: the stages of a twin, and the twin that composes them."""

from .twin import CheckpointError, SessionSpec, TwinModel, load_twin, register

__all__ = ["CheckpointError", "SessionSpec", "TwinModel", "load_twin", "register"]
