"""The command `neurotwin simulate`."""

import argparse

from ..data.simulate import DEMO_SESSIONS, make_demo_sessions
from .arguments import number

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("folder", nargs="?", default="data/demo", help="where sessions are written (%(default)s)")
    parser.add_argument("--sessions", nargs="+", choices=list(DEMO_SESSIONS), help="default: all")
    parser.add_argument(
        "--seed", type=number(int, 0, 2**63 - 1), default=0, help="of units, gaze and spikes (%(default)s)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Write demo sessions with a known true rate, and print their paths."""
    for path in make_demo_sessions(arguments.folder, arguments.sessions, seed=arguments.seed):
        print(path)
    return 0
