"""From indices to clips: the one place where frames are gathered.

A clip is `length` neighbouring bins that are predicted from one stretch of the stimulus, so that frames which they
share are computed once. The stretch begins `context` frames before the first predicted bin, because the model needs
these. A window is a clip of length 1. Clips are cut from stretches of usable bins, all of one split. All clips of a
batch have the same length: where a stretch ends within a clip, the bins beyond its end are masked.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..clip import Clip, Sample, Target
from . import augmentation  # noqa: F401  registers what model files may name
from .arrange import bin_stretches
from .pipelines import runs_of
from .prepare import Prepared
from .session import SPLITS, frame_shape

__all__ = ["ClipTable", "as_frames", "clip_table", "gather", "has_part", "show", "stream", "stream_runs", "usable_runs"]


def gather(
    prepared: Prepared, starts: np.ndarray, stops: np.ndarray, *, length: int, context: int, shown: bool = True
) -> Sample:
    """Cut clips out of a session.

    Parameters
    ----------
    prepared
        The session.
    starts
        (B,) first predicted bin of each clip.
    stops
        (B,) one past its last; bins from there to `starts + length` are masked.
    length
        L, predicted bins of each clip.
    context
        Frames before the first predicted bin.
    shown
        Bring the frames; else only their indices, for :func:`show` to do so on a device that holds the source.

    Returns
    -------
    Sample
        With `session` 0; T = context + length. Frames that would lie outside a clip's run repeat the nearest one
        inside; only masked bins see them.
    """
    n_history = prepared.spec.n_history
    before = max(context, n_history)
    bins = starts[:, None] + np.arange(-before, length)
    inside = np.clip(bins, prepared.run_start[starts][:, None], prepared.run_stop[starts][:, None] - 1)
    seen, predicted = inside[:, before - context :], inside[:, before:]
    mask = prepared.mask[predicted] & (bins[:, before:] < stops[:, None])[..., None]
    exposure = None if prepared.exposure is None else torch.from_numpy(prepared.exposure[predicted][..., None])
    history = None
    if n_history:
        history = torch.from_numpy(prepared.responses[inside[:, before - n_history :]])
    clip = Clip(
        session=0,
        length=length,
        stimulus=None,
        frames=torch.from_numpy(prepared.frame[seen]),
        behavior=None if prepared.behavior is None else torch.from_numpy(prepared.behavior[seen]),
        history=history,
        bins=torch.from_numpy(starts),
    )
    target = Target(torch.from_numpy(prepared.responses[predicted]), torch.from_numpy(mask), exposure)
    return Sample(show(clip, prepared.source) if shown else clip, target)


def show(clip: Clip, source: np.ndarray | Tensor) -> Clip:
    """The clip with the stimulus that its `frames` are in a source (N, ...), on the same device."""
    if isinstance(source, Tensor):
        x = source[clip.frames]
    else:
        x = torch.from_numpy(np.take(source, clip.frames.numpy(), axis=0))
    return replace(clip, stimulus=as_frames(x).transpose(1, 2), frames=None)


def as_frames(x: Tensor) -> Tensor:
    """A stimulus (B, T, ...) with all axes of frames, (B, T, C, H, W); no copy."""
    return x.reshape(*x.shape[:2], *frame_shape(x.shape[2:]))


def usable_runs(prepared: Prepared, split: str | None, *, least: int = 0) -> np.ndarray:
    """Stretches of bins of one split whose windows are whole, (N, 2); each lies in one run.

    A split of None means all bins, an empty one those that belong to no split.

    A window reaches back as far as `keys_lags` says, and at least over `least` bins.
    """
    starts, stops, runs, _ = _usable(prepared, split, least).T
    new = np.ones(len(starts), bool)
    new[1:] = (starts[1:] != stops[:-1]) | (runs[1:] != runs[:-1])
    first = np.flatnonzero(new)
    return np.stack([starts[first], stops[np.append(first[1:], len(stops)) - 1]], axis=1) if len(first) else _NO_RUNS


def has_part(prepared: Prepared, split: str) -> bool:
    """Whether some bin of a split can be predicted and has a valid response to compare with."""
    return bool(_usable(prepared, split)[:, 3].any())


_NO_RUNS = np.zeros((0, 2), np.int64)


def _usable(prepared: Prepared, split: str | None, least: int = 0) -> np.ndarray:
    """(R, 4): the stretches of :func:`bin_stretches` whose windows are whole: start, stop, run, valid."""
    found = prepared.stretches
    if found is None:
        found = bin_stretches(prepared.run_start, prepared.split, prepared.n_valid)
    starts, stops, runs, splits, valid = np.asarray(found).T
    starts = np.maximum(starts, runs + max(prepared.spec.config.keys_lags.reach, least))
    code = SPLITS.index(split) if split else -1
    kept = (starts < stops) & ((splits == code) if split is not None else True)
    return np.stack([starts, stops, runs, valid], axis=1)[kept]


class Located(NamedTuple):
    """Where clips lie: (N,) index of each clip's session, its first bin and one past its last."""

    session: np.ndarray
    start: np.ndarray
    stop: np.ndarray


