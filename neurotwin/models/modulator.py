"""How behaviour enters: encoded for every frame, then appended to, scaling, or driving the features.

A modulator is called with features (B, C, T, H, W) and the behaviour (B, T, K) of the same frames.
"""

from dataclasses import replace
from math import sqrt
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import ConfigError, Only, Params, PositiveInt, register
from .layers import MLP, EncoderParams, OddInt
from .recurrent import ConvGRULayer
from .stages import Maps, Stage, fold_time, linear, normal, unfold_time

__all__ = ["Concat", "ConvGRUModulator", "FiLM"]


class ModulatorParams(Params):
    """What all modulators share."""

    behavior_dim: PositiveInt | None = Field(None, description="Checked against the data where given.")
    feature_dim: PositiveInt | None = Field(None, description="Without effect: it is worked out from the features.")

    def idle(self) -> dict[str, tuple[Any, str]]:
        return {"feature_dim": (None, "has no effect: it is worked out from the features")}


@register("modulator", "concat")
class Concat(Stage):
    """Append the encoded behaviour as channels, the same at every pixel."""

    class Params(ModulatorParams):
        """Encode the behaviour and append it as channels, the same at every pixel."""

        encoder_params: EncoderParams = Field(default_factory=EncoderParams, description="The encoder.")

    takes_behavior = True

    def __init__(self, params: Params, inputs: Maps, *, behavior_dim: int, generator: torch.Generator):
        super().__init__()
        self.encoder = _encoder(params.encoder_params, behavior_dim, generator)
        self.outputs = replace(inputs, channels=inputs.channels + self.encoder.features)

    def forward(self, x: Tensor, behavior: Tensor | None = None, state: Any = None) -> tuple[Tensor, None]:
        return torch.cat([x, _as_maps(self.encoder(behavior), x)], dim=1), None


@register("modulator", "film")
class FiLM(Stage):
    """(1 + γ) x + β with γ and β linear in the encoded behaviour, for every channel (Perez et al. 2018).

    Both start at 0, so that the features pass unchanged.
    """

    class Params(ModulatorParams):
        """Scale and shift every channel by the behaviour; the identity at the start."""

        encoder_params: EncoderParams = Field(default_factory=EncoderParams, description="The encoder.")

    takes_behavior = True

    def __init__(self, params: Params, inputs: Maps, *, behavior_dim: int, generator: torch.Generator):
        super().__init__()
        _require_features(inputs, "film")
        self.encoder = _encoder(params.encoder_params, behavior_dim, generator)
        self.head = linear(self.encoder.features, 2 * inputs.channels, generator=generator, scale=0.0)
        self.outputs = inputs

    def forward(self, x: Tensor, behavior: Tensor | None = None, state: Any = None) -> tuple[Tensor, None]:
        gain, shift = self.head(self.encoder(behavior)).transpose(1, 2)[..., None, None].chunk(2, dim=1)
        return x + gain * x + shift, None


