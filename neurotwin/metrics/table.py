"""The figures of all units of a run: a table with one row a unit, its file, and its summaries."""

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from ..config import registered
from ..errors import UserError
from ..files import replacing
from .definitions import metrics

__all__ = ["EvaluationError", "GroupSummary", "Summary", "Table", "columns", "summarize", "summarize_table"]

_KEYS = ("session", "subject", "unit_id", "likelihood")
_REQUIRED = ("session", "subject", "unit_id", "bins")


class EvaluationError(UserError):
    """An evaluation is not possible, or a table is not one; the message says why and what to do."""


def columns() -> dict[str, type]:
    """Columns of a table, in order, and their types: who the unit is, then every registered metric."""
    return {
        "session": str, "subject": str, "unit_id": int, "likelihood": str,
        **{name: metric.kind for name, metric in metrics().items()},
    }  # fmt: skip


@dataclass(frozen=True)
class Table:
    """One row a unit.

    Attributes
    ----------
    columns
        (N,) arrays by the names of :func:`columns`: `session`, `subject`, `unit_id` (64-bit whole numbers, or text),
        the name of the `likelihood` that the figures are of, and one column for each metric.
    absent
        Metrics that are NaN because the file that the table was read from does not have them.
    """

    columns: dict[str, np.ndarray]
    absent: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return len(self.columns["unit_id"])

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns[name]

    @classmethod
    def of_session(
        cls, session: str, subject: str, unit_ids: Sequence[int] | Sequence[str] | np.ndarray, likelihood: str,
        figures: Mapping[str, np.ndarray],
    ) -> "Table":  # fmt: skip
        """The units of one session.

        Parameters
        ----------
        session, subject, likelihood
            The same for all units.
        unit_ids
            (U,) whole numbers or text.
        figures
            (U,) each, by the names of metrics; what is absent is NaN.

        Raises
        ------
        EvaluationError
            If there are no valid bins given under the name `bins`.
        """
        n_units = len(unit_ids)
        if "bins" not in figures:
            raise EvaluationError(f"session {session}: figures without `bins`; use compute_metrics")
        keys = {"session": session, "subject": subject, "likelihood": likelihood}
        values = {name: np.full(n_units, value) for name, value in keys.items()}
        return cls(_complete(values | {"unit_id": np.asarray(unit_ids)} | dict(figures)))

    def where(self, rows: np.ndarray) -> "Table":
        """The rows of a mask or of indices."""
        return Table({name: column[rows] for name, column in self.columns.items()}, self.absent)

    @classmethod
    def concatenate(cls, tables: Sequence["Table"]) -> "Table":
        """The rows of all, in order; a figure that a table lacks is NaN. Ids become text where some are text."""
        tables = [*tables]
        names = dict.fromkeys(name for table in tables for name in table.columns)
        parts = {name: [table.columns.get(name, np.full(len(table), np.nan)) for table in tables] for name in names}
        if len({part.dtype.kind for part in parts["unit_id"]} & {"U", "i"}) == 2:
            parts["unit_id"] = [part.astype(str) for part in parts["unit_id"]]
        columns = {name: np.concatenate(part) for name, part in parts.items()}
        return cls(columns, frozenset().union(*(table.absent for table in tables)))

    @property
    def figure_of_merit(self) -> str:
        """Name of the metric that a report leads with: that of the likelihood, or `correlation` where they differ."""
        kinds = registered("likelihood")
        figures = {getattr(kinds.get(name), "figure_of_merit", "correlation") for name in np.unique(self["likelihood"])}
        return figures.pop() if len(figures) == 1 else "correlation"

    def write(self, path: str | Path) -> None:
        """Write a CSV file, whole or not at all; :meth:`read` gives the same numbers, to the last bit."""
        with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(self.columns)
            writer.writerows(zip(*(column.tolist() for column in self.columns.values()), strict=True))

    @classmethod
    def read(cls, path: str | Path) -> "Table":
        """Read a CSV file that :meth:`write` wrote, with this version or an earlier one.

        A metric that the file lacks is NaN. A column that is no registered metric here is kept, as numbers. Ids are
        whole numbers if all of them read as such, else text. Without a column `likelihood`, it is "poisson".

        Raises
        ------
        EvaluationError
            If the file is missing or is not such a table.
        """
        try:
            with open(path, newline="", encoding="utf-8") as file:
                header, *rows = list(csv.reader(file)) or [[]]
        except FileNotFoundError:
            raise EvaluationError(f"{path}: no such table; `neurotwin evaluate` writes one") from None
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise EvaluationError(f"{path}: cannot be read as a table ({error})") from None
        absent = [name for name in _REQUIRED if name not in header]
        if absent:
            raise EvaluationError(f"{path}: not a table of units, it lacks the columns {', '.join(absent)}")
        if len(set(header)) < len(header):
            raise EvaluationError(f"{path}: a column occurs twice; remove one")
        for line, row in enumerate(rows, 2):
            if len(row) != len(header):
                raise EvaluationError(f"{path}:{line}: {len(row)} values under {len(header)} columns")
        text = {name: [row[index] for row in rows] for index, name in enumerate(header)}
        try:
            parsed = {name: _parse(name, values) for name, values in text.items()}
            return cls(_complete(parsed), frozenset(metrics()) - frozenset(header))
        except (ValueError, OverflowError) as error:
            raise EvaluationError(f"{path}: {error}") from None


