"""Do responses follow the stimulus? The lag at which they depend on it most, against chance and against itself."""

import numpy as np

from .audit_base import Finding, Recording

__all__ = ["check_clock", "lagged_power"]

_REACH_S = 0.4  # lags looked at, either way; responses of the visual system peak well within
_MOST_LAGS = 96
_MOST_BINS = 40_000
_STRETCH = 1000  # bins; longer runs are cut, so that some of all parts of a session can be had
_MOST_UNITS = 48
_N_CHANCE = 60  # circular shifts that say what is chance
_N_GROUPS = 16  # of stretches, left out one by one for the standard error of the difference
_CHANCE_Z = 6.0
_DIFFERENCE_Z = 4.0  # both must hold; 4 is one false alarm in 30 000 sessions


def check_clock(recording: Recording) -> list[Finding]:
    """Responses that depend on what is shown after them more than on what was shown before."""
    lags, power, chance, error = lagged_power(recording)
    if not (lags < 0).any() or len(chance) == 0:
        return []
    ahead = int(np.argmax(np.where(lags < 0, power, -np.inf)))
    after = int(np.argmax(np.where(lags >= 0, power, -np.inf)))
    above_chance = (power[ahead] - chance.mean()) / max(chance.std(), 1e-30)
    difference = power[ahead] - power[after]
    if above_chance < _CHANCE_Z or difference < _DIFFERENCE_Z * max(error, 1e-30):
        return []
    lead = int(-lags[ahead])
    return [Finding(
        "clock", "error", recording.name, "all units",
        f"best lag −{lead} bins ({-1000 * lead / recording.bin_rate:.0f} ms), {above_chance:.0f} standard deviations "
        "above chance",
        "responses come before the frames that drive them, so stimulus and responses are on different clocks; align "
        "them again (frame times, sample offsets, the sign of a delay)",
    )]  # fmt: skip


