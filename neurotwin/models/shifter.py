"""Where the eye looks, as a shift of the positions that a session's readout looks at."""

import torch
from torch import Tensor, nn

from ..config import ConfigError, ShifterParams, nearest
from .layers import MLP
from .stages import linear

__all__ = ["Shifter"]


class Shifter(nn.Module):
    """Shift of the readout's positions from the gaze: s = r tanh(W MLP(gaze)), with W 0 at the start.

    What an eye tracker misses of where the eye looks, and what a screen centred on the head does not follow, moves all
    receptive fields of a session alike (Walker et al. 2019, Nat Neurosci 22:2060; Franke et al. 2022, Nature 610:128).

    Parameters
    ----------
    params
        Its config.
    behavior_dim
        K, number of behaviour variables.
    names
        (K,) transform that each variable comes from; needed where the config names its sources.
    generator
        Draws the initial weights.

    Raises
    ------
    ConfigError
        If a source is not among the names.
    """

    Params = ShifterParams

    def __init__(
        self, params: ShifterParams, behavior_dim: int, names: tuple[str, ...] = (), *, generator: torch.Generator
    ):  # fmt: skip
        super().__init__()
        for source in params.source or ():
            if source not in names:
                hint = nearest(source, sorted(set(names)))
                raise ConfigError(f"source: no transform {source!r} is exposed as behavior; {hint}")
        columns = [k for k in range(behavior_dim) if params.source is None or names[k] in params.source]
        self.register_buffer("columns", torch.tensor(columns), persistent=False)
        self.max_shift = params.max_shift
        self.encoder = MLP(len(columns), params.hidden_dims, activation=params.act_type, generator=generator)
        # Without a bias: a constant shift is the readout's own positions.
        self.head = linear(self.encoder.features, 2, bias=False, scale=0.0, generator=generator)

    def forward(self, behavior: Tensor) -> Tensor:
        """From behaviour (B, L, K) to shifts (B, L, 2) along x and y, in units of half a map."""
        return self.max_shift * self.head(self.encoder(behavior[..., self.columns])).tanh()
