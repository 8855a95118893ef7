"""The block that orders convolution, norm, activation, dropout and pool as a config says."""

from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, Field, field_validator
from torch import Tensor, nn

from ..config import ConfigError, FlatPart, NullIsNone, Params, define
from .activations import Activation, ActivationName, ActParams
from .layers import Conv, ConvParams
from .norms import NormParams
from .stages import Layer, Maps

__all__ = ["Block", "BlockConfig", "PoolPart"]

STEPS = ("pad", "conv", "norm", "act", "dropout", "pool")


def _known_norm(name: str) -> str:
    if name != "none":
        try:
            define("norm", name)
        except ConfigError as error:
            raise ValueError(str(error)) from None
    return name


NormName = Annotated[str, AfterValidator(_known_norm), NullIsNone]


class PoolPart(FlatPart):
    """A pool: its type, and the keys of that type beside it."""

    kind = "pool"


class BlockConfig(Params):
    """One block: pad, convolve, normalise, activate, drop out, pool."""

    conv_params: ConvParams = Field(default_factory=ConvParams, description="The convolution.")
    norm_type: NormName = Field(
        "none", description="Statistics are per frame (or running, for batch), never over the time axis of a clip."
    )
    norm_params: NormParams = Field(default_factory=NormParams, description="Parameters of the norm.")
    act_type: ActivationName = Field(
        "relu",
        description="none = identity, relu, leakyrelu, gelu, sigmoid, tanh, silu = swish, mish, softplus, bsoftplus, "
        "splitrelu, square, energy (a² + b² of pairs of channels), amplitude (its root), or a class of torch.nn.",
    )
    act_params: ActParams = Field(default_factory=ActParams, description="Parameters of the activation.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Probability that a channel is dropped in training.")
    pool_params: PoolPart = Field(default_factory=PoolPart, description="Pooling: its type, and the keys of that.")
    causal: bool = Field(
        True,
        description="True: time is padded on the left, replicating. False: no padding in time. Frames are the same.",
    )
    order: tuple[Literal["pad", "conv", "norm", "act", "dropout", "pool"], ...] = Field(
        STEPS,
        description="Order of the steps; each at most once; one left out is not done. pad is the padding over time, "
        "which the frames before a clip stand in for; spatial padding belongs to the convolution.",
    )

    @field_validator("order")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value) or "conv" not in value:
            raise ValueError("order names each step at most once, and conv")
        if "pad" in value and value.index("pad") > value.index("conv"):
            raise ValueError("pad must come before conv")
        return value

    def idle(self) -> dict[str, tuple[Any, str]]:
        fields, found = BlockConfig.model_fields, {}
        for step, keys in _READ_IN.items():
            if step not in self.order:
                why = f"has no effect: {step} is not in order"
                found |= {key: (fields[key].get_default(call_default_factory=True), why) for key in keys}
        if self.norm_type != "group" and "norm" in self.order:
            groups, usual = self.norm_params.num_groups, NormParams.model_fields["num_groups"].default
            why = "" if groups in (1, usual) else f"num_groups has no effect: norm_type is {self.norm_type}"
            found["norm_params"] = (self.norm_params.model_copy(update={"num_groups": usual}), why)
        return found


_READ_IN = {"norm": ("norm_type", "norm_params"), "act": ("act_type", "act_params"), "dropout": ("dropout",)}
_READ_IN |= {"pool": ("pool_params",)}
"""The step of a block that reads a key; what `order` leaves out is not done."""


class Block(Layer):
    """Pad, convolve, normalise, activate, drop out and pool, in the order that the config gives.

    Padding over time needs no step of its own. Where a window would have to make frames up, a clip brings the recorded
    ones, and both causal and valid blocks use these. Spatial padding belongs to the convolution and the pool.

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
                layer = define("norm", params.norm_type)(params.norm_params, maps)
            elif name == "act":
                layer = Activation(params.act_type, params.act_params)
                maps = replace(maps, channels=layer.channels(maps.channels))
            elif name == "dropout" and params.dropout:
                layer = nn.Dropout3d(params.dropout)
            elif name == "pool" and params.pool_params.type != "none":
                pool = params.pool_params
                layer = define("pool", pool.type)(pool.params, maps, generator=generator)
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
