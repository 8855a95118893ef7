"""A new project: its files load, fit together, and are those that the commands beside it expect."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from neurotwin.cli import main
from neurotwin.commands.new import ProjectError, make_project
from neurotwin.config import load_dataset_configs, load_model_config
from neurotwin.data.simulate import DEMO_SESSIONS, simulate_session
from neurotwin.models import check_run
from training.flags import parse_arguments

ROOT = Path(__file__).parents[3]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    make_project(tmp_path / "mine")
    return tmp_path / "mine"


def test_its_files_fit_together_and_name_demo_sessions(project):
    configs = load_dataset_configs(project / "datasets.yaml")
    assert [config.session for config in configs] == ["ada_demo1", "bea_demo1"]
    assert {config.session for config in configs} <= set(DEMO_SESSIONS)
    assert {Path(config.path).parent for config in configs} == {project / "data"}
    for config in configs:
        few = {"backimage": 5, "gaborium": 5, "fixrsvp": 2}
        simulate_session(config.session, n_units=2, n_trials=few).save(config.path)
    check_run(load_model_config(project / "model.yaml"), configs)


def test_its_model_and_preprocessing_are_the_recommended_ones(project):
    assert load_model_config(project / "model.yaml") == load_model_config(ROOT / "configs/model.yaml")
    known = yaml.safe_load((ROOT / "configs/datasets/ada_demo1.yaml").read_text())
    own = yaml.safe_load((project / "datasets.yaml").read_text())
    same = set(known) - {"session", "data_dir", "lab"}
    assert {key: own.get(key) for key in same} == {key: known[key] for key in same}


def test_its_script_gives_flags_that_there_are(project):
    script = (project / "train.sh").read_text().replace("\\\n", " ")
    (line,) = re.findall(r"^neurotwin train (.*) \"\$@\"$", script, re.MULTILINE)
    arguments = parse_arguments(shlex.split(line))
    assert (arguments.model_config, arguments.dataset_configs_path) == ("model.yaml", "datasets.yaml")
    (folder,) = re.findall(r"^neurotwin report (\S+)", script, re.MULTILINE)
    assert Path(folder) == Path(arguments.checkpoint_dir) / arguments.experiment_name


def test_a_folder_that_holds_something_is_left_alone(project, capsys):
    (project / "model.yaml").write_text("mine")
    with pytest.raises(ProjectError, match="holds something already"):
        make_project(project)
    assert main(["new", str(project / "model.yaml")]) == 2
    assert capsys.readouterr().err == f"neurotwin: {project}/model.yaml: holds something already; name a new folder\n"
    assert (project / "model.yaml").read_text() == "mine"
    (project.parent / "empty").mkdir()
    assert main(["new", str(project.parent / "empty")]) == 0
