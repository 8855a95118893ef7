"""The command `neurotwin pull`."""

import argparse

from ..sharing import pull

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("name", metavar="NAME@REVISION", help="NAME alone or NAME@latest: the revision pushed last")
    parser.add_argument("--from", dest="source", required=True, metavar="FOLDER", help="a folder, or hub")
    parser.add_argument("--output", metavar="FOLDER", help="folder to make (NAME-REVISION)")


def run(arguments: argparse.Namespace) -> int:
    """Fetch a twin, compare its checksums, and print its pinned revision and its folder."""
    pinned, folder = pull(arguments.name, arguments.source, arguments.output)
    print(f"{pinned}\n{folder}")
    return 0
