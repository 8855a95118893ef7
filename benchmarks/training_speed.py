"""Training with clips against the usual way: one window of all lags through the whole core for every prediction."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from neurotwin.data.prepare import prepare

from .common import Result, Target, Trainee, cases, draw_samples, interleaved, main, write_sessions

__all__ = ["TARGETS", "measure"]

TARGETS = {
    "a": Target("training with clips against the usual way, (a) two layers, 35x35, 32 lags", 20),
    "b": Target("training with clips against the usual way, (b) resnet 64-128, 51x51, 33 lags", 12),
}


def measure(folder: Path, quick: bool) -> Result:
    """Predictions a second of both, same model, predictions a step and precision."""
    rows, figures = [], {}
    for key, case in cases(quick).items():
        sessions = prepare(write_sessions(folder, 2, bins=3600, size=case.size, lags=case.lags))
        clips, windows = Trainee(case.model, sessions), Trainee(case.model, sessions, usual_way=True)
        check_equal(clips, windows, sessions)
        steps = {}
        for length in case.lengths:
            batches = draw_samples(sessions, predictions=case.predictions, length=length, context=clips.twin.context)
            steps[f"clips of {length}"] = partial(clips.step, batches)
        batches = draw_samples(sessions, predictions=case.predictions, length=1, context=windows.twin.context)
        steps["windows"] = partial(windows.step, batches)
        seconds = interleaved(steps, repeats=1 if quick else 3)
        rows += [(case.name, name, case.predictions / s, seconds["windows"] / s) for name, s in seconds.items()]
        figures[key] = seconds.pop("windows") / min(seconds.values())
    return Result(("model", "way", "predictions/s", "against windows"), rows, figures)


def check_equal(clips: Trainee, windows: Trainee, sessions: list) -> None:
    """Both ways predict the same, or there is nothing to compare."""
    clip = draw_samples(sessions, predictions=4, length=4, context=windows.twin.context)[0].clip
    for trainee in (clips, windows):
        trainee.twin.eval()
    with torch.inference_mode():
        together = clips.twin([clip])[0]
        for bin in range(4):
            frames = clip.stimulus[:, :, bin : bin + windows.twin.context + 1]
            window = replace(clip, stimulus=frames, length=1)
            torch.testing.assert_close(windows.twin([window])[0][:, 0], together[:, bin], rtol=1e-4, atol=1e-5)
    for trainee in (clips, windows):
        trainee.twin.train()


if __name__ == "__main__":
    main(measure, TARGETS, "training_speed")
