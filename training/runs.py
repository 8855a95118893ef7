"""A run's folder, its record, and whether a checkpoint belongs to the run that is to go on."""

import json
import logging
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from neurotwin.analysis.report import merit_title, number_text
from neurotwin.checkpoint_file import find_checkpoint

from .checkpoints import latest_checkpoint
from .flags import FLAGS

__all__ = [
    "StepSize",
    "batch_of_run",
    "check_same_run",
    "closing_lines",
    "describe_environment",
    "find_resumption",
    "first_difference",
    "latest_run_folder",
    "new_run_folder",
    "read_record",
    "run_name",
]

logger = logging.getLogger(__name__)


def latest_run_folder(root: str | Path, name: str) -> Path | None:
    """The latest run of a name: ``NAME-3`` before ``NAME-2`` before ``NAME``; None where there is none."""
    root = Path(root)
    entries = list(root.iterdir()) if root.is_dir() else []
    numbered = [p for p in entries if p.name.startswith(f"{name}-") and p.name[len(name) + 1 :].isdecimal()]
    taken = sorted(numbered, key=lambda p: int(p.name[len(name) + 1 :]))
    return taken[-1] if taken else root / name if (root / name).exists() else None


def new_run_folder(root: str | Path, name: str) -> Path:
    """Make the folder of a new run, numbered where the name is taken.

    Examples
    --------
    >>> import tempfile
    >>> root = tempfile.mkdtemp()
    >>> [new_run_folder(root, "resnet").name for _ in range(3)]
    ['resnet', 'resnet-2', 'resnet-3']
    """
    while True:
        latest, folder = latest_run_folder(root, name), Path(root) / name
        if latest is not None:
            folder = Path(root) / f"{name}-{int(latest.name[len(name) + 1 :] or 1) + 1}"
        with suppress(FileExistsError):  # another run has just taken it
            folder.mkdir(parents=True)
            break
    if latest is not None:
        logger.info("%s holds a run; this one goes to %s", latest, folder)
    return folder


def run_name(experiment_name: str | None, model_config: str | Path | None, pretrained: str | Path | None) -> str:
    """The name of a run: the one given, else the model config's file name, else that of the twin it starts from.

    Examples
    --------
    >>> run_name(None, "configs/resnet.yaml", None)
    'resnet'
    >>> run_name(None, None, "checkpoints/resnet/checkpoints/best.ckpt")
    'resnet-tuned'
    """
    if experiment_name or model_config:
        return experiment_name or Path(model_config).stem
    path = Path(pretrained).absolute()
    folder = path.parent if path.suffix == ".ckpt" else path
    return f"{folder.parent.name if folder.name == 'checkpoints' else folder.stem}-tuned"


def find_resumption(path: str | Path) -> Path:
    """The checkpoint to go on from: a file as it is; in a run's folder the last one that is whole, else the best.

    Raises
    ------
    CheckpointError
        If there is none.
    """
    folder = Path(path)
    for place in (folder / "checkpoints", folder) if folder.is_dir() else ():
        if found := latest_checkpoint(place):
            return found
    return find_checkpoint(path, prefer="last")


def read_record(folder: str | Path) -> dict[str, Any]:
    """The record of a run, `run.json`.

    Raises
    ------
    ValueError
        If it is absent or not a record.
    """
    path = Path(folder) / "run.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if {"flags", "sessions", "global_batch_size", "wall_s"} <= record.keys():
            return record
        fault = "it is no record of a run"
    except FileNotFoundError:
        fault = "there is none"
    except (ValueError, AttributeError, UnicodeDecodeError) as error:
        fault = str(error)
    raise ValueError(f"{path}: {fault}; it is needed to go on, so begin another run with --experiment_name")


