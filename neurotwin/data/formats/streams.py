"""Arrays that lie in several files, or transposed, or with gaps in them, read in pieces and never whole."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...tensorfile import blocks
from ..session import SessionError
from ..streamed import Streamed

__all__ = ["bins_per_second", "cut_into_trials", "filled", "finite_bins", "joined", "missing_bins", "transposed"]


def joined(parts: Sequence[Any]) -> Streamed:
    """The concatenation of arrays along their first axis, of the type that holds the values of all.

    Raises
    ------
    ValueError
        If the arrays differ in anything but their length.

    Examples
    --------
    >>> joined([np.arange(3), np.arange(2.0)])[2:4]
    array([2., 0.])
    """
    rows = {tuple(part.shape[1:]) for part in parts}
    if len(rows) != 1:
        raise ValueError(f"arrays whose rows have the shapes {sorted(rows)} cannot be joined")
    dtype = np.result_type(*(part.dtype for part in parts))
    bounds = np.cumsum([0, *map(len, parts)])

    def read(start: int, stop: int) -> np.ndarray:
        pieces = [
            np.asarray(part[max(start - first, 0) : stop - first], dtype)
            for part, first in zip(parts, bounds[:-1].tolist(), strict=True)
            if start < first + len(part) and stop > first
        ]
        if len(pieces) == 1:  # spares a copy
            return pieces[0]
        return np.concatenate(pieces) if pieces else np.empty((0, *parts[0].shape[1:]), dtype)

    return Streamed((int(bounds[-1]), *parts[0].shape[1:]), dtype, read)


def filled(array: Any, dtype: np.dtype | type | None = None) -> Streamed:
    """An array with 0 where it has NaN or infinite values, as `dtype`.

    Examples
    --------
    >>> filled(np.array([1.0, np.nan]), np.float32)[:]
    array([1., 0.], dtype=float32)
    """
    dtype = np.dtype(dtype or array.dtype)

    def read(start: int, stop: int) -> np.ndarray:
        part = np.asarray(array[start:stop])
        known = np.isfinite(part) if part.dtype.kind == "f" else np.True_
        part = part if known.all() else np.where(known, part, 0)
        return part.astype(dtype, copy=False)

    return Streamed(tuple(array.shape), dtype, read)


def transposed(array: Any, rows: np.ndarray | None = None) -> Streamed:
    """The transpose, (T, N), of an array (N, T) that is read along its second axis; of some of its rows only.

    Examples
    --------
    >>> transposed(np.arange(6).reshape(2, 3), rows=np.array([1]))[1:]
    array([[4],
           [5]])
    """
    n_rows = array.shape[0] if rows is None else len(rows)

    def read(start: int, stop: int) -> np.ndarray:
        part = np.asarray(array[:, start:stop])
        return (part if rows is None else part[rows]).T

    return Streamed((array.shape[1], n_rows), np.dtype(array.dtype), read)


def finite_bins(array: Any) -> np.ndarray:
    """Which bins hold only finite values, (T,) bool; reads the array once, in pieces."""
    if np.dtype(array.dtype).kind != "f":
        return np.ones(len(array), bool)
    parts = [np.isfinite(part).reshape(len(part), -1).all(axis=1) for part in blocks(array)]
    return np.concatenate(parts) if parts else np.ones(len(array), bool)


def missing_bins(array: Any) -> tuple[np.ndarray, np.ndarray]:
    """Bins of responses (T, U) where a unit has no finite value, and units that have none at all.

    Returns
    -------
    bins, units
        (T,) bool and (U,) bool. Units without any finite value do not count for the bins.
    """
    n_bins, n_units = array.shape
    empty = np.ones(n_units, bool)
    if np.dtype(array.dtype).kind != "f":
        return np.zeros(n_bins, bool), ~empty
    for part in blocks(array):
        empty &= ~np.isfinite(part).any(axis=0)
    if empty.all():
        return np.ones(n_bins, bool), empty
    bins = [~np.isfinite(part[:, ~empty]).all(axis=1) for part in blocks(array)]
    return np.concatenate(bins), empty


def bins_per_second(times: np.ndarray, what: str) -> float:
    """The rate of a clock, Hz, from the times of its bins in s: the inverse of the median step.

    A rate within 0.01 % of a whole number is that number, because times are often rounded.

    Raises
    ------
    SessionError
        If there are fewer than two times, or they do not increase.

    Examples
    --------
    >>> bins_per_second(np.arange(9) / 240, "t_bins")
    240.0
    """
    step = float(np.median(np.diff(np.asarray(times, np.float64)))) if len(times) > 1 else np.nan
    if not step > 0:
        raise SessionError(f"{what}: {len(times)} times do not tell the rate; give increasing times in s")
    rate = 1 / step
    return float(round(rate)) if round(rate) and abs(rate - round(rate)) < 1e-4 * rate else rate


def cut_into_trials(n_bins: int, bins: int) -> np.ndarray:
    """Trials of `bins` bins each that follow one another, (T,) int64; the last one takes what remains.

    A recording without trials would otherwise be a single one, which cannot be split into training and validation.

    Examples
    --------
    >>> cut_into_trials(7, 3)
    array([0, 0, 0, 1, 1, 1, 1])
    """
    number = max(1, n_bins // bins) if bins else 1
    return np.minimum(np.arange(n_bins) // max(bins, 1), number - 1) if bins else np.zeros(n_bins, np.int64)
