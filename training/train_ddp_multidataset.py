"""Train one model on many recording sessions.

    python training/train_ddp_multidataset.py --model_config configs/model.yaml --dataset_configs_path configs/datasets

A run has a folder, CHECKPOINT_DIR/EXPERIMENT_NAME, with its resolved configs (`model.yaml`, `datasets.yaml`), its
record (`run.json`), `metrics.csv`, `checkpoints/` and, at the end, the table of units (`units.csv`). A folder that
holds a run is never written to again, except to resume it; a new run goes to a numbered folder beside it.
"""

__package__ = __package__ or "training"  # PEP 366: as a script it is in no package, and its imports are relative

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from neurotwin.analysis.evaluate import evaluate
from neurotwin.analysis.report import load_run, report_rows, text_table
from neurotwin.checkpoint_file import find_checkpoint, read_checkpoint
from neurotwin.config import (
    Change,
    ConfigError,
    ModelConfig,
    TrainingConfig,
    dump_yaml,
    load_dataset_configs,
    load_model_config,
    noticing,
    parse_changes,
)
from neurotwin.config.locate import is_url
from neurotwin.data.clips import has_part
from neurotwin.data.progress import session_progress
from neurotwin.data.simulate import DEMO_SESSIONS, make_demo_sessions
from neurotwin.files import write_json, write_text
from neurotwin.metrics import summarize_table
from neurotwin.models import check_run, load_twin
from neurotwin.transfer.checks import shown_before

from . import MultiDatasetDM, MultiDatasetModel, flags
from .augmentation import Augment
from .averaging import WeightAverage
from .callbacks import (
    CurriculumCallback,
    EpochHeartbeat,
    Heartbeat,
    Interrupted,
    MetricsFile,
    ModelLogging,
    StopSignals,
    TimeBudgetCallback,
    annealed,
)
from .checkpoints import SafeCheckpoint, latest_checkpoint
from .devices import choose_precision
from .flags import Arguments, without_effect
from .launch import Launch, LaunchError, first_on_machine, read_launch
from .pl_modules import NonFiniteLossError
from .pl_modules.pretrained import open_pretrained
from .processes import GradientSumStrategy
from .progress_line import ProgressLine
from .range_test import RangeTest
from .recipe import follow_recipe, with_recipe
from .runs import (
    StepSize,
    batch_of_run,
    check_same_run,
    closing_lines,
    describe_environment,
    find_resumption,
    latest_run_folder,
    new_run_folder,
    read_record,
    run_name,
)
from .seams import announce_rank, epochs_trained, kill_processes
from .teacher import Teacher
from .utils import RunLog, keep_freed_memory, known_end, quiet_lightning

__all__ = ["main", "parse_arguments", "train"]

logger = logging.getLogger("training")


def parse_arguments(argv: Sequence[str] | None = None) -> Arguments:
    """The flags of the script, with their defaults; see :mod:`training.flags`."""
    return flags.parse_arguments(argv, description=__doc__)


