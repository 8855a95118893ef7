"""What all readers of recordings share: their options, and how a reader is found for a path."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from ...config import Params
from ..session import Session

__all__ = ["Format", "source_stamp"]


class Format(Params):
    """Base of the readers: one class a layout, registered as a ``format``.

    Its fields are the reader's options, which ``neurotwin convert --options KEY=VALUE`` sets. Reading must not load a
    recording whole: give large arrays of the session as memory-mapped arrays or as
    :class:`~neurotwin.data.streamed.Streamed`.
    """

    name: str = Field("", description="Name of the session. Default: that of the source.")
    subject: str = Field("", description="Subject. Default: the source's, else the name up to the first _.")
    bin_rate: float | None = Field(None, gt=0, description="Bins a second, Hz, where the source does not say.")

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether a file or folder looks like this layout; looks at names and headers only."""
        raise NotImplementedError

    def read(self, path: Path) -> Session:
        """The session that lies at a path.

        What is not taken over (units, bins, signals) is said in the session's `notes`, each with its reason.

        Raises
        ------
        SessionError
            If the source is not of this layout, or lacks what a session needs; the message names the cure.
        """
        raise NotImplementedError

    def companions(self, path: Path) -> list[Path]:
        """Files outside of the path that are read with it, such as a table of quality beside it.

        A recording is converted again when one of them has changed. By default there are none.
        """
        return []


def source_stamp(path: Path, companions: Sequence[Path] = ()) -> tuple[str, int]:
    """What tells whether a source has changed: a hash over the sizes and times of its files, and their bytes in all.

    Session files inside a folder are not counted, because they may be what was made from it.

    Parameters
    ----------
    path
        A file or a folder.
    companions
        Further files; those that do not exist count as absent.
    """
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else []
    named = [(str(file.relative_to(path)), file) for file in files if file.suffix != ".safetensors"]
    named += [(file.name, file) for file in (*(() if path.is_dir() else (path,)), *companions)]
    entries, size = [], 0
    for name, file in named:
        if file.exists():
            status = file.stat()
            entries.append((name, status.st_size, status.st_mtime_ns))
            size += status.st_size
        else:
            entries.append((name, -1, -1))
    return hashlib.sha256(repr(entries).encode()).hexdigest()[:16], size
