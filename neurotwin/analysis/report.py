"""What the folders of runs say, and the results of several runs in one table, as text or markdown."""

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from ..metrics.table import EvaluationError, Table, summarize_table
from ..models import load_twin

__all__ = [
    "Run", "distinct_names", "load_run", "markdown_table", "merit_title", "number_text", "report_rows", "summary_text",
    "text_table",
]  # fmt: skip

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
    notes
        Full sentences on what its folder lacks, or holds but cannot be read.
    model
        The file of the model where this is no run but a saved model, such as an ensemble; else None.
    """

    folder: Path
    record: dict[str, Any]
    table: Table | None
    curves: dict[str, np.ndarray]
    notes: tuple[str, ...] = ()
    model: Path | None = None


def load_run(folder: str | Path) -> Run:
    """Read a run's folder. A table that is absent or damaged is a note, for the rest of the run can still be shown.

    The file of a saved model will do as well. Its table is the one that `neurotwin evaluate` wrote beside it, and what
    a report computes of it lies in the folder ``NAME.report`` beside it.

    Raises
    ------
    EvaluationError
        If the folder holds no run, or its `run.json` cannot be read.
    """
    folder = Path(folder)
    if folder.is_file():
        return _of_model(folder)
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
    notes: list[str] = []
    table, curves = _read_table(folder / "units.csv", _NO_TABLE, notes), {}
    try:
        curves = _read_curves(folder / "metrics.csv")
    except (EvaluationError, OSError, UnicodeDecodeError) as error:
        notes.append(f"Its learning curves cannot be read: {error}.")
    return Run(folder, record, table, curves, tuple(notes))


def report_rows(runs: Sequence[Run], tests: Sequence[Table | None] = ()) -> list[dict[str, str]]:
    """One row a run, the values as they are shown; columns that no run fills are left out.

    The mean is over sessions, each one vote, the median over units; a run without a table of units shows "failed".

    Parameters
    ----------
    runs
        The runs.
    tests
        Their figures on the test split, where known; shown beside those of validation.
    """
    subjects = dict.fromkeys(subject for run in runs if run.table for subject in run.table["subject"].tolist())
    merits = list(dict.fromkeys(merit_title(run.table.figure_of_merit) for run in runs if run.table)) or ["BPS"]
    rows = []
    for name, run, test in zip(distinct_names(runs), runs, tests or [None] * len(runs), strict=True):
        parameters, seconds = run.record["parameters"], run.record.get("wall_s")
        row = {
            "model": name,
            "parameters": f"{parameters:,}" if isinstance(parameters, int) else str(parameters),
            "wall time": _duration(seconds) if isinstance(seconds, int | float) else "",
        }
        if run.table is None:
            rows.append(row | {f"mean {merits[0]}": "failed"})
            continue
        merit = merit_title(run.table.figure_of_merit)
        groups = {(group.scope, group.name): group for group in summarize_table(run.table)}
        total = groups["run", ""]
        fraction = summarize_table(run.table, "fraction_of_oracle")[-1].mean
        row |= {
            f"mean {merit}": number_text(total.mean),
            f"median {merit}": number_text(total.median),
            "of oracle": _percent(fraction),
            **{
                f"{merit} {subject}": number_text(groups["subject", subject].mean)
                for subject in subjects
                if ("subject", subject) in groups
            },
            "units": str(total.n),
            "NaN": str(total.n_nan),
        }
        if test is not None:
            row[f"test {merit}"] = number_text(summarize_table(test, run.table.figure_of_merit)[-1].mean)
        rows.append(row)
    names = ["model", "parameters", "wall time"]
    for merit in merits:
        names += [f"mean {merit}", f"median {merit}", f"test {merit}", *(["of oracle"] if merit == "BPS" else [])]
        names += [f"{merit} {subject}" for subject in subjects]
    names += ["units", "NaN"]
    filled = [name for name in names if any(row.get(name) for row in rows)]
    return [{name: row.get(name, "") for name in filled} for row in rows]


def merit_title(merit: str) -> str:
    """What a figure of merit is called in a heading."""
    return {"bps": "BPS", "correlation": "r"}.get(merit, merit)


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
            row[f"mean {titles[metric]}"] = number_text(parts[index].mean)
            if metric in (table.figure_of_merit, "correlation"):
                row[f"median {titles[metric]}"] = number_text(parts[index].median)
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


def distinct_names(runs: Sequence[Run]) -> list[str]:
    """Names of runs that differ: the model's, with as much of the folder's path as tells runs of one model apart."""
    models = [str(run.record["name"]) for run in runs]
    folders = [run.folder.absolute().parts for run in runs]
    names = []
    for number, (model, folder) in enumerate(zip(models, folders, strict=True)):
        rivals = [f for other, f in enumerate(folders) if other != number and models[other] == model]
        depth = next((n for n in range(1, len(folder) + 1) if all(f[-n:] != folder[-n:] for f in rivals)), 1)
        names.append(f"{model} ({'/'.join(folder[-depth:])})" if rivals else model)
    return [name if names.count(name) == 1 else f"{name} #{names[:n].count(name) + 1}" for n, name in enumerate(names)]


def _of_model(path: Path) -> Run:
    """A saved model, as if it were a run."""
    twin, notes = load_twin(path), list[str]()
    record = {
        "name": path.stem, "parameters": sum(parameter.numel() for parameter in twin.parameters()),
        "sessions": {spec.name: "" for spec in twin.sessions},
        "began": datetime.fromtimestamp(path.stat().st_mtime).astimezone().isoformat(timespec="seconds"),
    }  # fmt: skip
    without = f"It has no table of units yet: `neurotwin evaluate {path}` writes it."
    table = _read_table(path.with_suffix(".val.csv"), without, notes)
    return Run(path.with_suffix(".report"), record, table, {}, tuple(notes), model=path)


_NO_TABLE = "It has no units.csv: it failed, was stopped, or is still training."


def _read_table(path: Path, without: str, notes: list[str]) -> Table | None:
    if not path.exists():
        notes.append(without)
        return None
    try:
        table = Table.read(path)
    except EvaluationError as error:
        notes.append(f"Its table of units cannot be read: {error}.")
        return None
    if not len(table):
        notes.append(f"Its {path.name} holds no units.")
        return None
    return table


def _read_curves(path: Path) -> dict[str, np.ndarray]:
    if not path.exists():
        return {}
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return {name: np.array([float(row[name] or "nan") for row in rows]) for name in rows[0]} if rows else {}
    except (TypeError, ValueError, csv.Error, OSError) as error:
        raise EvaluationError(f"{path}: not a table of numbers ({error})") from None


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _percent(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.1%}"


def number_text(value: float, absent: str = "NaN") -> str:
    """A figure with three decimals; `absent` where it is NaN."""
    return absent if math.isnan(value) else f"{value:.3f}"
