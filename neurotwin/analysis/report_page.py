"""The page of a report: whether the models are good, on which units, and what they learned. One file, no network."""

import base64
import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..metrics.definitions import metrics
from ..metrics.table import summarize
from .page import html_table, standalone_page
from .report import Run, distinct_names, merit_title
from .report_charts import chart_svg
from .report_data import RunData, stored
from .report_experiments import ExperimentFolder, UnitKey, read_experiments
from .report_script import SCRIPT, STYLE
from .report_summary import experiment_sentences, group_rows, run_rows, summary_sentences
from .report_units import RunView, Unit, Units, changes, figure_of, json_of, typical

__all__ = ["html_page"]

_FIGURE, _FIGURES = 400_000, 2_000_000  # bytes of one figure of an experiment, and of all of them
_SESSIONS = 60  # sessions whose best, median and worst units are drawn; all stand in the tables
_TITLES = {
    "receptive_field": "Receptive fields", "gratings": "Tuning to gratings", "exciting_stimulus": "Exciting images",
    "ablation": "What behaviour and spike history add",
}  # fmt: skip


@dataclass(frozen=True)
class _Column:
    """A column of the table of units: its heading, and whether a first click puts the largest on top."""

    title: str
    numeric: bool = True


def html_page(
    runs: Sequence[Run], title: str = "Runs", *, data: Sequence[RunData] | None = None, compare: bool = False,
    tolerance: float = 0.01,
) -> str:  # fmt: skip
    """A page that stands alone: summary, table of runs, learning curves, sessions, areas, experiments and units.

    Parameters
    ----------
    runs
        The runs.
    title
        Of the page.
    data
        What :func:`~neurotwin.analysis.report_data.gather` found of each; default what earlier reports left.
    compare
        Mark the units of the second of two runs that changed since the first.
    tolerance
        Differences of the figure of merit up to this are no change.

    Raises
    ------
    EvaluationError
        If a table holds a unit twice and runs are compared.
    """
    names = distinct_names(runs)
    views = [_view(name, run, found) for name, run, found in zip(names, runs, data or map(stored, runs), strict=True)]
    compared, changed = _compared(views, tolerance) if compare else ([], {})
    units = Units(views, changed)
    content, absent = json_of(views, units)
    parts = [f"<h1>{html.escape(title)}</h1>", *_opening(views, units)]
    if compared:
        parts.append("<h2>What changed</h2>" + "".join(f"<p>{html.escape(line)}</p>" for line in compared))
    parts += ["<h2>Runs</h2>", html_table(run_rows(views)), _GLOSSARY, _learning_curves(views)]
    for view in views:
        parts += _run_section(view, units.of(view.name), alone=len(views) == 1)
    if len(units):
        parts += _units_section(units, views, compare=bool(changed) or bool(compared))
    if absent:
        parts.append(f'<p class="note">{absent} units have no pictures here, to keep the page small.</p>')
    parts.append("<h2>Records</h2>")
    for view in views:
        record = html.escape(json.dumps(view.run.record, indent=2))
        summary = f"{html.escape(view.name)}: {html.escape(str(view.run.folder))}"
        parts.append(f"<details><summary>{summary}</summary><pre>{record}</pre></details>")
    parts.append(f'<script type="application/json" id="data">{content}</script>')
    return standalone_page(title, parts, style=STYLE, script=SCRIPT)


# --------------------------------------------------------------------------------------------------------------------

_GLOSSARY = (
    '<p class="note">BPS: bits per spike beyond a constant rate. r: correlation. Mean: over sessions, each one vote. '
    "Median: over units. Validation chose the best epoch; test took no part in any choice. Of oracle: mean BPS as a "
    "share of that of the true rate. CC_max: the correlation that a perfect model would have with the mean of the "
    "repeats. Ceilings are medians over units. NaN: units that cannot be scored, left out.</p>"
    "<noscript><p>Sorting, filtering, cards and traces need JavaScript; nothing comes from a network.</p></noscript>"
)


