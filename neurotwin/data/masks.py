"""Which counts are valid: the filters of `datafilters`, and what always holds.

Whatever filters are named, all that a prediction sees (frames, behaviour, spike history) lies within one run of bins
(one trial, one stimulus type, no gap), and its own bin is one that the session calls valid.
"""

import numpy as np

from ..config import DatasetConfig, MissingPct, ValidLags
from .session import SessionError

__all__ = ["lags_valid", "missing_below", "valid_counts"]


def valid_counts(
    config: DatasetConfig,
    *,
    name: str,
    runs: np.ndarray,
    valid: np.ndarray,
    missing_pct: np.ndarray | None,
    n_units: int,
) -> np.ndarray:
    """Mask over bins and units, (T, U) bool.

    Parameters
    ----------
    config
        The session's configuration.
    name
        Name of the session, for messages.
    runs
        (N, 2): first and one past the last bin of each run.
    valid
        (T,) bool: the session's own validity.
    missing_pct
        (T, U) percentage of spikes below threshold, or None.
    n_units
        U.

    Raises
    ------
    SessionError
        If a filter needs what the session does not have, or nothing is left.
    """
    always = lags_valid(np.ones(len(valid), bool), runs, config.keys_lags.reach) & valid
    mask = np.repeat(always[:, None], n_units, axis=1)
    for key, datafilter in config.datafilters.items():
        for op in datafilter.ops:
            match op.params:
                case ValidLags(n_lags=n_lags):
                    mask &= lags_valid(valid, runs, n_lags)[:, None]
                case MissingPct(threshold=threshold):
                    if missing_pct is None:
                        raise SessionError(
                            f"session {name!r}: datafilters.{key} asks for missing_pct, which it does not have; "
                            "remove the filter or give Session(missing_pct=...)"
                        )
                    mask &= missing_below(missing_pct, threshold)
    if not mask.any():
        longest = int(np.max(runs[:, 1] - runs[:, 0], initial=0))
        raise SessionError(
            f"session {name!r}: no valid bin is left after the filters (longest run {longest} bins, a prediction needs "
            f"{config.keys_lags.reach + 1}; {int(valid.sum())} of {len(valid)} bins are valid); loosen datafilters or "
            "shorten keys_lags"
        )
    return mask


def lags_valid(valid: np.ndarray, runs: np.ndarray, n_lags: int) -> np.ndarray:
    """True where the bin and the `n_lags` before it are valid and lie in the same run, (T,).

    Examples
    --------
    >>> lags_valid(np.array([1, 1, 1, 0, 1, 1], bool), np.array([[0, 6]]), 1).astype(int).tolist()
    [0, 1, 1, 0, 0, 1]
    """
    bins = np.arange(len(valid))
    starts = np.repeat(runs[:, 0], runs[:, 1] - runs[:, 0])
    last_invalid = np.maximum.accumulate(np.where(valid, -1, bins))
    return (bins - n_lags >= starts) & (last_invalid < bins - n_lags)


def missing_below(missing_pct: np.ndarray, threshold: float) -> np.ndarray:
    """True where at most `threshold` per cent are missing; all bins of a unit whose median is above it, (T, U)."""
    return (missing_pct <= threshold) | (np.median(missing_pct, axis=0) > threshold)[None]
