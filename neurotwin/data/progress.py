"""How far a long job has come: a bar with the time left on a terminal, plain log lines elsewhere."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

__all__ = ["ProgressDisplay", "clock_text", "lines_above", "session_progress"]

logger = logging.getLogger(__name__)

_EVERY = 30.0  # s between log lines while nothing is finished


class ProgressDisplay:
    """Shows the share of a job that is done, and the time that is left.

    Parameters
    ----------
    what
        Name of the job.
    console
        Where a bar is drawn if it is a terminal. Default: the standard error stream.

    Examples
    --------
    >>> with ProgressDisplay("converting") as display:
    ...     display.update(0.5, "1 of 2")
    """

    def __init__(self, what: str, console: Console | None = None) -> None:
        self.what = what
        self.console = console or Console(stderr=True)
        self.started = self.logged = time.monotonic()
        self.bar: Progress | None = None
        self._open = ExitStack()

    def __enter__(self) -> "ProgressDisplay":
        if self.console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
            self.bar = Progress(*columns, console=self.console, transient=True)
            self.row = self.bar.add_task(self.what, total=1.0)
            self._open.enter_context(lines_above(self.bar))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def update(self, share: float, text: str) -> None:
        """Say that a share of the work, from 0 to 1, is done."""
        now = time.monotonic()
        if self.bar is not None:
            self.bar.update(self.row, completed=share, description=f"{self.what} {text}")
        elif now - self.logged >= _EVERY and 0 < share < 1:
            left = (now - self.started) / share * (1 - share)
            logger.info("%s %s (%.0f%%), %s left", self.what, text, 100 * share, clock_text(left))
            self.logged = now

    def say(self, line: str) -> None:
        """Print a line above the bar, or log it."""
        if self.bar is not None:
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            logger.info("%s", line)


@contextmanager
def session_progress(what: str) -> Iterator[Callable[[int, int, str], None]]:
    """The `progress` of what goes through sessions: a bar with the time left on a terminal, a line a session elsewhere.

    Examples
    --------
    >>> with session_progress("evaluating") as progress:
    ...     progress(0, 2, "ada")  # before the first of two
    """
    with ProgressDisplay(what) as display:

        def progress(index: int, total: int, name: str) -> None:
            if display.bar is None:
                logger.info("session %d of %d: %s", index + 1, total, name)
            else:
                display.update(index / total, f"session {index + 1} of {total}: {name}")

        yield progress


@contextmanager
def lines_above(bar: Progress) -> Iterator[None]:
    """Show a bar on a terminal, and what is logged to that terminal above it, so that no line breaks it.

    While a bar is shown, rich puts a stream of its own in the place of the standard error stream. Handlers of the root
    logger that write to the original one are pointed to it.
    """
    before = sys.stderr
    bar.start()
    handlers = [h for h in logging.getLogger().handlers if getattr(h, "stream", None) is before]
    try:
        for handler in handlers:
            handler.setStream(sys.stderr)
        yield
    finally:
        for handler in handlers:
            handler.setStream(before)
        bar.stop()


def clock_text(seconds: float) -> str:
    """Seconds as minutes and hours.

    Examples
    --------
    >>> clock_text(83.4), clock_text(7325)
    ('1:23', '2:02:05')
    """
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
