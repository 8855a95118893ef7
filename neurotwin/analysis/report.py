"""The results of several runs in one table: as text, as markdown, and as a page that needs nothing else."""

import csv
import html
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..metrics.table import EvaluationError, Table, summarize_table
from . import plots
from .page import html_image, html_table, standalone_page

__all__ = ["Run", "html_page", "load_run", "markdown_table", "report_rows", "summary_text", "text_table"]

_RECORD = ("name", "parameters")


@dataclass(frozen=True)
class Run:
    """What a run's folder says of it.

    Attributes
    ----------
    folder
        The folder.
    record
        Its `run.json`: at least `name` and `parameters` (their number); `wall_s` (s) once it has ended.
    table
        Its `units.csv`, the table of the validation part; None where the run did not get that far.
    curves
        Columns of its `metrics.csv` as numbers, NaN where empty; empty where there is none.
    """

    folder: Path
    record: dict[str, Any]
    table: Table | None
    curves: dict[str, np.ndarray]


def load_run(folder: str | Path) -> Run:
    """Read a run's folder.

    Raises
    ------
    EvaluationError
        If the folder holds no run, or what it holds cannot be read.
    """
    folder = Path(folder)
    path = folder / "run.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise EvaluationError(f"{folder}: not the folder of a run, it has no run.json") from None
    except (ValueError, OSError) as error:
        raise EvaluationError(f"{path}: cannot be read ({error})") from None
    absent = [key for key in _RECORD if not isinstance(record, dict) or key not in record]
    if absent:
        raise EvaluationError(f"{path}: lacks {', '.join(absent)}")
    units = folder / "units.csv"
    return Run(folder, record, Table.read(units) if units.exists() else None, _read_curves(folder / "metrics.csv"))


def report_rows(runs: Sequence[Run]) -> list[dict[str, str]]:
    """One row a run, the values as they are shown; columns that no run fills are left out.

    The mean is over sessions, each one vote, the median over units; a run without a table of units shows "failed".
    """
    subjects = dict.fromkeys(subject for run in runs if run.table for subject in run.table["subject"].tolist())
    merits = list(dict.fromkeys(_merit(run.table) for run in runs if run.table)) or ["BPS"]
    rows = []
    for run in runs:
        row = {
            "model": str(run.record["name"]),
            "parameters": f"{run.record['parameters']:,}",
            "wall time": _duration(run.record["wall_s"]) if "wall_s" in run.record else "",
        }
        if run.table is None:
            rows.append(row | {f"mean {merits[0]}": "failed"})
            continue
        merit = _merit(run.table)
        groups = {(group.scope, group.name): group for group in summarize_table(run.table)}
        total = groups["run", ""]
        fraction = summarize_table(run.table, "fraction_of_oracle")[-1].mean
        row |= {
            f"mean {merit}": _number(total.mean),
            f"median {merit}": _number(total.median),
            "of oracle": _percent(fraction),
            **{
                f"{merit} {subject}": _number(groups["subject", subject].mean)
                for subject in subjects
                if ("subject", subject) in groups
            },
            "units": str(total.n),
            "NaN": str(total.n_nan),
        }
        rows.append(row)
    names = ["model", "parameters", "wall time"]
    for merit in merits:
        names += [f"mean {merit}", f"median {merit}", *(["of oracle"] if merit == "BPS" else [])]
        names += [f"{merit} {subject}" for subject in subjects]
    names += ["units", "NaN"]
    filled = [name for name in names if any(row.get(name) for row in rows)]
    return [{name: row.get(name, "") for name in filled} for row in rows]


def _merit(table: Table) -> str:
    """What a table's figure of merit is called in a heading."""
    return {"bps": "BPS", "correlation": "r"}.get(table.figure_of_merit, table.figure_of_merit)


