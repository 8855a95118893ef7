"""What a twin is asked to predict, as clips: a recording, prepared as in training, or a movie with raw signals.

A recording says its rate, and is resampled, transformed and cut into trials as the session that was trained on. Bare
arrays say nothing of themselves, so they are compared with what training saw before anything is predicted from them.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..clip import Clip, Sample
from ..config import DatasetConfig, nearest
from ..config.locate import file_name, is_url
from ..data.arrange import arrange, modelled_bins
from ..data.clips import stream_runs, usable_runs
from ..data.fields import shortened
from ..data.pipelines import apply_pipelines, behavior_names, pixel_scale
from ..data.prepare import Prepared, open_session
from ..data.session import SPLITS, Session, SessionError, frame_shape
from ..data.spec import SessionSpec
from ..data.transforms import PIXEL_NORM
from ..tensorfile import blocks
from .network import Network

__all__ = [
    "Movie", "Predictable", "RecordedSession", "as_trained", "check_chunk", "is_recording", "open_movie",
    "open_recording",
]  # fmt: skip

Predictable = Session | str | os.PathLike[str]
"""A recording, its path, or the name of a session that the model was trained on."""

_WIDE = 50  # a stimulus whose values reach further was not trained on as numbers between 0 and 1
_NARROW = 0.05  # of the range in training: fractions that reach no further were scaled by somebody


def check_chunk(chunk: Any) -> None:
    """A number of bins to predict at a time.

    Raises
    ------
    ValueError
        If it is none.
    """
    if not isinstance(chunk, int | np.integer) or isinstance(chunk, bool) or chunk < 1:
        raise ValueError(f"chunk is {shortened(chunk)}; give the number of bins that are predicted at a time")


def is_recording(given: Any) -> bool:
    """Whether this is a recording, or names one, and not the frames of a movie."""
    return isinstance(given, Session | str | os.PathLike)


# --------------------------------------------------------------------------------------------------------------------
# Recordings
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class RecordedSession:
    """A recording, prepared as one of the model's sessions.

    Attributes
    ----------
    index
        Of the session in the model.
    prepared
        The recording, prepared.
    runs
        (N, 2) stretches of bins to predict.
    known
        Fields of :class:`~neurotwin.models.prediction.Recorded`, `mask` aside.
    """

    index: int
    prepared: Prepared
    runs: np.ndarray
    known: dict[str, Any]

    def clips(self, context: int, chunk: int) -> Iterator[tuple[Sample, np.ndarray]]:
        """Clips that continue one another, and the (B, L) bin that each prediction is of; -1 for none."""
        order = np.argsort(self.runs[:, 0] - self.runs[:, 1], kind="stable")
        for sample, stops in stream_runs(self.prepared, self.runs[order], context=context, chunk=chunk):
            bins = sample.clip.bins.numpy()[:, None] + np.arange(sample.clip.length)
            yield sample.of_session(self.index), np.where(bins < stops[:, None], bins, -1)

    def mask(self, rates: np.ndarray) -> np.ndarray:
        """(T, U) bool: valid responses that rates (T, U) were predicted for."""
        return self.prepared.mask & np.isfinite(rates)


def open_recording(
    network: Network, given: Predictable, *, session: str | int | None, bin_rate: float | None, part: str | None
) -> RecordedSession:
    """Prepare a recording as one of the model's sessions was, with the constants that were fitted in training.

    Parameters
    ----------
    network
        The model.
    given
        A recording, its path, or the name of one of the model's sessions, which is then found where it was trained.
    session
        The model's session whose units and transforms are used. Default: the one of the recording's name.
    bin_rate
        What the recording must have, Hz; None: whatever it has.
    part
        "train", "val" or "test"; None: all bins.

    Raises
    ------
    ValueError
        If the model has no such session, or there is no such part.
    SessionError
        If the recording is missing or broken, or is not like the session that was trained on.
    """
    if part is not None and part not in SPLITS:
        raise ValueError(f"no part {part!r}; {nearest(part, SPLITS)}")
    recording, session = _recording(network, given, session)
    index = network.session_index(session)
    spec = network.sessions[index]
    if bin_rate is not None and abs(bin_rate - recording.bin_rate) > 1e-3 * recording.bin_rate:
        raise SessionError(f"session {recording.name!r}: has {recording.bin_rate:g} bins a second, not {bin_rate:g}")
    prepared = as_trained(spec, recording)
    runs = usable_runs(prepared, part, least=network.context)
    if not len(runs):
        raise SessionError(f"session {recording.name!r}: no bin {f'of the {part} part ' * bool(part)}can be predicted")
    bins = modelled_bins(recording, prepared.spec.config).first
    time = bins / recording.bin_rate if recording.time is None else np.asarray(recording.time)[bins]
    exposure = np.ones(len(bins), np.float32) if prepared.exposure is None else prepared.exposure
    known = {
        "session": spec.name, "unit_ids": spec.unit_ids, "bin_rate": spec.bin_rate, "bins": bins, "time": time,
        "trial": prepared.trial, "split": np.asarray((*SPLITS, ""))[prepared.split], "exposure": exposure,
        "repeat_id": prepared.repeat_id, "responses": prepared.responses,
    }  # fmt: skip
    return RecordedSession(index, prepared, runs, known)


def as_trained(spec: SessionSpec, recording: Session, types: Sequence[str] | None = None) -> Prepared:
    """Prepare a recording as a session was, with the constants that were fitted in training.

    Parameters
    ----------
    spec
        The session as the model knows it.
    recording
        The recording.
    types
        Stimulus types to use in place of those that the model was trained on.

    Raises
    ------
    SessionError
        If the recording is not like the session that was trained on.
    """
    if types is not None:
        spec = replace(spec, config=spec.config.model_copy(update={"types": tuple(types)}))
    arrays, found = arrange(recording, _config(spec, recording), "uint8", fitted=spec.fitted)
    _check_alike(spec, found)
    if spec.stimulus_range is not None:
        _check_range(spec, *found.stimulus_range, whole=True, kind=recording.stimulus.dtype.kind)
    source = arrays.pop("stimulus", recording.stimulus)
    return Prepared(spec=replace(found, n_lags=spec.n_lags, n_history=spec.n_history), source=source, **arrays)


def _recording(network: Network, given: Predictable, session: str | int | None) -> tuple[Session, str | int]:
    """The recording, and the model's session that it is one of."""
    names = [spec.name for spec in network.sessions]
    if isinstance(given, Session):
        return given, given.name if session is None else session
    if isinstance(given, str) and given in names:
        spec = network.sessions[names.index(given)]
        if spec.config.path is None:
            raise SessionError(f"session {given!r}: the model does not know where it lies; give its path")
        return open_session(spec.config, verify=True), given if session is None else session
    if not is_url(given) and not Path(given).exists():
        raise SessionError(f"{given}: no such file, and no session of this model; {nearest(str(given), names)}")
    known = [spec for spec in network.sessions if spec.config.path and _place(spec.config.path) == _place(given)]
    if known and session is None:
        session = known[0].name
    stem = Path(file_name(given)).stem
    named = [spec for spec in network.sessions if spec.name in (session, stem)]
    config = named[0].config if named else DatasetConfig(session=stem)
    recording = open_session(config.model_copy(update={"path": str(given)}), verify=True)
    return recording, recording.name if session is None else session


