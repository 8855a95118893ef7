"""What the benchmarks share: random sessions, models, a training step, interleaved timing, tables and JSON.

Random numbers are as good as recordings for speed. What is compared is timed in one run, in turns (A B A B), and
reported as medians.
"""

import argparse
import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Event, Thread
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn

from neurotwin.clip import Sample
from neurotwin.config import DatasetConfig, ModelConfig
from neurotwin.data.clips import clip_table
from neurotwin.data.prepare import Prepared
from neurotwin.data.session import Session
from neurotwin.models import TwinModel
from training import MultiDatasetDM, MultiDatasetModel
from training.callbacks import StopSignals
from training.processes import GradientSumStrategy
from training.utils import keep_freed_memory, quiet_lightning

__all__ = [
    "Case",
    "Result",
    "Target",
    "Trainee",
    "cases",
    "draw_samples",
    "fit",
    "in_fresh_process",
    "interleaved",
    "machine",
    "main",
    "private_memory",
    "show",
    "shown",
    "watched_memory",
    "write_sessions",
]

ROOT = Path(__file__).parent.parent
BIN_RATE, TRIAL, UNITS = 120.0, 600, 64
"""Of the random sessions: Hz, bins of a trial, units."""


# --------------------------------------------------------------------------------------------------------------------
# Results
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """A figure and the bound that it should keep: at least, or at most."""

    what: str
    bound: float
    unit: str = "x"
    at_most: bool = False

    def goal(self) -> str:
        """The bound in words."""
        return f"{'at most' if self.at_most else 'at least'} {self.bound:,g} {self.unit}".rstrip()

    def measured(self, value: float | None) -> str:
        """A value with its unit."""
        return "" if value is None else f"{shown(value)} {self.unit}".rstrip()

    def verdict(self, value: float | None) -> str:
        """Whether a value keeps the bound."""
        if value is None:
            return "not yet measured"
        return "met" if (value <= self.bound if self.at_most else value >= self.bound) else "missed"


@dataclass
class Result:
    """What a benchmark found: a table, the values of its targets, and remarks."""

    columns: Sequence[str]
    rows: list[Sequence[str | float]]
    figures: Mapping[str, float | None]
    notes: Sequence[str] = ()
    info: dict[str, Any] = field(default_factory=dict)


