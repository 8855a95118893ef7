"""What a report says in words, and its tables of runs, sessions and areas."""

import math
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ..metrics.definitions import metrics
from ..metrics.table import Table, summarize, summarize_table
from .report import merit_title, number_text, report_rows
from .report_experiments import ExperimentFolder
from .report_units import RunView, Unit, figure_of, typical

__all__ = ["experiment_sentences", "group_rows", "run_rows", "summary_sentences"]

_CEILINGS = {"cc_max": "CC_max", "oracle_correlation": "oracle r", "oracle_bps": "oracle BPS"}
_KINDS = {"train": "train", "val": "validation", "test": "test"}


def run_rows(views: Sequence[RunView]) -> list[dict[str, str]]:
    """One row a run: name, date, size of the data, splits, figures on validation and test, noise ceilings."""
    figures = report_rows([view.run for view in views], [view.data.test for view in views])
    rows = []
    for view, row in zip(views, figures, strict=True):
        sessions, table = view.run.record.get("sessions"), view.run.table
        n_sessions = len(sessions) if isinstance(sessions, dict) else 0 if table is None else len(set(table["session"]))
        end = {key: row.pop(key, "") for key in ("parameters", "wall time")}
        row.pop("model")
        source = _ceiling_source(view)
        medians = {metric: math.nan if source is None else summarize(source[metric]).median for metric in _CEILINGS}
        ceilings = {f"ceiling: {title}": number_text(medians[metric], "") for metric, title in _CEILINGS.items()}
        size = {"sessions": str(n_sessions or ""), "data": _sizes(view), "split": _split(view.run.folder)}
        # The name is that of the page: distinct among all of its runs.
        rows.append({"model": view.name, "date": _date(view)} | row | ceilings | size | end)
    return _filled(rows)


def group_rows(units: Sequence[Unit], by: str, merit: str) -> list[dict[str, str]]:
    """One row a session or area: its units and their figures, with the best, median and worst of them.

    Parameters
    ----------
    units
        Of one run.
    by
        "session" or "area".
    merit
        Name of the figure of merit.
    """
    title = merit_title(merit)
    groups: dict[str, list[Unit]] = {}
    for unit in units:
        groups.setdefault((unit.key[0] if by == "session" else unit.area) or "no area", []).append(unit)
    rows = []
    for name, members in groups.items():
        mean, median, n, n_nan = summarize([unit.merit for unit in members])
        row = {by: name, f"mean {title}": number_text(mean), f"median {title}": number_text(median)}
        test = [unit.test.get(merit, math.nan) for unit in members]
        row["test mean"] = number_text(summarize(test).mean, "")
        norms = [figure_of(unit, "cc_norm") for unit in members]
        row["median CC_norm"] = number_text(summarize(norms).median, "")
        row |= {word: f"{unit.key[1]} ({unit.merit:.3f})" for word, unit in typical(members)}
        rows.append(row | {"units": str(n), "NaN": str(n_nan)})
    return _filled(rows)


def summary_sentences(view: RunView, units: Sequence[Unit]) -> list[str]:
    """Whether the model is good, on which units, and how it learned: sentences with numbers."""
    table = view.run.table
    if table is None:
        return [f"{view.name} has no figures. {view.run.notes[0] if view.run.notes else ''}".strip()]
    merit = table.figure_of_merit
    title = metrics()[merit].title if merit in metrics() else merit
    total = summarize_table(table)[-1]
    if not total.n:
        return [f"No unit of {view.name} has a figure ({title}): none of its {total.n_nan} units can be scored."]
    groups = [group for group in summarize_table(table) if group.scope == "session"]
    over = f"over {len(groups)} sessions, each one vote" if len(groups) > 1 else f"in session {groups[0].name}"
    lines = [
        f"On responses that it was not trained on (the validation split), {view.name} reaches a mean of "
        f"{total.mean:.3f} {title} {over}; the median unit reaches {total.median:.3f}."
    ]
    lines += _test_sentence(view, merit, title)
    if merit in ("bps", "bits_per_bin", "d2"):
        better = int((table[merit] > 0).sum())
        lines.append(f"{better} of {total.n} units ({better / total.n:.0%}) are predicted better than by a constant.")
    if total.n_nan:
        lines.append(f"{total.n_nan} units have no figure (NaN), because they never responded; they are left out.")
    lines += _ceiling_sentences(view)
    lines += _where(groups, units)
    return lines + _learning(view, merit, title)


