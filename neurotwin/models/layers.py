"""The layers of a network: convolutions over time and space, perceptrons."""

from dataclasses import replace
from math import prod, sqrt
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import ConfigError, Params, PositiveInt, PositiveSize, Size
from .activations import Activation, ActivationName
from .stages import Layer, Maps, channels_last, inside, linear, normal, per_frame
from .steerable import rotated_basis

__all__ = [
    "MLP",
    "Conv",
    "ConvParams",
    "EncoderParams",
    "Kernel",
    "KernelParams",
    "OddInt",
    "idle_padding",
    "taper",
]

_LARGE_KERNEL = 7000
"""Values of one output channel's kernel: 64 of them, what oneDNN takes at a time, then fill most of a cache of 2 MB."""


def _check_odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError("must be odd, or the map shifts")
    return value


OddInt = Annotated[PositiveInt, AfterValidator(_check_odd)]
"""Size of a kernel that has a middle."""


class WindowParams(Params):
    """Parameters of the anti-alias window."""

    power: float = Field(1.0, gt=0, le=1000, description="The window is raised to this power; below 1 it tapers less.")


class KernelParams(Params):
    """What may be done to the kernel of a convolution before it is used."""

    aa_signal: bool = Field(False, description="Taper the kernel with a separable window, on axes of 5 or more.")
    aa_window: Literal["hann", "hamming", "blackman", "kaiser"] = Field(
        "hann", description="Shape of the window; its peak is 1."
    )
    aa_window_kwargs: WindowParams = Field(default_factory=WindowParams, description="Parameters of the window.")
    use_weight_norm: bool = Field(False, description="Normalise each filter, with a learned norm.")
    keep_unit_norm: bool = Field(False, description="Normalise each filter, whose norm stays 1.")
    weight_norm_dim: int = Field(
        0, ge=-5, le=4, description="Axis of the weight that is not normalised over (0: each filter)."
    )

    def idle(self) -> dict[str, tuple[Any, str]]:
        if self.aa_signal:
            return {}
        why = "has no effect: aa_signal is false"
        return {"aa_window": ("hann", why), "aa_window_kwargs": (WindowParams(), why)}


class ConvParams(KernelParams):
    """A convolution over time and space."""

    type: Literal["standard", "depthwise", "factorized"] = Field(
        "standard",
        description="standard; depthwise, followed by a pointwise convolution; or factorized: over space, then relu, "
        "then over time, with about as many weights as standard has (Tran et al. 2018).",
    )
    kernel_size: PositiveSize = Field((3, 3, 3), description="[T, H, W] in bins and pixels.")
    stride: PositiveSize = Field(
        (1, 1, 1), description="[T, H, W]. A stride over time is realised as dilation further on."
    )
    padding: Size = Field(
        (0, 0, 0), description="[T, H, W]. Over time it has no effect: the frames before a clip stand in."
    )
    dilation: PositiveSize = Field((1, 1, 1), description="[T, H, W].")
    groups: PositiveInt = Field(1, description="Groups of channels that do not mix.")
    rotations: PositiveInt = Field(
        1,
        description="Each filter comes in this many orientations, a channel each, beside one another (Ecker et al. "
        "2019). Filters are then sums of Hermite functions, which fade towards the edges.",
    )
    bias: bool | None = Field(None, description="Default: true only without a norm.")
    padding_mode: Literal["zeros", "replicate", "reflect", "circular"] = Field("zeros", description="Spatial padding.")

    def idle(self) -> dict[str, tuple[Any, str]]:
        return super().idle() | idle_padding(self.padding)


def idle_padding(padding: tuple[int, int, int]) -> dict[str, tuple[Any, str]]:
    """Padding over time has no effect: a prediction is never made of frames that nobody saw."""
    if not padding[0]:
        return {}
    why = "has no effect over time: a kernel there sees the frames up to the predicted one, and none are made up"
    return {"padding": ((0, *padding[1:]), why)}


