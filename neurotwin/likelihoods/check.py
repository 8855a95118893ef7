"""A check of a likelihood, for whoever writes one: is the density one, do samples follow it, do the sums agree?"""

import copy
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from .base import Likelihood

__all__ = ["check_likelihood"]

_RATES = (0.4, 2.5)
_N_SAMPLES = 40_000
_SIGMAS = 6.0  # a correct sampler misses by more once in 5e8 draws
_TOLERANCE = 1e-6
_N_BINS = 300


def check_likelihood(likelihood: Likelihood, *, seed: int = 0) -> None:
    """Check a likelihood against itself, at its present parameters.

    - The density integrates to 1, or the probabilities sum to 1, and the mean is exposure × rate.
    - Mean and mean square of samples are those of the density.
    - The loss has finite gradients, which agree with finite differences, in the rates and in the parameters.
    - What is masked reaches neither loss nor gradient, also where it is NaN.
    - The log likelihoods at the mean rate and of the null model, which follow from sums, are those computed bin by bin;
      and no rate per bin beats the saturated one.

    Parameters
    ----------
    likelihood
        Of one unit or a few; it is copied, and not changed.
    seed
        Of the rates and samples.

    Raises
    ------
    ValueError
        If a check fails; the message says which, at which rate, and by how much.

    Examples
    --------
    >>> from neurotwin.likelihoods import Gaussian
    >>> check_likelihood(Gaussian(n_units=2))
    """
    likelihood = copy.deepcopy(likelihood).double()
    generator = torch.Generator().manual_seed(seed)
    rates = _RATES if likelihood.positive else (-1.0, *_RATES)
    for exposure in (1.0, 3.0) if likelihood.takes_exposure else (1.0,):
        for rate in rates:
            _check_density(likelihood, rate, exposure, generator)
        _check_sums(likelihood, exposure, generator)
    _check_gradient(likelihood, generator)
    _check_mask(likelihood, generator)


def _check_density(likelihood: Likelihood, rate: float, exposure: float, generator: torch.Generator) -> None:
    where = f"at rate {rate:g} and exposure {exposure:g}"
    n_units = likelihood.n_units
    e = None if exposure == 1 else torch.full((1, 1), exposure, dtype=torch.float64)
    rates = torch.full((_N_SAMPLES, n_units), rate, dtype=torch.float64)
    with torch.no_grad():
        samples = likelihood.sample(rates, e, generator)
        _require(samples.shape == rates.shape, f"sample gives shape {tuple(samples.shape)} for {tuple(rates.shape)}")
        low, high = likelihood.support
        inside = ((samples >= low) & (samples <= high)).all()
        _require(bool(inside), f"samples {where} lie outside of the support from {low:g} to {high:g}")
        for unit in range(n_units):
            drawn = samples[:, unit].numpy()
            values, weights = _grid(likelihood, drawn)
            grid = torch.from_numpy(values)[:, None].expand(-1, n_units)
            density = (
                likelihood.log_prob(torch.full_like(grid, rate), grid, e)[:, unit].double().exp().numpy() * weights
            )
            total, mean = density.sum(), (density * values).sum()
            _require(abs(total - 1) < 1e-4, f"the density of unit {unit} {where} integrates to {total:.6g}, not 1")
            wanted = exposure * rate
            close = abs(mean - wanted) < 1e-3 * max(1.0, abs(wanted))
            _require(close, f"the density of unit {unit} {where} has mean {mean:.6g}, not exposure x rate = {wanted:g}")
            for power in (1, 2):
                found, error = (drawn**power).mean(), (drawn**power).std() / np.sqrt(_N_SAMPLES)
                wanted = (density * values**power).sum()
                close = abs(found - wanted) <= _SIGMAS * error + _TOLERANCE
                what = f"samples of unit {unit} {where} have a mean of y^{power} of {found:.6g}"
                _require(close, f"{what}, where the density has {wanted:.6g}")


