"""The project as others install it: a wheel in an environment of its own, and an editable install of a clone."""

import os
import re
import shutil
import site
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from neurotwin import __version__

ROOT = Path(__file__).parent.parent


def test_versions_of_python_and_of_packages_agree_with_what_is_said():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = {line.rpartition(" ")[2] for line in project["classifiers"] if line.startswith("Programming Language")}
    assert named == {"3", "3.11", "3.12", "3.13"} and project["requires-python"] == ">=3.11"
    lowest = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "scripts/constraints-lowest.txt").read_text(), re.M))
    asked = dict(re.findall(r"^([\w.-]+)>=(\S+)$", "\n".join(project["dependencies"]), re.M))
    assert set(lowest) == set(asked)
    wrong = [name for name, bound in asked.items() if not f"{lowest[name]}.".startswith(f"{bound}.")]
    assert not wrong, "the lowest version tested is the lowest that is allowed"
    cited = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.M)
    assert cited and cited[1] == __version__


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """What an installation needs of this project, in a folder of its name."""
    folder = tmp_path_factory.mktemp("beside") / "neurotwin"
    for name in ("neurotwin", "training"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture
def environment(tmp_path):
    """An environment that has all packages of this one but the project: makes it, and gives its programs' folder."""

    def make(*install: str) -> Path:
        folder = tmp_path / "environment"
        venv.create(folder, with_pip=False, symlinks=True)
        (packages,) = folder.glob("lib/python*/site-packages")
        (packages / "others.pth").write_text("\n".join(site.getsitepackages()))  # their own .pth files are not read
        command = [sys.executable, "-m", "pip", "--python", str(folder / "bin/python"), "install", "-q", "--no-deps"]
        command += ["--no-build-isolation", "--ignore-installed", "--no-index", "--no-warn-script-location"]
        said = subprocess.run([*command, *install], capture_output=True, text=True, env=clean())
        assert said.returncode == 0, said.stderr
        return folder / "bin"

    return make


def clean() -> dict[str, str]:
    """The variables of this process without those that lead to the project as it is here."""
    dropped = ("PYTHONPATH", "NEUROTWIN_DATA", "NEUROTWIN_CACHE")
    return {name: value for name, value in os.environ.items() if name not in dropped}


def said(folder: Path, *command: str | Path, code: int = 0) -> str:
    done = subprocess.run(list(map(str, command)), cwd=folder, capture_output=True, text=True, env=clean())
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_wheel_trains_in_an_empty_folder(clone, environment, tmp_path):
    said(clone, sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, ".")
    (wheel,) = tmp_path.glob("neurotwin-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"neurotwin", f"neurotwin-{__version__}.dist-info"}
    programs = environment(str(wheel))
    mine = tmp_path / "mine"
    said(tmp_path, programs / "neurotwin", "new", mine)
    (mine / "training").mkdir()
    (mine / "training/__init__.py").write_text("raise RuntimeError('a package of the user was imported')")
    assert said(mine, programs / "python", "-m", "neurotwin", "--version") == f"neurotwin {__version__}\n"
    flags = ["--model_config", "model.yaml", "--dataset_configs_path", "datasets.yaml", "--max_epochs", "2"]
    flags += [
        "--steps_per_epoch",
        "2",
        "--limit_val_batches",
        "1",
        "--num_gpus",
        "2",
        "--accelerator",
        "cpu",
        "--max_datasets",
        "1",
    ]
    text = said(mine, programs / "neurotwin", "train", *flags, "--set", "convnet.params.channels=[2,4]")
    assert "next: neurotwin report checkpoints/model" in text
    assert (mine / "checkpoints/model/units.csv").exists()
    code = "from neurotwin.training import MultiDatasetDM; from neurotwin.training.samplers import ClipSampler"
    said(mine, programs / "python", "-c", f"{code}; print(MultiDatasetDM.__module__)")
    assert said(mine, programs / "neurotwin", "report", "checkpoints/model").splitlines()[-1].startswith("model ")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_script_beside_a_clone_of_the_same_name_imports_the_package(clone, environment, tmp_path):
    programs = environment("-e", str(clone))
    code = "import neurotwin, training; from neurotwin import Session; print(neurotwin.__file__, training.__file__)"
    (clone.parent / "script.py").write_text(code)
    expected = f"{clone}/neurotwin/__init__.py {clone}/training/__init__.py\n"
    assert said(clone.parent, programs / "python", "script.py") == expected
    assert said(clone.parent, programs / "python", "-c", code) == expected
    assert said(tmp_path, programs / "python", clone / "training/train_ddp_multidataset.py", "--help")
    assert said(tmp_path, programs / "neurotwin", "train", "--help")
