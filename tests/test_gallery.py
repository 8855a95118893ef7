"""The examples of the gallery run, one after another in one folder, and say what they promise."""

import runpy
from pathlib import Path

import numpy as np
import pytest

GALLERY = Path(__file__).parent.parent / "docs/gallery"
NAMES = ("own_data", "training", "reading_a_report", "receptive_fields", "exciting_stimuli", "eye_movements")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the example of training has run."""
    path = tmp_path_factory.mktemp("gallery")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        assert runpy.run_path(str(GALLERY / "training.py"))["code"] == 0
    return path


def test_all_examples_are_tested() -> None:
    assert {path.stem for path in GALLERY.glob("*.py")} == set(NAMES)


def test_own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = runpy.run_path(str(GALLERY / "own_data.py"))
    np.testing.assert_array_equal(np.asarray(found["again"].responses), found["counts"])


def test_training_and_its_report(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    runpy.run_path(str(GALLERY / "reading_a_report.py"))
    assert "ada_demo1" in (folder / "report.html").read_text(encoding="utf-8")


def test_receptive_fields(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    overlaps = runpy.run_path(str(GALLERY / "receptive_fields.py"))["overlaps"]
    assert overlaps.shape == (24,) and (overlaps >= 0).all() and (overlaps <= 1 + 1e-6).all() and overlaps.std() > 0


def test_exciting_stimuli(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    table = runpy.run_path(str(GALLERY / "exciting_stimuli.py"))["table"]
    assert list(table["unit_id"]) == ["2", "5"] and (table["rate_hz"] > table["blank_hz"]).all()


def test_eye_movements(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    table = runpy.run_path(str(GALLERY / "eye_movements.py"))["table"]
    assert len(table["r.stabilised"]) == 24 and np.nanmedian(table["r.stabilised"]) < 0.99
