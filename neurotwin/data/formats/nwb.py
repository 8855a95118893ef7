"""Sessions from Neurodata Without Borders files; needs the extra `nwb` (pynwb)."""

from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from ...config import nearest, register
from ..session import Session, SessionError
from .base import Format

__all__ = ["NWB"]


@register("format", "nwb")
class NWB(Format):
    """The movie, the sorted units, the trials and the behaviour of an NWB file."""

    stimulus: str = Field("", description="Name of the movie, where there are several.")

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """A file whose name ends in .nwb."""
        return path.is_file() and path.suffix == ".nwb"

    def read(self, path: Path) -> Session:
        """The session; see :class:`Format`."""
        return _read_nwb(path, stimulus=self.stimulus, name=self.name, subject=self.subject)


def _read_nwb(path: Path, *, stimulus: str = "", name: str = "", subject: str = "") -> Session:
    """Read the movie, the sorted units, the trials and the behaviour of an NWB file.

    One frame of the movie is one bin. Spikes are counted from each frame's onset for the median frame's duration.
    Behaviour (every numeric time series of the processing module `behavior`) is interpolated linearly at the middle of
    each bin; bins outside of a signal, or where it is NaN, are not valid. Bins in no row of the trials table lie
    between trials.

    Parameters
    ----------
    path
        The file.
    stimulus
        Name of the ImageSeries in the file's stimuli; may be left out where there is one. Its frames are taken as
        rows of pixels, (T, H, W) or (T, H, W, C), uint8.
    name, subject
        Default: the file's stem, and the id of the file's subject.

    Raises
    ------
    SessionError
        If pynwb is not installed, or the file lacks what a session needs.
    """
    try:
        import pynwb  # an extra
    except ImportError:
        raise SessionError(f"{path}: reading NWB needs the extra: pip install 'neurotwin[nwb]'") from None
    path = Path(path)
    if not path.exists():
        raise SessionError(f"{path}: no such file")
    try:
        with pynwb.NWBHDF5IO(path, "r") as file:
            return _session(path, file.read(), stimulus, name, subject)
    except OSError as error:
        raise SessionError(f"{path}: not an NWB file ({error})") from None


def _session(path: Path, nwb: Any, stimulus: str, name: str, subject: str) -> Session:
    series = _movie(path, nwb, stimulus)
    frames = np.asarray(series.data)
    time = _timestamps(series, len(frames))
    duration = float(np.median(np.diff(time)))
    if nwb.units is None:
        raise SessionError(f"{path}: has no units table, so no sorted spikes")
    spikes = np.stack([_counts(np.asarray(times), time, duration) for times in nwb.units["spike_times"][:]], axis=1)
    trial = None
    if nwb.trials is not None:
        trial = np.full(len(time), -1)
        for index, (start, stop) in enumerate(
            zip(nwb.trials["start_time"][:], nwb.trials["stop_time"][:], strict=True)
        ):
            # Half a frame of tolerance: the onset of a trial's first frame may be written a little before the trial.
            trial[(time >= start - duration / 2) & (time < stop - duration / 2)] = index
    behavior = {
        key: _interpolated(values, time + duration / 2)
        for key, values in (_behavior(nwb.processing["behavior"]) if "behavior" in nwb.processing else {}).items()
    }
    valid = np.ones(len(time), bool)
    for values in behavior.values():
        valid &= np.isfinite(values).reshape(len(time), -1).all(axis=1)
    return Session(
        name=name or path.stem,
        subject=subject or (nwb.subject.subject_id or "" if nwb.subject is not None else ""),
        stimulus=np.moveaxis(frames, -1, 1) if frames.ndim == 4 else frames,
        responses=spikes,
        bin_rate=1 / duration,
        unit_ids=np.asarray(nwb.units.id[:]),
        behavior={key: np.nan_to_num(values).astype(np.float32) for key, values in behavior.items()},
        trial=trial,
        valid=valid,
        time=time,
        stimulus_type=series.name,
    )


def _movie(path: Path, nwb: Any, stimulus: str) -> Any:
    movies = {key: series for key, series in nwb.stimulus.items() if type(series).__name__ == "ImageSeries"}
    if not movies:
        raise SessionError(f"{path}: holds no ImageSeries among its stimuli ({', '.join(nwb.stimulus) or 'none'})")
    if not stimulus and len(movies) > 1:
        raise SessionError(f"{path}: holds the movies {', '.join(movies)}; choose one with --stimulus")
    stimulus = stimulus or next(iter(movies))
    if stimulus not in movies:
        raise SessionError(f"{path}: holds no movie {stimulus!r}; {nearest(stimulus, list(movies))}")
    if movies[stimulus].external_file is not None:
        raise SessionError(f"{path}: the frames of {stimulus!r} lie in another file; use read_arrays with them")
    return movies[stimulus]


def _timestamps(series: Any, length: int) -> np.ndarray:
    if series.timestamps is not None:
        return np.asarray(series.timestamps, np.float64)
    return series.starting_time + np.arange(length) / series.rate


def _counts(times: np.ndarray, onsets: np.ndarray, duration: float) -> np.ndarray:
    times = np.sort(times)
    return (np.searchsorted(times, onsets + duration) - np.searchsorted(times, onsets)).astype(np.uint16)


def _behavior(module: Any) -> dict[str, Any]:
    """Time series of a processing module by name; those inside a container as CONTAINER_NAME."""
    found: dict[str, Any] = {}
    for key, item in module.data_interfaces.items():
        parts = getattr(item, "time_series", None) or getattr(item, "spatial_series", None)
        found |= {key: item} if parts is None else {f"{key}_{part}": series for part, series in parts.items()}
    return {
        key: series
        for key, series in found.items()
        if hasattr(series, "data") and np.issubdtype(np.asarray(series.data).dtype, np.number)
    }


def _interpolated(series: Any, time: np.ndarray) -> np.ndarray:
    values = np.asarray(series.data, np.float64)
    own = _timestamps(series, len(values))
    columns = values.reshape(len(values), -1).T
    sampled = np.stack([np.interp(time, own, column, left=np.nan, right=np.nan) for column in columns], axis=1)
    return sampled.reshape(len(time), *values.shape[1:])
