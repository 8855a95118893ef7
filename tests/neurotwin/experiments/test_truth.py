"""Experiments on twins whose weights are known find what was put in."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from neurotwin.experiments import (
    Ablation,
    ExcitingStimulus,
    ExperimentError,
    Gratings,
    Group,
    Presenter,
    ReceptiveField,
)
from neurotwin.experiments import gratings as gratings_module
from neurotwin.experiments.maps import leading_subspace, overlap, place
from neurotwin.experiments.presenter import Screen
from neurotwin.experiments.tuning import fit_contrast, fit_direction, fit_frequency, gratings, orientation_selectivity


def apart(a, b):
    return np.abs((a - b + 90) % 180 - 90)


# -- receptive fields ------------------------------------------------------------------------------------------------


def test_gradients_span_the_filters_of_energy_units(energy):
    result = ReceptiveField(n_movies=8, cutoff=0).run(energy.twin)
    found = result.arrays["filters.linear"][:, :, :, 0]
    for filters, truth in zip(found, energy.filters, strict=True):
        assert overlap(filters, truth) > 0.999
    table = result.tables["units"]
    np.testing.assert_allclose(table["explained"], 1, atol=1e-4)
    assert apart(table["orientation_deg"], np.rad2deg(energy.units.orientation)).max() < 10
    centers = np.stack([table["center_x_px"], table["center_y_px"]], 1)
    inside = np.abs(energy.units.center).max(1) < 4
    assert np.linalg.norm(centers - energy.units.center, axis=1)[inside].max() < 1
    np.testing.assert_allclose(table["center_y_deg"], -table["center_y_px"] / 16)


def test_low_passed_filters_still_overlap(energy):
    found = ReceptiveField(n_movies=8).run(energy.twin).arrays["filters.linear"][:, :, :, 0]
    assert np.median([overlap(a, b) for a, b in zip(found, energy.filters, strict=True)]) > 0.95


def test_noise_gives_the_filter_of_linear_units(linear):
    result = ReceptiveField(method="noise", n_frames=60_000, contrast=0.3).run(linear.twin)
    found = result.arrays["filters.linear"][:, :, :, 0]
    overlaps = [overlap(a, b[:1]) for a, b in zip(found, linear.filters, strict=True)]
    assert np.median(overlaps) > 0.95
    # A white-noise average estimates the mean gradient, which is half the filter, in units of pixels; the cut-off
    # takes some of it.
    squares = (linear.filters[:, 0] ** 2).sum((1, 2, 3))
    scale = (result.arrays["linear.linear"][:, :, 0] * linear.filters[:, 0]).sum((1, 2, 3)) / squares * 127
    assert ((scale > 0.35) & (scale < 0.52)).all()


def test_recorded_and_predicted_averages_of_a_perfect_twin_agree(gated):
    table = ReceptiveField(n_movies=4).run(gated.twin, [gated.prepared]).tables["units"]
    assert table["average_agreement"].shape == (2,) and np.all(np.abs(table["average_reliability"]) <= 1)


def test_overlap_is_that_of_principal_angles():
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((6, 3)))[0].T
    assert overlap(basis[:2], rng.standard_normal((2, 2)) @ basis[:2]) == pytest.approx(1)
    assert overlap(basis[:1], basis[1:]) == pytest.approx(0, abs=1e-12)
    turned = np.cos(0.3) * basis[:1] + np.sin(0.3) * basis[2:]
    assert overlap(turned, basis[:2]) == pytest.approx(np.cos(0.3) ** 2)
    samples = rng.standard_normal((50, 2)) @ basis[:2]
    assert overlap(leading_subspace(samples, 2).filters, basis[:2]) == pytest.approx(1)


def test_place_of_a_gaussian():
    x, y = np.arange(24) - 11.5, (np.arange(20) - 9.5)[:, None]
    energy = np.exp(-(((x - 2) / 2) ** 2 + ((y + 1) / 1.5) ** 2) / 2)
    cx, cy, large, small = place(energy)
    assert (cx, cy) == pytest.approx((2, -1), abs=0.02)
    assert (large, small) == pytest.approx((2, 1.5), rel=0.05)


# -- gratings --------------------------------------------------------------------------------------------------------


def best_frequency(filters, orientation, per_bin):
    """Cycles per pixel of the grating of largest amplitude, either direction of drift."""
    axis = np.arange(16) - 7.5
    along = axis * np.cos(orientation) + axis[:, None] * np.sin(orientation)
    time = np.arange(filters.shape[0])[:, None, None]

    def response(frequency):
        waves = [np.exp(2j * np.pi * (frequency * along - sign * per_bin * time)) for sign in (1, -1)]
        return -max(abs((filters * wave).sum()) for wave in waves)

    return minimize_scalar(response, bounds=(0.06, 0.3), method="bounded").x


@pytest.mark.parametrize("kind", ["linear", "energy"])
def test_gratings_find_orientation_and_frequency(kind, request):
    truth = request.getfixturevalue(kind)
    options = Gratings(temporal_frequencies=(7.5,), seconds=0.3, contrasts=(0.25, 0.5, 1.0), n_diameters=4)
    result = options.run(truth.twin)
    table = result.tables["units"]
    assert apart(table["preferred_orientation_deg"], np.rad2deg(truth.units.orientation)).max() < 8
    want = [best_frequency(f[0], a, 0.125) for f, a in zip(truth.filters, truth.units.orientation, strict=True)]
    np.testing.assert_allclose(table["preferred_spatial_frequency_cpp"], want, rtol=0.12)
    np.testing.assert_allclose(table["preferred_spatial_frequency_cpd"], 16 * table["preferred_spatial_frequency_cpp"])
    if kind == "linear":  # half-wave rectified sine: F1/F0 = π/2
        np.testing.assert_allclose(table["f1_f0"], np.pi / 2, rtol=0.1)
    else:
        assert table["f1_f0"].max() < 0.6 and not table["simple"].any()
    # A linear response doubles with contrast, an energy quadruples.
    curve = result.arrays["contrast_response_hz.linear"]
    np.testing.assert_allclose(curve[1] / curve[0], 2 if kind == "linear" else 4, rtol=0.02)


def test_direction_of_drift(linear):
    table = (
        Gratings(temporal_frequencies=(7.5,), n_diameters=0, contrasts=(), plaids=False)
        .run(linear.twin)
        .tables["units"]
    )
    selective = linear.units.direction > 0.5
    # E prefers a drift that is the same for all simulated units: towards or against their orientation.
    turn = (table["preferred_direction_deg"] - np.rad2deg(linear.units.orientation)) % 360
    forward = np.minimum(turn, 360 - turn) < 20
    assert selective.any() and len(set(forward[selective].tolist())) == 1
    assert np.corrcoef(table["dsi"], linear.units.direction)[0, 1] > 0.6


def test_both_directions_of_drift_tell_the_frequency():
    """The two curves err to opposite sides, and the units that drift one way alone keep their own peak."""
    frequencies = np.geomspace(0.05, 0.35, 9)
    bump = lambda peak: np.exp(-((np.log2(frequencies / peak) / 0.8) ** 2) / 2)  # noqa: E731
    f0 = np.ones((1, 9, 8, 2))
    f0[0, :, 2, 0], f0[0, :, 6, 0] = 1 + 5 * bump(0.15), 1 + 4.9 * bump(0.12)
    f0[0, :, 5, 1], f0[0, :, 1, 1] = 1 + 5 * bump(0.12), 1 + 0.05 * bump(0.3)
    grid = gratings_module._Grid(45.0 * np.arange(8), frequencies, np.array([4.0]))
    found = gratings_module._Preferred.of(grid, f0, np.zeros_like(f0), np.ones(2))
    np.testing.assert_allclose(found.frequency, [np.sqrt(0.15 * 0.12), 0.12], rtol=0.02)
    assert found.direction[0] == pytest.approx(90, abs=25)


def test_gratings_by_hand():
    screen = Screen((1, 8, 8), 60.0, None, 127.0, 127.0)
    movie = gratings(screen, 3, direction=np.array([90.0]), frequency=np.array([0.125]), per_bin=0.25, contrast=0.5)[
        0, :, 0
    ]
    y, t = np.arange(8) - 3.5, np.arange(3)[:, None]
    want = 127 + 63.5 * np.cos(2 * np.pi * (0.125 * y - 0.25 * t))
    np.testing.assert_allclose(movie, want[:, :, None].repeat(8, 2), atol=1e-4)
    disc = gratings(screen, 1, direction=np.zeros(1), frequency=np.zeros(1), per_bin=0.0,
                    center=np.array([[1.5, -2.5]]), radius=np.array([0.6]))[0, 0, 0]  # fmt: skip
    assert disc[1, 5] == 254 and (disc != 127).sum() == 5


def test_fits_of_curves_made_by_hand():
    theta = np.arange(16) * 22.5
    bump = lambda t, peak: np.exp(2 * (np.cos(np.deg2rad(t - peak)) - 1))  # noqa: E731
    fit = fit_direction(theta, 3 + 4 * bump(theta, 100) + bump(theta, 280))
    assert fit.preferred == pytest.approx(100, abs=0.1) and fit.r2 > 0.999
    f = np.geomspace(0.05, 0.4, 8)
    fit = fit_frequency(f, 1 + 5 * np.exp(-((np.log2(f / 0.13) / 0.7) ** 2) / 2))
    assert fit.preferred == pytest.approx(0.13, rel=1e-3) and fit.width == pytest.approx(0.7 * 2.3548, rel=1e-3)
    c = np.array([0.05, 0.1, 0.2, 0.4, 0.7, 1.0])
    assert fit_contrast(c, 2 + 9 * c**2 / (c**2 + 0.3**2)).preferred == pytest.approx(0.3, rel=1e-2)
    assert np.isnan(fit_direction(theta, np.ones(16)).preferred)
    assert orientation_selectivity(theta, np.ones((16, 1)))[0] == pytest.approx(0, abs=1e-12)


# -- exciting stimuli ------------------------------------------------------------------------------------------------


def test_the_most_exciting_movie_is_the_filter(linear):
    options = ExcitingStimulus(kind="movie", contrast=0.1, n_steps=80)
    result = options.run(linear.twin)
    norm = 0.1 * np.sqrt(linear.filters[0, 0].size)
    best = 60.0 * norm * np.sqrt((linear.filters[:, 0] ** 2).sum((1, 2, 3)))
    found = result.tables["units"]["rate_hz"]
    assert (found <= best * 1.01).all() and np.median(found / best) > 0.95 and (found / best).min() > 0.85
    np.testing.assert_allclose(result.tables["units"]["contrast"], 0.1, rtol=0.02)
    assert (result.tables["units"]["blank_hz"] == 0).all()
    movie = result.arrays["stimuli"].astype(float)[:, :, 0] - 127
    for shown, truth in zip(movie, linear.filters, strict=True):
        assert overlap(shown[None], truth[:1]) > 0.8


def test_a_still_image_beats_every_gabor(energy):
    """For energy units, the best image of a norm follows from an eigenvalue problem over the pixels."""
    result = ExcitingStimulus(kind="image", seconds=0.1, n_steps=80).run(energy.twin)
    lags, shown = energy.filters.shape[2], 6
    norm = 0.1 * 16
    for unit, filters in enumerate(energy.filters):
        matrix = np.zeros((256, 256))
        for k in range(shown):  # in the k-th bin, the image has been there for k + 1 frames
            seen = filters[:, lags - 1 - k :].sum(1).reshape(2, -1)
            matrix += seen.T @ seen / shown
        best = 60.0 * norm**2 * np.linalg.eigvalsh(matrix)[-1]
        assert 0.9 * best < result.tables["units"]["rate_hz"][unit] < 1.02 * best


def test_least_exciting_and_directions_in_population_space(energy):
    least = ExcitingStimulus(aim="least", n_steps=20, units=(0, 1)).run(energy.twin)
    most = ExcitingStimulus(n_steps=20, units=(0, 1)).run(energy.twin)
    assert (least.tables["units"]["rate_hz"] < 0.1 * most.tables["units"]["rate_hz"]).all()
    both = ExcitingStimulus(units=(0, 1), weights=(1.0, -1.0), n_steps=20).run(energy.twin)
    assert both.tables["units"]["rate_hz"][0] > 0.7 * most.tables["units"]["rate_hz"][0]
    with pytest.raises(ExperimentError, match="weights: 1 for 2 units"):
        ExcitingStimulus(units=(0, 1), weights=(1.0,)).run(energy.twin)
    with pytest.raises(ExperimentError, match="no session has the units"):
        ExcitingStimulus(units=(99,)).run(energy.twin)


# -- ablation --------------------------------------------------------------------------------------------------------


def test_ablation_reproduces_known_gains(gated):
    result = Ablation(n_bootstraps=100, modes=("median", "permuted", "zero")).run(gated.twin, [gated.prepared])
    table, data = result.tables["units"], gated.prepared
    val = np.asarray(data.split) == 1
    val &= np.arange(data.n_bins) - data.run_start >= 1
    pupil = np.asarray(data.behavior)[:, list(data.spec.behavior_names).index("pupil")][val]
    y = np.asarray(data.responses)[val].astype(float)
    rate = np.exp(gated.base + gated.gain * pupil)[:, None]
    without = np.full_like(rate, np.exp(gated.base))  # the median pupil is 0
    gain = ((y * np.log(rate / without)) - (rate - without)).sum(0) / (np.log(2) * y.sum(0))
    np.testing.assert_allclose(table["pupil.median.gain"], gain, rtol=1e-4)
    np.testing.assert_allclose(table["pupil.zero.gain"], gain, rtol=1e-4)
    np.testing.assert_allclose(table["pupil.median.gain_sd"], gated.gain * pupil.std(), rtol=1e-4)
    np.testing.assert_allclose(table["noise.median.gain"], 0, atol=1e-6)
    np.testing.assert_allclose(table["behavior.median.gain"], gain, rtol=1e-4)
    # A pupil of another trial misleads: it costs more than to know nothing.
    assert (table["pupil.permuted.gain"] > table["pupil.median.gain"]).all()
    assert (table["pupil.median.gain_low"] < gain).all() and (gain < table["pupil.median.gain_high"]).all()
    assert (table["pupil.median.gain_low"] > 0).all()
    rows = result.tables["conditions"]
    assert len(rows["unit_id"]) == 2 * 9 and set(rows["condition"]) > {"pupil.median", "behavior.zero"}


def test_ablation_needs_something_to_take_away(linear, gated):
    with pytest.raises(ExperimentError, match="needs the recordings"):
        Ablation().run(linear.twin)
    with pytest.raises(ExperimentError, match="no valid bin in the test split"):
        Ablation(split="test", modes=("median",)).run(gated.twin, [gated.prepared])


def test_presented_rates_are_the_model_s(linear):
    presenter = Presenter(linear.twin)
    (group,) = presenter.groups
    movies = torch.rand(3, 12, 1, 16, 16) * 254
    rates = presenter.rates(Group((0,), group.screen), movies)[0].detach().numpy()
    frames = movies[:, :, 0].numpy() / 127 - 1
    lags = linear.filters.shape[2]
    want = np.stack([
        np.maximum(np.einsum("nthw,uthw->nu", frames[:, t : t + lags], linear.filters[:, 0]), 0)
        for t in range(12 - lags + 1)
    ], 1)  # fmt: skip
    np.testing.assert_allclose(rates, want, rtol=1e-3, atol=1e-4)
