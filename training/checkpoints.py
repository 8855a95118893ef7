"""Checkpoints that are whole, verified when they are read, and run no code: the best and the last of a run."""

import logging
import math
import os
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from neurotwin.checkpoint_file import CheckpointError, checkpoint_fault, read_checkpoint, write_checkpoint

from .seams import at_epoch_end, use_checkpoint_io

__all__ = ["SafeCheckpoint", "SafeCheckpointIO", "latest_checkpoint"]

logger = logging.getLogger(__name__)


class SafeCheckpoint(Checkpoint):
    """``last.ckpt``, to go on from, and ``best.ckpt``, of the best validation.

    The last one is written after each epoch and its validation, and within epochs every so many optimizer steps or
    minutes, but never between the micro-batches of one optimizer step. The best one is written before the last one. A
    run that is killed between the two then resumes from the last one before, repeats the epoch and writes the same best
    one again. Every file is written by :class:`SafeCheckpointIO`.

    Parameters
    ----------
    folder
        Where to write.
    monitor, mode
        Metric whose largest (``max``) or smallest (``min``) value is best. NaN is never best.
    every_n_steps
        Optimizer steps between saves within an epoch; None: none by steps.
    every_n_minutes
        Minutes between saves within an epoch; None: none by time. Process 0's clock counts.

    Attributes
    ----------
    best
        The best value so far; None before the first.
    seconds
        Longest time that writing one took.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        monitor: str = "val_bps",
        mode: str = "max",
        every_n_steps: int | None = None,
        every_n_minutes: float | None = None,
    ) -> None:
        if mode not in ("min", "max"):
            raise ValueError(f"mode must be min or max, not {mode!r}")
        self.folder, self.monitor, self.mode = Path(folder), monitor, mode
        self.every_n_steps, self.every_n_minutes = every_n_steps, every_n_minutes
        self.best: float | None = None
        self.seconds = 0.0
        self._saved_at, self._saved_step, self._next_look = time.monotonic(), 0, 0
        self._steps, self._stepped, self._improved = 0, False, False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Let this trainer write and read checkpoints safely."""
        use_checkpoint_io(trainer, SafeCheckpointIO())

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._saved_at, self._saved_step, self._next_look = time.monotonic(), trainer.global_step, 0
        self._steps, self._stepped, self._improved = trainer.global_step, False, False

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save within the epoch when it is due, or when training stops here."""
        self._stepped, self._steps = trainer.global_step > self._steps, trainer.global_step
        if not self._stepped or at_epoch_end(trainer):
            return
        due = self.every_n_steps is not None and trainer.global_step % self.every_n_steps == 0
        if due or self._time_is_up(trainer) or trainer.should_stop or getattr(pl_module, "stop_agreed", False):
            self._save_last(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note whether it is the best; save it, unless the epoch ends here and is saved as a whole."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        if self.monitor not in trainer.callback_metrics:
            raise ValueError(
                f"{self.monitor!r} was not logged; there is: {', '.join(sorted(trainer.callback_metrics))}"
            )
        value = trainer.callback_metrics[self.monitor].item()
        sign = 1 if self.mode == "max" else -1
        self._improved = not math.isnan(value) and (self.best is None or sign * value > sign * self.best)
        if self._improved:
            self.best = value
        if self._improved and not at_epoch_end(trainer):
            self._save(trainer, "best.ckpt")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save at the end of the epoch. One that was cut short has been saved where it was, to be finished."""
        if not at_epoch_end(trainer):
            return
        if self._improved:
            self._save(trainer, "best.ckpt")
        self._save_last(trainer)

    def state_dict(self) -> dict[str, Any]:
        """The best value."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the best value."""
        self.best = state_dict["best"]

    def _time_is_up(self, trainer: pl.Trainer) -> bool:
        """Whether the minutes are over by the clock of process 0, which also says after how many steps to ask again."""
        if self.every_n_minutes is None or trainer.global_step < self._next_look:
            return False
        waited, steps = time.monotonic() - self._saved_at, trainer.global_step - self._saved_step
        left = 60 * self.every_n_minutes - waited
        left, fitting = trainer.strategy.broadcast((left, left / max(waited, 1e-6) * steps))
        self._next_look = trainer.global_step + max(1, int(fitting / 2))
        return left <= 0

    def _save_last(self, trainer: pl.Trainer) -> None:
        self._save(trainer, "last.ckpt")
        self._saved_at, self._saved_step, self._next_look = time.monotonic(), trainer.global_step, 0

    def _save(self, trainer: pl.Trainer, name: str) -> None:
        began = time.monotonic()
        trainer.save_checkpoint(self.folder / name)
        self.seconds = max(self.seconds, time.monotonic() - began)


class SafeCheckpointIO(CheckpointIO):
    """Lightning's way to checkpoint files that are whole or absent, checked when read, and run no code.

    They are files of :mod:`neurotwin.checkpoint_file`; the one before stays as ``NAME.previous.ckpt``.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Raises
        ------
        OSError
            If it cannot be written; what was there before is untouched.
        """
        path = Path(path)
        staged = path.with_name(f".{path.stem}.staged{path.suffix}")
        write_checkpoint(staged, checkpoint)
        if path.exists():
            os.replace(path, _previous(path))
        os.replace(staged, path)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Verify and read a checkpoint; never runs code from it, whatever `weights_only` says.

        Raises
        ------
        CheckpointError
            If the file is torn or altered, or loading it would run code.
        """
        return read_checkpoint(path, map_location=map_location or "cpu")

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete a checkpoint."""
        Path(path).unlink(missing_ok=True)


def latest_checkpoint(folder: str | Path) -> Path | None:
    """The checkpoint to resume from: ``last.ckpt`` if it is whole, else the one before it; None where there is none.

    Raises
    ------
    CheckpointError
        If there are checkpoints and none of them is whole.
    """
    last = Path(folder) / "last.ckpt"
    faults = []
    for path in (last, _previous(last)):
        if not path.exists():
            continue
        fault = checkpoint_fault(path)
        if fault is None:
            for other in faults:
                logger.warning("%s; going on from %s", other, path)
            return path
        faults.append(f"{path}: {fault}")
    if faults:
        raise CheckpointError("; ".join(faults))
    return None


def _previous(path: Path) -> Path:
    return path.with_name(f"{path.stem}.previous{path.suffix}")
