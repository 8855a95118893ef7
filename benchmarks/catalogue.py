"""A run on a catalogue of 1,000 sessions: its start, its step and its memory, beside a run on 3 of them.

The recordings are sparse files of two minutes: all frames but those of the first trial are blank, which takes no disk.
"""

import statistics
import time
from pathlib import Path

import numpy as np

from neurotwin.config import DatasetConfig
from neurotwin.data.prepare import prepare
from neurotwin.data.session import Session

from .common import BIN_RATE, TRIAL, UNITS, Result, Target, cases, fit, in_fresh_process, main, private_memory
from .start_up import first_step, script

__all__ = ["TARGETS", "measure", "training"]

TARGETS = {
    "start": Target("start to the end of the first step, second run, 1,000 sessions", 10, "s", at_most=True),
    "step": Target("cost of a step with 1,000 sessions against 3", 1.1, at_most=True),
    "memory": Target("memory of a process from 3 to 1,000 sessions, beyond shared pages", 10, "% more", at_most=True),
}


def measure(folder: Path, quick: bool) -> Result:
    """Prepare all, start the script, then train on few and on many in processes of their own that take turns."""
    few, many = counts = (2, 5) if quick else (3, 1000)
    folder = Path(folder) / "catalogue"
    configs = recordings(folder, many, quick)
    began = time.perf_counter()
    prepare(configs)
    rows: list = [("preparation of a session, s", (time.perf_counter() - began) / many)]
    starts = {}
    for count in counts:
        batch = 64 if quick else 256
        command = script(folder / f"start_{count}", configs[:count], cases(quick)["a"].model, batch_size=batch)
        command += ["--max_datasets", str(many)]
        starts[count] = statistics.median(first_step(command) for _ in range(1 if quick else 3))
        rows.append((f"start to the end of the first step, {count:,} sessions, s", starts[count]))
    runs: dict[int, list] = {count: [] for count in counts}
    for _ in range(1 if quick else 3):
        for count, found in runs.items():
            run = in_fresh_process("benchmarks.catalogue:training", folder=str(folder), count=count, quick=quick)
            found.append(run)
    steps, own = (
        {count: statistics.median(run[part] for run in found) for count, found in runs.items()} for part in (0, 1)
    )
    rows += [(f"step, {count:,} sessions, ms", 1000 * steps[count]) for count in counts]
    rows += [(f"memory of its own, {count:,} sessions, MB", own[count]) for count in counts]
    figures = {"start": starts[many], "step": steps[many] / steps[few], "memory": 100 * (own[many] / own[few] - 1)}
    return Result(("what", "measured"), rows, figures)


def recordings(folder: Path, count: int, quick: bool) -> list[DatasetConfig]:
    """The sessions: 35x35 pixels, 120 Hz; every file is the same, under a name of its own."""
    case, bins = cases(quick)["a"], 1800 if quick else 14_400
    folder.mkdir(parents=True, exist_ok=True)
    template = folder / "template.safetensors"
    if not template.exists():
        rng = np.random.default_rng(0)
        frames = np.zeros((bins, case.size, case.size), np.uint8)
        frames[:TRIAL] = rng.integers(0, 256, frames[:TRIAL].shape, np.uint8)
        responses = rng.poisson(0.2, (bins, UNITS)).astype(np.uint8)
        Session(
            name="template", stimulus=frames, responses=responses, bin_rate=BIN_RATE, trial=np.arange(bins) // TRIAL
        ).save(template)
    configs = []
    for index in range(count):
        path = folder / f"sparse_{index:04}.safetensors"
        if not path.exists():
            copy_sparse(template, path)
        configs.append(DatasetConfig(session=path.stem, path=str(path), keys_lags={"stim": list(range(case.lags))}))
    return configs


def copy_sparse(source: Path, target: Path) -> None:
    """Copy a file, and leave holes where it holds zeros."""
    with open(source, "rb") as file, open(target, "wb") as copy:
        for block in iter(lambda: file.read(1 << 16), b""):
            if any(block):
                copy.write(block)
            else:
                copy.seek(len(block), 1)
        copy.truncate(source.stat().st_size)


def training(folder: str, count: int, quick: bool) -> tuple[float, float]:
    """Median seconds of a step of a run on some of the sessions, and memory of this process after it, MB."""
    predictions, length, steps = (32, 4, 2) if quick else (256, 32, 20)
    configs = recordings(Path(folder), count, quick)
    seconds = fit(configs, cases(quick)["a"].model, steps=steps, batch_size=predictions, clip_len=length)
    return statistics.median(seconds), private_memory()


if __name__ == "__main__":
    main(measure, TARGETS, "catalogue")
