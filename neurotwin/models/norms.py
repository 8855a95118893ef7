"""Norms of a frame, by its own statistics or by running ones, so that where a clip is cut does not matter."""

from math import log, prod
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import ConfigError, Params, PositiveInt, register
from ..processes import all_gather, all_reduce_sum
from .layers import OddInt
from .stages import Maps, per_frame, reserve

__all__ = [
    "BatchNorm",
    "DivisiveNorm",
    "GlobalResponseNorm",
    "GroupNorm",
    "InstanceNorm",
    "LayerNorm",
    "Norm",
    "NormParams",
    "RMSNorm",
]


class NormParams(Params):
    """Parameters of a norm."""

    affine: bool = Field(True, description="Learn a scale (and shift, where the norm has one) per channel.")
    num_groups: PositiveInt = Field(8, description="group: number of groups of channels.")
    eps: float = Field(1e-5, gt=0, description="Added to the variance.")
    momentum: float = Field(
        0.1, gt=0, le=1, description="batch, divisive: weight of a new batch in the running statistics."
    )
    pool_size: OddInt = Field(5, description="divisive: height and width of the neighbourhood that divides, pixels.")


class Norm(nn.Module):
    """Base of the norms: a learned scale and shift per channel, where there are any.

    Parameters
    ----------
    params
        The norm's config.
    inputs
        What comes in; a norm changes no size.

    Attributes
    ----------
    frozen
        While true, running averages are not updated (a second pass over the same values, as in checkpointing).
    """

    frozen = False
    kinds = {"weight": "scale", "bias": "bias"}
    start, shifts = 1.0, True

    def __init__(self, params: NormParams, inputs: Maps):
        super().__init__()
        self.eps, channels = params.eps, inputs.channels
        self.weight = nn.Parameter(torch.full((channels,), self.start)) if params.affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if params.affine and self.shifts else None

    def forward(self, x: Tensor) -> Tensor:
        """From clips (B, C, T, H, W) to clips of the same size."""
        return per_frame(self.normalise, x)

    def normalise(self, x: Tensor) -> Tensor:
        """From frames (N, C, H, W) to frames."""
        raise NotImplementedError


@register("norm", "group")
class GroupNorm(Norm):
    """Zero mean and unit variance of each of `num_groups` groups of channels over a frame (Wu & He 2018)."""

    def __init__(self, params: NormParams, inputs: Maps):
        super().__init__(params, inputs)
        self.groups, channels = self.n_groups(params, inputs), inputs.channels
        if channels % self.groups:
            divisors = [n for n in range(1, channels + 1) if channels % n == 0]
            raise ConfigError(
                f"norm_params.num_groups: {self.groups} does not divide {channels}; use one of {divisors}"
            )

    def n_groups(self, params: NormParams, inputs: Maps) -> int:
        """Number of groups."""
        return params.num_groups

    def normalise(self, x: Tensor) -> Tensor:
        return F.group_norm(x, self.groups, self.weight, self.bias, self.eps)


@register("norm", "layer")
class LayerNorm(GroupNorm):
    """Zero mean and unit variance over all channels and pixels of a frame (Ba et al. 2016): one group."""

    def n_groups(self, params: NormParams, inputs: Maps) -> int:
        return 1


@register("norm", "instance")
class InstanceNorm(GroupNorm):
    """Zero mean and unit variance of each channel over the pixels of a frame (Ulyanov et al. 2016)."""

    def n_groups(self, params: NormParams, inputs: Maps) -> int:
        if inputs.height * inputs.width == 1:
            raise ConfigError("norm_type: instance on maps of one pixel gives 0 always; use layer")
        return inputs.channels


@register("norm", "rms")
class RMSNorm(Norm):
    """x / sqrt(mean x² + ε) over the channels and pixels of a frame, times a gain (Zhang & Sennrich 2019).

    With `affine` a constant per channel is added as well.
    """

    def normalise(self, x: Tensor) -> Tensor:
        values = x.permute(0, 2, 3, 1).flatten(1)
        factor = (values.square().mean(dim=1) + self.eps).rsqrt()[:, None, None, None]
        if self.weight is None:
            return x * factor
        return torch.addcmul(_per_channel(self.bias, x), x, factor * _per_channel(self.weight, x))


@register("norm", "grn")
class GlobalResponseNorm(Norm):
    """y = γ x n + β + x with n = g / mean_c g and g_c the norm of channel c over a frame (Woo et al. 2023)."""

    start = 0.0

    def normalise(self, x: Tensor) -> Tensor:
        pixels = x.permute(0, 2, 3, 1).flatten(1, 2)
        energy = (pixels.square().sum(dim=1) + self.eps).sqrt()
        share = (energy / energy.mean(dim=1, keepdim=True))[..., None, None]
        if self.weight is None:
            return x * (1 + share)
        return torch.addcmul(_per_channel(self.bias, x), x, 1 + share * _per_channel(self.weight, x))


@register("norm", "batch")
class BatchNorm(Norm):
    """Batch normalisation (Ioffe & Szegedy 2015) whose batch is that of all processes.

    In training the mean and variance of a channel are taken over every value of the step, summed over processes with
    their gradients, so that one process and sixteen give the same numbers. Otherwise running averages are used.
    """

    def __init__(self, params: NormParams, inputs: Maps):
        super().__init__(params, inputs)
        self.momentum = params.momentum
        self.register_buffer("running_mean", torch.zeros(inputs.channels))
        self.register_buffer("running_var", torch.ones(inputs.channels))

    def normalise(self, x: Tensor) -> Tensor:
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        y, mean, variance, count = _NormOverProcesses.apply(x, self.weight, self.bias, self.running_mean, self.eps)
        if not self.frozen:
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1).clamp_min(1), self.momentum)
        return y


