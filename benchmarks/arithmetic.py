"""Arithmetic achieved in the training step of the resnet, from counted operations, against a matrix product."""

from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from neurotwin.data.prepare import prepare

from .common import Result, Target, Trainee, cases, draw_samples, interleaved, main, write_sessions

__all__ = ["TARGETS", "measure"]

TARGETS = {"share": Target("arithmetic of the resnet's training step against a matrix product", 60, "%")}


def measure(folder: Path, quick: bool) -> Result:
    """Operations a second of the step and of a product of square matrices.

    Only convolutions and matrix products are counted, a multiplication and an addition as two, those with the zeros of
    the padding included. What the step does besides counts as time.
    """
    case, size = cases(quick)["b"], 256 if quick else 4096
    sessions = prepare(write_sessions(folder, 2, bins=3600, size=case.size, lags=case.lags))
    trainee = Trainee(case.model, sessions)
    batches = draw_samples(
        sessions, predictions=case.predictions, length=case.lengths[-1], context=trainee.twin.context
    )
    with FlopCounterMode(display=False) as counter:
        trainee.step(batches)
    left, right = torch.rand(2, size, size)
    operations = {"training step": counter.get_total_flops(), "matrix product": 2 * size**3}
    seconds = interleaved(
        {"training step": lambda: trainee.step(batches), "matrix product": lambda: left @ right},
        repeats=1 if quick else 5,
    )
    rates = {name: operations[name] / seconds[name] / 1e9 for name in operations}
    rows = [(name, operations[name] / 1e9, rates[name]) for name in operations]
    notes = [f"{operations['training step'] / case.predictions / 1e9:.3g} billion operations a prediction"]
    share = 100 * rates["training step"] / rates["matrix product"]
    return Result(("what", "10^9 operations", "10^9 operations/s"), rows, {"share": share}, notes)


if __name__ == "__main__":
    main(measure, TARGETS, "arithmetic")
