"""One convolution block: kernel, norm, activation, pool, and the order of its steps."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator
from torch.nn.modules import activation

from .base import NullIsNone, Params, PositiveInt, Size, nearest

__all__ = [
    "ACTIVATIONS",
    "STEPS",
    "ActParams",
    "BlockConfig",
    "ConvParams",
    "KernelParams",
    "NormParams",
    "NormType",
    "PoolParams",
    "WindowParams",
    "check_activation",
]


class WindowParams(Params):
    """Parameters of the anti-alias window."""

    power: float = Field(1.0, gt=0, description="The window is raised to this power; below 1 it tapers less.")


class KernelParams(Params):
    """What may be done to the kernel of a convolution before it is used."""

    aa_signal: bool = Field(False, description="Taper the kernel with a separable window, on axes of 5 or more.")
    aa_window: Literal["hann", "hamming", "blackman", "kaiser"] = Field(
        "hann", description="Shape of the window; its peak is 1."
    )
    aa_window_kwargs: WindowParams = Field(default_factory=WindowParams, description="Parameters of the window.")
    use_weight_norm: bool = Field(False, description="Normalise each filter, with a learned norm.")
    keep_unit_norm: bool = Field(False, description="Normalise each filter, whose norm stays 1.")
    weight_norm_dim: int = Field(0, description="Axis of the weight that is not normalised over (0: each filter).")


class ConvParams(KernelParams):
    """A convolution over time and space."""

    type: Literal["standard", "depthwise"] = Field(
        "standard", description="standard, or depthwise followed by a pointwise convolution."
    )
    kernel_size: Size = Field((3, 3, 3), description="[T, H, W] in bins and pixels.")
    stride: Size = Field((1, 1, 1), description="[T, H, W]. A stride over time is realised as dilation further on.")
    padding: Size = Field((0, 0, 0), description="[T, H, W]. In causal blocks time is padded as needed instead.")
    dilation: Size = Field((1, 1, 1), description="[T, H, W].")
    groups: PositiveInt = Field(1, description="Groups of channels that do not mix.")
    bias: bool | None = Field(None, description="Default: true only without a norm.")
    padding_mode: Literal["zeros", "replicate", "reflect", "circular"] = Field("zeros", description="Spatial padding.")

    @model_validator(mode="after")
    def _check(self) -> "ConvParams":
        for key in ("kernel_size", "stride", "dilation"):
            if min(getattr(self, key)) < 1:
                raise ValueError(f"{key} must be at least 1 on every axis")
        if min(self.padding) < 0:
            raise ValueError("padding must not be negative")
        return self


class NormParams(Params):
    """Parameters of a norm."""

    affine: bool = Field(True, description="Learn a scale (and shift, where the norm has one) per channel.")
    num_groups: PositiveInt = Field(8, description="group: number of groups of channels.")
    eps: float = Field(1e-5, gt=0, description="Added to the variance.")
    momentum: float = Field(0.1, gt=0, le=1, description="batch: weight of a new batch in the running statistics.")


PoolType = Annotated[
    Literal["none", "max", "avg", "adaptivemax", "adaptiveavg", "aablur", "se_pool", "locatt", "learned"], NullIsNone
]


class PoolParams(Params):
    """Pooling at the end of a block. The type decides which keys are read."""

    type: PoolType = Field("none", description="Kind of pooling.")
    kernel_size: Size | None = Field(None, description="max, avg, learned: window. Default: the stride.")
    stride: Size | None = Field(None, description="max, avg, aablur, se_pool, learned. Default: 2 in space, 1 in time.")
    padding: Size = Field((0, 0, 0), description="max, avg, learned.")
    output_size: Size | None = Field(
        None,
        description="adaptivemax, adaptiveavg: number of regions [1, H, W]; time is never pooled. In its place: "
        "kernel_size alone, or kernel_size, stride and padding for as many regions as such a window gives.",
    )
    r: PositiveInt = Field(4, description="se_pool: reduction of the squeeze.")
    use_soft: bool = Field(True, description="se_pool: weight pixels by their exponential (soft pool); else average.")
    use_blur: bool = Field(True, description="se_pool: blur before sampling.")
    chan_window: PositiveInt = Field(3, description="locatt: channels that compete with one another.")
    spatial_kernel: PositiveInt = Field(3, description="locatt: neighbourhood in pixels, odd.")

    _KEYS: ClassVar[dict[str, set[str]]] = {
        "none": set(),
        "max": {"kernel_size", "stride", "padding"},
        "avg": {"kernel_size", "stride", "padding"},
        "adaptivemax": {"output_size", "kernel_size", "stride", "padding"},
        "adaptiveavg": {"output_size", "kernel_size", "stride", "padding"},
        "aablur": {"stride"},
        "se_pool": {"stride", "r", "use_soft", "use_blur"},
        "locatt": {"chan_window", "spatial_kernel"},
        "learned": {"kernel_size", "stride", "padding"},
    }

    @model_validator(mode="after")
    def _only_keys_of_the_type(self) -> "PoolParams":
        keys = {"type"} | self._KEYS[self.type]
        fields = type(self).model_fields
        idle = [key for key in fields if key not in keys and getattr(self, key) != fields[key].default]
        if idle:
            raise ValueError(f"pool type {self.type!r} does not read {idle}; it reads {sorted(self._KEYS[self.type])}")
        if self.spatial_kernel % 2 == 0:
            raise ValueError("spatial_kernel must be odd, or the map shifts")
        return self


class ActParams(Params):
    """Parameters of an activation."""

    negative_slope: float | None = Field(None, description="leakyrelu: slope below 0 (default 0.01).")
    beta: float | None = Field(None, description="softplus, bsoftplus: sharpness (its initial value, where learned).")
    split_dim: int | None = Field(None, description="splitrelu: axis that doubles; the channels by default.")


STEPS = ("pad", "conv", "norm", "act", "dropout", "pool")
NormType = Annotated[Literal["none", "batch", "instance", "layer", "rms", "group", "grn"], NullIsNone]


class BlockConfig(Params):
    """One block: pad, convolve, normalise, activate, drop out, pool."""

    conv_params: ConvParams = Field(default_factory=ConvParams, description="The convolution.")
    norm_type: NormType = Field(
        "none", description="Statistics are per frame (or running, for batch), never over the time axis of a clip."
    )
    norm_params: NormParams = Field(default_factory=NormParams, description="Parameters of the norm.")
    act_type: Annotated[str, NullIsNone] = Field(
        "relu",
        description="none = identity, relu, leakyrelu, gelu, sigmoid, tanh, silu = swish, mish, softplus, bsoftplus, "
        "splitrelu, square, or a class of torch.nn.",
    )
    act_params: ActParams = Field(default_factory=ActParams, description="Parameters of the activation.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Probability that a channel is dropped in training.")
    pool_params: PoolParams = Field(default_factory=PoolParams, description="Pooling.")
    causal: bool = Field(
        True,
        description="True: time is padded on the left, replicating. False: no padding in time. Frames are the same.",
    )
    order: tuple[Literal["pad", "conv", "norm", "act", "dropout", "pool"], ...] = Field(
        STEPS,
        description="Order of the steps; each at most once; one left out is not done. pad is the padding over time, "
        "which the frames before a clip stand in for; spatial padding belongs to the convolution.",
    )

    @field_validator("act_type")
    @classmethod
    def _known_activation(cls, value: str) -> str:
        return check_activation(value)

    @field_validator("order")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value) or "conv" not in value:
            raise ValueError("order names each step at most once, and conv")
        if "pad" in value and value.index("pad") > value.index("conv"):
            raise ValueError("pad must come before conv")
        return value

    @model_validator(mode="after")
    def _no_made_up_future(self) -> "BlockConfig":
        for key in ("conv_params", "pool_params"):
            time, height, width = getattr(self, key).padding
            if time and not self.causal:
                raise ValueError(
                    f"{key}.padding over time would end every prediction on made-up frames; "
                    f"write [0, {height}, {width}], or causal: true"
                )
        return self


ACTIVATIONS = (
    "none", "identity", "relu", "leakyrelu", "gelu", "sigmoid", "tanh", "silu", "swish", "mish", "softplus",
    "bsoftplus", "splitrelu", "square",
)  # fmt: skip


def check_activation(name: str) -> str:
    """Return the name if it is an activation of the dialect or of torch.nn; raise ValueError if not."""
    classes = [key for key in activation.__all__ if key != "MultiheadAttention"]
    if name not in ACTIVATIONS and name not in classes:
        raise ValueError(f"unknown activation {name!r}; {nearest(name, [*ACTIVATIONS, *classes])}")
    return name
