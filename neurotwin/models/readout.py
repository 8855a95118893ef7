"""From features to units: one readout a session, (B, C, T, H, W) to (B, T, U).

Positions, their spread and their shifts are in feature pixels, the pixels of the map that a readout sees: (x, y) to the
right and down from the middle of the map. Features are first pooled over space, for all units in one matrix product.
Then they are weighted and summed. In this order, no map has to be kept for each unit, which would take much memory.

An optimizer such as Adam takes steps of about the learning rate, whatever the unit of a parameter. Positions in pixels
would therefore cross a large map more slowly than a small one. So that they do not, they learn faster by half the size
of the map (`lr_scales`).
"""

from math import prod, sqrt
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import LARGEST, ConfigError, Params, PositiveInt, register
from .retinotopy import Retinotopy, standardized
from .stages import Maps, fold_time, linear, normal, pixel_centres

__all__ = [
    "AttentionReadout",
    "FactorizedReadout",
    "GaussianEIReadout",
    "GaussianReadout",
    "LinearReadout",
    "PixelReadout",
    "PointReadout",
    "Readout",
    "half_size",
    "pooled",
    "starts",
]

_FLOOR = 0.5
"""Least width of a Gaussian, feature pixels."""
_USUAL_STD, _USUAL_SPREAD = 0.3, 0.1
"""Of half the map: width of a Gaussian at the start, and spread of the positions, where the config says nothing."""


class Readout(nn.Module):
    """Base of the readouts: the bias, and the scale at which features start.

    Parameters
    ----------
    params
        The readout's config.
    inputs
        The features that come in.
    n_units
        U.
    positions
        (U, D) coordinates of the units, where known.
    generator
        Draws the initial weights.

    Attributes
    ----------
    takes_shift
        Whether the readout has positions that a shifter may move: ``readout(features, shift)``.
    lr_scales
        How much faster than others each of its own parameters learns, by name; those left out do not.
    """

    class Params(Params):
        """What all readouts share."""

        n_units: PositiveInt | None = Field(None, description="Without effect: the units are the session's.")
        bias: bool = Field(True, description="A constant per unit, started at the unit's mean training rate.")

        def idle(self) -> dict[str, tuple[Any, str]]:
            return {"n_units": (None, "has no effect: the units are the session's")}

    kinds = {
        "bias": "bias", "features": "features", "basis": "weight", "mean": "position", "std": "position",
        "theta": "position", "mask": "mask", "query": "embedding", "position": "embedding",
    }  # fmt: skip
    takes_shift = False

    def __init__(
        self, params: Params, inputs: Maps, n_units: int, *, positions: Tensor | None = None,
        generator: torch.Generator,
    ):  # fmt: skip
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(n_units)) if params.bias else None
        self.basis: nn.Parameter | None = None
        self.lr_scales: dict[str, float] = {}

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        """From features (B, C, T, H, W), and shifts (B, T, 2) of all positions, to what drives the units (B, T, U)."""
        drive = self.drive(x) if shift is None else self.drive(x, shift)
        return drive if self.bias is None else drive + self.bias

    def drive(self, x: Tensor) -> Tensor:
        """The readout without its bias."""
        raise NotImplementedError

    def spatial_maps(self) -> Tensor | None:
        """(U, H, W) where each unit looks; None for readouts that look at one point, or everywhere in turn."""
        return None

    def feature_weights(self) -> Tensor:
        """The weight of each feature for each unit, (..., U, C): `features`, times `basis` where the rank is low."""
        return self.features if self.basis is None else self.features @ self.basis


class SharedParams(Readout.Params):
    """Weights of features that units may share."""

    rank: PositiveInt | None = Field(
        None,
        description="Each unit weighs this many mixtures of features, `basis`, which the units of a session share and "
        "learn. Default: it weighs every feature by itself.",
    )


class PlacedParams(SharedParams):
    """Positions that may follow the units' coordinates."""

    retinotopy: bool = Field(
        False,
        description="A unit looks where a learned linear function of its coordinates says, plus `mean`; an l2 penalty "
        "on readouts/mean then draws units to that map. Needs unit_positions.",
    )


