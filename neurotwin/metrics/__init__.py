"""Figures of merit: their definitions, the streamed sums and repeated responses they follow from, tables of units."""

from .definitions import Evidence, Metric, compute_metrics, metrics, metrics_reference
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
from .sums import Sums
from .table import EvaluationError, GroupSummary, Summary, Table, columns, summarize, summarize_table

__all__ = [
    "EvaluationError",
    "Evidence",
    "GroupSummary",
    "Metric",
    "Summary",
    "Sums",
    "Table",
    "cc_abs",
    "cc_max",
    "cc_norm",
    "columns",
    "compute_metrics",
    "correlation_to_average",
    "fev",
    "feve",
    "metrics",
    "metrics_reference",
    "oracle_correlation",
    "signal_power",
    "stack_repeats",
    "summarize",
    "summarize_table",
]
