"""Sessions prepared beforehand: shares, processes, one cache."""

import subprocess
import sys
from concurrent.futures import Future

import pytest
import yaml

from neurotwin.config import load_dataset_configs
from neurotwin.data import prepare_many as module
from neurotwin.data.prepare import prepare
from neurotwin.data.prepare_many import PreparedSession, parse_shard, prepare_many, share_of
from neurotwin.data.session import SessionError

NAMES = ["ada", "bea", "cleo", "dora", "eva"]


@pytest.fixture(autouse=True)
def no_shared_cache(monkeypatch):
    monkeypatch.delenv("NEUROTWIN_CACHE", raising=False)


@pytest.fixture
def parent(tmp_path, factory):
    """A parent file of five sessions."""
    for name in NAMES:
        factory.write_session(tmp_path / "data", name, seed=len(name))
        (tmp_path / f"{name}.yaml").write_text("")
    path = tmp_path / "parent.yaml"
    path.write_text(yaml.safe_dump({"session_dir": ".", "sessions": NAMES, "data_dir": "data"}))
    return path


@pytest.mark.parametrize("number", [1, 2, 3, 7])
def test_shares_are_disjoint_and_together_all(number):
    shares = [share_of(NAMES, (index, number)) for index in range(1, number + 1)]
    assert sorted(name for share in shares for name in share) == NAMES
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "1/0", "-1/2", "a/b", "1/2/3", ""])
def test_a_share_that_there_is_not_is_refused(text):
    with pytest.raises(SessionError, match=r"--shard .*: give i/n"):
        parse_shard(text)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_run_finds_what_was_prepared_and_one_fault_stops_no_other(parent, jobs, monkeypatch):
    configs = load_dataset_configs(parent)
    (parent.parent / "data/cleo.safetensors").write_bytes(b"torn")
    outcomes = prepare_many(configs, jobs=jobs)
    assert [outcome.name for outcome in outcomes] == NAMES
    assert [outcome.name for outcome in outcomes if outcome.fault] == ["cleo"]
    assert "cleo.safetensors" in outcomes[2].fault and "\n" not in outcomes[2].fault
    monkeypatch.setattr("neurotwin.data.prepare.arrange", None)  # would be called if one were absent
    prepare([config for config in configs if config.session != "cleo"])


def test_jobs_at_once_fill_one_cache_with_whole_files(parent):
    """Two overlapping jobs of two processes each: what remains is what one process alone prepares."""
    command = [sys.executable, "-m", "neurotwin", "prepare", str(parent), "--jobs", "2"]
    jobs = [subprocess.Popen([*command, "--shard", shard]) for shard in ("1/1", "1/2", "2/2")]
    assert [job.wait() for job in jobs] == [0, 0, 0]
    folder = parent.parent / "data/prepared"
    found = {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}
    assert len(found) == len(NAMES) and not list(folder.glob(".*.tmp"))
    other = parent.parent / "other"
    assert prepare_many(load_dataset_configs(parent), cache_dir=other) == [PreparedSession(name) for name in NAMES]
    assert {path.name: path.read_bytes() for path in other.glob("*.safetensors")} == found


def test_a_process_that_is_killed_is_one_line(parent, monkeypatch):
    class Pool:
        def __init__(self, *_):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def submit(self, function, *arguments):
            future = Future()
            future.set_exception(module.BrokenProcessPool())
            return future

    monkeypatch.setattr(module, "ProcessPoolExecutor", Pool)
    outcomes = prepare_many(load_dataset_configs(parent), jobs=2)
    assert {outcome.fault for outcome in outcomes} == {
        "the process that prepared it, or one beside it, was ended (no memory?); take fewer --jobs"
    }
