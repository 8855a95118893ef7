"""The model card of a twin: what a run's own record says of it. What the record lacks is said to be unknown."""

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ..analysis.report import Run, load_run, markdown_table, merit_title, number_text
from ..data.remote import local_path
from ..data.session import Session, SessionError
from ..data.spec import SessionSpec
from ..metrics.table import Table, summarize
from ..models import TwinModel, load_twin

__all__ = ["bootstrap_interval", "model_card"]

_DRAWS, _CONFIDENCE = 1000, 0.95
_UNKNOWN = "not stated in the run's record"


def model_card(run: str | Path, name: str = "NAME@REVISION") -> str:
    """The card of a run or saved twin, markdown with the front matter that the Hugging Face hub reads.

    Parameters
    ----------
    run
        A run's folder, or the file of a saved twin, whose table of units `neurotwin evaluate` wrote beside it.
    name
        What it is pulled as, for the lines on how to use it.

    Raises
    ------
    EvaluationError
        If this is no run.
    CheckpointError
        If its twin cannot be opened.
    """
    record, twin = load_run(run), load_twin(run)
    known = [_session_info(spec) for spec in twin.sessions]
    title = str(record.record["name"])
    parts = [_front_matter(title, record.table, known), f"# {title}", f"{twin!r}.", "## Data", _data(twin, known)]
    parts += ["## Scores", _scores(record.table), "## Model", _model(record, twin), "## Inputs", _inputs(twin)]
    parts += ["## Licence and citation", _rights(known), "## Use", _use(twin, name)]
    return "\n\n".join(parts) + "\n"


def bootstrap_interval(table: Table, metric: str, seed: int = 0) -> tuple[float, float, float]:
    """Mean over sessions of their means over units, and its interval over bootstraps of the units of each session.

    Returns
    -------
    mean, low, high
        The bounds hold 95% of 1000 draws. NaN without a unit that has the figure.

    References
    ----------
    Efron & Tibshirani 1993, *An introduction to the bootstrap*, chapter 13 (percentile intervals).

    Examples
    --------
    >>> units = {"bins": np.ones(3), "bps": np.array([0.2, 0.2, np.nan])}
    >>> bootstrap_interval(Table.of_session("ada_1", "ada", [1, 2, 3], "poisson", units), "bps")
    (0.2, 0.2, 0.2)
    """
    rng, means, draws = np.random.default_rng(seed), [], []
    for session in dict.fromkeys(table["session"].tolist()):
        values = np.asarray(table[metric][table["session"] == session], float)
        values = values[np.isfinite(values)]
        if len(values):
            means.append(values.mean())
            draws.append(rng.choice(values, (_DRAWS, len(values))).mean(axis=1))
    if not means:
        return (float("nan"),) * 3
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(np.mean(draws, axis=0), [tail, 1 - tail])
    return float(np.mean(means)), float(low), float(high)


def _session_info(spec: SessionSpec) -> dict[str, str]:
    """The labels of a session's recording; empty where it does not lie here any more."""
    try:
        return dict(Session.load(local_path(spec.config.path), verify=False).info) if spec.config.path else {}
    except (SessionError, OSError):
        return {}


def _stated(known: list[dict[str, str]], *keys: str) -> list[str]:
    found = (str(info[key]) for info in known for key in info if key.lower() in keys and info[key])
    return list(dict.fromkeys(found))


def _front_matter(title: str, table: Table | None, known: list[dict[str, str]]) -> str:
    content: dict[str, Any] = {"library_name": "neurotwin", "tags": ["neurotwin", "neuroscience", "neural-encoding"]}
    licences = _stated(known, "license", "licence")
    if len(licences) == 1:
        content["license"] = licences[0]
    if table is not None:
        merit = table.figure_of_merit
        mean = bootstrap_interval(table, merit)[0]
        sessions = ", ".join(dict.fromkeys(table["session"].tolist()))
        if np.isfinite(mean):
            content["model-index"] = [{"name": title, "results": [{
                "task": {"type": "neural-encoding"}, "dataset": {"type": "recordings", "name": f"{sessions} (val)"},
                "metrics": [{"type": merit, "value": round(mean, 4)}],
            }]}]  # fmt: skip
    return f"---\n{yaml.safe_dump(content, sort_keys=False)}---"


