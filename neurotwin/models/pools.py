"""Pools over space, dense in time."""

from dataclasses import replace
from functools import reduce
from math import prod, sqrt
from typing import Annotated, Any, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import ConfigError, Params, PositiveInt, PositiveSize, Size, register
from .layers import Conv, ConvParams, OddInt, idle_padding
from .stages import Layer, Maps, linear, per_frame, reserve, time_taps

__all__ = [
    "AdaptivePool",
    "BlurPool",
    "LearnedPool",
    "LocalAttention",
    "Pool",
    "SoftPool",
    "SqueezeExcitePool",
    "WindowPool",
    "binomial",
]


class Pool(Layer):
    """Base of the pools, each built as ``pool(params, inputs, generator=...)``. Attributes as for :class:`Block`."""

    class Params(Params):
        """Stride of a pool."""

        stride: PositiveSize | None = Field(None, description="Default: 2 in space, 1 in time.")

        @model_validator(mode="after")
        def _check_sizes(self) -> Self:
            for key in ("stride", "kernel_size", "output_size"):
                if (size := getattr(self, key, None)) is not None and min(size) < 1:
                    raise ValueError(f"{key} must be at least 1 on every axis")
            if min(getattr(self, "padding", (0,))) < 0:
                raise ValueError("padding must not be negative")
            return self

    stride: tuple[int, int] | None = (1, 1)
    offset: tuple[float, float] | None = (0.0, 0.0)


@register("pool", "none")
class NoPool(Pool):
    """Nothing is pooled."""

    class Params(Params):
        """No parameters."""


class WindowParams(Pool.Params):
    """A sliding window."""

    kernel_size: PositiveSize | None = Field(None, description="Window. Default: the stride.")
    padding: Size = Field((0, 0, 0), description="[T, H, W]. Over time it has no effect.")

    def idle(self) -> dict[str, tuple[Any, str]]:
        return idle_padding(self.padding)


class WindowPool(Pool):
    """A function of a window of frames and pixels."""

    Params = WindowParams
    name = ""
    pool_frames: staticmethod

    def __init__(self, params: WindowParams, inputs: Maps, **_: object):
        super().__init__()
        step, *stride = params.stride or (1, 2, 2)
        self.taps, *kernel = params.kernel_size or (step, *stride)
        kernel, self.stride = inputs.present(tuple(kernel), 1), inputs.present(tuple(stride), 1)
        self.step, self.kernel, self.padding = inputs.step, kernel, inputs.present(params.padding[1:], 0)
        if any(2 * p > k for p, k in zip(self.padding, kernel, strict=True)):
            raise ConfigError(f"pool_params.padding: {list(self.padding)} is more than half of {kernel}")
        self.offset = tuple((k - 1) / 2 - p for k, p in zip(kernel, self.padding, strict=True))
        self.context = (self.taps - 1) * inputs.step
        maps = inputs.resized(self.kernel, self.stride, self.padding, f"pool_params: {self.name}")
        self.outputs = replace(maps, step=inputs.step * step)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool_time(time_taps(x, self.taps, self.step))
        return per_frame(self.pool_frames, x, self.kernel, self.stride, self.padding)

    def pool_time(self, views: list[Tensor]) -> Tensor:
        """What becomes of the frames of a window, oldest first."""
        raise NotImplementedError


@register("pool", "max")
class MaxPool(WindowPool):
    """Maximum over a window of frames and pixels."""

    name, pool_frames = "max", staticmethod(F.max_pool2d)

    def pool_time(self, views: list[Tensor]) -> Tensor:
        return reduce(torch.maximum, views)


@register("pool", "avg")
class MeanPool(WindowPool):
    """Mean over a window of frames and pixels."""

    name, pool_frames = "avg", staticmethod(F.avg_pool2d)

    def pool_time(self, views: list[Tensor]) -> Tensor:
        return reduce(torch.add, views) / self.taps if self.taps > 1 else views[0]


