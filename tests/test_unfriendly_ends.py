"""What used to end in a traceback or without a word, through the script and the command."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neurotwin import Session, cli, load_twin
from neurotwin.metrics.table import Table
from training import train_ddp_multidataset as script

pytestmark = pytest.mark.usefixtures("handlers")

ROOT = Path(__file__).parent.parent
MODEL = {"frontend": {"type": "learnable_temporal", "params": {"kernel_size": 3}}}
RECORDED = ("train",) * 6 + ("val",) * 2 + ("test",) * 2


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """Train on a session with some fields and keys; gives the exit code and the run's folder."""
    monkeypatch.delenv("NEUROTWIN_CACHE", raising=False)

    def train(*flags: str, fields: dict | None = None, keys: dict | None = None, model: dict = MODEL):
        rng = np.random.default_rng(0)
        values = {
            "name": "ada_1", "stimulus": rng.integers(0, 256, (200, 9, 8), dtype=np.uint8), "bin_rate": 60.0,
            "responses": rng.poisson(0.7, (200, 3)), "trial": np.repeat(np.arange(10), 20),
        }  # fmt: skip
        session = Session(**values | (fields or {}))
        path = session.save(tmp_path / f"{session.name}.safetensors")
        data = {"session": session.name, "path": str(path), "keys_lags": {"stim": "0..4"}} | (keys or {})
        (tmp_path / "data.yaml").write_text(json.dumps(data))
        (tmp_path / "model.yaml").write_text(json.dumps(model))
        runs = tmp_path / "runs"
        code = script.main([
            "--model_config", f"{tmp_path}/model.yaml", "--dataset_configs_path", f"{tmp_path}/data.yaml",
            "--checkpoint_dir", str(runs), "--experiment_name", "run", "--max_epochs", "4", "--steps_per_epoch", "2",
            "--accelerator", "cpu", "--logger", "csv", *flags,
        ])  # fmt: skip
        return code, runs / "run"

    return train


def one_line(text: str, start: str) -> str:
    (line,) = [line for line in text.splitlines() if line.startswith(start)]
    assert "Traceback" not in text
    return line


# --- ids of text ----------------------------------------------------------------------------------------------------


def test_ids_of_units_and_trials_may_be_text(lab, capsys):
    names = ["imec0 3", 'a,"b"', "é"]
    trials = [f"block {index // 20}" for index in range(200)]
    code, run = lab(fields={"unit_ids": names, "trial": trials}, keys={"cids": [names[1], names[2]]})
    assert code == 0
    assert Table.read(run / "units.csv")["unit_id"].tolist() == names[1:]
    assert cli.main(["evaluate", str(run), "--split", "train", "--output", str(run / "train.csv")]) == 0
    assert Table.read(run / "train.csv")["unit_id"].tolist() == names[1:]
    assert cli.main(["report", str(run)]) == 0 and cli.main(["compare", str(run), str(run)]) == 0
    assert "2 units in both" in capsys.readouterr().out
    twin = load_twin(run)
    assert twin.sessions[0].unit_ids == twin.predict("ada_1", part="val").unit_ids == tuple(names[1:])
    with pytest.raises(ValueError, match="cids"):
        twin.predict(Session.load(run.parents[1] / "ada_1.safetensors").__class__(
            name="ada_1", stimulus=np.zeros((50, 9, 8), np.uint8), responses=np.zeros((50, 3)), bin_rate=60.0
        ))  # fmt: skip


def test_numbers_as_text_are_other_ids(lab, capsys):
    code, _ = lab(fields={"unit_ids": ["1", "2", "3"]}, keys={"cids": [1, 2]})
    assert code == 2
    assert "cids [1, 2] are not among its 3 units (such as '1')" in one_line(capsys.readouterr().err, "error:")


# --- no validation part ---------------------------------------------------------------------------------------------

