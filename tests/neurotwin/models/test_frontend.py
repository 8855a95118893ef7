"""Adapters and temporal filters against scipy, torch and the formulas of the papers."""

from math import factorial

import numpy as np
import pytest
import scipy.ndimage
import scipy.signal
import torch
from torch.nn import functional as F

from neurotwin.config import ConfigError
from neurotwin.data.kernels import adaptation_filters, raised_cosine_basis
from neurotwin.models.frontend import (
    Adapter,
    DynamicalAdaptation,
    LearnableTemporal,
    TemporalBasis,
    blur_matrix,
    filter_over_time,
    temporal_filters,
)


def rand(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("frames", [4, 11, 70])
def test_filters_over_time_are_scipys(frames):
    x, filters = rand(2, 3, frames, 2, 2), rand(3, 5, 4)
    y = filter_over_time(x, filters)
    assert y.shape == (2, 15, frames - 3, 2, 2)
    for c in range(3):
        for f in range(5):
            expected = scipy.signal.correlate(x[:, c].numpy(), filters[c, f].numpy()[None, :, None, None], mode="valid")
            np.testing.assert_allclose(y[:, 5 * c + f], expected, atol=1e-12)


def test_gaussian_derivatives_are_hermite_functions(generator):
    filters = temporal_filters("gaussian_derivatives", 4, 48, generator=generator)
    time = (np.arange(47, -1, -1) - 16) / 6
    for order, ours in enumerate(filters):
        # The weighted derivative: d^n/dt^n exp(-t²) · exp(t²/2), up to sign and norm.
        expected = np.polynomial.hermite.Hermite.basis(order)(time) * np.exp(-(time**2) / 2)
        np.testing.assert_allclose(ours, expected / np.linalg.norm(expected), atol=1e-12)


def test_biphasic_filters_are_those_of_adelson_and_bergen(generator):
    filters = temporal_filters("biphasic", 3, 32, generator=generator)
    for index, slowness in enumerate(np.exp(np.linspace(0, np.log(2.5), 3))):
        kt = 0.75 * np.arange(31, -1, -1) / slowness
        expected = (-1) ** index * kt**3 * np.exp(-kt) * (1 / factorial(3) - kt**2 / factorial(5))
        np.testing.assert_allclose(filters[index], expected / np.linalg.norm(expected), atol=1e-12)


def test_identity_filters_pass_the_newest_frame(maps, generator):
    params = LearnableTemporal.Params(kernel_size=5, num_channels=2, init_type="identity")
    frontend, x = LearnableTemporal(params, maps(), generator=generator), rand(2, 3, 8, 9, 7)
    assert frontend.context == 4
    torch.testing.assert_close(frontend(x)[0], x[:, :, 4:].repeat_interleave(2, dim=1))


@pytest.mark.parametrize("options", [{}, {"aa_signal": True, "use_weight_norm": True}, {"dilation": 3, "bias": True}])
def test_learned_filters_are_a_grouped_convolution(options, maps, generator):
    params = LearnableTemporal.Params(kernel_size=6, num_channels=4, init_type="random", stride=2, **options)
    frontend, x = LearnableTemporal(params, maps(), generator=generator), rand(2, 3, 20, 9, 7)
    if params.bias:
        with torch.no_grad():
            frontend.bias.copy_(rand(12))
    expected = F.conv3d(x, frontend.kernel(), frontend.bias, groups=3, dilation=(params.dilation, 1, 1))
    torch.testing.assert_close(frontend(x)[0], expected)
    assert (frontend.outputs.channels, frontend.outputs.step) == (12, 2)


def test_split_is_low_pass_and_residual(maps, generator):
    params = LearnableTemporal.Params(kernel_size=1, num_channels=1, init_type="identity", split_MP=True)
    frontend = LearnableTemporal(params, maps(1, 31, 25), generator=generator)
    x = rand(1, 1, 1, 31, 25)
    low, residual = frontend(x)[0][0, :, 0]
    torch.testing.assert_close(low + residual, x[0, 0, 0])
    expected = scipy.ndimage.gaussian_filter(x[0, 0, 0].numpy(), 2.0, truncate=8)
    np.testing.assert_allclose(low.detach()[12:19, 12:13], expected[12:19, 12:13], atol=1e-6)
    torch.testing.assert_close(frontend(torch.ones_like(x))[0][0, 0], torch.ones(1, 31, 25))


def test_temporal_basis_filters_the_past(maps):
    params = TemporalBasis.Params(num_delta_funcs=2, num_cosine_funcs=4, history_bins=12, chomp=1)
    frontend, x = TemporalBasis(params, maps(2)), rand(1, 2, 20, 9, 7)
    y = frontend(x)[0]
    assert y.shape == (1, 12, 9, 9, 7)
    for c in range(2):
        for f, function in enumerate(raised_cosine_basis(params, 10.0)):
            expected = scipy.signal.lfilter(function[::-1], 1.0, x[0, c].numpy(), axis=0)[11:]
            np.testing.assert_allclose(y[0, 6 * c + f], expected, atol=1e-12)
    normed = TemporalBasis(params.model_copy(update={"batch_norm": True}), maps(2))(x)[0]
    torch.testing.assert_close(normed.mean(dim=(0, 2, 3, 4)), torch.zeros(12), atol=1e-10, rtol=0)


@pytest.mark.parametrize("learned", [False, True, ("tau_y_ms", "n_z")])
def test_dynamical_adaptation_is_clarks(learned, maps):
    params = DynamicalAdaptation.Params(alpha=2.0, beta=0.7, gamma=0.3, filter_length=20, learnable_params=learned)
    frontend, x = DynamicalAdaptation(params, maps(2)), rand(1, 2, 30, 9, 7).abs()
    fast, slow = adaptation_filters(params, bin_ms=10.0)
    y = scipy.signal.lfilter(fast, 1.0, x.numpy(), axis=2)[:, :, 19:]
    z = scipy.signal.lfilter(slow, 1.0, x.numpy(), axis=2)[:, :, 19:]
    np.testing.assert_allclose(frontend(x)[0].detach(), 2.0 * y / (1 + 0.7 * z), rtol=1e-9)
    names = {True: frontend.NAMES, False: ()}.get(learned, learned)
    assert {name for name, _ in frontend.named_parameters()} == set(names)
    frontend(x)[0].sum().backward() if names else None
    assert all(parameter.grad.abs() > 0 for parameter in frontend.parameters())


def test_dynamical_adaptation_follows_weber(maps):
    """A steady light of intensity s gives α s / (1 + β s)."""
    params = DynamicalAdaptation.Params(alpha=2.0, beta=3.0, filter_length=8)
    y = DynamicalAdaptation(params, maps(1))(torch.full((1, 1, 8, 9, 7), 5.0))[0]
    torch.testing.assert_close(y, torch.full((1, 1, 1, 9, 7), 2 * 5 / (1 + 3 * 5.0)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"height": 5}, "height: 5, but the frames have 9"),
        ({"gamma": 0.0, "learnable_params": True}, "gamma: 0.0 is at the border"),
    ],
)
def test_impossible_adaptation_is_refused(changes, message, maps):
    with pytest.raises(ConfigError, match=message):
        DynamicalAdaptation(DynamicalAdaptation.Params(**changes), maps())


