"""The flags of the training script: what each means, which values it takes, and when it has an effect.

:data:`FLAGS` is the one table. The parser, its help, the defaults and the lines about flags without effect are made
from it. In all texts a *bin* is a predicted time bin of a session, a *batch* is what the processes compute at once, and
a *step* is one of the optimizer, which takes one batch or, with ``--accumulate_grad_batches``, several.
"""

import argparse
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, NoReturn

from lightning.pytorch.utilities.rank_zero import rank_zero_only

from neurotwin.config import TrainingConfig, check_limit, define, registered

from . import schedulers
from .optimizers import OPTIMIZERS

__all__ = [
    "FLAGS",
    "Arguments",
    "Flag",
    "OneLineParser",
    "add_flags",
    "contradiction",
    "number_type",
    "parse_arguments",
    "without_effect",
]

logger = logging.getLogger(__name__)

_LONGEST = 300  # characters of what is said about a flag
_MOST = 10**6  # of what is counted by hand: epochs, sessions, bins of a clip


class Arguments(argparse.Namespace):
    """The values of all flags by name.

    Attributes
    ----------
    given
        Names of those that stood on the command line.
    recipe
        Names of those whose value is that of the model file (:func:`~training.recipe.follow_recipe`).
    """

    __slots__ = ("given", "recipe")

    def __init__(
        self, given: frozenset[str] = frozenset(), recipe: frozenset[str] = frozenset(), **values: Any
    ) -> None:
        super().__init__(**values)
        self.given, self.recipe = given, recipe

    def sources(self) -> dict[str, str]:
        """Where the value of each flag is from: command line, model file or default."""
        known = dict.fromkeys(self.given, "command line") | dict.fromkeys(self.recipe, "model file")
        return {name: known.get(name, "default") for name in vars(self)}


class OneLineParser(argparse.ArgumentParser):
    """A parser whose errors are one line, like all others of the script."""

    def error(self, message: str) -> NoReturn:
        """End with exit code 2; one process speaks for all, which have the same flags."""
        message = " ".join(message.split())
        message = message if len(message) <= _LONGEST else f"{message[:_LONGEST]}..."
        text = f"error: {message}; see --help\n"
        self.exit(2, None if rank_zero_only.rank else text)


def number_type(kind: type, least: float, *, above: bool = False, most: float = 1e9) -> Callable[[str], float]:
    """A `type` for arguments: a finite number that is at least, or above, `least`, and at most `most`.

    >>> number_type(int, 1)("3")
    3
    """

    def parse(text: str) -> float:
        value = kind(text)
        if isinstance(value, float) and not math.isfinite(value):
            raise argparse.ArgumentTypeError(f"{text}: must be a finite number")
        if not (value > least if above else value >= least):
            raise argparse.ArgumentTypeError(f"{text}: must be {'above' if above else 'at least'} {least}")
        if value > most:
            raise argparse.ArgumentTypeError(f"{text[:20]}: must be at most {most:g}")
        return value

    parse.__name__ = "number" if kind is float else "whole number"
    return parse


def _limit(text: str) -> float:
    value = number_type(float, 0, above=True)(text)
    try:
        return check_limit(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _gpu_ids(text: str) -> list[int]:
    ids = [number_type(int, 0, most=4095)(part) for part in text.split(",")]
    if len(set(ids)) < len(ids):
        raise argparse.ArgumentTypeError(f"{text}: names a GPU twice")
    return ids


def _folder_name(text: str) -> str:
    if text in ("", ".", "..") or set(text) & set("/\\\0\n\r"):
        raise argparse.ArgumentTypeError(f"{text!r}: must be the name of a folder, not a path; see --checkpoint_dir")
    return text


def _loggers(text: str) -> list[str]:
    names = list(dict.fromkeys(text.split(",")))
    if unknown := set(names) - {"csv", "tensorboard", "wandb"}:
        raise argparse.ArgumentTypeError(
            f"{','.join(sorted(unknown))}: use csv, tensorboard, wandb or several, such as csv,wandb"
        )
    return names


def _names(text: str) -> list[str]:
    names = text.split(",")
    if not all(names) or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"{text!r}: give names separated by commas, each once")
    return names


_gpu_ids.__name__, _limit.__name__ = "list of whole numbers", "number"
_count, _positive, _size = number_type(int, 1, most=_MOST), number_type(float, 0, above=True), number_type(float, 0)


