"""Links: how the drive of a unit, any real number, becomes its predicted rate."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import ConfigError

__all__ = ["LINKS", "Exp", "Identity", "Link", "ReLU", "Softplus"]


class Link(nn.Module):
    """Base of the links: an increasing function from drive to rate, elementwise.

    Attributes
    ----------
    positive
        Whether no rate is negative.
    kinds
        What each learned parameter is, by its name; optimizer groups and penalties are chosen by it.
    """

    positive: ClassVar[bool] = True
    kinds: ClassVar[dict[str, str]] = {}

    def forward(self, drive: Tensor) -> Tensor:
        """Rates of drives, elementwise."""
        raise NotImplementedError

    def inverse(self, rate: Tensor) -> Tensor:
        """Drives that give these rates, elementwise and finite; a rate out of reach counts as the nearest in reach."""
        raise NotImplementedError


class Softplus(Link):
    r"""A smooth rectifier: rate = log(1 + exp(βx)) / β.

    A small β makes the bend wide. A large one makes the function a rectifier of slope 1.

    Parameters
    ----------
    beta
        Sharpness of the bend, β > 0; where it is learned, its value at the start.
    learned
        Learn β, through its logarithm so that it stays positive. The units of one session share it.

    Raises
    ------
    ConfigError
        If β is not positive.

    Examples
    --------
    >>> link = Softplus(beta=2.0)
    >>> link(torch.tensor([0.0, 10.0])).tolist()
    [0.3465735912322998, 10.0]
    >>> round(link.inverse(torch.tensor(10.0)).item(), 4)
    10.0
    """

    kinds = {"log_beta": "sharpness"}

    def __init__(self, beta: float = 1.0, learned: bool = False) -> None:
        super().__init__()
        if not 0 < beta < float("inf"):
            raise ConfigError(f"softplus: beta is {beta}; it must be a positive number")
        self._beta = float(beta)
        self.log_beta = nn.Parameter(torch.tensor(self._beta).log()) if learned else None

    @property
    def beta(self) -> Tensor | float:
        """The sharpness β."""
        return self._beta if self.log_beta is None else self.log_beta.exp()

    def forward(self, drive: Tensor) -> Tensor:
        """log(1 + exp(βx)) / β."""
        if self.log_beta is None:
            return F.softplus(drive, beta=self._beta)
        return F.softplus(self.beta * drive) / self.beta

    def inverse(self, rate: Tensor) -> Tensor:
        """log(exp(βr) − 1) / β, written as r + log(1 − exp(−βr)) / β, which cannot overflow."""
        rate = _at_least_tiny(rate)
        return rate + (-(-self.beta * rate).expm1()).clamp_min(torch.finfo(rate.dtype).tiny).log() / self.beta

    def extra_repr(self) -> str:
        """What a printed model shows: β at the start, and whether it is learned."""
        return f"beta={self._beta:g}, learned={self.log_beta is not None}"


class ReLU(Link):
    """A rectifier: rate = max(x, 0). Below zero it has no gradient."""

    def forward(self, drive: Tensor) -> Tensor:
        """max(x, 0)."""
        return torch.relu(drive)

    def inverse(self, rate: Tensor) -> Tensor:
        """The rate itself."""
        return rate.clamp_min(0)


class Exp(Link):
    """The exponential: rate = exp(x). Drives multiply the rate where they add under other links."""

    def forward(self, drive: Tensor) -> Tensor:
        """exp(x)."""
        return torch.exp(drive)

    def inverse(self, rate: Tensor) -> Tensor:
        """log(r)."""
        return _at_least_tiny(rate).log()


class Identity(Link):
    """No change: rate = x, which may be negative, as dF/F is."""

    positive = False

    def forward(self, drive: Tensor) -> Tensor:
        """The drive itself."""
        return drive

    def inverse(self, rate: Tensor) -> Tensor:
        """The rate itself."""
        return rate.clone()


LINKS: dict[str, type[Link]] = {"softplus": Softplus, "relu": ReLU, "exp": Exp, "identity": Identity}
"""Links by the name that configuration files use."""


def _at_least_tiny(rate: Tensor) -> Tensor:
    return rate.clamp_min(torch.finfo(rate.dtype).tiny)