def _data(twin: TwinModel, known: list[dict[str, str]]) -> str:
    rows = []
    for spec, info in zip(twin.sessions, known, strict=True):
        config = spec.config
        train, test = config.train_val_split, config.test_split
        rows.append({
            "session": spec.name, "subject": spec.subject, "lab": config.lab or info.get("lab", "") or "unknown",
            "units": str(spec.n_units), "stimuli": ", ".join(config.types or ()) or "all",
            "drawn split (train, val, test)":
                f"{train * (1 - test):.0%}, {(1 - train) * (1 - test):.0%}, {test:.0%}; seed {config.seed}",
        })  # fmt: skip
    return (
        f"{markdown_table(rows)}\n\nWhole trials are drawn into the parts. A recording that labels its own parts "
        "overrides the draw."
    )


def _scores(table: Table | None) -> str:
    if table is None:
        return f"Unknown: no table of units is {_UNKNOWN.removeprefix('not stated ')}."
    rows, merit = [], table.figure_of_merit
    for metric in dict.fromkeys((merit, "correlation", "cc_norm", "feve")):
        mean, low, high = bootstrap_interval(table, metric)
        if np.isfinite(mean):
            counted = summarize(table[metric])
            rows.append({
                "figure": merit_title(metric), "mean": number_text(mean),
                "95% interval": f"{number_text(low)} to {number_text(high)}", "median": number_text(counted.median),
                "units": str(counted.n), "left out": str(counted.n_nan),
            })  # fmt: skip
    if not rows:
        return "Unknown: no figure in the table of units is a number."
    return (
        f"{markdown_table(rows)}\n\nOf the validation part, by which the checkpoint was chosen. Means give each "
        f"session one vote; intervals are of {_DRAWS} bootstraps of the units of each session; medians are "
        "over all units."
    )


def _model(run: Run, twin: TwinModel) -> str:
    git = (run.record.get("environment") or {}).get("git") or {}
    commit = git.get("commit") or f"unknown, {_UNKNOWN}"
    changed = " with changes that were not committed" if git.get("changed") else ""
    kinds = dict.fromkeys(member.network.config.likelihood.type for member in twin.members)
    seconds, seed = run.record.get("wall_s"), run.record.get("seed")
    packages = (run.record.get("environment") or {}).get("packages") or {}
    versions = ", ".join(f"{name} {number}" for name, number in packages.items())
    lines = [
        f"- Likelihood: {', '.join(kinds)}", f"- Parameters: {run.record['parameters']:,}",
        f"- Commit of the code: {commit}{changed}",
        f"- Trained: {f'{seconds / 60:.1f} minutes' if seconds else 'time unknown'}, "
        f"{run.record.get('steps', 'unknown')} steps, seed {'unknown' if seed is None else seed}",
        f"- Packages: {versions or 'unknown'}",
    ]  # fmt: skip
    return "\n".join(lines)


def _inputs(twin: TwinModel) -> str:
    rows = []
    for spec in twin.sessions:
        signals = dict.fromkeys(spec.behavior_names) if twin.takes_behavior else {}
        rows.append({
            "session": spec.name, "rate (Hz)": f"{spec.bin_rate:g}",
            "frames (C, H, W)": ", ".join(map(str, spec.frame_shape)), "lags": str(spec.n_lags),
            "pixels per degree": "unknown" if spec.pixels_per_degree is None else f"{spec.pixels_per_degree:g}",
            "behaviour": ", ".join(signals) or ("unnamed" if twin.takes_behavior else "none"),
        })  # fmt: skip
    history = f"It sees {twin.history_lags} bins of spike history." if twin.takes_history else "It sees no history."
    return f"{markdown_table(rows)}\n\nA prediction needs {twin.context + 1} frames. {history}"


def _rights(known: list[dict[str, str]]) -> str:
    licences, citations = _stated(known, "license", "licence"), _stated(known, "citation", "doi", "reference")
    return (
        f"- Licence: {'; '.join(licences) or f'unknown, {_UNKNOWN} or recordings'}\n"
        f"- Citation: {'; '.join(citations) or f'unknown, {_UNKNOWN} or recordings'}"
    )


def _use(twin: TwinModel, name: str) -> str:
    spec = twin.sessions[0]
    extra = ", behavior" if twin.takes_behavior else ""
    call = (
        f'rates = twin.sample(movie{extra}, session="{spec.name}", bin_rate={spec.bin_rate:g})[1]'
        if twin.takes_history
        else f'rates = twin.predict(movie{extra}, session="{spec.name}", bin_rate={spec.bin_rate:g})'
    )
    return (
        f'```python\nfrom neurotwin import load_twin\n\ntwin = load_twin("FOLDER")  # of `neurotwin pull {name}`\n'
        f"{call}\n```"
    )
