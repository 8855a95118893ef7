"""The command `neurotwin train`: the program of `training/train_ddp_multidataset.py`, from wherever it is installed.

In a clone it is the package `training`, in a wheel `neurotwin.training`. The library imports neither; this command does
so when it is asked for.
"""

import argparse
import importlib
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from ..errors import UserError

__all__ = ["add_arguments", "run", "training_module"]

_PACKAGE = Path(__file__).parents[1]


class TrainingError(UserError):
    """The programs that train are not where they should be."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of the training script."""
    training_module("flags").add_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    """Train as the words after the command say; the exit codes are those of the script."""
    return training_module("train_ddp_multidataset").main(arguments.words)


def training_module(name: str) -> ModuleType:
    """A module of the training package, in a clone or in a wheel.

    Raises
    ------
    TrainingError
        If it is not installed, or another package of that name comes before it.
    """
    for package, folder in (("neurotwin.training", _PACKAGE / "training"), ("training", _PACKAGE.parent / "training")):
        spec = find_spec(package)
        if spec is not None and spec.origin is not None and Path(spec.origin).parent.samefile(folder):
            return importlib.import_module(f"{package}.{name}")
    raise TrainingError(
        f"the package training is not beside {_PACKAGE}, or another of that name comes before it on Python's path; "
        "install neurotwin again, or start this command elsewhere"
    )