def summary_text(table: Table) -> str:
    """The figures of sessions, subjects and the run, as text; those that no unit has are left out."""
    titles = {"bps": "BPS", "bits_per_bin": "bits/bin", "d2": "D²", "correlation": "r", "cc_norm": "CC_norm"}
    titles["feve"] = "FEVE"
    if table.figure_of_merit == "bps":
        del titles["bits_per_bin"]  # it says the same
    groups = {metric: summarize_table(table, metric) for metric in titles}
    groups = {metric: parts for metric, parts in groups.items() if parts[-1].n}
    fractions, counted = summarize_table(table, "fraction_of_oracle"), summarize_table(table)
    rows = []
    for index, group in enumerate(counted):
        row = {"": f"{group.scope} {group.name}".strip()}
        for metric, parts in groups.items():
            row[f"mean {titles[metric]}"] = _number(parts[index].mean)
            if metric in (table.figure_of_merit, "correlation"):
                row[f"median {titles[metric]}"] = _number(parts[index].median)
            if metric == "bps" and not math.isnan(fractions[-1].mean):
                row["of oracle"] = _percent(fractions[index].mean)
        rows.append(row | {"units": str(group.n), "NaN": str(group.n_nan)})
    return text_table(rows)


def text_table(rows: Sequence[dict[str, str]]) -> str:
    """Rows as aligned text: the first column to the left, the others to the right.

    Examples
    --------
    >>> print(text_table([{"model": "ln", "mean BPS": "0.310"}, {"model": "resnet", "mean BPS": "0.452"}]))
    model   mean BPS
    ------  --------
    ln         0.310
    resnet     0.452
    """
    names = list(rows[0])
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in names}

    def line(cells: Sequence[str]) -> str:
        first, *rest = (
            cell.ljust(widths[name]) if index == 0 else cell.rjust(widths[name])
            for index, (name, cell) in enumerate(zip(names, cells, strict=True))
        )
        return "  ".join([first, *rest]).rstrip()

    return "\n".join([line(names), line(["-" * widths[n] for n in names]), *(line(list(row.values())) for row in rows)])


def markdown_table(rows: Sequence[dict[str, str]]) -> str:
    """Rows as a markdown table."""
    names = list(rows[0])
    lines = [names, [":--", *["--:"] * (len(names) - 1)], *(row.values() for row in rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |" for cells in lines)


def html_page(runs: Sequence[Run], title: str = "Runs") -> str:
    """The table, learning curves, units against their oracle, and the record of each run: one file without links."""
    rows = report_rows(runs)
    parts = [f"<h1>{html.escape(title)}</h1>", html_table(rows)]
    parts.append(
        "<p>BPS: bits per spike on the validation part. Mean: over sessions, each one vote. Median: over units. Of "
        "oracle: mean BPS as a share of that of the true rate. NaN: units without a spike, left out.</p>"
    )
    drawn = {
        name: (run.curves["epoch"], run.curves["val_bps"])
        for name, run in _named(runs)
        if {"epoch", "val_bps"} <= run.curves.keys()
    }
    if drawn:
        figure = plots.learning_curves(drawn, xlabel="epoch", ylabel="validation, bits per spike")
        parts.append("<h2>Learning curves</h2>" + html_image(figure, "Validation BPS over epochs"))
    parts.append('<div class="runs">')
    for name, run in _named(runs):
        parts.append(f"<section><h2>{html.escape(name)}</h2>")
        if run.table is not None:
            parts.append(html_image(plots.units_against_oracle(run.table), f"BPS of the units of {name}"))
        record = html.escape(json.dumps(run.record, indent=2))
        parts.append(
            f"<details><summary>{html.escape(str(run.folder))}</summary><pre>{record}</pre></details></section>"
        )
    parts.append("</div>")
    return standalone_page(title, parts)


def _named(runs: Sequence[Run]) -> list[tuple[str, Run]]:
    """Runs with names that differ: the model's, with the folder's where models share one."""
    models = [str(run.record["name"]) for run in runs]
    return [
        (model if models.count(model) == 1 else f"{model} ({run.folder.name})", run)
        for model, run in zip(models, runs, strict=True)
    ]


def _read_curves(path: Path) -> dict[str, np.ndarray]:
    if not path.exists():
        return {}
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    try:
        return {name: np.array([float(row[name] or "nan") for row in rows]) for name in rows[0]} if rows else {}
    except (TypeError, ValueError) as error:
        raise EvaluationError(f"{path}: not a table of numbers ({error})") from None


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _percent(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.1%}"


def _number(value: float) -> str:
    return "NaN" if math.isnan(value) else f"{value:.3f}"
