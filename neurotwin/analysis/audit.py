"""Look for what would fool a model, before it is trained: an audit of the sessions of a run, as text and as a page.

Each check is a function that is given a recording (or all of them) as the run would see it, and returns what it found.
Thresholds stand beside the checks, and their reasons in ``docs/audit.md``.
"""

import html
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..config import DatasetConfig
from ..data.pictures import ShownPictures
from ..data.prepare import open_session, prepare_session
from ..data.remote import cached
from ..data.session import SessionError
from ..models import load_twin
from .audit_base import Finding, Recording
from .audit_clock import check_clock
from .audit_responses import check_masks, check_trials, check_units, measure_activity
from .audit_signals import check_behavior, check_frame_counts, check_scales
from .audit_stimuli import Pictures, check_duplicates, pictures_of
from .page import standalone_page
from .report import text_table

__all__ = [
    "ACTIVITY_CHECKS", "RECORDING_CHECKS", "Audit", "Finding", "Recording", "audit", "audit_configs", "audit_html",
    "audit_text", "audited",
]  # fmt: skip

logger = logging.getLogger(__name__)

ACTIVITY_CHECKS = (check_trials, check_units, check_masks)
"""Checks of one recording that share its sums."""
RECORDING_CHECKS = (check_clock, check_frame_counts, check_behavior)
"""Checks of one recording by itself."""


