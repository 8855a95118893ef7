"""Processes that train one model together: how they start alike and add their gradients."""

import atexit
import logging
import os
import socket
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from neurotwin.processes import all_reduce_sum

__all__ = ["MEETING_S", "GradientSumStrategy", "Late", "meet", "reduce_gradients"]

logger = logging.getLogger(__name__)


MEETING_S = 600.0
"""Seconds that a process waits at the start of a run for the others to come."""


class GradientSumStrategy(DDPStrategy):
    """Processes that each hold the model; gradients are summed by the model itself, once per optimizer step.

    A step changes the readouts of its own sessions only, and every process knows which sessions these are. Lightning's
    own strategy would search for unused parameters and wait for gradients that never come. Here
    :func:`reduce_gradients` sends one flat array of the gradients that there are.

    Parameters
    ----------
    meeting_s
        Seconds to wait for the other processes at the start; see :func:`meet`.
    kwargs
        Those of Lightning's ``DDPStrategy``.
    """

    def __init__(self, *, meeting_s: float = MEETING_S, **kwargs: Any) -> None:
        super().__init__(timeout=_LATE, **kwargs)
        self.meeting_s = meeting_s

    def setup_distributed(self) -> None:
        """Meet the other processes, in a way that a signal can end."""
        self.set_world_ranks()
        place = self.cluster_environment
        store = meet(
            place.main_address, place.main_port, self.global_rank, self.world_size, seconds=self.meeting_s,
            hosts=self.global_rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True",
            attempt=os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"),
        )  # fmt: skip
        device = self.root_device
        dist.init_process_group(
            dist.get_default_backend_for_device(device), store=store, rank=self.global_rank,
            world_size=self.world_size, timeout=_LATE, device_id=None if device.type == "cpu" else device,
        )  # fmt: skip
        atexit.register(_leave)

    def configure_ddp(self) -> None:
        """Start from the weights of process 0; do not wrap."""
        for tensor in self.model.state_dict().values():
            dist.broadcast(tensor, 0)


def meet(
    address: str,
    port: int,
    rank: int,
    world_size: int,
    *,
    hosts: bool,
    seconds: float = MEETING_S,
    attempt: str = "0",
) -> dist.Store:
    """Wait until all processes of a run have come, and return the store that they share.

    While torch waits by itself, no signal is handled. Therefore Python waits, a short while at a time.

    Parameters
    ----------
    address, port
        Where the store is.
    rank, world_size
        Number of this process, and of all.
    hosts
        Whether this process keeps the store; otherwise another process or torchrun does.
    seconds
        How long to wait.
    attempt
        Tells apart the attempts of a run that torchrun starts anew.

    Raises
    ------
    OSError
        If they have not come in time, or the store cannot be kept or reached.
    """
    where = f"{address}:{port}"
    logger.info("process %d of %d: waiting up to %.0f s for the others at %s", rank, world_size, seconds, where)
    deadline = time.monotonic() + seconds
    try:
        if not hosts:
            _wait_for_port(address, port, deadline)
        store = dist.TCPStore(address, port, None, hosts, timeout=timedelta(seconds=5), wait_for_workers=False)
        store = dist.PrefixStore(f"neurotwin/{attempt}", store)
        store.set(f"came/{rank}", "")
        keys = [f"came/{number}" for number in range(world_size)]
        while not store.check(keys):
            if time.monotonic() > deadline:
                absent = [str(number) for number, key in enumerate(keys) if not store.check([key])]
                raise TimeoutError(
                    f"{len(absent)} of {world_size} processes have not come within {seconds:.0f} s (process "
                    f"{', '.join(absent[:8])}{', ...' if len(absent) > 8 else ''}); start all of them, with the same "
                    f"flags and {where} within their reach"
                )
            time.sleep(0.1)
        store.set_timeout(_LATE)
    except RuntimeError as error:  # torch's name for whatever goes wrong with a connection
        reason = str(error).splitlines()[0][:200]
        verb = "listen at" if hosts else "reach"
        raise ConnectionError(f"process {rank} cannot {verb} {where}: {reason}") from None
    return store


def _wait_for_port(address: str, port: int, deadline: float) -> None:
    """Try to connect, once every so often: torch's own attempts write lines of their own."""
    while True:
        try:
            socket.create_connection((address, port), timeout=1).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"nothing has answered at {address}:{port} ({error}): process 0 has not come; start all processes, "
                    "with the same MASTER_ADDR and MASTER_PORT"
                ) from None
            time.sleep(0.2)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


_LATE = timedelta(minutes=30)  # how long a process that has come may be later than the others


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
    """A small tensor that is copied to the host. Reading it waits for the copy, not for later work of the device."""

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
