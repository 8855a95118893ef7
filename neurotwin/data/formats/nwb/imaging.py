"""Responses of imaging, sampled on the clock of the bins."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ...session import SessionError
from ...streamed import Streamed
from .guess import roi_table
from .hdf import Series
from .mapping import RoisMapping
from .signals import Responses, bin_ends, chosen_rows, unit_ids, unit_labels

__all__ = ["imaging_rate", "roi_responses"]

_VALUES = 1 << 21  # of a series, read at a time


def roi_responses(file: Any, mapping: RoisMapping, time: np.ndarray, duration: float) -> Responses:
    """Sample imaging responses at the bins.

    Where a bin holds at least 1.5 samples on average, their mean is taken; else the signal is interpolated linearly at
    the middle of the bin.

    Raises
    ------
    SessionError
        If there is no such series, or its shape does not agree with its times.
    """
    parts = [_plane(file, path, mapping, time, duration) for path in mapping.series]
    values = Streamed(
        (len(time), sum(part.values.shape[1] for part in parts)),
        np.dtype(np.float32),
        lambda start, stop: np.concatenate([part.values.read(start, stop) for part in parts], axis=1),
    )
    notes = [note for part in parts for note in part.notes]
    ids = np.concatenate([part.ids for part in parts])
    if len(np.unique(ids)) < len(ids):
        notes.append("ids of regions repeat over planes; they are numbered from 0 instead")
        ids = np.arange(len(ids))
    valid = np.logical_and.reduce([part.valid for part in parts])
    responses = Responses(values, ids, valid, notes)
    for name in parts[0].labels:
        responses.labels[name] = np.concatenate([part.labels[name] for part in parts])
    if len(parts) > 1:
        responses.labels["plane"] = np.repeat(mapping.series, [part.values.shape[1] for part in parts])
    return responses


def imaging_rate(file: Any, mapping: RoisMapping) -> float | None:
    """Samples a second of the slowest series, Hz; None where it is not known."""
    rates = []
    for path in mapping.series:
        series = Series.of_group(file[path]) if path in file else None
        if series is not None and series.times is not None and len(series.times) > 1:
            rates.append(1 / float(np.median(np.diff(series.times[: 1 << 16]))))
        elif series is not None and series.rate > 0:
            rates.append(series.rate)
    return min((rate for rate in rates if np.isfinite(rate) and rate > 0), default=None)


def _plane(file: Any, path: str, mapping: RoisMapping, time: np.ndarray, duration: float) -> Responses:
    if path not in file or "data" not in file[path]:
        raise SessionError(f"has no RoiResponseSeries {path!r}")
    series = Series.of_group(file[path])
    data, region = series.data, file[path].get("rois")
    n_rois = len(region) if region is not None else (data.shape[1] if data.ndim == 2 else 1)
    n_times = len(series.times) if series.times is not None else None
    # Some writers store regions first, against the schema; the number of times or of regions gives them away.
    turned = data.ndim == 2 and data.shape[1] != n_rois and data.shape[0] == n_rois
    if n_times is None:
        n_times = data.shape[1] if turned else data.shape[0]
    if (data.shape[1] if turned else data.shape[0]) != n_times:
        raise SessionError(f"{path}: has shape {data.shape} where {n_times} times of {n_rois} regions are expected")

    def load(start: int, stop: int) -> np.ndarray:
        values = np.asarray(data[:, start:stop].T if turned else data[start:stop], np.float64)
        return (values * series.conversion[0] + series.conversion[1]).reshape(len(values), -1)

    if series.times is None and not series.rate > 0:
        raise SessionError(f"{path}: has neither timestamps nor a rate")
    own = series.start + np.arange(n_times) / series.rate if series.times is None else np.asarray(series.times[:])
    if not (np.diff(own) > 0).all():
        raise SessionError(f"{path}: its times run backwards, repeat or hold NaN")
    table = roi_table(series, file)
    columns, notes = np.arange(n_rois), []
    if table is not None:
        rows = np.asarray(region[:], np.int64)
        kept, notes = chosen_rows(table, mapping.where, rows, "regions")
        columns = np.flatnonzero(np.isin(rows, kept))
    elif mapping.where:
        raise SessionError(f"{path}: no table describes its regions, so `where` cannot choose some")
    missing, empty = _missing(load, n_times, n_rois)
    if empty[columns].any():
        notes.append(f"{int(empty[columns].sum())} regions of {path} are left out: they hold only NaN")
        columns = columns[~empty[columns]]
    if not len(columns):
        raise SessionError(f"{path}: no region holds numbers")
    sampler = _Sampler(own, load, columns, time, duration)
    valid = sampler.valid(missing)
    if not valid.all():
        notes.append(f"{int((~valid).sum())} bins are not valid: {path} has no samples there, or holds NaN")
    ids = columns if table is None else unit_ids(table, mapping.ids, np.asarray(region[:], np.int64)[columns], notes)
    part = Responses(sampler.streamed(), ids, valid, notes)
    if table is not None:
        for name, column in mapping.labels.items():
            part.labels[name] = unit_labels(file, table, column, np.asarray(region[:], np.int64)[columns], None)
    return part


def _missing(load: Callable[[int, int], np.ndarray], length: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Which samples hold NaN in a region that is not empty, and which regions hold nothing else."""
    step = max(1, _VALUES // max(1, width))
    known = np.zeros(width, bool)
    for start in range(0, length, step):
        known |= np.isfinite(load(start, start + step)).any(axis=0)
    missing = np.zeros(length, bool)
    for start in range(0, length, step):
        missing[start : start + step] = ~np.isfinite(load(start, start + step)[:, known]).all(axis=1)
    return missing, ~known


class _Sampler:
    """A signal with times of its own, sampled at bins block by block."""

    def __init__(
        self,
        own: np.ndarray,
        load: Callable[[int, int], np.ndarray],
        columns: np.ndarray,
        time: np.ndarray,
        duration: float,
    ) -> None:
        self.own, self.load, self.columns, self.middle = own, load, columns, time + duration / 2
        step = float(np.median(np.diff(own))) if len(own) > 1 else duration
        self.mean = duration >= 1.5 * step
        self.low = np.searchsorted(own, time if self.mean else self.middle, side="left" if self.mean else "right")
        if self.mean:
            self.high = np.searchsorted(own, bin_ends(time, duration))
            self.inside = self.high > self.low
        else:
            self.low = np.clip(self.low - 1, 0, max(0, len(own) - 2))
            self.high = np.minimum(self.low + 2, len(own))
            # Where imaging paused there is nothing to interpolate between.
            steps = own[self.high - 1] - own[self.low]
            self.inside = (self.middle >= own[0]) & (self.middle <= own[-1] + step / 2) & (steps < 3 * step)

    def valid(self, missing: np.ndarray) -> np.ndarray:
        """(T,) whether a bin has samples and none of them is missing."""
        before = np.concatenate([[0], np.cumsum(missing)])
        return self.inside & (before[self.high] == before[self.low])

    def streamed(self) -> Streamed:
        return Streamed((len(self.middle), len(self.columns)), np.dtype(np.float32), self.read)

    def read(self, start: int, stop: int) -> np.ndarray:
        out = np.zeros((stop - start, len(self.columns)), np.float32)
        mine = np.flatnonzero(self.inside[start:stop]) + start
        if not len(mine):
            return out
        first, last = int(self.low[mine].min()), int(self.high[mine].max())
        values = np.nan_to_num(self.load(first, last)[:, self.columns], posinf=0.0, neginf=0.0)
        low, high = self.low[mine] - first, self.high[mine] - first
        if self.mean:
            sums = np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(values, axis=0)])
            out[mine - start] = (sums[high] - sums[low]) / (high - low)[:, None]
        else:
            left, right = self.own[self.low[mine]], self.own[self.high[mine] - 1]
            part = np.clip((self.middle[mine] - left) / np.where(right > left, right - left, 1.0), 0, 1)[:, None]
            out[mine - start] = values[low] * (1 - part) + values[high - 1] * part
        return out