IMAGES = {
    "stimulus": np.random.default_rng(1).integers(0, 256, (50, 9, 8), dtype=np.uint8), "trial": np.arange(50),
    "responses": np.random.default_rng(2).poisson(4, (50, 3)), "exposure": np.full(50, 6.0),
}  # fmt: skip
WITHOUT = {
    "all to train on": ({}, {"train_val_split": 1}, MODEL),
    "50 images": (IMAGES, {"train_val_split": 1, "keys_lags": {"stim": 0}}, {"readout": "gaussian"}),
    "labels without val": ({"split": np.repeat(["train", "test"], 100)}, {}, MODEL),
    "val without valid bins": (
        {"split": np.repeat(["train", "val"], 100), "valid": np.arange(200) < 100}, {}, MODEL
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WITHOUT)
def test_all_data_may_be_trained_on(case, lab, capsys):
    fields, keys, model = WITHOUT[case]
    code, run = lab(fields=fields, keys=keys, model=model)
    said = capsys.readouterr().err
    assert code == 0
    assert "no session has a validation part: training ends after --max_epochs" in said
    assert "checkpoints/last.ckpt is kept; no session has a validation part to evaluate" in said
    assert json.loads((run / "run.json").read_text())["steps"] == 8
    assert not (run / "units.csv").exists() and not (run / "checkpoints/best.ckpt").exists()
    assert cli.main(["evaluate", str(run)]) == 2
    assert "no session has a valid bin in the val split" in one_line(capsys.readouterr().err, "neurotwin:")
    assert cli.main(["evaluate", str(run), "--split", "train"]) == 0
    assert np.isfinite(load_twin(run).predict("ada_1", part="train").rates).any()


@pytest.mark.parametrize(
    ("flags", "named"),
    [(("--early_stopping_patience", "3"), "--early_stopping_patience"), (("--lr_scheduler", "plateau"), "plateau")],
)
def test_what_follows_the_validation_needs_one(flags, named, lab, capsys):
    code, run = lab(*flags, keys={"train_val_split": 1})
    assert code == 2 and not run.exists()
    line = one_line(capsys.readouterr().err, "error:")
    assert named in line and "no session has a validation part" in line
    assert lab(*flags)[0] == 0


# --- responses that a model would see -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        ({"source": "robs", "expose_as": "behavior"}, "shows the model the responses that it predicts, as behavior"),
        ({"source": "robs", "expose_as": "stim"}, "shows the model the responses that it predicts, as stim"),
        ({"source": "robs", "ops": ["diff"], "expose_as": "behavior"}, "the responses that it predicts"),
        ({"source": "stim", "expose_as": "robs"}, "robs is made of the responses; set source: robs"),
        ({"source": "stim", "expose_as": "history"}, "history is made of the responses"),
        ({"source": "robs", "ops": ["symlog"], "expose_as": "history"}, "symlog is not possible"),
    ],
)
def test_responses_reach_a_model_in_no_other_way(transform, message, lab, capsys):
    code, _ = lab(keys={"transforms": {"leak": transform}})
    assert code == 2 and message in one_line(capsys.readouterr().err, "error:")


def test_a_history_of_smoothed_responses_would_hold_later_ones(lab, capsys):
    history = {"type": "mlp", "params": {"num_lags": 2, "hidden_dims": []}}
    model = {"model_type": "v1multi_history", "history_encoder": history}
    keys = {"keys_lags": {"stim": "0..4", "history": [1, 2]}}
    smooth = {"transforms": {"robs": {"source": "robs", "ops": [{"smooth": {"sigma": 1.0}}]}}}
    selected = {"transforms": {"history": {"source": "robs", "ops": ["select_units"]}}}
    assert lab(keys=keys | selected, model=model)[0] == 0
    assert lab(keys=smooth)[0] == 0, "a model without history may predict smoothed responses"
    capsys.readouterr()
    assert lab(keys=keys | smooth, model=model)[0] == 2
    assert "smooth puts later responses into earlier bins" in one_line(capsys.readouterr().err, "error:")


# --- flags and files ------------------------------------------------------------------------------------------------

FLAGS = {
    "a limit without end": ("--limit_val_batches", "inf"),
    "a limit that is no number": ("--limit_val_batches", "nan"),
    "a step of many batches": ("--accumulate_grad_batches", "999999999999"),
    "a step longer than its epoch": ("--accumulate_grad_batches", "3"),
    "many machines": ("--num_nodes", "999999999999"),
    "machines that are not there": ("--num_nodes", "7"),
    "many processes": ("--num_gpus", "4000"),
    "digits without end": ("--max_epochs", "9" * 5000),
    "a model that is a folder": ("--model_config", "{folder}"),
    "data that are a folder without files": ("--dataset_configs_path", "{folder}/empty.yaml"),
}


@pytest.mark.parametrize("case", FLAGS)
def test_flags_that_cannot_be_are_one_line(case, lab, tmp_path, capsys):
    (tmp_path / "empty.yaml").mkdir()
    name, value = FLAGS[case]
    try:
        code, run = lab(name, value.format(folder=tmp_path))
    except SystemExit as end:
        code, run = end.code, tmp_path / "runs/run"
    said = capsys.readouterr().err
    assert code == 2 and not run.exists() and len(one_line(said, "error:")) < 400


