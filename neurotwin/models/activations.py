"""Activations of the dialect, and those of torch.nn by their class names."""

from math import sqrt
from typing import Annotated

import torch
from pydantic import AfterValidator, Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import activation as torch_activations

from ..config import ConfigError, NullIsNone, Params, nearest

__all__ = ["ActParams", "Activation", "ActivationName"]

ACTIVATIONS = (
    "none", "identity", "relu", "leakyrelu", "gelu", "sigmoid", "tanh", "silu", "swish", "mish", "softplus",
    "bsoftplus", "splitrelu", "square", "energy", "amplitude",
)  # fmt: skip


def _check_activation(name: str) -> str:
    """Return the name if it is an activation of the dialect or of torch.nn; raise ValueError if not."""
    classes = [key for key in torch_activations.__all__ if key != "MultiheadAttention"]
    if name not in ACTIVATIONS and name not in classes:
        raise ValueError(f"unknown activation {name!r}; {nearest(name, [*ACTIVATIONS, *classes])}")
    return name


ActivationName = Annotated[str, AfterValidator(_check_activation), NullIsNone]
"""Name of an activation of the dialect, or of a class of torch.nn."""


class ActParams(Params):
    """Parameters of an activation."""

    negative_slope: float | None = Field(None, description="leakyrelu: slope below 0 (default 0.01).")
    beta: float | None = Field(
        None, gt=0, description="softplus, bsoftplus: sharpness (its initial value, where learned)."
    )
    split_dim: int | None = Field(None, description="splitrelu: axis that doubles; the channels by default.")
    paired: float | None = Field(
        None, gt=0, le=1,
        description="energy, amplitude: share of the channels that are squared and added in pairs (default 1); relu "
        "of the others comes first.",
    )  # fmt: skip


_TORCH_NAMES = {
    "none": "Identity", "identity": "Identity", "relu": "ReLU", "leakyrelu": "LeakyReLU", "gelu": "GELU",
    "sigmoid": "Sigmoid", "tanh": "Tanh", "silu": "SiLU", "swish": "SiLU", "mish": "Mish", "softplus": "Softplus",
    "Softmax2d": "Softmax",
}  # fmt: skip
_OVER_CHANNELS = ("GLU", "Softmax", "Softmin", "LogSoftmax")
_READS = {"leakyrelu": "negative_slope", "LeakyReLU": "negative_slope", "softplus": "beta", "Softplus": "beta"}
_READS |= {"bsoftplus": "beta", "splitrelu": "split_dim", "energy": "paired", "amplitude": "paired"}
_PAIRING = ("energy", "amplitude")
_LEAST_ENERGY = 1e-6
"""Added to an energy below its root, so that the gradient at 0 is finite."""


class Activation(nn.Module):
    """An activation of the dialect, or of torch.nn by its class name.

    energy is a² + b² of pairs of channels, as in the energy model of complex cells (Adelson & Bergen 1985), and
    amplitude is sqrt(a² + b² + ε) − sqrt(ε). The first half of the paired channels are the a, the second half the b.
    With `paired` below 1, some channels have no partner: they are rectified, as in simple cells, and come first.

    Parameters
    ----------
    name
        The name.
    params
        Its parameters; those that it does not read must not be given.
    dim
        Axis of the channels, for those that mix, split or double them.

    Raises
    ------
    ConfigError
        If a parameter is given that the activation does not read, or one is missing.

    Examples
    --------
    >>> Activation("splitrelu")(torch.tensor([[1.0, -2.0]]))
    tensor([[1., 0., 0., 2.]])
    >>> Activation("energy", ActParams(paired=0.5))(torch.tensor([[-1.0, 2.0, 3.0, 4.0]]))
    tensor([[ 0.,  2., 25.]])
    """

    kinds = {"log_beta": "sharpness"}

    def __init__(self, name: str, params: ActParams | None = None, *, dim: int = 1):
        super().__init__()
        given = {key: getattr(params, key) for key in ActParams.model_fields} if params is not None else {}
        given = {key: value for key, value in given.items() if value is not None}
        if idle := set(given) - {_READS.get(name)}:
            raise ConfigError(f"act_params.{min(idle)}: {name} does not read it; leave it out")
        if given.pop("split_dim", dim) != dim:
            raise ConfigError(f"act_params.split_dim: only the channels (axis {dim}) can be split; leave it out")
        self.name, self.dim, self.paired = name, dim, given.get("paired", 1.0)
        if name == "bsoftplus":
            self.log_beta = nn.Parameter(torch.tensor(given.get("beta", 1.0)).log())
        elif name not in ("splitrelu", "square", *_PAIRING):
            kind = _TORCH_NAMES.get(name, name)
            try:
                self.function = getattr(nn, kind)(**given, **({"dim": dim} if kind in _OVER_CHANNELS else {}))
            except TypeError:
                raise ConfigError(f"act_type: {name} has parameters that the dialect cannot give it") from None

    def channels(self, inputs: int) -> int:
        """Channels that come out."""
        if self.name == "GLU" and inputs % 2:
            raise ConfigError(f"act_type: GLU halves the channels, and {inputs} is odd")
        if self.name in _PAIRING:
            return inputs - self.pairs(inputs)
        return {"splitrelu": 2 * inputs, "GLU": inputs // 2}.get(self.name, inputs)

    def pairs(self, inputs: int) -> int:
        """Pairs of channels that energy and amplitude make of a number of channels."""
        pairs = int(self.paired * inputs / 2)
        if pairs == 0 or (self.paired == 1 and inputs % 2):
            raise ConfigError(
                f"act_type: {self.name} squares pairs of channels, which {inputs} channels and paired: "
                f"{self.paired:g} do not give; use an even number of channels or another share"
            )
        return pairs

    def forward(self, x: Tensor) -> Tensor:
        if self.name == "splitrelu":
            return torch.cat([x.relu(), (-x).relu()], dim=self.dim)
        if self.name == "square":
            return x.square()
        if self.name in _PAIRING:
            return self._paired(x)
        if self.name == "bsoftplus":
            beta = self.log_beta.exp()
            return F.softplus(beta * x) / beta
        return self.function(x)

    def _paired(self, x: Tensor) -> Tensor:
        pairs = self.pairs(x.shape[self.dim])
        single, first, second = x.split([x.shape[self.dim] - 2 * pairs, pairs, pairs], dim=self.dim)
        energy = torch.addcmul(first.square(), second, second)
        if self.name == "amplitude":
            energy = (energy + _LEAST_ENERGY).sqrt() - sqrt(_LEAST_ENERGY)
        return torch.cat([single.relu(), energy], dim=self.dim) if single.shape[self.dim] else energy
