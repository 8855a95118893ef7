"""Responses and behaviour on the clock of the bins."""

import tempfile
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

from ...session import SessionError, Streamed
from .contents import Signal
from .guess import roi_table
from .hdf import Series, Table
from .mapping import RoisMapping, UnitsMapping

__all__ = ["Responses", "covered", "on_bins", "roi_responses", "spike_counts"]

_SAMPLES = 1 << 19  # of a signal, read at a time
_IN_MEMORY = 1 << 26  # bytes of counts above which they are kept in a temporary file


class Responses:
    """What the units did, and what is known of them.

    Parameters
    ----------
    values
        (T, U).
    ids
        (U,) ids.
    labels
        Labels by name, each (U,) text.
    positions
        (U, 3) float32, or None.
    valid
        (T,) bool: bins in which every unit was recorded.
    notes
        What was left out.
    """

    def __init__(self, values: Any, ids: np.ndarray, valid: np.ndarray, notes: list[str]) -> None:
        self.values, self.ids, self.valid, self.notes = values, ids, valid, notes
        self.labels: dict[str, np.ndarray] = {}
        self.positions: np.ndarray | None = None


def spike_counts(file: Any, mapping: UnitsMapping, time: np.ndarray, duration: float) -> Responses:
    """Count the spikes of each unit in every bin.

    The spikes of one unit are in memory at a time; the counts of many units lie in a temporary file.

    Raises
    ------
    SessionError
        If there are no such units, or none of them meets the conditions.
    """
    if mapping.table not in file or "spike_times" not in file[mapping.table]:
        raise SessionError(f"has no table {mapping.table!r} with spike_times, so no sorted spikes")
    table = Table(file[mapping.table])
    if "spike_times_index" not in table.group:
        raise SessionError(f"table {mapping.table!r} has no spike_times_index, so nothing says whose spikes they are")
    rows, notes = _chosen(table, mapping.where, np.arange(len(table)), "units")
    times = table.group["spike_times"]
    store, valid, partly = _Store(len(time), len(rows)), np.ones(len(time), bool), 0
    for row in rows:
        spikes = np.asarray(times[table.rows("spike_times", row)], np.float64)
        spikes = np.sort(spikes[np.isfinite(spikes)])
        counts = np.searchsorted(spikes, time + duration) - np.searchsorted(spikes, time)
        store.write(np.minimum(counts, np.iinfo(np.uint16).max).astype(np.uint16))
        if "obs_intervals_index" in table.group:
            intervals = np.asarray(table.group["obs_intervals"][table.rows("obs_intervals", row)]).reshape(-1, 2)
            seen = covered(intervals, time, duration) > 1 - 1e-3
            partly += int(len(intervals) > 0 and not seen.all())
            valid &= seen if len(intervals) else True
    if partly:
        notes.append(f"{partly} units were not observed in all bins (obs_intervals): {int((~valid).sum())} bins in "
                     "which a unit was not observed are not valid; leave such units out by `where` to keep the bins")  # fmt: skip
    responses = Responses(store.streamed(), _ids(table, mapping.ids, rows, notes), valid, notes)
    electrode = _electrodes(file, table, rows)
    for name, column in mapping.labels.items():
        responses.labels[name] = _labels(file, table, column, rows, electrode)
    responses.positions = _positions(file, electrode)
    return responses


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


def on_bins(signal: Signal, time: np.ndarray, duration: float) -> np.ndarray:
    """A behaviour signal on the bins, (T,) or (T, K) float32; NaN where it is not known.

    Continuous signals are interpolated linearly at the middle of the bins. Events are counted from the start to the
    end of a bin, and of intervals the covered part of a bin is given.

    Raises
    ------
    SessionError
        If the times run backwards.
    """
    series = signal.series
    if signal.kind == "continuous":
        return _interpolated(series, time + duration / 2)
    events = series.time()
    if signal.kind == "intervals":
        ends = np.sign(np.asarray(series.data[:]))
        starts = np.flatnonzero((ends[:-1] > 0) & (ends[1:] < 0))
        pairs = np.stack([events[starts], events[starts + 1]], axis=1)
        return covered(pairs, time, duration).astype(np.float32)
    events = np.sort(events[np.isfinite(events)])
    return (np.searchsorted(events, time + duration) - np.searchsorted(events, time)).astype(np.float32)


