"""The command: what it prints, what it writes, and one line with exit code 2 for every mistake."""

import json
import pkgutil
import re
import subprocess
import sys

import numpy as np
import pytest
import yaml

from neurotwin import commands
from neurotwin.cli import COMMANDS, main
from neurotwin.config import json_schemas, load_dataset_configs, load_model_config
from neurotwin.data.prepare import prepare
from neurotwin.metrics import Table
from neurotwin.models.twin import TwinModel

INSPECT = ["inspect", "--model_config"]
MODEL = {
    "frontend": {"type": "learnable_temporal", "params": {"kernel_size": 4, "num_channels": 3}},
    "convnet": {
        "type": "resnet",
        "params": {
            "channels": [8],
            "block_configs": [{"conv_params": {"kernel_size": [1, 5, 5], "stride": [1, 2, 2]}, "norm_type": "rms"}],
        },
    },
    "modulator": {"type": "concat", "params": {"encoder_params": {"dims": [6]}}},
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory, factory):
    """Two sessions, their YAMLs, a model's YAML and a saved model."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "sessions").mkdir()
    for name, n_units in (("ada_1", 3), ("bea_1", 2)):
        pupil = np.random.default_rng(0).random(200)
        sizes = {"n_bins": 200, "n_units": n_units, "frame": (12, 12), "trial_bins": 20}
        factory.write_session(folder / "data", name, **sizes, behavior={"pupil": pupil})
        pipeline = {"source": "pupil", "ops": [{"unsqueeze": {"dim": -1}}], "expose_as": "behavior"}
        config = {
            "data_dir": "../data", "keys_lags": {"stim": ["0..5"]},
            "transforms": {"stim": {"source": "stim", "ops": [{"pixelnorm": {}}]}, "pupil": pipeline},
        }  # fmt: skip
        (folder / "sessions" / f"{name}.yaml").write_text(yaml.safe_dump(config))
    (folder / "model.yaml").write_text(yaml.safe_dump(MODEL))
    sessions = prepare(load_dataset_configs(folder / "sessions"))
    twin = TwinModel(load_model_config(folder / "model.yaml"), [session.spec for session in sessions])
    twin.initialise([session.statistics() for session in sessions])
    twin.save(folder / "twin.safetensors")
    return folder


@pytest.fixture(autouse=True)
def no_shared_cache(monkeypatch):
    monkeypatch.delenv("NEUROTWIN_CACHE", raising=False)


def run(capsys, *arguments):
    """Exit code, what was printed, and what was said on stderr."""
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_inspect(lab, capsys):
    configs = ["--model_config", lab / "model.yaml", "--dataset_configs_path", lab / "sessions"]
    code, out, _ = run(capsys, "inspect", *configs)
    assert code == 0
    # Frames of 12: kernel 5 and stride 2 leave 4x4 pixels. Filters 3·4; kernels 8·3·25, norm 8 + 8, shortcut 8·3;
    # encoder 1·6 + 6; readout of 3 units: 14 features, bias, centre, spread and angle.
    assert re.search(r"frontend +3 x 1 x 12 x 12 +12$", out, re.M)
    assert re.search(r"convnet\.blocks\.0\.block\.conv +8 x 1 x 4 x 4 +600$", out, re.M)
    assert re.search(r"modulator +14 x 1 x 4 x 4 +12$", out, re.M)
    assert re.search(r"per_session\.0\.readout +1 x 3 +60$", out, re.M)
    assert re.search(r"^convnet +640$", out, re.M) and re.search(r"^all +764$", out, re.M)
    assert "receptive field: 4 bins (67 ms) of the 6 given, 5 x 5 pixels" in out
    assert "behaviour: 1 variables, used" in out
    assert re.search(r"ada_1 +ada +3 +0 +200", out) and re.search(r"bea_1 +bea +2", out)


def test_evaluate_and_compare(lab, capsys, tmp_path):
    code, out, _ = run(capsys, "evaluate", lab / "twin.safetensors")
    assert code == 0 and "subject bea" in out
    table = Table.read(lab / "twin.val.csv")
    assert table["session"].tolist() == ["ada_1"] * 3 + ["bea_1"] * 2 and not np.isnan(table["bps"]).any()

    code, _, _ = run(
        capsys, "evaluate", lab / "twin.safetensors", "--sessions", "bea_1", "--output", tmp_path / "b.csv"
    )
    one = Table.read(tmp_path / "b.csv")
    np.testing.assert_allclose(one["bps"], table["bps"][3:], rtol=1e-5)

    code, out, _ = run(capsys, "compare", lab / "twin.val.csv", lab / "twin.val.csv")
    assert code == 0 and "the same" in out
    code, out, _ = run(capsys, "compare", lab / "twin.val.csv", tmp_path / "b.csv")
    assert code == 1 and "3 units only in the first: ada_1/0" in out


def test_evaluate_finds_data_that_has_moved(lab, capsys, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    for file in (lab / "data").glob("*.safetensors"):
        (tmp_path / "elsewhere" / file.name).write_bytes(file.read_bytes())
    code, _, _ = run(
        capsys,
        "evaluate",
        lab / "twin.safetensors",
        "--data_dir",
        tmp_path / "elsewhere",
        "--output",
        tmp_path / "t.csv",
    )
    assert code == 0 and (tmp_path / "elsewhere" / "prepared").is_dir()


def test_report(lab, capsys, tmp_path):
    run(capsys, "evaluate", lab / "twin.safetensors", "--output", tmp_path / "run" / "units.csv")
    (tmp_path / "run" / "run.json").write_text(json.dumps({"name": "resnet", "parameters": 756, "wall_s": 61}))
    code, out, _ = run(capsys, "report", tmp_path / "run", "--html", tmp_path / "page.html")
    assert code == 0 and re.search(r"^resnet +756 +1:01 ", out, re.M)
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    assert run(capsys, "report", tmp_path / "run", "--markdown")[1].startswith("| model |")


def test_help_imports_no_code_of_commands():
    code = "import sys, neurotwin.cli as c; c.make_parser(()).format_help(); print(*sys.modules)"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    assert "neurotwin.cli" in loaded
    assert not loaded & {"torch", "numpy", "pydantic", "matplotlib", "neurotwin.config", "neurotwin.commands"}


@pytest.mark.parametrize("module", ["neurotwin", "neurotwin.config"])
def test_a_file_means_the_same_whatever_was_imported_before(module, lab):
    """Names are registered by the code that they name, which an import of the configuration alone does not bring."""
    code = (
        f"from {module} import load_model_config, load_dataset_configs; import sys; "
        "load_dataset_configs(sys.argv[2]); print(load_model_config(sys.argv[1]).readout.type)"
    )
    command = [sys.executable, "-c", code, str(lab / "model.yaml"), str(lab / "sessions")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "gaussian\n"


def test_every_module_of_a_command_is_named():
    modules = {module.name for module in pkgutil.iter_modules(commands.__path__)}
    assert modules - {"arguments", "reading"} == {name.replace("-", "_") for name in COMMANDS}


def test_simulate(capsys, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(
        "neurotwin.commands.simulate.make_demo_sessions",
        lambda folder, names, seed: made.append((folder, names, seed)) or ["a"],
    )
    assert run(capsys, "simulate", tmp_path, "--sessions", "ada_demo1", "--seed", 3)[:2] == (0, "a\n")
    assert made == [(str(tmp_path), ["ada_demo1"], 3)]


MISTAKES = [
    ([*INSPECT, "{lab}/modle.yaml", "--dataset_configs_path", "{lab}/sessions"], "modle.yaml: no such file"),
    ([*INSPECT, "{lab}/model.yaml", "--dataset_configs_path", "{lab}/absent"], "absent: no such file"),
    (["evaluate", "{lab}/absent.ckpt"], "absent.ckpt: no such file"),
    (["evaluate", "{lab}/model.yaml"], "model.yaml: not a safetensors file"),
    (["evaluate", "{lab}/twin.safetensors", "--sessions", "eve_1"], "has no session 'eve_1'"),
    (["evaluate", "{lab}/twin.safetensors", "--split", "test"], "no session has a valid bin in the test split"),
    (["evaluate", "{lab}/twin.safetensors", "--data_dir", "{lab}/nowhere"], "no such session file"),
    (["report", "{lab}"], "not the folder of a run"),
    (["compare", "{lab}/a", "{lab}/b"], "no such run"),
    (["compare", "{lab}/model.yaml", "{lab}/model.yaml"], "not a table of units"),
    (["convert", "{lab}/absent.npz", "{lab}/out"], "no such file"),
    (["convert", "{lab}/model.yaml", "{lab}/out"], "not a recording of a known layout"),
    (["inspect"], "give a recording, or --model_config"),
    (["inspect", "{lab}/absent.npz"], "absent.npz: no such file"),
    (["schema", "{lab}/model.yaml"], "model.yaml"),
]


def test_mistakes_end_with_one_line_and_exit_code_2(lab, capsys):
    before = {path for path in lab.rglob("*") if "prepared" not in path.parts}
    wrong = {}
    for arguments, message in MISTAKES:
        code, out, err = run(capsys, *[argument.format(lab=lab) for argument in arguments])
        lines = [line for line in err.splitlines() if line.startswith("neurotwin: ")]
        if code != 2 or out or len(lines) != 1 or message not in lines[0] or "Traceback" in err:
            wrong[" ".join(arguments)] = (code, out, err)
    assert not wrong
    assert {path for path in lab.rglob("*") if "prepared" not in path.parts} == before  # nothing half-written


def test_unknown_flags_exit_with_2(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["evaluate", "x", "--splt", "val"])
    assert exit.value.code == 2


def test_schema(capsys, tmp_path):
    code, out, _ = run(capsys, "schema", tmp_path)
    assert code == 0 and len(out.splitlines()) == 2
    assert json.loads((tmp_path / "model.schema.json").read_text()) == json_schemas()["model"]


def accepts(schema, value, root=None):
    """Whether a JSON Schema accepts a value: the keywords that pydantic writes, and no others."""
    root = schema if root is None else root

    def ok(part, item):
        return accepts(part, item, root)

    if schema is True or schema == {}:
        return True
    kinds = {
        "object": dict, "array": list, "string": str, "boolean": bool, "integer": int, "number": (int, float),
        "null": type(None),
    }  # fmt: skip
    checks = {
        "$ref": lambda ref: ok(root["$defs"][ref.removeprefix("#/$defs/")], value),
        "type": lambda kind: isinstance(value, kinds[kind]) and (kind == "boolean" or not isinstance(value, bool)),
        "enum": lambda values: value in values,
        "const": lambda constant: value == constant,
        "anyOf": lambda parts: any(ok(part, value) for part in parts),
        "allOf": lambda parts: all(ok(part, value) for part in parts),
        "minimum": lambda bound: not isinstance(value, int | float) or value >= bound,
        "maximum": lambda bound: not isinstance(value, int | float) or value <= bound,
        "exclusiveMinimum": lambda bound: not isinstance(value, int | float) or value > bound,
        "exclusiveMaximum": lambda bound: not isinstance(value, int | float) or value < bound,
        "minItems": lambda n: not isinstance(value, list) or len(value) >= n,
        "maxItems": lambda n: not isinstance(value, list) or len(value) <= n,
        "minLength": lambda n: not isinstance(value, str) or len(value) >= n,
        "minProperties": lambda n: not isinstance(value, dict) or len(value) >= n,
        "maxProperties": lambda n: not isinstance(value, dict) or len(value) <= n,
        "required": lambda keys: not isinstance(value, dict) or all(key in value for key in keys),
        "items": lambda part: not isinstance(value, list) or all(ok(part, item) for item in value),
        "prefixItems": lambda parts: not isinstance(value, list) or all(map(ok, parts, value)),
        "properties": lambda parts: (
            not isinstance(value, dict) or all(ok(part, value[key]) for key, part in parts.items() if key in value)
        ),
        "additionalProperties": lambda part: (
            not isinstance(value, dict)
            or all(part is not False and ok(part, value[key]) for key in set(value) - set(schema.get("properties", {})))
        ),
        "if": lambda condition: not ok(condition, value) or ok(schema["then"], value),
    }
    annotations = {"$defs", "$schema", "title", "description", "default", "then"}
    assert set(schema) <= set(checks) | annotations, f"unknown keywords {set(schema) - set(checks) - annotations}"
    return all(checks[key](schema[key]) for key in schema if key in checks)


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_schemas_accept_every_shipped_config(kind, pytestconfig):
    places = {
        "model": ["configs/*.yaml", "experiments/model_configs/**/*.yaml"],
        "dataset": ["configs/datasets/*.yaml", "experiments/dataset_configs/**/*.yaml"],
    }
    paths = [path for pattern in places[kind] for path in pytestconfig.rootpath.glob(pattern)]
    assert len(paths) > 4
    for path in paths:
        assert accepts(json_schemas()[kind], yaml.safe_load(path.read_text())), path


SNIPPETS = [
    ("model", "convnet: {type: resnet, params: {channels: [8], resnet_post_add_activation: relu}}", True),
    ("model", "convnet: {type: vanilla, params: {channels: [8], resnet_post_add_activation: relu}}", False),
    ("model", "convnet: {type: resnt}", False),
    ("model", "convnet: {params: {}}", True),
    ("model", "convnet: {params: {channels: [8]}}", False),  # of type none
    ("model", "readout: {params: {initial_std: 0.2}}", True),  # of type gaussian
    ("model", "readout: {params: {initial_sd: 0.2}}", False),
    ("model", "frontend: {type: conv, params: {conv_params: {kernel_size: 3}}}", True),
    ("model", "frontend: {type: conv, params: {conv_params: {kernel_size: [3, 5]}}}", False),
    ("model", "regularization: [{name: a, type: l1, lambda: 1, apply_to: [x], schedule: constant}]", True),
    ("model", "regularization: [{name: a, type: l1, lambda: 1, apply_to: [x], schedule: {type: warmp}}]", False),
    ("model", "regularization: [{name: a, type: l1, lambda: 1, apply_to: [x], schedule: {kind: warmup}}]", True),
    ("model", "frontnd: {type: none}", False),
    ("model", "{baseline: , modulator: , readout: {params: }, convnet: {type: null}}", True),
    ("model", "frontend: {type: conv, params: {pool_params: , norm_params: , act_type: null}}", True),
    ("dataset", "keys_lags: {stim: [0..32], behavior: 0}", True),
    ("dataset", "keys_lags: {stm: 0}", False),
    ("dataset", "transforms: {stim: {source: stim, ops: [pixelnorm, {mul: {factor: 2}}, symlog: ]}}", True),
    ("dataset", "transforms: {stim: {source: stim, ops: [{mul: {facto: 2}}]}}", False),
    ("dataset", "transforms: {stim: {source: stim, ops: [pixelnrm]}}", False),
    ("dataset", "datafilters: {dfs: {ops: [{missing_pct: {threshold: 45}}]}}", True),
    ("dataset", "{session_dir: here, sessions: [ada_1], train_val_split: 0.7}", True),
]


def test_schemas_know_which_parameters_a_type_has():
    schemas = json_schemas()
    wrong = [text for kind, text, fine in SNIPPETS if accepts(schemas[kind], yaml.safe_load(text)) is not fine]
    assert not wrong
