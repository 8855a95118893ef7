"""Launchers: what each says, what is refused, and that all of them train the same model."""

import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from training.launch import LaunchError, first_on_machine, read_launch
from training.processes import meet

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import stress_kill

ROOT = Path(__file__).parents[2]
SCRIPT = str(ROOT / "training/train_ddp_multidataset.py")


def torchrun(rank=1, world=4, local=2, **more):
    numbers = {
        "RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": local, "LOCAL_RANK": rank % local,
        "GROUP_RANK": rank // local, "MASTER_PORT": 29500,
    }  # fmt: skip
    return {name: str(number) for name, number in numbers.items()} | {"MASTER_ADDR": "head"} | more


def slurm(rank=1, tasks=4, nodes=2, **more):
    numbers = {
        "SLURM_NTASKS": tasks, "SLURM_NNODES": nodes, "SLURM_PROCID": rank, "SLURM_LOCALID": rank % (tasks // nodes),
        "SLURM_NODEID": rank // (tasks // nodes), "SLURM_JOB_ID": 41234,
    }  # fmt: skip
    named = {"SLURM_JOB_NODELIST": "gpu[07-08],cpu1", "SLURM_JOB_NAME": "train"}
    return {name: str(number) for name, number in numbers.items()} | named | more


MANUAL = {"MASTER_ADDR": "head", "MASTER_PORT": "1234", "NODE_RANK": "1"}


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


@pytest.mark.parametrize(
    ("environ", "flags", "expected"),
    [
        ({}, {}, ("plain", 1, 1, 0)),
        ({}, {"num_gpus": 2}, ("plain", 2, 1, 0)),
        ({"LOCAL_RANK": "1", "WORLD_SIZE": "2"}, {"num_gpus": 2}, ("plain", 2, 1, 1)),  # started by the script itself
        (MANUAL, {"num_gpus": 2, "num_nodes": 2}, ("plain", 2, 2, 2)),
        (MANUAL | {"LOCAL_RANK": "1"}, {"num_gpus": 2, "num_nodes": 2}, ("plain", 2, 2, 3)),
        (torchrun(0, 2), {}, ("torchrun", 2, 1, 0)),
        (torchrun(3), {}, ("torchrun", 2, 2, 3)),
        (torchrun(3), {"num_gpus": 2, "num_nodes": 2}, ("torchrun", 2, 2, 3)),
        (torchrun(1, 2, 1), {"num_nodes": 2}, ("torchrun", 1, 2, 1)),
        (slurm(3), {}, ("SLURM", 2, 2, 3)),
        (slurm(1, 2, 1), {"num_gpus": 2}, ("SLURM", 2, 1, 1)),
        (slurm(0, 1, 1), {}, ("SLURM", 1, 1, 0)),
        (slurm(0, 3, 1, SLURM_JOB_NAME="bash"), {}, ("plain", 1, 1, 0)),  # a shell in an allocation
        (slurm(0, 4, 2, SLURM_TASKS_PER_NODE="2(x2)"), {}, ("SLURM", 2, 2, 0)),
        (slurm(1) | torchrun(1, 2), {}, ("torchrun", 2, 1, 1)),  # torchrun within an allocation
    ],
)
def test_processes_are_those_of_the_launcher(environ, flags, expected):
    launch = read_launch("cpu", **flags, environ=environ)
    assert (launch.launcher, launch.devices, launch.num_nodes, launch.rank) == expected
    assert launch.n_processes == launch.devices * launch.num_nodes


@pytest.mark.parametrize(
    ("environ", "flags", "message"),
    [
        (
            torchrun(0, 2),
            {"num_gpus": 1},
            r"--num_gpus asks for 1 .* torchrun started 2 \(LOCAL_WORLD_SIZE\)",
        ),
        (torchrun(0, 2, 1), {"num_gpus": 2}, "--num_gpus asks for 2 .* started 1"),
        (torchrun(0), {"num_nodes": 1}, "--num_nodes 1: torchrun started 4 processes on 2 nodes"),
        (torchrun(0, 3), {}, "process 0 of 3, 0 of 2 on this machine, which cannot be"),
        (torchrun(5), {}, "process 5 of 4"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, {}, "LOCAL_RANK is not set"),
        (torchrun(0, WORLD_SIZE="many"), {}, "WORLD_SIZE is 'many', not a number"),
        (slurm(0, 1, 1), {"num_gpus": 2}, "--num_gpus asks for 2 .* SLURM started 1 .*srun --ntasks-per-node"),
        (slurm(0, 3, 1), {"num_nodes": 3}, "--num_nodes 3: SLURM started 3 processes on 1 nodes"),
        (slurm(0, 4, 2, SLURM_NTASKS="5"), {}, "5 tasks on 2 nodes"),
        (slurm(0, 4, 2, SLURM_TASKS_PER_NODE="3,1"), {}, r"\[3, 1\] tasks on its nodes"),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, {}, "mpirun started 4 processes"),
        ({}, {"num_nodes": 2}, "--num_nodes 2: .* torchrun or srun .*, or set MASTER_ADDR, MASTER_PORT, NODE_RANK"),
        (MANUAL | {"NODE_RANK": "2"}, {"num_nodes": 2}, "NODE_RANK 2 is not one of 0 to 1"),
        ({}, {"num_gpus": 4000}, "--num_gpus 4000: at most"),
    ],
)
def test_flags_and_launchers_that_disagree_are_one_line(environ, flags, message):
    with pytest.raises(ValueError, match=message) as error:
        read_launch("cpu", **flags, environ=environ)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("named", [True, False])