class _Store:
    """Counts of units, written unit by unit and read bin by bin; in a temporary file where they are many."""

    def __init__(self, bins: int, units: int) -> None:
        self.bins, self.units = bins, units
        large = bins * units * 2 > _IN_MEMORY
        self._file: BinaryIO | None = tempfile.TemporaryFile() if large else None  # noqa: SIM115, closed with the store
        self._columns: list[np.ndarray] = []

    def write(self, counts: np.ndarray) -> None:
        if self._file is None:
            self._columns.append(counts)
        else:
            self._file.write(counts.tobytes())

    def read(self, start: int, stop: int) -> np.ndarray:
        if self._file is None:
            return np.stack([column[start:stop] for column in self._columns], axis=1)
        out = np.empty((stop - start, self.units), np.uint16)
        for unit in range(self.units):
            self._file.seek((unit * self.bins + start) * 2)
            out[:, unit] = np.frombuffer(self._file.read((stop - start) * 2), np.uint16)
        return out

    def streamed(self) -> Streamed:
        if self._file is not None:
            self._file.flush()
        return Streamed((self.bins, self.units), np.dtype(np.uint16), self.read)

    def __del__(self) -> None:
        if self._file is not None:
            self._file.close()


def _chosen(table: Table, where: list[str], rows: np.ndarray, what: str) -> tuple[np.ndarray, list[str]]:
    """Those of `rows` that meet all conditions, and a note for each condition that left some out."""
    keep, notes = np.ones(len(rows), bool), []
    for condition, met in table.select(where):
        out = keep & ~met[rows]
        if out.any():
            notes.append(f"{int(out.sum())} of {len(rows)} {what} are left out: they do not meet {condition!r}")
        keep &= met[rows]
    if not keep.any():
        raise SessionError(f"none of the {len(rows)} {what} of {table.path} meets {', '.join(where) or 'anything'}; "
                           "change `where` in a mapping (`neurotwin inspect FILE.nwb` writes one)")  # fmt: skip
    return rows[keep], notes


def _ids(table: Table, column: str, rows: np.ndarray, notes: list[str]) -> np.ndarray:
    ids = table.ids if column == "id" else table.column(column)
    ids = ids[rows]
    if ids.dtype.kind == "f":
        ids = np.where(np.isfinite(ids), ids, -1).astype(np.int64)
    if len(np.unique(ids)) < len(ids):
        notes.append(f"{column!r} of {table.path} repeats, so that it is no id; units are numbered by their row")
        return rows.astype(np.int64)
    return ids


def _electrodes(file: Any, table: Table, rows: np.ndarray) -> np.ndarray | None:
    """(U,) row of the electrode table that a unit lies at (its first one, or Allen's peak channel)."""
    electrodes = file.get("general/extracellular_ephys/electrodes")
    if electrodes is None:
        return None
    if "peak_channel_id" in table.columns:
        ids = Table(electrodes).ids
        order = np.argsort(ids)
        wanted = table.column("peak_channel_id")[rows]
        place = np.clip(np.searchsorted(ids, wanted, sorter=order), 0, len(ids) - 1)
        return np.where(ids[order[place]] == wanted, order[place], -1)
    if "electrodes_index" in table.group:
        ends, values = table.ends("electrodes"), np.asarray(table.group["electrodes"][:], np.int64)
        starts = np.concatenate([[0], ends[:-1]])
        return np.asarray([values[starts[row]] if ends[row] > starts[row] else -1 for row in rows], np.int64)
    return None


def _labels(file: Any, table: Table, column: str, rows: np.ndarray, electrode: np.ndarray | None) -> np.ndarray:
    if not column.startswith("electrodes/"):
        values = table.column(column)[rows]
        return np.asarray([f"{value:g}" if values.dtype.kind == "f" else str(value) for value in values], str)
    if electrode is None:
        raise SessionError(f"label {column!r}: {table.path} does not say at which electrodes its units lie")
    values = Table(file["general/extracellular_ephys/electrodes"]).column(column.partition("/")[2]).astype(str)
    return np.where(electrode >= 0, values[electrode], "")


