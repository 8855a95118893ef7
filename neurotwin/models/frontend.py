"""What happens to frames before the convnet: a session's adapter, and filters over time that all pixels share."""

from dataclasses import replace
from math import log, pi, sqrt
from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import MODEL, ConfigError, Params, PositiveInt, notice, register
from ..data.kernels import AdaptationParams, RaisedCosineParams, other_bins, raised_cosine_basis
from .blocks import Block, BlockConfig
from .layers import Kernel, KernelParams
from .norms import BatchNorm, NormParams
from .stages import Maps, Stage, normal

__all__ = [
    "Adapter",
    "ConvFrontend",
    "DynamicalAdaptation",
    "LearnableTemporal",
    "TemporalBasis",
    "blur_matrix",
    "filter_over_time",
    "temporal_filters",
]


@register("adapter", "adapter")
@register("frontend", "adapter")
class Adapter(Stage):
    """Blur frames as much as the sampling grid needs, and sample them on a grid of fixed size.

    With `scale`, the grid covers the frame magnified about its centre by a learned factor. With `affine`, any affine
    map of the frame is learned. Along each axis, neighbouring samples are ``pitch`` input pixels apart. Details that
    are too fine for the grid would show up as coarse patterns (aliasing), so they are first removed by a Gaussian blur
    of σ = max(0, (pitch − 1) / 2) + softplus(·), pixels. The first term is the least that avoids aliasing (the rule of
    scikit-image), and the second is learned. Gradients flow through both. At the start the scale is 1, and σ is
    `init_sigma`, or a little more than the least where the least is larger.

    Blur and bilinear sampling along an axis are one matrix, so that a frame costs two matrix products.
    """

    class Params(Params):
        """Learned anti-alias blur and resampling of a session's frames onto the grid that the core sees."""

        grid_size: PositiveInt = Field(51, description="Height and width of the output, pixels.")
        init_sigma: float = Field(
            1.0, gt=0, description="Blur at the start, input pixels (at least what the grid needs)."
        )
        transform: Literal["scale", "affine"] = Field("scale", description="What is learned of the sampling grid.")

    kinds = {"shift": "position", "log_scale": "position", "sigma_raw": "constant"}

    def __init__(self, params: Params, inputs: Maps, **_: object):
        super().__init__()
        size = params.grid_size
        self.frame, self.grid = (inputs.height, inputs.width), size
        self.outputs = replace(inputs, height=size, width=size)
        self.affine = params.transform == "affine"
        if self.affine:
            self.shift = nn.Parameter(torch.zeros(2, 3))
        else:
            self.log_scale = nn.Parameter(torch.zeros(()))
        least = max(0.0, (max(self.frame) / size - 1) / 2)
        learned = max(params.init_sigma - least, 0.05)
        self.sigma_raw = nn.Parameter(torch.tensor(learned).expm1().log())

    def sigma(self) -> Tensor:
        """Standard deviation of the blur along y and x, (2,), input pixels."""
        frame = self.sigma_raw.new_tensor(self.frame)
        # Spacing of the samples along y and x, in units of the frame's height and width.
        spread = self.transform()[:, :2].norm(dim=1).flip(0) if self.affine else self.log_scale.exp()
        least = ((spread * frame / self.grid - 1) / 2).clamp_min(0)
        return least + F.softplus(self.sigma_raw)

    def transform(self) -> Tensor:
        """The affine map of the grid, (2, 3); its difference from the identity is learned."""
        return torch.eye(2, 3, dtype=self.shift.dtype, device=self.shift.device) + self.shift

    def forward(self, x: Tensor, behavior: Tensor | None = None, state: Any = None) -> tuple[Tensor, None]:
        rows, columns = (blur_matrix(n, s) for n, s in zip(self.frame, self.sigma(), strict=True))
        if not self.affine:
            rows, columns = self._sampling(self.frame[0]) @ rows, self._sampling(self.frame[1]) @ columns
        x = rows.to(x.dtype) @ (x @ columns.t().to(x.dtype))
        if self.affine:
            clips, frames = x.shape[0], x.flatten(0, 2)[None]
            grid = F.affine_grid(self.transform()[None], [1, 1, self.grid, self.grid], align_corners=False)
            grid = grid.to(x.dtype)
            x = F.grid_sample(frames, grid, mode="bilinear", padding_mode="border", align_corners=False)
            x = x[0].unflatten(0, (clips, self.outputs.channels, -1))
        return x, None

    def _sampling(self, size: int) -> Tensor:
        """Bilinear sampling of `size` pixels on the grid, (grid, size)."""
        pixels = torch.arange(size, device=self.log_scale.device, dtype=self.log_scale.dtype)
        grid = (2 * torch.arange(self.grid, device=pixels.device) + 1) / self.grid - 1
        where = (size / 2 * (1 + self.log_scale.exp() * grid) - 0.5).clamp(0, size - 1)
        return (1 - (where[:, None] - pixels).abs()).relu()


