"""The command `neurotwin push`."""

import argparse

from ..sharing import push

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("model", metavar="RUN_OR_TWIN", help="run folder or saved model (.safetensors)")
    parser.add_argument("name", metavar="NAME[@REVISION]", help="default revision: a checksum of the content")
    parser.add_argument("--to", required=True, metavar="FOLDER", help="a folder, or hub (NAME is OWNER/NAME there)")


def run(arguments: argparse.Namespace) -> int:
    """Pack a twin with its card and golden predictions, and put it where others pull it."""
    print(push(arguments.model, arguments.name, arguments.to))
    return 0
