"""Callbacks of a run: log lines, the file of metrics, the time budget, and a check of the curriculum.

Signals are in :mod:`training.signals` and figures in :mod:`training.figures`; both can be imported from here too.
Lines go through `logging` on process 0. A batch is anything whose ``samples`` are :class:`~neurotwin.clip.Sample`.
"""

import csv
import io
import logging
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from neurotwin.files import write_text

from .checkpoints import SafeCheckpoint
from .figures import ModelLogging
from .samplers import ContrastWeightedSampler
from .schedulers import AnnealedRate, largest_rate
from .seams import micro_batches_done
from .signals import Interrupted, StopSignals

__all__ = [
    "CurriculumCallback",
    "EpochHeartbeat",
    "Heartbeat",
    "Interrupted",
    "MetricsFile",
    "ModelLogging",
    "StopSignals",
    "TimeBudgetCallback",
    "annealed",
]

logger = logging.getLogger(__name__)


# --------------------------------------------------------------------------------------------------------------------
# Signs of life
# --------------------------------------------------------------------------------------------------------------------


class EpochHeartbeat(Callback):
    """One line an epoch: losses, bits per spike, learning rate, time, predictions a second, time to go.

    The line comes when everything of the epoch has been logged, validation included; so it is written when the next
    epoch starts, or training ends. Predictions are predicted bins of all processes; their rate leaves validation out.
    """

    def __init__(self, names: tuple[str, ...] = ("train_loss", "val_loss", "val_bps")) -> None:
        self.names = names
        self._began, self._trained, self._bins = 0.0, 0.0, 0
        self._epochs: list[float] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock; a resumed epoch has no start of its own."""
        self._began, self._trained, self._bins = time.monotonic(), 0.0, 0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report the epoch before, and start the clock again."""
        self._report(trainer)
        self._began, self._trained, self._bins = time.monotonic(), 0.0, 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count predictions."""
        self._bins += predictions(batch) * trainer.world_size
        self._trained = time.monotonic() - self._began

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report the last epoch."""
        self._report(trainer)

    def _report(self, trainer: pl.Trainer) -> None:
        if not self._bins or not trainer.is_global_zero:
            return
        done, seconds = trainer.current_epoch, time.monotonic() - self._began
        self._epochs.append(seconds)
        values = [f"{n} {trainer.callback_metrics[n].item():.4f}" for n in self.names if n in trainer.callback_metrics]
        total = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else None
        left = f", {_clock((total - done) * sum(self._epochs) / len(self._epochs))} to go" if total else ""
        logger.info(
            "epoch %d%s: %s, lr %.3g, %s (%.0f predictions/s)%s",
            done, f"/{total}" if total else "", ", ".join(values),
            largest_rate(trainer.optimizers),
            _clock(seconds), self._bins / max(self._trained, 1e-9), left,
        )  # fmt: skip


class Heartbeat(Callback):
    """A line after the first step, and within an epoch every so many seconds or steps: loss, predictions a second.

    Parameters
    ----------
    seconds
        Least time between lines; None: no lines by time.
    steps
        Micro-batches between lines; None: no lines by steps.
    """

    def __init__(self, seconds: float | None = 60.0, steps: int | None = None) -> None:
        self.seconds, self.steps = seconds, steps
        self._last, self._bins, self._is_first = time.monotonic(), 0, True

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start counting anew, because what happens between epochs is not training."""
        self._last, self._bins = time.monotonic(), 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write a line when one is due."""
        self._bins += predictions(batch) * trainer.world_size
        waited = time.monotonic() - self._last
        by_time = self.seconds is not None and waited >= self.seconds
        by_steps = self.steps is not None and (batch_idx + 1) % self.steps == 0
        if not (trainer.is_global_zero and (by_time or by_steps or self._is_first)):
            return
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        logger.info(
            "epoch %d, step %d/%s: %s%.0f predictions/s", trainer.current_epoch + 1, batch_idx + 1,
            trainer.num_training_batches,
            "" if loss is None else f"loss {loss.item() * trainer.accumulate_grad_batches:.4f}, ",
            self._bins / max(waited, 1e-9),
        )  # fmt: skip
        self._last, self._bins, self._is_first = time.monotonic(), 0, False


def predictions(batch: Any) -> int:
    """Predicted bins of a batch on this process."""
    return sum(len(part.target.responses) * part.clip.length for part in batch.samples)


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


# --------------------------------------------------------------------------------------------------------------------
# Metrics
# --------------------------------------------------------------------------------------------------------------------