@dataclass(frozen=True)
class Flag:
    """One flag.

    Attributes
    ----------
    name
        Without the dashes.
    group
        Heading in the help.
    help
        What it means.
    default
        Its value where it is not given.
    options
        What ``add_argument`` takes besides.
    matters
        Whether it has an effect beside the other flags (their values; and "cpu" or "gpu"); None: always, or what it
        needs is refused where it is absent.
    needs
        What would give it an effect, in words, where `matters` can be false.
    """

    name: str
    group: str
    help: str
    default: Any = None
    options: dict[str, Any] = field(default_factory=dict)
    matters: Callable[[argparse.Namespace, str], bool] | None = None
    needs: str = ""


def _recipe(name: str, group: str, *rest: Any) -> Flag:
    """A flag that model files may set: what it means stands there."""
    return Flag(name, group, TrainingConfig.model_fields[name].description, *rest)


def _reads(flag: str) -> Callable[[argparse.Namespace, str], bool]:
    return lambda a, _: flag in define("lr_schedule", a.lr_scheduler).reads


def _schedules_reading(flag: str) -> str:
    names = [name for name, schedule in registered("lr_schedule").items() if flag in schedule.reads]
    return f"--lr_scheduler {' or '.join(names)}"


def _figures(a: argparse.Namespace, _: str) -> bool:
    return a.enable_logging


def _decay(text: str) -> float:
    value = number_type(float, 0)(text)
    if value >= 1:
        raise argparse.ArgumentTypeError(f"{text}: must be less than 1")
    return value


_decay.__name__ = "number"
_CHOICE = {"dset_dtype": ("uint8", "bfloat16", "float32"), "balance": ("none", "session", "subject")}
_ON = {"action": "store_true"}
_DATA, _OPTIMISATION, _MACHINE, _RECORD = "data and model", "optimisation", "machine", "record"

