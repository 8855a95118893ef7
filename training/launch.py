"""How many processes a run has: read from the flags and from what started them; a contradiction is an error.

A run's processes are started in one of three ways.

- Plainly: the script starts itself once more for each process of ``--num_gpus``. On several nodes it is started once on
  each, with ``MASTER_ADDR``, ``MASTER_PORT`` and ``NODE_RANK`` in the environment and ``--num_nodes``.
- By torchrun, or anything else that sets ``RANK``, ``WORLD_SIZE`` and ``LOCAL_RANK`` as it does.
- By SLURM's srun, which sets ``SLURM_NTASKS``, ``SLURM_PROCID`` and others.

The last two say how many processes there are. The flags may repeat it or be left out.

References: "Environment Variables" of torch.distributed.run; "OUTPUT ENVIRONMENT VARIABLES" of srun(1).
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from lightning.fabric.plugins.environments import ClusterEnvironment, LightningEnvironment

from neurotwin.errors import UserError

from .devices import choose_devices

__all__ = ["Launch", "LaunchError", "StartedProcesses", "first_on_machine", "read_launch"]

_SLURM_INTERACTIVE = ("bash", "interactive")  # names of jobs that are a shell: what is started there is started plainly
_FOREIGN = {
    "OMPI_COMM_WORLD_SIZE": "mpirun", "MV2_COMM_WORLD_SIZE": "mpirun", "PMI_SIZE": "mpiexec",
    "JSM_NAMESPACE_SIZE": "jsrun",
}  # fmt: skip


class LaunchError(UserError):
    """The flags and what started the processes do not fit together."""


@dataclass(frozen=True)
class Launch:
    """The processes of a run, and which of them this one is.

    Attributes
    ----------
    accelerator
        "cpu" or "gpu".
    devices
        Processes on each node, or the GPUs that they use.
    num_nodes
        Machines.
    rank
        Number of this process in the run; process 0 logs and writes files.
    environment
        What tells Lightning the same.
    launcher
        "plain", "torchrun" or "SLURM".
    """

    accelerator: str
    devices: int | list[int]
    num_nodes: int
    rank: int
    environment: ClusterEnvironment
    launcher: str = "plain"

    @property
    def n_processes(self) -> int:
        """Processes of the run on all nodes."""
        return (self.devices if isinstance(self.devices, int) else len(self.devices)) * self.num_nodes


class StartedProcesses(ClusterEnvironment):
    """Processes that something outside of Lightning has started, in the form in which Lightning asks for them.

    Parameters
    ----------
    world_size, rank
        Processes of the run, and the number of this one.
    local_rank, node_rank
        Its number on its node, and its node's.
    address, port
        Where process 0 listens.
    """

    def __init__(self, *, world_size: int, rank: int, local_rank: int, node_rank: int, address: str, port: int) -> None:
        super().__init__()
        self._world_size, self._rank, self._local_rank, self._node_rank = world_size, rank, local_rank, node_rank
        self._address, self._port = address, port

    @property
    def creates_processes_externally(self) -> bool:
        """True: they exist already."""
        return True

    @property
    def main_address(self) -> str:
        """Machine of process 0."""
        return self._address

    @property
    def main_port(self) -> int:
        """Port of process 0."""
        return self._port

    @staticmethod
    def detect() -> bool:
        """False, so that Lightning does not choose it by itself: :func:`read_launch` does."""
        return False

    def world_size(self) -> int:
        """Processes of the run."""
        return self._world_size

    def set_world_size(self, size: int) -> None:
        """What started the processes has set it."""

    def global_rank(self) -> int:
        """Number of this process in the run."""
        return self._rank

    def set_global_rank(self, rank: int) -> None:
        """What started the processes has set it."""

    def local_rank(self) -> int:
        """Number of this process on its node."""
        return self._local_rank

    def node_rank(self) -> int:
        """Number of this process's node."""
        return self._node_rank


