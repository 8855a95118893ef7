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
    a: float | str
    b: float | str

    @property
    def size(self) -> float:
        """Absolute difference; infinite where only one of the two is NaN, and between different names."""
        if self.a == self.b:
            return 0.0
        if isinstance(self.a, str) or isinstance(self.b, str):
            return math.inf
        if math.isnan(self.a) and math.isnan(self.b):
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
    left_out
        Figures that are not compared, because one of the tables was written without them.
    """

    n_units: int
    only_a: tuple[tuple[str, int], ...]
    only_b: tuple[tuple[str, int], ...]
    differences: tuple[Difference, ...]
    largest: dict[str, float]
    overall: tuple[float, float]
    left_out: tuple[str, ...] = ()

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
        if self.left_out:
            lines.append(f"not compared, since one of the tables lacks them: {', '.join(self.left_out)}")
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
    # A table that was written before a metric existed, or without one of the user's own, does not have it. That is no
    # difference, unlike a figure that is NaN in one of the two.
    names = [name for name in (a.columns | b.columns) if name not in ("session", "subject", "unit_id")]
    left_out = tuple(name for name in names if any(name in t.absent or name not in t.columns for t in (a, b)))
    compared = [name for name in names if name not in left_out]
    numbers = [name for name in compared if a[name].dtype.kind in "if" and b[name].dtype.kind in "if"]
    numbers = [name for name in numbers if not (np.isnan(a[name]).all() and np.isnan(b[name]).all())]
    largest, differences = dict.fromkeys(numbers, 0.0), []
    for key in both:
        for metric in numbers:
            x, y = float(a[metric][rows_a[key]]), float(b[metric][rows_b[key]])
            difference = Difference(*key, metric, x, y)
            largest[metric] = max(largest[metric], difference.size)
            if difference.size > tolerance * max([1.0, *(abs(v) for v in (x, y) if not math.isnan(v))]):
                differences.append(difference)
        for name in (name for name in compared if a[name].dtype.kind == "U"):
            difference = Difference(*key, name, str(a[name][rows_a[key]]), str(b[name][rows_b[key]]))
            differences += [difference] if difference.size else []
    return Comparison(
        n_units=len(both),
        only_a=tuple(key for key in rows_a if key not in rows_b),
        only_b=tuple(key for key in rows_b if key not in rows_a),
        differences=tuple(sorted(differences, key=lambda difference: -difference.size)),
        largest=largest,
        overall=(summarize_table(a)[-1].mean, summarize_table(b)[-1].mean),
        left_out=left_out,
    )


def _index(table: Table) -> dict[tuple[str, int], int]:
    index: dict[tuple[str, int], int] = {}
    for row, key in enumerate(zip(table["session"].tolist(), table["unit_id"].tolist(), strict=True)):
        if key in index:
            raise EvaluationError(f"unit {key[1]} of session {key[0]!r} occurs twice in a table")
        index[key] = row
    return index
