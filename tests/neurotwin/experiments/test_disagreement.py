"""Experiments on an ensemble: of the mean of its members, and how far these disagree."""

import numpy as np
import pytest
import torch

from neurotwin.experiments import Presenter, options_of
from neurotwin.models import Ensemble

from .conftest import make_twin


def scaled(factor: float, names=("linear",)):
    """A linear twin whose rates are `factor` times the usual ones."""
    twin = make_twin("linear", names).twin
    with torch.no_grad():
        for module in twin.per_session:
            module.readout.features.mul_(factor)
    return twin


@pytest.fixture(scope="module")
def ensemble():
    return Ensemble([scaled(1.0), scaled(3.0)])


QUICK = {"temporal_frequencies": (7.5,), "seconds": 0.2, "contrasts": (), "n_diameters": 0, "plaids": False}


def test_gratings_of_an_ensemble_and_their_disagreement(ensemble, tmp_path):
    one, both = (options_of("gratings", QUICK).run(twin) for twin in (scaled(1.0), ensemble))
    units = both.tables["units"]
    # Members differ by a factor of 3, so the mean is twice the smaller, and so is what one deviates from it at most.
    np.testing.assert_allclose(units["response_hz"], 2 * one.tables["units"]["response_hz"], rtol=1e-4)
    spread = both.tables["disagreement"]
    np.testing.assert_allclose(spread["response_hz"], one.tables["units"]["response_hz"], rtol=1e-4)
    for same in ("preferred_orientation_deg", "preferred_spatial_frequency_cpp", "osi"):
        np.testing.assert_allclose(spread[same], 0, atol=1e-2)
    np.testing.assert_array_equal(spread["unit_id"], units["unit_id"])
    assert "simple" not in spread and "disagreement" not in one.tables
    folder = both.write(tmp_path / "gratings")
    assert (folder / "disagreement.csv").is_file()


def test_angles_disagree_around_the_circle():
    kind = type(options_of("gratings", {}))
    assert kind.periods["preferred_orientation_deg"] == 180
    experiment = options_of("gratings", QUICK)
    tables = iter([{"preferred_orientation_deg": np.array([angle, 40.0])} for angle in (178.0, 2.0)])

    class Alone:
        alone = (None, None)

    object.__setattr__(experiment, "measure", lambda presenter: type("R", (), {"tables": {"units": next(tables)}}))
    units = {"session": np.array(["a", "a"]), "unit_id": np.array([1, 2]), "preferred_orientation_deg": np.zeros(2)}
    spread = experiment._disagreement(Alone(), units)["preferred_orientation_deg"]
    np.testing.assert_allclose(spread, [2.0, 0.0], atol=0.01)  # and not 88


def test_one_stimulus_is_shown_to_all_members(ensemble):
    options = options_of("exciting_stimulus", {"n_steps": 4, "n_starts": 1, "units": (0, 3)})
    result = options.run(ensemble)
    units = result.tables["units"]
    # Rates of r and 3r: the mean is 2r, the deviation r.
    np.testing.assert_allclose(units["disagreement_hz"], units["rate_hz"] / 2, rtol=1e-4)
    assert "disagreement" not in result.tables


def test_similarity_of_units_is_the_mean_of_the_members():
    energy, linear = make_twin("energy").twin, make_twin("linear").twin
    options = options_of("population", {"n_movies": 4})
    alone = [options.run(twin).arrays["similarity"] for twin in (energy, linear)]
    both = options.run(Ensemble([energy, linear]))
    np.testing.assert_allclose(both.arrays["similarity"], np.mean(alone, axis=0), atol=1e-6)
    assert set(both.tables["disagreement"]) == {"session", "unit_id", "similarity_within"}


def test_ablation_of_members_of_which_one_sees_behaviour(gated):
    """Its gain is halved in the mean of rates only where the other member is as loud; the base is equal here."""
    deaf = type(gated.twin)(gated.twin.config, gated.twin.sessions).eval()
    deaf.load_state_dict(gated.twin.state_dict())
    with torch.no_grad():
        deaf.per_session[0].readout.features.zero_()
    ensemble = Ensemble([gated.twin, deaf])
    options = options_of("ablation", {"n_bootstraps": 5, "modes": ["median"]})
    table = options.run(ensemble, [gated.prepared]).tables
    levels = np.array([-1.0, 0.0, 1.0])
    # gain_sd is that of log ((e^{b + g x} + e^b) / 2) about the value at the median of x, over the bins of each level.
    data = gated.prepared
    used = (np.asarray(data.split) == 1) & (np.asarray(data.n_valid) > 0)
    column = list(data.spec.behavior_names).index("pupil")
    x = np.asarray(data.behavior)[used, column]
    assert set(np.unique(x)) == set(levels)
    expected = np.log((np.exp(gated.gain * x) + 1) / 2).std()
    np.testing.assert_allclose(table["units"]["pupil.median.gain_sd"], expected, rtol=1e-3)
    alone = [options.run(twin, [gated.prepared]).tables["units"]["pupil.median.gain"] for twin in (gated.twin, deaf)]
    np.testing.assert_allclose(table["disagreement"]["pupil.median.gain"], np.std(alone, axis=0), atol=1e-6)


def test_sessions_that_see_alike_share_a_pass_of_each_member():
    names = ("one", "two")
    presenter = Presenter(Ensemble([scaled(1.0, names), scaled(3.0, names)]))
    (group,) = presenter.groups
    assert group.sessions == (0, 1)