@register("norm", "divisive")
class DivisiveNorm(Norm):
    """y = γ z |z|ⁿ⁻¹ / (σⁿ + Σ_k w_k (G ∗ |z_k|^n_k)) + β: divisive normalisation (Carandini & Heeger 2012).

    Each channel has its own exponent n, constant σ and weights w of the channels k that divide it; all are positive and
    learned. G is an average over a neighbourhood of `pool_size` pixels, whose weights are learned too; at the edges of
    a frame the outermost pixels are repeated. Followed by a rectification, these are the responses of Heeger (1992).

    The equation has no fixed scale: with inputs far below σ nothing is normalised, and far above it everything is. So z
    is x over its running root mean square, one number for each channel, which no gradient passes. With n = 2, σ = 1 and
    weights that sum to 1 at the start, a usual input is divided by about 2, which γ makes good for.
    """

    start = 2.0
    kinds = Norm.kinds | dict.fromkeys(("log_exponent", "log_sigma", "log_pool", "window"), "constant")

    def __init__(self, params: NormParams, inputs: Maps):
        super().__init__(params, inputs)
        self.momentum, channels = params.momentum, inputs.channels
        self.size = inputs.present((params.pool_size, params.pool_size), 1)
        reserve(channels, channels)
        self.log_exponent = nn.Parameter(torch.full((channels,), log(2)))
        self.log_sigma = nn.Parameter(torch.zeros(channels))
        self.log_pool = nn.Parameter(torch.full((channels, channels), -log(max(1, channels))))
        self.window = nn.Parameter(torch.zeros(prod(self.size))) if prod(self.size) > 1 else None
        self.register_buffer("running_square", torch.zeros(channels))
        self.register_buffer("running_count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training and not self.frozen:
            self._update(x.detach())
        return super().forward(x)

    def normalise(self, x: Tensor) -> Tensor:
        z = x / _per_channel(self._scale(), x)
        square, exponent = z.square() + self.eps, _per_channel(self.log_exponent.exp(), x)
        power = square.pow(exponent / 2)
        pool = F.conv2d(power, self.log_pool.exp()[..., None, None])
        if self.window is not None:
            pool = self._average(pool)
        sigma = _per_channel((self.log_sigma * self.log_exponent.exp()).exp(), x)
        y = z * power * square.rsqrt() / (sigma + pool)
        if self.weight is None:
            return y
        return torch.addcmul(_per_channel(self.bias, x), y, _per_channel(self.weight, x))

    def _average(self, pool: Tensor) -> Tensor:
        """Average over the neighbourhood of each pixel."""
        rows, columns = (size // 2 for size in self.size)
        window = self.window.softmax(dim=0).view(1, 1, *self.size).expand(pool.shape[1], 1, -1, -1)
        return F.conv2d(F.pad(pool, (columns, columns, rows, rows), mode="replicate"), window, groups=pool.shape[1])

    def _scale(self) -> Tensor:
        """Root of the running mean square; 1 before anything was seen."""
        mean = self.running_square / self.running_count.clamp_min(1e-12)
        return torch.where(self.running_count > 0, mean.clamp_min(1e-12).sqrt(), 1.0)

    @torch.no_grad()
    def _update(self, x: Tensor) -> None:
        """Weigh in the mean square of a step, over all processes; weights sum to `running_count`."""
        squares = x.to(self.running_square.dtype).square().sum(dim=(0, 2, 3, 4))
        total = all_reduce_sum(torch.cat([squares, squares.new_full((1,), x.numel() / x.shape[1])]))
        self.running_square.lerp_(total[:-1] / total[-1], self.momentum)
        self.running_count.lerp_(torch.ones_like(self.running_count), self.momentum)


class _NormOverProcesses(torch.autograd.Function):
    """Images (N, C, H, W) normalised by the mean and variance over N, H and W on all processes.

    Returns those too, and the number of values of a channel, in the type of `like`. With γ the weight and x̂ the
    normalised values, the gradient is γ (g − mean g − x̂ mean(g x̂)) / sqrt(variance + ε), the means over all processes.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, like: Tensor, eps: float
    ) -> tuple[Tensor, ...]:
        unused = torch.zeros_like(like)
        local_mean, local_variance = torch.batch_norm_update_stats(x, unused, unused.clone(), 0.0)
        number = torch.full_like(local_mean, x.numel() / x.shape[1])
        numbers, means, variances = all_gather(torch.stack([number, local_mean, local_variance])).unbind(1)
        count = numbers.sum(0)
        mean = (numbers * means).sum(0) / count
        variance = (numbers * (variances + (means - mean).square())).sum(0) / count
        y = F.batch_norm(x, mean, variance, weight, bias, eps=eps)
        ctx.save_for_backward(x, weight, mean, variance, count)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance, count)
        return y, mean, variance, count

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, variance, count = ctx.saved_tensors
        scale = torch.ones_like(mean) if weight is None else weight
        _, for_weight, for_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, x, scale, mean, variance, None, None, False, ctx.eps, [False, True, True]
        )
        along, offset = all_gather(torch.stack([for_weight, for_bias])).sum(0) / count
        inverse = (variance + ctx.eps).rsqrt()
        factor, slope = (_per_channel(values, x) for values in (scale * inverse, -scale * inverse.square() * along))
        shift = -factor * _per_channel(offset, x) - slope * _per_channel(mean, x)
        for_x = torch.addcmul(shift, x, slope).addcmul_(gradient, factor).to(x.dtype)
        return for_x, *((None, None) if weight is None else (for_weight, for_bias)), None, None


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    return values.view(-1, *(1,) * (x.ndim - 2))
