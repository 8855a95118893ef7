"""Readers of other layouts, each to a :class:`~neurotwin.data.session.Session`."""

import logging
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ...config import define, registered
from ..session import Session, SessionError
from . import arrays, dset, experanto, image_trials, nwb, retina, sensorium, suite2p
from .base import Format, source_stamp

__all__ = [
    "Format",
    "arrays",
    "as_session_file",
    "dset",
    "experanto",
    "find_format",
    "image_trials",
    "nwb",
    "read_session",
    "reader_for",
    "retina",
    "sensorium",
    "source_stamp",
    "suite2p",
]

logger = logging.getLogger(__name__)


def find_format(path: str | Path) -> str:
    """Name of the format that recognises a path.

    Raises
    ------
    SessionError
        If there is no such path, or no format recognises it.
    """
    path = Path(path)
    if not path.exists():
        raise SessionError(f"{path}: no such file or folder")
    for name, kind in registered("format").items():
        if kind.recognises(path):
            return name
    raise SessionError(f"{path}: not a recording of a known layout ({', '.join(registered('format'))}); give --format")


def read_session(path: str | Path, *, format: str = "", **options: Any) -> Session:
    """Read a session from data of another layout.

    Parameters
    ----------
    path
        A file or a folder.
    format
        Name of the layout; by default the one that recognises the path.
    options
        Of the reader, such as `name`, `subject` or `bin_rate`.

    Raises
    ------
    SessionError
        If there is no such path, the data are not of the layout, or the reader has no such option.
    """
    path = Path(path)
    return reader_for(path, format=format, **options).read(path)


def reader_for(path: str | Path, *, format: str = "", **options: Any) -> Format:
    """The reader of a path, with its options; nothing is read yet. See :func:`read_session`."""
    path = Path(path)
    name = format or find_format(path)
    kind = define("format", name)
    if not path.exists():
        raise SessionError(f"{path}: no such file or folder")
    try:
        return kind.model_validate(options)
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"{part}: " for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise SessionError(f"{path}: options of format {name}: {where}{message}") from None


def as_session_file(path: Path, *, name: str, folder: Path, bin_rate: float | None = None) -> Path:
    """The session file that a path of a dataset config stands for.

    A session file stands for itself, and a folder for the file NAME.safetensors in it. Data of another layout are
    converted once, into `folder`, under a name that changes with the files' sizes and times of change.
    """
    if path.is_dir() and (path / f"{name}.safetensors").exists():
        return path / f"{name}.safetensors"
    if path.suffix == ".safetensors" or not path.exists():
        return path
    reader = reader_for(path, name=name, bin_rate=bin_rate)
    stamp, _ = source_stamp(path, reader.companions(path))
    target = folder / f"{name}-{stamp}.session.safetensors"
    if not target.exists():
        logger.info("converting %s", path)
        session = reader.read(path)
        for note in session.notes:
            logger.info("session %s: %s", session.name, note)
        session.save(target)
    return target