class MetricsFile(Callback):
    """A CSV file with one row an epoch: epochs trained, optimizer steps, what was logged, and the learning rate.

    The rows are part of the checkpoint and the file is written whole, under a temporary name: a run that was killed
    and resumed ends with the same file. An epoch that was cut short has a row, which the whole epoch's replaces.

    Parameters
    ----------
    path
        The file.
    names
        Metrics to write; a name that ends in "/" stands for all that start with it.
    """

    def __init__(
        self, path: str | Path, names: tuple[str, ...] = ("train_loss", "skipped", "val_loss", "val_bps", "val_bps/")
    ) -> None:
        self.path, self.names = Path(path), names
        self.rows: list[dict[str, float]] = []

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write what a checkpoint brought: the file may be ahead of it."""
        if self.rows:
            self._write()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add a row."""
        values = {name: value.item() for name, value in trainer.callback_metrics.items()}
        chosen = [n for name in self.names for n in values if n == name or (name.endswith("/") and n.startswith(name))]
        row = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step}
        row |= {name: values[name] for name in chosen}
        row["lr"] = largest_rate(trainer.optimizers)
        self.rows.append(row)
        self._write()

    def state_dict(self) -> dict[str, Any]:
        """The rows."""
        return {"rows": list(self.rows)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after these rows."""
        self.rows = list(state_dict["rows"])

    @rank_zero_only
    def _write(self) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(
            text, list(dict.fromkeys(name for row in self.rows for name in row)), lineterminator="\n"
        )
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(self.path, text.getvalue())


# --------------------------------------------------------------------------------------------------------------------
# Time budget
# --------------------------------------------------------------------------------------------------------------------


class TimeBudgetCallback(Callback):
    """Stop training so early that the final validation and checkpoint end within the budget.

    For them, 1.2 times the longest validation and checkpoint so far and 2% of the budget are reserved. Until a
    validation has been timed, half of the budget is reserved. All processes must stop after the same step, so process 0
    looks at the clock and tells the others. It also says when to look next: after a quarter of the steps that still
    fit. If training stops within an epoch, a validation follows. If it stops right after a validation, no other is
    needed.

    Schedules that end with the budget (:class:`~training.schedulers.AnnealedRate`) are told at every look how many
    optimizer steps the run will have. Of the time that is left, an epoch takes that of its steps and of the longest
    validation and checkpoint so far.

    Parameters
    ----------
    minutes
        The budget of this process, from when the callback is made: a resumed run has a new one.
    clock
        Seconds, for tests.
    """

    def __init__(self, minutes: float, clock: Callable[[], float] = time.monotonic) -> None:
        if minutes <= 0:
            raise ValueError(f"time_budget_minutes {minutes} must be positive")
        self.budget, self._clock = 60 * minutes, clock
        self._start = clock()
        self._validation: float | None = None
        self._validating, self._last = 0.0, 0.0
        self._trained, self._steps, self._next_look = 0.0, 0, 1

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Steps are timed from here."""
        self._last = self._clock()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Steps are timed from here again, because what happens between epochs is not training."""
        self._last = self._clock()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start timing."""
        self._validating = self._clock()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the longest time, and stop if nothing more fits: this validation is then the last."""
        if trainer.sanity_checking:
            return
        self._validation = max(self._validation or 0.0, self._clock() - self._validating)
        if trainer.state.fn == "fit" and not trainer.should_stop:
            self._decide(trainer)
        self._last = self._clock()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the clock, where it was agreed to, unless the epoch's own validation comes next."""
        now = self._clock()
        self._trained, self._last = self._trained + now - self._last, now
        self._steps += 1
        if self._steps >= self._next_look and batch_idx + 1 < trainer.num_training_batches:
            self._decide(trainer)

    def _decide(self, trainer: pl.Trainer) -> None:
        spent, pause = self._clock() - self._start, self._pause(trainer)
        step = max(self._trained / max(self._steps, 1), 1e-6)
        unknown = self._validation is None and trainer.enable_validation
        reserve = 1.2 * pause + 0.02 * self.budget
        fitting = (self.budget - spent - (self.budget / 2 if unknown else reserve)) / step
        fitting = trainer.strategy.broadcast(fitting)
        if fitting < 1:
            trainer.should_stop = True
            logger.info("time budget of %s: stopping after step %d", _clock(self.budget), trainer.global_step)
        else:
            self._next_look = self._steps + max(1, int(fitting / 4))
        for schedule in annealed(trainer):
            batches = (self.budget - spent - reserve) / (step + pause / trainer.num_training_batches)
            batches = trainer.strategy.broadcast(batches)
            schedule.plan(trainer.global_step + batches / trainer.accumulate_grad_batches)

    def _pause(self, trainer: pl.Trainer) -> float:
        """Seconds of the longest validation and checkpoint so far; 0 before the first."""
        saving = max((c.seconds for c in trainer.checkpoint_callbacks if isinstance(c, SafeCheckpoint)), default=0.0)
        return (self._validation or 0.0) + saving


def annealed(trainer: pl.Trainer) -> list[AnnealedRate]:
    """The schedules of a run that end when it ends."""
    found = (config.scheduler for config in trainer.lr_scheduler_configs)
    return [schedule for schedule in found if isinstance(schedule, AnnealedRate)]


# --------------------------------------------------------------------------------------------------------------------
# Curriculum
# --------------------------------------------------------------------------------------------------------------------


class CurriculumCallback(Callback):
    """Log how strongly contrast is emphasised, and check that training really follows the sampler.

    Logged at every step: ``curriculum/emphasis``, a(s) of :class:`~training.samplers.ContrastWeightedSampler`, and
    ``curriculum/step``.

    Raises
    ------
    RuntimeError
        If the training loader does not hold such a sampler (something wrapped or replaced it), or the sampler's step
        does not move with training.
    """

    def __init__(self) -> None:
        self._sampler: ContrastWeightedSampler | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the sampler in the loader that training reads."""
        loader = trainer.train_dataloader
        held = [getattr(loader, name, None) for name in ("sampler", "batch_sampler")]
        found = [sampler for sampler in held if isinstance(sampler, ContrastWeightedSampler)]
        if not found:
            kinds = ", ".join(type(sampler).__name__ for sampler in held if sampler is not None) or "none"
            raise RuntimeError(
                f"the curriculum is on, but the training loader's sampler is not its own (found: {kinds}); "
                "use Trainer(use_distributed_sampler=False)"
            )
        self._sampler = found[0]

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Check the step, and log."""
        step = micro_batches_done(trainer)
        if self._sampler.step <= step:
            raise RuntimeError(
                f"training is at micro-batch {step} and the sampler at {self._sampler.step}: these batches are not its"
            )
        values = {"curriculum/emphasis": self._sampler.emphasis_at(step), "curriculum/step": float(step)}
        values = {name: torch.tensor(value) for name, value in values.items()}  # numbers would be copied to the device
        pl_module.log_dict(values, on_step=True, on_epoch=False, rank_zero_only=True, batch_size=1)
