"""On what a run computes, and how precisely: from the flags to what Lightning is told."""

import logging
import os
from collections.abc import Sequence
from typing import Any

import torch

__all__ = ["choose_devices", "choose_precision"]

logger = logging.getLogger(__name__)


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
        If GPUs are asked for that are not there, or more processes than a CPU can run.
    """
    available = torch.cuda.device_count()
    use_gpu = accelerator == "gpu" or (accelerator == "auto" and available > 0)
    if gpu_ids:
        if not use_gpu:
            raise ValueError(f"--gpu_ids {list(gpu_ids)} without a GPU to use; leave it out to train on the CPU")
        missing = [index for index in gpu_ids if index >= available]
        if missing:
            raise ValueError(f"--gpu_ids {missing}: this machine has {_gpus(available)}")
        if num_gpus is not None and num_gpus != len(gpu_ids):
            raise ValueError(f"--num_gpus {num_gpus} and --gpu_ids {list(gpu_ids)} disagree; give one of them")
        return "gpu", list(gpu_ids)
    if use_gpu:
        if (num_gpus or 1) > available:
            flag = "--accelerator gpu" if num_gpus is None else f"--num_gpus {num_gpus}"
            raise ValueError(f"{flag}: this machine has {_gpus(available)}")
        return "gpu", num_gpus or available
    most = max(16, os.cpu_count() or 1)
    if (num_gpus or 1) > most:
        raise ValueError(f"--num_gpus {num_gpus}: at most {most} processes on this machine's CPU")
    return "cpu", num_gpus or 1


def _gpus(number: int) -> str:
    return "no GPU" if number == 0 else "1 GPU, number 0" if number == 1 else f"{number} GPUs, 0 to {number - 1}"


def choose_precision(precision: str, accelerator: str, *, given: bool = False) -> str:
    """Lightning's `precision` from the flag.

    A CPU computes in 32 bits, with a line that says so. It computes in bfloat16 where that was asked for and its
    instructions do so. Other processors emulate bfloat16, which is slower than 32 bits.

    Parameters
    ----------
    precision
        "bf16", "16", "32", "16-mixed" or "bf16-mixed".
    accelerator
        "cpu" or "gpu", as chosen.
    given
        Whether somebody asked for it, and it is not the default.
    """
    name = {"bf16": "bf16-mixed", "16": "16-mixed", "32": "32-true"}.get(precision, precision)
    if accelerator != "cpu" or name == "32-true":
        return name
    capable = name == "bf16-mixed" and _has_bfloat16()
    if given and capable:
        return name
    cure = "; its instructions do bfloat16, with --precision bf16-mixed" if capable else ""
    logger.info("no GPU: precision %s falls to 32 on this processor%s", precision, cure)
    return "32-true"


def _has_bfloat16() -> bool:
    """Whether this processor has AMX or AVX512-bf16, whatever the torch that asks it."""
    found = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("amx_tile", "avx512_bf16"))
    return any(has() for has in found if has is not None)
