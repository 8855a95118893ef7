"""Twins in files: what comes back is what was saved, and nothing else is taken for one."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from neurotwin.checkpoint_file import CheckpointError, write_checkpoint
from neurotwin.config import DatasetConfig
from neurotwin.data.pictures import ShownPictures
from neurotwin.data.spec import SessionSpec
from neurotwin.models import Ensemble, load_twin
from neurotwin.models.twin import checkpoint_entries

FORMATS = Path(__file__).parents[2] / "data/formats"

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


def assert_same_pictures(found, known):
    assert list(found) == list(known)
    for name, one in known.items():
        np.testing.assert_array_equal(found[name].hashes, one.hashes)
        np.testing.assert_array_equal(found[name].still, one.still)
        assert found[name].total == one.total and found[name].hashes.dtype == np.float16


def test_hashes_of_pictures_stay_with_a_core_wherever_it_goes(build, spec, tmp_path):
    rng = np.random.default_rng(0)
    known = {
        name: ShownPictures(hashes=rng.normal(size=(n, 32)).astype(np.float16), still=rng.random(n) < 0.5, total=n + 3)
        for name, n in (("gone.1", 5), (build({}).sessions[0].name, 1000))
    }
    twin = build({})
    bare, weights = os.path.getsize(twin.save(tmp_path / "bare.safetensors")), dict(twin.state_dict())
    twin.pictures = known
    assert twin.state_dict().keys() == weights.keys() and not any("picture" in name for name, _ in twin.named_buffers())
    saved = twin.save(tmp_path / "twin.safetensors")
    added = twin.add_session(spec(name="new_1"))
    both = Ensemble([twin, build({})])
    for one in (load_twin(saved), added, added.without([twin.sessions[0].name]), both, both.alone[0]):
        assert_same_pictures(one.pictures, known)
    loaded = load_twin(both.save(tmp_path / "both.safetensors"))
    for one in (loaded, *loaded.networks, loaded.add_session(spec(name="new_1"))):
        assert_same_pictures(one.pictures, known)
    entries = {"state_dict": {f"twin.{key}": value for key, value in weights.items()}}
    write_checkpoint(tmp_path / "with.ckpt", entries | checkpoint_entries(twin))
    assert_same_pictures(load_twin(tmp_path / "with.ckpt").pictures, known)
    twin.pictures = {}
    write_checkpoint(tmp_path / "without.ckpt", entries | checkpoint_entries(twin))
    del known["gone.1"]
    twin.pictures = known
    write_checkpoint(tmp_path / "with.ckpt", entries | checkpoint_entries(twin))
    sizes = [(tmp_path / f"{name}.ckpt").stat().st_size for name in ("with", "without")]
    assert 0 < sizes[0] - sizes[1] <= 64 * 1024
    assert 0 < twin.save(saved).stat().st_size - bare <= 64 * 1024


@pytest.mark.parametrize(
    ("file", "number"),
    [
        ("twin-3.safetensors", 0), ("twin-4.safetensors", 2), ("ensemble-1.safetensors", 0),
        ("ensemble-2.safetensors", 2), ("checkpoint-3.ckpt", 0), ("checkpoint-4.ckpt", 2),
    ],
)  # fmt: skip
def test_hashes_in_files_of_every_format(file, number, tmp_path):
    twin = load_twin(FORMATS / file)
    assert [len(one) for one in twin.pictures.values()] == [3, 1][:number]
    again = load_twin(twin.save(tmp_path / "again.safetensors"))
    assert_same_pictures(again.pictures, twin.pictures)


def test_hashes_that_are_not_of_their_sessions_are_refused(build, tmp_path):
    twin = build({})
    entries = checkpoint_entries(twin)
    entries["pictures"]["counts"] = [["ada", 7, 7]]
    write_checkpoint(
        tmp_path / "bad.ckpt", entries | {"state_dict": {f"twin.{k}": v for k, v in twin.state_dict().items()}}
    )
    with pytest.raises(CheckpointError, match="hashes of pictures"):
        load_twin(tmp_path / "bad.ckpt")