def _positions(file: Any, electrode: np.ndarray | None) -> np.ndarray | None:
    if electrode is None or (electrode < 0).any():
        return None
    table = Table(file["general/extracellular_ephys/electrodes"])
    if not {"x", "y", "z"} <= set(table.columns):
        return None
    found = np.stack([table.column(axis).astype(np.float32)[electrode] for axis in "xyz"], axis=1)
    return found if np.isfinite(found).all() and np.ptp(found, axis=0).any() else None


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
        return values.reshape(len(values), -1)

    own = series.time(0, n_times) if series.times is not None else series.start + np.arange(n_times) / series.rate
    if not (np.diff(own) > 0).all():
        raise SessionError(f"{path}: its times run backwards, repeat or hold NaN")
    table = roi_table(series, file)
    columns, notes = np.arange(n_rois), []
    if table is not None:
        rows = np.asarray(region[:], np.int64)
        kept, notes = _chosen(table, mapping.where, rows, "regions")
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
    ids = columns if table is None else _ids(table, mapping.ids, np.asarray(region[:], np.int64)[columns], notes)
    part = Responses(sampler.streamed(), ids, valid, notes)
    if table is not None:
        for name, column in mapping.labels.items():
            part.labels[name] = _labels(file, table, column, np.asarray(region[:], np.int64)[columns], None)
    return part


def _missing(load: Callable[[int, int], np.ndarray], length: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Which samples hold NaN in a region that is not empty, and which regions hold nothing else."""
    step = max(1, _SAMPLES * 4 // max(1, width))
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
        self, own: np.ndarray, load: Callable[[int, int], np.ndarray], columns: np.ndarray, time: np.ndarray,
        duration: float,
    ) -> None:  # fmt: skip
        self.own, self.load, self.columns, self.middle = own, load, columns, time + duration / 2
        step = float(np.median(np.diff(own))) if len(own) > 1 else duration
        self.mean = duration >= 1.5 * step
        self.low = np.searchsorted(own, time if self.mean else self.middle, side="left" if self.mean else "right")
        if self.mean:
            self.high = np.searchsorted(own, time + duration)
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


def covered(intervals: np.ndarray, time: np.ndarray, duration: float) -> np.ndarray:
    """The part of each bin that lies inside intervals (N, 2), which are joined where they overlap.

    Examples
    --------
    >>> covered(np.array([[0.0, 1.5], [1.0, 2.25]]), np.arange(4.0), 1.0).tolist()
    [1.0, 1.0, 0.25, 0.0]
    """
    intervals = intervals[np.isfinite(intervals[:, 0]) & (intervals[:, 1] > intervals[:, 0])]
    if not len(intervals):
        return np.zeros(len(time))
    intervals = intervals[np.argsort(intervals[:, 0], kind="stable")]
    reach = np.maximum.accumulate(intervals[:, 1])
    begin = np.concatenate([intervals[:1, 0], np.maximum(intervals[1:, 0], reach[:-1])])
    lengths = np.maximum(reach - begin, 0)
    before = np.concatenate([[0], np.cumsum(np.where(np.isfinite(lengths), lengths, 0))])

    def until(moment: np.ndarray) -> np.ndarray:
        number = np.searchsorted(begin, moment, side="right")
        inside = np.clip(moment - begin[np.maximum(number - 1, 0)], 0, lengths[np.maximum(number - 1, 0)])
        return np.where(number > 0, before[np.maximum(number - 1, 0)] + inside, 0.0)

    return (until(time + duration) - until(time)) / duration


def _interpolated(series: Series, middle: np.ndarray) -> np.ndarray:
    width = int(np.prod(series.data.shape[1:], dtype=np.int64))
    out = np.full((len(middle), width), np.nan)
    held_time, held = np.zeros(0), np.zeros((0, width))
    for start in range(0, len(series), max(1, _SAMPLES // max(1, width))):
        stop = start + max(1, _SAMPLES // max(1, width))
        own, values = series.time(start, stop), series.values(start, stop)
        known = np.isfinite(own)
        # The last sample of the block before comes along, since bins lie between the two blocks as well.
        own, values = np.concatenate([held_time, own[known]]), np.concatenate([held, values[known]])
        if not len(own):
            continue
        if (np.diff(own) < 0).any():
            raise SessionError(f"{series.path}: its times run backwards")
        inside = slice(*np.searchsorted(middle, [own[0], np.nextafter(own[-1], np.inf)]))
        for column in range(width):
            out[inside, column] = np.interp(middle[inside], own, values[:, column])
        held_time, held = own[-1:], values[-1:]
    return out.astype(np.float32) if series.data.ndim > 1 else out[:, 0].astype(np.float32)