def test_places_on_a_node_are_counted_where_the_launcher_does_not_name_them(named):
    for rank in range(4):
        for environ in (slurm(rank), torchrun(rank)):
            if not named:
                for name in ("SLURM_LOCALID", "SLURM_NODEID", "GROUP_RANK"):
                    environ.pop(name, None)
            place = read_launch("cpu", environ=environ).environment
            assert (place.node_rank(), place.local_rank(), place.global_rank()) == (rank // 2, rank % 2, rank)


def test_the_first_process_of_a_machine():
    assert [first_on_machine(torchrun(rank)) for rank in range(4)] == [True, False, True, False]
    assert [first_on_machine(slurm(rank)) for rank in range(4)] == [True, False, True, False]
    assert [first_on_machine(slurm(1) | torchrun(2)), first_on_machine(MANUAL)] == [True, True]


def test_gpus_of_a_launcher(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert read_launch(environ=torchrun(0, 2)).devices == 2
    assert read_launch(gpu_ids=[0, 1], environ=torchrun(0, 2)).devices == [0, 1]
    with pytest.raises(LaunchError, match="--gpu_ids asks for 1 "):
        read_launch(gpu_ids=[1], environ=torchrun(0, 2))
    with pytest.raises(LaunchError, match=r"started 4 processes on this machine, where 2 GPUs can be seen"):
        read_launch(environ=torchrun(0, 4, 4))
    assert read_launch("cpu", environ=torchrun(0, 4, 4)).accelerator == "cpu"


@pytest.mark.parametrize(
    ("nodelist", "host"),
    [("gpu[07-08],cpu1", "gpu07"), ("a1,a2", "a1"), ("n[3]", "n3"), ("n[3,5-9]", "n3"), ("solo.lab", "solo.lab")],
)
def test_process_0_of_slurm_listens_on_the_first_node(nodelist, host):
    place = read_launch("cpu", environ=slurm(3, SLURM_JOB_NODELIST=nodelist)).environment
    assert (place.main_address, place.main_port) == (host, 16234)
    assert (place.world_size(), place.global_rank(), place.local_rank(), place.node_rank()) == (4, 3, 1, 1)


# --- meeting --------------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_processes_meet_and_share_a_store():
    port, stores = free_port(), {}

    def come(rank):
        stores[rank] = meet("127.0.0.1", port, rank, 2, hosts=rank == 0, seconds=60)

    threads = [threading.Thread(target=come, args=(rank,)) for rank in (1, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stores[1].set("word", "heard")
    assert stores[0].get("word") == b"heard"


def test_waiting_ends_after_the_stated_time_and_says_who_is_absent(caplog):
    caplog.set_level(logging.INFO)
    with pytest.raises(TimeoutError, match=r"2 of 3 processes have not come within 0 s \(process 1, 2\)"):
        meet("127.0.0.1", free_port(), 0, 3, hosts=True, seconds=0.3)
    assert "process 0 of 3: waiting up to 0 s for the others" in caplog.text
    with pytest.raises(TimeoutError, match="process 0 has not come"):
        meet("127.0.0.1", free_port(), 1, 3, hosts=False, seconds=0.3)


def test_a_port_that_is_taken_is_one_line():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConnectionError, match="process 0 cannot listen at") as error:
            meet("127.0.0.1", taken.getsockname()[1], 0, 2, hosts=True, seconds=1)
    assert "\n" not in str(error.value)


# --- the script -----------------------------------------------------------------------------------------------------


def environment(**more):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | more


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    argv = stress_kill.write_lab(tmp_path_factory.mktemp("launch") / "lab")
    return [*argv, "--max_epochs", "2", "--steps_per_epoch", "4"]


def start(folder, command, **variables):
    folder.mkdir(exist_ok=True, parents=True)
    log = open(folder / f"log_{len(list(folder.iterdir()))}.txt", "w")  # noqa: SIM115
    with log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment(**variables))


def logs(folder):
    return "\n".join(path.read_text() for path in sorted(folder.glob("log_*")))


def test_one_sigterm_ends_waiting_for_a_process_that_never_comes(flags, tmp_path):
    command = [sys.executable, SCRIPT, *flags, "--num_nodes", "2", "--checkpoint_dir", str(tmp_path / "runs")]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "NODE_RANK": "0"}
    process = start(tmp_path, command, **place)
    while "waiting up to 600 s" not in logs(tmp_path) and process.poll() is None:
        time.sleep(0.05)
    process.terminate()
    assert process.wait() == 143, logs(tmp_path)
    assert re.search(r"\nstopped by SIGTERM; nothing was saved yet\n", logs(tmp_path))
    assert "Traceback" not in logs(tmp_path)


@pytest.mark.slow
def test_every_launcher_trains_the_same_model(flags, tmp_path):
    """To the bit: two processes by the script itself, by torchrun on one and on two nodes, and by SLURM."""
    plain = [sys.executable, SCRIPT, *flags]
    run = [sys.executable, "-m", "torch.distributed.run", "--master_addr", "127.0.0.1"]
    two, nodes, job = free_port(), free_port(), {"SLURM_JOB_ID": "1", "MASTER_PORT": str(free_port())}
    ranks = [{"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_NODEID": "0"} for rank in (0, 1)]
    starts = {
        "plain": [([*plain, "--num_gpus", "2"], {})],
        "torchrun": [([*run, "--master_port", f"{two}", "--nproc_per_node", "2", SCRIPT, *flags], {})],
        "nodes": [
            ([*run, "--master_port", f"{nodes}", "--nnodes", "2", "--node_rank", f"{node}", SCRIPT, *flags,
              "--num_gpus", "1", "--num_nodes", "2"], {})
            for node in (0, 1)
        ],
        "slurm": [(plain, {"SLURM_NTASKS": "2", "SLURM_NNODES": "1", "SLURM_JOB_NAME": "a"} | job | r) for r in ranks],
    }  # fmt: skip
    weights = {}
    for name, commands in starts.items():
        folder = tmp_path / name
        processes = [start(folder, [*c, "--checkpoint_dir", str(folder / "runs")], **v) for c, v in commands]
        assert [process.wait() for process in processes] == [0] * len(processes), logs(folder)
        assert len(re.findall(r"8 clips x 8 bins x 2 processes x 2 batches = 256 predicted bins", logs(folder))) == 1
        assert [path.name for path in (folder / "runs").iterdir()] == ["run"]
        weights[name] = torch.load(folder / "runs/run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    for name, found in weights.items():
        assert all(torch.equal(value, weights["plain"][key]) for key, value in found.items()), name


@pytest.mark.slow
def test_a_launcher_that_the_flags_contradict_is_one_line(flags, tmp_path):
    command = [sys.executable, SCRIPT, *flags, "--num_gpus", "2", "--checkpoint_dir", str(tmp_path / "runs")]
    process = start(tmp_path, command, SLURM_NTASKS="1", SLURM_PROCID="0", SLURM_JOB_NAME="train")
    assert process.wait() == 2
    (line,) = logs(tmp_path).splitlines()
    assert line.startswith("error: --num_gpus asks for 2 processes") and not (tmp_path / "runs").exists()


# --- nodes of two processes -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def longer(flags):
    """Long enough for something to happen in the middle; the last of two flags counts."""
    return [*flags, "--steps_per_epoch", "40", "--max_epochs", "3"]


def start_node(folder, flags, port, node, nodes=2, local=2):
    """One torchrun, as on a machine of its own; its lines are in `folder`/node_N."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--master_addr", "127.0.0.1", "--master_port", f"{port}",
        "--nnodes", f"{nodes}", "--node_rank", f"{node}", "--nproc_per_node", f"{local}", SCRIPT, *flags,
        "--checkpoint_dir", str(folder / "runs"),
    ]  # fmt: skip
    return start(folder / f"node_{node}", command)


def processes_of(node):
    """A torchrun and what it started."""
    found = [node.pid]
    for pid in found:
        found += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    assert len(found) >= 3
    return found


def send(pids, signum):
    for pid in pids:
        os.kill(pid, signum)


def wait_for(words, folder, process):
    while words not in logs(folder):
        assert process.poll() is None, logs(folder)
        time.sleep(0.01)


def last_checkpoint(folder):
    assert [path.name for path in (folder / "runs").iterdir()] == ["run"]
    return torch.load(folder / "runs/run/checkpoints/last.ckpt", weights_only=True)


@pytest.fixture(scope="module")
def one_node(longer, tmp_path_factory):
    """The last checkpoint of four processes on one node, which nothing disturbs."""
    folder = tmp_path_factory.mktemp("one_node")
    assert start_node(folder, longer, free_port(), 0, nodes=1, local=4).wait() == 0, logs(folder / "node_0")
    return last_checkpoint(folder)


def assert_same(found, expected):
    assert found["global_step"] == expected["global_step"] == 60
    different = [n for n, value in expected["state_dict"].items() if not torch.equal(value, found["state_dict"][n])]
    assert different == []


@pytest.mark.slow
def test_two_nodes_of_two_processes_train_what_four_processes_do_however_slow_one_is(one_node, longer, tmp_path):
    """To the bit. One node starts 5 s late, and stands still for 5 s in the middle of an epoch."""
    port = free_port()
    head = start_node(tmp_path, longer, port, 0)
    time.sleep(5)
    late = start_node(tmp_path, longer, port, 1)
    wait_for("epoch 1/3", tmp_path / "node_0", head)
    pids = processes_of(late)
    send(pids, signal.SIGSTOP)
    time.sleep(5)
    assert head.poll() is None and "epoch 3/3" not in logs(tmp_path / "node_0")
    send(pids, signal.SIGCONT)
    assert [head.wait(), late.wait()] == [0, 0], logs(tmp_path / "node_0") + logs(tmp_path / "node_1")
    assert "x 4 processes x" in logs(tmp_path / "node_0")
    assert_same(last_checkpoint(tmp_path), one_node)


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_a_node_that_is_killed_ends_the_other_with_one_line_and_the_run_goes_on(lost, one_node, longer, tmp_path):
    """Node 0 has process 0, which writes the checkpoints, and the store at which all meet."""
    port = free_port()
    nodes = [start_node(tmp_path, longer, port, node) for node in (0, 1)]
    wait_for("epoch 1/3", tmp_path / "node_0", nodes[0])
    send(processes_of(nodes[lost]), signal.SIGKILL)
    left, log = nodes[1 - lost], tmp_path / f"node_{1 - lost}"
    assert [nodes[lost].wait(), left.wait(timeout=120)] == [-signal.SIGKILL, 1], logs(log)  # as docs/cluster.md says
    lines = [line for line in logs(log).splitlines() if "another process of the run is gone" in line]
    assert len(lines) == 1 and lines[0].endswith("last.ckpt is whole: --resume auto goes on from it"), logs(log)
    assert 0 < last_checkpoint(tmp_path)["global_step"] < 60

    port = free_port()
    nodes = [start_node(tmp_path, longer, port, node) for node in (0, 1)]
    assert [node.wait() for node in nodes] == [0, 0], logs(tmp_path / "node_0")
    assert "going on from" in logs(tmp_path / "node_0")
    assert_same(last_checkpoint(tmp_path), one_node)
