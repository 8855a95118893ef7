"""The command `neurotwin convert`."""

import argparse
import logging
import sys

from ..data.convert import convert_recordings
from ..data.session import SessionError
from .arguments import number
from .reading import add_reader_arguments, reader_options

__all__ = ["add_arguments", "run"]

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="files, folders, or patterns such as 'raw/*'")
    parser.add_argument("target", help="folder for NAME.safetensors; for one source also a file (.safetensors)")
    parser.add_argument(
        "--jobs", type=number(int, 1, 4096), default=1, metavar="N", help="sources converted at once (%(default)s)"
    )
    parser.add_argument("--force", action="store_true", help="convert all again, and replace files of other origin")
    add_reader_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Write session files from recordings of other formats; 1 if one of several could not be converted."""
    outcomes = convert_recordings(
        arguments.sources, arguments.target, format=arguments.format or "", options=reader_options(arguments),
        jobs=arguments.jobs, force=arguments.force,
    )  # fmt: skip
    failed = [outcome for outcome in outcomes if outcome.state == "failed"]
    if len(outcomes) == len(failed) == 1:
        raise SessionError(failed[0].text)
    for outcome in outcomes:
        if outcome.target is not None:
            print(outcome.target)
    if len(outcomes) > 1:
        logger.info("%d of %d sources are session files now", len(outcomes) - len(failed), len(outcomes))
    for outcome in failed:
        print(f"neurotwin: {outcome.text}", file=sys.stderr)
    return 1 if failed else 0
