"""Files that are torn, altered, in the way or out of room: a clear line, and nothing broken stays behind."""

import multiprocessing
import os
import resource
import signal
import time
from dataclasses import replace

import numpy as np
import pytest

from neurotwin import files, tensorfile
from neurotwin.data import prepare as prepare_module
from neurotwin.data.prepare import prepare_session
from neurotwin.data.session import SessionError
from neurotwin.tensorfile import TensorFileError, load_arrays, save_arrays

fork = multiprocessing.get_context("fork")


@pytest.fixture
def config(factory, tmp_path):
    factory.write_session(tmp_path)
    return factory.configure(tmp_path)


@pytest.fixture
def prepared_in(tmp_path):
    """Names of the files beside a session, and its prepared file."""
    return lambda pattern="*": sorted((tmp_path / "prepared").glob(pattern))


@pytest.fixture(autouse=True)
def no_shared_cache(monkeypatch):
    monkeypatch.delenv("NEUROTWIN_CACHE", raising=False)


def test_an_altered_or_torn_prepared_file_is_refused_by_name(factory, config, prepared_in):
    prepare_session(config)
    (cached,) = prepared_in("*.safetensors")
    whole = cached.read_bytes()
    factory.flip(cached)
    with pytest.raises(SessionError, match=rf"{cached.name}: its content does not match its checksum.*delete it"):
        prepare_session(config)
    cached.write_bytes(whole[:-10])
    with pytest.raises(SessionError, match=rf"{cached.name}: .*cut off.*delete it"):
        prepare_session(config)
    cached.unlink()
    assert prepare_session(config).n_bins == 240


def test_a_recording_that_was_altered_after_it_was_prepared_is_refused(factory, config, tmp_path):
    prepare_session(config)
    factory.flip(tmp_path / "ada_01.safetensors")
    with pytest.raises(SessionError, match=r"ada_01.safetensors: its content does not match its checksum"):
        prepare_session(config)


def test_content_is_compared_once_and_again_when_a_file_has_changed(config, prepared_in, monkeypatch):
    compared, load = [], load_arrays

    def watched(path, *, verify=True):
        compared.extend([path.name] if verify else [])
        return load(path, verify=verify)

    monkeypatch.setattr(prepare_module, "load_arrays", watched)
    prepare_session(config)
    assert compared == ["ada_01.safetensors"]
    prepare_session(config)
    assert compared == ["ada_01.safetensors"]
    (cached,) = prepared_in("*.safetensors")
    os.utime(cached)
    prepare_session(config)
    assert compared[1:] == [cached.name]
    prepared_in("*.checked.json")[0].unlink()
    prepare_session(config)
    assert compared[2:] == ["ada_01.safetensors", cached.name]
    prepare_session(config)
    assert len(compared) == 4


def test_a_note_that_is_no_note_is_made_anew(config, prepared_in):
    prepare_session(config)
    (note,) = prepared_in("*.checked.json")
    text = note.read_text()
    for broken in ("", "{", "[]", "null", '{"source": 3}'):
        note.write_text(broken)
        prepare_session(config)
        assert note.read_text() == text, broken


