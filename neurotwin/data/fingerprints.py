"""A perceptual hash of frames, which forgives brightness, contrast and a grey level here and there."""

import numpy as np
import scipy.fft

__all__ = ["CLOSE", "N_PROJECTIONS", "fingerprints"]

CLOSE = 0.1
"""Distance of two hashes below which they are of one picture; d² = 2 (1 − r), so a correlation of 0.995."""
N_PROJECTIONS = 32
"""Numbers in a hash."""

_GRID = 24  # rows and columns at which pictures are compared
_CONTRAST = 8 / 255  # of the range: a grey level here and there then lowers r to 0.995, and not further
_PLAIN = 0.8  # share of one grey level above which a frame is a blank with something in it
_GRATING = 0.7  # share of the power in one frequency; a square wave has 8/π² = 0.81 in its first harmonic
_FEWEST_PIXELS = 16  # fewer cannot tell pictures apart


def fingerprints(frames: np.ndarray, value_range: tuple[float, float] = (0.0, 255.0)) -> tuple[np.ndarray, np.ndarray]:
    """A perceptual hash of frames, and which of them are pictures that can be told apart.

    Frames are averaged over channels, resampled to 24 × 24, freed of smooth shading (the quadratic surface that fits
    best, in which two views of sky or table top are alike), standardised, and projected on 32 fixed random directions
    of length 1/√32. Distances between projections are those between standardised pictures (Johnson & Lindenstrauss
    1984), hence d² ≈ 2 (1 − r) with their correlation r. Neither brightness nor contrast matter, and frames of other
    sizes can be compared.

    Parameters
    ----------
    frames
        (N, C, H, W) float32.
    value_range
        Lowest and highest grey level of the session.

    Returns
    -------
    hashes
        (N, 32) float32.
    distinct
        (N,) bool: false for blanks, sparse dots and gratings, which recur without anybody having repeated them.

    Examples
    --------
    >>> picture = np.random.default_rng(0).integers(0, 256, (1, 1, 30, 40)).astype(np.float32)
    >>> hashes, distinct = fingerprints(np.concatenate([picture, 0.9 * picture + 5, np.zeros_like(picture)]))
    >>> bool(np.allclose(hashes[0], hashes[1], atol=1e-3)), distinct.tolist()
    (True, [True, True, False])
    """
    grey = frames.mean(axis=1)
    height, width = grey.shape[1:]
    small = _resampling(height) @ grey @ _resampling(width).T
    small = _without_shading(small)
    contrast = small.std(axis=(1, 2))
    spread = max(value_range[1] - value_range[0], 1e-12)
    distinct = contrast >= _CONTRAST * spread
    distinct &= height * width >= _FEWEST_PIXELS
    distinct[distinct] &= ~_plain(grey[distinct], spread)
    distinct[distinct] &= ~_gratings(small[distinct])
    flat = (small / np.maximum(contrast, 1e-12)[:, None, None]).reshape(len(small), -1) / _GRID
    directions = np.random.default_rng(24).standard_normal((_GRID**2, N_PROJECTIONS)).astype(np.float32)
    return (flat @ directions / np.sqrt(N_PROJECTIONS)).astype(np.float32), distinct


def _resampling(size: int) -> np.ndarray:
    """Averages of `size` pixels over each of 24 equal stretches, (24, size) float32."""
    edges = np.arange(_GRID + 1) * size / _GRID
    pixel = np.arange(size)
    overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    overlap = np.maximum(overlap, 0)
    return (overlap / overlap.sum(axis=1, keepdims=True)).astype(np.float32)


def _without_shading(small: np.ndarray) -> np.ndarray:
    """Pictures minus the quadratic surface that fits them best."""
    axis = np.linspace(-1, 1, _GRID)
    powers = [(i, j) for i in range(3) for j in range(3 - i)]
    surfaces = np.stack([np.outer(axis**i, axis**j).ravel() for i, j in powers], axis=1)
    basis = np.linalg.qr(surfaces)[0].astype(np.float32)
    flat = small.reshape(len(small), _GRID**2)
    return (flat - flat @ basis @ basis.T).reshape(small.shape)


def _plain(grey: np.ndarray, spread: float) -> np.ndarray:
    """Whether most pixels have the value that is most common, up to a grey level, (N,)."""
    flat = grey.reshape(len(grey), grey.shape[1] * grey.shape[2])
    half = flat.shape[1] // 2
    middle = np.partition(flat, half, axis=1)[:, half, None]
    return np.count_nonzero(np.abs(flat - middle) <= 1.5 * spread / 255, axis=1) > _PLAIN * flat.shape[1]


def _gratings(small: np.ndarray) -> np.ndarray:
    """Whether one frequency of 1.5 cycles a frame or more holds most of the power, (N,)."""
    window = np.hanning(_GRID + 2)[1:-1].astype(np.float32)
    taper = window[:, None] * window
    centred = small - (small * taper).sum(axis=(1, 2), keepdims=True) / taper.sum()
    spectrum = scipy.fft.rfft2(centred * taper, s=(2 * _GRID, 2 * _GRID))
    power = spectrum.real**2 + spectrum.imag**2
    power[:, :, 1:-1] *= 2  # the half of the spectrum that is left out
    signed = np.fft.fftfreq(2 * _GRID) * 2 * _GRID  # in half cycles a frame
    columns = np.arange(_GRID + 1)
    row, column = np.divmod(power.reshape(len(small), signed.size * columns.size).argmax(axis=1), columns.size)
    near = _lobe(signed, signed[row]), np.abs(columns - column[:, None]) <= 4
    mirrored = _lobe(signed, -signed[row]), np.abs(columns + column[:, None]) <= 4
    both = near[0] & mirrored[0], near[1] & mirrored[1]
    held = _inside(power, *near) + _inside(power, *mirrored) - _inside(power, *both)
    return (np.hypot(signed[row], column) >= 3) & (held > _GRATING * power.sum(axis=(1, 2)))


def _inside(power: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Power (N, R, C) summed over some rows (N, R) and columns (N, C) of each frame, (N,)."""
    over_columns = power @ columns[:, :, None].astype(power.dtype)
    return (over_columns[:, :, 0] * rows).sum(axis=1)


def _lobe(frequency: np.ndarray, middle: np.ndarray) -> np.ndarray:
    """Frequencies in the main lobe of the window about each `middle`, (N, R); the axis is periodic."""
    away = np.abs(frequency - middle[:, None])
    return np.minimum(away, 2 * _GRID - away) <= 4
