"""Runs are compared by session and unit id, never by position."""

import math

import numpy as np
import pytest

from neurotwin.analysis.compare import compare, compare_tables
from neurotwin.metrics import EvaluationError, Table, columns


@pytest.fixture
def table(table):
    rng = np.random.default_rng(0)
    figures = {name: rng.random(3) for name, kind in columns().items() if kind is float}
    figures["feve"][1] = np.nan
    return table(**figures)


def changed(table, name, row, value):
    columns = {key: column.copy() for key, column in table.columns.items()}
    columns[name][row] = value
    return Table(columns)


def test_the_order_of_rows_does_not_matter(table):
    result = compare_tables(table, table.where(np.array([2, 0, 1])), tolerance=0)
    assert result.same and result.n_units == 3 and set(result.largest.values()) == {0.0}
    assert "the same" in result.text()


def test_the_worst_differences_come_first(table):
    other = changed(changed(changed(table, "bps", 0, table["bps"][0] + 0.01), "d2", 2, 5.0), "bps", 1, np.nan)
    result = compare_tables(table, other)
    assert not result.same
    assert [(d.session, d.unit_id, d.metric) for d in result.differences] == [
        ("a_1", 7, "bps"), ("b_1", 3, "d2"), ("a_1", 3, "bps")]  # fmt: skip
    assert math.isinf(result.largest["bps"]) and result.largest["d2"] == pytest.approx(5 - table["d2"][2])
    assert "b_1/3 d2" in result.text() and "b_1/3 d2" not in result.text(worst=1)


@pytest.mark.parametrize(("tolerance", "same"), [(1e-3, True), (1e-5, False)])
def test_tolerance(table, tolerance, same):
    assert compare_tables(table, changed(table, "bps", 0, table["bps"][0] + 1e-4), tolerance=tolerance).same is same
    large = changed(table, "spikes", 0, 1e6)  # relative to what is large
    assert compare_tables(large, changed(table, "spikes", 0, 1e6 + 100), tolerance=tolerance).same is same


def test_missing_units_make_a_difference(table):
    result = compare_tables(table, table.where(np.array([0, 2])))
    assert not result.same and result.only_a == (("a_1", 7),) and result.only_b == ()
    assert "only in the first: a_1/7" in result.text()


def test_a_unit_that_occurs_twice_is_refused(table):
    with pytest.raises(EvaluationError, match="unit 3 of session 'a_1' occurs twice"):
        compare_tables(table, table.where(np.array([0, 0])))


def test_folders_and_files(table, tmp_path):
    table.write(tmp_path / "run" / "units.csv")
    changed(table, "bps", 0, 9.0).write(tmp_path / "other.csv")
    assert compare(tmp_path / "run", tmp_path / "run").same
    assert not compare(tmp_path / "run", tmp_path / "other.csv").same
    with pytest.raises(EvaluationError, match="no such run"):
        compare(tmp_path / "run", tmp_path / "absent")


def test_a_figure_that_one_table_is_too_old_for_is_named_and_left_out(table, tmp_path):
    table.write(tmp_path / "new.csv")
    columns = {name: column for name, column in table.columns.items() if name != "bits_per_bin"}
    Table(columns).write(tmp_path / "old.csv")
    for pair in (("new.csv", "old.csv"), ("old.csv", "new.csv")):
        result = compare(*(tmp_path / name for name in pair))
        assert result.same and "bits_per_bin" not in result.largest and "bps" in result.largest
        assert result.left_out == ("bits_per_bin",) and "lacks them: bits_per_bin" in result.text()


def test_a_figure_that_is_nan_in_all_units_of_one_run_is_a_difference(table):
    """A run whose every score is NaN has not given the same figures."""
    broken = changed(table, "bps", slice(None), np.nan)
    for result in (compare_tables(table, broken), compare_tables(broken, table)):
        assert not result.same and result.largest["bps"] == np.inf and result.left_out == ()


def test_another_likelihood_is_a_difference(table):
    result = compare_tables(table, changed(table, "likelihood", slice(None), "gamma"))
    assert not result.same and "'poisson' and 'gamma'" in result.text()


def test_a_figure_that_only_one_table_knows_is_no_difference(table, tmp_path):
    """A metric of the user's own, or of a later version."""
    table.write(tmp_path / "plain.csv")
    Table(table.columns | {"own_metric": np.arange(3.0)}).write(tmp_path / "own.csv")
    for pair in (("plain.csv", "own.csv"), ("own.csv", "plain.csv")):
        result = compare(*(tmp_path / name for name in pair))
        assert result.same and "own_metric" not in result.largest and result.left_out == ("own_metric",)
