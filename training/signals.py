"""SIGTERM, SIGUSR1 and Ctrl-C: a run that is asked to end finishes its step, saves and stops on all processes."""

import logging
import os
import signal
from types import FrameType
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from .seams import leave_signals_alone

__all__ = ["Interrupted", "StopSignals"]

_SIGNALS = (signal.SIGUSR1, signal.SIGINT, signal.SIGTERM)

logger = logging.getLogger(__name__)


class Interrupted(BaseException):
    """The run was asked to end by a signal."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum
        self.name = "Ctrl-C" if signum == signal.SIGINT else signal.Signals(signum).name


class StopSignals(Callback):
    """SIGTERM, SIGUSR1 and Ctrl-C end a run in good order; a second one of SIGTERM and Ctrl-C ends it at once.

    SIGUSR1 is what clusters send some time before SIGTERM, to say that a job is about to be ended. It therefore never
    counts as a second signal, nor does the first one after it.

    In training, the optimizer step (or the validation that is running) is finished and a checkpoint is written. Then
    :class:`Interrupted` is raised, on all processes after the same step, even if only one of them got the signal. At
    any other time it is raised at once.

    Attributes
    ----------
    received
        The first signal; None before.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._module: pl.LightningModule | None = None
        self._training = False

    def __enter__(self) -> "StopSignals":
        """Handle the signals from now on."""
        self._before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        """Handle them as before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Keep Lightning from handling signals."""
        leave_signals_alone(trainer)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From here on, a signal lets the step be finished first."""
        self._module, self._training = pl_module, True

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Raise where all processes have agreed to stop; the steps before are saved."""
        if pl_module.stop_agreed:
            raise Interrupted(self.received or signal.SIGTERM)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From here on everything is saved, and a signal ends the run at once."""
        self._training = False
        if self.received is not None:
            raise Interrupted(self.received)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """After an error, a signal ends the run at once."""
        self._training = False

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if signal.SIGUSR1 in (signum, self.received) and self.received is not None:
            self.received = max(self.received, signum, key=_SIGNALS.index)
            return
        if self.received is not None:
            os._exit(128 + signum)
        self.received = signum
        if not self._training:
            raise Interrupted(signum)
        self._module.stop_requested = True
        logger.info("%s: saving after this step; once more to end at once", Interrupted(signum).name)