@register("frontend", "learnable_temporal")
class LearnableTemporal(Kernel, Stage):
    """Learned temporal filters, the same at every pixel, for each input channel.

    With `split_MP` every frame is first split into its low-pass (a Gaussian of σ = 2 pixels, coarse and fast like the
    magnocellular path) and the residual (parvocellular), and each gets filters of its own.
    """

    class Params(KernelParams):
        """Temporal filters shared over pixels; no padding in time."""

        kernel_size: PositiveInt = Field(16, description="Number of taps.")
        num_channels: PositiveInt = Field(4, description="Number of filters (for each input channel).")
        init_type: Literal["gaussian_derivatives", "biphasic", "identity", "random"] = Field(
            "gaussian_derivatives", description="Filters at the start."
        )
        causal: bool = Field(True, description="Must be true: a filter sees the past only.")
        bias: bool = Field(False, description="Add a constant per filter.")
        split_MP: bool = Field(False, description="First split each frame into its low-pass and the residual.")
        stride: PositiveInt = Field(1, description="Over time; realised as dilation further on.")
        dilation: PositiveInt = Field(1, description="Bins between the taps of a filter.")
        padding: Literal[0] = Field(0, description="Must be 0: the convolution is valid.")
        padding_mode: Literal["zeros", "replicate", "reflect", "circular"] = Field(
            "zeros", description="Nothing is padded, whatever it says."
        )
        groups: PositiveInt | None = Field(
            None, description="Checked: channels do not mix, so there are as many groups."
        )

        @field_validator("causal")
        @classmethod
        def _causal(cls, value: bool) -> bool:
            if not value:
                raise ValueError("only causal: true is possible, a filter cannot see the future")
            return value

    SPLIT_SIGMA = 2.0

    def __init__(self, params: Params, inputs: Maps, *, generator: torch.Generator):
        sources = inputs.channels * (2 if params.split_MP else 1)
        if params.groups not in (None, sources):
            raise ConfigError(f"groups: {params.groups}, but filters are of one channel each, and there are {sources}")
        filters = temporal_filters(params.init_type, params.num_channels, params.kernel_size, generator=generator)
        super().__init__(filters.repeat(sources, 1)[:, None, :, None, None], params)
        self.sources, self.step = sources, inputs.step * params.dilation
        self.context = (params.kernel_size - 1) * self.step
        self.outputs = replace(inputs, channels=len(self.weight), step=inputs.step * params.stride)
        self.bias = nn.Parameter(torch.zeros(len(self.weight))) if params.bias else None
        self.split = params.split_MP
        if self.split:
            sigma = torch.tensor(self.SPLIT_SIGMA)
            self.register_buffer("rows", blur_matrix(inputs.height, sigma), persistent=False)
            self.register_buffer("columns", blur_matrix(inputs.width, sigma), persistent=False)

    def forward(self, x: Tensor, behavior: Tensor | None = None, state: Any = None) -> tuple[Tensor, None]:
        if self.split:
            low = self.rows.to(x.dtype) @ (x @ self.columns.t().to(x.dtype))
            x = torch.cat([low, x - low], dim=1)
        filters = self.kernel()[:, 0, :, 0, 0].unflatten(0, (self.sources, -1))
        if self.step > 1:
            spread = filters.new_zeros(*filters.shape[:2], self.context + 1)
            spread[..., :: self.step] = filters
            filters = spread
        x = filter_over_time(x, filters)
        return x if self.bias is None else x + self.bias.view(-1, 1, 1, 1), None


