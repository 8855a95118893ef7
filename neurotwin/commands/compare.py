"""The command `neurotwin compare`."""

import argparse

from ..analysis.compare import compare
from .arguments import number

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("run_a", help="folder of a run, or a table of units (.csv)")
    parser.add_argument("run_b", help="the other")
    parser.add_argument(
        "--tolerance", type=number(float, 0, 1e9), default=1e-6, help="relative to figures above 1 (%(default)s)"
    )
    parser.add_argument("--worst", type=number(int, 0, 10**6), default=10, help="differences to list (%(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Say whether two runs gave the same figures; 1 if not."""
    result = compare(arguments.run_a, arguments.run_b, arguments.tolerance)
    print(result.text(arguments.worst))
    return 0 if result.same else 1