def _view(name: str, run: Run, data: RunData) -> RunView:
    notes = [*run.notes, *data.notes]
    experiments = read_experiments(run.folder, notes)
    if run.table is not None and not experiments:
        notes.append(
            "It has no results of experiments (RUN/experiments), so receptive fields, tuning, exciting images and what "
            "behaviour adds are not shown."
        )
    return RunView(name=name, run=run, data=data, experiments=experiments, notes=tuple(notes))


def _compared(views: Sequence[RunView], tolerance: float) -> tuple[list[str], dict[str, dict[UnitKey, str]]]:
    """What changed from the first run to the second, in sentences, and by unit of the second."""
    old, new = views
    if old.run.table is None or new.run.table is None:
        return ["The two runs cannot be compared: at least one has no table of units."], {}
    changed, gone = changes(old.run.table, new.run.table, tolerance=tolerance)
    merit = merit_title(new.run.table.figure_of_merit)
    lines = [
        f"{len(changed)} of {len(new.run.table)} units of {new.name} changed by more than {tolerance:g} in {merit} "
        f"since {old.name}; they are marked in the table of units, which can be filtered to them."
    ]
    if gone:
        shown = ", ".join("/".join(key) for key in gone[:10]) + (", ..." if len(gone) > 10 else "")
        lines.append(f"{len(gone)} units of {old.name} are not in {new.name}: {shown}.")
    return lines, {new.name: changed}


def _opening(views: Sequence[RunView], units: Units) -> list[str]:
    parts = []
    for view in views:
        lines = [html.escape(line) for line in summary_sentences(view, units.of(view.name))]
        lines += [html.escape(line) for e in view.experiments for line in experiment_sentences(e)[:1]]
        head = f"<h2>{html.escape(view.name)}</h2>" if len(views) > 1 else ""
        parts.append(head + '<ul class="lead">' + "".join(f"<li>{line}</li>" for line in lines) + "</ul>")
    return parts


def _learning_curves(views: Sequence[RunView]) -> str:
    """Validation and training curves of all runs; those of other figures than the first's are drawn apart."""
    drawn: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {}
    for view in views:
        curves, merit = view.run.curves, "bps" if view.run.table is None else view.run.table.figure_of_merit
        for column, what in ((f"val_{merit}", metrics()[merit].title if merit in metrics() else merit),
                             ("train_loss", "training loss")):  # fmt: skip
            if "epoch" in curves and column in curves and np.isfinite(curves[column]).any():
                label = f"{what}, validation" if column.startswith("val_") else what
                drawn.setdefault(label, {})[view.name] = (curves["epoch"], curves[column])
    if not drawn:
        return '<h2>Learning curves</h2><p class="note">No run has learning curves (metrics.csv).</p>'
    charts = [
        f"<div>{chart_svg(f'{label} over epochs', lines=lines, xlabel='epoch', ylabel=label)}</div>"
        for label, lines in drawn.items()
    ]
    return f'<h2>Learning curves</h2><div class="trio">{"".join(charts)}</div>'


def _run_section(view: RunView, units: Sequence[Unit], *, alone: bool) -> list[str]:
    parts = [] if alone else [f"<h2>{html.escape(view.name)}</h2>"]
    parts += [f'<p class="note">{html.escape(note)}</p>' for note in dict.fromkeys(view.notes)]
    if not units or view.run.table is None:
        return parts
    merit = view.run.table.figure_of_merit
    parts += ["<h3>All units</h3>", _distribution(units, merit)]
    for by in ("session", "area"):
        if by == "session" or any(unit.area for unit in units):
            rows = group_rows(units, by, merit)
            parts += [f"<h3>By {by}</h3>", html_table(rows)]
        else:
            parts.append('<p class="note">The recordings do not say in which area a unit lies, or are not here.</p>')
    parts += ["<h3>Best, median and worst units</h3>", _trio(units)]
    for by in ("session", "area"):
        groups: dict[str, list[Unit]] = {}
        for unit in units:
            name = unit.key[0] if by == "session" else unit.area
            if name:
                groups.setdefault(name, []).append(unit)
        for name, members in list(groups.items())[:_SESSIONS] if len(groups) > 1 else ():
            parts.append(f"<details><summary>{by} {html.escape(name)}</summary>{_trio(members)}</details>")
        if len(groups) > _SESSIONS:
            parts.append(f'<p class="note">The first {_SESSIONS} of {len(groups)} are drawn.</p>')
    return parts + _experiments(view)


