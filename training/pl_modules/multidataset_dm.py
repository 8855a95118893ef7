"""From dataset configs to the batches of a run, the same whatever the number of processes."""

import logging
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch

from neurotwin.clip import Sample
from neurotwin.config import DatasetConfig, load_dataset_configs
from neurotwin.data.clips import ClipTable, clip_table, show, stream
from neurotwin.data.pictures import ShownPictures, all_shown
from neurotwin.data.prepare import Prepared, prepare
from neurotwin.data.spec import SessionSpec
from neurotwin.likelihoods import ResponseStatistics
from neurotwin.tensorfile import blocks

from ..samplers import ClipSampler, ContrastWeightedSampler
from ..teacher import Lessons, Teacher

__all__ = ["ClipLoader", "MultiDatasetDM", "TrainingBatch"]

logger = logging.getLogger(__name__)


@dataclass
class TrainingBatch:
    """This process's part of one micro-batch.

    Attributes
    ----------
    samples
        Clips and their targets, one :class:`~neurotwin.clip.Sample` a session.
    count
        Valid (bin, unit) pairs of the whole optimizer step: over all processes and accumulated micro-batches. The
        loss is divided by it.
    sessions
        Sessions in the optimizer step on any process, ascending: the only ones whose readouts change.
    """

    samples: list[Sample]
    count: int
    sessions: tuple[int, ...]

    def map(self, function: Callable[[Sample], Sample]) -> "TrainingBatch":
        """The same with other samples."""
        return replace(self, samples=[function(sample) for sample in self.samples])


