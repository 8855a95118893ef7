"""All uses of undocumented parts of Lightning, each as a function with a name.

Lightning may change its inner parts in any release. Nothing else in the project uses them, therefore, and
``tests/training/test_seams.py`` trains a small model and fails when one of these functions gives a wrong answer.
Checked with Lightning 2.6.
"""

import signal
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.utilities.rank_zero import rank_zero_only

__all__ = [
    "announce_rank",
    "at_epoch_end",
    "epochs_trained",
    "kill_processes",
    "leave_signals_alone",
    "micro_batches_done",
    "optimizer_steps_now",
    "steps_of_epoch",
    "use_checkpoint_io",
]


def micro_batches_done(trainer: pl.Trainer) -> int:
    """Micro-batches of the run, over all epochs and resumptions, that were trained before the one at hand.

    It is the number of the micro-batch at hand, counted from 0, in every hook of that micro-batch.
    """
    return trainer.fit_loop.epoch_loop.total_batch_idx


def steps_of_epoch(trainer: pl.Trainer) -> int:
    """Micro-batches of the epoch at hand that were trained, or begun."""
    return trainer.fit_loop.epoch_loop.batch_progress.current.ready


def optimizer_steps_now(trainer: pl.Trainer) -> bool:
    """Whether the optimizer steps after the backward pass of the micro-batch at hand.

    It does where enough gradients were accumulated, and at the last micro-batch of an epoch.
    """
    position = trainer.fit_loop.epoch_loop.batch_idx + 1
    return position % trainer.accumulate_grad_batches == 0 or position == trainer.num_training_batches


def at_epoch_end(trainer: pl.Trainer) -> bool:
    """Whether the micro-batch trained last was the last of its epoch; false where training stopped before."""
    return trainer.is_last_batch


def epochs_trained(checkpoint: Mapping[str, Any]) -> int:
    """Whole epochs that the run of a checkpoint had trained.

    Raises
    ------
    ValueError
        If the checkpoint does not say.
    """
    try:
        return int(checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"the checkpoint does not say how many epochs it has trained (no {error})") from None


def announce_rank(rank: int) -> None:
    """Tell Lightning's ``rank_zero_only`` which process this is, before a trainer does.

    It guesses from the environment when it is imported, and takes the first process of every node for process 0.
    """
    rank_zero_only.rank = rank


def leave_signals_alone(trainer: pl.Trainer) -> None:
    """Keep the trainer from handling signals.

    Lightning's own handler communicates between processes within the handler, which can wait for ever, and lets all
    processes wait for each other before every batch.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None


def use_checkpoint_io(trainer: pl.Trainer, io: CheckpointIO) -> None:
    """Let a trainer, after it was made, write and read its checkpoints with `io`."""
    trainer.strategy.checkpoint_io = io


def kill_processes(trainer: pl.Trainer, signum: int = signal.SIGTERM) -> None:
    """Send a signal to the processes that the trainer itself started; none where a launcher started them."""
    if trainer.strategy.launcher is not None:
        trainer.strategy.launcher.kill(signum)
