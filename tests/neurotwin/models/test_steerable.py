"""Filters in several orientations against scipy's Hermite polynomials, and against frames that are turned."""

import math

import numpy as np
import pytest
import scipy.special
import torch

from neurotwin.config import ConfigError
from neurotwin.models.layers import Conv, ConvParams
from neurotwin.models.parameters import describe_parameters
from neurotwin.models.penalties import Laplacian, SmoothT
from neurotwin.models.steerable import hermite_functions, rotated_basis


def test_hermite_functions_are_scipys():
    x = torch.linspace(-3, 3, 31)
    for n, values in enumerate(hermite_functions(x, 6)):
        norm = math.sqrt(2.0**n * math.factorial(n) * math.sqrt(math.pi))
        expected = scipy.special.eval_hermite(n, x.numpy()) * np.exp(-(x.numpy() ** 2) / 2) / norm
        np.testing.assert_allclose(values, expected, atol=1e-12)


@pytest.mark.parametrize("size", [5, 9, 13])
def test_the_basis_is_nearly_orthonormal_and_spans_one_space_in_all_orientations(size):
    basis = rotated_basis((size, size), 8).flatten(2)
    gram = basis[3] @ basis[3].t()
    assert (gram - torch.eye(len(gram))).abs().max() < 0.35
    for turned in basis:  # each orientation is a sum of the functions of the first one, pixel by pixel
        mixed = np.linalg.lstsq(basis[0].t().numpy(), turned.t().numpy(), rcond=None)[0]
        np.testing.assert_allclose(basis[0].t() @ torch.tensor(mixed), turned.t(), atol=1e-9)


def test_functions_are_turned_from_x_towards_y():
    """The first function of x alone, ψ_10, points along x, then down, then back."""
    basis = rotated_basis((9, 9), 4)
    column = 6  # after ψ_00 to ψ_05
    assert basis[0, column, 4, 6] > 0 > basis[0, column, 4, 2]
    assert basis[1, column, 6, 4] > 0 > basis[1, column, 2, 4]
    torch.testing.assert_close(basis[2], basis[0].flip(1, 2))


def test_turning_the_frame_turns_the_maps_and_moves_on_to_the_next_orientation(maps, generator, rand):
    params = ConvParams(kernel_size=[2, 5, 5], padding=[0, 2, 2], rotations=4)
    conv = Conv(params, maps(3, 9, 9), 8, bias=False, generator=generator)
    x = rand(2, 3, 4, 9, 9)
    y, turned = conv(x), conv(x.rot90(-1, (3, 4)))  # from x (right) towards y (down)
    expected = y.unflatten(1, (-1, 4)).roll(1, dims=2).flatten(1, 2).rot90(-1, (3, 4))
    torch.testing.assert_close(turned, expected)
    assert not torch.allclose(turned, y.rot90(-1, (3, 4)))


def test_a_kernel_is_a_sum_of_turned_functions(maps, generator, rand):
    params = ConvParams(kernel_size=[2, 7, 7], rotations=3, keep_unit_norm=True)
    conv = Conv(params, maps(3), 6, bias=True, generator=generator)
    basis, kernel = rotated_basis((7, 7), 3), conv.kernel().detach()
    assert kernel.shape == (6, 3, 2, 7, 7)
    weights = conv.weight.detach()[..., 0]
    weights = weights / weights.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    for o in range(2):
        for r in range(3):
            expected = sum(weights[o, :, :, b, None, None] * basis[r, b] for b in range(basis.shape[1]))
            torch.testing.assert_close(kernel[3 * o + r], expected)
    x = rand(1, 3, 4, 9, 7)
    torch.testing.assert_close(conv(x), torch.nn.functional.conv3d(x, kernel, conv.bias))
    many = Conv(ConvParams(kernel_size=[2, 7, 7], rotations=4), maps(3, 30, 30), 400, bias=False, generator=generator)
    assert 1 < many(rand(1, 3, 4, 30, 30)).std() < 2, "variance 2, as relus want it"


@pytest.mark.parametrize(
    ("params", "axes", "message"),
    [
        ({"kernel_size": [1, 5, 3]}, 2, "conv_params.rotations: a kernel of 5x3 cannot be turned"),
        ({"kernel_size": [1, 4, 4]}, 2, "4x4 cannot be turned"),
        ({"kernel_size": [1, 1, 1]}, 2, "1x1 cannot be turned"),
        ({"kernel_size": [1, 5, 5], "type": "depthwise"}, 2, "use type: standard"),
        ({"kernel_size": [1, 5, 5], "aa_signal": True}, 2, "without groups and aa_signal"),
        ({"kernel_size": [1, 5, 5]}, 1, "turned in frames"),
        ({"kernel_size": [1, 5, 5], "rotations": 3}, 2, "8 filters are no multiple of 3 orientations"),
    ],
)
def test_what_cannot_be_turned_is_refused(params, axes, message, maps, generator):
    params = ConvParams(**{"rotations": 4} | params)
    with pytest.raises(ConfigError, match=message):
        Conv(params, maps(axes=axes), 8, bias=False, generator=generator)


def test_weights_of_functions_are_no_pixels(maps, generator):
    """A Laplacian would smooth between functions that are no neighbours; over time they are as a kernel is."""
    conv = Conv(ConvParams(kernel_size=[2, 5, 5], rotations=4), maps(3, 7, 7), 8, bias=True, generator=generator)
    plain = Conv(ConvParams(kernel_size=[2, 5, 5]), maps(3, 7, 7), 8, bias=True, generator=generator)
    (turned, free) = (next(i for i in describe_parameters(m) if i.parameter is m.weight) for m in (conv, plain))
    assert (turned.kind, free.kind) == ("coefficients", "kernel") and turned.decays
    assert Laplacian.fault(free, 1.0) is None and "weights of functions" in Laplacian.fault(turned, 1.0)
    assert SmoothT.fault(turned, 1.0) is None
