"""Demo sessions: the same bits every time, spikes that follow the stated rate, units that behave like V1."""

import logging
import socket
from dataclasses import fields, replace

import numpy as np
import pytest

from neurotwin.data.session import Session
from neurotwin.data.simulate import (
    BIN_RATE,
    DEMO_SESSIONS,
    FRAME_SIZE,
    PIXELS_PER_DEGREE,
    Units,
    draw_units,
    make_demo_sessions,
    movies,
    sessions,
    simulate_linear_session,
    simulate_session,
)
from neurotwin.data.simulate import units as units_module

SHORT = {"backimage": 2, "gaborium": 3, "fixrsvp": 4}


@pytest.fixture(scope="module")
def session() -> Session:
    return simulate_session("ada_demo1", n_trials=SHORT)


def one_unit(**changes: float) -> Units:
    """An upright unit in the middle of the frame, with fields changed."""
    values = {
        "center": [0, 0], "orientation": 0, "frequency": 0.15, "width": [3, 4], "phase": 0, "delay": 0.02,
        "time_constant": 0.008, "direction": 0, "complexity": 0, "spontaneous": 1, "amplitude": 20, "pupil_gain": 0,
        "saccade_gain": 0,
    }  # fmt: skip
    return Units(**{key: np.array([value], float) for key, value in (values | changes).items()})


def modulation_ratio(units: Units, temporal_frequency: float = 6.0) -> float:
    """F1/F0 of the drive while a grating of the unit's orientation and frequency drifts for whole cycles."""
    n_cycle = round(BIN_RATE / temporal_frequency)
    time = np.arange(4 * n_cycle)[:, None, None]
    x = np.arange(FRAME_SIZE)
    wave = np.cos(2 * np.pi * (units.frequency[0] * x[None, None] - time / n_cycle))
    frames = np.rint(127 + 100 * wave).astype(np.uint8).repeat(FRAME_SIZE, axis=1)
    last = units.drive(frames)[-n_cycle:, 0]
    return 2 * np.abs(np.fft.rfft(last)[1]) / last.sum()


def arrays(session: Session) -> dict[str, np.ndarray]:
    values = {f.name: getattr(session, f.name) for f in fields(Session)}
    return {k: v for k, v in (values | dict(session.behavior)).items() if isinstance(v, np.ndarray)}


def test_same_seed_same_bits_and_another_seed_others(session: Session) -> None:
    again = arrays(simulate_session("ada_demo1", n_trials=SHORT))
    for key, value in arrays(session).items():
        assert value.dtype == again[key].dtype and value.tobytes() == again[key].tobytes(), key
    other = simulate_session("ada_demo1", n_trials=SHORT, seed=1)
    for key in ("stimulus", "responses", "true_rate"):
        assert not np.array_equal(getattr(session, key), getattr(other, key)), key


def test_nothing_touches_the_global_generator(session: Session) -> None:
    np.random.seed(0)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    simulate_session("bea_demo2", n_trials={"backimage": 1, "gaborium": 1, "fixrsvp": 1})
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test_spikes_are_poisson_given_the_rate(session: Session) -> None:
    rate, spikes = session.true_rate.astype(float), session.responses.astype(float)
    z = (spikes.sum(0) - rate.sum(0)) / np.sqrt(rate.sum(0))
    assert np.abs(z).max() < 4 and 0.5 < z.std() < 1.6
    # Where bins are grouped by their rate, counts have the rate's mean and variance; chi² has one degree a bin.
    groups = np.array_split(np.argsort(rate, axis=None), 20)[10:]  # the upper half: rates far enough from 0
    for group in groups:
        y, r = spikes.ravel()[group], rate.ravel()[group]
        chi2, spread = ((y - r) ** 2 / r).sum(), np.sqrt((2 + 1 / r).sum())
        assert abs(chi2 - len(group)) < 4 * spread


