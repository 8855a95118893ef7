"""What a report needs beyond a run's table: test figures, traces and PSTHs, areas, sizes; computed once, then read.

All of it needs the checkpoint and the recordings. Where one of them is not on this machine, the report does without,
and a note says so.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..checkpoint_file import CheckpointError, find_checkpoint
from ..config import ConfigError
from ..config.locate import moved
from ..data.clips import stream
from ..data.prepare import Prepared, open_session, prepare
from ..data.remote import cached
from ..data.session import SPLITS, SessionError
from ..files import stamp
from ..metrics.reliability import nan_mean
from ..metrics.table import EvaluationError, Table
from ..models import TwinModel, load_twin
from ..models.network import Streamer, evaluating
from ..tensorfile import TensorFileError, load_arrays, load_metadata, save_arrays
from .evaluate import known_session, score_session
from .report import Run

__all__ = ["Curves", "RunData", "SessionData", "gather", "store_sessions", "stored"]

logger = logging.getLogger(__name__)

_POINTS = 160  # of a curve: more than a card is pixels wide would not be seen
_POINT_S = 0.025  # s; a point is the mean over about this, so that single spikes do not hide the rate
_TEST, _CURVES = "units_test.csv", "report.safetensors"
_ERRORS = (CheckpointError, ConfigError, EvaluationError, SessionError, TensorFileError, OSError)


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Recorded and predicted responses of all units of a session.

    Attributes
    ----------
    observed, predicted
        (N, U) in `unit`; NaN leaves a gap.
    step
        Duration of a point, s; 0 where points are single presentations, not a course in time.
    unit
        "Hz", or "response" for responses that are not counts.
    n_repeats
        Repeats that `observed` is the mean of; 1 for a single stretch.
    split
        Part of the recording that they are from.
    """

    observed: np.ndarray
    predicted: np.ndarray
    step: float
    unit: str
    n_repeats: int
    split: str


@dataclass(frozen=True, kw_only=True)
class SessionData:
    """What is known of a session from its recording.

    Attributes
    ----------
    name
        Of the session.
    unit_ids
        (U,) as text.
    bin_rate
        Bins a second, Hz.
    bins
        Bins of each split.
    areas
        (U,) label of each unit, or None where the recording has none.
    trace, psth
        A stretch of validation, and the mean over repeats; None where there is none.
    """

    name: str
    unit_ids: tuple[str, ...]
    bin_rate: float
    bins: dict[str, int]
    areas: tuple[str, ...] | None = None
    trace: Curves | None = None
    psth: Curves | None = None


@dataclass(frozen=True)
class RunData:
    """What was found of a run beyond its folder's table.

    Attributes
    ----------
    test
        Figures of the test split, or None.
    sessions
        By name.
    notes
        Full sentences on what is missing, and why.
    """

    test: Table | None = None
    sessions: dict[str, SessionData] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def stored(run: Run) -> RunData:
    """What an earlier report has left in the run's folder; nothing is computed."""
    notes: list[str] = []
    return RunData(_stored_test(run.folder, notes), _stored_sessions(run.folder), tuple(notes))


def gather(
    run: Run, *, data_dir: str | Path | None = None, device: torch.device | str = "cpu",
    progress: Callable[[int, int, str], None] | None = None,
) -> RunData:  # fmt: skip
    """What an earlier report has left in the run's folder; what is missing is computed and left there.

    The results lie in ``units_test.csv`` and ``report.safetensors``. They are computed again when the checkpoint has
    changed.

    Parameters
    ----------
    run
        The run.
    data_dir
        Folder of the recordings, if they have moved since training.
    device
        Where the twin predicts.
    progress
        Called with the index, the number of sessions and the name before each session.

    Returns
    -------
    RunData
        What could be had. What could not is a sentence in `notes`; nothing is raised for it.
    """
    known = stored(run)
    try:
        checkpoint = run.model or find_checkpoint(run.folder)
    except CheckpointError:
        note = "Its checkpoint is not in its folder, so nothing is computed beyond what the folder's tables hold."
        return replace(known, notes=(*known.notes, note))
    current = stamp(checkpoint)
    fresh = _curves_stamp(run.folder) == current
    has_test = known.test is not None and (run.folder / _TEST).stat().st_mtime_ns >= current[1]
    if fresh and (has_test or not _has_test_bins(known)):
        return known
    known = RunData(known.test if has_test else None, known.sessions if fresh else {}, known.notes)
    try:
        return _computed(run, known, checkpoint, data_dir, device, progress)
    except _ERRORS as error:
        return replace(known, notes=(*known.notes, f"Nothing more could be computed: {error}."))


# --------------------------------------------------------------------------------------------------------------------


