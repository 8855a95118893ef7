"""Reliability against slow loops, simulations with a known signal, and answers worked by hand."""

import numpy as np
import pytest

from neurotwin.metrics import reliability as m


@pytest.fixture
def responses():
    """Eight repeats of 300 frames from four units with known rates."""
    rng = np.random.default_rng(1)
    rate = rng.gamma(2, 1, (300, 4)) * np.array([0.2, 1, 3, 10])
    return rng.poisson(rate, (8, 300, 4)).astype(float), rate


def slow_signal_power(y):
    """Sahani & Linden 2003 by the sums themselves."""
    n_repeats, n_frames = y.shape

    def variance(x):
        mean = sum(x) / len(x)
        return sum((v - mean) ** 2 for v in x) / (len(x) - 1)

    summed = [sum(y[r, t] for r in range(n_repeats)) for t in range(n_frames)]
    return (variance(summed) - sum(variance(list(y[r])) for r in range(n_repeats))) / (n_repeats * (n_repeats - 1))


def test_hand_worked():
    y = np.array([[0.0, 2.0, 4.0], [2.0, 2.0, 8.0]])[:, :, None]
    rate = np.array([1.0, 1.0, 4.0])[:, None]
    # Sums over repeats 2, 4, 12 (variance 28); repeats' variances 4 and 12: (28 − 16) / 2.
    assert m.signal_power(y) == pytest.approx(6)
    # Means 1, 2, 6 (variance 7); covariance with the prediction ((1−3)(1−2) + (2−3)(1−2) + (6−3)(4−2)) / 2 = 4.5.
    assert m.cc_norm(y, rate) == pytest.approx(4.5 / np.sqrt(3 * 6))
    assert m.cc_max(y) == pytest.approx(np.sqrt(6 / 7))
    assert m.cc_abs(y, rate) == pytest.approx(4.5 / np.sqrt(3 * 7))
    assert m.correlation_to_average(y, rate) == pytest.approx(4.5 / np.sqrt(3 * 7))
    # Variance between repeats 2, 0, 8: noise 10/3; all six about their mean 3: 9, 1, 1, 1, 1, 25, so 38/5.
    assert m.fev(y) == pytest.approx(1 - (10 / 3) / 7.6)
    # Squared errors 1, 1, 0, 1, 1, 16.
    assert m.feve(y, rate) == pytest.approx(1 - (20 / 6 - 10 / 3) / (7.6 - 10 / 3))
    # Two repeats: each is correlated with the other.
    assert m.oracle_correlation(y) == pytest.approx(np.corrcoef(y[0, :, 0], y[1, :, 0])[0, 1])


def test_against_slow_loops(responses):
    y, rate = responses
    prediction = rate * np.random.default_rng(2).gamma(10, 0.1, rate.shape)
    for unit in range(y.shape[2]):
        one, guess = y[:, :, unit], prediction[:, unit]
        power = slow_signal_power(one)
        assert m.signal_power(y)[unit] == pytest.approx(power)
        covariance = np.cov(one.mean(0), guess)[0, 1]
        assert m.cc_norm(y, prediction)[unit] == pytest.approx(covariance / np.sqrt(np.var(guess, ddof=1) * power))
        noise = np.mean([np.var(one[:, t], ddof=1) for t in range(one.shape[1])])
        total = np.var(one.reshape(-1), ddof=1)
        errors = np.mean([(one[r, t] - guess[t]) ** 2 for r in range(8) for t in range(300)])
        assert m.fev(y)[unit] == pytest.approx(1 - noise / total)
        assert m.feve(y, prediction)[unit] == pytest.approx(1 - (errors - noise) / (total - noise))
        rest = [np.corrcoef(one[r], np.delete(one, r, 0).mean(0))[0, 1] for r in range(8)]
        assert m.oracle_correlation(y)[unit] == pytest.approx(np.mean(rest))
        assert m.cc_abs(y, prediction)[unit] == pytest.approx(np.corrcoef(one.mean(0), guess)[0, 1])


def test_the_true_rate_reaches_the_ceiling(responses):
    y, rate = responses
    np.testing.assert_allclose(m.signal_power(y), rate.var(0, ddof=1), rtol=0.25)
    np.testing.assert_allclose(m.cc_norm(y, rate), 1, atol=0.05)
    np.testing.assert_allclose(m.feve(y, rate), 1, atol=0.1)


