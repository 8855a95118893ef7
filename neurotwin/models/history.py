"""What the units' own past adds to what drives them."""

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import Params, PositiveInt, register
from .activations import Activation, ActivationName
from .stages import linear

__all__ = ["SpikeHistory"]


@register("history_encoder", "mlp")
class SpikeHistory(nn.Module):
    """A perceptron over the last counts of a session's units; without hidden layers, a GLM's coupling filters.

    With `spectral_norm` the gain of every layer is at most 1 (Miyato et al. 2018, here with the exact largest singular
    value): W ← W / max(1, σ₁).

    Parameters
    ----------
    params
        Its config.
    n_units
        U.
    generator
        Draws the initial weights.
    """

    class Params(Params):
        """A perceptron over the last counts of a session's units."""

        num_lags: PositiveInt = Field(16, description="Bins of history, the newest one bin ago.")
        hidden_dims: tuple[PositiveInt, ...] = Field((32,), description="Widths of the hidden layers; none: linear.")
        act_type: ActivationName = Field("gelu", description="Activation between layers.")
        spectral_norm: bool = Field(False, description="Bound every layer's gain by 1, so that sampling stays stable.")
        bias: bool = Field(False, description="Constants in the layers.")
        dropout: float = Field(0.0, ge=0, lt=1, description="Probability that an input is dropped in training.")
        output_activation: ActivationName = Field("none", description="Activation of the output.")

    def __init__(self, params: Params, n_units: int, *, generator: torch.Generator):
        super().__init__()
        self.n_lags, self.spectral_norm = params.num_lags, params.spectral_norm
        self.dropout = nn.Dropout(params.dropout)
        self.layers, self.acts, inputs = nn.ModuleList(), nn.ModuleList(), params.num_lags * n_units
        for dim in params.hidden_dims:
            self.layers.append(linear(inputs, dim, bias=params.bias, generator=generator))
            self.acts.append(Activation(params.act_type, dim=-1))
            inputs = self.acts[-1].channels(dim)
        self.layers.append(linear(inputs, n_units, bias=params.bias, generator=generator, scale=0.1))
        self.acts.append(Activation(params.output_activation, dim=-1))

    def forward(self, history: Tensor) -> Tensor:
        """From counts (B, n_lags + L - 1, U) to what the last n_lags of them add to each of L bins, (B, L, U)."""
        x = self.dropout(history.unfold(1, self.n_lags, 1).flatten(2))
        for layer, act in zip(self.layers, self.acts, strict=True):
            weight = layer.weight
            if self.spectral_norm:
                weight = weight / torch.linalg.matrix_norm(weight, 2).clamp_min(1)
            x = act(F.linear(x, weight, layer.bias))
        return x
