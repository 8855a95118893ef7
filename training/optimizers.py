"""The optimizers of ``--optimizer``: AdamW, or Muon for the kernels of the core and AdamW for the rest."""

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from math import sqrt
from typing import Any

import torch
from torch import Tensor

from neurotwin.models.parameters import ParameterInfo

__all__ = ["OPTIMIZERS", "Muon", "make_optimizer", "orthogonalised"]

logger = logging.getLogger(__name__)

_STEP_SIZE = 0.2
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


class Muon(torch.optim.AdamW):
    r"""Momentum, orthogonalised, for groups of kernels (Jordan et al. 2024), and AdamW for all other groups.

    A kernel of shape (O, ...) is taken as a matrix of O rows. With gradient g and momentum m ::

        m <- μ m + (1 - μ) g,    W <- (1 - η λ) W - 0.2 η sqrt(max(rows, columns)) orth(μ m + (1 - μ) g)

    where η is the learning rate of the group, λ its weight decay and μ = 0.95. orth(A) = U Vᵀ for A = U S Vᵀ: all
    directions in which a kernel can change are changed alike, also those in which its gradient is small. The factor
    makes the root mean square of a step 0.2 η, which is about that of AdamW (Liu et al. 2025), so that both can share
    a learning rate.

    Parameters
    ----------
    groups
        As for ``torch.optim.AdamW``. Groups with ``"orthogonal": True`` are those of kernels.
    momentum
        μ, in [0, 1).

    Raises
    ------
    ValueError
        If the momentum is not in [0, 1), or a kernel is no matrix.

    Notes
    -----
    Directions that the stimulus hardly drives are moved as much as all others. Filters that are made of functions
    (`rotations`) therefore stay with AdamW (:func:`make_optimizer`): functions of high frequency, which natural
    pictures hardly show, would grow at random, which costs no score but leaves receptive fields that are not those of
    the units.

    ``torch.optim.Muon`` takes matrices alone and computes in bfloat16; a run has one optimizer here, so that schedules,
    checkpoints and penalties need not know which one it is.

    References
    ----------
    Jordan et al. 2024, *Muon: An optimizer for hidden layers in neural networks*; Liu et al. 2025, *Muon is scalable
    for LLM training*.

    Examples
    --------
    >>> kernel = torch.nn.Parameter(torch.zeros(2, 3))
    >>> optimizer = Muon([{"params": [kernel], "orthogonal": True, "lr": 1.0, "weight_decay": 0.0}])
    >>> kernel.grad = torch.tensor([[4.0, 0.0, 0.0], [0.0, 0.1, 0.0]])  # one direction is 40 times as steep
    >>> optimizer.step()
    >>> [round(value, 1) for value in kernel.detach().diagonal().tolist()]
    [-0.2, -0.3]
    """

    def __init__(self, groups: Iterable[Mapping[str, Any]], *, momentum: float = 0.95) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum {momentum} must be at least 0 and less than 1")
        super().__init__([{"orthogonal": False, "momentum": momentum, **group} for group in groups])
        for parameter in (p for group in self.param_groups if group["orthogonal"] for p in group["params"]):
            if parameter.ndim < 2:
                raise ValueError(f"a parameter of shape {tuple(parameter.shape)} has no rows and columns")

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; what `closure` returns, which computes the gradients where it is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = self.param_groups
        try:
            self.param_groups = [group for group in groups if not group["orthogonal"]]
            super().step()
        finally:
            self.param_groups = groups
        for group in groups:
            for kernel in group["params"] if group["orthogonal"] else ():
                if kernel.grad is not None:
                    self._turn(kernel, group)
        return loss

    @torch.no_grad()
    def _turn(self, kernel: Tensor, group: Mapping[str, Any]) -> None:
        """Step one kernel."""
        state = self.state[kernel]
        if not state:
            state["step"], state["momentum"] = torch.zeros(()), torch.zeros_like(kernel)  # AdamW's have a step too
        state["step"] += 1
        momentum = state["momentum"].lerp_(kernel.grad, 1 - group["momentum"])
        update = orthogonalised(kernel.grad.lerp(momentum, group["momentum"]).flatten(1))
        kernel.mul_(1 - group["lr"] * group["weight_decay"])
        size = _STEP_SIZE * group["lr"] * sqrt(max(update.shape))
        kernel.sub_(update.view_as(kernel).to(kernel.dtype), alpha=size)


def orthogonalised(matrix: Tensor) -> Tensor:
    """U Vᵀ of a matrix (rows, columns) with the singular values U S Vᵀ, about; in float32.

    Five steps of a Newton-Schulz iteration, whose polynomial takes singular values to between 0.7 and 1.2 and not to
    1 exactly, which is enough here and saves a decomposition (Jordan et al. 2024, whose coefficients these are). Values
    below a thousandth of the matrix's norm stay smaller.
    """
    a, b, c = _NEWTON_SCHULZ
    flat = matrix.float()
    wide = flat.T if len(flat) > flat.shape[1] else flat
    wide = wide / wide.norm().clamp_min(1e-12)
    with torch.autocast(wide.device.type, enabled=False):
        for _ in range(_ITERATIONS):
            square = wide @ wide.T
            wide = a * wide + (b * square + c * square @ square) @ wide
    return wide.T if len(flat) > flat.shape[1] else wide


OPTIMIZERS: dict[str, type[torch.optim.AdamW]] = {"adamw": torch.optim.AdamW, "muon": Muon}
"""What ``--optimizer`` can name."""


def make_optimizer(
    kind: str, parameters: Iterable[ParameterInfo], *, session_rate: float, core_rate: float, weight_decay: float,
    no_decay: Collection[str] = (),
) -> torch.optim.AdamW:  # fmt: skip
    """An optimizer over the parameters of core and sessions, in groups with and without weight decay.

    A parameter whose unit is s times as small learns s times as fast (`ParameterInfo.lr_scale`), and AdamW's ε is as
    many times smaller: its steps are then those of the parameter in the other unit, to the last digit.

    Parameters
    ----------
    kind
        A name in :data:`OPTIMIZERS`.
    parameters
        Of the model (:func:`~neurotwin.models.parameters.describe_parameters`); frozen ones are left out.
    session_rate, core_rate
        Learning rates of what belongs to a session, and of what all share.
    weight_decay
        Of the kinds of parameters that decay.
    no_decay
        Names of parameters that do not decay, though others of their kind do.

    Raises
    ------
    KeyError
        If there is no such optimizer.
    """
    groups: dict[str, dict[str, Any]] = {}
    for info in parameters:
        if not info.parameter.requires_grad:
            continue
        part, scale = "core" if info.session is None else "session", info.lr_scale
        decays = info.decays and info.name not in no_decay
        turned = kind == "muon" and part == "core" and info.kind == "kernel"
        name = "/".join([part, *(["kernels"] if turned else []), "decay" if decays else "no_decay"])
        name += f"/x{scale:g}" if scale != 1 else ""
        rate = scale * (core_rate if part == "core" else session_rate)
        group = {"name": name, "params": [], "lr": rate, "lr_scale": scale, "eps": 1e-8 / scale}
        group |= {"weight_decay": weight_decay if decays else 0.0, **({"orthogonal": True} if turned else {})}
        groups.setdefault(name, group)["params"].append(info.parameter)
    if kind == "muon" and not any(group.get("orthogonal") for group in groups.values()):
        logger.warning("optimizer muon: no kernel of the core is trained, so that all is left to AdamW")
    return OPTIMIZERS[kind](list(groups.values()))
