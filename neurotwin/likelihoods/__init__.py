"""Likelihoods: how responses scatter about their expectation. One class each, registered under its name."""

from .base import RATE_FLOOR, Likelihood, ResponseStatistics, floored
from .check import check_likelihood
from .gamma import Gamma
from .gaussian import Gaussian
from .negative_binomial import NegativeBinomial
from .poisson import Poisson

__all__ = [
    "RATE_FLOOR",
    "Gamma",
    "Gaussian",
    "Likelihood",
    "NegativeBinomial",
    "Poisson",
    "ResponseStatistics",
    "check_likelihood",
    "floored",
]
