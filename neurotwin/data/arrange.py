"""From a session and its config to the arrays that training reads, one stage after another.

Units are chosen, bins are grouped to the modelled rate, responses are masked, whole trials are split, signals pass
their pipelines, and what a model must know of the session is written beside the arrays.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..config import DatasetConfig, nearest, notice
from .kernels import other_bins
from .masks import Bins, valid_responses
from .pipelines import apply_pipelines, behavior_names, exposed_shapes, fit_pipelines, pixel_scale, runs_of
from .session import SPLITS, Session, SessionError, frame_shape
from .spec import SessionSpec
from .split import split_bins

__all__ = ["Grid", "arrange", "bin_stretches", "modelled_bins", "outline_session", "resolved"]

logger = logging.getLogger(__name__)


def resolved(session: Session, config: DatasetConfig) -> DatasetConfig:
    """The config with what it leaves to the session filled in: the stimulus pipeline, and the subject."""
    update: dict[str, Any] = {"subject": config.subject or session.subject}
    if config.transforms is None:
        pixels = {"stim": {"source": "stim", "ops": ["pixelnorm"]}} if session.stimulus.dtype == np.uint8 else {}
        update["transforms"] = DatasetConfig(transforms=pixels).transforms
    return config.model_copy(update=update)


def outline_session(session: Session, config: DatasetConfig) -> SessionSpec:
    """What a model must know of a session, as far as headers and config tell it; no bin is read.

    Raises
    ------
    SessionError
        If the config asks for what the session does not have.
    """
    config = resolved(session, config)
    columns, scale = _unit_columns(session, config), pixel_scale(config)
    _types(session, config)
    _notice_bins(config, 1000 / _resampling(session, config)[1])
    signals = {**session.behavior, "robs": session.responses, "unit_ids": session.unit_ids, "stim": session.stimulus}
    try:
        shapes, names = exposed_shapes(config, signals).get("stim"), behavior_names(config, signals)
    except ValueError as error:
        raise SessionError(f"session {config.session!r}: {error}") from None
    shape = session.stimulus.shape[1:]
    if scale is None:
        *others, _ = next(iter(shapes.values()))
        shape = (*others, sum(frame[-1] for frame in shapes.values()))
    return _spec(session, config, columns, frame=shape, scale=scale, names=names)


def arrange(
    session: Session, config: DatasetConfig, dtype: str, *, fitted: Mapping[str, Any] | None = None
) -> tuple[dict[str, np.ndarray], SessionSpec]:
    """The arrays of a :class:`~neurotwin.data.prepare.Prepared` session, and its spec.

    Parameters
    ----------
    session, config
        The recording, and what a model sees of it.
    dtype
        Type of the stimulus in storage; see :func:`~neurotwin.data.prepare.prepare_session`.
    fitted
        Constants of the pipelines from an earlier recording, on which a model was trained. None: they are fitted to
        this one's training part. With them the recording is only predicted, and a part of it may be empty.

    Raises
    ------
    SessionError
        If the config asks for what the session does not have, or nothing is left.
    """
    config = resolved(session, config)
    columns, scale = _unit_columns(session, config), pixel_scale(config)
    grid = modelled_bins(session, config)
    arrays = _masked(session, config, grid, columns, trains=fitted is None)
    train = (arrays["n_valid"] > 0) & (arrays["split"] == SPLITS.index("train"))
    exposed, fitted, names = _transformed(session, config, grid, train, scale, fitted)
    responses = _chosen_responses(config, exposed.get("robs", grid.summed(session.responses)), columns)
    exposure = np.ones(grid.n_bins, np.float32) if session.exposure is None else grid.averaged(session.exposure)
    arrays |= _training_sums(responses, arrays["mask"], train, exposure)
    frames = grid.first + grid.factor - 1
    arrays["contrast"], stimulus_range = _contrast(session.stimulus, frames)
    shape = session.stimulus.shape[1:]
    if scale is None or dtype != "uint8":
        stored = exposed["stim"] if scale is None else session.stimulus[frames]
        arrays["stimulus"] = stored.astype(np.float16 if dtype == "bfloat16" else np.float32)
        frames, shape = np.arange(grid.n_bins), stored.shape[1:]
        if dtype == "uint8":
            logger.info("session %s: its stimulus pipeline is more than scaling, kept as float32", config.session)
    arrays |= {
        "frame": frames.astype(np.int64), "responses": _compact(responses),
        "run_start": np.repeat(grid.runs[:, 0], np.diff(grid.runs)[:, 0]),
        "run_stop": np.repeat(grid.runs[:, 1], np.diff(grid.runs)[:, 0]),
        "trial": grid.at_last(session.trial), "repeat_id": grid.at_last(session.repeat_id),
    }  # fmt: skip
    if "behavior" in exposed:
        arrays["behavior"] = exposed["behavior"]
    if session.exposure is not None:
        arrays["exposure"] = exposure
    if session.true_rate is not None:
        arrays["true_rate"] = grid.summed(session.true_rate[:, columns]).astype(np.float32)
    responded = arrays["responses"]
    spec = _spec(
        session, config, columns, frame=shape, scale=scale, names=names, fitted=fitted, stimulus_range=stimulus_range,
        response_range=(float(responded.min(initial=0)), float(responded.max(initial=0))),
        whole_responses=bool(np.array_equal(responded, np.round(responded))), exposed=bool((exposure != 1).any()),
    )  # fmt: skip
    return arrays, spec


def bin_stretches(run_start: np.ndarray, split: np.ndarray, n_valid: np.ndarray) -> np.ndarray:
    """Stretches of bins of one run and one split that all have valid responses, or none of which has.

    Clips are cut from these few numbers, so that a run of many long sessions starts without reading their bins.

    Parameters
    ----------
    run_start, split, n_valid
        (T,) as in :class:`~neurotwin.data.prepare.Prepared`.

    Returns
    -------
    numpy.ndarray
        (R, 5) int64: first bin, one past the last, first bin of the run, split, and 1 where responses are valid.

    Examples
    --------
    >>> bin_stretches(np.array([0, 0, 0, 3]), np.array([0, 0, 1, 1]), np.array([2, 0, 5, 5])).tolist()
    [[0, 1, 0, 0, 1], [1, 2, 0, 0, 0], [2, 3, 0, 1, 1], [3, 4, 3, 1, 1]]
    """
    labels = (run_start, split, np.asarray(n_valid) > 0)
    runs = runs_of(*labels)
    return np.column_stack([runs, *(label[runs[:, 0]] for label in labels)]).astype(np.int64)


# --------------------------------------------------------------------------------------------------------------------


def _spec(
    session: Session, config: DatasetConfig, columns: np.ndarray, *, frame: tuple[int, ...],
    scale: tuple[float, float] | None, names: tuple[str, ...], **known: Any,
) -> SessionSpec:  # fmt: skip
    positions = session.unit_positions
    return SessionSpec(
        name=config.session, subject=config.subject, unit_ids=tuple(session.unit_ids[columns].tolist()),
        frame_shape=frame_shape(frame), axes=min(len(session.stimulus.shape) - 1, 2),
        bin_rate=_resampling(session, config)[1], n_lags=config.keys_lags.n_lags,
        n_history=len(config.keys_lags.history), behavior_dim=len(names), behavior_names=names,
        pixel_scale=scale or (1.0, 0.0), pixels_per_degree=session.pixels_per_degree,
        unit_positions=None if positions is None else tuple(map(tuple, np.asarray(positions)[columns].tolist())),
        config=config, **known,
    )  # fmt: skip


def _notice_bins(config: DatasetConfig, bin_ms: float) -> None:
    """Say where an operation counts time in bins of another width than those of the data."""
    for name, pipeline in (config.transforms or {}).items():
        for position, op in enumerate(pipeline.ops):
            given = getattr(op.params, "bin_size_ms", None)
            if text := other_bins(given, bin_ms):
                notice(config.session, ("transforms", name, "ops", position, op.name, "bin_size_ms"), text)


def _unit_columns(session: Session, config: DatasetConfig) -> np.ndarray:
    """Columns of the units to fit, in the order of `cids`, of those that have the labels that `units` asks for."""
    ids = session.unit_ids.tolist()
    if not ids:
        raise SessionError(f"session {config.session!r}: no unit to predict, the recording has none; leave it out")
    columns = np.arange(len(ids))
    if config.cids is not None:
        column = {unit: index for index, unit in enumerate(ids)}
        if absent := [unit for unit in config.cids if unit not in column]:
            numbers = f"ids {min(ids)} to {max(ids)}" if session.unit_ids.dtype == np.int64 else f"such as {ids[0]!r}"
            raise SessionError(
                f"session {config.session!r}: cids {absent[:10]} are not among its {len(ids)} units ({numbers}); "
                "correct cids"
            )
        columns = np.array([column[unit] for unit in config.cids])
    for label, wanted in config.units.items():
        if label not in session.unit_labels:
            hint = nearest(label, list(session.unit_labels)) if session.unit_labels else "it has none"
            raise SessionError(f"session {config.session!r}: its units have no label {label!r}; {hint}")
        values = session.unit_labels[label]
        for value in wanted:
            if value not in values:
                hint = nearest(value, np.unique(values).tolist())
                raise SessionError(f"session {config.session!r}: no unit has {label} {value!r}; {hint}")
        columns = columns[np.isin(values[columns], wanted)]
    if not len(columns):
        raise SessionError(f"session {config.session!r}: no unit has all labels of units: {config.units}; loosen them")
    return columns


def _resampling(session: Session, config: DatasetConfig) -> tuple[int, float]:
    """Recorded bins in a modelled one, and modelled bins a second."""
    sampling = config.sampling
    if sampling is None:
        return 1, float(session.bin_rate)
    if abs(sampling.source_rate - session.bin_rate) > 1e-3 * session.bin_rate:
        raise SessionError(
            f"session {config.session!r}: sampling.source_rate is {sampling.source_rate:g} Hz, the recording has "
            f"{session.bin_rate:g} Hz; correct one of them"
        )
    return sampling.factor, float(sampling.target_rate)


@dataclass(frozen=True)
class Grid:
    """Modelled bins, each a group of recorded ones.

    Attributes
    ----------
    first
        (T,) first recorded bin of each.
    factor
        Recorded bins in each.
    bin_rate
        Modelled bins a second, Hz.
    runs
        (N, 2): first and one past the last modelled bin of each run.
    """

    first: np.ndarray
    factor: int
    bin_rate: float
    runs: np.ndarray

    @property
    def n_bins(self) -> int:
        """Number of modelled bins, T."""
        return len(self.first)

    @property
    def groups(self) -> np.ndarray:
        """(T, factor) recorded bins of each."""
        return self.first[:, None] + np.arange(self.factor)

    def at_last(self, array: np.ndarray) -> np.ndarray:
        """The value in the last recorded bin of each."""
        return array[self.first + self.factor - 1]

    def summed(self, array: np.ndarray) -> np.ndarray:
        """The sum over the recorded bins of each."""
        array = np.asarray(array)
        return array[self.groups].sum(axis=1) if self.factor > 1 else array[self.first]

    def averaged(self, array: np.ndarray) -> np.ndarray:
        """The mean over the recorded bins of each."""
        array = np.asarray(array)
        if self.factor == 1:
            return array[self.first]
        return array[self.groups].mean(axis=1, dtype=np.float64).astype(np.float32)


def modelled_bins(session: Session, config: DatasetConfig) -> Grid:
    """Modelled bins are counted from each run's start; a rest that fills none is left out."""
    factor, bin_rate = _resampling(session, config)
    names, types = _types(session, config)
    code = session.type_codes
    gap = np.zeros(session.n_bins, np.int64)
    if session.time is not None:
        gap[1:] = np.cumsum(np.abs(np.diff(session.time) * session.bin_rate - 1) > 0.5)
    runs = runs_of(session.trial, code, gap)
    runs = runs[session.trial[runs[:, 0]] >= 0]
    starts, lengths = [], []
    for kind in types:
        for start, stop in runs[code[runs[:, 0]] == names.index(kind)]:
            if count := (stop - start) // factor:
                starts.append(start + factor * np.arange(count))
                lengths.append(count)
    if not starts:
        raise SessionError(f"session {config.session!r}: no bin of the types {types} lies in a trial")
    stops = np.cumsum(lengths)
    return Grid(np.concatenate(starts), factor, bin_rate, np.stack([stops - lengths, stops], axis=1))


