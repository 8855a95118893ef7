"""The scripts of the gallery run, and find what their text says, where the truth is known."""

import runpy
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
GALLERY = runpy.run_path(str(ROOT / "docs/website/gallery.py"))
NAMES = {path.stem for path in (ROOT / "docs/gallery").glob("*.py")}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs scripts one after another in one empty folder; gives the cells and the variables of the last one."""
    monkeypatch.chdir(tmp_path)

    def run(*names: str):
        results = [GALLERY["run"](ROOT / f"docs/gallery/{name}.py") for name in names]
        return results[-1]

    return run


def drawn(cells: list) -> int:
    return sum(len(cell.images) for cell in cells)


def test_the_first_page_names_every_script() -> None:
    text = (ROOT / "docs/gallery/README.md").read_text(encoding="utf-8")
    assert {name for name in NAMES if f"({name}.py)" in text} == NAMES


def test_cells_are_text_or_code_and_know_their_lines() -> None:
    script = '# %% [markdown]\n# # Title\n#\n# Text.\n\n# %%\n# a comment\nprint("x")\n'
    text, code = GALLERY["cells"](script)
    assert (text.source, text.is_text, text.line) == ("# Title\n\nText.", True, 1)
    assert (code.source, code.is_text, code.line) == ('# a comment\nprint("x")', False, 6)


def test_a_script_is_run_cell_by_cell(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import matplotlib.pyplot as plt\n# %% [markdown]\n# Text.\n\n# %%\nx = 2\nprint(x)\n"
        "# %%\nimport matplotlib.pyplot as plt\n_ = plt.figure()\n# %%\ny = x / 0\n"
    )
    with pytest.raises(ZeroDivisionError) as error:
        GALLERY["run"](script)
    assert error.traceback[-1].lineno + 1 == 12, "the error names the line of the script"
    script.write_text(script.read_text().replace("x / 0", "x + 1"))
    cells, variables = GALLERY["run"](script)
    assert [cell.printed for cell in cells] == ["", "2\n", "", ""] and variables["y"] == 3
    assert [len(cell.images) for cell in cells] == [0, 0, 1, 0]
    assert cells[2].images[0].startswith(b"\x89PNG")


def test_own_data(run) -> None:
    cells, variables = run("own_data")
    np.testing.assert_array_equal(np.asarray(variables["again"].responses), variables["counts"])
    assert variables["strength"].argmax() == variables["delay"] and drawn(cells) == 1
    assert "88% of the responses are valid" in "".join(cell.printed for cell in cells)  # 53 of 60 bins of a trial


def test_training_and_its_report(run) -> None:
    cells, variables = run("training", "reading_a_report")
    assert variables["units"]["bps"].mean() > 0.1, "it has learned something"
    assert (variables["units"]["bps"] < variables["units"]["oracle_bps"]).all() and drawn(cells) == 2
    assert variables["predicted"].shape == variables["observed"].shape and np.isfinite(variables["predicted"]).all()
    assert "ada_demo1" in Path("report.html").read_text(encoding="utf-8")


def test_receptive_fields(run) -> None:
    cells, variables = run("receptive_fields")
    assert len(variables["distance"]) == 24 and np.median(variables["distance"]) < 1.5  # pixels
    assert np.mean(variables["apart"] < 15) > 0.9 and drawn(cells) == 2


def test_exciting_stimuli(run) -> None:
    cells, variables = run("exciting_stimuli")
    assert np.mean(variables["own"] > variables["natural"]) > 0.9 and drawn(cells) == 2
    contrast = np.sqrt(np.square(variables["images"] / 127.0 - 1).mean((1, 2)))
    np.testing.assert_allclose(contrast, 0.1, rtol=0.02)


def test_eye_movements(run) -> None:
    cells, variables = run("eye_movements")
    recorded, scaled, _, stabilised = map(np.nanmedian, variables["scores"])
    assert recorded > scaled > stabilised and drawn(cells) == 2
    averages = [variables["around"].arrays[f"{name}.ada_demo1"].mean(axis=1) for name in ("data", "twin")]
    assert np.corrcoef(*averages)[0, 1] > 0.8
