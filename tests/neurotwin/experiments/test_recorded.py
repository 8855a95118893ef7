"""Experiments on the recording itself: repeats, events, another gaze, and how similar units are."""

import numpy as np
import pytest
import torch

from neurotwin.config import DatasetConfig, ModelConfig
from neurotwin.data.arrange import modelled_bins
from neurotwin.data.prepare import open_session, prepare
from neurotwin.data.simulate import simulate_session
from neurotwin.experiments import PSTH, Counterfactual, Events, ExperimentError, Population, Result
from neurotwin.experiments.counterfactual import _with_gaze, other_gaze
from neurotwin.experiments.psth import _figures
from neurotwin.experiments.recorded import behavior_held, predicted, recorded
from neurotwin.experiments.saccades import eye_velocity, find_saccades
from neurotwin.models import TwinModel

TRANSFORMS = {
    "stim": {"source": "stim", "ops": ["pixelnorm"]},
    "eyevel": {"source": "eyevel", "ops": [{"mul": {"factor": 0.02}}], "expose_as": "behavior", "concatenate": True},
    "pupil": {"source": "pupil", "ops": ["maxnorm"], "expose_as": "behavior", "concatenate": True},
}


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """A short demo session at half of its rate, and a twin of it as it is drawn."""
    path = tmp_path_factory.mktemp("demo") / "ada_demo1.safetensors"
    simulate_session("ada_demo1", n_trials={"backimage": 8, "gaborium": 1, "fixrsvp": 6}).save(path)
    config = DatasetConfig.model_validate({
        "session": "ada_demo1", "path": str(path), "sampling": {"source_rate": 240, "target_rate": 120},
        "keys_lags": {"stim": ["0..7"]}, "transforms": TRANSFORMS,
    })  # fmt: skip
    data = prepare([config])
    model = ModelConfig.model_validate({
        "frontend": {"type": "learnable_temporal", "params": {"kernel_size": 8, "num_channels": 2}},
        "convnet": {"type": "vanilla", "params": {"channels": [6], "block_configs": [
            {"conv_params": {"kernel_size": [1, 7, 7], "stride": [1, 2, 2]}}
        ]}},
        "modulator": {"type": "concat"},
    })  # fmt: skip
    twin = TwinModel(model, [data[0].spec])
    twin.initialise([data[0].statistics()])
    return twin, data, open_session(config)


def test_saccades_are_found_where_the_eye_leaps_and_nowhere_else():
    rng = np.random.default_rng(0)
    gaze = np.cumsum(rng.normal(0, 0.002, (2400, 2)), axis=0)
    leaps = [300, 900, 1500, 2100]
    for start in leaps:
        gaze[start:] += np.clip((np.arange(2400 - start) + 1) / 8, 0, 1)[:, None] * [1.5, -0.8]
    found = find_saccades(gaze, 240.0)
    assert len(found) == 4 and (np.abs(found[:, 0] - leaps) <= 3).all() and (found[:, 1] - found[:, 0] <= 14).all()
    tracked = np.ones(2400, bool)
    tracked[905] = False
    assert len(find_saccades(gaze, 240.0, valid=tracked)) <= 4
    assert not any(start <= 905 < stop for start, stop in find_saccades(gaze, 240.0, valid=tracked))
    ramp = np.arange(50)[:, None] * [0.5, -1.0]
    np.testing.assert_allclose(eye_velocity(ramp, 100.0)[2:-2], np.tile([50.0, -100.0], (46, 1)))


def test_variance_is_split_into_what_repeats_share_what_behaviour_changes_and_the_rest():
    rng = np.random.default_rng(1)
    signal, gain = rng.gamma(2, 1, (400, 1)), np.exp(0.3 * rng.standard_normal((40, 400, 1)))
    rate = signal * gain * np.array([1.0, 2.0])
    y = rng.poisson(rate).astype(float)
    columns = _figures(y, rate)
    total = y.reshape(-1, 2).var(0, ddof=1)
    np.testing.assert_allclose(columns["share_behavior"], rate.var(0, ddof=1).mean(0) / total, rtol=1e-12)
    expected = (signal * np.exp(0.045) * np.array([1.0, 2.0])).var(0, ddof=1) / total
    np.testing.assert_allclose(columns["share_stimulus"], expected, rtol=0.05)
    # Both units share one gain: it correlates them, and the true rate explains that away.
    assert columns["noise_correlation"].min() > 0.1 and np.abs(columns["noise_correlation_left"]).max() < 0.03


def test_repeats_of_a_session(known, tmp_path):
    twin, data, _ = known
    result = PSTH().run(twin, data, folder=tmp_path / "psth")
    assert result.settings["notes"]["without_repeats"] == []
    rates = predicted(twin, 0, data[0], "test")
    first = np.flatnonzero(np.asarray(data[0].repeat_id) == data[0].repeat_id.max())
    first = first[~np.isnan(rates[first, 0])]
    np.testing.assert_allclose(result.arrays["rates.ada_demo1"][-1], rates[first].mean(0) * 120, rtol=1e-5)
    assert sorted(path.name for path in (tmp_path / "psth").glob("psth.*.png"))
    again = PSTH().run(twin, data, folder=tmp_path / "psth")  # read, not computed
    assert isinstance(again, Result) and not again.figures
    with pytest.raises(ExperimentError, match="no such bin"):
        PSTH(split="train").run(twin, data)


