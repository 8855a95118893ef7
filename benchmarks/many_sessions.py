"""What a training step costs in a run of many sessions: parts of sessions that are not in a step must cost nothing."""

import statistics
from pathlib import Path

from .common import Result, Target, cases, fit, main, write_sessions

__all__ = ["TARGETS", "measure"]

TARGETS = {"cost": Target("cost of a step with 100 sessions against 3", 1.1, at_most=True)}


def measure(folder: Path, quick: bool) -> Result:
    """Steps of runs with few and with many sessions, in turns; each step takes 8 clips."""
    case, counts = cases(quick)["a"], (2, 4) if quick else (3, 100)
    configs = write_sessions(folder, counts[1], bins=3000, size=case.size, lags=case.lags)
    predictions, length, steps = (32, 4, 2) if quick else (256, 32, 15)
    seconds: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(1 if quick else 3):
        for count, values in seconds.items():
            values += fit(configs[:count], case.model, steps=steps, batch_size=predictions, clip_len=length)
    medians = {count: statistics.median(values) for count, values in seconds.items()}
    rows = [(f"{count} sessions", 1000 * s) for count, s in medians.items()]
    return Result(("run on", "ms a step"), rows, {"cost": medians[counts[1]] / medians[counts[0]]})


if __name__ == "__main__":
    main(measure, TARGETS, "many_sessions")
