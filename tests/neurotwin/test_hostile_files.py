"""Config files that cannot be: each ends with one line that says where and why, and never with a traceback."""

import numpy as np
import pytest

from neurotwin import cli
from neurotwin.config import ConfigError, load_dataset_configs, load_model_config
from neurotwin.data.session import Session
from neurotwin.models import stages
from neurotwin.models.stages import Maps, normal, reserve, reserving
from training.train_ddp_multidataset import main as train

pytestmark = pytest.mark.usefixtures("handlers")


def conv(**keys) -> str:
    return f"convnet: {{type: vanilla, params: {{channels: [4], block_configs: [{{conv_params: {keys}}}]}}}}"


def pool(text: str) -> str:
    return f"convnet: {{type: vanilla, params: {{channels: [4], block_configs: [{{pool_params: {text}}}]}}}}"


HUGE = 10**12
MODELS = {
    "nothing": ("", "says nothing of a model"),
    "nothing but a comment": ("# a model\n", "says nothing of a model"),
    "a key twice": ("readout: gaussian\nconvnet: none\nreadout: linear\n", ":3: readout is given twice, first in line"),
    "a key twice further down": ("readout:\n  type: gaussian\n  type: linear\n", ":3: type is given twice"),
    "nested without end": ("readout: " + "[" * 5000 + "]" * 5000, "nested too deeply"),
    "nested until a stack ends": ("readout: " + "[" * 100_000, "nested too deeply"),
    "lists in lists in one line": ("readout:\n  " + "- " * 100_000, "nested too deeply"),
    "mappings without end": ("".join(f"{' ' * k}a:\n" for k in range(3000)), "nested too deeply"),
    "itself": ("readout: &a {params: *a}", "holds itself, through an alias"),
    "billions": (
        "a: &a [x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"{y}: &{y} [{', '.join([f'*{x}'] * 9)}]\n" for x, y in zip("abcdefgh", "bcdefghi", strict=True)),
        "holds more than 1,000,000 values",
    ),
    "a list for a key": ("? [a, b]\n: c\n", "a key must be a word"),
    "a date that is none": ("sampling_rate: 2024-13-45\n", "cannot read"),
    "a model of many channels": (f"convnet: {{type: vanilla, params: {{channels: [{HUGE}]}}}}", "100000"),
    "a kernel of many pixels": (conv(kernel_size=HUGE), "100000"),
    "a stride of none": (conv(stride=0), "greater than 0"),
    "a dilation of none": (conv(dilation=[1, 0, 1]), "greater than 0"),
    "padding of less than none": (conv(padding=-1), "greater than or equal to 0"),
    "padding of much": (conv(padding=[0, 90000, 90000]), "more than 268,435,456 values a frame"),
    "groups of many": (conv(groups=HUGE), "100000"),
    "a pool's stride of none": (pool("{type: max, stride: 0}"), "greater than 0"),
    "a blur's stride of none": (pool("{type: aablur, stride: [1, 0, 2]}"), "greater than 0"),
    "a gate of none": (pool("{type: aablur, r: 0}"), "greater than 0"),
    "a window of many channels": (pool(f"{{type: locatt, chan_window: {HUGE}}}"), "1024"),
    "a grid of many pixels": ("adapter: {type: adapter, params: {grid_size: 99999}}", "values a frame"),
    "true filters": ("frontend: {type: learnable_temporal, params: {num_channels: true}}", "true or false, where"),
    "true sizes": (conv(kernel_size=[True, 3, 3]).replace("True", "true"), "true or false, where a number belongs"),
    "a true rate": ("sampling_rate: true", "true or false, where a number belongs"),
    "a width of a million maps": ("readout: {type: gaussian, params: {initial_std: 1e9}}", "100000"),
    "a width that is no number": ("readout: {type: gaussian, params: {initial_std: .nan}}", "initial_std"),
    "a basis of many bins": (
        "frontend: {type: temporal_basis, params: {history_bins: 90000, num_cosine_funcs: 90000}}",
        "more than 10,000,000 values in all filters",
    ),
    "a memory of many layers": ("recurrent: {type: gru, params: {n_layers: 5000}}", "100"),
    "a memory of many units": ("recurrent: {type: gru, params: {hidden_dim: 100000}}", "GiB in training"),
    "many weights in two layers": (
        "convnet: {type: vanilla, params: {channels: [90000, 90000]}}", "GiB in training, and this machine has"
    ),
    "a wide encoder": (
        "modulator: {type: film, params: {encoder_params: {dims: [100000, 100000]}}}", "GiB in training"
    ),
}  # fmt: skip