@register("frontend", "temporal_basis")
class TemporalBasis(Stage):
    """Fixed temporal filters: raised cosines on a logarithmic time axis (Pillow et al. 2008), for each channel."""

    class Params(RaisedCosineParams):
        """Raised cosines as causal filters."""

        causal: Literal[True] = Field(True, description="Must be true: the stimulus of the future is not seen.")

    def __init__(self, params: Params, inputs: Maps, **_: object):
        super().__init__()
        bin_ms = params.bin_size_ms or 1000 / inputs.bin_rate
        if text := other_bins(params.bin_size_ms, 1000 / inputs.bin_rate):
            notice(MODEL, ("frontend", "params", "bin_size_ms"), text)
        # A copy: numpy gives an array of one bin, read backwards, a stride that torch does not take.
        basis = torch.as_tensor(raised_cosine_basis(params, bin_ms).copy(), dtype=torch.get_default_dtype())
        self.register_buffer("basis", basis.expand(inputs.channels, -1, -1).clone(), persistent=False)
        self.context = params.history_bins - 1
        self.outputs = replace(inputs, channels=inputs.channels * len(basis))
        self.norm = BatchNorm(NormParams(), self.outputs) if params.batch_norm else nn.Identity()

    def forward(self, x: Tensor, behavior: Tensor | None = None, state: Any = None) -> tuple[Tensor, None]:
        return self.norm(filter_over_time(x, self.basis)), None


@register("frontend", "da")
class DynamicalAdaptation(Stage):
    """Photoreceptors that adapt: r = α y / (1 + β z), y = K_y ∗ s, z = K_z ∗ s (Clark et al. 2013, τ_r → 0).

    K_y(t) ∝ t^n_y exp(−t/τ_y) and K_z = γ K_y + (1 − γ) K, K(t) ∝ t^n_z exp(−t/τ_z), each of sum 1. The model is one
    of light intensities, s ≥ 0; where a stimulus around 0 would take 1 + β z to 0 or below, 0.1 stands in.

    Parameters learned: those that `learnable_params` names, through their logarithm (γ through its logit).
    """

    Params = AdaptationParams
    NAMES = ("alpha", "beta", "gamma", "tau_y_ms", "tau_z_ms", "n_y", "n_z")
    kinds = dict.fromkeys(NAMES, "constant")

    def __init__(self, params: AdaptationParams, inputs: Maps, **_: object):
        super().__init__()
        for side in ("height", "width"):
            if getattr(params, side) not in (None, getattr(inputs, side)):
                raise ConfigError(
                    f"{side}: {getattr(params, side)}, but the frames have {getattr(inputs, side)} pixels"
                )
        learned = {True: self.NAMES, False: ()}.get(params.learnable_params, params.learnable_params)
        for name in self.NAMES:
            value = float(getattr(params, name))
            if name in learned and (value <= 0 or (name == "gamma" and value >= 1)):
                raise ConfigError(f"{name}: {value} is at the border of what it may be; start it inside to learn it")
            raw = torch.tensor(value)
            if name in learned:
                raw = raw.logit() if name == "gamma" else raw.log()
            self.register_parameter(name, nn.Parameter(raw, requires_grad=True) if name in learned else None)
            self.register_buffer(f"fixed_{name}", None if name in learned else raw, persistent=False)
        self.length, self.bin_ms = params.filter_length, 1000 / inputs.bin_rate
        self.context, self.outputs = params.filter_length - 1, inputs
        if not self.filters().isfinite().all():
            raise ConfigError(
                f"filter_length: {self.length} bins are too few, the filters are 0 in all of them; use more"
            )

    def value(self, name: str) -> Tensor:
        """The present value of a parameter, in the units of the config."""
        raw = getattr(self, name)
        if raw is None:
            return getattr(self, f"fixed_{name}")
        return raw.sigmoid() if name == "gamma" else raw.exp()

    def filters(self) -> Tensor:
        """K_y and K_z, (2, filter_length), oldest bin first."""
        fast = self._gamma_filter(self.value("n_y"), self.value("tau_y_ms"))
        slow = self._gamma_filter(self.value("n_z"), self.value("tau_z_ms"))
        gamma = self.value("gamma")
        return torch.stack([fast, gamma * fast + (1 - gamma) * slow])

    def forward(self, x: Tensor, behavior: Tensor | None = None, state: Any = None) -> tuple[Tensor, None]:
        channels = x.shape[1]
        y, z = filter_over_time(x, self.filters().expand(channels, -1, -1)).unflatten(1, (channels, 2)).unbind(2)
        return self.value("alpha") * y / (1 + self.value("beta") * z).clamp_min(0.1), None

    def _gamma_filter(self, order: Tensor, tau: Tensor) -> Tensor:
        time = torch.arange(self.length - 1, -1, -1, device=tau.device, dtype=tau.dtype) * self.bin_ms / tau
        # The floor only keeps the logarithm of the newest bin (t = 0) finite; 0^n is 0 for any order above 0.
        kernel = torch.exp(order * time.clamp_min(1e-12).log() - time)
        return kernel / kernel.sum()


