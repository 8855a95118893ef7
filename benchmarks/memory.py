"""Memory that is a training process's own, with 3 sessions and with 30; mapped files are shared and not counted."""

import statistics
from pathlib import Path

from .common import Result, Target, cases, fit, in_fresh_process, main, private_memory
from .start_up import recordings

__all__ = ["TARGETS", "after_training", "measure"]

TARGETS = {
    "growth": Target("memory of a process from 3 to 30 sessions, beyond shared pages", 10, "% more", at_most=True)
}


def measure(folder: Path, quick: bool) -> Result:
    """Train for some steps on few and on many sessions, in processes of their own, in turns.

    Means of two, after so many steps that they grow no more: where the allocator happens to place the arrays of a step
    moves a process by some percent.
    """
    few, many = counts = (1, 2) if quick else (3, 30)
    recordings(folder, quick)
    runs = [
        {
            count: in_fresh_process("benchmarks.memory:after_training", folder=str(folder), count=count, quick=quick)
            for count in counts
        }
        for _ in range(1 if quick else 2)
    ]
    own = {count: statistics.mean(run[count] for run in runs) for count in counts}
    rows = [(f"{count} sessions", own[count]) for count in counts]
    return Result(("training on", "MB"), rows, {"growth": 100 * (own[many] / own[few] - 1)})


def after_training(folder: str, count: int, quick: bool) -> float:
    """Memory of this process after some steps, MB."""
    configs = recordings(Path(folder), quick)[:count]
    fit(configs, cases(quick)["a"].model, steps=2 if quick else 60, batch_size=64 if quick else 128, clip_len=16)
    return private_memory()


if __name__ == "__main__":
    main(measure, TARGETS, "memory")