def _types(session: Session, config: DatasetConfig) -> tuple[list[str], list[str]]:
    """Stimulus types that the session has, and those to use."""
    names = list(session.types)
    types = names if config.types is None else list(config.types)
    for kind in types:
        if kind not in names:
            raise SessionError(f"session {config.session!r}: no stimulus type {kind!r}; {nearest(kind, names)}")
    return names, types


def _masked(
    session: Session, config: DatasetConfig, grid: Grid, columns: np.ndarray, *, trains: bool
) -> dict[str, np.ndarray]:
    """Which responses are valid, and which split each bin belongs to; a bin whose parts disagree is not used."""
    valid, labels = session.valid[grid.groups].all(axis=1), None
    if (given := session.split) is not None:
        agree = (given[grid.groups] == given[grid.first][:, None]).all(axis=1)
        labels = np.where(agree, given[grid.first], "")
        valid &= agree
    missing = None if session.missing_pct is None else grid.averaged(session.missing_pct[:, columns])
    mask = valid_responses(config, Bins(grid.runs, valid, missing), name=config.session, n_units=len(columns))
    n_valid = mask.sum(axis=1, dtype=np.int32)
    trial = session.trial[grid.first]
    split = split_bins(config, name=config.session, trial=trial, usable=n_valid > 0, labels=labels, trains=trains)
    return {"mask": mask, "n_valid": n_valid, "split": split}


