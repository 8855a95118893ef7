"""Folders and records of runs, what may differ when a run goes on, and the size of a step."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from neurotwin.checkpoint_file import CheckpointError, write_checkpoint
from training.flags import FLAGS
from training.runs import (
    _FREE,
    StepSize,
    batch_of_run,
    check_same_run,
    closing_lines,
    describe_environment,
    find_resumption,
    first_difference,
    latest_run_folder,
    new_run_folder,
    read_record,
    run_name,
)

DESCRIPTION = {
    "config": {"readout": "gaussian"},
    "sessions": [{"name": "ada", "unit_ids": [1, 2], "config": {"path": "a.safetensors", "cids": [1, 2]}}],
}


def checkpoint(description=DESCRIPTION):
    return {"twin": json.dumps(description), "loops": {}, "state_dict": {}, "optimizer_states": []}


def record(batch=64, sessions=("key",), **flags):
    return {"global_batch_size": batch, "flags": flags, "sessions": dict.fromkeys(["ada"], sessions[0]), "wall_s": 0.0}


def test_folders_are_numbered_and_the_latest_is_found(tmp_path):
    assert latest_run_folder(tmp_path / "absent", "a") is None
    names = [new_run_folder(tmp_path, "a[1]").name for _ in range(11)]
    assert names[:3] == ["a[1]", "a[1]-2", "a[1]-3"] and names[-1] == "a[1]-11"
    (tmp_path / "a[1]-x").mkdir()
    new_run_folder(tmp_path, "a")
    assert latest_run_folder(tmp_path, "a[1]").name == "a[1]-11"
    assert latest_run_folder(tmp_path, "a").name == "a"


@pytest.mark.parametrize(
    ("given", "config", "pretrained", "name"),
    [
        ("mine", "configs/resnet.yaml", None, "mine"),
        (None, "configs/resnet.yaml", "old.ckpt", "resnet"),
        (None, None, "runs/core/checkpoints/best.ckpt", "core-tuned"),
        (None, None, "twins/core.safetensors", "core-tuned"),
    ],
)
def test_the_name_of_a_run(given, config, pretrained, name):
    assert run_name(given, config, pretrained) == name


def test_the_size_of_a_step_is_what_it_takes():
    step = StepSize.of(batch_size=100, clip_len=32, processes=2, batches=4)
    assert step.bins == 3 * 32 * 2 * 4
    assert step.text() == "3 clips x 32 bins x 2 processes x 4 batches = 768 predicted bins"
    least = StepSize.of(batch_size=8, clip_len=32, processes=1, batches=1)
    assert least.text() == "1 clip x 32 bins x 1 process x 1 batch = 32 predicted bins"


@pytest.mark.parametrize(
    ("there", "here", "difference"),
    [
        (record(), record(), None),
        (record(64), record(128), "global_batch_size was 64 and is 128"),
        (record(learning_rate=0.1), record(learning_rate=0.2), "--learning_rate was 0.1 and is 0.2"),
        (record(num_gpus=1, max_epochs=2), record(num_gpus=2, max_epochs=9), None),
        (record(), record(freeze_core=False), None),  # a record from before the flag
        (record(), record(freeze_core=True), "--freeze_core was False and is True"),
        (record(), record(sessions=("other",)), "recording of ada was 'key' and is 'other'"),
    ],
)
def test_what_a_run_may_go_on_with(there, here, difference):
    if difference is None:
        check_same_run("last.ckpt", checkpoint(), DESCRIPTION, there, here)
        return
    with pytest.raises(ValueError, match=f"last.ckpt: {difference}; a run goes on with what it began with"):
        check_same_run("last.ckpt", checkpoint(), DESCRIPTION, there, here)


def test_another_model_or_other_units_are_refused():
    other = json.loads(json.dumps(DESCRIPTION))
    other["sessions"][0]["config"]["path"] = "moved.safetensors"
    check_same_run("x", checkpoint(), other, record(), record())
    other["sessions"][0]["unit_ids"] = [1, 3]
    with pytest.raises(ValueError, match=r"sessions.ada.unit_ids was \[1, 2\] and is \[1, 3\]"):
        check_same_run("x", checkpoint(), other, record(), record())
    for key in checkpoint():
        bare = {name: value for name, value in checkpoint().items() if name != key}
        with pytest.raises(ValueError, match=f"not a checkpoint of a training run, it has no {key}"):
            check_same_run("x", bare, DESCRIPTION, record(), record())


def test_the_first_difference_is_named():
    assert first_difference({"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"c": 2}}) is None
    assert first_difference({"a": {"b": 1}}, {"a": {}}) == "a.b was 1 and is None"


def test_flags_that_may_differ_exist():
    assert {flag.name for flag in FLAGS} >= _FREE


@pytest.mark.parametrize("text", ["{", "[]", "{}", "\0", None])
def test_a_record_that_cannot_be_read_is_one_line(tmp_path, text):
    if text is not None:
        (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match=r"run.json: .*; it is needed to go on") as error:
        read_record(tmp_path)
    assert "\n" not in str(error.value)


def test_a_record_is_read(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps(record(7)))
    assert read_record(tmp_path)["global_batch_size"] == 7


def test_a_run_goes_on_from_its_last_whole_checkpoint(tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    for name in ("best.ckpt", "last.ckpt", "last.previous.ckpt"):
        write_checkpoint(folder / name, {"name": name})
    for path in (tmp_path / "run", folder):
        assert find_resumption(path) == folder / "last.ckpt"
    assert find_resumption(folder / "best.ckpt") == folder / "best.ckpt"
    content = (folder / "last.ckpt").read_bytes()
    (folder / "last.ckpt").write_bytes(content[:-70] + b"\1" + content[-69:])
    assert find_resumption(tmp_path / "run") == folder / "last.previous.ckpt"
    (folder / "last.previous.ckpt").unlink()
    with pytest.raises(CheckpointError, match=r"last.ckpt: torn"):
        find_resumption(tmp_path / "run")
    (folder / "last.ckpt").unlink()
    assert find_resumption(tmp_path / "run") == folder / "best.ckpt"
    with pytest.raises(CheckpointError, match="no such file"):
        find_resumption(tmp_path / "gone")


@pytest.mark.parametrize("value", [0.0, -0.1, float("nan")])
def test_a_run_that_learned_nothing_says_so(value):
    hint, following = closing_lines(Path("runs/a"), "correlation", value, "d.yaml")
    assert "learned nothing" in hint and "neurotwin audit d.yaml" in hint and "(r " in hint
    assert following.startswith("next: neurotwin report runs/a ")
    assert closing_lines(Path("runs/a"), "bps", 1e-3, "d.yaml") == [following]


def resumed(tmp_path, now, *, batch_size=64, saved=True, **step):
    """Bins that a process takes where a run of 2 processes with 8 clips of 8 bins each is resumed on some."""
    folder = tmp_path / "run"
    step = {"clips": 8, "clip_len": 8, "processes": 2, "batches": 1} | step
    old = record(batch=128, batch_size=64) | {"step": step}
    write_checkpoint(folder / "checkpoints/last.ckpt", {"x": 1})
    if not saved:
        (folder / "checkpoints/last.ckpt").unlink()
    (folder / "run.json").write_text(json.dumps(old))
    arguments = SimpleNamespace(checkpoint_dir=str(tmp_path), resume="auto", batch_size=batch_size)
    return batch_of_run(arguments, "run", now)


@pytest.mark.parametrize("processes", [1, 2, 4, 8, 16])
def test_a_run_that_goes_on_on_other_processes_keeps_its_batch(tmp_path, processes):
    bins = resumed(tmp_path, processes)
    assert StepSize.of(bins, 8, processes, 1).bins == 128


def test_a_run_that_went_on_once_keeps_its_batch_again(tmp_path):
    assert resumed(tmp_path, 1, clips=4, processes=4) == 128  # the flags are still those of the first start
    assert resumed(tmp_path, 4, clips=16, processes=1) == 32


def test_where_nothing_is_resumed_or_another_batch_is_asked_for_the_flag_holds(tmp_path):
    assert resumed(tmp_path, 1, saved=False) == 64
    assert resumed(tmp_path, 1, batch_size=32) == 32  # refused afterwards, as any other global batch


def test_processes_that_cannot_share_the_batch_are_refused_with_those_that_can(tmp_path):
    with pytest.raises(ValueError, match=r"takes 16 clips, which 3 .* go on with 1, 2, 4, 8 or 16 processes"):
        resumed(tmp_path, 3)


def test_the_environment_is_described():
    found = describe_environment()
    assert set(found) == {"python", "platform", "packages", "command", "threads", "git"}
    assert Path(found["command"][0]).name
