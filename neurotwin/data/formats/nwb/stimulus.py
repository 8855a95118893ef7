"""From what was shown when to bins: the clock of a session and the frame of every bin."""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from ...session import SessionError
from ...streamed import Streamed
from .frames import Frames
from .hdf import Series, Table
from .mapping import Mapping, StimulusMapping

__all__ = ["Bins", "Shown", "bins_of", "presented", "stream"]

_BLANK = -1
_DROPPED = 2.5  # frames that may be missing within a piece; where more are, there was a blank
_SAME_RATE = 1.05  # frames of stimuli whose rates differ by less share a clock of frames


@dataclass
class Shown:
    """The presentations of one stimulus, in the order of time.

    Parameters
    ----------
    mapping, frames
        Where they come from.
    start, stop
        (N,) float64, s.
    frame
        (N,) index of the frame, −1 for a blank.
    piece
        (N,) number of the piece (a stretch between blanks, blocks and repeats) that a presentation belongs to.
    duration
        Median length of a presentation, s.
    listed
        Whether a table or an index says which frame was shown, so that repeats are known from it.
    notes
        What was left out.
    """

    mapping: StimulusMapping
    frames: Frames
    start: np.ndarray
    stop: np.ndarray
    frame: np.ndarray
    piece: np.ndarray
    duration: float
    listed: bool
    notes: list[str] = field(default_factory=list)


@dataclass
class Bins:
    """The clock of a session and what each of its bins showed; every array is (T,)."""

    time: np.ndarray
    duration: float
    source: np.ndarray
    frame: np.ndarray
    piece: np.ndarray
    type: np.ndarray
    trial: np.ndarray
    repeat: np.ndarray


def presented(stimulus: StimulusMapping, frames: Frames, file: Any) -> Shown:
    """When each frame of a stimulus was shown.

    Raises
    ------
    SessionError
        If the times are missing, run backwards or overlap, or a row names a frame that is not there.
    """
    if stimulus.table:
        return _by_rows(stimulus, frames, file)
    series = _own_times(stimulus, file)
    if series is None:
        raise SessionError(f"stimulus {stimulus.name!r}: nothing says when its frames were shown; give a `table`")
    if series.times is None:
        start = series.start + np.arange(len(frames)) / series.rate
    else:
        start = np.asarray(series.times[:], np.float64)
    indices = series.kind == "IndexSeries" and not stimulus.file
    frame = np.asarray(series.data[:], np.int64) if indices else np.arange(len(frames))
    if len(frame) != len(start):
        raise SessionError(
            f"stimulus {stimulus.name!r}: {len(start)} times of {stimulus.series} for {len(frame)} frames of "
            f"{frames.where}; give as many frames as times, or a `table`"
        )
    notes = []
    known = np.isfinite(start)
    if not known.all():
        notes.append(f"stimulus {stimulus.name!r}: {int((~known).sum())} frames without a time (NaN) are left out")
        start, frame = start[known], frame[known]
    if len(start) < 2:
        raise SessionError(f"stimulus {stimulus.name!r}: has {len(start)} frame with a time, so no rate is known")
    steps = np.diff(start)
    if not (steps > 0).all():
        raise SessionError(
            f"stimulus {stimulus.name!r}: its times run backwards or repeat at frame "
            f"{int(np.argmin(steps > 0)) + 1}; correct them, or give a `table`"
        )
    duration = float(np.median(steps))
    gap = np.concatenate([[False], steps > (1 + _DROPPED) * duration])
    stop = start + duration
    if indices:
        stop[:-1] = start[1:]
        gap |= _jumps(frame)
    _check_frames(stimulus, frames, frame)
    return Shown(stimulus, frames, start, stop, frame, np.cumsum(gap), duration, indices, notes)


def _own_times(stimulus: StimulusMapping, file: Any) -> Series | None:
    """The series that holds the times of a stimulus; that of a video has times here and frames in an .npy file."""
    if not stimulus.series or (stimulus.file and not stimulus.file.endswith(".npy")):
        return None
    item = file.get(stimulus.series)
    if item is None or not hasattr(item, "keys"):
        return None
    series = Series.of_group(item)
    return series if series.timed else None


