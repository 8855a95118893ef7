"""`neurotwin train` is the training script, wherever it is installed."""

import sys
from importlib.machinery import ModuleSpec

import pytest

from neurotwin.cli import main
from neurotwin.commands import train
from training import train_ddp_multidataset as script


def test_the_words_go_to_the_script_as_they_are(monkeypatch):
    seen = []
    monkeypatch.setattr(script, "main", lambda words: seen.append(words) or 7)
    words = ["--model_config", "m.yaml", "--dataset_configs_path", "d", "--set", "a=[1,2]", "b=3", "--gpu_ids", "0"]
    assert main(["train", *words]) == 7
    assert seen == [words]


def test_a_wrong_flag_is_one_line(capsys):
    with pytest.raises(SystemExit) as end:
        main(["train", "--dataset_configs_path", "d", "--lerning_rate", "1"])
    assert end.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_another_package_of_that_name_is_never_taken(monkeypatch, tmp_path):
    (tmp_path / "training").mkdir()
    other = ModuleSpec("training", None, origin=str(tmp_path / "training/__init__.py"))
    monkeypatch.setattr(train, "find_spec", lambda name: other if name == "training" else None)
    with pytest.raises(train.TrainingError, match="another of that name comes before it"):
        train.training_module("flags")


def test_the_one_of_a_wheel_comes_first(monkeypatch, tmp_path):
    package = tmp_path / "neurotwin/training"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "flags.py").write_text("where = 'wheel'")
    monkeypatch.setattr(train, "_PACKAGE", tmp_path / "neurotwin")
    monkeypatch.setattr("neurotwin.__path__", [*sys.modules["neurotwin"].__path__, str(tmp_path / "neurotwin")])
    try:
        assert train.training_module("flags").where == "wheel"
    finally:
        for name in ("neurotwin.training.flags", "neurotwin.training"):
            sys.modules.pop(name, None)
        del sys.modules["neurotwin"].training
