"""The command `neurotwin new`."""

import argparse
import logging
from importlib.resources import as_file, files
from pathlib import Path

from ..errors import UserError
from ..files import write_text

__all__ = ["ProjectError", "add_arguments", "make_project", "run"]

logger = logging.getLogger(__name__)


class ProjectError(UserError):
    """The folder cannot hold a new project."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("folder", help="where the project is made: a new or an empty folder")


def run(arguments: argparse.Namespace) -> int:
    """Make the folder of a project, print its files, and say what to do next."""
    for path in make_project(arguments.folder):
        print(path)
    logger.info("next: cd %s && bash train.sh   (README.md says what to change for your own data)", arguments.folder)
    return 0


def make_project(folder: str | Path) -> list[Path]:
    """Copy the files of a project, which train on demo sessions as they are.

    Returns
    -------
    list of Path
        The files.

    Raises
    ------
    ProjectError
        If the folder holds something already, or is a file.

    Examples
    --------
    >>> import tempfile
    >>> [path.name for path in make_project(Path(tempfile.mkdtemp()) / "mine")]
    ['README.md', 'datasets.yaml', 'model.yaml', 'ada_demo1.yaml', 'bea_demo1.yaml', 'train.sh']
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ProjectError(f"{folder}: holds something already; name a new folder")
    with as_file(files("neurotwin.templates") / "project") as source:
        templates = {path.relative_to(source): path for path in sorted(source.rglob("*")) if path.is_file()}
        for name, path in templates.items():
            write_text(folder / name, path.read_text(encoding="utf-8"))
    return [folder / name for name in templates]
