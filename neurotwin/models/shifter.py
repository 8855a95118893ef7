"""Where the eye looks, as a shift of the positions that a session's readout looks at."""

import torch
from pydantic import Field
from torch import Tensor, nn

from ..config import LARGEST, ConfigError, Names, Params, PositiveInt, nearest, register
from .activations import ActivationName
from .layers import MLP
from .stages import linear

__all__ = ["Shifter"]


@register("shifter", "mlp")
class Shifter(nn.Module):
    """Shift of the readout's positions from the gaze: s = r tanh(W MLP(gaze)), with W 0 at the start.

    When the eye moves and the stimulus does not follow exactly, all receptive fields of a session move on the screen by
    the same amount. This happens where the eye tracker is not exact, and where the screen is fixed to the head (Walker
    et al. 2019, Nat Neurosci 22:2060; Franke et al. 2022, Nature 610:128).

    Parameters
    ----------
    params
        Its config.
    behavior_dim
        K, number of behaviour variables.
    half
        Half of the map that the readout sees, feature pixels.
    names
        (K,) transform that each variable comes from; needed where the config names its sources.
    generator
        Draws the initial weights.

    Raises
    ------
    ConfigError
        If a source is not among the names.
    """

    class Params(Params):
        """A perceptron from the gaze to a shift of all positions of a readout: max_shift * tanh(MLP(gaze)).

        It starts at 0. For readouts with positions: gaussian, gaussianei and point. The gaze enters as behaviour; give
        it a transform of its own, exposed as behavior, and scale it to about 1. A modulator sees all behaviour, the
        gaze included.
        """

        source: Names | None = Field(
            None, description="Transforms that hold the gaze, by name. Default: all behaviour."
        )
        hidden_dims: tuple[PositiveInt, ...] = Field((5, 5), description="Widths of the hidden layers; none: linear.")
        act_type: ActivationName = Field("tanh", description="Activation between layers.")
        max_shift: float | None = Field(
            None, gt=0, le=LARGEST,
            description="Bound of the shift along x and y, feature pixels. Default: half of the map.",
        )  # fmt: skip

    def __init__(
        self, params: Params, behavior_dim: int, half: float, names: tuple[str, ...] = (), *,
        generator: torch.Generator,
    ):  # fmt: skip
        super().__init__()
        for source in params.source or ():
            if source not in names:
                hint = nearest(source, sorted(set(names)))
                raise ConfigError(f"source: no transform {source!r} is exposed as behavior; {hint}")
        columns = [k for k in range(behavior_dim) if params.source is None or names[k] in params.source]
        self.register_buffer("columns", torch.tensor(columns), persistent=False)
        self.max_shift = half if params.max_shift is None else params.max_shift
        self.encoder = MLP(len(columns), params.hidden_dims, activation=params.act_type, generator=generator)
        # Without a bias: a constant shift is the readout's own positions.
        self.head = linear(self.encoder.features, 2, bias=False, scale=0.0, generator=generator)

    def forward(self, behavior: Tensor) -> Tensor:
        """From behaviour (B, L, K) to shifts (B, L, 2) along x and y, feature pixels."""
        return self.max_shift * self.head(self.encoder(behavior[..., self.columns])).tanh()
