"""The dialect: what loads, what is refused, and that a refusal names file, line, key and cure."""

import copy
from pathlib import Path

import pytest
import yaml

from neurotwin.config import (
    ConfigError,
    DatasetConfig,
    ModelConfig,
    load_dataset_configs,
    load_model_config,
    nearest,
)

ROOT = Path(__file__).parents[2]
MODELS = sorted([ROOT / "configs" / "model.yaml", *(ROOT / "experiments" / "model_configs").rglob("*.yaml")])
DATASETS = sorted(
    [*(ROOT / "configs" / "datasets").glob("*.yaml"), *(ROOT / "experiments/dataset_configs").rglob("*.yaml")]
)


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_every_shipped_model_config_loads_and_round_trips(path):
    config = load_model_config(path)
    assert ModelConfig.model_validate_json(config.model_dump_json(by_alias=True)) == config


@pytest.mark.parametrize("path", DATASETS, ids=lambda path: path.stem)
def test_every_shipped_dataset_config_loads_and_round_trips(path):
    for config in load_dataset_configs(path):
        assert DatasetConfig.model_validate_json(config.model_dump_json(by_alias=True)) == config


def keys_of(value, path=()):
    """The paths of all keys of nested mappings and lists."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (*path, key)
            yield from keys_of(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from keys_of(inner, (*path, index))


def load_any(path):
    return load_model_config(path) if path.name.startswith("model") else load_dataset_configs(path)


def shipped():
    """Every shipped file with the paths of its keys whose spelling matters, and those whose value does."""
    for path in (*MODELS, *DATASETS):
        data = yaml.safe_load(path.read_text())
        for where in keys_of(data):
            yield pytest.param(path, where, id=f"{path.stem}-{'.'.join(map(str, where))}")


def write(data, original, folder):
    kind = "model" if original in MODELS else "dataset"
    copied = folder / f"{kind}.yaml"
    copied.write_text(yaml.safe_dump(data))
    if "sessions" in data and (original.parent / str(data.get("session_dir"))).is_dir():
        (folder / "sessions").symlink_to(original.parent / "sessions")
    return copied


@pytest.mark.parametrize(("path", "where"), list(shipped()))
def test_a_misspelt_key_or_broken_value_is_refused_by_name(path, where, tmp_path):
    original = yaml.safe_load(path.read_text())
    free_name = len(where) == 2 and where[0] in ("transforms", "datafilters")
    if not free_name:
        data = copy.deepcopy(original)
        owner = data
        for part in where[:-1]:
            owner = owner[part]
        owner[f"{where[-1]}x"] = owner.pop(where[-1])
        with pytest.raises(ConfigError, match=f"{where[-1]}x"):
            load_any(write(data, path, tmp_path))
    data = copy.deepcopy(original)
    owner = data
    for part in where[:-1]:
        owner = owner[part]
    owner[where[-1]] = {"nonsense": [[]]}
    folder = tmp_path / "value"
    folder.mkdir()
    with pytest.raises(ConfigError) as error:
        load_any(write(data, path, folder))
    assert str(where[-1]) in str(error.value) or "nonsense" in str(error.value)


def test_a_refusal_names_file_line_key_and_cure(tmp_path):
    path = tmp_path / "m.yaml"
    path.write_text("model_type: v1multi\nreadout:\n  type: gaussian\n  params:\n    initial_sdt: 0.3\n")
    with pytest.raises(ConfigError) as error:
        load_model_config(path)
    assert (
        str(error.value)
        == f"{path}:5: readout.params.initial_sdt: unknown key 'initial_sdt'; did you mean 'initial_std'?"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("readout: {type: gausian}", "did you mean 'gaussian'"),
        ("convnet: {type: vanilla, params: {channels: [8, 8], block_configs: [{}]}}", "1 block_configs for 2 channels"),
        ("convnet: {type: vanilla, params: {block_configs: [{act_type: reluu}, {}]}}", "did you mean 'relu'"),
        ("frontend: {type: learnable_temporal, params: {causal: false}}", "cannot see the future"),
        ("modulator: {type: convgru, params: {kernel_size: 4}}", "odd"),
        ("initial_input_channels: 0", "needs a modulator"),
        ("model_type: v1multi_history", "history_encoder"),
        ("lambda_pred: 0.1", "auxiliary loss"),
        (
            "convnet: {type: vanilla, params: {channels: [8], block_configs: [{pool_params: {type: max, r: 3}}]}}",
            "does not read",
        ),
        ("regularization: [{name: a, type: l3, lambda: 1, apply_to: [x]}]", "l1"),
        (
            "regularization: [{name: a, type: l1, lambda: 1, apply_to: [x], schedule: {kind: linear_decay}}]",
            "start_lambda",
        ),
        ("a: [", "not YAML"),
        ("- a", "keys with values"),
    ],
)
def test_impossible_models_are_refused(tmp_path, text, message):
    path = tmp_path / "m.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_model_config(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"keys_lags": {"stim": [0, 2]}}, "without a gap"),
        ({"keys_lags": {"robs": 1}}, "its own bin"),
        ({"keys_lags": {"stim": "0..40"}, "datafilters": {"d": {"ops": [{"valid_nlags": {"n_lags": 32}}]}}},
         "covers 32 lags, keys_lags reads 40"),
        ({"sampling": {"source_rate": 240, "target_rate": 100}}, "whole multiple"),
        ({"train_val_split": 0.9, "test_split": 0.2}, "exceed 1"),
        ({"cids": [1, 1]}, "cids repeat"),
        ({"transforms": {"a": {"source": "x", "expose_as": "behavior"}, "b": {"source": "y", "expose_as": "behavior"}}},
         "concatenate: true"),
        ({"transforms": {"a": {"source": "x", "expose_as": "behaviour"}}}, "did you mean 'behavior'"),
    ],
)  # fmt: skip
def test_impossible_datasets_are_refused(data, message):
    with pytest.raises(ValueError, match=message):
        DatasetConfig.model_validate(data)


def test_ranges_numbers_and_lists_of_lags():
    lags = DatasetConfig.model_validate(
        yaml.safe_load("keys_lags: {stim: [0..32], behavior: 3, history: [1, 2]}")
    ).keys_lags
    assert (lags.n_lags, lags.behavior, lags.history) == (33, (3,), (1, 2))


def test_a_single_size_means_all_axes():
    config = ModelConfig.model_validate(
        {
            "convnet": {
                "type": "vanilla",
                "params": {"channels": [4], "block_configs": [{"conv_params": {"kernel_size": 5}}]},
            }
        }
    )
    assert config.convnet.params.blocks[0].conv_params.kernel_size == (5, 5, 5)


def test_session_values_override_the_parents_deeply(tmp_path):
    (tmp_path / "s").mkdir()
    parent = {
        "session_dir": "s",
        "sessions": ["b", "a"],
        "data_dir": "d",
        "seed": 3,
        "keys_lags": {"stim": [0, 1, 2], "behavior": 1},
    }
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(parent))
    (tmp_path / "s" / "a.yaml").write_text("keys_lags: {behavior: 2}\ncids: [4]\n")
    (tmp_path / "s" / "b.yaml").write_text("{}")
    b, a = load_dataset_configs(tmp_path / "p.yaml")
    assert (a.session, b.session) == ("a", "b")
    assert (a.keys_lags.behavior, a.keys_lags.n_lags, a.cids, a.seed) == ((2,), 3, (4,), 3)
    assert b.keys_lags.behavior == (1,)
    assert Path(a.path) == tmp_path / "d" / "a.safetensors"
    assert [c.session for c in load_dataset_configs(tmp_path / "p.yaml", max_datasets=1)] == ["b"]


def test_where_data_are_looked_for(tmp_path, monkeypatch):
    file = tmp_path / "a.yaml"
    file.write_text("data_dir: own")
    assert Path(load_dataset_configs(file)[0].path).parent == tmp_path / "own"
    monkeypatch.setenv("NEUROTWIN_DATA", str(tmp_path / "env"))
    assert Path(load_dataset_configs(file)[0].path).parent == tmp_path / "env"
    assert Path(load_dataset_configs(file, data_dir=tmp_path / "flag")[0].path).parent == tmp_path / "flag"
    (tmp_path / "flag").mkdir()
    for suffix in ("nwb", "safetensors"):
        (tmp_path / "flag" / f"a.{suffix}").touch()
    with pytest.raises(ConfigError, match="set `path`"):
        load_dataset_configs(file, data_dir=tmp_path / "flag")


def test_wrong_paths_name_what_is_there(tmp_path):
    (tmp_path / "model.yaml").write_text("{}")
    with pytest.raises(ConfigError, match=r"did you mean 'model\.yaml'"):
        load_model_config(tmp_path / "modle.yaml")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"holds no \.yaml file"):
        load_dataset_configs(tmp_path / "empty")


def test_nearest_word():
    assert nearest("theshold", ["threshold", "other"]) == "did you mean 'threshold'?"
    assert nearest("zzz", ["a", "b"]) == "valid: a, b"