def _place(path: str | os.PathLike[str]) -> str:
    return str(path if is_url(path) else Path(path).resolve())


def _config(spec: SessionSpec, recording: Session) -> DatasetConfig:
    """The session's config for a recording of its units: they in their order, at the rate of the model."""
    ratio = recording.bin_rate / spec.bin_rate
    if ratio < 1 - 1e-3 or abs(ratio - round(ratio)) > 1e-3:
        raise SessionError(
            f"session {recording.name!r}: has {recording.bin_rate:g} bins a second, and the model of {spec.name} "
            f"{spec.bin_rate:g}, of which it must be a whole multiple"
        )
    rates = {"source_rate": float(recording.bin_rate), "target_rate": recording.bin_rate / round(ratio)}
    sampling = DatasetConfig(sampling=rates).sampling if round(ratio) > 1 else None
    known = set(recording.stimulus_type.tolist())
    types = None if spec.config.types is None else tuple(kind for kind in spec.config.types if kind in known)
    if types == ():
        raise SessionError(
            f"session {recording.name!r}: shows {', '.join(sorted(known))}, where the model of {spec.name} was "
            f"trained on {', '.join(spec.config.types)}"
        )
    return spec.config.model_copy(
        update={"session": spec.name, "cids": spec.unit_ids, "units": {}, "sampling": sampling, "types": types}
    )


def _check_alike(spec: SessionSpec, found: SessionSpec) -> None:
    """What a recording gives must be what the model was made for."""
    if found.frame_shape != spec.frame_shape:
        raise SessionError(
            f"frames of {found.name!r} are {found.frame_shape}, where the model has {spec.frame_shape} (C, H, W)"
        )
    if found.behavior_dim != spec.behavior_dim:
        raise SessionError(
            f"session {found.name!r}: {found.behavior_dim} behaviour variables, where the model has {spec.behavior_dim}"
        )


