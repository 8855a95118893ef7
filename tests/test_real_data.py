"""The examples on real recordings: what conversion keeps apart, a few steps of training and, if slow, the figures.

Skipped where the recordings are absent: set NEUROTWIN_REAL_DATA to the folder that holds `v4_images` and `retina_bars`.
"""

import io
import os
import re
import runpy
import shlex
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat

from neurotwin import Session, load_twin
from neurotwin.analysis.evaluate import evaluate
from neurotwin.data.prepare import prepare
from training.train_ddp_multidataset import main

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("NEUROTWIN_REAL_DATA", ROOT.parent / "shared" / "data"))
FEW_STEPS = ["--max_epochs", "2", "--steps_per_epoch", "2"]


def example(script: str) -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "docs/examples" / script))


def recordings(name: str) -> Path:
    if not (DATA / name).is_dir():
        pytest.skip(f"{DATA / name} is absent; set NEUROTWIN_REAL_DATA")
    return DATA / name


def train(experiment: str, folder: Path, *more: str) -> Path:
    """Run the command of docs/real_data.md on the sessions in a folder, with more flags, and return its checkpoint."""
    text = (ROOT / "docs/real_data.md").read_text(encoding="utf-8").replace("\\\n", " ")
    (line,) = re.findall(rf"^python training/\S+ (.*--experiment_name {experiment}\b.*)$", text, re.MULTILINE)
    flags = [*shlex.split(line), "--data_dir", str(folder), "--checkpoint_dir", str(folder / "checkpoints"), *more]
    flags = [str(ROOT / flag) if flag.startswith("docs/") else flag for flag in flags]
    assert main(flags) == 0
    return folder / "checkpoints" / experiment / "checkpoints" / "best.ckpt"


# --------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def v4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first two sessions of the config."""
    folder = tmp_path_factory.mktemp("v4")
    example("v4_images/convert.py")["convert"](recordings("v4_images"), folder, ("190923", "190925"))
    return folder


def test_v4_row_holds_its_image_its_counts_and_its_repeats(v4: Path) -> None:
    session, row = Session.load(v4 / "WE_190923.safetensors"), 600
    with zipfile.ZipFile(DATA / "v4_images/images_190923.zip") as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(f"image{row + 1:04d}.jpg")]
        pixels = np.asarray(Image.open(io.BytesIO(archive.read(name))), float)  # (112, 112, 3)
    halved = pixels.reshape(56, 2, 56, 2, 3).mean((1, 3)).transpose(2, 0, 1)
    assert np.abs(session.stimulus[row] - halved).max() <= 0.5
    np.testing.assert_array_equal(session.responses, np.load(DATA / "v4_images/counts_190923.npy"))
    np.testing.assert_array_equal(session.exposure, np.load(DATA / "v4_images/repeats_190923.npy"))


def test_v4_pictures_are_on_one_side_of_the_split(v4: Path) -> None:
    first, second = (Session.load(v4 / f"WE_{name}.safetensors") for name in ("190923", "190925"))
    assert ((first.split == "test") == (np.arange(1200) >= 600)).all()
    assert first.valid[600:].all()
    # The recording shows 300 images twice.
    np.testing.assert_array_equal(second.stimulus[900:], second.stimulus[:300])
    np.testing.assert_array_equal(second.split[900:], second.split[:300])
    splits = np.concatenate([s.split[s.valid] for s in (first, second)])
    grey = np.concatenate([s.stimulus[s.valid].mean(1).reshape(-1, 56 * 56) for s in (first, second)])
    grey -= grey.mean(1, keepdims=True)
    grey /= np.linalg.norm(grey, axis=1, keepdims=True)
    for part, others in (("test", ("train", "val")), ("val", ("train",))):
        assert (grey[splits == part] @ grey[np.isin(splits, others)].T).max() < 0.95
    assert np.sum(splits == "val") > 100