@register("readout", "gaussian")
class GaussianReadout(Readout):
    """Features weighted under one rotated 2-D Gaussian per unit, normalised to sum 1 over the pixels.

    w_u(p) ∝ exp(−½ (p − μ)ᵀ R S⁻² Rᵀ (p − μ)),  rate drive = Σ_c f_uc Σ_p w_u(p) x_c(p) + b_u, with S the two standard
    deviations sqrt(std² + ½²), feature pixels: below half a pixel no gradient would reach the position.
    """

    class Params(PlacedParams):
        """Features weighted under one rotated 2-D Gaussian per unit, normalised to sum 1."""

        initial_std: float | None = Field(
            None, gt=0, le=LARGEST,
            description="Standard deviation at the start, feature pixels. Default: 0.3 of half the map.",
        )  # fmt: skip
        initial_mean_scale: float | None = Field(
            None, ge=0, le=LARGEST,
            description="Spread of the centres about the middle of the map at the start, feature pixels. Default: 0.1 "
            "of half the map.",
        )  # fmt: skip

    takes_shift = True

    def __init__(
        self, params: Params, inputs: Maps, n_units: int, *, positions: Tensor | None = None,
        generator: torch.Generator,
    ):  # fmt: skip
        super().__init__(params, inputs, n_units, generator=generator)
        self._place(params, inputs, (n_units,), positions, generator)
        self.features, self.basis = _shared(params, inputs, n_units, generator=generator)

    def drive(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        return (pooled(x, self.weights(shift)) * self.feature_weights()).sum(dim=-1)

    def centres(self) -> Tensor:
        """μ, (..., U, 2), feature pixels."""
        return self.mean if self.retinotopy is None else self.mean + self.retinotopy()

    def weights(self, shift: Tensor | None = None) -> Tensor:
        """The Gaussians, (..., U, H, W), each of sum 1; one for each shift (B, T, 2): (B, T, ..., U, H, W)."""
        std = (self.std.square() + _FLOOR**2).sqrt()
        away = self.grid - self.centres()[..., None, None, :]
        cos, sin = self.theta.cos()[..., None, None], self.theta.sin()[..., None, None]
        along = (cos * away[..., 0] + sin * away[..., 1]) / std[..., 0, None, None]
        across = (cos * away[..., 1] - sin * away[..., 0]) / std[..., 1, None, None]
        exponent = -0.5 * (along.square() + across.square())
        if shift is not None:
            # With z = W (p − μ): |z − W s|² = |z|² − 2 (Wᵀ z)·s, and a term that the normalisation takes out.
            along, across = along / std[..., 0, None, None], across / std[..., 1, None, None]
            pull = torch.stack([cos * along - sin * across, sin * along + cos * across])
            exponent = exponent + torch.einsum("i...uhw,bti->bt...uhw", pull, shift.to(pull.dtype))
        return exponent.flatten(-2).softmax(dim=-1).view_as(exponent)

    def spatial_maps(self) -> Tensor:
        return self.weights()

    def _place(
        self, params: Params, inputs: Maps, shape: tuple[int, ...], positions: Tensor | None,
        generator: torch.Generator,
    ) -> None:  # fmt: skip
        self.register_buffer("grid", pixel_centres(inputs.height, inputs.width), persistent=False)
        width, spread = starts(params, inputs)
        std = sqrt(max(width**2 - _FLOOR**2, (0.1 * _FLOOR) ** 2))
        centres = normal(shape[-1], 2, std=spread, generator=generator)
        self.mean = nn.Parameter(centres.expand(*shape, 2).clone())
        self.std = nn.Parameter(torch.full((*shape, 2), std))
        self.theta = nn.Parameter(torch.zeros(shape))
        self.retinotopy = Retinotopy(positions, half_size(inputs)) if params.retinotopy else None
        self.lr_scales = dict.fromkeys(("mean", "std"), half_size(inputs))


@register("readout", "gaussianei")
class GaussianEIReadout(GaussianReadout):
    """An excitatory minus an inhibitory :class:`GaussianReadout`, each with feature weights |f| and its own Gaussian.

    Parameters have a first axis for the two: excitatory, inhibitory.
    """

    def __init__(
        self, params: GaussianReadout.Params, inputs: Maps, n_units: int, *, positions: Tensor | None = None,
        generator: torch.Generator,
    ):  # fmt: skip
        Readout.__init__(self, params, inputs, n_units, generator=generator)
        self._place(params, inputs, (2, n_units), positions, generator)
        features, bases = zip(*(_shared(params, inputs, n_units, generator=generator) for _ in range(2)), strict=True)
        self.features, self.basis = nn.Parameter(torch.stack(features).detach().abs()), bases[0]

    def drive(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        n_units = self.features.shape[1]
        maps = pooled(x, self.weights(shift).flatten(-4, -3)).unflatten(2, (2, n_units))
        excitation, inhibition = (maps * self.feature_weights().abs()).sum(dim=-1).unbind(dim=2)
        return excitation - inhibition

    def spatial_maps(self) -> Tensor:
        excitation, inhibition = self.weights()
        return excitation - inhibition


@register("readout", "linear")
class LinearReadout(Readout):
    """Features averaged over the map, then one weight for each; `features` is (U, C)."""

    class Params(SharedParams):
        """Features averaged over the map, then one weight for each."""

    def __init__(self, params: Params, inputs: Maps, n_units: int, *, generator: torch.Generator, **rest):
        super().__init__(params, inputs, n_units, generator=generator, **rest)
        self.features, self.basis = _shared(params, inputs, n_units, generator=generator)

    def drive(self, x: Tensor) -> Tensor:
        return F.linear(x.mean(dim=(3, 4)).transpose(1, 2), self.feature_weights())


@register("readout", "pixels")
class PixelReadout(Readout):
    """One weight for every feature and pixel; `features` is (U, C, H, W). With a linear core it makes an LN model."""

    class Params(Readout.Params):
        """One weight for every feature and pixel."""

    kinds = Readout.kinds | {"features": "feature_maps"}

    def __init__(self, params: Params, inputs: Maps, n_units: int, *, generator: torch.Generator, **rest):
        super().__init__(params, inputs, n_units, generator=generator, **rest)
        shape = (n_units, inputs.channels, inputs.height, inputs.width)
        self.features = nn.Parameter(_features(*shape, generator=generator))

    def drive(self, x: Tensor) -> Tensor:
        # Both with the channels last: the features are, and the weights are the smaller copy.
        return F.linear(x.permute(0, 2, 3, 4, 1).flatten(2), self.features.permute(0, 2, 3, 1).flatten(1))

    def spatial_maps(self) -> Tensor:
        return self.features.norm(dim=1)


@register("readout", "factorized")
class FactorizedReadout(Readout):
    """A spatial mask times feature weights for each unit (Klindt et al. 2017)."""

    class Params(SharedParams):
        """A spatial mask times feature weights (Klindt et al. 2017)."""

        normalize: bool = Field(True, description="The mask of each unit has norm 1.")
        init_noise: float = Field(0.01, gt=0, description="Spread of the weights at the start.")

    def __init__(self, params: Params, inputs: Maps, n_units: int, *, generator: torch.Generator, **rest):
        super().__init__(params, inputs, n_units, generator=generator, **rest)
        noise, self.normalize = params.init_noise, params.normalize
        self.mask = nn.Parameter(normal(n_units, inputs.height, inputs.width, std=noise, generator=generator))
        self.features, self.basis = _shared(params, inputs, n_units, std=noise, generator=generator)

    def drive(self, x: Tensor) -> Tensor:
        mask = self.mask
        if self.normalize:
            mask = mask / mask.norm(dim=(1, 2), keepdim=True).clamp_min(1e-12)
        return (pooled(x, mask) * self.feature_weights()).sum(dim=-1)

    def spatial_maps(self) -> Tensor:
        return self.mask


@register("readout", "point")
class PointReadout(Readout):
    """Features at one point per unit, bilinearly interpolated (Lurz et al. 2021).

    In training the point is drawn from N(μ, Σ) for each clip and unit, so that the gradient sees a neighbourhood; in
    evaluation it is μ. Σ = L Lᵀ with L the 2×2 `std` (full), its diagonal, or one number. With `predict_positions`,
    μ = half the map · tanh(MLP(coordinates of the unit)) instead of a parameter.
    """

    class Params(PlacedParams):
        """Features at one learned point per unit, sampled around it in training (Lurz et al. 2021)."""

        initial_std: float | None = Field(
            None, gt=0, le=LARGEST,
            description="Spread of a sampled point at the start, feature pixels. Default: 0.3 of half the map.",
        )  # fmt: skip
        initial_mean_scale: float | None = Field(
            None, ge=0, le=LARGEST,
            description="Spread of the points about the middle of the map at the start, feature pixels. Default: 0.1 "
            "of half the map.",
        )  # fmt: skip
        covariance: Literal["full", "diagonal", "isotropic"] = Field(
            "full", description="What of the spread is learned."
        )
        predict_positions: bool = Field(False, description="Points are a learned function of the units' coordinates.")

    takes_shift = True

    def __init__(
        self, params: Params, inputs: Maps, n_units: int, *, positions: Tensor | None = None,
        generator: torch.Generator,
    ):  # fmt: skip
        super().__init__(params, inputs, n_units, generator=generator)
        self.features, self.basis = _shared(params, inputs, n_units, generator=generator)
        size = {"full": (2, 2), "diagonal": (2,), "isotropic": (1,)}[params.covariance]
        start = torch.eye(2) if params.covariance == "full" else torch.ones(size)
        width, spread = starts(params, inputs)
        self.std = nn.Parameter(width * start.expand(n_units, *size).clone())
        self.lr_scales = dict.fromkeys(("mean", "std"), half_size(inputs))
        self.covariance, self.predictor, self.retinotopy = params.covariance, None, None
        extent = torch.tensor([inputs.width / 2, inputs.height / 2])  # pixels from the middle to the edges
        self.register_buffer("extent", extent, persistent=False)
        if not params.predict_positions:
            self.mean = nn.Parameter(normal(n_units, 2, std=spread, generator=generator))
            self.retinotopy = Retinotopy(positions, half_size(inputs)) if params.retinotopy else None
            return
        if params.retinotopy:
            raise ConfigError("retinotopy: predict_positions says already where units look; leave one of them out")
        positions = standardized(positions, "predict_positions")
        self.register_buffer("positions", positions, persistent=False)
        hidden = linear(positions.shape[1], 30, generator=generator)
        last = linear(30, 2, generator=generator, scale=spread / half_size(inputs))
        self.predictor = nn.Sequential(hidden, nn.GELU(), last, nn.Tanh())

    def points(self) -> Tensor:
        """μ, (U, 2), feature pixels."""
        if self.predictor is not None:
            return self.extent * self.predictor(self.positions)
        return self.mean if self.retinotopy is None else self.mean + self.retinotopy()

    def drive(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        clips, _, frames = x.shape[:3]
        points = self.points().expand(clips, -1, -1)
        if self.training:
            noise = torch.randn_like(points)
            full = self.covariance == "full"
            points = points + (torch.einsum("uij,buj->bui", self.std, noise) if full else self.std * noise)
        if shift is None:
            # Frames of a clip share its points: they are channels of one image.
            sampled = _sampled(x.flatten(1, 2), points / self.extent).unflatten(1, (-1, frames))
        else:
            moved = (points[:, None] + shift[:, :, None].to(points.dtype)) / self.extent
            sampled = _sampled(fold_time(x), moved.flatten(0, 1)).unflatten(0, (clips, frames)).transpose(1, 2)
        return (sampled * self.feature_weights().t()[:, None]).sum(dim=1)


@register("readout", "attention")
class AttentionReadout(Readout):
    """A learned query per unit attends to the positions of the map (Pierzchlewicz et al. 2023).

    For each head, w_u(p) = softmax_p(q_u · k(p) / √d) with keys k linear in the features at p, plus an embedding of p;
    the rate drive is Σ_heads Σ_c f_uhc Σ_p w_uh(p) x_c(p).
    """

    class Params(Readout.Params):
        """A learned query per unit attends to positions of the map (Pierzchlewicz et al. 2023)."""

        num_heads: PositiveInt = Field(1, description="Heads.")
        key_dim: PositiveInt = Field(32, description="Width of queries and keys in each head.")
        use_pos_enc: bool = Field(True, description="Add a learned embedding of the position to the keys.")

    def __init__(self, params: Params, inputs: Maps, n_units: int, *, generator: torch.Generator, **rest):
        super().__init__(params, inputs, n_units, generator=generator, **rest)
        heads, width = params.num_heads, params.key_dim
        self.key = linear(inputs.channels, heads * width, generator=generator, bias=False)
        self.query = nn.Parameter(normal(n_units, heads, width, std=1.0, generator=generator))
        self.features = nn.Parameter(_features(n_units, heads, inputs.channels, generator=generator))
        pixels = inputs.height * inputs.width
        embedding = normal(pixels, heads * width, std=0.1, generator=generator) if params.use_pos_enc else None
        self.position = None if embedding is None else nn.Parameter(embedding)

    def drive(self, x: Tensor) -> Tensor:
        features = x.permute(0, 2, 3, 4, 1).flatten(2, 3)
        keys = self.key(features)
        if self.position is not None:
            keys = keys + self.position
        heads, width = self.query.shape[1:]
        scores = torch.einsum("btphk,uhk->btuhp", keys.unflatten(3, (heads, width)), self.query) / sqrt(width)
        attended = torch.einsum("btuhp,btpc->btuhc", scores.softmax(dim=-1), features)
        return torch.einsum("btuhc,uhc->btu", attended, self.features)


# --------------------------------------------------------------------------------------------------------------------


def pooled(x: Tensor, weights: Tensor) -> Tensor:
    """Sum features (B, C, T, H, W) over space under the weights ([B, T,] U, H, W) of each unit: (B, T, U, C)."""
    return weights.flatten(-2).to(x.dtype) @ x.permute(0, 2, 3, 4, 1).flatten(2, 3)


def half_size(inputs: Maps) -> float:
    """Half of the larger side of a map, pixels."""
    return max(inputs.height, inputs.width) / 2


def starts(params: Any, inputs: Maps) -> tuple[float, float]:
    """Width and spread of positions at the start, feature pixels."""
    half = half_size(inputs)
    width = _USUAL_STD * half if params.initial_std is None else params.initial_std
    spread = _USUAL_SPREAD * half if params.initial_mean_scale is None else params.initial_mean_scale
    return width, spread


def _sampled(images: Tensor, points: Tensor) -> Tensor:
    """Images (N, C, H, W) at points (N, U, 2) in units of half a map, bilinearly interpolated: (N, C, U)."""
    grid = points.to(images.dtype)[:, :, None]
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)[..., 0]


def _features(n_units: int, *shape: int, generator: torch.Generator) -> Tensor:
    """Small weights (U, ...): inputs of unit variance drive a unit by about 0.1."""
    return normal(n_units, *shape, std=0.1 / sqrt(max(1, prod(shape))), generator=generator)


def _shared(
    params: SharedParams, inputs: Maps, *shape: int, std: float | None = None, generator: torch.Generator
) -> tuple[nn.Parameter, nn.Parameter | None]:
    """Weights (..., U, C) and None; or (..., U, rank) and a basis (rank, C) whose product starts as large."""
    channels, rank = inputs.channels, params.rank
    std = 0.1 / sqrt(max(1, channels)) if std is None else std
    if rank is None:
        return nn.Parameter(normal(*shape, channels, std=std, generator=generator)), None
    if rank >= channels:
        raise ConfigError(f"rank: {rank} mixtures of {channels} features share nothing; use fewer, or leave it out")
    features = normal(*shape, rank, std=std * sqrt(channels / rank), generator=generator)
    return nn.Parameter(features), nn.Parameter(normal(rank, channels, std=1 / sqrt(channels), generator=generator))
