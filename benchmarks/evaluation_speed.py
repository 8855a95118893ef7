"""Evaluation of a session, from its file to the table of units, against training on batches held in memory."""

from functools import partial
from pathlib import Path

from neurotwin.analysis.evaluate import evaluate
from neurotwin.data.clips import usable_runs
from neurotwin.data.prepare import prepare

from .common import Result, Target, Trainee, cases, draw_samples, interleaved, main, write_sessions

__all__ = ["TARGETS", "measure"]

TARGETS = {
    "a": Target("predictions a second in evaluation against training, (a) two layers", 3),
    "b": Target("predictions a second in evaluation against training, (b) resnet", 3),
}


def measure(folder: Path, quick: bool) -> Result:
    """Predictions a second of both."""
    rows, figures = [], {}
    for key, case in cases(quick).items():
        sessions = prepare(write_sessions(folder, 2, bins=3600, size=case.size, lags=case.lags))
        trainee, one = Trainee(case.model, sessions), sessions[:1]
        batches = draw_samples(
            sessions, predictions=case.predictions, length=case.lengths[-1], context=trainee.twin.context
        )
        evaluated = sum(int(stop - start) for start, stop in usable_runs(one[0], "val"))
        ways = {"training": partial(trainee.step, batches), "evaluation": partial(evaluate, trainee.twin, one)}
        seconds = interleaved(ways, repeats=1 if quick else 3)
        rates = {"training": case.predictions / seconds["training"], "evaluation": evaluated / seconds["evaluation"]}
        rows += [(case.name, name, rate) for name, rate in rates.items()]
        figures[key] = rates["evaluation"] / rates["training"]
    return Result(("model", "what", "predictions/s"), rows, figures)


if __name__ == "__main__":
    main(measure, TARGETS, "evaluation_speed")
