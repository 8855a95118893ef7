"""Files that are torn, altered, in the way or out of room: a clear line, and nothing broken stays behind."""

import multiprocessing
import os
import resource
import signal
import time

import numpy as np
import pytest

from neurotwin.config import DatasetConfig
from neurotwin.data import prepare as prepare_module
from neurotwin.data import tensorfile
from neurotwin.data.prepare import prepare_session
from neurotwin.data.session import Session, SessionError
from neurotwin.tensorfile import TensorFileError, load_arrays, save_arrays, write_arrays

fork = multiprocessing.get_context("fork")


@pytest.fixture
def config(tmp_path):
    rng = np.random.default_rng(0)
    session = Session(
        name="ada_01", bin_rate=60.0, stimulus=rng.integers(0, 256, (240, 5, 6), dtype=np.uint8),
        spikes=rng.poisson(0.5, (240, 3)).astype(np.uint8), trial=np.arange(240) // 40,
    )  # fmt: skip
    path = session.save(tmp_path / "ada_01.safetensors")
    return DatasetConfig.model_validate({"session": "ada_01", "path": str(path), "train_val_split": 0.5})


def prepared_files(tmp_path):
    return sorted(path.name for path in (tmp_path / "prepared").iterdir())


def flip(path, at=-1):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_an_altered_or_torn_prepared_file_is_refused_by_name(config, tmp_path):
    prepare_session(config)
    (cached,) = tmp_path.glob("prepared/*.safetensors")
    whole = cached.read_bytes()
    flip(cached)
    with pytest.raises(SessionError, match=rf"{cached.name}: its content does not match its checksum.*delete it"):
        prepare_session(config)
    cached.write_bytes(whole[:-10])
    with pytest.raises(SessionError, match=rf"{cached.name}: .*cut off.*delete it"):
        prepare_session(config)
    cached.unlink()
    assert prepare_session(config).n_bins == 240


def test_a_recording_that_was_altered_after_it_was_prepared_is_refused(config, tmp_path):
    prepare_session(config)
    flip(tmp_path / "ada_01.safetensors")
    with pytest.raises(SessionError, match=r"ada_01.safetensors: its content does not match its checksum"):
        prepare_session(config)


def test_content_is_compared_once_and_again_when_a_file_has_changed(config, tmp_path, monkeypatch):
    compared = []
    monkeypatch.setattr(prepare_module, "verify_arrays", lambda path: compared.append(path.name))
    prepare_session(config)
    assert compared == ["ada_01.safetensors"]
    prepare_session(config)
    assert compared == ["ada_01.safetensors"]
    (cached,) = tmp_path.glob("prepared/*.safetensors")
    os.utime(cached)
    prepare_session(config)
    assert compared[1:] == [cached.name]
    (tmp_path / "prepared" / cached.name.replace(".safetensors", ".checked.json")).unlink()
    prepare_session(config)
    assert compared[2:] == ["ada_01.safetensors", cached.name]


def test_a_cache_that_cannot_be_written_is_read(config, tmp_path, monkeypatch):
    first = prepare_session(config)
    (tmp_path / "prepared" / next(tmp_path.glob("prepared/*.json")).name).unlink()

    def read_only(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(prepare_module.os, "replace", read_only)
    np.testing.assert_array_equal(prepare_session(config).spikes, first.spikes)


@pytest.fixture
def limit_files():
    """Let no file grow beyond some bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, ignored)


def test_a_full_disk_is_one_line_and_leaves_nothing(config, tmp_path, limit_files):
    limit_files(20_000)  # the stimulus as float32 takes 29 kB
    with pytest.raises(SessionError, match=r"'ada_01': prepared arrays cannot be written to .*prepared.*free space"):
        prepare_session(config, dtype="float32")
    assert prepared_files(tmp_path) == []


def test_space_is_taken_before_it_is_written_to(tmp_path, limit_files):
    """A memory-mapped file without its blocks would end the process with SIGBUS when the disk is full."""
    limit_files(65_536)
    with pytest.raises(OSError), write_arrays(tmp_path / "a", {"x": (np.uint8, (100_000,))}, {}):
        raise AssertionError("there is no room for this")
    assert list(tmp_path.iterdir()) == []
    with write_arrays(tmp_path / "b", {"x": (np.uint8, (50_000,))}, {}):
        (temporary,) = tmp_path.glob(".b.*")
        assert temporary.stat().st_blocks * 512 >= 50_000


def prepare_slowly(config, moment, barrier):
    """Prepare; wait, or die, with half of the arrays written."""
    save = tensorfile._digest

    def pause(arrays, *rest):
        if moment == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        barrier.wait(20)
        return save(arrays, *rest)

    tensorfile._digest = pause
    prepare_module.verify_arrays = lambda path: None
    prepare_session(config)


def test_two_that_prepare_the_same_at_once_both_go_on(config, tmp_path):
    barrier = fork.Barrier(2)
    both = [fork.Process(target=prepare_slowly, args=(config, "wait", barrier)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert [name.split(".", 1)[1] for name in prepared_files(tmp_path)] == ["checked.json", "safetensors"]
    tensorfile.verify_arrays(next(tmp_path.glob("prepared/*.safetensors")))


def test_a_kill_while_preparing_leaves_no_broken_cache(config, tmp_path):
    process = fork.Process(target=prepare_slowly, args=(config, "die", None))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    (left,) = (tmp_path / "prepared").iterdir()
    assert left.suffix == ".tmp"
    os.utime(left, (time.time() - 90_000,) * 2)  # a day later
    assert prepare_session(config).n_bins == 240
    assert not left.exists() and len(prepared_files(tmp_path)) == 2


def test_metadata_cannot_promise_more_than_the_file_holds(tmp_path):
    save_arrays(tmp_path / "a", {"x": np.arange(6)}, {})
    content = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(content.replace(b'"shape":[6]', b'"shape":[9]'))
    with pytest.raises(TensorFileError, match="do not fit their shape"):
        load_arrays(tmp_path / "a")
