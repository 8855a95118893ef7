"""Memory that is a training process's own, with 3 sessions and with 30; mapped files are shared and not counted."""

from pathlib import Path

from .common import Result, Target, cases, fit, in_fresh_process, main, private_memory
from .start_up import recordings

__all__ = ["TARGETS", "after_training", "measure"]

TARGETS = {
    "growth": Target("memory of a process from 3 to 30 sessions, beyond shared pages", 10, "% more", at_most=True)
}


def measure(folder: Path, quick: bool) -> Result:
    """Train for some steps on few and on many sessions, in processes of their own."""
    counts = (1, 2) if quick else (3, 30)
    recordings(folder, quick)
    own = {}
    for count in counts:
        own[count] = in_fresh_process("benchmarks.memory:after_training", folder=str(folder), count=count, quick=quick)
    few, many = (own[count] for count in counts)
    rows = [(f"{count} sessions", megabytes) for count, megabytes in own.items()]
    return Result(("training on", "MB"), rows, {"growth": 100 * (many / few - 1)})


def after_training(folder: str, count: int, quick: bool) -> float:
    """Memory of this process after some steps, MB."""
    configs = recordings(Path(folder), quick)[:count]
    fit(configs, cases(quick)["a"].model, steps=2 if quick else 30, batch_size=64 if quick else 256, clip_len=16)
    return private_memory()


if __name__ == "__main__":
    main(measure, TARGETS, "memory")