def show(name: str, result: Result, targets: Mapping[str, Target]) -> str:
    """A result as text; a quick one measures nothing, and its targets are left out."""
    table = [list(map(str, result.columns)), *(list(map(shown, row)) for row in result.rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in table]
    for key, value in {} if result.info["quick"] else result.figures.items():
        what, verdict = targets[key].what, targets[key].verdict(value)
        lines.append(f"{what}: {targets[key].measured(value)} (target {targets[key].goal()}: {verdict})")
    return "\n".join([f"== {name}", *lines, *result.notes])


def shown(value: str | float) -> str:
    """A cell of a table."""
    return value if isinstance(value, str) else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def machine() -> dict[str, Any]:
    """On what, and when."""
    model = platform.processor()
    if (cpu := Path("/proc/cpuinfo")).exists():
        models = [
            line.split(":", 1)[1].strip() for line in cpu.read_text().splitlines() if line.startswith("model name")
        ]
        model = models[0] if models else model
    return {
        "processor": model, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "load": os.getloadavg()[0],
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(), "torch": torch.__version__, "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip


def main(measure: Callable[[Path, bool], Result], targets: Mapping[str, Target], name: str) -> None:
    """The command line of one benchmark."""
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, and measures nothing")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "results/benchmarks", help="folder of the JSON (%(default)s)"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run(name, measure, targets, Path(folder), quick=arguments.quick, out=arguments.out)


def run(
    name: str, measure: Callable[[Path, bool], Result], targets: Mapping[str, Target], folder: Path, *, quick: bool,
    out: Path,
) -> Result:  # fmt: skip
    """Measure, print the table, and write ``NAME.json``."""
    quiet_lightning()
    keep_freed_memory()
    began = time.perf_counter()
    result = measure(folder, quick)
    result.info = {"name": name, "quick": quick, "seconds": round(time.perf_counter() - began, 1), **machine()}
    print(show(name, result, targets), flush=True)
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(asdict(result), indent=2) + "\n")
    return result


# --------------------------------------------------------------------------------------------------------------------
# What is measured
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A model on frames of `size` pixels and `lags` frames a prediction."""

    name: str
    size: int
    lags: int
    predictions: int
    lengths: tuple[int, ...]
    model: Mapping[str, Any]


def cases(quick: bool) -> dict[str, Case]:
    """The two models that the targets speak of; quick: the same in miniature."""
    narrow, wide = ((2, 3), (4, 6)) if quick else ((16, 32), (64, 128))
    two_layers = {"convnet": {"type": "vanilla", "params": {"channels": narrow, "block_configs": [
        {"conv_params": {"kernel_size": [3, 9, 9]}, "norm_type": "batch", "act_type": "silu"},
        {"conv_params": {"kernel_size": [3, 5, 5]}, "norm_type": "batch", "act_type": "silu"},
    ]}}}  # fmt: skip
    filters = {"kernel_size": 16, "num_channels": 6, "init_type": "gaussian_derivatives", "aa_signal": True}
    first = {"kernel_size": [1, 9, 9], "padding": [0, 4, 4], "stride": [1, 2, 2], "aa_signal": True}
    second = {"kernel_size": [3, 5, 5], "padding": [0, 2, 2]}
    resnet = {
        "frontend": {"type": "learnable_temporal", "params": filters},
        "convnet": {"type": "resnet", "params": {"channels": wide, "block_configs": [
            {"conv_params": first | {"use_weight_norm": True}, "norm_type": "grn", "act_type": "splitrelu"},
            {"conv_params": second | {"use_weight_norm": True}, "norm_type": "grn", "act_type": "mish"},
        ]}},
    }  # fmt: skip
    if quick:
        return {"a": Case("two layers", 15, 32, 8, (4, 8), two_layers), "b": Case("resnet", 15, 33, 8, (8,), resnet)}
    return {
        "a": Case("two layers, 35x35, 32 lags", 35, 32, 256, (16, 32, 64), two_layers),
        "b": Case("resnet 64-128, 51x51, 33 lags", 51, 33, 32, (16, 32), resnet),
    }


def write_sessions(folder: Path, count: int, *, bins: int, size: int, lags: int) -> list[DatasetConfig]:
    """Sessions of random frames and counts, written unless they are there, and their configs."""
    configs = []
    for index in range(count):
        name = f"random_{size}_{bins}_{index}"
        path = folder / f"{name}.safetensors"
        if not path.exists():
            rng = np.random.default_rng((size, bins, index))
            Session(
                name=name, stimulus=rng.integers(0, 256, (bins, size, size), dtype=np.uint8),
                responses=rng.poisson(0.2, (bins, UNITS)).astype(np.uint8), bin_rate=BIN_RATE,
                trial=np.arange(bins) // TRIAL,
            ).save(path)  # fmt: skip
        configs.append(DatasetConfig(session=name, path=str(path), keys_lags={"stim": list(range(lags))}))
    return configs


class Trainee:
    """A twin and its optimizer, for steps without the framework around them.

    Parameters
    ----------
    model
        Its config.
    sessions
        What it predicts.
    usual_way
        Give the core the whole window of lags for every prediction, and keep the last step: what is done where every
        prediction is a sample of its own. It is the same model, told that it needs all lags before a prediction. The
        window is not padded, so that this is the least that the usual way costs.
    device
        Where it computes.
    """

    def __init__(
        self, model: Mapping[str, Any] | ModelConfig, sessions: Sequence[Prepared], *, usual_way: bool = False,
        device: str = "cpu", learning_rate: float = 1e-3,
    ):  # fmt: skip
        specs = [prepared.spec for prepared in sessions]
        self.twin = TwinModel(ModelConfig.model_validate(model), specs)
        self.twin.initialise([prepared.statistics() for prepared in sessions])
        self.twin.to(device)
        if usual_way:
            self.twin.context = specs[0].n_lags - 1
        self.optimizer = torch.optim.AdamW(self.twin.parameters(), lr=learning_rate)

    def step(self, samples: list[Sample]) -> Tensor:
        """One optimizer step; the loss."""
        rates = self.twin([sample.clip for sample in samples])
        loss = sum(
            self.twin.per_session[sample.session].likelihood.nll(r, sample.target.responses, sample.target.mask)
            for r, sample in zip(rates, samples, strict=True)
        ) / sum(sample.target.mask.sum() for sample in samples)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.twin.parameters(), 1.0)
        self.optimizer.step()
        return loss


def draw_samples(
    sessions: Sequence[Prepared], *, predictions: int, length: int, context: int, seed: int = 0, shown: bool = True
) -> list[Sample]:
    """One training batch, clips drawn at random."""
    table = clip_table(sessions, "train", length=length)
    rows = np.random.default_rng(seed).choice(len(table), max(1, predictions // table.length), replace=False)
    return table.samples(rows, context=context, shown=shown)


class StepClock(pl.Callback):
    """Seconds of each optimizer step of a run, from the end of the one before; `between` is called then, uncounted."""

    def __init__(self, between: Callable[[], Any]) -> None:
        self.seconds: list[float] = []
        self._between, self._since = between, time.perf_counter()

    def on_train_batch_end(self, *_: object) -> None:
        """Look at the clock."""
        self.seconds.append(time.perf_counter() - self._since)
        self._between()
        self._since = time.perf_counter()


def fit(
    configs: Sequence[DatasetConfig], model: Mapping[str, Any], *, steps: int, batch_size: int, clip_len: int = 32,
    processes: int = 1, between: Callable[[], Any] = lambda: None,
) -> list[float]:  # fmt: skip
    """Train as the training script does, without its files; seconds of each step after the first 3.

    `between` is called after every step, and its time not counted.
    """
    data = MultiDatasetDM(configs, batch_size=batch_size, clip_len=clip_len, steps_per_epoch=3 + steps)
    module = MultiDatasetModel(ModelConfig.model_validate(model), data.specs, statistics=data.statistics())
    clock = StepClock(between)
    trainer = pl.Trainer(
        accelerator="cpu", devices=processes, strategy=GradientSumStrategy() if processes > 1 else "auto",
        max_epochs=1, gradient_clip_val=1.0, callbacks=[clock, StopSignals()], logger=False,
        use_distributed_sampler=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(module, data)
    return clock.seconds[3:]


# --------------------------------------------------------------------------------------------------------------------
# Measuring
# --------------------------------------------------------------------------------------------------------------------


def interleaved(functions: Mapping[Any, Callable[[], Any]], *, repeats: int, warm_up: int = 2) -> dict[Any, float]:
    """Median seconds of some functions that take turns."""
    seconds: dict[Any, list[float]] = {name: [] for name in functions}
    for repeat in range(warm_up + repeats):
        for name, function in functions.items():
            began = time.perf_counter()
            function()
            if repeat >= warm_up:
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def private_memory() -> float:
    """Memory of this process that it shares with no file and no other process, MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


@contextmanager
def watched_memory(interval: float = 0.02) -> Iterator[list[float]]:
    """A list that holds the highest :func:`private_memory` seen while inside."""
    highest, done = [private_memory()], Event()

    def watch() -> None:
        while not done.wait(interval):
            highest[0] = max(highest[0], private_memory())

    thread = Thread(target=watch)
    thread.start()
    try:
        yield highest
    finally:
        done.set()
        thread.join()


def in_fresh_process(function: str, *, threads: int | None = None, **arguments: Any) -> Any:
    """What ``module:function`` returns for some JSON arguments in a new process."""
    environment = os.environ | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)})
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        command = [sys.executable, "-m", "benchmarks.common", function, json.dumps(arguments), str(answer)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{function}({arguments}) failed:\n{done.stderr}")
        return json.loads(answer.read_text())


def _answer(function: str, arguments: str, path: str) -> None:
    """The other end of :func:`in_fresh_process`; of several processes the first one answers."""
    quiet_lightning()
    keep_freed_memory()
    module, _, name = function.partition(":")
    value = getattr(importlib.import_module(module), name)(**json.loads(arguments))
    if os.environ.get("LOCAL_RANK", "0") == "0":
        Path(path).write_text(json.dumps(value))


if __name__ == "__main__":
    _answer(*sys.argv[1:])
