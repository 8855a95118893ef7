"""The pages on recordings hold what they promise: three commands lead from the file to a trained model."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from neurotwin.cli import main
from neurotwin.data.session import Session
from training.train_ddp_multidataset import main as train

ROOT = Path(__file__).parent.parent
PAGES = sorted(page for page in (ROOT / "docs/recordings").glob("*.md") if page.name != "README.md")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EXTRAS = {"h5py", "hdmf", "pynwb", "remfile"}
TINY = ["--max_epochs", "1", "--steps_per_epoch", "2", "--batch_size", "32", "--accelerator", "cpu"]


def commands(page: Path) -> list[list[str]]:
    """The words of each command in the page's block under "Three commands"."""
    _, found, text = page.read_text(encoding="utf-8").partition("Three commands")
    assert found, f"{page.name} has no part 'Three commands'"
    (block,) = [body for language, body in BLOCK.findall(text) if language == "bash"]
    return [shlex.split(line) for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def build(builder: Callable[[str], ModuleType], page: Path, folder: Path) -> None:
    """Let the builder of the page's format write a recording into the folder."""
    file = ROOT / "tests" / "builders" / f"{page.stem}.py"
    assert file.exists(), f"{page.name} has no builder {file.name}"
    try:
        builder(page.stem).build(folder)
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        pytest.skip(f"needs the extra {error.name}")


@pytest.fixture(params=PAGES, ids=lambda page: page.stem)
def place(request, tmp_path, monkeypatch, builder):
    """A page, in a working folder with the recording under `raw` and the page's files."""
    page = request.param
    monkeypatch.chdir(tmp_path)
    build(builder, page, tmp_path / "raw")
    written = sorted(path.name for path in (tmp_path / "raw").iterdir())
    named = tmp_path / commands(page)[0][2]
    assert named.exists(), f"{page.name} converts {named.name}, its builder writes {written}"
    for language, text in BLOCK.findall(page.read_text(encoding="utf-8")):
        name = re.match(r"# file: (\S+)\n", text)
        if language == "yaml" and name:
            (tmp_path / name[1]).write_text(text, encoding="utf-8")
    return page


def convert(page: Path, capsys: pytest.CaptureFixture) -> Path:
    assert main(commands(page)[0][1:]) == 0, capsys.readouterr().err
    return Path(capsys.readouterr().out.strip())


def test_the_recording_is_converted_and_shown(place, capsys):
    first, second, third = commands(place)
    assert first[:2] == ["neurotwin", "convert"] and second[:2] == ["neurotwin", "inspect"]
    assert third[:2] == ["python", "training/train_ddp_multidataset.py"]
    target = convert(place, capsys)
    assert second[2] == str(target)
    assert main([*second[1:], "--html", "page.html"]) == 0
    session = Session.load(target)
    assert f"Session {session.name!r}" in capsys.readouterr().out
    assert session.name in Path("page.html").read_text(encoding="utf-8")
    assert main(first[1:]) == 0 and capsys.readouterr().out.strip() == str(target)  # again: nothing is to be done


def test_a_model_is_trained_on_it(place, capsys):
    convert(place, capsys)
    assert train([*commands(place)[2][2:], *TINY, "--experiment_name", "page"]) == 0
    assert Path("checkpoints/page/units.csv").exists()
