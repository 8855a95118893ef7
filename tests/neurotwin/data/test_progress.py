"""Progress on a terminal and elsewhere; log lines stay whole beside it."""

import io
import logging
import sys

import pytest
from rich.console import Console

from neurotwin.data.progress import ProgressDisplay, session_progress


class Terminal(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def open_terminal(monkeypatch, caplog):
    """Makes the standard error stream a terminal, to which the root logger writes; in a test, after pytest took it."""

    def opened() -> Terminal:
        stream = Terminal()
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "80")
        monkeypatch.setattr(logging.getLogger(), "handlers", [logging.StreamHandler(stream)])
        caplog.set_level(logging.INFO)
        return stream

    return opened


def test_a_log_line_beside_a_bar_starts_its_own_line(open_terminal):
    terminal = open_terminal()
    console = Console(file=terminal, force_terminal=True, width=80)
    with ProgressDisplay("working", console) as display:
        display.update(0.5, "1 of 2")
        logging.getLogger("some.part").info("a line of a log")
    text = terminal.getvalue()
    before = text[: text.index("a line of a log")]
    assert before.endswith("\x1b[2K"), "the bar was erased before the line was written"
    assert text[text.index("a line of a log") :].startswith("a line of a log\n")
    assert logging.getLogger().handlers[0].stream is terminal


def test_handlers_are_put_back_after_an_error(open_terminal):
    terminal = open_terminal()
    with pytest.raises(ZeroDivisionError), ProgressDisplay("working", Console(file=terminal, force_terminal=True)):
        raise ZeroDivisionError
    assert logging.getLogger().handlers[0].stream is terminal and sys.stderr is terminal


def test_sessions_are_a_bar_on_a_terminal_and_lines_elsewhere(open_terminal, monkeypatch, caplog):
    terminal = open_terminal()
    with session_progress("evaluating") as progress:
        progress(1, 4, "ada")
    assert "evaluating session 2 of 4: ada" in terminal.getvalue() and "25%" in terminal.getvalue()
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(logging.getLogger(), "handlers", [caplog.handler])
    with session_progress("evaluating") as progress:
        progress(1, 4, "ada")
    assert caplog.messages == ["session 2 of 4: ada"]
