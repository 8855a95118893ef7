"""The pieces that stages are made of: convolutions, norms, activations, pools, and the block that orders them.

Everything here maps clips (B, C, T, H, W) to clips and is *dense and valid in time*: there is an output for every
frame that has enough frames before it, so T shrinks by the layer's `context`. A stride over time in the config does
not thin the output; it becomes `Maps.step`, the distance in frames between the taps of every later layer, which gives
for each frame what a strided network gives for a window that ends there.

Tensors are channels-last in memory: folding time into the batch (:func:`fold_time`) is then free of copies.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod, sqrt
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import ActParams, BlockConfig, ConfigError, ConvParams, KernelParams, NoParams, NormParams, PoolParams

__all__ = [
    "MLP",
    "Activation",
    "BatchNorm",
    "Block",
    "Conv",
    "Identity",
    "Kernel",
    "Maps",
    "Stage",
    "all_gather",
    "channels_last",
    "fold_time",
    "inside",
    "linear",
    "make_norm",
    "make_pool",
    "normal",
    "taper",
    "unfold_time",
]


@dataclass(frozen=True)
class Maps:
    """What flows from one stage to the next: the sizes of (B, C, T, H, W) that are known when a model is built.

    Attributes
    ----------
    channels, height, width
        C, H and W, pixels.
    bin_rate
        Frames a second, Hz.
    step
        Frames between the time taps of a layer: the product of all temporal strides so far.
    """

    channels: int
    height: int
    width: int
    bin_rate: float
    step: int = 1

    def resized(self, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], what: str) -> "Maps":
        """These maps after a sliding window over space.

        Raises
        ------
        ConfigError
            If no pixel is left.
        """
        sizes = zip((self.height, self.width), kernel, stride, padding, strict=True)
        height, width = ((size + 2 * p - k) // s + 1 for size, k, s, p in sizes)
        if height < 1 or width < 1:
            raise ConfigError(
                f"{what}: a window of {kernel[0]}x{kernel[1]} on maps of {self.height}x{self.width} leaves no pixels; "
                f"use a smaller kernel_size or stride, here or before, or more padding"
            )
        return replace(self, height=height, width=width)


class Stage(nn.Module):
    """Base of the stages of a model.

    Attributes
    ----------
    outputs
        What the stage gives.
    context
        Frames that it consumes: T comes out shorter by this.
    takes_behavior
        Whether it is called as ``stage(features, behavior)``.
    is_recurrent
        Whether it carries a state: it is then called with ``state=`` and returns ``(features, state)``.
    """

    outputs: Maps
    context: int = 0
    takes_behavior: bool = False
    is_recurrent: bool = False


class Identity(Stage):
    """A stage of type `none`."""

    Params = NoParams

    def __init__(self, params: NoParams, inputs: Maps, **_: object):
        super().__init__()
        self.outputs = inputs

    def forward(self, x: Tensor) -> Tensor:
        return x


class Block(Stage):
    """Pad, convolve, normalise, activate, drop out and pool, in the order that the config gives.

    Padding over time needs no step of its own: a clip brings the frames that a window would have to make up, so both
    causal and valid blocks just consume them. Spatial padding belongs to the convolution and the pool.

    Parameters
    ----------
    params
        The block's config.
    inputs
        What comes in.
    channels
        Channels of the convolution's output.
    generator
        Draws the initial weights.

    Attributes
    ----------
    stride, offset
        Output pixel i looks at input pixel ``offset + i * stride`` (y, x); None after an adaptive pool.
    """

    def __init__(self, params: BlockConfig, inputs: Maps, channels: int, *, generator: torch.Generator):
        super().__init__()
        maps, self.order = inputs, []
        self.stride: tuple[int, int] | None = (1, 1)
        self.offset: tuple[float, float] | None = (0.0, 0.0)
        bias = params.norm_type == "none" if params.conv_params.bias is None else params.conv_params.bias
        for name in params.order:
            if name == "conv":
                layer = Conv(params.conv_params, maps, channels, bias=bias, generator=generator)
            elif name == "norm" and params.norm_type != "none":
                layer = make_norm(params.norm_type, params.norm_params, maps)
            elif name == "act":
                layer = Activation(params.act_type, params.act_params)
                maps = replace(maps, channels=layer.channels(maps.channels))
            elif name == "dropout" and params.dropout:
                layer = nn.Dropout3d(params.dropout)
            elif name == "pool" and params.pool_params.type != "none":
                layer = make_pool(params.pool_params, maps, generator=generator)
            else:
                continue
            self.add_module(name, layer)
            self.order.append(name)
            if name in ("conv", "pool"):
                maps, self.context = layer.outputs, self.context + layer.context
                if layer.stride is None or self.stride is None:
                    self.stride = self.offset = None
                else:
                    self.offset = tuple(
                        a + b * s for a, b, s in zip(self.offset, layer.offset, self.stride, strict=True)
                    )
                    self.stride = tuple(a * b for a, b in zip(self.stride, layer.stride, strict=True))
        self.outputs = maps

    def forward(self, x: Tensor) -> Tensor:
        for name in self.order:
            x = getattr(self, name)(x)
        return x


# --------------------------------------------------------------------------------------------------------------------
# Shapes
# --------------------------------------------------------------------------------------------------------------------


def channels_last(x: Tensor) -> Tensor:
    """The same values, channels-last in memory; no copy where they are so already.

    The strides of a single channel say nothing, and torch then takes the layout for channels-first and hands it on.
    """
    if x.shape[1] == 1:
        x = x.squeeze(1)[..., None].permute(0, 4, 1, 2, 3)
    return x.contiguous(memory_format=torch.channels_last_3d)


def fold_time(x: Tensor) -> Tensor:
    """(B, C, T, H, W) to (B·T, C, H, W), channels-last in memory; no copy where the input is so too."""
    return x.permute(0, 2, 3, 4, 1).flatten(0, 1).permute(0, 3, 1, 2)


def unfold_time(x: Tensor, clips: int) -> Tensor:
    """(B·T, C, H, W) back to (B, C, T, H, W)."""
    return x.unflatten(0, (clips, -1)).transpose(1, 2)


def per_frame(function: Callable[..., Tensor], x: Tensor, *args: object, **kwargs: object) -> Tensor:
    """Apply a function of images to every frame of every clip."""
    return unfold_time(function(fold_time(x), *args, **kwargs), len(x))


def time_taps(x: Tensor, taps: int, step: int) -> list[Tensor]:
    """The views of a clip that a temporal kernel of `taps` taps meets, oldest first."""
    length = x.shape[2] - (taps - 1) * step
    return [x[:, :, tap * step : tap * step + length] for tap in range(taps)]


@contextmanager
def inside(where: str) -> Iterator[None]:
    """Say in which part of the config an error arose."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{where}.{error}") from None


