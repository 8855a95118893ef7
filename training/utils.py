"""What the training script needs beside the model and the data: processes, precision, folders, records."""

import argparse
import ctypes
import json
import logging
import os
import platform
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

__all__ = [
    "GradientSumStrategy",
    "Late",
    "OneLineParser",
    "all_reduce_sum",
    "check_same_run",
    "choose_devices",
    "choose_precision",
    "describe_environment",
    "first_difference",
    "keep_freed_memory",
    "latest_run_folder",
    "new_run_folder",
    "number_type",
    "quiet_lightning",
    "reduce_gradients",
    "write_json",
    "write_text",
]

logger = logging.getLogger(__name__)


class GradientSumStrategy(DDPStrategy):
    """Processes that each hold the model; gradients are summed by the model itself, once per optimizer step.

    A step touches the readouts of the sessions in it and no others, and every process knows which those are. So there
    is no search for unused parameters and no bucket of gradients that never come: :func:`reduce_gradients` sends one
    flat array.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(timeout=timedelta(minutes=30), **kwargs)

    def configure_ddp(self) -> None:
        """Start from the weights of process 0; do not wrap."""
        for tensor in self.model.state_dict().values():
            dist.broadcast(tensor, 0)


def reduce_gradients(parameters: Sequence[Tensor], votes: Tensor) -> Tensor:
    """Sum the gradients of some parameters and, in the same flat message, a few `votes` over processes.

    A parameter without a gradient here counts as zero and gets the sum of the others, so that all processes step
    alike. Returns the sum of the votes.
    """
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = all_reduce_sum(torch.cat([part.reshape(-1) for part in [*parts, votes.to(parts[0])]]))
    *gradients, votes = flat.split([*(p.numel() for p in parameters), votes.numel()])
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = (
            gradient.view_as(parameter).clone()
            if parameter.grad is None
            else parameter.grad.copy_(gradient.view_as(parameter))
        )
    return votes


class Late:
    """A small tensor on its way to the host: reading it waits for its copy, not for what the device does after it."""

    def __init__(self, values: Tensor) -> None:
        self._event = torch.cuda.Event() if values.is_cuda else None
        self._values = torch.empty_like(values, device="cpu", pin_memory=values.is_cuda)
        self._values.copy_(values, non_blocking=True)
        if self._event is not None:
            self._event.record()

    def read(self) -> list[float]:
        """The values."""
        if self._event is not None:
            self._event.synchronize()
        return self._values.tolist()


def all_reduce_sum(values: Tensor) -> Tensor:
    """The sum of a tensor over all processes; the tensor itself where there is one process."""
    if dist.is_available() and dist.is_initialized():
        values = values.clone()
        dist.all_reduce(values)
    return values


class OneLineParser(argparse.ArgumentParser):
    """A parser whose errors are one line, like all others of the script."""

    def error(self, message: str) -> NoReturn:
        """End with exit code 2."""
        self.exit(2, f"error: {message}; see --help\n")


def number_type(kind: type, least: float, *, above: bool = False) -> Callable[[str], float]:
    """A `type` for arguments: a number that is at least, or above, `least`.

    >>> number_type(int, 1)("3")
    3
    """

    def parse(text: str) -> float:
        value = kind(text)
        if not (value > least if above else value >= least):
            raise argparse.ArgumentTypeError(f"{text}: must be {'above' if above else 'at least'} {least}")
        return value

    parse.__name__ = "number" if kind is float else "whole number"
    return parse


def choose_devices(accelerator: str, num_gpus: int | None, gpu_ids: Sequence[int] | None) -> tuple[str, Any]:
    """Lightning's `accelerator` and `devices` from the flags.

    Parameters
    ----------
    accelerator
        "auto", "cpu" or "gpu".
    num_gpus
        Number of devices, or of processes on the CPU. None: all GPUs, or one process on the CPU.
    gpu_ids
        Which GPUs; instead of a number.

    Raises
    ------
    ValueError
        If GPUs are asked for that are not there.
    """
    available = torch.cuda.device_count()
    use_gpu = accelerator == "gpu" or (accelerator == "auto" and available > 0)
    if gpu_ids:
        if not use_gpu:
            raise ValueError(f"--gpu_ids {list(gpu_ids)} on a machine without a GPU; leave it out to train on the CPU")
        missing = [index for index in gpu_ids if index >= available]
        if missing:
            raise ValueError(f"--gpu_ids {missing}: this machine has {available} GPUs, 0 to {available - 1}")
        if num_gpus is not None and num_gpus != len(gpu_ids):
            raise ValueError(f"--num_gpus {num_gpus} and --gpu_ids {list(gpu_ids)} disagree; give one of them")
        return "gpu", list(gpu_ids)
    if use_gpu:
        if (num_gpus or 1) > available:
            raise ValueError(f"--num_gpus {num_gpus}: this machine has {available} GPUs")
        return "gpu", num_gpus or available
    return "cpu", num_gpus or 1


def choose_precision(precision: str, accelerator: str) -> str:
    """Lightning's `precision` from the flag; 32 on the CPU, with a line that says so."""
    name = {"bf16": "bf16-mixed", "16": "16-mixed", "32": "32-true"}.get(precision, precision)
    if accelerator == "cpu" and name != "32-true":
        logger.info("no GPU: precision %s falls to 32", precision)
        return "32-true"
    return name


