"""A range test of the learning rate: what a model learns while its rate rises step by step."""

import copy
import math
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback

from .teacher import loss_of

__all__ = ["RangeTest"]


class RangeTest(Callback):
    """Raise the learning rate from step to step by one factor, and note what has been learned (Smith 2017).

    Losses of different clips differ by far more than a few steps teach. Noted is therefore how much the loss of a step
    is below that which the model had on the same clips before the test. Every parameter group keeps its ratio to the
    others, so that the rate is that of ``--learning_rate``. There must be no schedule. The test ends after all steps,
    or when the model has become worse than it began by as much as it had become better.

    Parameters
    ----------
    steps
        Optimizer steps, at least 2.
    least, most
        Rates of the first and the last step.

    Attributes
    ----------
    rates, gains
        Of each step: the rate, and the loss at the start minus the loss now, of the same clips, before the step.

    References
    ----------
    Smith 2017, "Cyclical learning rates for training neural networks".
    """

    def __init__(self, steps: int = 200, least: float = 1e-5, most: float = 1.0) -> None:
        self.steps, self.least, self.most = steps, least, most
        self.rates: list[float] = []
        self.gains: list[float] = []
        self._gain = 0.0

    def rate(self, step: int) -> float:
        """The rate at a step, counted from 0."""
        return self.least * (self.most / self.least) ** (step / (self.steps - 1))

    def curve(self) -> np.ndarray:
        """The gains, smoothed: each averages those before it with weights that fall by 0.9 a step."""
        kept, total, curve = 0.0, 0.0, []
        for gain in self.gains:
            kept, total = 0.9 * kept + gain, 0.9 * total + 1
            curve.append(kept / total)
        return np.array(curve)

    def proposal(self) -> float | None:
        """A fifth of the largest rate at which the gain was still at least half of the largest; None without a gain.

        For shipped models whose rates had been found by hand it proposed 0.9 to 5 times these
        (``docs/training_guide.md``).
        """
        curve = np.nan_to_num(self.curve(), nan=-np.inf)
        largest = curve.max(initial=0.0)
        return self.rates[int(np.flatnonzero(curve >= largest / 2)[-1])] / 5 if largest > 0 else None

    def text(self) -> str:
        """The curve as a table of every tenth step, and the proposal."""
        curve = self.curve()
        bars = np.nan_to_num(curve).clip(0) / max(np.nan_to_num(curve).max(initial=0.0), 1e-12)
        rows = [
            f"{self.rates[step]:9.1e} {curve[step]:9.4f}  {'#' * round(40 * bars[step])}".rstrip()
            for step in range(0, len(curve), 10)
        ]
        rate = self.proposal()
        advice = "the model learns at none of these rates" if rate is None else f"propose --learning_rate {rate:.1e}"
        return "\n".join([f"{'rate':>9} {'gain':>9}  loss at the start minus loss now, smoothed", *rows, advice])

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the model as it is, and the ratios of the rates."""
        (optimizer,) = trainer.optimizers
        self._ratios = [group["lr"] / pl_module.learning_rate for group in optimizer.param_groups]
        self._start = copy.deepcopy(pl_module.twin).eval()
        penalty = pl_module.regularizers.penalty(epoch=0)[0].item()
        self._penalty = penalty / trainer.world_size / trainer.accumulate_grad_batches

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Set the rate of the step."""
        for group, ratio in zip(trainer.optimizers[0].param_groups, self._ratios, strict=True):
            group["lr"] = self.rate(trainer.global_step) * ratio

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the gain, over all processes and batches of the step."""
        before = outputs["loss"].new_zeros(())
        for sample, rates in zip(batch.samples, self._start([s.clip for s in batch.samples]), strict=True):
            likelihood = self._start.per_session[sample.session].likelihood
            before += loss_of(likelihood, rates, sample.target, pl_module.teacher_weight)
        gain = before / batch.count + self._penalty - outputs["loss"].detach()
        self._gain += trainer.strategy.reduce(gain, reduce_op="sum").item()
        if trainer.global_step == len(self.gains):
            return  # further batches of the step are still to come
        self.rates.append(self.rate(len(self.gains)))
        self.gains.append(self._gain)
        self._gain = 0.0
        curve = self.curve()
        if not math.isfinite(curve[-1]) or (len(curve) > 20 and curve[-1] < -max(curve.max(), 0.01)):
            trainer.should_stop = True