def _trio(units: Sequence[Unit]) -> str:
    cells = [
        f'<div class="typical" data-u="{unit.number}"><h4>{word}: <button type="button" class="jump" '
        f'data-go="{unit.number}">unit {html.escape(unit.key[1])}</button> of {html.escape(unit.key[0])} '
        f'({unit.merit:.3f})</h4><div class="drawn"></div></div>'
        for word, unit in typical(units)
    ]
    return f'<div class="trio">{"".join(cells)}</div>' if cells else "<p>No unit has a figure.</p>"


def _distribution(units: Sequence[Unit], merit: str) -> str:
    """Units against their ceiling where it is known, else sorted."""
    title = metrics()[merit].title if merit in metrics() else merit
    ceiling = {"bps": "oracle_bps"}.get(merit, "")
    own = {s: [u for u in units if u.subject == s] for s in dict.fromkeys(u.subject for u in units)}
    if ceiling and any(not math.isnan(figure_of(unit, ceiling)) for unit in units):
        dots = {
            s: (np.array([u.validation.get(ceiling, math.nan) for u in us]), np.array([u.merit for u in us]))
            for s, us in own.items()
        }
        return chart_svg(
            f"{title} of units against the most that is possible", dots=dots, xlabel=f"oracle, {title}",
            ylabel=f"model, {title}", diagonal=True,
        )  # fmt: skip
    dots = {s: (np.arange(1.0, len(us) + 1), np.sort([u.merit for u in us])) for s, us in own.items()}
    return chart_svg(f"{title} of units, sorted", dots=dots, xlabel="unit, sorted", ylabel=title)


def _experiments(view: RunView) -> list[str]:
    parts, room = [], _FIGURES
    for experiment in view.experiments:
        title = _TITLES.get(experiment.kind, experiment.kind.replace("_", " "))
        named = "" if experiment.name == experiment.kind else f" ({experiment.name})"
        parts.append(f"<h3>{html.escape(title + named)}</h3>")
        parts += [f"<p>{html.escape(line)}</p>" for line in experiment_sentences(experiment)]
        parts.append(_columns(experiment))
        left = []
        for name, path in experiment.figures.items():
            size = path.stat().st_size
            if size > min(_FIGURE, room):
                left.append(name)
                continue
            room -= size
            parts.append(_image(path, f"{title}: {name}"))
        if left:
            parts.append(
                f'<p class="note">Left out, to keep the page small: {html.escape(", ".join(left))}, in '
                f"{html.escape(str(experiment.folder))}.</p>"
            )
    return parts


def _columns(experiment: ExperimentFolder) -> str:
    """Median and range of every numeric column, folded."""
    rows = []
    for name in dict.fromkeys(column for row in experiment.units.values() for column in row):
        values = experiment.column(name)
        values = values[np.isfinite(values)]
        if len(values):
            low, high = np.quantile(values, [0.05, 0.95])
            rows.append({
                "measure": name, "median": f"{summarize(values).median:.4g}", "5%": f"{low:.4g}", "95%": f"{high:.4g}",
                "units": str(len(values)),
            })  # fmt: skip
    return f"<details><summary>All measures</summary>{html_table(rows)}</details>" if rows else ""


