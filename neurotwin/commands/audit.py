"""The command `neurotwin audit`."""

import argparse
import logging

from ..analysis.audit import audit_configs, audit_html, audit_text
from ..config import load_dataset_configs
from ..data.progress import session_progress
from ..files import write_text

__all__ = ["add_arguments", "run"]

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("dataset_configs", help="parent YAML, or folder of session YAMLs")
    parser.add_argument("--checkpoint", help="also compare with what this model was trained on")
    parser.add_argument("--data_dir", help="folder of session data, or its URL; overrides the YAML and NEUROTWIN_DATA")
    parser.add_argument("--html", metavar="FILE", help="also write a page, which needs no other file")


def run(arguments: argparse.Namespace) -> int:
    """Look for what would fool a model; 1 if there is something."""
    configs = load_dataset_configs(arguments.dataset_configs, data_dir=arguments.data_dir)
    with session_progress("auditing") as progress:
        result = audit_configs(configs, checkpoint=arguments.checkpoint, progress=progress)
    print(audit_text(result))
    if arguments.html:
        write_text(arguments.html, audit_html(result))
        logger.info("page: %s", arguments.html)
    return 1 if result.findings else 0
