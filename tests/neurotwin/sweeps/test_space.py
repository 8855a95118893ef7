"""The file of a sweep: what it may say, and what a trial's values make of a model file and flags."""

from pathlib import Path

import pytest
import yaml

from neurotwin.config import ConfigError, load_model_config
from neurotwin.sweeps.space import SweepError, flags_of, load_sweep, model_of, write_model

MODEL = {
    "frontend": {"type": "learnable_temporal", "params": {"kernel_size": 3, "num_channels": 2}},
    "convnet": {"type": "vanilla", "params": {"channels": [3], "block_configs": [{"conv_params": {"kernel_size": 3}}]}},
}
SWEEP = {
    "study": "one", "model": "models/m.yaml", "datasets": "sessions", "trials": 3,
    "flags": {"max_epochs": 2, "enable_curriculum": True, "compile": False, "gpu_ids": [0, 1]},
    "search": {
        "flags.learning_rate": {"low": 1e-4, "high": 1e-1, "log": True},
        "model.convnet.params.channels.0": {"choices": [2, 8]},
        "model.readout": {"choices": ["gaussian", {"type": "linear", "params": {"bias": False}}]},
    },
}  # fmt: skip


@pytest.fixture
def write(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "m.yaml").write_text(yaml.safe_dump(MODEL))

    def make(**changes) -> Path:
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump(SWEEP | changes, sort_keys=False))
        return path

    return make


def test_values_go_where_their_keys_say(write, tmp_path):
    config = load_sweep(write())
    assert config.model == str(tmp_path / "models" / "m.yaml") and config.folder == Path("runs/sweeps/one")
    values = {"flags.learning_rate": 0.01, "model.convnet.params.channels.0": 8, "model.readout": {"type": "linear"}}
    made = model_of(config, values)
    assert made["convnet"]["params"]["channels"] == [8] and made["readout"] == {"type": "linear"}
    assert made["frontend"] == MODEL["frontend"]
    write_model(config, values | {"model.likelihood.type": "negative_binomial"}, tmp_path / "out" / "t.yaml")
    model = load_model_config(tmp_path / "out" / "t.yaml")
    assert model.likelihood.type == "negative_binomial" and model.convnet.params.channels == (8,)
    assert flags_of(config, values) == [
        "--max_epochs", "2", "--enable_curriculum", "--gpu_ids", "0,1", "--learning_rate", "0.01",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"trial": 3}, "did you mean"),
        ({"search": {}}, "search"),
        ({"search": {"learning_rate": {"low": 0, "high": 1}}}, "begin with model. or flags."),
        ({"search": {"flags.x": {"low": 2, "high": 1}}}, "low must be below high"),
        ({"search": {"flags.x": {"low": 0, "high": 1, "log": True}}}, "above 0 where log"),
        ({"search": {"flags.x": {"low": 1}}}, "give low and high, or choices"),
        ({"search": {"flags.x": {"low": 1, "high": 2, "choices": [1]}}}, "give low and high, or choices"),
        ({"search": {"flags.resume": {"choices": ["auto"]}}}, "flags.resume is set by the sweep"),
        ({"pruner": "random"}, "pruner"),
        ({"study": "a/b"}, "study"),
    ],
)
def test_what_a_sweep_cannot_say_is_one_line_with_its_place(write, changes, text):
    path = write(**changes)
    with pytest.raises(ConfigError, match=text) as caught:
        load_sweep(path)
    assert str(caught.value).startswith(f"{path}:") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("model.convnet.params.channels.3", "the list of the model file has 1 entries, and no 3"),
        ("model.convnet.params.channels.first", "and no first"),
        ("model.convnet.type.x", "convnet.type is 'vanilla', not a mapping"),
    ],
)
def test_a_key_that_leads_nowhere_is_refused(write, key, text):
    with pytest.raises(SweepError, match=text):
        model_of(load_sweep(write()), {key: 1})


def test_an_unknown_key_of_the_model_is_refused_when_it_is_written(write, tmp_path):
    with pytest.raises(ConfigError, match="did you mean"):
        write_model(load_sweep(write()), {"model.convnett.type": "none"}, tmp_path / "t.yaml")