def test_rate_is_the_stated_formula(session: Session) -> None:
    """From what is stored, and a filter that is applied as one matrix rather than in space and then in time."""
    units = draw_units("ada_demo1")
    n = 600
    frames = (session.stimulus[:n].astype(float) - 127) / 127
    even = units.filters()
    odd = replace(units, phase=units.phase - np.pi / 2).filters()  # the sine in the cosine's place
    length = even.shape[1]
    padded = np.concatenate([np.zeros((length - 1, FRAME_SIZE, FRAME_SIZE)), frames])
    stacked = np.stack([padded[i : i + n] for i in range(length)])
    e, o = (np.einsum("ltp,ulp->tu", stacked.reshape(length, n, -1), f.reshape(*f.shape[:2], -1)) for f in (even, odd))
    energy = (e**2 + o**2) / 2
    mixed = (1 - units.complexity) * np.maximum(e, 0) ** 2 + units.complexity * 2 * energy
    drive = mixed / (0.4**2 + (energy + energy.mean(1, keepdims=True)) / 2)
    gain = units.gain(session.behavior["pupil"], session.behavior["eyevel"])[:n]
    expected = (units.spontaneous + units.amplitude * drive) * gain * (1 - session.missing_pct[:n] / 100) / 240
    np.testing.assert_allclose(session.true_rate[:n], expected, rtol=2e-2, atol=2e-4)


def test_gain_follows_pupil_and_saccades() -> None:
    units = one_unit(pupil_gain=0.5, saccade_gain=1.0)
    speed = np.zeros((240, 2))
    speed[48:56, 0] = 100.0  # a saccade of 33 ms
    gain = units.gain(np.full(240, 3.0), speed)[:, 0]
    assert np.allclose(gain[:48], 1)
    assert gain[48:66].min() < 0.5 and gain[72:96].max() > 1.3 and np.allclose(gain[110:], 1)
    assert np.allclose(units.gain(np.full(240, 3.4), 0 * speed), np.exp(0.5))


def test_repeats_show_the_same_frames_after_the_same_past(session: Session) -> None:
    length = session.repeat_id.max() + 1
    starts = np.flatnonzero(session.repeat_id == 0)
    assert len(starts) == SHORT["fixrsvp"] and (session.stimulus_type[session.repeat_id >= 0] == "fixrsvp").all()
    gap = sessions._GAP_BINS
    clips = np.stack([session.stimulus[start - gap : start + length] for start in starts])
    assert (clips == clips[0]).all() and (clips[0, :gap] == 127).all() and clips[0, gap:].std() > 10
    assert gap / BIN_RATE >= units_module._KERNEL_S
    drive = draw_units("ada_demo1").drive(session.stimulus)
    drives = np.stack([drive[start : start + length] for start in starts])
    np.testing.assert_allclose(drives, np.broadcast_to(drives[0], drives.shape), atol=1e-5)
    pupils = np.array([session.behavior["pupil"][start] for start in starts])
    assert np.ptp(pupils) > 0  # the gain differs, as stated


def test_parts_of_a_session(session: Session) -> None:
    types = [session.stimulus_type[session.trial == k][0] for k in range(9)]
    assert {kind: types.count(kind) for kind in SHORT} == SHORT
    for kind, n_bins in (("backimage", 600), ("gaborium", 960), ("fixrsvp", 360)):
        chosen = session.stimulus_type == kind
        assert (chosen & (session.trial >= 0)).sum() == n_bins * SHORT[kind]
        assert set(session.split[chosen]) == {"test" if kind == "fixrsvp" else ""}
    starts = np.flatnonzero(np.diff(session.trial, prepend=-1) > 0)
    assert (starts % 12 == 0).all()  # so that bins of lower rates never straddle trials
    assert (session.stimulus[session.trial < 0] == 127).all()


def test_gaze_moves_what_is_seen(session: Session) -> None:
    """In free viewing, shifting a frame by the eye's displacement gives the next frame where they overlap."""
    bins = np.flatnonzero((session.trial >= 0) & (session.stimulus_type == "backimage"))[:1200]
    step = np.rint(np.diff(session.behavior["eyepos"][bins], axis=0) * PIXELS_PER_DEGREE).astype(int)
    moved = np.flatnonzero((np.abs(step).max(1) >= 2) & (np.abs(step).max(1) <= 8))
    correlations = {sign: [] for sign in (1, -1)}
    for t in moved:
        before, after = session.stimulus[bins[t]].astype(float), session.stimulus[bins[t + 1]].astype(float)
        for sign, found in correlations.items():
            rows, columns = -sign * step[t, 1], sign * step[t, 0]  # pixels count down, gaze up
            shifted = np.roll(before, (-rows, -columns), (0, 1))[9:-9, 9:-9].ravel()
            if shifted.std() > 5 and after[9:-9, 9:-9].std() > 5:
                found.append(np.corrcoef(shifted, after[9:-9, 9:-9].ravel())[0, 1])
    assert len(correlations[1]) >= 10
    assert np.median(correlations[1]) > 0.9 > np.median(correlations[-1]) + 0.1