def _computed(
    run: Run, known: RunData, checkpoint: Path, data_dir: str | Path | None, device: torch.device | str,
    progress: Callable[[int, int, str], None] | None,
) -> RunData:  # fmt: skip
    twin = load_twin(checkpoint).to(device)
    configs = [moved(spec.config, data_dir) for spec in twin.sessions]
    present = [config for config in configs if cached(config.path)]
    notes = list(known.notes)
    if len(present) < len(configs):
        absent = next(config for config in configs if config not in present)
        which = "The recording is" if len(configs) == 1 else f"Of {len(configs)} recordings, {len(present)} are"
        notes.append(
            f"{which + ' not' if len(configs) == 1 else which} on this machine (absent: {absent.path}), so traces and "
            "PSTHs are shown only where they are known; --data_dir names another folder."
        )
    if not present:
        return replace(known, notes=tuple(notes))
    sessions, tables = dict(known.sessions), []
    for number, prepared in enumerate(prepare(present)):
        if progress is not None:
            progress(number, len(present), prepared.name)
        session, table = _session(twin, prepared)
        sessions[prepared.name] = session
        tables += [] if table is None else [table]
    test = Table.concatenate(tables) if tables else None
    whole = len(present) == len(configs)
    if test is not None and not test["bins"].any():
        test = None
    try:
        run.folder.mkdir(exist_ok=True)
        if whole and test is not None:
            test.write(run.folder / _TEST)
        if whole:
            store_sessions(run.folder / _CURVES, sessions, stamp(checkpoint))
    except OSError as error:
        notes.append(f"What was computed could not be kept for the next report ({error.strerror or error}).")
    return RunData(known.test if test is None else test, sessions, tuple(notes))


def _session(twin: TwinModel, prepared: Prepared) -> tuple[SessionData, Table | None]:
    """Curves, sizes and test figures of one session."""
    index = known_session(twin, prepared)
    spec, split_of = prepared.spec, np.asarray(prepared.split)
    bins = {split: int((split_of == code).sum()) for code, split in enumerate(SPLITS)}
    table = psth = None
    for split in ("test", "val"):
        repeated = bool(((split_of == SPLITS.index(split)) & (np.asarray(prepared.repeat_id) >= 0)).any())
        if not bins[split] or not (split == "test" or (repeated and psth is None)):
            continue
        score = score_session(twin, prepared, index, split)
        table = score.table() if split == "test" else table
        if repeated and psth is None:
            psth = _psth(prepared, score.repeated(), split)
    labels = open_session(spec.config)
    areas = None
    if "area" in labels.unit_labels:
        ids, names = np.asarray(labels.unit_ids).tolist(), np.asarray(labels.unit_labels["area"]).tolist()
        of_unit = dict(zip(map(str, ids), names, strict=True))
        areas = tuple(of_unit.get(str(unit), "") for unit in spec.unit_ids)
    session = SessionData(
        name=spec.name, unit_ids=tuple(map(str, spec.unit_ids)), bin_rate=spec.bin_rate, bins=bins, areas=areas,
        trace=_trace(twin, prepared, index), psth=psth,
    )  # fmt: skip
    return session, table


def _trace(twin: TwinModel, prepared: Prepared, index: int, split: str = "val") -> Curves | None:
    """The longest stretches of a split, up to the number of points of a curve, one after the other with a gap."""
    factor = _factor(prepared)
    wanted = factor * _POINTS
    with evaluating(twin), torch.inference_mode():
        sample = next(stream(prepared, split, context=twin.context, chunk=wanted, bins=wanted), None)
        if sample is None:
            return None
        sample = sample.of_session(index).to(twin.like.device)
        rates, target = Streamer(twin)(sample.clip).double().cpu().numpy(), sample.target
    exposure = 1.0 if target.exposure is None else target.exposure.double().cpu().numpy()
    observed = np.where(target.mask.cpu().numpy(), target.responses.double().cpu().numpy() / exposure, np.nan)
    rates = np.where(np.isnan(observed).all(2, keepdims=True), np.nan, rates)
    single = observed.shape[1] == 1
    if single:
        pair = [values[:_POINTS, 0] for values in (observed, rates)]
    else:
        assert sample.clip.bins is not None  # a prepared session's clips know their bins
        order = np.argsort(sample.clip.bins.cpu().numpy(), kind="stable")
        pair = [_joined(values[order], factor)[:_POINTS] for values in (observed, rates)]
    return _curves(prepared, pair[0], pair[1], 0.0 if single else factor / prepared.spec.bin_rate, 1, split)


