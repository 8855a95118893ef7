"""Files as labs write them: each form loads, means what docs/lab_files.md says, and what has no effect is said once."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from neurotwin import cli
from neurotwin.config import ConfigError, DatasetConfig, load_dataset_configs, load_model_config, noticing
from neurotwin.data.pipelines import apply_pipelines, fit_pipelines
from neurotwin.data.prepare import prepare
from neurotwin.data.spec import SessionSpec
from neurotwin.models import TwinModel, check_run, load_twin
from neurotwin.models.parameters import describe_parameters
from training.regularizers import Regularizers
from training.train_ddp_multidataset import main as train

pytestmark = pytest.mark.usefixtures("handlers")

FILES = Path(__file__).parents[1] / "data" / "dialect"
NAME = "ada_2024-05-01"


@pytest.fixture
def lab(tmp_path, builder) -> Path:
    """The lab's dataset files, and its recording where --data_dir says: DATA_DIR/SESSION/datasets/TYPE.dset."""
    builder("dset").build(tmp_path / "recordings", name=NAME, n_bins=80, n_trials=8, size=12)
    shutil.copytree(FILES / "lab", tmp_path / "configs")
    return tmp_path


def model_text(tmp_path: Path, text: str, name: str = "model.yaml") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def said(load) -> list[str]:
    """The notices of loading, one line a file."""
    with noticing() as notices:
        load()
    return notices.lines()


def spec(**changes) -> SessionSpec:
    values = {
        "name": "ada", "subject": "ada", "unit_ids": (0, 1), "frame_shape": (1, 14, 14), "bin_rate": 120.0,
        "n_lags": 12, "behavior_dim": 3, "n_history": 3,
    }  # fmt: skip
    return SessionSpec(**values | changes)


# --- model files ----------------------------------------------------------------------------------------------------


def test_two_files_that_mean_the_same_give_the_same_config():
    written, plain = (load_model_config(FILES / f"{name}.yaml") for name in ("model", "model_plain"))
    assert written == plain
    assert written.model_dump() == plain.model_dump()


def test_what_has_no_effect_is_one_line_that_names_each():
    (line,) = said(lambda: load_model_config(FILES / "model.yaml"))
    assert line.startswith(f"{FILES / 'model.yaml'}: ")
    for part in (
        "frontend.params.aa_window has no effect: aa_signal is false",
        "block_configs.0.dropout has no effect: dropout is not in order",
        "block_configs.0.conv_params.padding has no effect over time",
        "block_configs.0.norm_params num_groups has no effect: norm_type is rms",
        "modulator.params.feature_dim has no effect: it is worked out",
        "readout.params.n_units has no effect",
    ):
        assert part in line
    assert line.count("has no effect") == 6
    assert not said(lambda: load_model_config(FILES / "model_plain.yaml"))


def test_a_form_read_outside_of_a_run_is_logged_once(caplog):
    caplog.set_level(logging.INFO)
    load_model_config(FILES / "model.yaml")
    assert len(caplog.messages) == 1


def test_a_model_of_all_forms_computes():
    config = load_model_config(FILES / "model.yaml")
    with noticing() as notices:
        twin = TwinModel(config, [spec()])
    assert notices.lines() == ["model: sampling_rate is a label: it says 1000 Hz, the data have 120"]
    # 12 pixels, kernel 5 padded by 3: 14; every second of them: 7. The first block's taps, blurred over 3 frames.
    assert (twin.recurrent.outputs.height, twin.recurrent.outputs.width) == (7, 7)
    assert twin.receptive_field == 4 + 2 + 2
    readout = twin.per_session[0].readout
    torch.testing.assert_close((readout.std.square() + 0.25).sqrt(), torch.full((2, 2), 5.0))


