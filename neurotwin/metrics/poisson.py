"""How well expected counts predict counts: a few sums per unit, added up over batches and processes, divided once.

Letters: y count, e exposure (presentations that a count sums over, usually 1), λ predicted count per bin and
presentation, μ = eλ expected count, m validity. Sums run over valid bins.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = ["FIGURES", "RATE_FLOOR", "PoissonSums", "Summary", "poisson_nll", "summarize"]

RATE_FLOOR = 1e-8
"""Smallest expected count of a bin: a rate of 0 where a spike fell would cost infinitely many bits."""
FIGURES = ("spikes", "bins", "nll", "bps", "d2", "correlation")
"""What :meth:`PoissonSums.compute` returns."""

_ROWS = (
    "bins", "spikes", "exposure", "spikes_log_exposure", "log_likelihood", "saturated",
    "rate", "response", "rate_rate", "response_response", "rate_response",
)  # fmt: skip
# A variance or deviance below this share of the sums that it is the difference of is rounding: the figure is NaN.
# For a rate, which is computed in float32, that is a spread of a millionth of the mean.
_RESOLUTION = 1e-12


class PoissonSums:
    r"""Sums per unit from which every streamed figure follows.

    The log likelihood leaves out log y!, which cancels in every figure:

    .. math::
        \mathrm{nll} &= \textstyle\sum m(\mu - y \log\mu) / \sum m \\
        \mathrm{bps} &= \textstyle\sum m[(y\log\mu - \mu) - (y\log\bar y - \bar y)] / (\ln 2 \sum m y) \\
        D^2 &= 1 - D(y, \mu) / D(y, \bar y), \quad D(y, \mu) = 2\textstyle\sum m[y\log(y/\mu) - y + \mu]

    with :math:`\bar y_t = e_t \sum m y / \sum m e`, the unit's mean rate in the bins given; `correlation` is Pearson's
    r of λ and y/e. Bits per spike: Paninski et al. 2004, Pei et al. 2021 (Neural Latents Benchmark); D²: McCullagh &
    Nelder 1989.

    Nothing is clamped. A figure that is not defined is NaN: all of a unit without valid bins, `bps` and `d2` of one
    without spikes, `d2` where the counts and `correlation` where counts or rates are constant.

    Parameters
    ----------
    n_units
        Number of units, U.
    device
        Where the sums are kept; it must know float64.

    Attributes
    ----------
    sums
        (11, U) float64. Adding those of two processes gives those of all bins, so one all-reduce of it suffices.

    Examples
    --------
    >>> sums = PoissonSums(1)
    >>> sums.update(rates=torch.tensor([[0.5], [1.5]]), spikes=torch.tensor([[0], [2]]), mask=torch.ones(2, 1))
    >>> round(sums.compute()["bps"].item(), 4)  # log2(1.5) bits for each of two spikes
    0.585
    """

    def __init__(self, n_units: int, device: torch.device | str = "cpu") -> None:
        self.sums = torch.zeros(len(_ROWS), n_units, dtype=torch.float64, device=device)

    def update(self, rates: Tensor, spikes: Tensor, mask: Tensor, exposure: Tensor | None = None) -> None:
        """Add bins.

        Parameters
        ----------
        rates
            (..., U) predicted counts per bin and presentation. Values where the mask is false are not read.
        spikes
            (..., U) counts.
        mask
            (..., U) or (..., 1), true where a count is valid.
        exposure
            (..., U) or (..., 1) presentations that a count sums over; None means one.
        """
        if rates.shape != spikes.shape:
            raise ValueError(f"rates have shape {tuple(rates.shape)}, spikes {tuple(spikes.shape)}")
        valid = mask.bool().expand(spikes.shape)
        one = torch.ones((), dtype=torch.float64, device=spikes.device)
        y = torch.where(valid, spikes.double(), 0.0)
        rate = torch.where(valid, rates.double(), 0.0)
        e = torch.where(valid, one if exposure is None else exposure.double(), 0.0)
        expected = torch.where(valid, (e * rate).clamp_min(RATE_FLOOR), 1.0)
        response = torch.where(valid, y / e, 0.0)
        terms = (
            valid.double(),
            y,
            e,
            torch.xlogy(y, e),
            y * expected.log() - torch.where(valid, expected, 0.0),
            torch.xlogy(y, y) - y,
            rate,
            response,
            rate**2,
            response**2,
            rate * response,
        )
        self.sums += torch.stack([term.reshape(-1, self.sums.shape[1]).sum(0) for term in terms])

    def merge(self, other: "PoissonSums") -> None:
        """Add the bins of another."""
        self.sums += other.sums.to(self.sums.device)

    def compute(self) -> dict[str, Tensor]:
        """The figures of :data:`FIGURES`, each (U,) float64."""
        s = dict(zip(_ROWS, self.sums, strict=True))
        bins, spikes = s["bins"], s["spikes"]
        # sum m (y log ȳ − ȳ), with ȳ_t = e_t (sum m y / sum m e)
        null = torch.xlogy(spikes, spikes / s["exposure"]) + s["spikes_log_exposure"] - spikes
        deviance, null_deviance = s["saturated"] - s["log_likelihood"], s["saturated"] - null
        counts_vary = null_deviance > _RESOLUTION * (s["saturated"].abs() + null.abs())
        covariance = s["rate_response"] - s["rate"] * s["response"] / bins
        spread = _spread(s["rate_rate"], s["rate"], bins) * _spread(s["response_response"], s["response"], bins)
        return {
            "spikes": spikes,
            "bins": bins,
            "nll": -s["log_likelihood"] / bins,
            "bps": _nan_unless(spikes > 0, (s["log_likelihood"] - null) / (np.log(2.0) * spikes)),
            "d2": _nan_unless(counts_vary, 1 - deviance / null_deviance),
            "correlation": covariance / spread.sqrt(),
        }


def poisson_nll(rates: Tensor, spikes: Tensor, mask: Tensor, exposure: Tensor | None = None) -> Tensor:
    """Sum over valid counts of μ − y log μ: the loss, to be divided by the number of valid counts of the whole batch.

    Arguments are those of :meth:`PoissonSums.update`. The sum is float32, or float64 if the rates are.

    Examples
    --------
    >>> poisson_nll(torch.tensor([[1.0, 2.0]]), torch.tensor([[3, 1]]), torch.tensor([[True, False]]))
    tensor(1.)
    """
    valid = mask.bool().expand(spikes.shape)
    rates = rates.to(torch.promote_types(rates.dtype, torch.float32))
    expected = torch.where(valid, rates if exposure is None else exposure * rates, 1.0)
    # As clamp_min, but with a gradient below the floor, so that a unit silenced by a step can recover.
    expected = expected + (RATE_FLOOR - expected.detach()).clamp_min(0)
    return torch.where(valid, expected - spikes * expected.log(), 0.0).sum()


class Summary(NamedTuple):
    """Mean and median of the values that are defined, and how many are and are not."""

    mean: float
    median: float
    n: int
    n_nan: int


def summarize(values: Tensor | np.ndarray | Sequence[float]) -> Summary:
    """Mean and median over units; NaN values are left out and counted.

    Examples
    --------
    >>> summarize([0.5, float("nan"), -0.1, 0.1])
    Summary(mean=0.16666666666666666, median=0.1, n=3, n_nan=1)
    """
    values = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
    values = np.asarray(values, np.float64).reshape(-1)
    counted = values[~np.isnan(values)]
    if not counted.size:
        return Summary(float("nan"), float("nan"), 0, values.size)
    return Summary(float(counted.mean()), float(np.median(counted)), counted.size, values.size - counted.size)


def _spread(squares: Tensor, total: Tensor, bins: Tensor) -> Tensor:
    """Sum of squared deviations; NaN where it is lost in rounding."""
    spread = squares - total**2 / bins
    return _nan_unless(spread > _RESOLUTION * squares, spread)


def _nan_unless(condition: Tensor, values: Tensor) -> Tensor:
    return torch.where(condition, values, float("nan"))
