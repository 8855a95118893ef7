"""From a session file and its config to arrays that every process maps: resampled, transformed, masked, split.

The arrays are computed once and written beside the data (or in ``NEUROTWIN_CACHE``) under a name that hashes the
source and everything in the config that they depend on; from then on they are memory-mapped. The stimulus itself is
not copied where its pipeline is only scaling: the prepared file then holds the index of the frame that each bin shows.
"""

import hashlib
import json
import logging
import os
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..config import DatasetConfig, nearest
from .formats import as_session_file
from .masks import valid_counts
from .session import SPLITS, Session, SessionError
from .split import split_bins
from ..tensorfile import TensorFileError, load_arrays, save_arrays
from .transforms import apply_pipelines, behavior_names, exposed_shapes, fit_pipelines, pixel_scale, runs_of

__all__ = ["Prepared", "outline", "prepare", "prepare_session"]

logger = logging.getLogger(__name__)

_VERSION = 4
_LABELS = {"path", "data_dir", "lab", "eye", "visual", "qcmissing", "qccontam", "adapter", "readout"}


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """One session, ready to be cut into clips. T counts modelled bins, oldest first within each run.

    Attributes
    ----------
    name, subject
        Of the session.
    config
        The config that it was prepared with.
    bin_rate
        Modelled bins a second, Hz.
    unit_ids
        (U,) ids of the units, in the order of the columns.
    source
        (N, H, W) or (N, C, H, W): frames as recorded, or float as transformed by what is more than scaling.
    frame
        (T,) index into `source` of the frame that each bin shows.
    pixel_scale
        Factor and offset from `source` to what the model sees.
    spikes
        (T, U) counts per bin.
    mask
        (T, U) bool: valid counts.
    n_valid
        (T,) int32: valid counts of each bin.
    train_spikes, train_presentations
        (U,) float64: spikes of each unit in its valid training bins, and the presentations that they sum over.
    split
        (T,) int8: index into ``("train", "val", "test")``, -1 for none.
    run_start, run_stop
        (T,) first and one past the last bin of the run that a window may not leave.
    contrast
        (T,) standard deviation of each bin's frame, as a fraction of the range of pixels.
    behavior
        (T, K) float32, or None.
    behavior_names
        (K,) name of the transform that each behaviour variable comes from.
    exposure
        (T,) presentations that a bin's counts sum over, or None.
    repeat_id
        (T,) equal ids ≥ 0 are repeats of one another.
    true_rate
        (T, U) expected counts per bin, or None.
    fitted
        Constants of the transforms, from the training part.
    unit_positions
        (U, D), or None.
    trial
        (T,) trial of each bin as recorded, or None.
    key
        Hash of the recording's content and of all settings that the arrays depend on.
    """

    name: str
    subject: str
    config: DatasetConfig
    bin_rate: float
    unit_ids: np.ndarray
    source: np.ndarray
    frame: np.ndarray
    pixel_scale: tuple[float, float]
    spikes: np.ndarray
    mask: np.ndarray
    n_valid: np.ndarray
    train_spikes: np.ndarray
    train_presentations: np.ndarray
    split: np.ndarray
    run_start: np.ndarray
    run_stop: np.ndarray
    contrast: np.ndarray
    behavior: np.ndarray | None = None
    behavior_names: tuple[str, ...] = ()
    exposure: np.ndarray | None = None
    repeat_id: np.ndarray
    true_rate: np.ndarray | None = None
    fitted: dict[str, float] = field(default_factory=dict)
    unit_positions: np.ndarray | None = None
    trial: np.ndarray | None = None
    key: str = ""

    @property
    def n_bins(self) -> int:
        """Number of modelled bins, T."""
        return len(self.frame)

    @property
    def n_units(self) -> int:
        """Number of units to fit, U."""
        return self.spikes.shape[1]

    @property
    def n_lags(self) -> int:
        """Frames that a prediction may see, its own bin's included."""
        return self.config.keys_lags.n_lags

    @property
    def n_history(self) -> int:
        """Bins of spike history that a prediction may see."""
        return len(self.config.keys_lags.history)

    @property
    def behavior_dim(self) -> int:
        """Number of behaviour variables, K."""
        return 0 if self.behavior is None else self.behavior.shape[1]

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a frame."""
        shape = self.source.shape[1:]
        return (1, *shape) if len(shape) == 2 else shape

    def mean_counts(self) -> np.ndarray:
        """Mean count per bin (and presentation) of every unit over the valid training bins, (U,) float64."""
        return self.train_spikes / np.maximum(self.train_presentations, 1)


def prepare(
    configs: Sequence[DatasetConfig],
    *,
    cache_dir: str | Path | None = None,
    dtype: str = "uint8",
    progress: Callable[[int, int, str], None] | None = None,
) -> list[Prepared]:
    """Prepare the sessions of a run, or map what was prepared before; see :func:`prepare_session`.

    Raises
    ------
    SessionError
        If a session is unusable, or the sessions disagree in bin rate or lags.
    """
    sessions = []
    for index, config in enumerate(configs):
        if progress is not None:
            progress(index, len(configs), config.session)
        sessions.append(prepare_session(config, cache_dir=cache_dir, dtype=dtype))
    _check_alike(sessions)
    return sessions


def outline(configs: Sequence[DatasetConfig]) -> list[Prepared]:
    """The sessions of a run as they will be when prepared, but without bins: what headers and configs alone tell.

    Takes no time and writes nothing, so that a run that cannot be is refused before its data are prepared; only data
    of another format are converted first.

    Raises
    ------
    SessionError
        If a session is missing or broken, a config asks for what it does not have, or the sessions disagree.
    """
    sessions = [_outline_session(config) for config in configs]
    _check_alike(sessions)
    return sessions


def prepare_session(config: DatasetConfig, *, cache_dir: str | Path | None = None, dtype: str = "uint8") -> Prepared:
    """Prepare one session, or map what was prepared before.

    Parameters
    ----------
    config
        The session's configuration; `config.path` is its data, of another format too: they are then converted once,
        beside the prepared arrays.
    cache_dir
        Where prepared arrays are kept. Default: ``NEUROTWIN_CACHE``, else the folder `prepared` beside the data.
    dtype
        Stimulus in storage: "uint8" (a pipeline that is more than scaling is kept as float32), "bfloat16" (kept as
        float16) or "float32". Scaling is left to the device whatever the type, so that a model sees the same.

    Raises
    ------
    SessionError
        If the session is missing or broken, the config asks for what it does not have, or the recording or the
        prepared file was altered.

    Notes
    -----
    Size and header of both files are checked at every start; their content is compared with their checksums when a
    file's size or time of change is not the one noted, in ``NAME.checked.json``, when that was last done.
    """
    path, folder = _session_file(config, cache_dir)
    session = Session.load(path, verify=False)
    key = _key(path, config, dtype)
    cached = folder / f"{config.session}-{key}.safetensors"
    try:
        if cached.exists():
            _verify_changed(path, cached)
        else:
            load_arrays(path)
            arrays, metadata = _compute(session, config, dtype)
            save_arrays(cached, arrays, metadata)
            _note(path, cached)
        arrays, metadata = load_arrays(cached, verify=False)
    except TensorFileError as error:
        cure = "; delete it, it will be prepared again" if str(cached) in str(error) else ""
        raise SessionError(f"{error}{cure}") from None
    except OSError as error:
        raise SessionError(
            f"session {config.session!r}: prepared arrays cannot be written to {folder} ({error.strerror}); free "
            "space there, or set NEUROTWIN_CACHE to a folder that can be written"
        ) from None
    source = arrays.pop("stimulus", session.stimulus)
    return Prepared(
        name=config.session, subject=config.subject or session.subject, config=config, source=source, key=key,
        bin_rate=metadata["bin_rate"], pixel_scale=tuple(metadata["pixel_scale"]), fitted=metadata["fitted"],
        behavior_names=tuple(metadata["behavior_names"]), **arrays,
    )  # fmt: skip


def _check_alike(sessions: Sequence[Prepared]) -> None:
    first = sessions[0]
    for other in sessions[1:]:
        if abs(other.bin_rate - first.bin_rate) > 1e-6 * first.bin_rate:
            raise SessionError(
                f"sessions {first.name!r} and {other.name!r} have {first.bin_rate:g} and {other.bin_rate:g} bins a "
                "second; set `sampling` so that all have one rate"
            )
        if (other.n_lags, other.n_history) != (first.n_lags, first.n_history):
            raise SessionError(
                f"sessions {first.name!r} and {other.name!r} differ in keys_lags; give all the same lags"
            )


def _session_file(config: DatasetConfig, cache_dir: str | Path | None = None) -> tuple[Path, Path]:
    """The session's file, and the folder of its prepared arrays."""
    path = Path(config.path or f"{config.session}.safetensors")
    folder = Path(cache_dir or os.environ.get("NEUROTWIN_CACHE") or path.parent / "prepared")
    rate = None if config.sampling is None else config.sampling.source_rate
    return as_session_file(path, name=config.session, folder=folder, bin_rate=rate), folder


