"""The shell scripts, run for real with stand-ins for Python and the trainer that record what they are asked."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

PYTHON = f"""#!/bin/bash
echo "$*" >>"$LOG"
case "$*" in
"-m venv .venv") mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
*fcntl* | *yaml.safe_load*) exec '{sys.executable}' "$@" ;;
*" install "*) sleep 0.1 && [ ! -e broken ] ;;
training/*)
    while [ "$1" != --experiment_name ]; do shift; done
    mkdir -p "$4/$2" && touch "$4/$2/run.json"
    if [ "$2" = slow ]; then exec sleep 30; fi
    [ "$2" != bad ]
    ;;
esac
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the scripts in a folder whose name has a space."""
    folder = tmp_path / "a project"
    for name in (
        "scripts/setup_env.sh",
        "experiments/run_all_models_backimage.sh",
        "pyproject.toml",
        "constraints.txt",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    (folder / "python").write_text(PYTHON)
    (folder / "python").chmod(0o755)
    return folder


def environment(project: Path, **variables: str) -> dict[str, str]:
    keep = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return keep | {"PYTHON": str(project / "python"), "LOG": str(project / "log")} | variables


def bash(project: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", *arguments], cwd=project.parent, env=environment(project, **variables), text=True, capture_output=True
    )


def set_up(project: Path, **variables: str) -> list[str]:
    """Set up successfully and return what Python was asked meanwhile."""
    (project / "log").unlink(missing_ok=True)
    done = bash(project, "a project/scripts/setup_env.sh", **variables)
    assert done.returncode == 0, done.stderr
    return (project / "log").read_text().splitlines() if (project / "log").exists() else []


def installs(log: list[str]) -> list[str]:
    return [line for line in log if " install " in line]


def test_setup_is_done_once(project: Path) -> None:
    log = set_up(project)
    assert log.count("-m venv .venv") == 1
    assert all("-c constraints.txt" in line and "--require-virtualenv" in line for line in installs(log))
    assert installs(log)[-1].endswith("-e .[dev]")
    assert set_up(project) == []


def test_setup_follows_the_requirements_in_place(project: Path) -> None:
    set_up(project)
    with open(project / "constraints.txt", "a") as file:
        file.write("something==1\n")
    log = set_up(project)
    assert "-m venv .venv" not in log
    assert installs(log)


def test_setup_that_was_cut_off_starts_over(project: Path) -> None:
    (project / "broken").touch()
    assert bash(project, "a project/scripts/setup_env.sh").returncode != 0
    (project / "broken").unlink()
    (project / ".venv" / "half a package").touch()
    assert "-m venv .venv" in set_up(project)
    assert not (project / ".venv" / "half a package").exists()


def test_setup_in_a_folder_that_moved_starts_over(project: Path) -> None:
    set_up(project)
    state = project / ".venv" / "setup-state"
    state.write_text(state.read_text().replace(f"made in {project}", "made in /elsewhere"))
    assert "-m venv .venv" in set_up(project)


def test_two_setups_at_once_do_the_work_once(project: Path) -> None:
    command = ["bash", str(project / "scripts/setup_env.sh")]
    both = [subprocess.Popen(command, env=environment(project), stderr=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert (project / "log").read_text().splitlines().count("-m venv .venv") == 1


def test_setup_without_python_says_so(project: Path) -> None:
    done = bash(project, "a project/scripts/setup_env.sh", PYTHON="/no/such/python")
    assert done.returncode == 1
    assert (
        done.stderr == "PYTHON=/no/such/python cannot be used: it must be Python 3.11 or newer, with its venv module\n"
    )


def test_sourced_setup_leaves_only_the_path(project: Path) -> None:
    script = 'before=$-; . "a project/scripts/setup_env.sh"; [ "$-" = "$before" ] && command -v python; declare -F'
    done = bash(project, "-c", script)
    assert done.stdout.splitlines() == [str(project / ".venv/bin/python")]


@pytest.fixture
def experiments(project: Path) -> Path:
    """A project that is set up, with three model configs of which the trainer fails on one."""
    set_up(project)
    for name in ("model_configs/a.yaml", "model_configs/bad.yaml", "model_configs/c.yaml", "model_configs/big/d.yaml"):
        path = project / "experiments" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (project / "sessions.yaml").touch()
    report = project / ".venv/bin/neurotwin"
    report.write_text('#!/bin/bash\necho "$@"\n')
    report.chmod(0o755)
    (project / "log").unlink()
    return project


def run_all(project: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    variables = {"DATASETS": "sessions.yaml", "OUTPUT": "runs/x"} | variables
    return bash(project, "a project/experiments/run_all_models_backimage.sh", *arguments, **variables)


def trained(project: Path) -> list[str]:
    log = (project / "log").read_text().splitlines()
    return [line.split("--experiment_name ")[1].split()[0] for line in log if line.startswith("training/")]


def test_run_all_goes_on_after_a_failure_and_says_so(experiments: Path) -> None:
    done = run_all(experiments)
    assert trained(experiments) == ["a", "bad", "c"]
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "report runs/x/a runs/x/bad runs/x/c"
    assert done.stderr.splitlines()[-1] == "Failed: bad"


def test_run_all_takes_settings_from_everywhere(experiments: Path) -> None:
    options = ("--models", "c", "--batch_size", "7", "--", "--seed", "3")
    done = run_all(experiments, *options, BATCH_SIZE="5", MAX_EPOCHS="2", EXTRA_FLAGS="--compile --balance subject")
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in (experiments / "log").read_text().splitlines() if line.startswith("training/")]
    assert "--model_config experiments/model_configs/c.yaml --dataset_configs_path sessions.yaml" in line
    assert "--batch_size 7" in line
    assert "--max_epochs 2" in line
    assert line.endswith("--compile --balance subject --seed 3")


def flags_of(project: Path) -> dict[str, str]:
    (line,) = [line for line in (project / "log").read_text().splitlines() if line.startswith("training/")]
    words = line.split()[1:]
    assert len(words) == len(set(words[::2])) * 2  # nothing twice
    return dict(zip(words[::2], words[1::2], strict=True))


def test_run_all_puts_the_caller_before_the_model_config_and_that_before_its_own(experiments: Path) -> None:
    config = experiments / "experiments/model_configs/c.yaml"
    config.write_text("training: {learning_rate: 0.5, batch_size: 128, ema: 0.9}\n")
    assert run_all(experiments, "--models", "c", "--learning_rate", "0.1", STEPS_PER_EPOCH="7").returncode == 0
    flags = flags_of(experiments)
    assert flags["--learning_rate"] == "0.1" and flags["--steps_per_epoch"] == "7"
    assert "--batch_size" not in flags and "--ema" not in flags  # the trainer reads them
    assert flags["--max_epochs"] == "10" and flags["--lr_scheduler"] == "anneal"


@pytest.mark.parametrize("text", ["readout: gaussian", "training:", "", "training: [", "- 1"])
def test_run_all_has_settings_for_a_config_that_says_nothing(experiments: Path, text: str) -> None:
    (experiments / "experiments/model_configs/c.yaml").write_text(text)
    assert run_all(experiments, "--models", "c").returncode == 0
    flags = flags_of(experiments)
    assert flags["--batch_size"] == "256" and flags["--learning_rate"] == "2e-2" and flags["--ema"] == "0.99"


def test_run_all_selects_a_family(experiments: Path) -> None:
    assert run_all(experiments, "--family", "big").returncode == 0
    assert trained(experiments) == ["d"]


@pytest.mark.parametrize("options", [("--modles", "a"), ("--models", "zzz"), ("--datasets", "zzz"), ("--models",)])
def test_run_all_refuses_what_it_cannot_do_before_it_trains(experiments: Path, options: tuple[str, ...]) -> None:
    done = run_all(experiments, *options)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert not (experiments / "log").exists()


def test_run_all_never_reports_an_older_run_as_its_own(experiments: Path) -> None:
    assert run_all(experiments, "--models", "a").returncode == 0
    done = run_all(experiments, "--models", "a c")
    assert done.returncode == 1
    assert trained(experiments) == ["a", "c"]
    assert done.stdout.splitlines()[-1] == "report runs/x/c"
    assert run_all(experiments, "--models", "a", "--", "--resume", "auto").returncode == 0


def test_interrupt_stops_the_whole(experiments: Path) -> None:
    command = ["bash", "experiments/run_all_models_backimage.sh", "--models", "slow c", "--datasets", "sessions.yaml"]
    (experiments / "experiments/model_configs/slow.yaml").touch()
    process = subprocess.Popen(
        command,
        cwd=experiments,
        env=environment(experiments),
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where the suite is in the background
    )
    while not list(experiments.glob("runs/*/slow/run.json")):
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait() == 130
    assert trained(experiments) == ["slow"]


def test_help_lists_every_setting() -> None:
    script = (ROOT / "experiments/run_all_models_backimage.sh").read_text()
    settings = [line.split("=")[0] for line in script.splitlines() if line.split("=")[0].isupper() and ":-" in line]
    done = subprocess.run(["bash", ROOT / "experiments/run_all_models_backimage.sh", "--help"], stdout=-1, text=True)
    assert len(settings) > 5
    assert [name for name in settings if f"--{name.lower()} " not in done.stdout] == []
