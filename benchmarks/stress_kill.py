"""Kill a run again and again, resume it, and compare what it leaves with what a run leaves that was never killed.

    python benchmarks/stress_kill.py --kills 50

Every process is the training script itself, `main(argv)`, in a fresh fork of one that has only imported it, ended by
SIGKILL: nothing is cleaned up and no code runs. It dies at a random moment of one of five kinds:

clock       from outside, after a random time
step        within a training step
validation  within a validation
write       while a file is written: half of it is on the disk
rename      between two renames, when the file before has been moved and the new one has not

A run is killed and resumed with `--resume auto` until it has ended; then another one starts, until there were enough
kills. It saves after every other optimizer step, so that most ends leave it within an epoch. Weights, optimizer,
schedules, progress, metrics.csv, units.csv and both checkpoints must be those of the run that was never killed, to the
bit. The exit code is 1 if one differs.
"""

import argparse
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from neurotwin.data.session import Session

__all__ = ["KINDS", "differences", "run_killed", "run_whole", "write_lab"]

KINDS = ("clock", "step", "validation", "write", "rename")

MODEL = """
frontend: {type: learnable_temporal, params: {kernel_size: 3, num_channels: 2}}
convnet:
  type: vanilla
  params:
    channels: [4]
    block_configs: [{conv_params: {kernel_size: 3}, norm_type: batch, dropout: 0.2, act_type: silu}]
readout: {type: point}
regularization: [{name: sparse, type: proximal_l1, lambda: 1.0e-4, apply_to: [frontend/weight]}]
"""


