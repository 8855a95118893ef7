"""A transformer over patches of space and time."""

from dataclasses import replace
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import ConfigError, Params, PositiveInt, PositiveSize, register
from .layers import Conv, ConvParams
from .stages import Maps, Stage, inside, linear, pixel_centres, time_taps

__all__ = ["Attention", "Transformer", "rotated"]

_BASE = 100.0
"""The slowest rotation is so many times slower than the fastest, which is one radian a patch or frame."""


@register("convnet", "transformer")
class Transformer(Stage):
    """A transformer over patches (Vaswani et al. 2017; Dosovitskiy et al. 2021), causal and dense in time.

    A patch is a strided convolution of the last frames. In each layer, the patches of a frame attend to those of that
    frame and of some frames before it, so that a prediction depends on a bounded number of frames. Where and when a
    patch is enters by rotation of queries and keys, which makes attention depend on how far apart two patches are, and
    not on where a clip begins (Su et al. 2021; one share of the channels for each axis, as in Heo et al. 2024).
    """

    class Params(Params):
        """A transformer over patches of space and time."""

        patch_size: PositiveSize = Field((1, 4, 4), description="[T, H, W] of a patch, bins and pixels.")
        width: PositiveInt = Field(32, description="Channels; a multiple of twice the number of heads.")
        heads: PositiveInt = Field(2, description="Heads of attention; they share the channels.")
        depth: PositiveInt = Field(2, description="Layers.")
        frames: PositiveInt = Field(4, description="Frames that a layer attends to, the newest included.")
        hidden_dim: PositiveInt = Field(64, description="Width of the perceptron of each layer.")

    def __init__(self, params: Params, inputs: Maps, *, generator: torch.Generator):
        super().__init__()
        if params.width % (2 * params.heads):
            raise ConfigError(
                f"width: {params.width} is no multiple of {2 * params.heads}, twice the number of heads: each head "
                "turns pairs of channels"
            )
        with inside("patch_size"):
            patch = ConvParams(kernel_size=params.patch_size, stride=(1, *params.patch_size[1:]))
            self.patch = Conv(patch, inputs, params.width, bias=True, generator=generator)
        maps = self.patch.outputs
        self.layers = nn.ModuleList(Attention(params, maps, generator=generator) for _ in range(params.depth))
        self.norm = nn.LayerNorm(params.width)
        self.context = self.patch.context + sum(layer.context for layer in self.layers)
        self.outputs = replace(maps, channels=params.width)

    def forward(self, x: Tensor, behavior: Tensor | None = None, state: Any = None) -> tuple[Tensor, None]:
        x = self.patch(x)
        height, width = x.shape[3:]
        x = x.permute(0, 2, 3, 4, 1).flatten(2, 3)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x).unflatten(2, (height, width)).permute(0, 4, 1, 2, 3), None


class Attention(nn.Module):
    """One layer: attention to the patches of the last frames, then a perceptron; each after a norm, each added.

    From (B, T, P, C) with P patches to (B, T − context, P, C). Norms are over the channels of a patch.
    """

    def __init__(self, params: Transformer.Params, maps: Maps, *, generator: torch.Generator):
        super().__init__()
        width, self.heads, self.frames, self.step = params.width, params.heads, params.frames, maps.step
        self.context = (params.frames - 1) * maps.step
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (linear(width, width, generator=generator) for _ in range(4))
        self.hidden = linear(width, params.hidden_dim, generator=generator)
        self.back = linear(params.hidden_dim, width, generator=generator)
        self.register_buffer("angles", angles(maps, params.frames, width // params.heads // 2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        newest, normed = x[:, self.context :], self.before(x)
        query, key, value = (
            layer(part).unflatten(3, (self.heads, -1)).transpose(2, 3)  # (B, T, heads, P, channels of a head)
            for layer, part in ((self.query, normed[:, self.context :]), (self.key, normed), (self.value, normed))
        )
        keys, values = (time_taps(part.transpose(1, 2), self.frames, self.step) for part in (key, value))
        keys = [rotated(part, angle) for part, angle in zip(keys, self.angles, strict=True)]
        seen, said = (torch.cat(parts, dim=3).transpose(1, 2) for parts in (keys, values))
        found = F.scaled_dot_product_attention(rotated(query, self.angles[-1]), seen, said)
        x = newest + self.out(found.transpose(2, 3).flatten(3))
        return x + self.back(F.gelu(self.hidden(self.after(x))))


def angles(maps: Maps, frames: int, pairs: int) -> Tensor:
    """How far each pair of channels is turned, (frames, P, pairs), radians, oldest frame first.

    Pairs are dealt out to time and to the axes of space in turn. Those of one axis are turned in proportion to the
    place along it, at rates from 1 radian a patch or frame down.
    """
    time = torch.arange(1 - frames, 1, dtype=torch.get_default_dtype())
    space = pixel_centres(maps.height, maps.width).to(time.dtype).flatten(0, 1)
    place = torch.cat([time.expand(len(space), -1).t()[..., None], space.expand(frames, -1, -1)], dim=2)
    axes = [0, *(axis for axis, size in ((1, maps.width), (2, maps.height)) if size > 1)]
    axis = torch.tensor([axes[pair % len(axes)] for pair in range(pairs)])
    rank = torch.tensor([pair // len(axes) for pair in range(pairs)])
    rate = _BASE ** (-rank / max(1, -(-pairs // len(axes))))
    return place[..., axis] * rate.to(place.dtype)


def rotated(x: Tensor, angle: Tensor) -> Tensor:
    """Turn pairs of channels (..., 2 · pairs), one half of the channels apart, by angles that broadcast."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)