# --------------------------------------------------------------------------------------------------------------------
# Convolutions
# --------------------------------------------------------------------------------------------------------------------


def normal(*shape: int, std: float, generator: torch.Generator) -> Tensor:
    """Normal numbers from a generator of one's own: what else has been drawn in the process does not matter."""
    return torch.randn(shape, generator=generator) * std


def linear(
    inputs: int, outputs: int, *, generator: torch.Generator, bias: bool = True, scale: float = 1.0
) -> nn.Linear:
    """A linear layer whose weights have variance scale²/inputs, with a bias of 0."""
    layer = nn.utils.skip_init(nn.Linear, inputs, outputs, bias=bias)
    with torch.no_grad():
        layer.weight.copy_(normal(outputs, inputs, std=scale / sqrt(inputs), generator=generator))
        if bias:
            layer.bias.zero_()
    return layer


def taper(size: int, window: str, power: float) -> Tensor:
    """A window (size,) with peak 1 and no zeros; ones where size is below 5.

    The zeros at the ends of the textbook windows are left outside, so that no tap of the kernel is dead.

    Examples
    --------
    >>> [round(float(value), 2) for value in taper(5, "hann", 1.0)]
    [0.25, 0.75, 1.0, 0.75, 0.25]
    """
    if size < 5:
        return torch.ones(size)
    values = getattr(torch.signal.windows, window)(size + 2, sym=True, dtype=torch.float64)[1:-1]
    return ((values / values.max()) ** power).to(torch.get_default_dtype())


