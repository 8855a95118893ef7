"""The model in training: loss, optimizer groups, metrics of the run."""

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from neurotwin.analysis.evaluate import SessionScore
from neurotwin.clip import Clip, Sample, Target
from neurotwin.config import (
    MODEL,
    ConfigError,
    ModelConfig,
    load_model_config,
    notice,
    noticing,
    recording_reads,
    unread_keys,
)
from neurotwin.data.pictures import all_shown
from neurotwin.data.spec import SessionSpec
from neurotwin.likelihoods import ResponseStatistics
from neurotwin.metrics.table import summarize
from neurotwin.models.network import CORE_PARTS, Streamer
from neurotwin.models.parameters import describe_parameters
from neurotwin.models.twin import TwinModel, checkpoint_entries
from neurotwin.processes import all_gather, all_reduce_sum

from ..optimizers import make_optimizer
from ..processes import Late, reduce_gradients
from ..regularizers import Regularizers
from ..schedulers import largest_rate, make_scheduler
from ..seams import micro_batches_done, optimizer_steps_now
from ..teacher import learned_pairs, loss_of
from .multidataset_dm import MultiDatasetDM, TrainingBatch
from .pretrained import load_pretrained, open_pretrained

__all__ = ["MultiDatasetModel", "NonFiniteLossError"]

logger = logging.getLogger(__name__)

_VISION_PARTS = ("frontend", "convnet")


class NonFiniteLossError(ArithmeticError):
    """The loss, or a weight, is NaN or infinite."""


