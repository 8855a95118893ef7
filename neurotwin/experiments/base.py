"""What all experiments share: options, a common result, the folder it is written to, and when a folder is enough.

To add an experiment, write one file with a class of its options, and import it in the package's ``__init__``::

    @register("experiment", "mean_rate")
    class MeanRate(Experiment):
        '''The rate of every unit to a grey screen.'''

        seconds: float = Field(1.0, gt=0, description="How long the screen is grey, s.")

        def measure(self, presenter: Presenter) -> Result:
            ...
            return Result(tables={"units": columns})

The command line, its help and the settings in the result's folder follow from the fields.
"""

import csv
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from matplotlib.figure import Figure
from pydantic import ValidationError

from ..config import Params, define, name_of
from ..data.prepare import Prepared
from ..models.twin import TwinModel
from .presenter import ExperimentError, Held, Presenter

__all__ = ["Experiment", "Result", "model_digest", "options_of"]

_SETTINGS = "settings.json"


@dataclass(eq=False)
class Result:
    """What an experiment found.

    Attributes
    ----------
    tables
        By name, columns of equal length by their names. The table `units` has one row a unit, and starts with
        `session` and `unit_id`. Of an ensemble, the table `disagreement` says how far its members differ in the same
        columns: standard deviations over what each member alone gives.
    arrays
        By name. Those of one session end with ``.SESSION``.
    axes
        Names of the axes of each array.
    figures
        By name, functions that draw a figure when they are called.
    files
        By name, functions that write one more file to the path that they are given.
    settings
        What was asked for (`experiment`, `options`, `model`, `sessions`, `behavior`, `data`, `version`) and, under
        `notes`, what followed from it.
    """

    tables: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    axes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    figures: dict[str, Callable[[], Figure]] = field(default_factory=dict)
    files: dict[str, Callable[[Path], None]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: str | Path) -> Path:
        """Write tables (``NAME.csv``), arrays (``arrays.npz``), figures (``NAME.png``), files and settings.

        The folder appears whole, or what was there before stays.

        Raises
        ------
        ExperimentError
            If there is such a folder already that holds something else than the result of an experiment.
        """
        folder = Path(folder)
        if folder.exists() and not (folder / _SETTINGS).is_file() and (not folder.is_dir() or any(folder.iterdir())):
            raise ExperimentError(f"{folder}: exists and holds no result of an experiment; choose another folder")
        folder.parent.mkdir(parents=True, exist_ok=True)
        new = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:12]}.tmp")
        try:
            self._write_into(new)
            if folder.exists():
                old = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:12]}.old")
                os.replace(folder, old)
                os.replace(new, folder)
                shutil.rmtree(old)
            else:
                os.replace(new, folder)
        finally:
            shutil.rmtree(new, ignore_errors=True)
        return folder

    def _write_into(self, folder: Path) -> None:
        folder.mkdir()
        for name, columns in self.tables.items():
            _write_csv(folder / f"{name}.csv", columns)
        if self.arrays:
            np.savez_compressed(folder / "arrays.npz", **self.arrays)  # type: ignore[arg-type]
        for name, draw in self.figures.items():
            draw().savefig(folder / f"{name}.png", dpi=120)
        for name, write in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write(folder / name)
        settings = {**self.settings, "axes": {name: list(axes) for name, axes in self.axes.items()}}
        (folder / _SETTINGS).write_text(json.dumps(settings, indent=2, default=_plain) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: str | Path) -> "Result":
        """Tables, arrays and settings of a folder that :meth:`write` wrote.

        Raises
        ------
        ExperimentError
            If it is no such folder.
        """
        folder = Path(folder)
        settings = _settings_in(folder)
        if settings is None:
            raise ExperimentError(f"{folder}: holds no result of an experiment")
        arrays: dict[str, np.ndarray] = {}
        if (folder / "arrays.npz").is_file():
            with np.load(folder / "arrays.npz") as stored:
                arrays = dict(stored)
        tables = {path.stem: _read_csv(path) for path in sorted(folder.glob("*.csv"))}
        axes = {name: tuple(names) for name, names in settings.pop("axes", {}).items()}
        return cls(tables=tables, arrays=arrays, axes=axes, settings=settings)

    def to_frame(self, table: str = "units") -> Any:
        """A table as a pandas DataFrame.

        Raises
        ------
        ExperimentError
            If there is no such table, or pandas is not installed.
        """
        if table not in self.tables:
            raise ExperimentError(f"there is no table {table!r}; there are {', '.join(self.tables) or 'none'}")
        if find_spec("pandas") is None:
            raise ExperimentError("pandas is not installed; `pip install pandas`, or use `tables`")
        import pandas

        return pandas.DataFrame(self.tables[table])

    def to_xarray(self) -> Any:
        """The arrays as an xarray Dataset. Axes of one name but different lengths get the array's name in front.

        Raises
        ------
        ExperimentError
            If xarray is not installed.
        """
        if find_spec("xarray") is None:
            raise ExperimentError("xarray is not installed; `pip install xarray`, or use `arrays` and `axes`")
        import xarray

        lengths: dict[str, int] = {}
        variables = {}
        for name, array in self.arrays.items():
            axes = self.axes.get(name) or tuple(f"axis{axis}" for axis in range(array.ndim))
            named = [
                axis if lengths.setdefault(axis, n) == n else f"{name}.{axis}"
                for axis, n in zip(axes, array.shape, strict=True)
            ]
            variables[name] = (named, array)
        return xarray.Dataset(variables, attrs={"settings": json.dumps(self.settings, default=_plain)})


