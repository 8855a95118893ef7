"""Conversion of many sources: what is made, what is left as it is, what is refused."""

import io
import logging
import os
import textwrap
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from neurotwin.config import registry
from neurotwin.data import progress as progress_module
from neurotwin.data.convert import convert_recordings, expand_sources, parse_options, report_line
from neurotwin.data.formats import Format, read_session
from neurotwin.data.progress import ProgressDisplay
from neurotwin.data.session import Session, SessionError
from neurotwin.data.streamed import Streamed


def write_source(path, seed=0, n_bins=60, **more):
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {"stimulus": rng.integers(0, 256, (n_bins, 4, 4)).astype(np.uint8), "responses": rng.random((n_bins, 2))}
    np.savez(path, **arrays, **{"bin_rate": 30.0, "behavior.pupil": rng.random(n_bins)} | more)
    return path


def states(outcomes):
    return [outcome.state for outcome in outcomes]


@pytest.fixture
def raw(tmp_path):
    for seed, name in enumerate(("ada_1", "ada_2", "bea_1")):
        write_source(tmp_path / "raw" / f"{name}.npz", seed)
    return tmp_path / "raw"


@pytest.fixture
def new_format():
    """Registers formats for one test only."""
    known = dict(registry._DEFINITIONS["format"])
    yield registry.register
    registry._DEFINITIONS["format"].clear()
    registry._DEFINITIONS["format"].update(known)


@pytest.mark.parametrize("jobs", [1, 2])
def test_many_sources_become_the_sessions_that_their_reader_gives(raw, tmp_path, jobs, caplog):
    caplog.set_level(logging.INFO)
    (raw / "broken.npz").write_bytes(b"PK")
    outcomes = convert_recordings([f"{raw}/*"], tmp_path / "data", jobs=jobs)
    assert [o.source.name for o in outcomes] == ["ada_1.npz", "ada_2.npz", "bea_1.npz", "broken.npz"]
    assert states(outcomes) == ["converted"] * 3 + ["failed"]
    for outcome in outcomes[:3]:
        made, expected = Session.load(outcome.target), read_session(outcome.source)
        assert made.info["source"] == str(outcome.source.resolve())
        made.info = expected.info
        assert outcome.target == tmp_path / "data" / f"{expected.name}.safetensors"
        np.testing.assert_array_equal(made.stimulus, expected.stimulus)
        np.testing.assert_array_equal(made.responses, expected.responses)
        assert made.behavior.keys() == expected.behavior.keys()
    assert outcomes[3].target is None and outcomes[3].text.count("\n") == 0
    assert str(raw / "broken.npz") in outcomes[3].text
    assert sum("2 units; 0.0 min at 30 Hz; types movie" in message for message in caplog.messages) == 3
    assert sorted(p.name for p in (tmp_path / "data").iterdir()) == [
        "ada_1.safetensors", "ada_2.safetensors", "bea_1.safetensors",
    ]  # fmt: skip


def test_a_restart_does_only_what_has_changed(raw, tmp_path):
    target = tmp_path / "data"
    convert_recordings([f"{raw}/*"], target)
    before = {path: path.stat().st_mtime_ns for path in target.iterdir()}
    assert states(convert_recordings([f"{raw}/*"], target)) == ["unchanged"] * 3
    assert {path: path.stat().st_mtime_ns for path in target.iterdir()} == before

    write_source(raw / "ada_2.npz", seed=9)  # of the same size
    assert states(convert_recordings([f"{raw}/*"], target)) == ["unchanged", "converted", "unchanged"]
    np.testing.assert_array_equal(
        Session.load(target / "ada_2.safetensors").responses, read_session(raw / "ada_2.npz").responses
    )
    later = convert_recordings([f"{raw}/*"], target, options={"subject": "eve"})
    assert states(later) == ["converted"] * 3 and Session.load(later[0].target).subject == "eve"
    assert states(convert_recordings([f"{raw}/*"], target, options={"subject": "eve"})) == ["unchanged"] * 3
    assert states(convert_recordings([f"{raw}/*"], target, options={"subject": "eve"}, force=True)) == ["converted"] * 3


