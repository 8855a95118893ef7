"""A twin with all that travels with it: a folder of safetensors files and text, with a list of checksums."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import write_json
from ..tensorfile import format_fault

__all__ = ["CARD", "GOLDEN", "MANIFEST", "TWIN", "SharingError", "check_version", "read_bundle", "write_bundle"]

TWIN, GOLDEN, CARD, MANIFEST = "twin.safetensors", "golden.safetensors", "README.md", "manifest.json"
_FORMAT = "neurotwin-bundle-1"


class SharingError(UserError):
    """A twin cannot be passed on or checked; the message says why and what to do."""


def check_version(path: str | Path, found: Any, current: str) -> None:
    """Refuse what this version does not read, in one line with the cure.

    Parameters
    ----------
    path
        The file, for the message.
    found
        What it says of its format.
    current
        The format that is read, a name that ends with its number.

    Raises
    ------
    SharingError
        If they differ.

    Examples
    --------
    >>> check_version("golden.safetensors", "neurotwin-golden-9", "neurotwin-golden-1")
    Traceback (most recent call last):
    neurotwin.sharing.bundle.SharingError: golden.safetensors: its format 'neurotwin-golden-9' is of a newer ...
    """
    if fault := format_fault(found, current, "push the twin again"):
        raise SharingError(f"{path}: {fault}")


def write_bundle(folder: str | Path) -> str:
    """List the files of a folder with their checksums in `manifest.json`.

    Returns
    -------
    str
        The SHA-256 of this list, which is that of the content as a whole.
    """
    folder = Path(folder)
    files = {p.name: _digest(p) for p in sorted(folder.iterdir()) if p.is_file() and p.name != MANIFEST}
    write_json(folder / MANIFEST, {"format": _FORMAT, "files": files, "content": _content(files)})
    return _content(files)


def read_bundle(folder: str | Path) -> str:
    """Compare the files of a folder with their checksums.

    Returns
    -------
    str
        The SHA-256 of its content.

    Raises
    ------
    SharingError
        If it is no such folder, a file is missing, altered or was added, or is neither safetensors nor text.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        found, files, content = manifest["format"], dict(manifest["files"]), manifest["content"]
    except FileNotFoundError:
        raise SharingError(f"{folder}: holds no {MANIFEST}, so no twin was pushed there") from None
    except (ValueError, LookupError, TypeError, OSError) as error:
        raise SharingError(f"{path}: cannot be read ({error}); push the twin again") from None
    check_version(path, found, _FORMAT)
    if wrong := sorted(set(files) - {TWIN, GOLDEN, CARD}):
        raise SharingError(f"{path}: lists {wrong[0]!r}, which no twin is made of; it is refused unread")
    if missing := [name for name in (TWIN, GOLDEN, CARD) if name not in files or not (folder / name).is_file()]:
        raise SharingError(f"{folder / missing[0]}: is missing; push the twin again")
    if altered := [name for name, digest in files.items() if _digest(folder / name) != digest]:
        raise SharingError(f"{folder / altered[0]}: does not match its checksum; it was altered, so pull it again")
    if content != _content(files):
        raise SharingError(f"{path}: does not match its checksum; it was altered, so pull the twin again")
    return content


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _content(files: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(sorted(files.items())).encode()).hexdigest()
