"""Learning-rate schedules, as factors of each parameter group's own rate.

A schedule is one class: its formula stands in its docstring and in :meth:`Schedule.factor`, and :func:`register` makes
it known under the name that ``--lr_scheduler`` takes.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from neurotwin.config import define, register, registered

__all__ = [
    "SCHEDULES",
    "Anneal",
    "AnnealedRate",
    "Cosine",
    "CosineWarmup",
    "CosineWarmupRestart",
    "NoSchedule",
    "Plan",
    "Plateau",
    "Schedule",
    "Thirds",
    "largest_rate",
    "make_scheduler",
]


@dataclass(frozen=True)
class Plan:
    """The lengths of a run that a schedule is made for; see :func:`make_scheduler`."""

    max_epochs: int
    steps_per_epoch: int
    warmup_epochs: int
    restart_period: int | None
    batches_per_epoch: int
    monitor: str

    @property
    def steps(self) -> int:
        """Optimizer steps of the run."""
        return self.max_epochs * self.steps_per_epoch


class Schedule:
    """How learning rates change over the optimizer steps of a run.

    Attributes
    ----------
    reads
        Which of ``warmup_epochs`` and ``restart_period`` change it.
    """

    reads: tuple[str, ...] = ()

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def factor(self, step: int) -> float:
        """What every group's own rate is multiplied by at an optimizer step, counted from 0."""
        return 1.0

    def make(self, optimizer: Optimizer) -> dict[str, Any] | None:
        """What Lightning's ``configure_optimizers`` returns under ``lr_scheduler``; None for a constant rate."""
        last = self.plan.steps - 1
        return {
            "scheduler": LambdaLR(optimizer, lambda step: self.factor(min(step, last))), "interval": "step",
            "frequency": 1,
        }  # fmt: skip


@register("lr_schedule", "none")
class NoSchedule(Schedule):
    """The groups' own rates, always."""

    def make(self, optimizer: Optimizer) -> None:
        """Nothing to step."""