def _by_rows(stimulus: StimulusMapping, frames: Frames, file: Any) -> Shown:
    if stimulus.table not in file or "colnames" not in file[stimulus.table].attrs:
        raise SessionError(f"stimulus {stimulus.name!r}: there is no table {stimulus.table!r}")
    table = Table(file[stimulus.table])
    start, stop = (table.column(name).astype(np.float64) for name in ("start_time", "stop_time"))
    keep, notes = np.isfinite(start) & np.isfinite(stop) & (stop > start), []
    if not keep.all():
        notes.append(f"{stimulus.table}: {int((~keep).sum())} rows without a time or of no length are left out")
    for condition, met in table.select(stimulus.where):
        if (keep & ~met).any():
            notes.append(f"{stimulus.table}: {int((keep & ~met).sum())} rows do not meet {condition!r}")
        keep &= met
    rows = np.flatnonzero(keep)[np.argsort(start[keep], kind="stable")]
    if not len(rows):
        raise SessionError(f"stimulus {stimulus.name!r}: no row of {stimulus.table} is left")
    start, stop = start[rows], stop[rows]
    new = np.zeros(len(rows), bool)
    for column in (stimulus.block, stimulus.repeat):
        if column:
            values = table.column(column)[rows]
            new |= np.concatenate([[False], values[1:] != values[:-1]])
    if not stimulus.frame:
        return _whole_movies(stimulus, frames, start, stop, notes)
    frame = _frame_numbers(stimulus, frames, table, notes)[rows]
    duration = float(np.median(stop - start))
    new |= np.concatenate([[False], start[1:] - stop[:-1] > _DROPPED * duration])
    if stimulus.trials == "rows":
        new[:] = True
    else:
        new |= _jumps(frame)
    _check_overlap(stimulus, start, stop, duration)
    _check_frames(stimulus, frames, frame)
    return Shown(stimulus, frames, start, stop, frame, np.cumsum(new), duration, True, notes)


def _whole_movies(
    stimulus: StimulusMapping, frames: Frames, start: np.ndarray, stop: np.ndarray, notes: list[str]
) -> Shown:
    """Each row plays all frames, evenly from its start to its stop."""
    count, rows = len(frames), len(start)
    step = (stop - start) / count
    _check_overlap(stimulus, start, stop, float(np.median(step)))
    begin = (start[:, None] + step[:, None] * np.arange(count)).reshape(-1)
    notes.append(
        f"stimulus {stimulus.name!r}: no column says which frame was shown; each of {rows} rows of "
        f"{stimulus.table} is taken to play all {count} frames"
    )
    frame, piece = np.tile(np.arange(count), rows), np.repeat(np.arange(rows), count)
    end = begin + np.repeat(step, count)
    return Shown(stimulus, frames, begin, end, frame, piece, float(np.median(step)), True, notes)


def _frame_numbers(stimulus: StimulusMapping, frames: Frames, table: Table, notes: list[str]) -> np.ndarray:
    """(N,) index of the frame of every row of a table, −1 where it is a blank."""
    values = table.column(stimulus.frame)
    if values.dtype.kind != "U":
        numbers = np.where(np.isfinite(values), values, _BLANK)
        if not (numbers == np.floor(numbers)).all():
            raise SessionError(f"column {stimulus.frame!r} of {stimulus.table} holds no whole numbers")
        return np.maximum(numbers, _BLANK).astype(np.int64)
    number = {name: index for index, name in enumerate(frames.names)}
    known = np.asarray([value in number for value in values])
    if not known.any():
        raise SessionError(
            f"column {stimulus.frame!r} of {stimulus.table} names no image of {frames.where} "
            f"({', '.join(frames.names[:5]) or 'whose images have no names'})"
        )
    if not known.all():
        others = ", ".join(sorted(set(values[~known].tolist()))[:5])
        notes.append(f"{stimulus.table}: {int((~known).sum())} rows name no image ({others}) and are blanks")
    return np.asarray([number.get(value, _BLANK) for value in values], np.int64)


def _jumps(frame: np.ndarray) -> np.ndarray:
    """(N,) whether a frame does not continue the one before: a movie begins again, or another part of it."""
    steps = np.diff(frame)
    return np.concatenate([[False], (steps < 0) | (steps > 1 + _DROPPED)])


def _check_frames(stimulus: StimulusMapping, frames: Frames, frame: np.ndarray) -> None:
    if len(frame) and frame.max() >= len(frames):
        raise SessionError(
            f"stimulus {stimulus.name!r}: frame {frame.max()} was shown, but {frames.where} has "
            f"{len(frames)}, counted from 0; leave such rows out by `where`, or correct them"
        )


def _check_overlap(stimulus: StimulusMapping, start: np.ndarray, stop: np.ndarray, duration: float) -> None:
    late = np.flatnonzero(start[1:] < stop[:-1] - 0.5 * min(duration, float(np.min(stop - start))))
    if len(late):
        raise SessionError(
            f"stimulus {stimulus.name!r}: {len(late)} rows of {stimulus.table} begin before the row "
            f"before has ended (first at {start[late[0] + 1]:.3f} s); choose rows by `where`"
        )


