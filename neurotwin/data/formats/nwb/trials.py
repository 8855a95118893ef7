"""Trials and repeats of the bins of an NWB session."""

import numpy as np

from ...session import SessionError
from ..repeats import alike, repeat_ids, sketch
from .hdf import Table
from .stimulus import Bins, Shown

__all__ = ["by_intervals", "cut_trials", "number_repeats"]


def cut_trials(bins: Bins, shown: list[Shown], tables: dict[str, Table]) -> list[str]:
    """Set the trial of every bin as the mapping asks for; returns notes.

    Raises
    ------
    SessionError
        If a table of trials is not there.
    """
    notes: list[str] = []
    bins.trial = np.full(len(bins.time), -1, np.int64)
    first: dict[str, int] = {}
    free = 0
    for number, one in enumerate(shown):
        mine, kind = bins.source == number, one.mapping.trials
        labels = np.unique(bins.piece[mine], return_inverse=True)[1]
        if kind == "one":
            labels = np.zeros(int(mine.sum()), np.int64)
        elif kind not in ("pieces", "rows"):
            if kind not in tables:
                raise SessionError(
                    f"trials of stimulus {one.mapping.name!r}: there is no table {kind!r} with "
                    f"start_time and stop_time; there are {', '.join(tables) or 'none'}"
                )
            found = by_intervals(bins.time[mine], bins.duration, tables[kind])
            if (found >= 0).any():
                base = first.setdefault(kind, free)
                bins.trial[mine] = np.where(found >= 0, found + base, -1)
                if (found < 0).any():
                    notes.append(
                        f"{int((found < 0).sum())} bins of {one.mapping.name!r} are in no row of {kind}: "
                        "they lie between trials"
                    )
                free = max(free, base + len(tables[kind]))
                continue
            notes.append(f"no bin of {one.mapping.name!r} lies in a row of {kind}; its pieces are the trials")
        bins.trial[mine] = labels + free
        free += int(labels.max(initial=-1)) + 1
    return notes


def by_intervals(time: np.ndarray, duration: float, table: Table) -> np.ndarray:
    """(T,) row of the table that a bin begins in, −1 for none; of rows that overlap the last one counts.

    Half a bin of tolerance is given, because the onset of a trial's first frame may be written a little before the
    trial.
    """
    start, stop = (table.column(name).astype(np.float64) for name in ("start_time", "stop_time"))
    found = np.full(len(time), -1, np.int64)
    lows, highs = (np.searchsorted(time, edge - duration / 2) for edge in (start, stop))
    for number in np.flatnonzero(np.isfinite(start) & np.isfinite(stop)):
        found[lows[number] : highs[number]] = number
    return found


def number_repeats(bins: Bins, shown: list[Shown]) -> None:
    """Set `repeat` of the bins: equal where the same frames were shown since the piece began.

    Where a table or an index says what was shown it decides; for other movies the frames of trials are compared.
    """
    begins = np.flatnonzero(np.diff(bins.piece, prepend=-1) != 0)
    lengths = np.diff([*begins, len(bins.time)])
    bins.repeat = _common_beginnings(bins, shown, begins, lengths)
    for number, one in enumerate(shown):
        if not one.listed:
            mine = np.flatnonzero(bins.source == number)
            bins.repeat[mine] = _content_repeats(bins, one, mine, int(bins.repeat.max(initial=-1)) + 1)


def _common_beginnings(bins: Bins, shown: list[Shown], begins: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Ids of bins whose piece showed the same frames up to them; −1 where that happened once."""
    listed = np.asarray([one.listed for one in shown])[bins.source]
    known: dict[tuple[int, int, int], int] = {}
    state = np.zeros(len(bins.time), np.int64)
    for begin, length in zip(begins, lengths, strict=True):
        before = -1
        for index in range(begin, begin + length):
            key = (before, int(bins.source[index]), int(bins.frame[index]))
            before = known.setdefault(key, len(known))
            state[index] = before
    counts = np.bincount(state[listed], minlength=len(known))
    return np.where(listed & (counts[state] > 1), state, -1)


def _content_repeats(bins: Bins, shown: Shown, mine: np.ndarray, free: int) -> np.ndarray:
    """Ids of the bins `mine` of a movie whose trials are compared by their frames, from `free` on.

    Three frames of each trial are read to find candidates; only these are compared frame by frame, and trials that
    differ by more than a grey level in a pixel are not repeats.
    """
    trial = bins.trial[mine]
    begins = np.flatnonzero(np.diff(trial, prepend=-2) != 0)
    lengths = np.diff([*begins, len(mine)])
    inside = [n for n, begin in enumerate(begins) if trial[begin] >= 0]
    if len(inside) < 2:
        return np.full(len(mine), -1, np.int64)
    shared = int(min(lengths[n] for n in inside))
    probe = np.asarray([0, shared // 2, shared - 1])

    def three(number: int) -> np.ndarray:
        return shown.frames.read(bins.frame[mine[begins[inside[number]] + probe]]) / shown.frames.level

    firsts = alike([sketch(three(number)) for number in range(len(inside))], three)
    keys: list[int | None] = [None] * len(begins)
    for number, first in enumerate(firsts):
        same = first != number and _same_frames(
            bins,
            shown,
            mine,
            begins[inside[first]],
            begins[inside[number]],
            min(lengths[inside[first]], lengths[inside[number]]),
        )
        keys[inside[number]] = first if same or first == number else len(inside) + number
    ids = repeat_ids(keys, lengths.tolist())
    return np.where(ids >= 0, ids + free, -1)


def _same_frames(bins: Bins, shown: Shown, mine: np.ndarray, a: int, b: int, length: int) -> bool:
    for start in range(0, length, 64):
        part = np.arange(start, min(start + 64, length))
        one, other = (shown.frames.read(bins.frame[mine[begin + part]]).astype(np.float32) for begin in (a, b))
        if np.abs(one - other).max(initial=0) > shown.frames.level * 1.001:
            return False
    return True
