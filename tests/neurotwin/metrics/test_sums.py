"""The streamed figures against scikit-learn, scipy, a slow loop and answers worked by hand."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as hyp
from scipy import stats
from scipy.optimize import minimize_scalar
from scipy.special import gammaln, xlogy
from scipy.stats import pearsonr
from sklearn.metrics import d2_tweedie_score, r2_score

from neurotwin.likelihoods import Gamma, Gaussian, Likelihood, NegativeBinomial, Poisson
from neurotwin.metrics import (
    Sums,
    cc_max,
    cc_norm,
    compute_metrics,
    fev,
    feve,
    oracle_correlation,
    summarize,
)

FIGURES = ("spikes", "bins", "nll", "bps", "bits_per_bin", "d2", "correlation")


def figures(rates, spikes, mask=None, exposure=None):
    rates, spikes = torch.as_tensor(rates), torch.as_tensor(spikes)
    mask = torch.ones_like(spikes, dtype=torch.bool) if mask is None else torch.as_tensor(mask)
    sums = Sums(Poisson(n_units=spikes.shape[-1]))
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
        out["bits_per_bin"].append(math.fsum(gain) / math.log(2) / len(bins))
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
@given(cuts=hyp.lists(hyp.integers(0, 60), max_size=8), clip=hyp.sampled_from([1, 3, 4]), seed=hyp.integers(0, 99))
def test_any_split_into_batches_gives_the_same_sums(cuts, clip, seed):
    rng = np.random.default_rng(seed)
    rates, spikes = torch.tensor(rng.gamma(1, 1, (60, 4))), torch.tensor(rng.poisson(0.7, (60, 4)))
    mask, exposure = torch.tensor(rng.random((60, 4)) < 0.7), torch.tensor(rng.integers(1, 4, (60, 1)))
    whole = Sums(Poisson(n_units=4))
    whole.update(rates, spikes, mask, exposure)
    parts = Sums(Poisson(n_units=4))
    edges = [0, *sorted(cuts), 60]
    for first, last in itertools.pairwise(edges):
        part = Sums(Poisson(n_units=4))  # as another process would hold it
        piece = [x[first:last] for x in (rates, spikes, mask, exposure)]
        if len(piece[0]) % clip == 0:  # (B, L, U), as clips come
            piece = [x.reshape(-1, clip, x.shape[-1]) for x in piece]
        part.update(*piece)
        parts.sums += part.sums
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
    with pytest.raises(ValueError, match="responses"):
        Sums(Poisson(n_units=3)).update(torch.ones(4, 1), torch.ones(4, 3), torch.ones(4, 3))


def test_summary_of_nothing():
    summary = summarize(torch.full((3,), math.nan))
    assert math.isnan(summary.mean) and (summary.n, summary.n_nan) == (0, 3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_loss_is_the_nll_of_the_table(data, dtype):
    rates, spikes, mask, exposure = (torch.tensor(x) for x in data)
    rates = rates.to(dtype)
    likelihood = Poisson(n_units=spikes.shape[1])
    loss = likelihood.nll(rates, spikes, mask, exposure.float())
    sums = Sums(likelihood)
    sums.update(rates, spikes, mask, exposure)
    want = (sums.compute()["nll"] * sums.compute()["bins"]).sum()
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(loss.double(), want, rtol=1e-12 if dtype == torch.float64 else 1e-5, atol=0)


# ------------------------------------------------------------------------------------------------- other likelihoods


OTHERS = (NegativeBinomial, Gaussian, Gamma)


def drawn(kind, seed=0, n=500):
    """A likelihood of three units that differ, rates, responses, mask and exposure."""
    likelihood = kind(n_units=3)
    with torch.no_grad():
        for parameter in likelihood.parameters():
            parameter += torch.tensor([-0.5, 0.1, 0.6])
    generator = torch.Generator().manual_seed(seed)
    true = 0.2 + 2 * torch.rand(n, 3, generator=generator, dtype=torch.float64)
    exposure = torch.randint(1, 6, (n, 1), generator=generator).double() if likelihood.takes_exposure else None
    responses = likelihood.sample(true, exposure, generator)
    rates = true * (0.8 + 0.4 * torch.rand(n, 3, generator=generator, dtype=torch.float64))
    return likelihood, rates, responses, torch.rand(n, 3, generator=generator) < 0.8, exposure


def streamed(likelihood, rates, responses, mask, exposure):
    sums = Sums(likelihood)
    sums.update(rates, responses, mask, exposure)
    return {key: value.numpy() for key, value in sums.compute().items()}


def best_constant(likelihood: Likelihood, y: np.ndarray, e: np.ndarray, unit: int) -> float:
    """Log likelihood of the null model as METRICS.md means it, from scipy: bin by bin, parameters by optimisation."""
    mean = y.sum() / e.sum()
    match likelihood:
        case NegativeBinomial():
            size = e / likelihood.dispersion[unit].item()
            return stats.nbinom(size, size / (size + e * mean)).logpmf(y).sum() + gammaln(y + 1).sum()
        case Gaussian():
            return max_over(lambda s: stats.norm(e * mean, np.sqrt(e * np.exp(s))).logpdf(y).sum())
        case Gamma():
            above = y[y > 0]
            shares = stats.bernoulli(len(above) / len(y)).logpmf(y > 0).sum()
            fit = max_over(lambda s: stats.gamma(np.exp(s), scale=above.mean() / np.exp(s)).logpdf(above).sum())
            return shares + fit
    raise AssertionError


def max_over(function) -> float:
    return -minimize_scalar(lambda x: -function(x), bounds=(-8, 8), method="bounded", options={"xatol": 1e-9}).fun


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("seed", [0, 1])
def test_information_over_the_null_against_direct_evaluation(kind, seed):
    likelihood, rates, responses, mask, exposure = drawn(kind, seed)
    got = streamed(likelihood, rates, responses, mask, exposure)
    with torch.no_grad():
        each = likelihood.log_likelihood(rates, responses, exposure).numpy()
    for unit in range(3):
        rows = mask[:, unit].numpy()
        y, n = responses[rows, unit].numpy(), rows.sum()
        e = np.ones(n) if exposure is None else exposure[rows, 0].numpy()
        null = best_constant(likelihood, y, e, unit)
        assert got["nll"][unit] == pytest.approx(-each[rows, unit].mean(), rel=1e-9)
        assert got["bits_per_bin"][unit] == pytest.approx((each[rows, unit].sum() - null) / (math.log(2) * n), rel=1e-5)
        assert got["correlation"][unit] == pytest.approx(pearsonr(rates[rows, unit], y / e).statistic, rel=1e-9)
        if kind is NegativeBinomial:
            spikes = y.sum()
            assert got["bps"][unit] == pytest.approx((each[rows, unit].sum() - null) / (math.log(2) * spikes), rel=1e-6)
        else:
            assert np.isnan(got["bps"][unit])


def test_deviance_of_the_negative_binomial_is_the_textbook_one():
    likelihood, rates, responses, mask, exposure = drawn(NegativeBinomial)
    got = streamed(likelihood, rates, responses, mask, exposure)["d2"]
    for unit in range(3):
        rows, alpha = mask[:, unit].numpy(), likelihood.dispersion[unit].item()
        y, e = responses[rows, unit].numpy(), exposure[rows, 0].numpy()

        def deviance(mu, y=y, r=e / alpha):
            return 2 * (xlogy(y, y / mu) - (y + r) * np.log((y + r) / (mu + r))).sum()

        want = 1 - deviance(e * rates[rows, unit].numpy()) / deviance(e * y.sum() / e.sum())
        assert got[unit] == pytest.approx(want, rel=1e-8)


def test_deviance_explained_of_the_gaussian_is_r_squared():
    likelihood, rates, responses, mask, _ = drawn(Gaussian)
    got = streamed(likelihood, rates, responses, mask, None)
    for unit in range(3):
        rows = mask[:, unit].numpy()
        want = r2_score(responses[rows, unit].numpy(), rates[rows, unit].numpy())
        assert got["d2"][unit] == pytest.approx(want, rel=1e-9)


def test_a_gaussian_with_the_right_variance_gains_half_the_log_of_the_unexplained_share():
    likelihood, rates, responses, _, _ = drawn(Gaussian, n=2000)
    with torch.no_grad():
        likelihood.log_variance.copy_(((responses - rates) ** 2).mean(0).log())
    got = streamed(likelihood, rates, responses, torch.ones(2000, 1), None)
    np.testing.assert_allclose(got["bits_per_bin"], -0.5 * np.log2(1 - got["d2"]), rtol=1e-5)


def test_a_sharper_model_does_not_make_the_gaussian_null_worse():
    likelihood, rates, responses, mask, _ = drawn(Gaussian)
    sums = Sums(likelihood)
    sums.update(rates, responses, mask)
    before = likelihood.null(sums.evidence().sums)
    with torch.no_grad():
        likelihood.log_variance -= 3
    assert torch.equal(before, likelihood.null(sums.evidence().sums))


def test_the_unit_of_deconvolved_calcium_cancels_in_bits():
    likelihood, rates, responses, mask, _ = drawn(Gamma)
    got = streamed(likelihood, rates, responses, mask, None)
    with torch.no_grad():
        likelihood.log_event += math.log(50.0)
    scaled = streamed(likelihood, 50 * rates, 50 * responses, mask, None)
    np.testing.assert_allclose(scaled["bits_per_bin"], got["bits_per_bin"], rtol=1e-5)
    assert np.isnan(got["d2"]).all()


def test_calcium_below_zero_counts_as_zero():
    likelihood, rates, responses, mask, _ = drawn(Gamma)
    below = torch.where(responses == 0, -0.01, responses)
    got, want = (streamed(likelihood, rates, y, mask, None) for y in (below, responses))
    for key, value in got.items():
        np.testing.assert_array_equal(value, want[key], err_msg=key)


@pytest.mark.parametrize("value", [0.0, 0.7])
@pytest.mark.parametrize("kind", OTHERS)
def test_constant_responses_have_no_figure_that_means_nothing(kind, value):
    rates = 0.1 + torch.rand(50, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    got = streamed(kind(n_units=1), rates, torch.full((50, 1), value), torch.ones(50, 1), None)
    assert np.isnan(got["d2"]).all() and np.isnan(got["correlation"]).all()
    assert np.isfinite(got["nll"]).all()
    if kind is Gaussian or (kind is Gamma and value):
        assert np.isnan(got["bits_per_bin"]).all()


@pytest.mark.parametrize("kind", OTHERS)
def test_parts_add_up_and_masked_values_are_not_read(kind):
    likelihood, rates, responses, mask, exposure = drawn(kind)
    whole = Sums(likelihood)
    whole.update(rates, responses, mask, exposure)
    rates, responses = (torch.where(mask, x, float("nan")) for x in (rates, responses))
    parts = Sums(likelihood)
    for first, last in itertools.pairwise((0, 7, 7, 200, 500)):
        part = Sums(likelihood)
        pieces = [x[first:last] for x in (rates, responses, mask)]
        part.update(*pieces, None if exposure is None else exposure[first:last])
        parts.sums += part.sums
    torch.testing.assert_close(parts.sums, whole.sums, rtol=1e-12, atol=1e-9)
    assert parts.sums.shape == (len(parts.rows), 3)


def test_all_figures_of_a_session():
    likelihood, rates, responses, mask, exposure = drawn(NegativeBinomial)
    sums, true = Sums(likelihood), Sums(likelihood)
    sums.update(rates, responses, mask, exposure)
    true.update(rates * 1.1, responses, mask, exposure)
    figures = compute_metrics(sums.evidence())
    assert figures["bins"].dtype == np.int64 and np.isnan(figures["oracle_bps"]).all()
    with_truth = compute_metrics(replace(sums.evidence(), true_sums=true.evidence().sums))
    np.testing.assert_array_equal(with_truth["oracle_bps"], true.compute()["bps"])
    np.testing.assert_allclose(with_truth["fraction_of_oracle"], figures["bps"] / with_truth["oracle_bps"])
    y = np.random.default_rng(0).poisson(np.arange(1, 21)[:, None] * np.ones(3), (6, 20, 3)).astype(float)
    with_repeats = compute_metrics(replace(sums.evidence(), repeats=(y, np.arange(1.0, 21)[None, :, None] + 0 * y)))
    for name, function in {"cc_norm": cc_norm, "feve": feve}.items():
        np.testing.assert_array_equal(with_repeats[name], function(y, np.arange(1.0, 21)[:, None] * np.ones(3)))
    for name, function in {"cc_max": cc_max, "fev": fev, "oracle_correlation": oracle_correlation}.items():
        np.testing.assert_array_equal(with_repeats[name], function(y))
    assert np.isnan(figures["cc_norm"]).all()
