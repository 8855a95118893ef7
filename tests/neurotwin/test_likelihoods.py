"""Likelihoods against scipy's densities, their own samples, finite differences and sums bin by bin."""

import copy
import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from neurotwin.config import ConfigError, Params, define, registered
from neurotwin.likelihoods import (
    RATE_FLOOR,
    Gamma,
    Gaussian,
    Likelihood,
    NegativeBinomial,
    Poisson,
    ResponseStatistics,
    check_likelihood,
)

NAMES = ("poisson", "negative_binomial", "gaussian", "gamma")
U = 3


def make(name: str, **params: float) -> Likelihood:
    """A likelihood of three units that differ, in float64."""
    definition = define("likelihood", name)
    likelihood = definition(definition.Params(**params), U).double()
    with torch.no_grad():
        for number, parameter in enumerate(likelihood.parameters()):
            parameter += torch.tensor([-0.7, 0.2, 0.9], dtype=torch.float64) * (1 - 0.5 * number)
    return likelihood


def data(likelihood: Likelihood, n: int = 200, exposed: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Rates, responses, mask and exposure."""
    generator = torch.Generator().manual_seed(5)
    rates = 0.1 + 3 * torch.rand(n, U, dtype=torch.float64, generator=generator)
    exposure = torch.randint(1, 6, (n, 1), generator=generator).double() if exposed else None
    mask = torch.rand(n, U, generator=generator) < 0.8
    return rates, likelihood.sample(rates, exposure, generator), mask, exposure


def scipy_log_prob(likelihood: Likelihood, rates: np.ndarray, y: np.ndarray, e: np.ndarray) -> np.ndarray:
    match likelihood:
        case Poisson():
            return stats.poisson(e * rates).logpmf(y)
        case NegativeBinomial():
            size = e / likelihood.dispersion.detach().numpy()
            return stats.nbinom(size, size / (size + e * rates)).logpmf(y)
        case Gaussian():
            return stats.norm(e * rates, np.sqrt(e * likelihood.variance.detach().numpy())).logpdf(y)
        case Gamma():
            k, c = likelihood.shape.detach().numpy(), likelihood.event.detach().numpy()
            zero = np.exp(-rates / c)
            density = stats.gamma(k, scale=rates / (1 - zero) / k).logpdf(np.where(y > 0, y, 1.0))
            return np.where(y > 0, np.log(1 - zero) + density, np.log(zero))
    raise AssertionError


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("exposed", [False, True])
def test_density_is_that_of_scipy(name: str, exposed: bool) -> None:
    likelihood = make(name)
    if exposed and not likelihood.takes_exposure:
        pytest.skip("single presentations only")
    rates, y, _, exposure = data(likelihood, exposed=exposed)
    e = np.ones((len(y), 1)) if exposure is None else exposure.numpy()
    want = scipy_log_prob(likelihood, rates.numpy(), y.numpy(), e)
    np.testing.assert_allclose(likelihood.log_prob(rates, y, exposure).detach(), want, rtol=1e-9, atol=1e-9)
    # What the loss leaves out depends on the response alone, so it is the same for other rates and parameters.
    left_out = (likelihood.log_prob(rates, y, exposure) - likelihood.log_likelihood(rates, y, exposure)).detach()
    other = define("likelihood", name)(n_units=U).double()
    again = (other.log_prob(rates / 2, y, exposure) - other.log_likelihood(rates / 2, y, exposure)).detach()
    torch.testing.assert_close(left_out, again)


@pytest.mark.parametrize("name", NAMES)
def test_float32_is_close_to_float64(name: str) -> None:
    likelihood = make(name)
    rates, y, mask, exposure = data(likelihood)
    want = likelihood.nll(rates, y, mask, exposure)
    got = copy.deepcopy(likelihood).float().nll(rates.float(), y.float(), mask, exposure)
    assert (got.dtype, want.dtype) == (torch.float32, torch.float64)
    assert got.item() == pytest.approx(want.item(), rel=1e-5)
    half = copy.deepcopy(likelihood).float().nll(rates.bfloat16(), y.float(), mask, exposure)
    assert half.dtype == torch.float32 and half.item() == pytest.approx(want.item(), rel=1e-2, abs=2)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("exposure", [1, 4])
def test_samples_have_the_stated_moments(name: str, exposure: int) -> None:
    likelihood = make(name)
    if exposure > 1 and not likelihood.takes_exposure:
        pytest.skip("single presentations only")
    rate, n = 1.3, 60_000
    e = torch.full((n, 1), float(exposure)) if exposure > 1 else None
    y = likelihood.sample(torch.full((n, U), rate, dtype=torch.float64), e, torch.Generator().manual_seed(0)).numpy()
    match likelihood:
        case Poisson():
            variance = np.full(U, rate)
        case NegativeBinomial():
            variance = rate + likelihood.dispersion.detach().numpy() * rate**2
        case Gaussian():
            variance = likelihood.variance.detach().numpy()
        case Gamma():
            share = 1 - np.exp(-rate / likelihood.event.detach().numpy())
            variance = rate**2 / share * (1 / likelihood.shape.detach().numpy() + 1) - rate**2
            np.testing.assert_allclose((y > 0).mean(0), share, atol=0.01)
    np.testing.assert_allclose(y.mean(0), exposure * rate, atol=5 * np.sqrt(exposure * variance.max() / n))
    np.testing.assert_allclose(y.var(0), exposure * variance, rtol=0.08)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "gamma"])
def test_exposure_is_a_sum_of_independent_presentations(name: str) -> None:
    likelihood, n, e = make(name), 20_000, 3
    generator = torch.Generator().manual_seed(2)
    single = likelihood.sample(torch.full((e, n, U), 0.8, dtype=torch.float64), None, generator).sum(0).numpy()
    joint = torch.full((1, 1), float(e), dtype=torch.float64)
    drawn = likelihood.sample(torch.full((n, U), 0.8, dtype=torch.float64), joint, generator).numpy()
    for unit in range(U):
        if likelihood.discrete:  # the share of each count, against the probability that log_prob states
            values = torch.arange(40, dtype=torch.float64)[:, None].expand(-1, U)
            stated = likelihood.log_prob(torch.full_like(values, 0.8), values, joint)[:, unit].exp().detach().numpy()
            for counts in (single, drawn):
                shares = np.bincount(counts[:, unit].astype(int), minlength=40)[:40] / n
                np.testing.assert_allclose(shares, stated, atol=5 * np.sqrt(0.25 / n))
        else:
            spread = np.sqrt(e * likelihood.variance[unit].item())
            for values in (single, drawn):
                assert stats.kstest(values[:, unit], stats.norm(e * 0.8, spread).cdf).pvalue > 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_the_same_generator_draws_the_same(name: str) -> None:
    likelihood, rates = make(name), torch.rand(50, U, generator=torch.Generator().manual_seed(1))
    a, b, c = (likelihood.sample(rates, generator=torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert torch.equal(a, b) and not torch.equal(a, c) and a.dtype == rates.dtype


def test_poisson_loss_is_the_old_one_to_the_bit() -> None:
    def old(rates: Tensor, counts: Tensor, mask: Tensor, exposure: Tensor | None) -> Tensor:
        valid = mask.bool().expand(counts.shape)
        rates = rates.to(torch.promote_types(rates.dtype, torch.float32))
        expected = torch.where(valid, rates if exposure is None else exposure * rates, 1.0)
        expected = expected + (RATE_FLOOR - expected.detach()).clamp_min(0)
        return torch.where(valid, expected - counts * expected.log(), 0.0).sum()

    generator = torch.Generator().manual_seed(0)
    rates = torch.rand(40, 30, U, generator=generator) * 3
    rates[0] = 0
    counts = torch.poisson(rates, generator=generator)
    mask = torch.rand(40, 30, U, generator=generator) < 0.8
    exposures = (None, torch.randint(1, 5, (40, 30, 1), generator=generator).float())
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for exposure in exposures:
            for y in (counts, counts.to(torch.uint8)):
                a, b = (rates.to(dtype).clone().requires_grad_() for _ in range(2))
                want, got = old(a, y, mask, exposure), Poisson(n_units=U).nll(b, y, mask, exposure)
                want.backward()
                got.backward()
                assert got.dtype == want.dtype and torch.equal(got, want) and torch.equal(a.grad, b.grad)


def test_gradient_of_the_poisson_loss() -> None:
    rates = torch.tensor([[0.5, 2.0, 3.0]], dtype=torch.float64, requires_grad=True)
    spikes, mask = torch.tensor([[1, 0, 5]]), torch.tensor([[True, True, False]])
    exposure = torch.tensor([[4.0]], dtype=torch.float64)
    Poisson(n_units=3).nll(rates, spikes, mask, exposure).backward()
    torch.testing.assert_close(rates.grad, torch.tensor([[4 - 1 / 0.5, 4.0, 0.0]], dtype=torch.float64))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "gaussian"])
def test_a_silenced_rate_is_pulled_up(name: str) -> None:
    rates = torch.zeros(1, U, requires_grad=True)
    loss = make(name).float().nll(rates, torch.ones(1, U), torch.ones(1, U, dtype=torch.bool))
    loss.backward()
    assert loss.isfinite() and (rates.grad < -1e6).all() and rates.grad.isfinite().all()
    if name == "poisson":
        assert rates.grad[0, 0].item() == pytest.approx(1 - 1 / RATE_FLOOR)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("exposed", [False, True])
def test_gradients_against_finite_differences(name: str, exposed: bool) -> None:
    likelihood = make(name)
    exposed = exposed and likelihood.takes_exposure
    rates, y, mask, exposure = (None if x is None else x[:12] for x in data(likelihood, exposed=exposed))
    names = [key for key, _ in likelihood.named_parameters()]
    assert set(names) == set(likelihood.kinds)

    def loss(rates: Tensor, *values: Tensor) -> Tensor:
        state = dict(zip(names, values, strict=True))
        return torch.func.functional_call(_Loss(likelihood), {f"likelihood.{k}": v for k, v in state.items()}, rates)

    class _Loss(torch.nn.Module):
        def __init__(self, likelihood: Likelihood) -> None:
            super().__init__()
            self.likelihood = likelihood

        def forward(self, rates: Tensor) -> Tensor:
            return self.likelihood.nll(rates, y, mask, exposure)

    values = [getattr(likelihood, key).detach().clone().requires_grad_() for key in names]
    assert torch.autograd.gradcheck(loss, (rates.requires_grad_(), *values), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("spoiled", [float("nan"), float("inf"), -float("inf")])
def test_masked_values_reach_neither_loss_nor_gradient(name: str, spoiled: float) -> None:
    likelihood = make(name)
    rates, y, mask, exposure = data(likelihood, exposed=likelihood.takes_exposure)
    exposure = torch.ones_like(rates) if exposure is None else exposure.expand(rates.shape)
    results = []
    for value in (1.0, spoiled):
        x = torch.where(mask, rates, value).requires_grad_()
        response, e = torch.where(mask, y, value), torch.where(mask, exposure, value)
        loss = likelihood.nll(x, response, mask, e)
        results.append([loss.detach(), *torch.autograd.grad(loss, [x, *likelihood.parameters()])])
    for clean, dirty in zip(*results, strict=True):
        assert torch.equal(clean, dirty)
    assert (results[1][1][~mask] == 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_valid_nan_is_not_hidden(name: str) -> None:
    rates, y, mask, _ = data(make(name))
    y[0, 0], mask[0, 0] = float("nan"), True
    assert make(name).nll(rates, y, mask).isnan()


@pytest.mark.parametrize("name", NAMES)
def test_moments_of_training_responses_give_back_the_parameters(name: str) -> None:
    likelihood = make(name)
    rate = 4.0 if name == "negative_binomial" else 1.2  # few counts tell little of their dispersion
    y = likelihood.sample(torch.full((200_000, U), rate), generator=torch.Generator().manual_seed(7))
    y[:, 2] = 0  # a unit that never responds
    fitted = define("likelihood", name)(n_units=U)
    before = {key: value.detach().clone() for key, value in fitted.named_parameters()}
    fitted.initialise(ResponseStatistics(y.mean(0), y.var(0), (y <= 0).float().mean(0)))
    for key, value in fitted.named_parameters():
        want = dict(likelihood.named_parameters())[key].float()
        torch.testing.assert_close(value[:2].exp(), want[:2].exp(), rtol=0.08, atol=0)
        assert value.isfinite().all()
        if name != "gaussian":
            assert value[2] == before[key][2]


def test_a_constant_unit_cannot_make_the_gaussian_loss_unbounded() -> None:
    likelihood = Gaussian(n_units=3)
    likelihood.initialise(ResponseStatistics(torch.zeros(3), torch.tensor([0.0, 0.2, 0.3]), torch.zeros(3)))
    assert likelihood.variance.tolist() == pytest.approx([0.2, 0.2, 0.3])
    with torch.no_grad():
        likelihood.log_variance.fill_(-50.0)
    assert likelihood.variance.tolist() == pytest.approx([0.2e-4, 0.2e-4, 0.3e-4])


def test_a_vanishing_dispersion_is_poisson() -> None:
    likelihood, poisson = NegativeBinomial(n_units=U), Poisson(n_units=U)
    with torch.no_grad():
        likelihood.log_dispersion.fill_(-100.0)
    rates, y, mask, exposure = data(poisson, exposed=True)
    got = likelihood.float().nll(rates.float(), y.float(), mask, exposure.float())
    assert got.item() == pytest.approx(poisson.nll(rates, y, mask, exposure).item(), rel=1e-4)
    got = likelihood.log_prob(rates, y, exposure).detach()
    torch.testing.assert_close(got, poisson.log_prob(rates, y, exposure), rtol=1e-4, atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(rate=st.floats(1e-6, 1e3), log_c=st.floats(-10, 10), log_k=st.floats(-4, 6))
def test_gamma_is_finite_far_out(rate: float, log_c: float, log_k: float) -> None:
    likelihood = Gamma(n_units=1)
    with torch.no_grad():
        likelihood.log_event.fill_(log_c)
        likelihood.log_shape.fill_(log_k)
    rates = torch.tensor([[rate], [rate]], requires_grad=True)
    loss = likelihood.nll(rates, torch.tensor([[0.0], [0.7]]), torch.ones(2, 1))
    loss.backward()
    assert loss.isfinite() and rates.grad.isfinite().all()
    assert likelihood.log_event.grad.isfinite().all() and likelihood.log_shape.grad.isfinite().all()


def test_gamma_reads_what_is_below_zero_as_zero_and_refuses_exposure(caplog: pytest.LogCaptureFixture) -> None:
    likelihood, rates = Gamma(n_units=1), torch.full((2, 1), 0.8)
    below, at = likelihood.log_prob(rates, torch.tensor([[-0.3], [0.0]]))
    assert below.item() == at.item() == pytest.approx(-0.8)
    assert torch.equal(likelihood.log_prob(rates, rates, torch.ones(2, 1)), likelihood.log_prob(rates, rates))
    with pytest.raises(ValueError, match="exposure must be 1"):
        likelihood.log_prob(rates, rates, torch.full((2, 1), 2.0))
    with pytest.raises(ValueError, match="exposure must be 1"):
        likelihood.sample(rates, torch.full((2, 1), 2.0))
    with caplog.at_level(logging.WARNING):
        likelihood.check(-0.1, False, "ada_1")
    assert "ada_1" in caplog.text and "gaussian" in caplog.text


@pytest.mark.parametrize(
    ("name", "minimum", "whole", "exposed", "cure"),
    [
        ("poisson", -0.1, False, False, "gaussian"),
        ("negative_binomial", -1, True, False, "gaussian"),
        ("negative_binomial", 0, False, False, "gamma"),
        ("gamma", 0, False, True, "gaussian"),
    ],
)
def test_unfit_responses_are_refused_with_a_cure(
    name: str, minimum: float, whole: bool, exposed: bool, cure: str
) -> None:
    with pytest.raises(ConfigError, match=rf"session ada_1: .*likelihood: \{{type: {cure}\}}") as error:
        make(name).check(minimum, whole, "ada_1", exposed)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "minimum", "whole", "exposed"),
    [
        ("poisson", 0, True, True),
        ("poisson", 0, False, False),
        ("negative_binomial", 0, True, True),
        ("gaussian", -3, False, True),
        ("gamma", 0, False, False),
    ],
)
def test_fit_responses_are_accepted(name: str, minimum: float, whole: bool, exposed: bool) -> None:
    make(name).check(minimum, whole, "ada_1", exposed)


# ------------------------------------------------------------------------------------------ the check that users run


@pytest.mark.parametrize("name", NAMES)
def test_every_likelihood_passes_its_check(name: str) -> None:
    likelihood = make(name)
    before = copy.deepcopy(likelihood.state_dict())
    check_likelihood(likelihood, seed=1)
    for key, value in likelihood.state_dict().items():
        assert torch.equal(value, before[key])


class Laplace(Likelihood):
    """What a user writes: real responses with heavy tails."""

    def log_prob(self, rates: Tensor, responses: Tensor, exposure: Tensor | None = None) -> Tensor:
        return -(responses - rates).abs() - np.log(2)

    def sample(self, rates: Tensor, exposure: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        uniform = torch.rand(rates.shape, dtype=rates.dtype, generator=generator) - 0.5
        return rates - uniform.sign() * torch.log1p(-2 * uniform.abs())

    takes_exposure = False


class Skewed(Laplace):
    """Samples that miss the stated mean."""

    def sample(self, *arguments: Tensor, **options: Tensor) -> Tensor:
        return super().sample(*arguments, **options) + 0.1


class Unnormalised(Laplace):
    """A density that integrates to 2."""

    def log_prob(self, rates: Tensor, responses: Tensor, exposure: Tensor | None = None) -> Tensor:
        return -(responses - rates).abs()


class WrongNull(Poisson):
    """Sums that miss the mean rate."""

    def at_mean(self, sums: dict[str, Tensor]) -> Tensor:
        return super().at_mean(sums) + 1


class WrongExposure(Gaussian):
    """A variance that does not grow with exposure."""

    def log_prob(self, rates: Tensor, responses: Tensor, exposure: Tensor | None = None) -> Tensor:
        return super().log_prob(rates if exposure is None else exposure * rates, responses)


class LeakyMask(Poisson):
    """A mask that is multiplied."""

    def nll(self, rates: Tensor, responses: Tensor, mask: Tensor, exposure: Tensor | None = None) -> Tensor:
        return -(self.log_likelihood(rates, responses, exposure) * mask).sum()


class NoGradient(NegativeBinomial):
    """A parameter that the loss does not see rightly."""

    @property
    def dispersion(self) -> Tensor:
        return super().dispersion.detach() + 0 * self.log_dispersion.double()


class LowSaturated(Poisson):
    """A saturated log likelihood that other rates beat."""

    def saturated(self, sums: dict[str, Tensor]) -> Tensor:
        return sums["saturated"] - 200


def test_a_likelihood_of_ones_own_is_one_class() -> None:
    check_likelihood(Laplace(n_units=2))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Skewed, "samples of unit 0"),
        (Unnormalised, "integrates to 2"),
        (WrongNull, "at_mean"),
        (WrongExposure, "exposure 3"),
        (LeakyMask, "masked"),
        (NoGradient, "log_dispersion"),
        (LowSaturated, "saturated"),
    ],
)
def test_the_check_finds_mistakes(kind: type[Likelihood], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_likelihood(kind(n_units=1))


def test_what_is_registered() -> None:
    for name in NAMES:
        likelihood = registered("likelihood")[name]
        assert issubclass(likelihood.Params, Params) and likelihood.__doc__
        assert all(field.description for field in likelihood.Params.model_fields.values())
        assert (likelihood.figure_of_merit == "bps") == likelihood.bits_per_spike == likelihood.discrete
        fixed = likelihood(likelihood.Params(learned=False), U) if likelihood.kinds else likelihood(n_units=U)
        assert not any(parameter.requires_grad for parameter in fixed.parameters())
    with pytest.raises(ConfigError, match="poisson"):
        define("likelihood", "poison")
