"""Train one model on many recording sessions.

    python training/train_ddp_multidataset.py --model_config configs/model.yaml --dataset_configs_path configs/datasets

A run has a folder, CHECKPOINT_DIR/EXPERIMENT_NAME, with its resolved configs (`model.yaml`, `datasets.yaml`), its
record (`run.json`), `metrics.csv`, `checkpoints/` and, at the end, the table of units (`units.csv`). A folder that
holds a run is never written to again, except to resume it; a new run goes to a numbered folder beside it.
"""

import argparse
import json
import logging
import signal
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import yaml
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, RichProgressBar
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from neurotwin.analysis.evaluate import evaluate
from neurotwin.analysis.report import load_run, report_rows, text_table
from neurotwin.config import load_dataset_configs, load_model_config
from neurotwin.data.session import SPLITS
from neurotwin.data.simulate import DEMO_SESSIONS, make_demo_sessions
from neurotwin.models.twin import check_run, load_twin
from training import MultiDatasetDM, MultiDatasetModel
from training.callbacks import (
    CurriculumCallback,
    EpochHeartbeat,
    Heartbeat,
    Interrupted,
    MetricsFile,
    ModelLogging,
    StopSignals,
    TimeBudgetCallback,
)
from training.checkpoints import SafeCheckpoint, SafeCheckpointIO, latest_checkpoint
from training.pl_modules import NonFiniteLossError
from training.schedulers import SCHEDULES
from training.utils import (
    GradientSumStrategy,
    OneLineParser,
    check_same_run,
    choose_devices,
    choose_precision,
    describe_environment,
    keep_freed_memory,
    latest_run_folder,
    new_run_folder,
    number_type,
    quiet_lightning,
    write_json,
    write_text,
)

__all__ = ["main", "parse_arguments", "train"]

