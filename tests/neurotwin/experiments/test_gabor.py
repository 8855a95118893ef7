"""A Gabor that was put in is found, whatever its phase, its drift and the low-pass."""

import numpy as np
import pytest
import torch

from neurotwin.experiments import ReceptiveField
from neurotwin.experiments.gabor import fit_gabor, measure_gabor, quadrature_pair
from neurotwin.experiments.maps import Subspace, leading_subspace, low_passed, overlap
from neurotwin.experiments.presenter import Screen

TRUE = {"x": 2.0, "y": -1.5, "along": 2.2, "across": 3.1, "orientation": 35.0, "frequency": 0.16}


def true_filters(drift: float) -> np.ndarray:
    """E and O, (2, 8, 1, 24, 28), of the Gabor above, written out by hand."""
    x, y = np.arange(28) - 13.5 - TRUE["x"], (np.arange(24) - 11.5 - TRUE["y"])[:, None]
    angle = np.deg2rad(TRUE["orientation"])
    varies, bars = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    envelope = np.exp(-((varies / TRUE["along"]) ** 2) / 2 - (bars / TRUE["across"]) ** 2 / 2)
    phase = 2 * np.pi * TRUE["frequency"] * varies
    t = np.arange(8)[:, None, None, None]
    window = np.exp(-(((t - 5) / 1.5) ** 2) / 2)
    return np.stack([window * envelope * np.cos(phase - drift * t), window * envelope * np.sin(phase - drift * t)])


@pytest.mark.parametrize("drift", [0.0, 0.8, -0.8])
@pytest.mark.parametrize("cutoff", [0.0, 0.2])
def test_a_gabor_among_noise_is_found(drift: float, cutoff: float) -> None:
    rng, truth = np.random.default_rng(1), true_filters(drift)
    samples = np.einsum("nk,k...->n...", rng.standard_normal((64, 2)), truth)
    samples += 0.3 * truth.std() * rng.standard_normal(samples.shape)
    subspace = leading_subspace(low_passed(samples, cutoff), 8)
    found = fit_gabor(subspace, cutoff)
    for name, value in TRUE.items():
        assert getattr(found, name) == pytest.approx(value, rel=0.04, abs=0.1), name
    assert overlap(found.filters, truth) > 0.98
    flat = found.filters.reshape(2, -1)
    np.testing.assert_allclose(flat @ flat.T, np.eye(2), atol=1e-9)
    held = low_passed(found.filters, cutoff).reshape(2, -1)
    basis = np.linalg.qr(held.T)[0]
    share = (subspace.filters.reshape(8, -1) @ basis) ** 2 * subspace.strengths[:, None]
    assert found.explained == pytest.approx(share.sum(), rel=0.01)
    assert found.explained > 0.5


def test_a_drift_the_other_way_is_another_pair() -> None:
    forth, back = true_filters(0.8), true_filters(-0.8)
    unit = leading_subspace(forth, 2)
    assert overlap(fit_gabor(unit).filters, forth) > 0.98 > 0.5 > overlap(fit_gabor(unit).filters, back)


@pytest.mark.parametrize("phase", [0.0, 60.0, 90.0])
def test_one_filter_of_any_phase_is_enough(phase: float) -> None:
    even, odd = true_filters(0.0)
    one = np.cos(np.deg2rad(phase)) * even + np.sin(np.deg2rad(phase)) * odd
    found = fit_gabor(leading_subspace(one[None], 1))
    # One image leaves its partner free, so that size and frequency can be traded for one another.
    assert found.frequency == pytest.approx(TRUE["frequency"], rel=0.15)
    assert found.orientation == pytest.approx(TRUE["orientation"], abs=3)
    assert found.explained > 0.97
    assert overlap(one[None], found.filters) == pytest.approx(found.explained, abs=1e-6)


def test_the_pair_has_the_stated_phases_and_no_mean() -> None:
    values = torch.tensor([0.5, 0.5, np.log(3), np.log(2), 0.0, np.log(0.125)], dtype=torch.float64)
    even, odd = quadrature_pair(values, 16, 16).numpy()
    assert abs(even.sum()) < 1e-9 and abs(odd.sum()) < 1e-9
    assert np.unravel_index(even.argmax(), even.shape) == (8, 8)
    # Odd is positive to the right of its centre, x = 0.5, where its carrier has turned by less than half a cycle.
    assert odd[8, 9:11].min() > 0 > odd[8, 6:8].max()


def test_columns_are_in_degrees_where_they_are_known_and_nan_where_nothing_was_found() -> None:
    found = fit_gabor(leading_subspace(true_filters(0.0), 2))
    row = measure_gabor(found, Screen((1, 24, 28), 120.0, 20.0, 127.0, 127.0))
    assert row["gabor_spatial_frequency_cpd"] == pytest.approx(20 * row["gabor_spatial_frequency_cpp"])
    assert row["gabor_center_y_deg"] == pytest.approx(-row["gabor_center_y_px"] / 20)
    assert row["gabor_size_across_deg"] == pytest.approx(row["gabor_size_across_px"] / 20)
    empty = fit_gabor(Subspace(np.zeros((2, 8, 1, 24, 28)), np.zeros(2)))
    assert np.isnan(empty.frequency) and np.isnan(empty.explained) and not empty.filters.any()


def test_receptive_field_fits_gabors_of_units_whose_truth_is_known(energy) -> None:
    result = ReceptiveField(n_movies=8).run(energy.twin)
    table, pairs = result.tables["units"], result.arrays["gabor_filters.linear"][:, :, :, 0]
    inside = np.abs(energy.units.center).max(1) < 4
    assert inside.sum() >= 2
    assert min(overlap(a, b) for a, b in zip(pairs[inside], energy.filters[inside], strict=True)) > 0.97
    np.testing.assert_allclose(table["gabor_spatial_frequency_cpp"][inside], energy.units.frequency[inside], rtol=0.1)
    apart = (table["gabor_orientation_deg"] - np.rad2deg(energy.units.orientation) + 90) % 180 - 90
    assert np.abs(apart[inside]).max() < 5
    assert result.axes["gabor_filters.linear"] == ("unit.linear", "filter", "lag", "channel", "y", "x")