def train(arguments: Arguments, signals: StopSignals | None = None, log: RunLog | None = None) -> Path | None:
    """Train as the flags say, and return the run's folder, where `log` gets a file; `--find_lr` only prints a rate."""
    launch = read_launch(arguments.accelerator, arguments.num_gpus, arguments.gpu_ids, arguments.num_nodes)
    announce_rank(launch.rank)
    if launch.rank:
        logging.getLogger().setLevel(logging.ERROR)
    pretrained = arguments.pretrained_checkpoint and find_checkpoint(arguments.pretrained_checkpoint)
    with noticing():
        changes = parse_changes(arguments.set or ())
        model_config = choose_model(arguments.model_config, pretrained, changes)
        arguments = follow_recipe(arguments, model_config.training, arguments.model_config)
        for line in without_effect(arguments, launch.accelerator):
            logger.warning(line)
        if arguments.find_lr:
            arguments = for_range_test(arguments)
        name = run_name(arguments.experiment_name, arguments.model_config, pretrained)
        batch_size = batch_of_run(arguments, name, launch.n_processes)
        data = make_data(arguments, model_config, changes, batch_size)
        model = make_model(arguments, model_config, pretrained, data)
    for prepared in data.sessions if model.twin.pictures and not launch.rank else ():
        if line := shown_before(model.twin, prepared):
            logger.warning(line)
    if arguments.find_lr:
        return find_rate(arguments, launch, model, data)
    step = StepSize.of(batch_size, data.table.length, launch.n_processes, arguments.accumulate_grad_batches)
    record = make_record(arguments, name, model, data, step)
    record["augmentation"] = model_config.training.model_dump(mode="json").get("augmentation", [])
    folder, checkpoint = run_folder(arguments, name, model, record)
    augmentations = [part.params for part in model_config.training.augmentation]
    extra = [*([Augment(augmentations, arguments.seed)] if augmentations else []), *([signals] if signals else [])]
    trainer = make_trainer(arguments, launch, folder, name, model.merit, extra)
    logger.info("%s: on %s, precision %s, a step takes %s", folder, launch.accelerator, trainer.precision, step.text())
    write_record(folder, record, with_recipe(model_config, arguments), data)
    if log and not launch.rank:
        log.open(folder)
    began = time.monotonic()
    try:
        trainer.fit(model, data, ckpt_path=checkpoint)
        if trainer.is_global_zero:
            finish(trainer, data, folder, record | {"wall_s": record["wall_s"] + time.monotonic() - began})
    except BaseException as error:
        kill_processes(trainer)
        last = folder / "checkpoints" / "last.ckpt"
        error.add_note(f"{last} is whole: --resume auto goes on from it" if last.exists() else "nothing was saved yet")
        raise
    return folder


def choose_model(path: str | None, pretrained: Path | None, changes: Sequence[Change]) -> ModelConfig:
    """The model's config: that of the file, else that of the twin to start from."""
    if path:
        return load_model_config(path, changes=changes)
    if asked := [change.name for change in changes if change.file == "model"]:
        raise ConfigError(
            f"{asked[0]}: the model is that of --pretrained_checkpoint; give its --model_config to change it"
        )
    return open_pretrained(pretrained).config


def make_data(
    arguments: argparse.Namespace, model_config: ModelConfig, changes: Sequence[Change], batch_size: int
) -> MultiDatasetDM:
    """The sessions, prepared; demo sessions that do not exist yet are made."""
    configs = load_dataset_configs(
        arguments.dataset_configs_path, data_dir=arguments.data_dir, max_datasets=arguments.max_datasets,
        changes=changes,
    )  # fmt: skip
    here = [config for config in configs if config.session in DEMO_SESSIONS and not is_url(config.path)]
    absent = [config for config in here if not Path(config.path).exists()]
    if absent:
        folder = Path(absent[0].path).parent
        logger.info("simulating the demo sessions %s in %s", ", ".join(c.session for c in absent), folder)
        make_demo_sessions(folder, [config.session for config in absent])
    check_run(model_config, configs)
    data = MultiDatasetDM(
        configs, batch_size=batch_size, clip_len=arguments.clip_len, balance=arguments.balance,
        steps_per_epoch=arguments.steps_per_epoch, accumulate=arguments.accumulate_grad_batches, seed=arguments.seed,
        curriculum_steps=arguments.warmup_epochs * arguments.steps_per_epoch if arguments.enable_curriculum else 0,
        dtype=arguments.dset_dtype, threads=arguments.num_workers, limit_val=arguments.limit_val_batches,
        progress=lambda index, number, name: logger.info("session %d of %d: %s", index + 1, number, name),
        teacher=Teacher(arguments.teacher, arguments.teacher_types) if arguments.teacher else None,
    )  # fmt: skip
    data.setup()
    check_validation(arguments, data)
    if arguments.log_dataset_idx >= len(data.sessions):
        raise ValueError(f"--log_dataset_idx {arguments.log_dataset_idx}: there are {len(data.sessions)} sessions")
    return data


