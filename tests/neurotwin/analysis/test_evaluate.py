"""The table of units against plain loops over whole sessions."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr
from sklearn.metrics import d2_tweedie_score

from neurotwin.analysis.evaluate import evaluate
from neurotwin.data.session import SPLITS
from neurotwin.metrics import EvaluationError, Table, cc_norm, columns, feve

N_LAGS = 3
FIGURES = [name for name, kind in columns().items() if kind is float]


def bits_per_spike(y, rate):
    null = np.full_like(rate, y.mean())
    return (y * np.log(rate) - rate - y * np.log(null) + null).sum() / (math.log(2) * y.sum())


@pytest.mark.parametrize("split", SPLITS)
def test_against_plain_loops(twin, prepared, recorded, slow_rates, split):
    table = evaluate(twin, prepared, split)
    assert len(table) == 7 and twin.training and set(table["likelihood"]) == {"poisson"}
    row = 0
    for index, (session, arrays) in enumerate(zip(recorded, prepared, strict=True)):
        rates = slow_rates(session, session.n_units, index)
        counted = ~np.isnan(rates[:, 0]) & (session.split == split) & arrays.mask.any(1)
        for unit in range(session.n_units):
            y, rate = session.responses[counted, unit].astype(float), rates[counted, unit]
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
    y = np.where(seen, session.responses[-80:].reshape(shape), np.nan)
    rate = rates[-80:].reshape(shape)[:, N_LAGS - 1 :]
    np.testing.assert_allclose(table["cc_norm"][:4], cc_norm(y[:, N_LAGS - 1 :], rate), rtol=1e-5)
    np.testing.assert_allclose(table["feve"][:4], feve(y[:, N_LAGS - 1 :], rate), rtol=1e-5)
    assert np.isnan(evaluate(twin, prepared, "val")["cc_norm"]).all()


@pytest.mark.parametrize(("chunk", "bins"), [(1, 1), (4, 9), (7, 1024), (1024, 3)])
def test_batches_do_not_change_a_figure(twin, prepared, chunk, bins):
    want, got = evaluate(twin, prepared, "test"), evaluate(twin, prepared, "test", chunk=chunk, bins=bins)
    for name in FIGURES:
        np.testing.assert_allclose(got[name], want[name], rtol=1e-6, err_msg=name)


def test_a_session_alone_has_the_figures_it_has_among_others(twin, prepared):
    both, alone = evaluate(twin, prepared, "val"), evaluate(twin, prepared[1:], "val")
    for name in columns():
        np.testing.assert_array_equal(alone[name], both[name][4:])


def test_exposure_turns_summed_counts_into_rates(twin, prepared):
    # Each bin shown e times: e times the counts and the same rates predicted leave all but what is per bin as it was.
    one = prepared[0]
    many = dataclasses.replace(
        one, responses=(one.responses * 3.0).astype(np.float32), exposure=np.full(one.n_bins, 3, np.float32)
    )
    want, got = evaluate(twin, [one], "test"), evaluate(twin, [many], "test")
    for name in FIGURES:
        factor = 3 if name in ("spikes", "bits_per_bin") else 1
        if name != "nll":
            np.testing.assert_allclose(got[name], factor * want[name], rtol=1e-5, err_msg=name)


def test_sessions_and_units_are_found_by_name(twin, prepared):
    def other(**changes):
        return dataclasses.replace(prepared[0], spec=dataclasses.replace(prepared[0].spec, **changes))

    with pytest.raises(EvaluationError, match="not trained on session 'eve_1'; it knows ada_1, bea_1"):
        evaluate(twin, [other(name="eve_1")], "val")
    with pytest.raises(EvaluationError, match="'ada_1': the units"):
        evaluate(twin, [other(unit_ids=prepared[0].spec.unit_ids[::-1])], "val")


def test_a_prediction_that_is_not_finite_is_told_with_its_place(twin, prepared):
    class Broken(type(twin)):
        def step(self, clips, state):
            (rates,), state = super().step(clips, state)
            bins = clips[0].bins[:, None] + torch.arange(clips[0].length)
            return [torch.where((bins == bad)[..., None], torch.nan, rates)], state

    one = prepared[0]
    bad = int(np.flatnonzero((one.split == 2) & (one.n_valid > 0))[5])
    with pytest.raises(EvaluationError, match=f"session ada_1 is not finite: trial {one.trial[bad]}, bin {bad}"):
        evaluate(Broken(prepared), prepared, "test")
    bad = int(np.flatnonzero((one.split == 2) & (one.n_valid == 0))[0])  # where nothing was valid nobody minds
    assert np.isfinite(evaluate(Broken(prepared), prepared, "test")["nll"]).all()


def test_an_empty_split_is_an_error_a_session_without_bins_a_row(twin, prepared):
    nothing = dataclasses.replace(prepared[0], split=np.full(prepared[0].n_bins, -1, np.int8))
    table = evaluate(twin, [nothing, prepared[1]], "val")
    assert table["bins"][:4].tolist() == [0] * 4 and np.isnan(table["bps"][:4]).all()
    with pytest.raises(EvaluationError, match="no session has a valid bin in the val split"):
        evaluate(twin, [nothing], "val")


def test_a_table_is_read_back_to_the_bit(twin, prepared, tmp_path):
    table = evaluate(twin, prepared, "test")
    table.write(tmp_path / "units.csv")
    again = Table.read(tmp_path / "units.csv")
    for name in columns():
        np.testing.assert_array_equal(again[name], table[name], err_msg=name)


def test_the_module_is_left_as_it_was(twin, prepared):
    twin.eval()
    evaluate(twin, prepared, "val")
    assert not twin.training and torch.is_grad_enabled()
