"""Readers of other layouts, each to a :class:`~neurotwin.data.session.Session`."""

import hashlib
import logging
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ...config import define, registered
from ..session import Session, SessionError
from . import arrays, dset, image_trials, nwb, retina, sensorium, suite2p
from .base import Format

__all__ = [
    "Format", "arrays", "as_session_file", "dset", "find_format", "image_trials", "nwb", "read_session", "retina",
    "sensorium", "suite2p",
]  # fmt: skip

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
    kind = define("format", format or find_format(path))
    if not path.exists():
        raise SessionError(f"{path}: no such file or folder")
    try:
        reader: Format = kind.model_validate(options)
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        raise SessionError(
            f"{path}: {'.'.join(map(str, first['loc']))}{': ' if first['loc'] else ''}{message}"
        ) from None
    return reader.read(path)


def as_session_file(path: Path, *, name: str, folder: Path, bin_rate: float | None = None) -> Path:
    """The session file that a path of a dataset config stands for.

    A session file stands for itself, and a folder for the file NAME.safetensors in it. Data of another layout are
    converted once, into `folder`, under a name that changes with the files' sizes and times of change.
    """
    if path.is_dir() and (path / f"{name}.safetensors").exists():
        return path / f"{name}.safetensors"
    if path.suffix == ".safetensors" or not path.exists():
        return path
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    stamp = repr([(str(p.relative_to(path)), p.stat().st_size, p.stat().st_mtime_ns) for p in files])
    target = folder / f"{name}-{hashlib.sha256(stamp.encode()).hexdigest()[:16]}.session.safetensors"
    if not target.exists():
        logger.info("converting %s", path)
        session = read_session(path, name=name, bin_rate=bin_rate)
        for note in session.notes:
            logger.info("session %s: %s", session.name, note)
        session.save(target)
    return target