def experiment_sentences(experiment: ExperimentFolder) -> list[str]:
    """What an experiment found, over units."""
    n = len(experiment.units)
    columns = list(dict.fromkeys(name for row in experiment.units.values() for name in row))
    if experiment.kind == "ablation":
        lines = []
        names = [column.removesuffix(".gain") for column in columns if column.endswith(".gain")]
        # All of behaviour says most, so it comes first; the page opens with the first sentence.
        for name in sorted(names, key=lambda name: name.partition(".")[0] not in ("behavior", "history")):
            gain, low = experiment.column(f"{name}.gain"), experiment.column(f"{name}.gain_low")
            known = summarize(gain)
            if known.n:
                lines.append(
                    f"Knowing {_ablated(name)} adds {known.median:+.3f} to the score of the median unit; the interval "
                    f"lies above 0 for {int((low > 0).sum())} of {known.n} units."
                )
        return lines
    parts = []
    for column, words in _MEDIANS.get(experiment.kind, {}).items():
        known = summarize(experiment.column(column))
        if known.n:
            parts.append(f"{words} {known.median:.3g}")
    return [f"Medians over {n} units: {'; '.join(parts)}."] if parts else []


_MEDIANS = {
    "receptive_field": {
        "size_deg": "size of the receptive field in degrees", "size_px": "in pixels",
        "spatial_frequency_cpd": "spatial frequency in cycles per degree", "latency_ms": "latency in ms",
        "separability": "separability", "average_agreement": "correlation with the recording's own average",
    },
    "gratings": {
        "osi": "orientation selectivity", "dsi": "direction selectivity",
        "direction_width_deg": "half width in degrees",
        "preferred_spatial_frequency_cpd": "preferred spatial frequency in cycles per degree",
        "preferred_temporal_frequency_hz": "preferred temporal frequency in Hz", "f1_f0": "F1/F0",
        "surround_suppression": "surround suppression",
    },
    "exciting_stimulus": {"rate_hz": "rate to the exciting stimulus in Hz", "blank_hz": "rate to grey in Hz"},
}  # fmt: skip


def _ablated(name: str) -> str:
    """Name of a condition of an ablation, in words."""
    variable, _, mode = name.partition(".")
    known = {"median": "its median", "permuted": "that of another trial", "zero": "0"}
    what = {"history": "spike history", "behavior": "all behaviour"}.get(variable, variable)
    return f"{what} rather than {known.get(mode, mode)}" if mode else what


def _test_sentence(view: RunView, merit: str, title: str) -> list[str]:
    test = view.data.test
    if test is None or merit not in test.columns:
        return ["There are no figures of a test split, so the choice of the best epoch flatters these a little."]
    total = summarize_table(test, merit)[-1]
    return [
        f"On the test split, which took no part in any choice, the mean is {total.mean:.3f} {title} and the median "
        f"{total.median:.3f} ({total.n} units)."
    ]


def _ceiling_sentences(view: RunView) -> list[str]:
    table = view.run.table
    assert table is not None
    lines = []
    fraction = summarize_table(table, "fraction_of_oracle")[-1].mean
    if not math.isnan(fraction):
        lines.append(
            f"Its mean on validation is {fraction:.0%} of what the true rate of these simulated recordings reaches."
        )
    source = _ceiling_source(view)
    norm = summarize(source["cc_norm"]) if source is not None else None
    if source is not None and norm is not None and norm.n:
        ceiling = summarize(source["cc_max"]).median
        lines.append(
            f"Against the noise ceiling: over the {norm.n} units with reliable responses to repeats, the median "
            f"CC_norm is {norm.median:.2f} (1 is perfect), and the ceiling of the correlation itself, CC_max, "
            f"is {ceiling:.2f}."
        )
    elif not lines:
        lines.append("No stimulus was shown repeatedly in the parts evaluated, so there is no noise ceiling.")
    return lines


