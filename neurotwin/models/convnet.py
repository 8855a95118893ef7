"""Spatio-temporal features: a plain stack of blocks, one with shortcuts, one that keeps all that came before."""

from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from math import floor, pi, sqrt
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..config import ConfigError, Only, Params, PositiveInt, register
from .activations import Activation, ActivationName
from .blocks import Block, BlockConfig
from .norms import Norm
from .stages import Layer, Maps, Stage, channels_last, fold_time, inside, normal, per_frame, pixel_centres, unfold_time

__all__ = ["ConvNet", "ConvNetParams", "DenseNet", "ResNet", "Skip", "position_channels"]


class StemConfig(BlockConfig):
    """A block before the first stage."""

    out_channels: PositiveInt = Field(..., description="Channels of the output.")


class ConvNetParams(Params):
    """A stack of blocks."""

    dim: Annotated[int, Only(3, "kernels are over time and space; write kernel_size: [1, H, W] for space alone")] = (
        Field(3, description="Must be 3: kernels are over time and space.")
    )
    channels: tuple[PositiveInt, ...] = Field((32, 64), min_length=1, description="Output channels of each block.")
    stem_config: StemConfig | None = Field(None, description="A block before the first.")
    block_configs: tuple[BlockConfig, ...] | None = Field(None, description="One a channel. Default: 3x3x3, relu.")
    position_channels: Literal["none", "linear", "fourier"] = Field(
        "none",
        description="Channels that say where a pixel is, put beside the others before the first block: its place along "
        "each axis from −1 to 1 (linear; Liu et al. 2018), and sine and cosine of π times that as well (fourier).",
    )
    final_activation: ActivationName = Field("none", description="Activation after the last block.")
    checkpointing: bool = Field(False, description="Recompute activations in the backward pass: less memory.")

    @model_validator(mode="after")
    def _one_block_a_channel(self) -> "ConvNetParams":
        if self.block_configs is not None and len(self.block_configs) != len(self.channels):
            raise ValueError(
                f"{len(self.block_configs)} block_configs for {len(self.channels)} channels; give one each"
            )
        return self

    @property
    def blocks(self) -> tuple[BlockConfig, ...]:
        """The block of each stage."""
        return self.block_configs or (BlockConfig(),) * len(self.channels)


@register("convnet", "vanilla", "conv", "cnn")
class ConvNet(Stage):
    """Blocks one after another, with a stem before the first where the config has one."""

    Params = ConvNetParams

    def __init__(self, params: ConvNetParams, inputs: Maps, *, generator: torch.Generator):
        super().__init__()
        self.checkpointing, maps = params.checkpointing, inputs
        self.stem, self.blocks = None, nn.ModuleList()
        places = None if params.position_channels == "none" else position_channels(params.position_channels, inputs)
        self.register_buffer("places", places, persistent=False)
        if places is not None:
            maps = replace(maps, channels=maps.channels + len(places))
        if params.stem_config is not None:
            with inside("stem_config"):
                self.stem = Block(params.stem_config, maps, params.stem_config.out_channels, generator=generator)
            maps = self.stem.outputs
        for index, (block, channels) in enumerate(zip(params.blocks, params.channels, strict=True)):
            with inside(f"block_configs.{index}"):
                self.blocks.append(
                    self.stage(Block(block, maps, channels, generator=generator), maps, params, generator)
                )
            maps = self.blocks[-1].outputs
        self.final = Activation(params.final_activation)
        self.outputs = replace(maps, channels=self.final.channels(maps.channels))
        self.context = sum(block.context for block in self._all())

    def stage(self, block: Block, inputs: Maps, params: ConvNetParams, generator: torch.Generator) -> Layer:
        """What is done around a block; here nothing."""
        return block

    def forward(self, x: Tensor, behavior: Tensor | None = None, state: Any = None) -> tuple[Tensor, None]:
        if self.places is not None:
            places = self.places.to(x.dtype)[None, :, None].expand(len(x), -1, x.shape[2], -1, -1)
            x = channels_last(torch.cat([x, places], dim=1))
        for block in self._all():
            if self.checkpointing and self.training and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False, context_fn=partial(_recompute_contexts, block))
            else:
                x = block(x)
        return self.final(x), None

    def _all(self) -> list[nn.Module]:
        return [*self.blocks] if self.stem is None else [self.stem, *self.blocks]


@register("convnet", "resnet")
class ResNet(ConvNet):
    """Blocks with a shortcut around each (He et al. 2016)."""

    class Params(ConvNetParams):
        """Blocks with a shortcut around each."""

        resnet_post_add_activation: ActivationName | None = Field(
            None, description="Activation after shortcut and block are added."
        )
        drop_path: float = Field(
            0.0, ge=0, lt=1,
            description="Probability that the last block is left out for a clip in training, which leaves its "
            "shortcut; earlier blocks are left out less often, in proportion to their depth (Huang et al. 2016).",
        )  # fmt: skip

    def __init__(self, params: Params, inputs: Maps, *, generator: torch.Generator):
        super().__init__(params, inputs, generator=generator)
        for depth, residual in enumerate(self.blocks, 1):
            residual.drop_path = params.drop_path * depth / len(self.blocks)

    def stage(self, block: Block, inputs: Maps, params: Params, generator: torch.Generator) -> Layer:
        return Residual(block, inputs, params.resnet_post_add_activation or "none", generator=generator)