# --------------------------------------------------------------------------------------------------------------------
# Movies
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Movie:
    """Frames and signals of one stretch, checked and transformed.

    Attributes
    ----------
    index
        Of the session in the model.
    frames
        (T, C, H, W) as the model's scaling takes them.
    behavior
        (T, K), or None where the model takes none.
    history
        (n + T, U) responses, n zeros before them; None where the model takes none.
    """

    index: int
    frames: np.ndarray
    behavior: np.ndarray | None
    history: np.ndarray | None

    def clips(self, network: Network, chunk: int) -> Iterator[tuple[Clip, slice]]:
        """Clips of one row that continue one another, and the bins that each predicts."""
        for start in range(network.context, len(self.frames), chunk):
            stop, carries = min(start + chunk, len(self.frames)), start > network.context
            first = start - (network.receptive_field - 1 if carries else network.context)
            history = None
            if self.history is not None:
                n_before = len(self.history) - len(self.frames)
                history = torch.as_tensor(self.history[start : stop + n_before], dtype=network.like.dtype)[None]
            behavior = None if self.behavior is None else torch.as_tensor(self.behavior[first:stop])[None]
            clip = Clip(
                self.index, stop - start, torch.as_tensor(np.array(self.frames[first:stop])).transpose(0, 1)[None],
                behavior=None if behavior is None else behavior.to(network.like.dtype), history=history,
                carries=carries,
            )  # fmt: skip
            yield clip.to(network.like.device), slice(start, stop)


def open_movie(
    network: Network, stimulus: np.ndarray, behavior: Mapping[str, np.ndarray] | None,
    responses: np.ndarray | None, *, session: str | int | None, bin_rate: float | None, chunk: int,
) -> Movie:  # fmt: skip
    """Check a movie with its signals against what the session was trained on, and run the session's transforms.

    Raises
    ------
    ValueError
        If something is missing or is not like what training saw; the message says what to do.
    """
    check_chunk(chunk)
    if session is None or bin_rate is None:
        missing = "session" if session is None else "bin_rate"
        raise ValueError(f"arrays do not say what they are: give {missing} as well, or predict a Session")
    if not isinstance(bin_rate, int | float | np.integer | np.floating):
        raise ValueError(f"bin_rate is {shortened(bin_rate)}; give bins a second, Hz")
    if not isinstance(behavior or {}, Mapping):
        raise ValueError(f"behavior is {shortened(behavior)}; give signals by name")
    index = network.session_index(session)
    spec = network.sessions[index]
    stimulus = _numbers(stimulus, "the stimulus")
    signals = {name: _numbers(signal, name) for name, signal in (behavior or {}).items()}
    _check_length(network, spec, len(stimulus), signals, bin_rate)
    scaled, given = pixel_scale(spec.config) is not None, stimulus.shape[1:]
    if scaled and (len(given) > 3 or frame_shape(given) != spec.frame_shape):
        raise ValueError(f"frames of shape {given}, where {spec.name} has {spec.frame_shape} (C, H, W)")
    if spec.stimulus_range is not None:
        low, high, whole = _extremes(stimulus)
        _check_range(spec, low, high, whole=whole, kind=stimulus.dtype.kind)
    if stimulus.dtype != np.uint8:
        stimulus = stimulus.astype(np.float32)
    available, outputs = {"stim": stimulus, **signals}, []
    outputs += [] if scaled else ["stim"]
    outputs += ["behavior"] if network.takes_behavior else []
    made = _transformed(spec, available, tuple(outputs))
    frames = made.get("stim", stimulus)
    if frame_shape(frames.shape[1:]) != spec.frame_shape:
        raise ValueError(
            f"frames of shape {given} become {frame_shape(frames.shape[1:])} where {spec.name} has {spec.frame_shape} "
            "(C, H, W)"
        )
    history = padded_history(network, index, responses, len(stimulus)) if network.takes_history else None
    return Movie(index, frames.reshape(len(frames), *spec.frame_shape), made.get("behavior"), history)


def padded_history(network: Network, index: int, responses: np.ndarray | None, n_bins: int) -> np.ndarray | None:
    """Responses (T, U) after as many silent bins as the history encoder looks back; None stays None."""
    if responses is None:
        return None
    n_units = network.sessions[index].n_units
    responses = _numbers(responses, "responses")
    if responses.shape != (n_bins, n_units):
        raise ValueError(f"responses have shape {responses.shape}; give ({n_bins}, {n_units}), bins and units")
    return np.concatenate([np.zeros((network.history_lags, n_units)), responses])


