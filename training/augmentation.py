"""Augments the clips of a training step; the augmentations themselves are in :mod:`neurotwin.data.augmentation`."""

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from neurotwin.data.augmentation import Augmentation, augment

from .seams import micro_batches_done

__all__ = ["Augment"]


class Augment(Callback):
    """Change the clips of every training batch, on their device, before the model sees them.

    Parameters
    ----------
    augmentations
        In their order.
    seed
        Of the run. What happens to a clip follows from it, the number of the micro-batch, the session and the clip.
    """

    def __init__(self, augmentations: Sequence[Augmentation], seed: int) -> None:
        self.augmentations, self.seed = tuple(augmentations), seed

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Replace the samples of the batch."""
        step = micro_batches_done(trainer)
        batch.samples = [augment(s, self.augmentations, seed=self.seed, step=step) for s in batch.samples]
