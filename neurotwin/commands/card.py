"""The command `neurotwin card`."""

import argparse

from ..files import write_text
from ..sharing import model_card

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("model", metavar="RUN", help="run folder or saved model (.safetensors)")
    parser.add_argument("--output", metavar="FILE", help="the card (.md); default: print it")


def run(arguments: argparse.Namespace) -> int:
    """Write the model card of a run."""
    card = model_card(arguments.model)
    if arguments.output is None:
        print(card, end="")
    else:
        write_text(arguments.output, card)
        print(arguments.output)
    return 0