def test_a_folder_of_sources_that_was_moved_is_known_again(raw, tmp_path):
    convert_recordings([f"{raw}/*"], tmp_path / "data")
    raw.rename(tmp_path / "elsewhere")
    assert states(convert_recordings([f"{tmp_path}/elsewhere/*"], tmp_path / "data")) == ["unchanged"] * 3


def test_a_copy_of_a_source_is_another_source(raw, tmp_path):
    (source,) = convert_recordings([raw / "ada_1.npz"], tmp_path / "data")
    copy = tmp_path / "copy" / "ada_1.npz"
    copy.parent.mkdir()
    copy.write_bytes((raw / "ada_1.npz").read_bytes())
    stamp = (raw / "ada_1.npz").stat().st_mtime_ns
    os.utime(copy, ns=(stamp, stamp))
    content = source.target.read_bytes()
    (outcome,) = convert_recordings([copy], tmp_path / "data")
    assert outcome.state == "failed" and "was made from" in outcome.text and "--force" in outcome.text
    assert source.target.read_bytes() == content


@pytest.mark.parametrize("kind", ["session", "text", "cut off"])
def test_files_of_other_origin_are_never_overwritten(raw, tmp_path, kind):
    target = tmp_path / "data" / "ada_1.safetensors"
    target.parent.mkdir()
    if kind == "text":
        target.write_text("precious")
    else:
        read_session(raw / "ada_1.npz").save(target)
    if kind == "cut off":
        target.write_bytes(target.read_bytes()[:-5])
    content = target.read_bytes()
    outcomes = convert_recordings([f"{raw}/*"], target.parent)
    assert states(outcomes) == ["failed", "converted", "converted"]
    assert str(target) in outcomes[0].text and "--force" in outcomes[0].text
    assert target.read_bytes() == content
    assert states(convert_recordings([f"{raw}/*"], target.parent, force=True)) == ["converted"] * 3
    assert Session.load(target).info["source"] == str((raw / "ada_1.npz").resolve())


@pytest.mark.parametrize(("force", "jobs"), [(False, 1), (True, 1), (True, 2)])
def test_two_sources_of_one_name_are_told(tmp_path, force, jobs):
    a, b = (write_source(tmp_path / lab / "data.npz", seed) for seed, lab in enumerate("ab"))
    outcomes = convert_recordings([a, b], tmp_path / "out", force=force, jobs=jobs)
    assert sorted(states(outcomes)) == ["converted", "failed"]
    (failed,), (made,) = ([o for o in outcomes if o.state == state] for state in ("failed", "converted"))
    assert str(failed.source) in failed.text and str(made.source) in failed.text and "--name" in failed.text
    np.testing.assert_array_equal(Session.load(made.target).responses, read_session(made.source).responses)


def test_one_source_may_name_its_file(raw, tmp_path):
    target = tmp_path / "deep" / "mine.safetensors"
    assert states(convert_recordings([raw / "ada_1.npz"], target, options={"name": "x_1"})) == ["converted"]
    assert Session.load(target).name == "x_1"
    assert states(convert_recordings([raw / "ada_1.npz"], target, options={"name": "x_1"})) == ["unchanged"]


