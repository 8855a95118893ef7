"""Responses and behaviour on the clock of the bins."""

import tempfile
from typing import Any, BinaryIO

import numpy as np

from ...session import SessionError
from ...streamed import Streamed
from .contents import Signal
from .hdf import Series, Table
from .mapping import UnitsMapping

__all__ = ["Responses", "bin_ends", "chosen_rows", "covered", "on_bins", "spike_counts", "unit_ids", "unit_labels"]

_SAMPLES = 1 << 19  # of a signal, read at a time
_IN_MEMORY = 1 << 26  # bytes of counts above which they are kept in a temporary file


class Responses:
    """What the units did, and what is known of them.

    Attributes
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
    rows, notes = chosen_rows(table, mapping.where, np.arange(len(table)), "units")
    times, ends = table.group["spike_times"], bin_ends(time, duration)
    store, valid, partly = _Store(len(time), len(rows)), np.ones(len(time), bool), 0
    for row in rows:
        spikes = np.asarray(times[table.rows("spike_times", row)], np.float64)
        spikes = np.sort(spikes[np.isfinite(spikes)])
        counts = np.searchsorted(spikes, ends) - np.searchsorted(spikes, time)
        store.write(np.minimum(counts, np.iinfo(np.uint16).max).astype(np.uint16))
        if "obs_intervals_index" in table.group:
            intervals = np.asarray(table.group["obs_intervals"][table.rows("obs_intervals", row)]).reshape(-1, 2)
            seen = covered(intervals, time, duration) > 1 - 1e-3
            partly += int(len(intervals) > 0 and not seen.all())
            valid &= seen if len(intervals) else True
    if partly:
        notes.append(
            f"{partly} units were not observed in all bins (obs_intervals): {int((~valid).sum())} bins in "
            "which a unit was not observed are not valid; leave such units out by `where` to keep the bins"
        )
    responses = Responses(store.streamed(), unit_ids(table, mapping.ids, rows, notes), valid, notes)
    electrode = _electrodes(file, table, rows)
    for name, column in mapping.labels.items():
        responses.labels[name] = unit_labels(file, table, column, rows, electrode)
    responses.positions = _positions(file, electrode)
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
    return (np.searchsorted(events, bin_ends(time, duration)) - np.searchsorted(events, time)).astype(np.float32)


def bin_ends(time: np.ndarray, duration: float) -> np.ndarray:
    """End of every bin, s: the start of the next one where that is where it should be, up to a tenth of a bin.

    A spike on the border of two bins is then counted once, whatever rounding or jitter of the screen there is.

    Examples
    --------
    >>> bin_ends(np.array([0.0, 1.01, 2.0, 4.0]), 1.0).tolist()
    [1.01, 2.0, 3.0, 5.0]
    """
    ends = time + duration
    return np.where(np.abs(np.append(time[1:], np.inf) - ends) < 0.1 * duration, np.append(time[1:], np.inf), ends)


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


def chosen_rows(table: Table, where: list[str], rows: np.ndarray, what: str) -> tuple[np.ndarray, list[str]]:
    """Those of `rows` that meet all conditions, and a note for each condition that left some out."""
    keep, notes = np.ones(len(rows), bool), []
    for condition, met in table.select(where):
        out = keep & ~met[rows]
        if out.any():
            notes.append(f"{int(out.sum())} of {len(rows)} {what} are left out: they do not meet {condition!r}")
        keep &= met[rows]
    if not keep.any():
        raise SessionError(
            f"none of the {len(rows)} {what} of {table.path} meets {', '.join(where) or 'anything'}; "
            "change `where` in a mapping (`neurotwin inspect FILE.nwb` writes one)"
        )
    return rows[keep], notes


def unit_ids(table: Table, column: str, rows: np.ndarray, notes: list[str]) -> np.ndarray:
    """(U,) ids of units from a column of their table; their rows, with a note, where the column repeats itself."""
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
    ends = table.ends("electrodes") if "electrodes" in table.columns else None
    if ends is not None:
        values = np.asarray(table.group["electrodes"][:], np.int64)
        starts = np.concatenate([[0], ends[:-1]])
        return np.asarray([values[starts[row]] if ends[row] > starts[row] else -1 for row in rows], np.int64)
    return None


def unit_labels(file: Any, table: Table, column: str, rows: np.ndarray, electrode: np.ndarray | None) -> np.ndarray:
    """(U,) text: a column of the table of units, or `electrodes/COLUMN` for that of the unit's electrode."""
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
