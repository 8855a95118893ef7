"""Norms of a frame by its own statistics, or by running ones. Never over the time of a clip."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import ConfigError, NormParams
from .stages import Maps, per_frame

__all__ = ["BatchNorm", "GlobalResponseNorm", "GroupNorm", "RMSNorm", "all_gather", "make_norm"]


def make_norm(kind: str, params: NormParams, inputs: Maps) -> nn.Module:
    """The norm of a name of the dialect.

    Raises
    ------
    ConfigError
        If it cannot be computed on such maps.
    """
    channels = inputs.channels
    if kind == "group" and channels % params.num_groups:
        divisors = [n for n in range(1, channels + 1) if channels % n == 0]
        raise ConfigError(
            f"norm_params.num_groups: {params.num_groups} does not divide {channels}; use one of {divisors}"
        )
    if kind == "instance" and inputs.height * inputs.width == 1:
        raise ConfigError("norm_type: instance on maps of one pixel gives 0 always; use layer")
    groups = {"layer": 1, "instance": channels, "group": params.num_groups}
    if kind in groups:
        return GroupNorm(groups[kind], channels, params)
    return {"batch": BatchNorm, "rms": RMSNorm, "grn": GlobalResponseNorm}[kind](channels, params)


class GroupNorm(nn.Module):
    """Zero mean and unit variance of each group of channels over a frame (Wu & He 2018).

    One group is layer normalisation, a group for each channel instance normalisation.
    """

    def __init__(self, groups: int, channels: int, params: NormParams):
        super().__init__()
        self.groups, self.eps = groups, params.eps
        self.weight = nn.Parameter(torch.ones(channels)) if params.affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if params.affine else None

    def forward(self, x: Tensor) -> Tensor:
        return per_frame(F.group_norm, x, self.groups, self.weight, self.bias, self.eps)


class RMSNorm(nn.Module):
    """x / sqrt(mean x² + ε) over the channels and pixels of a frame, times a gain (Zhang & Sennrich 2019)."""

    def __init__(self, channels: int, params: NormParams):
        super().__init__()
        self.eps = params.eps
        self.weight = nn.Parameter(torch.ones(channels)) if params.affine else None

    def forward(self, x: Tensor) -> Tensor:
        return per_frame(self._scale, x)

    def _scale(self, x: Tensor) -> Tensor:
        values = x.permute(0, 2, 3, 1).flatten(1)
        factor = (values.square().mean(dim=1) + self.eps).rsqrt()[:, None, None, None]
        return x * (factor if self.weight is None else factor * _per_channel(self.weight, x))


class GlobalResponseNorm(nn.Module):
    """y = γ x n + β + x with n = g / mean_c g and g_c the norm of channel c over a frame (Woo et al. 2023)."""

    def __init__(self, channels: int, params: NormParams):
        super().__init__()
        self.eps = params.eps
        self.weight = nn.Parameter(torch.zeros(channels)) if params.affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if params.affine else None

    def forward(self, x: Tensor) -> Tensor:
        return per_frame(self._respond, x)

    def _respond(self, x: Tensor) -> Tensor:
        pixels = x.permute(0, 2, 3, 1).flatten(1, 2)
        energy = (pixels.square().sum(dim=1) + self.eps).sqrt()
        share = (energy / energy.mean(dim=1, keepdim=True))[..., None, None]
        if self.weight is None:
            return x * (1 + share)
        return torch.addcmul(_per_channel(self.bias, x), x, 1 + share * _per_channel(self.weight, x))


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe & Szegedy 2015) whose batch is that of all processes.

    In training the mean and variance of a channel are taken over every value of the step, summed over processes with
    their gradients, so that one process and sixteen give the same numbers. Otherwise running averages are used.

    Attributes
    ----------
    frozen
        While true, the running averages are not updated (a second pass over the same values, as in checkpointing).
    """

    frozen = False

    def __init__(self, channels: int, params: NormParams):
        super().__init__()
        self.eps, self.momentum = params.eps, params.momentum
        self.weight = nn.Parameter(torch.ones(channels)) if params.affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if params.affine else None
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return per_frame(self._normalise, x)

    def _normalise(self, x: Tensor) -> Tensor:
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        y, mean, variance, count = _NormOverProcesses.apply(x, self.weight, self.bias, self.running_mean, self.eps)
        if not self.frozen:
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1).clamp_min(1), self.momentum)
        return y


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


def all_gather(values: Tensor) -> Tensor:
    """The tensors of all processes, stacked along a new first axis."""
    if not (dist.is_available() and dist.is_initialized()):
        return values[None]
    parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, values)
    return torch.stack(parts)


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    return values.view(-1, *(1,) * (x.ndim - 2))
