"""The recipe of a model file: flag, then model file, then default; what a run records; what is refused."""

import argparse
import json
import re
from pathlib import Path

import lightning.pytorch as pl
import pytest
import yaml

from neurotwin.checkpoint_file import read_checkpoint
from neurotwin.config import ConfigError, ModelConfig, TrainingConfig, load_model_config
from neurotwin.data.augmentation import Shift
from neurotwin.models import load_twin
from training import train_ddp_multidataset as script
from training.flags import FLAGS, parse_arguments, without_effect
from training.recipe import follow_recipe, with_recipe
from training.schedulers import SCHEDULES

from .test_cli import MODEL, arguments_of, lab  # noqa: F401

ROOT = Path(__file__).parents[2]
REQUIRED = ["--model_config", "m.yaml", "--dataset_configs_path", "d"]
FLAG = {flag.name: flag for flag in FLAGS}
KEYS = [name for name in TrainingConfig.model_fields if name != "augmentation"]
RECIPE = {"learning_rate": 0.02, "lr_scheduler": "anneal", "warmup_epochs": 1, "max_epochs": 3, "ema": 0.9}


def follow(*argv, **recipe):
    return follow_recipe(parse_arguments([*REQUIRED, *argv]), TrainingConfig(**recipe), "m.yaml")


def test_every_key_is_a_flag_whose_default_it_replaces():
    for name in KEYS:
        field = TrainingConfig.model_fields[name]
        assert field.default is None and FLAG[name].help == field.description


@pytest.mark.parametrize("name", KEYS)
@pytest.mark.parametrize("value", [-1, 0, 0.5, 1, 1.5, 2, 10**6, 10**6 + 1, 10**7 + 1, 1e9, 1e10, 1e31, "x", True])
def test_a_model_file_may_say_what_the_flag_takes_and_nothing_else(name, value):
    def flag_takes() -> bool:
        options = FLAG[name].options
        if choices := options.get("choices"):
            return value in choices
        try:
            return options["type"](str(value)) == value
        except (argparse.ArgumentTypeError, ValueError):
            return False

    def file_takes() -> bool:
        try:
            TrainingConfig.model_validate({name: value})
        except ValueError:
            return False
        return True

    if name == "lr_scheduler":  # which there are is known to the script alone
        return
    assert file_takes() == flag_takes()


def test_a_flag_wins_over_the_file_and_the_file_over_the_default():
    held = follow("--learning_rate", "0.5", "--max_epochs", "100", **RECIPE)
    assert (held.learning_rate, held.max_epochs) == (0.5, 100)  # a default that is given is given
    assert (held.lr_scheduler, held.warmup_epochs, held.ema) == ("anneal", 1, 0.9)
    assert held.weight_decay == FLAG["weight_decay"].default
    sources = held.sources()
    assert sources.keys() == FLAG.keys()
    assert sources["learning_rate"] == sources["max_epochs"] == "command line"
    assert sources["ema"] == "model file" and sources["weight_decay"] == "default"


@pytest.mark.parametrize(
    ("argv", "recipe", "message"),
    [
        ((), {"lr_scheduler": "aneal"}, "m.yaml: training.lr_scheduler: unknown lr schedule 'aneal'; did you mean"),
        (("--max_epochs", "1"), RECIPE, "--warmup_epochs 1: less than --max_epochs 1 .*lr_scheduler and warmup_epochs"),
        (
            ("--enable_curriculum",),
            {"warmup_epochs": 0},
            "which is 0 .warmup_epochs: from the training section of m.yaml",
        ),
        ((), {"accumulate_grad_batches": 9, "steps_per_epoch": 8}, "--steps_per_epoch 8 batches"),
        (("--max_epochs", "4", "--lr_scheduler", "cosine_warmup"), {}, "less than --max_epochs 4$"),
    ],
)
def test_what_cannot_be_together_is_refused_with_its_source(argv, recipe, message):
    with pytest.raises(ConfigError, match=message):
        follow(*argv, **recipe)


def test_what_contradicts_defaults_may_fit_the_file():
    assert follow("--warmup_epochs", "150", "--lr_scheduler", "cosine_warmup", max_epochs=200).warmup_epochs == 150


def test_a_key_without_effect_is_said_where_it_stands():
    held = follow("--lr_scheduler", "none", warmup_epochs=3, restart_period=2)
    lines = without_effect(held, "cpu")
    assert [line.split(" has no effect")[0] for line in lines] == [
        "m.yaml: training.warmup_epochs", "m.yaml: training.restart_period",
    ]  # fmt: skip


def test_unknown_keys_are_refused_with_the_line_and_the_nearest(tmp_path):
    path = tmp_path / "m.yaml"
    path.write_text("readout: gaussian\ntraining:\n  learnin_rate: 0.1\n")
    with pytest.raises(ConfigError, match=r"m.yaml:3: training.learnin_rate: .*did you mean 'learning_rate'"):
        load_model_config(path)


