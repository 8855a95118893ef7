"""The line at the foot of the terminal: what it says, that it fits, and that log lines stay whole above it."""

import io
import logging
import re

import pytest
from rich.console import Console

from training.callbacks import EpochHeartbeat
from training.progress_line import ProgressLine


def test_it_counts_like_the_log_and_ends_at_the_last_step(fit, monkeypatch):
    monkeypatch.setattr("training.progress_line._EVERY", 0.0)
    seen = []
    line = ProgressLine("val_bps", Console(file=io.StringIO(), force_terminal=True, width=80))
    show = line._show

    def keep(trainer, step):
        show(trainer, step)
        task = line._bar.tasks[0]
        seen.append((task.description, task.fields["rest"], task.completed, task.total))

    monkeypatch.setattr(line, "_show", keep)
    fit(line)
    assert seen[0][0] == "epoch 1/3 step 1/4" and seen[0][2:] == (1, 12)
    assert seen[-1][0] == "epoch 3/3 step 4/4" and seen[-1][2:] == (12, 12)
    assert re.fullmatch(r"\d+:\d\d left loss \d\.\d{4} cpu", seen[0][1])
    assert re.fullmatch(r"0:00 left loss \d\.\d{4} BPS -?\d\.\d{3} cpu", seen[-1][1])
    assert [done for *_, done, _ in seen] == sorted(done for *_, done, _ in seen)


def test_the_longest_line_fits_80_columns(fit, monkeypatch):
    """Numbers as large as they get, drawn by rich itself: one row, nothing cut off."""
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    line = ProgressLine("val_bps", console)
    drawn = []

    def draw(trainer, step):
        place, rest = "epoch 100/100 step 1000/1000", "10:12:33 left loss 0.1234 BPS -0.213 cuda:0"
        line._bar.update(line._row, completed=1, description=place, rest=rest)
        paper = Console(file=io.StringIO(), width=80)
        paper.print(line._bar)
        drawn.append((paper.file.getvalue().rstrip("\n"), place, rest))

    monkeypatch.setattr(line, "_show", draw)
    fit(line)
    text, place, rest = drawn[0]
    assert "\n" not in text and place in text and rest in text


def test_elsewhere_nothing_is_shown(fit):
    console = Console(file=io.StringIO(), force_terminal=False)
    fit(ProgressLine("val_bps", console))
    assert console.file.getvalue() == ""


def test_it_is_taken_away_after_an_error(fit, tiny):
    class Model(tiny.Model):
        def training_step(self, batch, batch_idx):
            if batch_idx == 2:
                raise ZeroDivisionError
            return super().training_step(batch, batch_idx)

    line = ProgressLine("val_bps", Console(file=io.StringIO(), force_terminal=True))
    with pytest.raises(ZeroDivisionError):
        fit(line, EpochHeartbeat(), model=Model())
    assert line._bar is None
    assert not [h for h in logging.getLogger().handlers if "FileProxy" in type(getattr(h, "stream", None)).__name__]
