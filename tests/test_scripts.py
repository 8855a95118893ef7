"""The shell scripts, run for real with a stand-in for Python that records what it is asked."""

import os
import shutil
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


CLUSTER = ROOT / "experiments/cluster"


@pytest.fixture
def cluster(tmp_path: Path):
    """Runs a job script where srun, scontrol, torchrun and neurotwin write down what they are asked."""
    for name, more in (("srun", '[ -z "$SLOW" ] || sleep "$SLOW"; exit "$CODE"'), ("scontrol", ""), ("torchrun", "")):
        (tmp_path / name).write_text(f'#!/bin/bash\necho "{name} $*" >>"$LOG"\n{more}\n')
    (tmp_path / "neurotwin").write_text('#!/bin/bash\necho "neurotwin $*" >>"$LOG"\n')
    for path in tmp_path.iterdir():
        path.chmod(0o755)

    def start(script: str, *arguments: str, **variables: str) -> subprocess.Popen:
        path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
        settings = {"PATH": path, "LOG": str(tmp_path / "log"), "SLURM_JOB_ID": "7", "CODE": "0", "SLOW": ""}
        return subprocess.Popen(["bash", str(CLUSTER / script), *arguments], env=settings | variables)

    start.log = tmp_path / "log"
    return start


@pytest.mark.parametrize(("code", "again"), [(0, False), (1, False), (2, False), (138, True), (143, True)])
def test_a_job_that_was_saved_is_queued_again(cluster, code, again):
    job = cluster("train.sbatch", "first", "--model_config", "m.yaml", CODE=str(code))
    assert job.wait() == code
    asked = cluster.log.read_text().splitlines()
    flags = "train --experiment_name first --resume auto --model_config m.yaml"
    assert asked[0] == f"srun --kill-on-bad-exit=1 neurotwin {flags}"
    assert asked[1:] == ["scontrol requeue 7"] * again


def test_a_job_that_is_told_to_end_waits_for_its_tasks(cluster):
    job = cluster("train.sbatch", "first", CODE="143", SLOW="1")
    while not cluster.log.exists():
        time.sleep(0.02)
    job.terminate()
    assert job.wait() == 143
    assert cluster.log.read_text().splitlines()[-1] == "scontrol requeue 7"


def test_jobs_of_an_array_prepare_their_share(cluster):
    place = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "16", "SLURM_CPUS_PER_TASK": "4"}
    assert cluster("prepare.sbatch", "d.yaml", "--data_dir", "x", **place).wait() == 0
    assert cluster.log.read_text() == "neurotwin prepare d.yaml --data_dir x --jobs 4 --shard 3/16\n"


def test_torchrun_is_started_alike_on_every_machine(cluster):
    assert cluster("torchrun.sh", "first", "--seed", "3", NODES="2", NODE="1", HEAD="host0", PROCESSES="2").wait() == 0
    asked = cluster.log.read_text()
    assert "--nnodes 2 --node_rank 1 --master_addr host0 --master_port 29500 --nproc_per_node 2" in asked
    assert asked.endswith("--module neurotwin train --experiment_name first --resume auto --seed 3\n")
    assert cluster("torchrun.sh").wait() == 2