class Summary(NamedTuple):
    """Mean and median of the values that are defined, and how many are and are not."""

    mean: float
    median: float
    n: int
    n_nan: int


def summarize(values: Tensor | np.ndarray | Sequence[float]) -> Summary:
    """Mean and median over units; NaN values are left out and counted.

    Examples
    --------
    >>> summarize([0.5, float("nan"), -0.1, 0.1])
    Summary(mean=0.16666666666666666, median=0.1, n=3, n_nan=1)
    """
    values = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
    values = np.asarray(values, np.float64).reshape(-1)
    counted = values[~np.isnan(values)]
    if not counted.size:
        return Summary(float("nan"), float("nan"), 0, values.size)
    return Summary(float(counted.mean()), float(np.median(counted)), counted.size, values.size - counted.size)


@dataclass(frozen=True)
class GroupSummary:
    """One figure over a session, a subject or a run.

    Attributes
    ----------
    scope
        "session", "subject" or "run".
    name
        Of the session or subject; empty for the run.
    mean
        Mean over sessions of their means over units: each session one vote.
    unit_mean, median
        Over all units.
    n, n_nan
        Units counted, and those left out because the figure is NaN.
    """

    scope: str
    name: str
    mean: float
    unit_mean: float
    median: float
    n: int
    n_nan: int


def summarize_table(table: Table, metric: str | None = None) -> list[GroupSummary]:
    """Summaries of one figure: of each session, each subject, and last the run.

    Means of `fraction_of_oracle` are the mean BPS over the mean oracle BPS of the units that have both, since the ratio
    of a single unit has no bound where its oracle is near 0; the median is that of the units' ratios.

    Parameters
    ----------
    table
        The units.
    metric
        Name of a column; default the figure of merit of the table's likelihood.

    Raises
    ------
    EvaluationError
        If the table has no such column.
    """
    metric = table.figure_of_merit if metric is None else metric
    if metric not in table.columns or metric in _KEYS:
        figures = [name for name in table.columns if name not in _KEYS]
        raise EvaluationError(f"the table has no figure {metric!r}; it has {', '.join(figures)}")
    sessions = list(dict.fromkeys(table["session"].tolist()))
    subjects = list(dict.fromkeys(table["subject"].tolist()))
    groups = [("session", name, table["session"] == name) for name in sessions]
    groups += [("subject", name, table["subject"] == name) for name in subjects]
    groups.append(("run", "", np.ones(len(table), bool)))
    summaries = []
    for scope, name, rows in groups:
        group = table.where(rows)
        each = [_mean(group.where(group["session"] == s), metric) for s in sessions if s in group["session"]]
        _, median, n, n_nan = summarize(group[metric])
        summaries.append(GroupSummary(scope, name, summarize(each).mean, _mean(group, metric), median, n, n_nan))
    return summaries


def _mean(table: Table, metric: str) -> float:
    if metric != "fraction_of_oracle":
        return summarize(table[metric]).mean
    both = table.where(~np.isnan(table["bps"] + table["oracle_bps"]))
    oracle = summarize(both["oracle_bps"]).mean
    return summarize(both["bps"]).mean / oracle if oracle > 0 else float("nan")


def _complete(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All columns in order, then any others."""
    n_rows = len(values["unit_id"])
    defaults = {"likelihood": np.full(n_rows, "poisson")}
    ordered = {name: values.get(name, defaults.get(name, np.full(n_rows, np.nan))) for name in columns()}
    return ordered | {name: column for name, column in values.items() if name not in ordered}


def _parse(name: str, values: list[str]) -> np.ndarray:
    kind = columns().get(name, float)
    if name == "unit_id":
        whole = all(re.fullmatch(r"0|-?[1-9]\d*", value) for value in values)
        return np.array([int(value) for value in values], np.int64) if whole else np.array(values, str)
    if kind is str:
        return np.array(values, dtype=str)
    try:
        return np.array([kind(value) for value in values], dtype=np.int64 if kind is int else np.float64)
    except ValueError as error:
        raise ValueError(f"column {name}: {error}") from None