def latest_run_folder(root: str | Path, name: str) -> Path | None:
    """The latest run of a name: ``NAME-3`` before ``NAME-2`` before ``NAME``; None where there is none."""
    root = Path(root)
    numbered = [p for p in root.glob(f"{name}-*") if p.name[len(name) + 1 :].isdigit()]
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


def quiet_lightning() -> None:
    """Leave out Lightning's advertisements and the warnings that do not concern us.

    Figures are reduced over processes before they are logged, so that `sync_dist` is not wanted.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (".*sync_dist=True.*", ".*treespec, LeafSpec.*", ".*does not have many workers.*"):
        warnings.filterwarnings("ignore", message)


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees for what it takes next, where the C library is glibc.

    By default glibc returns the large arrays of a step to the system, and the next step takes them anew page by page:
    a tenth of the time of a small model on the CPU (``docs/performance.md``).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


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
    if "twin" not in checkpoint:
        raise ValueError(f"{path}: not a checkpoint of a training run")
    pairs = [map(_identity, (json.loads(checkpoint["twin"]), description)), map(_settings, (old, new))]
    for there, here in pairs:
        if difference := first_difference(*(json.loads(json.dumps(value)) for value in (there, here))):
            raise ValueError(
                f"{path}: {difference}; a run goes on with what it began with. Restore it, or begin another run with "
                "--experiment_name"
            )


def first_difference(there: Any, here: Any, name: str = "") -> str | None:
    """The first key, depth first, in which two plain values differ; None where they are the same.

    Examples
    --------
    >>> first_difference({"a": {"b": [1]}}, {"a": {"b": [2]}})
    'a.b was [1] and is [2]'
    """
    if isinstance(there, dict) and isinstance(here, dict):
        keys = [*there, *(key for key in here if key not in there)]
        parts = (first_difference(there.get(k), here.get(k), f"{name}.{k}".strip(".")) for k in keys)
        return next((part for part in parts if part), None)
    return None if there == here else f"{name} was {there!r:.200} and is {here!r:.200}"


# Flags that a run may go on with other values of: they change when and where it is trained, not what. Models, sessions
# and the batch are compared as resolved.
_FREE = {
    "max_epochs", "time_budget_minutes", "early_stopping_patience", "early_stopping_min_delta", "num_workers",
    "accelerator", "num_gpus", "gpu_ids", "num_nodes", "precision", "compile", "project_name", "experiment_name",
    "checkpoint_dir", "ckpt_path", "resume", "logger", "enable_logging", "fast_log_interval", "slow_log_interval",
    "log_dataset_idx", "on_nan", "model_config", "dataset_configs_path", "data_dir", "max_datasets", "batch_size",
}  # fmt: skip


def _identity(description: Mapping[str, Any]) -> dict[str, Any]:
    sessions = {
        spec["name"]: {"unit_ids": spec["unit_ids"]}
        | {key: value for key, value in spec["config"].items() if key not in ("path", "data_dir")}
        for spec in description["sessions"]
    }
    return {"model": description["config"], "sessions": sessions}


def _settings(record: Mapping[str, Any]) -> dict[str, Any]:
    flags = {f"--{name}": value for name, value in record["flags"].items() if name not in _FREE}
    recordings = {f"recording of {name}": key for name, key in record["sessions"].items()}
    return {"global_batch_size": record["global_batch_size"], **flags, **recordings}


def write_json(path: Path, value: Any) -> None:
    """Write JSON; see :func:`write_text`."""
    write_text(path, json.dumps(value, indent=2, default=str) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file under a temporary name, and rename it when it is on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


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
