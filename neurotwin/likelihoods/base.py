"""What every likelihood is: one object that scores, draws, starts and checks the responses of a session's units."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..config import ConfigError
from ..config import Params as BaseParams

__all__ = ["RATE_FLOOR", "Likelihood", "ResponseStatistics", "floored"]

RATE_FLOOR = 1e-8
"""Smallest positive expectation of a bin: a rate of 0 where a spike fell would cost infinitely many bits."""


@dataclass(frozen=True)
class ResponseStatistics:
    """What is known of a session's responses before training, per bin and presentation, over valid training bins.

    Parameters
    ----------
    mean, variance
        (U,) of every unit.
    zero_share
        (U,) share of the bins without a response, that is, in which it is zero or negative.
    """

    mean: Tensor
    variance: Tensor
    zero_share: Tensor


class Likelihood(nn.Module):
    r"""Base of the likelihoods: how responses y scatter about their expectation μ = eλ.

    Letters: y response of a bin, e exposure (presentations that a response is summed over, usually 1), λ predicted
    rate per bin and presentation. Sums run over valid bins.

    To define one of your own, subclass this, write :meth:`log_prob` and :meth:`sample`, and register the class::

        @register("likelihood", "laplace")
        class Laplace(Likelihood):
            "Real responses with heavy tails."

    Everything else has a default. `bits_per_bin` needs :meth:`at_mean` besides, and `d2` :meth:`saturated`; without
    them these figures are NaN. :func:`neurotwin.likelihoods.check_likelihood` tests the whole class.

    Parameters
    ----------
    params
        Values of the nested class `Params`; None means the defaults.
    n_units
        Number of units of the session, U.

    Attributes
    ----------
    responses
        What responses it is for, in words.
    support
        Smallest and largest response possible.
    discrete
        Whether responses are whole numbers, so that :meth:`log_prob` is of a probability and not of a density.
    atoms
        Responses of a real-valued likelihood that have a probability of their own.
    takes_exposure
        Whether it knows how the sum of several presentations is distributed.
    positive
        Whether rates must be positive.
    default_link
        Name of the link that suits it.
    bits_per_spike
        Whether responses are counts, so that information per spike has a meaning.
    figure_of_merit
        Name of the metric that a report leads with.
    kinds
        What each learned parameter is, by its name.
    rows
        Names of the sums over bins that it needs beyond the common ones; :meth:`terms` gives their summands.
    filler
        A rate and a response at which every term is finite; they are put in place of masked ones.
    """

    class Params(BaseParams):
        """No parameters."""

    responses: ClassVar[str] = "responses"
    support: ClassVar[tuple[float, float]] = (-float("inf"), float("inf"))
    discrete: ClassVar[bool] = False
    atoms: ClassVar[tuple[float, ...]] = ()
    takes_exposure: ClassVar[bool] = True
    positive: ClassVar[bool] = False
    default_link: ClassVar[str] = "identity"
    bits_per_spike: ClassVar[bool] = False
    figure_of_merit: ClassVar[str] = "correlation"
    kinds: ClassVar[dict[str, str]] = {}
    rows: ClassVar[tuple[str, ...]] = ()
    filler: ClassVar[tuple[float, float]] = (1.0, 1.0)

    def __init__(self, params: BaseParams | None = None, n_units: int = 1) -> None:
        super().__init__()
        self.params: Any = type(self).Params() if params is None else params
        self.n_units = n_units

    def log_prob(self, rates: Tensor, responses: Tensor, exposure: Tensor | None = None) -> Tensor:
        """Natural logarithm of the probability or density of each response, (..., U), every term included.

        Parameters
        ----------
        rates
            (..., U) predicted response per bin and presentation.
        responses
            (..., U) responses.
        exposure
            (..., U) or (..., 1) presentations that a response is summed over; None means one.
        """
        raise NotImplementedError

    def log_likelihood(self, rates: Tensor, responses: Tensor, exposure: Tensor | None = None) -> Tensor:
        """:meth:`log_prob`, where terms of the response alone may be left out; loss and metrics are made of it."""
        return self.log_prob(rates, responses, exposure)

    def sample(
        self, rates: Tensor, exposure: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:  # fmt: skip
        """Draw one response for each rate, (..., U), in the type of the rates."""
        raise NotImplementedError

    def nll(self, rates: Tensor, responses: Tensor, mask: Tensor, exposure: Tensor | None = None) -> Tensor:
        """Sum of :meth:`losses`: the loss, to be divided by the number of valid responses.

        Returns
        -------
        Tensor
            A scalar in nats: float32, or float64 if the rates are.
        """
        total = self.losses(rates, responses, mask, exposure).sum()
        return total.to(torch.promote_types(rates.dtype, torch.float32))

    def losses(self, rates: Tensor, responses: Tensor, mask: Tensor, exposure: Tensor | None = None) -> Tensor:
        """−:meth:`log_likelihood` of each valid response, 0 of the others, (..., U) nats.

        Masked responses and their rates change neither the value nor its gradient, even where they are NaN or infinite.

        Parameters
        ----------
        rates, responses, exposure
            As for :meth:`log_prob`.
        mask
            (..., U) or (..., 1), true where a response is valid.
        """
        valid = mask.bool().expand(responses.shape)
        rate, response = self.filler
        rates = torch.where(valid, rates.to(torch.promote_types(rates.dtype, torch.float32)), rate)
        if responses.is_floating_point():
            responses = torch.where(valid, responses, response)
        if exposure is not None:
            exposure = torch.where(valid, exposure, 1.0)
        terms = -self.log_likelihood(rates, responses, exposure)
        return torch.where(valid, terms, 0.0)

    def cross_entropy(self, rates: Tensor, expected: Tensor) -> Tensor:
        """The mean of −:meth:`log_likelihood` over responses whose expectation is known, (..., U).

        A model that learns from the rates of another one minimises it. Terms without the rate may be left out. The
        default is right where the logarithm of the probability is linear in the response, such terms aside.

        Parameters
        ----------
        rates
            (..., U) predicted response per bin and presentation.
        expected
            (..., U) expectation of the response.
        """
        return -self.log_likelihood(rates, expected)

    def initialise(self, statistics: ResponseStatistics) -> None:
        """Set the parameters of its own from the training responses; without parameters there is nothing to set."""

    @torch.no_grad()
    def pool(self, members: "Sequence[Likelihood]") -> None:
        """Take the parameters that suit the mean of the rates of several models, from those of their likelihoods.

        The variance of a response at a rate is then the mean of the variances that the members give it at this rate.
        Parameters for which no other definition is made are averaged.

        Parameters
        ----------
        members
            Likelihoods of the same class and units.
        """
        for name, own in self.state_dict(keep_vars=True).items():
            own.copy_(torch.stack([member.state_dict()[name].to(own) for member in members]).mean(dim=0))

    def check(self, minimum: float, whole: bool, session: str, exposed: bool = False) -> None:
        """Refuse responses that it cannot score.

        Parameters
        ----------
        minimum
            Smallest valid response of the session.
        whole
            Whether all valid responses are whole numbers.
        session
            Name of the session, for the message.
        exposed
            Whether some response is a sum over more or less than one presentation.

        Raises
        ------
        ConfigError
            If the responses lie outside of what it is for; the message names the cure.
        """
        if minimum < self.support[0]:
            raise ConfigError(
                f"session {session}: responses as low as {minimum:g}, where the likelihood is for {self.responses}; "
                "set likelihood: {type: gaussian} for responses that may be negative, such as dF/F"
            )
        if exposed and not self.takes_exposure:
            raise ConfigError(
                f"session {session}: responses are sums over presentations (exposure is not 1), which this likelihood "
                "cannot score; give single presentations, or set likelihood: {type: gaussian}"
            )

    def counted(self, responses: Tensor) -> Tensor:
        """Responses as they enter the sums; the same unless the likelihood reads some values as others."""
        return responses

    def terms(self, responses: Tensor, exposure: Tensor) -> tuple[Tensor, ...]:
        """Summands of :attr:`rows` for each bin, (..., U) float64; they depend on nothing but what is given."""
        return ()

    def at_mean(self, sums: Mapping[str, Tensor]) -> Tensor:
        r"""Log likelihood of the constant rate :math:`\bar y = \sum y / \sum e`, own parameters as they are; (U,).

        Parameters
        ----------
        sums
            (U,) float64 each: `bins`, `responses` (Σy), `exposure` (Σe), `log_likelihood`, and those of :attr:`rows`.
        """
        return torch.full_like(sums["bins"], float("nan"))

    def null(self, sums: Mapping[str, Tensor]) -> Tensor:
        """Log likelihood of the null model, (U,): :meth:`at_mean`, with the parameters of :meth:`null_parameters`.

        The null is given the mean rate of the very bins that are evaluated, so that a model which predicts no more
        than a constant gains nothing over it.
        """
        return self.at_mean(sums)

    def null_parameters(self, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Parameters, each (U,), which the null model has in place of its own."""
        return {}

    def saturated(self, sums: Mapping[str, Tensor]) -> Tensor:
        """Log likelihood of the rates that fit each response best, own parameters as they are; (U,)."""
        return torch.full_like(sums["bins"], float("nan"))


def floored(expected: Tensor) -> Tensor:
    """Values of at least :data:`RATE_FLOOR`. Below it the gradient is kept, so that a silent unit can recover."""
    return expected + (RATE_FLOOR - expected.detach()).clamp_min(0)
