"""The training script as it is run: killed by SIGKILL, and on two processes."""

import json
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from neurotwin.analysis.compare import compare

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import stress_kill

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The flags, and the folder of a run that was never killed."""
    root = tmp_path_factory.mktemp("stress")
    argv = stress_kill.write_lab(root / "lab")
    stress_kill.run_whole(argv, root / "whole")
    return argv, root / "whole" / "run"


@pytest.mark.parametrize("kind", ["write", pytest.param("rename", marks=pytest.mark.slow)])
def test_runs_that_are_killed_end_like_one_that_was_not(whole, tmp_path, monkeypatch, kind):
    argv, folder = whole
    monkeypatch.setattr(stress_kill, "KINDS", (kind, "validation"))
    struck = stress_kill.run_killed(argv, tmp_path, random.Random(1), 2.0, 2)
    assert struck.total() > 0
    assert stress_kill.differences(folder, tmp_path / "run") == []


def test_the_stress_script_sees_a_difference(whole, tmp_path):
    _, folder = whole
    (tmp_path / "checkpoints").mkdir()
    for name in ("metrics.csv", "units.csv", "checkpoints/last.ckpt", "checkpoints/best.ckpt"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    assert stress_kill.differences(folder, tmp_path) == []
    checkpoint = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
    next(iter(checkpoint["state_dict"].values())).view(-1)[0] += 1e-6
    torch.save(checkpoint, tmp_path / "checkpoints/last.ckpt")
    (found,) = stress_kill.differences(folder, tmp_path)
    assert found.startswith("last.ckpt/state_dict/")


def start(argv, folder, **flags):
    """The script in a process of its own; it logs to `folder`/log.txt."""
    folder.mkdir(exist_ok=True)
    replaced = {f"--{name}": str(value) for name, value in flags.items()} | {"--checkpoint_dir": str(folder)}
    kept = [*argv, *(part for pair in replaced.items() for part in pair)]
    command = [sys.executable, str(ROOT / "training/train_ddp_multidataset.py"), *kept]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with open(folder / "log.txt", "w") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment)


@pytest.mark.slow
def test_two_processes_of_the_script_give_what_one_gives(whole, tmp_path):
    """To rounding, without dropout; interrupted by a signal to one of them, and resumed on one."""
    model = tmp_path / "model.yaml"
    model.write_text(stress_kill.MODEL.replace("dropout: 0.2", "dropout: 0").replace("point", "gaussian"))
    flags = {"model_config": model, "steps_per_epoch": 150, "max_epochs": 2}
    one, log = start(whole[0], tmp_path / "one", **flags), tmp_path / "two" / "log.txt"
    assert one.wait() == 0, (tmp_path / "one" / "log.txt").read_text()
    two = start(whole[0], log.parent, num_gpus=2, batch_size=32, **flags)
    while "epoch 1/2" not in log.read_text() and two.poll() is None:
        time.sleep(0.02)
    two.terminate()
    assert two.wait() == 143, log.read_text()
    assert re.search(r"stopped by SIGTERM; .*last.ckpt is whole: --resume auto goes on from it\n", log.read_text())
    assert "Traceback" not in log.read_text()
    last = start(whole[0], log.parent, **flags)
    assert last.wait() == 0, log.read_text()
    assert "going on from" in log.read_text()
    assert compare(tmp_path / "one/run", log.parent / "run", tolerance=1e-3).same
    record = json.loads((log.parent / "run/run.json").read_text())
    assert record["global_batch_size"] == 64 * 2 and record["steps"] == 150
