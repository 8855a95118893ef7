"""The command `neurotwin transfer`."""

import argparse
import logging
from pathlib import Path

from ..analysis.report import summary_text
from ..checkpoint_file import find_checkpoint
from ..config import ConfigError
from ..models import load_twin
from ..transfer import open_new, transfer
from ..transfer.curve import learning_curve
from ..transfer.tune import TUNED
from .arguments import number

__all__ = ["add_arguments", "run"]

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("checkpoint", help="run folder, training checkpoint (.ckpt) or saved model (.safetensors)")
    parser.add_argument("sessions", nargs="+", metavar="NEW_SESSIONS", help="dataset YAML, folder, or session files")
    parser.add_argument("--output", help="folder; default: transfer_SESSION beside the checkpoint")
    parser.add_argument("--data_dir", help="folder of the recordings that the YAML names")
    parser.add_argument("--tune", choices=[*TUNED], help="afterwards change this part of the core too, by small steps")
    parser.add_argument("--add", action="store_true", help="write one twin of the old and the new sessions")
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument("--n_trials", type=number(int, 1, 1e9), help="training trials to use; default: all")
    amount.add_argument("--minutes", type=number(float, 1e-6, 1e9), help="minutes of training trials to use")
    parser.add_argument("--curve", action="store_true", help="also fit growing parts: score against minutes recorded")
    parser.add_argument("--seed", type=number(int, 0, 2**31), default=0, help="draws the trials (%(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Fit new sessions on the core of a checkpoint; write the twin and the table of its units."""
    if arguments.curve and (arguments.n_trials or arguments.minutes or arguments.tune):
        raise ConfigError("--curve fits growing parts of all data; leave out --n_trials, --minutes and --tune")
    twin = load_twin(arguments.checkpoint)
    sessions = open_new(twin, arguments.sessions, data_dir=arguments.data_dir)
    beside = find_checkpoint(arguments.checkpoint).parent / f"transfer_{sessions[0].session}"
    output = Path(arguments.output or beside)
    given = {"n_trials": arguments.n_trials, "minutes": arguments.minutes, "seed": arguments.seed}
    # Curves first: what cannot have one is refused before anything is written.
    curves = [learning_curve(twin, config, seed=arguments.seed) for config in sessions if arguments.curve]
    result = transfer(twin, sessions, tune_part=arguments.tune, add=arguments.add, **given)
    output.mkdir(parents=True, exist_ok=True)
    result.twin.save(output / "twin.safetensors")
    result.table.write(output / "units.csv")
    print(summary_text(result.table))
    for name, report in result.reports.items():
        logger.info(
            "session %s: %d training bins, penalty %g, %.1f s", name, report.bins, report.penalty,
            result.seconds[name],
        )  # fmt: skip
    for name in result.tested:
        logger.info("session %s: its test part was not looked at; neurotwin evaluate --split test does so", name)
    for curve in curves:
        curve.write(output / f"curve_{curve.session}.csv")
        curve.plot(output / f"curve_{curve.session}.png")
        print(curve.summary())
    logger.info("twin: %s, units: %s", output / "twin.safetensors", output / "units.csv")
    return 0
