"""Where units look, as their place in the tissue or on the probe says: neighbours see nearly the same."""

import torch
from torch import Tensor, nn

from ..config import ConfigError

__all__ = ["Retinotopy", "standardized"]


class Retinotopy(nn.Module):
    """A linear map from the coordinates of a session's units to where they look: μ = A p + c, 0 at the start.

    The map is what all units of a session share. A readout adds to it what is each unit's own. With a penalty on the
    latter, this is a Gaussian prior of the positions about the map, whose mean is learned (empirical Bayes).

    Parameters
    ----------
    positions
        (U, D) coordinates of the units, in any unit: they are scaled to mean 0 and variance 1.
    lr_scale
        How much faster than others its parameters learn; positions are in pixels.
    """

    kinds = {"slope": "position", "centre": "position"}

    def __init__(self, positions: Tensor | None, lr_scale: float):
        super().__init__()
        self.register_buffer("positions", standardized(positions, "retinotopy"), persistent=False)
        self.slope = nn.Parameter(torch.zeros(2, self.positions.shape[1]))
        self.centre = nn.Parameter(torch.zeros(2))
        self.lr_scales = dict.fromkeys(self.kinds, lr_scale)

    def forward(self) -> Tensor:
        """(U, 2), feature pixels."""
        return self.positions @ self.slope.t() + self.centre


def standardized(positions: Tensor | None, key: str) -> Tensor:
    """Coordinates (U, D) of units with mean 0 and variance 1; an axis on which they do not differ is 0.

    Raises
    ------
    ConfigError
        If the session has none; `key` is what needs them.
    """
    if positions is None:
        raise ConfigError(f"{key}: the session has no unit_positions; add them, or set it to false")
    positions = positions.to(torch.get_default_dtype())
    return (positions - positions.mean(dim=0)) / positions.std(dim=0, correction=0).clamp_min(1e-6)
