"""The line at the foot of the terminal while a run trains; log lines appear above it."""

import time
from contextlib import ExitStack
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from neurotwin.analysis.report import merit_title
from neurotwin.data.progress import clock_text, lines_above

from .seams import steps_of_epoch

__all__ = ["ProgressLine"]

_EVERY = 0.5  # s between readings of the loss, which makes a GPU wait


class ProgressLine(Callback):
    """Epoch, step, time left, loss, the last validation's figure of merit and the device, in at most 80 columns.

    Epochs and steps are counted from 1, as in log lines. The time left is that of the whole run, validations included,
    at the pace so far; a time budget or early stopping may end it sooner.

    Parameters
    ----------
    merit
        Name under which the figure of merit is logged, such as "val_bps".
    console
        The terminal. Default: that of the standard error stream; where it is none, nothing is shown.
    """

    def __init__(self, merit: str, console: Console | None = None) -> None:
        self.merit, self.console = merit, console
        self._open = ExitStack()
        self._bar: Progress | None = None
        self._began, self._first, self._read, self._loss = 0.0, 0, 0.0, ""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the line."""
        console = self.console or Console(stderr=True)
        if not (trainer.is_global_zero and console.is_terminal):
            return
        columns = TextColumn("{task.description}"), BarColumn(bar_width=6), TextColumn("{task.fields[rest]}")
        self._bar = Progress(*columns, console=console, transient=True)
        self._began, self._first = time.monotonic(), self._done(trainer, 0)
        total = trainer.max_epochs * trainer.num_training_batches
        self._row = self._bar.add_task("starting", total=total, rest="")
        self._open.enter_context(lines_above(self._bar))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Bring the line up to date."""
        now = time.monotonic()
        if self._bar is None or (now - self._read < _EVERY and batch_idx + 1 < trainer.num_training_batches):
            return
        self._read = now
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        if loss is not None:
            self._loss = f"loss {loss.item() * trainer.accumulate_grad_batches:.4f} "
        self._show(trainer, batch_idx + 1)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say that the validation runs."""
        if self._bar is not None:
            self._bar.update(self._row, rest="validating")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show its figure."""
        if self._bar is not None:
            self._show(trainer, steps_of_epoch(trainer))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the line away."""
        self._open.close()
        self._bar = None

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Take the line away."""
        self.on_train_end(trainer, pl_module)

    def _done(self, trainer: pl.Trainer, step: int) -> int:
        return trainer.current_epoch * trainer.num_training_batches + step

    def _show(self, trainer: pl.Trainer, step: int) -> None:
        done, total = self._done(trainer, step), trainer.max_epochs * trainer.num_training_batches
        pace = (time.monotonic() - self._began) / max(done - self._first, 1)
        value = trainer.callback_metrics.get(self.merit)
        merit = "" if value is None else f"{merit_title(self.merit.removeprefix('val_'))} {value.item():.3f} "
        place = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs} step {step}/{trainer.num_training_batches}"
        rest = f"{clock_text(pace * (total - done))} left {self._loss}{merit}{trainer.strategy.root_device}"
        self._bar.update(self._row, completed=done, description=place, rest=rest)