def test_the_bound_on_a_width_falls_as_scheduled():
    twin = TwinModel(load_model_config(FILES / "model.yaml"), [spec()])
    infos = list(describe_parameters(twin))
    regularizers = Regularizers(twin.config.regularization, infos)
    std = twin.per_session[0].readout.std
    optimizer = torch.optim.SGD([info.parameter for info in infos], lr=0.0)
    std.grad = torch.zeros_like(std)
    for epoch, bound in ((0, 10.0), (10, 8.3), (25, 5.75), (49, 1.67), (50, 1.5), (80, 1.5)):
        with torch.no_grad():
            std.copy_(torch.tensor([[20.0, -3.0], [1.0, 20.0]]))
        regularizers.proximal_step(optimizer, epoch)
        torch.testing.assert_close(std.detach(), torch.tensor([[bound, 1e-6], [1.0, bound]]))


def test_a_ramp_without_an_end_is_a_step(tmp_path):
    config = load_model_config(FILES / "model.yaml")
    assert (config.regularization[1].schedule.start_epoch, config.regularization[1].schedule.end_epoch) == (30, 30)
    twin = TwinModel(config, [spec()])
    regularizers = Regularizers(config.regularization, describe_parameters(twin))
    features = twin.per_session[0].readout.features
    optimizer = torch.optim.SGD([features], lr=1.0)
    before = features.detach().clone()
    features.grad = torch.zeros_like(features)
    for epoch, change in ((0, 0.0), (29, 0.0), (30, 1e-4)):
        regularizers.proximal_step(optimizer, epoch)
        assert (before - features).abs().max().item() == pytest.approx(change, rel=1e-2)


def test_behaviour_alone_sees_no_pixel():
    (line,) = said(lambda: load_model_config(FILES / "behaviour.yaml"))
    assert "initial_input_channels is 0" in line and "behaviour only" in line
    twin = TwinModel(load_model_config(FILES / "behaviour.yaml"), [spec(frame_shape=(1, 196, 196))])
    assert sum(parameter.numel() for parameter in twin.parameters()) < 5000
    rng = np.random.default_rng(0)
    movies = rng.integers(0, 256, (2, 30, 196, 196), dtype=np.uint8)
    transforms = {"gaze": {"source": "gaze", "expose_as": "behavior"}}
    twin.sessions = (spec(frame_shape=(1, 196, 196), config=DatasetConfig(session="ada", transforms=transforms)),)
    gaze = {"gaze": rng.normal(size=(30, 3)).astype(np.float32)}
    first, second = (twin.predict(movie, gaze, session=0, bin_rate=120.0) for movie in movies)
    np.testing.assert_array_equal(first, second)
    other = twin.predict(movies[0], {"gaze": -gaze["gaze"]}, session=0, bin_rate=120.0)
    assert np.nanmax(np.abs(first - other)) > 1e-4


@pytest.mark.parametrize(
    "change", [{"frontend": {"type": "conv"}}, {"modulator": "film"}, {"readout": "pixels"}, {"modulator": "none"}]
)
def test_a_model_with_something_that_looks_still_sees_the_stimulus(change, tmp_path):
    written = yaml.safe_load((FILES / "behaviour.yaml").read_text()) | change
    path = model_text(tmp_path, yaml.safe_dump(written))
    assert load_model_config(path).initial_input_channels == 1