def check_validation(arguments: argparse.Namespace, data: MultiDatasetDM) -> None:
    """Refuse what waits for a validation where no session has a part to validate on; else say that there is none."""
    if any(has_part(prepared, "val") for prepared in data.sessions):
        return
    watching = {
        "--early_stopping_patience": arguments.early_stopping_patience is not None,
        "--lr_scheduler plateau": arguments.lr_scheduler == "plateau",
    }
    if flags_given := [name for name, given in watching.items() if given]:
        raise ValueError(
            f"{flags_given[0]} follows the validation, and no session has a validation part; leave it out, or label "
            "bins or trials for validation"
        )
    logger.info("no session has a validation part: training ends after --max_epochs, and last.ckpt is the result")


def make_model(
    arguments: argparse.Namespace, model_config: ModelConfig, pretrained: Path | None, data: MultiDatasetDM
) -> MultiDatasetModel:
    """The model, with the settings that the flags give."""
    names = (
        "learning_rate", "core_lr_scale", "weight_decay", "optimizer", "lr_scheduler", "warmup_epochs",
        "restart_period", "freeze_vision", "freeze_core", "compile", "on_nan", "teacher_weight", "seed",
    )  # fmt: skip
    settings = {name: getattr(arguments, name) for name in names}
    config = model_config.model_copy(update={"training": TrainingConfig()})  # it has been followed
    return MultiDatasetModel(
        config, data.specs, statistics=data.statistics(), pretrained_checkpoint=pretrained, **settings
    )


