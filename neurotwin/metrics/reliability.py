"""How reliable responses to a repeated stimulus are, and how much of the reliable part a model predicts.

Responses are `y` of shape (R, T, U): repeat, frame, unit, NaN where a repeat is missing. Predictions are `rate` of
shape (T, U), or (R, T, U) where they differ between repeats (behaviour, or a memory of what came before); correlations
then use their mean over repeats. Every figure is (U,) float64, and NaN where the figure is not defined.

**Missing repeats.** The formulas need equally many repeats of every frame. Of each unit, the n repeats of those frames
that have at least n are used (the first n of each), with n ≥ 2 chosen so that most responses are used; of equally good
n the largest. Complete data are used whole. Fewer than two frames, or none shown twice: NaN.

Variances have the denominator n − 1, as in the code of the papers cited.
"""

from collections.abc import Callable

import numpy as np

__all__ = [
    "cc_abs",
    "cc_max",
    "cc_norm",
    "correlation_to_average",
    "fev",
    "feve",
    "nan_mean",
    "oracle_correlation",
    "signal_power",
    "stack_repeats",
]


def stack_repeats(values: np.ndarray, mask: np.ndarray, repeat_id: np.ndarray) -> np.ndarray:
    """Arrange bins so that those that saw the same frame stand above one another.

    Parameters
    ----------
    values
        (T, U), one row a bin.
    mask
        (T, U) bool, true where a value is valid.
    repeat_id
        (T,) int: bins of equal id ≥ 0 are repeats of one frame; negative ones are left out.

    Returns
    -------
    np.ndarray
        (R, N, U) float64 for the N ids in rising order, R the number of bins of the most frequent one; NaN where a
        value is missing. Repeats stand in the order of their bins.

    Examples
    --------
    >>> values, ids = np.array([[1.0], [2.0], [3.0], [4.0]]), np.array([7, -1, 5, 7])
    >>> stack_repeats(values, np.ones((4, 1), bool), ids)[:, :, 0]
    array([[ 3.,  1.],
           [nan,  4.]])
    """
    bins = np.flatnonzero(repeat_id >= 0)
    _, frame, counts = np.unique(repeat_id[bins], return_inverse=True, return_counts=True)
    order = np.argsort(frame, kind="stable")
    repeat = np.empty(len(bins), np.int64)
    repeat[order] = np.arange(len(bins)) - np.repeat(np.cumsum(counts) - counts, counts)
    stacked = np.full((counts.max(initial=0), len(counts), values.shape[1]), np.nan)
    stacked[repeat, frame] = np.where(mask[bins], values[bins], np.nan)
    return stacked


def signal_power(y: np.ndarray) -> np.ndarray:
    """Variance over frames of the expected response: (Var_t(Σ_r y) − Σ_r Var_t(y)) / (R(R−1)); may be negative.

    Sahani & Linden 2003; Schoppe et al. 2016.
    """
    return _per_unit(_signal_power, y)


def cc_norm(y: np.ndarray, rate: np.ndarray) -> np.ndarray:
    """Correlation with the expected response: Cov_t(ȳ, λ) / sqrt(Var_t(λ) · SP); NaN where SP ≤ 0.

    Schoppe et al. 2016. It can exceed 1, by the error of SP.
    """

    def figure(y: np.ndarray, rate: np.ndarray) -> float:
        y_mean, rate_mean = y.mean(0), rate.mean(0)
        return _covariance(y_mean, rate_mean) / (_root(_variance(rate_mean)) * _root(_signal_power(y)))

    return _per_unit(figure, y, rate)


def cc_max(y: np.ndarray) -> np.ndarray:
    """Correlation of the mean response with the expected one: sqrt(SP / Var_t(ȳ)); NaN where SP ≤ 0.

    Schoppe et al. 2016.
    """
    return _per_unit(lambda y: _root(_signal_power(y)) / _root(_variance(y.mean(0))), y)


def cc_abs(y: np.ndarray, rate: np.ndarray) -> np.ndarray:
    """CC_norm · CC_max, which is the correlation with the mean response; NaN where SP ≤ 0. Schoppe et al. 2016."""
    return cc_norm(y, rate) * cc_max(y)


def correlation_to_average(y: np.ndarray, rate: np.ndarray) -> np.ndarray:
    """Pearson's r of the prediction and the mean over repeats. Willeke et al. 2022 (Sensorium)."""
    return _per_unit(lambda y, rate: _correlation(y.mean(0), rate.mean(0)), y, rate)


