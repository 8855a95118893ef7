"""Recordings elsewhere: fetched once, whole or not at all, again when they have changed, and refused in one line."""

import http.server
import importlib
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import yaml

from neurotwin.config import load_dataset_configs
from neurotwin.config.locate import moved
from neurotwin.data import copies
from neurotwin.data.copies import CopyFolder
from neurotwin.data.prepare import open_session, prepare, prepare_session
from neurotwin.data.remote import RemoteError, cached, local_path
from neurotwin.data.session import SessionError
from neurotwin.transfer.transfer import cache_folder

fsspec = pytest.importorskip("fsspec", reason="pip install 'neurotwin[remote]'")
registry = importlib.import_module("fsspec.registry")
ROOT = Path(__file__).parents[3]

# A file system whose copying does what a test needs: it says that it copies, then waits, or ends its process half-way.
SLOW = """
import logging, os, signal, sys, time
from pathlib import Path
import fsspec
from fsspec.implementations.local import LocalFileSystem
from neurotwin.data.remote import local_path

folder, source, what = Path(sys.argv[1]), sys.argv[2], sys.argv[3]

class Slow(LocalFileSystem):
    protocol = "slow"

    @classmethod
    def _strip_protocol(cls, path):
        return LocalFileSystem._strip_protocol(path.removeprefix("slow://"))

    def get_file(self, path, target, **_):
        (folder / f"copies.{os.getpid()}").touch()
        content = Path(path).read_bytes()
        if what == "die":
            Path(target).write_bytes(content[: len(content) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        while what == "together" and len(list(folder.glob("ready.*"))) < 2:
            time.sleep(0.01)
        time.sleep(0.5)
        Path(target).write_bytes(content)

fsspec.register_implementation("slow", Slow)
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
(folder / f"ready.{os.getpid()}").touch()
print("at", local_path("slow://" + source), flush=True)
if what == "stay":
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """The folder of copies, empty and used by nobody."""
    monkeypatch.setenv("NEUROTWIN_CACHE", str(tmp_path / "cache"))
    for name in ("NEUROTWIN_CACHE_SIZE", "NEUROTWIN_DATA"):
        monkeypatch.delenv(name, raising=False)
    yield tmp_path / "cache/remote"
    forget()


@pytest.fixture
def memory():
    files = fsspec.filesystem("memory")
    yield files
    files.store.clear()
    files.pseudo_dirs[:] = [""]


@pytest.fixture
def web(tmp_path):
    """A server of the files below `tmp_path/web`: its address, and what was asked of it."""
    pytest.importorskip("aiohttp", reason="pip install 'neurotwin[remote]'")
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, directory=str(tmp_path / "web"), **kwargs)

        def log_message(self, *_):
            pass

        def send_head(self):
            asked.append(f"{self.command} {self.path}")
            if self.path.startswith("/secret"):
                self.send_error(403)
                return None
            if self.path.startswith("/cut"):  # says more than it sends
                self.send_response(200)
                self.send_header("Content-Length", "5000")
                self.end_headers()
                self.close_connection = True
                return None
            return super().send_head()

    (tmp_path / "web").mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    server.address, server.asked = f"http://127.0.0.1:{server.server_port}", asked
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def forget() -> None:
    """Let go of the copies, as the end of this process would."""
    for lock, _ in copies._users.values():
        lock.release()
    copies._users.clear()


def put(memory, path: str, content: bytes) -> str:
    memory.pipe_file(path, content)
    return f"memory:/{path}"


def content_of(url: str) -> bytes:
    return local_path(url).read_bytes()


def fetched(caplog) -> int:
    return sum(message.startswith("fetched") for message in caplog.messages)


def child(folder: Path, source: Path, what: str, **options) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SLOW, str(folder), str(source), what]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, **options)


# --- the same as a local file ---------------------------------------------------------------------------------------


def test_a_session_elsewhere_is_prepared_as_a_local_one_and_nothing_is_written_there(
    memory, factory, tmp_path, cache, caplog
):
    session = factory.write_session(tmp_path, "ada_01")
    here = prepare_session(factory.configure(tmp_path), cache_dir=tmp_path / "own")
    url = put(memory, "/lab/data/ada_01.safetensors", (tmp_path / "ada_01.safetensors").read_bytes())
    (tmp_path / "ada_01.yaml").write_text(yaml.safe_dump({"data_dir": "memory://lab/data", "train_val_split": 0.5}))
    caplog.set_level(logging.INFO)
    (config,) = load_dataset_configs(tmp_path / "ada_01.yaml")
    assert config.path == url
    assert open_session(config, verify=True) == session
    (there,) = prepare([config])
    assert there.key == here.key and isinstance(there.source, np.memmap)
    np.testing.assert_array_equal(there.source, here.source)
    np.testing.assert_array_equal(there.responses, here.responses)
    again = prepare_session(config)
    assert again.key == there.key and fetched(caplog) == 1
    (line,) = [message for message in caplog.messages if message.startswith("fetched")]
    assert f"fetched {url}: " in line and " kB at " in line and line.endswith(str(local_path(url).parent))
    (made,) = (tmp_path / "cache").rglob(f"ada_01-{there.key}-*.safetensors")
    assert made.parent == local_path(url).parent / "prepared" == cache_folder(config)
    assert made.is_relative_to(cache) and list(memory.find("/")) == ["/lab/data/ada_01.safetensors"]
    assert cache_folder(config, tmp_path) == tmp_path


def test_data_of_another_layout_elsewhere_are_converted_beside_their_copy(memory, tmp_path, cache):
    rng = np.random.default_rng(0)
    arrays = {"stimulus": rng.integers(0, 256, (80, 6, 5), dtype=np.uint8), "responses": rng.poisson(1, (80, 2))}
    np.savez(tmp_path / "bea.npz", **arrays, bin_rate=30.0)
    put(memory, "/lab/bea.npz", (tmp_path / "bea.npz").read_bytes())
    (tmp_path / "bea.yaml").write_text("{path: bea.npz}")
    (config,) = load_dataset_configs(tmp_path / "bea.yaml", data_dir="memory://lab")
    np.testing.assert_array_equal(open_session(config).responses, arrays["responses"])
    assert [path.suffixes[-2:] for path in cache.glob("*/prepared/*")] == [[".session", ".safetensors"]]


def test_recordings_that_have_moved_elsewhere_are_found_there(memory, factory, tmp_path):
    factory.write_session(tmp_path, "ada_01")
    put(memory, "/new/ada_01.safetensors", (tmp_path / "ada_01.safetensors").read_bytes())
    config = factory.configure(tmp_path)
    (tmp_path / "ada_01.safetensors").unlink()
    assert prepare([config], data_dir="memory://new")[0].n_bins == 240
    assert cached(moved(config, "memory://new").path) and not cached(config.path) and not cached(None)


def test_files_come_over_http(web, factory, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    factory.write_session(tmp_path / "web", "ada_01")
    path = local_path(f"{web.address}/ada_01.safetensors?version=1")
    assert path.name == "ada_01.safetensors" and path.read_bytes() == (tmp_path / "web" / path.name).read_bytes()
    assert local_path(f"{web.address}/ada_01.safetensors?version=1") == path
    assert [line.split()[0] for line in web.asked] == ["HEAD", "GET", "HEAD"] and fetched(caplog) == 1


# --- versions -------------------------------------------------------------------------------------------------------


def test_what_has_changed_is_fetched_again(memory, web, tmp_path):
    """Each change keeps the size; the server of files tells their time in whole seconds."""
    file = tmp_path / "web/notes.txt"
    for number, text in enumerate((b"one", b"two", b"six")):
        url = put(memory, "/notes.txt", text)
        assert content_of(url) == text
        file.write_bytes(text)
        os.utime(file, (1e9 + number, 1e9 + number))
        assert content_of(f"{web.address}/notes.txt") == text == content_of(f"file://{file}")


def test_what_a_copy_was_cut_to_is_fetched_again(memory):
    path = local_path(put(memory, "/notes.txt", b"whole"))
    path.write_bytes(b"wh")
    assert content_of("memory://notes.txt") == b"whole"


def test_a_host_that_is_gone_leaves_the_copy_with_a_warning(web, tmp_path, caplog):
    (tmp_path / "web/notes.txt").write_text("here")
    url = f"{web.address}/notes.txt"
    path = local_path(url)
    web.shutdown()
    web.server_close()
    assert local_path(url) == path
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "cannot be reached" in warning and "going on with the copy" in warning
    with pytest.raises(RemoteError, match=r"other\.txt: the host cannot be reached"):
        local_path(f"{web.address}/other.txt")


# --- several processes, and such that end ---------------------------------------------------------------------------


def test_two_processes_that_start_at_once_fetch_a_file_once(tmp_path):
    (tmp_path / "notes.txt").write_text("whole")
    children = [child(tmp_path, tmp_path / "notes.txt", "together") for _ in range(2)]
    said = [process.communicate(timeout=120)[0] for process in children]
    assert [process.returncode for process in children] == [0, 0]
    paths = {line.removeprefix("at ") for text in said for line in text.splitlines() if line.startswith("at ")}
    assert len(paths) == 1 and Path(paths.pop()).read_text() == "whole"
    assert len(list(tmp_path.glob("copies.*"))) == 1 and "".join(said).count("fetched ") == 1


def test_a_process_that_is_killed_leaves_nothing_that_is_taken_for_whole(tmp_path, cache):
    (tmp_path / "notes.txt").write_text("whole")
    with child(tmp_path, tmp_path / "notes.txt", "die") as process:
        process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    (left,) = cache.glob("*/.notes.txt.*.tmp")
    assert left.read_text() == "wh" and not list(cache.glob("*/notes.txt"))
    with child(tmp_path, tmp_path / "notes.txt", "fetch") as process:
        said, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and "fetched " in said
    (copy,) = cache.glob("*/notes.txt")
    assert copy.read_text() == "whole" and not left.exists()


# --- a cache of limited size ----------------------------------------------------------------------------------------


def filled(memory, monkeypatch, *names: str, size: int = 1000) -> dict[str, Path]:
    """Copies of files of 1 kB in a cache of 2.5 kB, used by nobody, the first longest unused."""
    monkeypatch.setenv("NEUROTWIN_CACHE_SIZE", "2.5e-6")
    paths = {}
    for index, name in enumerate(names):
        paths[name] = local_path(put(memory, f"/{name}", bytes(size)))
        os.utime(paths[name].parent / "source.json", (1e9 + index, 1e9 + index))
    forget()
    return paths


def test_the_longest_unused_copies_make_room_with_what_was_made_from_them(memory, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    paths = filled(memory, monkeypatch, "a", "b")
    local_path("memory://a")  # used now, so that b is the longest unused
    forget()
    (paths["b"].parent / "prepared").mkdir()
    (paths["b"].parent / "prepared/b.safetensors").write_bytes(bytes(50))
    local_path(put(memory, "/c", bytes(1000)))
    assert paths["a"].exists() and not paths["b"].parent.exists()
    assert "removing the copy of memory://b, the longest unused" in caplog.messages
    forget()
    local_path("memory://b")
    assert not paths["a"].exists() and fetched(caplog) == 4


def test_what_is_prepared_counts(memory, monkeypatch):
    paths = filled(memory, monkeypatch, "a", "b", size=500)
    (paths["a"].parent / "prepared").mkdir()
    (paths["a"].parent / "prepared/a.safetensors").write_bytes(bytes(900))
    local_path(put(memory, "/c", bytes(1000)))
    assert not paths["a"].parent.exists() and paths["b"].exists()


def test_a_copy_in_use_is_never_removed(memory, monkeypatch, tmp_path, cache):
    monkeypatch.setenv("NEUROTWIN_CACHE_SIZE", "2.5e-6")
    (tmp_path / "theirs").write_bytes(bytes(1000))
    with child(tmp_path, tmp_path / "theirs", "stay", stdin=subprocess.PIPE) as process:
        while not (line := process.stdout.readline()).startswith("at "):
            assert line
        theirs = Path(line.removeprefix("at ").strip())
        paths = filled(memory, monkeypatch, "a")
        os.utime(theirs.parent / "source.json", (1, 1))
        local_path(put(memory, "/c", bytes(1000)))
        assert theirs.exists() and not paths["a"].exists()
        with pytest.raises(SessionError, match=r"memory://d: its 1\.0 kB do not fit .* set NEUROTWIN_CACHE_SIZE"):
            local_path(put(memory, "/d", bytes(1000)))  # one is theirs, the other this process's own
        assert theirs.exists() and len(list(cache.glob("*/c"))) == 1
        process.kill()
    local_path("memory://d")
    assert not theirs.exists() and len(list(cache.glob("*/c"))) == 1


def test_a_file_larger_than_the_cache_removes_nothing(memory, monkeypatch):
    paths = filled(memory, monkeypatch, "a", "b")
    with pytest.raises(SessionError, match=r"memory://large: its 3\.0 kB do not fit into .*, which may hold 2\.5 kB"):
        local_path(put(memory, "/large", bytes(3000)))
    assert all(path.exists() for path in paths.values())


def test_a_disk_that_is_full_makes_room_as_well(memory, monkeypatch, tmp_path):
    paths = filled(memory, monkeypatch, "a")
    usage = copies.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(copies.shutil, "disk_usage", lambda _: usage._replace(free=500))
    local_path(put(memory, "/b", bytes(1000)))
    assert not paths["a"].exists()


def test_room_that_is_set_aside_counts_until_it_is_given_back(tmp_path):
    folder = CopyFolder(tmp_path, 2500)
    for key in "ab":
        folder.claim(key)
        folder.reserve(key, 1000, key)
    folder.claim("c")
    with pytest.raises(SessionError, match=r"c: its 1\.0 kB do not fit"):
        folder.reserve("c", 1000, "c")
    folder.release("a")
    folder.reserve("c", 1000, "c")


# --- refusals -------------------------------------------------------------------------------------------------------


def test_what_cannot_be_had_is_one_line_with_the_cure(memory, web, factory, tmp_path, monkeypatch, cache):
    put(memory, "/folder/notes.txt", b"here")
    put(memory, "/cut.safetensors", (factory.make_session().save(tmp_path / "cut.safetensors")).read_bytes()[:-5])
    factory.flip(tmp_path / "cut.safetensors", at=-20)
    put(memory, "/flipped.safetensors", (tmp_path / "cut.safetensors").read_bytes())
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.setitem(sys.modules, "paramiko", None)
    for protocol in ("s3", "sftp"):
        monkeypatch.delitem(registry._registry, protocol, raising=False)
    monkeypatch.delitem(sys.modules, "fsspec.implementations.sftp", raising=False)
    cases = {
        "missing": ("memory://none.txt", "memory://none.txt: no such file there; correct path or data_dir"),
        "folder": ("memory://folder", "memory://folder: is a folder; give the URL of one file"),
        "protocol": ("s33://bucket/x", "no protocol 's33' (a local path has no '://'); did you mean 's3'?"),
        "package": ("s3://bucket/x", "s3://bucket/x: s3 needs a package that is absent; pip install s3fs"),
        "fsspec's": ("sftp://host/x", "pip install 'fsspec[sftp]'"),
        "missing on the web": (f"{web.address}/none", "/none: no such file there"),
        "forbidden": (f"{web.address}/secret", "/secret: access is refused (ClientResponseError: 403"),
        "cut on the way": (f"{web.address}/cut", "/cut: cannot be fetched ("),
        "no host": ("http://nowhere.invalid/x", "x: the host cannot be reached ("),
        "cut there": ("memory://cut.safetensors", "it was cut off; put it there again"),
        "altered": ("memory://flipped.safetensors", "flipped.safetensors: its content does not match its checksum"),
        "secret": ("http://me:word@nowhere.invalid/x?key=1", "http://nowhere.invalid/x: the host cannot be reached"),
    }
    for case, (url, expected) in cases.items():
        with pytest.raises(RemoteError) as refused:
            local_path(url)
        assert expected in str(refused.value) and "\n" not in str(refused.value), (case, str(refused.value))
    assert not cached("memory://none.txt")
    assert not [path for path in cache.glob("*/*") if path.name != "lock" and path.parent.name != "users"]


def test_less_than_was_announced_is_refused_and_fetched_the_next_time(memory, monkeypatch):
    url, whole = put(memory, "/notes.txt", b"whole"), type(memory).get_file
    monkeypatch.setattr(type(memory), "get_file", lambda self, path, to, **_: Path(to).write_bytes(b"who"))
    with pytest.raises(RemoteError, match=r"memory://notes.txt: 3 of 5 bytes came; try again"):
        local_path(url)
    monkeypatch.setattr(type(memory), "get_file", whole)
    assert content_of(url) == b"whole"


def test_settings_and_folders_that_cannot_be(memory, monkeypatch, tmp_path):
    url = put(memory, "/notes.txt", b"whole")
    for size in ("much", "0", "-1", "nan"):
        monkeypatch.setenv("NEUROTWIN_CACHE_SIZE", size)
        with pytest.raises(RemoteError, match=f"NEUROTWIN_CACHE_SIZE is '{size}'; give a number of GB above 0"):
            local_path(url)
    monkeypatch.delenv("NEUROTWIN_CACHE_SIZE")
    (tmp_path / "file").touch()
    monkeypatch.setenv("NEUROTWIN_CACHE", str(tmp_path / "file"))
    with pytest.raises(RemoteError, match=r"memory://notes\.txt: cannot be kept in .*set NEUROTWIN_CACHE"):
        local_path(url)
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(RemoteError, match=r"pip install 'neurotwin\[remote\]'"):
        local_path(url)


def test_the_folder_is_the_users_own_where_none_is_named(memory, monkeypatch, tmp_path):
    monkeypatch.delenv("NEUROTWIN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    assert local_path(put(memory, "/notes.txt", b"whole")).is_relative_to(tmp_path / "own/neurotwin/remote")