@register("frontend", "conv")
class ConvFrontend(Stage):
    """One convolution block."""

    class Params(BlockConfig):
        """One convolution block in front of the convnet."""

        out_channels: PositiveInt = Field(8, description="Channels of the output.")

    def __init__(self, params: Params, inputs: Maps, *, generator: torch.Generator):
        super().__init__()
        self.block = Block(params, inputs, params.out_channels, generator=generator)
        self.context, self.outputs = self.block.context, self.block.outputs

    def forward(self, x: Tensor, behavior: Tensor | None = None, state: Any = None) -> tuple[Tensor, None]:
        return self.block(x), None


# --------------------------------------------------------------------------------------------------------------------


def filter_over_time(x: Tensor, filters: Tensor, block: int = 32) -> Tensor:
    """Correlate every pixel's time course with filters, as products with a banded matrix.

    Parameters
    ----------
    x
        (B, C, T, H, W).
    filters
        (C, F, K), oldest bin first.
    block
        Frames of output a product. The matrix grows with its square; few frames are many small products.

    Returns
    -------
    Tensor
        (B, C·F, T − K + 1, H, W), channels-last in memory.
    """
    channels, n_filters, taps = filters.shape
    clips, _, frames, height, width = x.shape
    pixels, parts = x.flatten(3), []
    for start in range(0, frames - taps + 1, block):
        length = min(block, frames - taps + 1 - start)
        # Row (frame, filter) of the matrix holds the filter, shifted by the frame.
        shifted = F.pad(filters, (0, length)).repeat(1, 1, length)[..., : length * (length + taps - 1)]
        matrix = shifted.unflatten(2, (length, -1)).transpose(1, 2).flatten(1, 2)
        part = matrix.to(x.dtype) @ pixels[:, :, start : start + length + taps - 1]
        parts.append(part.unflatten(2, (length, n_filters)))
    y = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
    y = y.permute(0, 2, 4, 1, 3).reshape(clips, -1, height, width, channels * n_filters)
    return y.permute(0, 4, 1, 2, 3)


def blur_matrix(size: int, sigma: Tensor) -> Tensor:
    """Gaussian blur of `size` pixels as a matrix (size, size); rows sum to 1, so edges do not darken.

    Differentiable in `sigma`, a scalar in pixels.
    """
    pixels = torch.arange(size, device=sigma.device, dtype=sigma.dtype)
    return (-0.5 * ((pixels[:, None] - pixels) / sigma) ** 2).softmax(dim=1)


def temporal_filters(kind: str, number: int, length: int, *, generator: torch.Generator) -> Tensor:
    """Filters (number, length) to start from, oldest bin first, each of norm 1 (random: on average).

    gaussian_derivatives: derivatives of order 0, 1, 2, ... of a Gaussian, weighted to be orthogonal (Hermite
    functions), centred a third of the length ago. biphasic: (kt)^n exp(−kt) [1/n! − (kt)²/(n + 2)!] with n = 3
    (Adelson & Bergen 1985), slower from filter to filter, with alternating sign. identity: the newest bin.
    """
    lags = torch.arange(length - 1, -1, -1, dtype=torch.get_default_dtype())
    if kind == "random":
        return normal(number, length, std=1 / sqrt(length), generator=generator)
    if kind == "identity":
        return (lags == 0).to(lags.dtype).expand(number, -1).clone()
    if kind == "gaussian_derivatives":
        time = (lags - length / 3) / max(length / 8, 0.7)
        functions = [pi**-0.25 * (-(time**2) / 2).exp()]
        for order in range(1, number):
            before = functions[-2] * sqrt((order - 1) / order) if order > 1 else 0
            functions.append(sqrt(2 / order) * time * functions[-1] - before)
        filters = torch.stack(functions)
    else:
        ratio = torch.linspace(0, log(2.5), number).exp()[:, None]
        time = 16 / max(length, 2) * lags / ratio * 1.5
        filters = time**3 * (-time).exp() * (1 / 6 - time**2 / 120)
        filters = filters * (1 - 2 * (torch.arange(number) % 2))[:, None]
    return filters / filters.norm(dim=1, keepdim=True).clamp_min(1e-12)
