"""The commands that take recordings: `neurotwin convert` and `neurotwin inspect`."""

import re

import numpy as np
import pytest

from neurotwin.cli import main
from neurotwin.data.formats import nwb
from neurotwin.data.session import Session, SessionError


@pytest.fixture
def raw(tmp_path, monkeypatch):
    """A folder with two recordings, which is also the working folder's `raw`."""
    (tmp_path / "raw").mkdir()
    rng = np.random.default_rng(0)
    for name in ("ada_7", "bea_2"):
        np.savez(
            tmp_path / "raw" / f"{name}.npz", stimulus=rng.integers(0, 256, (300, 6, 6)).astype(np.uint8),
            responses=rng.poisson(0.5, (300, 2)),
        )  # fmt: skip
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, [line for line in err.splitlines() if line.startswith("neurotwin: ")]


def test_convert_prints_the_files_and_can_be_repeated(raw, capsys):
    for _ in range(2):
        code, out, wrong = run(capsys, "convert", "raw/*", "data", "--bin_rate", 60)
        assert (code, out.split(), wrong) == (0, ["data/ada_7.safetensors", "data/bea_2.safetensors"], [])
    assert Session.load("data/ada_7.safetensors").bin_rate == 60
    code, out, wrong = run(capsys, "convert", "raw/ada_7.npz", "raw/bea_2.npz", "data", "--options", "bin_rate=30")
    assert code == 0 and Session.load("data/bea_2.safetensors").bin_rate == 30


def test_convert_goes_on_after_a_failure(raw, capsys):
    (raw / "raw" / "broken.npz").write_bytes(b"PK")
    code, out, wrong = run(capsys, "convert", "raw/*", "data", "--bin_rate", 60)
    assert code == 1 and len(out.split()) == 2
    assert len(wrong) == 1 and "raw/broken.npz" in wrong[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["convert", "raw/absent.npz", "data"], "no such file"),
        (["convert", "raw/ada_7.npz", "data"], "give --bin_rate"),
        (["convert", "raw/ada_7.npz", "data", "--bin_rate", "0"], "bin_rate: Input should be greater than 0"),
        (["convert", "raw/ada_7.npz", "data", "--stimulus", "x"], "unknown key 'stimulus'"),
        (["convert", "raw/ada_7.npz", "data", "--options", "rate=3"], "unknown key 'rate'"),
        (["convert", "raw/ada_7.npz", "data", "--options", "rate"], "KEY=VALUE"),
        (["convert", "raw/ada_7.npz", "data", "--name", "a", "--options", "name=b"], "give one of them"),
        (["convert", "raw/*", "one.safetensors"], "one file cannot hold 2 recordings"),
        (["convert", "raw", "data"], "give the pattern 'raw/*'"),
        (["inspect", "raw"], "not a recording of a known layout"),
        (["inspect", "raw/ada_7.npz"], "give --bin_rate"),
        (["inspect", "absent.safetensors"], "absent.safetensors: no such session file"),
        (["inspect", "raw/ada_7.npz", "--model_config", "m.yaml"], "one of the two"),
        (["inspect", "--model_config", "m.yaml"], "needs --dataset_configs_path"),
        (["inspect"], "give a recording, or --model_config"),
        (["inspect", "raw/ada_7.npz", "--bin_rate", "60", "--write_mapping", "m.yaml"], "is for NWB files"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(raw, capsys, arguments, message):
    before = sorted(raw.rglob("*"))
    code, out, wrong = run(capsys, *arguments)
    assert code == 2 and out == "" and len(wrong) == 1 and message in wrong[0]
    assert sorted(raw.rglob("*")) == before


def test_inspect_shows_a_recording_a_session_and_a_folder(raw, capsys):
    code, before, _ = run(capsys, "inspect", "raw/ada_7.npz", "--bin_rate", 60, "--html", "pages/ada.html")
    assert code == 0 and re.search(r"^movie +1 +300 +0\.1 +100\.0%", before, re.M)
    assert (raw / "pages" / "ada.html").read_text().startswith("<!doctype html>")
    run(capsys, "convert", "raw/*", "data", "--bin_rate", 60)
    code, after, _ = run(capsys, "inspect", "data/ada_7.safetensors")
    assert code == 0 and after.splitlines()[:5] == before.splitlines()[:5]
    assert re.search(r"^source: .*raw/ada_7\.npz$", after, re.M)
    code, table, _ = run(capsys, "inspect", "data")
    assert code == 0 and re.search(r"^ada_7 +ada +2 +300 +60", table, re.M) and "bea_2" in table


def test_an_altered_session_file_is_told(raw, capsys):
    run(capsys, "convert", "raw/ada_7.npz", "data", "--bin_rate", 60)
    file = raw / "data" / "ada_7.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    code, _, wrong = run(capsys, "inspect", file)
    assert code == 2 and "altered" in wrong[0]


def test_the_mapping_of_an_nwb_file_is_shown_and_written(raw, capsys, monkeypatch):
    (raw / "x.nwb").touch()
    session = Session(name="x", stimulus=np.zeros((9, 2, 2), np.uint8), responses=np.ones((9, 1)), bin_rate=1.0)
    monkeypatch.setattr(nwb, "nwb_mapping", lambda path: f"stimulus: {path.name}", raising=False)
    monkeypatch.setattr(nwb.NWB, "read", lambda self, path: session)
    code, out, _ = run(capsys, "inspect", "x.nwb", "--write_mapping", "map.yaml", "--html", "x.html")
    assert code == 0 and out.startswith("stimulus: x.nwb\nSession 'x'")
    assert (raw / "map.yaml").read_text() == "stimulus: x.nwb" and "stimulus: x.nwb" in (raw / "x.html").read_text()

    def refuse(self, path):
        raise SessionError("two movies")

    monkeypatch.setattr(nwb.NWB, "read", refuse)
    code, out, wrong = run(capsys, "inspect", "x.nwb")  # the mapping is what is needed then
    assert (code, out, wrong) == (0, "stimulus: x.nwb\n", [])
    code, _, wrong = run(capsys, "inspect", "x.nwb", "--html", "y.html")
    assert code == 2 and "two movies" in wrong[0]


def test_help_lists_the_options_of_every_format(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["convert", "--help"])
    out = capsys.readouterr().out
    assert exit.value.code == 0 and "  sensorium: " in out and "fields of Session." in out