class _Cut(NamedTuple):
    """The clips of one session: stretches of successive clips, (M,) their first bin, one past their last, and (M + 1,)
    the number of clips before each. Whole clips fill a stretch, but for its last one."""

    first: np.ndarray
    last: np.ndarray
    before: np.ndarray


@dataclass(frozen=True)
class ClipTable:
    """All clips of one split of several sessions, by row.

    Only stretches of successive clips are kept. What a row is, is computed when it is asked for, so that 10⁸ clips take
    little memory.

    Attributes
    ----------
    sessions
        The sessions.
    length
        L, predicted bins of each clip.
    sizes
        (S,) number of clips of each session; their rows follow one another.
    unlabelled
        Whether clips need no valid response, because a teacher says what to expect.
    """

    sessions: Sequence[Prepared]
    length: int
    cuts: Sequence[_Cut]
    unlabelled: bool = False

    @cached_property
    def sizes(self) -> np.ndarray:
        """(S,) number of clips of each session."""
        return np.array([int(cut.before[-1]) for cut in self.cuts], np.int64)

    @cached_property
    def _offsets(self) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(self.sizes)])

    def __len__(self) -> int:
        return int(self._offsets[-1])

    def locate(self, rows: np.ndarray | None = None) -> Located:
        """Where the clips of some rows lie; by default all."""
        rows = np.arange(len(self)) if rows is None else np.asarray(rows, np.int64)
        session = np.searchsorted(self._offsets, rows, side="right") - 1
        start, stop = np.empty_like(rows), np.empty_like(rows)
        for index in np.unique(session):
            here, cut = session == index, self.cuts[index]
            number = rows[here] - self._offsets[index]
            stretch = np.searchsorted(cut.before, number, side="right") - 1
            start[here] = cut.first[stretch] + self.length * (number - cut.before[stretch])
            stop[here] = np.minimum(start[here] + self.length, cut.last[stretch])
        return Located(session, start, stop)

    def count(self, rows: np.ndarray | None = None) -> np.ndarray:
        """(N,) number of valid (bin, unit) pairs of each clip; of an unlabelled table, of all pairs."""
        found = self.locate(rows)
        if self.unlabelled:
            return (found.stop - found.start) * np.array([one.n_units for one in self.sessions])[found.session]
        return self._summed(found, "n_valid").astype(np.int64)

    def contrast(self, rows: np.ndarray | None = None) -> np.ndarray:
        """(N,) mean contrast of the frames of each clip's predicted bins."""
        found = self.locate(rows)
        return self._summed(found, "contrast") / (found.stop - found.start)

    def _summed(self, found: Located, key: str) -> np.ndarray:
        """(N,) sums over the bins of each clip of a value that each bin has."""
        sums = np.empty(len(found.start))
        for index in np.unique(found.session):
            here = np.flatnonzero(found.session == index)
            values = getattr(self.sessions[index], key)
            for some in np.array_split(here, -(-len(here) * self.length // _MOST_BINS)):
                bins = found.start[some, None] + np.arange(self.length)
                stops = found.stop[some, None]
                sums[some] = np.sum(values[np.minimum(bins, stops - 1)], axis=1, dtype=np.float64, where=bins < stops)
        return sums

    def samples(self, rows: np.ndarray, *, context: int, shown: bool = True) -> list[Sample]:
        """The clips of some rows, one :class:`~neurotwin.clip.Sample` a session, sessions in ascending order."""
        samples, found = [], self.locate(rows)
        for index in np.unique(found.session):
            here = found.session == index
            cut = {"length": self.length, "context": context, "shown": shown}
            sample = gather(self.sessions[index], found.start[here], found.stop[here], **cut)
            samples.append(sample.of_session(int(index)))
        return samples


_MOST_BINS = 1 << 22  # bins of clips that are looked at together


def clip_table(
    sessions: Sequence[Prepared], split: str, *, length: int, unlabelled: int | None = None
) -> ClipTable:  # fmt: skip
    """Cut one split of some sessions into clips that share no predicted bin; those without a valid count are left out.

    The clips are no longer than the longest stretch there is: single images make clips of length 1.

    Parameters
    ----------
    sessions, split, length
        See :class:`ClipTable`.
    unlabelled
        None: clips need valid responses. A number: clips are of stimuli, whether there are responses or not, in the
        split and in trials that belong to no split, where at least so many frames come before the predicted bin; every
        (bin, unit) pair counts.

    Raises
    ------
    ValueError
        If there is no clip with a valid count.
    """
    runs = [usable_runs(prepared, split, least=unlabelled or 0) for prepared in sessions]
    if unlabelled is not None:
        for number, prepared in enumerate(sessions):
            both = np.concatenate([runs[number], usable_runs(prepared, "", least=unlabelled)])
            runs[number] = both[np.argsort(both[:, 0])]
    longest = max((int((run[:, 1] - run[:, 0]).max(initial=0)) for run in runs), default=0)
    length = max(1, min(length, longest))
    cuts = [_cut(*pair, split, length, unlabelled is not None) for pair in zip(sessions, runs, strict=True)]
    table = ClipTable(sessions, length, cuts, unlabelled is not None)
    if not len(table):
        raise ValueError(f"no session has a valid bin in the {split} split")
    return table


def _cut(prepared: Prepared, runs: np.ndarray, split: str, length: int, unlabelled: bool) -> _Cut:
    """Cut stretches (N, 2) of a split into clips; leave out those without a valid response, unless all are taken."""
    starts, stops = runs.T
    numbers = -(-(stops - starts) // length)
    before = np.concatenate([[0], np.cumsum(numbers)])
    usable = _usable(prepared, split)
    blanks = usable[(usable[:, 3] == 0) & (not unlabelled)]
    home = np.searchsorted(stops, blanks[:, 0], side="right")  # the stretch that holds a blank one
    begin, end = blanks[:, 0] - starts[home], blanks[:, 1] - starts[home]
    first = -(-begin // length)
    last = np.where(blanks[:, 1] == stops[home], numbers[home], end // length)
    covers = first < last
    change = np.zeros(before[-1] + 1, np.int32)
    np.add.at(change, (before[home] + first)[covers], 1)
    np.subtract.at(change, (before[home] + last)[covers], 1)
    kept = np.cumsum(change)[:-1] == 0
    owner = np.repeat(np.arange(len(runs)), numbers)
    clips = runs_of(owner, kept)
    clips = clips[kept[clips[:, 0]]] if len(clips) else clips
    owner = owner[clips[:, 0]]
    first = starts[owner] + length * (clips[:, 0] - before[owner])
    last = np.minimum(starts[owner] + length * (clips[:, 1] - before[owner]), stops[owner])
    small = np.int32 if prepared.n_bins < 2**31 else np.int64
    sizes = np.concatenate([[0], np.cumsum(clips[:, 1] - clips[:, 0])])
    return _Cut(first.astype(small), last.astype(small), sizes.astype(small))


def stream(
    prepared: Prepared,
    split: str,
    *,
    context: int,
    chunk: int = 256,
    bins: int = 1024,
    part: tuple[int, int] = (0, 1),
    limit: float = 1.0,
    shown: bool = True,
) -> Iterator[Sample]:
    """Every usable bin of a split exactly once, in clips that continue one another.

    Stretches of similar length are cut side by side, `chunk` bins at a time. A clip whose `carries` is true continues
    the stretches of the clip before it, and the model goes on with its recurrent state. The predictions of a stretch
    therefore do not depend on `chunk`, `bins` or `part`.

    Parameters
    ----------
    prepared
        The session.
    split
        "train", "val" or "test".
    context
        Frames before the first predicted bin.
    chunk
        Predicted bins of a clip, at most.
    bins
        Predicted bins of a batch, about: how many stretches run side by side.
    part
        ``(i, n)``: every n-th stretch, beginning with the i-th; this is what process i of n evaluates.
    limit
        How many stretches to use: a fraction up to 1, or a number above 1. They are evenly spaced and always the same.
    shown
        See :func:`gather`.
    """
    runs = usable_runs(prepared, split)
    valid = _usable(prepared, split)
    valid = valid[valid[:, 3] > 0]
    runs = runs[np.searchsorted(valid[:, 0], runs[:, 1]) > np.searchsorted(valid[:, 1], runs[:, 0], side="right")]
    kept = round(limit * len(runs)) if limit <= 1 else min(int(limit), len(runs))
    runs = runs[np.linspace(0, len(runs) - 1, max(1, kept)).round().astype(int)] if len(runs) else runs
    order = np.argsort(runs[:, 0] - runs[:, 1], kind="stable")
    runs = runs[order][part[0] :: part[1]]
    for sample, _ in stream_runs(prepared, runs, context=context, chunk=chunk, bins=bins, shown=shown):
        yield sample


def stream_runs(
    prepared: Prepared, runs: np.ndarray, *, context: int, chunk: int = 256, bins: int = 1024, shown: bool = True
) -> Iterator[tuple[Sample, np.ndarray]]:
    """Every bin of some stretches (N, 2), the longest first, in clips that continue one another; see :func:`stream`.

    With each sample comes (B,) one past the last bin that a clip predicts: what it gives from there on counts for
    nothing.
    """
    first = 0
    while first < len(runs):
        longest = int(runs[first, 1] - runs[first, 0])
        side_by_side = max(1, bins // min(chunk, longest))
        starts, stops = runs[first : first + side_by_side].T
        first += side_by_side
        for offset in range(0, longest, chunk):
            length = min(chunk, longest - offset)
            # A stretch that has ended stays in the batch, masked, so that rows keep their state.
            begin = np.minimum(starts + offset, stops - 1)
            end = np.where(starts + offset < stops, stops, begin)
            sample = gather(prepared, begin, end, length=length, context=context, shown=shown)
            yield replace(sample, clip=replace(sample.clip, carries=offset > 0)), end