def _transformed(
    session: Session,
    config: DatasetConfig,
    grid: Grid,
    train: np.ndarray,
    scale: tuple[float, float] | None,
    fitted: Mapping[str, Any] | None,
) -> tuple[dict[str, np.ndarray], dict[str, Any], tuple[str, ...]]:
    """What the pipelines expose, their constants, and the transform that each behaviour variable comes from."""
    signals: dict[str, np.ndarray] = {key: grid.averaged(value) for key, value in session.behavior.items()}
    signals |= {"robs": grid.summed(session.responses), "unit_ids": session.unit_ids}
    reads = (pipeline.source == "stim" and exposed != "stim" for _, exposed, pipeline in config.pipelines())
    if scale is None or any(reads):
        signals["stim"] = grid.at_last(session.stimulus)
    outputs = ("robs", "behavior") if scale is not None else ("stim", "robs", "behavior")
    bin_ms = 1000 / grid.bin_rate
    try:
        if fitted is None:
            fitted = fit_pipelines(config, signals, grid.runs, train, bin_ms=bin_ms)
        exposed = apply_pipelines(config, signals, runs=grid.runs, fitted=fitted, outputs=outputs, bin_ms=bin_ms)
        names = behavior_names(config, signals) if "behavior" in exposed else ()
    except ValueError as error:
        raise SessionError(f"session {config.session!r}: {error}") from None
    return exposed, dict(fitted), names


