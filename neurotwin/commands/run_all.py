"""The command `neurotwin run-all`: every model of a family on the same sessions, and one table of the runs.

`experiments/run_all_models_backimage.sh` sets up the environment of a clone and then calls this command.
"""

import argparse
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from ..analysis.report import load_run, report_rows, text_table
from ..config import ConfigError
from ..config.yamlfile import read_yaml
from ..data.progress import clock_text
from ..errors import UserError

__all__ = ["RunAllError", "Trained", "add_arguments", "find_models", "run", "train_all"]

# Name of each setting with its default and help.
_SETTINGS = {
    "family": ("", "folder of experiments/model_configs to train, such as full; default: that folder itself"),
    "models": ("", "names of configs in it, or paths of configs, as one word: 'A B'; default: all of them"),
    "datasets": (
        "experiments/dataset_configs/backimage_120.yaml", "parent YAML, or folder of session YAMLs (%(default)s)"
    ),
    "output": (f"runs/backimage_{time.strftime('%Y%m%d_%H%M%S')}", "where run folders are made (%(default)s)"),
    "batch_size": ("", "predicted bins in a step (256)"),
    "learning_rate": ("", "of readouts; the core learns at 1.25 times it (2e-2)"),
    "max_epochs": ("", "(10)"),
    "steps_per_epoch": ("", "(100)"),
    "time_budget_minutes": (
        "1.3", "of a model; what one does not take, those after it share, and what is not done by then is left out "
        "(%(default)s)"
    ),
    "extra_flags": ("", "more flags of the trainer, as one word; or write them after --"),
}  # fmt: skip
# What a model config does not say in its section training, and the caller has not set. It is sized, with the time
# budget, so that a fresh clone gets from nothing to the table in ten minutes on two cores.
_DEFAULTS = {
    "optimizer": "muon", "batch_size": "256", "learning_rate": "2e-2", "max_epochs": "10", "steps_per_epoch": "100",
    "core_lr_scale": "1.25", "lr_scheduler": "anneal", "warmup_epochs": "1", "ema": "0.99", "limit_val_batches": "0.25",
}  # fmt: skip
_LEAST_MINUTES = 0.1
TRAINER = (sys.executable, "-m", "neurotwin", "train")
_ENDED = {128 + number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}  # exit codes
_EPILOG = """
What is not set here is as the section "training" of the model config says, and else as stands in brackets. Learning
rates fall to 0 within the time budget, and weights are averaged over steps, unless a config says otherwise. Epochs
are validated on a quarter of the trials, the table is of all of them. A config that fails does not stop the others; the
exit code is then 1. Ctrl-C stops the whole. Each setting is an option or, in capitals, an environment variable; the
option wins.

Example: a quick look at two models with the curriculum
  MAX_EPOCHS=2 neurotwin run-all --models "ln resnet" -- --enable_curriculum
"""


class RunAllError(UserError):
    """What is to be trained is not there."""


@dataclass
class Trained:
    """What became of the models: the folders of their runs, and the names of those that failed."""

    runs: list[Path]
    failed: list[str]
    stopped: int = 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.formatter_class, parser.epilog = argparse.RawDescriptionHelpFormatter, _EPILOG
    for name, (default, text) in _SETTINGS.items():
        parser.add_argument(f"--{name}", default=os.environ.get(name.upper()) or default, help=text)
    parser.add_argument("flags", nargs="*", metavar="FLAG", help="after --: flags of neurotwin train")


def run(arguments: argparse.Namespace) -> int:
    """Train the models one after another and print one table of the runs; 1 if one of them failed."""
    models = find_models(arguments.models.split(), Path("experiments/model_configs") / arguments.family)
    if not Path(arguments.datasets).exists():
        raise RunAllError(f"{arguments.datasets}: no such dataset config; name one by --datasets")
    names = ("batch_size", "learning_rate", "max_epochs", "steps_per_epoch", "time_budget_minutes")
    settings = {name: getattr(arguments, name) for name in names if getattr(arguments, name)}
    extra = [*shlex.split(arguments.extra_flags), *arguments.flags]
    done = train_all(models, arguments.datasets, arguments.output, settings, extra)
    if done.stopped:
        return done.stopped
    if done.runs:
        print(f"\n{text_table(report_rows([load_run(folder) for folder in done.runs]))}")
    if done.failed:
        print(f"Failed: {' '.join(done.failed)}", file=sys.stderr)
    return 1 if done.failed else 0


