"""The command `neurotwin report`."""

import argparse
import logging

from ..analysis.report import load_run, markdown_table, report_rows, text_table
from ..analysis.report_data import gather, stored
from ..analysis.report_page import html_page
from ..analysis.report_units import changes_text
from ..data.progress import session_progress
from ..files import write_text
from ..metrics.table import EvaluationError
from .arguments import add_device, add_moved_data, number

__all__ = ["add_arguments", "run"]

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run, or a saved model (.safetensors)")
    parser.add_argument("--markdown", action="store_true", help="print the table as markdown")
    parser.add_argument("--html", metavar="FILE", help="also write a page with figures, which needs no other file")
    parser.add_argument("--title", default="Runs", help="of the page (%(default)s)")
    parser.add_argument(
        "--compare", nargs="?", const="", metavar="RUN",
        help="mark the units that changed since this run, or since the first of two that are given",
    )  # fmt: skip
    parser.add_argument(
        "--tolerance", type=number(float, 0, 1e9), default=0.01, help="what is no change of a unit (%(default)s)"
    )
    parser.add_argument("--no_data", action="store_true", help="page: use neither checkpoints nor recordings")
    add_moved_data(parser, "page: ")
    add_device(parser, "page: ")


def run(arguments: argparse.Namespace) -> int:
    """Show the results of runs beside one another."""
    compare = arguments.compare is not None
    runs = [load_run(folder) for folder in [*([arguments.compare] if arguments.compare else []), *arguments.runs]]
    if compare and len(runs) != 2:
        raise EvaluationError(f"--compare needs two runs, the earlier first; {len(runs)} are given")
    data = [stored(run) for run in runs]
    if arguments.html and not arguments.no_data:
        with session_progress("evaluating") as progress:
            options = {"data_dir": arguments.data_dir, "device": arguments.device, "progress": progress}
            data = [gather(run, **options) for run in runs]
    rows = report_rows(runs, [found.test for found in data])
    print(markdown_table(rows) if arguments.markdown else text_table(rows))
    for note in (note for run, found in zip(runs, data, strict=True) for note in (*run.notes, *found.notes)):
        logger.info("%s", note)
    if compare:
        print(changes_text(*(run.table for run in runs), tolerance=arguments.tolerance))
    if arguments.html:
        page = html_page(runs, title=arguments.title, data=data, compare=compare, tolerance=arguments.tolerance)
        write_text(arguments.html, page)
        logger.info("page: %s", arguments.html)
    return 0
