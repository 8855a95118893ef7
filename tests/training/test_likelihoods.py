"""Every likelihood through the training script: a tiny session, two short epochs."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from neurotwin.checkpoint_file import read_checkpoint
from neurotwin.config import define, registered
from neurotwin.data.session import Session
from neurotwin.metrics.table import Table
from neurotwin.models import load_twin
from training import train_ddp_multidataset as script

MODEL = {
    "frontend": {"type": "learnable_temporal", "params": {"kernel_size": 3, "num_channels": 2}},
    "convnet": {"type": "vanilla", "params": {"channels": [3], "block_configs": [{"conv_params": {"kernel_size": 3}}]}},
    "readout": {"type": "gaussian"},
}
DATA = {"keys_lags": {"stim": "0..6"}, "transforms": {"stim": {"source": "stim", "ops": ["pixelnorm"]}}}
N_BINS, N_UNITS = 360, 3


def drawn(kind: str, rng: np.random.Generator, drive: np.ndarray) -> np.ndarray:
    """Responses to a drive (T, U) between 0 and 1, scattered as a likelihood has it."""
    if kind == "poisson":
        return rng.poisson(drive)
    if kind == "negative_binomial":
        return rng.poisson(drive * rng.gamma(2.0, 0.5, drive.shape))
    if kind == "gamma":  # deconvolved calcium: often exactly zero
        return (rng.random(drive.shape) < 0.5) * rng.gamma(2.0, drive)
    return drive - 1.5 + 0.3 * rng.normal(size=drive.shape)  # dF/F: most of it lies below zero


def write_lab(folder: Path, responses: str, likelihood: str) -> list[str]:
    """A session of some responses, a model of a likelihood, and the script's flags."""
    rng = np.random.default_rng(3)
    movie = rng.integers(0, 256, (N_BINS, 6, 6), dtype=np.uint8)
    values = drawn(responses, rng, movie[:, 2, 1 : 1 + N_UNITS] / 255)
    session = Session(
        name="ada_1", bin_rate=60.0, stimulus=movie, responses=values.astype(np.float32),
        trial=np.arange(N_BINS) // 30, unit_ids=[4, 7, 9],
    )  # fmt: skip
    config = DATA | {"session": "ada_1", "path": str(session.save(folder / "ada_1.safetensors"))}
    (folder / "datasets.yaml").write_text(yaml.safe_dump(config))
    (folder / "model.yaml").write_text(yaml.safe_dump(MODEL | {"likelihood": {"type": likelihood}}))
    return [
        "--model_config", f"{folder}/model.yaml", "--dataset_configs_path", f"{folder}/datasets.yaml",
        "--checkpoint_dir", f"{folder}/runs", "--max_epochs", "2", "--steps_per_epoch", "6", "--clip_len", "8",
        "--accelerator", "cpu", "--logger", "csv", "--learning_rate", "0.02",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", list(registered("likelihood")))
def test_each_trains_and_the_best_checkpoint_is_that_of_its_figure_of_merit(tmp_path, capsys, kind):
    merit = define("likelihood", kind).figure_of_merit
    assert merit == ("bps" if kind in ("poisson", "negative_binomial") else "correlation")
    assert script.main(write_lab(tmp_path, kind, kind)) == 0
    log, folder = capsys.readouterr().err, tmp_path / "runs" / "model"
    assert re.search(rf"epoch 2/2: train_loss \S+, val_loss \S+, val_{merit} \S+, lr", log)
    rows = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    values = [float(row[f"val_{merit}"]) for row in rows]
    assert np.isfinite(
        [[float(row[n]) for n in ("train_loss", "val_loss", f"val_{merit}/ada_1")] for row in rows]
    ).all()
    best = read_checkpoint(folder / "checkpoints" / "best.ckpt")
    assert best["global_step"] == int(rows[int(np.argmax(values))]["step"])
    assert json.loads(best["twin"])["config"]["likelihood"]["type"] == kind
    table = Table.read(folder / "units.csv")
    assert set(table["likelihood"]) == {kind} and table.figure_of_merit == merit
    assert table[merit].mean() == pytest.approx(max(values), rel=1e-4)
    learned = [name for name in best["state_dict"] if "likelihood" in name]
    assert bool(learned) == (kind != "poisson")


def test_a_gaussian_learns_responses_below_zero(tmp_path):
    """What it predicts is below zero where the responses are; the best checkpoint is chosen by correlation."""
    assert script.main([*write_lab(tmp_path, "gaussian", "gaussian"), "--max_epochs", "6"]) == 0
    folder = tmp_path / "runs" / "model"
    rows = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
    values = [float(row["val_correlation"]) for row in rows]
    assert max(values) > 0.2 and float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])
    assert "val_bps" not in rows[0]
    twin, session = load_twin(folder), Session.load(tmp_path / "ada_1.safetensors")
    predicted = twin.predict(np.asarray(session.stimulus), session="ada_1", bin_rate=60.0)[twin.context :]
    assert predicted.mean() == pytest.approx(np.mean(session.responses), abs=0.2) and predicted.mean() < -0.5
    best = read_checkpoint(folder / "checkpoints" / "best.ckpt")
    assert best["global_step"] == int(rows[int(np.argmax(values))]["step"])


@pytest.mark.parametrize("kind", ["poisson", "negative_binomial"])
def test_responses_below_zero_are_refused_in_one_line_that_names_the_cure(tmp_path, capsys, kind):
    assert script.main(write_lab(tmp_path, "gaussian", kind)) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if not re.match(r"\d\d:\d\d:\d\d ", line)]
    assert line.startswith("error: ") and "session ada_1" in line and "as low as -" in line
    assert "likelihood: {type: gaussian}" in line
    assert not (tmp_path / "runs").exists()


def test_a_gamma_reads_responses_below_zero_as_zero_and_says_so(tmp_path, capsys):
    assert script.main(write_lab(tmp_path, "gaussian", "gamma")) == 0
    assert re.search(r"session ada_1: responses as low as -\S+ count as zero under the gamma", capsys.readouterr().err)
