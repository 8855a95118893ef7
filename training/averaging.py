"""The exponential moving average of a model's weights over the steps of a run."""

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

__all__ = ["WeightAverage"]


class WeightAverage(Callback):
    """Average the weights, and validate the average instead of the last weights.

    After the n-th optimizer step (n from 1) the average a of every weight w becomes ::

        a <- d a + (1 - d) w,    d = min(decay, n / (n + 9))

    so that the first weights, which are random, do not stay in it for long (Polyak & Juditsky 1992; the warm-up is that
    of TensorFlow's ``ExponentialMovingAverage``). Running statistics of batch norm are averaged alike, because the
    averaged weights meet features between those that the last weights met. Counters are those of the last step.

    Training never sees the average. It is in the model from the start of a validation to its end, and stands in
    checkpoints under ``averaged``, beside the last weights in ``state_dict``; :func:`neurotwin.load_twin` takes the
    average, and a resumed run goes on with both. All processes hold the same weights, so each averages for itself.

    Parameters
    ----------
    decay
        Largest d, in [0, 1).

    Attributes
    ----------
    updates
        Optimizer steps averaged over, n.

    Raises
    ------
    ValueError
        If the decay is not in [0, 1).

    Notes
    -----
    Only the rule of the average comes from ``torch.optim.swa_utils``. Its ``AveragedModel``, on which Lightning's
    ``WeightAveraging`` stands, holds a second model; here the weights by name are enough, as in checkpoints.
    """

    def __init__(self, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"ema {decay} must be at least 0 and less than 1")
        self.decay, self.updates = decay, 0
        self._average: dict[str, Tensor] = {}
        self._raw: dict[str, Tensor] = {}
        self._steps = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start from the weights, or from what a checkpoint brought."""
        self._steps = trainer.global_step
        start = self._average or _weights(pl_module)
        # In float32 at least: a step changes a weight by less than half precision can tell.
        self._average = {
            name: value.detach().to(pl_module.device, torch.promote_types(value.dtype, torch.float32), copy=True)
            for name, value in start.items()
        }

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Average, where the optimizer has stepped."""
        if trainer.global_step == self._steps:
            return
        self._steps = trainer.global_step
        self.updates += 1
        weights = _weights(pl_module)
        average = get_ema_multi_avg_fn(min(self.decay, self.updates / (self.updates + 9)))
        kinds: dict[torch.dtype, list[str]] = {}
        for name, value in self._average.items():
            kinds.setdefault(value.dtype, []).append(name)
        for dtype, names in kinds.items():
            average([self._average[name] for name in names], [weights[name].to(dtype) for name in names], self.updates)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the average into the model."""
        if trainer.state.fn == "fit" and self._average:
            self._raw = {name: value.clone() for name, value in _weights(pl_module).items()}
            _put(pl_module, self._average)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the last weights back, to the bit."""
        _put(pl_module, self._raw)
        self._raw = {}

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the average beside the weights."""
        checkpoint["averaged"] = self._average

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Go on with the average of a checkpoint; one without starts it from its weights."""
        self._average = checkpoint.get("averaged", {})

    def state_dict(self) -> dict[str, Any]:
        """Steps averaged over."""
        return {"updates": self.updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after these steps."""
        self.updates = state_dict["updates"]


def _weights(module: pl.LightningModule) -> dict[str, Tensor]:
    """Parameters and running statistics of the twin by name; the tensors themselves."""
    return {name: value for name, value in module.twin.state_dict().items() if value.is_floating_point()}


@torch.no_grad()
def _put(module: pl.LightningModule, values: dict[str, Tensor]) -> None:
    """Copy values into the twin, without replacing its tensors: the optimizer holds them."""
    weights = _weights(module)
    for name, value in values.items():
        weights[name].copy_(value)