FLAGS = (
    Flag("model_config", _DATA, "YAML of the model; default: the config of --pretrained_checkpoint"),
    Flag("dataset_configs_path", _DATA, "parent YAML, or folder of session YAMLs", options={"required": True}),
    Flag("data_dir", _DATA, "folder of session data, or its URL; overrides the YAML and NEUROTWIN_DATA"),
    Flag(
        "set", _DATA,
        "other values of keys of the model or dataset file, such as convnet.params.channels=[32,64]; model.KEY or "
        "dataset.KEY where both files have the key", None, {"nargs": "+", "action": "extend", "metavar": "KEY=VALUE"},
    ),
    Flag("max_datasets", _DATA, "use at most the first N sessions", 30, {"type": _count}),
    Flag("dset_dtype", _DATA, "stimulus in storage", "uint8", {"choices": _CHOICE["dset_dtype"]}),
    _recipe("clip_len", _DATA, 32, {"type": _count}),
    _recipe("balance", _DATA, "none", {"choices": _CHOICE["balance"]}),
    Flag("enable_curriculum", _DATA, "high contrast first, annealed over the warm-up epochs", False, _ON),
    Flag(
        "num_workers", _DATA, "background threads that gather clips", 1, {"type": number_type(int, 0, most=256)}
    ),
    _recipe("batch_size", _OPTIMISATION, 64, {"type": number_type(int, 1, most=10**8)}),
    _recipe("learning_rate", _OPTIMISATION, 1e-4, {"type": _positive}),
    Flag("find_lr", _OPTIMISATION, "print a learning rate to start from, and train nothing", False, _ON),
    _recipe(
        "core_lr_scale", _OPTIMISATION, 1.0, {"type": _size},
        lambda a, _: not a.freeze_core, "a core that is trained, so no --freeze_core",
    ),
    _recipe("weight_decay", _OPTIMISATION, 1e-5, {"type": _size}),
    _recipe("max_epochs", _OPTIMISATION, 100, {"type": _count}),
    _recipe("steps_per_epoch", _OPTIMISATION, 1000, {"type": number_type(int, 1, most=10**7)}),
    _recipe("gradient_clip_val", _OPTIMISATION, 1.0, {"type": number_type(float, 0, most=1e30)}),
    _recipe("accumulate_grad_batches", _OPTIMISATION, 1, {"type": number_type(int, 1, most=10**7)}),
    _recipe(
        "optimizer", _OPTIMISATION, "adamw", {"choices": tuple(OPTIMIZERS)},
        lambda a, _: not a.freeze_core, "a core that is trained, so no --freeze_core",
    ),
    _recipe("lr_scheduler", _OPTIMISATION, "none", {"choices": schedulers.SCHEDULES}),
    _recipe(
        "warmup_epochs", _OPTIMISATION, 5, {"type": number_type(int, 0, most=_MOST)},
        lambda a, on: a.enable_curriculum or _reads("warmup_epochs")(a, on),
        f"--enable_curriculum or {_schedules_reading('warmup_epochs')}",
    ),
    _recipe(
        "restart_period", _OPTIMISATION, None, {"type": _count}, _reads("restart_period"),
        _schedules_reading("restart_period"),
    ),
    _recipe("ema", _OPTIMISATION, None, {"type": _decay}),
    _recipe("early_stopping_patience", _OPTIMISATION, None, {"type": _count}),
    _recipe(
        "early_stopping_min_delta", _OPTIMISATION, 0.0, {"type": _size},
        lambda a, _: a.early_stopping_patience is not None, "--early_stopping_patience",
    ),
    _recipe("limit_val_batches", _OPTIMISATION, 1.0, {"type": _limit}),
    Flag("time_budget_minutes", _OPTIMISATION, "stop in time for the final validation", None, {"type": _positive}),
    Flag("pretrained_checkpoint", _OPTIMISATION, "start from the core of a trained model: its file or run folder"),
    Flag("teacher", _OPTIMISATION, "learn also from the rates of a trained model or ensemble: its file or run folder"),
    Flag(
        "teacher_weight", _OPTIMISATION,
        "share of the loss that is about the teacher's rates; the rest is about the responses; 1: nothing else", 0.5,
        {"type": number_type(float, 0, above=True, most=1)}, lambda a, _: a.teacher is not None, "--teacher",
    ),
    Flag(
        "teacher_types", _OPTIMISATION,
        "stimulus types beside those of the dataset file, such as gaborium,fixrsvp: the teacher's rates are learned on "
        "them, and no responses", [], {"type": _names}, lambda a, _: a.teacher is not None, "--teacher",
    ),
    Flag(
        "freeze_vision", _OPTIMISATION, "do not train frontend and convnet; needs --pretrained_checkpoint", False, _ON,
        lambda a, _: not a.freeze_core, "no --freeze_core, which freezes more",
    ),
    Flag(
        "freeze_core", _OPTIMISATION,
        "train only what belongs to a session: all that sessions share stays, norms' statistics too; needs "
        "--pretrained_checkpoint", False, _ON,
    ),
    Flag(
        "on_nan", _OPTIMISATION,
        "what a NaN or infinite loss does: end the run, or leave out the session's part of the batch", "stop",
        {"choices": ("stop", "skip")},
    ),
    Flag(
        "seed", _OPTIMISATION, "of weights, order of clips, dropout", 0, {"type": number_type(int, 0, most=2**63 - 1)}
    ),
    Flag("accelerator", _MACHINE, "what to compute on", "auto", {"choices": ("auto", "cpu", "gpu")}),
    Flag(
        "num_gpus", _MACHINE,
        "GPUs of a node, or processes on its CPU; default: as the launcher started, else all GPUs, or one process",
        None, {"type": number_type(int, 1, most=4096)},
    ),
    Flag("gpu_ids", _MACHINE, "which GPUs, such as 0,2", None, {"type": _gpu_ids}),
    Flag(
        "num_nodes", _MACHINE, "machines; default: as torchrun or SLURM started, else 1", None,
        {"type": number_type(int, 1, most=65536)},
    ),
    Flag(
        "precision", _MACHINE,
        "on GPUs; a CPU computes in 32, or in bf16 where that is given and its instructions do so", "bf16-mixed",
        {"choices": ("bf16", "16", "32", "16-mixed", "bf16-mixed")},
    ),
    Flag("compile", _MACHINE, "compile the core; on a CPU only a recurrent one, and a line says so", False, _ON),
    Flag(
        "project_name", _RECORD, "project in W&B", "multidataset", {},
        lambda a, _: "wandb" in a.logger, "wandb in --logger",
    ),
    Flag(
        "experiment_name", _RECORD, "name of the run; default: the model config's file name", None,
        {"type": _folder_name},
    ),
    Flag("checkpoint_dir", _RECORD, "where run folders are made", "./checkpoints"),
    Flag("ckpt_path", _RECORD, "resume from this checkpoint, or a run folder's last one, in a new run folder"),
    Flag(
        "resume", _RECORD, "continue the latest run of this name, if there is one", None, {"choices": ("auto",)}
    ),
    Flag("logger", _RECORD, "of csv, tensorboard, wandb", ["csv", "tensorboard"], {"type": _loggers}),
    Flag("enable_logging", _RECORD, "log figures of the model", False, _ON),
    Flag(
        "fast_log_interval", _RECORD, "epochs between figures of kernels and readouts", 5, {"type": _count}, _figures,
        "--enable_logging",
    ),
    Flag(
        "slow_log_interval", _RECORD, "epochs between figures of predictions", 10, {"type": _count}, _figures,
        "--enable_logging",
    ),
    Flag(
        "log_dataset_idx", _RECORD, "session shown in figures, counted from 0", 0,
        {"type": number_type(int, 0, most=_MOST)}, _figures, "--enable_logging",
    ),
)  # fmt: skip
"""Every flag of the script."""


