"""Whether two evaluations gave the same figures, unit by unit."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..metrics.table import EvaluationError, Table, summarize_table

__all__ = ["Comparison", "Difference", "compare", "compare_tables"]


@dataclass(frozen=True)
class Difference:
    """One figure of one unit in both runs, and how far they are apart."""

    session: str
    unit_id: int
    metric: str
    a: float
    b: float

    @property
    def size(self) -> float:
        """Absolute difference; infinite where only one of the two is NaN."""
        if self.a == self.b or (math.isnan(self.a) and math.isnan(self.b)):
            return 0.0
        size = abs(self.a - self.b)
        return math.inf if math.isnan(size) else size


@dataclass(frozen=True)
class Comparison:
    """What differs between two tables.

    Attributes
    ----------
    n_units
        Units that both have.
    only_a, only_b
        (session, unit id) of the units that only one has.
    differences
        Figures that differ by more than the tolerance, the worst first.
    largest
        Largest difference of each figure, within the tolerance or not.
    overall
        Mean BPS of the two runs.
    """

    n_units: int
    only_a: tuple[tuple[str, int], ...]
    only_b: tuple[tuple[str, int], ...]
    differences: tuple[Difference, ...]
    largest: dict[str, float]
    overall: tuple[float, float]

    @property
    def same(self) -> bool:
        """Whether both have the same units, with the same figures within the tolerance."""
        return not (self.only_a or self.only_b or self.differences)

    def text(self, worst: int = 10) -> str:
        """A few lines for a person to read."""
        lines = [
            f"{self.n_units} units in both, mean BPS {self.overall[0]:.6g} and {self.overall[1]:.6g}",
            "largest difference: " + ", ".join(f"{name} {size:.3g}" for name, size in self.largest.items()),
        ]
        for label, units in (("first", self.only_a), ("second", self.only_b)):
            if units:
                shown = ", ".join(f"{session}/{unit}" for session, unit in units[:worst])
                lines.append(f"{len(units)} units only in the {label}: {shown}{', ...' if len(units) > worst else ''}")
        if self.differences:
            lines.append(f"{len(self.differences)} figures differ; the worst:")
            lines += [f"  {d.session}/{d.unit_id} {d.metric}: {d.a!r} and {d.b!r}" for d in self.differences[:worst]]
        lines.append("the same within the tolerance" if self.same else "different")
        return "\n".join(lines)


def compare(run_a: str | Path, run_b: str | Path, tolerance: float = 1e-6) -> Comparison:
    """Compare the tables of units of two runs, each a run's folder or a CSV file; see :func:`compare_tables`."""
    tables = []
    for run in map(Path, (run_a, run_b)):
        if not run.exists():
            raise EvaluationError(f"{run}: no such run")
        tables.append(Table.read(run / "units.csv" if run.is_dir() else run))
    return compare_tables(*tables, tolerance=tolerance)


def compare_tables(a: Table, b: Table, *, tolerance: float = 1e-6) -> Comparison:
    """Compare two tables by session and unit id; the order of the rows does not matter.

    Two figures are the same if both are NaN or they differ by at most ``tolerance · max(1, |a|, |b|)``.

    Raises
    ------
    EvaluationError
        If a unit occurs twice in one table.
    """
    rows_a, rows_b = _index(a), _index(b)
    both = [key for key in rows_a if key in rows_b]
    numbers = [name for name, column in a.columns.items() if column.dtype.kind in "if" and name != "unit_id"]
    # A table that was written before a metric existed, or without one of the user's own, has no value of it; that is
    # no difference.
    numbers = [name for name in numbers if name in b.columns]
    numbers = [name for name in numbers if not np.isnan(a[name]).all() and not np.isnan(b[name]).all()]
    largest, differences = dict.fromkeys(numbers, 0.0), []
    for key in both:
        for metric in numbers:
            x, y = float(a[metric][rows_a[key]]), float(b[metric][rows_b[key]])
            difference = Difference(*key, metric, x, y)
            largest[metric] = max(largest[metric], difference.size)
            if difference.size > tolerance * max([1.0, *(abs(v) for v in (x, y) if not math.isnan(v))]):
                differences.append(difference)
    return Comparison(
        n_units=len(both),
        only_a=tuple(key for key in rows_a if key not in rows_b),
        only_b=tuple(key for key in rows_b if key not in rows_a),
        differences=tuple(sorted(differences, key=lambda difference: -difference.size)),
        largest=largest,
        overall=(summarize_table(a)[-1].mean, summarize_table(b)[-1].mean),
    )


def _index(table: Table) -> dict[tuple[str, int], int]:
    index: dict[tuple[str, int], int] = {}
    for row, key in enumerate(zip(table["session"].tolist(), table["unit_id"].tolist(), strict=True)):
        if key in index:
            raise EvaluationError(f"unit {key[1]} of session {key[0]!r} occurs twice in a table")
        index[key] = row
    return index