@register("convnet", "densenet")
class DenseNet(ConvNet):
    """Blocks that each append their maps to all that came before (Huang et al. 2017)."""

    class Params(ConvNetParams):
        """Blocks that each append `channels` maps (the growth) to all that came before."""

    def stage(self, block: Block, inputs: Maps, params: Params, generator: torch.Generator) -> Layer:
        return Dense(block, inputs)


class Residual(Layer):
    """block(x) + shortcut(x), then an activation.

    The shortcut is x where channels and size agree, else a 1×1 convolution of the pixels that the block's outputs are
    centred on. In training, block(x) is 0 for a clip with probability `drop_path`, and block(x) / (1 − drop_path) else,
    so that its mean is that of evaluation (stochastic depth, Huang et al. 2016).
    """

    kinds = {"weight": "kernel"}
    drop_path = 0.0

    def __init__(self, block: Block, inputs: Maps, activation: str, *, generator: torch.Generator):
        super().__init__()
        self.block, self.skip = block, Skip(block, inputs)
        self.weight = None
        channels = block.outputs.channels
        if channels != inputs.channels or block.stride != (1, 1):
            std = 1 / sqrt(inputs.channels)
            self.weight = nn.Parameter(normal(channels, inputs.channels, 1, 1, std=std, generator=generator))
        self.act = Activation(activation)
        self.context = block.context
        self.outputs = replace(block.outputs, channels=self.act.channels(channels))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.skip(x)
        if self.weight is not None:
            shortcut = unfold_time(F.conv2d(fold_time(shortcut), self.weight), len(x))
        y = self.block(x)
        if self.training and self.drop_path:
            kept = torch.rand(len(x), 1, 1, 1, 1, dtype=y.dtype, device=y.device) >= self.drop_path
            y = y * (kept / (1 - self.drop_path)).to(y.dtype)
        return self.act(y + shortcut)


class Dense(Layer):
    """x and block(x), side by side."""

    def __init__(self, block: Block, inputs: Maps):
        super().__init__()
        self.block, self.skip, self.context = block, Skip(block, inputs), block.context
        self.outputs = replace(block.outputs, channels=inputs.channels + block.outputs.channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.skip(x), self.block(x)], dim=1)


class Skip(nn.Module):
    """The part of a block's input that its outputs are centred on: the newest frames, cropped and strided.

    Padding of more than half of the kernel makes outputs that are centred outside of the input; there it is 0, as what
    the kernel saw there was. Around an adaptive pool the input is averaged over the pool's regions instead.
    """

    def __init__(self, block: Block, inputs: Maps):
        super().__init__()
        self.context, self.size, self.crop = block.context, (block.outputs.height, block.outputs.width), None
        self.margin: list[int] = []
        if block.stride is not None:
            self.crop = []
            sizes = zip(block.offset, block.stride, self.size, (inputs.height, inputs.width), strict=True)
            for offset, stride, outputs, size in sizes:
                first = floor(offset)
                stop = first + stride * (outputs - 1) + 1
                before, after = max(0, -first), max(0, stop - size)
                self.margin = [before, after, *self.margin]  # the last axis first, as torch has it
                self.crop.append(slice(first + before, stop + before, stride))

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, self.context :]
        if self.crop is None:
            return unfold_time(F.adaptive_avg_pool2d(fold_time(x), self.size), len(x))
        if any(self.margin):
            x = per_frame(F.pad, x, self.margin)
        return x[..., self.crop[0], self.crop[1]]


def position_channels(kind: str, inputs: Maps) -> Tensor:
    """Where the pixels of a map are, (C, H, W): x, y from −1 to 1 at the edges; for `fourier`, sines and cosines too.

    Raises
    ------
    ConfigError
        If frames or bars have one pixel. (A full field has no axes, so that there is nothing to say of them.)
    """
    half = torch.tensor([inputs.width / 2, inputs.height / 2])
    place = (pixel_centres(inputs.height, inputs.width) / half).permute(2, 0, 1)
    place = place[[axis for axis, size in enumerate((inputs.width, inputs.height)) if size > 1]]
    if inputs.axes and not len(place):
        raise ConfigError(f"position_channels: {kind}, but maps of one pixel have no positions; use none")
    return torch.cat([place, (pi * place).sin(), (pi * place).cos()]) if kind == "fourier" else place


def _recompute_contexts(block: nn.Module):
    """Contexts of the first pass and of the one that recomputes it."""
    return nullcontext(), _running_averages_frozen(block)


@contextmanager
def _running_averages_frozen(module: nn.Module):
    """Keep norms from counting values twice while a block is recomputed."""
    norms = [m for m in module.modules() if isinstance(m, Norm)]
    for norm in norms:
        norm.frozen = True
    try:
        yield
    finally:
        for norm in norms:
            norm.frozen = False
