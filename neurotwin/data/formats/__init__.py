"""Readers of other formats, each to a :class:`~neurotwin.data.session.Session`."""

import hashlib
import logging
from pathlib import Path

from ..session import Session, SessionError
from .arrays import read_arrays
from .nwb import read_nwb
from .sensorium import read_sensorium

__all__ = ["FORMATS", "as_session_file", "read_session"]

logger = logging.getLogger(__name__)

FORMATS = ("arrays", "sensorium", "nwb")
"""What can be read besides session files: .npz or a folder of .npy; the Sensorium layout; NWB."""


def read_session(
    path: str | Path,
    *,
    format: str = "",
    name: str = "",
    subject: str = "",
    bin_rate: float | None = None,
    stimulus: str = "",
) -> Session:
    """Read a session from data of another format.

    Parameters
    ----------
    path
        A file or a folder.
    format
        One of :data:`FORMATS`; by default judged from the path.
    name, subject, bin_rate
        Override what the data say.
    stimulus
        nwb: name of the stimulus to read, where there are several.

    Raises
    ------
    SessionError
        If there is no such path, or the data are not of the format.
    """
    path = Path(path)
    if not path.exists():
        raise SessionError(f"{path}: no such file or folder")
    match format or _guess_format(path):
        case "nwb":
            return read_nwb(path, stimulus=stimulus, name=name, subject=subject)
        case "sensorium":
            return read_sensorium(path, name=name, subject=subject, bin_rate=bin_rate)
        case _:
            return read_arrays(path, name=name, subject=subject, bin_rate=bin_rate)


def as_session_file(path: Path, *, name: str, folder: Path, bin_rate: float | None = None) -> Path:
    """The session file that a path of a dataset config stands for.

    A session file stands for itself, and a folder for the file NAME.safetensors in it. Data of another format are
    converted once, into `folder`, under a name that changes with the files' sizes and times of change.
    """
    if path.is_dir() and (path / f"{name}.safetensors").exists():
        return path / f"{name}.safetensors"
    if not path.is_dir() and path.suffix not in (".npz", ".nwb"):
        return path
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    stamp = repr([(str(p.relative_to(path)), p.stat().st_size, p.stat().st_mtime_ns) for p in files])
    target = folder / f"{name}-{hashlib.sha256(stamp.encode()).hexdigest()[:16]}.session.safetensors"
    if not target.exists():
        logger.info("converting %s", path)
        read_session(path, name=name, bin_rate=bin_rate).save(target)
    return target


def _guess_format(source: Path) -> str:
    if source.suffix == ".nwb":
        return "nwb"
    return "sensorium" if (source / "meta").is_dir() and (source / "data").is_dir() else "arrays"