def test_output_activation_false_is_none():
    config = load_model_config(FILES / "history.yaml")
    assert config.history_encoder.params.output_activation == "none"
    assert TwinModel(config, [spec()]).takes_history


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("convnet:\n  type: resnet\n  params:\n    dim: 2\n", ":4: .*2 is not possible, only 3: .*kernel_size"),
        ("modulator: {type: convgru, params: {use_depthwise: true}}", "true is not possible, only false: a gate mixes"),
        ("modulator: {type: convgru, params: {num_groups: 4}}", "4 is not possible, only 1"),
        ("modulator: {type: film, params: {use_depthwise: false}}", "unknown key 'use_depthwise'"),
        ("readout: {type: gaussian, params: {n_unit: 8}}", "did you mean 'n_units'"),
        ("readout: {type: gaussian, params: {n_units: many}}", "readout.params.n_units: .*integer"),
        ("convnet: {type: resnet, params: {block_configs: [{aa_window: hann}]}}", "unknown key 'aa_window'"),
        ("frontend: {type: conv, params: {conv_params: {aa_window: han}}}", "aa_window: .*'hann'"),
    ],
)
def test_other_values_are_refused_with_the_reason(text, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        load_model_config(model_text(tmp_path, text))


def test_a_core_that_sees_more_than_the_lags_is_told_which_number_to_write(lab):
    (config,) = load_dataset_configs(lab / "configs" / "parent.yaml", data_dir=lab / "recordings")
    model = model_text(lab, "frontend: {type: da, params: {filter_length: 32}}\nconvnet: {type: vanilla}")
    with pytest.raises(ConfigError, match=r"the core sees 36 frames.* set keys_lags: \{stim: \[0\.\.35\]\}"):
        check_run(load_model_config(model), [config])


# --- dataset files --------------------------------------------------------------------------------------------------


def op(text: str, **rest) -> DatasetConfig:
    """A session's file with one operation over behaviour."""
    return rest | {"transforms": {"gaze": {"source": "gaze", "ops": [yaml.safe_load(text)], "expose_as": "behavior"}}}


def loaded(folder: Path, content: dict) -> DatasetConfig:
    path = folder / "ada.yaml"
    path.write_text(yaml.safe_dump(content | {"path": "ada.safetensors"}))
    return load_dataset_configs(path)[0]


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ("unsqueeze: 1", "unsqueeze: {dim: 1}"),
        ("mul: 0.5", "mul: {factor: 0.5}"),
        ("diff: 0", "diff: {axis: 0}"),
        ("cast: float16", "cast: {dtype: float16}"),
        ("splitrelu: 1", "splitrelu: {split_dim: 1}"),
        ("splitrelu: {split_dim: 1, trainable_gain: false}", "splitrelu: {split_dim: 1}"),
        ("select_units: [0, 1]", "select_units: {indices: [0, 1]}"),
        ("smooth: 1.5", "smooth: {sigma: 1.5}"),
        ("smooth: {type: gaussian, params: 1.5}", "smooth: {sigma: 1.5}"),
        ("smooth: [{type: gaussian}, {params: 1.5}]", "smooth: {sigma: 1.5}"),
        ("smooth: {type: gaussian, params: [1.5]}", "smooth: {sigma: 1.5}"),
        ("smooth: {type: gaussian, params: {sigma: 1.5}}", "smooth: {sigma: 1.5}"),
    ],
)
def test_a_short_form_is_the_long_one(short, long, tmp_path):
    assert loaded(tmp_path, op(short)) == loaded(tmp_path, op(long))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("smooth: {type: median, params: 1}", "'median' is not possible: smoothing is gaussian"),
        ("smooth: {type: gaussian, params: wide}", "smooth: .*number"),
        ("smooth: {type: gaussian}", "sigma"),
        ("temporal_basis: 5", "temporal_basis: "),
        ("fftwhitening: 0.4", "fftwhitening: "),
        ("mul: true", "true or false, where a number belongs"),
        ("splitrelu: {trainable_gain: true}", "true is not possible, only false: a transform has nothing to train"),
    ],
)
def test_operations_that_cannot_be_are_refused(text, message, tmp_path):
    with pytest.raises(ConfigError, match=f"ada.yaml:\\d+: .*{message}"):
        loaded(tmp_path, op(text))