@dataclass(frozen=True)
class Audit:
    """What was looked at, what was found, and what could not be looked at.

    Attributes
    ----------
    sessions
        Names of the sessions.
    findings
        In the order of the sessions.
    notes
        Lines that say what was left out, and why.
    """

    sessions: tuple[str, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()


def audited(config: DatasetConfig) -> Recording:
    """A session of a config with the bins, units, masks and parts that a run would see.

    Raises
    ------
    SessionError
        If the session cannot be prepared.
    """
    prepared = prepare_session(config)
    session, spec = open_session(config), prepared.spec
    trials, first, code = np.unique(session.trial, return_index=True, return_inverse=True)
    kinds = session.type_codes
    trial_of_bin = np.searchsorted(trials, prepared.trial)
    # Behaviour is looked at as it was recorded: what transforms make of it has many zeros by design.
    sources = {transform.source for transform in spec.config.transforms.values()}
    used = np.isin(np.arange(len(trials)), trial_of_bin)[code]
    return Recording(
        name=spec.name, bin_rate=spec.bin_rate, unit_ids=np.array(spec.unit_ids), source=prepared.source,
        frame=prepared.frame, responses=prepared.responses, mask=prepared.mask, split=prepared.split,
        trial=prepared.trial, run=prepared.run_start, kind=kinds[first][trial_of_bin],
        position=first[trial_of_bin], repeat_id=prepared.repeat_id, pixel_scale=spec.pixel_scale,
        pixels_per_degree=session.pixels_per_degree, recorded_valid=session.valid & used,
        recorded_trial=session.trial, recorded_rate=float(session.bin_rate), time=session.time,
        behavior={name: signal for name, signal in session.behavior.items() if name in sources},
    )  # fmt: skip


def audit(
    recordings: Sequence[Recording], *, known: Sequence[tuple[str, Pictures]] = (),
    hashed: Mapping[str, ShownPictures] | None = None,
) -> Audit:  # fmt: skip
    """Audit recordings that are used together.

    Parameters
    ----------
    recordings
        At least one.
    known
        Name and pictures of each session that a checkpoint was trained on.
    hashed
        Pictures of further such sessions by name, of which the checkpoint has kept the hashes.

    Examples
    --------
    >>> from neurotwin.data.session import Session
    >>> rng = np.random.default_rng(0)
    >>> movie = rng.integers(0, 256, (400, 12, 12)).astype(np.uint8)
    >>> counts = rng.poisson(1, (400, 2))
    >>> counts[:, 1] = 0
    >>> session = Session(name="ada_1", stimulus=movie, responses=counts, bin_rate=60, trial=np.arange(400) // 40)
    >>> [(f.check, f.what) for f in audit([Recording.of_session(session, session.trial % 2)]).findings]
    [('silent unit', 'unit 1')]
    """
    if not recordings:
        raise SessionError("nothing to audit; give at least one session")
    findings = [*check_scales(recordings), *check_duplicates(recordings, known, hashed)]
    for recording in recordings:
        activity = measure_activity(recording)
        findings += [finding for check in ACTIVITY_CHECKS for finding in check(recording, activity)]
        findings += [finding for check in RECORDING_CHECKS for finding in check(recording)]
    names = tuple(recording.name for recording in recordings)
    return Audit(names, tuple(sorted(findings, key=lambda finding: names.index(finding.session))))


def audit_configs(
    configs: Sequence[DatasetConfig], *, checkpoint: str | Path | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Audit:  # fmt: skip
    """Prepare the sessions of a run and audit them, also against what a checkpoint was trained on.

    Raises
    ------
    SessionError
        If a session cannot be prepared.
    CheckpointError
        If the checkpoint cannot be opened.
    """
    known, hashed, notes = ([], {}, []) if checkpoint is None else _trained_on(checkpoint)
    recordings = []
    for index, config in enumerate(configs):
        if progress is not None:
            progress(index, len(configs), config.session)
        recordings.append(audited(config))
    result = audit(recordings, known=known, hashed=hashed)
    return Audit(result.sessions, result.findings, tuple(notes))


def audit_text(result: Audit) -> str:
    """Findings for a person to read: a table, then what each means and what to do."""
    lines = [f"{len(result.sessions)} sessions: " + ", ".join(result.sessions), *result.notes]
    if not result.findings:
        return "\n".join([*lines, "nothing found"])
    lines += ["", text_table(_rows(result)), ""]
    lines += [f"{f.severity}: session {f.session!r}, {f.what}: {f.figure}: {f.message}" for f in result.findings]
    return "\n".join(lines)


def audit_html(result: Audit, title: str = "Audit") -> str:
    """The same as a page that needs no other file."""
    parts = [f"<h1>{html.escape(title)}</h1>", f"<p>Sessions: {html.escape(', '.join(result.sessions))}</p>"]
    parts += [f"<p>{html.escape(note)}</p>" for note in result.notes]
    if not result.findings:
        return standalone_page(title, [*parts, "<p>Nothing found.</p>"])
    rows = _rows(result)
    head = "".join(f"<th>{html.escape(name)}</th>" for name in rows[0])
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row.values()) + "</tr>" for row in rows)
    parts.append(f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>')
    parts.append("<h2>What to do</h2><ul>")
    parts += [
        f"<li><b>{html.escape(f'{f.session}, {f.what}')}</b>: {html.escape(f'{f.figure}: {f.message}')}</li>"
        for f in result.findings
    ]
    return standalone_page(title, [*parts, "</ul>"])


def _rows(result: Audit) -> list[dict[str, str]]:
    names = {"session": "session", "check": "check", "severity": "severity", "what": "what", "figure": "figure"}
    return [{title: getattr(finding, name) for title, name in names.items()} for finding in result.findings]


def _trained_on(
    checkpoint: str | Path,
) -> tuple[list[tuple[str, Pictures]], dict[str, ShownPictures], list[str]]:
    """Pictures of the sessions of a checkpoint whose data are at hand, hashes of the others, and a line for each."""
    twin = load_twin(checkpoint)
    known, hashed, notes = [], dict(twin.pictures), []
    places = {spec.name: spec.config.path for spec in twin.sessions}
    for spec in twin.sessions:
        if cached(places[spec.name]):
            known.append((spec.name, pictures_of(audited(spec.config))))
            hashed.pop(spec.name, None)
    for name in [*hashed, *(name for name in places if name not in hashed and name not in dict(known))]:
        where = f"its data are not at {places[name]}" if places.get(name) else "where its data lie is not known"
        if name in hashed:
            kept, total = len(hashed[name]), hashed[name].total
            how = f"compared by the hashes of {kept} of {total} pictures" if total else "no picture of it can recur"
            notes.append(f"session {name!r} of {checkpoint}: {where}; {how}")
        else:
            notes.append(f"not compared with session {name!r} of {checkpoint}: {where}; put them there")
            logger.warning(notes[-1])
    return known, hashed, notes