def bins_of(shown: list[Shown], mapping: Mapping, bin_rate: float | None) -> Bins:
    """The bins of a session.

    Where all stimuli have frames of about one length, each frame is a bin. Else, or where another rate is asked for,
    bins of equal length are laid from the start of each stretch without blanks, and each shows what was on at its
    middle.

    Raises
    ------
    SessionError
        If stimuli overlap in time, or presentations differ in length and no rate is given.
    """
    lengths = [one.duration for one in shown]
    rate = bin_rate
    framewise = rate is None or all(abs(rate * length - 1) < 0.01 for length in lengths)
    if framewise and max(lengths) > _SAME_RATE * min(lengths):
        framewise, rate = False, 1 / min(lengths)
    for one in shown if framewise else ():
        low, high = np.quantile(one.stop - one.start, (0.1, 0.9))
        if high > 1.3 * low:
            raise SessionError(
                f"stimulus {one.mapping.name!r}: presentations last between {low:.3g} and {high:.3g} s; "
                "give --bin_rate, bins a second in Hz"
            )
    source = np.concatenate([np.full(len(one.start), number) for number, one in enumerate(shown)])
    start, stop, frame = (np.concatenate([getattr(one, key) for one in shown]) for key in ("start", "stop", "frame"))
    offsets = np.cumsum([0] + [int(one.piece[-1]) + 1 for one in shown])
    piece = np.concatenate([one.piece + first for one, first in zip(shown, offsets[:-1], strict=True)])
    order = np.argsort(start, kind="stable")
    source, start, stop, frame, piece = (a[order] for a in (source, start, stop, frame, piece))
    shortest = min(lengths)
    for first, second in pairwise(np.flatnonzero(np.diff(source, prepend=-1) != 0)) if len(shown) > 1 else ():
        if start[second] < stop[first:second].max() - 0.5 * shortest:
            names = [shown[source[n]].mapping.name for n in (first, second)]
            raise SessionError(
                f"{names[0]!r} and {names[1]!r} were shown at the same time ({start[second]:.3f} s); "
                "choose one with --stimulus, or write a mapping"
            )
    if framewise and not mapping.fill_gaps:
        duration = float(np.median(stop - start)) if len(shown) > 1 else lengths[0]
        bins = Bins(start, duration, source, frame, piece, *_unset(len(start)))
    else:
        bins = _regular(start, stop, source, frame, piece, 1 / (rate or 1 / shortest), mapping.fill_gaps)
    bins.type = np.asarray([one.mapping.name for one in shown])[bins.source]
    return bins


def _unset(length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.zeros(0), np.full(length, -1), np.full(length, -1)


def _regular(
    start: np.ndarray,
    stop: np.ndarray,
    source: np.ndarray,
    frame: np.ndarray,
    piece: np.ndarray,
    duration: float,
    fill: float,
) -> Bins:
    """Bins of equal length from the start of each piece; blanks of at most `fill` s are bridged."""
    gap = start[1:] - stop[:-1]
    bridged = (gap > duration / 2) & (gap <= fill) & (source[1:] == source[:-1])
    # A frame stays until the next one, however late that comes, unless a blank was put between them on purpose.
    until = np.where(np.concatenate([bridged, [False]]), stop, np.inf)
    cut = np.concatenate([[True], (piece[1:] != piece[:-1]) & ~bridged])
    firsts = np.flatnonzero(cut)
    lasts = np.concatenate([firsts[1:], [len(start)]]) - 1
    times, rows, pieces = [], [], []
    end = -np.inf
    for number, (first, last) in enumerate(zip(firsts, lasts, strict=True)):
        begin = max(start[first], end)  # no bin is counted twice where stretches meet
        count = max(0, round((stop[last] - begin) / duration))
        time = begin + duration * np.arange(count)
        middle = time + duration / 2
        found = np.clip(np.searchsorted(start[first : last + 1], middle, side="right") - 1 + first, first, last)
        times.append(time)
        rows.append(np.where(middle < until[found], found, -1 - found))
        pieces.append(np.full(count, number))
        end = time[-1] + duration if count else end
    found = np.concatenate(rows)
    if not len(found):
        raise SessionError(f"no presentation is as long as half a bin of {duration:.3g} s; give a higher --bin_rate")
    near = np.where(found < 0, -1 - found, found)
    return Bins(
        np.concatenate(times),
        duration,
        source[near],
        np.where(found < 0, _BLANK, frame[near]),
        np.concatenate(pieces),
        *_unset(len(near)),
    )


def stream(bins: Bins, shown: list[Shown], blank: float | None) -> Streamed:
    """The stimulus of the session, read when it is asked for.

    Raises
    ------
    SessionError
        If frames of the stimuli differ in size or type.
    """
    shapes = {one.mapping.name: (one.frames.shape, one.frames.dtype.name) for one in shown}
    if len(set(shapes.values())) > 1:
        sizes = ", ".join(f"{name} {'x'.join(map(str, shape))} {dtype}" for name, (shape, dtype) in shapes.items())
        raise SessionError(
            f"frames of its stimuli differ ({sizes}); choose one with --stimulus, or give `size: "
            "[H, W]` (and for types `scale`) in a mapping, which `neurotwin inspect FILE.nwb` writes"
        )
    frames = shown[0].frames
    level = frames.blank if blank is None else blank
    recent = [0]

    def read(start: int, stop: int) -> np.ndarray:
        source, frame = bins.source[start:stop], bins.frame[start:stop]
        out = np.full((len(frame), *frames.shape), level, frames.dtype)
        for number in np.unique(source):
            if number != recent[0]:
                shown[recent[0]].frames.release()
                recent[0] = int(number)
            mine = np.flatnonzero((source == number) & (frame >= 0))
            out[mine] = shown[number].frames.read(frame[mine])
        return out

    return Streamed((len(bins.time), *frames.shape), frames.dtype, read)
