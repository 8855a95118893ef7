"""Train what the documentation reports, with several seeds, and write its tables.

    python experiments/results.py --output runs/results --write
    python experiments/results.py --tables demo parts --seeds 0 1 2 --write

A run that OUTPUT holds already is not trained again, so that a script that was stopped goes on where it was. Tables of
recordings that are not there (NEUROTWIN_REAL_DATA) are left as they are. Each run has one thread of the processor, but
for the first command of the README, whose time is limited by the clock; what is given as time is that of the processor.
"""

import argparse
import json
import os
import resource
import runpy
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt

from benchmarks.pages import write_between
from neurotwin.metrics import summarize_table
from neurotwin.metrics.table import Table

ROOT = Path(__file__).resolve().parent.parent
RECORDINGS = os.environ.get("NEUROTWIN_REAL_DATA")
BACKIMAGE = "experiments/dataset_configs/backimage_120.yaml"
BLOCK, SECOND = (f"convnet.params.block_configs.{number}" for number in (0, 1))


@dataclass(frozen=True, kw_only=True)
class Row:
    """What is trained for a line of a table, or for several.

    Attributes
    ----------
    title
        The line's first cell.
    command
        Words of the command, in which {output}, {name} and {seed} are filled in; it makes the folder OUTPUT/NAME_SEED.
    figures
        From that folder to figures by their names; each is a line.
    digits
        After the point.
    """

    title: str
    command: tuple[str, ...]
    figures: Callable[[Path], dict[str, float]]
    digits: int = 1


def share(run: Path) -> float:
    """Mean bits per spike of the validation in percent of that of the true rate, as the run's own table has it."""
    return 100 * summarize_table(Table.read(run / "units.csv"), "fraction_of_oracle")[-1].mean


def shares(folder: Path) -> dict[str, float]:
    """The shares of all runs in a folder, by their names."""
    return {run.name: share(run) for run in sorted(folder.iterdir()) if (run / "units.csv").exists()}


def v4(checkpoint: Path) -> dict[str, float]:
    """Median correlation of the units of each session with test images."""
    score = runpy.run_path(str(ROOT / "docs/examples/v4_images/score.py"))["score"]
    return {name: statistics.median(r.tolist()) for name, r in score(checkpoint).items()}


def retina(run: Path) -> dict[str, float]:
    """Means over cells."""
    score = runpy.run_path(str(ROOT / "docs/examples/retina_bars/score.py"))["score"]
    bps, r = score(run / "checkpoints/best.ckpt")
    return {"bits per spike": float(bps.mean()), "r with the mean over repeats": float(r.mean())}


def trainer(*flags: str) -> tuple[str, ...]:
    """The words of a training command."""
    place = ("--checkpoint_dir", "{output}", "--experiment_name", "{name}_{seed}", "--seed", "{seed}")
    words = ("env", "OMP_NUM_THREADS=1", sys.executable, "training/train_ddp_multidataset.py")
    return (*words, *flags, *place, "--accelerator", "cpu")


def part(title: str, *changes: str, flags: Sequence[str] = ()) -> Row:
    """A line of the table of parts: the recommended model with some keys set to other values, for fewer steps."""
    settings = [word for change in changes for word in ("--set", change)]
    model = (
        "--model_config",
        "configs/model.yaml",
        "--dataset_configs_path",
        BACKIMAGE,
        "--steps_per_epoch",
        "60",
    )  # of 10 epochs
    return Row(title=title, command=trainer(*model, *settings, *flags), figures=lambda run: {"": share(run)})


def example(name: str, datasets: str, *flags: str) -> tuple[str, ...]:
    """The training command of a worked example."""
    folder = f"docs/examples/{name}"
    place = ("--model_config", f"{folder}/model.yaml", "--dataset_configs_path", f"{folder}/{datasets}")
    return trainer(*place, "--data_dir", f"{{output}}/data/{name}", *flags)


TABLES: dict[str, dict[str, Row]] = {
    "demo": {
        "plain": Row(
            title="`configs/model.yaml`, the plain command of the README",
            command=trainer("--model_config", "configs/model.yaml", "--dataset_configs_path", "configs/datasets",
                            "--max_datasets", "20", "--enable_curriculum"),
            figures=lambda run: {"": share(run)},
        ),
        "first": Row(
            title="the first command of the README",
            command=("bash", "experiments/run_all_models_backimage.sh", "--output", "{output}/{name}_{seed}", "--",
                     "--seed", "{seed}", "--accelerator", "cpu"),
            figures=shares,
        ),
    },
    "v4": {
        "v4": Row(title="V4, median r", command=example("v4_images", "datasets.yaml"),
                  figures=lambda run: v4(run / "checkpoints/best.ckpt"), digits=3),
    },
    "retina": {
        "retina": Row(
            title="retina", figures=retina, digits=3,
            command=example("retina_bars", "rat_bars.yaml", "--clip_len", "1000", "--batch_size", "8000",
                            "--steps_per_epoch", "31", "--max_epochs", "8", "--learning_rate", "3e-3",
                            "--weight_decay", "0.01", "--lr_scheduler", "cosine_warmup", "--warmup_epochs", "1"),
        ),
    },
    "parts": {
        "whole": part("the recommended model"),
        "batch": part("`norm_type: batch` in its first block, not `divisive`", f"{BLOCK}.norm_type=batch"),
        "free": part("32 filters of their own, not 4 in eight orientations", f"{BLOCK}.conv_params.rotations=1"),
        "kernel": part("a whole kernel in its second block, not `depthwise`", f"{SECOND}.conv_params.type=standard"),
        "concat": part("behaviour beside the features (`concat`), not `film`", "modulator.type=concat"),
        "muon": part("Muon for its kernels, not AdamW", flags=("--optimizer", "muon", "--core_lr_scale", "1.25")),
    },
}  # fmt: skip
"""The rows of each table by name; `parts` is in docs/ablations.md, all others are in docs/results.md."""