class AdaptivePool(Pool):
    """A function of a fixed number of regions of each frame."""

    class Params(WindowParams):
        """Regions, or a window that gives as many."""

        output_size: PositiveSize | None = Field(
            None,
            description="Number of regions [1, H, W]; time is never pooled. In its place: kernel_size alone, or "
            "kernel_size, stride and padding for as many regions as such a window gives.",
        )

    name = ""
    pool_frames: staticmethod
    stride = offset = None

    def __init__(self, params: Params, inputs: Maps, **_: object):
        super().__init__()
        sizes = [params.output_size or params.kernel_size]
        windowed = params.output_size is None and (params.stride is not None or max(params.padding) > 0)
        if windowed:
            stride = params.stride or (1, 2, 2)
            sizes = [params.kernel_size or stride, stride]
        if any(size is None or size[0] != 1 for size in sizes):
            raise ConfigError(f"pool_params: {self.name} needs output_size: [1, H, W]; time is never pooled to a clip")
        height, width = inputs.present(sizes[0][1:], 1)
        self.outputs = replace(inputs, height=height, width=width)
        if windowed:
            kernel, stride = (inputs.present(size[1:], 1) for size in sizes)
            padding = inputs.present(params.padding[1:], 0)
            self.outputs = inputs.resized(kernel, stride, padding, f"pool_params: {self.name}")
        self.size = (self.outputs.height, self.outputs.width)

    def forward(self, x: Tensor) -> Tensor:
        return per_frame(self.pool_frames, x, self.size)


@register("pool", "adaptivemax")
class AdaptiveMaxPool(AdaptivePool):
    """Maximum over a fixed number of regions of each frame."""

    name, pool_frames = "adaptivemax", staticmethod(F.adaptive_max_pool2d)


@register("pool", "adaptiveavg")
class AdaptiveMeanPool(AdaptivePool):
    """Mean over a fixed number of regions of each frame."""

    name, pool_frames = "adaptiveavg", staticmethod(F.adaptive_avg_pool2d)


@register("pool", "learned")
class LearnedPool(Conv):
    """A strided convolution with as many channels out as in."""

    Params = WindowParams

    def __init__(self, params: WindowParams, inputs: Maps, *, generator: torch.Generator):
        stride = params.stride or (1, 2, 2)
        conv = ConvParams(kernel_size=params.kernel_size or stride, stride=stride, padding=params.padding)
        super().__init__(conv, inputs, inputs.channels, bias=True, generator=generator)


