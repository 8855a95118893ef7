"""Behaviour in the features."""

import pytest
import torch
from torch.nn import functional as F

from neurotwin.config import ConfigError
from neurotwin.models.modulator import Concat, ConvGRUModulator, FiLM


def rand(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


def gru(maps, generator, **params) -> ConvGRUModulator:
    params = ConvGRUModulator.Params(**{"hidden_dim": 5, "beh_emb_dim": 4, **params})
    return ConvGRUModulator(params, maps(), behavior_dim=2, generator=generator)


def test_concat_appends_the_encoded_behaviour(maps, generator):
    modulator = Concat(Concat.Params(encoder_params={"dims": [6, 4]}), maps(), behavior_dim=2, generator=generator)
    x, behavior = rand(2, 3, 5, 9, 7), rand(2, 5, 2)
    y, _ = modulator(x, behavior)
    assert modulator.outputs == maps(7)
    torch.testing.assert_close(y[:, :3], x)
    for pixel in ((0, 0), (8, 6)):
        torch.testing.assert_close(y[:, 3:, :, *pixel].transpose(1, 2), modulator.encoder(behavior))


def test_film_starts_as_the_identity_and_scales_channels(maps, generator):
    modulator = FiLM(FiLM.Params(), maps(), behavior_dim=2, generator=generator)
    x, behavior = rand(2, 3, 5, 9, 7), rand(2, 5, 2)
    assert torch.equal(modulator(x, behavior)[0], x)
    with torch.no_grad():
        modulator.head.weight.copy_(rand(6, 64))
    gain, shift = (modulator.encoder(behavior) @ modulator.head.weight.t()).chunk(2, dim=2)
    expected = torch.einsum("bcthw,btc->bcthw", x, 1 + gain) + shift.transpose(1, 2)[..., None, None]
    torch.testing.assert_close(modulator(x, behavior)[0], expected)


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("hidden", [3, 5])
def test_gru_adds_the_features(residual, hidden, maps, generator):
    modulator = gru(maps, generator, use_residual=residual, hidden_dim=hidden)
    x, behavior = rand(2, 3, 4, 9, 7), rand(2, 4, 2)
    embedded = (
        modulator.embedding(modulator.encoder(behavior)).transpose(1, 2)[..., None, None].expand(-1, -1, -1, 9, 7)
    )
    state = [modulator.h0.expand(2, -1, 9, 7)]
    expected, _ = modulator.layer(torch.cat([x, embedded], 1), state)
    if residual:
        weight = torch.eye(3) if hidden == 3 else modulator.residual[:, :, 0, 0]
        expected = expected + torch.einsum("oi,bithw->bothw", weight, x)
    torch.testing.assert_close(modulator(x, behavior)[0], expected)


def test_gru_carries_its_state(maps, generator):
    modulator = gru(maps, generator)
    x, behavior = rand(2, 3, 7, 9, 7), rand(2, 7, 2)
    whole, last = modulator(x, behavior)
    first, state = modulator(x[:, :, :3], behavior[:, :3])
    second, state = modulator(x[:, :, 3:], behavior[:, 3:], state)
    torch.testing.assert_close(torch.cat([first, second], dim=2), whole)
    torch.testing.assert_close(state, last)


def test_auxiliary_loss_is_the_error_of_the_next_frame(maps, generator):
    modulator = gru(maps, generator, use_residual=False)
    x, behavior = rand(2, 3, 5, 9, 7).requires_grad_(), rand(2, 5, 2)
    modulator(x, behavior)
    assert modulator.auxiliary_loss is None
    modulator.predict_features(generator=generator)
    hidden, _ = modulator(x, behavior)
    loss = modulator.auxiliary_loss
    errors = []
    for t in range(4):
        predicted = F.conv2d(hidden[:, :, t], modulator.prediction)
        errors.append((predicted - x[:, :, t + 1]).square().mean())
    torch.testing.assert_close(loss, torch.stack(errors).mean())
    gradient = torch.autograd.grad(loss, x)[0]
    assert torch.equal(gradient[:, :, -1], torch.zeros_like(gradient[:, :, -1])), "the target gets no gradient"
    modulator.eval()(x, behavior)
    assert modulator.auxiliary_loss is None


@pytest.mark.parametrize(("bound", "growth"), [(None, 10.0), (1e-3, 1.0)])
def test_gradients_through_time_are_clipped(bound, growth, maps):
    """Ten times the loss is ten times the gradient, until every element is at the bound."""
    x, behavior = rand(1, 3, 4, 9, 7), rand(1, 4, 2)
    modulator = gru(maps, torch.Generator().manual_seed(0), grad_clip_val=bound)
    gradients = []
    for scale in (1.0, 10.0):
        loss = scale * modulator(x, behavior)[0][:, :, -1].sum()
        gradients.append(torch.autograd.grad(loss, modulator.h0)[0])
    torch.testing.assert_close(gradients[1], growth * gradients[0])
    assert gradients[0].abs().sum() > 0


@pytest.mark.parametrize(("kind", "params"), [(FiLM, FiLM.Params()), (ConvGRUModulator, ConvGRUModulator.Params())])
def test_nothing_to_modulate_is_refused(kind, params, maps, generator):
    with pytest.raises(ConfigError, match="leaves none; use concat"):
        kind(params, maps(0, 1, 1), behavior_dim=2, generator=generator)
