"""Experiments on a twin: one file an experiment, a common result, all units of all sessions at once.

Importing this makes all experiments known. To add one, see :mod:`~neurotwin.experiments.base`.
"""

from .ablation import Ablation
from .base import Experiment, Result, model_digest, options_of
from .exciting_stimulus import ExcitingStimulus
from .gratings import Gratings
from .presenter import ExperimentError, Group, Presenter, Screen
from .receptive_field import ReceptiveField

__all__ = [
    "Ablation",
    "ExcitingStimulus",
    "Experiment",
    "ExperimentError",
    "Gratings",
    "Group",
    "Presenter",
    "ReceptiveField",
    "Result",
    "Screen",
    "model_digest",
    "options_of",
]