def _ceiling_source(view: RunView) -> Table | None:
    """The table with figures of repeats: that of the test split if it has any, else that of validation."""
    tables = [table for table in (view.data.test, view.run.table) if table is not None]
    return next((t for t in tables if not np.isnan(t["cc_max"]).all()), tables[-1] if tables else None)


def _where(groups: Sequence[Any], units: Sequence[Unit]) -> list[str]:
    lines = []
    if len(groups) > 1:
        ranked = sorted((g for g in groups if g.n), key=lambda group: -group.unit_mean)
        lines.append(
            f"The best session is {ranked[0].name} (mean {ranked[0].unit_mean:.3f}), the worst {ranked[-1].name} "
            f"({ranked[-1].unit_mean:.3f})."
        )
    areas = {area: [u.merit for u in units if u.area == area] for area in dict.fromkeys(u.area for u in units) if area}
    if len(areas) > 1:
        parts = [f"{area} {summarize(merits).mean:.3f} ({len(merits)} units)" for area, merits in areas.items()]
        lines.append(f"By area, the means are {', '.join(parts)}.")
    found = typical(units)
    if len(found) > 1:
        parts = [f"{word} is unit {u.key[1]} of {u.key[0]} ({u.merit:.3f})" for word, u in found if word != "median"]
        lines.append(f"The {', the '.join(parts)}.")
    return lines


def _learning(view: RunView, merit: str, title: str) -> list[str]:
    curves = view.run.curves
    name = f"val_{merit}"
    if "epoch" not in curves or name not in curves or np.isnan(curves[name]).all():
        return []
    epochs, values = curves["epoch"], curves[name]
    best = int(np.nanargmax(values))
    last = np.nanmax(epochs)
    rest = "it was still improving when it stopped, so longer training may help" if epochs[best] == last else (
        "later epochs were not better"
    )  # fmt: skip
    return [
        f"In training, {title} on the validation split was highest in epoch {epochs[best]:g} of {last:g} "
        f"({values[best]:.3f}); {rest}."
    ]


def _filled(rows: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Rows with the same columns, those left out that none fills."""
    names = dict.fromkeys(name for row in rows for name in row)
    filled = [name for name in names if any(row.get(name) for row in rows)]
    return [{name: row.get(name, "") for name in filled} for row in rows]


def _date(view: RunView) -> str:
    """When the run began as its record says, else when the record was last written."""
    began = view.run.record.get("began")
    if isinstance(began, str):
        return began[:16].replace("T", " ")
    try:
        written = (view.run.folder / "run.json").stat().st_mtime
    except OSError:
        return ""
    return datetime.fromtimestamp(written).astimezone().strftime("%Y-%m-%d %H:%M")


def _sizes(view: RunView) -> str:
    """Minutes of each split where recordings are known, else bins of validation."""
    sessions = view.data.sessions.values()
    if sessions:
        minutes = {k: sum(s.bins.get(k, 0) / s.bin_rate for s in sessions) / 60 for k in _KINDS}
        return ", ".join(f"{word} {minutes[split]:.1f} min" for split, word in _KINDS.items() if minutes[split])
    table = view.run.table
    if table is None:
        return ""
    bins = {session: int(n) for session, n in zip(table["session"].tolist(), table["bins"].tolist(), strict=True)}
    return f"validation {sum(bins.values()):,} bins"


def _split(folder: Path) -> str:
    """How trials were divided, from the run's datasets.yaml."""
    try:
        content = yaml.safe_load((folder / "datasets.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return ""
    shares = set()
    for config in content.values() if isinstance(content, dict) else ():
        train, test = (
            config.get(key) if isinstance(config, dict) else None for key in ("train_val_split", "test_split")
        )
        if isinstance(train, int | float) and isinstance(test, int | float):
            shares.add((train, 1 - train - test, test))
    if len(shares) != 1:
        return "differs by session" if shares else ""
    train, val, test = shares.pop()
    return f"{train:.0%} / {val:.0%}" + (f" / {test:.0%}" if test else "") + " of trials"