def _outline_session(config: DatasetConfig) -> Prepared:
    session = Session.load(_session_file(config)[0], verify=False)
    columns, scale = _unit_columns(session, config), pixel_scale(config)
    _types(session, config)
    signals = {**session.behavior, "robs": session.responses, "unit_ids": session.unit_ids, "stim": session.stimulus}
    try:
        frames, names = exposed_shapes(config, signals).get("stim"), behavior_names(config, signals)
    except ValueError as error:
        raise SessionError(f"session {config.session!r}: {error}") from None
    shape = session.stimulus.shape[1:]
    if scale is None:
        *others, _ = next(iter(frames.values()))
        shape = (*others, sum(frame[-1] for frame in frames.values()))
    positions = session.unit_positions
    none, no_counts = np.zeros(0, np.int64), np.zeros((0, len(columns)))
    return Prepared(
        name=config.session, subject=config.subject or session.subject, config=config,
        bin_rate=_resampling(session, config)[1], unit_ids=session.unit_ids[columns].astype(np.int64),
        unit_positions=None if positions is None else np.asarray(positions)[columns], behavior_names=names,
        source=np.zeros((0, *shape), np.float32), pixel_scale=scale or (1.0, 0.0),
        behavior=np.zeros((0, len(names)), np.float32) if names else None,
        spikes=no_counts, mask=no_counts.astype(bool), n_valid=none, train_spikes=none, train_presentations=none,
        frame=none, split=none, run_start=none, run_stop=none, contrast=none, repeat_id=none,
    )  # fmt: skip


