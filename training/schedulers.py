"""Learning-rate schedules, as factors of each parameter group's own rate."""

import math
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from neurotwin.config import nearest

__all__ = ["SCHEDULES", "make_scheduler"]

SCHEDULES = ("none", "step", "plateau", "cosine", "cosine_warmup", "cosine_warmup_restart")


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

    With S optimizer steps in all, W in the warm-up and R in a period, the rate at step s is the group's own rate times

    ===================== ===========================================================================================
    none                  1 (returns None)
    step                  0.1^floor(3 s / S): a tenth after each third of the run
    plateau               halved when `monitor` has not fallen for 5 validations in a row
    cosine                (1 + cos(pi s / S)) / 2
    cosine_warmup         (s + 1) / W for s < W, then (1 + cos(pi (s - W) / (S - W))) / 2
    cosine_warmup_restart (s + 1) / W for s < W, then (1 + cos(pi ((s - W) mod R) / R)) / 2
    ===================== ===========================================================================================

    The first step of a warm-up already has a rate above 0 and its last the full one (Goyal et al. 2017). Beyond S the
    rate stays that of the last step.

    Parameters
    ----------
    optimizer
        Its groups keep the ratios of their rates.
    kind
        One of :data:`SCHEDULES`.
    max_epochs
        Epochs of the run.
    steps_per_epoch
        Optimizer steps (not micro-batches) of an epoch.
    warmup_epochs
        Length of the warm-up, epochs; read by the two kinds that have one.
    restart_period
        Epochs between restarts; by default a quarter of those after the warm-up, at least one.
    batches_per_epoch
        Micro-batches of an epoch, where gradients are accumulated; by default `steps_per_epoch`.
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
        If the kind is unknown, or the warm-up leaves no epoch to train.

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
    if kind not in SCHEDULES:
        raise ValueError(f"unknown lr_scheduler {kind!r}; {nearest(kind, SCHEDULES)}")
    if max_epochs < 1 or steps_per_epoch < 1:
        raise ValueError(f"max_epochs {max_epochs} and steps_per_epoch {steps_per_epoch} must be positive")
    if kind == "none":
        return None
    if kind == "plateau":
        plateau = ReduceLROnPlateau(optimizer, mode="min", factor=0.5, patience=5)
        # At the epoch's last batch rather than by "epoch": after its validation, but before the epoch's checkpoint is
        # written, and not skipped in an epoch that was resumed midway.
        frequency = batches_per_epoch or steps_per_epoch
        return {"scheduler": plateau, "interval": "step", "frequency": frequency, "monitor": monitor}
    total = max_epochs * steps_per_epoch
    warmup = warmup_epochs * steps_per_epoch if "warmup" in kind else 0
    if not 0 <= warmup < total:
        raise ValueError(f"warmup_epochs {warmup_epochs} must be at least 0 and less than max_epochs {max_epochs}")
    period = total - warmup
    if kind == "cosine_warmup_restart":
        epochs = restart_period or max(1, (max_epochs - warmup_epochs) // 4)
        if epochs < 1:
            raise ValueError(f"restart_period {restart_period} must be at least one epoch")
        period = epochs * steps_per_epoch
    factor = _thirds(total) if kind == "step" else _cosine(total, warmup, period)
    return {"scheduler": LambdaLR(optimizer, factor), "interval": "step", "frequency": 1}


def _thirds(total: int) -> Callable[[int], float]:
    return lambda step: 0.1 ** (3 * min(step, total - 1) // total)


def _cosine(total: int, warmup: int, period: int) -> Callable[[int], float]:
    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        since = min(step, total - 1) - warmup
        return (1 + math.cos(math.pi * (since % period) / period)) / 2

    return factor