def check_same_run(
    path: str | Path,
    checkpoint: Mapping[str, Any],
    description: Mapping[str, Any],
    old: Mapping[str, Any],
    new: Mapping[str, Any],
) -> None:
    """Refuse to go on from a checkpoint with a model, sessions or settings that are not its own.

    Parameters
    ----------
    path, checkpoint
        The checkpoint and where it lies.
    description
        The model that is to go on (:meth:`TwinModel.describe`).
    old, new
        Records of the runs (`run.json`).

    Raises
    ------
    ValueError
        If something differs, naming the first that does.
    """
    if missing := [key for key in ("twin", "loops", "state_dict", "optimizer_states") if key not in checkpoint]:
        raise ValueError(f"{path}: not a checkpoint of a training run, it has no {missing[0]}")
    pairs = [map(_identity, (json.loads(checkpoint["twin"]), description)), map(_settings, (old, new))]
    for there, here in pairs:
        if difference := first_difference(*(json.loads(json.dumps(value)) for value in (there, here))):
            raise ValueError(
                f"{path}: {difference}; a run goes on with what it began with. Restore it, or begin another run with "
                "--experiment_name"
            )


def first_difference(there: Any, here: Any, name: str = "") -> str | None:
    """The first key, depth first, in which two plain values differ; None where they are the same.

    Lists of mappings are compared entry by entry, so that the message holds what differs and not the whole list.

    Examples
    --------
    >>> first_difference({"a": {"b": [1]}}, {"a": {"b": [2]}})
    'a.b was [1] and is [2]'
    >>> first_difference({"blocks": [{"norm": "rms"}]}, {"blocks": [{"norm": "layer"}]})
    "blocks.0.norm was 'rms' and is 'layer'"
    """
    if _entries(there) and _entries(here) and len(there) == len(here):
        there, here = (dict(enumerate(value)) for value in (there, here))
    if isinstance(there, dict) and isinstance(here, dict):
        keys = [*there, *(key for key in here if key not in there)]
        parts = (first_difference(there.get(k), here.get(k), f"{name}.{k}".strip(".")) for k in keys)
        return next((part for part in parts if part), None)
    return None if there == here else f"{name} was {there!r:.200} and is {here!r:.200}"


def _entries(value: Any) -> bool:
    """Whether a value is a list of mappings."""
    return isinstance(value, list) and bool(value) and all(isinstance(entry, dict) for entry in value)


# Flags that a run may go on with other values of: they change when and where it is trained, not what. Models, sessions
# and the batch are compared as resolved.
_FREE = {
    "max_epochs", "time_budget_minutes", "early_stopping_patience", "early_stopping_min_delta", "num_workers",
    "accelerator", "num_gpus", "gpu_ids", "num_nodes", "precision", "compile", "project_name", "experiment_name",
    "checkpoint_dir", "ckpt_path", "resume", "logger", "enable_logging", "fast_log_interval", "slow_log_interval",
    "log_dataset_idx", "on_nan", "model_config", "dataset_configs_path", "data_dir", "max_datasets", "batch_size",
    "find_lr", "set",
}  # fmt: skip


def _identity(description: Mapping[str, Any]) -> dict[str, Any]:
    sessions = {
        spec["name"]: {"unit_ids": spec["unit_ids"]}
        | {key: value for key, value in spec["config"].items() if key not in ("path", "data_dir")}
        for spec in description["sessions"]
    }
    return {"model": description["config"], "sessions": sessions}


def _settings(record: Mapping[str, Any]) -> dict[str, Any]:
    values = {flag.name: flag.default for flag in FLAGS} | record["flags"]  # a flag may be younger than the record
    flags = {f"--{name}": value for name, value in values.items() if name not in _FREE}
    recordings = {f"recording of {name}": key for name, key in record["sessions"].items()}
    augmented = {"training.augmentation": record.get("augmentation", [])}
    return {"global_batch_size": record["global_batch_size"], **flags, **augmented, **recordings}


