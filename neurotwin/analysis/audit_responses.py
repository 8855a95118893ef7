"""Checks of responses: trials without any, units that are silent, drift or stop, masks that hide a unit."""

from dataclasses import dataclass

import numpy as np
import scipy

from ..data.session import SPLITS
from .audit_base import ALPHA, Finding, Recording, log_chance_of_none, row_blocks, some

__all__ = ["Activity", "check_masks", "check_trials", "check_units", "measure_activity"]

_N_BLOCKS = 60  # stretches of equal length into which a session is cut: 15 a quarter, enough for their scatter
_SHORTEST_STOP = 0.05  # of a unit's bins; a shorter silence changes its mean by less than estimation error does
_DRIFT = 2.0  # the filters of the field let pass 45 per cent of lost spikes, a factor of 1.8
_HIDDEN = 0.5  # of the bins that count for any unit: "most"


@dataclass(frozen=True, kw_only=True)
class Activity:
    """Sums over a recording, made in two passes over its responses and masks.

    N counts trials, G kinds of stimulus, B stretches of the session in the order of recording.

    Attributes
    ----------
    trials
        (N,) ids.
    length
        (N,) bins of each that count for any unit.
    active, expected_active
        (N,) responses other than zero, and how many there would be at the session's mean.
    changes, expected_changes
        (N,) responses that differ from the bin before, likewise.
    silent_tail
        (N,) counting bins after the last response other than zero of any unit.
    lowest, highest
        (U,) smallest and largest response that counts.
    counted
        (3, U) bins that count for each unit in training, validation and test.
    counted_any
        (3,) bins that count for any unit.
    size, bins
        (G, B, U) sum of absolute responses, and bins that count.
    """

    trials: np.ndarray
    length: np.ndarray
    active: np.ndarray
    expected_active: np.ndarray
    changes: np.ndarray
    expected_changes: np.ndarray
    silent_tail: np.ndarray
    lowest: np.ndarray
    highest: np.ndarray
    counted: np.ndarray
    counted_any: np.ndarray
    size: np.ndarray
    bins: np.ndarray


def measure_activity(recording: Recording) -> Activity:
    """Add up all that the checks of responses need, in blocks."""
    trials, code = np.unique(recording.trial, return_inverse=True)
    kinds, kind = np.unique(recording.kind, return_inverse=True)
    sums = _Sums(recording, code, len(trials), kind * _N_BLOCKS + _stretch_of(recording), len(kinds) * _N_BLOCKS)
    before, before_mask = np.zeros((1, recording.n_units)), np.zeros((1, recording.n_units), bool)
    for part in row_blocks(recording.n_bins, 16 * recording.n_units):
        r, m = np.asarray(recording.responses[part], np.float64), np.asarray(recording.mask[part], bool)
        pair = _pairs(recording, part, before_mask, m)
        sums.add(part, r, m, pair, pair & (r != np.concatenate([before, r[:-1]])))
        before, before_mask = r[-1:], m[-1:]
    active = sums.active_of / np.maximum(sums.bins.sum(axis=0), 1)
    change = sums.changes_of / np.maximum(sums.pairs_of, 1)
    expected, expected_changes, tail = _expectations(recording, code, len(trials), active, change, sums.last)
    shape = (len(kinds), _N_BLOCKS, recording.n_units)
    return Activity(
        trials=trials, length=sums.length, active=sums.active, expected_active=expected, changes=sums.changes,
        expected_changes=expected_changes, silent_tail=tail, lowest=sums.lowest, highest=sums.highest,
        counted=sums.counted, counted_any=sums.counted_any, size=sums.size.reshape(shape),
        bins=sums.bins.reshape(shape),
    )  # fmt: skip