logger = logging.getLogger("training")


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags of the script, with their defaults."""
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    count, positive, not_negative = number_type(int, 1), number_type(float, 0, above=True), number_type(float, 0)
    add = parser.add_argument_group("data and model").add_argument
    add("--model_config", required=True, help="YAML of the model")
    add("--dataset_configs_path", required=True, help="parent YAML, or folder of session YAMLs")
    add("--data_dir", help="folder of session data; overrides the YAML and NEUROTWIN_DATA")
    add("--max_datasets", type=count, default=30, help="use at most the first N sessions (%(default)s)")
    kinds = ("uint8", "bfloat16", "float32")
    add("--dset_dtype", default="uint8", choices=kinds, help="stimulus in storage (%(default)s)")
    add("--clip_len", type=count, default=32, help="predicted bins of a clip; 1 makes windows (%(default)s)")
    kinds = ("none", "session", "subject")
    add("--balance", default="none", choices=kinds, help="what is drawn equally often (%(default)s)")
    add("--enable_curriculum", action="store_true", help="high contrast first, annealed over the warm-up epochs")
    add("--num_workers", type=number_type(int, 0), default=1, help="background threads that gather clips (%(default)s)")

    add = parser.add_argument_group("optimisation").add_argument
    add("--batch_size", type=count, default=64, help="predicted bins of a process and step (%(default)s)")
    add("--learning_rate", type=positive, default=1e-4, help="of readouts and adapters (%(default)s)")
    add("--core_lr_scale", type=not_negative, default=1.0, help="times learning_rate is the core's (%(default)s)")
    add("--weight_decay", type=not_negative, default=1e-5, help="of weights (%(default)s)")
    add("--max_epochs", type=count, default=100, help="(%(default)s)")
    add("--steps_per_epoch", type=count, default=1000, help="(%(default)s)")
    add("--gradient_clip_val", type=not_negative, default=1.0, help="largest gradient norm; 0: any (%(default)s)")
    add("--accumulate_grad_batches", type=count, default=1, help="batches in an optimizer step (%(default)s)")
    add("--lr_scheduler", default="none", choices=SCHEDULES, help="(%(default)s)")
    add("--warmup_epochs", type=count, default=5, help="of the learning rate and of the curriculum (%(default)s)")
    add("--restart_period", type=count, help="epochs between restarts of cosine_warmup_restart")
    add("--early_stopping_patience", type=count, help="epochs without a better validation BPS; default: never stop")
    add("--early_stopping_min_delta", type=not_negative, default=0.0, help="(%(default)s)")
    limit = "fraction of each session's validation trials, or a number above 1 (%(default)s)"
    add("--limit_val_batches", type=positive, default=1.0, help=limit)
    add("--time_budget_minutes", type=positive, help="stop in time for the final validation")
    add("--pretrained_checkpoint", help="start from the core of a trained model")
    add("--freeze_vision", action="store_true", help="do not train frontend and convnet; needs --pretrained_checkpoint")
    nan = "what a NaN or infinite loss does: end the run, or leave out the session's part of the batch (%(default)s)"
    add("--on_nan", default="stop", choices=("stop", "skip"), help=nan)
    add("--seed", type=number_type(int, 0), default=0, help="of weights, order of clips, dropout (%(default)s)")

    add = parser.add_argument_group("machine").add_argument
    add("--accelerator", default="auto", choices=("auto", "cpu", "gpu"), help="(%(default)s)")
    add("--num_gpus", type=count, help="GPUs, or processes on the CPU; default: all GPUs, or one process")
    add("--gpu_ids", type=lambda text: [int(part) for part in text.split(",")], help="which GPUs, such as 0,2")
    add("--num_nodes", type=count, default=1, help="(%(default)s)")
    kinds = ("bf16", "16", "32", "16-mixed", "bf16-mixed")
    add("--precision", default="bf16-mixed", choices=kinds, help="on GPUs; the CPU computes in 32 (%(default)s)")
    add("--compile", action="store_true", help="compile the core; on a CPU only a recurrent one")

    add = parser.add_argument_group("record").add_argument
    add("--project_name", default="multidataset", help="project in W&B (%(default)s)")
    add("--experiment_name", help="name of the run; default: the model config's file name")
    add("--checkpoint_dir", default="./checkpoints", help="where run folders are made (%(default)s)")
    add("--ckpt_path", help="resume from this checkpoint, in a new run folder")
    add("--resume", choices=("auto",), help="continue the latest run of this name, if there is one")
    loggers = "of csv, tensorboard, wandb (csv,tensorboard)"
    add("--logger", type=lambda text: text.split(","), default=["csv", "tensorboard"], help=loggers)
    add("--enable_logging", action="store_true", help="log figures of the model")
    add("--fast_log_interval", type=count, default=5, help="epochs between figures of kernels, readouts (%(default)s)")
    add("--slow_log_interval", type=count, default=10, help="epochs between figures of predictions (%(default)s)")
    add("--log_dataset_idx", type=number_type(int, 0), default=0, help="session shown in figures (%(default)s)")
    arguments = parser.parse_args(argv)
    if arguments.freeze_vision and not arguments.pretrained_checkpoint:
        parser.error("--freeze_vision would freeze random weights; give --pretrained_checkpoint as well")
    if "warmup" in arguments.lr_scheduler and arguments.warmup_epochs >= arguments.max_epochs:
        parser.error(f"--warmup_epochs {arguments.warmup_epochs}: less than --max_epochs {arguments.max_epochs}")
    if unknown := set(arguments.logger) - {"csv", "tensorboard", "wandb"}:
        parser.error(f"--logger {','.join(sorted(unknown))}: use csv, tensorboard, wandb or several, such as csv,wandb")
    if "wandb" in arguments.logger and find_spec("wandb") is None:
        parser.error("--logger wandb needs the extra: pip install 'neurotwin[wandb]'")
    if arguments.resume and arguments.ckpt_path:
        parser.error("--resume auto and --ckpt_path: give one of them")
    return arguments


def train(arguments: argparse.Namespace, signals: StopSignals | None = None) -> Path:
    """Train as the flags say, and return the run's folder."""
    accelerator, devices = choose_devices(arguments.accelerator, arguments.num_gpus, arguments.gpu_ids)
    n_processes = (devices if isinstance(devices, int) else len(devices)) * arguments.num_nodes
    model_config = load_model_config(arguments.model_config)
    data = make_data(arguments)
    names = (
        "learning_rate", "core_lr_scale", "weight_decay", "lr_scheduler", "warmup_epochs", "restart_period",
        "pretrained_checkpoint", "freeze_vision", "compile", "on_nan", "seed",
    )  # fmt: skip
    settings = {name: getattr(arguments, name) for name in names}
    model = MultiDatasetModel(model_config, data.specs, mean_counts=data.mean_counts(), **settings)
    if arguments.log_dataset_idx >= len(data.sessions):
        raise ValueError(f"--log_dataset_idx {arguments.log_dataset_idx}: there are {len(data.sessions)} sessions")
    name = arguments.experiment_name or Path(arguments.model_config).stem
    record = {
        "name": name, "model_config": str(arguments.model_config), "seed": arguments.seed,
        "parameters": sum(p.numel() for p in model.twin.parameters()), "flags": vars(arguments),
        "global_batch_size": n_processes * arguments.batch_size, "environment": describe_environment(),
        "sessions": {prepared.name: prepared.key for prepared in data.sessions}, "wall_s": 0.0,
    }  # fmt: skip
    folder, checkpoint = run_folder(arguments, name, model, record)
    trainer = pl.Trainer(
        accelerator=accelerator, devices=devices, num_nodes=arguments.num_nodes,
        strategy=GradientSumStrategy() if n_processes > 1 else "auto",
        precision=choose_precision(arguments.precision, accelerator), max_epochs=arguments.max_epochs,
        gradient_clip_val=arguments.gradient_clip_val or None,
        accumulate_grad_batches=arguments.accumulate_grad_batches,
        callbacks=[*make_callbacks(arguments, folder), *([signals] if signals else [])],
        logger=make_loggers(arguments, folder, name), log_every_n_steps=min(50, arguments.steps_per_epoch),
        num_sanity_val_steps=0, use_distributed_sampler=False, enable_progress_bar=sys.stderr.isatty(),
        enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    write_record(folder, record, model, data)
    began = time.monotonic()
    try:
        trainer.fit(model, data, ckpt_path=checkpoint)
        if trainer.is_global_zero:
            finish(trainer, data, folder, record | {"wall_s": record["wall_s"] + time.monotonic() - began})
    except BaseException as error:
        if trainer.strategy.launcher is not None:
            trainer.strategy.launcher.kill(signal.SIGTERM)
        last = folder / "checkpoints" / "last.ckpt"
        error.add_note(f"{last} is whole: --resume auto goes on from it" if last.exists() else "nothing was saved yet")
        raise
    return folder


def make_data(arguments: argparse.Namespace) -> MultiDatasetDM:
    """The sessions, prepared; demo sessions that do not exist yet are made."""
    configs = load_dataset_configs(
        arguments.dataset_configs_path, data_dir=arguments.data_dir, max_datasets=arguments.max_datasets
    )
    absent = [config for config in configs if not Path(config.path).exists() and config.session in DEMO_SESSIONS]
    if absent:
        folder = Path(absent[0].path).parent
        logger.info("simulating the demo sessions %s in %s", ", ".join(c.session for c in absent), folder)
        make_demo_sessions(folder, [config.session for config in absent])
    check_run(load_model_config(arguments.model_config), configs)
    data = MultiDatasetDM(
        configs, batch_size=arguments.batch_size, clip_len=arguments.clip_len, balance=arguments.balance,
        steps_per_epoch=arguments.steps_per_epoch, accumulate=arguments.accumulate_grad_batches, seed=arguments.seed,
        curriculum_steps=arguments.warmup_epochs * arguments.steps_per_epoch if arguments.enable_curriculum else 0,
        dtype=arguments.dset_dtype, threads=arguments.num_workers, limit_val=arguments.limit_val_batches,
        progress=lambda index, number, name: logger.info("session %d of %d: %s", index + 1, number, name),
    )  # fmt: skip
    data.setup()
    return data


def make_callbacks(arguments: argparse.Namespace, folder: Path) -> list[pl.Callback]:
    """What the flags ask for, besides the loop."""
    callbacks: list[pl.Callback] = [
        SafeCheckpoint(folder / "checkpoints", monitor="val_bps", mode="max", every_n_minutes=10),
        EpochHeartbeat(),
        Heartbeat(),
    ]
    if "csv" in arguments.logger:
        callbacks.append(MetricsFile(folder / "metrics.csv"))
    if arguments.logger != ["csv"]:
        callbacks.append(LearningRateMonitor("step"))
    if sys.stderr.isatty():
        callbacks.append(RichProgressBar())
    if arguments.enable_curriculum:
        callbacks.append(CurriculumCallback())
    if arguments.time_budget_minutes:
        callbacks.append(TimeBudgetCallback(arguments.time_budget_minutes))
    if arguments.early_stopping_patience is not None:
        patience, least = arguments.early_stopping_patience, arguments.early_stopping_min_delta
        callbacks.append(EarlyStopping("val_bps", mode="max", patience=patience, min_delta=least))
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
    folder, checkpoint = None, arguments.ckpt_path
    if arguments.resume and (folder := latest_run_folder(arguments.checkpoint_dir, name)):
        checkpoint = latest_checkpoint(folder / "checkpoints")
    if checkpoint:
        old = json.loads((folder / "run.json").read_text()) if folder else record
        content = SafeCheckpointIO().load_checkpoint(checkpoint)
        check_same_run(checkpoint, content, model.twin.describe(), old, record)
        epochs = content["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
        if epochs > arguments.max_epochs:
            raise ValueError(f"{checkpoint}: has trained {epochs} epochs, --max_epochs is less")
        record["wall_s"] = old["wall_s"]
        logger.info("going on from %s", checkpoint)
    elif arguments.resume:
        logger.info("no checkpoint in %s; starting anew", folder or arguments.checkpoint_dir)
    if rank_zero_only.rank:
        folder = folder or Path(arguments.checkpoint_dir) / name
    return folder or new_run_folder(arguments.checkpoint_dir, name), checkpoint and str(checkpoint)


@rank_zero_only
def write_record(folder: Path, record: dict[str, Any], model: MultiDatasetModel, data: MultiDatasetDM) -> None:
    """Write the resolved configs and the record before training starts."""
    for file, value in (
        ("model.yaml", model.twin.config.model_dump(mode="json", by_alias=True)),
        ("datasets.yaml", {config.session: config.model_dump(mode="json", by_alias=True) for config in data.configs}),
    ):
        write_text(folder / file, yaml.safe_dump(value, sort_keys=False))
    write_json(folder / "run.json", record)


def finish(trainer: pl.Trainer, data: MultiDatasetDM, folder: Path, record: dict[str, Any]) -> None:
    """Evaluate the best checkpoint on the validation split, write and show the table; without one, only the record."""
    write_json(folder / "run.json", record | {"epochs": trainer.current_epoch, "steps": trainer.global_step})
    if not any((prepared.split == SPLITS.index("val")).any() for prepared in data.sessions):
        logger.info("%s: trained; no session has a validation part to evaluate", folder)
        return
    best = folder / "checkpoints" / "best.ckpt"
    twin = load_twin(best if best.exists() else folder / "checkpoints" / "last.ckpt")
    table = evaluate(twin.to(trainer.strategy.root_device), data.sessions, "val")
    table.write(folder / "units.csv")
    logger.info("%s\n%s", folder, text_table(report_rows([load_run(folder)])))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script: 0 when trained; 2 with one line when what is asked for is not possible; 1 when it went wrong.

    A run that a signal ended returns 128 and the signal's number, as a shell would.
    """
    level = logging.ERROR if rank_zero_only.rank else logging.INFO
    logging.basicConfig(level=level, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True)
    quiet_lightning()
    keep_freed_memory()
    with StopSignals() as signals:
        try:
            train(parse_arguments(argv), signals)
        except Interrupted as stop:
            text, end, code = f"stopped by {stop.name}", stop, 128 + stop.signum
        except NonFiniteLossError as error:
            text, end, code = f"error: {error}", error, 1
        except (ValueError, OSError) as error:  # ConfigError, SessionError and their kin are ValueErrors
            text, end, code = f"error: {error}", error, 2
        else:
            return 0
    if code == 2 or not rank_zero_only.rank:  # the others end all processes alike
        print("; ".join([text, *getattr(end, "__notes__", [])]), file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
