"""Temporal kernels that transforms and frontends share: raised cosines, and the adaptation of photoreceptors."""

from typing import Self

import numpy as np
from pydantic import Field, field_validator, model_validator
from scipy import special

from ..config import Params, PositiveInt, nearest

__all__ = ["AdaptationParams", "RaisedCosineParams", "adaptation_filters", "other_bins", "raised_cosine_basis"]

_MOST_VALUES = 10_000_000


class RaisedCosineParams(Params):
    """Raised cosines on a logarithmic time axis (Pillow et al. 2008)."""

    num_delta_funcs: int = Field(0, ge=0, description="Single-bin functions at the newest bins.")
    num_cosine_funcs: PositiveInt = Field(10, description="Raised cosines after them.")
    history_bins: PositiveInt = Field(32, description="Length of the filters, bins.")
    log_spacing: bool = Field(True, description="Peaks equally spaced in log time; else in time.")
    peak_range_ms: tuple[float, float] = Field((10.0, 100.0), description="First and last peak, ms before now.")
    bin_size_ms: float | None = Field(None, gt=0, description="Width of a bin, ms. Default: that of the data.")
    normalize: bool = Field(True, description="Each function has norm 1.")
    orthogonalize: bool = Field(False, description="Make the functions orthonormal (QR).")
    causal: bool = Field(
        True, description="False: centred on the bin, so that values after it count too; for behaviour only."
    )
    batch_norm: bool = Field(False, description="Normalise each output: by running statistics, or those of training.")
    chomp: int = Field(0, ge=0, description="Newest bins that the functions leave out.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.peak_range_ms[0] < 0 or self.peak_range_ms[0] > self.peak_range_ms[1]:
            raise ValueError("peak_range_ms must be two increasing times, not negative")
        if self.num_delta_funcs + self.chomp >= self.history_bins:
            raise ValueError("history_bins must exceed num_delta_funcs + chomp")
        if (self.num_delta_funcs + self.num_cosine_funcs) * self.history_bins > _MOST_VALUES:
            raise ValueError(f"more than {_MOST_VALUES:,} values in all filters; use fewer functions or history_bins")
        return self


class AdaptationParams(Params):
    """Dynamical adaptation of photoreceptors, r = alpha y / (1 + beta z) (Clark et al. 2013, tau_r to 0)."""

    alpha: float = Field(1.0, description="Gain.")
    beta: float = Field(1.0, ge=0, description="Strength of the divisive adaptation.")
    gamma: float = Field(0.5, ge=0, le=1, description="Share of the fast filter in the slow one.")
    tau_y_ms: float = Field(5.0, gt=0, description="Time constant of the fast filter, ms.")
    tau_z_ms: float = Field(60.0, gt=0, description="Time constant of the slow filter, ms.")
    n_y: float = Field(5.0, ge=0, description="Order of the fast filter.")
    n_z: float = Field(2.0, ge=0, description="Order of the slow filter.")
    filter_length: int = Field(32, gt=1, description="Length of the filters, bins; in one bin they are 0.")
    learnable_params: bool | tuple[str, ...] = Field(False, description="Learn all of the parameters, or those named.")
    height: PositiveInt | None = Field(None, description="Checked against the stimulus.")
    width: PositiveInt | None = Field(None, description="Checked against the stimulus.")

    @field_validator("learnable_params")
    @classmethod
    def _known(cls, value: bool | tuple[str, ...]) -> bool | tuple[str, ...]:
        names = ("alpha", "beta", "gamma", "tau_y_ms", "tau_z_ms", "n_y", "n_z")
        for name in value if isinstance(value, tuple) else ():
            if name not in names:
                raise ValueError(f"{name!r} is not a parameter of da; {nearest(name, names)}")
        return value


def other_bins(bin_size_ms: float | None, bin_ms: float) -> str:
    """What a run says where a file counts time in bins of another width than those of the data; empty if it does not.

    Examples
    --------
    >>> other_bins(8.333, 1000 / 120)
    ''
    """
    if bin_size_ms is None or abs(bin_size_ms - bin_ms) <= 0.01 * bin_ms:
        return ""
    share = bin_ms / bin_size_ms
    return (
        f"is {bin_size_ms:.4g} and the bins of the data last {bin_ms:.4g} ms: the filters are laid out for bins of the "
        f"former, so that they reach {share:.3g} times as far back as their times say"
    )


def raised_cosine_basis(params: RaisedCosineParams, bin_ms: float) -> np.ndarray:
    """Functions of the time before a bin, (n_functions, history_bins): oldest bin first, the newest (lag 0) last.

    Single-bin functions at the newest bins, then raised cosines, b_j(t) = (1 + cos(clip((g(t) - c_j) π / (2 Δ), ±π)))/2
    with g(t) = log(t + 1 bin) (or t), c_j evenly spaced between the peaks and Δ their distance: Pillow et al. 2008,
    Nature 454:995.

    With ``causal: false`` there are as many functions, of (n_functions, 2 history_bins − 1) with lag 0 in the middle:
    the first half of the cosines (and the single bins) look at the time before the bin, the others, mirrored, at the
    time after it.

    Parameters
    ----------
    params
        Of the basis. Its `bin_size_ms` is not read: `bin_ms` is.
    bin_ms
        Width of a bin, ms.
    """
    n_cosines, length = params.num_cosine_funcs, params.history_bins
    if params.causal:
        basis = _one_sided(params, bin_ms, params.num_delta_funcs, n_cosines)
    else:
        past = _one_sided(params, bin_ms, params.num_delta_funcs, n_cosines - n_cosines // 2)
        basis = np.pad(past, ((0, 0), (length - 1, 0)))
        if n_cosines > 1:
            future = _one_sided(params, bin_ms, 0, n_cosines // 2)[:, ::-1]
            basis = np.concatenate([basis, np.pad(future, ((0, 0), (0, length - 1)))])
    if params.orthogonalize:
        basis = np.linalg.qr(basis.T)[0].T
    if params.normalize:
        basis = basis / np.maximum(np.linalg.norm(basis, axis=1, keepdims=True), 1e-12)
    return np.ascontiguousarray(basis[:, ::-1])


def _one_sided(params: RaisedCosineParams, bin_ms: float, n_deltas: int, n_cosines: int) -> np.ndarray:
    """Functions of the lag, (n_deltas + n_cosines, history_bins), lag 0 first."""
    lags = np.arange(params.history_bins) * bin_ms

    def warp(time: np.ndarray) -> np.ndarray:
        return np.log(time + bin_ms) if params.log_spacing else time

    first, last = warp(np.asarray(params.peak_range_ms, float))
    centres = np.linspace(first, last, n_cosines)
    spacing = (last - first) / max(n_cosines - 1, 1) or 1.0
    phase = np.clip((warp(lags)[None] - centres[:, None]) * np.pi / (2 * spacing), -np.pi, np.pi)
    basis = np.concatenate([np.eye(params.history_bins)[:n_deltas], (1 + np.cos(phase)) / 2])
    basis[:, :n_deltas] *= np.eye(len(basis))[:, :n_deltas]
    if params.chomp:
        basis = np.roll(basis, params.chomp, axis=1)
        basis[:, : params.chomp] = 0
    return basis


def adaptation_filters(params: AdaptationParams, bin_ms: float) -> tuple[np.ndarray, np.ndarray]:
    """The fast filter K_y and the slow filter K_z of dynamical adaptation, newest bin first, each of sum 1.

    K_y(t) = t^n_y exp(-t/τ_y), K_z = γ K_y + (1 - γ) t^n_z exp(-t/τ_z), both normalised (Clark et al. 2013, PLoS
    Comput Biol 9:e1003289, eqs. 15 to 17).
    """
    time = np.arange(params.filter_length) * bin_ms

    def gamma_filter(order: float, tau: float) -> np.ndarray:
        kernel = np.exp(special.xlogy(order, time / tau) - time / tau)
        return kernel / kernel.sum()

    fast = gamma_filter(params.n_y, params.tau_y_ms)
    return fast, params.gamma * fast + (1 - params.gamma) * gamma_filter(params.n_z, params.tau_z_ms)