@register("modulator", "convgru")
class ConvGRUModulator(Stage):
    """A convolutional GRU over the features, driven by them and the embedded behaviour.

    With :meth:`predict_features`, it also learns to predict the next frame's features from its state; the mean squared
    error of that is its auxiliary loss, which `lambda_pred` weighs.
    """

    class Params(ModulatorParams):
        """A convolutional GRU over the features, driven by them and the behaviour."""

        hidden_dim: PositiveInt = Field(64, description="Channels of the state.")
        beh_emb_dim: PositiveInt = Field(16, description="Features of the behaviour.")
        kernel_size: OddInt = Field(3, description="Spatial kernel, odd.")
        use_depthwise: Annotated[bool, Only(False, "a gate mixes all channels")] = Field(
            False, description="Must be false: a gate mixes all channels."
        )
        use_grouped: Annotated[bool, Only(False, "a gate mixes all channels")] = Field(
            False, description="Must be false: a gate mixes all channels."
        )
        num_groups: Annotated[int, Only(1, "a gate mixes all channels")] = Field(
            1, description="Must be 1: a gate mixes all channels."
        )
        use_layer_norm: bool = Field(True, description="Normalise the gates over channels.")
        learnable_h0: bool = Field(True, description="Learn the state before the first frame (else 0).")
        use_residual: bool = Field(True, description="Add the features to the output (projected where widths differ).")
        grad_clip_val: float | None = Field(
            None, gt=0, description="Clip the gradient that flows back through each step."
        )
        encoder_params: EncoderParams = Field(
            default_factory=lambda: EncoderParams(dims=(64,)), description="Hidden layers of the behaviour's embedding."
        )

    kinds = {"h0": "state", "residual": "kernel", "prediction": "kernel"}
    takes_behavior = True
    is_recurrent = True

    def __init__(self, params: Params, inputs: Maps, *, behavior_dim: int, generator: torch.Generator):
        super().__init__()
        _require_features(inputs, "convgru")
        self.encoder = _encoder(params.encoder_params, behavior_dim, generator)
        self.embedding = linear(self.encoder.features, params.beh_emb_dim, generator=generator)
        channels, hidden = inputs.channels, params.hidden_dim
        self.layer = ConvGRULayer(
            channels + params.beh_emb_dim, hidden, params.kernel_size,
            layer_norm=params.use_layer_norm, grad_clip=params.grad_clip_val, generator=generator,
        )  # fmt: skip
        self.h0 = nn.Parameter(torch.zeros(hidden, 1, 1)) if params.learnable_h0 else None
        self.use_residual, self.residual, self.prediction = params.use_residual, None, None
        if params.use_residual and channels != hidden:
            weight = normal(hidden, channels, 1, 1, std=1 / sqrt(channels), generator=generator)
            self.residual = nn.Parameter(weight)
        self.inputs, self.outputs = inputs, replace(inputs, channels=hidden)

    def predict_features(self, *, generator: torch.Generator) -> None:
        """Add the head that predicts the next frame's features."""
        hidden, channels = self.outputs.channels, self.inputs.channels
        self.prediction = nn.Parameter(normal(channels, hidden, 1, 1, std=1 / sqrt(hidden), generator=generator))

    def forward(
        self, x: Tensor, behavior: Tensor | None = None, state: list[Tensor] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        embedded = _as_maps(self.embedding(self.encoder(behavior)), x)
        if state is None and self.h0 is not None:
            state = [self.h0.expand(len(x), -1, *x.shape[-2:])]
        hidden, state = self.layer(torch.cat([x, embedded], dim=1), state)
        self.auxiliary_loss = None
        if self.prediction is not None and self.training and x.shape[2] > 1:
            predicted = _pointwise(hidden[:, :, :-1], self.prediction)
            # Detached: else the core could please the prediction by making features constant.
            self.auxiliary_loss = F.mse_loss(predicted, x[:, :, 1:].detach())
        if self.use_residual:
            hidden = hidden + (x if self.residual is None else _pointwise(x, self.residual))
        return hidden, state


# --------------------------------------------------------------------------------------------------------------------


def _encoder(params: EncoderParams, behavior_dim: int, generator: torch.Generator) -> MLP:
    return MLP(
        behavior_dim, params.dims, activation=params.activation, residual=params.residual, dropout=params.dropout,
        layer_norm=params.use_layer_norm, generator=generator,
    )  # fmt: skip


def _as_maps(features: Tensor, x: Tensor) -> Tensor:
    """(B, T, F) to (B, F, T, H, W), the same at every pixel; no copy."""
    return features.transpose(1, 2)[..., None, None].expand(-1, -1, -1, *x.shape[-2:])


def _pointwise(x: Tensor, weight: Tensor) -> Tensor:
    return unfold_time(F.conv2d(fold_time(x), weight), len(x))


def _require_features(inputs: Maps, kind: str) -> None:
    if inputs.channels == 0:
        raise ConfigError(
            f"modulator: {kind} modulates visual features, and initial_input_channels: 0 leaves none; use concat"
        )
