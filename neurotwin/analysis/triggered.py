"""What drives the units of a recording: averages of the stimulus before their responses, from a sample of the data."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data.session import Session
from .recording import SpanStatistics, span_statistics, usable_bins

__all__ = ["Average", "triggered_averages"]

_LARGEST_SIDE = 32  # pixels of a frame in the averages
_STRETCH = 500  # bins of a stretch of the sample
_PIECE = 1 << 25  # bytes of frames that are read in one piece
_MOST_BYTES = 1 << 30  # of frames that are read in all


@dataclass(frozen=True)
class Average:
    """Triggered averages of some units.

    Attributes
    ----------
    units
        (N,) indices of the units, the one with the strongest average first.
    maps
        (N, L, *frame): mean frame at each lag before a response, as a difference from the mean frame, in units of the
        stimulus. For counts each spike weighs the same. For real-valued responses the weight is the response's
        distance from its mean, divided by its standard deviation. The first lag is 0: the frame of the bin itself.
    strength
        (N,) largest correlation of the response with a pixel at a lag, without its sign, times the square root of the
        number of bins. Noise alone would make it about 4; neighbouring frames that are alike make it larger.
    n_bins
        Number of bins that were used.
    """

    units: np.ndarray
    maps: np.ndarray
    strength: np.ndarray
    n_bins: int


def triggered_averages(
    session: Session,
    *,
    stimulus_type: str | None = None,
    n_units: int = 8,
    n_candidates: int = 48,
    n_lags: int | None = None,
    max_bins: int = 40_000,
    statistics: SpanStatistics | None = None,
) -> Average:
    """Spike-triggered averages of the units that the stimulus drives most, from a sample of the recording.

    With the response r(t) of a bin and the frame s(t − l) that was shown l bins before, in the same trial, ::

        average(l) = sum over t of r(t) (s(t − l) − mean s) / sum over t of r(t)

    (Chichilnisky 2001). Real-valued responses are weighted by (r(t) − mean r) / sd r instead, and divided by the number
    of bins. Frames above 32 pixels a side are averaged over squares of neighbouring pixels first.

    Parameters
    ----------
    session
        The recording.
    stimulus_type
        Bins of this type only. Default: all.
    n_units
        Number of units returned.
    n_candidates
        Number of units that are looked at: those with the largest mean response, or for real-valued responses those
        with the largest range.
    n_lags
        Number of lags. Default: 0.2 s, and no more than a trial holds.
    max_bins
        Bins in the sample, in stretches of 500 at equal distances over the recording.
    statistics
        Those of the responses, where they are known.
    """
    usable = usable_bins(session)
    if stimulus_type is not None:
        usable &= session.stimulus_type == stimulus_type
    if statistics is None:
        statistics = span_statistics(session.responses, usable_bins(session))
    units = _candidates(statistics, n_candidates)
    run = _runs(session)
    n_lags = n_lags or _lags(run[usable], session.bin_rate)
    frame_bytes = int(np.prod(session.stimulus.shape[1:])) * np.dtype(session.stimulus.dtype).itemsize
    sums = _Sums(n_lags, len(units))
    for start, stop in _stretches(usable, min(max_bins, max(_STRETCH, _MOST_BYTES // frame_bytes))):
        first = max(0, start - n_lags + 1)
        frames = _coarse_frames(session.stimulus, first, stop, max(1, _PIECE // frame_bytes))
        responses = np.asarray(session.responses[start:stop])[:, units].astype(np.float64)
        for lag in range(n_lags):
            now = np.arange(max(start, first + lag), stop)
            now = now[usable[now] & (run[now] == run[now - lag])]
            sums.add(lag, frames[now - lag - first], responses[now - start])
    return sums.result(units, n_units, counts=statistics.whole)


class _Sums:
    """Sums of products of frames and responses for each lag."""

    def __init__(self, n_lags: int, n_units: int) -> None:
        self.n_units = n_units
        self.n = np.zeros(n_lags)
        self.r, self.rr = np.zeros((2, n_lags, n_units))
        self.shape: tuple[int, ...] | None = None

    def add(self, lag: int, frames: np.ndarray, responses: np.ndarray) -> None:
        """Count the bins whose response is `responses` (n, U), with what was shown `lag` bins before."""
        if self.shape is None:
            self.shape = frames.shape[1:]
            n_pixels = int(np.prod(self.shape))
            self.s, self.ss = np.zeros((2, len(self.n), n_pixels))
            self.rs = np.zeros((len(self.n), self.n_units, n_pixels))
        flat = frames.reshape(len(frames), self.s.shape[1])
        self.n[lag] += len(flat)
        self.r[lag] += responses.sum(axis=0)
        self.rr[lag] += (responses**2).sum(axis=0)
        self.s[lag] += flat.sum(axis=0, dtype=np.float64)
        self.ss[lag] += (flat.astype(np.float64) ** 2).sum(axis=0)
        self.rs[lag] += (responses.T.astype(np.float32) @ flat).astype(np.float64)

    def result(self, units: np.ndarray, n_units: int, *, counts: bool) -> Average:
        """The averages of the strongest units."""
        if self.shape is None or not self.n.any():
            return Average(units[:0], np.zeros((0, len(self.n), 1)), np.zeros(0), 0)
        n = np.maximum(self.n, 1)[:, None]
        covariance = self.rs / n[..., None] - (self.r / n)[..., None] * (self.s / n)[:, None]  # (L, U, P)
        sd_r = np.sqrt(np.maximum(self.rr / n - (self.r / n) ** 2, 0))
        sd_s = np.sqrt(np.maximum(self.ss / n - (self.s / n) ** 2, 0))
        # Sums of many equal pixels leave a rounding error where there is no variance at all.
        varies = sd_s > 1e-4 * max(float(sd_s.max()), 1e-12)
        scale = sd_r[..., None] * np.where(varies, sd_s, 1)[:, None]
        correlation = np.divide(covariance, scale, out=np.zeros_like(covariance), where=(scale > 0) & varies[:, None])
        strength = (np.abs(correlation) * np.sqrt(n)[..., None]).max(axis=(0, 2))
        weight = (self.r / n if counts else sd_r)[..., None]
        maps = np.divide(covariance, weight, out=np.zeros_like(covariance), where=weight > 0).transpose(1, 0, 2)
        best = np.argsort(-strength, kind="stable")[:n_units]
        maps = maps[best].reshape(len(best), len(self.n), *self.shape)
        return Average(units[best], maps, strength[best], int(self.n.max()))


def _candidates(statistics: SpanStatistics, n: int) -> np.ndarray:
    """Indices of the units that respond most: by their mean, or for real-valued responses by their range."""
    if statistics.whole:
        rank = statistics.total.sum(axis=0)
    elif statistics.count.any():
        rank = np.nanmax(statistics.most, axis=0) - np.nanmin(statistics.least, axis=0)
    else:
        rank = np.zeros(statistics.total.shape[1])
    return np.sort(np.argsort(-rank, kind="stable")[:n])


def _runs(session: Session) -> np.ndarray:
    """(T,) number of the unbroken stretch of one trial in which each bin lies."""
    new = np.diff(np.asarray(session.trial)) != 0
    if session.time is not None:
        new |= np.abs(np.diff(np.asarray(session.time)) * session.bin_rate - 1) > 0.5
    return np.concatenate([[0], np.cumsum(new)])


def _lags(run: np.ndarray, bin_rate: float) -> int:
    """Lags in 0.2 s, at most 24 and at most the bins of the longest unbroken stretch."""
    longest = int(np.unique(run, return_counts=True)[1].max(initial=1))
    return max(1, min(24, longest, round(0.2 * bin_rate)))


def _stretches(usable: np.ndarray, max_bins: int) -> list[tuple[int, int]]:
    """Stretches of up to 500 bins that hold a usable one, at equal distances, together at most `max_bins` bins."""
    starts = np.arange(0, len(usable), _STRETCH)
    starts = starts[np.add.reduceat(usable, starts, dtype=np.int64) > 0]
    keep = max(1, max_bins // _STRETCH)
    if len(starts) > keep:
        starts = starts[np.linspace(0, len(starts) - 1, keep).round().astype(int)]
    return [(int(start), int(min(start + _STRETCH, len(usable)))) for start in starts]


def _coarse_frames(stimulus: Any, first: int, stop: int, step: int) -> np.ndarray:
    """The frames of a stretch, made coarse piece by piece."""
    starts = range(first, stop, step)
    return np.concatenate([_coarse(np.asarray(stimulus[start : min(start + step, stop)])) for start in starts])


def _coarse(frames: np.ndarray) -> np.ndarray:
    """Frames as float32, averaged over squares of pixels so that no side is longer than 32."""
    frames = frames.astype(np.float32)
    sides = frames.shape[-2:] if frames.ndim >= 3 else ()
    factor = max((-(-side // _LARGEST_SIDE) for side in sides), default=1)
    if factor == 1:
        return frames
    # A side that is no multiple of the factor loses less than one square at its end.
    for axis in (frames.ndim - 2, frames.ndim - 1):
        whole = max(1, frames.shape[axis] // factor)
        size = min(factor, frames.shape[axis])
        frames = np.take(frames, np.arange(whole * size), axis=axis)
        frames = frames.reshape(*frames.shape[:axis], whole, size, *frames.shape[axis + 1 :]).mean(axis=axis + 1)
    return frames
