"""The data path: how much of a training step is not the model, and how fast frames are gathered."""

import statistics
import time
from itertools import cycle
from pathlib import Path

import numpy as np

from neurotwin.data.clips import clip_table
from neurotwin.data.prepare import prepare
from training.pl_modules.multidataset_dm import ordered_map

from .common import Result, Target, Trainee, cases, draw_samples, fit, main, write_sessions

__all__ = ["TARGETS", "measure"]

TARGETS = {
    "a": Target("time of a step outside of the model, (a) two layers", 3, "%", at_most=True),
    "b": Target("time of a step outside of the model, (b) resnet", 3, "%", at_most=True),
    "frames": Target("frames gathered by two threads", 100_000, "frames/s"),
}


def measure(folder: Path, quick: bool) -> Result:
    """Steps of a run, with loader and framework, and of the model alone on batches held in memory, in turns."""
    rows, figures, steps = [], {}, {"a": 40, "b": 16}
    for key, case in cases(quick).items():
        configs = write_sessions(folder, 3, bins=3600, size=case.size, lags=case.lags)
        sessions = prepare(configs)
        trainee, length = Trainee(case.model, sessions), case.lengths[-1]
        shape = {"predictions": case.predictions, "length": length, "context": trainee.twin.context}
        held, alone = cycle([draw_samples(sessions, seed=seed, **shape) for seed in range(4)]), []

        def step_alone(trainee=trainee, held=held, alone=alone) -> None:
            began = time.perf_counter()
            trainee.step(next(held))
            alone.append(time.perf_counter() - began)

        run = fit(
            configs, case.model, steps=2 if quick else steps[key], batch_size=case.predictions, clip_len=length,
            between=step_alone,
        )  # fmt: skip
        alone = alone[-len(run) :]
        figures[key] = 100 * (1 - statistics.median(model / whole for model, whole in zip(alone, run, strict=True)))
        rows += [(f"{case.name}: step of a run", 1000 * statistics.median(run))]
        rows += [(f"{case.name}: the model alone", 1000 * statistics.median(alone))]
    rate = gathering(sessions, context=17, batches=4 if quick else 400)
    rows.append(("frames gathered by two threads, thousands a second", rate / 1000))
    return Result(("what", "ms"), rows, figures | {"frames": rate})


def gathering(sessions: list, *, context: int, batches: int) -> float:
    """Frames a second of two threads that gather batches of 8 clips of 32."""
    table, rng = clip_table(sessions, "train", length=32), np.random.default_rng(0)
    rows = [rng.choice(len(table), 8, replace=False) for _ in range(batches)]
    began = time.perf_counter()
    gathered = ordered_map(lambda index: table.samples(rows[index], context=context), range(batches), threads=2)
    frames = sum(s.clip.stimulus.shape[0] * s.clip.stimulus.shape[2] for part in gathered for s in part)
    return frames / (time.perf_counter() - began)


if __name__ == "__main__":
    main(measure, TARGETS, "data_path")
