"""Readouts against loops, scipy and hand-worked cases."""

import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import torch

from neurotwin.config import ConfigError
from neurotwin.models.history import SpikeHistory
from neurotwin.models.readout import (
    AttentionReadout,
    FactorizedReadout,
    GaussianEIReadout,
    GaussianReadout,
    LinearReadout,
    PixelReadout,
    PointReadout,
)


def rand(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


def gaussian(mean, std, theta, height, width):
    """The normalised density of scipy at the pixels' centres, counted in pixels from the middle of the map."""
    turn = np.array([[np.cos(theta), -np.sin(theta)], [np.sin(theta), np.cos(theta)]])
    covariance = turn @ np.diag(np.square(std)) @ turn.T
    grid = [[(j - (width - 1) / 2, i - (height - 1) / 2) for j in range(width)] for i in range(height)]
    density = scipy.stats.multivariate_normal(mean, covariance).pdf(np.array(grid))
    return density / density.sum()


def test_gaussian_readout_is_scipys_density(maps, generator):
    readout = GaussianReadout(GaussianReadout.Params(initial_mean_scale=1.4), maps(), 5, generator=generator)
    with torch.no_grad():
        readout.theta.copy_(rand(5)), readout.std.mul_(1 + rand(5, 2).abs()), readout.bias.copy_(rand(5))
    x = rand(2, 3, 4, 9, 7)
    y = readout(x)
    for u in range(5):
        std = np.hypot(readout.std[u].tolist(), 0.5)
        weights = gaussian(readout.mean[u].tolist(), std, readout.theta[u].item(), 9, 7)
        np.testing.assert_allclose(readout.weights()[u].detach(), weights, atol=1e-12)
        pooled = np.einsum("bcthw,hw->btc", x.numpy(), weights)
        expected = pooled @ readout.features[u].detach().numpy() + readout.bias[u].item()
        np.testing.assert_allclose(y[..., u].detach(), expected, atol=1e-12)


def test_gaussian_starts_where_it_is_told(maps, generator):
    """Feature pixels, whatever the size of the map; without a word, 0.3 and 0.1 of half of its larger side."""
    params = GaussianReadout.Params(initial_std=1.75, initial_mean_scale=0.7)
    for given, size, width, spread in ((params, 9, 1.75, 0.7), (params, 27, 1.75, 0.7), (None, 27, 4.05, 1.35)):
        readout = GaussianReadout(given or GaussianReadout.Params(), maps(3, size, 7), 4000, generator=generator)
        std = (readout.std.square() + 0.25).sqrt()
        torch.testing.assert_close(std, torch.full((4000, 2), width))
        np.testing.assert_allclose(readout.mean.detach().std(), spread, rtol=0.05)
        assert readout.lr_scales == {"mean": size / 2, "std": size / 2}
    readout = GaussianReadout(params, maps(), 4000, generator=generator)
    drive = readout.drive(torch.ones(1, 3, 1, 9, 7))
    assert drive.abs().max() < 0.5


@pytest.mark.parametrize(("height", "width"), [(12, 4), (3, 10), (6, 1)])
def test_the_narrowest_gaussian_is_half_a_pixel_along_each_axis(height, width, maps, generator):
    """On maps that are not square, by a loop over pixels, at any angle."""
    readout = GaussianReadout(GaussianReadout.Params(), maps(2, height, width), 3, generator=generator)
    with torch.no_grad():
        readout.std.zero_(), readout.theta.copy_(torch.tensor([0.0, 0.3, -1.0]))
    weights = readout.weights().detach()
    for u in range(3):
        (x, y), theta = readout.mean[u].tolist(), readout.theta[u].item()
        expected = np.zeros((height, width))
        for i, j in np.ndindex(height, width):
            dx, dy = j - (width - 1) / 2 - x, i - (height - 1) / 2 - y
            along, across = np.cos(theta) * dx + np.sin(theta) * dy, np.cos(theta) * dy - np.sin(theta) * dx
            expected[i, j] = np.exp(-((2 * along) ** 2 + (2 * across) ** 2) / 2)
        np.testing.assert_allclose(weights[u], expected / expected.sum(), atol=1e-12)


def test_a_gaussian_of_no_width_still_learns_where_to_go(maps, generator):
    readout = GaussianReadout(GaussianReadout.Params(initial_std=1e-6), maps(1), 1, generator=generator)
    with torch.no_grad():
        readout.mean.zero_(), readout.features.fill_(1)
    x = torch.zeros(1, 1, 1, 9, 7)
    x[..., 4, 5] = 1
    readout.drive(x).sum().backward()
    assert readout.mean.grad[0, 0] > 1e-3, "moving towards the bright pixel raises the drive"


def test_gaussian_on_a_single_pixel_is_its_features(maps, generator):
    readout = GaussianReadout(GaussianReadout.Params(bias=False), maps(3, 1, 1), 2, generator=generator)
    x = rand(2, 3, 4, 1, 1)
    torch.testing.assert_close(readout(x), torch.einsum("bct,uc->btu", x[..., 0, 0], readout.features))


def test_excitation_minus_inhibition(maps, generator):
    readout = GaussianEIReadout(GaussianEIReadout.Params(), maps(), 4, generator=generator)
    with torch.no_grad():
        readout.mean.add_(rand(2, 4, 2)), readout.features.copy_(rand(2, 4, 3))
    x = rand(2, 3, 5, 9, 7)
    expected = 0
    for sign, index in ((1, 0), (-1, 1)):
        for u in range(4):
            std = np.hypot(readout.std[index, u].tolist(), 0.5)
            weights = torch.as_tensor(gaussian(readout.mean[index, u].tolist(), std, 0.0, 9, 7))
            drive = torch.einsum("bcthw,hw,c->bt", x, weights, readout.features[index, u].abs())
            expected = expected + sign * torch.nn.functional.one_hot(torch.tensor(u), 4) * drive[..., None]
    torch.testing.assert_close(readout.drive(x), expected)


def test_linear_readout_averages_over_the_map(maps, generator):
    readout, x = LinearReadout(LinearReadout.Params(), maps(), 4, generator=generator), rand(2, 3, 5, 9, 7)
    assert readout.features.shape == (4, 3)
    expected = torch.einsum("bct,uc->btu", x.sum(dim=(3, 4)) / 63, readout.features)
    torch.testing.assert_close(readout(x), expected)


def test_pixel_readout(maps, generator):
    readout, x = PixelReadout(PixelReadout.Params(), maps(), 4, generator=generator), rand(2, 3, 5, 9, 7)
    torch.testing.assert_close(readout(x), torch.einsum("bcthw,uchw->btu", x, readout.features))


@pytest.mark.parametrize("normalize", [True, False])
def test_factorized_readout(normalize, maps, generator):
    params = FactorizedReadout.Params(normalize=normalize)
    readout, x = FactorizedReadout(params, maps(), 4, generator=generator), rand(2, 3, 5, 9, 7)
    mask = readout.mask.detach().numpy()
    if normalize:
        mask = mask / np.sqrt((mask**2).sum((1, 2)))[:, None, None]
    expected = np.einsum("bcthw,uhw,uc->btu", x, mask, readout.features.detach())
    np.testing.assert_allclose(readout(x).detach(), expected, atol=1e-12)


@pytest.mark.parametrize("covariance", ["full", "diagonal", "isotropic"])
def test_point_readout_interpolates(covariance, maps, generator):
    params = PointReadout.Params(covariance=covariance, initial_mean_scale=1.2)
    readout, x = PointReadout(params, maps(), 6, generator=generator).eval(), rand(2, 3, 4, 9, 7)
    with torch.no_grad():
        readout.mean[0] = torch.tensor([4.9, -9.0])  # outside of the map its edge counts
    y = readout(x)
    for u, (column, row) in enumerate(readout.mean.tolist()):
        where = [[row + 4], [column + 3]]
        for b, t in np.ndindex(2, 4):
            values = [scipy.ndimage.map_coordinates(x[b, c, t], where, order=1, mode="nearest")[0] for c in range(3)]
            np.testing.assert_allclose(y[b, t, u].item(), np.dot(values, readout.features[u].tolist()), atol=1e-12)


@pytest.mark.parametrize(
    ("covariance", "std"), [("full", [[2.0, 0.0], [1.0, 0.5]]), ("diagonal", [2.0, 0.5]), ("isotropic", [1.0])]
)
def test_sampled_points_have_the_covariance_asked_for(covariance, std, maps, generator):
    """Features that are the coordinates themselves read the sampled points out."""
    params = PointReadout.Params(covariance=covariance, initial_mean_scale=0.0)
    readout = PointReadout(params, maps(2, 20, 20), 2, generator=generator)
    ramp = torch.arange(20) - 9.5
    x = torch.stack([ramp.expand(20, 20), ramp[:, None].expand(20, 20)])[None, :, None].expand(20000, -1, -1, -1, -1)
    with torch.no_grad():
        readout.std.copy_(torch.tensor(std)), readout.features.copy_(torch.eye(2))
        readout.std[0] = 0
        points = readout(x)[:, 0]
    assert points[:, 0].abs().max() < 1e-12, "without spread, the point itself"
    readout.features.data[:] = torch.eye(2).flip(0)
    lower = torch.tensor(std) if covariance == "full" else torch.eye(2) * torch.tensor(std)
    np.testing.assert_allclose(points[:, 1].var(), (lower @ lower.t())[1, 1], rtol=0.05)


def test_points_from_the_coordinates_of_units(maps, generator):
    params, positions = PointReadout.Params(predict_positions=True), rand(6, 3) * 100
    readout = PointReadout(params, maps(), 6, positions=positions, generator=generator)
    assert "mean" not in dict(readout.named_parameters())
    assert (readout.points().abs() < torch.tensor([3.5, 4.5])).all()
    readout.eval()(rand(1, 3, 2, 9, 7)).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in readout.predictor.parameters())
    with pytest.raises(ConfigError, match="no unit_positions"):
        PointReadout(params, maps(), 6, generator=generator)


