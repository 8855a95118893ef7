"""What flows between the stages of a model, the base of all stages, and how time and memory are laid out.

Every stage maps clips (B, C, T, H, W) to clips and is *dense and valid in time*: there is an output for every frame
that has enough frames before it, so that T comes out shorter by the stage's `context`. A stride over time in the config
leaves no frames out. Instead the taps of all later layers lie `Maps.step` frames apart. For each frame, this gives what
a network with strides gives for the window that ends there.

Tensors are channels-last in memory, because time can then be folded into the batch (:func:`fold_time`) without a copy.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from math import prod, sqrt
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..config import ConfigError, NoParams, Part, define, register

__all__ = [
    "Identity",
    "Layer",
    "Maps",
    "Stage",
    "build",
    "channels_last",
    "fold_time",
    "inside",
    "linear",
    "normal",
    "per_frame",
    "pixel_centres",
    "reserve",
    "reserving",
    "time_taps",
    "unfold_time",
]


_MOST_VALUES = 2**28
"""Values of one frame's features: 1 GiB."""


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
    axes
        Number of spatial axes that the stimulus has: 2 for frames, 1 for bars, whose width is 1, and 0 for a full
        field. What a config says of an axis that is not there is not looked at; see :meth:`present`.
    """

    channels: int
    height: int
    width: int
    bin_rate: float
    step: int = 1
    axes: int = 2

    def __post_init__(self) -> None:
        if self.channels * self.height * self.width > _MOST_VALUES:
            raise ConfigError(
                f"maps of {self.channels} channels and {self.height}x{self.width} pixels: more than {_MOST_VALUES:,} "
                "values a frame; use fewer channels, less padding or a smaller grid"
            )

    def present(self, sizes: tuple[int, int], absent: int) -> tuple[int, int]:
        """Sizes over height and width, with `absent` in place of those of axes that the stimulus does not have.

        Examples
        --------
        >>> Maps(1, 31, 1, bin_rate=60.0, axes=1).present((5, 5), 1)
        (5, 1)
        """
        return tuple(size if axis < self.axes else absent for axis, size in enumerate(sizes))  # type: ignore[return-value]

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


class Layer(nn.Module):
    """Base of what maps clips to clips inside of a stage: ``layer(x)``.

    Attributes
    ----------
    outputs
        What the layer gives.
    context
        Frames that it consumes: T comes out shorter by this.
    kinds
        What each of its own parameters is, by name; see :mod:`~neurotwin.models.parameters`.
    """

    outputs: Maps
    context: int = 0
    kinds: ClassVar[dict[str, str]] = {}


class Stage(Layer):
    """Base of the stages of a model: ``stage(x, behavior, state)`` returns features and the state after them.

    Attributes
    ----------
    takes_behavior
        Whether it looks at the behaviour (B, T, K) of the frames of x; else `behavior` may be None.
    is_recurrent
        Whether it carries a state; else the state is None.
    auxiliary_loss
        What the stage adds to the loss of the last clips in training; None for nothing.
    """

    takes_behavior: bool = False
    is_recurrent: bool = False
    auxiliary_loss: Tensor | None = None

    def forward(self, x: Tensor, behavior: Tensor | None = None, state: Any = None) -> tuple[Tensor, Any]:
        """From features (B, C, T, H, W), the behaviour of their frames and the state before them."""
        raise NotImplementedError


@register("adapter", "none")
@register("frontend", "none")
@register("convnet", "none")
@register("modulator", "none")
@register("recurrent", "none")
@register("shifter", "none")
class Identity(Stage):
    """Nothing is done."""

    Params = NoParams

    def __init__(self, params: Params, inputs: Maps, **_: object):
        super().__init__()
        self.outputs = inputs

    def forward(self, x: Tensor, behavior: Tensor | None = None, state: Any = None) -> tuple[Tensor, Any]:
        return x, None


def build(part: Part, *args: Any, **kwargs: Any) -> Any:
    """The module that a part of a config asks for; the other arguments are those of its class."""
    with inside(f"{part.kind}.params"):
        return define(part.kind, part.type)(part.params, *args, **kwargs)


def channels_last(x: Tensor) -> Tensor:
    """The same values, channels-last in memory; no copy where they are so already.

    With a single channel, the strides do not show which layout is meant. Torch then takes it for channels-first, and so
    does every layer that follows. The strides are therefore set anew.
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


def pixel_centres(height: int, width: int) -> Tensor:
    """(H, W, 2) positions (x, y) of the pixels' centres, pixels from the middle of the map.

    Examples
    --------
    >>> pixel_centres(1, 3).tolist()
    [[[-1.0, 0.0], [0.0, 0.0], [1.0, 0.0]]]
    """
    y, x = (torch.arange(size) - (size - 1) / 2 for size in (height, width))
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)


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


_BYTES = 16
"""Of a weight in training, float32: its value, its gradient and AdamW's two moments."""
_RESERVED: ContextVar[list[int] | None] = ContextVar("_RESERVED", default=None)


@contextmanager
def reserving() -> Iterator[None]:
    """Within the block, :func:`reserve` counts the weights of one model."""
    token = _RESERVED.set([0])
    try:
        yield
    finally:
        _RESERVED.reset(token)


def reserve(*shape: int) -> None:
    """Refuse weights that memory cannot hold, before they are allocated: systems end a process that tries.

    Raises
    ------
    ConfigError
        If the model's weights so far and these are more than this machine could train.
    """
    counted = _RESERVED.get() or [0]
    counted[0] += prod(shape)
    needed, there = counted[0] * _BYTES, _memory()
    if needed > there:
        raise ConfigError(
            f"{counted[0]:.3g} weights so far would take {needed / 2**30:.3g} GiB in training, and this machine has "
            f"{there / 2**30:.3g}; use fewer channels or units of memory, or smaller kernels"
        )


def _memory() -> int:
    """Bytes of memory that the machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def normal(*shape: int, std: float, generator: torch.Generator) -> Tensor:
    """Normal numbers from the given generator, so that they do not depend on what else was drawn in the process."""
    reserve(*shape)
    return torch.randn(shape, generator=generator) * std


def linear(
    inputs: int, outputs: int, *, generator: torch.Generator, bias: bool = True, scale: float = 1.0
) -> nn.Linear:
    """A linear layer whose weights have variance scale²/inputs, with a bias of 0."""
    reserve(outputs, inputs)
    layer = nn.utils.skip_init(nn.Linear, inputs, outputs, bias=bias)
    with torch.no_grad():
        values = torch.randn(outputs, inputs, generator=generator)
        layer.weight.copy_(values * (scale / sqrt(inputs)))
        if bias:
            layer.bias.zero_()
    return layer