class ClipLoader:
    """One epoch of micro-batches, gathered in the background.

    Which clips a step takes follows from the seed and the number of the step, and every process computes it. Each
    process therefore knows the denominator of the loss and the sessions of the whole step without asking the others.

    Parameters
    ----------
    table
        The clips.
    sampler
        Which of them each step takes. Its `step` says where iteration starts, and counts what was consumed.
    context
        Frames before the first predicted bin that the model needs.
    accumulate
        Micro-batches in an optimizer step. An epoch's last step may have fewer.
    threads
        Background threads that gather; 0 gathers in the caller's.
    pin_memory
        Put the batches into page-locked memory.
    shown
        See :func:`neurotwin.data.clips.gather`.
    lessons
        What is learned from a teacher; the clips are then of its sessions.
    """

    def __init__(
        self,
        table: ClipTable,
        sampler: ClipSampler,
        *,
        context: int,
        accumulate: int = 1,
        threads: int = 1,
        pin_memory: bool = False,
        shown: bool = True,
        lessons: Lessons | None = None,
    ) -> None:
        self.table, self.sampler, self.context, self.lessons = table, sampler, context, lessons
        self.accumulate, self.threads, self.pin_memory, self.shown = accumulate, threads, pin_memory, shown

    def __len__(self) -> int:
        return self.sampler.steps_per_epoch

    def __iter__(self) -> Iterator[TrainingBatch]:
        first = self.sampler.step
        steps = range(first, (first // len(self) + 1) * len(self))
        for step, batch in zip(steps, ordered_map(self.batch, steps, threads=self.threads), strict=True):
            self.sampler.step = step + 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Where iteration stands. Lightning resumes within an epoch only if the loader has such a state."""
        return self.sampler.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from there."""
        self.sampler.load_state_dict(state)

    def batch(self, step: int) -> TrainingBatch:
        """This process's part of micro-batch `step` of the run.

        Each session costs time on every process that has a clip of it. The clips of a step are therefore dealt session
        by session, so that each process has few sessions.
        """
        drawn = {s: self.sampler.global_indices(s) for s in self._optimizer_step(step)}
        rows = np.concatenate(list(drawn.values()))
        clips = drawn[step][np.argsort(self.table.locate(drawn[step]).session, kind="stable")]
        own = np.array_split(clips, self.sampler.world_size)[self.sampler.rank]
        sessions = self.table.locate(rows).session
        batch = TrainingBatch(
            self.table.samples(own, context=self.context, shown=self.shown),
            count=int(self.table.count(rows).sum()),
            sessions=tuple(np.unique(self.lessons.homes[sessions] if self.lessons else sessions).tolist()),
        )
        if self.lessons is not None:
            batch = batch.map(self.lessons.taught)
        return batch.map(Sample.pin_memory) if self.pin_memory else batch

    def _optimizer_step(self, step: int) -> range:
        """The micro-batches that are accumulated with `step`; they do not cross the end of an epoch."""
        epoch = step // len(self) * len(self)
        first = epoch + (step - epoch) // self.accumulate * self.accumulate
        return range(first, min(first + self.accumulate, epoch + len(self)))


class StreamLoader:
    """This process's part of a split, every bin once: what validation reads."""

    def __init__(self, sessions: Sequence[Prepared], split: str, **settings: Any) -> None:
        self.sessions, self.split, self.settings = sessions, split, settings

    def __iter__(self) -> Iterator[Sample]:
        for index, prepared in enumerate(self.sessions):
            for sample in stream(prepared, self.split, **self.settings):
                yield sample.of_session(index)


class MultiDatasetDM(pl.LightningDataModule):
    """Sessions, their clips and the order in which training takes them.

    Parameters
    ----------
    datasets
        Configs, or the path of a parent file or of a folder of session files.
    batch_size
        Predicted bins of a process and micro-batch, taken as ``batch_size // clip_len`` clips, at least one.
    clip_len
        Predicted bins of a clip; 1 makes windows. Clips are never longer than the longest trial.
    steps_per_epoch
        Micro-batches in an epoch.
    accumulate
        Micro-batches in an optimizer step.
    seed
        Of the order of clips.
    balance
        "none": every clip equally often. "session" or "subject": every session or subject equally often.
    curriculum_steps
        Micro-batches over which the emphasis on high contrast anneals to none; 0: no curriculum.
    max_datasets, data_dir
        See :func:`neurotwin.config.load_dataset_configs`.
    cache_dir, dtype
        See :func:`neurotwin.data.prepare.prepare_session`.
    threads
        Background threads that gather clips.
    on_device
        Keep the stimuli on the device, so that a batch brings only the indices of its frames. None: on a GPU, where
        they take at most half of the memory that is free.
    limit_val
        Part of the validation to use: a fraction of each session's trials up to 1, or a number of trials above.
    progress
        Called with index, number and name before each session is prepared.
    teacher
        A trained model whose rates are learned as well, on stimuli with and without responses.

    Examples
    --------
    >>> import tempfile
    >>> from neurotwin.data.simulate import simulate_session
    >>> session = simulate_session("ada_demo1", n_trials={"backimage": 5, "gaborium": 0, "fixrsvp": 0})
    >>> path = session.save(Path(tempfile.mkdtemp()) / "ada_demo1.safetensors")
    >>> dm = MultiDatasetDM([DatasetConfig(session="ada_demo1", path=str(path))], batch_size=256, clip_len=64)
    >>> dm.specs[0].name, len(dm.specs[0].unit_ids), dm.table.length
    ('ada_demo1', 24, 64)
    >>> dm.sessions[0].n_bins, int(dm.table.count().sum()) > 0  # 240 bins a second, five trials of 600
    (3000, True)
    """

    def __init__(
        self,
        datasets: str | Path | Sequence[DatasetConfig],
        *,
        batch_size: int = 64,
        clip_len: int = 32,
        steps_per_epoch: int = 1000,
        accumulate: int = 1,
        seed: int = 0,
        balance: str = "none",
        curriculum_steps: int = 0,
        max_datasets: int | None = None,
        data_dir: str | Path | None = None,
        cache_dir: str | Path | None = None,
        dtype: str = "uint8",
        threads: int = 1,
        on_device: bool | None = None,
        limit_val: float = 1.0,
        progress: Callable[[int, int, str], None] | None = None,
        teacher: Teacher | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("batch_size", batch_size), ("clip_len", clip_len), ("steps_per_epoch", steps_per_epoch)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if balance not in ("none", "session", "subject"):
            raise ValueError(f"balance must be none, session or subject, not {balance!r}")
        if isinstance(datasets, str | Path):
            datasets = load_dataset_configs(datasets, data_dir=data_dir, max_datasets=max_datasets)
        self.configs = list(datasets)[:max_datasets]
        self.batch_size, self.clip_len, self.steps_per_epoch = batch_size, clip_len, steps_per_epoch
        self.accumulate, self.seed, self.balance, self.curriculum_steps = accumulate, seed, balance, curriculum_steps
        self.cache_dir, self.dtype, self.threads, self.limit_val = cache_dir, dtype, threads, limit_val
        self.on_device, self.progress, self.teacher = on_device, progress, teacher
        self.sessions: list[Prepared] = []
        self.lessons: Lessons | None = None
        self.sampler: ClipSampler | None = None
        self._table: ClipTable | None = None
        self._first_step = 0
        self._stimuli: list[torch.Tensor] = []

    def setup(self, stage: str | None = None) -> None:
        """Prepare the sessions, or map what was prepared before; does nothing the second time."""
        if not self.sessions:
            self.sessions = prepare(self.configs, cache_dir=self.cache_dir, dtype=self.dtype, progress=self.progress)
            for prepared in self.sessions:
                if faults := oddities(prepared):
                    logger.warning("session %s: %s", prepared.name, "; ".join(faults))
            if self.teacher is not None:
                self.lessons = self.teacher.lessons(self.sessions)

    @property
    def specs(self) -> list[SessionSpec]:
        """What a model must know of each session."""
        self.setup()
        return [prepared.spec for prepared in self.sessions]

    @property
    def table(self) -> ClipTable:
        """The training clips."""
        self.setup()
        if self._table is None:
            sessions, least = (self.sessions, None)
            if self.lessons is not None:
                sessions, least = self.lessons.sessions, self.lessons.context
            self._table = clip_table(sessions, "train", length=self.clip_len, unlabelled=least)
        return self._table

    def statistics(self) -> list[ResponseStatistics]:
        """The training responses of every session in short, from which a model starts."""
        self.setup()
        return [prepared.statistics() for prepared in self.sessions]

    def pictures(self) -> dict[str, ShownPictures]:
        """Which pictures each session shows in training, by name; with a teacher, also those learned from it alone."""
        self.setup()
        sessions = self.sessions if self.lessons is None else self.lessons.sessions
        return all_shown([{prepared.name: prepared.shown("train")} for prepared in sessions])

    def train_dataloader(self) -> ClipLoader:
        """Micro-batches from where training stands to the end of its epoch."""
        rank, world_size = self._process()
        if self.sampler is None:
            self.sampler = self._make_sampler(rank, world_size)
            self.sampler.step = self._first_step
        return ClipLoader(
            self.table, self.sampler, context=self._context(), accumulate=self.accumulate, threads=self.threads,
            pin_memory=self._device().type == "cuda", shown=not self._place_stimuli(),
            lessons=self.lessons,
        )  # fmt: skip

    def val_dataloader(self) -> StreamLoader:
        """The validation split, every bin once."""
        return self._stream("val")

    def test_dataloader(self) -> StreamLoader:
        """The test split, every bin once."""
        return self._stream("test")

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move a batch, and show its frames there; copies from page-locked memory are asynchronous."""

        def move(sample: Sample) -> Sample:
            sample = sample.to(device)
            if sample.clip.frames is None:
                return sample
            return replace(sample, clip=show(sample.clip, self._stimuli[sample.session]))

        return batch.map(move) if isinstance(batch, TrainingBatch) else move(batch)

    def state_dict(self) -> dict[str, Any]:
        """Where training stands."""
        return {"step": self._first_step if self.sampler is None else self.sampler.step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self._first_step = state_dict["step"]
        if self.sampler is not None:
            self.sampler.step = self._first_step

    def _make_sampler(self, rank: int, world_size: int) -> ClipSampler:
        table = self.table
        groups = {
            "none": np.zeros(len(self.sessions)),
            "session": np.arange(len(self.sessions)),
            "subject": np.array([prepared.spec.subject for prepared in self.sessions]),
        }[self.balance]
        groups = groups if self.lessons is None else groups[self.lessons.homes]
        shared: dict[str, Any] = {
            "batch_size": max(1, self.batch_size // table.length), "steps_per_epoch": self.steps_per_epoch,
            "seed": self.seed, "rank": rank, "world_size": world_size, "groups": groups,
            "sizes": table.sizes,
        }  # fmt: skip
        if self.curriculum_steps:
            return ContrastWeightedSampler(
                len(table), scores=table.contrast(), warmup_steps=self.curriculum_steps, **shared
            )
        return ClipSampler(len(table), **shared)

    def _stream(self, split: str) -> StreamLoader:
        self.setup()
        return StreamLoader(
            self.sessions, split, context=self._context(), limit=self.limit_val, part=self._process(),
            shown=not self._place_stimuli(),
        )  # fmt: skip

    def _device(self) -> torch.device:
        return torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device

    def _place_stimuli(self) -> bool:
        """Whether the stimuli are on the device; they are put there if they should be."""
        if self._stimuli:
            return True
        device, wanted = self._device(), self.on_device
        if wanted is None and device.type == "cuda":
            size = sum(prepared.source.nbytes for prepared in self.sessions)
            wanted = 2 * size <= torch.cuda.mem_get_info(device)[0]
        if wanted:
            self._stimuli = [torch.tensor(prepared.source, device=device) for prepared in self.sessions]
        return bool(self._stimuli)

    def _process(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    def _context(self) -> int:
        """Frames that the model needs before a prediction; all lags where no model is attached."""
        if self.trainer is not None:
            return self.trainer.lightning_module.twin.context
        return self.sessions[0].spec.n_lags - 1


def oddities(prepared: Prepared) -> list[str]:
    """What is strange about a session, in words: units that cannot be learned, a stimulus that shows nothing."""
    found = []
    for number, text in ((0, f"of {prepared.n_units} units without a spike in training"), (1, "with a single one")):
        if units := np.array(prepared.spec.unit_ids)[prepared.train_sum == number].tolist():
            shown = ", ".join(map(str, units[:10])) + (", ..." if len(units) > 10 else "")
            found.append(f"{len(units)} {text} ({shown})")
    if not any(part.any() for part in blocks(prepared.contrast)):
        found.append("every frame is blank")
    return found


def ordered_map(function: Callable[[int], Any], items: Sequence[int], *, threads: int) -> Iterator[Any]:
    """Yield ``function(item)`` in order, computed up to two items ahead in background threads.

    An exception in a thread is raised where its result is due.
    """
    if threads == 0:
        yield from map(function, items)
        return
    slots: list[queue.Queue] = [queue.Queue(maxsize=2) for _ in range(threads)]
    stopped = threading.Event()

    def work(first: int) -> None:
        for item in items[first::threads]:
            try:
                result = (function(item), None)
            except BaseException as error:  # handed to the consumer, who raises it
                result = (None, error)
            while not stopped.is_set():
                try:
                    slots[first].put(result, timeout=0.1)
                    break
                except queue.Full:
                    continue
            if stopped.is_set() or result[1] is not None:
                return

    workers = [threading.Thread(target=work, args=(first,), daemon=True) for first in range(threads)]
    for worker in workers:
        worker.start()
    try:
        for position in range(len(items)):
            value, error = slots[position % threads].get()
            if error is not None:
                raise error
            yield value
    finally:
        stopped.set()
        for worker in workers:
            worker.join()
