"""Train one model with one part changed at a time, and write the table of docs/ablations.md.

    python experiments/ablations.py --output runs/ablations --write

Each variant is a shipped model with some keys replaced. A variant that OUTPUT holds already is not trained again, so
that a run which was stopped goes on where it was. What counts as time is that of the processor, with one thread.
"""

import argparse
import csv
import json
import os
import re
import resource
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
BASE = ROOT / "experiments/model_configs/resnet_concat.yaml"
PAGE = ROOT / "docs/ablations.md"
FIRST, SECOND = "convnet.params.block_configs.0", "convnet.params.block_configs.1"
WIDE = {"convnet.params.channels.0": 32}
DIVIDED = {f"{block}.{key}": value for block in (FIRST, SECOND) for key, value in {"norm_type": "divisive"}.items()}
MIXED = WIDE | {f"{FIRST}.act_type": "amplitude", f"{FIRST}.act_params": {"paired": 0.5}}

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "as_shipped": ("`resnet_concat` as it is: 16 filters, `splitrelu`", {}),
    "wide": ("32 filters, `splitrelu`: 64 channels after it", WIDE),
    "energy": ("32 filters, `energy`: 16 channels", WIDE | {f"{FIRST}.act_type": "energy"}),
    "amplitude": ("32 filters, `amplitude`: 16 channels", WIDE | {f"{FIRST}.act_type": "amplitude"}),
    "mixed": ("32 filters, `amplitude`, `paired: 0.5`: 24 channels, 16 of them rectified", MIXED),
    "divisive": ("`norm_type: divisive` in both blocks", DIVIDED),
    "divisive_first": ("`norm_type: divisive` in the first block", {f"{FIRST}.norm_type": "divisive"}),
    "divisive_mixed": ("`divisive` in both blocks, and 32 filters, `amplitude`, `paired: 0.5`", DIVIDED | MIXED),
    "drop_path": ("`drop_path: 0.1`", {"convnet.params.drop_path": 0.1}),
    "retinotopy": ("`retinotopy: true`", {"readout.params.retinotopy": True}),
    "per_unit": ("`learned: per_unit`",
                 {"output_activation": {"type": "softplus", "params": {"learned": "per_unit"}}}),
    "low_rank": ("`rank: 12`", {"readout.params.rank": 12}),
    "factorized": ("`type: factorized` in the second block", {f"{SECOND}.conv_params.type": "factorized"}),
    "separable": ("`type: depthwise` and `se_pool` in the second block",
                  {f"{SECOND}.conv_params.type": "depthwise",
                   f"{SECOND}.pool_params": {"type": "se_pool", "stride": 1, "r": 4}}),
    "positions": ("`position_channels: linear`", {"convnet.params.position_channels": "linear"}),
    "rotations": ("32 filters, `rotations: 8`, `splitrelu`",
                  WIDE | {f"{FIRST}.conv_params.rotations": 8, f"{FIRST}.conv_params.aa_signal": False}),
    "transformer": ("`convnet: transformer`, 2 layers of 2 frames",
                    {"convnet": {"type": "transformer", "params": {"frames": 2, "depth": 2, "width": 32}}}),
}  # fmt: skip
"""Name of a variant: what it is, and the keys of BASE that it replaces."""


def variant(changes: dict[str, Any]) -> dict[str, Any]:
    """The config of BASE with some keys replaced, given by their dotted paths."""
    config = yaml.safe_load(BASE.read_text())
    for path, value in changes.items():
        *steps, last = [int(step) if step.isdigit() else step for step in path.split(".")]
        owner = config
        for step in steps:
            owner = owner[step]
        owner[last] = value
    return config


def done(run: Path) -> bool:
    """Whether a run folder holds all that the table needs."""
    return (run / "seconds.json").exists()


def train(name: str, seed: int, arguments: argparse.Namespace) -> None:
    """Train a variant unless that is done, and keep the seconds of the processor that it took."""
    run = arguments.output / f"{name}_{seed}"
    if done(run):
        return
    config = arguments.output / f"{name}.yaml"
    config.write_text(yaml.safe_dump(variant(VARIANTS[name][1]), sort_keys=False))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [
            sys.executable, "training/train_ddp_multidataset.py", "--model_config", str(config.resolve()),
            "--dataset_configs_path", "experiments/dataset_configs/backimage_120.yaml",
            *(["--data_dir", str(arguments.data_dir.resolve())] if arguments.data_dir else []),
            "--experiment_name", run.name, "--checkpoint_dir", str(arguments.output.resolve()), "--seed", str(seed),
            "--max_epochs", str(arguments.steps // 100), "--steps_per_epoch", "100", "--batch_size", "256",
            "--learning_rate", "2e-2", "--core_lr_scale", "0.5", "--lr_scheduler", "cosine_warmup",
            "--warmup_epochs", "1", "--limit_val_batches", "0.25", "--logger", "csv", "--accelerator", "cpu",
        ],
        check=True, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    (run / "seconds.json").write_text(json.dumps(seconds))


def row(name: str, seeds: list[int], output: Path) -> str:
    """The line of a variant in the table; means over seeds."""
    shares, bps, halves, seconds, parameters = [], [], [], [], 0
    for run in (output / f"{name}_{seed}" for seed in seeds):
        with (run / "units.csv").open() as file:
            units = list(csv.DictReader(file))
        values, oracle = ([float(unit[key]) for unit in units] for key in ("bps", "oracle_bps"))
        bps.append(statistics.fmean(values))
        shares.append(100 * statistics.fmean(values) / statistics.fmean(oracle))
        with (run / "metrics.csv").open() as file:
            epochs = list(csv.DictReader(file))
        halves.append(float(epochs[len(epochs) // 2 - 1]["val_bps"]))
        seconds.append(json.loads((run / "seconds.json").read_text()))
        parameters = json.loads((run / "run.json").read_text())["parameters"]
    each = " / ".join(f"{share:.1f}" for share in shares)
    cells = [
        VARIANTS[name][0], f"{parameters:,}", f"{statistics.fmean(halves):.3f}", f"{statistics.fmean(bps):.3f}",
        f"{statistics.fmean(shares):.1f}% ({each})" if len(seeds) > 1 else f"{shares[0]:.1f}%",
        f"{statistics.fmean(seconds):.0f}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Train what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "runs/ablations", help="where run folders are made")
    parser.add_argument("--data_dir", type=Path, help="folder of the demo sessions; default: as in the dataset config")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), help="default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="one run each")
    parser.add_argument(
        "--write", action="store_true", help="put the table of what OUTPUT holds into docs/ablations.md"
    )
    parser.add_argument("--steps", type=int, default=800, help="of each run, a multiple of 200")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    for seed in arguments.seeds:
        for name in arguments.variants:
            train(name, seed, arguments)
    head = (
        f"| variant | parameters | BPS, step {arguments.steps // 2} | BPS, step {arguments.steps} | of the oracle | "
        "processor, s |\n|---|---|---|---|---|---|\n"
    )
    trained = [name for name in VARIANTS if all(done(arguments.output / f"{name}_{seed}") for seed in arguments.seeds)]
    table = head + "\n".join(row(name, arguments.seeds, arguments.output) for name in trained)
    sys.stdout.write(f"{table}\n")
    if arguments.write:
        marked = re.compile(r"(?<=<!-- table -->\n).*?(?=\n<!-- end -->)", re.DOTALL)
        PAGE.write_text(marked.sub(lambda _: table, PAGE.read_text()))


if __name__ == "__main__":
    main()
