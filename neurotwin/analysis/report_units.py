"""The units of the runs of a report: one record each, where it stands among the others, and what changed."""

import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..metrics.definitions import metrics
from ..metrics.table import Table
from .compare import compare_tables
from .report import Run
from .report_data import Curves, RunData
from .report_experiments import (
    ExperimentFolder,
    UnitKey,
    exciting_pictures,
    field_pictures,
    tuning_curves,
)

__all__ = ["RunView", "Unit", "Units", "changes", "changes_text", "figure_of", "json_of", "keys_of", "typical"]

_BUDGET = 4_000_000  # bytes of pictures of units in base64: a page of 1,000 units stays below 10 MB
_SIDE = {300: 48, 1200: 32}  # up to so many units, pictures of so many pixels


@dataclass(frozen=True, kw_only=True)
class RunView:
    """A run and all that is shown of it.

    Attributes
    ----------
    name
        Distinct among the runs of the page.
    run, data, experiments
        What its folder says, what was computed, and results of experiments.
    notes
        Sentences on what is missing.
    """

    name: str
    run: Run
    data: RunData = field(default_factory=RunData)
    experiments: Sequence[ExperimentFolder] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One row of the table of units.

    Attributes
    ----------
    number
        Index in the page.
    run
        Name of the run.
    key
        Session and id, as text.
    subject, area
        Where it was recorded; area is empty where it is not known.
    merit
        Figure of merit on the validation split.
    validation, test
        All figures by name.
    rank
        Share of the run's units that it is better than; NaN where it has no figure.
    change
        What changed since the other run, in a few words; empty where nothing did.
    """

    number: int
    run: str
    key: UnitKey
    subject: str
    area: str
    merit: float
    validation: Mapping[str, float]
    test: Mapping[str, float]
    rank: float
    change: str = ""


class Units:
    """All units of some runs, run by run.

    Parameters
    ----------
    views
        The runs.
    changed
        By the name of a run, its units that changed, in words.
    """

    def __init__(self, views: Sequence[RunView], changed: Mapping[str, Mapping[UnitKey, str]] | None = None):
        self.all: list[Unit] = []
        for view in views:
            if view.run.table is not None:
                self.all += self._of_run(view, (changed or {}).get(view.name, {}))

    def __len__(self) -> int:
        return len(self.all)

    def of(self, run: str) -> list[Unit]:
        """The units of a run."""
        return [unit for unit in self.all if unit.run == run]

    def _of_run(self, view: RunView, changed: Mapping[UnitKey, str]) -> list[Unit]:
        table = view.run.table
        assert table is not None
        test = {} if view.data.test is None else _figures(view.data.test)
        areas = {
            (session.name, unit): area
            for session in view.data.sessions.values()
            for unit, area in zip(session.unit_ids, session.areas or (), strict=False)
        }
        merits = table[table.figure_of_merit]
        counted = np.sort(merits[~np.isnan(merits)])
        figures = _figures(table)
        units = []
        for row, key in enumerate(keys_of(table)):
            merit = float(merits[row])
            below = np.searchsorted(counted, merit) / max(len(counted), 1)
            units.append(
                Unit(
                    number=len(self.all) + row, run=view.name, key=key, subject=str(table["subject"][row]),
                    area=areas.get(key, ""), merit=merit, validation=figures[key], test=test.get(key, {}),
                    rank=math.nan if math.isnan(merit) else float(below), change=changed.get(key, ""),
                )
            )  # fmt: skip
        return units


def typical(units: Sequence[Unit]) -> list[tuple[str, Unit]]:
    """The best, the median and the worst unit, with these words; fewer where fewer than three have a figure."""
    ranked = sorted((unit for unit in units if not math.isnan(unit.merit)), key=lambda unit: -unit.merit)
    if not ranked:
        return []
    # Later words take a place from earlier ones: of two units, one is the best and the other the worst.
    found = {len(ranked) // 2: "median", len(ranked) - 1: "worst"} | {0: "best"}
    return [(word, ranked[place]) for place, word in sorted(found.items())]


def figure_of(unit: Unit, metric: str) -> float:
    """A figure of a unit on the test split where it is known there, else on validation; NaN where it is not known."""
    values = (figures.get(metric, math.nan) for figures in (unit.test, unit.validation))
    return next((value for value in values if not math.isnan(value)), math.nan)


def keys_of(table: Table) -> list[UnitKey]:
    """Session and id of each row, as text."""
    return [(str(s), str(u)) for s, u in zip(table["session"].tolist(), table["unit_id"].tolist(), strict=True)]


def changes(old: Table, new: Table, *, tolerance: float) -> tuple[dict[UnitKey, str], list[UnitKey]]:
    """Units of a table whose figure of merit differs from that in an older one, in words, and those that are gone.

    Parameters
    ----------
    old, new
        The tables.
    tolerance
        Differences of the figure up to this, times the figure where it is above 1, are none.

    Raises
    ------
    EvaluationError
        If a unit occurs twice in a table.
    """
    merit = new.figure_of_merit
    result = compare_tables(old, new, tolerance=tolerance)
    words = {
        (d.session, str(d.unit_id)): f"{_shown(d.a)} → {_shown(d.b)}" for d in result.differences if d.metric == merit
    }
    words |= {(session, str(unit)): "new" for session, unit in result.only_b}
    return words, [(session, str(unit)) for session, unit in result.only_a]


def changes_text(old: Table | None, new: Table | None, *, tolerance: float, most: int = 20) -> str:
    """Which units changed, in a few lines; see :func:`changes`."""
    if old is None or new is None:
        return "the runs cannot be compared: at least one has no table of units"
    words, gone = changes(old, new, tolerance=tolerance)
    lines = [f"{len(words)} of {len(new)} units changed by more than {tolerance:g} in {new.figure_of_merit}"]
    lines += [f"  {'/'.join(key)}: {change}" for key, change in list(words.items())[:most]]
    lines += [f"  and {len(words) - most} more"] if len(words) > most else []
    if gone:
        lines.append(f"{len(gone)} units only in the first: {', '.join('/'.join(key) for key in gone[:most])}")
    return "\n".join(lines)


def json_of(views: Sequence[RunView], units: Units) -> tuple[str, int]:
    """What cards and charts are drawn from, as JSON that may stand in a page, and how many units lack pictures.

    Curves are rounded to 255 levels between their lowest and highest value, so that a unit takes about a kilobyte.
    """
    shown = [name for name, metric in metrics().items() if metric.kind is not int]
    shown += [name for unit in units.all[:1] for name in unit.validation if name not in metrics()]
    data: dict[str, Any] = {
        "metrics": [[name, metrics()[name].title if name in metrics() else name] for name in shown],
        "sessions": {}, "columns": {}, "units": [],
    }  # fmt: skip
    pictures, absent = _pictures(views, units)
    for view in views:
        tuned = {key: curve for e in view.experiments for key, curve in tuning_curves(e)[1].items()}
        columns = {e.name: list(dict.fromkeys(c for row in e.units.values() for c in row)) for e in view.experiments}
        data["columns"][view.name] = columns
        for session in view.data.sessions.values():
            data["sessions"][f"{view.name}/{session.name}"] = {
                kind: {"step": c.step, "unit": c.unit, "repeats": c.n_repeats, "split": c.split}
                for kind in ("trace", "psth") if (c := getattr(session, kind)) is not None
            }  # fmt: skip
        places = {
            (session.name, unit): column
            for session in view.data.sessions.values()
            for column, unit in enumerate(session.unit_ids)
        }
        for unit in units.of(view.name):
            record: dict[str, Any] = {
                "k": unit.key, "r": view.name, "a": unit.area, "c": unit.change, "rank": _rounded(unit.rank),
                "v": [_rounded(unit.validation.get(name, math.nan)) for name in shown],
            }  # fmt: skip
            if unit.test:
                record["t"] = [_rounded(unit.test.get(name, math.nan)) for name in shown]
            for kind in ("trace", "psth"):
                curves = getattr(view.data.sessions.get(unit.key[0]), kind, None)
                if curves is not None and unit.key in places:
                    record[kind] = _packed(curves, places[unit.key])
            if unit.key in tuned:
                record["tuning"] = [_rounded(float(value)) for value in tuned[unit.key]]
            rows = {e.name: e.units[unit.key] for e in view.experiments if unit.key in e.units}
            record["x"] = {name: [_short(row.get(c, "")) for c in columns[name]] for name, row in rows.items()}
            record |= pictures.get(unit.number, {})
            data["units"].append(record)
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    # A name must not end the element that the data stand in.
    return text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e"), absent


# --------------------------------------------------------------------------------------------------------------------


def _figures(table: Table) -> dict[UnitKey, dict[str, float]]:
    names = [name for name, column in table.columns.items() if column.dtype.kind in "if" and name != "unit_id"]
    columns = [table[name].astype(np.float64).tolist() for name in names]
    rows = zip(*columns, strict=True)
    return {key: dict(zip(names, row, strict=True)) for key, row in zip(keys_of(table), rows, strict=True)}


def _pictures(views: Sequence[RunView], units: Units) -> tuple[dict[int, dict[str, str]], int]:
    """Receptive fields and exciting images by the number of the unit, as many as the page has room for."""
    side = next((side for limit, side in _SIDE.items() if len(units) <= limit), 24)
    found: dict[int, dict[str, str]] = {}
    room, absent = _BUDGET, 0
    for view in views:
        kinds: dict[str, dict[UnitKey, bytes]] = {"rf": {}, "mei": {}}
        for experiment in view.experiments:
            kinds["rf"] |= field_pictures(experiment, side)
            kinds["mei"] |= exciting_pictures(experiment, side)
        of_run = units.of(view.name)
        # The units that the page shows unasked come first.
        first = {unit.number for _, unit in typical(of_run)}
        for session in {unit.key[0] for unit in of_run}:
            first |= {unit.number for _, unit in typical([u for u in of_run if u.key[0] == session])}
        for unit in sorted(of_run, key=lambda unit: unit.number not in first):
            record = {
                kind: base64.b64encode(pngs[unit.key]).decode() for kind, pngs in kinds.items() if unit.key in pngs
            }
            size = sum(map(len, record.values()))
            if size > room:
                absent += 1
                continue
            room -= size
            found[unit.number] = record
    return found, absent


def _packed(curves: Curves, column: int) -> list[Any]:
    """Lowest and highest value, and the two curves as bytes from 0 to 254, 255 for a gap, in base64."""
    pair = np.stack([curves.observed[:, column], curves.predicted[:, column]]).astype(np.float64)
    finite = np.isfinite(pair)
    low, high = (float(f(pair[finite])) if finite.any() else 0.0 for f in (np.min, np.max))
    span = high - low or 1.0
    levels = np.where(finite, np.rint((np.where(finite, pair, low) - low) / span * 254), 255).astype(np.uint8)
    return [_rounded(low), _rounded(low + span), *(base64.b64encode(one.tobytes()).decode() for one in levels)]


def _rounded(value: float) -> float | None:
    return float(f"{value:.4g}") if math.isfinite(value) else None


def _short(text: str) -> str:
    """A value of a table of an experiment: numbers to four digits."""
    try:
        return f"{float(text):.4g}"
    except ValueError:
        return text


def _shown(value: float) -> str:
    return "NaN" if math.isnan(value) else f"{value:.3f}"
