"""The negative binomial likelihood."""

from collections.abc import Mapping, Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from ..config import ConfigError, register
from ..config import Params as BaseParams
from .base import Likelihood, ResponseStatistics, floored

__all__ = ["NegativeBinomial"]

_LOG_RANGE = (-13.8, 9.2)  # of α, from 1e-6, where it is as good as Poisson, to 1e4


@register("likelihood", "negative_binomial")
class NegativeBinomial(Likelihood):
    r"""Counts that scatter more than Poisson ones, as those of cortical neurons do (Goris et al. 2014).

    Each presentation has mean λ and variance :math:`\lambda + \alpha\lambda^2`, with the dispersion α of the unit. The
    sum of e independent presentations is again negative binomial, of mean :math:`\mu = e\lambda` and size
    :math:`r = e/\alpha`:

    .. math::
        \log p(y) = \log\frac{\Gamma(y+r)}{\Gamma(r)\, r^y} + y\log\mu - (y+r)\log(1+\alpha\lambda) - \log y!

    For α → 0 this is the Poisson likelihood. Loss and metrics leave log y! out. Everything is computed in float64,
    because the first term is a small difference of large numbers where α is small.

    The null model has the unit's α, so that bits per spike measure what the rates add, as they do for Poisson. But α
    was learned together with the rates of the model. A null model with an α of its own would fit the data better, and
    the gain over it would be smaller. Compare a Poisson with a negative binomial model by :meth:`log_prob`, therefore,
    and not by their bits per spike.
    """

    class Params(BaseParams):
        """Parameters of the negative binomial likelihood."""

        dispersion: float = Field(
            0.1, gt=0, description="α of each unit at the start, where its training counts do not tell it."
        )
        learned: bool = Field(True, description="Learn α with the model; else it stays what the training counts tell.")

    responses = "whole spike counts, zero or positive"
    support = (0.0, float("inf"))
    discrete = True
    positive = True
    default_link = "softplus"
    bits_per_spike = True
    figure_of_merit = "bps"
    kinds = {"log_dispersion": "dispersion"}
    rows = ("scatter", "saturated")

    def __init__(self, params: Params | None = None, n_units: int = 1) -> None:
        super().__init__(params, n_units)
        start = torch.full((n_units,), self.params.dispersion).log()
        self.log_dispersion = nn.Parameter(start, requires_grad=self.params.learned)

    @property
    def dispersion(self) -> Tensor:
        """α of each unit, (U,) float64, between 1e-6 and 1e4."""
        return self.log_dispersion.double().clamp(*_LOG_RANGE).exp()

    def log_likelihood(self, rates: Tensor, responses: Tensor, exposure: Tensor | None = None) -> Tensor:
        """The equation above without log y!, float64."""
        rate, y = floored(rates.double()), responses.double()
        e = torch.ones_like(rate) if exposure is None else exposure.double()
        size = e / self.dispersion
        return _scatter(y, size) + y * (e * rate).log() - (y + size) * torch.log1p(self.dispersion * rate)

    def log_prob(self, rates: Tensor, responses: Tensor, exposure: Tensor | None = None) -> Tensor:
        """The equation above, float64."""
        return self.log_likelihood(rates, responses, exposure) - torch.lgamma(responses.double() + 1)

    def sample(
        self, rates: Tensor, exposure: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:  # fmt: skip
        """Draw counts from Poisson(G), with G of a gamma distribution of mean μ and shape r."""
        dispersion = self.dispersion.detach().to(rates.dtype)
        size = ((1.0 if exposure is None else exposure) / dispersion).to(rates.dtype).expand(rates.shape)
        # The public torch.distributions.Gamma takes no generator.
        gain = torch._standard_gamma(size.contiguous(), generator=generator)
        return torch.poisson(gain * dispersion * rates, generator=generator)

    @torch.no_grad()
    def initialise(self, statistics: ResponseStatistics) -> None:
        """α = (variance − mean) / mean², within 0.01 to 10; a unit without spikes keeps its start."""
        mean, variance = statistics.mean.double(), statistics.variance.double()
        moments = ((variance - mean) / mean**2).clamp(0.01, 10.0)
        known = (mean > 0) & moments.isfinite()
        start = moments.log().to(self.log_dispersion)
        self.log_dispersion.copy_(torch.where(known.to(start.device), start, self.log_dispersion))

    @torch.no_grad()
    def pool(self, members: Sequence["NegativeBinomial"]) -> None:
        r"""The mean of the dispersions, because the variance :math:`\lambda + \alpha\lambda^2` is linear in α."""
        mean = torch.stack([member.dispersion for member in members]).mean(dim=0)
        self.log_dispersion.copy_(mean.log())

    def check(self, minimum: float, whole: bool, session: str, exposed: bool = False) -> None:
        """Refuse counts that are negative or not whole."""
        super().check(minimum, whole, session, exposed)
        if not whole:
            raise ConfigError(
                f"session {session}: responses are not whole numbers, where the likelihood is for {self.responses}; "
                "set likelihood: {type: gamma} for deconvolved calcium, or {type: poisson}, which takes fractions"
            )

    def terms(self, responses: Tensor, exposure: Tensor) -> tuple[Tensor, ...]:
        r"""What a constant rate leaves, and the log likelihood of :math:`\lambda = y/e`."""
        size = exposure / self.dispersion
        scatter = _scatter(responses, size) + torch.xlogy(responses, exposure)
        rate = responses / exposure
        best = scatter + torch.xlogy(responses, rate) - (responses + size) * torch.log1p(self.dispersion * rate)
        return scatter, best

    def at_mean(self, sums: Mapping[str, Tensor]) -> Tensor:
        r""":math:`\sum y\log\bar y - (\sum y + \sum e/\alpha)\log(1+\alpha\bar y)`, and the terms without a rate."""
        total, exposure, dispersion = sums["responses"], sums["exposure"], self.dispersion.detach()
        mean = total / exposure
        return (
            sums["scatter"] + torch.xlogy(total, mean) - (total + exposure / dispersion) * (dispersion * mean).log1p()
        )

    def saturated(self, sums: Mapping[str, Tensor]) -> Tensor:
        """Every expectation is the count itself."""
        return sums["saturated"]


def _scatter(y: Tensor, size: Tensor) -> Tensor:
    """log Γ(y + r) − log Γ(r) − y log r, which is 0 for counts of 0 and 1, and for r → ∞."""
    return torch.lgamma(y + size) - torch.lgamma(size) - y * size.log()
