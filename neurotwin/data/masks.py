"""Which responses are valid: the filters of `datafilters`, and what always holds.

Two things hold whatever filters are named. All that a prediction sees (frames, behaviour, spike history) lies within
one run of bins, that is, in one trial and one stimulus type, without a gap. And the predicted bin itself is one that
the session calls valid.
"""

from dataclasses import dataclass

import numpy as np
from pydantic import Field

from ..config import DatasetConfig, Params, register
from .session import SessionError

__all__ = ["Bins", "Filter", "MissingPct", "ValidLags", "lags_valid", "missing_below", "valid_responses"]


@dataclass(frozen=True)
class Bins:
    """What a filter may look at.

    Attributes
    ----------
    runs
        (N, 2): first and one past the last bin of each run.
    valid
        (T,) bool: the session's own validity.
    missing_pct
        (T, U) percentage of spikes below threshold, or None.
    """

    runs: np.ndarray
    valid: np.ndarray
    missing_pct: np.ndarray | None


class Filter(Params):
    """Base of the filters: parameters are fields, `mask` is what they leave."""

    @property
    def lags(self) -> int | None:
        """Bins before the predicted one over which validity is asked for; None for a filter of something else."""
        return None

    def mask(self, bins: Bins) -> np.ndarray:
        """True where a response may be used, (T, 1) or (T, U).

        Raises
        ------
        ValueError
            If the session does not have what the filter needs.
        """
        raise NotImplementedError


@register("filter", "valid_nlags")
class ValidLags(Filter):
    """Same trial, tracking valid and no gap over the last bins."""

    n_lags: int = Field(
        ..., ge=0, description="Bins before the predicted one that must be valid; at least the largest lag is covered."
    )

    @property
    def lags(self) -> int:
        return self.n_lags

    def mask(self, bins: Bins) -> np.ndarray:
        return lags_valid(bins.valid, bins.runs, self.n_lags)[:, None]


@register("filter", "missing_pct")
class MissingPct(Filter):
    """Leave out bins where too many spikes of a unit fell below the detection threshold."""

    threshold: float = Field(..., ge=0, le=100, description="Per cent. A unit whose median is above it keeps all bins.")

    def mask(self, bins: Bins) -> np.ndarray:
        if bins.missing_pct is None:
            raise ValueError(
                "asks for missing_pct, which the session does not have; remove the filter or give "
                "Session(missing_pct=...)"
            )
        return missing_below(bins.missing_pct, self.threshold)


def valid_responses(config: DatasetConfig, bins: Bins, *, name: str, n_units: int) -> np.ndarray:
    """Mask over bins and units, (T, U) bool.

    Parameters
    ----------
    config
        The session's configuration.
    bins
        What the filters look at.
    name
        Name of the session, for messages.
    n_units
        U.

    Raises
    ------
    SessionError
        If a filter needs what the session does not have, or nothing is left.
    """
    reach, valid = config.keys_lags.reach, bins.valid
    always = lags_valid(np.ones(len(valid), bool), bins.runs, reach) & valid
    mask = np.repeat(always[:, None], n_units, axis=1)
    for key, datafilter in config.datafilters.items():
        for op in datafilter.ops:
            part = op.params
            if part.lags is not None and part.lags < reach:  # validity covers what is read, whatever the file says
                part = part.model_copy(update={"n_lags": reach})
            try:
                mask &= part.mask(bins)
            except ValueError as error:
                raise SessionError(f"session {name!r}: datafilters.{key} {error}") from None
    if not mask.any():
        longest = int(np.max(bins.runs[:, 1] - bins.runs[:, 0], initial=0))
        raise SessionError(
            f"session {name!r}: no valid bin is left after the filters (longest run {longest} bins, a prediction needs "
            f"{reach + 1}; {int(valid.sum())} of {len(valid)} bins are valid); loosen datafilters or shorten keys_lags"
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