def write_lab(folder: Path) -> list[str]:
    """Make two small sessions and a model; the flags that train on them."""
    (folder / "sessions").mkdir(parents=True)
    for name, n_bins in (("ada_1", 480), ("bea_1", 720)):
        rng = np.random.default_rng(n_bins)
        movie = rng.integers(0, 256, (n_bins, 6, 6), dtype=np.uint8)
        spikes = rng.poisson(0.3 + movie[:, 2:4, 2:4].mean((1, 2))[:, None] / 128 * rng.random(3)).astype(np.uint8)
        session = Session(name=name, stimulus=movie, responses=spikes, bin_rate=60.0, trial=np.arange(n_bins) // 40)
        config = {
            "path": str(session.save(folder / f"{name}.safetensors")), "keys_lags": {"stim": "0..4"},
            "transforms": {"stim": {"source": "stim", "ops": ["pixelnorm"]}},
        }  # fmt: skip
        (folder / "sessions" / f"{name}.yaml").write_text(yaml.safe_dump(config))
    (folder / "model.yaml").write_text(MODEL)
    flags = {
        "model_config": folder / "model.yaml", "dataset_configs_path": folder / "sessions", "accelerator": "cpu",
        "batch_size": 64, "clip_len": 8, "steps_per_epoch": 16, "max_epochs": 4, "learning_rate": 0.01,
        "lr_scheduler": "cosine_warmup", "warmup_epochs": 1, "accumulate_grad_batches": 2, "experiment_name": "run",
        "logger": "csv", "num_workers": 0, "resume": "auto", "precision": 32,
    }  # fmt: skip
    return ["--enable_curriculum", *(str(part) for name, value in flags.items() for part in (f"--{name}", value))]


def run_whole(argv: list[str], folder: Path) -> float:
    """Train without a kill; the seconds it took."""
    began = time.monotonic()
    process = _start(argv, folder, None, 0)
    process.join()
    if process.exitcode:
        raise RuntimeError(f"the run that was not killed ended with {process.exitcode}:\n{_log(folder)}")
    return time.monotonic() - began


def run_killed(argv: list[str], folder: Path, rng: random.Random, seconds: float, kills: int) -> Counter[str]:
    """Train, killed up to `kills` times, until the run has ended; how often each kind of kill struck."""
    struck: Counter[str] = Counter()
    while True:
        kind = rng.choice(KINDS) if struck.total() < kills else None
        process = _start(argv, folder, kind, rng.randrange(2**31))
        if kind == "clock":
            process.join(rng.uniform(0, seconds))
            process.kill()
        process.join()
        if process.exitcode == 0:
            return struck
        if process.exitcode != -signal.SIGKILL:
            raise RuntimeError(f"after {dict(struck)} the run ended with {process.exitcode}:\n{_log(folder)}")
        struck[kind] += 1


def differences(whole: Path, other: Path) -> list[str]:
    """What differs between two runs' folders."""
    found = [f for f in ("metrics.csv", "units.csv") if (whole / f).read_bytes() != (other / f).read_bytes()]
    for name in ("last.ckpt", "best.ckpt"):
        pair = [torch.load(folder / "checkpoints" / name, weights_only=True) for folder in (whole, other)]
        found += [f"{name}{path}" for path in _different(*pair)]
    return found


def _different(a: Any, b: Any, path: str = "") -> list[str]:
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [part for key in a for part in _different(a[key], b[key], f"{path}/{key}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        return [part for index in range(len(a)) for part in _different(a[index], b[index], f"{path}/{index}")]
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return [] if torch.equal(a, b) else [path]
    return [] if type(a) is type(b) and (a == b or (a != a and b != b)) else [path]


def _start(argv: list[str], folder: Path, kind: str | None, seed: int) -> multiprocessing.Process:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["training.train_ddp_multidataset"])
    folder.mkdir(parents=True, exist_ok=True)
    process = context.Process(target=_train, args=([*argv, "--checkpoint_dir", str(folder)], folder, kind, seed))
    process.start()
    return process


def _train(argv: list[str], folder: Path, kind: str | None, seed: int) -> None:
    """The training script, in a process that may kill itself."""
    from training import MultiDatasetModel, train_ddp_multidataset  # imported by the fork server, not by this file

    with open(folder / "log.txt", "ab", buffering=0) as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    torch.set_num_threads(1)
    make_callbacks = train_ddp_multidataset.make_callbacks

    def save_often(*arguments: Any) -> list:
        callbacks = make_callbacks(*arguments)
        callbacks[0].every_n_steps = 2
        return callbacks

    train_ddp_multidataset.make_callbacks = save_often
    rng = random.Random(seed)
    if kind == "step":
        _die_at(MultiDatasetModel, "on_after_backward", rng.randint(1, 60))
    elif kind == "validation":
        _die_at(MultiDatasetModel, "validation_step", rng.randint(1, 12))
    elif kind == "rename":
        _die_at(os, "replace", rng.randint(1, 50))
    elif kind == "write":
        _die_at(os, "fsync", rng.randint(1, 30), lambda file: os.truncate(file, os.fstat(file).st_size // 2))
    sys.exit(train_ddp_multidataset.main(argv))


def _die_at(owner: Any, name: str, call: int, before: Any = lambda *_: None) -> None:
    """Let the given call of a function be the process's end."""
    original, calls = getattr(owner, name), []

    def counted(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            before(*arguments)
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **named)

    setattr(owner, name, counted)


def _log(folder: Path) -> str:
    return (folder / "log.txt").read_text()[-3000:]


def main() -> int:
    """Kill, resume, compare, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="(%(default)s)")
    parser.add_argument("--kills_per_run", type=int, default=5, help="at most (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (%(default)s)")
    arguments = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="stress_kill_"))
    argv, rng = write_lab(root / "lab"), random.Random(arguments.seed)
    run_whole(argv, root / "warm")
    seconds = run_whole(argv, root / "whole")
    total, wrong, runs = Counter(), 0, 0
    print(f"a run that is not killed takes {seconds:.1f} s; {root}")
    while total.total() < arguments.kills:
        runs += 1
        folder = root / f"killed_{runs}"
        most = min(arguments.kills_per_run, arguments.kills - total.total())
        struck = run_killed(argv, folder, rng, seconds, most)
        total += struck
        found = differences(root / "whole" / "run", folder / "run")
        wrong += bool(found)
        kinds = ", ".join(f"{kind} {number}" for kind, number in sorted(struck.items())) or "none"
        print(
            f"run {runs}: kills: {kinds}; {'the same' if not found else 'differs: ' + ', '.join(found[:5])}", flush=True
        )
    kinds = ", ".join(f"{kind} {number}" for kind, number in sorted(total.items()))
    print(f"{total.total()} kills ({kinds}) of {runs} runs: {wrong} did not end like the one that was never killed")
    if not wrong:
        shutil.rmtree(root)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
