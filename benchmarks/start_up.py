"""From the command of the training script to its first step with 30 sessions of 10 minutes: at first, and after."""

import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import yaml

from neurotwin.config import DatasetConfig
from neurotwin.data.prepare import prepare

from .common import ROOT, Result, Target, cases, in_fresh_process, main, private_memory, watched_memory, write_sessions

__all__ = ["TARGETS", "first_preparation", "measure", "recordings"]

TARGETS = {
    "start": Target("start to the end of the first step, second run, 30 sessions of 10 minutes", 5, "s", at_most=True),
    "prepare": Target("first preparation of a session of 10 minutes", 2, "s", at_most=True),
}


def measure(folder: Path, quick: bool) -> Result:
    """The first preparation in a process of its own, then whole starts of the script, imports included."""
    configs = recordings(folder, quick)
    shutil.rmtree(folder / "prepared", ignore_errors=True)
    seconds, memory = in_fresh_process("benchmarks.start_up:first_preparation", folder=str(folder), quick=quick)
    command = script(folder / "start", configs, cases(quick)["a"].model, batch_size=64 if quick else 256)
    start = statistics.median(first_step(command) for _ in range(1 if quick else 3))
    rows = [("first preparation of a session, s", seconds), ("start to the end of the first step, s", start)]
    rows.append(("memory of its own that preparation took at most, MB", memory))
    return Result(("what", "measured"), rows, {"start": start, "prepare": seconds})


def recordings(folder: Path, quick: bool) -> list[DatasetConfig]:
    """The sessions: 51x51 pixels, 120 Hz."""
    count, bins, size = (2, 1800, 15) if quick else (30, 72_000, 51)
    return write_sessions(Path(folder), count, bins=bins, size=size, lags=32)


def first_preparation(folder: str, quick: bool) -> tuple[float, float]:
    """Seconds a session, and memory of the process's own that they took, MB."""
    configs, before = recordings(Path(folder), quick), private_memory()
    began = time.perf_counter()
    with watched_memory() as highest:
        prepare(configs)
    return (time.perf_counter() - began) / len(configs), highest[0] - before


def script(folder: Path, configs: list[DatasetConfig], model: dict, *, batch_size: int) -> list[str]:
    """The command that trains a model, after its YAML files were written."""
    sessions = folder / "sessions"
    sessions.mkdir(parents=True)
    for config in configs:
        values = config.model_dump(mode="json", by_alias=True, exclude_unset=True)
        (sessions / f"{config.session}.yaml").write_text(yaml.safe_dump(values))
    (folder / "model.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(model))))
    return [
        sys.executable, str(ROOT / "training/train_ddp_multidataset.py"), "--model_config", str(folder / "model.yaml"),
        "--dataset_configs_path", str(sessions), "--batch_size", str(batch_size), "--checkpoint_dir", str(folder),
    ]  # fmt: skip


def first_step(command: list[str]) -> float:
    """Seconds until the script tells of its first step; it is then killed."""
    began = time.perf_counter()
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if "step 1/" in line:
                seconds = time.perf_counter() - began
                process.kill()
                return seconds
    raise RuntimeError(f"{' '.join(command)} ended before its first step")


if __name__ == "__main__":
    main(measure, TARGETS, "start_up")
