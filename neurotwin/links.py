"""Links: how the drive of a unit, any real number, becomes its predicted rate."""

from typing import ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from .config import NoParams, Params, define, register

__all__ = ["Exp", "Identity", "Link", "ReLU", "Softplus", "make_link"]


class Link(nn.Module):
    """Base of the links: an increasing function from drive to rate, elementwise.

    Attributes
    ----------
    positive
        Whether no rate is negative.
    kinds
        What each learned parameter is, by its name; optimizer groups and penalties are chosen by it.
    """

    Params: ClassVar[type[Params]] = NoParams
    positive: ClassVar[bool] = True
    kinds: ClassVar[dict[str, str]] = {}

    @classmethod
    def of(cls, params: Params, n_units: int = 1) -> Self:
        """The link with the parameters of a config, for a number of units."""
        return cls(**{name: getattr(params, name) for name in type(params).model_fields})

    def forward(self, drive: Tensor) -> Tensor:
        """Rates of drives, elementwise."""
        raise NotImplementedError

    def inverse(self, rate: Tensor) -> Tensor:
        """Finite drives that give these rates, elementwise; a rate that the link cannot give counts as the nearest."""
        raise NotImplementedError


@register("link", "softplus")
class Softplus(Link):
    r"""A smooth rectifier: rate = log(1 + exp(βx)) / β.

    A small β makes the bend wide. With a large β, the function is nearly max(x, 0).

    Parameters
    ----------
    beta
        Sharpness of the bend, β > 0; where it is learned, its value at the start.
    learned
        Learn β, through its logarithm so that it stays positive: one that the units of a session share, or one for each
        of them (per_unit).
    n_units
        Number of units U, where each has its own; drives are then (..., U).

    Examples
    --------
    >>> link = Softplus(beta=2.0)
    >>> link(torch.tensor([0.0, 10.0])).tolist()
    [0.3465735912322998, 10.0]
    >>> round(link.inverse(torch.tensor(10.0)).item(), 4)
    10.0
    """

    kinds = {"log_beta": "sharpness"}

    class Params(Params):
        """Parameters of the softplus."""

        beta: float = Field(1.0, ge=1e-3, le=1e3, description="Sharpness of the bend; at the start, where learned.")
        learned: bool | Literal["per_unit"] = Field(
            False, description="Learn the sharpness: true, one for all units of a session; per_unit, one for each."
        )

    def __init__(self, beta: float = 1.0, learned: bool | Literal["per_unit"] = False, n_units: int = 1) -> None:
        super().__init__()
        self._beta = float(beta)
        start = torch.full((n_units,) if learned == "per_unit" else (), self._beta).log()
        self.log_beta = nn.Parameter(start) if learned else None

    @classmethod
    def of(cls, params: Params, n_units: int = 1) -> Self:
        """The link with the parameters of a config, for a number of units."""
        return cls(params.beta, params.learned, n_units)

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


@register("link", "relu")
class ReLU(Link):
    """A rectifier: rate = max(x, 0). Below zero it has no gradient."""

    def forward(self, drive: Tensor) -> Tensor:
        """max(x, 0)."""
        return torch.relu(drive)

    def inverse(self, rate: Tensor) -> Tensor:
        """The rate itself."""
        return rate.clamp_min(0)


@register("link", "exp")
class Exp(Link):
    """The exponential: rate = exp(x). Two drives that are added multiply the rate."""

    def forward(self, drive: Tensor) -> Tensor:
        """exp(x)."""
        return torch.exp(drive)

    def inverse(self, rate: Tensor) -> Tensor:
        """log(r)."""
        return _at_least_tiny(rate).log()


@register("link", "identity", "none")
class Identity(Link):
    """No change: rate = x, which may be negative, as dF/F is."""

    positive = False

    def forward(self, drive: Tensor) -> Tensor:
        """The drive itself."""
        return drive

    def inverse(self, rate: Tensor) -> Tensor:
        """The rate itself."""
        return rate.clone()


@register("link", "auto")
class Auto(Link):
    """The link that suits the likelihood. It is a name for files, which :func:`make_link` replaces by the link."""


def make_link(name: str, params: Params, *, positive: bool, default: str, n_units: int = 1) -> Link:
    """The link that a config names.

    Parameters
    ----------
    name, params
        As in the config.
    positive
        Whether the likelihood needs positive rates. The names `identity` and `none` then mean that the drive is the
        log of the rate, as labs' files have it.
    default
        Name that `auto` stands for.
    n_units
        Number of units, for links of which each unit has its own.
    """
    if name == "auto":
        return define("link", default)()
    kind = define("link", name)
    return Exp() if positive and not kind.positive else kind.of(params, n_units)


def _at_least_tiny(rate: Tensor) -> Tensor:
    return rate.clamp_min(torch.finfo(rate.dtype).tiny)
