"""What a file says that has no effect, or another effect than its writer may think: one line a file, when a run starts.

Such forms are not mistakes that a lab has to mend by hand, so they are no errors; and a run that kept silent about them
would not do what its file seems to say. They are collected while files are read and models are built, and said once.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

__all__ = ["MODEL", "Notices", "notice", "noticing"]

logger = logging.getLogger(__name__)

MODEL = "model"
"""The subject of notices about the model; those about a session have its name as their subject."""


class Notices:
    """Notices by the file that they are about.

    A subject (the model, or a session) has one or several files: those of a session are its own and the parent. A
    notice belongs to the first file that holds its key, so that what a parent says is said once for all its sessions.

    Examples
    --------
    >>> notices = Notices()
    >>> for name in ("ada", "bea"):
    ...     notices.place(name, (f"{name}.yaml", {"cids": [1]}), ("parent.yaml", {"sampling_rate": 240}))
    ...     notices.add(name, ("sampling_rate",), "is a label")
    >>> notices.lines()
    ['parent.yaml: sampling_rate is a label']
    """

    def __init__(self) -> None:
        self._files: dict[str, tuple[tuple[str, Mapping[str, Any]], ...]] = {}
        self._texts: dict[str, dict[str, None]] = {}

    def place(self, subject: str, *files: tuple[str, Mapping[str, Any]]) -> None:
        """Say which files a subject has, each with its name and content; the first is its own."""
        self._files[subject] = files

    def add(self, subject: str, key: Sequence[str | int], text: str) -> None:
        """Add what is to be said about a key, given by its path from the top of the file."""
        files = self._files.get(subject, ((subject, {}),))
        file = next((name for name, content in files if _holds(content, key)), files[0][0])
        self._texts.setdefault(file, {})[f"{'.'.join(map(str, key))} {text}"] = None

    def lines(self) -> list[str]:
        """One line a file."""
        return [f"{file}: {'; '.join(texts)}" for file, texts in self._texts.items()]


_ACTIVE: ContextVar[Notices | None] = ContextVar("_ACTIVE", default=None)


@contextmanager
def noticing() -> Iterator[Notices]:
    """Collect notices; the outermost of several such blocks logs them at its end, unless an error ends it."""
    outer = _ACTIVE.get()
    if outer is not None:
        yield outer
        return
    notices = Notices()
    token = _ACTIVE.set(notices)
    try:
        yield notices
    finally:
        _ACTIVE.reset(token)
    for line in notices.lines():
        logger.info(line)


def notice(subject: str, key: Sequence[str | int], text: str) -> None:
    """Add to the notices that are being collected; outside of :func:`noticing` a start is over and nothing is said."""
    if (notices := _ACTIVE.get()) is not None:
        notices.add(subject, key, text)


def _holds(content: Any, key: Sequence[str | int]) -> bool:
    for part in key:
        keyed = isinstance(content, Mapping) and part in content
        placed = isinstance(content, list) and isinstance(part, int) and part < len(content)
        if not (keyed or placed):
            return False
        content = content[part]
    return True
