"""All models on the same sessions: what the trainer is asked, and what happens when it fails or is stopped."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from neurotwin.cli import main
from neurotwin.commands import run_all
from neurotwin.commands.run_all import RunAllError, find_models, train_all

TRAINER = """
import json, pathlib, sys, time
words = sys.argv[1:]
flags = dict(zip(words, words[1:]))
folder = pathlib.Path(flags["--checkpoint_dir"]) / flags["--experiment_name"]
folder.mkdir(parents=True, exist_ok=True)
(folder / "run.json").write_text(json.dumps({"name": folder.name, "parameters": 7, "words": words}))
if folder.name == "slow":
    try:
        time.sleep(30)
    except KeyboardInterrupt:
        (folder / "saved").touch()
        sys.exit(130)
sys.exit(folder.name == "bad")
"""


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with four model configs, of which the trainer fails on one, and a stand-in for the trainer."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "bad", "c", "big/d"):
        path = tmp_path / f"experiments/model_configs/{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "sessions.yaml").touch()
    (tmp_path / "trainer.py").write_text(TRAINER)
    trainer = [sys.executable, str(tmp_path / "trainer.py")]
    monkeypatch.setattr(run_all, "TRAINER", trainer)
    for name in run_all._SETTINGS:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("DATASETS", "sessions.yaml")
    monkeypatch.setenv("OUTPUT", "runs/x")
    return tmp_path


def call(*words: str) -> int:
    return main(["run-all", *words])


def asked(name: str) -> list[str]:
    return json.loads(Path(f"runs/x/{name}/run.json").read_text())["words"]


def trained() -> list[str]:
    return sorted(path.name for path in Path("runs/x").iterdir()) if Path("runs/x").exists() else []


def test_it_goes_on_after_a_failure_and_says_so(lab, capsys):
    assert call() == 1
    out, err = capsys.readouterr()
    assert trained() == ["a", "bad", "c"]
    assert [line.split()[0] for line in out.splitlines()[-3:]] == ["a", "bad", "c"]  # the rows of the table
    assert err.splitlines()[-1] == "Failed: bad"


def test_settings_come_from_everywhere_and_the_nearest_wins(lab, monkeypatch):
    monkeypatch.setenv("BATCH_SIZE", "5")
    monkeypatch.setenv("MAX_EPOCHS", "2")
    monkeypatch.setenv("EXTRA_FLAGS", "--compile --balance subject")
    assert call("--models", "c", "--batch_size", "7", "--", "--seed", "3") == 0
    words = asked("c")
    flags = dict(itertools.pairwise(words))
    assert flags["--model_config"] == "experiments/model_configs/c.yaml"
    assert flags["--dataset_configs_path"] == "sessions.yaml"
    assert (flags["--batch_size"], flags["--max_epochs"], flags["--steps_per_epoch"]) == ("7", "2", "100")
    assert words[-5:] == ["--compile", "--balance", "subject", "--seed", "3"]


def test_the_caller_comes_before_the_model_config_and_that_before_the_defaults(lab, monkeypatch):
    text = "training: {learning_rate: 0.5, batch_size: 128, ema: 0.9}\n"
    (lab / "experiments/model_configs/c.yaml").write_text(text)
    monkeypatch.setenv("STEPS_PER_EPOCH", "7")
    assert call("--models", "c", "--learning_rate", "0.1") == 0
    words = asked("c")
    assert len(set(words[::2])) * 2 == len(words)  # nothing twice
    flags = dict(zip(words[::2], words[1::2], strict=True))
    assert flags["--learning_rate"] == "0.1" and flags["--steps_per_epoch"] == "7"
    assert "--batch_size" not in flags and "--ema" not in flags  # the trainer reads them
    assert flags["--max_epochs"] == "10" and flags["--lr_scheduler"] == "anneal"
    assert flags["--time_budget_minutes"] == "1.3"


@pytest.mark.parametrize("text", ["readout: gaussian", "training:", "", "training: [", "- 1"])
def test_a_config_that_says_nothing_has_the_defaults(lab, text):
    (lab / "experiments/model_configs/c.yaml").write_text(text)
    assert call("--models", "c") == 0
    flags = dict(itertools.pairwise(asked("c")))
    assert flags["--batch_size"] == "256" and flags["--learning_rate"] == "2e-2" and flags["--ema"] == "0.99"


def test_a_family_and_a_path_are_found(lab):
    assert call("--family", "big") == 0
    assert trained() == ["d"]
    folder = Path("experiments/model_configs")
    assert find_models(["a", f"{folder}/big/d.yaml"], folder) == [folder / "a.yaml", folder / "big/d.yaml"]


@pytest.mark.parametrize("words", [("--modles", "a"), ("--models", "zzz"), ("--datasets", "zzz"), ("--models",)])
def test_what_cannot_be_done_is_refused_before_training(lab, capsys, words):
    try:
        code = call(*words)
    except SystemExit as end:
        code = end.code
    assert code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert trained() == []


def test_an_empty_family_is_refused(lab):
    (lab / "none").mkdir()
    with pytest.raises(RunAllError, match="none: no such model config"):
        find_models([], lab / "none")


def test_an_older_run_is_never_reported_as_its_own(lab, capsys):
    assert call("--models", "a") == 0
    assert call("--models", "a c") == 1
    assert "runs/x/a holds a run already" in capsys.readouterr().err
    assert call("--models", "a", "--", "--resume", "auto") == 0
    assert asked("a")[-2:] == ["--resume", "auto"]


def test_a_signal_stops_the_whole_after_the_model_has_saved(lab):
    (lab / "experiments/model_configs/slow.yaml").touch()
    code = (
        "import sys; from pathlib import Path; from neurotwin.commands.run_all import train_all\n"
        "models = [Path('experiments/model_configs') / f'{n}.yaml' for n in ('slow', 'c')]\n"
        "sys.exit(train_all(models, 'd', 'runs/x', {}, trainer=[sys.executable, 'trainer.py']).stopped)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # ignored in a suite in background
    )
    while not Path("runs/x/slow/run.json").exists():
        time.sleep(0.02)
    time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait() == 130
    assert trained() == ["slow"] and Path("runs/x/slow/saved").exists()


def test_a_model_that_a_signal_killed_has_the_exit_code_of_a_shell(lab):
    (lab / "trainer.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    models = [Path("experiments/model_configs/a.yaml")]
    done = train_all(models, "d", "runs/x", {}, trainer=[sys.executable, "trainer.py"])
    assert (done.failed, done.stopped) == (["a"], 0)


def test_the_minutes_that_a_model_leaves_are_those_of_the_models_after_it(lab, monkeypatch):
    """Three models with 2 minutes each; what a clock says before each of them: 0, 1 and 3 minutes used."""
    clock = iter([100.0, 100.0, 100.0, 160.0, 160.0, 280.0, 280.0])
    monkeypatch.setattr(run_all, "time", type("Clock", (), {"monotonic": staticmethod(lambda: next(clock))}))
    models = find_models((), Path("experiments/model_configs"))
    train_all(models, "sessions.yaml", "runs/x", {"time_budget_minutes": "2"})
    found = [dict(itertools.pairwise(asked(name)))["--time_budget_minutes"] for name in ("a", "bad", "c")]
    assert found == ["2", "2.5", "3"]


@pytest.mark.parametrize("text", ["soon", "-1", "0"])
def test_minutes_that_are_none_are_left_to_the_trainer_to_refuse(lab, text):
    call("--models", "a", "--time_budget_minutes", text)
    assert dict(itertools.pairwise(asked("a")))["--time_budget_minutes"] == text


def test_no_model_is_left_without_any_time(lab, monkeypatch):
    assert run_all._budget({"time_budget_minutes": "1"}, 600.0, 3, 2) == {"time_budget_minutes": "0.1"}
    assert run_all._budget({}, 0.0, 3, 0) == {}