def find_models(names: Sequence[str], folder: Path) -> list[Path]:
    """Model configs from their names in a folder, or their paths; all of the folder where none is named.

    Raises
    ------
    RunAllError
        If one is not there, or there is none.
    """
    paths = [Path(n) if "/" in n or n.endswith(".yaml") else folder / f"{n}.yaml" for n in names]
    found = paths or sorted(folder.glob("*.yaml"))
    for path in found or [folder]:
        if not path.is_file():
            raise RunAllError(f"{path}: no such model config; name them by --models")
    return found


def train_all(
    models: Sequence[Path], datasets: str, output: str | Path, settings: Mapping[str, str],
    extra: Sequence[str] = (), *, trainer: Sequence[str] | None = None,
) -> Trained:  # fmt: skip
    """Train models one after another, each in a process of its own.

    Parameters
    ----------
    models
        Their configs.
    datasets
        What they are trained on.
    output
        Where run folders are made, one of each config's name.
    settings
        Flags of the trainer by name. `time_budget_minutes` is pooled: together the models have as many times as much
        as they are, and each may take an equal share of what is left. Of flags that are not among them, a few have
        defaults here, unless the model's config says something of them in its section ``training``.
    extra
        More flags, as words.
    trainer
        The words that start the trainer; default ``neurotwin train``.

    Returns
    -------
    Trained
        With the exit code of the one that a signal ended; the models after it are not trained.
    """
    done, began = Trained([], []), time.monotonic()
    for number, model in enumerate(models):
        name, folder = model.stem, Path(output) / model.stem
        left = (time.monotonic() - began) / max(number, 1) * (len(models) - number)
        hint = f", about {clock_text(left)} left" if number else ""
        print(f"\n[{number + 1}/{len(models)}] {name}{hint}", flush=True)
        if folder.exists() and "--resume" not in extra:
            print(
                f"{folder} holds a run already; choose another --output, or continue it with -- --resume auto",
                file=sys.stderr,
            )
            code = 2
        else:
            place = ("--model_config", str(model), "--dataset_configs_path", datasets)
            place = (*place, "--experiment_name", name, "--checkpoint_dir", str(output))
            given = dict(settings) | _budget(settings, time.monotonic() - began, len(models), number)
            code = _wait([*(trainer or TRAINER), *place, *_flags(model, given), *extra])
            if (folder / "run.json").exists():  # one that failed on the way has its row as well
                done.runs.append(folder)
        if code in _ENDED:
            done.stopped = code
            break
        if code:
            print(f"{name} failed with exit code {code}", file=sys.stderr)
            done.failed.append(name)
    return done


def _budget(settings: Mapping[str, str], used: float, n_models: int, number: int) -> dict[str, str]:
    """The minutes of a model: an equal share of what is left of those of all after `used` seconds."""
    try:
        whole = n_models * float(settings["time_budget_minutes"])
    except (KeyError, ValueError):  # the trainer says what is wrong with it
        return {}
    share = (whole - used / 60) / (n_models - number)
    return {"time_budget_minutes": f"{max(share, _LEAST_MINUTES):.3g}"} if whole > 0 else {}


def _flags(model: Path, settings: Mapping[str, str]) -> list[str]:
    """The settings of a model: those given, else those of its config (which the trainer reads), else the defaults."""
    try:
        content = read_yaml(model)[0]
    except ConfigError:  # the trainer says what is wrong with it
        content = None
    said = (content.get("training") if isinstance(content, dict) else None) or ()
    values = {name: value for name, value in _DEFAULTS.items() if name not in said} | dict(settings)
    return [word for name, value in values.items() for word in (f"--{name}", value)]


def _wait(command: Sequence[str]) -> int:
    """Run a command and return its exit code as a shell gives it; a signal lets it end in good order."""
    children: list[subprocess.Popen] = []

    def pass_on(signum: int, frame: FrameType | None) -> None:
        if children and signum != signal.SIGINT:  # Ctrl-C reaches the child by itself
            children[0].send_signal(signum)

    before = {n: signal.signal(n, pass_on) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    try:
        children.append(subprocess.Popen(command))
        code = children[0].wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code
