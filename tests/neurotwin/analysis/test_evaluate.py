"""The table of units against plain loops over whole sessions."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr
from sklearn.metrics import d2_tweedie_score

from neurotwin.analysis.evaluate import COLUMNS, METRICS, EvaluationError, Table, evaluate, summarize_table
from neurotwin.data.session import SPLITS
from neurotwin.metrics import cc_norm, feve

N_LAGS = 3


def bits_per_spike(y, rate):
    null = np.full_like(rate, y.mean())
    return (y * np.log(rate) - rate - y * np.log(null) + null).sum() / (math.log(2) * y.sum())


@pytest.mark.parametrize("split", SPLITS)
def test_against_plain_loops(twin, prepared, recorded, slow_rates, split):
    table = evaluate(twin, prepared, split)
    assert len(table) == 7 and twin.training
    row = 0
    for index, (session, arrays) in enumerate(zip(recorded, prepared, strict=True)):
        rates = slow_rates(session, session.n_units, index)
        counted = ~np.isnan(rates[:, 0]) & (session.split == split) & arrays.mask.any(1)
        for unit in range(session.n_units):
            y, rate = session.spikes[counted, unit].astype(float), rates[counted, unit]
            assert table["session"][row] == session.name and table["subject"][row] == session.subject
            assert table["unit_id"][row] == session.unit_ids[unit]
            assert table["bins"][row] == counted.sum() and table["spikes"][row] == y.sum()
            if y.sum():
                assert table["bps"][row] == pytest.approx(bits_per_spike(y, rate), rel=1e-5)
                assert table["d2"][row] == pytest.approx(d2_tweedie_score(y, rate, power=1), rel=1e-5)
                assert table["correlation"][row] == pytest.approx(pearsonr(y, rate).statistic, rel=1e-5)
                oracle = bits_per_spike(y, session.true_rate[counted, unit].astype(float))
                assert table["oracle_bps"][row] == pytest.approx(oracle, rel=1e-5)
            else:
                assert all(np.isnan(table[name][row]) for name in ("bps", "d2", "correlation", "oracle_bps"))
            row += 1


def test_repeats_are_aligned_by_id(twin, prepared, recorded, slow_rates):
    table = evaluate(twin, prepared, "test")
    session, rates = recorded[0], slow_rates(recorded[0], 4, 0)
    shape = (4, 20, 4)
    seen = ((session.valid & ~np.isnan(rates[:, 0]))[-80:].reshape(4, 20, 1)) & np.ones(shape, bool)
    y = np.where(seen, session.spikes[-80:].reshape(shape), np.nan)
    rate = rates[-80:].reshape(shape)[:, N_LAGS - 1 :]
    np.testing.assert_allclose(table["cc_norm"][:4], cc_norm(y[:, N_LAGS - 1 :], rate), rtol=1e-5)
    np.testing.assert_allclose(table["feve"][:4], feve(y[:, N_LAGS - 1 :], rate), rtol=1e-5)
    assert np.isnan(evaluate(twin, prepared, "val")["cc_norm"]).all()


@pytest.mark.parametrize(("chunk", "bins"), [(1, 1), (4, 9), (7, 1024), (1024, 3)])
def test_batches_do_not_change_a_figure(twin, prepared, chunk, bins):
    want, got = evaluate(twin, prepared, "test"), evaluate(twin, prepared, "test", chunk=chunk, bins=bins)
    for name in METRICS:
        np.testing.assert_allclose(got[name], want[name], rtol=1e-6, err_msg=name)


def test_a_session_alone_has_the_figures_it_has_among_others(twin, prepared):
    both, alone = evaluate(twin, prepared, "val"), evaluate(twin, prepared[1:], "val")
    for name in COLUMNS:
        np.testing.assert_array_equal(alone[name], both[name][4:])


def test_exposure_turns_summed_counts_into_rates(twin, prepared):
    # Each bin shown e times: e times the counts and the same rates predicted leave all but the counts as they are.
    one = prepared[0]
    many = dataclasses.replace(
        one, spikes=(one.spikes * 3.0).astype(np.float32), exposure=np.full(one.n_bins, 3, np.float32)
    )
    want, got = evaluate(twin, [one], "test"), evaluate(twin, [many], "test")
    np.testing.assert_allclose(got["spikes"], 3 * want["spikes"])
    for name in METRICS[1:]:
        np.testing.assert_allclose(got[name], want[name], rtol=1e-5, err_msg=name)


def test_sessions_and_units_are_found_by_name(twin, prepared):
    stranger = dataclasses.replace(prepared[0], name="eve_1")
    with pytest.raises(EvaluationError, match="not trained on session 'eve_1'"):
        evaluate(twin, [stranger], "val")
    with pytest.raises(EvaluationError, match="'ada_1': the units"):
        evaluate(twin, [dataclasses.replace(prepared[0], unit_ids=prepared[0].unit_ids[::-1])], "val")


def test_an_empty_split_is_an_error_a_session_without_bins_a_row(twin, prepared):
    nothing = dataclasses.replace(prepared[0], split=np.full(prepared[0].n_bins, -1, np.int8))
    table = evaluate(twin, [nothing, prepared[1]], "val")
    assert table["bins"][:4].tolist() == [0] * 4 and np.isnan(table["bps"][:4]).all()
    with pytest.raises(EvaluationError, match="no session has a valid bin in the val split"):
        evaluate(twin, [nothing], "val")


def test_csv_round_trip_to_the_bit(twin, prepared, tmp_path):
    table = evaluate(twin, prepared, "test")
    table.write(tmp_path / "sub" / "units.csv")
    again = Table.read(tmp_path / "sub" / "units.csv")
    for name in COLUMNS:
        np.testing.assert_array_equal(again[name], table[name])
        assert again[name].dtype.kind == table[name].dtype.kind
    assert [p.name for p in (tmp_path / "sub").iterdir()] == ["units.csv"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lacks the columns session"),
        ("a,b\n1,2\n", "lacks the columns session"),
        (",".join(COLUMNS) + "\nada,x\n", ":2: 2 values"),
        (",".join(COLUMNS) + "\n" + "x," * (len(COLUMNS) - 1) + "x\n", "invalid literal|could not convert"),
    ],
)
def test_what_is_not_a_table_is_refused(tmp_path, text, message):
    (tmp_path / "units.csv").write_text(text)
    with pytest.raises(EvaluationError, match=message):
        Table.read(tmp_path / "units.csv")


def make_table(sessions, **metrics):
    """Rows of the sessions given, with the figures given and NaN for others."""
    n = len(sessions)
    columns = {
        "session": np.array(sessions), "subject": np.array([name.split("_")[0] for name in sessions]),
        "unit_id": np.arange(n), "spikes": np.ones(n), "bins": np.ones(n, int),
    }  # fmt: skip
    return Table(columns | {name: np.array(metrics.get(name, [np.nan] * n), float) for name in METRICS})


def test_summaries_by_hand():
    table = make_table(["a_1"] * 3 + ["a_2"] + ["b_1"], bps=[0.1, 0.3, np.nan, 0.8, -0.4])
    groups = {(group.scope, group.name): group for group in summarize_table(table)}
    assert [name for scope, name in groups if scope == "session"] == ["a_1", "a_2", "b_1"]
    assert [name for scope, name in groups if scope == "subject"] == ["a", "b"]
    session = groups["session", "a_1"]
    assert (session.mean, session.median, session.n, session.n_nan) == (pytest.approx(0.2), pytest.approx(0.2), 2, 1)
    subject = groups["subject", "a"]
    assert subject.mean == pytest.approx((0.2 + 0.8) / 2) and subject.unit_mean == pytest.approx(1.2 / 3)
    run = groups["run", ""]
    assert run.mean == pytest.approx((0.2 + 0.8 - 0.4) / 3) and run.unit_mean == pytest.approx(0.8 / 4)
    assert (run.median, run.n, run.n_nan) == (pytest.approx(0.2), 4, 1)


def test_fraction_of_the_oracle_is_a_ratio_of_means():
    table = make_table(["a_1"] * 3 + ["a_2"], bps=[0.2, -0.1, np.nan, 0.3], oracle_bps=[0.5, 0.001, 1.0, 0.4])
    groups = {(group.scope, group.name): group for group in summarize_table(table, "fraction_of_oracle")}
    assert groups["session", "a_1"].mean == pytest.approx(0.1 / 0.501)
    assert groups["run", ""].mean == pytest.approx((0.1 / 0.501 + 0.75) / 2)
    assert groups["run", ""].unit_mean == pytest.approx(0.4 / 0.901)


def test_the_module_is_left_as_it_was(twin, prepared):
    twin.eval()
    evaluate(twin, prepared, "val")
    assert not twin.training and torch.is_grad_enabled()
