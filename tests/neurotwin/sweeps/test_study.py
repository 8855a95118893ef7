"""Sweeps of very small models: trials are run folders, bad ones end early, lost ones are queued again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from neurotwin.cli import main
from neurotwin.data.session import Session
from neurotwin.sweeps.results import trial_rows
from neurotwin.sweeps.space import load_sweep
from neurotwin.sweeps.study import Worker, open_study, work

optuna = pytest.importorskip("optuna")
pytestmark = pytest.mark.filterwarnings("ignore")  # of sqlite and of what Optuna calls experimental

MODEL = {"frontend": {"type": "learnable_temporal", "params": {"kernel_size": 3, "num_channels": 2}}}
FLAGS = {"max_epochs": 3, "steps_per_epoch": 3, "clip_len": 8, "accelerator": "cpu", "warmup_epochs": 0}


@pytest.fixture
def lab(tmp_path):
    rng, n_bins = np.random.default_rng(0), 240
    session = Session(
        name="ada_1", bin_rate=60.0, stimulus=rng.integers(0, 256, (n_bins, 6, 6), dtype=np.uint8),
        responses=rng.poisson(0.5, (n_bins, 3)).astype(np.uint8), trial=np.arange(n_bins) // 30,
    )  # fmt: skip
    path = session.save(tmp_path / "data" / "ada_1.safetensors")
    (tmp_path / "sessions").mkdir()
    config = {"path": str(path), "keys_lags": {"stim": "0..4"}}
    (tmp_path / "sessions" / "ada_1.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(MODEL))

    def write(**changes) -> Path:
        sweep = {
            "study": "one", "model": "model.yaml", "datasets": "sessions", "trials": 2, "flags": FLAGS,
            "output": str(tmp_path / "sweeps"), "startup_trials": 2, "heartbeat_s": 1,
            "search": {
                "flags.learning_rate": {"low": 1e-3, "high": 1e-1, "log": True},
                "model.frontend.params.num_channels": {"low": 1, "high": 3},
            },
        } | changes  # fmt: skip
        file = tmp_path / "sweep.yaml"
        file.write_text(yaml.safe_dump(sweep, sort_keys=False))
        return file

    return write


def test_every_trial_is_a_run_folder_and_results_are_shown(lab, tmp_path, capsys):
    path, page = lab(), tmp_path / "sweep.html"
    assert main(["sweep", str(path), "--html", str(page)]) == 0
    shown = capsys.readouterr().out
    config = load_sweep(path)
    study = open_study(config)
    assert len(study.trials) == 2
    for trial in study.trials:
        folder = config.folder / trial.user_attrs["run"]
        record, table = json.loads((folder / "run.json").read_text()), (folder / "units.csv").read_text()
        assert record["flags"]["learning_rate"] == trial.params["flags.learning_rate"] and "bps" in table
        model = yaml.safe_load((folder / "model.yaml").read_text())
        channels = trial.params["model.frontend.params.num_channels"]
        assert model["frontend"]["params"]["num_channels"] == channels
        assert len(trial.intermediate_values) == 3 and f"{trial.value:.3f}" in shown
    values = [trial.value for trial in study.trials]
    assert values[0] != values[1]
    rows = trial_rows(config, study)
    assert [row["value"] for row in rows] == [f"{value:.3f}" for value in sorted(values, reverse=True)]
    best = study.best_trial.user_attrs["run"]
    assert f"best: {best}" in shown and f"--model_config {config.folder / 'models' / best}.yaml" in shown
    content = page.read_text()
    assert best in content and "log10 of flags.learning_rate" in content and "<svg" in content
    # Nothing is left to do: no worker trains more.
    assert main(["sweep", str(path)]) == 0 and len(open_study(config).trials) == 2
    assert main(["sweep", str(path), "--show"]) == 0
    assert main(["report", *(str(config.folder / row["trial"]) for row in rows)]) == 0


def test_what_is_proposed_depends_on_the_seed_and_not_on_the_worker(lab):
    proposed = []
    for seed in (0, 0, 1):
        worker, study = Worker(load_sweep(lab(seed=seed))), optuna.create_study(direction="maximize")
        found = []

        def ask(trial, worker=worker, found=found):
            found.append(worker.values(trial))
            return 0.0

        study.optimize(ask, n_trials=3)
        proposed.append(found)
    assert proposed[0] == proposed[1] != proposed[2]
    assert len({str(values) for values in proposed[0]}) == 3


@pytest.mark.slow
def test_a_trial_that_lags_behind_is_ended_early(lab):
    """Four good trials are told to the study; the fifth is worse than their median after its second epoch."""
    config = load_sweep(lab(trials=5, startup_trials=2, flags=FLAGS | {"max_epochs": 40, "steps_per_epoch": 20}))
    study = open_study(config)
    space = {
        "flags.learning_rate": optuna.distributions.FloatDistribution(1e-3, 1e-1, log=True),
        "model.frontend.params.num_channels": optuna.distributions.IntDistribution(1, 3),
    }
    for _ in range(4):
        study.add_trial(
            optuna.create_trial(
                params={"flags.learning_rate": 0.01, "model.frontend.params.num_channels": 2}, distributions=space,
                value=9.0, intermediate_values=dict.fromkeys(range(1, 41), 9.0), user_attrs={"run": "told"},
            )
        )  # fmt: skip
    work(config)
    last = study.trials[-1]
    assert last.state.name == "PRUNED" and 2 <= len(last.intermediate_values) < 40
    assert (config.folder / last.user_attrs["run"] / "checkpoints" / "last.ckpt").exists()


@pytest.mark.slow
def test_a_worker_that_is_killed_leaves_its_trial_to_another(lab, tmp_path):
    """By SIGKILL, while it trains: its run ends with it, and the trial goes on from its checkpoint in one folder."""
    path = lab(trials=1, flags=FLAGS | {"max_epochs": 400, "steps_per_epoch": 20}, pruner="none")
    config = load_sweep(path)
    command = [sys.executable, "-m", "neurotwin.cli", "sweep", str(path)]
    worker = subprocess.Popen(command, env=os.environ, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    folder = config.folder / "trial_0000"
    _until(lambda: (folder / "checkpoints" / "last.ckpt").exists())
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    log = config.folder / "logs" / "trial_0000.log"
    _until(lambda: "stopped by SIGTERM" in log.read_text())
    # The second worker is given fewer epochs, so that the test ends.
    config.flags["max_epochs"] = _epochs(folder) + 2
    study = work(config)
    states = [trial.state.name for trial in study.trials]
    assert states == ["FAIL", "COMPLETE"]
    assert study.trials[1].params == study.trials[0].params and study.trials[1].user_attrs["run"] == "trial_0000"
    assert "going on from" in log.read_text()
    assert sorted(p.name for p in config.folder.iterdir() if p.name.startswith("trial")) == ["trial_0000"]
    assert [row["state"] for row in trial_rows(config, study)] == ["trained"]


@pytest.mark.slow
def test_two_workers_share_one_study(lab):
    path = lab(trials=4)
    command = [sys.executable, "-m", "neurotwin.cli", "sweep", str(path)]
    workers = [subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [worker.wait() for worker in workers] == [0, 0]
    study = open_study(load_sweep(path))
    done = [trial for trial in study.trials if trial.state.name in ("COMPLETE", "PRUNED")]
    assert 4 <= len(done) <= 5 and len({trial.user_attrs["run"] for trial in done}) == len(done)


def test_what_training_refuses_ends_the_sweep_in_one_line(lab, capsys):
    assert main(["sweep", str(lab(flags=FLAGS | {"bach_size": 3}))]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "bach_size" in said and said.endswith("correct the sweep's file")
    wrong = {"model.frontend.params.kernel_size": {"choices": ["wide"]}}
    assert main(["sweep", str(lab(study="two", search=wrong))]) == 2
    assert main(["sweep", str(lab(storage="sqlite:////nowhere/at/all.db"))]) == 2
    assert "cannot be opened" in capsys.readouterr().err


def _until(holds, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.2)


def _epochs(folder: Path) -> int:
    return len((folder / "metrics.csv").read_text().splitlines()) - 1