@pytest.mark.parametrize("kind", ["model_config", "dataset_configs_path"])
def test_a_folder_called_yaml_is_one_line(kind, tmp_path, capsys):
    (tmp_path / "x.yaml").mkdir()
    flags = {"model_config": ROOT / "configs/model.yaml", "dataset_configs_path": ROOT / "configs/datasets"}
    flags[kind] = tmp_path / "x.yaml"
    assert cli.main(["inspect", *(str(part) for name, path in flags.items() for part in (f"--{name}", path))]) == 2
    assert "x.yaml" in one_line(capsys.readouterr().err, "neurotwin:")


def test_no_warm_up_is_a_warm_up(lab):
    assert lab("--lr_scheduler", "cosine_warmup", "--warmup_epochs", "0")[0] == 0


@given(flags=st.lists(st.sampled_from(["--worst", "-1", "x", "--tolerance", "nan", "inf", "--what"]), max_size=4))
def test_wrong_flags_of_the_command_are_one_line(flags):
    parser = cli.make_parser()
    for command in ("compare", "evaluate", "convert"):
        said: list[str] = []
        parser._subparsers._group_actions[0].choices[command]._print_message = lambda text, file, s=said: s.append(text)
        try:
            parser.parse_args([command, "a", "b", *flags])
        except SystemExit as end:
            assert end.code == 2 and len(said) <= 1
            assert all(text.startswith("neurotwin: ") and text.count("\n") == 1 for text in said)


# --- a checkpoint's directory ---------------------------------------------------------------------------------------


def test_a_damaged_directory_falls_back_to_the_checkpoint_before(lab, capsys):
    assert lab()[0] == 0
    code, run = lab("--resume", "auto", "--max_epochs", "5")
    last = run / "checkpoints" / "last.ckpt"
    content = bytearray(last.read_bytes())
    at = content.rindex(b"PK\5\6") + 16  # where the archive's directory begins, as its last record says
    content[at : at + 4] = b"\xff\xff\xff\x7f"
    last.write_bytes(content)
    code, _ = lab("--resume", "auto", "--max_epochs", "6")
    said = capsys.readouterr().err
    assert code == 0
    assert "last.ckpt: altered" in said and "going on from" in said
    assert json.loads((run / "run.json").read_text())["epochs"] == 6


# --- the V4 example -------------------------------------------------------------------------------------------------


def test_the_v4_score_of_another_model_is_one_line(lab, capsys):
    score = runpy.run_path(str(ROOT / "docs/examples/v4_images/score.py"))["main"]
    _, run = lab()
    capsys.readouterr()
    assert score([str(run)]) == 2
    assert "neither of the sessions with test images" in one_line(capsys.readouterr().err, "error:")
    assert score([str(run / "nothing.ckpt")]) == 2


def test_the_v4_conversion_takes_any_recording(tmp_path, capsys):
    example = runpy.run_path(str(ROOT / "docs/examples/v4_images/convert.py"))
    rng = np.random.default_rng(0)
    _write_images(tmp_path / "images_250101.zip", rng, 30)
    np.save(tmp_path / "counts_250101.npy", rng.poisson(5, (30, 4)).astype(np.int16))
    assert example["main"]([str(tmp_path), str(tmp_path / "out")]) == 2
    assert "no repeats_250101.npy" in one_line(capsys.readouterr().err, "error:")
    np.save(tmp_path / "repeats_250101.npy", np.full(30, 6))
    assert example["main"]([str(tmp_path), str(tmp_path / "out")]) == 0
    session = Session.load(tmp_path / "out" / "V4_250101.safetensors")
    assert session.n_bins == 30 and set(session.split) == {"train", "val"} and session.valid.all()
    assert example["main"]([str(tmp_path), "--names", "190923"]) == 2
    assert example["main"]([str(tmp_path / "nothing")]) == 2


def _write_images(path: Path, rng: np.random.Generator, number: int) -> None:
    image = pytest.importorskip("PIL.Image")
    zipfile = pytest.importorskip("zipfile")
    with zipfile.ZipFile(path, "w") as archive:
        for index in range(number):
            with archive.open(f"image{index + 1:04}.jpg", "w") as file:
                image.fromarray(rng.integers(0, 256, (112, 112, 3), dtype=np.uint8)).save(file, "JPEG")