@pytest.mark.parametrize(
    ("sources", "target", "options", "message"),
    [
        (["raw/*"], "one.safetensors", {}, "one file cannot hold 3 recordings"),
        (["raw/*"], "data", {"name": "x"}, "cannot share a name"),
        (["raw/ada_1.npz"], "raw/ada_2.npz", {}, "is a file; give a folder"),
        ([], "data", {}, "no source is given"),
    ],
)
def test_requests_that_cannot_be_met(raw, tmp_path, monkeypatch, sources, target, options, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SessionError, match=message):
        convert_recordings(sources, target, options=options)
    assert not (tmp_path / "data").exists()
    with pytest.raises(SessionError, match="--jobs 0"):
        convert_recordings(["raw/ada_1.npz"], "data", jobs=0)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("raw/absent.npz", {}, "raw/absent.npz: no such file"),
        ("raw/no*", {}, r"raw/no\*: no such file"),
        ("raw", {}, r"holds recordings, but is none; give the pattern 'raw/\*'"),
        ("raw/ada_1.npz", {"bin_rat": "3"}, "options of format arrays: unknown key 'bin_rat'; did you mean 'bin_rate'"),
        ("raw/ada_1.npz", {"bin_rate": "fast"}, "options of format arrays: bin_rate: "),
        ("raw/ada_1.npz", {"bin_rate": "-3"}, "options of format arrays: bin_rate: "),
        ("raw/ada_1.npz", {"name": "a/b"}, "a name must not be empty"),
    ],
)
def test_a_failing_source_says_what_is_wrong(raw, tmp_path, monkeypatch, source, options, message):
    monkeypatch.chdir(tmp_path)
    (outcome,) = convert_recordings([source], "data", options=options)
    assert outcome.state == "failed" and "raw" in outcome.text
    with pytest.raises(SessionError, match=message):
        raise SessionError(outcome.text)
    assert not list(tmp_path.glob("data/*"))


def test_sources_are_taken_once_and_sorted_and_sessions_are_no_match(raw, tmp_path):
    convert_recordings([raw / "bea_1.npz"], raw)
    (raw / ".hidden.npz").touch()
    found = expand_sources([raw / "bea_1.npz", f"{raw}/*", f"{raw}/../raw/ada_1.npz"])
    assert [path.name for path in found] == ["bea_1.npz", "ada_1.npz", "ada_2.npz"]
    strange = write_source(tmp_path / "a[1].npz")  # a name that is also a pattern
    assert expand_sources([strange]) == [strange]


@pytest.mark.parametrize(
    ("pairs", "message"), [(["a"], "KEY=VALUE"), (["=1"], "KEY=VALUE"), (["a=1", "a=2"], "twice"), (["a=[1"], "list")]
)
def test_options_that_are_no_options(pairs, message):
    with pytest.raises(SessionError, match=message):
        parse_options(pairs)


def test_options_are_text_unless_they_are_lists_or_null():
    assert parse_options(["a=1", "b=[1, x]", "c=null", "d=", "e={k: 2}", "f=no"]) == {
        "a": "1", "b": [1, "x"], "c": None, "d": "", "e": {"k": 2}, "f": "no",
    }  # fmt: skip


def test_a_file_that_an_option_names_counts_with_its_content(new_format, raw, tmp_path):
    @new_format("format", "mapped")
    class Mapped(Format):
        mapping: str = ""

        @classmethod
        def recognises(cls, path):
            return False

        def read(self, path):
            return Session(
                name="m", stimulus=np.zeros((3, 2, 2), np.uint8), responses=np.ones((3, 1)), bin_rate=1.0,
                notes=(Path(self.mapping).read_text(),),
            )  # fmt: skip

    mapping = tmp_path / "mapping.yaml"
    arguments = {"format": "mapped", "options": {"mapping": str(mapping)}}
    mapping.write_text("first")
    assert states(convert_recordings([raw], tmp_path / "data", **arguments)) == ["converted"]
    assert states(convert_recordings([raw], tmp_path / "data", **arguments)) == ["unchanged"]
    mapping.write_text("second, longer")
    (outcome,) = convert_recordings([raw], tmp_path / "data", **arguments)
    assert outcome.state == "converted" and outcome.text.endswith("second, longer.")


def test_files_beside_a_source_count_where_the_reader_names_them(new_format, tmp_path):
    @new_format("format", "beside")
    class Beside(Format):
        @classmethod
        def recognises(cls, path):
            return path.suffix == ".beside"

        def companions(self, path):
            return [path.with_name("quality.txt")]

        def read(self, path):
            return Session(name="b", stimulus=np.zeros((3, 2), np.uint8), responses=np.ones((3, 1)), bin_rate=1.0)

    source = tmp_path / "x.beside"
    source.touch()
    assert states(convert_recordings([source], tmp_path / "data")) == ["converted"]
    assert states(convert_recordings([source], tmp_path / "data")) == ["unchanged"]
    (tmp_path / "quality.txt").write_text("good")
    assert states(convert_recordings([source], tmp_path / "data")) == ["converted"]


