"""Figures of merit: streamed Poisson figures, and the reliability of repeated responses."""

from .poisson import PoissonSums, Summary, poisson_nll, summarize
from .reliability import (
    cc_abs,
    cc_max,
    cc_norm,
    correlation_to_average,
    fev,
    feve,
    oracle_correlation,
    signal_power,
    stack_repeats,
)

__all__ = [
    "PoissonSums",
    "Summary",
    "cc_abs",
    "cc_max",
    "cc_norm",
    "correlation_to_average",
    "fev",
    "feve",
    "oracle_correlation",
    "poisson_nll",
    "signal_power",
    "stack_repeats",
    "summarize",
]
