"""How well rates predict responses, from a few sums per unit that are added over batches and processes.

Letters: y response, e exposure (presentations that a response sums over, usually 1), λ predicted rate per bin and
presentation, m validity. Sums run over valid bins.
"""

import torch
from torch import Tensor

from ..likelihoods import Likelihood
from .definitions import Evidence, metrics

__all__ = ["Sums"]

_ROWS = (
    "bins", "responses", "exposure", "log_likelihood",
    "rate", "response", "rate_rate", "response_response", "rate_response",
)  # fmt: skip


class Sums:
    """Sums per unit from which every figure follows that needs neither repeats nor the true rate.

    Figures are divided only when all bins have been added. They are therefore the same for any batch size, clip length
    or number of processes. The number of sums does not grow with the length of a session.

    Parameters
    ----------
    likelihood
        Scores the responses; its parameters must not change until the sums are complete.
    device
        Where the sums are kept; it must know float64, and hold the likelihood.

    Attributes
    ----------
    rows
        Names of the sums: the common ones, then those of the likelihood.
    sums
        (R, U) float64. Adding those of two processes gives those of all bins, so one all-reduce of it suffices.

    Examples
    --------
    >>> from neurotwin.likelihoods import Poisson
    >>> sums = Sums(Poisson(n_units=1))
    >>> sums.update(rates=torch.tensor([[0.5], [1.5]]), responses=torch.tensor([[0], [2]]), mask=torch.ones(2, 1))
    >>> round(sums.compute()["bps"].item(), 4)  # log2(1.5) bits for each of two spikes
    0.585
    """

    def __init__(self, likelihood: Likelihood, device: torch.device | str = "cpu") -> None:
        self.likelihood = likelihood
        self.rows = (*_ROWS, *likelihood.rows)
        self.sums = torch.zeros(len(self.rows), likelihood.n_units, dtype=torch.float64, device=device)

    @torch.no_grad()
    def update(self, rates: Tensor, responses: Tensor, mask: Tensor, exposure: Tensor | None = None) -> None:
        """Add bins.

        Parameters
        ----------
        rates
            (..., U) predicted responses per bin and presentation.
        responses
            (..., U) responses.
        mask
            (..., U) or (..., 1), true where a response is valid. What is masked is not read.
        exposure
            (..., U) or (..., 1) presentations that a response sums over; None means one.

        Raises
        ------
        ValueError
            If rates and responses differ in shape.
        """
        if rates.shape != responses.shape:
            raise ValueError(f"rates have shape {tuple(rates.shape)}, responses {tuple(responses.shape)}")
        valid = mask.bool().expand(responses.shape)
        rate_filler, response_filler = self.likelihood.filler
        rate = torch.where(valid, rates.double(), rate_filler)
        y = self.likelihood.counted(torch.where(valid, responses.double(), response_filler))
        e = torch.ones_like(y) if exposure is None else torch.where(valid, exposure.double(), 1.0)
        log_likelihood = self.likelihood.log_likelihood(rate, y, None if exposure is None else e).double()
        response = y / e
        terms = (
            valid.double(), y, e, log_likelihood,
            rate, response, rate**2, response**2, rate * response,
            *self.likelihood.terms(y, e),
        )  # fmt: skip
        kept = [torch.where(valid, term, 0.0).reshape(-1, self.sums.shape[1]).sum(0) for term in terms]
        self.sums += torch.stack(kept)

    def evidence(self) -> Evidence:
        """The sums by name, as metrics read them."""
        return Evidence(self.likelihood, dict(zip(self.rows, self.sums, strict=True)))

    def compute(self) -> dict[str, Tensor]:
        """The figures that follow from the sums, each (U,) float64, by their names in a table."""
        evidence = self.evidence()
        nothing = torch.full_like(self.sums[0], float("nan"))
        with torch.no_grad():
            return {
                name: metric.compute(evidence) if metric.applies(self.likelihood) else nothing
                for name, metric in metrics().items()
                if not (metric.needs_repeats or metric.needs_truth)
            }