def test_a_cache_that_cannot_be_written_is_read(config, prepared_in, monkeypatch):
    first = prepare_session(config)
    prepared_in("*.json")[0].unlink()

    def read_only(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(files.os, "replace", read_only)
    np.testing.assert_array_equal(prepare_session(config).responses, first.responses)


@pytest.fixture
def limit_files():
    """Let no file grow beyond some bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, ignored)


def test_a_full_disk_is_one_line_and_leaves_nothing(config, prepared_in, limit_files):
    limit_files(20_000)  # the stimulus as float32 takes 29 kB
    with pytest.raises(SessionError, match=r"'ada_01': prepared arrays cannot be written to .*prepared.*free space"):
        prepare_session(config, dtype="float32")
    assert prepared_in() == []


def test_a_file_that_finds_no_room_leaves_what_was_there(tmp_path, limit_files):
    path = tmp_path / "a"
    save_arrays(path, {"x": np.arange(4)}, {})
    limit_files(65_536)
    with pytest.raises(OSError):
        save_arrays(path, {"x": np.zeros(100_000, np.uint8)}, {})
    assert load_arrays(path)[0]["x"].tolist() == [0, 1, 2, 3] and list(tmp_path.iterdir()) == [path]


def prepare_slowly(config, moment, barrier):
    """Prepare; wait, or die, when the content is written and the header is not yet."""
    pack = tensorfile._pack

    def pause(text, entries, digest):
        if digest != "0" * 64:
            if moment == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            barrier.wait(20)
        return pack(text, entries, digest)

    tensorfile._pack = pause
    prepare_session(config)


def test_two_that_prepare_the_same_at_once_both_go_on(config, prepared_in):
    barrier = fork.Barrier(2)
    both = [fork.Process(target=prepare_slowly, args=(config, "wait", barrier)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert [path.name.split(".", 1)[1] for path in prepared_in()] == ["checked.json", "safetensors"]
    load_arrays(prepared_in("*.safetensors")[0])


def test_a_kill_while_preparing_leaves_no_broken_cache(config, prepared_in):
    process = fork.Process(target=prepare_slowly, args=(config, "die", None))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    (left,) = prepared_in()
    assert left.suffix == ".tmp"
    os.utime(left, (time.time() - 90_000,) * 2)  # a day later
    assert prepare_session(config).n_bins == 240
    assert not left.exists() and len(prepared_in()) == 2


def test_what_another_process_is_writing_is_left_alone(tmp_path):
    other = tmp_path / ".a.txt.0123456789ab.tmp"
    other.write_text("half")
    files.write_text(tmp_path / "a.txt", "whole")
    assert other.read_text() == "half" and (tmp_path / "a.txt").read_text() == "whole"


def test_a_header_that_was_forged_is_refused(tmp_path):
    save_arrays(tmp_path / "a", {"x": np.arange(6)}, {})
    content = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(content.replace(b'"shape":[6]', b'"shape":[9]'))
    with pytest.raises(TensorFileError, match="header does not match its checksum"):
        load_arrays(tmp_path / "a", verify=False)


# --- what the name of a prepared file depends on --------------------------------------------------------------------


def test_the_key_changes_with_what_the_arrays_depend_on_and_with_nothing_else(factory, tmp_path):
    base, config = factory.make_session(), {"keys_lags": {"stim": "0..3"}}

    def key(session=base, dtype="uint8", folder="a", **keys):
        session.save(tmp_path / folder / "ada_01.safetensors")
        return prepare_session(factory.configure(tmp_path / folder, **config | keys), dtype=dtype).key

    first = key()
    same = {
        "again": key(), "another folder": key(folder="b"),
        "labels of the config": key(lab="x", eye="left", visual=[1], qcmissing=[2], qccontam=[3]),
        "equal values": key(replace(base)),
    }  # fmt: skip
    assert set(same.values()) == {first}, same
    labels = {"area": ["V1", "V1", "V4", "V4"]}
    others = {
        "bin_rate": key(factory.make_session(bin_rate=30.0)),
        "unit_labels": key(factory.make_session(unit_labels=labels)),
        "a label's value": key(factory.make_session(unit_labels={"area": ["V1", "V4", "V4", "V4"]})),
        "text ids": key(factory.make_session(unit_ids=["a", "b", "c", "d"])),
        "other text ids": key(factory.make_session(unit_ids=["a", "b", "c", "e"])),
        "subject": key(factory.make_session(subject="eve")),
        "pixels_per_degree": key(factory.make_session(pixels_per_degree=2.0)),
        "a name of a type": key(factory.make_session(stimulus_type="noise")),
        "one response": key(factory.make_session(responses=base.responses + (np.arange(960) == 7).reshape(240, 4))),
        "seed": key(seed=3), "lags": key(keys_lags={"stim": "0..4"}), "units": key(cids=[0, 1]),
        "storage": key(dtype="float32"), "split": key(train_val_split=0.7),
    }  # fmt: skip
    assert first not in others.values() and len(set(others.values())) == len(others), others
    assert len(list(tmp_path.glob("a/prepared/*.safetensors"))) == 1 + len(others)