def lagged_power(recording: Recording) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """How strongly responses depend on the stimulus `lag` bins before them.

    The power of the spike-triggered averages, summed over units u and features f::

        P(lag) = Σ_f Σ_u ( Σ_t x_f(t − lag) y_u(t) / T )²

    Features are brightness in a grid, its square and its change since the bin before, so that complex cells, whose
    average is flat, count too; features and responses are standardised, and their mean over every stretch is taken
    off, so that slow changes of both do not count.

    Returns
    -------
    lags
        (L,) in bins; negative: the stimulus comes after the responses.
    power
        (L,).
    chance
        P where responses are shifted against the stimulus by so much that nothing is left but chance.
    error
        Standard error of the difference between the largest power ahead and that at lags of 0 or more, by the
        jackknife over groups of stretches.
    """
    reach = int(min(_MOST_LAGS, round(_REACH_S * recording.bin_rate)))
    stretches = _stretches(recording)
    single = max((stop - start for start, stop in stretches), default=1) == 1
    if single:  # images: one presentation a trial, lags are from one to the next
        order = np.lexsort((np.arange(recording.n_bins), recording.position))[:_MOST_BINS]
        pieces = np.array_split(order, max(1, len(order) // _STRETCH, min(_N_GROUPS, len(order) // 20)))
        reach = max(1, min(reach, 3))
    else:
        pieces = [np.arange(start, stop) for start, stop in stretches if stop - start >= 8]
    lags = np.arange(-reach, reach + 1)
    n_bins = sum(map(len, pieces))
    if len(pieces) < 4 or n_bins < 20 * reach:
        return lags, np.zeros(len(lags)), np.zeros(0), 0.0
    x, y, group = _signals(recording, pieces, reach)
    groups = np.arange(min(_N_GROUPS, len(pieces)))
    bounds = [np.flatnonzero(group == g)[[0, -1]] + [0, 1] for g in groups]
    products = np.empty((len(lags), len(groups), x.shape[1] * y.shape[1]), np.float32)
    for index, lag in enumerate(lags):
        for g, (start, stop) in enumerate(bounds):
            # zeros between the stretches keep lags from reaching from one into the next
            seen, answered = x[start + max(0, -lag) : stop - max(0, lag)], y[start + max(0, lag) : stop + min(0, lag)]
            products[index, g] = (seen.T @ answered).ravel()
    total = products.sum(axis=1)
    power = np.square(total / n_bins).sum(axis=1, dtype=np.float64)
    left_out = np.square((total[:, None] - products) / n_bins).sum(axis=2, dtype=np.float64)
    ahead, after = int(np.argmax(power[:reach])), reach + int(np.argmax(power[reach:]))
    spread = left_out[ahead] - left_out[after]
    error = np.sqrt((len(groups) - 1) * np.mean((spread - spread.mean()) ** 2))
    return lags, power, _by_chance(x, y, n_bins, reach), float(error)


def _by_chance(x: np.ndarray, y: np.ndarray, n_bins: int, reach: int) -> np.ndarray:
    """The power under shifts of the responses by more than any lag, round the end of the recording."""
    far = np.linspace(2 * reach + 1, max(len(x) - 2 * reach - 1, 2 * reach + 2), _N_CHANCE).astype(int)
    chance = [np.square(x.T @ np.roll(y, shift, axis=0) / n_bins).sum(dtype=np.float64) for shift in far]
    return np.asarray(chance)


def _stretches(recording: Recording) -> np.ndarray:
    """First and one past the last bin of stretches from all over the recording, together at most 40 000 bins."""
    pieces = [
        (start, min(start + _STRETCH, stop))
        for first, stop in recording.runs().tolist()
        for start in range(first, stop, _STRETCH)
    ]
    lengths = np.array([stop - start for start, stop in pieces])
    every = max(1, -(-int(lengths.sum()) // _MOST_BINS))
    return np.array(pieces[::every])


def _signals(recording: Recording, pieces: list[np.ndarray], reach: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features (T, F) and responses (T, U), zeros after each piece, and the group of each bin, −1 nowhere."""
    units = _most_active(recording, pieces)
    features, responses, group = [], [], []
    for index, bins in enumerate(pieces):
        x = _features(recording, bins)
        m = np.asarray(_rows(recording.mask, bins), bool)[:, units]
        y = np.asarray(_rows(recording.responses, bins), np.float32)[:, units]
        mean = (y * m).sum(axis=0) / np.maximum(m.sum(axis=0), 1)
        features += [x - x.mean(axis=0), np.zeros((reach, x.shape[1]), np.float32)]
        responses += [(y - mean) * m, np.zeros((reach, len(units)), np.float32)]
        group.append(np.full(len(bins) + reach, index * min(_N_GROUPS, len(pieces)) // len(pieces)))
    x, y = np.concatenate(features), np.concatenate(responses)
    x /= np.maximum(x.std(axis=0), 1e-6)
    y /= np.maximum(y.std(axis=0), 1e-6)
    return x.astype(np.float32), y.astype(np.float32), np.concatenate(group)


def _rows(array: object, bins: np.ndarray) -> np.ndarray:
    """Rows of an array that may be streamed; neighbours are read as one."""
    if len(bins) and bins[-1] - bins[0] == len(bins) - 1:
        return array[int(bins[0]) : int(bins[-1]) + 1]
    return array[bins] if isinstance(array, np.ndarray) else np.asarray(array)[bins]


def _most_active(recording: Recording, pieces: list[np.ndarray]) -> np.ndarray:
    """Columns of the units that vary most in the first pieces."""
    if recording.n_units <= _MOST_UNITS:
        return np.arange(recording.n_units)
    some = [np.asarray(_rows(recording.responses, bins), np.float32) for bins in pieces[:: max(1, len(pieces) // 8)]]
    return np.argsort(-np.concatenate(some).var(axis=0), kind="stable")[:_MOST_UNITS]


def _features(recording: Recording, bins: np.ndarray) -> np.ndarray:
    """Brightness in a grid of 6 × 6, its square about the mean, and the change of all pixels, (T, F)."""
    frames = recording.frames(bins).mean(axis=1)
    rows, columns = (np.linspace(0, n, min(6, n) + 1).astype(int)[:-1] for n in frames.shape[1:])
    sums = np.add.reduceat(np.add.reduceat(frames, rows, axis=1), columns, axis=2)
    areas = np.outer(np.diff(np.r_[rows, frames.shape[1]]), np.diff(np.r_[columns, frames.shape[2]]))
    grid = (sums / areas).reshape(len(frames), -1)
    change = np.abs(np.diff(frames, axis=0, prepend=frames[:1])).mean(axis=(1, 2))[:, None]
    contrast = frames.std(axis=(1, 2))[:, None]
    return np.concatenate([grid, (grid - grid.mean(axis=1, keepdims=True)) ** 2, contrast, change], axis=1)