def _verify_changed(source: Path, cached: Path) -> None:
    """Compare with their checksums the files whose size or time of change is not the one noted; then note it."""
    try:
        noted = json.loads(_note_of(cached).read_text())
    except (OSError, ValueError):
        noted = {}
    changed = [path for role, path in (("source", source), ("cached", cached)) if noted.get(role) != _stamp(path)]
    for path in changed:
        logger.info("comparing %s with its checksum", path)
        load_arrays(path)
    if changed:
        with suppress(OSError):  # a cache that cannot be written is checked at every start
            _note(source, cached)


def _note(source: Path, cached: Path) -> None:
    temporary = cached.with_name(f".{cached.stem}.{uuid.uuid4().hex[:12]}.tmp")
    temporary.write_text(json.dumps({"source": _stamp(source), "cached": _stamp(cached)}))
    os.replace(temporary, _note_of(cached))


def _note_of(cached: Path) -> Path:
    return cached.with_suffix(".checked.json")


def _stamp(path: Path) -> list[int]:
    return [path.stat().st_size, path.stat().st_mtime_ns]


def _key(path: Path, config: DatasetConfig, dtype: str) -> str:
    """Hash of the source's content and of all that the prepared arrays depend on."""
    source = load_arrays(path, verify=False)[1]["digest"]
    settings = config.model_dump(mode="json", by_alias=True, exclude=_LABELS)
    text = json.dumps([_VERSION, source, settings, dtype], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _compute(session: Session, config: DatasetConfig, dtype: str) -> tuple[dict[str, np.ndarray], dict[str, object]]:
    columns = _unit_columns(session, config)
    factor, bin_rate = _resampling(session, config)
    first, runs = _bins(session, config, factor)
    groups = first[:, None] + np.arange(factor)

    def at_last(array: np.ndarray) -> np.ndarray:
        return array[first + factor - 1]

    def summed(array: np.ndarray) -> np.ndarray:
        return array[groups].sum(axis=1) if factor > 1 else array[first]

    def averaged(array: np.ndarray) -> np.ndarray:
        return array[groups].mean(axis=1, dtype=np.float64).astype(np.float32) if factor > 1 else array[first]

    valid = session.valid[groups].all(axis=1)
    labels = None
    if session.split is not None:
        agree = (session.split[groups] == session.split[first][:, None]).all(axis=1)
        labels = np.where(agree, session.split[first], "")
        valid &= agree
    missing = None if session.missing_pct is None else averaged(session.missing_pct[:, columns])
    mask = valid_counts(config, name=config.session, runs=runs, valid=valid, missing_pct=missing, n_units=len(columns))
    n_valid = mask.sum(axis=1, dtype=np.int32)
    usable = n_valid > 0
    split = split_bins(config, name=config.session, trial=session.trial[first], usable=usable, labels=labels)

    signals: dict[str, np.ndarray] = {key: averaged(value) for key, value in session.behavior.items()}
    signals["robs"] = summed(session.responses)
    signals["unit_ids"] = session.unit_ids
    scale = pixel_scale(config)
    frames = first + factor - 1
    stored: dict[str, np.ndarray] = {}
    outputs = ("robs", "behavior") if scale is not None else ("stim", "robs", "behavior")
    if scale is None or any(p.source == "stim" and (p.expose_as or n) != "stim" for n, p in config.transforms.items()):
        signals["stim"] = session.stimulus[frames]
    train = usable & (split == SPLITS.index("train"))
    try:
        fitted = fit_pipelines(config, signals, runs, train)
        exposed = apply_pipelines(config, signals, runs=runs, fitted=fitted, outputs=outputs)
    except ValueError as error:
        raise SessionError(f"session {config.session!r}: {error}") from None
    if scale is None or dtype != "uint8":
        shown = exposed["stim"] if scale is None else session.stimulus[frames]
        stored["stimulus"] = shown.astype(np.float16 if dtype == "bfloat16" else np.float32)
        frames = np.arange(len(first))
        if dtype == "uint8":
            logger.info("session %s: its stimulus pipeline is more than scaling, kept as float32", config.session)
    spikes = exposed.get("robs", signals["robs"])
    selections = [
        op.params.indices
        for name, pipeline in config.transforms.items()
        if (pipeline.expose_as or name) == "robs"
        for op in pipeline.ops
        if op.name == "select_units"
    ]
    if not selections:
        spikes = spikes[:, columns]
    if spikes.shape[1] != len(columns) or any(s not in ("cids", tuple(columns)) for s in selections):
        raise SessionError(
            f"session {config.session!r}: the robs pipeline leaves other columns than those of the {len(columns)} "
            "units to fit; use select_units: {indices: cids}"
        )
    exposure = np.ones(len(first), np.float32) if session.exposure is None else averaged(session.exposure)
    arrays = stored | {
        "frame": frames.astype(np.int64),
        "spikes": _compact(spikes),
        "mask": mask,
        "n_valid": n_valid,
        "train_spikes": np.einsum("tu,tu->u", spikes[train], mask[train], dtype=np.float64),
        "train_presentations": np.einsum("tu,t->u", mask[train], exposure[train], dtype=np.float64),
        "split": split,
        "run_start": np.repeat(runs[:, 0], runs[:, 1] - runs[:, 0]),
        "run_stop": np.repeat(runs[:, 1], runs[:, 1] - runs[:, 0]),
        "contrast": _contrast(session.stimulus, first + factor - 1),
        "trial": at_last(session.trial).astype(np.int64),
        "repeat_id": at_last(session.repeat_id).astype(np.int32),
        "unit_ids": session.unit_ids[columns].astype(np.int64),
    }
    names = ()
    if "behavior" in exposed:
        arrays["behavior"], names = exposed["behavior"], behavior_names(config, signals)
    if session.exposure is not None:
        arrays["exposure"] = exposure
    if session.true_rate is not None:
        arrays["true_rate"] = summed(session.true_rate[:, columns]).astype(np.float32)
    if session.unit_positions is not None:
        arrays["unit_positions"] = np.asarray(session.unit_positions)[columns].astype(np.float32)
    return arrays, {
        "bin_rate": bin_rate, "pixel_scale": scale or (1.0, 0.0), "fitted": fitted, "behavior_names": names,
    }  # fmt: skip


def _unit_columns(session: Session, config: DatasetConfig) -> np.ndarray:
    if config.cids is None:
        return np.arange(session.n_units)
    column = {int(unit): index for index, unit in enumerate(session.unit_ids)}
    absent = [unit for unit in config.cids if unit not in column]
    if absent:
        raise SessionError(
            f"session {config.session!r}: cids {absent[:10]} are not among its {session.n_units} units (ids "
            f"{min(column)} to {max(column)}); correct cids"
        )
    return np.array([column[unit] for unit in config.cids])


def _resampling(session: Session, config: DatasetConfig) -> tuple[int, float]:
    sampling = config.sampling
    if sampling is None:
        return 1, float(session.bin_rate)
    if abs(sampling.source_rate - session.bin_rate) > 1e-3 * session.bin_rate:
        raise SessionError(
            f"session {config.session!r}: sampling.source_rate is {sampling.source_rate:g} Hz, the recording has "
            f"{session.bin_rate:g} Hz; correct one of them"
        )
    return sampling.factor, float(sampling.target_rate)


def _bins(session: Session, config: DatasetConfig, factor: int) -> tuple[np.ndarray, np.ndarray]:
    """First recorded bin of every modelled one, counted from each run's start, and the runs of modelled bins."""
    names, types = _types(session, config)
    code = np.searchsorted(names, session.stimulus_type)
    gap = np.zeros(session.n_bins, np.int64)
    if session.time is not None:
        gap[1:] = np.cumsum(np.abs(np.diff(session.time) * session.bin_rate - 1) > 0.5)
    runs = runs_of(session.trial, code, gap)
    runs = runs[session.trial[runs[:, 0]] >= 0]
    starts, lengths = [], []
    for kind in types:
        for start, stop in runs[code[runs[:, 0]] == names.index(kind)]:
            count = (stop - start) // factor
            if count:
                starts.append(start + factor * np.arange(count))
                lengths.append(count)
    if not starts:
        raise SessionError(f"session {config.session!r}: no bin of the types {types} lies in a trial")
    stops = np.cumsum(lengths)
    return np.concatenate(starts), np.stack([stops - lengths, stops], axis=1)


def _types(session: Session, config: DatasetConfig) -> tuple[list[str], list[str]]:
    """Stimulus types that the session has, and those to use."""
    names = [str(name) for name in np.unique(session.stimulus_type)]
    types = names if config.types is None else list(config.types)
    for kind in types:
        if kind not in names:
            raise SessionError(f"session {config.session!r}: no stimulus type {kind!r}; {nearest(kind, names)}")
    return names, types


def _compact(spikes: np.ndarray) -> np.ndarray:
    """Counts as uint8 where they are whole and small, else as float32."""
    small = spikes.max(initial=0) <= 255 and np.array_equal(spikes, np.round(spikes))
    return spikes.astype(np.uint8 if small else np.float32)


def _contrast(stimulus: np.ndarray, frames: np.ndarray, block: int = 4096) -> np.ndarray:
    """Standard deviation of each frame's pixels over their range, (T,) float32."""
    contrast = np.empty(len(frames), np.float32)
    for first in range(0, len(frames), block):
        part = stimulus[frames[first : first + block]]
        contrast[first : first + block] = part.reshape(len(part), -1).std(axis=1, dtype=np.float32) / 255
    return contrast
