"""Which trials showed the same thing: by an id that the layout keeps, or by what was shown."""

from collections.abc import Callable, Hashable, Sequence

import numpy as np
import scipy

__all__ = ["Sketch", "alike", "repeat_ids", "sketch"]

_PIECES = 4  # along each axis of the means that stand for a trial

Sketch = tuple[tuple[int, ...], np.ndarray]
"""The shape of a trial's frames, and means of their parts."""


def repeat_ids(keys: Sequence[Hashable | None], lengths: Sequence[int]) -> np.ndarray:
    """The `repeat_id` of every bin of a session, from what each of its trials showed.

    Bins at the same place of trials with the same key are repeats of one another. A bin that nothing repeats has the
    id −1: that of a trial whose key is its own, or the end of a trial that is longer than all others of its key.

    Parameters
    ----------
    keys
        One for each trial, in the order of the session; None where it is not known what the trial showed.
    lengths
        Bins of each trial.

    Returns
    -------
    numpy.ndarray
        (T,) int64, with T the sum of the lengths.

    Raises
    ------
    ValueError
        If there is not one key for each length.

    Examples
    --------
    >>> repeat_ids(["sea", "sky", "sea", None], [2, 1, 3, 1])
    array([ 3,  4, -1,  3,  4, -1, -1])
    """
    starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    trials: dict[Hashable, list[int]] = {}
    for trial, (key, _) in enumerate(zip(keys, lengths, strict=True)):
        if key is not None:
            trials.setdefault(key, []).append(trial)
    ids = np.full(starts[-1], -1, np.int64)
    for same in trials.values():
        if len(same) < 2:
            continue
        longest = max(same, key=lambda trial: lengths[trial])
        shared = sorted(lengths[trial] for trial in same)[-2]
        for trial in same:
            count = min(lengths[trial], shared)
            # The ids of a key are the positions of its longest trial, so that no two keys have an id in common.
            ids[starts[trial] : starts[trial] + count] = starts[longest] + np.arange(count)
    return ids


def sketch(frames: np.ndarray) -> Sketch:
    """What :func:`alike` compares before it compares pixels: the shape of a trial's frames, and means of their parts.

    Every axis is cut into at most four pieces. Where two trials differ by at most one grey level in each pixel, their
    means differ by at most one as well, wherever the values lie. A hash of rounded pixels has no such property: a
    pixel at the border of two steps changes the hash when it changes by one level.

    Examples
    --------
    >>> sketch(np.array([[3, 4], [5, 6]], np.uint8))
    ((2, 2), array([3., 4., 5., 6.]))
    """
    frames = np.asarray(frames)
    if frames.ndim < 2:
        return frames.shape, _means(np.asarray(frames, np.float64)).reshape(-1)
    # Frame by frame, so that no copy of a whole movie in float64 is made.
    spatial = np.stack([_means(np.asarray(frame, np.float64)).reshape(-1) for frame in frames])
    return frames.shape, _means(spatial, axes=1).reshape(-1)


def alike(sketches: Sequence[Sketch], load: Callable[[int], np.ndarray], *, tolerance: float = 1.0) -> list[int]:
    """The first trial that showed the same as each trial, up to `tolerance` grey levels in every pixel.

    Presentations of one movie or image may differ by a grey level here and there, where each was resized or compressed
    by itself. Candidates are found by their sketches without missing any; then their frames are compared in full.

    Parameters
    ----------
    sketches
        The :func:`sketch` of each trial.
    load
        Called with the number of a trial, returns its frames. At most two trials are held at a time.
    tolerance
        Largest difference of two pixels that count as the same.

    Returns
    -------
    list of int
        For each trial the number of the first one that showed the same; its own where there is none.

    Examples
    --------
    >>> movies = [np.full((3, 4, 4), level, np.uint8) for level in (7, 90, 8)]
    >>> alike([sketch(movie) for movie in movies], movies.__getitem__)
    [0, 1, 0]
    """
    first = list(range(len(sketches)))
    shapes: dict[tuple[int, ...], list[int]] = {}
    for trial, (shape, _) in enumerate(sketches):
        shapes.setdefault(shape, []).append(trial)
    for trials in shapes.values():
        if len(trials) < 2:
            continue
        points = np.stack([sketches[trial][1] for trial in trials])
        tree = scipy.spatial.cKDTree(points)
        for number, trial in enumerate(trials):
            if first[trial] != trial:
                continue
            near = tree.query_ball_point(points[number], tolerance + 1e-6, p=np.inf)
            later = sorted(trials[n] for n in near if n > number and first[trials[n]] == trials[n])
            if not later:
                continue
            frames = np.asarray(load(trial))
            for other in later:
                if _largest_difference(frames, np.asarray(load(other))) <= tolerance:
                    first[other] = trial
    return first


def _means(values: np.ndarray, axes: int | None = None) -> np.ndarray:
    """Means of at most four pieces along each of the first `axes` axes; by default along all."""
    for axis, length in enumerate(values.shape[:axes]):
        pieces = min(_PIECES, length)
        starts = (np.arange(pieces) * length) // pieces
        sizes = np.diff([*starts, length])
        values = np.add.reduceat(values, starts, axis=axis) / sizes.reshape(-1, *(1,) * (values.ndim - axis - 1))
    return values


def _largest_difference(one: np.ndarray, other: np.ndarray) -> float:
    """Largest absolute difference, frame by frame, so that wide types are not held for a whole trial."""
    return max(
        float(np.abs(np.subtract(a, b, dtype=np.float64)).max(initial=0)) for a, b in zip(one, other, strict=True)
    )