def train(name: str, row: Row, seed: int, output: Path) -> None:
    """Run a command unless that is done, and keep its figures, and the seconds of the processor that it took."""
    done = output / f"{name}_{seed}.json"
    if done.exists():
        return
    words = [word.format(output=output, name=name, seed=seed) for word in row.command]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(words, check=True, cwd=ROOT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    done.write_text(json.dumps({"figures": row.figures(output / f"{name}_{seed}"), "seconds": seconds}))


def lines(name: str, row: Row, output: Path) -> list[str]:
    """The lines of a row: median and range over all seeds that are there, and the median time; none without a run."""
    runs = [json.loads(path.read_text()) for path in sorted(output.glob(f"{name}_*.json"))]
    found = []
    for label in runs[0]["figures"] if runs else ():
        values = [run["figures"][label] for run in runs]
        cells = [f"{value:.{row.digits}f}" for value in (statistics.median(values), min(values), max(values))]
        seconds = [run["seconds"] for run in runs if "seconds" in run]
        minutes = f"{statistics.median(seconds) / 60:.1f}" if seconds else ""
        title = ": ".join(filter(None, [row.title, f"`{label}`" if name == "first" else label]))
        found.append(f"| {title} | {cells[0]} | {cells[1]} to {cells[2]} | {len(runs)} | {minutes} |")
    return found


def write(table: str, found: Iterable[str], page: Path) -> None:
    """Put the lines of a table between its marks in a page."""
    head = ["| what | median | range | seeds | processor, min |", "|---|---|---|---|---|"]
    write_between(page, f"<!-- {table} -->\n", "<!-- end -->", "\n".join([*head, *found, ""]))


def draw(run: Path, path: Path) -> None:
    """The units of a run: bits per spike against those of the true rate."""
    units = Table.read(run / "units.csv")
    figure, axes = plt.subplots(figsize=(4.2, 4), layout="constrained")
    for subject in np.unique(units["subject"]):
        own = units.where(units["subject"] == subject)
        axes.plot(own["oracle_bps"], own["bps"], "o", ms=4, label=subject)
    most = 1.05 * units["oracle_bps"].max()
    axes.plot([0, most], [0, most], color="grey", lw=1)
    axes.set(xlim=(0, most), ylim=(0, most), xlabel="true rate, bits per spike", ylabel="twin, bits per spike")
    axes.legend(title="subject", frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def convert(name: str, output: Path) -> None:
    """The sessions of a worked example, from the published arrays."""
    folder = output / "data" / name
    if not folder.exists():
        script = f"docs/examples/{name}/convert.py"
        subprocess.run([sys.executable, script, str(Path(RECORDINGS) / name), str(folder)], check=True, cwd=ROOT)


def main(argv: Sequence[str] | None = None) -> None:
    """Train what is missing and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "runs/results", help="where runs are made")
    parser.add_argument("--tables", nargs="+", choices=list(TABLES), default=list(TABLES), help="default: all")
    parser.add_argument("--rows", nargs="+", help="names of rows; default: all of the tables")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="one run each")
    parser.add_argument("--write", action="store_true", help="put what OUTPUT holds into the documentation")
    arguments = parser.parse_args(argv)
    mpl.use("Agg")
    output = arguments.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    for table in arguments.tables:
        example = {"v4": "v4_images", "retina": "retina_bars"}.get(table)
        if example and not RECORDINGS:
            continue
        if example:
            convert(example, output)
        rows = {name: row for name, row in TABLES[table].items() if name in (arguments.rows or TABLES[table])}
        for seed in arguments.seeds:
            for name, row in rows.items():
                train(name, row, seed, output)
        found = [line for name, row in TABLES[table].items() for line in lines(name, row, output)]
        sys.stdout.write("\n".join([*found, ""]))
        if arguments.write and found:
            write(table, found, ROOT / ("docs/ablations.md" if table == "parts" else "docs/results.md"))
        if arguments.write and (output / "plain_0.json").exists():
            draw(output / "plain_0", ROOT / "docs/images/result.png")


if __name__ == "__main__":
    main()
