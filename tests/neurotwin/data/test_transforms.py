"""Transforms against slow references and formulas: one sum a value, as the equations stand."""

import cmath
import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from neurotwin.config import DatasetConfig
from neurotwin.config.dialect import settle
from neurotwin.data.kernels import AdaptationParams, RaisedCosineParams, adaptation_filters, raised_cosine_basis
from neurotwin.data.pipelines import apply_pipelines, behavior_names, exposed_shapes, fit_pipelines
from neurotwin.models.frontend import DynamicalAdaptation
from neurotwin.models.stages import Maps

RUNS = np.array([[0, 9], [9, 16]])


@pytest.fixture
def rng():
    return np.random.default_rng(4)


def config_of(*ops, source="stim", expose_as="stim", **keys) -> DatasetConfig:
    return DatasetConfig(transforms={"x": {"source": source, "ops": list(ops), "expose_as": expose_as}}, **keys)


def looks_ahead(config: DatasetConfig) -> bool:
    """Whether a run says that the pipeline's bins depend on later ones."""
    return any("ahead" in text or "after it" in text for _, text in settle(config))


def applied(config: DatasetConfig, *, bin_ms: float | None = None, **signals: np.ndarray) -> np.ndarray:
    fitted = fit_pipelines(config, signals, RUNS, np.ones(16, bool), bin_ms=bin_ms)
    return next(iter(apply_pipelines(config, signals, runs=RUNS, fitted=fitted, bin_ms=bin_ms).values()))


def slow_adaptation(light: np.ndarray, p: AdaptationParams, bin_ms: float) -> list[float]:
    """One pixel's response, term by term: Clark et al. 2013, equations 15 to 17 with τ_r = 0."""

    def kernel(order: float, tau: float) -> list[float]:
        values = [(k * bin_ms / tau) ** order * math.exp(-k * bin_ms / tau) for k in range(p.filter_length)]
        return [value / sum(values) for value in values]

    fast, slow = kernel(p.n_y, p.tau_y_ms), kernel(p.n_z, p.tau_z_ms)
    response = []
    for t in range(len(light)):
        y = z = 0.0
        for k in range(p.filter_length):
            s = light[max(t - k, 0)]  # before the trial, its first frame
            y += fast[k] * s
            z += (p.gamma * fast[k] + (1 - p.gamma) * slow[k]) * s
        response.append(p.alpha * y / (1 + p.beta * z))
    return response


ADAPTATION = {"alpha": 2.0, "beta": 1.5, "gamma": 0.3, "tau_y_ms": 12, "tau_z_ms": 40, "n_y": 3, "filter_length": 7}


def test_dacones_are_the_papers_equations_pixel_by_pixel_within_trials(rng):
    stim = rng.uniform(0, 3, (16, 2, 3))
    params = AdaptationParams(**ADAPTATION)
    response = applied(config_of({"dacones": ADAPTATION}), stim=stim, bin_ms=1000 / 120)
    for start, stop in RUNS:
        for i in range(2):
            for j in range(3):
                expected = slow_adaptation(stim[start:stop, i, j], params, 1000 / 120)
                np.testing.assert_allclose(response[start:stop, i, j], expected, rtol=1e-5)


def test_dacones_are_the_frontend_with_fixed_parameters(rng):
    params = AdaptationParams(**ADAPTATION)
    stim = rng.normal(0, 2, (16, 2, 3)).astype(np.float32)  # light below 0 too: both have the same floor
    seen = applied(config_of({"dacones": ADAPTATION}), stim=stim, bin_ms=1000 / 120)
    frontend = DynamicalAdaptation(params, Maps(1, 2, 3, bin_rate=120.0))
    expected = frontend(torch.from_numpy(stim[:9])[None, None])[0][0, 0].detach()
    np.testing.assert_allclose(seen[6:9], expected, rtol=1e-4, atol=1e-6)