def make_record(
    arguments: Arguments, name: str, model: MultiDatasetModel, data: MultiDatasetDM, step: StepSize
) -> dict[str, Any]:
    """What `run.json` says of a run."""
    return {
        "name": name, "model_config": arguments.model_config, "seed": arguments.seed,
        "parameters": sum(p.numel() for p in model.twin.parameters()), "flags": vars(arguments),
        "sources": arguments.sources(),
        "global_batch_size": step.bins, "step": asdict(step), "environment": describe_environment(),
        "sessions": {prepared.name: prepared.key for prepared in data.sessions}, "wall_s": 0.0,
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip


def trainer_settings(arguments: Arguments, launch: Launch) -> dict[str, Any]:
    """What Lightning's loop is told of processes, precision and steps."""
    precision = choose_precision(arguments.precision, launch.accelerator, given="precision" in arguments.given)
    return {
        "accelerator": launch.accelerator, "devices": launch.devices, "num_nodes": launch.num_nodes,
        "plugins": [launch.environment], "strategy": GradientSumStrategy() if launch.n_processes > 1 else "auto",
        "precision": precision, "max_epochs": arguments.max_epochs, "num_sanity_val_steps": 0,
        "gradient_clip_val": arguments.gradient_clip_val or None,
        "accumulate_grad_batches": arguments.accumulate_grad_batches, "use_distributed_sampler": False,
        "enable_model_summary": False,
    }  # fmt: skip


def make_trainer(
    arguments: Arguments, launch: Launch, folder: Path, name: str, merit: str,
    callbacks: Sequence[pl.Callback] = (),
) -> pl.Trainer:  # fmt: skip
    """Lightning's loop, with the processes that were launched; the best checkpoint is that of the largest `merit`."""
    return pl.Trainer(
        **trainer_settings(arguments, launch), log_every_n_steps=min(50, arguments.steps_per_epoch),
        callbacks=[*make_callbacks(arguments, folder, f"val_{merit}"), *callbacks],
        logger=make_loggers(arguments, folder, name), enable_progress_bar=False, default_root_dir=folder,
    )  # fmt: skip


def for_range_test(arguments: Arguments) -> Arguments:
    """The flags for one epoch of as many steps as the range test has, at rates that it sets itself."""
    steps = RangeTest().steps * arguments.accumulate_grad_batches
    changed = {"max_epochs": 1, "steps_per_epoch": steps, "lr_scheduler": "none", "enable_curriculum": False}
    changed |= {"early_stopping_patience": None}
    return Arguments(arguments.given, arguments.recipe, **vars(arguments) | changed)


def find_rate(arguments: Arguments, launch: Launch, model: MultiDatasetModel, data: MultiDatasetDM) -> None:
    """Train while the rate rises, and print the curve and a rate. Nothing is written."""
    test = RangeTest()
    trainer = pl.Trainer(
        **trainer_settings(arguments, launch), callbacks=[test], logger=False, enable_checkpointing=False,
        limit_val_batches=0, enable_progress_bar=False,
    )  # fmt: skip
    try:
        trainer.fit(model, data)
    except NonFiniteLossError as error:
        logger.info("the range test ends: %s", error)
    if trainer.is_global_zero:
        print(test.text())


def make_callbacks(arguments: argparse.Namespace, folder: Path, monitor: str) -> list[pl.Callback]:
    """What the flags ask for, besides the loop; `monitor` is the validation's figure of merit."""
    callbacks: list[pl.Callback] = [
        SafeCheckpoint(folder / "checkpoints", monitor=monitor, mode="max", every_n_minutes=10),
        EpochHeartbeat(("train_loss", "val_loss", monitor)),
        Heartbeat(),
        ProgressLine(monitor),
    ]
    if "csv" in arguments.logger:
        names = ("train_loss", "skipped", "val_loss", monitor, f"{monitor}/")
        callbacks.append(MetricsFile(folder / "metrics.csv", names))
    if arguments.logger != ["csv"]:
        callbacks.append(LearningRateMonitor("step"))
    if arguments.enable_curriculum:
        callbacks.append(CurriculumCallback())
    if arguments.time_budget_minutes:
        callbacks.append(TimeBudgetCallback(arguments.time_budget_minutes))
    if arguments.ema is not None:
        callbacks.append(WeightAverage(arguments.ema))
    if arguments.early_stopping_patience is not None:
        patience, least = arguments.early_stopping_patience, arguments.early_stopping_min_delta
        callbacks.append(EarlyStopping(monitor, mode="max", patience=patience, min_delta=least))
    if arguments.enable_logging:
        intervals = {"fast_interval": arguments.fast_log_interval, "slow_interval": arguments.slow_log_interval}
        callbacks.append(ModelLogging(folder / "figures", session=arguments.log_dataset_idx, **intervals))
    return callbacks


def make_loggers(arguments: argparse.Namespace, folder: Path, name: str) -> list[Logger]:
    """The loggers of `--logger` that Lightning writes to, in the run's folder."""
    loggers: list[Logger] = []
    if "tensorboard" in arguments.logger:
        loggers.append(TensorBoardLogger(folder, name="", version="tensorboard"))
    if "wandb" in arguments.logger:
        loggers.append(WandbLogger(name=name, project=arguments.project_name, save_dir=folder))
    return loggers


def run_folder(
    arguments: argparse.Namespace, name: str, model: MultiDatasetModel, record: dict[str, Any]
) -> tuple[Path, str | None]:
    """The run's folder and the checkpoint to start from. Process 0 makes the folder; the others write nothing."""
    folder, checkpoint = None, arguments.ckpt_path and find_resumption(arguments.ckpt_path)
    if arguments.resume and (folder := latest_run_folder(arguments.checkpoint_dir, name)):
        checkpoint = latest_checkpoint(folder / "checkpoints")
    if checkpoint:
        old = read_record(folder) if folder else record
        content = read_checkpoint(checkpoint)
        check_same_run(checkpoint, content, model.twin.describe(), old, record)
        if epochs_trained(content) > arguments.max_epochs:
            raise ValueError(f"{checkpoint}: has trained {epochs_trained(content)} epochs, --max_epochs is less")
        record |= {"wall_s": old["wall_s"], "began": old.get("began", record["began"])}
        logger.info("going on from %s", checkpoint)
    elif arguments.resume:
        logger.info("no checkpoint in %s; starting anew", folder or arguments.checkpoint_dir)
    if rank_zero_only.rank:
        folder = folder or Path(arguments.checkpoint_dir) / name
    return folder or new_run_folder(arguments.checkpoint_dir, name), checkpoint and str(checkpoint)


@rank_zero_only
def write_record(folder: Path, record: dict[str, Any], config: ModelConfig, data: MultiDatasetDM) -> None:
    """Write the resolved configs and the record before training starts."""
    for file, value in (
        ("model.yaml", config.model_dump(mode="json", by_alias=True)),
        ("datasets.yaml", {config.session: config.model_dump(mode="json", by_alias=True) for config in data.configs}),
    ):
        write_text(folder / file, dump_yaml(value))
    write_json(folder / "run.json", record)


def finish(trainer: pl.Trainer, data: MultiDatasetDM, folder: Path, record: dict[str, Any]) -> None:
    """Evaluate the best checkpoint on the validation split, write and show the table; without one, only the record."""
    record |= {"epochs": trainer.current_epoch, "steps": trainer.global_step}
    for schedule in annealed(trainer):
        record["annealed"] = schedule.position
    write_json(folder / "run.json", record)
    if not any(has_part(prepared, "val") for prepared in data.sessions):
        logger.info("%s: trained, checkpoints/last.ckpt is kept; no session has a validation part to evaluate", folder)
        return
    best = folder / "checkpoints" / "best.ckpt"
    twin = load_twin(best if best.exists() else folder / "checkpoints" / "last.ckpt")
    with session_progress("evaluating") as progress:
        table = evaluate(twin.to(trainer.strategy.root_device), data.sessions, "val", progress=progress)
    table.write(folder / "units.csv")
    logger.info("%s\n%s", folder, text_table(report_rows([load_run(folder)])))
    merit, value = table.figure_of_merit, summarize_table(table)[-1].mean
    for board in trainer.loggers:
        if isinstance(board, TensorBoardLogger):
            board.log_hyperparams(record["flags"], {f"val_{merit}": value})
            board.finalize("success")  # else a thread still writes when the run is over
    for line in closing_lines(folder, merit, value, record["flags"]["dataset_configs_path"]):
        logger.info(line)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script: 0 when trained; 2 with one line when what is asked for is not possible; 1 when it went wrong.

    A run that a signal ended returns 128 and the signal's number, as a shell would.
    """
    level = logging.ERROR if rank_zero_only.rank else logging.INFO
    logging.basicConfig(level=level, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True)
    quiet_lightning()
    keep_freed_memory()
    with RunLog() as log:
        return _run(argv, log)


def _run(argv: Sequence[str] | None, log: RunLog) -> int:
    lost = False
    with StopSignals() as signals:
        try:
            train(parse_arguments(argv), signals, log)
        except Interrupted as stop:
            text, end, code = f"stopped by {stop.name}", stop, 128 + stop.signum
            if stop.__context__ and (reason := known_end(stop.__context__)):  # torchrun ends what is left of a run
                text, code, lost = f"error: {reason}", 1, True
        except NonFiniteLossError as error:
            text, end, code = f"error: {error}", error, 1
        except (ValueError, OSError) as error:  # ConfigError, SessionError and their kin are ValueErrors
            text, end, code = f"error: {error}", error, 2
        except (MemoryError, RuntimeError) as error:
            if not (reason := known_end(error)):
                raise
            text, end, code, lost = f"error: {reason}", error, 1, True
        else:
            return 0
    rank = rank_zero_only.rank
    # A process that is lost is news on every machine. Other ends are those of all processes alike.
    speaks = not rank or (lost and first_on_machine()) or (code == 2 and not isinstance(end, LaunchError))
    if speaks:
        lines = " ".join("; ".join([text, *getattr(end, "__notes__", [])]).split())
        print(f"process {rank}: " * bool(rank) + lines, file=sys.stderr)
        log.write(lines)
    return code


if __name__ == "__main__":
    sys.exit(main())
