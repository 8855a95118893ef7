"""The command `neurotwin ensemble`."""

import argparse
import logging
from pathlib import Path

from ..checkpoint_file import CheckpointError
from ..models import Ensemble, load_twin

__all__ = ["add_arguments", "run"]

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "members",
        nargs="+",
        metavar="RUN",
        help="run folder, training checkpoint (.ckpt) or saved model (.safetensors)",
    )
    parser.add_argument("--output", required=True, metavar="FILE", help="the ensemble (.safetensors)")


def run(arguments: argparse.Namespace) -> int:
    """Make one model of several: the mean of their rates, and how far they disagree.

    Raises
    ------
    CheckpointError
        If a member cannot be opened, or the output is no .safetensors file.
    EnsembleError
        If the members differ in what they must share.
    """
    output = Path(arguments.output)
    if output.suffix != ".safetensors":
        raise CheckpointError(
            f"--output {output}: an ensemble is a .safetensors file; name it {output.stem}.safetensors"
        )
    ensemble = Ensemble([load_twin(path) for path in arguments.members], arguments.members)
    output.parent.mkdir(parents=True, exist_ok=True)
    print(ensemble.save(output))
    logger.info("%r, %d members", ensemble, len(ensemble.members))
    return 0
