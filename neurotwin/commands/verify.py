"""The command `neurotwin verify`."""

import argparse
import tempfile
from pathlib import Path

from ..sharing import pull, verify
from .arguments import number

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("twin", metavar="FILE_OR_NAME", help="pulled folder, twin file in it, or NAME@REVISION")
    parser.add_argument("--from", dest="source", metavar="FOLDER", help="where NAME@REVISION is pulled from")
    parser.add_argument(
        "--tolerance", type=number(float, 0, 1e9), default=1e-4, help="relative to rates above 1 (%(default)s)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Say whether a twin predicts what it predicted when it was pushed; 1 if not."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(arguments.twin)
        if arguments.source is not None:
            _, path = pull(arguments.twin, arguments.source, Path(scratch) / "twin")
        verdict = verify(path, arguments.tolerance)
    print(verdict.text)
    return 0 if verdict.same else 1
