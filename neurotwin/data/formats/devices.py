"""Devices of the Experanto layout: signals and spikes with clocks of their own, sampled at the bins of a session.

Facts of the files: `SequenceInterpolator`, `PhaseShiftedSequenceInterpolator` and the interpolator of spikes in
sensorium-competition/experanto, and the files that its tests write.
"""

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ..session import SessionError

__all__ = ["Device", "Sequence", "Spikes", "Survey", "load_npy", "open_device", "read_mapping"]

_VALUES = 1 << 20  # that are interpolated at a time
_STATISTICS = ("means", "mean", "stds", "std", "phase_shifts")


@dataclass
class Survey:
    """What one look at all bins finds out about a device."""

    kept: np.ndarray
    """(K,) int: signals that have values."""
    known: np.ndarray
    """(T,) bool: whether all of these have a value in a bin."""
    notes: list[str]


class Device(ABC):
    """Signals of a device: its folder, what its `meta.yml` says, how many signals it has, and the type of a sample."""

    def __init__(self, folder: Path, meta: dict[str, Any], n_signals: int, dtype: np.dtype) -> None:
        self.folder, self.meta, self.n_signals, self.dtype = folder, meta, n_signals, dtype

    @abstractmethod
    def sample(self, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
        """The signals in bins that begin and end at the given times in s, (T, N); NaN where there is no value."""

    @abstractmethod
    def survey(self, starts: np.ndarray, stops: np.ndarray, used: np.ndarray, max_missing: float) -> Survey:
        """Which signals have values, and which bins.

        Parameters
        ----------
        starts, stops
            (T,) s of the bins.
        used
            (T,) bool: bins that matter.
        max_missing
            Share of the bins where the device has any value in which a signal may have none.
        """

    def properties(self) -> dict[str, np.ndarray]:
        """Arrays of `meta` that describe the signals, by name."""
        named = self.meta.get("neuron_properties")
        files = {str(k): self.folder / str(v) for k, v in named.items()} if isinstance(named, dict) else {}
        for file in sorted((self.folder / "meta").glob("*.npy")):
            if file.stem not in _STATISTICS and file not in files.values():
                files.setdefault(file.stem, file)
        return {name: load_npy(file) for name, file in files.items()}


class Sequence(Device):
    """Samples at regular times: sample k of signal i at `start_time` + k / `sampling_rate` + its phase shift."""

    def __init__(self, folder: Path, meta: dict[str, Any]) -> None:
        self._start = _number(folder, meta, "start_time")
        self._rate = _number(folder, meta, "sampling_rate")
        if self._rate <= 0:
            raise SessionError(f"{folder / 'meta.yml'}: sampling_rate is {self._rate:g}; it must be positive")
        self._data = _samples(folder, meta)
        super().__init__(folder, meta, self._data.shape[1], np.dtype(np.float32))
        self._shifts = None
        if meta.get("phase_shift_per_signal"):
            self._shifts = np.asarray(load_npy(folder / "meta" / "phase_shifts.npy"), np.float64).reshape(-1)
            if len(self._shifts) != self.n_signals:
                raise SessionError(
                    f"{folder / 'meta' / 'phase_shifts.npy'}: {len(self._shifts)} shifts for {self.n_signals} signals"
                )

    def sample(self, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
        """Interpolated linearly in the middle of a bin; the mean over it where the device is faster than the bins."""
        out = np.empty((len(starts), self.n_signals), self.dtype)
        rows = max(1, _VALUES // max(1, self.n_signals))
        for first in range(0, len(starts), rows):
            part = slice(first, first + rows)
            out[part] = self._mean(starts[part], stops[part])
        return out

    def survey(self, starts: np.ndarray, stops: np.ndarray, used: np.ndarray, max_missing: float) -> Survey:
        """See :meth:`Device.survey`."""
        rows, bins = max(1, _VALUES // max(1, self.n_signals)), np.flatnonzero(used)
        finite, recorded = np.zeros(self.n_signals, np.int64), 0
        for first in range(0, len(bins), rows):
            part = np.isfinite(self.sample(starts[bins[first : first + rows]], stops[bins[first : first + rows]]))
            finite += part.sum(axis=0)
            recorded += int(part.any(axis=1).sum())
        kept = np.flatnonzero((finite > 0) & (finite >= (1 - max_missing) * recorded))
        known = np.zeros(len(starts), bool)
        for first in range(0, len(bins), rows):
            part = bins[first : first + rows]
            known[part] = np.isfinite(self.sample(starts[part], stops[part])[:, kept]).all(axis=1)
        notes, name = [], self.folder.name
        out = self.n_signals - len(kept)
        if out:
            notes.append(
                f"{out} signals of {name} are left out: without a value in over {max_missing:.0%} of the bins."
            )
        lost = int((used & ~known).sum())
        if lost and len(kept):
            notes.append(f"{lost} bins are not valid, because {name} has no value in them.")
        return Survey(kept, known, notes)

    def _mean(self, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
        out = np.empty((len(starts), self.n_signals))
        # The number of samples is that of the bin, not of the part that is read, so that all parts agree.
        samples = np.maximum(1, np.rint((stops - starts) * self._rate - 1e-6))
        for count in np.unique(samples):
            here = samples == count
            first, width = starts[here], (stops - starts)[here]
            out[here] = sum(self._at(first + width * (n + 0.5) / count) for n in range(int(count))) / count
        return out

    def _at(self, times: np.ndarray) -> np.ndarray:
        """(T, N) float64 at the given times."""
        shifts = np.zeros(1) if self._shifts is None else self._shifts
        place = (times[:, None] - self._start - shifts) * self._rate
        last = len(self._data) - 1
        inside = (place >= -1e-6) & (place <= last + 1e-6)
        place = np.clip(place, 0, last)
        lower = np.floor(place + 1e-9).astype(np.int64)
        weight = np.clip(place - lower, 0, 1)
        # Where a time meets a sample, the next one has no weight, and its NaN would count all the same.
        upper = np.where(weight < 1e-9, lower, np.minimum(lower + 1, last))
        columns = slice(None) if self._shifts is None else np.arange(self.n_signals)
        lower, upper = (lower[:, 0], upper[:, 0]) if self._shifts is None else (lower, upper)
        low, high = (np.asarray(self._data[index, columns], np.float64) for index in (lower, upper))
        return np.where(inside, low + weight * (high - low), np.nan)


class Spikes(Device):
    """Times of spikes in s, unit after unit in one flat array; `spike_indices` says where each unit begins."""

    def __init__(self, folder: Path, meta: dict[str, Any]) -> None:
        self._times = _spike_times(folder, meta)
        indices = meta.get("spike_indices")
        if indices is None:
            indices = load_npy(folder / "spike_indices.npy")
        bounds = np.asarray(indices, np.int64).reshape(-1)
        if "n_signals" in meta and len(bounds) == int(meta["n_signals"]):
            bounds = np.append(bounds, len(self._times))
        if len(bounds) < 2 or (np.diff(bounds) < 0).any() or bounds[0] < 0 or bounds[-1] > len(self._times):
            raise SessionError(
                f"{folder}: spike_indices must rise from 0 to the number of spikes, {len(self._times)}, with one more "
                "than there are units"
            )
        self._bounds = bounds
        super().__init__(folder, meta, len(bounds) - 1, np.dtype(np.uint16))
        self._sorted = {unit: np.sort(self._of(unit)) for unit in range(self.n_signals) if not self._in_order(unit)}

    def sample(self, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
        """Number of spikes from the beginning of a bin to before its end."""
        counts = np.empty((len(starts), self.n_signals), self.dtype)
        for unit in range(self.n_signals):
            times = self._sorted.get(unit, self._of(unit))
            counts[:, unit] = np.searchsorted(times, stops) - np.searchsorted(times, starts)
        return counts

    def survey(self, starts: np.ndarray, stops: np.ndarray, used: np.ndarray, max_missing: float) -> Survey:
        """All units; bins that lie within the times of the recording."""
        first, last = self.meta.get("start_time", -np.inf), self.meta.get("end_time", np.inf)
        known = (starts >= float(first) - 1e-6) & (stops <= float(last) + 1e-6)
        lost = int((used & ~known).sum())
        note = f"{lost} bins are not valid, because they lie outside of the times of {self.folder.name}."
        return Survey(np.arange(self.n_signals), known, [note] if lost else [])

    def _of(self, unit: int) -> np.ndarray:
        return self._times[self._bounds[unit] : self._bounds[unit + 1]]

    def _in_order(self, unit: int) -> bool:
        return bool((np.diff(self._of(unit)) >= 0).all())


def open_device(folder: Path) -> Device | None:
    """The device of a folder; None for kinds that are no signals over time.

    Raises
    ------
    SessionError
        If a file is missing or does not hold what `meta.yml` says.
    """
    meta = read_mapping(folder / "meta.yml")
    kind = {"sequence": Sequence, "spikes": Spikes}.get(str(meta.get("modality", "")).lower())
    return None if kind is None else kind(folder, meta)


def read_mapping(file: Path) -> dict[str, Any]:
    """A mapping from a YAML or JSON file.

    Raises
    ------
    SessionError
        If there is no such file, or it holds no mapping.
    """
    try:
        text = file.read_text(encoding="utf-8")
        value = json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
    except FileNotFoundError:
        raise SessionError(f"{file}: no such file; give the folder of one recording") from None
    except (yaml.YAMLError, ValueError, OSError) as error:
        raise SessionError(f"{file}: cannot be read ({' '.join(str(error).split())})") from None
    if not isinstance(value, dict):
        raise SessionError(f"{file}: holds {type(value).__name__} where names and values are expected")
    return value


def load_npy(file: Path) -> np.ndarray:
    """An .npy file, memory-mapped.

    Raises
    ------
    SessionError
        If there is no such file, or it is damaged, or holds Python objects.
    """
    try:
        return np.load(file, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise SessionError(f"{file}: no such file; give the folder of one recording") from None
    except (ValueError, OSError, EOFError) as error:
        raise SessionError(f"{file}: cannot be read ({error})") from None


def _number(folder: Path, meta: dict[str, Any], key: str) -> float:
    value = meta.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        raise SessionError(f"{folder / 'meta.yml'}: {key} is {value!r}; a number is expected")
    return float(value)


def _samples(folder: Path, meta: dict[str, Any]) -> np.ndarray:
    """(T, N) memory-mapped."""
    npy, mem = folder / "data.npy", folder / "data.mem"
    if mem.exists() and (meta.get("is_mem_mapped") or not npy.exists()):
        shape = tuple(int(_number(folder, meta, key)) for key in ("n_timestamps", "n_signals"))
        try:
            dtype = np.dtype(str(meta.get("dtype")))
        except TypeError:
            raise SessionError(f"{folder / 'meta.yml'}: dtype is {meta.get('dtype')!r}, which numpy lacks") from None
        expected, size = shape[0] * shape[1] * dtype.itemsize, mem.stat().st_size
        if expected != size or not size:
            raise SessionError(f"{mem}: {size} bytes where meta.yml says {expected} ({shape} {dtype}); copy it again")
        return np.memmap(mem, dtype, "r", shape=shape)
    data = load_npy(npy)
    data = data[:, None] if data.ndim == 1 else data
    if data.ndim != 2 or not data.size or data.dtype.kind not in "biuf":
        raise SessionError(f"{npy}: has shape {data.shape} of {data.dtype}; numbers (T, N) are expected")
    return data


def _spike_times(folder: Path, meta: dict[str, Any]) -> np.ndarray:
    """(S,) memory-mapped. The writers of this layout leave the header of .npy out, so both kinds are read."""
    names = ("spikes.npy", "spikes.mem", "data.npy", "data.mem")
    file = next((folder / name for name in names if (folder / name).exists()), None)
    if file is None:
        raise SessionError(f"{folder}: holds no times of spikes; one of {', '.join(names)} is expected")
    with open(file, "rb") as opened:
        if opened.read(6) == b"\x93NUMPY":
            return load_npy(file).reshape(-1)
    dtype = np.dtype(str(meta.get("dtype", "float64")))
    if file.stat().st_size % dtype.itemsize:
        raise SessionError(f"{file}: {file.stat().st_size} bytes are no whole number of {dtype}; copy it again")
    return np.memmap(file, dtype, "r") if file.stat().st_size else np.empty(0, dtype)
