"""The resnet on a GPU in bfloat16, stimuli on the device: predictions a second, arithmetic, waiting for the host."""

import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from neurotwin.clip import Sample
from neurotwin.data.clips import show
from neurotwin.data.prepare import prepare

from .common import Result, Target, Trainee, cases, draw_samples, interleaved, main, write_sessions

__all__ = ["TARGETS", "measure"]

TARGETS = {
    "rate": Target("predictions a second on a GPU, bfloat16, resnet", 50_000, "predictions/s"),
    "share": Target("arithmetic of its training step against the card's own matrix product", 40, "%"),
    "waits": Target("times that a step makes the host wait", 0, "", at_most=True),
}


def measure(folder: Path, quick: bool) -> Result:
    """Steps and matrix products in turns; without a GPU nothing is measured."""
    columns = ("what", "10^9 operations", "10^9 operations/s")
    if not torch.cuda.is_available():
        return Result(columns, [], dict.fromkeys(TARGETS), ["skipped: there is no GPU here"])
    case, predictions, size = cases(quick)["b"], 64 if quick else 4096, 1024 if quick else 8192
    sessions = prepare(write_sessions(folder, 2, bins=9000, size=case.size, lags=case.lags))
    trainee = Trainee(case.model, sessions, device="cuda")
    sources = [torch.tensor(prepared.source, device="cuda") for prepared in sessions]
    shape = {"predictions": predictions, "length": case.lengths[-1], "context": trainee.twin.context}
    batches = [batch.pin_memory() for batch in draw_samples(sessions, shown=False, **shape)]
    left, right = torch.rand(2, size, size, device="cuda", dtype=torch.bfloat16)
    with FlopCounterMode(display=False) as counter, torch.autocast("cuda", torch.bfloat16):
        trainee.step(moved(batches, sources))
    waits = count_waits(partial(step, trainee, batches, sources, 1))
    operations = {"training step": counter.get_total_flops(), "matrix product": 2 * size**3}
    seconds = interleaved(
        {
            "training step": partial(step, trainee, batches, sources, 10),
            "matrix product": partial(products, left, right, 10),
        },
        repeats=1 if quick else 7,
    )
    rates = {name: 10 * operations[name] / seconds[name] / 1e9 for name in operations}
    rows = [(name, operations[name] / 1e9, rates[name]) for name in operations]
    share = 100 * rates["training step"] / rates["matrix product"]
    figures = {"rate": 10 * predictions / seconds["training step"], "share": share, "waits": waits}
    return Result(columns, rows, figures)


def step(trainee: Trainee, batches: list[Sample], sources: list[Tensor], times: int) -> None:
    """Some steps, batches brought to the device each time, waited for at the end."""
    with torch.autocast("cuda", torch.bfloat16):
        for _ in range(times):
            trainee.step(moved(batches, sources))
    torch.cuda.synchronize()


def moved(batches: list[Sample], sources: list[Tensor]) -> list[Sample]:
    """Batches on the device, with the frames of the sources there."""
    moved = [sample.to("cuda") for sample in batches]
    return [replace(s, clip=show(s.clip, sources[s.session])) for s in moved]


def products(left: torch.Tensor, right: torch.Tensor, times: int) -> None:
    """Some matrix products, waited for at the end."""
    for _ in range(times):
        left @ right
    torch.cuda.synchronize()


def count_waits(function: partial) -> int:
    """How often the host waits for the device, the one wait at the end left out."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            function()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


if __name__ == "__main__":
    main(measure, TARGETS, "gpu")