def test_blur_matrix_is_scipys_gaussian():
    image = rand(41)
    expected = scipy.ndimage.gaussian_filter1d(image.numpy(), 1.7, truncate=9)
    blurred = blur_matrix(41, torch.tensor(1.7)) @ image
    np.testing.assert_allclose(blurred[15:26], expected[15:26], atol=1e-9)
    torch.testing.assert_close(blur_matrix(41, torch.tensor(1.7)).sum(1), torch.ones(41))


@pytest.mark.parametrize("transform", ["scale", "affine"])
@pytest.mark.parametrize("size", [(12, 12), (20, 13), (7, 30)])
def test_adapter_starts_as_blur_and_bilinear_sampling(transform, size, maps):
    adapter = Adapter(Adapter.Params(grid_size=10, init_sigma=1.4, transform=transform), maps(2, *size))
    x = rand(2, 2, 3, *size)
    sigma = adapter.sigma().detach()
    least = [max(0.0, (n / 10 - 1) / 2) for n in size]
    np.testing.assert_allclose(sigma.max(), max(1.4, max(least)), atol=0.06)
    assert all(s >= bound for s, bound in zip(sigma.tolist(), least, strict=True))
    blurred = blur_matrix(size[0], sigma[0]) @ x @ blur_matrix(size[1], sigma[1]).t()
    expected = F.interpolate(blurred.flatten(0, 2)[:, None], (10, 10), mode="bilinear", align_corners=False)
    torch.testing.assert_close(adapter(x)[0], expected.view(2, 2, 3, 10, 10))


@pytest.mark.parametrize("transform", ["scale", "affine"])
def test_adapter_shifts_nothing(transform, maps):
    adapter = Adapter(Adapter.Params(grid_size=8, init_sigma=2.0, transform=transform), maps(1, 21, 21))
    dot = torch.zeros(1, 1, 1, 21, 21)
    dot[..., 10, 10] = 1
    y = adapter(dot)[0][0, 0, 0]
    torch.testing.assert_close(y, y.flip(0))
    torch.testing.assert_close(y, y.flip(1))


@pytest.mark.parametrize("transform", ["scale", "affine"])
def test_adapter_learns_blur_and_grid(transform, maps):
    adapter = Adapter(Adapter.Params(grid_size=6, init_sigma=1.5, transform=transform), maps(1, 14, 11))
    x, weight = rand(1, 1, 2, 14, 11), rand(1, 1, 2, 6, 6)
    with torch.no_grad():  # away from the start, where samples of a coarse grid may sit on pixels
        for parameter in adapter.parameters():
            parameter.add_(0.03 * rand(*parameter.shape))
    (adapter(x)[0] * weight).sum().backward()
    for parameter in adapter.parameters():
        for index in np.ndindex(*parameter.shape):
            values = []
            for step in (1e-6, -2e-6):
                with torch.no_grad():
                    parameter[index] += step
                    values.append((adapter(x)[0] * weight).sum())
            with torch.no_grad():
                parameter[index] += 1e-6
            slope = (values[0] - values[1]) / 2e-6
            torch.testing.assert_close(parameter.grad[index], slope, rtol=1e-4, atol=1e-6)
            assert abs(slope) > 1e-6


def test_adapter_blurs_more_where_it_samples_more_coarsely(maps):
    adapter = Adapter(Adapter.Params(grid_size=10, init_sigma=1.0), maps(1, 40, 20))
    with torch.no_grad():
        before, _ = adapter.sigma(), adapter.log_scale.add_(1.0)
    torch.testing.assert_close(adapter.sigma()[0] - before[0], (torch.tensor(1.0).exp() - 1) * 40 / 10 / 2)


def test_affine_adapter_blurs_along_the_axis_that_it_stretches(maps):
    adapter = Adapter(Adapter.Params(grid_size=10, init_sigma=2.0, transform="affine"), maps(1, 40, 20))
    with torch.no_grad():
        before, _ = adapter.sigma(), adapter.shift[0, 0].add_(1.0)  # x of the grid doubles
    torch.testing.assert_close(adapter.sigma() - before, torch.tensor([0.0, 20 / 10 / 2]))
