"""The command `neurotwin schema`."""

import argparse
import json
from pathlib import Path

from ..config import json_schemas
from ..files import write_text

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("folder", nargs="?", default="schemas", help="where they are written (%(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Write the JSON Schemas of model and dataset files, and print their paths."""
    folder = Path(arguments.folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in json_schemas().items():
        path = folder / f"{name}.schema.json"
        write_text(path, json.dumps(value, indent=2) + "\n")
        print(path)
    return 0
