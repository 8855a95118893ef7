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


def test_every_shipped_config_loads_and_round_trips():
    changed = []
    for path in MODELS:
        config = load_model_config(path)
        if ModelConfig.model_validate_json(config.model_dump_json(by_alias=True)) != config:
            changed.append(path.stem)
    for path in DATASETS:
        for config in load_dataset_configs(path):
            if DatasetConfig.model_validate_json(config.model_dump_json(by_alias=True)) != config:
                changed.append(f"{path.stem} {config.session}")
    assert not changed


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


def places(files):
    """Files, their content and the path of each of their keys; what says the same elsewhere comes once."""
    seen = set()
    for path in files:
        data = yaml.safe_load(path.read_text())
        for where in keys_of(data):
            *owners, key = where
            owner = at(data, owners)
            kind = owner.get("type") if isinstance(owner, dict) else None
            what = (path in MODELS, where, kind, repr(owner[key]))
            if what not in seen:
                seen.add(what)
                yield path, data, where


def at(data, where):
    """What stands at a path of keys and indices."""
    for part in where:
        data = data[part]
    return data


def refusal(data, original, folder) -> str:
    """What loading a changed copy of a shipped file says; empty where it loads."""
    folder.mkdir()
    try:
        load_any(write(data, original, folder))
    except ConfigError as error:
        return str(error)
    return ""


def write(data, original, folder):
    kind = "model" if original in MODELS else "dataset"
    copied = folder / f"{kind}.yaml"
    copied.write_text(yaml.safe_dump(data))
    if "sessions" in data and (original.parent / str(data.get("session_dir"))).is_dir():
        (folder / "sessions").symlink_to(original.parent / "sessions")
    return copied


@pytest.mark.parametrize("files", [MODELS, DATASETS], ids=["models", "datasets"])
def test_a_misspelt_key_or_broken_value_is_refused_by_name(files, tmp_path):
    accepted = []
    for number, (path, original, where) in enumerate(places(files)):
        *owners, key = where
        place = f"{path.stem}: {'.'.join(map(str, where))}"
        free_name = len(where) == 2 and where[0] in ("transforms", "datafilters")
        if not free_name and isinstance(key, str):
            data = copy.deepcopy(original)
            owner = at(data, owners)
            owner[f"{key}x"] = owner.pop(key)
            if f"{key}x" not in refusal(data, path, tmp_path / f"key{number}"):
                accepted.append(f"{place}: misspelt")
        data = copy.deepcopy(original)
        at(data, owners)[key] = {"nonsense": [[]]}
        said = refusal(data, path, tmp_path / f"value{number}")
        if str(key) not in said and "nonsense" not in said:
            accepted.append(f"{place}: broken value")
    assert not accepted


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
        ("regularization: [{name: a, type: l3, lambda: 1, apply_to: [x]}]", "l1"),
        ("output_activation: sofplus", "did you mean 'softplus'"),
        ("likelihood: poison", "did you mean 'poisson'"),
        ("likelihood: {type: gaussian, params: {varance: 1}}", "did you mean 'variance'"),
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


FLAT = """
convnet:
  type: vanilla
  params:
    channels: [8]
    block_configs:
      - act_type: relu
        pool_params:
          type: max
          {line}
"""


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("r: 3", "r: unknown key 'r'; valid: stride, kernel_size, padding"),
        ("strid: 3", "strid: unknown key 'strid'; did you mean 'stride'?"),
        ("padding: [0, 1]", "padding"),
    ],
)
def test_keys_beside_a_type_are_refused_with_key_and_line(line, message, tmp_path):
    path = tmp_path / "m.yaml"
    path.write_text(FLAT.replace("{line}", line))
    with pytest.raises(ConfigError) as error:
        load_model_config(path)
    start = f"{path}:10: convnet.params.block_configs.0.pool_params.{message}"
    assert all(said.startswith(start) for said in str(error.value).splitlines())


def test_an_unknown_type_of_a_flat_part_is_refused_with_its_line(tmp_path):
    path = tmp_path / "m.yaml"
    path.write_text(FLAT.replace("type: max", "type: maxx").replace("{line}", "stride: 2"))
    with pytest.raises(ConfigError, match=r"m\.yaml:9: .*pool_params\.type: unknown pool 'maxx'; did you mean 'max'"):
        load_model_config(path)


def test_keys_of_a_flat_part_without_its_type_are_refused(tmp_path):
    path = tmp_path / "m.yaml"
    path.write_text(FLAT.replace("type: max", "typ: max").replace("{line}", "stride: 2"))
    with pytest.raises(ConfigError, match=r"m\.yaml:8: .*typ, stride: of which type\? write type: none \| max \| "):
        load_model_config(path)


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


@pytest.mark.parametrize(
    ("yaml_says", "flag", "environment", "expected"),
    [
        ("data_dir: 's3://bucket/data/'", None, None, "s3://bucket/data/a.safetensors"),
        ("data_dir: 's3://bucket/data'\npath: b.nwb", None, None, "s3://bucket/data/b.nwb"),
        ("path: 'https://host/b.nwb?version=2'", "own", None, "https://host/b.nwb?version=2"),
        ("directory: day1", "gs://bucket", None, "gs://bucket/day1/a.safetensors"),
        ("directory: /not/here", "gs://bucket", None, "gs://bucket/a.safetensors"),
        ("data_dir: own", None, "memory://data", "memory://data/a.safetensors"),
        ("data_dir: 's3://bucket'", "{here}", None, "{here}/a.safetensors"),
        ("data_dir: 's3://bucket'\npath: /data/b.nwb", None, None, "/data/b.nwb"),
        ("path: '2024:05:01.nwb'", "{here}", None, "{here}/2024:05:01.nwb"),
        (r"path: 'C:\x\b.nwb'", "{here}", None, r"{here}/C:\x\b.nwb"),
        ("path: 'C://b.nwb'", "{here}", None, "{here}/C:/b.nwb"),
        ("path: 'odd:/b.nwb'", "{here}", None, "{here}/odd:/b.nwb"),
    ],
)
def test_data_elsewhere_have_a_url_and_odd_local_paths_do_not(
    tmp_path, monkeypatch, yaml_says, flag, environment, expected
):
    file = tmp_path / "a.yaml"
    file.write_text(yaml_says)
    if environment:
        monkeypatch.setenv("NEUROTWIN_DATA", environment)
    (config,) = load_dataset_configs(file, data_dir=flag and flag.format(here=tmp_path))
    assert config.path == expected.format(here=tmp_path)


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
