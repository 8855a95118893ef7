"""What cannot be is refused at load, by both commands, with one line and before any data are prepared."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from neurotwin import cli
from neurotwin.config import DatasetConfig, ModelConfig, load_dataset_configs
from neurotwin.data.prepare import outline, prepare
from neurotwin.models import check_run
from training import train_ddp_multidataset as script

pytestmark = pytest.mark.usefixtures("handlers")

make_session = runpy.run_path(str(Path(__file__).parent / "factories/sessions.py"))["make_session"]

STIM = {"source": "stim", "ops": [{"pixelnorm": {}}]}
PUPIL = {"source": "pupil", "ops": [{"maxnorm": {}}], "expose_as": "behavior"}
GAZE = {"source": "eyepos", "ops": [{"mul": {"factor": 0.5}}, "splitrelu"], "expose_as": "behavior"}


def conv(**conv_params) -> dict:
    return {"type": "vanilla", "params": {"channels": [4], "block_configs": [{"conv_params": conv_params}]}}


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A session in a folder, and what writes the two YAMLs."""
    monkeypatch.delenv("NEUROTWIN_CACHE", raising=False)
    rng = np.random.default_rng(0)
    sizes = {"n_bins": 400, "n_units": 3, "frame": (12, 12), "trial_bins": 20}
    behavior = {"pupil": rng.random(400) + 1, "eyepos": rng.normal(size=(400, 2))}
    ada = make_session("ada_1", **sizes, behavior=behavior, unit_positions=rng.random((3, 2)))
    ada.save(tmp_path / "data" / "ada_1.safetensors")
    make_session("bea_1", n_bins=40, n_units=0, frame=(12, 12)).save(tmp_path / "data" / "bea_1.safetensors")

    def write(model: dict, dataset: dict, session: str = "ada_1") -> list[str]:
        (tmp_path / "model.yaml").write_text(yaml.safe_dump(model))
        base = {"data_dir": "data", "session": session, "keys_lags": {"stim": "0..5"}, "transforms": {"stim": STIM}}
        (tmp_path / "dataset.yaml").write_text(yaml.safe_dump(base | dataset))
        return ["--model_config", f"{tmp_path}/model.yaml", "--dataset_configs_path", f"{tmp_path}/dataset.yaml"]

    return write


CASES = {
    "a modulator without behaviour": ({"modulator": {"type": "film"}}, {}, "film needs behaviour, and there is none"),
    "a shifter without behaviour": ({"shifter": {"type": "mlp"}}, {}, "shifter mlp needs behaviour, and there is none"),
    "a shifter of what is not there": (
        {"shifter": {"type": "mlp", "params": {"source": "gaez"}}},
        {"transforms": {"stim": STIM, "gaze": GAZE}},
        "did you mean 'gaze'",
    ),
    "a session without units": ({}, {"session": "bea_1"}, "session 'bea_1': no unit to predict"),
    "a unit that is not there": ({}, {"cids": [0, 7]}, "cids [7] are not among its 3 units"),
    "a label of units that is not there": (
        {},
        {"units": {"area": "V1"}},
        "its units have no label 'area'",
    ),
    "a basis that sees the future of the stimulus": (
        {},
        {"transforms": {"stim": STIM | {"ops": [{"temporal_basis": {"causal": False}}]}}},
        "causal: false lets a prediction see the future",
    ),
    "a core that sees more than the lags": (
        {"frontend": {"type": "learnable_temporal", "params": {"kernel_size": 9}}},
        {},
        "sees 9 frames, and keys_lags gives it 6",
    ),
    "a stride that leaves no pixels": (
        {"convnet": conv(kernel_size=[1, 13, 13], stride=[1, 2, 2])},
        {},
        "leaves no pixels",
    ),
    "two outputs under one name": (
        {},
        {"transforms": {"stim": STIM, "pupil": PUPIL, "gaze": GAZE}},
        "set concatenate: true in each",
    ),
    "a signal that is not there": ({}, {"transforms": {"p": PUPIL | {"source": "pupill"}}}, "did you mean 'pupil'"),
    "a type that is not there": ({}, {"types": ["movei"]}, "did you mean 'movie'"),
    "a rate that the recording does not have": (
        {},
        {"sampling": {"source_rate": 240, "target_rate": 60}},
        "the recording has 60 Hz",
    ),
    "a folder without a recording": ({}, {"session": "eve_1", "path": "."}, "data: not a recording of a known layout"),
    "no recording": ({}, {"session": "eve_1"}, "eve_1.safetensors: no such session file"),
}


@pytest.mark.parametrize("command", ["inspect", "train"])
def test_refused_with_one_line_before_anything_is_prepared(command, lab, tmp_path, capsys):
    wrong = {}
    for case, (model, dataset, message) in CASES.items():
        arguments = lab(model, dataset)
        if command == "inspect":
            code = cli.main(["inspect", *arguments])
        else:
            code = script.main([*arguments, "--checkpoint_dir", f"{tmp_path}/runs", "--accelerator", "cpu"])
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("neurotwin:", "error:"))]
        if code != 2 or len(said) != 1 or message not in said[0]:
            wrong[case] = (code, said)
        assert not (tmp_path / "data" / "prepared").exists() and not (tmp_path / "runs").exists(), case
    assert not wrong


@pytest.mark.parametrize(
    "dataset",
    [
        {},
        {"transforms": {}},
        {"cids": [2, 0], "subject": "bob"},
        {
            "keys_lags": {"stim": "0..3", "behavior": [0, 2], "history": [1, 2]},
            "transforms": {
                "stim": STIM,
                "gaze": GAZE | {"concatenate": True},
                "pupil": PUPIL | {"concatenate": True},
            },
        },
        {
            "sampling": {"source_rate": 60, "target_rate": 30},
            "transforms": {
                "stim": STIM | {"ops": ["pixelnorm", {"unsqueeze": {"dim": 1}}, {"splitrelu": {"split_dim": 1}}]}
            },
        },
        {
            "transforms": {
                "a": STIM | {"expose_as": "stim", "concatenate": True},
                "b": {"source": "stim", "ops": ["diff"], "expose_as": "stim", "concatenate": True},
            }
        },
    ],
)  # fmt: skip
def test_the_outline_of_a_session_is_what_its_preparation_gives(dataset, lab, tmp_path):
    lab({}, dataset)
    configs = load_dataset_configs(tmp_path / "dataset.yaml")
    (outlined,) = outline(configs)
    assert not (tmp_path / "data" / "prepared").exists()
    (prepared,) = prepare(configs)
    told, true = outlined.to_json(), prepared.spec.to_json()
    assert len(true["behavior_names"]) == true["behavior_dim"]
    of_bins = {key: true[key] for key in ("fitted", "stimulus_range", "response_range")}
    assert told | of_bins == true


def test_checking_a_run_leaves_global_random_numbers_alone(lab, tmp_path):
    lab({}, {})
    before = torch.get_rng_state()
    check_run(ModelConfig(), load_dataset_configs(tmp_path / "dataset.yaml"))
    assert torch.equal(before, torch.get_rng_state())


def test_lags_that_differ_between_sessions_are_refused(lab, tmp_path):
    path = str(tmp_path / "data" / "ada_1.safetensors")
    configs = [
        DatasetConfig(session=name, path=path, keys_lags={"stim": lags})
        for name, lags in (("a", "0..3"), ("b", "0..4"))
    ]
    with pytest.raises(ValueError, match="'a' and 'b' differ in keys_lags"):
        check_run(ModelConfig(), configs)
