"""Twins in files: what comes back is what was saved, and nothing else is taken for one."""

import json
import os

import pytest
import torch

from neurotwin.checkpoint_file import CheckpointError
from neurotwin.config import DatasetConfig
from neurotwin.data.spec import SessionSpec
from neurotwin.models import load_twin

GAZE = DatasetConfig(
    transforms={"gaze": {"source": "gaze", "ops": [{"mul": {"factor": 2.0}}], "expose_as": "behavior"}}
)


def test_a_saved_model_is_the_model(component, build, clips, tmp_path):
    twin = build(component).eval()
    loaded = load_twin(twin.save(tmp_path / "twin.safetensors"))
    assert loaded.sessions == twin.sessions
    assert loaded.config == twin.config
    batch = clips(twin)
    torch.testing.assert_close(loaded([batch]), twin([batch]), rtol=0, atol=0)
    assert not loaded.training
    weights = {f"twin.{key}": value for key, value in twin.state_dict().items()}
    torch.save({"twin": json.dumps(twin.describe()), "state_dict": weights, "epoch": 3}, tmp_path / "last.ckpt")
    torch.testing.assert_close(load_twin(tmp_path / "last.ckpt")([batch]), twin([batch]), rtol=0, atol=0)


def test_a_session_survives_json(spec):
    one = spec(config=GAZE, fitted={"gaze.0": 1.5}, unit_positions=((0.0, 1.0),) * 3)
    assert SessionSpec.from_json(json.loads(json.dumps(one.to_json()))) == one


class Hostile:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


def test_a_hostile_checkpoint_runs_nothing(tmp_path):
    target = tmp_path / "made_by_the_checkpoint"
    torch.save({"twin": Hostile(str(target)), "state_dict": {}}, tmp_path / "bad.ckpt")
    with pytest.raises(CheckpointError, match="more than numbers and text"):
        load_twin(tmp_path / "bad.ckpt")
    assert not target.exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.ckpt", None, "no such file"),
        ("noise.safetensors", b"noise" * 9, "not a safetensors file"),
        ("empty.ckpt", b"", "torn, or not a checkpoint"),
        ("noise.ckpt", b"noise" * 9, "not a checkpoint"),
    ],
)
def test_what_is_no_model_is_refused(name, content, message, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load_twin(tmp_path / name)


def test_a_checkpoint_of_other_things_is_refused(tmp_path, build):
    torch.save({"weights": torch.zeros(3)}, tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError, match="KeyError: 'twin'"):
        load_twin(tmp_path / "other.ckpt")
    twin = build({})
    torch.save({"twin": json.dumps(twin.describe()), "state_dict": {}}, tmp_path / "bare.ckpt")
    with pytest.raises(CheckpointError, match="Missing key"):
        load_twin(tmp_path / "bare.ckpt")
