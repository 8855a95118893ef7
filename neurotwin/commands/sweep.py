"""The command `neurotwin sweep`."""

import argparse
import logging
import signal
from typing import NoReturn

from ..files import write_text
from ..sweeps.results import results_page, results_text
from ..sweeps.space import load_sweep
from ..sweeps.study import open_study, work

__all__ = ["add_arguments", "run"]

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("sweep", help="YAML of the sweep (docs/sweeps.md)")
    parser.add_argument("--show", action="store_true", help="show the results so far and train nothing")
    parser.add_argument("--html", metavar="FILE", help="also write a page with charts, which needs no other file")


def run(arguments: argparse.Namespace) -> int:
    """Work on the trials of a sweep until it has all, beside any other worker of the same study, and show the results.

    Raises
    ------
    SweepError
        If it is not possible.
    """
    config = load_sweep(arguments.sweep)
    if not arguments.show:
        signal.signal(signal.SIGTERM, _interrupt)  # a worker that is told to end queues its trial again
    study = open_study(config) if arguments.show else work(config)
    print(results_text(config, study))
    if arguments.html:
        write_text(arguments.html, results_page(config, study))
        logger.info("page: %s", arguments.html)
    return 0


def _interrupt(signum: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt
