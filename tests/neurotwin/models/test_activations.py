"""Activations against their formulas."""

import numpy as np
import pytest
import torch

from neurotwin.config import ConfigError, recording_reads, unread_keys
from neurotwin.models.activations import Activation, ActParams


def amplitude(a, b):
    """The modulus of a + ib, but for what keeps its gradient finite at 0."""
    return torch.complex(a, b).abs().square().add(1e-6).sqrt() - 1e-3


@pytest.mark.parametrize(
    ("name", "params", "expected"),
    [
        ("none", {}, lambda x: x),
        ("identity", {}, lambda x: x),
        ("relu", {}, lambda x: x.clamp_min(0)),
        ("leakyrelu", {"negative_slope": 0.3}, lambda x: torch.where(x > 0, x, 0.3 * x)),
        ("gelu", {}, lambda x: x * (1 + torch.erf(x / 2**0.5)) / 2),
        ("sigmoid", {}, lambda x: 1 / (1 + (-x).exp())),
        ("tanh", {}, torch.tanh),
        ("silu", {}, lambda x: x / (1 + (-x).exp())),
        ("swish", {}, lambda x: x / (1 + (-x).exp())),
        ("mish", {}, lambda x: x * (1 + x.exp()).log().tanh()),
        ("softplus", {"beta": 2.0}, lambda x: (1 + (2 * x).exp()).log() / 2),
        ("bsoftplus", {"beta": 3.0}, lambda x: (1 + (3 * x).exp()).log() / 3),
        ("splitrelu", {}, lambda x: torch.cat([x.clamp_min(0), (-x).clamp_min(0)], 1)),
        ("square", {}, lambda x: x * x),
        ("energy", {}, lambda x: torch.stack([x[:, 0] ** 2 + x[:, 2] ** 2, x[:, 1] ** 2 + x[:, 3] ** 2], 1)),
        ("energy", {"paired": 0.5}, lambda x: torch.cat([x[:, :2].clamp_min(0), x[:, 2:3] ** 2 + x[:, 3:] ** 2], 1)),
        ("amplitude", {}, lambda x: torch.stack([amplitude(x[:, 0], x[:, 2]), amplitude(x[:, 1], x[:, 3])], 1)),
        ("amplitude", {"paired": 0.9}, lambda x: torch.cat([x[:, :2].relu(), amplitude(x[:, 2:3], x[:, 3:])], 1)),
        ("ELU", {}, lambda x: torch.where(x > 0, x, x.exp() - 1)),
        ("PReLU", {}, lambda x: torch.where(x > 0, x, 0.25 * x)),
        ("GLU", {}, lambda x: x[:, :2] / (1 + (-x[:, 2:]).exp())),
        ("Softmax", {}, lambda x: x.exp() / x.exp().sum(1, keepdim=True)),
        ("Softmax2d", {}, lambda x: x.exp() / x.exp().sum(1, keepdim=True)),
    ],
)
def test_activations(name, params, expected, rand):
    act, x = Activation(name, ActParams(**params)), rand(2, 4, 3, 5, 5)
    torch.testing.assert_close(act(x), expected(x))
    assert act.channels(4) == expected(x).shape[1]


def test_the_energy_of_filters_in_quadrature_does_not_depend_on_phase():
    """A grating moves across two Gabors, even and odd: each is modulated, their energy and amplitude are not."""
    x, phases = torch.linspace(-3, 3, 601), torch.linspace(0, 2 * np.pi, 9)[:-1]
    envelope = (-(x**2) / 2).exp()
    even, odd = envelope * (5 * x).cos(), envelope * (5 * x).sin()
    gratings = (5 * x - phases[:, None]).cos()
    drives = torch.stack([gratings @ even, gratings @ odd], dim=1)
    assert drives.std(dim=0).min() > 0.5 * drives.abs().max()
    for name in ("energy", "amplitude"):
        response = Activation(name)(drives)
        assert response.std() < 1e-2 * response.mean()
    at_rest = torch.zeros(1, 2, requires_grad=True)
    Activation("amplitude")(at_rest).sum().backward()
    assert Activation("amplitude")(at_rest).item() == 0 and at_rest.grad.isfinite().all()


@pytest.mark.parametrize(
    ("name", "paired", "channels"), [("energy", None, 5), ("amplitude", 0.1, 4), ("energy", 1.0, 1)]
)
def test_channels_without_a_partner_are_refused(name, paired, channels):
    with pytest.raises(ConfigError, match=f"{name} squares pairs of channels"):
        Activation(name, ActParams(paired=paired)).channels(channels)


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("relu", {"negative_slope": 0.1}, "negative_slope: relu does not read it"),
        ("splitrelu", {"split_dim": 3}, "only the channels"),
        ("Threshold", {}, "cannot give it"),
    ],
)
def test_activation_parameters_that_nothing_reads_are_refused(name, params, message):
    with pytest.raises(ConfigError, match=message):
        Activation(name, ActParams(**params))


@pytest.mark.parametrize(("name", "key"), [("leakyrelu", "negative_slope"), ("softplus", "beta"), ("energy", "paired")])
def test_a_parameter_that_an_activation_reads_is_not_said_to_be_idle(name, key):
    params = ActParams(**{key: 0.5})
    with recording_reads() as reads:
        Activation(name, params)
    assert not unread_keys(params, reads)