@pytest.fixture
def lab(tmp_path):
    """A session of one behaviour, and its file."""
    rng = np.random.default_rng(0)
    Session(
        name="ada", stimulus=rng.integers(0, 256, (200, 9, 9), dtype=np.uint8), bin_rate=60.0,
        responses=rng.poisson(0.5, (200, 2)).astype(np.uint8), behavior={"pupil": rng.random(200)},
        trial=np.repeat(np.arange(10), 20),
    ).save(tmp_path / "ada.safetensors")  # fmt: skip
    (tmp_path / "ada.yaml").write_text(
        "path: ada.safetensors\nkeys_lags: {stim: [0..5]}\n"
        "transforms: {pupil: {source: pupil, expose_as: behavior}, stim: {source: stim}}\n"
    )
    return tmp_path


def flags(lab, model: str) -> list[str]:
    (lab / "model.yaml").write_text(model)
    return ["--model_config", f"{lab}/model.yaml", "--dataset_configs_path", f"{lab}/ada.yaml"]


@pytest.mark.parametrize("case", MODELS)
def test_a_model_that_cannot_be_ends_with_one_line(case, lab, capsys, monkeypatch):
    text, message = MODELS[case]
    monkeypatch.setattr(stages, "_memory", lambda: 64 * 2**30)
    assert cli.main(["inspect", *flags(lab, text)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    built = "GiB" in message or "values a frame" in message  # these are found when the model is built
    assert line.startswith("neurotwin: ") and (built or f"{lab}/model.yaml" in line)
    assert message in line


def test_training_ends_with_the_same_line(lab, capsys):
    assert (
        train([*flags(lab, MODELS["a key twice"][0]), "--checkpoint_dir", f"{lab}/runs", "--accelerator", "cpu"]) == 2
    )
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert "readout is given twice" in line and not (lab / "runs").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cids: [1, 2]\ncids: [3]\n", ":2: cids is given twice, first in line 1"),
        ("keys_lags: {stim: true}", "true or false, where a number belongs"),
        ("keys_lags: {stim: [1000000000000]}", "100000"),
        ("keys_lags: {behavior: 1000000000000}", "100000"),
        ("train_val_split: true", "true or false, where a number belongs"),
        ("seed: -1", "greater than or equal to 0"),
        ("cids: [true]", "true or false, where a number belongs"),
        ("sampling: {source_rate: .inf, target_rate: 1}", "source_rate"),
        ("datafilters: {dfs: {ops: [{missing_pct: true}]}}", "true or false, where a number belongs"),
        ("visual: {a: 1}", "visual"),
    ],
)
def test_a_dataset_that_cannot_be_is_refused_by_line(text, message, tmp_path):
    (tmp_path / "ada.yaml").write_text(f"{text}\n")
    with pytest.raises(ConfigError, match=message):
        load_dataset_configs(tmp_path / "ada.yaml")


def test_labels_are_numbers_or_words_one_or_many(tmp_path):
    text = "cids: [1]\nsnr: 3.5\nvisual: [a, 1, 2.5, true, null]\nmissingth: null\ncontamth:\n"
    (tmp_path / "ada.yaml").write_text(text)
    (config,) = load_dataset_configs(tmp_path / "ada.yaml")
    assert (config.snr, config.visual, config.missingth) == ((3.5,), ("a", 1, 2.5, True, None), (None,))


def test_a_folder_is_no_file(tmp_path):
    (tmp_path / "model.yaml").mkdir()
    with pytest.raises(ConfigError, match=r"model.yaml: cannot be read \(it is a folder\)"):
        load_model_config(tmp_path / "model.yaml")
    with pytest.raises(ConfigError, match=r"holds no .yaml file"):
        load_dataset_configs(tmp_path / "model.yaml")
    (tmp_path / "sessions" / "bea.yaml").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"bea.yaml: cannot be read \(it is a folder\)"):
        load_dataset_configs(tmp_path / "sessions")


def test_merge_keys_of_yaml_are_no_duplicates(tmp_path):
    text = "block: &b {act_type: gelu}\n"
    path = tmp_path / "model.yaml"
    path.write_text(
        "convnet:\n  type: vanilla\n  params:\n    channels: [4]\n    block_configs: [{<<: &b {act_type: gelu}, "
        "norm_type: rms}]\n"
    )
    assert load_model_config(path).convnet.params.blocks[0].act_type == "gelu", text


def test_weights_are_counted_over_a_model_and_no_further(monkeypatch):
    monkeypatch.setattr(stages, "_memory", lambda: 16 * 1000)
    with reserving():
        reserve(10, 60)
        with pytest.raises(ConfigError, match=r"1\.2e\+03 weights so far"):
            reserve(600)
    with reserving():
        reserve(1000)
    with pytest.raises(ConfigError, match="use fewer channels"):
        normal(2000, std=1.0, generator=None)


def test_maps_have_a_size_that_memory_can_hold():
    assert Maps(64, 2048, 2048, bin_rate=60.0).channels == 64
    with pytest.raises(ConfigError, match="maps of 65 channels and 2048x2048 pixels"):
        Maps(65, 2048, 2048, bin_rate=60.0)
