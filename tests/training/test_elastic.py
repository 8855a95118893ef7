"""A run that is ended on some processes and goes on on others takes the same steps."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import stress_kill

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_run_goes_on_on_another_number_of_processes_with_the_same_batch(tmp_path):
    """Two processes for an epoch and one for another, against one that has the whole batch from the start."""
    argv = [*stress_kill.write_lab(tmp_path / "lab"), "--steps_per_epoch", "4", "--lr_scheduler", "none"]
    # Dropout and the point readout draw other numbers on other processes.
    argv += ["--set", "convnet.params.block_configs.0.dropout=0", "model.readout.type=gaussian"]

    def train(folder, *flags):
        words = [*argv, "--checkpoint_dir", str(tmp_path / folder), *flags]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, ROOT / "training/train_ddp_multidataset.py", *words]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stderr, torch.load(tmp_path / folder / "run/checkpoints/last.ckpt", weights_only=True)

    whole_log, whole = train("whole", "--batch_size", "128", "--max_epochs", "2")
    first_log, _ = train("parts", "--batch_size", "64", "--max_epochs", "1", "--num_gpus", "2")
    second_log, parts = train("parts", "--batch_size", "64", "--max_epochs", "2", "--num_gpus", "1")
    assert "the run goes on with 1 instead of 2 processes" in second_log
    steps = [re.search(r"a step takes .* = (\d+) predicted bins", log)[1] for log in (whole_log, first_log, second_log)]
    assert steps == ["256", "256", "256"]
    assert parts["global_step"] == whole["global_step"] == 4
    for name, value in whole["state_dict"].items():
        torch.testing.assert_close(parts["state_dict"][name], value, rtol=1e-2, atol=1e-3)
    log = (tmp_path / "parts/run/train.log").read_text()
    assert log.index("epoch 1/1") < log.index("going on from") < log.index("epoch 2/2")
