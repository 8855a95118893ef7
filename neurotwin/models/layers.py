"""The layers of a network: convolutions over time and space, activations, perceptrons."""

from dataclasses import replace
from math import prod, sqrt
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import activation as torch_activations

from ..config import ConfigError, NullIsNone, Params, PositiveInt, PositiveSize, Size, nearest
from .stages import Layer, Maps, channels_last, linear, normal, per_frame

__all__ = [
    "MLP",
    "ActParams",
    "Activation",
    "ActivationName",
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


ACTIVATIONS = (
    "none", "identity", "relu", "leakyrelu", "gelu", "sigmoid", "tanh", "silu", "swish", "mish", "softplus",
    "bsoftplus", "splitrelu", "square", "energy", "amplitude",
)  # fmt: skip


def _check_activation(name: str) -> str:
    """Return the name if it is an activation of the dialect or of torch.nn; raise ValueError if not."""
    classes = [key for key in torch_activations.__all__ if key != "MultiheadAttention"]
    if name not in ACTIVATIONS and name not in classes:
        raise ValueError(f"unknown activation {name!r}; {nearest(name, [*ACTIVATIONS, *classes])}")
    return name


def _check_odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError("must be odd, or the map shifts")
    return value


ActivationName = Annotated[str, AfterValidator(_check_activation), NullIsNone]
"""Name of an activation of the dialect, or of a class of torch.nn."""
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


class ActParams(Params):
    """Parameters of an activation."""

    negative_slope: float | None = Field(None, description="leakyrelu: slope below 0 (default 0.01).")
    beta: float | None = Field(
        None, gt=0, description="softplus, bsoftplus: sharpness (its initial value, where learned)."
    )
    split_dim: int | None = Field(None, description="splitrelu: axis that doubles; the channels by default.")
    paired: float | None = Field(
        None, gt=0, le=1,
        description="energy, amplitude: share of the channels that are squared and added in pairs (default 1); relu "
        "of the others comes first.",
    )  # fmt: skip


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
        super().__init__(normal(*shape, std=sqrt(2 / prod(shape[1:])), generator=generator), params)
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


_TORCH_NAMES = {
    "none": "Identity", "identity": "Identity", "relu": "ReLU", "leakyrelu": "LeakyReLU", "gelu": "GELU",
    "sigmoid": "Sigmoid", "tanh": "Tanh", "silu": "SiLU", "swish": "SiLU", "mish": "Mish", "softplus": "Softplus",
    "Softmax2d": "Softmax",
}  # fmt: skip
_OVER_CHANNELS = ("GLU", "Softmax", "Softmin", "LogSoftmax")
_READS = {"leakyrelu": "negative_slope", "LeakyReLU": "negative_slope", "softplus": "beta", "Softplus": "beta"}
_READS |= {"bsoftplus": "beta", "splitrelu": "split_dim", "energy": "paired", "amplitude": "paired"}
_PAIRING = ("energy", "amplitude")
_LEAST_ENERGY = 1e-6
"""Added to an energy below its root, so that the gradient at 0 is finite."""


class Activation(nn.Module):
    """An activation of the dialect, or of torch.nn by its class name.

    energy is a² + b² of pairs of channels, as in the energy model of complex cells (Adelson & Bergen 1985), and
    amplitude is sqrt(a² + b² + ε) − sqrt(ε). The first half of the paired channels are the a, the second half the b.
    With `paired` below 1, some channels have no partner: they are rectified, as in simple cells, and come first.

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
    >>> Activation("energy", ActParams(paired=0.5))(torch.tensor([[-1.0, 2.0, 3.0, 4.0]]))
    tensor([[ 0.,  2., 25.]])
    """

    kinds = {"log_beta": "sharpness"}

    def __init__(self, name: str, params: ActParams | None = None, *, dim: int = 1):
        super().__init__()
        given = {} if params is None else params.model_dump(exclude_none=True)
        if idle := set(given) - {_READS.get(name)}:
            raise ConfigError(f"act_params.{min(idle)}: {name} does not read it; leave it out")
        if given.pop("split_dim", dim) != dim:
            raise ConfigError(f"act_params.split_dim: only the channels (axis {dim}) can be split; leave it out")
        self.name, self.dim, self.paired = name, dim, given.get("paired", 1.0)
        if name == "bsoftplus":
            self.log_beta = nn.Parameter(torch.tensor(given.get("beta", 1.0)).log())
        elif name not in ("splitrelu", "square", *_PAIRING):
            kind = _TORCH_NAMES.get(name, name)
            try:
                self.function = getattr(nn, kind)(**given, **({"dim": dim} if kind in _OVER_CHANNELS else {}))
            except TypeError:
                raise ConfigError(f"act_type: {name} has parameters that the dialect cannot give it") from None

    def channels(self, inputs: int) -> int:
        """Channels that come out."""
        if self.name == "GLU" and inputs % 2:
            raise ConfigError(f"act_type: GLU halves the channels, and {inputs} is odd")
        if self.name in _PAIRING:
            return inputs - self.pairs(inputs)
        return {"splitrelu": 2 * inputs, "GLU": inputs // 2}.get(self.name, inputs)

    def pairs(self, inputs: int) -> int:
        """Pairs of channels that energy and amplitude make of a number of channels."""
        pairs = int(self.paired * inputs / 2)
        if pairs == 0 or (self.paired == 1 and inputs % 2):
            raise ConfigError(
                f"act_type: {self.name} squares pairs of channels, which {inputs} channels and paired: "
                f"{self.paired:g} do not give; use an even number of channels or another share"
            )
        return pairs

    def forward(self, x: Tensor) -> Tensor:
        if self.name == "splitrelu":
            return torch.cat([x.relu(), (-x).relu()], dim=self.dim)
        if self.name == "square":
            return x.square()
        if self.name in _PAIRING:
            return self._paired(x)
        if self.name == "bsoftplus":
            beta = self.log_beta.exp()
            return F.softplus(beta * x) / beta
        return self.function(x)

    def _paired(self, x: Tensor) -> Tensor:
        pairs = self.pairs(x.shape[self.dim])
        single, first, second = x.split([x.shape[self.dim] - 2 * pairs, pairs, pairs], dim=self.dim)
        energy = torch.addcmul(first.square(), second, second)
        if self.name == "amplitude":
            energy = (energy + _LEAST_ENERGY).sqrt() - sqrt(_LEAST_ENERGY)
        return torch.cat([single.relu(), energy], dim=self.dim) if single.shape[self.dim] else energy


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