def test_an_error_that_no_reader_foresaw_is_one_line(new_format, raw, tmp_path):
    @new_format("format", "faulty")
    class Faulty(Format):
        def read(self, path):
            return {}["absent\nkey"]

    (outcome,) = convert_recordings([raw], tmp_path / "data", format="faulty")
    assert outcome.state == "failed" and "KeyError" in outcome.text and "\n" not in outcome.text


def test_a_killed_process_takes_only_its_source_along(new_format, raw, tmp_path, monkeypatch):
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "lethal_format.py").write_text(
        textwrap.dedent("""
            import os
            from neurotwin.config import register
            from neurotwin.data.formats import Format
            from neurotwin.data.formats.arrays import Arrays

            @register("format", "lethal")
            class Lethal(Format):
                def read(self, path):
                    if path.stem == "ada_2":
                        os._exit(9)
                    return Arrays().read(path)
        """)
    )
    monkeypatch.syspath_prepend(tmp_path / "modules")
    __import__("lethal_format")
    outcomes = convert_recordings([f"{raw}/*"], tmp_path / "data", format="lethal", jobs=2)
    assert states(outcomes) == ["converted", "failed", "converted"]
    assert "killed" in outcomes[1].text and "ada_2.npz" in outcomes[1].text


def test_a_long_recording_is_never_held_whole(new_format, raw, tmp_path):
    n_bins, side = 40_000, 64  # 164 MB of frames

    @new_format("format", "long")
    class Long(Format):
        def read(self, path):
            frames = Streamed.of_parts(
                [1000] * (n_bins // 1000),
                lambda part: np.full((1000, side, side), part, np.uint8),
                np.zeros((side, side), np.uint8),
            )
            return Session(name="long", stimulus=frames, responses=np.ones((n_bins, 1), np.uint8), bin_rate=60.0)

    tracemalloc.start()
    (outcome,) = convert_recordings([raw], tmp_path / "data", format="long")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert outcome.state == "converted" and peak < 80e6
    assert Session.load(outcome.target, verify=False).stimulus[::1000, 0, 0].tolist() == list(range(40))


def test_the_report_of_a_session():
    session = Session(
        name="a_1", stimulus=np.zeros((1800, 2, 2), np.uint8), responses=np.ones((1800, 3)), bin_rate=30.0,
        stimulus_type=["noise"] * 600 + ["images"] * 1200,
        behavior={"pupil": np.zeros(1800), "eye": np.zeros((1800, 2))},
        valid=np.arange(1800) >= 450, notes=("2 units left out: noisy.", "No trials found"), info={"units_found": "5"},
    )  # fmt: skip
    assert report_line(session) == (
        "3 of 5 units; 1.0 min at 30 Hz; types images (0.7 min), noise (0.3 min); behaviour pupil, eye x 2; 75.0% "
        "valid. 2 units left out: noisy. No trials found."
    )


def test_progress_is_logged_with_the_time_left(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    clock = iter([0.0, 10.0, 40.0, 50.0])
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: next(clock))
    with ProgressDisplay("converting", Console(file=io.StringIO())) as display:
        display.update(0.1, "0 of 2")  # too soon for a line
        display.update(0.4, "0 of 2")
        display.update(0.5, "1 of 2")
        display.say("done")
    assert caplog.messages == ["converting 0 of 2 (40%), 1:00 left", "done"]


def test_progress_on_a_terminal_is_a_bar():
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with ProgressDisplay("converting", console) as display:
        display.update(0.25, "1 of 4")
        display.say("[a] -> b")
        display.bar.refresh()
    shown = console.file.getvalue()
    assert "converting 1 of 4" in shown and "25%" in shown and "[a] -> b" in shown