def read_launch(
    accelerator: str = "auto",
    num_gpus: int | None = None,
    gpu_ids: Sequence[int] | None = None,
    num_nodes: int | None = None,
    *,
    environ: Mapping[str, str] | None = None,
) -> Launch:
    """The processes of the run, from the flags and from what started this process.

    Parameters
    ----------
    accelerator, num_gpus, gpu_ids, num_nodes
        The flags; None where a flag was not given.
    environ
        The environment; by default this process's.

    Raises
    ------
    ValueError
        If they disagree, or GPUs are asked for that are not there.

    Examples
    --------
    >>> launched = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    >>> launch = read_launch("cpu", environ=launched | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"})
    >>> launch.launcher, launch.n_processes, launch.rank
    ('torchrun', 2, 1)
    """
    environ = os.environ if environ is None else environ
    if "RANK" in environ and "WORLD_SIZE" in environ:
        return _started("torchrun", _torchrun(environ), accelerator, num_gpus, gpu_ids, num_nodes)
    if "SLURM_NTASKS" in environ and environ.get("SLURM_JOB_NAME") not in _SLURM_INTERACTIVE:
        return _started("SLURM", _slurm(environ), accelerator, num_gpus, gpu_ids, num_nodes)
    for name, launcher in _FOREIGN.items():
        if _number(environ, name, 1) > 1:
            raise LaunchError(
                f"{launcher} started {environ[name]} processes ({name}), which would each train a run of their own; "
                "start them with torchrun or srun"
            )
    return _plain(environ, accelerator, num_gpus, gpu_ids, num_nodes)


