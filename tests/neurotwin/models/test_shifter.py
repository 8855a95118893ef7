"""The shifter: positions move with the gaze, frame by frame, by what the definition says."""

import numpy as np
import pytest
import torch
from torch import nn

from neurotwin.config import ConfigError, ModelConfig
from neurotwin.models.parameters import describe_parameters
from neurotwin.models.readout import GaussianEIReadout, GaussianReadout, PointReadout
from neurotwin.models.shifter import Shifter
from neurotwin.models.twin import TwinModel


@pytest.mark.parametrize("kind", [GaussianReadout, GaussianEIReadout, PointReadout])
def test_a_shift_moves_the_means_in_its_own_frame(kind, maps, generator):
    readout = kind(kind.Params(initial_mean_scale=1.2), maps(), 4, generator=generator).eval()
    with torch.no_grad():
        readout.features.normal_(generator=generator), readout.bias.normal_(generator=generator)
        if kind is not PointReadout:
            readout.theta.normal_(generator=generator), readout.std[..., 1].mul_(2)
    x = torch.randn(2, 3, 5, 9, 7, generator=generator)
    shift = 1.6 * torch.randn(2, 5, 2, generator=generator)
    shifted, at_rest = readout(x, shift), readout.mean.detach().clone()
    for clip in range(2):
        for frame in range(5):
            with torch.no_grad():
                readout.mean.copy_(at_rest + shift[clip, frame])
                expected = readout(x[clip : clip + 1, :, frame : frame + 1])[0, 0]
            torch.testing.assert_close(shifted[clip, frame], expected)


def test_a_shifter_is_a_bounded_perceptron_per_session(generator):
    """tanh(W₂ tanh(W₁ g + b₁)), of the named variables alone."""
    params = Shifter.Params(source="gaze", hidden_dims=(5,), max_shift=0.5)
    shifter = Shifter(params, 4, 6.0, ("pupil", "gaze", "speed", "gaze"), generator=generator)
    behavior = torch.randn(2, 6, 4, generator=generator)
    assert not shifter(behavior).any(), "nothing is shifted at the start"
    with torch.no_grad():
        shifter.head.weight.normal_(generator=generator)
    layer = shifter.encoder.layers[0][0]
    hidden = np.tanh(behavior[..., [1, 3]].numpy() @ layer.weight.detach().numpy().T + layer.bias.detach().numpy())
    expected = 0.5 * np.tanh(hidden @ shifter.head.weight.detach().numpy().T)
    np.testing.assert_allclose(shifter(behavior).detach(), expected, atol=1e-12)


def test_without_source_all_behaviour_is_gaze(generator):
    shifter = Shifter(Shifter.Params(), 3, 6.0, generator=generator)
    assert shifter.columns.tolist() == [0, 1, 2]
    assert shifter.max_shift == 6.0, "half of the map, where the config says nothing"


def test_a_source_that_is_not_there_is_named(generator):
    with pytest.raises(ConfigError, match=r"no transform 'gaez' is exposed as behavior; did you mean 'gaze'\?"):
        Shifter(Shifter.Params(source=["gaez"]), 2, 6.0, ("gaze", "gaze"), generator=generator)


@pytest.mark.parametrize("readout", ["gaussian", "point"])
def test_a_known_shift_is_recovered(readout, spec):
    """Units whose receptive fields follow the gaze: the shift that training finds is the one that was put in."""
    draw = torch.Generator().manual_seed(3)
    config = {
        "readout": {"type": readout, "params": {"initial_std": 1.25, "initial_mean_scale": 2.0}},
        "shifter": {"type": "mlp", "params": {"hidden_dims": []}},
        "output_activation": "exp",
    }
    session = spec(frame_shape=(1, 10, 10), unit_ids=tuple(range(8)), n_lags=1, pixel_scale=(1.0, 0.0))
    truth, fitted = (TwinModel(ModelConfig(**config), [session]) for _ in range(2))
    matrix = torch.tensor([[0.3, -0.1], [0.0, -0.25]])
    with torch.no_grad():
        truth.per_session[0].shifter.head.weight.copy_(matrix)
        truth.per_session[0].readout.features.fill_(2.0)
        fitted.per_session[0].readout.features.fill_(1.0)
    # Pictures of low spatial frequency: neighbouring positions see alike, so that a gradient can find its way.
    kernel = torch.exp(-0.5 * ((torch.arange(9) - 4.0) / 1.5) ** 2)
    noise = torch.randn(1, 1, 800, 18, 18, generator=draw)
    smooth = nn.functional.conv3d(noise, (kernel[:, None] * kernel)[None, None, None])
    frames, gaze = smooth / smooth.std(), torch.randn(1, 800, 2, generator=draw).clamp(-2, 2)

    def rates(twin: TwinModel) -> torch.Tensor:
        return twin.per_session[0].readout(frames, twin.per_session[0].shifter(gaze)).exp()

    twin_rates = rates(truth.eval()).detach()
    spikes = torch.poisson(twin_rates, generator=draw)
    fitted.eval()  # points at their means
    groups = [{"params": info.parameter, "lr": 0.05 * info.lr_scale} for info in describe_parameters(fitted)]
    optimizer = torch.optim.Adam(groups)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.poisson_nll_loss(rates(fitted), spikes, log_input=False).backward()
        optimizer.step()
    # A constant part is the readout's own positions.
    found, put_in = (
        shift - shift.mean(dim=1) for shift in (twin.per_session[0].shifter(gaze) for twin in (fitted, truth))
    )
    assert put_in.abs().mean() > 0.75
    assert (found - put_in).abs().mean() < 0.15, "feature pixels"