def check_trials(recording: Recording, activity: Activity) -> list[Finding]:
    """Trials in which no unit responds, or no response ever changes, or all responses stop before the end."""
    findings, n_trials = [], len(activity.trials)
    limit = np.log(ALPHA / n_trials)
    active_fano = _fano(activity.active, activity.expected_active)
    silent = (activity.active == 0) & (log_chance_of_none(activity.expected_active, active_fano) < limit)
    if silent.any():
        expected = float(activity.expected_active[silent].min())
        findings.append(Finding(
            "zero trials", "error", recording.name, f"trials {some(activity.trials[silent], n_trials)}",
            f"0 responses where {expected:.0f} are expected",
            "all units are silent, as where responses were withheld or lost; mark these bins with valid=False",
        ))  # fmt: skip
    change_fano = _fano(activity.changes, activity.expected_changes)
    unlikely = log_chance_of_none(activity.expected_changes, change_fano) < limit
    still = (activity.changes == 0) & (activity.active > 0) & unlikely
    if still.any():
        expected = float(activity.expected_changes[still].min())
        findings.append(Finding(
            "constant trials", "error", recording.name, f"trials {some(activity.trials[still], n_trials)}",
            f"0 changes from bin to bin where {expected:.0f} are expected",
            "every unit keeps one value for the whole trial, as where a mean was written into all bins; mark them with "
            "valid=False, or convert the recording again",
        ))  # fmt: skip
    share = activity.silent_tail / np.maximum(activity.length, 1)
    short = (activity.active > 0) & (log_chance_of_none(activity.expected_active * share, active_fano) < limit)
    if short.any():
        longest = int(activity.silent_tail[short].max())
        findings.append(Finding(
            "frame count", "error", recording.name, f"trials {some(activity.trials[short], n_trials)}",
            f"no response in the last {longest} bins",
            "the trial has more frames than responses, and its end was padded; mark the padding with valid=False",
        ))  # fmt: skip
    return findings


def check_units(recording: Recording, activity: Activity) -> list[Finding]:
    """Units that never respond, respond in a part of the session only, or change their rate by a factor of two."""
    findings, drifts = [], _drifts(activity)
    for unit, name in enumerate(np.asarray(recording.unit_ids).tolist()):
        what = f"unit {name}"
        if activity.counted[:, unit].sum() == 0 and activity.bins[..., unit].sum() == 0:
            continue  # the check of masks says so
        if activity.lowest[unit] == activity.highest[unit]:
            findings.append(Finding(
                "silent unit", "error", recording.name, what, f"always {activity.lowest[unit]:g}",
                "nothing can be fitted or scored; leave it out with cids",
            ))  # fmt: skip
            continue
        silence = _silence(activity, unit)
        if silence is not None:
            share, where = silence
            findings.append(Finding(
                "stopping unit", "error", recording.name, what, f"silent in the {where} {share:.0%} of its bins",
                "the unit was lost or appeared during the session; mask that part (missing_pct), or leave it out with "
                "cids",
            ))  # fmt: skip
        elif drifts[unit]:
            findings.append(Finding(
                "drifting unit", "warning", recording.name, what,
                f"last quarter {np.exp(drifts[unit]):.2f} times the first",
                "the rate changes while the stimuli do not, so a model learns a mean that holds nowhere; mask the part "
                "in which spikes are lost (missing_pct), or leave it out with cids",
            ))  # fmt: skip
    return findings


def check_masks(recording: Recording, activity: Activity) -> list[Finding]:
    """Units of which most bins are masked, or all of the training or validation part."""
    findings = []
    everywhere, of_units = activity.counted_any.sum(), activity.counted.sum(axis=0)
    for unit, name in enumerate(np.asarray(recording.unit_ids).tolist()):
        hidden = 1 - of_units[unit] / max(everywhere, 1)
        bare = [SPLITS[i] for i in range(2) if activity.counted_any[i] and not activity.counted[i, unit]]
        if everywhere and (hidden > _HIDDEN or bare):
            within = f", all of {' and '.join(bare)}" if bare else ""
            findings.append(Finding(
                "mask", "error" if bare else "warning", recording.name, f"unit {name}",
                f"{hidden:.0%} of its bins masked{within}",
                "its figures rest on a small or unlike part of the session; loosen datafilters, or leave it out with "
                "cids",
            ))  # fmt: skip
    return findings


