"""--set KEY=VALUE: which file a key belongs to, what is changed, and that nothing is set which a file may not say."""

import pytest
import yaml

from neurotwin.config import ConfigError, changed, load_dataset_configs, load_model_config, parse_changes

MODEL = """
convnet:
  type: vanilla
  params:
    channels: [4, 8]
    block_configs: [{conv_params: {kernel_size: [1, 3, 3]}}, {conv_params: {kernel_size: [1, 5, 5]}}]
readout: gaussian
regularization: [{name: small, type: l2, lambda: 0.1, apply_to: readouts}]
"""


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.yaml"
    path.write_text(MODEL)
    return path


@pytest.fixture
def parent(tmp_path, factory):
    for name in ("ada", "bea"):
        factory.write_session(tmp_path / "data", name)
        (tmp_path / f"{name}.yaml").write_text("seed: 3\n" if name == "bea" else "subject: lady\n")
    path = tmp_path / "parent.yaml"
    path.write_text(yaml.safe_dump({"session_dir": ".", "sessions": ["ada", "bea"], "data_dir": "data", "seed": 1}))
    return path


@pytest.mark.parametrize(
    ("text", "file", "key", "value"),
    [
        ("convnet.params.channels=[32,64]", "model", ("convnet", "params", "channels"), [32, 64]),
        ("model.readout.type=linear", "model", ("readout", "type"), "linear"),
        ("dataset.readout.type=linear", "dataset", ("readout", "type"), "linear"),
        ("keys_lags.stim=[0..7]", "dataset", ("keys_lags", "stim"), ["0..7"]),
        ("regularization.0.lambda=1e-3", "model", ("regularization", 0, "lambda"), "1e-3"),
        ("baseline.enabled=true", "model", ("baseline", "enabled"), True),
        ("types=", "dataset", ("types",), None),
    ],
)
def test_a_key_says_which_file_is_meant(text, file, key, value):
    (change,) = parse_changes([text])
    assert (change.file, change.key, change.value) == (file, key, value)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["readout.type=linear"], "both files can have readout; write model.readout.type or dataset.readout.type"),
        (["convent.type=none"], "neither file has a key 'convent'; did you mean 'convnet'"),
        (["convnet"], "give KEY=VALUE"),
        (["=3"], "give KEY=VALUE"),
        (["convnet..type=none"], "give KEY=VALUE"),
        (["types=[a"], "its value is not YAML"),
        (["seed=1", "dataset.seed=2"], "--set dataset.seed is given twice"),
    ],
)
def test_what_cannot_be_meant_is_one_line(texts, message):
    with pytest.raises(ConfigError, match=message) as error:
        parse_changes(texts)
    assert "\n" not in str(error.value)


def test_values_of_the_model_are_set_at_any_depth(model):
    texts = ["convnet.params.channels=[2,3]", "convnet.params.block_configs.1.conv_params.kernel_size=[1,7,7]"]
    config = load_model_config(model, changes=parse_changes([*texts, "baseline.enabled=true", "seed=4"]))
    by_hand = yaml.safe_load(MODEL)
    by_hand["convnet"]["params"]["channels"] = [2, 3]
    by_hand["convnet"]["params"]["block_configs"][1]["conv_params"]["kernel_size"] = [1, 7, 7]
    model.write_text(yaml.safe_dump(by_hand | {"baseline": {"enabled": True}}))
    assert config == load_model_config(model)
    assert config != load_model_config(model, changes=parse_changes(["baseline.enabled=false"]))


def test_values_of_every_session_are_set_above_its_own(parent):
    plain = load_dataset_configs(parent)
    assert [config.seed for config in plain] == [1, 3]
    texts = ["dataset.seed=7", "keys_lags.stim=[0..4]", "convnet=none"]
    configs = load_dataset_configs(parent, changes=parse_changes(texts))
    assert [config.seed for config in configs] == [7, 7]
    assert [config.keys_lags.stim for config in configs] == [(0, 1, 2, 3, 4)] * 2
    assert [config.subject for config in configs] == [config.subject for config in plain]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("convnet.params.chanels=[8]", r"^--set model.convnet.params.chanels: convnet.params.chanels: unknown key"),
        ("convnet.prams.channels=[8]", r"^--set model.convnet.prams.channels: convnet.prams: unknown key 'prams'"),
        ("convnet.params.channels=many", r"^--set model.convnet.params.channels: convnet.params.channels"),
        (
            "convnet.params.block_configs.2.conv_params=1",
            r"convnet.params.block_configs in .*model.yaml is a list of 2",
        ),
        ("convnet.params.block_configs.first=1", "is a list of 2; give the number of an entry, from 0"),
        ("model.readout.params.bias=true", "readout in .*model.yaml is 'gaussian', which has no keys; set the whole"),
    ],
)
def test_what_a_file_may_not_say_cannot_be_set(model, text, message):
    with pytest.raises(ConfigError, match=message) as error:
        load_model_config(model, changes=parse_changes([text]))
    assert "\n" not in str(error.value)


def test_mistakes_of_the_file_are_still_those_of_the_file(model):
    model.write_text(MODEL.replace("readout: gaussian", "readout: gausian"))
    with pytest.raises(ConfigError, match=r"model.yaml:7: readout"):
        load_model_config(model, changes=parse_changes(["convnet.params.channels=[2,3]"]))


def test_what_was_read_is_left_as_it_is():
    content, changes = {"a": {"b": [1, 2]}}, parse_changes(["model.a.b.0=5", "model.c.d=1"])
    assert changed(content, changes) == {"a": {"b": [5, 2]}, "c": {"d": 1}}
    assert content == {"a": {"b": [1, 2]}}