LOW_RANK = (GaussianReadout, GaussianEIReadout, LinearReadout, FactorizedReadout, PointReadout)


@pytest.mark.parametrize("kind", LOW_RANK)
def test_units_share_mixtures_of_features(kind, maps, generator):
    """A readout of rank 2 is that of full rank whose weights are the product; it starts as large."""
    shared = kind(kind.Params(rank=2), maps(5), 400, generator=generator)
    full = kind(kind.Params(), maps(5), 400, generator=generator)
    weights = torch.einsum("...ur,rc->...uc", shared.features, shared.basis)
    assert np.linalg.matrix_rank(weights.reshape(-1, 5).detach().numpy()) == 2
    np.testing.assert_allclose(weights.square().mean().detach(), full.features.square().mean().detach(), rtol=0.8)
    rest = {key: value for key, value in shared.state_dict().items() if key not in ("features", "basis")}
    full.load_state_dict(rest | {"features": weights})
    x = rand(2, 5, 3, 9, 7)
    torch.testing.assert_close(shared.eval()(x), full.eval()(x))
    for rank in (5, 9):
        with pytest.raises(ConfigError, match=f"rank: {rank} mixtures of 5 features share nothing"):
            kind(kind.Params(rank=rank), maps(5), 4, generator=generator)


@pytest.mark.parametrize("kind", [GaussianReadout, GaussianEIReadout, PointReadout])
def test_units_look_where_their_coordinates_say(kind, maps, generator):
    """Positions are A p + c plus what is a unit's own, so that they fit a linear map by least squares exactly."""
    coordinates = rand(6, 3) * 100 + 7
    readout = kind(kind.Params(retinotopy=True), maps(), 6, positions=coordinates, generator=generator).eval()
    plain = kind(kind.Params(), maps(), 6, generator=generator).eval()
    rest = {key: value for key, value in readout.state_dict().items() if "retinotopy" not in key}
    plain.load_state_dict(rest)
    x = rand(2, 3, 4, 9, 7)
    torch.testing.assert_close(readout(x), plain(x))  # the map is 0 at the start
    with torch.no_grad():
        readout.retinotopy.slope.copy_(rand(2, 3)), readout.retinotopy.centre.copy_(rand(2))
        looked = (readout.points() if kind is PointReadout else readout.centres()).numpy() - readout.mean.numpy()
        design = np.column_stack([coordinates.numpy(), np.ones(6)])
        for part in looked.reshape(-1, 6, 2):
            fitted, *_ = np.linalg.lstsq(design, part, rcond=None)
            np.testing.assert_allclose(design @ fitted, part, atol=1e-9)
            np.testing.assert_allclose(part.mean(axis=0), rand(2), atol=1e-9)
        plain.mean.add_(torch.tensor(looked))
        torch.testing.assert_close(readout(x), plain(x))
    assert readout.retinotopy.lr_scales == {"slope": 4.5, "centre": 4.5}
    with pytest.raises(ConfigError, match="retinotopy: the session has no unit_positions"):
        kind(kind.Params(retinotopy=True), maps(), 6, generator=generator)