def parse_arguments(argv: Sequence[str] | None = None, *, description: str | None = None) -> Arguments:
    """The flags of the script, with their defaults; what cannot be together ends with one line and exit code 2."""
    parser = OneLineParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_flags(parser)
    given = vars(parser.parse_args(argv))
    arguments = Arguments(frozenset(given), **{flag.name: given.get(flag.name, flag.default) for flag in FLAGS})
    if fault := _fault(arguments):
        parser.error(fault)
    text, names = contradiction(arguments)
    if text and names <= arguments.given:  # else the model file may know better
        parser.error(text)
    return arguments


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare every flag of :data:`FLAGS`, in its group; one that is not given does not appear in the namespace."""
    groups: dict[str, Any] = {}
    for flag in FLAGS:
        group = groups.setdefault(flag.group, None) or parser.add_argument_group(flag.group)
        groups[flag.group] = group
        shown = ",".join(flag.default) if isinstance(flag.default, list) else flag.default
        text = flag.help if flag.default in (None, False) else f"{flag.help} (default: {shown})"
        group.add_argument(f"--{flag.name}", help=text.replace("%", "%%"), default=argparse.SUPPRESS, **flag.options)


def contradiction(a: argparse.Namespace) -> tuple[str, frozenset[str]]:
    """Why values that model files may set cannot be together, and which they are; nothing if they can."""
    if _reads("warmup_epochs")(a, "") and a.warmup_epochs >= a.max_epochs:
        text = f"--warmup_epochs {a.warmup_epochs}: less than --max_epochs {a.max_epochs}"
        return text, frozenset({"warmup_epochs", "max_epochs", "lr_scheduler"})
    if a.enable_curriculum and a.warmup_epochs == 0:
        text = "--enable_curriculum: it is annealed over --warmup_epochs, which is 0"
        return text, frozenset({"enable_curriculum", "warmup_epochs"})
    if a.accumulate_grad_batches > a.steps_per_epoch:
        text = (
            f"--accumulate_grad_batches {a.accumulate_grad_batches}: a step ends with its epoch, which has "
            f"--steps_per_epoch {a.steps_per_epoch} batches"
        )
        return text, frozenset({"accumulate_grad_batches", "steps_per_epoch"})
    return "", frozenset()


def _fault(a: argparse.Namespace) -> str | None:
    """Why some flags cannot be together; None if they can."""
    frozen = next((name for name in ("freeze_core", "freeze_vision") if getattr(a, name)), None)
    if frozen and not a.pretrained_checkpoint:
        return f"--{frozen} would freeze random weights; give --pretrained_checkpoint as well"
    if not (a.model_config or a.pretrained_checkpoint):
        return "the following arguments are required: --model_config, or --pretrained_checkpoint, whose model is used"
    if "wandb" in a.logger and find_spec("wandb") is None:
        return "--logger wandb needs the extra: pip install 'neurotwin[wandb]'"
    if a.resume and a.ckpt_path:
        return "--resume auto and --ckpt_path: give one of them"
    return None


def without_effect(arguments: argparse.Namespace, accelerator: str) -> list[str]:
    """A line about each value that was given, or stands in the model file, and has no effect beside the others.

    Parameters
    ----------
    arguments
        From :func:`parse_arguments` or :func:`~training.recipe.follow_recipe`.
    accelerator
        "cpu" or "gpu", as chosen.
    """
    places = {name: f"--{name}" for name in arguments.given}
    places |= {name: f"{arguments.model_config}: training.{name}" for name in arguments.recipe}
    return [
        f"{places[flag.name]} has no effect: it needs {flag.needs}"
        for flag in FLAGS
        if flag.name in places and flag.matters and not flag.matters(arguments, accelerator)
    ]