def test_what_held_is_a_file_that_repeats_it():
    held = follow("--learning_rate", "0.5", **RECIPE)
    config = with_recipe(ModelConfig(), held)
    section = yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json", by_alias=True)))["training"]
    assert section["learning_rate"] == 0.5 and section["ema"] == 0.9 and "restart_period" not in section
    again = follow(**section)
    assert vars(again) == vars(held)


def test_a_run_follows_its_model_file_records_it_and_goes_on_with_it(lab, tmp_path, capsys):  # noqa: F811
    model = tmp_path / "recipe.yaml"
    model.write_text(yaml.safe_dump(MODEL | {"training": RECIPE | {"batch_size": 32, "learning_rate": 0.03}}))
    flags = {"--model_config": str(model), "--max_epochs": "2", "--resume": "auto", "--learning_rate": "0.01"}
    assert script.main(arguments_of(lab, flags, tmp_path)) == 0
    folder = tmp_path / "recipe"
    record = json.loads((folder / "run.json").read_text())
    assert record["flags"]["ema"] == 0.9 and record["sources"]["ema"] == "model file"
    assert record["flags"]["learning_rate"] == 0.01 and record["sources"]["learning_rate"] == "command line"
    assert record["sources"]["weight_decay"] == "default" and record["global_batch_size"] == 32
    assert record["annealed"] == pytest.approx(3 / 4)
    assert yaml.safe_load((folder / "model.yaml").read_text())["training"]["learning_rate"] == 0.01
    last = read_checkpoint(folder / "checkpoints" / "last.ckpt")
    assert "training" not in json.loads(last["twin"])["config"] and len(last["averaged"])
    best = read_checkpoint(folder / "checkpoints" / "best.ckpt")
    kernel = load_twin(folder).frontend.weight
    assert (kernel == best["averaged"]["frontend.weight"]).all()
    assert not (kernel == best["state_dict"]["twin.frontend.weight"]).all()

    flags["--max_epochs"] = "3"
    for other, message in (
        ({"ema": 0.5}, "--ema was 0.9 and is 0.5"),
        ({"augmentation": ["shift"]}, r"training.augmentation was \[\] and is \[{'type': 'shift', 'pixels': 1}\]"),
    ):
        model.write_text(yaml.safe_dump(MODEL | {"training": RECIPE | {"batch_size": 32} | other}))
        assert script.main(arguments_of(lab, flags, tmp_path)) == 2
        assert re.search(f"{message}; a run goes on with what it began with", capsys.readouterr().err)
    model.write_text(yaml.safe_dump(MODEL | {"training": RECIPE | {"batch_size": 32}}))
    assert script.main(arguments_of(lab, flags, tmp_path)) == 0
    assert json.loads((folder / "run.json").read_text())["epochs"] == 3
    text = capsys.readouterr().err
    assert "has no effect in this model" not in text and not re.search("training.* is for the script", text)


def test_augmentations_of_a_model_file_reach_training(lab, tmp_path, monkeypatch):  # noqa: F811
    seen = []
    monkeypatch.setattr(script, "Augment", lambda parts, seed: seen.append((parts, seed)) or pl.Callback())
    model = tmp_path / "augmented.yaml"
    model.write_text(yaml.safe_dump(MODEL | {"training": {"augmentation": [{"type": "shift", "pixels": 2}]}}))
    argv = arguments_of(lab, {"--model_config": str(model), "--max_epochs": "1", "--seed": "3"}, tmp_path)
    assert script.main(argv) == 0
    assert seen == [([Shift(pixels=2)], 3)]
    record = json.loads((tmp_path / "augmented" / "run.json").read_text())
    assert record["augmentation"] == [{"type": "shift", "pixels": 2}]
    again = yaml.safe_load((tmp_path / "augmented" / "model.yaml").read_text())["training"]
    assert again["augmentation"] == record["augmentation"]


def test_from_python_a_recipe_is_not_followed_and_that_is_said(caplog):
    from neurotwin import SessionSpec
    from training import MultiDatasetModel

    caplog.set_level("INFO")
    spec = SessionSpec(name="a_1", subject="a", unit_ids=(3,), frame_shape=(1, 8, 8), bin_rate=60.0, n_lags=1)
    config = ModelConfig.model_validate({"training": {"learning_rate": 0.5}})
    assert MultiDatasetModel(config, [spec]).learning_rate == 1e-4
    assert "training is for the script; here the arguments hold" in caplog.text


SHIPPED = sorted([ROOT / "configs" / "model.yaml", *(ROOT / "experiments" / "model_configs").rglob("*.yaml")])


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipes_can_be_followed(path):
    config = load_model_config(path)
    held = follow_recipe(parse_arguments([*REQUIRED, "--enable_curriculum"]), config.training, path)
    assert held.lr_scheduler in SCHEDULES and without_effect(held, "cpu") == []