def _grid(likelihood: Likelihood, drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Responses and weights by which a sum over the grid is an integral of the density."""
    low, high = likelihood.support
    mean, spread = drawn.mean(), drawn.std() + 1e-3
    if likelihood.discrete:
        first = int(max(low, np.floor(mean - 60 * spread) - 20))
        values = np.arange(first, int(min(high, mean + 60 * spread + 20)) + 1, dtype=np.float64)
        return values, np.ones_like(values)
    if low == 0:  # steps of equal ratio, since a density may have no bound at zero
        log_values = np.linspace(-600, np.log(mean + 200 * spread), 60_001)
        values = np.exp(log_values)
        weights = values * (log_values[1] - log_values[0])
    else:
        values = np.linspace(max(low, mean - 40 * spread), min(high, mean + 40 * spread), 60_001)
        weights = np.full_like(values, values[1] - values[0])
    atoms = np.array(likelihood.atoms, np.float64)
    return np.concatenate([atoms, values]), np.concatenate([np.ones_like(atoms), weights])


def _draw(likelihood: Likelihood, exposure: float, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Rates, responses and exposure, each (bins, U) float64."""
    shape = (_N_BINS, likelihood.n_units)
    rates = 0.2 + 2 * torch.rand(shape, dtype=torch.float64, generator=generator)
    e = torch.full(shape, exposure, dtype=torch.float64)
    with torch.no_grad():
        responses = likelihood.sample(rates, None if exposure == 1 else e, generator)
    return rates, responses, e


def _check_sums(likelihood: Likelihood, exposure: float, generator: torch.Generator) -> None:
    rates, responses, e = _draw(likelihood, exposure, generator)
    given = None if exposure == 1 else e
    with torch.no_grad():
        y = likelihood.counted(responses)
        terms = likelihood.terms(y, e)
        _require(len(terms) == len(likelihood.rows), f"terms gives {len(terms)} values for {len(likelihood.rows)} rows")
        log_likelihood = likelihood.log_likelihood(rates, y, given).sum(0)
        sums = {"bins": torch.full_like(y[0], _N_BINS), "responses": y.sum(0), "exposure": e.sum(0)}
        sums |= {"log_likelihood": log_likelihood}
        sums |= {name: term.sum(0) for name, term in zip(likelihood.rows, terms, strict=True)}
        mean = (sums["responses"] / sums["exposure"]).expand(y.shape)
        direct = likelihood.log_likelihood(mean, y, given).sum(0)
        _compare("at_mean", likelihood.at_mean(sums), direct, exposure)
        null = _with(likelihood, likelihood.null_parameters(sums))
        direct_null = null.log_likelihood(mean, y, given).sum(0)
        _compare("null", likelihood.null(sums), direct_null, exposure)
        worse = direct_null < direct - _TOLERANCE * (1 + direct.abs())
        _require(not worse.any(), "the null model with parameters of its own fits worse than with those of the model")
        saturated = likelihood.saturated(sums)
        beaten = torch.maximum(log_likelihood, direct) > saturated + _TOLERANCE * (1 + saturated.abs())
        _require(not beaten.any(), "saturated is below the log likelihood of rates that miss the responses")


def _with(likelihood: Likelihood, parameters: Mapping[str, Tensor]) -> Likelihood:
    other = copy.deepcopy(likelihood)
    for name, value in parameters.items():
        getattr(other, name).copy_(value)
    return other


def _compare(what: str, found: Tensor, wanted: Tensor, exposure: float) -> None:
    """A figure that is NaN is not given, and not compared."""
    close = ((found - wanted).abs() <= _TOLERANCE * (1 + wanted.abs())) | found.isnan()
    text = f"{what} gives {found.tolist()} at exposure {exposure:g}, where bin by bin the sum is {wanted.tolist()}"
    _require(bool(close.all()), text)


def _check_gradient(likelihood: Likelihood, generator: torch.Generator) -> None:
    rates, responses, _ = _draw(likelihood, 1.0, generator)
    rates, responses = rates[:20], responses[:20]
    mask = torch.ones_like(rates, dtype=torch.bool)
    names = [name for name, parameter in likelihood.named_parameters() if parameter.requires_grad]
    unknown = set(names) - set(likelihood.kinds)
    _require(not unknown, f"kinds does not say what the parameters {sorted(unknown)} are")
    inputs = {"rates": rates.clone().requires_grad_(), **{name: getattr(likelihood, name) for name in names}}
    loss = likelihood.nll(inputs["rates"], responses, mask)
    gradients = dict(zip(inputs, torch.autograd.grad(loss, list(inputs.values())), strict=True))
    step = 1e-5
    for name, value in inputs.items():
        _require(bool(gradients[name].isfinite().all()), f"the gradient of the loss in {name} is not finite")
        with torch.no_grad():
            value += step
            above = likelihood.nll(inputs["rates"], responses, mask)
            value -= 2 * step
            below = likelihood.nll(inputs["rates"], responses, mask)
            value += step
        slope, wanted = gradients[name].sum().item(), ((above - below) / (2 * step)).item()
        close = abs(slope - wanted) <= 1e-4 * (1 + abs(wanted) + gradients[name].abs().sum().item())
        _require(close, f"the gradient of the loss in {name} is {slope:.6g}, by finite differences {wanted:.6g}")


def _check_mask(likelihood: Likelihood, generator: torch.Generator) -> None:
    rates, responses, _ = _draw(likelihood, 1.0, generator)
    mask = torch.rand(rates.shape, generator=generator) < 0.7
    results = []
    for spoiled in (1.0, float("nan"), float("inf")):
        x = torch.where(mask, rates, spoiled).requires_grad_()
        loss = likelihood.nll(x, torch.where(mask, responses, spoiled), mask)
        learned = [parameter for parameter in likelihood.parameters() if parameter.requires_grad]
        results.append([loss.detach(), *torch.autograd.grad(loss, [x, *learned])])
    same = all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))
    _require(same, "what is masked changes the loss or its gradient")
    _require(bool((results[0][1][~mask] == 0).all()), "a masked rate has a gradient")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
