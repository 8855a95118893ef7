"""What the training script needs beside the model and the data: processes, precision, folders, records."""

import json
import logging
import os
import platform
import subprocess
import sys
import warnings
from collections.abc import Iterable, Sequence
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

__all__ = [
    "GradientSumStrategy",
    "all_reduce_sum",
    "choose_devices",
    "choose_precision",
    "describe_environment",
    "latest_run_folder",
    "new_run_folder",
    "quiet_lightning",
    "reduce_gradients",
    "write_json",
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


def reduce_gradients(parameters: Sequence[Tensor]) -> None:
    """Sum the gradients of some parameters over processes, in one flat message.

    A parameter without a gradient here counts as zero and gets the sum of the others, so that all processes step
    alike.
    """
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in parameters])
    dist.all_reduce(flat)
    for parameter, gradient in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = (
            gradient.view_as(parameter).clone()
            if parameter.grad is None
            else parameter.grad.copy_(gradient.view_as(parameter))
        )


def all_reduce_sum(values: Tensor) -> Tensor:
    """The sum of a tensor over all processes; the tensor itself where there is one process."""
    if dist.is_available() and dist.is_initialized():
        values = values.clone()
        dist.all_reduce(values)
    return values


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
    latest = latest_run_folder(root, name)
    folder = Path(root) / name
    if latest is not None:
        folder = Path(root) / f"{name}-{int(latest.name[len(name) + 1 :] or 1) + 1}"
        logger.info("%s holds a run; this one goes to %s", latest, folder)
    folder.mkdir(parents=True)
    return folder


def quiet_lightning() -> None:
    """Leave out Lightning's advertisements and the warnings that do not concern us.

    Figures are reduced over processes before they are logged, so that `sync_dist` is not wanted.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (".*sync_dist=True.*", ".*treespec, LeafSpec.*", ".*does not have many workers.*"):
        warnings.filterwarnings("ignore", message)


def write_json(path: Path, value: Any) -> None:
    """Write JSON to a temporary name and rename it."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(value, indent=2, default=str) + "\n")
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