class _Sums:
    """What is added up over the blocks of a recording."""

    def __init__(self, recording: Recording, code: np.ndarray, n_trials: int, cell: np.ndarray, n_cells: int) -> None:
        n_units = recording.n_units
        self.code, self.cell, self.split, self.n_trials = code, cell, recording.split, n_trials
        self.size, self.bins = np.zeros((2, n_cells, n_units))
        self.active, self.changes, self.length, self.last = np.zeros((4, n_trials))
        self.active_of, self.pairs_of, self.changes_of = np.zeros((3, n_units))
        self.lowest, self.highest = np.full(n_units, np.inf), np.full(n_units, -np.inf)
        self.counted, self.counted_any = np.zeros((3, n_units)), np.zeros(3)

    def add(self, part: slice, r: np.ndarray, m: np.ndarray, pair: np.ndarray, change: np.ndarray) -> None:
        """Add the bins of a block: responses, which count, which follow one that counts, and which then differ."""
        code, seen, responding = self.code[part], m.any(axis=1), (r != 0) & m
        _add(self.size, self.cell[part], np.abs(r) * m)
        _add(self.bins, self.cell[part], m)
        _add(self.active, code, responding.sum(axis=1))
        _add(self.changes, code, change.sum(axis=1))
        self.length += np.bincount(code, seen, self.n_trials)
        self.active_of += responding.sum(axis=0)
        self.pairs_of += pair.sum(axis=0)
        self.changes_of += change.sum(axis=0)
        self.lowest = np.minimum(self.lowest, np.where(m, r, np.inf).min(axis=0))
        self.highest = np.maximum(self.highest, np.where(m, r, -np.inf).max(axis=0))
        for index in range(3):
            chosen = self.split[part] == index
            self.counted[index] += m[chosen].sum(axis=0)
            self.counted_any[index] += (seen & chosen).sum()
        hits = np.flatnonzero(responding.any(axis=1))
        np.maximum.at(self.last, code[hits], part.start + hits + 1)


def _stretch_of(recording: Recording) -> np.ndarray:
    """Which of the stretches of the session, in the order of recording, each bin lies in, (T,)."""
    stretch = np.empty(recording.n_bins, np.int64)
    order = np.lexsort((np.arange(recording.n_bins), recording.position))
    stretch[order] = np.arange(recording.n_bins) * _N_BLOCKS // recording.n_bins
    return stretch