def test_behavior_is_plausible_and_consistent() -> None:
    session = simulate_session("bea_demo2", n_trials={"backimage": 8, "gaborium": 4, "fixrsvp": 8})
    eyepos, eyevel = session.behavior["eyepos"], session.behavior["eyevel"]
    inside = session.trial[1:] >= 0
    inside &= session.trial[1:] == session.trial[:-1]
    np.testing.assert_allclose(eyevel[1:][inside], np.diff(eyepos, axis=0)[inside] * BIN_RATE, atol=0.05)
    speed = np.hypot(*eyevel.T)
    viewing = (session.stimulus_type == "backimage") & (session.trial >= 0)
    saccades = (np.diff((speed[viewing] > 40).astype(int)) == 1).sum() / (viewing.sum() / BIN_RATE)
    assert 2 < saccades < 5  # a second
    assert 0.3 < np.median(speed[viewing]) < 3 and 100 < speed.max() < 1500  # degrees/s: drift, saccades
    fixating = (session.stimulus_type != "backimage") & (session.trial >= 0)
    assert np.abs(eyepos[fixating]).max() < 1.5
    assert 0.9 < session.valid.mean() < 1 and np.all((session.missing_pct >= 0) & (session.missing_pct < 100))
    assert session.behavior["pupil"].min() > 1.0 and session.behavior["pupil"].max() < 5.0


@pytest.mark.parametrize("name", DEMO_SESSIONS)
def test_units_of_the_roster(name: str) -> None:
    units = draw_units(name)
    assert len(units.frequency) == DEMO_SESSIONS[name]
    simple = (units.complexity < 0.5).mean()
    assert 0.3 < simple < 0.7
    even, odd = units.spatial_filters()
    for filters in (even, odd):
        np.testing.assert_allclose(filters.sum((1, 2)), 0, atol=1e-4)  # blind to grey
        np.testing.assert_allclose((filters**2).sum((1, 2)), 1, rtol=1e-4)
        edge = np.abs(filters).copy()
        edge[:, 1:-1, 1:-1] = 0
        assert (edge.max((1, 2)) < 0.1 * np.abs(filters).max((1, 2))).all()  # nothing is cut off at the border
    peak = units.temporal_filters()[0].argmax(1)
    latency = (units.temporal_filters().shape[-1] - 1 - peak) / BIN_RATE
    assert (latency >= 0.03).all() and (latency <= 0.06).all()
    assert len(set(DEMO_SESSIONS.values())) == len(DEMO_SESSIONS)


def test_units_do_not_depend_on_the_trials() -> None:
    few = simulate_session("ada_demo2", n_trials={"backimage": 1, "gaborium": 0, "fixrsvp": 0})
    units = draw_units("ada_demo2")
    expected = units.center * [1, -1] / PIXELS_PER_DEGREE
    np.testing.assert_allclose(np.ptp(few.unit_positions, axis=0), np.ptp(expected, axis=0), rtol=1e-5)
    assert np.array_equal(few.unit_ids, 2 + 3 * np.arange(19))


@pytest.mark.parametrize("direction", [0.0, 0.5])
def test_modulation_ratio_of_simple_and_complex_units(direction: float) -> None:
    ratios = [modulation_ratio(one_unit(complexity=c, direction=direction)) for c in (0, 0.5, 1)]
    assert ratios[0] > 1.2 and ratios[2] < 0.5 and ratios[0] > ratios[1] > ratios[2]


def test_direction_selective_unit_prefers_one_direction() -> None:
    def response(direction: float, sign: int) -> float:
        unit = one_unit(direction=direction)
        time, x = np.arange(160)[:, None, None], np.arange(FRAME_SIZE)
        frames = np.rint(127 + 60 * np.cos(2 * np.pi * (0.15 * x - sign * time / 30))).astype(np.uint8)
        even, odd = unit.linear(frames.repeat(FRAME_SIZE, axis=1))  # before normalisation, which saturates
        return float((even**2 + odd**2)[-60:].mean())

    assert response(0, 1) == pytest.approx(response(0, -1), rel=0.02)
    one, other = response(1, 1), response(1, -1)
    assert max(one, other) > 3 * min(one, other)


