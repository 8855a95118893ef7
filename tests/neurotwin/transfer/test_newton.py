"""Newton steps against independent references: autograd, scikit-learn, and L-BFGS on the same loss."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from sklearn.linear_model import PoissonRegressor

from neurotwin.config import DatasetConfig, ModelConfig
from neurotwin.data.prepare import Prepared
from neurotwin.data.spec import SessionSpec
from neurotwin.models import TwinModel
from neurotwin.transfer.features import FeatureBank
from neurotwin.transfer.lbfgs import LbfgsFitter
from neurotwin.transfer.newton import NewtonFitter

N_BINS, N_UNITS, CHANNELS, SIZE = 900, 3, 4, 5
SCATTERED = {"likelihood": {"type": "negative_binomial"}}


def case(**model):
    """The module of a session with random parameters, and banks of its training and validation bins."""
    spec = SessionSpec(
        name="a", subject="a", unit_ids=tuple(range(N_UNITS)), frame_shape=(CHANNELS, SIZE, SIZE), bin_rate=60.0,
        n_lags=1, config=DatasetConfig(session="a", keys_lags={"stim": 0}),
    )  # fmt: skip
    config = {"initial_input_channels": CHANNELS, "readout": {"type": "gaussian"}} | model
    module = TwinModel(ModelConfig.model_validate(config), [spec]).eval().per_session[0]
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    features = rng.standard_normal((N_BINS, CHANNELS, SIZE, SIZE)).astype(np.float32)
    with torch.no_grad():
        module.readout.mean.normal_(generator=generator)
        if hasattr(module.readout, "theta"):
            module.readout.std.copy_(0.5 + torch.rand(module.readout.std.shape, generator=generator))
            module.readout.theta.normal_(generator=generator)
        module.readout.features.normal_(generator=generator)
        rates = module(torch.from_numpy(features)[:, :, None])[:, 0]
    unit, index = np.zeros(N_UNITS), np.arange(N_BINS)
    mask = rng.random((N_BINS, N_UNITS)) > 0.1
    prepared = Prepared(
        spec=spec, source=features, frame=index, responses=rng.poisson(rates).astype(np.uint8), mask=mask,
        n_valid=mask.sum(1), train_bins=unit, train_presentations=unit, train_sum=unit, train_squares=unit,
        train_zeros=unit, split=(index % 3 == 0).astype(np.int8), run_start=0 * index, run_stop=0 * index + N_BINS,
        contrast=unit, trial=index, repeat_id=index - index - 1,
    )  # fmt: skip
    bank = FeatureBank(prepared=prepared, features=features, bins=index)
    return module, bank.part("train"), bank.part("val")


@pytest.mark.parametrize("model", [{}, SCATTERED], ids=["plain", "scattered"])
def test_gradient_and_curvature_are_those_of_the_loss(model):
    module, train, val = case(**model)
    fitter = NewtonFitter(module, torch.eye(CHANNELS) + 0.1, train, val)
    fitter.at[:, :CHANNELS] = torch.randn(N_UNITS, CHANNELS, generator=torch.Generator().manual_seed(1))
    loss, gradient, hessian = fitter._evaluate(train, fitter.at, True)
    rates = module(train.seen())
    torch.testing.assert_close(loss.sum().float(), module.likelihood.nll(rates, *train.target()), rtol=1e-4, atol=1e-3)
    step = 1e-2
    for index in range(fitter.at.shape[1]):
        moved = [fitter.at.clone(), fitter.at.clone()]
        moved[0][:, index] -= step
        moved[1][:, index] += step
        low, high = (fitter._evaluate(train, at, True) for at in moved)
        torch.testing.assert_close((high[0] - low[0]) / (2 * step), gradient[:, index], rtol=2e-2, atol=0.05)
        if not model and index <= CHANNELS:  # the loss is convex and the drive linear: the curvature is exact
            slope = ((high[1] - low[1]) / (2 * step))[:, : CHANNELS + 1]
            torch.testing.assert_close(slope, hessian[:, index, : CHANNELS + 1], rtol=2e-2, atol=0.2)


def test_penalties_have_the_slope_that_steps_use():
    module, train, val = case()
    fitter = NewtonFitter(module, torch.eye(CHANNELS), train, val)
    generator = torch.Generator().manual_seed(2)
    at = (fitter.at + torch.randn(fitter.at.shape, generator=generator)).double().requires_grad_()
    (slope,) = torch.autograd.grad(fitter._penalties(at, 3.0).sum(), at)
    torch.testing.assert_close(slope, fitter._slope(torch.zeros_like(at), at.detach(), 3.0), rtol=1e-6, atol=1e-6)


def test_a_part_of_the_bins_stands_for_all():
    module, train, val = case()
    fitter = NewtonFitter(module, torch.eye(CHANNELS), train, val)
    whole, part = (fitter._evaluate(bank, fitter.at, True) for bank in (train, train.thinned(len(train) // 3)))
    assert not torch.equal(whole[0], part[0])
    torch.testing.assert_close(part[0], whole[0], rtol=0.25, atol=0)
    torch.testing.assert_close(
        part[2].diagonal(dim1=1, dim2=2).sum(), whole[2].diagonal(dim1=1, dim2=2).sum(), rtol=0.25, atol=0
    )


def test_weights_are_those_of_scikit_learn():
    module, train, val = case(output_activation="exp")
    module.initialise(train.statistics())
    fitter, penalty = NewtonFitter(module, torch.eye(CHANNELS), train, val), 5.0
    for _ in range(3):  # each ends where a step would gain little
        fitter.descend(penalty, 30, moving=False)
    x = (module.readout.weights().detach().flatten(1) @ train.seen()[:, :, 0].flatten(2).mT).transpose(0, 1).numpy()
    y, mask, _ = train.target()
    for unit in range(N_UNITS):
        valid, scale = mask[:, 0, unit].numpy(), float(fitter.scale[unit])
        # Its loss is a mean over bins, and the penalty of a weight in units of the scale.
        reference = PoissonRegressor(alpha=penalty / scale**2 / valid.sum(), tol=1e-10, max_iter=5000)
        reference.fit(x[unit, valid], y[valid, 0, unit].numpy())
        np.testing.assert_allclose(module.readout.features[unit].detach(), reference.coef_, rtol=0.02, atol=0.01)
        assert module.readout.bias[unit].item() == pytest.approx(reference.intercept_, abs=0.01)


@pytest.mark.parametrize("model", [{}, SCATTERED], ids=["plain", "scattered"])
@pytest.mark.parametrize("moving", [False, True])
def test_newton_ends_where_lbfgs_ends(model, moving):
    module, train, val = case(**model)
    module.initialise(train.statistics())
    with torch.no_grad():
        module.readout.mean.add_(0.05)
    losses = []
    for kind in (NewtonFitter, LbfgsFitter):
        own = deepcopy(module)
        fitter = kind(own, torch.eye(CHANNELS), train, val)
        for _ in range(4):  # each ends where a step would gain little
            fitter.descend(3.0, 60, moving=moving)
        fitter.put(fitter.state())
        with torch.no_grad():
            loss = own.likelihood.nll(own(train.seen()), *train.target())
            weights = (own.readout.features / fitter.scale[:, None]).square().sum()
            pairs = zip(own.readout.parameters(), module.readout.parameters(), strict=True)
            moved = [(new - old).square().sum() for new, old in pairs if new.shape in ((N_UNITS,), (N_UNITS, 2))]
            anchored = sum(moved) - (own.readout.bias - module.readout.bias).square().sum()
        losses.append(float(loss + 1.5 * weights + 50 * anchored))
        assert fitter.validation(moving) * val.target()[1].sum() == pytest.approx(
            float(own.likelihood.nll(own(val.seen()), *val.target()).detach()), rel=1e-5
        )
    assert losses[0] == pytest.approx(losses[1], abs=0.5)


def test_a_step_that_makes_a_unit_worse_is_not_taken(monkeypatch):
    module, train, val = case()
    module.initialise(train.statistics())
    fitter = NewtonFitter(module, torch.eye(CHANNELS), train, val)
    before = fitter.state()
    monkeypatch.setattr(fitter, "_step", lambda *_: torch.full_like(fitter.at, 50.0))
    fitter.descend(1.0, 3, moving=False)
    assert torch.equal(fitter.state(), before)


def test_what_units_share_is_left_to_lbfgs():
    assert NewtonFitter.suits(case()[0]) and NewtonFitter.suits(case(**SCATTERED)[0])
    shared = {"type": "softplus", "params": {"learned": True}}
    rank = {"readout": {"type": "gaussian", "params": {"rank": 2}}}
    for model in (rank, {"output_activation": shared}, {"baseline": {"enabled": True}}, {"readout": {"type": "point"}}):
        assert not NewtonFitter.suits(case(**model)[0])