def test_adaptation_filters_have_sum_one_and_orders_of_zero():
    fast, slow = adaptation_filters(AdaptationParams(n_y=0, n_z=0, filter_length=5), 10.0)
    np.testing.assert_allclose([fast.sum(), slow.sum()], 1)
    np.testing.assert_allclose(fast[1:] / fast[:-1], math.exp(-10 / 5), err_msg="an exponential from the newest bin on")


def test_dacones_need_the_width_of_a_bin():
    with pytest.raises(ValueError, match="give `sampling`"):
        applied(config_of("dacones"), stim=np.zeros((16, 2, 2)))


def slow_whitening(part: np.ndarray, f_0: float, n: float) -> np.ndarray:
    """The discrete Fourier transform by its definition, gain |f| exp(−(|f|/f₀)ⁿ), and back."""
    sizes = part.shape
    points = list(np.ndindex(*sizes))
    result = np.zeros(sizes)
    for k in points:
        coefficient = sum(
            part[x] * cmath.exp(-2j * math.pi * sum(a * b / s for a, b, s in zip(k, x, sizes, strict=True)))
            for x in points
        )
        frequency = [(a if a < (s + 1) // 2 else a - s) / s for a, s in zip(k, sizes, strict=True)]
        radius = math.sqrt(sum(f**2 for f in frequency))
        weight = coefficient * radius * math.exp(-((radius / f_0) ** n)) / len(points)
        for x in points:
            wave = cmath.exp(2j * math.pi * sum(a * b / s for a, b, s in zip(k, x, sizes, strict=True)))
            result[x] += (weight * wave).real
    return result


@pytest.mark.parametrize("channels", [None, 2])
def test_fftwhitening_is_its_definition_for_each_trial_and_channel(channels, rng):
    stim = rng.normal(size=(16, 4, 3) if channels is None else (16, channels, 4, 3))
    config = config_of({"fftwhitening": {"f_0": 0.3, "n": 2}})
    out = applied(config, stim=stim)
    assert looks_ahead(config) and out.shape == stim.shape
    for start, stop in RUNS:
        for channel in [...] if channels is None else [(slice(None), c) for c in range(channels)]:
            expected = slow_whitening(stim[start:stop][channel], 0.3, 2)
            np.testing.assert_allclose(out[start:stop][channel], expected, atol=1e-6)


def test_fftwhitening_is_for_frames(rng):
    with pytest.raises(ValueError, match="is for frames"):
        applied(config_of("fftwhitening", source="pupil", expose_as="behavior"), pupil=rng.normal(size=(16, 2)))


def each_run(function):
    return lambda x: np.concatenate([function(x[start:stop]) for start, stop in RUNS])


FORMULAS = {
    "pixelnorm": ("pixelnorm", lambda x: (x - 127) / 255),
    "mul": ({"mul": {"factor": -2}}, lambda x: -2 * x),
    "symlog": ("symlog", lambda x: np.sign(x) * np.log(1 + abs(x))),
    "maxnorm": ("maxnorm", lambda x: x / abs(x).max()),
    "cast": ({"cast": {"dtype": "int16"}}, np.trunc),
    "splitrelu": ("splitrelu", lambda x: np.concatenate([x * (x > 0), -x * (x < 0)], axis=-1)),
    "splitrelu of an axis": (
        {"splitrelu": {"split_dim": 1, "trainable_gain": False}},
        lambda x: np.concatenate([x * (x > 0), -x * (x < 0)], axis=1),
    ),
    "diff": ("diff", each_run(lambda x: np.concatenate([0 * x[:1], x[1:] - x[:-1]]))),
    "diff of an axis": (
        {"diff": {"axis": 1}},
        lambda x: np.concatenate([0 * x[:, :1], x[:, 1:] - x[:, :-1]], axis=1),
    ),
    "smooth": (
        {"smooth": {"sigma": 1.5}},
        each_run(lambda x: ndimage.gaussian_filter1d(x, 1.5, axis=0, mode="nearest")),
    ),
}


@pytest.mark.parametrize("shape", [(2,), (2, 3), (2, 4, 3)], ids=str)
def test_each_operation_is_its_formula_within_trials(shape, rng):
    x = rng.normal(0, 90, (16, *shape))
    for name, (op, formula) in FORMULAS.items():
        np.testing.assert_allclose(applied(config_of(op), stim=x), formula(x), rtol=1e-5, atol=1e-4, err_msg=name)
        assert looks_ahead(config_of(op)) == (name == "smooth"), name
    signal = x.reshape(16, -1)
    unsqueezed = applied(config_of({"unsqueeze": {"dim": 1}}, source="robs", expose_as="robs"), robs=signal)
    np.testing.assert_array_equal(unsqueezed, signal[:, None])
    assert applied(config_of({"unsqueeze": {"dim": 1}}), stim=x).shape == x.shape  # whose axes are known anyway


def test_columns_are_selected_by_number(rng):
    signal = rng.normal(size=(16, 4))
    config = config_of({"select_units": {"indices": [2, 0]}}, source="p", expose_as="behavior")
    np.testing.assert_array_equal(applied(config, p=signal), signal[:, [2, 0]].astype(np.float32))


def test_constants_come_from_the_training_part_and_are_used_as_they_are(rng):
    config = config_of("maxnorm", source="p", expose_as="behavior")
    signal = np.arange(16.0) - 3
    train = np.arange(16) < 8
    fitted = fit_pipelines(config, {"p": signal}, RUNS, train)
    assert fitted == {"x.0": 4.0}
    out = apply_pipelines(config, {"p": 10 * signal}, runs=RUNS, fitted=fitted)["behavior"]
    np.testing.assert_allclose(out[:, 0], 10 * signal / 4, rtol=1e-6)
    with pytest.raises(ValueError, match="maxnorm, but the signal is 0"):
        fit_pipelines(config, {"p": 0 * signal}, RUNS, train)


# --- temporal bases -------------------------------------------------------------------------------------------------


def basis_op(**params):
    return {"temporal_basis": {"num_cosine_funcs": 3, "history_bins": 6, "peak_range_ms": (10, 40), **params}}


@pytest.mark.parametrize("causal", [True, False])
def test_temporal_basis_is_a_sum_over_the_past_and_if_asked_the_future_within_trials(causal, rng):
    x = rng.normal(size=(16, 2))
    params = {"num_delta_funcs": 1, "causal": causal}
    config = config_of(basis_op(**params), source="p", expose_as="behavior")
    out = applied(config, p=x, bin_ms=5.0)
    functions = RaisedCosineParams(**basis_op(**params)["temporal_basis"])
    kernels = raised_cosine_basis(functions, 5.0)  # the oldest bin first
    after = 0 if causal else 5
    assert kernels.shape == (4, 6 + after)
    slow = np.zeros((16, 4, 2))
    for start, stop in RUNS:
        for t in range(start, stop):
            for lag in range(-after, 6):
                slow[t] += kernels[:, 5 - lag, None] * x[np.clip(t - lag, start, stop - 1)]
    np.testing.assert_allclose(out, slow.reshape(16, 8), rtol=1e-4, atol=1e-5)
    assert looks_ahead(config) != causal


@pytest.mark.parametrize("n_functions", [1, 2, 5])
def test_a_basis_that_is_not_causal_peaks_before_and_after_the_bin(n_functions):
    params = RaisedCosineParams(num_cosine_funcs=n_functions, history_bins=20, peak_range_ms=(20, 60), causal=False)
    basis = raised_cosine_basis(params, 10.0)
    assert basis.shape == (n_functions, 39)
    peaks = 19 - basis.argmax(axis=1)  # bins before now; negative: after
    assert (peaks > 0).sum() == n_functions - n_functions // 2 and (peaks < 0).sum() == n_functions // 2
    assert set(np.abs(peaks)) <= {2, 3, 4, 5, 6}
    np.testing.assert_allclose(np.linalg.norm(basis, axis=1), 1)


def test_what_is_predicted_or_shown_is_not_looked_at_ahead():
    for source in ("stim", "robs"):
        config = config_of(basis_op(causal=False), source=source, expose_as=source)
        with pytest.raises(ValueError, match="causal: false lets a prediction see the future"):
            applied(config, **{source: np.ones((16, 2))}, bin_ms=5.0)


def test_times_are_in_ms_of_the_data_unless_the_file_says_otherwise(rng):
    x = rng.normal(size=(16, 2))
    of_data = applied(config_of(basis_op(), source="p", expose_as="behavior"), p=x, bin_ms=5.0)
    stated = config_of(basis_op(bin_size_ms=5.0), source="p", expose_as="behavior")
    for bin_ms in (5.0, 20.0, None):
        np.testing.assert_array_equal(applied(stated, p=x, bin_ms=bin_ms), of_data)
    other = applied(config_of(basis_op(), source="p", expose_as="behavior"), p=x, bin_ms=20.0)
    assert np.abs(other - of_data).max() > 0.01
    with pytest.raises(ValueError, match="give bin_size_ms"):
        applied(config_of(basis_op(), source="p", expose_as="behavior"), p=x)


def test_outputs_of_a_basis_are_normalised_by_the_training_part(rng):
    x = rng.normal(3, 7, (16, 2))
    plain = applied(config_of(basis_op(), source="p", expose_as="behavior"), p=x, bin_ms=5.0)
    config, train = config_of(basis_op(batch_norm=True), source="p", expose_as="behavior"), np.arange(16) % 3 > 0
    fitted = fit_pipelines(config, {"p": x}, RUNS, train, bin_ms=5.0)
    out = apply_pipelines(config, {"p": x}, runs=RUNS, fitted=fitted, bin_ms=5.0)["behavior"]
    expected = (plain - plain[train].mean(0)) / plain[train].std(0)
    np.testing.assert_allclose(out, expected, rtol=1e-3, atol=1e-4)
    again = apply_pipelines(config, {"p": 2 * x}, runs=RUNS, fitted=fitted, bin_ms=5.0)["behavior"]
    np.testing.assert_allclose(again, (2 * plain - plain[train].mean(0)) / plain[train].std(0), rtol=1e-3, atol=1e-4)


def test_over_the_stimulus_the_functions_are_channels(rng):
    kernels = raised_cosine_basis(RaisedCosineParams(**basis_op()["temporal_basis"]), 5.0)
    for shape in ((), (7,), (2, 3), (4, 2, 3)):
        stim = rng.normal(size=(16, *shape))
        out = applied(config_of(basis_op()), stim=stim, bin_ms=5.0)
        channels, frame = (shape[0], shape[1:]) if len(shape) == 3 else (1, (*shape, 1, 1)[:2])
        assert out.shape == (16, 3 * channels, *frame), shape
        flat = stim.reshape(16, channels, -1)
        expected = np.stack([sum(k[5 - lag] * flat[8 - lag] for lag in range(6)) for k in kernels])
        np.testing.assert_allclose(out[8].reshape(3, channels, -1), expected, rtol=1e-4, atol=1e-5, err_msg=str(shape))


def test_raised_cosines_peak_where_they_should():
    params = RaisedCosineParams(num_cosine_funcs=4, history_bins=200, peak_range_ms=(10, 150))
    basis = raised_cosine_basis(params, 1.0)
    peaks = 199 - basis.argmax(axis=1)
    np.testing.assert_allclose(peaks, np.exp(np.linspace(np.log(11), np.log(151), 4)) - 1, atol=1)
    np.testing.assert_allclose(np.linalg.norm(basis, axis=1), 1)
    orthogonal = raised_cosine_basis(params.model_copy(update={"orthogonalize": True}), 1.0)
    np.testing.assert_allclose(orthogonal @ orthogonal.T, np.eye(4), atol=1e-8)
    linear = raised_cosine_basis(params.model_copy(update={"log_spacing": False}), 1.0)
    np.testing.assert_allclose(199 - linear.argmax(axis=1), np.linspace(10, 150, 4), atol=1)
    late = raised_cosine_basis(params.model_copy(update={"chomp": 30, "num_delta_funcs": 2}), 1.0)
    assert not late[:, -30:].any() and late[:2, -32:-30].tolist() == [[0, 1], [1, 0]]


def test_raised_cosines_are_the_papers_equation_value_by_value():
    """b(t) = (1 + cos(clip((g(t) − c) π / (2 Δ), ±π))) / 2 with g(t) = log(t + 1 bin): Pillow et al. 2008."""
    for log_spacing in (True, False):
        params = RaisedCosineParams(
            num_cosine_funcs=4, history_bins=30, peak_range_ms=(8, 90), normalize=False, log_spacing=log_spacing
        )
        basis = raised_cosine_basis(params, 4.0)
        warp = (lambda t: math.log(t + 4)) if log_spacing else float
        spacing = (warp(90) - warp(8)) / 3
        for number in range(4):
            for lag in range(30):
                phase = (warp(4 * lag) - warp(8) - number * spacing) * math.pi / (2 * spacing)
                expected = (1 + math.cos(min(max(phase, -math.pi), math.pi))) / 2
                assert basis[number, 29 - lag] == pytest.approx(expected, abs=1e-9), (log_spacing, number, lag)


# --- from pipelines to inputs ---------------------------------------------------------------------------------------


def test_behavior_lags_are_stacked_and_stay_in_their_run():
    config = config_of(source="p", expose_as="behavior", keys_lags={"behavior": [0, 2]})
    out = apply_pipelines(config, {"p": np.arange(6.0)}, runs=np.array([[0, 3], [3, 6]]), fitted={})["behavior"]
    np.testing.assert_array_equal(out, np.transpose([[0, 1, 2, 3, 4, 5], [0, 0, 0, 3, 3, 3]]))


def test_units_are_selected_by_their_ids_in_the_order_asked_for(rng):
    robs = rng.poisson(1, (16, 4))
    config = config_of({"select_units": {"indices": "cids"}}, source="robs", expose_as="robs", cids=[9, 2])
    selected = applied(config, robs=robs, unit_ids=np.array([2, 5, 9, 11]))
    np.testing.assert_array_equal(selected, robs[:, [2, 0]])


def test_outputs_of_one_name_are_stacked_in_order_and_know_where_they_come_from(rng):
    pupil, gaze = rng.random(16), rng.normal(size=(16, 2))
    pipeline = {"expose_as": "behavior", "concatenate": True}
    config = DatasetConfig(
        keys_lags={"behavior": [0, 1]},
        transforms={
            "gaze": pipeline | {"source": "eyepos", "ops": ["splitrelu"]},
            "size": pipeline | {"source": "pupil", "ops": [{"mul": {"factor": 3}}]},
        },
    )
    signals = {"pupil": pupil, "eyepos": gaze}
    out = apply_pipelines(config, signals, runs=RUNS, fitted={})["behavior"]
    assert behavior_names(config, signals) == ("gaze", "gaze", "gaze", "gaze", "size") * 2
    assert exposed_shapes(config, signals) == {"behavior": {"gaze": (4,), "size": (1,)}}
    np.testing.assert_allclose(out[:, 4], 3 * pupil, rtol=1e-6)
    np.testing.assert_allclose(out[:, 0], np.maximum(gaze[:, 0], 0), rtol=1e-6)
    before = np.r_[0, 0:8, 9, 9:15]  # one bin ago, the first of a trial itself
    np.testing.assert_allclose(out[:, 5:], out[before, :5])