@register("lr_schedule", "step")
class Thirds(Schedule):
    """0.1^floor(3 s / S) at step s of S: a tenth after each third of the run."""

    def factor(self, step: int) -> float:
        """0.1^floor(3 s / S)."""
        return 0.1 ** (3 * step // self.plan.steps)


@register("lr_schedule", "plateau")
class Plateau(Schedule):
    """Halved when the monitored metric has not fallen for 5 validations in a row; stepped once an epoch."""

    def make(self, optimizer: Optimizer) -> dict[str, Any]:
        """Torch's ``ReduceLROnPlateau``."""
        plateau = ReduceLROnPlateau(optimizer, mode="min", factor=0.5, patience=5)
        # At the epoch's last batch rather than by "epoch": after its validation, but before the epoch's checkpoint is
        # written, and not skipped in an epoch that was resumed midway.
        frequency = self.plan.batches_per_epoch
        return {"scheduler": plateau, "interval": "step", "frequency": frequency, "monitor": self.plan.monitor}


@register("lr_schedule", "cosine")
class Cosine(Schedule):
    """(1 + cos(pi s / S)) / 2 at step s of S."""

    def factor(self, step: int) -> float:
        """(1 + cos(pi s / S)) / 2."""
        return _half_cosine(step, self.plan.steps)


@register("lr_schedule", "cosine_warmup")
class CosineWarmup(Schedule):
    """(s + 1) / W for the W steps of the warm-up, then (1 + cos(pi (s - W) / (S - W))) / 2.

    The first step already has a rate above 0, and the last step of the warm-up the full one (Goyal et al. 2017).
    """

    reads = ("warmup_epochs",)

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        if not 0 <= plan.warmup_epochs < plan.max_epochs:
            raise ValueError(
                f"warmup_epochs {plan.warmup_epochs} must be at least 0 and less than max_epochs {plan.max_epochs}"
            )
        self.warmup = plan.warmup_epochs * plan.steps_per_epoch
        self.period = plan.steps - self.warmup

    def factor(self, step: int) -> float:
        """Up in a line, then down as half a cosine, anew after every period."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        return _half_cosine((step - self.warmup) % self.period, self.period)


@register("lr_schedule", "cosine_warmup_restart")
class CosineWarmupRestart(CosineWarmup):
    """(s + 1) / W for the W steps of the warm-up, then (1 + cos(pi ((s - W) mod R) / R)) / 2 with R steps a period.

    By default a period is a quarter of the epochs after the warm-up, at least one (Loshchilov & Hutter 2017).
    """

    reads = ("warmup_epochs", "restart_period")

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        epochs = plan.restart_period
        if epochs is None:
            epochs = max(1, (plan.max_epochs - plan.warmup_epochs) // 4)
        if epochs < 1:
            raise ValueError(f"restart_period {epochs} must be at least one epoch")
        self.period = epochs * plan.steps_per_epoch


class AnnealedRate(LRScheduler):
    """A warm-up, times half a cosine over the steps that the run is thought to have, however often that changes.

    With W steps of warm-up, the factor at step s is ::

        min(1, (s + 1) / W) (1 + cos(pi p)) / 2,    p = s / S

    where S is the number of steps that the run is thought to have at that moment. A machine that is slow for a while
    makes S smaller and the rates lower; when it is quick again, both come back.

    Parameters
    ----------
    optimizer
        Its groups keep the ratios of their rates.
    warmup
        W; 0: none.
    steps
        S at the start, and at most.

    Attributes
    ----------
    planned
        S; part of the state that checkpoints hold.
    """

    def __init__(self, optimizer: Optimizer, *, warmup: int, steps: int) -> None:
        self.warmup, self.most, self.planned = warmup, steps, steps
        super().__init__(optimizer)

    @property
    def position(self) -> float:
        """p, in [0, 1); after the last step it stays as it was there."""
        return min(self.last_epoch, self.planned - 1) / self.planned

    def plan(self, steps: float) -> None:
        """Say how many steps the run is thought to have."""
        self.planned = min(self.most, max(self.last_epoch + 1, round(steps)))

    def get_lr(self) -> list[float]:
        """The rates of the groups."""
        rise = min(1.0, (self.last_epoch + 1) / self.warmup) if self.warmup else 1.0
        return [rate * rise * _half_cosine(self.position, 1) for rate in self.base_lrs]


@register("lr_schedule", "anneal")
class Anneal(Schedule):
    """Half a cosine over the whole run, to 0 at its end: the last epoch, or before that the end of the time budget.

    It is multiplied by (s + 1) / W for the W steps of the warm-up; see :class:`AnnealedRate`. Without a time budget it
    is a function of the step. With one, the steps to come are estimated from those that were timed, again and again
    (:class:`~training.callbacks.TimeBudgetCallback`), so that the rates follow the clock.
    """

    reads = ("warmup_epochs",)

    def make(self, optimizer: Optimizer) -> dict[str, Any]:
        """An :class:`AnnealedRate`."""
        warmup = self.plan.warmup_epochs * self.plan.steps_per_epoch
        scheduler = AnnealedRate(optimizer, warmup=warmup, steps=self.plan.steps)
        return {"scheduler": scheduler, "interval": "step", "frequency": 1}


def _half_cosine(step: float, length: float) -> float:
    return (1 + math.cos(math.pi * step / length)) / 2


SCHEDULES = tuple(registered("lr_schedule"))
"""Names of the schedules that ship."""


def make_scheduler(
    optimizer: Optimizer,
    kind: str,
    *,
    max_epochs: int,
    steps_per_epoch: int,
    warmup_epochs: int = 5,
    restart_period: int | None = None,
    batches_per_epoch: int | None = None,
    monitor: str = "val_loss",
) -> dict[str, Any] | None:
    """A schedule in the form that Lightning's ``configure_optimizers`` returns under ``lr_scheduler``.

    Kinds are registered as ``lr_schedule``; each says its formula. After the run the rate stays that of its last step.

    Parameters
    ----------
    optimizer
        Its groups keep the ratios of their rates.
    kind
        One of :data:`SCHEDULES`.
    max_epochs, steps_per_epoch
        Epochs of the run, and optimizer steps (not batches that are accumulated) of an epoch.
    warmup_epochs
        Length of the warm-up, epochs; 0: none.
    restart_period
        Epochs between restarts; by default a quarter of those after the warm-up, at least one.
    batches_per_epoch
        Batches of an epoch, where gradients are accumulated; by default `steps_per_epoch`.
    monitor
        What plateau watches.

    Returns
    -------
    dict or None
        ``scheduler``, ``interval``, ``frequency`` and, for plateau, ``monitor``. All are stepped once per optimizer
        step, plateau once an epoch.

    Raises
    ------
    ValueError
        If the kind is unknown, a length not positive, or no epoch left after the warm-up.

    Examples
    --------
    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.4)
    >>> config = make_scheduler(optimizer, "cosine_warmup", max_epochs=3, steps_per_epoch=2, warmup_epochs=1)
    >>> for _ in range(6):
    ...     print(round(optimizer.param_groups[0]["lr"], 3), end=" ")
    ...     optimizer.step()
    ...     config["scheduler"].step()
    0.2 0.4 0.4 0.341 0.2 0.059
    """
    if max_epochs < 1 or steps_per_epoch < 1:
        raise ValueError(f"max_epochs {max_epochs} and steps_per_epoch {steps_per_epoch} must be positive")
    plan = Plan(
        max_epochs, steps_per_epoch, warmup_epochs, restart_period, batches_per_epoch or steps_per_epoch, monitor
    )
    return define("lr_schedule", kind)(plan).make(optimizer)


def largest_rate(optimizers: Iterable[Optimizer]) -> float:
    """The largest learning rate at present; that of positions, which have a unit of their own, only where all have."""
    groups = [group for one in optimizers for group in one.param_groups]
    usual = [group["lr"] for group in groups if group.get("lr_scale", 1.0) == 1.0]
    return max(usual or [group["lr"] / group["lr_scale"] for group in groups])
