"""The benchmarks run, in miniature: what they time is the same thing twice, and what they found can be read back."""

import dataclasses
import importlib
import json
import math
import mmap
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from neurotwin.config import DatasetConfig
from neurotwin.data.prepare import prepare
from neurotwin.data.simulate import draw_units, simulate_session

ROOT = Path(__file__).parent.parent
MEASURING = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if "TARGETS =" in path.read_text())
"""Every benchmark of a target."""


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def load() -> Callable[[str], ModuleType]:
    """A module of the benchmarks; they are no installed package."""
    return lambda name: importlib.import_module(f"benchmarks.{name}")


@pytest.fixture
def no_new_processes(monkeypatch, load) -> None:
    """Call in this process the functions that a benchmark would call in one of its own, and two processes as one."""
    common = load("common")
    fit = common.fit

    def here(function: str, *, threads: int | None = None, **arguments: object) -> object:
        module, _, name = function.rpartition(":")
        return json.loads(json.dumps(getattr(importlib.import_module(module), name)(**arguments)))

    for name in ("start_up", "memory", "processes", "conversion"):
        monkeypatch.setattr(load(name), "in_fresh_process", here)
    monkeypatch.setattr(load("processes"), "fit", lambda *args, processes=1, **options: fit(*args, **options))


@pytest.mark.parametrize("name", MEASURING)
@pytest.mark.usefixtures("no_new_processes")
def test_each_runs_in_miniature(name: str, load, tmp_path: Path, capsys) -> None:
    module, common = load(name), load("common")
    common.run(name, module.measure, module.TARGETS, tmp_path / "work", quick=True, out=tmp_path / "out")
    assert f"== {name}" in capsys.readouterr().out
    written = json.loads((tmp_path / "out" / f"{name}.json").read_text())
    assert written["info"]["quick"]
    assert set(written["figures"]) == set(module.TARGETS)
    if name == "gpu" and not torch.cuda.is_available():
        assert written["figures"] == dict.fromkeys(module.TARGETS)
    else:
        assert written["rows"]
        assert all(math.isfinite(value) for value in written["figures"].values())
    assert all(len(row) == len(written["columns"]) for row in written["rows"])


def test_the_suite_is_all_of_them(load) -> None:
    suite = load("__main__")
    assert sorted(suite.SUITE + suite.LONG) == MEASURING


def test_windows_that_differ_from_clips_are_not_timed(load, tmp_path: Path) -> None:
    common, speed = load("common"), load("training_speed")
    case = common.cases(True)["a"]
    sessions = prepare(common.write_sessions(tmp_path, 1, bins=1800, size=case.size, lags=case.lags))
    clips, windows = common.Trainee(case.model, sessions), common.Trainee(case.model, sessions, usual_way=True)
    speed.check_equal(clips, windows, sessions)
    with torch.no_grad():
        windows.twin.per_session[0].readout.bias.add_(0.1)
    with pytest.raises(AssertionError):
        speed.check_equal(clips, windows, sessions)


def test_operations_are_counted_as_by_hand() -> None:
    """One 3x3x3 convolution, forward and for its weights, and one product: two operations a multiplication."""
    counter = FlopCounterMode(display=False)
    weight = torch.ones(5, 2, 3, 3, 3, requires_grad=True)
    with counter:
        torch.nn.functional.conv3d(torch.ones(1, 2, 6, 8, 7), weight).sum().backward()
        torch.ones(4, 6) @ torch.ones(6, 10)
    assert counter.get_total_flops() == 2 * (2 * 5 * 27 * 4 * 6 * 5 * 2) + 2 * 4 * 6 * 10


def test_turns_are_taken(load) -> None:
    calls = []
    load("common").interleaved({name: lambda name=name: calls.append(name) for name in "ab"}, repeats=2, warm_up=1)
    assert "".join(calls) == "ababab"