class Experiment(Params):
    """Base of the experiments: the fields are the options, :meth:`measure` is what is done.

    Attributes
    ----------
    needs_data
        Whether there is no experiment without the recordings that the twin was trained on.
    periods
        Of columns of the table `units` that hold angles, after how many degrees they repeat.
    comparable
        Columns of the table `units` in which members of an ensemble are compared; None: all real-valued ones.
    """

    needs_data: ClassVar[bool] = False
    periods: ClassVar[Mapping[str, float]] = {}
    comparable: ClassVar[tuple[str, ...] | None] = None

    def measure(self, presenter: Presenter) -> Result:
        """Do the experiment; the settings are added by :meth:`run`."""
        raise NotImplementedError

    def run(
        self, twin: TwinModel, prepared: Sequence[Prepared] = (), *, sessions: Sequence[str] | None = None,
        behavior: Held = "median", folder: str | Path | None = None,
    ) -> Result:  # fmt: skip
        """Do the experiment on all units of some sessions.

        Parameters
        ----------
        twin
            The model.
        prepared
            The sessions' recordings as prepared, where they are at hand.
        sessions
            Names; default all that the twin knows.
        behavior
            What behaviour is held at; see :class:`~neurotwin.experiments.presenter.Presenter`.
        folder
            Where the result is written. If it holds the result of the same experiment with the same options, model,
            sessions, behaviour and data, that one is read instead.

        Raises
        ------
        ExperimentError
            If the experiment is not possible; the message says why, and what to do.
        """
        presenter = Presenter(twin, prepared, sessions=sessions, behavior=behavior)
        if self.needs_data:
            presenter.require_data(name_of("experiment", type(self)))
        asked = self._asked(presenter)
        if folder is not None and _same(_settings_in(Path(folder)), asked):
            return Result.read(folder)
        result = self.measure(presenter)
        if len(twin.members) > 1 and (columns := self._disagreement(presenter, result.tables["units"])):
            result.tables["disagreement"] = columns
        notes = {**presenter.notes, **result.settings}
        result.settings = {**asked, "notes": notes}
        if folder is not None:
            result.write(folder)
        return result

    def is_done(self, folder: str | Path, twin: TwinModel, prepared: Sequence[Prepared] = (), **asked: Any) -> bool:
        """Whether a folder holds what :meth:`run` with the same arguments would write."""
        return _same(_settings_in(Path(folder)), self._asked(Presenter(twin, prepared, **asked)))

    def _disagreement(self, presenter: Presenter, units: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """How far the members of an ensemble differ in each column of the table `units`, (U,); empty if in none."""
        names = [
            name for name, column in units.items()
            if np.asarray(column).dtype.kind == "f" and (self.comparable is None or name in self.comparable)
        ]  # fmt: skip
        if not names:
            return {}
        each = [self.measure(alone).tables["units"] for alone in presenter.alone]
        spread = {name: _spread([table[name] for table in each], self.periods.get(name)) for name in names}
        return {"session": units["session"], "unit_id": units["unit_id"], **spread}

    def _asked(self, presenter: Presenter) -> dict[str, Any]:
        """All that the result depends on, as JSON has it."""
        twin = presenter.twin
        asked = {
            "experiment": name_of("experiment", type(self)),
            "options": self.model_dump(mode="json"),
            "model": model_digest(twin),
            "sessions": [twin.sessions[index].name for index in presenter.indices],
            "behavior": presenter.asked,
            "data": {known.name: known.key for known in presenter.prepared.values()},
            "version": metadata.version("neurotwin") if _is_installed() else "source",
        }
        return json.loads(json.dumps(asked, default=_plain))


def options_of(name: str, values: Mapping[str, Any]) -> Experiment:
    """The experiment of a name with some of its options given.

    Raises
    ------
    ConfigError
        If there is no experiment of that name.
    ExperimentError
        If an option is unknown or has a wrong value.

    Examples
    --------
    >>> options_of("gratings", {"contrast": 0.5}).contrast
    0.5
    """
    kind: type[Experiment] = define("experiment", name)
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        text = first["msg"].removeprefix("Value error, ")
        raise ExperimentError(f"experiment {name}: {f'option {where}: ' if where else ''}{text}") from None


def model_digest(twin: TwinModel) -> str:
    """A SHA-256 of a model: of its description and its weights, whatever file it is kept in."""
    digest = hashlib.sha256(json.dumps(twin.describe(), sort_keys=True, default=_plain).encode())
    for name, tensor in twin.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


# --------------------------------------------------------------------------------------------------------------------


def _spread(values: Sequence[np.ndarray], period: float | None) -> np.ndarray:
    """Standard deviation over the members, (U,); that of angles is √(−2 log R), R the length of their mean vector.

    Reference: Mardia & Jupp 2000, Directional Statistics, equation 2.3.14.
    """
    stacked = np.stack(values).astype(np.float64)
    if period is None:
        return stacked.std(axis=0)
    length = np.abs(np.exp(2j * np.pi * stacked / period).mean(axis=0)).clip(1e-12, 1.0)
    return np.sqrt(-2 * np.log(length)) * period / (2 * np.pi)


def _is_installed() -> bool:
    return any(True for _ in metadata.distributions(name="neurotwin"))


def _settings_in(folder: Path) -> dict[str, Any] | None:
    try:
        settings = json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return settings if isinstance(settings, dict) and "experiment" in settings else None


def _same(settings: Mapping[str, Any] | None, asked: Mapping[str, Any]) -> bool:
    return settings is not None and all(settings.get(key) == value for key, value in asked.items())


def _plain(value: Any) -> Any:
    """What JSON does not know, as something that it does."""
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else str(value)


def _write_csv(path: Path, columns: Mapping[str, np.ndarray]) -> None:
    lengths = {name: len(column) for name, column in columns.items()}
    assert len(set(lengths.values())) <= 1, f"{path.name}: columns of different lengths: {lengths}"
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*(np.asarray(column).tolist() for column in columns.values()), strict=True))


def _read_csv(path: Path) -> dict[str, np.ndarray]:
    with open(path, newline="", encoding="utf-8") as file:
        header, *rows = list(csv.reader(file))
    return {name: _typed([row[index] for row in rows]) for index, name in enumerate(header)}


def _typed(values: list[str]) -> np.ndarray:
    """Whole numbers, numbers, or text: the first that fits all."""
    for kind in (np.int64, np.float64):
        try:
            return np.array(values, dtype=kind) if kind is np.float64 else np.array([int(v) for v in values], kind)
        except (ValueError, OverflowError):
            continue
    return np.array(values, dtype=str)
