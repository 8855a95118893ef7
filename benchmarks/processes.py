"""Two processes of one thread against one process of one thread, same global batch."""

import statistics
from pathlib import Path

from .common import Result, Target, cases, fit, in_fresh_process, main, write_sessions

__all__ = ["TARGETS", "measure", "seconds_a_step"]

TARGETS = {"gain": Target("two processes of one thread against one, same global batch", 1.85)}


def measure(folder: Path, quick: bool) -> Result:
    """Steps of runs that take turns, in processes of their own."""
    seconds: dict[int, list[float]] = {1: [], 2: []}
    _recordings(folder, quick)
    for _ in range(1 if quick else 3):
        for count, values in seconds.items():
            values.append(
                in_fresh_process(
                    "benchmarks.processes:seconds_a_step", threads=1, folder=str(folder), count=count, quick=quick
                )
            )
    medians = {count: statistics.median(values) for count, values in seconds.items()}
    rows = [(f"{count} processes" if count > 1 else "1 process", 1000 * s) for count, s in medians.items()]
    return Result(("run of", "ms a step"), rows, {"gain": medians[1] / medians[2]})


def seconds_a_step(folder: str, count: int, quick: bool) -> float:
    """Of a run of `count` processes."""
    case, predictions = cases(quick)["a"], 32 if quick else 512
    configs = _recordings(Path(folder), quick)
    steps, length = (2, 8) if quick else (15, 32)
    return statistics.median(
        fit(configs, case.model, steps=steps, batch_size=predictions // count, clip_len=length, processes=count)
    )


def _recordings(folder: Path, quick: bool) -> list:
    case = cases(quick)["a"]
    return write_sessions(folder, 3, bins=3600, size=case.size, lags=case.lags)


if __name__ == "__main__":
    main(measure, TARGETS, "processes")