def test_predictions_may_differ_between_repeats(responses):
    y, rate = responses
    rng = np.random.default_rng(3)
    each = rate * rng.gamma(10, 0.1, y.shape)
    np.testing.assert_allclose(m.cc_norm(y, each), m.cc_norm(y, each.mean(0)), rtol=1e-12)
    np.testing.assert_allclose(m.correlation_to_average(y, each), m.correlation_to_average(y, each.mean(0)))
    explainable = np.array([u.var(ddof=1) - u.var(0, ddof=1).mean() for u in np.moveaxis(y, 2, 0)])
    noise = y.var(0, ddof=1).mean(0)
    np.testing.assert_allclose(m.feve(y, each), 1 - (((y - each) ** 2).mean((0, 1)) - noise) / explainable)


def test_missing_repeats(responses):
    y, rate = responses
    ragged = y.copy()
    ragged[5:, :100, 0] = np.nan  # 5 · 300 > 8 · 200 is false: unit 0 keeps the 200 complete frames
    ragged[0, :, 1] = np.nan  # one repeat less of everything
    ragged[7, :10, 2] = np.nan  # 8 · 290 > 7 · 300
    ragged[1:, :, 3] = np.nan  # shown once
    rate_0 = rate[100:, :1]
    for figure in (m.cc_norm, m.feve, m.correlation_to_average):
        got = figure(ragged, rate)
        assert got[0] == pytest.approx(figure(y[:, 100:, :1], rate_0)[0])
        assert got[1] == pytest.approx(figure(y[1:, :, 1:2], rate[:, 1:2])[0])
        assert got[2] == pytest.approx(figure(y[:, 10:, 2:3], rate[10:, 2:3])[0])
        assert np.isnan(got[3])


def test_the_repeats_used_are_the_most_responses():
    y = np.full((4, 10, 1), np.nan)
    y[:2] = np.random.default_rng(0).poisson(3, (2, 10, 1))
    y[:, :3] = np.random.default_rng(1).poisson(3, (4, 3, 1))  # 4 · 3 responses against 2 · 10
    assert m.signal_power(y) == pytest.approx(m.signal_power(y[:2]))
    y[:3, :8] = np.random.default_rng(2).poisson(3, (3, 8, 1))  # 3 · 8 now
    assert m.signal_power(y) == pytest.approx(m.signal_power(y[:3, :8]))


def test_undefined_figures_are_nan():
    silent = np.zeros((4, 20, 1))
    rate = np.random.default_rng(0).random((20, 1))
    for value in (m.cc_norm(silent, rate), m.cc_max(silent), m.fev(silent), m.feve(silent, rate)):
        assert np.isnan(value)
    assert np.isnan(m.oracle_correlation(silent)) and m.signal_power(silent) == 0
    noise = np.array([[1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 1.0]])[:, :, None]  # negative signal power
    assert m.signal_power(noise) < 0
    assert np.isnan(m.cc_norm(noise, rate[:4])) and np.isnan(m.cc_max(noise)) and np.isnan(m.feve(noise, rate[:4]))
    y = np.random.default_rng(1).poisson(2, (5, 20, 1)) / 3
    assert np.isnan(m.cc_norm(y + rate, np.full((20, 1), 0.1)))  # a constant prediction


def test_oracle_leaves_out_silent_repeats():
    y = np.random.default_rng(1).poisson(2, (4, 30, 1)).astype(float)
    y[2] = 0
    rest = [np.corrcoef(y[r, :, 0], np.delete(y[:, :, 0], r, 0).mean(0))[0, 1] for r in (0, 1, 3)]
    assert m.oracle_correlation(y) == pytest.approx(np.mean(rest))


def test_stacking_repeats_against_a_loop():
    rng = np.random.default_rng(7)
    ids = rng.integers(-1, 6, 50)
    values, mask = rng.random((50, 3)), rng.random((50, 3)) < 0.8
    got = m.stack_repeats(values, mask, ids)
    frames = sorted(set(ids) - {-1})
    assert got.shape == (max((ids == i).sum() for i in frames), len(frames), 3)
    for n, frame in enumerate(frames):
        bins = np.flatnonzero(ids == frame)
        for r in range(len(got)):
            want = np.where(mask[bins[r]], values[bins[r]], np.nan) if r < len(bins) else np.full(3, np.nan)
            np.testing.assert_array_equal(got[r, n], want)


def test_no_repeats_at_all():
    stacked = m.stack_repeats(np.ones((5, 2)), np.ones((5, 2), bool), np.full(5, -1))
    assert stacked.shape == (0, 0, 2)
    assert np.isnan(m.signal_power(stacked)).all()