def first_on_machine(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is the first of its run on its machine, as far as `environ` says.

    Parameters
    ----------
    environ
        Environment variables: LOCAL_RANK of torchrun and of plain starts, else SLURM_LOCALID.
    """
    return environ.get("LOCAL_RANK", environ.get("SLURM_LOCALID", "0")) == "0"


@dataclass(frozen=True)
class _Started:
    """What a launcher says; `names` are the variables that say how many."""

    world_size: int
    rank: int
    local_size: int
    local_rank: int
    node_rank: int
    address: str
    port: int
    names: tuple[str, str]


def _torchrun(environ: Mapping[str, str]) -> _Started:
    world = _number(environ, "WORLD_SIZE")
    local = _number(environ, "LOCAL_WORLD_SIZE", world)
    rank, local_rank = _number(environ, "RANK"), _number(environ, "LOCAL_RANK", 0 if world == 1 else None)
    return _Started(
        world, rank, local, local_rank, _number(environ, "GROUP_RANK", rank // max(local, 1)),
        environ.get("MASTER_ADDR", "127.0.0.1"), _number(environ, "MASTER_PORT", 29500),
        ("LOCAL_WORLD_SIZE", "WORLD_SIZE"),
    )  # fmt: skip


def _slurm(environ: Mapping[str, str]) -> _Started:
    world = _number(environ, "SLURM_NTASKS")
    nodes = _number(environ, "SLURM_STEP_NUM_NODES", _number(environ, "SLURM_NNODES", 1))
    counts = _tasks_per_node(environ, world, nodes)
    if len(set(counts)) > 1:
        raise LaunchError(f"SLURM started {counts} tasks on its nodes; start equally many, with srun --ntasks-per-node")
    rank = _number(environ, "SLURM_PROCID", 0 if world == 1 else None)
    job = re.sub(r"\D", "", environ.get("SLURM_JOB_ID", ""))
    port = _number(environ, "MASTER_PORT", 15000 + int(job[-4:] or 0))
    nodelist = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST") or environ.get("SLURM_NODELIST")
    return _Started(
        world, rank, counts[0], _number(environ, "SLURM_LOCALID", rank % counts[0]),
        _number(environ, "SLURM_NODEID", rank // counts[0]),
        environ.get("MASTER_ADDR") or _first_host(nodelist or "127.0.0.1"), port,
        ("SLURM_NTASKS_PER_NODE", "SLURM_NTASKS"),
    )  # fmt: skip


def _tasks_per_node(environ: Mapping[str, str], world: int, nodes: int) -> list[int]:
    """Tasks on each node, from lists such as ``2(x3),1``."""
    if nodes < 1 or world < 1:
        raise LaunchError(f"SLURM says {world} tasks on {nodes} nodes; start the script with srun")
    text = environ.get("SLURM_STEP_TASKS_PER_NODE") or environ.get("SLURM_TASKS_PER_NODE") or ""
    parts = [re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part) for part in text.split(",")]
    equal = "start equally many on each, with srun --ntasks-per-node"
    if all(parts):
        counts = [int(part[1]) for part in parts for _ in range(min(int(part[2] or 1), 1 << 16))]
        if sum(counts) == world:
            return counts
    if world % nodes:
        raise LaunchError(f"SLURM started {world} tasks on {nodes} nodes; {equal}")
    return [world // nodes] * nodes


def _first_host(nodelist: str) -> str:
    """The first host of a SLURM list, such as ``node[05-07,12],other`` (node05)."""
    return re.sub(r"^([^,\[]*)(?:\[([^],-]+)[^]]*\])?.*$", r"\1\2", nodelist)


def _started(
    launcher: str,
    started: _Started,
    accelerator: str,
    num_gpus: int | None,
    gpu_ids: Sequence[int] | None,
    num_nodes: int | None,
) -> Launch:
    """The processes of a launcher, if the flags do not contradict it."""
    world, local = started.world_size, started.local_size
    if local < 1 or world % local or not 0 <= started.rank < world or not 0 <= started.local_rank < local:
        raise LaunchError(
            f"{launcher} says process {started.rank} of {world}, {started.local_rank} of {local} on this machine, "
            "which cannot be; start equally many processes on every machine"
        )
    flag, asked = ("--gpu_ids", len(gpu_ids)) if gpu_ids else ("--num_gpus", num_gpus)
    cure = "leave the flag out, or start as many" + (" (srun --ntasks-per-node)" if launcher == "SLURM" else "")
    if asked is not None and asked != local:
        raise LaunchError(
            f"{flag} asks for {asked} processes on each node and {launcher} started {local} ({started.names[0]}); "
            f"{cure}"
        )
    if num_nodes is not None and num_nodes != world // local:
        raise LaunchError(
            f"--num_nodes {num_nodes}: {launcher} started {world} processes on {world // local} nodes "
            f"({started.names[1]}); {cure}"
        )
    available = torch.cuda.device_count()
    if local > available > 0 and accelerator != "cpu" and not gpu_ids:
        raise LaunchError(
            f"{launcher} started {local} processes on this machine, where {available} GPUs can be seen; start one "
            "for each GPU and let each see all of them, or use --accelerator cpu"
        )
    kind, devices = choose_devices(accelerator, local, gpu_ids)
    environment = StartedProcesses(
        world_size=world, rank=started.rank, local_rank=started.local_rank, node_rank=started.node_rank,
        address=started.address, port=started.port,
    )  # fmt: skip
    return Launch(kind, devices, world // local, started.rank, environment, launcher)


def _plain(
    environ: Mapping[str, str],
    accelerator: str,
    num_gpus: int | None,
    gpu_ids: Sequence[int] | None,
    num_nodes: int | None,
) -> Launch:
    """The script as it is, or a process that it started itself, which has a LOCAL_RANK."""
    nodes, local_rank = num_nodes or 1, _number(environ, "LOCAL_RANK", 0)
    node = _number(environ, "NODE_RANK", 0) if nodes > 1 else 0
    if nodes > 1 and (missing := [n for n in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK") if n not in environ]):
        raise LaunchError(
            f"--num_nodes {nodes}: nothing says where the others are; start the script with torchrun or srun on every "
            f"node, or set {', '.join(missing)}"
        )
    if not 0 <= node < nodes:
        raise LaunchError(f"--num_nodes {nodes}: NODE_RANK {node} is not one of 0 to {nodes - 1}")
    kind, devices = choose_devices(accelerator, num_gpus, gpu_ids)
    local = devices if isinstance(devices, int) else len(devices)
    return Launch(kind, devices, nodes, node * local + local_rank, LightningEnvironment())


def _number(environ: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environ.get(name)
    if text is None and default is not None:
        return default
    if text is None or not re.fullmatch(r"\d{1,9}", text):
        said = "is not set" if text is None else f"is {text!r:.40}, not a number"
        raise LaunchError(f"{name} {said} in the environment; start the script with torchrun or srun, or plainly")
    return int(text)