class Kernel(nn.Module):
    """A convolution kernel (outputs, inputs, T, H, W), tapered and normalised as configured.

    Parameters
    ----------
    weight
        Its values at the start. Where it is tapered, they are scaled up by the root mean square of the window, so
        that tapering does not make the start any weaker.
    params
        What is done to it.
    """

    def __init__(self, weight: Tensor, params: KernelParams):
        super().__init__()
        self.normalized = params.use_weight_norm or params.keep_unit_norm
        kept = params.weight_norm_dim % weight.ndim
        self.norm_axes = [axis for axis in range(weight.ndim) if axis != kept]
        self.gain_shape = [size if axis == kept else 1 for axis, size in enumerate(weight.shape)]
        window = None
        if params.aa_signal:
            power = params.aa_window_kwargs.power
            parts = [taper(size, params.aa_window, power) for size in weight.shape[2:]]
            window = parts[0][:, None, None] * parts[1][:, None] * parts[2]
            weight = weight / window.square().mean().sqrt()
        self.weight = nn.Parameter(weight)
        self.register_buffer("window", window, persistent=False)
        gain = None
        if self.normalized and not params.keep_unit_norm:
            tapered = self.weight.detach() if window is None else self.weight.detach() * window
            gain = nn.Parameter(torch.linalg.vector_norm(tapered, dim=self.norm_axes))
        self.register_parameter("gain", gain)

    def kernel(self) -> Tensor:
        """The kernel to convolve with."""
        kernel = self.weight if self.window is None else self.weight * self.window
        if self.normalized:
            kernel = kernel / torch.linalg.vector_norm(kernel, dim=self.norm_axes, keepdim=True).clamp_min(1e-12)
            if self.gain is not None:
                kernel = kernel * self.gain.view(self.gain_shape)
        return kernel