def test_the_threshold_by_its_usual_typo_keeps_its_line(tmp_path):
    def masked(text: str) -> dict:
        return {"datafilters": {"dfs": {"ops": [yaml.safe_load(text)], "expose_as": "dfs"}}}

    right, typo = masked("missing_pct: {threshold: 45}"), masked("missing_pct: {theshold: 45}")
    assert loaded(tmp_path, typo) == loaded(tmp_path, right)
    (line,) = said(lambda: loaded(tmp_path, typo))
    assert "missing_pct.theshold is read as threshold" in line
    text = "path: a\ndatafilters:\n  dfs:\n    ops:\n      - missing_pct:\n          theshold: 450\n"
    (tmp_path / "bea.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"bea.yaml:6: .*missing_pct.theshold: .*100"):
        load_dataset_configs(tmp_path / "bea.yaml")


def test_a_lab_s_parent_and_session(lab):
    with noticing() as notices:
        (config,) = load_dataset_configs(lab / "configs" / "parent.yaml", data_dir=lab / "recordings")
    assert (config.session, config.eye, config.cids, config.train_val_split) == (NAME, "left", (0, 2, 3), 0.75)
    assert (config.qcmissing, config.missingth, config.snr) == ((12.5, 3.0, 99.0), (45,), (3.1, 2.2, 5.0))
    assert config.path == str(lab / "recordings" / NAME), "directory is of another machine, and the name is enough"
    (line,) = notices.lines()
    assert line.startswith(f"{lab / 'configs' / 'parent.yaml'}: "), "said once, of the file that holds it"
    for part in (
        "eyevel.ops.4.temporal_basis is centred on the bin (causal: false): predictions see up to 5 bins",
        "robs.ops.0.smooth looks ahead",
        "dfs.ops.1.missing_pct.theshold is read as threshold",
        "dfs.ops.0.valid_nlags covers 8 bins, and keys_lags reads 11 before a bin: validity covers 11",
    ):
        assert part in line


def test_its_arrays_are_those_that_the_table_promises(lab):
    (config,) = load_dataset_configs(lab / "configs" / "parent.yaml", data_dir=lab / "recordings")
    (prepared,) = prepare([config])
    assert prepared.spec.bin_rate == 120 and prepared.spec.behavior_dim == 2 * 2 * 4 * 2  # gaze, signs, functions, lags
    assert prepared.responses.shape == (4 * 8 * 40, 3) and prepared.responses.dtype == np.float32, "smoothed"
    assert prepared.spec.n_history == 3
    starts = np.unique(prepared.run_start)
    assert (starts[1:] - starts[:-1] == 40).all()
    assert all(not prepared.mask[start : start + 11].any() for start in starts), "validity covers the lags"
    assert prepared.mask[starts[0] + 11 : starts[0] + 40].any()


def test_responses_are_smoothed_by_a_gaussian_of_one_bin(tmp_path):
    config = DatasetConfig.model_validate(
        {"transforms": {"robs": {"source": "robs", "ops": [{"smooth": {"sigma": 1.0}}]}}}
    )
    impulse = np.zeros((21, 1))
    impulse[10] = 1
    smooth = apply_pipelines(config, {"robs": impulse}, fitted={})["robs"]
    expected = np.exp(-0.5 * (np.arange(21) - 10.0) ** 2)
    np.testing.assert_allclose(smooth[6:15, 0], (expected / expected.sum())[6:15], atol=1e-5)


def test_history_is_the_responses_as_they_are(tmp_path):
    history = {"source": "robs", "ops": [{"select_units": {"indices": "cids"}}], "expose_as": "history"}
    assert loaded(tmp_path, {"transforms": {"history": history}})
    for change, message in (
        ({"ops": [{"smooth": 1.0}]}, "transforms.history: smooth is not possible, the history encoder reads"),
        ({"source": "stim"}, "transforms.history: history is made of the responses; set source: robs"),
    ):
        with pytest.raises(ConfigError, match=message):
            loaded(tmp_path, {"transforms": {"history": history | change}})


def test_normalisation_of_a_basis_over_the_stimulus_is_that_of_the_training_part():
    params = {"num_cosine_funcs": 2, "history_bins": 4, "peak_range_ms": [0, 20], "batch_norm": True}
    config = DatasetConfig.model_validate(
        {"transforms": {"stim": {"source": "stim", "ops": [{"temporal_basis": params}]}}}
    )
    rng, train = np.random.default_rng(0), np.arange(40) < 25
    stim = rng.normal(3.0, 2.0, (40, 5, 4)).astype(np.float32)
    stim[~train] *= 9
    runs = np.array([[0, 40]])
    fitted = fit_pipelines(config, {"stim": stim}, runs, train, bin_ms=10.0)
    out = apply_pipelines(config, {"stim": stim}, runs=runs, fitted=fitted, bin_ms=10.0)["stim"]
    assert out.shape == (40, 2, 5, 4)
    np.testing.assert_allclose(out[train].mean(axis=(0, 2, 3)), 0, atol=1e-4)
    np.testing.assert_allclose(out[train].std(axis=(0, 2, 3)), 1, atol=1e-3)
    assert abs(out[~train].mean()) > 0.5


def test_a_width_of_bins_that_contradicts_the_data_is_said(lab):
    parent = yaml.safe_load((lab / "configs" / "parent.yaml").read_text())
    parent["transforms"]["eyevel"]["ops"][-1]["temporal_basis"]["bin_size_ms"] = 4.1667
    parent["transforms"]["robs"]["ops"] = []  # a history of smoothed responses is refused
    (lab / "configs" / "parent.yaml").write_text(yaml.safe_dump(parent))
    with noticing() as notices:
        configs = load_dataset_configs(lab / "configs" / "parent.yaml", data_dir=lab / "recordings")
        check_run(load_model_config(FILES / "history.yaml"), configs)
    lines = [line for line in notices.lines() if "parent.yaml" in line]
    assert len(lines) == 1 and "bin_size_ms is 4.167 and the bins of the data last 8.333 ms" in lines[0]
    assert "they reach 2 times as far back" in lines[0]


def test_where_the_data_of_a_session_are_found(tmp_path):
    folder = tmp_path / "recordings"
    for place in ("here/ada", "ada", "bea"):
        (folder / place).mkdir(parents=True)

    def found(**content) -> str:
        (tmp_path / "ada.yaml").write_text(yaml.safe_dump({"cids": [1]} | content))
        (config,) = load_dataset_configs(tmp_path / "ada.yaml", data_dir=folder)
        return str(Path(config.path).relative_to(folder))

    assert found() == "ada"
    assert found(directory="here") == "here/ada", "the folder that holds the session's"
    assert found(directory="here/ada") == "here/ada"
    assert found(directory="bea", path="here/ada") == "here/ada"
    assert found(directory="gone") == "ada"
    (folder / "ada.nwb").touch()
    with pytest.raises(ConfigError, match=r"could be any of \['ada.nwb', 'ada'\].*set `path`"):
        found()


def test_a_parent_without_sessions_takes_all_files_of_its_folder(lab):
    parent = lab / "configs" / "parent.yaml"
    sessions = lab / "configs" / "sessions"
    shutil.copy(sessions / f"{NAME}.yaml", sessions / "bea.yaml")
    (sessions / "bea.yaml").write_text("cids: [1]\n")
    assert [config.session for config in load_dataset_configs(parent)] == [NAME, "bea"]
    named = yaml.safe_load(parent.read_text()) | {"sessions": ["bea"]}
    parent.write_text(yaml.safe_dump(named))
    assert [config.session for config in load_dataset_configs(parent)] == ["bea"]
    shutil.move(parent, sessions / "parent.yaml")
    del named["sessions"]
    (sessions / "parent.yaml").write_text(yaml.safe_dump(named | {"session_dir": "."}))
    assert len(load_dataset_configs(sessions / "parent.yaml")) == 2, "itself aside"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"session_dir": None}, "has neither session_dir nor sessions.*parent.safetensors.*give session_dir"),
        ({"session_dir": "elsewhere"}, "session_dir: no folder .*elsewhere"),
        ({"sessions": ["eve"]}, "eve.yaml: no such file; "),
    ],
)
def test_what_a_parent_lacks_is_said(change, message, lab):
    parent = lab / "configs" / "parent.yaml"
    content = yaml.safe_load(parent.read_text()) | change
    parent.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
    with pytest.raises(ConfigError, match=message):
        load_dataset_configs(parent)


