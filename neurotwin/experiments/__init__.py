"""Experiments on a twin: one file an experiment, a common result, all units of all sessions at once.

Importing this makes all experiments known. To add one, see :mod:`~neurotwin.experiments.base`.
"""

from .base import Experiment, Result, model_digest, options_of
from .presenter import ExperimentError, Group, Presenter, Screen
from .receptive_field import ReceptiveField

__all__ = [
    "Experiment",
    "ExperimentError",
    "Group",
    "Presenter",
    "ReceptiveField",
    "Result",
    "Screen",
    "model_digest",
    "options_of",
]
