"""How long the clips of a recurrent core should be, and how long it should warm up: validation BPS against time.

In evaluation the state of a recurrent core is carried through whole trials. In training it starts anew in each clip,
`n_lags` - 1 frames before the first predicted bin. Short clips mix well and need little memory, but they never show the
core a long past. This trains the same model on the same number of predictions with several lengths of both.
"""

import resource
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from subprocess import run

import yaml

from neurotwin.data.simulate import make_demo_sessions
from neurotwin.metrics import Table, summarize

from .common import ROOT, Result, Target, main

__all__ = ["TARGETS", "measure"]

TARGETS = {
    "loss": Target("BPS that the shipped clip and warm-up lose against the best of these", 0.02, "BPS", at_most=True)
}
SHIPPED = (32, 20)
SETTINGS = (SHIPPED, (64, 20), (128, 20), (32, 52), (64, 52))
"""Predicted bins of a clip, and lags, which are one more than the frames of warm-up. The shipped ones come first."""
PREDICTIONS, STEPS, SEEDS = 256, 500, 3
"""Of a step; steps of a run; seeds."""


def measure(folder: Path, quick: bool) -> Result:
    """Medians over seeds. The bins that are scored are the same for all settings."""
    settings, steps, seeds = (SETTINGS[:1], 2, 1) if quick else (SETTINGS, STEPS, SEEDS)
    make_demo_sessions(folder / "data")
    rows: list[Sequence[str | float]] = []
    medians = {}
    for length, lags in settings:
        found = [train(folder, length, lags, steps, seed) for seed in range(seeds)]
        scores, seconds = zip(*found, strict=True)
        medians[length, lags] = statistics.median(scores)
        spread = f"{min(scores):.3f} to {max(scores):.3f}"
        rows.append((f"{length}", f"{lags - 1}", medians[length, lags], spread, statistics.median(seconds)))
    columns = ("bins of a clip", "frames of warm-up", "BPS, median", "BPS, range", "seconds of processor time")
    notes = [
        f"experiments/model_configs/resnet_convgru.yaml on the four demo sessions, {steps} steps of {PREDICTIONS} "
        f"predictions, {seeds} seeds"
    ]
    return Result(columns, rows, {"loss": max(medians.values()) - medians[SHIPPED]}, notes)


def train(folder: Path, length: int, lags: int, steps: int, seed: int) -> tuple[float, float]:
    """Mean validation BPS over units after a run of the training script, and its seconds of processor time."""
    longest = max(lags for _, lags in SETTINGS)
    source = ROOT / "experiments/dataset_configs/backimage_120.yaml"
    parent = yaml.safe_load(source.read_text(encoding="utf-8"))
    parent |= {"session_dir": str(source.parent / "sessions"), "data_dir": str(folder / "data")}
    parent["keys_lags"]["stim"] = [f"0..{lags - 1}"]
    parent["datafilters"]["dfs"]["ops"] = [{"valid_nlags": {"n_lags": longest}}, {"missing_pct": {"threshold": 45}}]
    datasets = folder / f"lags{lags}.yaml"
    datasets.write_text(yaml.safe_dump(parent), encoding="utf-8")
    name = f"clip{length}_lags{lags}_seed{seed}"
    flags = {
        "model_config": "experiments/model_configs/resnet_convgru.yaml", "dataset_configs_path": datasets,
        "experiment_name": name, "checkpoint_dir": folder, "clip_len": length, "batch_size": PREDICTIONS,
        "max_epochs": 5, "steps_per_epoch": max(1, steps // 5), "learning_rate": 2e-2, "core_lr_scale": 0.5,
        "warmup_epochs": 1, "lr_scheduler": "cosine_warmup", "limit_val_batches": 0.25, "seed": seed,
    }  # fmt: skip
    words = [str(word) for flag, value in flags.items() for word in (f"--{flag}", value)]
    before = _processor_seconds()
    script = "training/train_ddp_multidataset.py"
    run([sys.executable, script, *words], cwd=ROOT, check=True, capture_output=True)
    table = Table.read(folder / name / "units.csv")
    return float(summarize(table["bps"]).mean), _processor_seconds() - before


def _processor_seconds() -> float:
    """Of all child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main(measure, TARGETS, "recurrent_clips")
