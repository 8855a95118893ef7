"""Results of experiments as a report reads them: the folders in RUN/experiments, each with tables, arrays, figures.

A folder that an experiment wrote holds ``settings.json``, tables (``NAME.csv``), of which `units` has one row a unit,
``arrays.npz``, and figures (``NAME.png``). The report shows whatever is there, also of experiments that it does not
know; of some it knows more.
"""

import csv
import json
import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .report_charts import diverging_png, grey_png

__all__ = ["ExperimentFolder", "UnitKey", "exciting_pictures", "field_pictures", "read_experiments", "tuning_curves"]

UnitKey = tuple[str, str]
"""Session and id of a unit, both as text."""


@dataclass(frozen=True)
class ExperimentFolder:
    """The result of one experiment.

    Attributes
    ----------
    name
        Of the folder.
    kind
        The experiment that wrote it.
    units
        By unit, the values of its row of the table `units` by column, as text.
    figures
        Its PNG files, by name.
    folder
        Where it lies.
    """

    name: str
    kind: str
    units: dict[UnitKey, dict[str, str]]
    figures: dict[str, Path]
    folder: Path

    def column(self, name: str) -> np.ndarray:
        """A column of the table as numbers; NaN where a value is none."""
        return np.array([_number(row.get(name, "")) for row in self.units.values()])

    def arrays(self) -> dict[str, np.ndarray]:
        """Its arrays by name; none where there are none, or where they cannot be read."""
        try:
            with np.load(self.folder / "arrays.npz", allow_pickle=False) as stored:
                return dict(stored)
        except (OSError, ValueError, zipfile.BadZipFile):
            return {}


def read_experiments(run: Path, notes: list[str]) -> list[ExperimentFolder]:
    """The results in a run's folder `experiments`, by name; what cannot be read is a sentence in `notes`."""
    found = []
    for path in sorted((run / "experiments").glob("*/settings.json")):
        folder = path.parent
        if folder.name.startswith("."):
            continue
        try:
            settings = json.loads(path.read_text(encoding="utf-8"))
            kind = str(settings["experiment"])
            units = _units(folder / "units.csv")
        except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
            notes.append(f"The experiment in {folder} cannot be read ({type(error).__name__}: {error}).")
            continue
        figures = {png.stem: png for png in sorted(folder.glob("*.png"))}
        found.append(ExperimentFolder(folder.name, kind, units, figures, folder))
    return found


def field_pictures(experiment: ExperimentFolder, side: int) -> dict[UnitKey, bytes]:
    """Of each unit, the first filter in its most effective frame, as PNG of at most `side` pixels."""
    pictures = {}
    for session, filters in _by_session(experiment, "filters", ndim=6).items():
        ids = [unit for name, unit in experiment.units if name == session]
        for unit, one in zip(ids, filters[:, 0].astype(np.float64), strict=False):
            energy = np.nan_to_num(one**2).sum((1, 2, 3))
            pictures[session, unit] = diverging_png(one[energy.argmax()].sum(0), side)
    return pictures


def exciting_pictures(experiment: ExperimentFolder, side: int) -> dict[UnitKey, bytes]:
    """Of each unit, its exciting image, or the frame of highest contrast of its movie, as PNG."""
    pictures = {}
    arrays = {name: array for name, array in experiment.arrays().items() if name.split(".")[0] == "stimuli"}
    keys = list(experiment.units)
    # One array for all sessions, in the order of the table, or one for each group of sessions, one after the other.
    stimuli = [one for array in arrays.values() if array.ndim in (4, 5) for one in array]
    if len(stimuli) != len(keys):
        return {}
    for key, stimulus in zip(keys, stimuli, strict=True):
        frame = stimulus
        if stimulus.ndim == 4:
            frame = stimulus[((stimulus.astype(float) - 127) ** 2).sum((1, 2, 3)).argmax()]
        pictures[key] = grey_png(frame.mean(0), side)
    return pictures


def tuning_curves(experiment: ExperimentFolder) -> tuple[np.ndarray, dict[UnitKey, np.ndarray]]:
    """Directions, degrees, and of each unit its response to them at the temporal and spatial frequency it likes best.

    The response is the larger of F0 and F1, in Hz.
    """
    arrays = experiment.arrays()
    directions, curves = arrays.get("direction", np.empty(0)), {}
    for session, f0 in _by_session(experiment, "f0_hz", ndim=4).items():
        f1 = arrays.get(f"f1_hz.{session}", f0)
        response = np.nan_to_num(np.maximum(f0, f1) if f1.shape == f0.shape else f0)
        ids = [unit for name, unit in experiment.units if name == session]
        if response.shape[2] != len(directions):
            continue
        for column, unit in enumerate(ids[: response.shape[3]]):
            grid = response[..., column]
            t, s, _ = np.unravel_index(grid.argmax(), grid.shape)
            curves[session, unit] = grid[t, s]
    return directions, curves


def _by_session(experiment: ExperimentFolder, name: str, ndim: int) -> dict[str, np.ndarray]:
    prefix = f"{name}."
    return {
        key.removeprefix(prefix): array
        for key, array in experiment.arrays().items()
        if key.startswith(prefix) and array.ndim == ndim
    }


def _units(path: Path) -> dict[UnitKey, dict[str, str]]:
    if not path.exists():
        return {}
    with open(path, newline="", encoding="utf-8") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    return {
        (row.pop("session"), row.pop("unit_id")): {key: value or "" for key, value in row.items() if key}
        for row in rows
    }


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
