"""Saccades from eye position, by a velocity threshold that adapts to the noise of the tracker."""

import numpy as np

__all__ = ["eye_velocity", "find_saccades"]


def eye_velocity(gaze: np.ndarray, bin_rate: float) -> np.ndarray:
    """Velocity (T, 2) of eye position (T, 2), in its units a second: a moving average over five samples.

    v(t) = [x(t+2) + x(t+1) − x(t−1) − x(t−2)] / (6 Δt), where at the ends the nearest samples stand in (Engbert &
    Kliegl 2003).
    """
    padded = np.concatenate([gaze[:1], gaze[:1], gaze, gaze[-1:], gaze[-1:]])
    return (padded[4:] + padded[3:-1] - padded[1:-3] - padded[:-4]) * bin_rate / 6


def find_saccades(
    gaze: np.ndarray, bin_rate: float, *, threshold: float = 6.0, least_s: float = 0.006, apart_s: float = 0.02,
    valid: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """First bin and one past the last of each saccade, (N, 2).

    A bin belongs to a saccade where (vx/ηx)² + (vy/ηy)² > 1, η being `threshold` times a median-based standard
    deviation of the velocity along each axis, η² = threshold² (⟨v²⟩ − ⟨v⟩²) with medians ⟨·⟩ (Engbert & Kliegl 2003,
    Vision Research 43:1035).

    Parameters
    ----------
    gaze
        (T, 2) eye position.
    bin_rate
        Samples a second, Hz.
    threshold
        In standard deviations of the velocity.
    least_s
        Least duration, s.
    apart_s
        Saccades less than this apart, s, are one.
    valid
        (T,) bool: false where the gaze was not tracked; nothing is found there or beside it.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> gaze = rng.normal(0, 0.001, (500, 2))
    >>> gaze[200:] += 2.0
    >>> [int(v) // 10 for v in find_saccades(gaze, 500.0)[0]]
    [19, 20]
    """
    velocity = eye_velocity(np.asarray(gaze, float), bin_rate)
    tracked = np.ones(len(gaze), bool) if valid is None else np.asarray(valid, bool)
    near = np.convolve(~tracked, np.ones(5), "same") > 0
    used = velocity[~near]
    if not len(used):
        return np.zeros((0, 2), np.int64)
    spread = np.sqrt(np.maximum(np.median(used**2, axis=0) - np.median(used, axis=0) ** 2, 1e-20))
    fast = (((velocity / (threshold * spread)) ** 2).sum(axis=1) > 1) & ~near
    edges = np.flatnonzero(np.diff(np.concatenate([[0], fast.astype(np.int8), [0]])))
    found: list[list[int]] = []
    for start, stop in edges.reshape(-1, 2).tolist():
        if found and start - found[-1][1] < apart_s * bin_rate:
            found[-1][1] = stop
        else:
            found.append([start, stop])
    found = [pair for pair in found if pair[1] - pair[0] >= least_s * bin_rate]
    return np.array(found, np.int64).reshape(-1, 2)