def test_one_key_says_where_units_look(maps, generator):
    params = PointReadout.Params(retinotopy=True, predict_positions=True)
    with pytest.raises(ConfigError, match="leave one of them out"):
        PointReadout(params, maps(), 6, positions=rand(6, 2), generator=generator)


def test_a_penalty_on_what_is_a_units_own_makes_the_map_explain_the_positions(maps, generator):
    """Where the positions follow from the coordinates, `mean` ends at 0; one unit elsewhere is that far off alone."""
    coordinates = rand(12, 2)
    target = coordinates @ torch.tensor([[1.0, 0.4], [-0.5, 2.0]]) + 3.0
    params = GaussianReadout.Params(retinotopy=True, initial_mean_scale=0.3)
    readout = GaussianReadout(params, maps(1, 15, 15), 12, positions=coordinates, generator=generator)
    optimizer = torch.optim.LBFGS([readout.mean, *readout.retinotopy.parameters()], max_iter=500, tolerance_grad=1e-12)

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = (readout.centres() - target).square().sum() + 0.01 * readout.mean.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    assert readout.mean.detach().abs().max() < 1e-4
    torch.testing.assert_close(readout.centres(), target, atol=1e-4, rtol=0)
    target[5] += 4
    optimizer.step(loss)
    assert readout.mean.detach().abs().amax(dim=1).argmax() == 5


