"""From indices to clips: the one place where frames are gathered.

A clip is `length` neighbouring bins that are predicted from one stretch of the stimulus, so that frames which they
share are computed once. The stretch begins `context` frames before the first predicted bin, because the model needs
these. A window is a clip of length 1. Clips are cut from stretches of usable bins, all of one split. All clips of a
batch have the same length: where a stretch ends within a clip, the bins beyond its end are masked.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..clip import Clip, Sample, Target
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
    """Stretches of bins of one split (None: of all bins) whose windows are whole, (N, 2); each lies in one run.

    A window reaches back as far as `keys_lags` says, and at least over `least` bins.
    """
    bins = np.arange(prepared.n_bins)
    usable = bins - prepared.run_start >= max(prepared.spec.config.keys_lags.reach, least)
    if split is not None:
        usable &= prepared.split == SPLITS.index(split)
    runs = runs_of(prepared.run_start, usable)
    return runs[usable[runs[:, 0]]]


def has_part(prepared: Prepared, split: str) -> bool:
    """Whether some bin of a split can be predicted and has a valid response to compare with."""
    runs = usable_runs(prepared, split)
    return bool((_sum_between(prepared.n_valid, runs[:, 0], runs[:, 1]) > 0).any())


@dataclass(frozen=True)
class ClipTable:
    """All clips of one split of several sessions, by row.

    Attributes
    ----------
    sessions
        The sessions.
    length
        L, predicted bins of each clip.
    session, start, stop
        (N,) index of each clip's session, its first bin and one past its last.
    count
        (N,) number of valid (bin, unit) pairs of each clip.
    contrast
        (N,) mean contrast of the frames of each clip's predicted bins.
    """

    sessions: Sequence[Prepared]
    length: int
    session: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    count: np.ndarray
    contrast: np.ndarray

    def __len__(self) -> int:
        return len(self.start)

    def samples(self, rows: np.ndarray, *, context: int, shown: bool = True) -> list[Sample]:
        """The clips of some rows, one :class:`~neurotwin.clip.Sample` a session, sessions in ascending order."""
        samples = []
        for index in np.unique(self.session[rows]):
            part = rows[self.session[rows] == index]
            cut = {"length": self.length, "context": context, "shown": shown}
            sample = gather(self.sessions[index], self.start[part], self.stop[part], **cut)
            samples.append(sample.of_session(int(index)))
        return samples


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
            every = usable_runs(prepared, None, least=unlabelled)
            free = every[np.asarray(prepared.split)[every[:, 0]] == -1]
            runs[number] = np.concatenate([runs[number], free])
    longest = max((int((run[:, 1] - run[:, 0]).max(initial=0)) for run in runs), default=0)
    length = max(1, min(length, longest))
    parts = []
    for index, (prepared, stretches) in enumerate(zip(sessions, runs, strict=True)):
        counts = -(-(stretches[:, 1] - stretches[:, 0]) // length)
        starts = np.repeat(stretches[:, 0], counts)
        starts = starts + length * (np.arange(len(starts)) - np.repeat(np.cumsum(counts) - counts, counts))
        stops = np.minimum(starts + length, np.repeat(stretches[:, 1], counts))
        count = _sum_between(prepared.n_valid, starts, stops).astype(np.int64)
        if unlabelled is not None:
            count = (stops - starts) * prepared.n_units
        contrast = _sum_between(prepared.contrast, starts, stops) / np.maximum(stops - starts, 1)
        keep = count > 0
        parts.append([np.full(keep.sum(), index), starts[keep], stops[keep], count[keep], contrast[keep]])
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    if not len(columns[0]):
        raise ValueError(f"no session has a valid bin in the {split} split")
    return ClipTable(sessions, length, *columns)


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
    runs = runs[_sum_between(prepared.n_valid, runs[:, 0], runs[:, 1]) > 0]
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


def _sum_between(values: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    total = np.concatenate([[0], np.cumsum(values, dtype=np.float64)])
    return total[stops] - total[starts]
