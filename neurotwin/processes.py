"""Sums and gathers over the processes of a run; without a process group there is one process.

Nothing here starts processes: that is the launcher's and the trainer's part.
"""

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["all_gather", "all_reduce_sum"]


def all_reduce_sum(values: Tensor) -> Tensor:
    """The sum of a tensor over all processes.

    Parameters
    ----------
    values
        Of the same shape and type on every process; all processes must call.

    Returns
    -------
    Tensor
        A new tensor, the same on every process; `values` itself where there is one process.
    """
    if dist.is_available() and dist.is_initialized():
        values = values.clone()
        dist.all_reduce(values)
    return values


def all_gather(values: Tensor) -> Tensor:
    """The tensors of all processes, stacked along a new first axis in the order of the processes.

    Parameters
    ----------
    values
        Of the same shape and type on every process; all processes must call.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return values[None]
    parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, values)
    return torch.stack(parts)
