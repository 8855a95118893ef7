"""A folder of copies that may be made again: limited in size, shared by processes that know nothing of one another.

Each copy has a folder of its own, with what is made from it. A process notes in ``users`` which of them it has opened,
and holds a lock as long as it lives. What no living process has noted may be removed; the longest unused first.
"""

import json
import logging
import os
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import write_json
from .fields import SessionError

__all__ = ["CopyFolder", "size_text"]

logger = logging.getLogger(__name__)

_SOURCE = "source.json"  # of a copy: of what, and its size; its time of change is that of the last use
_users: dict[tuple[Path, int], tuple[Any, set[str]]] = {}  # by folder and process: the lock held, and what was noted


@dataclass(frozen=True)
class CopyFolder:
    """The folder `root`, which may hold up to `limit` bytes."""

    root: Path
    limit: float

    def locked(self, key: str = "", waiting: str = "") -> Any:
        """A lock between processes, on one copy or on the whole folder, to be used as a context.

        Parameters
        ----------
        key
            Of the copy.
        waiting
            What is logged if another process holds it.
        """
        from filelock import FileLock, Timeout

        lock = FileLock(self.root / key / "lock")
        try:
            return lock.acquire(timeout=1)
        except Timeout:
            if waiting:
                logger.info("%s", waiting)
            return lock.acquire()

    def claim(self, key: str) -> Path:
        """The folder of a copy, which no other process removes as long as this one lives."""
        from filelock import FileLock

        (self.root / "users").mkdir(parents=True, exist_ok=True)
        with self.locked():
            if (self.root, os.getpid()) not in _users:
                self._in_use()  # forgets processes that have ended
                lock = FileLock(self.root / "users" / f"{uuid.uuid4().hex}.lock", thread_local=False)
                lock.acquire()
                _users[self.root, os.getpid()] = lock, set()
            lock, noted = _users[self.root, os.getpid()]
            noted.add(key)
            Path(lock.lock_file).with_suffix(".keys").write_text("\n".join(sorted(noted)))
            (self.root / key).mkdir(exist_ok=True)
        return self.root / key

    def reserve(self, key: str, size: int, label: str) -> None:
        """Set bytes aside for a copy that will be made; others are removed for it if nobody uses them.

        Raises
        ------
        SessionError
            If that leaves too little room; nothing is then removed.
        """
        with self.locked():
            used, removable, in_use = 0, [], self._in_use()
            for folder in self.root.iterdir():
                if folder.name in ("users", key) or not folder.is_dir():
                    continue
                held = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
                held = max(held, self.noted(folder.name).get("size", 0))
                used += held
                if folder.name not in in_use:
                    removable.append((self.last_use(folder.name), held, folder))
            room = min(self.limit - used, shutil.disk_usage(self.root).free)
            if room + sum(held for _, held, _ in removable) < size:
                raise SessionError(
                    f"{label}: its {size_text(size)} do not fit into {self.root}, which may hold "
                    f"{size_text(self.limit)}, with what is in use and what the disk has free; set "
                    "NEUROTWIN_CACHE_SIZE to more GB, or NEUROTWIN_CACHE to a folder on a larger disk"
                )
            for _, held, folder in sorted(removable):
                if room >= size:
                    break
                logger.info("removing the copy of %s, the longest unused", self.noted(folder.name).get("of"))
                shutil.rmtree(folder)
                room += held
            write_json(self.root / key / _SOURCE, {"of": label, "size": size})

    def release(self, key: str) -> None:
        """Give back what was reserved for a copy that could not be made."""
        (self.root / key / _SOURCE).unlink(missing_ok=True)

    def noted(self, key: str) -> dict[str, Any]:
        """What was said of a copy when it was reserved: `of` and `size`; empty where nothing was."""
        try:
            return dict(json.loads((self.root / key / _SOURCE).read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return {}

    def last_use(self, key: str, *, now: bool = False) -> float:
        """When a copy was used last, in s; 0 where that is not known. `now` notes that it is used now."""
        try:
            if now:
                os.utime(self.root / key / _SOURCE)
            return (self.root / key / _SOURCE).stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def _in_use(self) -> set[str]:
        """The copies that living processes have noted."""
        from filelock import FileLock, Timeout

        own, noted = _users.get((self.root, os.getpid()), (None, set()))
        keys = set(noted)
        for path in (self.root / "users").glob("*.lock"):
            if own is not None and Path(own.lock_file) == path:
                continue
            listed = path.with_suffix(".keys")
            try:
                with FileLock(path, timeout=0):
                    listed.unlink(missing_ok=True)
                path.unlink(missing_ok=True)
            except Timeout:
                keys |= set(listed.read_text().split()) if listed.exists() else set()
        return keys


def size_text(size: float) -> str:
    """Bytes as text.

    Examples
    --------
    >>> size_text(12.34e9), size_text(12_340)
    ('12.3 GB', '12.3 kB')
    """
    unit, name = next(((unit, name) for unit, name in ((1e9, "GB"), (1e6, "MB")) if size >= unit), (1e3, "kB"))
    return f"{size / unit:.1f} {name}"
