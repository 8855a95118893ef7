"""Checkpoint files (``.ckpt``): written whole, checked to the last bit when they are read, and running no code.

``torch.save`` writes a zip archive. Zip has checksums of its own, but they cover only the content of the members and
not names, sizes and directories. Each file therefore ends with a seal, which covers every byte: the SHA-256 of all
bytes before its own digits. The seal is the comment of the zip archive, so that other programs (``torch.load``, unzip)
can still read the file.

A file without a seal, which another program wrote, is read too. Only the content of its members can be checked.

Reference: PKWARE, ``.ZIP`` File Format Specification 6.3, section 4.3.16 (end of central directory record).
"""

import hashlib
import os
import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from .errors import UserError
from .files import replacing

__all__ = ["CheckpointError", "checkpoint_fault", "find_checkpoint", "read_checkpoint", "write_checkpoint"]

_MARK = b"neurotwin sha256 "
_DIGITS = 64
_SEAL = len(_MARK) + _DIGITS
_END = struct.Struct("<4s4H2LH")  # the zip archive's last record, whose last entry is the length of its comment
_BLOCK = 1 << 20
_UNREADABLE = (
    pickle.UnpicklingError, zipfile.BadZipFile, zlib.error, struct.error, ValueError, TypeError, AttributeError,
    LookupError, ArithmeticError, RuntimeError, EOFError, MemoryError, AssertionError, OSError,
)  # fmt: skip
"""What zipfile and torch raise, depending on which byte of a file without a seal is wrong."""


class CheckpointError(UserError):
    """A file does not hold a checkpoint or model that can be loaded; the message says why, in one line."""


def write_checkpoint(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write arrays and plain values, sealed, whole or not at all.

    Parameters
    ----------
    path
        The file; what was there before is replaced when the new one is on the disk.
    content
        Tensors and plain values by name, nested as you like.

    Raises
    ------
    OSError
        If it cannot be written; what was there before is untouched.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "last.ckpt"
    >>> write_checkpoint(path, {"step": 3, "weights": torch.ones(2)})
    >>> read_checkpoint(path)
    {'step': 3, 'weights': tensor([1., 1.])}
    """
    path = Path(path)
    try:
        with replacing(path) as temporary, open(temporary, "w+b") as file:
            torch.save(content, file)
            _seal(file)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise OSError(f"{path}: cannot be written ({reason}); the checkpoint before it is untouched") from error


def read_checkpoint(path: str | Path, *, map_location: Any = "cpu") -> dict[str, Any]:
    """Check a checkpoint file and read it; no code from it is run.

    Parameters
    ----------
    path
        The file.
    map_location
        Where tensors go, as for ``torch.load``.

    Raises
    ------
    CheckpointError
        If the file is missing, cut off, altered anywhere, or holds more than arrays and plain values.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            if fault := _fault(file):
                raise CheckpointError(f"{path}: {fault}")
            file.seek(0)
            content = torch.load(file, map_location=map_location, weights_only=True)
    except CheckpointError:
        raise
    except pickle.UnpicklingError:
        raise CheckpointError(f"{path}: refused, it holds more than numbers and text, and is not opened") from None
    except _UNREADABLE as error:
        raise CheckpointError(f"{path}: {_reason(error)}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: not a checkpoint, it holds a {type(content).__name__} where names are wanted")
    return content


def checkpoint_fault(path: str | Path) -> str | None:
    """What is wrong with a checkpoint file, in words; None if it is whole. The file is read, but not loaded."""
    try:
        with open(path, "rb") as file:
            return _fault(file)
    except _UNREADABLE as error:
        return _reason(error)


def find_checkpoint(path: str | Path, *, prefer: str = "best") -> Path:
    """The checkpoint file of a path that may also be a run's folder, or its folder of checkpoints.

    Parameters
    ----------
    path
        A file, which is returned as it is, or a folder.
    prefer
        "best", for a model to use, or "last", for a run to go on. Where it is absent in the folder, the other.

    Raises
    ------
    CheckpointError
        If there is no such file, or the folder holds no checkpoint.
    """
    path = Path(path)
    if not path.is_dir():
        if not path.exists():
            raise CheckpointError(f"{path}: no such file")
        return path
    names = ("best.ckpt", "last.ckpt") if prefer == "best" else ("last.ckpt", "best.ckpt")
    found = [folder / name for name in names for folder in (path / "checkpoints", path) if (folder / name).is_file()]
    found += [path / "twin.safetensors"] if (path / "twin.safetensors").is_file() else []  # what was pulled
    if not found:
        raise CheckpointError(f"{path}: is a folder without checkpoints/best.ckpt or last.ckpt; give a run's folder")
    return found[0]


def _seal(file: BinaryIO) -> None:
    """Append the seal to an archive without a comment, open to read and write, and announce it in its last record."""
    file.seek(-_END.size, os.SEEK_END)
    *end, comment = _END.unpack(file.read())
    if end[0] != b"PK\5\6" or comment:
        raise RuntimeError("torch.save did not end the file as zip archives end; it cannot be sealed")
    file.seek(-2, os.SEEK_END)
    file.write(struct.pack("<H", _SEAL) + _MARK)
    file.flush()
    digest = _digest(file, file.tell())
    file.seek(0, os.SEEK_END)
    file.write(digest)


def _digest(file: BinaryIO, length: int) -> bytes:
    """The SHA-256 of the first bytes of a file, as hexadecimal digits."""
    file.seek(0)
    digest = hashlib.sha256()
    while length:
        block = file.read(min(_BLOCK, length))
        if not block:
            break
        digest.update(block)
        length -= len(block)
    return digest.hexdigest().encode()


def _fault(file: BinaryIO) -> str | None:
    """What is wrong with an open file; None if it is whole."""
    size = file.seek(0, os.SEEK_END)
    file.seek(-min(size, _SEAL + _END.size), os.SEEK_END)
    tail = file.read()
    if re.fullmatch(re.escape(_MARK) + rb"[0-9a-f]{64}", tail[-_SEAL:]):
        return None if _digest(file, size - _DIGITS) == tail[-_DIGITS:] else "altered: it does not match its checksum"
    if len(tail) < _END.size or _END.unpack(tail[-_END.size :])[0] != b"PK\5\6" or tail[-2:] != b"\0\0":
        return "torn, or not a checkpoint: it does not end with its checksum"
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
    except _UNREADABLE as error:
        return _reason(error)
    return f"altered: {damaged} does not match its checksum" if damaged else None


def _reason(error: BaseException) -> str:
    """One line about what was raised."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read ({error.strerror})"
    text = (str(error) or type(error).__name__).splitlines()[0]
    return f"torn or altered, or not a checkpoint ({text[:200]})"