def fev(y: np.ndarray) -> np.ndarray:
    """Share of the variance that the stimulus explains: 1 − σ²_noise / Var(y), σ²_noise = mean_t Var_r(y).

    Cadena et al. 2019. NaN where y is constant; negative where noise exceeds the variance, by chance.
    """
    return _per_unit(lambda y: 1 - _noise(y) / _root(_variance(y)) ** 2, y)


def feve(y: np.ndarray, rate: np.ndarray) -> np.ndarray:
    """Share of the explainable variance explained: 1 − (mean (y−λ)² − σ²_noise) / (Var(y) − σ²_noise).

    Cadena et al. 2019. NaN where there is no explainable variance (FEV ≤ 0).
    """

    def figure(y: np.ndarray, rate: np.ndarray) -> float:
        explainable = _variance(y) - _noise(y)
        return 1 - (((y - rate) ** 2).mean() - _noise(y)) / explainable if explainable > 0 else np.nan

    return _per_unit(figure, y, rate)


def oracle_correlation(y: np.ndarray) -> np.ndarray:
    """Mean over repeats of the correlation between one repeat and the mean of the others.

    Willeke et al. 2022 (Sensorium). Repeats for which it is not defined (no spike) are left out of the mean.
    """

    def figure(y: np.ndarray) -> float:
        others = (y.sum(0) - y) / (len(y) - 1)
        each = np.array([_correlation(a, b) for a, b in zip(y, others, strict=True)])
        return each[~np.isnan(each)].mean() if not np.isnan(each).all() else np.nan

    return _per_unit(figure, y)


def nan_mean(values: np.ndarray, axis: int = 0) -> np.ndarray:
    """Mean along an axis of what is not NaN; NaN where nothing is left.

    Examples
    --------
    >>> nan_mean(np.array([[1.0, np.nan], [2.0, np.nan]])).tolist()
    [1.5, nan]
    """
    count = (~np.isnan(values)).sum(axis=axis)
    return np.where(count > 0, np.nansum(values, axis=axis) / np.maximum(count, 1), np.nan)


def _per_unit(figure: Callable[..., float], y: np.ndarray, rate: np.ndarray | None = None) -> np.ndarray:
    """Apply `figure` to the complete responses (n, frames) of each unit, and to the predictions beside them."""
    y = np.asarray(y, np.float64)
    arrays = [y] if rate is None else [y, np.broadcast_to(np.asarray(rate, np.float64), y.shape)]
    values = np.full(y.shape[2], np.nan)
    for unit in range(y.shape[2]):
        index = _complete(~np.isnan(y[:, :, unit]))
        if index[0].shape[0] >= 2 and index[0].shape[1] >= 2:
            values[unit] = figure(*(array[:, :, unit][index] for array in arrays))
    return values


def _complete(present: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices (repeat, frame), each (n, frames), of the responses used; `present` is (R, T) bool."""
    counts = present.sum(0)
    used = [n * np.count_nonzero(counts >= n) if n >= 2 else 0 for n in range(len(present) + 1)]
    n = len(used) - 1 - int(np.argmax(used[::-1]))
    frames = np.flatnonzero(counts >= n) if used[n] else np.empty(0, np.int64)
    first = np.argsort(~present[:, frames], axis=0, kind="stable")[:n]
    return first, np.broadcast_to(frames, first.shape)


def _signal_power(y: np.ndarray) -> float:
    return (_variance(y.sum(0)) - sum(_variance(repeat) for repeat in y)) / (len(y) * (len(y) - 1))


def _noise(y: np.ndarray) -> float:
    return y.var(0, ddof=1).mean()


def _variance(values: np.ndarray) -> float:
    """Variance, 0 where it is only rounding."""
    variance = values.var(ddof=1)
    return variance if variance > 1e-12 * (values**2).mean() else 0.0


def _covariance(a: np.ndarray, b: np.ndarray) -> float:
    return ((a - a.mean()) * (b - b.mean())).sum() / (len(a) - 1)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    return _covariance(a, b) / (_root(_variance(a)) * _root(_variance(b)))


def _root(value: float) -> float:
    """Square root; NaN where a variance is not positive, so that what divides by it is NaN."""
    return np.sqrt(value) if value > 0 else np.nan
