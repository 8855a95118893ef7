"""Training time until a given validation BPS on demo sessions: clips, by length and batch, against the usual way."""

import statistics
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neurotwin.config import DatasetConfig, load_dataset_configs, load_model_config
from neurotwin.data.clips import clip_table, stream
from neurotwin.data.prepare import Prepared, prepare
from neurotwin.data.simulate import make_demo_sessions
from neurotwin.metrics import Sums, summarize

from .common import ROOT, Result, Target, Trainee, cases, main, write_sessions

__all__ = ["TARGETS", "measure"]

TARGETS = {
    "share": Target("time to a validation BPS with clips, as a share of that of the usual way", 0.2, at_most=True)
}
GOAL, LEARNING_RATE, LIMIT = 0.35, 1e-2, 60.0
"""Bits per spike; for core and readouts alike; seconds that the first setting may take."""
SETTINGS = ((32, 256), (32, 128), (32, 512), (8, 256), (8, 128), (8, 512), (128, 256))
"""Bins of a clip and predictions a step, those of the experiments first."""
WINDOWS = 128
"""Predictions a step of the usual way: 64 and 256, with learning rates to match, took it no less."""
ORDERS = 2
"""Orders of the clips in which the first setting and the usual way are run: learning is noisy."""


def measure(folder: Path, quick: bool) -> Result:
    """Seconds of training until the goal. A setting is given up once it is 1.25 times slower than the first.

    The target is of the first setting, not of the luckiest. The usual way is given up at ten times its seconds, which
    then are fewer than it takes.
    """
    if quick:
        case = cases(quick)["a"]
        sessions, model = prepare(write_sessions(folder, 2, bins=3600, size=case.size, lags=case.lags)), case.model
        goal, settings, windows, between = -np.inf, ((4, 16), (8, 16)), 16, 64
    else:
        sessions, model = demo_sessions(folder), load_model_config(ROOT / "experiments/model_configs/resnet.yaml")
        goal, settings, windows, between = GOAL, SETTINGS, WINDOWS, 4096

    def train(length: int, batch: int, order: int, limit: float, **options: Any) -> float:
        reached, seconds, bps, predictions = train_until(
            goal, sessions, model, length, batch, order=order, limit=limit, **{"between": between} | options
        )
        way = "windows" if options else f"clips of {length}"
        rows.append((way, batch, f"{seconds:.1f}" if reached else f"> {seconds:.1f}", predictions, bps))
        return seconds

    rows: list[Sequence[str | float]] = []
    clips = statistics.mean(train(*settings[0], order, LIMIT) for order in range(ORDERS))
    for length, batch in settings[1:]:
        train(length, batch, 0, 1.25 * clips)
    usual = {"usual_way": True, "between": between // 2}
    usually = statistics.mean(train(1, windows, order, 10 * clips, **usual) for order in range(ORDERS))
    notes = [
        f"goal: {GOAL} bits per spike, as the median of three validations in a row; validation is not in the times; "
        f"learning rate {LEARNING_RATE}"
    ]
    columns = ("way", "predictions a step", "seconds", "predictions", "BPS")
    return Result(columns, rows, {"share": clips / usually}, notes)


def demo_sessions(folder: Path) -> list[Prepared]:
    """Two demo sessions, with the 33 lags of the other comparisons with the usual way."""
    configs = load_dataset_configs(ROOT / "experiments/dataset_configs/backimage_120.yaml", data_dir=folder)[:2]
    make_demo_sessions(folder, [config.session for config in configs])
    lags = {"keys_lags": {"stim": list(range(33))}}
    filters = {"datafilters": {"dfs": {"ops": [{"valid_nlags": {"n_lags": 33}}, {"missing_pct": {"threshold": 45}}]}}}
    plain = (config.model_dump(mode="json", by_alias=True) for config in configs)
    return prepare([DatasetConfig.model_validate(values | lags | filters) for values in plain])


def train_until(
    goal: float, sessions: list[Prepared], model: object, length: int, batch: int, *, order: int, limit: float,
    between: int, usual_way: bool = False,
) -> tuple[bool, float, float, int]:  # fmt: skip
    """Whether the goal was reached within the limit, seconds of training, the BPS in the end, and predictions made.

    It is validated every `between` predictions, and the median of the last three counts. `order` seeds the order of the
    clips.
    """
    trainee = Trainee(model, sessions, usual_way=usual_way, learning_rate=LEARNING_RATE)
    table, rng = clip_table(sessions, "train", length=length), np.random.default_rng(order)
    size, seconds, predictions, last = max(1, batch // table.length), 0.0, 0, deque(maxlen=3)
    rows = rng.permutation(len(table))
    while seconds < limit:
        for _ in range(max(1, between // batch)):
            if len(rows) < size:
                rows = rng.permutation(len(table))
            began = time.perf_counter()
            trainee.step(table.samples(rows[:size], context=trainee.twin.context))
            seconds += time.perf_counter() - began
            rows, predictions = rows[size:], predictions + size * table.length
            if seconds >= limit:
                break
        last.append(validate(trainee, sessions))
        if len(last) == 3 and np.median(last) >= goal:
            break
    bps = float(np.median(last))
    return bps >= goal, seconds, bps, predictions


@torch.no_grad()
def validate(trainee: Trainee, sessions: list[Prepared]) -> float:
    """Mean BPS over sessions of their means over units, on a quarter of the validation trials."""
    trainee.twin.eval()
    means = []
    for index, prepared in enumerate(sessions):
        sums = Sums(trainee.twin.per_session[index].likelihood)
        for sample in stream(prepared, "val", context=trainee.twin.context, limit=0.25):
            rates = trainee.twin([sample.of_session(index).clip])[0]
            sums.update(rates, sample.target.responses, sample.target.mask)
        means.append(summarize(sums.compute()["bps"]).mean)
    trainee.twin.train()
    return float(np.mean(means))


if __name__ == "__main__":
    main(measure, TARGETS, "time_to_bps")
