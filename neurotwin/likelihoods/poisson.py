"""The Poisson likelihood."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ..config import register
from .base import Likelihood, floored

__all__ = ["Poisson"]


@register("likelihood", "poisson")
class Poisson(Likelihood):
    r"""Counts whose variance equals their expectation.

    .. math:: \log p(y) = y \log\mu - \mu - \log y!, \qquad \mu = e\lambda

    Loss and metrics leave log y! out. Counts need not be whole: the loss then still leads to the expected response,
    as any quasi-likelihood does (Wedderburn 1974), though the responses are not Poisson.

    Examples
    --------
    >>> Poisson().nll(torch.tensor([[1.0, 2.0]]), torch.tensor([[3, 1]]), torch.tensor([[True, False]]))
    tensor(1.)
    """

    responses = "spike counts, zero or positive"
    support = (0.0, float("inf"))
    discrete = True
    positive = True
    default_link = "softplus"
    bits_per_spike = True
    figure_of_merit = "bps"
    rows = ("responses_log_exposure", "saturated")

    def log_likelihood(self, rates: Tensor, responses: Tensor, exposure: Tensor | None = None) -> Tensor:
        """y log μ − μ, with μ at least :data:`RATE_FLOOR`."""
        expected = floored(rates if exposure is None else exposure * rates)
        return responses * expected.log() - expected

    def log_prob(self, rates: Tensor, responses: Tensor, exposure: Tensor | None = None) -> Tensor:
        """y log μ − μ − log Γ(y + 1)."""
        return self.log_likelihood(rates, responses, exposure) - torch.lgamma(responses.to(rates.dtype) + 1)

    def sample(
        self, rates: Tensor, exposure: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:  # fmt: skip
        """Draw counts from Poisson(μ)."""
        return torch.poisson(rates if exposure is None else exposure * rates, generator=generator)

    def terms(self, responses: Tensor, exposure: Tensor) -> tuple[Tensor, ...]:
        """y log e, and y log y − y."""
        return torch.xlogy(responses, exposure), torch.xlogy(responses, responses) - responses

    def at_mean(self, sums: Mapping[str, Tensor]) -> Tensor:
        r""":math:`\sum (y \log e\bar y - e\bar y) = \sum y \log\bar y + \sum y \log e - \sum y`."""
        total = sums["responses"]
        return torch.xlogy(total, total / sums["exposure"]) + sums["responses_log_exposure"] - total

    def saturated(self, sums: Mapping[str, Tensor]) -> Tensor:
        """Σ (y log y − y): every expectation is the count itself."""
        return sums["saturated"]
