"""The model in training: loss, optimizer groups, metrics of the run."""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from neurotwin.clip import Batch
from neurotwin.config import ConfigError, ModelConfig, load_model_config
from neurotwin.metrics.poisson import PoissonSums, poisson_nll, summarize
from neurotwin.models.norms import all_gather
from neurotwin.models.spec import SessionSpec
from neurotwin.models.twin import SESSION_PARTS, TwinModel, load_twin

from ..regularizers import Regularizers
from ..schedulers import make_scheduler
from ..utils import Late, all_reduce_sum, reduce_gradients
from .multidataset_dm import TrainingBatch

__all__ = ["MultiDatasetModel", "NonFiniteLossError"]

logger = logging.getLogger(__name__)

_VISION_PARTS = ("frontend", "convnet")


class NonFiniteLossError(ArithmeticError):
    """The loss, or a weight, is NaN or infinite."""


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
        Compile the core, where that was measured to help: on a GPU, or for a recurrent core. Elsewhere a line says that
        it is not.
    on_nan
        What a loss that is NaN or infinite does. "stop" raises :class:`NonFiniteLossError`. "skip" leaves the session
        out of that micro-batch, on all processes, and counts it in `skipped`; more than 10 and 1% of the micro-batches
        stop as well.
    seed
        Of the initial weights and, with step and process, of dropout and sampled readouts.

    Attributes
    ----------
    stop_requested
        Set it to ask all processes to stop after the optimizer step.
    stop_agreed
        True on all of them, after the same step, once one has asked.

    Notes
    -----
    "stop" adds no waiting for the device: whether a loss was finite travels with the gradients, and a GPU's answer is
    read one step later; :meth:`on_save_checkpoint` reads it first, so that no broken weights are saved. "skip" has to
    know before the backward pass, and waits at every micro-batch.

    Raises
    ------
    ConfigError
        If the model does not fit the sessions, a regularizer matches no parameter, or the checkpoint does not fit.

    Examples
    --------
    >>> spec = SessionSpec(
    ...     name="ada_0501", subject="ada", unit_ids=(3, 8), frame_shape=(1, 12, 12), bin_rate=60.0, n_lags=8
    ... )
    >>> model = MultiDatasetModel(
    ...     ModelConfig(frontend={"type": "learnable_temporal", "params": {"kernel_size": 4}}), [spec]
    ... )
    >>> model.twin.context
    3
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
        on_nan: str = "stop",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if on_nan not in ("stop", "skip"):
            raise ValueError(f"on_nan must be stop or skip, not {on_nan!r}")
        if not isinstance(model_config, ModelConfig):
            model_config = load_model_config(model_config)
        if freeze_vision and pretrained_checkpoint is None:
            raise ConfigError("freeze_vision would freeze random weights; give pretrained_checkpoint as well")
        self.learning_rate, self.core_lr_scale, self.weight_decay = learning_rate, core_lr_scale, weight_decay
        self.lr_scheduler, self.warmup_epochs, self.restart_period = lr_scheduler, warmup_epochs, restart_period
        self.freeze_vision, self.on_nan, self.seed, self.compile_core = freeze_vision, on_nan, seed, compile
        self.twin = TwinModel(model_config, sessions, generator=torch.Generator().manual_seed(seed))
        if mean_counts is not None:
            self.twin.initialise_rates(mean_counts)
        if pretrained_checkpoint is not None:
            self._load_pretrained(pretrained_checkpoint)
        if freeze_vision:
            for part in _VISION_PARTS:
                getattr(self.twin, part).requires_grad_(False)
        self.regularizers = Regularizers(model_config.regularization, dict(self.twin.named_parameters()))
        self.stop_requested = self.stop_agreed = False
        self.skipped = 0
        self._train_sums = torch.zeros(2, dtype=torch.float64)
        self._forwards: list[list[tuple[Batch, Tensor]]] = []
        self._bad = torch.zeros(())
        self._late: list[tuple[Late, str, list[list[tuple[Batch, Tensor]]]]] = []
        self._val_sums: list[PoissonSums] = []
        self._val_state: Any = None

    def forward(self, batches: list[Batch]) -> list[Tensor]:
        """Rates (B, L, U) of each batch, expected counts per bin."""
        return self.twin(batches)

    def on_fit_start(self) -> None:
        """Compile the core, if that was asked for and helps on this device."""
        if self.compile_core and self.device.type == "cpu" and not self.twin.is_recurrent:
            logger.warning("not compiled: on a CPU it only speeds up recurrent cores (docs/performance.md)")
        elif self.compile_core:
            self.twin.core = torch.compile(self.twin.core)

    def on_train_start(self) -> None:
        """Leave frozen parts as they are: their norms keep to the running averages, and nothing drops out."""
        if self.freeze_vision:
            for part in _VISION_PARTS:
                getattr(self.twin, part).eval()

    def on_train_batch_start(self, batch: TrainingBatch, batch_idx: int) -> None:
        """Draw dropout and sampled readouts from (seed, step, process): a resumed run draws the same."""
        state = np.random.SeedSequence((self.seed, self._step, self.trainer.global_rank)).generate_state(1, np.uint64)
        # Not torch.manual_seed: where CUDA is not in use it formats a traceback each time, for later.
        torch.default_generator.manual_seed(int(state[0]))
        if self.device.type == "cuda":
            torch.cuda.manual_seed(int(state[0]))
        self._step_sessions = set(batch.sessions)

    def training_step(self, batch: TrainingBatch, batch_idx: int) -> Tensor:
        """This process's and micro-batch's share of the loss of an optimizer step."""
        before = [buffer.clone() for buffer in self.twin.buffers()] if self.on_nan == "skip" else []
        parts, losses = batch.batches, self._losses(batch.batches)
        if self.on_nan == "skip":
            parts, losses = self._without_bad(parts, losses, before)
        nll = torch.stack(losses).sum() if losses else sum(0 * p.sum() for p in self.twin.parameters())
        penalty, terms = self.regularizers.penalty(self.current_epoch, active=batch.sessions)
        if self.twin.auxiliary_loss is not None and losses:
            penalty = penalty + self.twin.auxiliary_loss
        count = sum((part.mask.sum() for part in parts), torch.zeros((), device=nll.device))
        self._train_sums = self._train_sums.to(nll.device)
        self._train_sums += torch.stack([nll.detach().double(), count.double()])
        if batch_idx == 0:
            for name, value in terms.items():
                self.log(f"penalty/{name}", value, rank_zero_only=True)
        # Lightning divides by the micro-batches; gradients are summed over processes, so each adds its share.
        loss = nll * self.trainer.accumulate_grad_batches / batch.count + penalty / self.trainer.world_size
        self._bad = self._bad.to(loss.device) + ~loss.detach().isfinite()
        return loss

    def on_after_backward(self) -> None:
        """When the optimizer is about to step: sum over processes the gradients, and what is known of the step."""
        if not self._optimizer_steps_now():
            return
        votes = torch.stack([self._bad, torch.full_like(self._bad, self.stop_requested)])
        if self.trainer.world_size > 1 or self.on_nan == "skip":
            votes = reduce_gradients(self._active_parameters(), votes)
        rate = max(group["lr"] for group in self.trainer.optimizers[0].param_groups)
        where = f"step {self.trainer.global_step + 1}, learning rate {rate:.3g}"
        self._late.append((Late(votes), where, self._forwards))
        self._bad, self._forwards = torch.zeros_like(self._bad), []

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Step, then take the proximal steps once; then read what is known of this step, or of the one before."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.regularizers.proximal_step(optimizer, self.current_epoch)
        self._read_votes(behind=1 if self.device.type == "cuda" else 0)

    def on_train_batch_end(self, outputs: Any, batch: TrainingBatch, batch_idx: int) -> None:
        """Log the training loss at the end of the epoch, over all processes; before its validation and callbacks."""
        if self.trainer.is_last_batch or self.trainer.should_stop:
            total, count = all_reduce_sum(self._train_sums).tolist()
            self._train_sums.zero_()
            values = {"train_loss": total / count if count else float("nan")}
            if self.on_nan == "skip":
                values["skipped"] = float(self.skipped)
            self.log_dict(values, on_step=False, on_epoch=True, rank_zero_only=True, batch_size=1)

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
        self.log("val_loss", nll / bins if bins else float("nan"), prog_bar=True)
        self.log("val_bps", sum(known) / len(known) if known else float("nan"), prog_bar=True)

    def configure_optimizers(self) -> Any:
        """AdamW over four groups: core and session parts, each with and without weight decay."""
        groups: dict[tuple[str, bool], list[Tensor]] = {}
        for name, parameter in self.twin.named_parameters():
            if parameter.requires_grad:
                part = "session" if name.startswith(SESSION_PARTS) else "core"
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
        """Add all that is needed to use the weights (`load_twin` opens a training checkpoint) and to go on.

        Raises
        ------
        NonFiniteLossError
            If a loss or a weight is not finite: such a checkpoint is not written.
        """
        self._read_votes(behind=0)
        if bad := [name for name, value in self.state_dict().items() if not value.isfinite().all()]:
            raise NonFiniteLossError(f"{bad[0]} is no longer finite after step {self.trainer.global_step}")
        checkpoint["twin"] = json.dumps(self.twin.describe())
        checkpoint["run"] = {
            "train_sums": all_gather(self._train_sums.to(self.device)).tolist(),
            "skipped": self.skipped,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the sums of an epoch that was left midway."""
        sums, rank = torch.tensor(checkpoint["run"]["train_sums"], dtype=torch.float64), self.trainer.global_rank
        if len(sums) != self.trainer.world_size:
            sums = torch.cat([sums.sum(dim=0)[None], torch.zeros(self.trainer.world_size - 1, 2)])
        self._train_sums, self.skipped = sums[rank], checkpoint["run"]["skipped"]

    @property
    def _step(self) -> int:
        """Micro-batches of the run before this one."""
        return self.trainer.fit_loop.epoch_loop.total_batch_idx

    def _losses(self, parts: list[Batch]) -> list[Tensor]:
        """Summed Poisson NLL of each part; rates are kept for :meth:`_describe_bad`."""
        forward = list(zip(parts, self.twin(parts), strict=True)) if parts else []
        self._forwards.append([(replace(part, stimulus=part.bins), rates.detach()) for part, rates in forward])
        return [poisson_nll(rates, part.spikes, part.mask, part.exposure) for part, rates in forward]

    def _without_bad(
        self, parts: list[Batch], losses: list[Tensor], buffers: list[Tensor]
    ) -> tuple[list[Batch], list[Tensor]]:
        """The parts and losses, from `buffers` again without the sessions whose loss is not finite on some process."""
        flags = torch.zeros(len(self.twin.sessions), device=self.device)
        for part, loss in zip(parts, losses, strict=True):
            flags[part.session] = ~loss.detach().isfinite()
        bad = set(all_reduce_sum(flags).nonzero().flatten().tolist())
        if bad:
            where = self._describe_bad([self._forwards.pop()])
            self.skipped += len(bad)
            logger.warning("%s; skipped at micro-batch %d (%d so far)", where, self._step + 1, self.skipped)
            if self.skipped > max(10, 0.01 * (self._step + 1)):
                raise NonFiniteLossError(f"{where}; {self.skipped} parts of {self._step + 1} batches were skipped")
            for buffer, value in zip(self.twin.buffers(), buffers, strict=True):
                buffer.copy_(value)
            parts = [part for part in parts if part.session not in bad]
            # A core that communicates needs all processes: where one has nothing left, none goes on.
            everywhere = all_reduce_sum(torch.tensor(float(bool(parts)), device=self.device))
            parts = parts if everywhere.item() == self.trainer.world_size else []
            losses = self._losses(parts)
        return parts, losses

    def _read_votes(self, behind: int) -> None:
        """Learn what was agreed on, up to the last step but `behind`."""
        while len(self._late) > behind:
            late, where, forwards = self._late.pop(0)
            bad, stop = late.read()
            if not bad == 0:  # a NaN is not 0
                raise NonFiniteLossError(f"{self._describe_bad(forwards)} ({where})")
            self.stop_agreed = self.stop_agreed or stop > 0

    def _describe_bad(self, forwards: list[list[tuple[Batch, Tensor]]]) -> str:
        """Where a loss is not finite: session, trial and bins of the first clip on the first process that has one."""
        found = next((text for forward in forwards for text in map(self._bad_clip, forward) if text), None)
        if self.trainer.world_size > 1:
            every: list[str | None] = [None] * self.trainer.world_size
            dist.all_gather_object(every, found)
            found = next((text for text in every if text), None)
        return found or "a penalty is not finite"

    def _bad_clip(self, forward: tuple[Batch, Tensor]) -> str | None:
        part, rates = forward
        clips = zip(
            rates,
            part.spikes,
            part.mask,
            [None] * len(rates) if part.exposure is None else part.exposure,
            part.bins.tolist(),
            strict=True,
        )
        for rate, spikes, mask, exposure, first in clips:
            loss = poisson_nll(rate, spikes, mask, exposure).item()
            if not math.isfinite(loss):
                data, name = self.trainer.datamodule, self.twin.sessions[part.session].name
                trial = None if data is None else data.sessions[part.session].trial
                at = "" if trial is None else f"trial {trial[first]}, "
                return f"the loss of session {name} is {loss}: {at}bins {first} to {first + part.length - 1}"
        return None

    def _optimizer_steps_now(self) -> bool:
        position = self.trainer.fit_loop.epoch_loop.batch_idx + 1
        return position % self.trainer.accumulate_grad_batches == 0 or position == self.trainer.num_training_batches

    def _active_parameters(self) -> list[torch.nn.Parameter]:
        """Parameters that the optimizer step changes on any process, in one order on all of them."""
        sessions = self._step_sessions
        return [
            parameter
            for name, parameter in self.twin.named_parameters()
            if parameter.requires_grad and (not name.startswith(SESSION_PARTS) or int(name.split(".")[1]) in sessions)
        ]

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
            if part in SESSION_PARTS:
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
        level = logging.WARNING if {"modulator", "recurrent"} & set(skipped) else logging.INFO
        logger.log(
            level, "%s: %d of %d arrays loaded; readouts of %d of %d sessions; as initialised: %s",
            path, len(loaded), len(own), len(same), len(self.twin.sessions), ", ".join(skipped) or "nothing",
        )  # fmt: skip


def _is_weight(name: str, parameter: Tensor) -> bool:
    """Whether a parameter is a weight that decay makes sense for: not a bias, a norm's scale or a position."""
    return parameter.ndim >= 2 and name.rsplit(".", 1)[-1] not in ("mean", "std", "theta", "bias", "h0")
