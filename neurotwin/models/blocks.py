"""The block that orders convolution, norm, activation, dropout and pool as a config says."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from ..config import BlockConfig
from .layers import Activation, Conv
from .norms import make_norm
from .pools import make_pool
from .stages import Maps, Stage

__all__ = ["Block"]


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