def _transformed(spec: SessionSpec, signals: Mapping[str, np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
    """What the session's pipelines expose; the behaviour must be the variables that training saw."""
    if not outputs:
        return {}
    made = apply_pipelines(
        spec.config, signals, fitted=spec.fitted, outputs=tuple(outputs), bin_ms=1000 / spec.bin_rate
    )
    if "behavior" not in outputs:
        return made
    if "behavior" not in made:
        raise ValueError(f"the config of {spec.name} makes no behaviour of any signal, and the model needs it")
    names = behavior_names(spec.config, signals)
    if len(names) != spec.behavior_dim or (spec.behavior_names and names != spec.behavior_names):
        wanted = {name: spec.behavior_names.count(name) for name in dict.fromkeys(spec.behavior_names)}
        got = {name: names.count(name) for name in dict.fromkeys(names)}
        raise ValueError(
            f"behaviour gives {len(names)} variables {got}, where {spec.name} has {spec.behavior_dim} "
            f"{wanted or ''}".rstrip()
        )
    return made


def _numbers(values: Any, what: str) -> np.ndarray:
    """An array of finite real numbers with time as its first axis."""
    array = np.asarray(values)
    if array.dtype.kind not in "iufb" or not array.ndim:
        raise ValueError(f"{what}: {array.dtype} of shape {array.shape}; give numbers, one or more a bin")
    if array.dtype.kind == "f" and not all(np.isfinite(part).all() for part in blocks(array)):
        first = next(bin for bin, row in enumerate(array) if not np.isfinite(row).all())
        raise ValueError(f"{what}: NaN or infinite in bin {first}; the bins that see it cannot be predicted")
    return array


def _check_length(
    network: Network, spec: SessionSpec, n_bins: int, signals: Mapping[str, np.ndarray], bin_rate: float
) -> None:
    if not abs(bin_rate - spec.bin_rate) <= 1e-3 * spec.bin_rate:
        raise ValueError(
            f"the movie has {bin_rate:g} bins a second and the model of {spec.name} {spec.bin_rate:g}; resample it, or "
            "predict a Session, which is resampled as in training"
        )
    for name, signal in signals.items():
        if len(signal) != n_bins:
            raise ValueError(f"{name} has {len(signal)} bins where the stimulus has {n_bins}")
    if n_bins <= network.context:
        raise ValueError(
            f"{n_bins} frames: a prediction sees {network.context + 1}, so give at least as many; show a blank before "
            "the movie if there is nothing else"
        )


def _extremes(stimulus: np.ndarray) -> tuple[float, float, bool]:
    """Smallest and largest value, and whether all are whole numbers."""
    low, high, whole = np.inf, -np.inf, True
    for part in blocks(stimulus):
        low, high = min(low, float(part.min())), max(high, float(part.max()))
        whole = whole and (part.dtype.kind != "f" or bool((part == np.round(part)).all()))
    return low, high, whole


def _check_range(spec: SessionSpec, least: float, most: float, *, whole: bool, kind: str) -> None:
    """Values must be of the kind that training saw: pixels from 0 to 255, or numbers of about the same range."""
    low, high = spec.stimulus_range
    if _is_of_pixels(spec.config) and low >= 0 and 1 < high <= 255:
        low, high, slack = min(low, 0.0), max(high, 255.0), 0.0
    else:
        slack = max(high - low, 1e-12)
    span = high - low
    scaled = -1 <= least <= most <= 1 and (least, most) != (0, 0)
    if not (low - slack <= least and most <= high + slack):
        fault = f"reach from {least:g} to {most:g}"
    elif span > _WIDE and (scaled or (kind == "f" and not whole and max(-least, most) < _NARROW * span)):
        fault = f"reach from {least:g} to {most:g}, as if they were scaled already"
    else:
        return
    raise ValueError(
        f"values of the stimulus {fault}, where those that {spec.name} was trained on reach from "
        f"{spec.stimulus_range[0]:g} to {spec.stimulus_range[1]:g}; give them as recorded"
    )


def _is_of_pixels(config: DatasetConfig) -> bool:
    """Whether the stimulus pipeline scales 8-bit pixels."""
    return any(
        op.params.scale() == PIXEL_NORM
        for _, exposed, pipeline in config.pipelines()
        if exposed == "stim"
        for op in pipeline.ops
    )
