"""From a command to the first training step with 30 sessions of 10 minutes: the first time, and every time after."""

import shutil
import statistics
import time
from pathlib import Path

from neurotwin.data.prepare import prepare

from .common import Result, Target, cases, fit, in_fresh_process, main, private_memory, watched_memory, write_sessions

__all__ = ["TARGETS", "first_preparation", "first_step", "measure", "recordings"]

TARGETS = {
    "start": Target("start to the end of the first step, second run, 30 sessions of 10 minutes", 5, "s", at_most=True),
    "prepare": Target("first preparation of a session of 10 minutes", 2, "s", at_most=True),
}


def measure(folder: Path, quick: bool) -> Result:
    """The first preparation in a process of its own, then whole starts, imports of the libraries included."""
    recordings(folder, quick)
    shutil.rmtree(folder / "prepared", ignore_errors=True)
    seconds, memory = in_fresh_process("benchmarks.start_up:first_preparation", folder=str(folder), quick=quick)
    starts = []
    for _ in range(1 if quick else 3):
        began = time.perf_counter()
        in_fresh_process("benchmarks.start_up:first_step", folder=str(folder), quick=quick)
        starts.append(time.perf_counter() - began)
    start = statistics.median(starts)
    rows = [("first preparation of a session, s", seconds), ("start to the end of the first step, s", start)]
    rows.append(("memory of its own that it took at most, MB", memory))
    return Result(("what", "measured"), rows, {"start": start, "prepare": seconds})


def recordings(folder: Path, quick: bool) -> list:
    """The sessions: 51x51 pixels, 120 Hz."""
    count, bins, size = (2, 1800, 15) if quick else (30, 72_000, 51)
    return write_sessions(Path(folder), count, bins=bins, size=size, lags=32)


def first_preparation(folder: str, quick: bool) -> tuple[float, float]:
    """Seconds a session, and memory of the process's own that they took, MB."""
    configs, before = recordings(Path(folder), quick), private_memory()
    began = time.perf_counter()
    with watched_memory() as highest:
        prepare(configs)
    return (time.perf_counter() - began) / len(configs), highest[0] - before


def first_step(folder: str, quick: bool) -> None:
    """Map the sessions, build the model, train for one step."""
    batch_size = 64 if quick else 256
    fit(recordings(Path(folder), quick), cases(quick)["a"].model, steps=0, skip=0, batch_size=batch_size)


if __name__ == "__main__":
    main(measure, TARGETS, "start_up")
