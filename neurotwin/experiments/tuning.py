"""Gratings and the curves that describe responses to them.

Directions are of drift, in degrees: 0 is to the right, 90 down (to larger y). An orientation is the direction of the
modulation, 0 to 180, so that a grating of orientation 0 has vertical bars.
"""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy
import torch
from torch import Tensor

from .presenter import Screen

__all__ = [
    "Fit",
    "direction_selectivity",
    "fit_contrast",
    "fit_direction",
    "fit_frequency",
    "gratings",
    "harmonics",
    "orientation_selectivity",
]


class Fit(NamedTuple):
    """A curve through responses: where it peaks (or is half), how wide it is, and the share of variance explained."""

    preferred: float
    width: float
    r2: float


def gratings(
    screen: Screen, n_frames: int, *, direction: np.ndarray, frequency: np.ndarray, per_bin: np.ndarray | float,
    contrast: np.ndarray | float = 1.0, phase: np.ndarray | float = 0.0, center: np.ndarray | None = None,
    radius: np.ndarray | None = None,
) -> Tensor:  # fmt: skip
    """Drifting sinusoidal gratings on grey, one a row of the parameters: (N, n_frames, C, H, W).

    Parameters
    ----------
    screen
        Where they are shown.
    n_frames
        Length.
    direction
        (N,) degrees.
    frequency
        (N,) cycles per pixel.
    per_bin
        Temporal frequency, cycles per bin.
    contrast
        From 0 to 1.
    phase
        At the middle of the frame in the first bin, degrees.
    center, radius
        (N, 2) and (N,): the grating is seen through a disc around (x, y), pixels from the middle, whose edge is a pixel
        wide. Default: all of the screen.

    Examples
    --------
    >>> screen = Screen((1, 1, 4), 60.0, None, 127.0, 127.0)
    >>> one = gratings(screen, 1, direction=np.zeros(1), frequency=np.array([0.25]), per_bin=0.1)
    >>> [round(value) for value in one[0, 0, 0, 0].tolist()]
    [37, 217, 217, 37]
    """
    _, height, width = screen.frame_shape
    n = len(direction)
    column = [torch.as_tensor(np.broadcast_to(v, n).copy(), dtype=torch.float64).view(n, 1, 1, 1)
              for v in (np.deg2rad(direction), frequency, per_bin, contrast, np.deg2rad(phase))]  # fmt: skip
    angle, cycles, drift, depth, start = column
    x = torch.arange(width, dtype=torch.float64) - (width - 1) / 2
    y = (torch.arange(height, dtype=torch.float64) - (height - 1) / 2)[:, None]
    time = torch.arange(n_frames, dtype=torch.float64).view(1, -1, 1, 1)
    wave = torch.cos(2 * np.pi * (cycles * (x * angle.cos() + y * angle.sin()) - drift * time) + start)
    if radius is not None:
        cx, cy = (torch.as_tensor(part, dtype=torch.float64).view(n, 1, 1, 1) for part in np.asarray(center).T)
        edge = torch.as_tensor(radius, dtype=torch.float64).view(n, 1, 1, 1)
        wave = wave * (edge - torch.sqrt((x - cx) ** 2 + (y - cy) ** 2) + 0.5).clamp(0, 1)
    movies = (screen.grey + screen.amplitude * depth * wave).float()
    return movies[:, :, None].expand(-1, -1, screen.frame_shape[0], -1, -1)


def harmonics(rates: Tensor, per_bin: float) -> Tensor:
    """Mean and amplitude at a frequency of rates (B, L, U) over whole cycles: (B, 2, U)."""
    wave = torch.exp(-2j * torch.pi * per_bin * torch.arange(rates.shape[1], device=rates.device))
    first = 2 * (rates * wave[:, None]).mean(1).abs() if per_bin else torch.zeros_like(rates[:, 0])
    return torch.stack([rates.mean(1), first], dim=1)


def orientation_selectivity(directions: np.ndarray, responses: np.ndarray) -> np.ndarray:
    """1 − circular variance over orientation (Ringach et al. 2002), from responses (D, U) ≥ 0."""
    angles = np.exp(2j * np.deg2rad(directions))[:, None]
    return _ratio(np.abs((responses * angles).sum(0)), responses.sum(0))


