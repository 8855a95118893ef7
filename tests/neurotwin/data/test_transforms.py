"""Transforms of frames and shapes against slow references: one sum a value, as the equations stand."""

import cmath
import math

import numpy as np
import pytest
import torch

from neurotwin.config import DatasetConfig, DynamicalAdaptationParams
from neurotwin.data.transforms import adaptation_filters, apply_pipelines, behavior_names, exposed_shapes, fit_pipelines
from neurotwin.models.frontend import DynamicalAdaptation
from neurotwin.models.stages import Maps

RUNS = np.array([[0, 9], [9, 16]])


@pytest.fixture
def rng():
    return np.random.default_rng(4)


def config_of(*ops, source="stim", expose_as="stim", **keys) -> DatasetConfig:
    return DatasetConfig(transforms={"x": {"source": source, "ops": list(ops), "expose_as": expose_as}}, **keys)


def applied(config: DatasetConfig, **signals: np.ndarray) -> np.ndarray:
    fitted = fit_pipelines(config, signals, RUNS, np.ones(16, bool))
    return next(iter(apply_pipelines(config, signals, runs=RUNS, fitted=fitted).values()))


def slow_adaptation(light: np.ndarray, p: DynamicalAdaptationParams, bin_ms: float) -> list[float]:
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
    config = config_of({"dacones": ADAPTATION}, sampling={"source_rate": 240, "target_rate": 120})
    params = DynamicalAdaptationParams(**ADAPTATION)
    response = applied(config, stim=stim)
    for start, stop in RUNS:
        for i in range(2):
            for j in range(3):
                expected = slow_adaptation(stim[start:stop, i, j], params, 1000 / 120)
                np.testing.assert_allclose(response[start:stop, i, j], expected, rtol=1e-5)


def test_dacones_are_the_frontend_with_fixed_parameters(rng):
    params = DynamicalAdaptationParams(**ADAPTATION)
    stim = rng.normal(0, 2, (16, 2, 3)).astype(np.float32)  # light below 0 too: both have the same floor
    config = config_of({"dacones": ADAPTATION}, sampling={"source_rate": 120, "target_rate": 120})
    frontend = DynamicalAdaptation(params, Maps(1, 2, 3, bin_rate=120.0))
    seen = frontend(torch.from_numpy(stim[:9])[None, None])[0, 0].detach()
    np.testing.assert_allclose(applied(config, stim=stim)[6:9], seen, rtol=1e-4, atol=1e-6)


def test_adaptation_filters_have_sum_one_and_orders_of_zero():
    fast, slow = adaptation_filters(DynamicalAdaptationParams(n_y=0, n_z=0, filter_length=5), 10.0)
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
def test_fftwhitening_is_its_definition_for_each_trial_and_channel(channels, rng, caplog):
    stim = rng.normal(size=(16, 4, 3) if channels is None else (16, channels, 4, 3))
    out = applied(config_of({"fftwhitening": {"f_0": 0.3, "n": 2}}), stim=stim)
    assert "looks ahead" in caplog.text and out.shape == stim.shape
    for start, stop in RUNS:
        for channel in [...] if channels is None else [(slice(None), c) for c in range(channels)]:
            expected = slow_whitening(stim[start:stop][channel], 0.3, 2)
            np.testing.assert_allclose(out[start:stop][channel], expected, atol=1e-6)


def test_fftwhitening_is_for_frames(rng):
    with pytest.raises(ValueError, match="is for frames"):
        applied(config_of("fftwhitening", source="pupil", expose_as="behavior"), pupil=rng.normal(size=(16, 2)))


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        ({"unsqueeze": {"dim": 1}}, lambda x: x[:, None]),
        ({"cast": {"dtype": "int16"}}, lambda x: np.trunc(x)),
        ({"mul": {"factor": -2}}, lambda x: -2 * x),
        ("pixelnorm", lambda x: (x - 127) / 255),
        ({"diff": {"axis": 2}}, lambda x: np.concatenate([0 * x[..., :1], x[..., 1:] - x[..., :-1]], axis=-1)),
        ({"splitrelu": {"split_dim": 1}}, lambda x: np.concatenate([x * (x > 0), -x * (x < 0)], axis=1)),
        ("maxnorm", lambda x: x / abs(x).max()),
    ],
)
def test_what_frames_become(op, expected, rng):
    stim = rng.normal(0, 90, (16, 2, 3))
    np.testing.assert_allclose(applied(config_of(op), stim=stim), expected(stim), rtol=1e-5, atol=1e-4)


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
