"""The command `neurotwin evaluate`."""

import argparse
import logging
from pathlib import Path

from ..analysis.evaluate import evaluate
from ..analysis.report import summary_text
from ..checkpoint_file import find_checkpoint
from ..data.prepare import prepare
from ..data.progress import session_progress
from ..data.session import SPLITS
from ..metrics.table import EvaluationError
from ..models import load_twin
from .arguments import add_device, add_moved_data

__all__ = ["add_arguments", "run"]

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("checkpoint", help="run folder, training checkpoint (.ckpt) or saved model (.safetensors)")
    parser.add_argument("--split", default="val", choices=SPLITS, help="part of the data (%(default)s)")
    parser.add_argument("--sessions", nargs="+", metavar="NAME", help="default: all that the model knows")
    add_moved_data(parser)
    parser.add_argument("--output", help="table (.csv); default: beside the checkpoint, CHECKPOINT.SPLIT.csv")
    add_device(parser)


def run(arguments: argparse.Namespace) -> int:
    """Predict every session of a checkpoint and write the table of its units."""
    twin = load_twin(arguments.checkpoint).to(arguments.device)
    known = {spec.name: spec for spec in twin.sessions}
    if unknown := [name for name in arguments.sessions or () if name not in known]:
        raise EvaluationError(f"{arguments.checkpoint}: has no session {unknown[0]!r}, but {', '.join(known)}")
    configs = [known[name].config for name in arguments.sessions or known]
    sessions = prepare(configs, data_dir=arguments.data_dir)
    with session_progress("evaluating") as progress:
        table = evaluate(twin, sessions, arguments.split, progress=progress)
    output = Path(arguments.output or find_checkpoint(arguments.checkpoint).with_suffix(f".{arguments.split}.csv"))
    table.write(output)
    print(summary_text(table))
    logger.info("table of %d units: %s", len(table), output)
    return 0