def _psth(prepared: Prepared, repeated: tuple[np.ndarray, np.ndarray] | None, split: str) -> Curves | None:
    """Means over repeats of responses and predictions."""
    if repeated is None:
        return None
    responses, rates = repeated
    counts = (~np.isnan(responses)).sum(0)
    repeats = int(np.max(counts, initial=0))
    if repeats < 2:
        return None
    observed, predicted = (nan_mean(values) for values in (responses, rates))
    of_split = (prepared.split == SPLITS.index(split)) & (np.asarray(prepared.repeat_id) >= 0)
    single = bool((prepared.run_stop - prepared.run_start)[of_split].max() - prepared.spec.config.keys_lags.reach <= 1)
    factor = 1 if single else _factor(prepared)
    pair = [_joined(values[None, : factor * _POINTS], factor) for values in (observed, predicted)]
    return _curves(prepared, pair[0], pair[1], 0.0 if single else factor / prepared.spec.bin_rate, repeats, split)


def _curves(
    prepared: Prepared, observed: np.ndarray, predicted: np.ndarray, step: float, repeats: int, split: str
) -> Curves:
    counts = prepared.spec.whole_responses and step > 0
    scale = prepared.spec.bin_rate if counts else 1.0
    return Curves(
        observed=(observed * scale).astype(np.float32), predicted=(predicted * scale).astype(np.float32), step=step,
        unit="Hz" if counts else "response", n_repeats=repeats, split=split,
    )  # fmt: skip


def _factor(prepared: Prepared) -> int:
    return max(1, round(_POINT_S * prepared.spec.bin_rate))


def _joined(values: np.ndarray, factor: int) -> np.ndarray:
    """Stretches (B, L, U) as one, (N, U): means over `factor` bins, a NaN between two stretches, none at the end."""
    n_clips, length, n_units = values.shape
    points = -(-length // factor)
    padded = np.full((n_clips, points * factor, n_units), np.nan)
    padded[:, :length] = values
    means = nan_mean(padded.reshape(n_clips, points, factor, n_units).transpose(2, 0, 1, 3))
    rows: list[np.ndarray] = []
    for clip in means:
        known = np.flatnonzero(~np.isnan(clip).all(1))
        if len(known):
            rows += [np.full((1, n_units), np.nan), clip[: known[-1] + 1]]
    return np.concatenate(rows[1:]) if rows else np.empty((0, n_units))


# --------------------------------------------------------------------------------------------------------------------


def _has_test_bins(known: RunData) -> bool:
    return any(session.bins.get("test") for session in known.sessions.values())


def _stored_test(folder: Path, notes: list[str]) -> Table | None:
    path = folder / _TEST
    if not path.exists():
        return None
    try:
        return Table.read(path)
    except EvaluationError as error:
        notes.append(f"Its test figures cannot be read: {error}.")
        return None


def _curves_stamp(folder: Path) -> list[int] | None:
    try:
        return load_metadata(folder / _CURVES)["checkpoint"]
    except (OSError, TensorFileError, KeyError, ValueError, TypeError):
        return None


def store_sessions(path: Path, sessions: dict[str, SessionData], stamp: list[int]) -> None:
    """Keep what was computed in a file, with size and time of change of the checkpoint that it was computed with."""
    arrays: dict[str, np.ndarray] = {}
    described: list[dict[str, Any]] = []
    for number, session in enumerate(sessions.values()):
        plain = {key: value for key, value in vars(session).items() if key not in ("trace", "psth")}
        for kind in ("trace", "psth"):
            curves: Curves | None = getattr(session, kind)
            if curves is not None and len(curves.observed):
                arrays[f"{number}.{kind}"] = np.stack([curves.observed, curves.predicted])
                plain[kind] = {key: getattr(curves, key) for key in ("step", "unit", "n_repeats", "split")}
        described.append(plain)
    if arrays:
        save_arrays(path, arrays, {"checkpoint": stamp, "sessions": described})


def _stored_sessions(folder: Path) -> dict[str, SessionData]:
    """Sessions of the file, which is no more than a memory of what can be computed: one not understood is not used."""
    try:
        arrays, metadata = load_arrays(folder / _CURVES)
        sessions = [_restored(number, values, arrays) for number, values in enumerate(metadata["sessions"])]
    except (OSError, TensorFileError, KeyError, ValueError, TypeError) as error:
        if not isinstance(error, FileNotFoundError):
            logger.warning("%s is not used: %s", folder / _CURVES, error)
        return {}
    return {session.name: session for session in sessions}


def _restored(number: int, values: dict[str, Any], arrays: dict[str, np.ndarray]) -> SessionData:
    plain: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    for kind in ("trace", "psth"):
        if kind in plain:
            observed, predicted = np.asarray(arrays[f"{number}.{kind}"])
            plain[kind] = Curves(observed=observed, predicted=predicted, **plain[kind])
    return SessionData(**plain)
