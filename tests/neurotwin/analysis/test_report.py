"""The closing table, from folders as a run writes them."""

import json
import re

import numpy as np
import pytest

from neurotwin.analysis.report import (
    distinct_names,
    load_run,
    markdown_table,
    report_rows,
    summary_text,
    text_table,
)  # fmt: skip
from neurotwin.metrics import EvaluationError


@pytest.fixture
def write_run(table):
    """Write a run's folder and load it."""

    def write(folder, model, *, parameters=1234567, wall_s=83.4, bps=(0.2, 0.4, np.nan, 1.0), oracle=0.8):
        folder.mkdir()
        (folder / "run.json").write_text(json.dumps({"name": model, "parameters": parameters, "wall_s": wall_s}))
        if bps is not None:
            sessions = ["a_1", "a_1", "b_1", "b_1"]
            table(sessions, [3, 7, 3, 4], bps=bps, oracle_bps=[oracle] * 4).write(folder / "units.csv")
        (folder / "metrics.csv").write_text("epoch,step,train_loss,val_bps\n0,9,,0.1\n0,9,0.5,\n1,19,,0.3\n")
        return load_run(folder)

    return write


def test_rows_by_hand(write_run, tmp_path):
    (row,) = report_rows([write_run(tmp_path / "run", "resnet")])
    assert row == {
        "model": "resnet", "parameters": "1,234,567", "wall time": "1:23",
        "mean BPS": "0.650", "median BPS": "0.400", "of oracle": "81.2%",  # sessions 0.3 and 1.0 of 0.8
        "BPS a": "0.300", "BPS b": "1.000", "units": "3", "NaN": "1",
    }  # fmt: skip


def test_a_run_that_failed_is_a_row_that_says_so(write_run, tmp_path):
    rows = report_rows([write_run(tmp_path / "a", "ln"), write_run(tmp_path / "b", "broken", bps=None)])
    assert rows[1]["mean BPS"] == "failed" and rows[1]["BPS a"] == ""
    assert "failed" in text_table(rows).splitlines()[3]


def test_columns_that_no_run_fills_are_left_out(write_run, tmp_path):
    (row,) = report_rows([write_run(tmp_path / "run", "resnet", oracle=np.nan)])
    assert "of oracle" not in row


def test_text_is_aligned_and_markdown_has_a_cell_each(write_run, tmp_path):
    runs = [write_run(tmp_path / "a", "a|b", wall_s=7325), write_run(tmp_path / "b", "a long name")]
    rows = report_rows(runs)
    lines = text_table(rows).splitlines()
    assert len(lines) == 4 and len({len(line) for line in lines}) == 1
    assert "2:02:05" in lines[2]
    table = markdown_table(rows).splitlines()
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {len(rows[0]) + 1}
    assert table[1].startswith("| :-- | --: |")


def test_runs_of_one_name_are_told_apart(write_run, tmp_path):
    for part in ("x", "y"):
        (tmp_path / part).mkdir()
    runs = [write_run(tmp_path / "x/run", "ln"), write_run(tmp_path / "y/run", "ln"), write_run(tmp_path / "c", "cnn")]
    assert distinct_names(runs) == ["ln (x/run)", "ln (y/run)", "cnn"]
    assert len(set(distinct_names([runs[0], runs[0], runs[1]]))) == 3  # also where one folder is given twice


def test_test_figures_stand_beside_those_of_validation(write_run, table, tmp_path):
    run = write_run(tmp_path / "a", "ln")
    test = table(["a_1", "a_1", "b_1"], [3, 7, 3], bps=[0.1, 0.3, 0.6])
    (row,) = report_rows([run], [test])
    assert row["test BPS"] == "0.400" and list(row).index("test BPS") == list(row).index("median BPS") + 1
    assert "test BPS" not in report_rows([run])[0]


@pytest.mark.parametrize(("file", "content", "note"), [
    ("units.csv", "session,unit_id\n", "table of units cannot be read"),
    ("units.csv", None, "no units.csv"),
    ("metrics.csv", "epoch,val_bps\n1,high\n", "learning curves cannot be read"),
])  # fmt: skip
def test_what_a_folder_lacks_is_a_sentence(write_run, tmp_path, file, content, note):
    write_run(tmp_path / "a", "ln")
    path = tmp_path / "a" / file
    path.unlink() if content is None else path.write_text(content)
    run = load_run(tmp_path / "a")
    assert note in " ".join(run.notes) and report_rows([run])


def test_curves_leave_gaps(write_run, tmp_path):
    curves = write_run(tmp_path / "run", "ln").curves
    np.testing.assert_array_equal(curves["val_bps"], [0.1, np.nan, 0.3])


@pytest.mark.parametrize(
    ("record", "message"),
    [(None, "no run.json"), ("{", "cannot be read"), ('{"name": "x"}', "lacks parameters"), ("[]", "lacks")],
)
def test_what_is_not_a_run_is_refused(tmp_path, record, message):
    if record is not None:
        (tmp_path / "run.json").write_text(record)
    with pytest.raises(EvaluationError, match=message):
        load_run(tmp_path)


def test_summary_of_a_table(write_run, tmp_path):
    table = write_run(tmp_path / "run", "ln").table
    lines = summary_text(table).splitlines()
    assert lines[0].split() == ["mean", "BPS", "median", "BPS", "of", "oracle", "units", "NaN"]  # no figure has repeats
    names = ["session a_1", "session b_1", "subject a", "subject b"]
    assert [" ".join(line.split()[:2]) for line in lines[2:6]] == names
    assert lines[6].split() == ["run", "0.650", "0.400", "81.2%", "3", "1"]


def test_a_run_that_has_not_ended(tmp_path):
    (tmp_path / "run.json").write_text('{"name": "ln", "parameters": 7}')
    (row,) = report_rows([load_run(tmp_path)])
    assert row == {"model": "ln", "parameters": "7", "mean BPS": "failed"}
