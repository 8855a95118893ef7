"""Recurrent stages against torch's cells."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from neurotwin.models.recurrent import ConvGRU, ConvGRULayer, ConvLSTM, ConvLSTMLayer, PooledGRU, PooledLSTM


def rand(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize(("kind", "cell"), [(ConvGRULayer, nn.GRUCell), (ConvLSTMLayer, nn.LSTMCell)])
def test_a_pixel_of_the_layer_is_torchs_cell(kind, cell, generator):
    layer, reference = kind(3, 4, 1, generator=generator), cell(3, 4)
    with torch.no_grad():
        for theirs, ours in (
            (reference.weight_ih, layer.input_weight), (reference.weight_hh, layer.hidden_weight),
            (reference.bias_ih, layer.input_bias), (reference.bias_hh, layer.hidden_bias),
        ):  # fmt: skip
            ours.add_(0.3)
            theirs.copy_(ours.flatten(1) if ours.ndim == 4 else ours)
    x = rand(2, 3, 6, 1, 1)
    y, last = layer(x)
    state = None
    for t in range(6):
        state = reference(x[:, :, t, 0, 0], state)
        hidden = state[0] if isinstance(state, tuple) else state
        torch.testing.assert_close(y[:, :, t, 0, 0], hidden)
    if isinstance(state, tuple):
        torch.testing.assert_close(last[1][..., 0, 0], state[1])


@pytest.mark.parametrize("norm", [True, False])
def test_convolutional_gru_by_steps(norm, generator):
    layer = ConvGRULayer(3, 4, 3, layer_norm=norm, generator=generator)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.1 * rand(*parameter.shape))

    def gates(x, weight, scale):
        out = F.conv2d(x, weight, padding=1).chunk(3, dim=1)
        if not norm:
            return torch.stack(out)
        out = [(g - g.mean(1, keepdim=True)) / (g.var(1, correction=0, keepdim=True) + 1e-5).sqrt() for g in out]
        return torch.stack(out) * scale.view(3, 1, 4, 1, 1)

    x, h = rand(2, 3, 4, 5, 5), torch.zeros(2, 4, 5, 5)
    y, _ = layer(x)
    for t in range(4):
        driven = gates(x[:, :, t], layer.input_weight, layer.input_scale) + layer.input_bias.view(3, 1, 4, 1, 1)
        recurrent = gates(h, layer.hidden_weight, layer.hidden_scale) + layer.hidden_bias.view(3, 1, 4, 1, 1)
        r, z = (driven[:2] + recurrent[:2]).sigmoid()
        h = (1 - z) * (driven[2] + r * recurrent[2]).tanh() + z * h
        torch.testing.assert_close(y[:, :, t], h)


def test_forget_gate_starts_open(generator):
    assert ConvLSTMLayer(3, 4, 1, generator=generator).input_bias.tolist() == [0] * 4 + [1] * 4 + [0] * 8


@pytest.mark.parametrize("kind", [ConvGRU, ConvLSTM, PooledGRU, PooledLSTM])
def test_state_carries_over(kind, maps, generator):
    stage, x = kind(kind.Params(hidden_dim=4, n_layers=2), maps(), generator=generator), rand(2, 3, 7, 9, 7)
    whole, last = stage(x)
    parts, state = [], None
    for start, stop in ((0, 1), (1, 4), (4, 7)):
        part, state = stage(x[:, :, start:stop], None, state)
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts, dim=2), whole)
    torch.testing.assert_close(state, last)
    assert whole.shape == (2, 4, 7, stage.outputs.height, stage.outputs.width)


def test_pooled_network_sees_the_mean_over_pixels(maps, generator):
    stage, x = PooledGRU(PooledGRU.Params(hidden_dim=4), maps(), generator=generator), rand(2, 3, 5, 9, 7)
    expected, _ = stage.network(x.mean(dim=(3, 4)).transpose(1, 2))
    torch.testing.assert_close(stage(x)[0][..., 0, 0], expected.transpose(1, 2))