def test_attention_readout_by_loops(maps, generator):
    params = AttentionReadout.Params(num_heads=2, key_dim=5)
    readout, x = AttentionReadout(params, maps(3, 3, 2), 4, generator=generator), rand(2, 3, 2, 3, 2)
    y = readout(x)
    for b, t, u in np.ndindex(2, 2, 4):
        pixels = x[b, :, t].flatten(1).t()
        drive = 0.0
        for head in range(2):
            part = slice(5 * head, 5 * head + 5)
            keys = pixels @ readout.key.weight[part].t() + readout.position[:, part]
            weights = (keys @ readout.query[u, head] / 5**0.5).softmax(0)
            drive += readout.features[u, head] @ (weights @ pixels)
        torch.testing.assert_close(y[b, t, u], drive)


def test_history_is_a_perceptron_over_the_last_counts(generator):
    params = SpikeHistory.Params(num_lags=3, hidden_dims=[6], act_type="tanh", bias=True)
    encoder, counts = SpikeHistory(params, 2, generator=generator), rand(2, 7, 2).abs()
    y = encoder(counts)
    assert y.shape == (2, 5, 2)
    first, second = encoder.layers
    for b, t in np.ndindex(2, 5):
        # units first, then lags, the oldest first
        window = torch.stack([counts[b, t + lag, unit] for unit in range(2) for lag in range(3)])
        expected = second.weight @ (first.weight @ window + first.bias).tanh() + second.bias
        torch.testing.assert_close(y[b, t], expected)


def test_spectral_norm_bounds_the_gain(generator):
    params = SpikeHistory.Params(num_lags=4, hidden_dims=[5], act_type="none", spectral_norm=True)
    encoder = SpikeHistory(params, 3, generator=generator)
    x = rand(200, 4, 3)
    with torch.no_grad():
        small = encoder(x)
        for layer in encoder.layers:
            layer.weight.mul_(100)
        large = encoder(x)
    bound = np.linalg.svd(encoder.layers[1].weight.detach().numpy() / 100, compute_uv=False)[0]
    assert small.norm() < large.norm()
    assert bound < 1, "the last layer starts small and is left alone"
    assert (large.flatten(1).norm(dim=1) <= x.flatten(1).norm(dim=1)).all()