class Kernel(Layer):
    """A convolution kernel (outputs, inputs, T, H, W), tapered and normalised as configured.

    Parameters
    ----------
    weight
        Its values at the start. Where it is tapered, they are scaled up by the root mean square of the window, so
        that tapering does not make the start any weaker.
    params
        What is done to it.
    """

    kinds = {"weight": "kernel", "gain": "scale", "bias": "bias", "pointwise": "kernel", "temporal": "kernel"}

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

    A second kernel follows where the first one leaves channels apart (`pointwise`) or sees one frame at a time
    (`temporal`). The latter comes after a relu. The number of channels between is what makes both kernels together as
    large as a standard one, at least 1 (Tran et al. 2018).
    """

    def __init__(
        self, params: ConvParams, inputs: Maps, channels: int, *, bias: bool, generator: torch.Generator
    ):  # fmt: skip
        (taps, *size), (step, *stride), (dilation, *spread) = params.kernel_size, params.stride, params.dilation
        size, stride = inputs.present(tuple(size), 1), inputs.present(tuple(stride), 1)
        groups, between, second = params.groups, channels, None
        if params.type == "depthwise":
            groups = between = inputs.channels
            second = "pointwise"
        elif params.type == "factorized":
            if groups > 1:
                raise ConfigError("conv_params.groups: factorized mixes all channels over time; use groups: 1")
            between = _channels_between(inputs.channels, channels, taps, prod(size))
            second = "temporal"
        if inputs.channels % groups or between % groups:
            raise ConfigError(
                f"conv_params.groups: {groups} groups do not divide {inputs.channels} channels in and {between} out"
            )
        later = taps if second == "temporal" else 1
        shape = (between, inputs.channels // groups, taps // later, *size)
        basis = None if params.rotations == 1 else _orientations(params, inputs, between)
        if basis is not None:
            shape = (between // params.rotations, *shape[1:3], basis.shape[1], 1)
        super().__init__(normal(*shape, std=sqrt(2 / prod(shape[1:])), generator=generator), params)
        self.register_buffer("basis", basis, persistent=False)
        if basis is not None:
            self.kinds = self.kinds | {"weight": "coefficients"}
        self.groups, self.second = groups, second
        self.folds = shape[2] == 1 or (groups == 1 and prod(shape[1:]) > _LARGE_KERNEL)
        self.stride, self.spread, self.padding = stride, tuple(spread), inputs.present(params.padding[1:], 0)
        self.mode = params.padding_mode
        self.dilation = dilation * inputs.step
        self.context = (taps - 1) * self.dilation
        extent = tuple(d * (k - 1) for k, d in zip(size, spread, strict=True))
        self.offset = tuple(e / 2 - p for e, p in zip(extent, self.padding, strict=True))
        what = f"conv_params: kernel_size {list(params.kernel_size)}"
        maps = inputs.resized(tuple(e + 1 for e in extent), self.stride, self.padding, what)
        spare = {"reflect": 1, "circular": 0}.get(self.mode)
        for width, pixels in zip(self.padding, (inputs.height, inputs.width), strict=True):
            if spare is not None and width > pixels - spare:
                raise ConfigError(f"conv_params.padding: {self.mode} needs padding of at most {pixels - spare} here")
        self.outputs = replace(maps, channels=channels, step=inputs.step * step)
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None
        kernel = normal(channels, between, later, 1, 1, std=sqrt(2 / (between * later)), generator=generator)
        for name in ("pointwise", "temporal"):
            self.register_parameter(name, nn.Parameter(kernel) if name == self.second else None)

    def kernel(self) -> Tensor:
        """The kernel to convolve with; its filters in all orientations, one after another."""
        if self.basis is None:
            return super().kernel()
        return torch.einsum("oitbn,rbhw->orithw", super().kernel(), self.basis).flatten(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        x, kernel, bias, padding = channels_last(x), self.kernel(), self.bias, self.padding
        if self.mode != "zeros" and max(padding):
            # Padding frame by frame keeps the batch channels-last.
            x = per_frame(F.pad, x, (padding[1], padding[1], padding[0], padding[0]), mode=self.mode)
            padding = (0, 0)
        first_bias = None if self.second else bias
        if self.folds:
            if self.second != "temporal":
                x = _taps_as_channels(x, self.context, self.dilation)
            kernel = kernel.transpose(1, 2).flatten(1, 2)
            y = per_frame(F.conv2d, x, kernel, first_bias, self.stride, padding, self.spread, self.groups)
        else:
            kernel = kernel.contiguous(memory_format=torch.channels_last_3d)
            spread = (self.dilation, *self.spread)
            y = F.conv3d(x, kernel, first_bias, (1, *self.stride), (0, *padding), spread, self.groups)
        if self.second == "pointwise":
            y = per_frame(F.conv2d, y, self.pointwise[:, :, 0], bias)
        elif self.second == "temporal":
            y = _taps_as_channels(channels_last(y.relu()), self.context, self.dilation)
            y = per_frame(F.conv2d, y, self.temporal.transpose(1, 2).flatten(1, 2), bias)
        return y


def _orientations(params: ConvParams, inputs: Maps, channels: int) -> Tensor:
    """The functions that filters in several orientations are sums of."""
    if inputs.axes < 2 or params.type != "standard" or params.groups > 1 or params.aa_signal:
        raise ConfigError(
            "conv_params.rotations: filters are turned in frames, mix all channels and fade by themselves; use type: "
            "standard without groups and aa_signal, or leave rotations out"
        )
    if channels % params.rotations:
        raise ConfigError(
            f"conv_params.rotations: {channels} filters are no multiple of {params.rotations} orientations"
        )
    with inside("conv_params"):
        return rotated_basis(params.kernel_size[1:], params.rotations)


def _channels_between(inputs: int, outputs: int, taps: int, pixels: int) -> int:
    """Channels between a kernel over space and one over time that together have as many weights as a whole one."""
    return max(1, taps * pixels * inputs * outputs // (pixels * inputs + taps * outputs))


def _taps_as_channels(x: Tensor, context: int, step: int) -> Tensor:
    """Beside the channels of each frame those of the taps before it, oldest first: (B, taps · C, T, H, W)."""
    if not context:
        return x
    taps = x.permute(0, 2, 3, 4, 1).unfold(1, context + 1, 1)[..., ::step]
    return taps.transpose(-1, -2).flatten(-2).permute(0, 4, 1, 2, 3)


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


class EncoderParams(Params):
    """A multi-layer perceptron over the behaviour of a bin."""

    dims: tuple[PositiveInt, ...] = Field((64, 64), description="Width of each layer.")
    activation: ActivationName = Field("gelu", description="Activation between layers.")
    residual: bool = Field(True, description="Add the input of a layer to its output where the widths agree.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Probability that a feature is dropped in training.")
    use_layer_norm: bool = Field(False, description="Normalise each layer's output.")


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
