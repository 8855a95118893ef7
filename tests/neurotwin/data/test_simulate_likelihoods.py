"""Responses simulated from each likelihood: those stated, and best predicted by the likelihood they come from."""

import zlib

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from neurotwin.config import ConfigError, define
from neurotwin.data.session import Session
from neurotwin.data.simulate import simulate_session
from neurotwin.likelihoods import Gamma, Gaussian, Likelihood, NegativeBinomial, Poisson, ResponseStatistics

SHORT = {"backimage": 3, "gaborium": 3, "fixrsvp": 3}
PARAMS = {
    "negative_binomial": {"dispersion": 4.0},
    "gaussian": {"variance": 0.003},
    "gamma": {"event": 0.2, "shape": 2.0},
}


def simulated(likelihood: str, **params: float) -> Session:
    params = params or PARAMS.get(likelihood, {})
    return simulate_session(
        "ada_demo1", n_units=6, n_trials=SHORT, likelihood=likelihood, likelihood_params=params
    )  # fmt: skip


def test_poisson_is_the_default_and_draws_as_ever() -> None:
    session = simulate_session("ada_demo1", n_units=6, n_trials=SHORT)
    assert session.responses.dtype == np.uint8 and np.array_equal(session.responses, simulated("poisson").responses)
    rng = np.random.default_rng([0, zlib.crc32(b"ada_demo1/spikes")])
    assert np.array_equal(session.responses, rng.poisson(session.true_rate).astype(np.uint8))


@pytest.mark.parametrize("likelihood", PARAMS)
def test_responses_scatter_as_stated_about_the_same_rate(likelihood: str) -> None:
    session, poisson = simulated(likelihood), simulated("poisson")
    for name in ("stimulus", "true_rate", "missing_pct"):
        assert np.array_equal(getattr(session, name), getattr(poisson, name))
    y, rate = session.responses.astype(float), session.true_rate.astype(float)
    params = PARAMS[likelihood]
    if likelihood == "negative_binomial":
        assert session.responses.dtype == np.uint8
        variance = rate + params["dispersion"] * rate**2
    elif likelihood == "gaussian":
        assert session.responses.dtype == np.float32 and (y < 0).any()
        variance = np.full_like(rate, params["variance"])
    else:
        assert session.responses.dtype == np.float32 and (y >= 0).all()
        share = 1 - np.exp(-rate / params["event"])
        variance = rate**2 / share * (1 / params["shape"] + 1) - rate**2
        assert (y > 0).sum() == pytest.approx(share.sum(), abs=5 * np.sqrt((share * (1 - share)).sum()))
    assert y.sum() == pytest.approx(rate.sum(), abs=5 * np.sqrt(variance.sum()))
    assert ((y - rate) ** 2).sum() == pytest.approx(variance.sum(), rel=0.1)
    again = simulated(likelihood)
    assert session.responses.tobytes() == again.responses.tobytes()


def test_large_counts_do_not_wrap_around() -> None:
    responses = simulated("negative_binomial", dispersion=9000.0).responses
    assert responses.max() > 255 and responses.dtype == np.int32


def test_what_is_no_likelihood_is_refused() -> None:
    with pytest.raises(ConfigError, match="gaussian"):
        simulated("gausian")
    with pytest.raises(ValueError, match="dispersion"):
        simulated("negative_binomial", dispersal=1.0)


# ---------------------------------------------------------------------------------- which likelihood predicts best


def fitted(name: str, rate: Tensor, y: Tensor) -> tuple[Likelihood, Tensor]:
    """The likelihood's own parameters, and one scale of the true rate for each unit, fitted by maximum likelihood."""
    likelihood = define("likelihood", name)(n_units=y.shape[1]).double()
    likelihood.initialise(ResponseStatistics(y.mean(0), y.var(0), (y <= 0).double().mean(0)))
    log_scale = torch.zeros(y.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_scale, *likelihood.parameters()], max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = likelihood.nll(rate * log_scale.exp(), y, torch.ones_like(y)) / len(y)
        value.backward()
        return value

    optimizer.step(loss)
    return likelihood, log_scale.detach().exp()


def held_out(name: str, session: Session) -> np.ndarray:
    """Log probability of every second bin, (U,), after a fit to the others.

    All figures are of one measure, or they could not be compared. Counts: the probability of each, log y! included.
    Real responses: the density above zero, and the probability of zero or less as a whole. For the Gaussian that is
    its mass below zero; for the gamma likelihood, which does not tell these responses apart, it is log_prob itself.
    """
    rate, y = (torch.from_numpy(x.astype(np.float64)) for x in (session.true_rate, session.responses))
    likelihood, scale = fitted(name, rate[::2], y[::2])
    rate, y = rate[1::2] * scale, y[1::2]
    with torch.no_grad():
        log_prob = likelihood.log_prob(rate, y).numpy()
        if isinstance(likelihood, Gaussian):
            below = stats.norm(rate.numpy(), likelihood.variance.sqrt().numpy()).logcdf(0)
            log_prob = np.where(y.numpy() > 0, log_prob, below)
    return log_prob.sum(0)


def test_counts_tell_poisson_from_negative_binomial() -> None:
    session = simulated("negative_binomial")
    gain = held_out("negative_binomial", session) - held_out("poisson", session)
    assert (gain > 2).all() and gain.mean() > 20
    # Poisson counts are negative binomial ones without dispersion: the two may tie, but none may gain by chance.
    session = simulated("poisson")
    gain = held_out("negative_binomial", session) - held_out("poisson", session)
    assert (np.abs(gain) < 8).all() and gain.mean() < 0.5


def test_real_responses_tell_gamma_from_gaussian() -> None:
    for own, other in (("gamma", "gaussian"), ("gaussian", "gamma")):
        session = simulated(own)
        assert (held_out(own, session) - held_out(other, session) > 100).all()


def test_fits_find_the_parameters_that_were_simulated() -> None:
    for name, kind in (("negative_binomial", NegativeBinomial), ("gaussian", Gaussian), ("gamma", Gamma)):
        session = simulated(name)
        rate, y = (torch.from_numpy(x.astype(np.float64)) for x in (session.true_rate, session.responses))
        likelihood, scale = fitted(name, rate, y)
        assert isinstance(likelihood, kind)
        np.testing.assert_allclose(scale.median(), 1, atol=0.1)
        names = {"dispersion": "log_dispersion", "variance": "log_variance", "event": "log_event", "shape": "log_shape"}
        for key, want in PARAMS[name].items():
            found = getattr(likelihood, names[key]).detach().exp()
            np.testing.assert_allclose(found.median(), want, rtol=0.15)


def test_the_poisson_fit_needs_nothing_but_the_scale() -> None:
    session = simulated("poisson")
    rate, y = (torch.from_numpy(x.astype(np.float64)) for x in (session.true_rate, session.responses))
    likelihood, scale = fitted("poisson", rate, y)
    assert isinstance(likelihood, Poisson) and not list(likelihood.parameters())
    torch.testing.assert_close(scale, y.sum(0) / rate.sum(0), rtol=1e-3, atol=0)
