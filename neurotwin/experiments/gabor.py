"""A Gabor with two phases in quadrature, fitted to what a unit is sensitive to."""

from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import Bounds, minimize
from torch import Tensor

from .maps import Subspace, low_pass, measure_filters
from .presenter import Screen

__all__ = ["Gabor", "fit_gabor", "measure_gabor", "quadrature_pair"]


class Gabor(NamedTuple):
    """A fitted Gabor. Positions are from the middle of the frame, x to the right, y down.

    Attributes
    ----------
    x, y
        Centre, pixels.
    along, across
        Standard deviations of the envelope in the direction in which the carrier varies and along its bars, pixels.
    orientation
        Direction in which the carrier varies, degrees, 0 to 180.
    frequency
        Of the carrier, cycles per pixel.
    explained
        Share of the energy of all samples that the two filters hold.
    filters
        (2, T, C, H, W), orthonormal: the pair in quadrature, over space and time. Not low-passed.
    """

    x: float
    y: float
    along: float
    across: float
    orientation: float
    frequency: float
    explained: float
    filters: np.ndarray


def quadrature_pair(parameters: Tensor, height: int, width: int) -> Tensor:
    """Gabors of phases 0 and 90 degrees, (2, H, W), without a mean.

    Parameters
    ----------
    parameters
        (6,): centre x and y in pixels, logarithms of the envelope's standard deviations along and across, direction in
        radians, logarithm of the carrier's frequency in cycles per pixel.
    height, width
        Of the frame, pixels.
    """
    cx, cy, along, across, angle, frequency = parameters
    x = torch.arange(width, dtype=parameters.dtype) - (width - 1) / 2 - cx
    y = (torch.arange(height, dtype=parameters.dtype) - (height - 1) / 2 - cy)[:, None]
    varies, bars = x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()
    envelope = torch.exp(-((varies / along.exp()) ** 2 + (bars / across.exp()) ** 2) / 2)
    phase = 2 * np.pi * frequency.exp() * varies
    pair = torch.stack([envelope * phase.cos(), envelope * phase.sin()])
    return pair - envelope * (pair.sum((-2, -1), keepdim=True) / envelope.sum())


def fit_gabor(subspace: Subspace, cutoff: float = 0.0) -> Gabor:
    """The Gabor whose pair of filters in quadrature holds most of a unit's gradients.

    The filters are E = a(t)·even + b(t)·odd and O = a(t)·odd − b(t)·even, the pair of a motion-energy unit (Adelson &
    Bergen 1985) with a time course a, b of any form; their span holds the filter of a simple cell of any phase as well.
    The even and odd Gabors make one complex number of each frame, so the best a − ib is the leading eigenvector of a
    small matrix: the fit searches over the six parameters of the Gabor alone (variable projection, Golub & Pereyra
    1973), by L-BFGS-B from the measures of the two leading filters.

    Parameters
    ----------
    subspace
        Leading directions of the gradients and their strengths; more than two are better.
    cutoff
        What the directions were low-passed with (:func:`~neurotwin.experiments.maps.low_passed`). The Gabor is
        low-passed alike for the comparison, so that the cut-off does not lower its frequency.

    Returns
    -------
    Gabor
        All NaN, with filters of 0, where the directions hold nothing.
    """
    shape = subspace.filters.shape[1:]
    height, width = shape[-2:]
    # Where the kernels act is unknown, so the screen's numbers are not needed: pixels alone are.
    begin = measure_filters(subspace.filters[:2], Screen(shape[1:], 1.0, None, 0.0, 1.0), subspace.strengths[:2])
    start = [begin[name] for name in ("center_x_px", "center_y_px", "size_px", "orientation_deg",
                                      "spatial_frequency_cpp")]  # fmt: skip
    if not (np.isfinite(start).all() and start[-1] > 0):
        return Gabor(*[float("nan")] * 7, np.zeros((2, *shape)))
    scaled = subspace.filters * np.sqrt(subspace.strengths)[:, None, None, None, None]
    samples = torch.from_numpy(scaled.astype(np.float64)).reshape(-1, shape[0] * shape[1], height * width)
    gain = torch.from_numpy(low_pass(height, width, cutoff))
    longest = max(height, width)
    smallest, widest = np.log(0.8), np.log(longest / 4)
    lowest = np.array([-width / 2, -height / 2, smallest, smallest, -np.inf, np.log(0.75 / longest)])
    highest = np.array([width / 2, height / 2, widest, widest, np.inf, np.log(0.45)])
    size = np.log(np.clip(start[2], 1.2, longest / 7))
    first = np.array([start[0], start[1], size, size, np.deg2rad(start[3]), np.log(start[4])])

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        parameters = torch.tensor(values, dtype=torch.float64, requires_grad=True)
        held = -torch.linalg.eigvalsh(_coupling(parameters, samples, gain))[-1]
        held.backward()
        return held.item(), parameters.grad.numpy()

    first, bounds = np.clip(first, lowest, highest), Bounds(lowest, highest)
    found = minimize(loss, first, jac=True, method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-10})
    parameters = torch.tensor(found.x, dtype=torch.float64)
    # The samples' complex frames are multiples of the conjugate of the leading eigenvector: a + ib.
    time = torch.linalg.eigh(_coupling(parameters, samples, gain))[1][:, -1].conj().reshape(shape[0], shape[1], 1, 1)
    even, odd = _orthonormal(quadrature_pair(parameters, height, width)).reshape(2, height, width)
    filters = torch.stack([time.real * even + time.imag * odd, time.real * odd - time.imag * even])
    x, y, along, across, angle, frequency = found.x
    return Gabor(
        x, y, np.exp(along), np.exp(across), np.rad2deg(angle) % 180, np.exp(frequency), -found.fun, filters.numpy()
    )


def measure_gabor(gabor: Gabor, screen: Screen) -> dict[str, float]:
    """The columns of a fitted Gabor, in pixels and in degrees: centre, orientation, frequency, envelope, explained."""
    return {
        "gabor_center_x_px": gabor.x, "gabor_center_y_px": gabor.y,
        "gabor_center_x_deg": float(screen.degrees(gabor.x)), "gabor_center_y_deg": -float(screen.degrees(gabor.y)),
        "gabor_orientation_deg": gabor.orientation, "gabor_spatial_frequency_cpp": gabor.frequency,
        "gabor_spatial_frequency_cpd": float(screen.cycles_per_degree(gabor.frequency)),
        "gabor_size_along_px": gabor.along, "gabor_size_along_deg": float(screen.degrees(gabor.along)),
        "gabor_size_across_px": gabor.across, "gabor_size_across_deg": float(screen.degrees(gabor.across)),
        "gabor_explained": gabor.explained,
    }  # fmt: skip


def _coupling(parameters: Tensor, samples: Tensor, gain: Tensor) -> Tensor:
    """The Hermitian matrix (T·C, T·C) whose largest eigenvalue is the energy of the samples that the pair holds."""
    height = gain.shape[0]
    width = samples.shape[-1] // height
    pair = torch.fft.irfft2(torch.fft.rfft2(quadrature_pair(parameters, height, width)) * gain, s=(height, width))
    frames = torch.view_as_complex((samples @ _orthonormal(pair).T).contiguous())
    return frames.conj().T @ frames


def _orthonormal(pair: Tensor) -> Tensor:
    """The orthonormal pair nearest to two images, (2, H·W): neither is preferred, as a Gram-Schmidt would."""
    flat = pair.flatten(1)
    values, vectors = torch.linalg.eigh(flat @ flat.T)
    return vectors @ torch.diag(values.clamp_min(1e-12) ** -0.5) @ vectors.T @ flat
