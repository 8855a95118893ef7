"""The results of a sweep: a table of its trials, and a page."""

import html
from typing import Any

import numpy as np

from ..analysis.page import html_table, standalone_page
from ..analysis.report import number_text, text_table
from ..analysis.report_charts import chart_svg
from .space import Dimension, SweepConfig, flags_of
from .study import has_ended, value_of

__all__ = ["results_page", "results_text", "trial_rows"]


_STATES = {"COMPLETE": "trained", "PRUNED": "ended early", "RUNNING": "running", "WAITING": "queued", "FAIL": "failed"}


def trial_rows(config: SweepConfig, study: Any) -> list[dict[str, str]]:
    """One row a trial, the best first; trials whose worker was lost are left out, since they were queued again."""
    trials = [t for t in study.get_trials(deepcopy=False) if has_ended(t) or not t.state.is_finished()]
    rows = []
    for trial in sorted(trials, key=_rank):
        row = {"trial": trial.user_attrs.get("run", f"(number {trial.number})"), "state": _STATES[trial.state.name]}
        row |= {"value": number_text(value_of(trial), ""), "epochs": str(len(trial.intermediate_values) or "")}
        if "parameters" in trial.user_attrs:
            row["parameters"] = f"{trial.user_attrs['parameters']:,}"
        row |= {key: _short(config.search[key].value(v)) for key, v in trial.params.items() if key in config.search}
        rows.append(row)
    names = list(dict.fromkeys(name for row in rows for name in row))
    names = [name for name in names if name not in config.search] + [name for name in names if name in config.search]
    return [{name: row.get(name, "") for name in names} for row in rows]


def results_text(config: SweepConfig, study: Any) -> str:
    """The trials as a table, and how to train the best one again."""
    rows = trial_rows(config, study)
    if not rows:
        return f"study {config.study}: no trial yet"
    return "\n".join([text_table(rows), "", *_summary(config, study)])


def results_page(config: SweepConfig, study: Any) -> str:
    """The same as a page that needs no other file, with learning curves and a chart for each value that was varied."""
    title, rows = f"Sweep {config.study}", trial_rows(config, study)
    parts = [f"<h1>{html.escape(title)}</h1>", *(f"<p>{html.escape(line)}</p>" for line in _summary(config, study))]
    if not rows:
        return standalone_page(title, [*parts, "<p>No trial yet.</p>"])
    trials = [t for t in study.get_trials(deepcopy=False) if t.intermediate_values]
    lines = {t.user_attrs.get("run", str(t.number)): _curve(t) for t in sorted(trials, key=_rank)[:6]}
    parts += ["<h2>Trials</h2>", html_table(rows), "<h2>Learning curves of the best six trials</h2>"]
    parts.append(chart_svg("validation over epochs", lines=lines, xlabel="epoch", ylabel="validation"))
    scored = [t for t in trials if t.state.name in ("COMPLETE", "PRUNED")]
    charts = [_chart(key, dimension, scored) for key, dimension in config.search.items()]
    parts += ["<h2>What was varied</h2><div class='runs'>", *charts, "</div>"]
    return standalone_page(title, parts)


def _curve(trial: Any) -> tuple[np.ndarray, np.ndarray]:
    epochs = sorted(trial.intermediate_values)
    return np.array(epochs, float), np.array([trial.intermediate_values[epoch] for epoch in epochs], float)


def _chart(key: str, dimension: Dimension, trials: list[Any]) -> str:
    """Best value over what was varied; choices that are no numbers stand side by side, numbered."""
    trials = [trial for trial in trials if key in trial.params]
    given = [dimension.value(trial.params[key]) for trial in trials]
    kinds = list(dict.fromkeys(map(str, given)))
    label, place = key, np.array([kinds.index(str(value)) for value in given], float)
    if all(isinstance(value, int | float) for value in given):
        place = np.array(given, float)
        label, place = (f"log10 of {key}", np.log10(place)) if dimension.log else (key, place)
    else:
        label += ": " + ", ".join(f"{number} {kind}" for number, kind in enumerate(kinds))
    dots = {}
    for word, state in (("trained", "COMPLETE"), ("ended early", "PRUNED")):
        chosen = [number for number, trial in enumerate(trials) if trial.state.name == state]
        if chosen:
            dots[word] = place[chosen], np.array([value_of(trials[number]) for number in chosen])
    return f"<div>{chart_svg(key, dots=dots, xlabel=label, ylabel='best value')}</div>"


def _summary(config: SweepConfig, study: Any) -> list[str]:
    trials = study.get_trials(deepcopy=False)
    shown = [t for t in trials if has_ended(t) or not t.state.is_finished()]
    count = {word: sum(t.state.name == state for t in shown) for state, word in _STATES.items()}
    lines = [f"study {config.study}: " + ", ".join(f"{number} {word}" for word, number in count.items() if number)]
    done = [t for t in trials if t.state.name == "COMPLETE"]
    if not done:
        return lines
    best = min(done, key=_rank)
    run = best.user_attrs["run"]
    values = {key: config.search[key].value(value) for key, value in best.params.items() if key in config.search}
    flags = " ".join(flags_of(config, values))
    lines.append(f"best: {run}, {value_of(best):.4f}, in {config.folder / run}; to train it again:")
    lines.append(
        f"neurotwin train --model_config {config.folder / 'models' / f'{run}.yaml'} "
        f"--dataset_configs_path {config.datasets} {flags}"
    )
    return lines


def _rank(trial: Any) -> tuple[int, float]:
    """Trained trials by their value, then those that were ended early, then the others."""
    value = value_of(trial)
    kind = {"COMPLETE": 0, "PRUNED": 1}.get(trial.state.name, 2)
    return kind, -value if value == value else float("inf")


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
