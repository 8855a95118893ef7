"""Experiments on a twin: one file an experiment, a common result, all units of all sessions at once.

Importing this makes all experiments known. To add one, see :mod:`~neurotwin.experiments.base`.
"""

from .ablation import Ablation
from .base import Experiment, Result, model_digest, options_of
from .counterfactual import Counterfactual
from .events import Events
from .exciting_stimulus import ExcitingStimulus
from .gratings import Gratings
from .population import Population
from .presenter import ExperimentError, Group, Presenter, Screen
from .psth import PSTH
from .receptive_field import ReceptiveField

__all__ = [
    "PSTH",
    "Ablation",
    "Counterfactual",
    "Events",
    "ExcitingStimulus",
    "Experiment",
    "ExperimentError",
    "Gratings",
    "Group",
    "Population",
    "Presenter",
    "ReceptiveField",
    "Result",
    "Screen",
    "model_digest",
    "options_of",
]