def test_averages_around_events_are_those_of_a_slow_loop(known):
    twin, data, _ = known
    experiment = Events(kind="onsets", before=0.0, after=0.2, n_bootstraps=50)
    result = experiment.run(twin, data)
    responses, rates = recorded(data[0]), predicted(twin, 0, data[0], "val")
    lags = np.arange(25)
    total, number = np.zeros((25, data[0].n_units)), np.zeros((25, data[0].n_units))
    for start in np.unique(data[0].run_start):
        for lag in lags:
            bin = start + lag
            if bin < data[0].run_stop[start] and not np.isnan(rates[bin, 0]):
                counted = ~np.isnan(responses[bin])
                total[lag] += np.where(counted, np.nan_to_num(responses[bin]), 0)
                number[lag] += counted
    with np.errstate(invalid="ignore"):
        expected = total / number * 120
    np.testing.assert_allclose(result.arrays["data.ada_demo1"], expected, rtol=1e-6)
    low, high = result.arrays["band.ada_demo1"]
    known_lags = ~np.isnan(expected)
    assert (low[known_lags] <= expected[known_lags] + 1e-9).all() and (
        high[known_lags] >= expected[known_lags] - 1e-9
    ).all()
    held = behavior_held(data[0])
    assert (np.asarray(held.behavior) == held.behavior[0]).all()


def test_events_from_a_file_and_from_the_eye(known, tmp_path):
    twin, data, session = known
    saccades = Events(n_bootstraps=20).run(twin, data)
    assert saccades.settings["notes"]["events"]["ada_demo1"] > 5
    onset = np.flatnonzero(np.diff(session.trial) > 0)[0] + 1
    times = tmp_path / "events.csv"
    starts = [onset, *(np.flatnonzero(np.diff(session.trial) > 0)[1:] + 1)]
    times.write_text("session,time\n" + "".join(f"ada_demo1,{bin / 240}\n" for bin in starts))
    by_file = Events(kind="file", file=str(times), before=0, after=0.2, n_bootstraps=20)
    onsets = Events(kind="onsets", before=0, after=0.2, n_bootstraps=20).run(twin, data)
    np.testing.assert_allclose(by_file.run(twin, data).arrays["data.ada_demo1"], onsets.arrays["data.ada_demo1"])
    with pytest.raises(ExperimentError, match="no CSV"):
        Events(kind="file", file=str(tmp_path / "absent.csv")).run(twin, data)
    with pytest.raises(ExperimentError, match="has no signal 'gaze'"):
        Events(signal="gaze").run(twin, data)


def test_the_window_of_the_recorded_gaze_is_what_was_shown(known):
    _, data, session = known
    grid = modelled_bins(session, data[0].spec.config)
    again = _with_gaze(data[0], session, np.asarray(session.behavior["eyepos"], float), grid)
    shown = np.asarray(data[0].source)[np.asarray(data[0].frame)].astype(int)
    # Pictures are kept in 8 bits, so that a pixel may round the other way.
    assert np.abs(again.source.astype(int) - shown).max() <= 1
    still = _with_gaze(data[0], session, other_gaze(
        np.asarray(session.behavior["eyepos"], float), np.asarray(session.trial), "stabilised", bin_rate=240.0
    ), grid)  # fmt: skip
    for trial in np.unique(data[0].trial):
        own = np.flatnonzero(np.asarray(data[0].trial) == trial)
        if session.stimulus_type[grid.first[own[0]]] == "backimage":
            assert (still.source[own] == still.source[own[0]]).all()


def test_changes_of_the_gaze_by_hand():
    trial = np.repeat([0, 1], 200)
    gaze = np.zeros((400, 2))
    gaze[100:200] += [2.0, 0.0]
    gaze += np.random.default_rng(0).normal(0, 1e-4, gaze.shape)
    half = other_gaze(gaze, trial, "scaled", bin_rate=240.0, factor=0.5)
    np.testing.assert_allclose(half[:200] - gaze[:200].mean(0), (gaze[:200] - gaze[:200].mean(0)) / 2)
    without = other_gaze(gaze, trial, "without_saccades", bin_rate=240.0)
    assert np.abs(without[150] - without[50]).max() < 0.01 and np.abs(gaze[150] - gaze[50]).max() > 1.9


def test_another_gaze_is_scored(known):
    twin, data, _ = known
    result = Counterfactual(changes=("scaled", "stabilised"), factor=1.0).run(twin, data)
    units = result.tables["units"]
    # A factor of 1 changes nothing but the rounding of pixels.
    assert np.nanmin(units["r.scaled"]) > 0.99 and (units["r.stabilised"] < units["r.scaled"]).mean() > 0.9
    np.testing.assert_allclose(
        units["gain.stabilised"], units["score.recorded"] - units["score.stabilised"], equal_nan=True
    )


def test_units_that_read_alike_are_one_cluster(known):
    twin, data, _ = known
    readout = twin.per_session[0].readout
    before = readout.features.detach().clone()
    directions = torch.linalg.qr(torch.randn(before.shape[1], 2, generator=torch.Generator().manual_seed(0)))[0].T
    with torch.no_grad():
        readout.features.copy_(directions[torch.arange(len(before)) % 2] * torch.linspace(1, 3, len(before))[:, None])
    result = Population(n_clusters=2, n_movies=4).run(twin, data)
    with torch.no_grad():
        readout.features.copy_(before)
    labels = result.tables["units"]["cluster"]
    assert (labels[0::2] == labels[0]).all() and (labels[1::2] == labels[1]).all() and labels[0] != labels[1]
    np.testing.assert_allclose(result.tables["units"]["similarity_within"], 1, atol=1e-5)