def test_spike_triggered_average_of_gabors_finds_a_simple_unit() -> None:
    session = simulate_session("ada_demo1", n_trials={"backimage": 0, "gaborium": 18, "fixrsvp": 0})
    units = draw_units("ada_demo1")
    unit = int(np.argmax((1 - units.complexity) * units.amplitude))
    filters = units.filters()[unit]
    contrast = session.stimulus.astype(np.float32) - 127
    counts = session.responses[:, unit] - session.responses[:, unit].mean(dtype=np.float32)
    average = np.stack(
        [np.tensordot(counts[ago:], contrast[: len(contrast) - ago], axes=1) for ago in range(filters.shape[0])][::-1]
    )
    # Gabors come with scales and neighbouring frames alike: compare where the filter is strongest in time.
    best = np.argmax((filters**2).sum((1, 2)))
    assert np.corrcoef(average[best].ravel(), filters[best].ravel())[0, 1] > 0.7


def test_spike_triggered_average_of_noise_is_the_linear_filter() -> None:
    session, filters = simulate_linear_session()
    length, contrast = filters.shape[1], session.stimulus.astype(np.float32) - 127
    counts = session.responses - session.responses.mean(0, dtype=np.float32)
    average = np.stack([np.tensordot(counts[ago:].T, contrast[: len(contrast) - ago], axes=1) for ago in range(length)])
    for unit in range(len(filters)):
        assert np.corrcoef(average[::-1, unit].ravel(), filters[unit].ravel())[0, 1] > 0.9


def test_save_and_load(session: Session, tmp_path) -> None:
    loaded = Session.load(session.save(tmp_path / "ada_demo1.safetensors"))
    for key, value in arrays(session).items():
        assert np.array_equal(value, arrays(loaded)[key]), key
    assert loaded == session and (loaded.name, loaded.subject, loaded.pixels_per_degree) == ("ada_demo1", "ada", 28.0)


def test_make_demo_sessions_writes_only_what_is_absent(tmp_path, monkeypatch, caplog) -> None:
    monkeypatch.setattr(sessions, "_N_TRIALS", {"backimage": 1, "gaborium": 0, "fixrsvp": 0})
    folder = tmp_path / "new" / "demo"
    with caplog.at_level(logging.INFO, logger=sessions.__name__):
        (first,) = make_demo_sessions(folder, ["bea_demo1"])
        assert "bea_demo1" in caplog.text and len(caplog.records) == 1
        stamp = first.stat().st_mtime_ns
        paths = make_demo_sessions(folder)
        assert paths == [folder / f"{name}.safetensors" for name in DEMO_SESSIONS]
        assert first.stat().st_mtime_ns == stamp and len(caplog.records) == 2
        make_demo_sessions(folder)
        assert len(caplog.records) == 2  # nothing to do, nothing to say
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in paths)
    with pytest.raises(ValueError, match="cat_demo1"):
        make_demo_sessions(folder, ["cat_demo1"])


def test_photographs_need_no_network(monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a connection was attempted")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    movies.photographs.cache_clear()
    images = movies.photographs()
    assert len(images) >= 8 and all(image.dtype == np.float32 and image.std() > 30 for image in images)


@pytest.mark.parametrize("n_trials", [{"gratings": 3}, {"backimage": 0, "gaborium": 0, "fixrsvp": 0}])
def test_trials_that_make_no_session_are_refused(n_trials: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="n_trials"):
        simulate_session("ada_demo1", n_trials=n_trials)


def test_any_name_can_be_simulated_if_sized() -> None:
    with pytest.raises(ValueError, match="n_units"):
        simulate_session("cat_demo1")
    session = simulate_session("cat_demo1", n_units=3, n_trials={"backimage": 1, "gaborium": 0, "fixrsvp": 0})
    assert (session.n_units, session.subject) == (3, "cat")


def test_bits_do_not_depend_on_how_a_product_is_split(session: Session) -> None:
    """Sums in another order, as other numbers of threads take them, must round to the same responses."""
    units = draw_units("ada_demo1")
    frames = session.stimulus[400:520]
    shuffle = np.random.default_rng(0).permutation(FRAME_SIZE**2)
    filters = units.spatial_filters()

    class Shuffled(Units):
        def spatial_filters(self, size: int = FRAME_SIZE) -> np.ndarray:
            return filters.reshape(2, -1, size**2)[..., shuffle].reshape(filters.shape)

    other = Shuffled(**{f.name: getattr(units, f.name) for f in fields(Units)})
    mixed = frames.reshape(len(frames), -1)[:, shuffle].reshape(frames.shape)
    for expected, found in zip(units.linear(frames), other.linear(mixed), strict=True):
        assert expected.tobytes() == found.tobytes()