class SoftPool(Pool):
    """What pools share that may weight pixels by their values, and channels by what the frame holds as a whole.

    Pixels of a window w are summed with weights w, or with softmax(x + log w) where the pool is soft (Stergiou et al.
    2021). Channels are then scaled by sigmoid(W₂ relu(W₁ mean_pixels x)), where there is such a gate (Hu et al. 2018).
    """

    def __init__(
        self, window: Tensor, stride: tuple[int, int], margin: tuple[int, int], inputs: Maps, *, soft: bool,
        r: int | None, step: int, what: str, generator: torch.Generator,
    ):  # fmt: skip
        super().__init__()
        self.stride, self.margin, self.soft = stride, margin, soft
        self.offset = tuple((k - 1) / 2 - m for k, m in zip(window.shape, margin, strict=True))
        self.register_buffer("window", window, persistent=False)
        maps = replace(inputs, step=inputs.step * step)
        self.outputs = maps.resized(tuple(window.shape), stride, margin, f"pool_params: {what}")
        self.squeeze = self.excite = None
        if r is not None:
            squeezed = max(1, inputs.channels // r)
            self.squeeze = linear(inputs.channels, squeezed, generator=generator, scale=sqrt(2))
            self.excite = linear(squeezed, inputs.channels, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        return per_frame(self._pool, x)

    def _pool(self, x: Tensor) -> Tensor:
        (rows, columns), channels = self.margin, x.shape[1]
        x = F.pad(x, (columns, columns, rows, rows), mode="replicate")
        if self.soft:
            patches = F.unfold(x, self.window.shape, stride=self.stride).unflatten(1, (channels, -1))
            weight = (patches + self.window.flatten()[:, None].log()).softmax(dim=2)
            x = (weight * patches).sum(dim=2).unflatten(2, (self.outputs.height, self.outputs.width))
        else:
            x = F.conv2d(x, self.window.expand(channels, 1, -1, -1), stride=self.stride, groups=channels)
        if self.squeeze is None:
            return x
        gate = self.excite(self.squeeze(x.mean(dim=(2, 3))).relu()).sigmoid()
        return x * gate[..., None, None]


@register("pool", "aablur")
class BlurPool(SoftPool):
    """Binomial blur, then every `stride`-th pixel and frame (Zhang 2019). The kernel is odd, so nothing shifts.

    Frames are blurred over time likewise, causally. Over space the blur may be soft, and a gate may follow; see
    :class:`SoftPool`.
    """

    class Params(Pool.Params):
        """Blur before sampling; soft pooling, and squeeze and excite, where asked for."""

        r: PositiveInt | None = Field(
            None, description="Squeeze and excite after it, with this reduction. Default: not done."
        )
        use_soft: bool = Field(False, description="Weight pixels by their exponential too (soft pool).")

    def __init__(self, params: Params, inputs: Maps, *, generator: torch.Generator):
        step, *stride = params.stride or (1, 2, 2)
        stride = inputs.present(tuple(stride), 1)
        window = torch.outer(binomial(2 * stride[0] - 1), binomial(2 * stride[1] - 1))
        super().__init__(
            window, stride, (stride[0] - 1, stride[1] - 1), inputs, soft=params.use_soft, r=params.r, step=step,
            what="aablur", generator=generator,
        )  # fmt: skip
        self.step = inputs.step
        self.register_buffer("over_time", binomial(2 * step - 1), persistent=False)
        self.context = 2 * (step - 1) * inputs.step

    def forward(self, x: Tensor) -> Tensor:
        views = time_taps(x, len(self.over_time), self.step)
        if len(views) > 1:
            x = sum(weight * view for weight, view in zip(self.over_time, views, strict=True))
        return super().forward(x)


@register("pool", "se_pool")
class SqueezeExcitePool(SoftPool):
    """Spatial soft pool, then channels scaled by what the frame holds as a whole; see :class:`SoftPool`.

    The window is a binomial blur where `use_blur`, else it is flat. A stride over time only spreads the taps of later
    layers.
    """

    class Params(Pool.Params):
        """Soft pooling, then squeeze and excite."""

        r: PositiveInt = Field(4, description="Reduction of the squeeze.")
        use_soft: bool = Field(True, description="Weight pixels by their exponential (soft pool); else average.")
        use_blur: bool = Field(True, description="Blur before sampling.")

    def __init__(self, params: Params, inputs: Maps, *, generator: torch.Generator):
        step, *stride = params.stride or (1, 2, 2)
        stride = inputs.present(tuple(stride), 1)
        window, margin = torch.ones(stride) / prod(stride), (0, 0)
        if params.use_blur:
            window = torch.outer(binomial(2 * stride[0] - 1), binomial(2 * stride[1] - 1))
            margin = (stride[0] - 1, stride[1] - 1)
        super().__init__(
            window, stride, margin, inputs, soft=params.use_soft, r=params.r, step=step, what="se_pool",
            generator=generator,
        )  # fmt: skip


@register("pool", "locatt")
class LocalAttention(Pool):
    """Each channel is scaled by how its neighbourhood compares with that of the channels beside it.

    First, s is x averaged over `spatial_kernel` pixels with learned weights (a depthwise convolution). Each channel is
    then multiplied by n · softmax(s), where the softmax is over the n channels of a window of `chan_window` around it.
    Where all these channels are equal, the factor is 1.
    """

    class Params(Params):
        """Sizes of the neighbourhood."""

        chan_window: Annotated[int, Field(gt=0, le=1024)] = Field(
            3, description="Channels that compete with one another."
        )
        spatial_kernel: OddInt = Field(3, description="Neighbourhood in pixels, odd.")

    kinds = {"weight": "kernel"}

    def __init__(self, params: Params, inputs: Maps, **_: object):
        super().__init__()
        size = inputs.present((params.spatial_kernel, params.spatial_kernel), 1)
        self.window, self.outputs = params.chan_window, inputs
        reserve(inputs.channels, *size)
        self.weight = nn.Parameter(torch.full((inputs.channels, 1, *size), 1 / prod(size)))

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
