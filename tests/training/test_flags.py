"""The table of flags: every flag has an effect or a line says that it has none; any number is taken or refused."""

import argparse
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training import flags
from training.flags import FLAGS, parse_arguments, without_effect
from training.schedulers import SCHEDULES

REQUIRED = ["--model_config", "m.yaml", "--dataset_configs_path", "d"]
# Flags without effect beside the required ones alone: a value, and flags that give it an effect.
CONDITIONAL = {
    "core_lr_scale": ("2", ()),
    "optimizer": ("muon", ()),
    "warmup_epochs": ("3", ("--lr_scheduler", "cosine_warmup")),
    "restart_period": ("2", ("--lr_scheduler", "cosine_warmup_restart")),
    "early_stopping_min_delta": ("0.1", ("--early_stopping_patience", "3")),
    "teacher_weight": ("0.3", ("--teacher", "t.ckpt")),
    "teacher_types": ("noise,movie", ("--teacher", "t.ckpt")),
    "freeze_vision": (None, ("--pretrained_checkpoint", "t.ckpt")),
    "project_name": ("lab", ("--logger", "csv,wandb")),
    "fast_log_interval": ("2", ("--enable_logging",)),
    "slow_log_interval": ("2", ("--enable_logging",)),
    "log_dataset_idx": ("1", ("--enable_logging",)),
}
FROZEN = ("--freeze_core", "--pretrained_checkpoint", "t.ckpt")
NUMBERS = [flag.name for flag in FLAGS if getattr(flag.options.get("type"), "__name__", "").endswith("number")]


@pytest.fixture(autouse=True)
def wandb(monkeypatch):
    monkeypatch.setattr(flags, "find_spec", lambda name: True)


def lines(*argv):
    return without_effect(parse_arguments([*REQUIRED, *argv]), "cpu")


@pytest.mark.parametrize("flag", FLAGS, ids=lambda flag: flag.name)
def test_a_flag_is_read_or_a_line_says_that_it_has_no_effect(flag):
    assert (flag.matters is not None) == (flag.name in CONDITIONAL) == bool(flag.needs)
    if flag.name not in CONDITIONAL:
        return
    value, effective = CONDITIONAL[flag.name]
    own = [f"--{flag.name}", *([value] if value else [])]
    idle = FROZEN if flag.name in ("core_lr_scale", "optimizer", "freeze_vision") else ()
    (line,) = lines(*own, *idle)
    assert line == f"--{flag.name} has no effect: it needs {flag.needs}"
    assert lines(*own, *effective) == []
    assert lines(*effective) == []


def test_a_default_that_is_given_is_noticed_too():
    assert lines("--warmup_epochs", "5") != [] == lines()
    assert lines("--warmup_epochs=5") != []


def test_what_is_given_is_no_part_of_the_values():
    arguments = parse_arguments([*REQUIRED, "--seed", "3"])
    assert arguments.given == {"model_config", "dataset_configs_path", "seed"}
    assert set(vars(arguments)) == {flag.name for flag in FLAGS}


def refusal(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_arguments(argv)
    text = capsys.readouterr().err
    assert stop.value.code == 2 and re.fullmatch(r"error: [^\n]+; see --help\n", text)
    return text


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e400", "-1", "9" * 5000, "9" * 400, "", "1,5", "0x10", "\n"])
@pytest.mark.parametrize("name", NUMBERS)
def test_no_number_flag_takes_what_is_no_number_of_its_kind(name, value, capsys):
    assert f"--{name}" in refusal([*REQUIRED, f"--{name}={value}"], capsys)


@given(st.sampled_from(NUMBERS), st.one_of(st.integers(), st.floats()))
def test_a_number_is_kept_as_it_is_or_refused_in_one_line(name, value):
    flag = next(flag for flag in FLAGS if flag.name == name)
    try:
        found = flag.options["type"](repr(value))
    except argparse.ArgumentTypeError as error:
        assert "\n" not in str(error)
    except ValueError:
        assert isinstance(value, float)  # argparse says "invalid whole number value"
    else:
        assert found == value and math.isfinite(found) and found >= 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--limit_val_batches", "1.5"], "whole number of trials"),
        (["--gpu_ids", "0,0"], "names a GPU twice"),
        (["--gpu_ids=-1"], "must be at least 0"),
        (["--gpu_ids", "one"], "--gpu_ids"),
        (["--logger", ""], "--logger"),
        (["--experiment_name", "../x"], "not a path"),
        (["--experiment_name", ""], "not a path"),
        (["--freeze_core"], "--freeze_core would freeze random weights"),
        (["--enable_curriculum", "--warmup_epochs", "0"], "annealed over --warmup_epochs, which is 0"),
        (["--accumulate_grad_batches", "9", "--steps_per_epoch", "8"], "--steps_per_epoch 8 batches"),
        (["--lr_scheduler", "cosin"], "--lr_scheduler"),
        (["--bad\nflag"], "--bad flag"),
    ],
)
def test_what_cannot_be_is_one_line(argv, message, capsys):
    assert message in refusal([*REQUIRED, *argv], capsys)


def test_a_model_comes_from_a_config_or_a_checkpoint(capsys):
    data = ["--dataset_configs_path", "d"]
    assert "--model_config" in refusal(data, capsys)
    assert parse_arguments([*data, "--pretrained_checkpoint", "t.ckpt"]).model_config is None


def test_sensible_values_are_taken():
    assert parse_arguments([*REQUIRED, "--warmup_epochs", "0", "--lr_scheduler", "cosine_warmup"]).warmup_epochs == 0
    assert parse_arguments([*REQUIRED, "--limit_val_batches", "12"]).limit_val_batches == 12
    assert parse_arguments([*REQUIRED, "--logger", "csv,csv"]).logger == ["csv"]


def test_the_help_shows_each_flag_its_default_and_one_meaning_of_a_word(capsys):
    with pytest.raises(SystemExit):
        parse_arguments(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for flag in FLAGS:
        assert f"--{flag.name}" in text and flag.help in text
        if flag.default not in (None, False) and not isinstance(flag.default, list):
            assert f"(default: {flag.default})" in text
    limit = next(flag.help for flag in FLAGS if flag.name == "limit_val_batches")
    assert "limits the validation trials" in limit
    assert not re.search(r"\bframes?\b|micro-batch", text)


def test_schedules_are_those_of_the_registry():
    options = next(flag.options for flag in FLAGS if flag.name == "lr_scheduler")
    assert options["choices"] == SCHEDULES