def _pairs(recording: Recording, part: slice, before: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Whether a response and the one before it both count and lie in one run, (T, U); `before`: the row before."""
    same_run = np.diff(recording.run[part], prepend=recording.run[part.start - 1] if part.start else -1) == 0
    return mask & np.concatenate([before, mask[:-1]]) & same_run[:, None]


def _add(total: np.ndarray, index: np.ndarray, values: np.ndarray) -> None:
    """Add rows to the entries that they belong to; quick where equal indices are neighbours."""
    starts = np.flatnonzero(np.diff(index, prepend=-1))
    np.add.at(total, index[starts], np.add.reduceat(values, starts, axis=0, dtype=np.float64))


def _expectations(
    recording: Recording, code: np.ndarray, n_trials: int, active: np.ndarray, change: np.ndarray, last: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Expected responses and changes of each trial, (N,), and its counting bins after bin `last`."""
    expected, expected_changes, tail = np.zeros((3, n_trials))
    before = np.zeros((1, recording.n_units), bool)
    for part in row_blocks(recording.n_bins, 2 * recording.n_units):
        m = np.asarray(recording.mask[part], bool)
        pair = _pairs(recording, part, before, m)
        _add(expected, code[part], m @ active)
        _add(expected_changes, code[part], pair @ change)
        late = m.any(axis=1) & (np.arange(part.start, part.stop) >= last[code[part]])
        tail += np.bincount(code[part], late, n_trials)
        before = m[-1:]
    return expected, expected_changes, tail


def _fano(observed: np.ndarray, expected: np.ndarray) -> float:
    """Variance over mean of counts about their expectation, of those above zero; at least 1."""
    used = (observed > 0) & (expected > 0)
    if used.sum() < 2:
        return 1.0
    scaled = expected[used] * (observed[used].sum() / expected[used].sum())
    return max(1.0, float(np.sum((observed[used] - scaled) ** 2 / scaled) / (used.sum() - 1)))


def _silence(activity: Activity, unit: int) -> tuple[float, str] | None:
    """Share of the unit's bins in a silence at an end of the session that chance does not explain, and which end."""
    size, bins = activity.size[..., unit], activity.bins[..., unit]
    total = size.sum(axis=0)
    responding = np.flatnonzero(total)
    inside = slice(responding[0], responding[-1] + 1)
    rate = size[:, inside].sum(axis=1) / np.maximum(bins[:, inside].sum(axis=1), 1)
    expected = rate @ bins  # of kinds that were never shown inside, nothing is expected
    fano = _fano(total[inside] / _quantum(activity, unit), expected[inside] / _quantum(activity, unit))
    for where, outside in (("last", slice(inside.stop, None)), ("first", slice(0, inside.start))):
        share = bins[:, outside].sum() / bins.sum()
        chance = log_chance_of_none(expected[outside].sum() / _quantum(activity, unit), fano)
        if share >= _SHORTEST_STOP and chance < np.log(ALPHA / activity.size.shape[2]):
            return float(share), where
    return None


def _quantum(activity: Activity, unit: int) -> float:
    """What one event of the unit adds: 1 for counts, its largest response where that is smaller or not whole."""
    top = max(abs(activity.lowest[unit]), abs(activity.highest[unit]))
    whole = activity.lowest[unit] >= 0 and activity.size[..., unit].sum() % 1 == 0
    return 1.0 if whole else float(top)


def _drifts(activity: Activity) -> np.ndarray:
    """Log ratio of the rate in the last quarter to that in the first, (U,); 0 where it may be chance or small.

    Rates are relative to those that the kinds of stimulus shown would give. What all units have in common, such as
    arousal, is no fault of a unit: their median is taken off where there are four units or more.
    """
    n_units = activity.size.shape[2]
    rate = activity.size.sum(axis=1) / np.maximum(activity.bins.sum(axis=1), 1)
    expected = np.einsum("gu,gbu->bu", rate, activity.bins)
    observed = activity.size.sum(axis=0)
    quarter = _N_BLOCKS // 4
    (early, early_error), (late, late_error) = (
        _log_ratio(observed[part], expected[part]) for part in (slice(0, quarter), slice(-quarter, None))
    )
    change, error = late - early, np.hypot(early_error, late_error)
    known = np.isfinite(change) & np.isfinite(error)
    if known.sum() >= 4:
        change = change - np.median(change[known])
    n_free = 2 * (quarter - 1)
    beyond = np.abs(change) - np.log(_DRIFT)
    with np.errstate(invalid="ignore"):
        large = (beyond > scipy.stats.t.isf(1e-3, n_free) * error) & (
            np.abs(change) > scipy.stats.t.isf(ALPHA / (2 * n_units), n_free) * error
        )
    return np.where(known & large, change, 0.0)


def _log_ratio(observed: np.ndarray, expected: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logarithm of the ratio of sums over blocks (B, U), and its standard error from the blocks' scatter, (U,)."""
    used = expected > 0
    n = used.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = observed.sum(axis=0) / expected.sum(axis=0)
        scatter = np.sqrt(np.sum((observed - ratio * expected) ** 2, axis=0) * n / (n - 1))
        return np.log(ratio), np.where(n > 2, scatter / observed.sum(axis=0), np.nan)
