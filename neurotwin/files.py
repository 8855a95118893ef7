"""Files that are whole or absent: written under a temporary name, flushed to the disk, then renamed."""

import json
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["replacing", "stamp", "write_json", "write_text"]

_STALE = 86400  # s; what a process that was killed left behind is removed after a day


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; what was written there takes the name `path` when the block ends well.

    The folder is made if it is absent. The file gets its name only when its whole content is on the disk, so that there
    is never half a file under that name, whatever happens to the process or the machine. If the block raises an error,
    the temporary file is removed, and the file that was there before stays. Several processes may write the same file:
    the one that finishes last wins.

    Raises
    ------
    OSError
        If the file cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "notes.txt"
    >>> with replacing(target) as temporary:
    ...     _ = temporary.write_text("whole")
    >>> target.read_text()
    'whole'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{path.name}.*.tmp"):
        try:
            if time.time() - left.stat().st_mtime > _STALE:
                left.unlink()
        except FileNotFoundError:  # another process was quicker
            continue
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        yield temporary
        with open(temporary, "r+b") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file (UTF-8), whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write a JSON file, whole or not at all; values that JSON does not know are written as their text."""
    write_text(path, json.dumps(value, indent=2, default=str) + "\n")


def stamp(path: str | Path) -> list[int]:
    """Size in bytes and time of the last change in ns: a file whose stamp is the one noted has not been written since.

    Raises
    ------
    OSError
        If there is no such file.
    """
    state = os.stat(path)
    return [state.st_size, state.st_mtime_ns]
