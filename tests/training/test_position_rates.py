"""Positions are learned in pixels, and as fast as if half of the map were their unit."""

from types import SimpleNamespace

import pytest
import torch

from neurotwin.config import ModelConfig
from neurotwin.data.spec import SessionSpec
from training import MultiDatasetModel
from training.schedulers import largest_rate


def model_of(size: int, readout: str) -> MultiDatasetModel:
    """A readout over frames of size × size pixels."""
    spec = SessionSpec(
        name="a", subject="a", unit_ids=(1, 2), frame_shape=(1, size, size), bin_rate=60.0, n_lags=1
    )  # fmt: skip
    model = MultiDatasetModel(ModelConfig(readout=readout), [spec], learning_rate=0.01)
    model._trainer = SimpleNamespace(max_epochs=1, estimated_stepping_batches=1, num_training_batches=1)
    return model


@pytest.mark.parametrize("readout", ["gaussian", "gaussianei", "point"])
@pytest.mark.parametrize("size", [7, 40])
def test_a_step_is_that_of_a_position_in_half_maps(readout, size):
    """For gradients of any size, those near AdamW's ε too. The reference is AdamW on the share of half a map."""
    model = model_of(size, readout)
    optimizer, half = model.configure_optimizers(), size / 2
    mean = model.twin.per_session[0].readout.mean
    share = torch.nn.Parameter(mean.detach().double() / half)
    reference = torch.optim.AdamW([share], lr=0.01, weight_decay=0.0)
    draw = torch.Generator().manual_seed(0)
    for scale in (1e-9, 1e-8, 1e-3, 1.0):
        gradient = scale * torch.randn(mean.shape, generator=draw)
        mean.grad, share.grad = gradient / half, gradient.double()
        optimizer.step()
        reference.step()
        torch.testing.assert_close(mean.detach().double(), half * share.detach(), rtol=1e-4, atol=1e-6 * half)


def test_other_parameters_learn_at_the_rate_that_was_given():
    model = model_of(20, "gaussian")
    optimizer = model.configure_optimizers()
    readout = model.twin.per_session[0].readout
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert [rates[id(getattr(readout, name))] for name in ("features", "theta", "bias", "mean", "std")] == (
        [0.01, 0.01, 0.01, 0.1, 0.1]
    )
    assert largest_rate([optimizer]) == 0.01, "what a run reports"
    assert len(rates) == len(list(model.parameters())), "each in one group"
