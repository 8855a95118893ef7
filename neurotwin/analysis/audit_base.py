"""What an audit looks at, a recording as a run would see it, and what it finds."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ..data.pipelines import runs_of
from ..data.session import Session, SessionError

__all__ = ["ALPHA", "Finding", "Recording", "log_chance_of_none", "row_blocks", "some"]

ALPHA = 1e-6
"""Chance of a false alarm of one statistical check in one session, however many units or trials it has."""

_BLOCK = 1 << 24  # bytes that are read at a time


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes
    ----------
    check
        Name of the check that found it.
    severity
        "error" where results will be wrong or meaningless, "warning" where they may be.
    session
        Name of the session.
    what
        The unit, the trials or the signal.
    figure
        The number that gave it away, with its unit.
    message
        What is wrong, and what to do.
    """

    check: str
    severity: Literal["error", "warning"]
    session: str
    what: str
    figure: str
    message: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Recording:
    """A session as a run sees it. T counts the bins of the run, U its units, R the bins as recorded.

    Arrays may be memory-mapped or streamed; checks read them in blocks.

    Attributes
    ----------
    name
        Of the session.
    bin_rate
        Modelled bins a second, Hz.
    unit_ids
        (U,) ids.
    source
        (N, ...): frames, in any shape that a session's stimulus may have.
    frame
        (T,) index into `source` of what each bin shows.
    responses
        (T, U).
    mask
        (T, U) bool: responses that count.
    split
        (T,) int8: 0 training, 1 validation, 2 test, −1 none.
    trial
        (T,) trial of each bin.
    run
        (T,) number of the run of each bin, within which time is continuous. Bins of a run are adjacent.
    kind
        (T,) code of the stimulus type.
    position
        (T,) sorts bins into the order in which they were recorded; equal values keep their order.
    repeat_id
        (T,) bins of equal id ≥ 0 show the same frame.
    pixel_scale
        Factor and offset from `source` to what a model sees.
    pixels_per_degree
        Pixels of a frame per degree of visual angle, where known.
    behavior
        Signals by name, (R,) or (R, K), as recorded.
    recorded_valid
        (R,) bool: bins in which behaviour counts.
    recorded_trial
        (R,) trial of every recorded bin, negative between trials.
    recorded_rate
        Recorded bins a second, Hz.
    time
        (R,) start of each recorded bin in s, or None.
    """

    name: str
    bin_rate: float
    unit_ids: np.ndarray
    source: Any
    frame: np.ndarray
    responses: Any
    mask: Any
    split: np.ndarray
    trial: np.ndarray
    run: np.ndarray
    kind: np.ndarray
    position: np.ndarray
    repeat_id: np.ndarray
    pixel_scale: tuple[float, float] = (1.0, 0.0)
    pixels_per_degree: float | None = None
    behavior: Mapping[str, Any] = field(default_factory=dict)
    recorded_valid: np.ndarray
    recorded_trial: np.ndarray
    recorded_rate: float
    time: np.ndarray | None = None

    @classmethod
    def of_session(cls, session: Session, split: np.ndarray, mask: Any = None) -> "Recording":
        """A session bin by bin, without a config.

        Parameters
        ----------
        session
            The session.
        split
            (T,) codes: 0 training, 1 validation, 2 test, −1 none.
        mask
            (T, U) bool; by default the session's `valid` for all units. Bins between trials never count.

        Raises
        ------
        SessionError
            If the shapes do not agree.
        """
        if mask is None:
            mask = np.repeat((session.valid & (session.trial >= 0))[:, None], session.n_units, axis=1)
        if np.shape(split) != (session.n_bins,) or np.shape(mask) != (session.n_bins, session.n_units):
            raise SessionError(
                f"session {session.name!r}: split has shape {np.shape(split)} and mask {np.shape(mask)}; give "
                f"({session.n_bins},) and ({session.n_bins}, {session.n_units})"
            )
        codes = session.type_codes
        runs = runs_of(session.trial, codes)
        every = np.arange(session.n_bins)
        return cls(
            name=session.name, bin_rate=float(session.bin_rate), unit_ids=session.unit_ids, source=session.stimulus,
            frame=every, responses=session.responses, mask=mask, split=np.asarray(split), trial=session.trial,
            run=np.repeat(np.arange(len(runs)), runs[:, 1] - runs[:, 0]), kind=codes, position=every,
            repeat_id=session.repeat_id, pixels_per_degree=session.pixels_per_degree, behavior=session.behavior,
            recorded_valid=session.valid, recorded_trial=session.trial, recorded_rate=float(session.bin_rate),
            time=session.time,
        )  # fmt: skip

    @property
    def n_bins(self) -> int:
        """Number of bins, T."""
        return len(self.frame)

    @property
    def n_units(self) -> int:
        """Number of units, U."""
        return self.responses.shape[1]

    def runs(self) -> np.ndarray:
        """First and one past the last bin of every run, (N, 2)."""
        edges = np.flatnonzero(np.diff(self.run)) + 1
        return np.stack([np.r_[0, edges], np.r_[edges, self.n_bins]], axis=1)

    def frames(self, bins: np.ndarray) -> np.ndarray:
        """What is shown in the given bins, (N, C, H, W) float32. Ask for few at a time.

        Streamed frames are read as one stretch where they are neighbours.
        """
        index = self.frame[bins]
        if len(index) and index[-1] - index[0] < 2 * len(index) and (np.diff(index) >= 0).all():
            picked = np.asarray(self.source[int(index[0]) : int(index[-1]) + 1])[index - index[0]]
        elif isinstance(self.source, np.ndarray):
            picked = self.source[index]
        else:
            picked = np.concatenate([np.asarray(self.source[int(i) : int(i) + 1]) for i in index])
        shape = picked.shape[1:]
        channels, size = (shape[0], shape[1:]) if len(shape) == 3 else (1, shape)
        return picked.reshape(len(index), channels, *size, *(1,) * (2 - len(size))).astype(np.float32)


def row_blocks(n_rows: int, row_bytes: int) -> Iterator[slice]:
    """Consecutive slices of rows, each of about 16 MB."""
    step = max(1, _BLOCK // max(1, row_bytes))
    for start in range(0, n_rows, step):
        yield slice(start, min(start + step, n_rows))


def log_chance_of_none(expected: np.ndarray | float, fano: float) -> np.ndarray:
    """Logarithm of the chance to count nothing where `expected` is the mean: that of a negative binomial.

    Its variance is `fano` times its mean, so that units that burst or populations that pause are not taken for
    broken ones: ln P(0) = −mean · ln F / (F − 1), which is −mean, the Poisson's, for F = 1.

    Examples
    --------
    >>> from scipy.stats import nbinom
    >>> round(float(log_chance_of_none(6.0, 3.0)), 6) == round(float(nbinom.logpmf(0, 3.0, 1 / 3)), 6)
    True
    """
    fano = max(float(fano), 1.0)
    slope = 1.0 if fano < 1 + 1e-9 else np.log(fano) / (fano - 1)
    return -np.asarray(expected, np.float64) * slope


def some(names: Sequence[Any], total: int | None = None, most: int = 5) -> str:
    """The first few names, and how many there are.

    Examples
    --------
    >>> some([3, 4]), some(range(9), total=40)
    ('3, 4', '0, 1, 2, 3, 4 and 4 more (9 of 40)')
    """
    text = ", ".join(str(name) for name in list(names)[:most])
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return text + more + (f" ({len(names)} of {total})" if total is not None else "")