# --- from the command line ------------------------------------------------------------------------------------------


def arguments(lab: Path, model: str) -> list[str]:
    """A lab's own model file, its own parent and --data_dir: all that a run needs."""
    paths = {"model_config": FILES / model, "dataset_configs_path": lab / "configs" / "parent.yaml"}
    return [f"--{key}={value}" for key, value in (paths | {"data_dir": lab / "recordings"}).items()]


@pytest.mark.parametrize("model", ["model.yaml", "behaviour.yaml", "history.yaml"])
def test_a_lab_s_files_train(model, lab, capsys, monkeypatch):
    monkeypatch.setenv("NEUROTWIN_CACHE", str(lab / "cache"))
    runs = ["--checkpoint_dir", f"{lab}/runs", "--experiment_name", "run", "--max_epochs", "1", "--logger", "csv"]
    steps = ["--steps_per_epoch", "2", "--batch_size", "64", "--clip_len", "8", "--accelerator", "cpu"]
    if (
        model == "history.yaml"
    ):  # the history of responses that smoothing has mixed with later ones would hold the answer
        assert train([*arguments(lab, model), *runs, *steps]) == 2
        assert "smooth puts later responses into earlier bins" in capsys.readouterr().err
        parent = (lab / "configs" / "parent.yaml").read_text().splitlines(keepends=True)
        (lab / "configs" / "parent.yaml").write_text("".join(line for line in parent if "- smooth:" not in line))
    assert train([*arguments(lab, model), *runs, *steps]) == 0
    lines = capsys.readouterr().err.splitlines()
    about = {name: [line for line in lines if f"/{name}: " in line] for name in (model, "parent.yaml", f"{NAME}.yaml")}
    assert [len(found) for found in about.values()] == [model != "history.yaml", 1, 0], "one line a file, if any"
    assert "regularization" not in str(about)
    first_step = next(number for number, line in enumerate(lines) if "epoch 1" in line)
    assert all(lines.index(line) < first_step for found in about.values() for line in found)
    resolved = load_model_config(lab / "runs" / "run" / "model.yaml")
    asked = load_model_config(FILES / model)
    assert resolved.training != asked.training == type(asked.training)(), "the recipe that held is on record"
    same = resolved.model_copy(update={"training": asked.training})
    assert same == asked, "what was understood is on record, and means the same"
    assert load_twin(lab / "runs" / "run").sessions[0].unit_ids == (0, 2, 3)


def test_inspect_shows_what_was_understood_and_positions_in_both_units(lab, capsys, monkeypatch):
    monkeypatch.setenv("NEUROTWIN_CACHE", str(lab / "cache"))
    assert cli.main(["inspect", *arguments(lab, "model.yaml")]) == 0
    text = capsys.readouterr().out
    assert "readout.params.initial_std: 5 feature pixels, 1.43 of half the map of 7 x 7" in text
    assert "readout.params.initial_mean_scale: 0.1 feature pixels, 0.0286 of half the map of 7 x 7" in text
    understood = text.split("understood otherwise than written:\n")[1].splitlines()
    assert [line.split(": ")[0] for line in understood if line] == [
        str(FILES / "model.yaml"), str(lab / "configs" / "parent.yaml"),
    ]  # fmt: skip
    assert "sampling_rate is a label: it says 1000 Hz, the data have 120" in understood[0]