def test_memory_that_is_watched_and_mapped(load, tmp_path: Path) -> None:
    common = load("common")
    before = common.private_memory()
    with common.watched_memory(interval=0.001) as highest:
        array = mmap.mmap(-1, 64 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        for _ in range(64):
            array.write(b"x" * (1 << 20))
        held = common.private_memory()
        while highest[0] < held - 1:  # until it was looked at
            time.sleep(0.001)
        array.close()
    assert held - before > 60
    assert common.private_memory() - before < 30


def test_results_are_written_between_the_marks(load, tmp_path: Path) -> None:
    suite, common = load("__main__"), load("common")
    page = tmp_path / "page.md"
    page.write_text("before\n" + suite.MARKS[0] + "old\n" + suite.MARKS[1] + "after\n")
    for quick in (True, False):
        result = common.Result(("run on", "ms a step"), [("3 sessions", 12.5)], {"cost": 1.25}, ["a note"])
        result.info = {"quick": quick, **common.machine()}
        (tmp_path / "many_sessions.json").write_text(json.dumps(vars(result)))
        suite.write_docs(page, tmp_path)
        text = page.read_text()
        assert text.startswith("before\n" + suite.MARKS[0]) and text.endswith(suite.MARKS[1] + "after\n")
        assert "old" not in text
        assert ("| 3 sessions | 12.5 |" in text) != quick
    assert "| cost of a step with 100 sessions against 3 | at most 1.1 x | 1.25 x | missed |" in text
    assert text.count("not yet measured") == sum(len(load(name).TARGETS) for name in suite.SUITE + suite.LONG) - 1


def test_the_page_names_every_target(load) -> None:
    page = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
    suite = load("__main__")
    for name in suite.SUITE + suite.LONG:
        for target in load(name).TARGETS.values():
            assert f"| {target.what} | {target.goal()} |" in page, "run python -m benchmarks --write-docs"


@pytest.mark.slow
def test_processes_of_their_own(load, tmp_path: Path) -> None:
    result = load("processes").measure(tmp_path, True)
    assert [row[0] for row in result.rows] == ["1 process", "2 processes"]


def test_the_true_gain_is_that_of_behavior_alone(load, tmp_path: Path) -> None:
    path = tmp_path / "ada_demo1.safetensors"
    session = simulate_session("ada_demo1", n_trials={"backimage": 4, "gaborium": 1, "fixrsvp": 3})
    session.save(path)
    (data,) = prepare([
        DatasetConfig.model_validate({
            "session": "ada_demo1", "path": str(path), "sampling": {"source_rate": 240, "target_rate": 120},
            "keys_lags": {"stim": ["0..7"]}, "transforms": {"stim": {"source": "stim", "ops": ["pixelnorm"]}},
        })
    ])  # fmt: skip
    gain = load("experiments").behavioral_gain(data)
    trial = np.asarray(session.trial) == data.trial[-1]
    pupil, velocity = (np.asarray(session.behavior[name]) for name in ("pupil", "eyevel"))
    expected = draw_units("ada_demo1").gain(pupil, velocity)[trial]
    found = gain[np.asarray(data.trial) == data.trial[-1]]
    np.testing.assert_allclose(found, (expected[::2] + expected[1::2])[: len(found)] / 2, rtol=1e-5)
    other = dataclasses.replace(data, true_rate=data.true_rate[::-1])
    with pytest.raises(ValueError, match="does not hold the bins of ada_demo1"):
        load("experiments").behavioral_gain(other)


def test_the_simulator_sees_what_another_gaze_would_see(load) -> None:
    session = simulate_session("ada_demo1", n_trials={"backimage": 2, "gaborium": 1, "fixrsvp": 1})
    rates, gaze = load("experiments_recorded").rates_of_gaze, np.asarray(session.behavior["eyepos"], float)
    was = rates(session, None)
    kept = session.true_rate * 240 / (1 - session.missing_pct / 100)
    np.testing.assert_allclose(was, kept, rtol=1e-3)
    free, shift = np.asarray(session.scene) >= 0, np.array([0.3, 0.0])
    alike = lambda other: np.corrcoef(rates(session, other)[free].ravel(), was[free].ravel())[0, 1]  # noqa: E731
    assert alike(gaze) > 0.999  # but for the rounding of stored pictures
    assert alike(gaze + shift) < 0.9
    moved = rates(session, gaze + shift)
    fixed = ~free & (np.cumsum(free[::-1])[::-1] == free.sum())  # before the first picture
    np.testing.assert_array_equal(moved[fixed], was[fixed])


def test_figures_of_several_runs_are_given_as_median_and_range(load) -> None:
    found = [{"gratings": {"share": share, "error": -share}} for share in (0.5, 0.9, 0.6)]
    assert load("experiments").summary(found) == {"gratings": {"share": (0.6, 0.5, 0.9), "error": (-0.6, -0.9, -0.5)}}


def test_the_table_of_truths_says_what_reaches_its_aim(load) -> None:
    key, table = "pupil gain, correlation over units", load("experiments").truth_table
    for median, said in ((0.8, "met"), (0.799, "not met")):
        line = table({"ablation": {key: (median, 0.5, 0.95), "units": (86.0, 86.0, 86.0)}}).splitlines()
        assert line[2] == f"| `ablation` | {key} | {median} | 0.5 to 0.95 | 0.8 | {said} |"
        assert line[3] == "| `ablation` | units | 86 | 86 to 86 |  |  |"


def test_the_aims_are_of_figures_that_are_computed(load) -> None:
    source = "".join((ROOT / "benchmarks" / name).read_text() for name in ("experiments.py", "experiments_recorded.py"))
    for key in load("experiments").AIMS:
        assert source.count(f'"{key}":') >= 2 or key in (ROOT / "benchmarks/experiments_recorded.py").read_text(), key
