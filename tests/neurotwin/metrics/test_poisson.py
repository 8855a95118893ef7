"""The streamed figures against scikit-learn, scipy, a slow loop and answers worked by hand."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr
from sklearn.metrics import d2_tweedie_score

from neurotwin.metrics.poisson import FIGURES, RATE_FLOOR, PoissonSums, poisson_nll, summarize


def figures(rates, spikes, mask=None, exposure=None):
    rates, spikes = torch.as_tensor(rates), torch.as_tensor(spikes)
    mask = torch.ones_like(spikes, dtype=torch.bool) if mask is None else torch.as_tensor(mask)
    sums = PoissonSums(spikes.shape[-1])
    sums.update(rates, spikes, mask, None if exposure is None else torch.as_tensor(exposure))
    return {key: value.numpy() for key, value in sums.compute().items()}


@pytest.fixture
def data():
    rng = np.random.default_rng(3)
    true = rng.gamma(1.5, 0.4, (400, 5))
    rates = true * rng.gamma(20, 1 / 20, true.shape)
    mask = rng.random(true.shape) < 0.8
    return rates, rng.poisson(true), mask, rng.integers(1, 15, (400, 1)).astype(float)


def slow(rates, spikes, mask, exposure):
    """METRICS.md once more, bin by bin."""
    out = {key: [] for key in FIGURES}
    for unit in range(spikes.shape[1]):
        bins = [t for t in range(len(spikes)) if mask[t, unit]]
        y = [float(spikes[t, unit]) for t in bins]
        e = [float(exposure[t, 0]) for t in bins]
        mean = math.fsum(y) / math.fsum(e)
        model = [ei * max(float(rates[t, unit]), 1e-8 / ei) for ei, t in zip(e, bins, strict=True)]
        null = [ei * mean for ei in e]
        gain = [a * math.log(b) - b - (a * math.log(c) - c) for a, b, c in zip(y, model, null, strict=True)]
        out["spikes"].append(math.fsum(y))
        out["bins"].append(len(bins))
        out["nll"].append(math.fsum(b - a * math.log(b) for a, b in zip(y, model, strict=True)) / len(bins))
        out["bps"].append(math.fsum(gain) / (math.log(2) * math.fsum(y)))
        out["d2"].append(d2_tweedie_score(np.array(y), np.array(model), power=1) if exposure.max() == 1 else math.nan)
        per_presentation = [a / ei for a, ei in zip(y, e, strict=True)]
        out["correlation"].append(pearsonr([float(rates[t, unit]) for t in bins], per_presentation).statistic)
    return out


def test_hand_worked():
    # Four spikes in four bins: the mean rate is 1, at which y log ȳ − ȳ sums to −4.
    got = figures([[2.0], [1.0], [0.5], [1.0]], [[2], [1], [0], [1]])
    log_likelihood = 2 * math.log(2) - 4.5
    assert got["spikes"] == 4 and got["bins"] == 4
    assert got["nll"] == pytest.approx(-log_likelihood / 4)
    assert got["bps"] == pytest.approx((log_likelihood + 4) / (4 * math.log(2)))
    saturated = 2 * math.log(2) - 4
    assert got["d2"] == pytest.approx(1 - (saturated - log_likelihood) / (saturated + 4))
    assert got["correlation"] == pytest.approx(pearsonr([2, 1, 0.5, 1], [2, 1, 0, 1]).statistic)


@pytest.mark.parametrize("with_exposure", [False, True])
def test_against_slow_loop(data, with_exposure):
    rates, spikes, mask, exposure = data
    spikes = np.random.default_rng(4).poisson(exposure * rates) if with_exposure else spikes
    exposure = exposure if with_exposure else np.ones_like(exposure)
    got, want = figures(rates, spikes, mask, exposure), slow(rates, spikes, mask, exposure)
    for key in FIGURES:
        if key == "d2" and with_exposure:
            continue  # scikit-learn knows no exposure; see the next test
        np.testing.assert_allclose(got[key], want[key], rtol=1e-11, err_msg=key)


def test_deviance_with_exposure(data):
    rates, _, _, exposure = data
    counts = np.random.default_rng(5).poisson(exposure * rates)
    mean = counts.sum(0) / exposure.sum()

    def deviance(expected):
        ratio = np.where(counts > 0, counts, 1) / expected
        return 2 * (np.where(counts > 0, counts * np.log(ratio), 0) - counts + expected).sum(0)

    np.testing.assert_allclose(
        figures(rates, counts, exposure=exposure)["d2"],
        1 - deviance(exposure * rates) / deviance(exposure * mean),
        rtol=1e-11,
    )


def test_constant_exposure_of_counts_changes_only_the_unit_of_the_rate(data):
    rates, spikes, mask, _ = data
    plain = figures(rates, spikes, mask)
    shared = figures(rates / 7, spikes, mask, np.full((len(spikes), 1), 7.0))
    for key in FIGURES:
        np.testing.assert_allclose(plain[key], shared[key], rtol=1e-11, err_msg=key)


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(0, 60), max_size=8), clip=st.sampled_from([1, 3, 4]), seed=st.integers(0, 99))
def test_any_split_into_batches_gives_the_same_sums(cuts, clip, seed):
    rng = np.random.default_rng(seed)
    rates, spikes = torch.tensor(rng.gamma(1, 1, (60, 4))), torch.tensor(rng.poisson(0.7, (60, 4)))
    mask, exposure = torch.tensor(rng.random((60, 4)) < 0.7), torch.tensor(rng.integers(1, 4, (60, 1)))
    whole = PoissonSums(4)
    whole.update(rates, spikes, mask, exposure)
    parts = PoissonSums(4)
    edges = [0, *sorted(cuts), 60]
    for first, last in itertools.pairwise(edges):
        part = PoissonSums(4)  # as another process would hold it
        piece = [x[first:last] for x in (rates, spikes, mask, exposure)]
        if len(piece[0]) % clip == 0:  # (B, L, U), as clips come
            piece = [x.reshape(-1, clip, x.shape[-1]) for x in piece]
        part.update(*piece)
        parts.merge(part)
    np.testing.assert_allclose(parts.sums, whole.sums, rtol=1e-12, atol=1e-12)


def test_what_is_masked_is_not_read(data):
    rates, spikes, mask, _ = data
    want = figures(rates, spikes, mask)
    rates, spikes = np.where(mask, rates, np.nan), np.where(mask, spikes, 1000)
    got = figures(rates, spikes, mask)
    for key in FIGURES:
        np.testing.assert_array_equal(got[key], want[key])


def test_mask_of_one_column_counts_every_unit(data):
    rates, spikes, mask, _ = data
    column = mask[:, :1]
    got, want = figures(rates, spikes, column), figures(rates, spikes, np.repeat(column, 5, 1))
    for key in FIGURES:
        np.testing.assert_array_equal(got[key], want[key])


def test_silent_units_and_units_without_bins_are_nan():
    spikes = np.array([[0, 1, 2], [0, 0, 2]])
    mask = np.array([[True, False, True], [True, False, True]])
    got = figures(np.array([[0.1, 0.2, 1.5], [0.2, 0.1, 2.5]]), spikes, mask)
    assert got["bins"].tolist() == [2, 0, 2] and got["spikes"].tolist() == [0, 0, 4]
    assert np.isnan(got["bps"]).tolist() == [True, True, False]
    assert np.isnan(got["d2"]).tolist() == [True, True, True]  # constant counts: no deviance to explain
    assert np.isnan(got["nll"]).tolist() == [False, True, False]
    assert np.isnan(got["correlation"]).all()
    summary = summarize(got["bps"])
    assert (summary.n, summary.n_nan) == (1, 2)


def test_bad_predictions_are_negative_and_never_clamped():
    got = figures([[3.0], [0.001]], [[0], [2]])
    want = (2 * math.log(0.001) - 3.001 + 2) / (2 * math.log(2))
    assert got["bps"] == pytest.approx(want) and want < -9
    assert got["d2"] < -5


def test_a_rate_of_zero_is_floored():
    got = figures([[0.0], [1.0]], [[1], [1]])
    assert got["nll"] == pytest.approx((1e-8 - math.log(1e-8) + 1) / 2)


@pytest.mark.parametrize("offset", [0.0, 1e2, 1e4])
def test_correlation_with_a_large_offset(offset):
    rng = np.random.default_rng(0)
    rates = rng.normal(size=(5000, 1))
    spikes = np.abs(rates + rng.normal(size=rates.shape)) + offset
    rates = rates + 5 + offset
    want = pearsonr(rates[:, 0], spikes[:, 0]).statistic
    assert figures(rates, spikes)["correlation"] == pytest.approx(want, rel=1e-6)


def test_correlation_lost_in_rounding_is_nan():
    spikes = np.random.default_rng(0).poisson(1.0, (5000, 2))
    constant = np.full(spikes.shape, 0.1)
    constant[::2, 1] += 1e-9  # below what float32 could tell apart
    got = figures(constant, spikes)
    assert np.isnan(got["correlation"]).all()
    assert np.abs(got["bps"]).max() < 5  # the likelihood is still known


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="spikes"):
        PoissonSums(3).update(torch.ones(4, 1), torch.ones(4, 3), torch.ones(4, 3))


def test_summary_of_nothing():
    summary = summarize(torch.full((3,), math.nan))
    assert math.isnan(summary.mean) and (summary.n, summary.n_nan) == (0, 3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_loss_is_the_nll_of_the_table(data, dtype):
    rates, spikes, mask, exposure = (torch.tensor(x) for x in data)
    rates = rates.to(dtype)
    loss = poisson_nll(rates, spikes, mask, exposure.float())
    sums = PoissonSums(spikes.shape[1])
    sums.update(rates, spikes, mask, exposure)
    want = (sums.compute()["nll"] * sums.compute()["bins"]).sum()
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(loss.double(), want, rtol=1e-12 if dtype == torch.float64 else 1e-5, atol=0)


def test_gradient_of_the_loss():
    rates = torch.tensor([[0.5, 2.0, 3.0]], dtype=torch.float64, requires_grad=True)
    spikes, mask = torch.tensor([[1, 0, 5]]), torch.tensor([[True, True, False]])
    exposure = torch.tensor([[4.0]], dtype=torch.float64)
    poisson_nll(rates, spikes, mask, exposure).backward()
    torch.testing.assert_close(rates.grad, torch.tensor([[4 - 1 / 0.5, 4.0, 0.0]], dtype=torch.float64))


def test_a_silenced_rate_is_pulled_up():
    rates = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
    poisson_nll(rates, torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool)).backward()
    assert rates.grad.item() == pytest.approx(1 - 1 / RATE_FLOOR)
