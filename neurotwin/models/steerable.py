"""Filters that come in several orientations: sums of Hermite functions, which can be rotated exactly."""

from math import floor, pi, sqrt

import torch
from torch import Tensor

from ..config import ConfigError

__all__ = ["hermite_functions", "rotated_basis"]

_FINEST = 0.8
"""Highest frequency of the functions, of what pixels can show."""


def rotated_basis(size: tuple[int, int], rotations: int) -> Tensor:
    r"""Two-dimensional Hermite functions at the pixels of a kernel, in several orientations.

    ψ_nm(x, y) = h_n(x/σ) h_m(y/σ) / σ for all n + m up to an order N, where h_n are the Hermite functions. Together
    they span the same space in each orientation (they are steerable), and they are nearly orthonormal over the pixels.
    The functions of order N end about where x = σ sqrt(2N + 1), and their frequencies at sqrt(2N + 1) / σ radians a
    pixel. N is the largest for which the first is the edge of the kernel and the second is below 0.8 π. Such filters
    are those of Ecker et al. (2019).

    Parameters
    ----------
    size
        Height and width of the kernel, pixels; the same, and odd.
    rotations
        Number of orientations, evenly spaced from 0 to 360 degrees, from x towards y (y runs down).

    Returns
    -------
    Tensor
        (rotations, functions, height, width).

    Raises
    ------
    ConfigError
        If the kernel is not square, even, or too small for functions that have an orientation.
    """
    height, width = size
    order = floor((_FINEST * pi * width / 2 - 1) / 2)
    if height != width or width % 2 == 0 or order < 1:
        raise ConfigError(f"rotations: a kernel of {height}x{width} cannot be turned; use a square, odd one, from 3x3")
    sigma = width / 2 / sqrt(2 * order + 1)
    along = torch.arange(width) - (width - 1) / 2
    y, x = torch.meshgrid(along, along, indexing="ij")
    angles = 2 * pi / rotations * torch.arange(rotations)[:, None, None]
    first = hermite_functions((x * angles.cos() + y * angles.sin()) / sigma, order)
    second = hermite_functions((y * angles.cos() - x * angles.sin()) / sigma, order)
    pairs = [(n, m) for n in range(order + 1) for m in range(order + 1 - n)]
    return torch.stack([first[n] * second[m] / sigma for n, m in pairs], dim=1)


def hermite_functions(x: Tensor, order: int) -> list[Tensor]:
    """The Hermite functions h_0 to h_order, orthonormal on the line: h_n ∝ H_n(x) exp(−x²/2).

    By h_{n+1} = x sqrt(2/(n+1)) h_n − sqrt(n/(n+1)) h_{n−1}.
    """
    found = [pi**-0.25 * (-0.5 * x.square()).exp()]
    for n in range(order):
        before = found[n - 1] * sqrt(n / (n + 1)) if n else 0.0
        found.append(x * sqrt(2 / (n + 1)) * found[n] - before)
    return found
