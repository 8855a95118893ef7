"""The log file of a run."""

import logging
import re

import pytest

from training.utils import RunLog


@pytest.fixture
def say(caplog):
    caplog.set_level(logging.INFO)
    return logging.getLogger("some.part").info


def test_lines_from_before_the_folder_and_after_are_in_its_file(tmp_path, say):
    with RunLog() as log:
        say("%d sessions", 2)
        log.open(tmp_path)
        say("training")
        assert (tmp_path / "train.log").read_text().endswith("training\n"), "a line is written at once"
        log.write("stopped by SIGTERM")
    say("after")
    lines = (tmp_path / "train.log").read_text().splitlines()
    assert [re.sub(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ", "", line) for line in lines] == [
        "2 sessions", "training", "stopped by SIGTERM",
    ]  # fmt: skip


def test_a_run_that_goes_on_adds_to_the_file(tmp_path, say):
    for text in ("first", "second"):
        with RunLog() as log:
            log.open(tmp_path)
            say(text)
    assert [line.rpartition(" ")[2] for line in (tmp_path / "train.log").read_text().splitlines()] == [
        "first",
        "second",
    ]


def test_an_error_is_written_with_its_traceback(tmp_path):
    with pytest.raises(ZeroDivisionError), RunLog() as log:
        log.open(tmp_path)
        _ = 1 / 0
    assert re.search(r"Traceback.*\n(.*\n)*ZeroDivisionError", (tmp_path / "train.log").read_text())


def test_without_a_folder_nothing_is_written_or_left(tmp_path, say):
    before = list(logging.getLogger().handlers)
    with RunLog():
        say("lost")
    assert logging.getLogger().handlers == before and not list(tmp_path.iterdir())