def direction_selectivity(directions: np.ndarray, responses: np.ndarray) -> np.ndarray:
    """(R_preferred − R_opposite) / (R_preferred + R_opposite), from responses (D, U) ≥ 0, D even and evenly spaced."""
    best, units = responses.argmax(0), np.arange(responses.shape[1])
    top, other = responses[best, units], responses[(best + len(directions) // 2) % len(directions), units]
    return _ratio(top - other, top + other)


def fit_direction(directions: np.ndarray, responses: np.ndarray) -> Fit:
    """Two von Mises bumps, half a turn apart, on a floor (Swindale 1998).

    Returns
    -------
    Fit
        Preferred direction, degrees; half width at half height of its bump, degrees.
    """
    theta = np.deg2rad(directions)

    def curve(t: np.ndarray, floor: float, a: float, b: float, peak: float, k: float) -> np.ndarray:
        return floor + a * np.exp(k * (np.cos(t - peak) - 1)) + b * np.exp(k * (np.cos(t - peak - np.pi) - 1))

    top, low = responses.max(), responses.min()
    span, best = max(top - low, 1e-12), theta[responses.argmax()]
    lower, upper = [-np.inf, 0, 0, best - np.pi / 2, 0.1], [np.inf, 4 * span, 4 * span, best + np.pi / 2, 60]
    values = _fitted(curve, theta, responses, [low, span, span / 2, best, 2.0], (lower, upper))
    if values is None:
        return Fit(*(float("nan"),) * 3)
    _, a, b, peak, k = values
    half = np.arccos(np.clip(1 + np.log(0.5) / k, -1, 1))
    peak = peak if a >= b else peak + np.pi
    return Fit(float(np.rad2deg(peak) % 360), float(np.rad2deg(half)), _explained(responses, curve(theta, *values)))


def fit_frequency(frequencies: np.ndarray, responses: np.ndarray) -> Fit:
    """A Gaussian of the logarithm of the frequency, on a floor.

    Returns
    -------
    Fit
        Preferred frequency, in the unit given; full width at half height, octaves.
    """
    x = np.log2(frequencies)

    def curve(t: np.ndarray, floor: float, a: float, peak: float, sigma: float) -> np.ndarray:
        return floor + a * np.exp(-(((t - peak) / sigma) ** 2) / 2)

    low, span, best = responses.min(), max(np.ptp(responses), 1e-12), x[responses.argmax()]
    bounds = ([low - span, 0, x.min() - 1, 0.1], [low + span, 4 * span, x.max() + 1, 4])
    values = _fitted(curve, x, responses, [low, span, best, 0.8], bounds)
    if values is None:
        return Fit(*(float("nan"),) * 3)
    width = 2 * np.sqrt(2 * np.log(2)) * values[3]
    return Fit(float(2 ** values[2]), float(width), _explained(responses, curve(x, *values)))


def fit_contrast(contrasts: np.ndarray, responses: np.ndarray) -> Fit:
    """R = R₀ + R_max cⁿ / (cⁿ + c₅₀ⁿ) (Naka & Rushton 1966).

    Returns
    -------
    Fit
        c₅₀, as a fraction; the exponent n in place of a width.
    """

    def curve(c: np.ndarray, floor: float, top: float, half: float, n: float) -> np.ndarray:
        return floor + top * c**n / (c**n + half**n)

    low, span = responses.min(), max(np.ptp(responses), 1e-12)
    bounds = ([low - span, 0, 0.005, 0.3], [low + span, 20 * span, 3, 8])
    values = _fitted(curve, contrasts, responses, [low, span, 0.3, 2.0], bounds)
    if values is None:
        return Fit(*(float("nan"),) * 3)
    return Fit(float(values[2]), float(values[3]), _explained(responses, curve(contrasts, *values)))


# --------------------------------------------------------------------------------------------------------------------


def _fitted(curve: Callable, x: np.ndarray, y: np.ndarray, start: list, bounds: tuple) -> np.ndarray | None:
    """Least squares; None where the responses do not vary, or the fit does not converge."""
    if not np.ptp(y) > 1e-9 * max(abs(y).max(), 1e-12):
        return None
    try:
        with warnings.catch_warnings():
            # That the covariance, which is not used, cannot be estimated.
            warnings.simplefilter("ignore", scipy.optimize.OptimizeWarning)
            return scipy.optimize.curve_fit(curve, x, y, start, bounds=bounds, max_nfev=2000)[0]
    except RuntimeError:
        return None


def _explained(y: np.ndarray, fitted: np.ndarray) -> float:
    return float(1 - ((y - fitted) ** 2).sum() / max(((y - y.mean()) ** 2).sum(), 1e-300))


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.full(np.shape(a), np.nan), where=b > 0)
