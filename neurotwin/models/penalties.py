"""Penalties on weights, steps after the optimizer's, and how their weight changes over epochs: one class each.

Layouts of weights: convolutions (O, I, T, H, W) and (O, I, H, W); features of readouts (U, C) and (U, C, H, W), with
parts (excitatory and inhibitory, or heads) (2, U, C) and (U, heads, C); masks of readouts (U, H, W).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import ScheduleConfig, define, register
from .parameters import ParameterInfo

__all__ = ["Penalty", "Proximal", "Schedule", "scheduled_weight", "soft_threshold"]


# --------------------------------------------------------------------------------------------------------------------
# Penalties
# --------------------------------------------------------------------------------------------------------------------


class Penalty:
    """Base of the penalties: what is added to the loss for a weight.

    Attributes
    ----------
    shrinks
        Whether it draws a weight to 0 as weight decay does. Such a weight then gets no weight decay.
    """

    shrinks = False

    @classmethod
    def fault(cls, info: ParameterInfo, bound: float) -> str | None:
        """Why the penalty makes no sense for a parameter; None where it does."""
        return None

    @staticmethod
    def value(weight: Tensor) -> Tensor:
        """The penalty of a weight, a scalar; the first axis is that of units or filters."""
        raise NotImplementedError


def _has_groups(info: ParameterInfo) -> str | None:
    if info.parameter.ndim >= 2:
        return None
    return "needs output units or filters on the first axis and something to group or compare along the others"


@register("penalty", "l1")
class L1(Penalty):
    """Sum of absolute values."""

    @staticmethod
    def value(weight: Tensor) -> Tensor:
        return weight.abs().sum()


@register("penalty", "l2")
class L2(Penalty):
    """Sum of squares."""

    shrinks = True

    @staticmethod
    def value(weight: Tensor) -> Tensor:
        return weight.square().sum()


@register("penalty", "group_lasso")
class GroupLasso(Penalty):
    """Sum over the first axis (output units, their parts, or filters) of the Euclidean norm (Yuan & Lin 2006).

    >>> GroupLasso.value(torch.tensor([[3.0, 4.0], [0.0, 2.0]]))
    tensor(7.)
    """

    shrinks = True

    @classmethod
    def fault(cls, info: ParameterInfo, bound: float) -> str | None:
        return _has_groups(info)

    @staticmethod
    def value(weight: Tensor) -> Tensor:
        return torch.linalg.vector_norm(weight.flatten(1), dim=1).sum()


@register("penalty", "ortho")
class Ortho(Penalty):
    """Squared Frobenius norm of W Wᵀ - 1 for the filters as rows of W (Bansal et al. 2018).

    Where there are more rows than columns it is that of Wᵀ W - 1, so that 0 can be reached.
    """

    @classmethod
    def fault(cls, info: ParameterInfo, bound: float) -> str | None:
        return _has_groups(info)

    @staticmethod
    def value(weight: Tensor) -> Tensor:
        matrix = weight.flatten(1)
        gram = matrix @ matrix.T if len(matrix) <= matrix.shape[1] else matrix.T @ matrix
        return (gram - torch.eye(len(gram), dtype=weight.dtype, device=weight.device)).square().sum()


@register("penalty", "laplacian")
class Laplacian(Penalty):
    """Sum of squares of the discrete Laplacian over the last two axes; constants are free, edges included.

    >>> Laplacian.value(torch.tensor([[[[0.0, 1.0, 0.0]]]]))  # 1, -2, 1
    tensor(6.)
    """

    @classmethod
    def fault(cls, info: ParameterInfo, bound: float) -> str | None:
        shape = info.parameter.shape
        if info.kind in ("kernel", "feature_maps", "mask") and len(shape) >= 3 and max(shape[-2:]) >= 2:
            return None
        if info.kind == "coefficients":
            return "needs pixels, and these are weights of functions, which are smooth"
        return "needs space (the last two axes of a convolution, of linear features or of a mask) of several pixels"

    @staticmethod
    def value(weight: Tensor) -> Tensor:
        return (_second_difference(weight, -1) + _second_difference(weight, -2)).square().sum()


@register("penalty", "smooth_t")
class SmoothT(Penalty):
    """Sum of squares of the second difference over time, axis 2; constants are free, edges included."""

    @classmethod
    def fault(cls, info: ParameterInfo, bound: float) -> str | None:
        shape = info.parameter.shape
        if info.kind in ("kernel", "coefficients") and len(shape) == 5 and shape[2] >= 2:
            return None
        return "needs time (axis 2 of a convolution) of several bins"

    @staticmethod
    def value(weight: Tensor) -> Tensor:
        return _second_difference(weight, 2).square().sum()


def _second_difference(weight: Tensor, axis: int) -> Tensor:
    """x[i - 1] + x[i + 1] - 2 x[i] along an axis, whose ends are repeated outwards."""
    slope = weight.movedim(axis, -1).diff(dim=-1)
    return (F.pad(slope, (0, 1)) - F.pad(slope, (1, 0))).movedim(-1, axis)


# --------------------------------------------------------------------------------------------------------------------
# Steps after the optimizer's
# --------------------------------------------------------------------------------------------------------------------


class Proximal(Penalty):
    """Base of what is done to a weight after the optimizer's step.

    Attributes
    ----------
    is_bound
        Whether lambda is a bound on the weight itself, and not the weight of a penalty.
    """

    is_bound = True

    @staticmethod
    def step(weight: Tensor, bound: float, sizes: Tensor | float) -> Tensor:
        """The weight after the step.

        Parameters
        ----------
        weight
            The weight.
        bound
            Lambda, as scheduled.
        sizes
            The step that the optimizer takes for a unit gradient, element by element.
        """
        raise NotImplementedError


@register("penalty", "proximal_l1")
class ProximalL1(Proximal):
    """The proximal operator of the L1 norm: weights smaller than lambda times the optimizer's step become 0."""

    is_bound = False

    @staticmethod
    def step(weight: Tensor, bound: float, sizes: Tensor | float) -> Tensor:
        return soft_threshold(weight, bound * sizes)