def _image(path: Path, alt: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<p><img alt="{html.escape(alt)}" src="data:image/png;base64,{data}"></p>'


def _units_section(units: Units, views: Sequence[RunView], *, compare: bool) -> list[str]:
    several = len({unit.run for unit in units.all}) > 1
    has = {key: any(not math.isnan(figure_of(unit, key)) for unit in units.all)
           for key in ("cc_norm", "cc_max", "fraction_of_oracle", "correlation")}  # fmt: skip
    tested, areas = any(unit.test for unit in units.all), any(unit.area for unit in units.all)
    merits = {view.name: view.run.table.figure_of_merit for view in views if view.run.table is not None}
    title = "/".join(dict.fromkeys(merit_title(merit) for merit in merits.values()))
    columns = [_Column("unit", False), _Column("session", False)]
    columns += [_Column("run", False)] * several + [_Column("area", False)] * areas
    columns += [_Column(title), *([_Column(f"test {title}")] * tested)]
    wanted = [(k, t) for k, t in (("correlation", "r"), ("fraction_of_oracle", "of oracle"), ("cc_norm", "CC_norm"),
                                  ("cc_max", "CC_max")) if has[k]]  # fmt: skip
    wanted = [(key, name) for key, name in wanted if name != title]
    columns += [_Column(name) for _, name in wanted] + [_Column("change", False)] * compare
    body = []
    for unit in units.all:
        cells = [f'<td><button type="button" aria-expanded="false">{html.escape(unit.key[1])}</button></td>']
        cells.append(f"<td>{html.escape(unit.key[0])}</td>")
        cells += [f"<td>{html.escape(unit.run)}</td>"] * several + [f"<td>{html.escape(unit.area)}</td>"] * areas
        cells.append(_cell(unit.merit))
        cells += [_cell(unit.test.get(merits[unit.run], math.nan))] * tested
        cells += [_cell(figure_of(unit, key)) for key, _ in wanted]
        cells += [f"<td>{html.escape(unit.change)}</td>"] * compare
        mark = ' class="changed"' if unit.change else ""
        merit = "NaN" if math.isnan(unit.merit) else f"{unit.merit:.6g}"
        body.append(f'<tr data-u="{unit.number}" data-m="{merit}"{mark}>{"".join(cells)}</tr>')
    head = "".join(
        f'<th scope="col" data-first="{"descending" if column.numeric else "ascending"}"><button type="button">'
        f"{html.escape(column.title)}</button></th>"
        for column in columns
    )
    return [
        "<h2>Units</h2><p>A row opens the unit's card; a heading sorts. Figures of repeats are those of the test split "
        "where there is one.</p>",
        _filters(units, title, several=several, areas=areas, compare=compare),
        f'<div class="wide" id="units"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>",
    ]


def _cell(value: float) -> str:
    return "<td>NaN</td>" if math.isnan(value) else f'<td data-v="{value:.6g}">{value:.3f}</td>'


def _filters(units: Units, merit: str, *, several: bool, areas: bool, compare: bool) -> str:
    def choice(key: str, label: str, values: Mapping[str, None]) -> str:
        options = "".join(f'<option value="{html.escape(v)}">{html.escape(v)}</option>' for v in values)
        return f'<label>{label} <select id="f-{key}"><option value="">all</option>{options}</select></label>'

    parts = ['<label>Search <input type="search" id="f-text" placeholder="unit, session, area"></label>']
    if several:
        parts.append(choice("run", "Run", dict.fromkeys(unit.run for unit in units.all)))
    parts.append(choice("session", "Session", dict.fromkeys(unit.key[0] for unit in units.all)))
    if areas:
        parts.append(choice("area", "Area", dict.fromkeys(unit.area for unit in units.all if unit.area)))
    parts.append(f'<label>{html.escape(merit)} at least <input type="number" step="any" id="f-least"></label>')
    if compare:
        parts.append('<label><input type="checkbox" id="f-changed"> changed only</label>')
    parts.append('<button type="reset">Clear</button> <output id="count"></output>')
    return f'<form class="filters">{" ".join(parts)}</form>'