class Conv(Kernel):
    """A convolution over time and space: valid and dense in time, padded in space as configured.

    It runs in 3-D, channels-last, or on frames folded into the batch, their taps folded into the channels: always where
    there is one tap, and where the kernel is so large that a processor's cache does not hold what it multiplies with
    (``docs/performance.md``). Attributes as for :class:`Block`.
    """

    def __init__(
        self, params: ConvParams, inputs: Maps, channels: int, *, bias: bool, generator: torch.Generator
    ):  # fmt: skip
        depthwise = params.type == "depthwise"
        groups = inputs.channels if depthwise else params.groups
        between = inputs.channels if depthwise else channels
        if inputs.channels % groups or between % groups:
            raise ConfigError(
                f"conv_params.groups: {groups} groups do not divide {inputs.channels} channels in and {between} out"
            )
        shape = (between, inputs.channels // groups, *params.kernel_size)
        super().__init__(normal(*shape, std=sqrt(2 / prod(shape[1:])), generator=generator), params)
        self.groups = groups
        self.folds = shape[2] == 1 or (groups == 1 and prod(shape[1:]) > _LARGE_KERNEL)
        taps, *size = params.kernel_size
        (step, *stride), (dilation, *spread) = params.stride, params.dilation
        self.stride, self.spread, self.padding = tuple(stride), tuple(spread), params.padding[1:]
        self.mode = params.padding_mode
        self.dilation = dilation * inputs.step
        self.context = (taps - 1) * self.dilation
        extent = tuple(d * (k - 1) for k, d in zip(size, spread, strict=True))
        self.offset = tuple(e / 2 - p for e, p in zip(extent, self.padding, strict=True))
        what = f"conv_params: kernel_size {list(params.kernel_size)}"
        maps = inputs.resized(tuple(e + 1 for e in extent), self.stride, self.padding, what)
        limit = {"reflect": min(inputs.height, inputs.width) - 1, "circular": min(inputs.height, inputs.width)}
        if max(self.padding) > limit.get(self.mode, max(self.padding)):
            raise ConfigError(f"conv_params.padding: {self.mode} needs padding of at most {limit[self.mode]} here")
        self.outputs = replace(maps, channels=channels, step=inputs.step * step)
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None
        pointwise = normal(channels, between, 1, 1, 1, std=sqrt(2 / between), generator=generator)
        self.pointwise = nn.Parameter(pointwise) if depthwise else None

    def forward(self, x: Tensor) -> Tensor:
        x, kernel, bias, padding = channels_last(x), self.kernel(), self.bias, self.padding
        if self.mode != "zeros" and max(padding):
            # Padding frame by frame keeps the batch channels-last.
            x = per_frame(F.pad, x, (padding[1], padding[1], padding[0], padding[0]), mode=self.mode)
            padding = (0, 0)
        first_bias = None if self.pointwise is not None else bias
        if self.folds:
            x, kernel = _taps_as_channels(x, self.context, self.dilation), kernel.transpose(1, 2).flatten(1, 2)
            y = per_frame(F.conv2d, x, kernel, first_bias, self.stride, padding, self.spread, self.groups)
        else:
            kernel = kernel.contiguous(memory_format=torch.channels_last_3d)
            spread = (self.dilation, *self.spread)
            y = F.conv3d(x, kernel, first_bias, (1, *self.stride), (0, *padding), spread, self.groups)
        if self.pointwise is not None:
            y = per_frame(F.conv2d, y, self.pointwise[:, :, 0], bias)
        return y


_LARGE_KERNEL = 7000
"""Values of one output channel's kernel: 64 of them, what oneDNN takes at a time, then fill most of a cache of 2 MB."""


def _taps_as_channels(x: Tensor, context: int, step: int) -> Tensor:
    """Beside the channels of each frame those of the taps before it, oldest first: (B, taps · C, T, H, W)."""
    if not context:
        return x
    taps = x.permute(0, 2, 3, 4, 1).unfold(1, context + 1, 1)[..., ::step]
    return taps.transpose(-1, -2).flatten(-2).permute(0, 4, 1, 2, 3)


# --------------------------------------------------------------------------------------------------------------------
# Norms: of a frame by its own statistics, or by running ones. Never over the time of a clip.
# --------------------------------------------------------------------------------------------------------------------


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


# --------------------------------------------------------------------------------------------------------------------
# Activations
# --------------------------------------------------------------------------------------------------------------------

_TORCH_NAMES = {
    "none": "Identity", "identity": "Identity", "relu": "ReLU", "leakyrelu": "LeakyReLU", "gelu": "GELU",
    "sigmoid": "Sigmoid", "tanh": "Tanh", "silu": "SiLU", "swish": "SiLU", "mish": "Mish", "softplus": "Softplus",
    "Softmax2d": "Softmax",
}  # fmt: skip
_OVER_CHANNELS = ("GLU", "Softmax", "Softmin", "LogSoftmax")
_READS = {"leakyrelu": "negative_slope", "LeakyReLU": "negative_slope", "softplus": "beta", "Softplus": "beta"}
_READS |= {"bsoftplus": "beta", "splitrelu": "split_dim"}


class Activation(nn.Module):
    """An activation of the dialect, or of torch.nn by its class name.

    Parameters
    ----------
    name
        The name.
    params
        Its parameters; those that it does not read must not be given.
    dim
        Axis of the channels, for those that mix, split or double them.

    Raises
    ------
    ConfigError
        If a parameter is given that the activation does not read, or one is missing.

    Examples
    --------
    >>> Activation("splitrelu")(torch.tensor([[1.0, -2.0]]))
    tensor([[1., 0., 0., 2.]])
    """

    def __init__(self, name: str, params: ActParams | None = None, *, dim: int = 1):
        super().__init__()
        given = {} if params is None else params.model_dump(exclude_none=True)
        if idle := set(given) - {_READS.get(name)}:
            raise ConfigError(f"act_params.{min(idle)}: {name} does not read it; leave it out")
        if given.pop("split_dim", dim) != dim:
            raise ConfigError(f"act_params.split_dim: only the channels (axis {dim}) can be split; leave it out")
        self.name, self.dim = name, dim
        if name == "bsoftplus":
            self.log_beta = nn.Parameter(torch.tensor(given.get("beta", 1.0)).log())
        elif name not in ("splitrelu", "square"):
            kind = _TORCH_NAMES.get(name, name)
            try:
                self.function = getattr(nn, kind)(**given, **({"dim": dim} if kind in _OVER_CHANNELS else {}))
            except TypeError:
                raise ConfigError(f"act_type: {name} has parameters that the dialect cannot give it") from None

    def channels(self, inputs: int) -> int:
        """Channels that come out."""
        if self.name == "GLU" and inputs % 2:
            raise ConfigError(f"act_type: GLU halves the channels, and {inputs} is odd")
        return {"splitrelu": 2 * inputs, "GLU": inputs // 2}.get(self.name, inputs)

    def forward(self, x: Tensor) -> Tensor:
        if self.name == "splitrelu":
            return torch.cat([x.relu(), (-x).relu()], dim=self.dim)
        if self.name == "square":
            return x.square()
        if self.name == "bsoftplus":
            beta = self.log_beta.exp()
            return F.softplus(beta * x) / beta
        return self.function(x)


class MLP(nn.Module):
    """A multi-layer perceptron over the last axis.

    Parameters
    ----------
    inputs, dims
        Width of the input and of each layer.
    activation
        Name of the activation after every layer.
    residual
        Add the input of a layer to its output where their widths agree.
    dropout
        Probability that a feature is dropped in training.
    layer_norm
        Normalise each layer's output before the activation.
    generator
        Draws the initial weights.
    """

    def __init__(
        self, inputs: int, dims: tuple[int, ...], *, activation: str, residual: bool = False, dropout: float = 0.0,
        layer_norm: bool = False, generator: torch.Generator,
    ):  # fmt: skip
        super().__init__()
        self.residual, self.layers = residual, nn.ModuleList()
        for dim in dims:
            act = Activation(activation, dim=-1)
            steps = [linear(inputs, dim, generator=generator, scale=sqrt(2))]
            steps += [nn.LayerNorm(dim)] if layer_norm else []
            steps += [act, nn.Dropout(dropout)] if dropout else [act]
            self.layers.append(nn.Sequential(*steps))
            inputs = act.channels(dim)
        self.features = inputs

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            y = layer(x)
            x = x + y if self.residual and x.shape == y.shape else y
        return x


# --------------------------------------------------------------------------------------------------------------------
# Pools
# --------------------------------------------------------------------------------------------------------------------


def make_pool(params: PoolParams, inputs: Maps, *, generator: torch.Generator) -> nn.Module:
    """The pool of a name of the dialect. Attributes as for :class:`Block`."""
    if params.type == "learned":
        stride = params.stride or (1, 2, 2)
        conv = ConvParams(kernel_size=params.kernel_size or stride, stride=stride, padding=params.padding)
        return Conv(conv, inputs, inputs.channels, bias=True, generator=generator)
    kinds = {
        "max": WindowPool, "avg": WindowPool, "adaptivemax": AdaptivePool, "adaptiveavg": AdaptivePool,
        "aablur": BlurPool, "se_pool": SqueezeExcitePool, "locatt": LocalAttention,
    }  # fmt: skip
    return kinds[params.type](params, inputs, generator=generator)


class WindowPool(nn.Module):
    """Maximum or mean over a window of frames and pixels."""

    def __init__(self, params: PoolParams, inputs: Maps, **_: object):
        super().__init__()
        step, *stride = params.stride or (1, 2, 2)
        self.taps, *kernel = params.kernel_size or (step, *stride)
        self.step, self.kernel, self.padding = inputs.step, tuple(kernel), params.padding[1:]
        self.function = {"max": F.max_pool2d, "avg": F.avg_pool2d}[params.type]
        self.stride = tuple(stride)
        if any(2 * p > k for p, k in zip(self.padding, kernel, strict=True)):
            raise ConfigError(f"pool_params.padding: {list(self.padding)} is more than half of {kernel}")
        self.offset = tuple((k - 1) / 2 - p for k, p in zip(kernel, self.padding, strict=True))
        self.context = (self.taps - 1) * inputs.step
        maps = inputs.resized(self.kernel, self.stride, self.padding, f"pool_params: {params.type}")
        self.outputs = replace(maps, step=inputs.step * step)

    def forward(self, x: Tensor) -> Tensor:
        views = time_taps(x, self.taps, self.step)
        x = views[0]
        for view in views[1:]:
            x = torch.maximum(x, view) if self.function is F.max_pool2d else x + view
        if self.function is F.avg_pool2d and self.taps > 1:
            x = x / self.taps
        return per_frame(self.function, x, self.kernel, self.stride, self.padding)


class AdaptivePool(nn.Module):
    """Maximum or mean over a fixed number of regions of each frame."""

    stride = offset = None
    context = 0

    def __init__(self, params: PoolParams, inputs: Maps, **_: object):
        super().__init__()
        sizes = [params.output_size or params.kernel_size]
        windowed = params.output_size is None and (params.stride is not None or max(params.padding) > 0)
        if windowed:
            stride = params.stride or (1, 2, 2)
            sizes = [params.kernel_size or stride, stride]
        if any(size is None or size[0] != 1 for size in sizes):
            raise ConfigError(
                f"pool_params: {params.type} needs output_size: [1, H, W]; time is never pooled to a clip"
            )
        height, width = sizes[0][1:]
        self.outputs = replace(inputs, height=height, width=width)
        if windowed:
            kernel, stride = (size[1:] for size in sizes)
            self.outputs = inputs.resized(kernel, stride, params.padding[1:], f"pool_params: {params.type}")
        self.size = (self.outputs.height, self.outputs.width)
        self.function = {"adaptivemax": F.adaptive_max_pool2d, "adaptiveavg": F.adaptive_avg_pool2d}[params.type]

    def forward(self, x: Tensor) -> Tensor:
        return per_frame(self.function, x, self.size)


class BlurPool(nn.Module):
    """Binomial blur, then every `stride`-th pixel and frame (Zhang 2019). The kernel is odd, so nothing shifts.

    Frames are blurred over time likewise, causally.
    """

    def __init__(self, params: PoolParams, inputs: Maps, **_: object):
        super().__init__()
        step, *stride = params.stride or (1, 2, 2)
        self.step, self.stride, self.offset = inputs.step, tuple(stride), (0.0, 0.0)
        self.register_buffer("over_time", binomial(2 * step - 1), persistent=False)
        blur = torch.outer(binomial(2 * stride[0] - 1), binomial(2 * stride[1] - 1))
        self.register_buffer("over_space", blur, persistent=False)
        self.context = 2 * (step - 1) * inputs.step
        self.margin = (stride[1] - 1, stride[1] - 1, stride[0] - 1, stride[0] - 1)
        maps = replace(inputs, step=inputs.step * step)
        self.outputs = maps.resized((1, 1), self.stride, (0, 0), "pool_params: aablur")

    def forward(self, x: Tensor) -> Tensor:
        views = time_taps(x, len(self.over_time), self.step)
        if len(views) > 1:
            x = sum(weight * view for weight, view in zip(self.over_time, views, strict=True))
        channels = x.shape[1]
        x = per_frame(F.pad, x, self.margin, mode="replicate")
        kernel = self.over_space.expand(channels, 1, -1, -1)
        return per_frame(F.conv2d, x, kernel, stride=self.stride, groups=channels)


class SqueezeExcitePool(nn.Module):
    """Spatial soft pool, then channels scaled by what the frame holds as a whole.

    Pixels of a window are weighted by softmax(x) (Stergiou et al. 2021), on top of a binomial blur where `use_blur`;
    channels are scaled by sigmoid(W₂ relu(W₁ mean_pixels x)) (Hu et al. 2018). A stride over time only spreads the
    taps of later layers.
    """

    def __init__(self, params: PoolParams, inputs: Maps, *, generator: torch.Generator):
        super().__init__()
        step, *stride = params.stride or (1, 2, 2)
        self.stride, self.use_soft, self.context = tuple(stride), params.use_soft, 0
        self.kernel = tuple(2 * s - 1 for s in stride) if params.use_blur else self.stride
        self.margin = tuple(s - 1 if params.use_blur else 0 for s in stride)
        self.offset = tuple((k - 1) / 2 - m for k, m in zip(self.kernel, self.margin, strict=True))
        weight = torch.ones(self.kernel) / prod(self.kernel)
        if params.use_blur:
            weight = torch.outer(*(binomial(k) for k in self.kernel))
        self.register_buffer("window", weight.flatten(), persistent=False)
        maps = replace(inputs, step=inputs.step * step)
        self.outputs = maps.resized(self.kernel, self.stride, self.margin, "pool_params: se_pool")
        squeezed = max(1, inputs.channels // params.r)
        self.squeeze = linear(inputs.channels, squeezed, generator=generator, scale=sqrt(2))
        self.excite = linear(squeezed, inputs.channels, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        return per_frame(self._pool, x)

    def _pool(self, x: Tensor) -> Tensor:
        (rows, columns), maps = self.margin, self.outputs
        x = F.pad(x, (columns, columns, rows, rows), mode="replicate")
        patches = F.unfold(x, self.kernel, stride=self.stride).unflatten(1, (x.shape[1], -1))
        weight = self.window[:, None]
        if self.use_soft:
            weight = (patches + weight.log()).softmax(dim=2)
        x = (weight * patches).sum(dim=2)
        gate = self.excite(self.squeeze(x.mean(dim=2)).relu()).sigmoid()
        return (x * gate[..., None]).unflatten(2, (maps.height, maps.width))


class LocalAttention(nn.Module):
    """Each channel is scaled by how its neighbourhood compares with that of the channels beside it.

    s is x averaged over `spatial_kernel` pixels with learned weights (a depthwise convolution); a channel is
    multiplied by n · softmax(s) over the n channels of a window of `chan_window` around it, so that equal channels pass
    unchanged.
    """

    stride, offset, context = (1, 1), (0.0, 0.0), 0

    def __init__(self, params: PoolParams, inputs: Maps, **_: object):
        super().__init__()
        size = params.spatial_kernel
        self.window, self.outputs = params.chan_window, inputs
        self.weight = nn.Parameter(torch.full((inputs.channels, 1, size, size), 1 / size**2))

    def forward(self, x: Tensor) -> Tensor:
        return per_frame(self._attend, x)

    def _attend(self, x: Tensor) -> Tensor:
        score = F.conv2d(x, self.weight, padding="same", groups=x.shape[1])
        before = (self.window - 1) // 2
        padding = (0, 0, 0, 0, before, self.window - 1 - before)
        rivals = F.pad(score, padding, value=-torch.inf).unfold(1, self.window, 1)
        share = rivals.softmax(dim=-1)[..., before]
        return x * share * rivals.isfinite().sum(dim=-1)


def binomial(size: int) -> Tensor:
    """Binomial weights of odd length, summing to 1."""
    weights = torch.ones(1)
    for _ in range(size - 1):
        weights = F.pad(weights, (1, 0)) + F.pad(weights, (0, 1))
    return weights / weights.sum()