@register("penalty", "proximal_clamp")
class ProximalClamp(Proximal):
    """Weights are kept in [-lambda, lambda]."""

    @classmethod
    def fault(cls, info: ParameterInfo, bound: float) -> str | None:
        return "would hold at 0; lambda is the bound" if bound == 0 else None

    @staticmethod
    def step(weight: Tensor, bound: float, sizes: Tensor | float) -> Tensor:
        return weight.clamp(-bound, bound)


@register("penalty", "proximal_clamp_positive")
class ProximalClampPositive(Proximal):
    """Weights are kept in (0, lambda]: above 1e-6, and at lambda or below."""

    LEAST = 1e-6

    @classmethod
    def fault(cls, info: ParameterInfo, bound: float) -> str | None:
        return f"lambda is the upper bound, and {bound:g} leaves nothing" if bound <= cls.LEAST else None

    @staticmethod
    def step(weight: Tensor, bound: float, sizes: Tensor | float) -> Tensor:
        return weight.clamp(ProximalClampPositive.LEAST, bound)


@register("penalty", "proximal_clamp_min")
class ProximalClampMin(Proximal):
    """Weights are kept at lambda or above."""

    @staticmethod
    def step(weight: Tensor, bound: float, sizes: Tensor | float) -> Tensor:
        return weight.clamp(min=bound)


def soft_threshold(weight: Tensor, threshold: Tensor | float) -> Tensor:
    """The proximal operator of the L1 norm: argmin over x of threshold |x| + (x - w)² / 2, element by element."""
    return weight.sign() * (weight.abs() - threshold).clamp(min=0)


# --------------------------------------------------------------------------------------------------------------------
# Schedules
# --------------------------------------------------------------------------------------------------------------------


class Schedule:
    """Base of the schedules.

    Attributes
    ----------
    rises
        Whether the weight is 0 before `start_epoch`; a bound holds from there on.
    """

    rises = False

    @staticmethod
    def first(config: ScheduleConfig) -> float:
        """The weight until `start_epoch`."""
        raise NotImplementedError


@register("penalty_schedule", "constant")
class Constant(Schedule):
    """lambda, always."""


@register("penalty_schedule", "warmup", "linear_ramp")
class Ramp(Schedule):
    """0 until `start_epoch`, then linear to lambda at `end_epoch`, and that from there on."""

    rises = True

    @staticmethod
    def first(config: ScheduleConfig) -> float:
        return 0.0


@register("penalty_schedule", "linear_decay")
class Decay(Schedule):
    """`start_lambda` until `start_epoch`, then linear to lambda at `end_epoch`, and that from there on."""

    @staticmethod
    def first(config: ScheduleConfig) -> float:
        return config.start_lambda or 0.0


def scheduled_weight(weight: float, schedule: ScheduleConfig, epoch: float) -> float:
    """The weight of a term at an epoch, counted from 0.

    >>> ramp = ScheduleConfig(type="linear_ramp", start_epoch=2, end_epoch=4)
    >>> [scheduled_weight(0.5, ramp, epoch) for epoch in range(6)]
    [0.0, 0.0, 0.0, 0.25, 0.5, 0.5]
    """
    kind, last = define("penalty_schedule", schedule.kind), schedule.end_epoch
    if kind is Constant or epoch >= last:
        return weight
    first = kind.first(schedule)
    if epoch <= schedule.start_epoch:
        return first
    return first + (weight - first) * (epoch - schedule.start_epoch) / (last - schedule.start_epoch)
