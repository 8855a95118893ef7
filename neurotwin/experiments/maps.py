"""Filters of units: how they are estimated from a twin or from a recording, and what is measured of them.

A filter is (T, C, H, W), oldest frame first. Positions are in pixels from the middle of the frame, x to the right and y
down; in degrees, x to the right and y up.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .presenter import Group, Presenter, Screen

__all__ = [
    "Subspace",
    "gradients",
    "leading_subspace",
    "low_pass",
    "low_passed",
    "measure_filters",
    "noise_movies",
    "overlap",
    "place",
]


class Subspace(NamedTuple):
    """Directions of stimulus space to which a unit is sensitive.

    Attributes
    ----------
    filters
        (K, T, C, H, W), orthonormal, the most important first.
    strengths
        (K,) share of the gradient's energy along each.
    """

    filters: np.ndarray
    strengths: np.ndarray


def noise_movies(
    screen: Screen, n: int, n_frames: int, rng: np.random.Generator, *, contrast: float, exponent: float
) -> Tensor:
    """Gaussian noise around grey, (n, n_frames, C, H, W), every frame drawn anew; values stay in the screen's range.

    Parameters
    ----------
    screen
        Where it is shown.
    n, n_frames
        Movies, and frames of each.
    rng
        Draws it.
    contrast
        Standard deviation, as a fraction of the screen's amplitude.
    exponent
        The amplitude falls with spatial frequency f as f^−exponent: 0 is white, 1 is like photographs.
    """
    _, height, width = screen.frame_shape
    noise = rng.standard_normal((n, n_frames, *screen.frame_shape))
    if exponent:
        fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)
        gain = np.maximum(np.hypot(fy, fx), 1 / max(height, width)) ** -exponent
        gain[0, 0] = 0.0
        noise = np.fft.irfft2(np.fft.rfft2(noise) * gain, s=(height, width))
        noise /= noise.std()
    values = np.clip(noise * contrast, -1, 1) * screen.amplitude + screen.grey
    return torch.from_numpy(values.astype(np.float32))


def gradients(presenter: Presenter, group: Group, index: int, movies: Tensor, batch: int = 16) -> Iterator[np.ndarray]:
    """For each unit of a session in turn, the gradient of its rate in the last bin: (N, T, C, H, W).

    All movies go through the core once; each unit then takes one backward pass over all of them.

    Parameters
    ----------
    presenter, group, index
        The twin, a group of its sessions, and the session.
    movies
        (N, T, C, H, W) with T = context + 1.
    batch
        Movies whose activations are kept at a time.
    """
    alone = Group((index,), group.screen)
    parts = []
    for part in movies.split(batch):
        part = part.detach().clone().requires_grad_()
        parts.append((part, presenter.rates(alone, part)[index][:, -1]))
    for unit in range(presenter.spec(index).n_units):
        yield np.concatenate([
            torch.autograd.grad(rates[:, unit].sum(), part, retain_graph=True)[0].cpu().numpy()
            for part, rates in parts
        ])  # fmt: skip


def leading_subspace(samples: np.ndarray, k: int) -> Subspace:
    """The k directions that carry most of the energy of some gradients (N, ...): the active subspace.

    They are the leading eigenvectors of the mean of ∇r ∇rᵀ (Constantine et al. 2014). Where a unit's rate depends on
    the stimulus through a few filters alone, every gradient is a sum of these filters, so the subspace is theirs; for
    Gaussian stimuli it holds what the spike-triggered average and covariance estimate (Samengo & Gollisch 2013).
    """
    flat = samples.reshape(len(samples), -1).astype(np.float64)
    energy, mixtures = (part[..., ::-1] for part in np.linalg.eigh(flat @ flat.T))
    if k <= len(flat) and energy[k - 1] > 1e-10 * energy[0]:  # a fraction of the time of a singular value decomposition
        directions = (mixtures[:, :k].T @ flat) / np.sqrt(energy[:k, None])
    else:
        _, singular, directions = np.linalg.svd(flat, full_matrices=False)
        energy = singular**2
    k = min(k, len(directions))
    return Subspace(directions[:k].reshape(k, *samples.shape[1:]), energy[:k] / max(energy.sum(), 1e-300))


def low_pass(height: int, width: int, cutoff: float) -> np.ndarray:
    """exp(−(f/cutoff)⁴) over the frequencies of `numpy.fft.rfft2`, (H, W // 2 + 1); 1 for a cutoff of 0."""
    f = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    return np.exp(-((f / cutoff) ** 4)) if cutoff else np.ones_like(f)


def low_passed(filters: np.ndarray, cutoff: float) -> np.ndarray:
    """Filters (..., H, W) times exp(−(f/cutoff)⁴) over spatial frequency f, cycles per pixel; a cutoff of 0: as are."""
    if not cutoff:
        return filters
    height, width = filters.shape[-2:]
    spectrum = np.fft.rfft2(filters) * low_pass(height, width, cutoff)
    return np.fft.irfft2(spectrum, s=(height, width)).astype(filters.dtype)


def overlap(filters: np.ndarray, truth: np.ndarray) -> float:
    """How much of a subspace lies in another: the mean squared cosine of the principal angles, from 0 to 1.

    Parameters
    ----------
    filters, truth
        (K, ...) and (J, ...); of the smaller number of dimensions it is said how much lies in the larger.

    Examples
    --------
    >>> overlap(np.array([[1.0, 1.0, 0.0]]), np.array([[2.0, 0.0, 0.0]]))
    0.5
    """
    bases = [np.linalg.qr(part.reshape(len(part), -1).T.astype(np.float64))[0] for part in (filters, truth)]
    cosines = np.linalg.svd(bases[0].T @ bases[1], compute_uv=False)
    return round(float(np.mean(cosines**2)), 12)


def place(energy: np.ndarray) -> tuple[float, float, float, float]:
    """Centre (x, y) and standard deviations (large, small) of a map of energy (H, W), pixels from its middle.

    What the quieter half of the pixels has is taken for the floor and left out.
    """
    height, width = energy.shape
    weight = np.maximum(energy - np.median(energy), 0)
    # Pixels far below the peak say more about the floor than about the field.
    weight = np.where(weight > 0.02 * weight.max(), weight, 0)
    total = weight.sum()
    if not total > 0:
        return (float("nan"),) * 4
    weight = weight / total
    x, y = np.arange(width) - (width - 1) / 2, np.arange(height)[:, None] - (height - 1) / 2
    cx, cy = float((weight * x).sum()), float((weight * y).sum())
    dx, dy = x - cx, y - cy
    moments = [
        [(weight * dx * dx).sum(), (weight * dx * dy).sum()],
        [(weight * dx * dy).sum(), (weight * dy * dy).sum()],
    ]
    small, large = np.sqrt(np.maximum(np.linalg.eigvalsh(np.array(moments)), 0))
    return cx, cy, float(large), float(small)


def measure_filters(filters: np.ndarray, screen: Screen, weights: Sequence[float] | None = None) -> dict[str, float]:
    """Place, size, preferred grating, time and separability of what a unit is sensitive to.

    Parameters
    ----------
    filters
        (K, T, C, H, W).
    screen
        What they are filters of.
    weights
        (K,) importance of each; default equal.

    Returns
    -------
    dict
        `center_x_px`, `center_y_px`, `center_x_deg`, `center_y_deg`; `size_px` and `size_deg`, the standard deviation
        of a Gaussian envelope (geometric mean of its axes); `aspect`, long axis over short; `orientation_deg`, the
        direction in which the filter varies, 0 to 180 (0: along x, 90: along y); `spatial_frequency_cpp` and
        `spatial_frequency_cpd`, cycles per pixel and degree; `latency_ms`, how long ago the most effective frame was,
        to the middle of its bin; `separability`, the share of the first space × time component of the first filter;
        `snr`, energy of the best pixel over that of the median pixel.
    """
    weights = np.ones(len(filters)) if weights is None else np.asarray(weights)
    power = np.einsum("k,ktchw->thw", weights, filters.astype(np.float64) ** 2)
    energy = power.sum(0)
    cx, cy, large, small = place(energy)
    size = float(np.sqrt(2 * large * small))  # the energy of a Gaussian envelope is narrower by √2
    orientation, frequency = _grating_of(filters, weights)
    when = power.sum((1, 2)).argmax()
    matrix = filters[0].reshape(filters.shape[1], -1)
    singular = np.linalg.svd(matrix, compute_uv=False) ** 2
    floor = np.median(energy)
    return {
        "center_x_px": cx, "center_y_px": cy,
        "center_x_deg": float(screen.degrees(cx)), "center_y_deg": -float(screen.degrees(cy)),
        "size_px": size, "size_deg": float(screen.degrees(size)), "aspect": large / small if small > 0 else np.nan,
        "orientation_deg": orientation, "spatial_frequency_cpp": frequency,
        "spatial_frequency_cpd": float(screen.cycles_per_degree(frequency)),
        "latency_ms": 1000 * (filters.shape[1] - 0.5 - when) / screen.bin_rate,
        "separability": float(singular[0] / max(singular.sum(), 1e-300)),
        "snr": float(energy.max() / floor) if floor > 0 else np.inf,
    }  # fmt: skip


def _grating_of(filters: np.ndarray, weights: np.ndarray, pad: int = 128) -> tuple[float, float]:
    """Orientation (degrees) and frequency (cycles per pixel) of the peak of the spatial spectrum."""
    size = max(pad, *filters.shape[-2:])
    spectrum = np.abs(np.fft.fft2(filters, s=(size, size))) ** 2
    power = np.einsum("k,ktchw->hw", weights, spectrum)
    power[0, 0] = 0
    f = np.fft.fftfreq(size)
    row, column = np.unravel_index(power.argmax(), power.shape)
    # The centroid of the pixels around the peak is finer than the grid.
    near = np.arange(-2, 3)
    rows, columns = (row + near) % size, (column + near) % size
    patch = power[np.ix_(rows, columns)]
    patch = np.maximum(patch - patch.min(), 1e-300)
    fy = f[row] + float((patch.sum(1) * near).sum() / patch.sum()) / size
    fx = f[column] + float((patch.sum(0) * near).sum() / patch.sum()) / size
    return float(np.rad2deg(np.arctan2(fy, fx)) % 180), float(np.hypot(fx, fy))
