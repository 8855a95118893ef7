"""Memory beyond the lags: recurrent stages that run over the frames of a clip in order.

A stage takes features (B, C, T, H, W) and its state after the frame before, or None at the start, and returns
features of the same T and the state after the last frame. The state is a list of tensors, batch first.
"""

from dataclasses import replace
from itertools import pairwise
from math import prod, sqrt
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import Params, PositiveInt, register
from .layers import OddInt
from .stages import Maps, Stage, fold_time, normal, reserve, unfold_time

__all__ = ["ConvGRU", "ConvGRULayer", "ConvLSTM", "ConvLSTMLayer", "PooledGRU", "PooledLSTM"]


class ConvGRULayer(nn.Module):
    """A convolutional gated recurrent unit (Cho et al. 2014; Ballas et al. 2016).

    r, z = σ(W x + U h + b),  n = tanh(W_n x + b_n + r (U_n h + c_n)),  h ← (1 − z) n + z h: the equations of
    torch.nn.GRUCell with convolutions. With `layer_norm`, W x and U h are each normalised over the channels of every
    gate and pixel, then scaled (Ba et al. 2016).

    Parameters
    ----------
    inputs, hidden
        Channels of the input and of the state.
    kernel_size
        Of both convolutions, odd; zero padding keeps the size.
    layer_norm
        Normalise the gates.
    grad_clip
        Bound on every element of the gradient that flows back through a step.
    generator
        Draws the initial weights.
    """

    gates = 3
    kinds = {
        "input_weight": "kernel", "hidden_weight": "kernel", "input_bias": "bias", "hidden_bias": "bias",
        "input_scale": "scale", "hidden_scale": "scale",
    }  # fmt: skip

    def __init__(
        self, inputs: int, hidden: int, kernel_size: int, *, layer_norm: bool = False, grad_clip: float | None = None,
        generator: torch.Generator,
    ):  # fmt: skip
        super().__init__()
        self.hidden, self.grad_clip = hidden, grad_clip
        outputs, size = self.gates * hidden, (kernel_size, kernel_size)
        for name, channels in (("input", inputs), ("hidden", hidden)):
            std = 1 / sqrt(max(1, channels) * prod(size))
            weight = normal(outputs, channels, *size, std=std, generator=generator)
            self.register_parameter(f"{name}_weight", nn.Parameter(weight))
            self.register_parameter(f"{name}_bias", nn.Parameter(torch.zeros(outputs)))
            scale = nn.Parameter(torch.ones(outputs)) if layer_norm else None
            self.register_parameter(f"{name}_scale", scale)

    def forward(self, x: Tensor, state: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        driven = self._normalized(F.conv2d(fold_time(x), self.input_weight, padding="same"), self.input_scale)
        driven = unfold_time(driven + self.input_bias.view(-1, 1, 1), len(x))
        state = self.initial_state(x) if state is None else state
        outputs = []
        for frame in driven.unbind(2):
            recurrent = self._normalized(F.conv2d(state[0], self.hidden_weight, padding="same"), self.hidden_scale)
            state = self.update(frame, recurrent + self.hidden_bias.view(-1, 1, 1), state)
            if self.grad_clip is not None and state[0].requires_grad:
                state[0].register_hook(lambda gradient: gradient.clamp(-self.grad_clip, self.grad_clip))
            outputs.append(state[0])
        return torch.stack(outputs, dim=2), state

    def initial_state(self, x: Tensor) -> list[Tensor]:
        """Zeros."""
        return [x.new_zeros(len(x), self.hidden, *x.shape[-2:])]

    def update(self, driven: Tensor, recurrent: Tensor, state: list[Tensor]) -> list[Tensor]:
        """The state after a frame, from what the input and the state drive."""
        gates = (driven[:, : 2 * self.hidden] + recurrent[:, : 2 * self.hidden]).sigmoid()
        reset, keep = gates.chunk(2, dim=1)
        new = (driven[:, 2 * self.hidden :] + reset * recurrent[:, 2 * self.hidden :]).tanh()
        return [new + keep * (state[0] - new)]

    def _normalized(self, gates: Tensor, scale: Tensor | None) -> Tensor:
        if scale is None:
            return gates
        gates = gates.unflatten(1, (self.gates, self.hidden))
        normalized = F.layer_norm(gates.movedim(2, -1), (self.hidden,)).movedim(-1, 2)
        return normalized.flatten(1, 2) * scale.view(-1, 1, 1)


class ConvLSTMLayer(ConvGRULayer):
    """A convolutional LSTM (Shi et al. 2015, without peepholes); gates in the order of torch.nn.LSTMCell.

    i, f, o = σ(W x + U h + b),  g = tanh(W_g x + U_g h + b_g),  c ← f c + i g,  h = o tanh(c). The forget gate starts
    with a bias of 1.
    """

    gates = 4

    def __init__(self, inputs: int, hidden: int, kernel_size: int, *, generator: torch.Generator):
        super().__init__(inputs, hidden, kernel_size, generator=generator)
        with torch.no_grad():
            self.input_bias[hidden : 2 * hidden] = 1

    def initial_state(self, x: Tensor) -> list[Tensor]:
        """Zeros."""
        return super().initial_state(x) * 2

    def update(self, driven: Tensor, recurrent: Tensor, state: list[Tensor]) -> list[Tensor]:
        """The state after a frame, from what the input and the state drive."""
        let_in, forget, new, out = (driven + recurrent).chunk(4, dim=1)
        cell = forget.sigmoid() * state[1] + let_in.sigmoid() * new.tanh()
        return [out.sigmoid() * cell.tanh(), cell]


@register("recurrent", "convgru")
class ConvGRU(Stage):
    """Convolutional GRUs over the feature maps, one on another."""

    class Params(Params):
        """A convolutional recurrent network over the feature maps."""

        hidden_dim: PositiveInt = Field(64, description="Channels of the state.")
        kernel_size: OddInt = Field(3, description="Spatial kernel, odd.")
        n_layers: Annotated[int, Field(gt=0, le=100)] = Field(1, description="Layers.")

    Layer = ConvGRULayer
    is_recurrent = True

    def __init__(self, params: Params, inputs: Maps, *, generator: torch.Generator):
        super().__init__()
        widths = [inputs.channels, *[params.hidden_dim] * params.n_layers]
        self.layers = nn.ModuleList(
            self.Layer(before, after, params.kernel_size, generator=generator) for before, after in pairwise(widths)
        )
        self.outputs = replace(inputs, channels=params.hidden_dim)

    def forward(
        self, x: Tensor, behavior: Tensor | None = None, state: list[list[Tensor]] | None = None
    ) -> tuple[Tensor, list[list[Tensor]]]:
        after = []
        for layer, before in zip(self.layers, state or [None] * len(self.layers), strict=True):
            x, layer_state = layer(x, before)
            after.append(layer_state)
        return x, after


@register("recurrent", "convlstm")
class ConvLSTM(ConvGRU):
    """Convolutional LSTMs over the feature maps, one on another."""

    Layer = ConvLSTMLayer


@register("recurrent", "gru")
class PooledGRU(Stage):
    """torch.nn.GRU over features averaged over pixels; the output is a map of one pixel."""

    class Params(Params):
        """A recurrent network over spatially pooled features."""

        hidden_dim: PositiveInt = Field(64, description="Units of the state.")
        n_layers: Annotated[int, Field(gt=0, le=100)] = Field(1, description="Layers.")

    Network: type[nn.RNNBase] = nn.GRU
    is_recurrent = True

    def __init__(self, params: Params, inputs: Maps, *, generator: torch.Generator):
        super().__init__()
        gates, hidden = (4 if self.Network is nn.LSTM else 3), params.hidden_dim
        reserve(gates * hidden, inputs.channels + (2 * params.n_layers - 1) * hidden)
        # Made without values, since torch would draw them from the global generator.
        network = self.Network(inputs.channels, params.hidden_dim, params.n_layers, batch_first=True, device="meta")
        self.network = network.to_empty(device="cpu")
        with torch.no_grad():
            for name, parameter in self.network.named_parameters():
                std = 0.0 if "bias" in name else 1 / sqrt(parameter.shape[-1])
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
        self.outputs = replace(inputs, channels=params.hidden_dim, height=1, width=1)

    def forward(
        self, x: Tensor, behavior: Tensor | None = None, state: list[Tensor] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        before = None
        if state is not None:  # torch keeps layers first, and one tensor or a tuple
            parts = tuple(part.transpose(0, 1).contiguous() for part in state)
            before = parts if len(parts) > 1 else parts[0]
        y, after = self.network(x.mean(dim=(3, 4)).transpose(1, 2), before)
        parts = (after,) if isinstance(after, Tensor) else after
        return y.transpose(1, 2)[..., None, None], [part.transpose(0, 1) for part in parts]


@register("recurrent", "lstm")
class PooledLSTM(PooledGRU):
    """torch.nn.LSTM over features averaged over pixels; the output is a map of one pixel."""

    Network = nn.LSTM