@dataclass(frozen=True)
class StepSize:
    """What an optimizer step takes, on all processes together.

    Attributes
    ----------
    clips
        Clips that a process takes in a batch.
    clip_len
        Bins of a clip.
    processes
        Processes of the run.
    batches
        Batches in a step.
    """

    clips: int
    clip_len: int
    processes: int
    batches: int

    @classmethod
    def of(cls, batch_size: int, clip_len: int, processes: int, batches: int) -> "StepSize":
        """From the flags: whole clips, as many as `batch_size` bins hold, at least one."""
        return cls(max(1, batch_size // clip_len), clip_len, processes, batches)

    @property
    def bins(self) -> int:
        """Predicted bins that a step takes: the global batch.

        Examples
        --------
        >>> StepSize.of(batch_size=100, clip_len=32, processes=2, batches=4).bins
        768
        """
        return self.clips * self.clip_len * self.processes * self.batches

    def text(self) -> str:
        """In words, with the product."""
        named = (
            (self.clips, "clip"), (self.clip_len, "bin"), (self.processes, "process"), (self.batches, "batch"),
        )  # fmt: skip
        plural = {"process": "processes", "batch": "batches"}
        parts = (f"{n} {word if n == 1 else plural.get(word, word + 's')}" for n, word in named)
        return f"{' x '.join(parts)} = {self.bins} predicted bins"


def batch_of_run(arguments: Any, name: str, processes: int) -> int:
    """Bins that a process takes in a batch: `--batch_size`, or what keeps the global batch of a run that goes on.

    A run that is resumed with the same flags on another number of processes deals the clips of its step to them anew,
    so that it takes the same steps.

    Parameters
    ----------
    arguments
        The flags.
    name
        Name of the run.
    processes
        Processes that there are now.

    Raises
    ------
    ValueError
        If the clips cannot be dealt equally.
    """
    folder = latest_run_folder(arguments.checkpoint_dir, name) if arguments.resume else None
    if folder is None or latest_checkpoint(folder / "checkpoints") is None:
        return arguments.batch_size
    old = read_record(folder)
    step = old.get("step")
    if step is None or old["flags"].get("batch_size") != arguments.batch_size:
        return arguments.batch_size
    clips = step["clips"] * step["processes"]
    if clips % processes:
        fitting = [number for number in range(1, clips + 1) if clips % number == 0]
        raise ValueError(
            f"{folder}: a batch of this run takes {clips} clips, which {processes} processes cannot share equally; go "
            f"on with {', '.join(map(str, fitting[:-1]))}{' or ' * bool(fitting[:-1])}{fitting[-1]} processes"
        )
    if processes != step["processes"]:
        logger.info(
            "the run goes on with %d instead of %d processes; a step takes the same clips", processes, step["processes"]
        )
    return clips // processes * step["clip_len"]


def closing_lines(folder: Path, merit: str, value: float, datasets: str) -> list[str]:
    """What to do after a run, from its figure of merit on the validation part and the datasets that it was trained on.

    Examples
    --------
    >>> closing_lines(Path("runs/a"), "bps", 0.2, "d.yaml")
    ['next: neurotwin report runs/a --html report.html; a question to the model: neurotwin experiment --help']
    """
    lines = []
    if not value > 0:
        lines.append(
            f"the model learned nothing: it predicts no better than the mean of each unit ({merit_title(merit)} "
            f"{number_text(value)} on the validation part). neurotwin audit {datasets} looks for the cause in the "
            "data; else train longer, or with another --learning_rate"
        )
    next_line = f"next: neurotwin report {folder} --html report.html; a question to the model: "
    return [*lines, f"{next_line}neurotwin experiment --help"]


def describe_environment(packages: Iterable[str] = ("torch", "lightning", "numpy")) -> dict[str, Any]:
    """Versions, machine and, where the code lies in a git repository, its commit and whether it was changed."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version(name) for name in packages},
        "command": sys.argv,
        "threads": torch.get_num_threads(),
        "git": _git_state(),
    }


def _git_state() -> dict[str, Any] | None:
    def git(*arguments: str) -> str:
        here = Path(__file__).parent
        result = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True, timeout=10)
        return result.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None
