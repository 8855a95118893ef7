"""The model in training: loss, optimizer groups, metrics of the run."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from neurotwin.batch import Batch
from neurotwin.config import ConfigError, ModelConfig, load_model_config
from neurotwin.metrics.poisson import PoissonSums, poisson_nll, summarize
from neurotwin.models.twin import SessionSpec, TwinModel, load_twin

from ..regularizers import Regularizers
from ..schedulers import make_scheduler
from ..utils import all_reduce_sum, reduce_gradients
from .multidataset_dm import TrainingBatch

__all__ = ["MultiDatasetModel"]

logger = logging.getLogger(__name__)

_SESSION_PARTS = ("adapters", "readouts", "history_encoders", "baselines")
_VISION_PARTS = ("frontend", "convnet")


class MultiDatasetModel(pl.LightningModule):
    """A twin in training.

    The loss is the Poisson NLL summed over the valid counts of the whole optimizer step and divided by their number,
    over all processes and accumulated micro-batches; gradients are summed over processes. So the loss, its gradients
    and every metric are those of the run, not of a process.

    Parameters
    ----------
    model_config
        A model's configuration, or the path of its YAML.
    sessions
        What the model must know of each session (:attr:`MultiDatasetDM.specs`).
    mean_counts
        Mean training count per bin of each session's units: the rates the model starts from.
    learning_rate
        Of the parameters that belong to one session (readouts, adapters).
    core_lr_scale
        The shared core learns with ``learning_rate * core_lr_scale``.
    weight_decay
        Of weights, not of biases, norms, positions or of what an l2 or group_lasso term already shrinks.
    lr_scheduler, warmup_epochs, restart_period
        See :func:`training.schedulers.make_scheduler`.
    pretrained_checkpoint
        A twin whose core the model starts from; readouts and adapters too, for sessions that it knows by name and
        whose unit ids are the same.
    freeze_vision
        Do not train frontend and convnet. Needs `pretrained_checkpoint`.
    compile
        Compile the core.
    seed
        Of the initial weights.

    Raises
    ------
    ConfigError
        If the model does not fit the sessions, a regularizer matches no parameter, or the checkpoint does not fit.
    """

    def __init__(
        self,
        model_config: ModelConfig | str | Path,
        sessions: Sequence[SessionSpec],
        *,
        mean_counts: Sequence[Tensor] | None = None,
        learning_rate: float = 1e-4,
        core_lr_scale: float = 1.0,
        weight_decay: float = 1e-5,
        lr_scheduler: str = "none",
        warmup_epochs: int = 5,
        restart_period: int | None = None,
        pretrained_checkpoint: str | Path | None = None,
        freeze_vision: bool = False,
        compile: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not isinstance(model_config, ModelConfig):
            model_config = load_model_config(model_config)
        if freeze_vision and pretrained_checkpoint is None:
            raise ConfigError("freeze_vision would freeze random weights; give pretrained_checkpoint as well")
        self.learning_rate, self.core_lr_scale, self.weight_decay = learning_rate, core_lr_scale, weight_decay
        self.lr_scheduler, self.warmup_epochs, self.restart_period = lr_scheduler, warmup_epochs, restart_period
        self.twin = TwinModel(model_config, sessions, generator=torch.Generator().manual_seed(seed))
        if mean_counts is not None:
            self.twin.initialise_rates(mean_counts)
        if pretrained_checkpoint is not None:
            self._load_pretrained(pretrained_checkpoint)
        if freeze_vision:
            for part in _VISION_PARTS:
                getattr(self.twin, part).requires_grad_(False)
        self.regularizers = Regularizers(model_config.regularization, dict(self.twin.named_parameters()))
        if compile:
            self.twin.core = torch.compile(self.twin.core)
        self._train_sums = torch.zeros(2, dtype=torch.float64)
        self._val_sums: list[PoissonSums] = []
        self._val_state: Any = None

    def forward(self, batches: list[Batch]) -> list[Tensor]:
        """Rates (B, L, U) of each batch, expected counts per bin."""
        return self.twin(batches)

    def training_step(self, batch: TrainingBatch, batch_idx: int) -> Tensor:
        """This process's and micro-batch's share of the loss of an optimizer step."""
        rates = self.twin(batch.batches)
        parts = zip(rates, batch.batches, strict=True)
        nll = sum(poisson_nll(rate, part.spikes, part.mask, part.exposure) for rate, part in parts)
        n_micro = self.trainer.accumulate_grad_batches
        penalty, terms = self.regularizers.penalty(self.current_epoch, active=batch.sessions)
        if self.twin.auxiliary_loss is not None:
            penalty = penalty + self.twin.auxiliary_loss
        self._train_sums = self._train_sums.to(nll.device)
        self._train_sums += torch.stack([nll.detach().double(), nll.new_tensor(batch.count / n_micro).double()])
        if batch_idx == 0:
            for name, value in terms.items():
                self.log(f"penalty/{name}", value, rank_zero_only=True)
        # Lightning divides by the micro-batches; gradients are summed over processes, so each adds its share.
        return nll * n_micro / batch.count + penalty / self.trainer.world_size

    def on_after_backward(self) -> None:
        """Sum the gradients over processes when the optimizer is about to step."""
        if self.trainer.world_size > 1 and self._optimizer_steps_now():
            reduce_gradients(self._active_parameters())

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Step, then take the proximal steps once."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.regularizers.proximal_step(optimizer, self.current_epoch)

    def on_train_epoch_end(self) -> None:
        """Log the training loss of the epoch, over all processes."""
        total, count = all_reduce_sum(self._train_sums).tolist()
        self._train_sums.zero_()
        self.log("train_loss", total / (count / self.trainer.world_size), rank_zero_only=True)

    def on_validation_epoch_start(self) -> None:
        """Start the sums of every session at zero."""
        self._val_sums = [PoissonSums(len(spec.unit_ids), device=self.device) for spec in self.twin.sessions]
        self._val_state = None

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch to the sums of its session."""
        rates, self._val_state = self.twin.step([batch], self._val_state if batch.carries else None)
        self._val_sums[batch.session].update(rates[0], batch.spikes, batch.mask, batch.exposure)

    def on_validation_epoch_end(self) -> None:
        """Add the sums over processes, divide once, log."""
        self._val_state = None
        flat = all_reduce_sum(torch.cat([sums.sums.reshape(-1) for sums in self._val_sums]))
        bps, nll, bins = [], 0.0, 0.0
        for spec, sums in zip(self.twin.sessions, self._val_sums, strict=True):
            part, flat = flat[: sums.sums.numel()], flat[sums.sums.numel() :]
            sums.sums = part.reshape(sums.sums.shape)
            values = sums.compute()
            bps.append(summarize(values["bps"]).mean)
            nll += torch.nansum(values["nll"] * values["bins"]).item()
            bins += values["bins"].sum().item()
            self.log(f"val_bps/{spec.name}", bps[-1], rank_zero_only=True)
        known = [value for value in bps if value == value]
        # The same on every process: both are read by callbacks that decide on all of them.
        self.log("val_loss", nll / bins, prog_bar=True)
        self.log("val_bps", sum(known) / len(known) if known else float("nan"), prog_bar=True)

    def configure_optimizers(self) -> Any:
        """AdamW over four groups: core and session parts, each with and without weight decay."""
        groups: dict[tuple[str, bool], list[Tensor]] = {}
        for name, parameter in self.twin.named_parameters():
            if parameter.requires_grad:
                part = "session" if name.startswith(_SESSION_PARTS) else "core"
                decays = _is_weight(name, parameter) and name not in self.regularizers.no_decay
                groups.setdefault((part, decays), []).append(parameter)
        rates = {"session": self.learning_rate, "core": self.learning_rate * self.core_lr_scale}
        optimizer = torch.optim.AdamW(
            [
                {
                    "name": f"{part}/{'decay' if decays else 'no_decay'}", "params": parameters, "lr": rates[part],
                    "weight_decay": self.weight_decay if decays else 0.0,
                }
                for (part, decays), parameters in groups.items()
            ]
        )  # fmt: skip
        schedule = make_scheduler(
            optimizer, self.lr_scheduler, max_epochs=self.trainer.max_epochs,
            steps_per_epoch=round(self.trainer.estimated_stepping_batches / self.trainer.max_epochs),
            batches_per_epoch=self.trainer.num_training_batches, warmup_epochs=self.warmup_epochs,
            restart_period=self.restart_period,
        )  # fmt: skip
        return optimizer if schedule is None else {"optimizer": optimizer, "lr_scheduler": schedule}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add all that is needed to use the weights: `load_twin` opens a training checkpoint."""
        checkpoint["twin"] = json.dumps(self.twin.describe())

    def _optimizer_steps_now(self) -> bool:
        position = self.trainer.fit_loop.epoch_loop.batch_idx + 1
        return position % self.trainer.accumulate_grad_batches == 0 or position == self.trainer.num_training_batches

    def _active_parameters(self) -> list[torch.nn.Parameter]:
        """Parameters that the optimizer step changes on any process, in one order on all of them."""
        sessions = self._step_sessions
        return [
            parameter
            for name, parameter in self.twin.named_parameters()
            if parameter.requires_grad and (not name.startswith(_SESSION_PARTS) or int(name.split(".")[1]) in sessions)
        ]

    def on_train_batch_start(self, batch: TrainingBatch, batch_idx: int) -> None:
        """Keep which sessions are in the step, for the reduction of gradients."""
        self._step_sessions = set(batch.sessions)

    def _load_pretrained(self, path: str | Path) -> None:
        source = load_twin(path)
        state, own = source.state_dict(), self.twin.state_dict()
        index = {spec.name: position for position, spec in enumerate(source.sessions)}
        same: Mapping[int, int] = {
            position: index[spec.name]
            for position, spec in enumerate(self.twin.sessions)
            if spec.name in index and source.sessions[index[spec.name]].unit_ids == spec.unit_ids
        }
        loaded: dict[str, Tensor] = {}
        for key, value in own.items():
            part, *rest = key.split(".")
            if part in _SESSION_PARTS:
                if int(rest[0]) not in same:
                    continue
                other = ".".join([part, str(same[int(rest[0])]), *rest[1:]])
            else:
                other = key
            if other in state and state[other].shape == value.shape:
                loaded[key] = state[other]
            elif part in _VISION_PARTS:
                has = tuple(state[other].shape) if other in state else "absent"
                raise ConfigError(
                    f"{path}: does not fit the model: {key} is {tuple(value.shape)} here and {has} there; "
                    "use the model_config it was trained with"
                )
        self.twin.load_state_dict(loaded, strict=False)
        skipped = sorted({key.split(".")[0] for key in own if key not in loaded})
        logger.info(
            "%s: %d of %d arrays loaded; readouts of %d of %d sessions; as initialised: %s",
            path, len(loaded), len(own), len(same), len(self.twin.sessions), ", ".join(skipped) or "nothing",
        )  # fmt: skip


def _is_weight(name: str, parameter: Tensor) -> bool:
    """Whether a parameter is a weight that decay makes sense for: not a bias, a norm's scale or a position."""
    return parameter.ndim >= 2 and name.rsplit(".", 1)[-1] not in ("mean", "std", "theta", "bias", "h0")
