"""Every figure of merit, one class each: its title, its formula, what it needs, and how it is computed."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import log
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from ..config import register, registered
from ..likelihoods import Likelihood
from . import reliability

__all__ = ["Evidence", "Metric", "compute_metrics", "metrics", "metrics_reference"]

# A variance or deviance below this share of the sums that it is the difference of is rounding: the figure is NaN.
# For a rate, which is computed in float32, that is a spread of a millionth of the mean.
_RESOLUTION = 1e-12


@dataclass(frozen=True)
class Evidence:
    """What is known of the units of one session once all bins are added up.

    Parameters
    ----------
    likelihood
        Scores the responses.
    sums
        (U,) float64 by name, see :class:`neurotwin.metrics.Sums`: `bins`, `responses` (Σy), `exposure` (Σe),
        `log_likelihood`, the sums of `rate` (λ) and `response` (y/e), of their squares `rate_rate` and
        `response_response` and of their product `rate_response`, and those that the likelihood adds.
    true_sums
        The same, with the true rate of a simulated session in place of the predicted one.
    repeats
        Responses to repeated frames per presentation, and the rates predicted for them, each (R, N, U) with NaN where
        a repeat is missing; see :mod:`neurotwin.metrics.reliability`.
    """

    likelihood: Likelihood
    sums: Mapping[str, Tensor]
    true_sums: Mapping[str, Tensor] | None = None
    repeats: tuple[np.ndarray, np.ndarray] | None = None

    def of_truth(self) -> "Evidence":
        """The evidence for the true rate."""
        assert self.true_sums is not None
        return Evidence(self.likelihood, self.true_sums)

    @property
    def repeated(self) -> tuple[np.ndarray, np.ndarray]:
        """The repeats, for a metric that needs them."""
        assert self.repeats is not None
        return self.repeats


class Metric:
    """Base of the metrics. To add one, subclass this and register the class; its name becomes a column of tables::

        @register("metric", "mean_rate")
        class MeanRate(Metric):
            "What is predicted on average."

            title = "mean rate"
            formula = "Σ m λ / Σ m"

            @staticmethod
            def compute(evidence: Evidence) -> Tensor:
                return evidence.sums["rate"] / evidence.sums["bins"]

    Attributes
    ----------
    title
        What it is called in tables and documents.
    formula
        Its definition, in words or symbols, with the source.
    direction
        Whether "higher" or "lower" is better, or "none".
    kind
        Type of its column.
    needs_repeats, needs_truth
        Whether it needs a stimulus shown repeatedly, or the true rate of a simulated session.
    """

    title: ClassVar[str]
    formula: ClassVar[str]
    direction: ClassVar[Literal["higher", "lower", "none"]] = "none"
    kind: ClassVar[type] = float
    needs_repeats: ClassVar[bool] = False
    needs_truth: ClassVar[bool] = False

    @staticmethod
    def applies(likelihood: Likelihood | type[Likelihood]) -> bool:
        """Whether the figure has a meaning under a likelihood."""
        return True

    @staticmethod
    def compute(evidence: Evidence) -> Any:
        """The figure, (U,) float64 tensor or array, NaN where it is not defined."""
        raise NotImplementedError


def metrics() -> dict[str, type[Metric]]:
    """All metrics by the name of their column, in the order of tables; further names of a metric are left out."""
    first = {definition: name for name, definition in reversed(list(registered("metric").items()))}
    return {name: definition for name, definition in registered("metric").items() if first[definition] == name}


def compute_metrics(evidence: Evidence) -> dict[str, np.ndarray]:
    """All figures of the units of a session, each (U,); NaN where what a metric needs is not there."""
    values = {}
    with torch.no_grad():
        for name, metric in metrics().items():
            possible = (
                metric.applies(evidence.likelihood)
                and not (metric.needs_repeats and evidence.repeats is None)
                and not (metric.needs_truth and evidence.true_sums is None)
            )
            value = metric.compute(evidence) if possible else torch.full_like(evidence.sums["bins"], float("nan"))
            value = value.cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
            values[name] = value.astype(np.int64 if metric.kind is int else np.float64)
    return values


def metrics_reference() -> str:
    """A markdown table of all metrics: name, title, definition, direction, and what each needs."""
    lines = ["| Name | Title | Definition | Better | Likelihoods | Needs |", "|:--|:--|:--|:--|:--|:--|"]
    likelihoods = registered("likelihood")
    for name, metric in metrics().items():
        fitting = [key for key, likelihood in likelihoods.items() if metric.applies(likelihood)]
        whose = "all" if len(fitting) == len(likelihoods) else ", ".join(f"`{key}`" for key in fitting)
        conditions = {"repeats": metric.needs_repeats, "true rate": metric.needs_truth}
        needs = [text for text, needed in conditions.items() if needed]
        better = "" if metric.direction == "none" else metric.direction
        cells = (f"`{name}`", metric.title, metric.formula, better, whose, ", ".join(needs))
        lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


# --------------------------------------------------------------------------------------------------------------------


class _OfCounts(Metric):
    """A figure of counts."""

    @staticmethod
    def applies(likelihood: Likelihood | type[Likelihood]) -> bool:
        return likelihood.bits_per_spike


class _OfRepeats(Metric):
    """A figure of the responses to a repeated stimulus."""

    direction: ClassVar[Literal["higher", "lower", "none"]] = "higher"
    needs_repeats = True


@register("metric", "spikes")
class Responses(Metric):
    title = "responses in total"
    formula = "Σ m y: spikes, where responses are counts"

    @staticmethod
    def compute(evidence: Evidence) -> Tensor:
        return evidence.sums["responses"]


@register("metric", "bins")
class Bins(Metric):
    title = "valid bins"
    formula = "Σ m"
    kind = int

    @staticmethod
    def compute(evidence: Evidence) -> Tensor:
        return evidence.sums["bins"]


@register("metric", "nll")
class NLL(Metric):
    title = "negative log likelihood"
    formula = "−Σ m log p(y) / Σ m, nats a bin, as the loss has it: for counts without log y!"
    direction = "lower"

    @staticmethod
    def compute(evidence: Evidence) -> Tensor:
        return -evidence.sums["log_likelihood"] / evidence.sums["bins"]


@register("metric", "bps")
class BitsPerSpike(_OfCounts):
    title = "bits per spike"
    formula = (
        "Σ m [log p(y; λ) − log p(y; ȳ)] / (ln 2 · Σ m y), with ȳ = Σ m y / Σ m e the unit's mean rate on the bins "
        "evaluated; NaN without spikes; never clamped (Paninski et al. 2004; Pei et al. 2021)"
    )
    direction = "higher"

    @staticmethod
    def compute(evidence: Evidence) -> Tensor:
        spikes = evidence.sums["responses"]
        return _nan_unless(spikes > 0, _gain(evidence) / (log(2.0) * spikes))


@register("metric", "bits_per_bin")
class BitsPerBin(Metric):
    title = "bits per bin"
    formula = (
        "Σ m [log p(y; λ) − log p(y; null)] / (ln 2 · Σ m): what the rates tell beyond the null model of the "
        "likelihood, a constant rate on the bins evaluated"
    )
    direction = "higher"

    @staticmethod
    def compute(evidence: Evidence) -> Tensor:
        return _gain(evidence) / (log(2.0) * evidence.sums["bins"])


@register("metric", "d2")
class DevianceExplained(Metric):
    title = "D²"
    formula = "1 − D(y, λ) / D(y, ȳ), D the deviance of the likelihood; R² for `gaussian` (McCullagh & Nelder 1989)"
    direction = "higher"

    @staticmethod
    def applies(likelihood: Likelihood | type[Likelihood]) -> bool:
        kind = likelihood if isinstance(likelihood, type) else type(likelihood)
        return kind.saturated is not Likelihood.saturated

    @staticmethod
    def compute(evidence: Evidence) -> Tensor:
        likelihood, sums = evidence.likelihood, evidence.sums
        saturated, constant = likelihood.saturated(sums), likelihood.at_mean(sums)
        deviance, null_deviance = saturated - sums["log_likelihood"], saturated - constant
        responses_vary = null_deviance > _RESOLUTION * (saturated.abs() + constant.abs())
        return _nan_unless(responses_vary, 1 - deviance / null_deviance)


@register("metric", "correlation")
class Correlation(Metric):
    title = "correlation"
    formula = "Pearson's r of λ and y/e over all valid bins, every trial (Willeke et al. 2022)"
    direction = "higher"

    @staticmethod
    def compute(evidence: Evidence) -> Tensor:
        s = evidence.sums
        bins = s["bins"]
        covariance = s["rate_response"] - s["rate"] * s["response"] / bins
        spread = _spread(s["rate_rate"], s["rate"], bins) * _spread(s["response_response"], s["response"], bins)
        return covariance / spread.sqrt()


@register("metric", "oracle_bps")
class OracleBitsPerSpike(_OfCounts):
    title = "oracle bits per spike"
    formula = "bits per spike of the true rate of a simulated session: no model beats it except by luck"
    needs_truth = True

    @staticmethod
    def compute(evidence: Evidence) -> Tensor:
        return BitsPerSpike.compute(evidence.of_truth())


@register("metric", "fraction_of_oracle")
class FractionOfOracle(_OfCounts):
    title = "share of the oracle"
    formula = "bits per spike as a share of those of the true rate; NaN where these are not positive"
    direction = "higher"
    needs_truth = True

    @staticmethod
    def compute(evidence: Evidence) -> Tensor:
        oracle = OracleBitsPerSpike.compute(evidence)
        return BitsPerSpike.compute(evidence) / _nan_unless(oracle > 0, oracle)


@register("metric", "correlation_to_average")
class CorrelationToAverage(_OfRepeats):
    title = "correlation to average"
    formula = "Pearson's r of λ and the mean over repeats (Willeke et al. 2022)"

    @staticmethod
    def compute(evidence: Evidence) -> np.ndarray:
        return reliability.correlation_to_average(*evidence.repeated)


@register("metric", "cc_norm")
class CCNorm(_OfRepeats):
    title = "CC_norm"
    formula = (
        "Cov_t(ȳ_t, λ_t) / sqrt(Var_t(λ) · SP), with the signal power SP = (Var_t(Σ_r y) − Σ_r Var_t(y)) / (R(R−1)); "
        "NaN where SP ≤ 0 (Schoppe et al. 2016)"
    )

    @staticmethod
    def compute(evidence: Evidence) -> np.ndarray:
        return reliability.cc_norm(*evidence.repeated)


@register("metric", "cc_max")
class CCMax(_OfRepeats):
    title = "CC_max"
    formula = "sqrt(SP / Var_t(ȳ)), a property of the responses alone (Schoppe et al. 2016)"
    direction = "none"

    @staticmethod
    def compute(evidence: Evidence) -> np.ndarray:
        return reliability.cc_max(evidence.repeated[0])


@register("metric", "fev")
class FEV(_OfRepeats):
    title = "FEV"
    formula = "1 − σ²_noise / Var(y), σ²_noise = mean_t Var_r(y), of the responses alone (Cadena et al. 2019)"
    direction = "none"

    @staticmethod
    def compute(evidence: Evidence) -> np.ndarray:
        return reliability.fev(evidence.repeated[0])


@register("metric", "feve")
class FEVE(_OfRepeats):
    title = "FEVE"
    formula = "1 − (mean (y−λ)² − σ²_noise) / (Var(y) − σ²_noise); NaN where FEV ≤ 0 (Cadena et al. 2019)"

    @staticmethod
    def compute(evidence: Evidence) -> np.ndarray:
        return reliability.feve(*evidence.repeated)


@register("metric", "oracle_correlation")
class OracleCorrelation(_OfRepeats):
    title = "oracle correlation"
    formula = "mean over repeats of the correlation of one with the mean of the others (Willeke et al. 2022)"
    direction = "none"

    @staticmethod
    def compute(evidence: Evidence) -> np.ndarray:
        return reliability.oracle_correlation(evidence.repeated[0])


def _gain(evidence: Evidence) -> Tensor:
    """Log likelihood beyond that of the null model, nats."""
    return evidence.sums["log_likelihood"] - evidence.likelihood.null(evidence.sums)


def _spread(squares: Tensor, total: Tensor, bins: Tensor) -> Tensor:
    """Sum of squared deviations; NaN where it is lost in rounding."""
    spread = squares - total**2 / bins
    return _nan_unless(spread > _RESOLUTION * squares, spread)


def _nan_unless(condition: Tensor, values: Tensor) -> Tensor:
    return torch.where(condition, values, float("nan"))
