"""The shell scripts, run for real with a stand-in for Python that records what it is asked."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

PYTHON = f"""#!/bin/bash
echo "$*" >>"$LOG"
case "$*" in
"-m venv .venv") mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
*fcntl*) exec '{sys.executable}' "$@" ;;
*" install "*) sleep 0.1 && [ ! -e broken ] ;;
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


def test_run_all_sets_up_and_calls_the_command(project: Path) -> None:
    set_up(project)
    command = project / ".venv/bin/neurotwin"
    command.write_text('#!/bin/bash\nprintf "%s|" "$PWD" "$MAX_EPOCHS" "$@"\nexit 3\n')
    command.chmod(0o755)
    options = ("--models", "a b", "--", "--seed", "3")
    done = bash(project, "a project/experiments/run_all_models_backimage.sh", *options, MAX_EPOCHS="2")
    assert done.returncode == 3, done.stderr
    assert done.stdout == f"{project}|2|run-all|--models|a b|--|--seed|3|"