def _chosen_responses(config: DatasetConfig, responses: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The columns of the units to fit; a pipeline of responses must not have made others of them."""
    selections = [
        op.params.indices
        for _, exposed, pipeline in config.pipelines()
        if exposed == "robs"
        for op in pipeline.ops
        if op.name == "select_units"
    ]
    if not selections:
        return responses[:, columns]
    if responses.shape[1] != len(columns) or any(s not in ("cids", tuple(columns)) for s in selections):
        raise SessionError(
            f"session {config.session!r}: the robs pipeline leaves other columns than those of the {len(columns)} "
            "units to fit; use select_units: {indices: cids}"
        )
    return responses


def _training_sums(
    responses: np.ndarray, mask: np.ndarray, train: np.ndarray, exposure: np.ndarray
) -> dict[str, np.ndarray]:
    """Sums over the valid training bins of each unit, from which a model starts: (U,) float64 each."""
    y, m, e = responses[train], mask[train], exposure[train]
    return {
        "train_bins": np.einsum("tu->u", m, dtype=np.float64),
        "train_sum": np.einsum("tu,tu->u", y, m, dtype=np.float64),
        "train_presentations": np.einsum("tu,t->u", m, e, dtype=np.float64),
        "train_squares": np.einsum("tu,tu,tu,t->u", y, y, m, 1 / e, dtype=np.float64),
        "train_zeros": np.einsum("tu,tu->u", y <= 0, m, dtype=np.float64),
    }


def _compact(responses: np.ndarray) -> np.ndarray:
    """Counts as uint8 where they are whole and small, else as float32."""
    small = responses.min(initial=0) >= 0 and responses.max(initial=0) <= 255
    return responses.astype(np.uint8 if small and np.array_equal(responses, np.round(responses)) else np.float32)


def _contrast(stimulus: Any, frames: np.ndarray, block: int = 4096) -> tuple[np.ndarray, tuple[float, float]]:
    """Standard deviation of each frame as a share of the range of values, (T,) float32; and that range.

    The range of pixels is 255; that of a real-valued stimulus is what it covers.
    """
    contrast, low, high = np.empty(len(frames), np.float32), np.inf, -np.inf
    for first in range(0, len(frames), block):
        part = stimulus[frames[first : first + block]]
        contrast[first : first + block] = part.reshape(len(part), -1).std(axis=1, dtype=np.float32)
        low, high = min(low, float(part.min())), max(high, float(part.max()))
    span = 255 if stimulus.dtype == np.uint8 else max(high - low, 1e-12)
    return contrast / np.float32(span), (low, high)
