"""The Gaussian likelihood."""

from collections.abc import Mapping, Sequence
from math import log, pi

import torch
from pydantic import Field
from torch import Tensor, nn

from ..config import Params as BaseParams
from ..config import register
from .base import Likelihood, ResponseStatistics

__all__ = ["Gaussian"]

_SMALLEST_SHARE = 1e-4  # of a unit's training variance that may be left as noise


@register("likelihood", "gaussian")
class Gaussian(Likelihood):
    r"""Real responses that scatter evenly, such as dF/F, each unit with a variance σ² of its own.

    The sum of e presentations has mean :math:`\mu = e\lambda` and variance :math:`e\sigma^2`:

    .. math:: \log p(y) = -\frac{(y - e\lambda)^2}{2e\sigma^2} - \tfrac12\log(2\pi e\sigma^2)

    (the letter e is the exposure throughout). The variance never falls below 1e-4 of the unit's training variance, or
    of the median unit's where a unit is constant; else the likelihood of a constant unit would have no bound and
    would drown all others.

    The null model predicts the mean of the bins evaluated, and its variance is that about this mean. If it had the σ²
    of the model, which is smaller because the model explains some of the variance, the responses would seem unlikely
    under it and the gain of the model would come out too large. A model that explains a share R² of the variance and
    whose σ² is right gains :math:`-\tfrac12\log_2(1-R^2)` bits a bin. In D², σ² cancels, so that D² is R².
    """

    class Params(BaseParams):
        """Parameters of the Gaussian likelihood."""

        variance: float = Field(
            1.0, gt=0, description="σ² of each unit at the start, where its training responses do not tell it."
        )
        learned: bool = Field(True, description="Learn σ² with the model; else it stays that of training.")

    responses = "real numbers, such as dF/F"
    kinds = {"log_variance": "variance"}
    rows = ("squares", "log_exposure")
    smallest: Tensor

    def __init__(self, params: Params | None = None, n_units: int = 1) -> None:
        super().__init__(params, n_units)
        start = torch.full((n_units,), self.params.variance)
        self.log_variance = nn.Parameter(start.log(), requires_grad=self.params.learned)
        self.register_buffer("smallest", _SMALLEST_SHARE * start)

    @property
    def variance(self) -> Tensor:
        """σ² of each unit and presentation, (U,)."""
        return self.log_variance.clamp_min(self.smallest.log()).exp()

    def log_prob(self, rates: Tensor, responses: Tensor, exposure: Tensor | None = None) -> Tensor:
        """The equation above."""
        variance = self.variance.to(torch.promote_types(rates.dtype, self.log_variance.dtype))
        variance = variance if exposure is None else exposure * variance
        deviation = responses - (rates if exposure is None else exposure * rates)
        return -(deviation**2) / (2 * variance) - 0.5 * (log(2 * pi) + variance.log())

    def sample(
        self, rates: Tensor, exposure: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:  # fmt: skip
        """Draw from a normal distribution of mean eλ and variance eσ²."""
        noise = torch.randn(rates.shape, dtype=rates.dtype, device=rates.device, generator=generator)
        e = 1.0 if exposure is None else exposure.to(rates.dtype)
        return e * rates + (e * self.variance.detach().to(rates.dtype)).sqrt() * noise

    @torch.no_grad()
    def initialise(self, statistics: ResponseStatistics) -> None:
        """σ² is the variance of the training responses; a constant unit has that of the median unit."""
        variance = statistics.variance.to(self.log_variance)
        varies = variance > 0
        if varies.any():
            variance = torch.where(varies, variance, variance[varies].median())
            self.log_variance.copy_(variance.log())
            self.smallest.copy_(_SMALLEST_SHARE * variance)

    @torch.no_grad()
    def pool(self, members: Sequence["Gaussian"]) -> None:
        """The mean of the variances."""
        self.smallest.copy_(torch.stack([member.smallest for member in members]).mean(dim=0))
        self.log_variance.copy_(torch.stack([member.variance for member in members]).mean(dim=0).log())

    def terms(self, responses: Tensor, exposure: Tensor) -> tuple[Tensor, ...]:
        """y²/e, and log e."""
        return responses**2 / exposure, exposure.log()

    def at_mean(self, sums: Mapping[str, Tensor]) -> Tensor:
        r""":meth:`saturated`, less :math:`\sum (y - e\bar y)^2 / (2e\sigma^2)`."""
        return self.saturated(sums) - _squared_deviation(sums) / (2 * self.variance.detach().double())

    def null(self, sums: Mapping[str, Tensor]) -> Tensor:
        r""":math:`-\tfrac N2 (1 + \log 2\pi\sigma_0^2) - \tfrac12\sum\log e`, σ₀² of the bins; NaN where it is 0."""
        bins = sums["bins"]
        variance = _squared_deviation(sums) / bins
        value = -0.5 * (bins * (1 + log(2 * pi) + variance.log()) + sums["log_exposure"])
        # A variance that is a small difference of large sums is rounding, and its logarithm means nothing.
        return torch.where(variance * bins > 1e-12 * sums["squares"], value, float("nan"))

    def null_parameters(self, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        r""":math:`\sigma_0^2 = \tfrac1N\sum (y - e\bar y)^2 / e`."""
        return {"log_variance": (_squared_deviation(sums) / sums["bins"]).log()}

    def saturated(self, sums: Mapping[str, Tensor]) -> Tensor:
        r""":math:`-\tfrac12\sum\log(2\pi e\sigma^2)`: no deviation is left."""
        return -0.5 * (sums["bins"] * (log(2 * pi) + self.variance.detach().double().log()) + sums["log_exposure"])


def _squared_deviation(sums: Mapping[str, Tensor]) -> Tensor:
    """Σ (y − eȳ)²/e, from Σ y²/e, Σ y and Σ e."""
    return sums["squares"] - sums["responses"] ** 2 / sums["exposure"]
