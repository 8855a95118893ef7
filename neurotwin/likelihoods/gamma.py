"""The zero-inflated gamma likelihood."""

import logging
from collections.abc import Mapping, Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from ..config import Params as BaseParams
from ..config import register
from .base import Likelihood, ResponseStatistics, floored

__all__ = ["Gamma"]

log = logging.getLogger(__name__)

_RANGE = 13.8  # of |log c| and |log k|
_NEWTON_STEPS = 8  # from Minka's start, four reach the last bit


@register("likelihood", "gamma")
class Gamma(Likelihood):
    r"""Deconvolved calcium: often exactly zero, else positive and skewed.

    A point mass at zero and a gamma distribution of shape k, joined so that the mean is λ:

    .. math::
        p(y = 0) &= p_0 = e^{-\lambda/c} \\
        p(y > 0) &= (1-p_0)\, \frac{y^{k-1} e^{-y/\theta}}{\Gamma(k)\,\theta^k},
        \qquad \theta = \frac{\lambda}{k(1-p_0)}

    The constant c is what one calcium event adds on average where events are rare: λ/c Poisson events fall into a bin,
    and p₀ is the probability of none. Each unit has its own c and k, learned through their logarithms. A response of
    zero or below counts as zero, also in the sums from which means and correlations follow.

    The mixture is that of Wei et al. 2020 (A zero-inflated gamma model for deconvolved calcium imaging traces), except
    for three things. There, values up to a small threshold make up the zero part and the gamma distribution begins at
    that threshold; here the zero part is zero itself and the gamma distribution begins there. There, the share of zeros
    and the scale are two functions of the stimulus; here both follow from the one rate λ and the constant c. And here
    the rate is the mean of the response, as it is for every other likelihood.

    Exposure other than 1 is refused. A sum of e responses is zero or the sum of 1 to e gamma variables: a mixture of
    e + 1 parts and not a member of this family.

    The log likelihood of a positive response is that of a density and depends on the unit of the responses. Hence
    `nll` compares models of the same data only; in `bits_per_bin`, which is a difference, the unit cancels. The null
    model has the mean rate, c and k that fit the bins evaluated best. There is no D²: a rate that fits a single
    response best has no closed form here.
    """

    class Params(BaseParams):
        """Parameters of the zero-inflated gamma likelihood."""

        event: float = Field(1.0, gt=0, description="c of each unit at the start, where training does not tell it.")
        shape: float = Field(1.0, gt=0, description="k of each unit at the start, where training does not tell it.")
        learned: bool = Field(True, description="Learn c and k; else they stay what the training responses tell.")

    responses = "deconvolved calcium, zero or positive"
    support = (0.0, float("inf"))
    atoms = (0.0,)
    takes_exposure = False
    positive = True
    default_link = "softplus"
    kinds = {"log_event": "constant", "log_shape": "shape"}
    rows = ("zeros", "log_positive")

    def __init__(self, params: Params | None = None, n_units: int = 1) -> None:
        super().__init__(params, n_units)
        learned = self.params.learned
        self.log_event = nn.Parameter(torch.full((n_units,), self.params.event).log(), requires_grad=learned)
        self.log_shape = nn.Parameter(torch.full((n_units,), self.params.shape).log(), requires_grad=learned)

    @property
    def event(self) -> Tensor:
        """c of each unit, (U,)."""
        return self.log_event.clamp(-_RANGE, _RANGE).exp()

    @property
    def shape(self) -> Tensor:
        """k of each unit, (U,)."""
        return self.log_shape.clamp(-_RANGE, _RANGE).exp()

    def log_prob(self, rates: Tensor, responses: Tensor, exposure: Tensor | None = None) -> Tensor:
        """log p₀ at zero; above, log (1 − p₀) + (k − 1) log y − y/θ − k log θ − log Γ(k).

        Raises
        ------
        ValueError
            If an exposure is not 1.
        """
        _refuse(exposure)
        rates = floored(rates.to(torch.promote_types(rates.dtype, self.log_shape.dtype)))
        positive = ~(responses <= 0)  # NaN is neither, and must not pass for zero
        y = torch.where(positive, responses, 1).to(rates.dtype)
        k, events = self.shape.to(rates.dtype), rates / self.event.to(rates.dtype)
        share = -torch.expm1(-events)  # 1 − p₀
        scale = rates / (k * share)
        density = share.log() + (k - 1) * y.log() - y / scale - k * scale.log() - torch.lgamma(k)
        return torch.where(positive, density, -events)

    def sample(
        self, rates: Tensor, exposure: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:  # fmt: skip
        """Draw zero with probability p₀, else from a gamma distribution of shape k and scale θ."""
        _refuse(exposure)
        k, event = self.shape.detach().to(rates.dtype), self.event.detach().to(rates.dtype)
        share = -torch.expm1(-rates / event)
        uniform = torch.rand(rates.shape, dtype=rates.dtype, device=rates.device, generator=generator)
        # The public torch.distributions.Gamma takes no generator.
        standard = torch._standard_gamma(k.expand(rates.shape).contiguous(), generator=generator)
        return torch.where(uniform < share, standard * rates / (k * share), 0.0)

    def cross_entropy(self, rates: Tensor, expected: Tensor) -> Tensor:
        """That of zeros and of positive responses, whose share follows from the expectation."""
        zero = torch.exp(-expected / self.event.detach().to(expected.dtype))
        positive = expected / (1 - zero).clamp_min(1e-6)
        return -zero * self.log_prob(rates, torch.zeros_like(expected)) - (1 - zero) * self.log_prob(rates, positive)

    @torch.no_grad()
    def initialise(self, statistics: ResponseStatistics) -> None:
        """c and k of the constant rate with the same mean, variance and share of zeros.

        From p₀ follows c = −mean / log p₀; and 1/k = (1 − p₀)(variance + mean²)/mean² − 1. The share of zeros counts
        as 1e-3 to 0.999, k as 0.1 to 100. A unit without responses keeps its start.
        """
        mean, variance = statistics.mean.double(), statistics.variance.double()
        zeros = statistics.zero_share.double().clamp(1e-3, 0.999)
        event = -mean / zeros.log()
        shape = 1 / ((1 - zeros) * (variance + mean**2) / mean**2 - 1).clamp(0.01, 10.0)
        for parameter, value in ((self.log_event, event), (self.log_shape, shape)):
            value = value.log().to(parameter)
            parameter.copy_(torch.where((mean > 0).to(parameter.device) & value.isfinite(), value, parameter))

    def check(self, minimum: float, whole: bool, session: str, exposed: bool = False) -> None:
        """Refuse exposure; say so where responses lie below zero, since they count as zero."""
        super().check(max(minimum, 0.0), whole, session, exposed)
        if minimum < 0:
            log.warning(
                "session %s: responses as low as %g count as zero under the gamma likelihood; set likelihood: "
                "{type: gaussian} if they are dF/F",
                session, minimum,
            )  # fmt: skip

    @torch.no_grad()
    def pool(self, members: Sequence["Gamma"]) -> None:
        r"""The c and k with the members' mean share of zeros and mean variance where rates are low.

        There, to first order in λ, :math:`1 - p_0 = \lambda/c` and the variance is :math:`\lambda c (1 + 1/k)`. Hence c
        is the harmonic mean of theirs, and :math:`c (1 + 1/k)` the mean of theirs.
        """
        event, shape = (torch.stack([getattr(m, name) for m in members]) for name in ("event", "shape"))
        own = 1 / (1 / event).mean(dim=0)
        spread = (event * (1 + 1 / shape)).mean(dim=0) / own - 1
        self.log_event.copy_(own.log())
        self.log_shape.copy_(-spread.log())

    def counted(self, responses: Tensor) -> Tensor:
        """What is below zero as zero."""
        return responses.clamp_min(0)

    def terms(self, responses: Tensor, exposure: Tensor) -> tuple[Tensor, ...]:
        """Whether a response is zero, and log y where it is not."""
        zero = responses <= 0
        return zero.to(responses.dtype), torch.where(zero, 1.0, responses).log()

    def null(self, sums: Mapping[str, Tensor]) -> Tensor:
        r"""Log likelihood of n₀ zeros and n positive responses at the best p₀, θ and k; NaN where it has no bound.

        .. math:: n_0 \log\frac{n_0}{N} + n \log\frac nN + (k-1)\sum\log y - n(k + k\log\theta + \log\Gamma(k))
        """
        n_zero, n = sums["zeros"], sums["bins"] - sums["zeros"]
        k, mean = self._best_shape(sums)
        value = (k - 1) * sums["log_positive"] - n * (k + k * (mean / k).log() + torch.lgamma(k))
        value = torch.where(n > 0, value, 0.0)
        return value + torch.xlogy(n_zero, n_zero / sums["bins"]) + torch.xlogy(n, n / sums["bins"])

    def null_parameters(self, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        r""":math:`c = -\bar y / \log(n_0/N)`, and the k that fits best."""
        event = -(sums["responses"] / sums["bins"]) / (sums["zeros"] / sums["bins"]).log()
        return {"log_event": event.log(), "log_shape": self._best_shape(sums)[0].log()}

    def _best_shape(self, sums: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The k for which log k − ψ(k) = log(mean y) − mean(log y) over positive responses, and their mean.

        Newton's method in 1/k after the closed-form start of Minka 2002, which is right to a few percent.
        """
        n = sums["bins"] - sums["zeros"]
        mean = sums["responses"] / n
        gap = mean.log() - sums["log_positive"] / n
        # Equal responses have no gap; the density of the best fit has no bound.
        gap = torch.where(gap > 1e-12 * (1 + mean.log().abs()), gap, float("nan"))
        k = (3 - gap + ((gap - 3) ** 2 + 24 * gap).sqrt()) / (12 * gap)
        for _ in range(_NEWTON_STEPS):
            slope = k**2 * (1 / k - torch.polygamma(1, k))
            k = 1 / (1 / k + (k.log() - torch.digamma(k) - gap) / slope)
        return k, mean


def _refuse(exposure: Tensor | None) -> None:
    if exposure is not None and bool((exposure != 1).any()):
        raise ValueError(
            "the gamma likelihood is of single presentations, since sums of them are not of its family; exposure must "
            "be 1, or set likelihood: {type: gaussian}"
        )