def test_v4_trains_and_its_score_is_that_of_evaluate(v4: Path) -> None:
    checkpoint = train("v4_images", v4, "--max_datasets", "2", *FEW_STEPS)
    scores = example("v4_images/score.py")["score"](checkpoint)
    twin = load_twin(checkpoint)
    table = evaluate(twin, prepare([spec.config for spec in twin.sessions]), "test")
    assert list(scores) == ["WE_190923"]
    np.testing.assert_allclose(scores["WE_190923"], table["correlation"][table["bins"] > 0], atol=1e-5)
    assert (table["bins"] == np.where(table["session"] == "WE_190923", 600, 0)).all()


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_v4_figures(tmp_path: Path) -> None:
    example("v4_images/convert.py")["convert"](recordings("v4_images"), tmp_path)
    scores = example("v4_images/score.py")["score"](train("v4_images", tmp_path))
    medians = {name: float(np.median(r)) for name, r in scores.items()}
    assert medians == pytest.approx(documented("v4_images"), abs=0.02)
    assert min(medians.values()) > 0.5


# --------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def retina(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten segments, the last for validation, and three repeats of the test."""
    folder = tmp_path_factory.mktemp("retina")
    example("retina_bars/convert.py")["convert"](recordings("retina_bars"), folder, segments=10, repeats=3)
    return folder


def test_retina_session_is_the_recording(retina: Path) -> None:
    session = Session.load(retina / "rat_bars.safetensors")
    source = loadmat(DATA / "retina_bars/nonrepeat_data_bars.mat")
    segment, bin_ = 7, 12345
    row = segment * 21600 + bin_
    np.testing.assert_array_equal(session.stimulus[row, :, 0], 255 * source["stimulus"][:, 0, bin_, segment])
    np.testing.assert_array_equal(session.responses[row], source["spikes_train"][:, bin_, segment])
    assert session.responses[: 10 * 21600].sum() == source["spikes_train"][..., :10].sum()
    assert session.stimulus.shape == (10 * 21600 + 3 * 4000, 31, 1)
    first, *others = (session.stimulus[session.trial == trial] for trial in (10, 11, 12))
    assert all((first == other).all() for other in others)
    split = {trial: str(session.split[session.trial == trial][0]) for trial in (0, 8, 9, 10)}
    assert split == {0: "train", 8: "train", 9: "val", 10: "test"}


def test_retina_trains_and_is_scored_as_defined(retina: Path) -> None:
    checkpoint = train("retina_bars", retina, "--batch_size", "2000", *FEW_STEPS)
    bps, r = example("retina_bars/score.py")["score"](checkpoint)
    source = loadmat(DATA / "retina_bars/test_data_bars.mat")
    movie = 255 * source["stimulus_test"].transpose(2, 0, 1)
    spikes = source["spikes_test"][..., :3].astype(float)  # (cells, bins, repeats)
    bin_rate = Session.load(retina / "rat_bars.safetensors").bin_rate
    rates = load_twin(checkpoint).predict(movie, session="rat_bars", bin_rate=bin_rate).astype(float)
    assert np.isnan(rates[:239]).all()
    for cell in range(6):
        y, rate = spikes[cell, 239:], rates[239:, cell, None]
        information = (y * np.log(rate / y.mean()) - (rate - y.mean())).sum() / np.log(2) / y.sum()
        assert bps[cell] == pytest.approx(information, abs=1e-4)
        psth = [spikes[cell, start : start + 10].mean() for start in range(240, 4000, 10)]
        predicted = [rates[start : start + 10, cell].mean() for start in range(240, 4000, 10)]
        assert r[cell] == pytest.approx(np.corrcoef(psth, predicted)[0, 1], abs=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_retina_figures(tmp_path: Path) -> None:
    example("retina_bars/convert.py")["convert"](recordings("retina_bars"), tmp_path)
    score = example("retina_bars/score.py")
    bps, r = score["score"](train("retina_bars", tmp_path))
    assert (bps > score["PUBLISHED_BPS"]).all()
    assert (r > score["PUBLISHED_R"]).all()
    assert {"bps": bps.mean(), "r": r.mean()} == pytest.approx(documented("retina_bars"), abs=0.03)


def documented(experiment: str) -> dict[str, float]:
    """Figures of the tables in docs/real_data.md."""
    text = (ROOT / "docs/real_data.md").read_text(encoding="utf-8")
    if experiment == "v4_images":
        return {name: float(r) for name, r in re.findall(r"^\| (\w\w_\d+) \| \*\*([\d.]+)\*\*", text, re.MULTILINE)}
    ((bps, r),) = re.findall(r"^\| mean \| \*\*([\d.]+)\*\* \| [^|]+ \| \*\*([\d.]+)\*\*", text, re.MULTILINE)
    return {"bps": float(bps), "r": float(r)}