class MultiDatasetModel(pl.LightningModule):
    """A twin in training.

    The loss is the negative log likelihood, summed over the valid responses of the whole optimizer step and divided by
    their number. The step includes all processes and all accumulated micro-batches, and gradients are summed over
    processes. Training on 1 or 8 processes therefore gives the same loss, the same gradients and the same metrics.

    Parameters
    ----------
    model_config
        A model's configuration, or the path of its YAML; None takes that of `pretrained_checkpoint`.
    sessions
        What the model must know of each session (:attr:`MultiDatasetDM.specs`).
    statistics
        Training responses of each session's units in short (:meth:`MultiDatasetDM.statistics`): what the model starts
        from.
    learning_rate
        Of the parameters that belong to one session (readouts, adapters).
    core_lr_scale
        The shared core learns with ``learning_rate * core_lr_scale``.
    weight_decay
        Of weights, not of biases, norms, positions or of what an l2 or group_lasso term already shrinks.
    optimizer
        "adamw", or "muon" for the kernels of the core and AdamW for the rest; see :mod:`training.optimizers`.
    lr_scheduler, warmup_epochs, restart_period
        See :func:`training.schedulers.make_scheduler`.
    pretrained_checkpoint
        A twin whose core the model starts from; readouts and adapters too, for sessions that it knows by name and
        whose unit ids are the same.
    freeze_vision
        Do not train frontend and convnet. Needs `pretrained_checkpoint`.
    freeze_core
        Do not train anything that sessions share. Needs `pretrained_checkpoint`.
    compile
        Compile the core, where that was measured to help: on a GPU, or for a recurrent core. Elsewhere a line says that
        it is not.
    on_nan
        What a loss that is NaN or infinite does. "stop" raises :class:`NonFiniteLossError`. "skip" leaves the session
        out of that micro-batch, on all processes, and counts it in `skipped`; more than 10 and 1% of the micro-batches
        stop as well.
    teacher_weight
        Share of the loss that is about the rates of a teacher, where samples bring them (`Target.expected`).
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
    With "stop", training does not wait for the device. Whether a loss was finite is sent along with the
    gradients, and on a GPU it is read one step later. :meth:`on_save_checkpoint` reads it before it saves, so that
    broken weights are never saved. With "skip", the answer is needed before the backward pass, so that training waits
    at every micro-batch.

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
        model_config: ModelConfig | str | Path | None,
        sessions: Sequence[SessionSpec],
        *,
        statistics: Sequence[ResponseStatistics] | None = None,
        learning_rate: float = 1e-4,
        core_lr_scale: float = 1.0,
        weight_decay: float = 1e-5,
        optimizer: str = "adamw",
        lr_scheduler: str = "none",
        warmup_epochs: int = 5,
        restart_period: int | None = None,
        pretrained_checkpoint: str | Path | None = None,
        freeze_vision: bool = False,
        freeze_core: bool = False,
        compile: bool = False,
        on_nan: str = "stop",
        teacher_weight: float = 0.5,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if on_nan not in ("stop", "skip"):
            raise ValueError(f"on_nan must be stop or skip, not {on_nan!r}")
        if (freeze_vision or freeze_core) and pretrained_checkpoint is None:
            flag = "freeze_vision" if freeze_vision else "freeze_core"
            raise ConfigError(f"{flag} would freeze random weights; give pretrained_checkpoint as well")
        source = None if pretrained_checkpoint is None else open_pretrained(pretrained_checkpoint)
        if model_config is None:
            if source is None:
                raise ConfigError("give a model_config, or a pretrained_checkpoint that has one")
            model_config = source.config
        elif not isinstance(model_config, ModelConfig):
            model_config = load_model_config(model_config)
        self.learning_rate, self.core_lr_scale, self.weight_decay = learning_rate, core_lr_scale, weight_decay
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.warmup_epochs, self.restart_period = warmup_epochs, restart_period
        self.on_nan, self.seed, self.compile_core, self.teacher_weight = on_nan, seed, compile, teacher_weight
        with noticing(), recording_reads() as reads:
            self.twin = TwinModel(model_config, sessions, generator=torch.Generator().manual_seed(seed))
            self.parameter_infos = tuple(describe_parameters(self.twin))
            self.regularizers = Regularizers(model_config.regularization, self.parameter_infos)
            for key in unread_keys(model_config, reads):
                script = key == "training"
                text = "is for the script; here the arguments hold" if script else "has no effect in this model"
                notice(MODEL, key.split("."), text)
        if statistics is not None:
            self.twin.initialise(statistics)
        if source is not None:
            exact = CORE_PARTS if freeze_core else _VISION_PARTS  # nothing that starts anew may be frozen
            load_pretrained(self.twin, source, pretrained_checkpoint, exact=exact)
        self.frozen = CORE_PARTS if freeze_core else _VISION_PARTS if freeze_vision else ()
        for part in self.frozen:
            getattr(self.twin, part).requires_grad_(False)
        self.stop_requested = self.stop_agreed = False
        self.skipped = 0
        self._train_sums = torch.zeros(2, dtype=torch.float64)
        self._forwards: list[list[tuple[Sample, Tensor]]] = []
        self._bad = torch.zeros(())
        self._late: list[tuple[Late, str, list[list[tuple[Sample, Tensor]]]]] = []
        self._scores: list[SessionScore] = []

    def forward(self, clips: list[Clip]) -> list[Tensor]:
        """Rates (B, L, U) of clips of each session, expected responses per bin and presentation."""
        return self.twin(clips)

    def on_fit_start(self) -> None:
        """Compile the core, if that was asked for and helps on this device."""
        if self.compile_core and self.device.type == "cpu" and not self.twin.is_recurrent:
            logger.warning("not compiled: on a CPU it only speeds up recurrent cores (docs/performance.md)")
        elif self.compile_core:
            self.twin.core = torch.compile(self.twin.core)

    def on_train_start(self) -> None:
        """Note which pictures the core is shown; leave frozen parts as they are, running averages included."""
        data = self.trainer.datamodule
        if isinstance(data, MultiDatasetDM) and self.frozen != CORE_PARTS:
            self.twin.pictures = all_shown([self.twin.pictures, data.pictures()])
        for part in self.frozen:
            getattr(self.twin, part).eval()

    def on_train_batch_start(self, batch: TrainingBatch, batch_idx: int) -> None:
        """Draw dropout and sampled readouts from (seed, step, process): a resumed run draws the same."""
        place = (self.seed, micro_batches_done(self.trainer), self.trainer.global_rank)
        state = np.random.SeedSequence(place).generate_state(1, np.uint64)
        # Not torch.manual_seed: where CUDA is not in use it formats a traceback each time, for later.
        torch.default_generator.manual_seed(int(state[0]))
        if self.device.type == "cuda":
            torch.cuda.manual_seed(int(state[0]))
        self._step_sessions = set(batch.sessions)

    def training_step(self, batch: TrainingBatch, batch_idx: int) -> Tensor:
        """This process's and micro-batch's share of the loss of an optimizer step."""
        before = [buffer.clone() for buffer in self.twin.buffers()] if self.on_nan == "skip" else []
        parts, losses = batch.samples, self._losses(batch.samples)
        if self.on_nan == "skip":
            parts, losses = self._without_bad(parts, losses, before)
        nll = torch.stack(losses).sum() if losses else sum(0 * p.sum() for p in self._active_parameters())
        penalty, terms = self.regularizers.penalty(self.current_epoch, active=batch.sessions)
        if self.twin.auxiliary_loss is not None and losses:
            penalty = penalty + self.twin.auxiliary_loss
        count = sum((learned_pairs(part.target) for part in parts), torch.zeros((), device=nll.device))
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
        if not optimizer_steps_now(self.trainer):
            return
        votes = torch.stack([self._bad, torch.full_like(self._bad, self.stop_requested)])
        if self.trainer.world_size > 1 or self.on_nan == "skip":
            votes = reduce_gradients(self._active_parameters(), votes)
        rate = largest_rate(self.trainer.optimizers)
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
        self._scores = [
            SessionScore(prepared, module.likelihood, self.device)
            for prepared, module in zip(self.trainer.datamodule.sessions, self.twin.per_session, strict=True)
        ]
        self._predict = Streamer(self.twin)

    def validation_step(self, batch: Sample, batch_idx: int) -> None:
        """Add a sample to the sums of its session."""
        self._scores[batch.session].update_sums(batch, self._predict(batch.clip))

    def on_validation_epoch_end(self) -> None:
        """Add the sums over processes, divide once, log.

        Raises
        ------
        NonFiniteLossError
            If a prediction in a valid bin is not finite, with session, trial and bin.
        """
        self._refuse_bad_predictions()
        flat = all_reduce_sum(torch.cat([score.sums.sums.reshape(-1) for score in self._scores]))
        merits, nll, bins = [], 0.0, 0.0
        for spec, score in zip(self.twin.sessions, self._scores, strict=True):
            sums = score.sums
            part, flat = flat[: sums.sums.numel()], flat[sums.sums.numel() :]
            sums.sums = part.reshape(sums.sums.shape)
            values = sums.compute()
            merits.append(summarize(values[self.merit]).mean)
            nll += torch.nansum(values["nll"] * values["bins"]).item()
            bins += values["bins"].sum().item()
            self.log(f"val_{self.merit}/{spec.name}", merits[-1], rank_zero_only=True)
        known = [value for value in merits if value == value]
        # The same on every process: both are read by callbacks that decide on all of them.
        self.log("val_loss", nll / bins if bins else float("nan"), prog_bar=True)
        self.log(f"val_{self.merit}", sum(known) / len(known) if known else float("nan"), prog_bar=True)

    @property
    def merit(self) -> str:
        """Name of the metric that runs of this likelihood are compared by: `bps` for counts."""
        return self.twin.per_session[0].likelihood.figure_of_merit

    def _refuse_bad_predictions(self) -> None:
        found = next((fault for score in self._scores if (fault := score.fault())), None)
        if found := self._first_of_processes(found):
            raise NonFiniteLossError(f"in validation, {found}")

    def configure_optimizers(self) -> Any:
        """The optimizer (:func:`training.optimizers.make_optimizer`) and the schedule of its learning rates."""
        optimizer = make_optimizer(
            self.optimizer, self.parameter_infos, session_rate=self.learning_rate,
            core_rate=self.learning_rate * self.core_lr_scale, weight_decay=self.weight_decay,
            no_decay=self.regularizers.no_decay,
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
        checkpoint.update(checkpoint_entries(self.twin))
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

    def _losses(self, parts: list[Sample]) -> list[Tensor]:
        """Summed NLL of each part; rates are kept for :meth:`_describe_bad`."""
        rates = self.twin([part.clip for part in parts]) if parts else []
        forward = list(zip(parts, rates, strict=True))
        self._forwards.append(
            [(replace(part, clip=replace(part.clip, stimulus=None)), rates.detach()) for part, rates in forward]
        )
        return [self._nll(part, rates) for part, rates in forward]

    def _nll(self, part: Sample, rates: Tensor) -> Tensor:
        likelihood = self.twin.per_session[part.session].likelihood
        return loss_of(likelihood, rates, part.target, self.teacher_weight)

    def _without_bad(
        self, parts: list[Sample], losses: list[Tensor], buffers: list[Tensor]
    ) -> tuple[list[Sample], list[Tensor]]:
        """The parts and losses, from `buffers` again without the sessions whose loss is not finite on some process."""
        flags = torch.zeros(len(self.twin.sessions), device=self.device)
        for part, loss in zip(parts, losses, strict=True):
            flags[part.session] = ~loss.detach().isfinite()
        bad = set(all_reduce_sum(flags).nonzero().flatten().tolist())
        if bad:
            where = self._describe_bad([self._forwards.pop()])
            self.skipped += len(bad)
            number = micro_batches_done(self.trainer) + 1
            logger.warning("%s; skipped at micro-batch %d (%d so far)", where, number, self.skipped)
            if self.skipped > max(10, 0.01 * number):
                raise NonFiniteLossError(f"{where}; {self.skipped} parts of {number} batches were skipped")
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

    def _describe_bad(self, forwards: list[list[tuple[Sample, Tensor]]]) -> str:
        """Where a loss is not finite: session, trial and bins of the first clip on the first process that has one."""
        found = next((text for forward in forwards for part in forward if (text := self._bad_clip(*part))), None)
        return self._first_of_processes(found) or "a penalty is not finite"

    def _first_of_processes(self, found: str | None) -> str | None:
        """The first text that a process has; all must call this."""
        if self.trainer.world_size == 1:
            return found
        every: list[str | None] = [None] * self.trainer.world_size
        dist.all_gather_object(every, found)
        return next((text for text in every if text), None)

    def _bad_clip(self, part: Sample, rates: Tensor) -> str | None:
        target = part.target
        for row, first in enumerate(part.clip.bins.tolist()):
            one = slice(row, row + 1)
            exposure = None if target.exposure is None else target.exposure[one]
            expected = None if target.expected is None else target.expected[one]
            alone = Target(target.responses[one], target.mask[one], exposure, expected)
            loss = self._nll(replace(part, target=alone), rates[one]).item()
            if not math.isfinite(loss):
                data, name = self.trainer.datamodule, self.twin.sessions[part.session].name
                at = "" if data is None else f"trial {data.sessions[part.session].trial[first]}, "
                return f"the loss of session {name} is {loss}: {at}bins {first} to {first + part.clip.length - 1}"
        return None

    def _active_parameters(self) -> list[torch.nn.Parameter]:
        """Parameters that the optimizer step changes on any process, in one order on all of them."""
        return [
            info.parameter
            for info in self.parameter_infos
            if info.parameter.requires_grad and (info.session is None or info.session in self._step_sessions)
        ]
