"""What is said of a recording, against slow loops and answers by hand."""

import base64
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neurotwin.analysis import recording_plots as draw
from neurotwin.analysis.recording import (
    Span,
    mean_responses,
    missing_spans,
    recording_text,
    session_row,
    span_statistics,
    stimulus_samples,
    type_rows,
)
from neurotwin.analysis.recording_page import recording_page
from neurotwin.analysis.triggered import triggered_averages
from neurotwin.data.session import Session
from neurotwin.data.streamed import Streamed


def make(n_bins=400, *, frame=(6, 5), seed=0, **more):
    rng = np.random.default_rng(seed)
    values = {
        "name": "ada_1", "stimulus": rng.integers(0, 256, (n_bins, *frame)).astype(np.uint8),
        "responses": rng.poisson(0.4, (n_bins, 3)), "bin_rate": 50.0, "trial": np.arange(n_bins) // 40,
    }  # fmt: skip
    return Session(**values | more)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 3), st.integers(1, 50), st.integers(0, 2**32 - 1))
def test_span_statistics_are_those_of_a_loop(n_bins, n_columns, n_spans, seed):
    rng = np.random.default_rng(seed)
    values, usable = rng.normal(size=(n_bins, n_columns)), rng.random(n_bins) < 0.7
    found = span_statistics(values, usable, n_spans)
    assert found.edges[0] == 0 and found.edges[-1] == n_bins and len(found.edges) == min(n_spans, n_bins) + 1
    for index, (first, last) in enumerate(zip(found.edges[:-1], found.edges[1:], strict=True)):
        part = values[first:last][usable[first:last]]
        assert found.count[index] == len(part) and last > first
        np.testing.assert_allclose(found.total[index], part.sum(axis=0), atol=1e-12)
        expected = (part.min(axis=0), part.max(axis=0)) if len(part) else (np.nan, np.nan)
        np.testing.assert_array_equal(found.least[index], np.broadcast_to(expected[0], n_columns))
        np.testing.assert_array_equal(found.most[index], np.broadcast_to(expected[1], n_columns))
    np.testing.assert_array_equal(found.negative, (values[usable] < 0).sum(axis=0))


def test_span_statistics_of_several_blocks():
    values = np.arange(3 * 2**20, dtype=np.int64)  # 24 MB: two blocks
    found = span_statistics(values, np.ones(len(values), bool), 7)
    assert found.total.sum() == values.sum() and found.whole
    np.testing.assert_array_equal(found.least[:, 0], found.edges[:-1])
    np.testing.assert_array_equal(found.most[:, 0], found.edges[1:] - 1)


@pytest.mark.parametrize(("values", "whole"), [([0, 3, 1], True), ([0, 0.5, 1], False), ([0, -1, 1], False)])
def test_counts_are_told_from_real_numbers(values, whole):
    assert span_statistics(np.array(values)[:, None], np.ones(3, bool)).whole is whole


def test_mean_responses_are_rates_of_counts_only():
    counts = np.array([[2, 0], [4, 0], [100, 100]])
    session = make(3, responses=counts, valid=[True, True, False], trial=None)
    means, unit = mean_responses(session, span_statistics(session.responses, session.valid))
    assert means.tolist() == [150.0, 0.0] and unit == "Hz"
    session = make(3, responses=counts, exposure=np.array([1.0, 2.0, 9.0]), valid=[True, True, False], trial=None)
    means, _ = mean_responses(session, span_statistics(session.responses, session.valid))
    assert means.tolist() == [100.0, 0.0]  # 6 spikes in 3 presentations of 20 ms
    session = make(3, responses=counts - 1.5, trial=None)
    means, unit = mean_responses(session, span_statistics(session.responses, session.valid))
    np.testing.assert_allclose(means, counts.mean(axis=0) - 1.5)
    assert unit == "a bin"


def test_missing_spans_by_hand():
    valid = np.ones(10, bool)
    valid[[0, 1, 5, 9]] = False
    time = 7 + np.arange(10) * 0.02
    time[6:] += 3
    spans = missing_spans(make(10, valid=valid, time=time, trial=None))
    expected = [(0, 0.04, "not valid"), (0.1, 0.12, "not valid"), (0.12, 3.12, "gap"), (3.18, 3.2, "not valid")]
    assert [span.kind for span in spans] == [kind for *_, kind in expected]
    np.testing.assert_allclose([(s.start, s.stop) for s in spans], [e[:2] for e in expected], atol=1e-9)
    assert Span(1, 3, "gap").length == 2
    assert missing_spans(make(10, trial=None)) == []


def slow_average(session, unit, n_lags, stimulus_type=None):
    """The definition, bin by bin: counts weigh the frames; else standardised responses do."""
    responses = session.responses[:, unit].astype(float)
    counts = bool((responses == np.floor(responses)).all() and (responses >= 0).all())
    time = np.arange(session.n_bins) / session.bin_rate if session.time is None else session.time
    maps = []
    for lag in range(n_lags):
        pairs = []
        for t in range(lag, session.n_bins):
            steps = np.diff(time[t - lag : t + 1]) * session.bin_rate
            same = (session.trial[t - lag : t + 1] == session.trial[t]).all() and np.allclose(steps, 1, atol=0.4)
            of_type = stimulus_type is None or session.stimulus_type[t] == stimulus_type
            if same and session.valid[t] and session.trial[t] >= 0 and of_type:
                pairs.append(t)
        pairs = np.array(pairs)
        r, s = responses[pairs], session.stimulus[pairs - lag].astype(float)
        weight = r / r.sum() if counts else (r - r.mean()) / r.std() / len(r)
        maps.append(np.tensordot(weight, s - s.mean(axis=0), axes=1))
    return np.stack(maps)


@pytest.mark.parametrize("frame", [(), (7,), (6, 5), (2, 4, 3)], ids=["field", "bars", "frames", "channels"])
@pytest.mark.parametrize("counts", [True, False], ids=["counts", "real"])
def test_triggered_averages_are_those_of_the_definition(frame, counts):
    rng = np.random.default_rng(1)
    n_bins = 1300  # three stretches
    responses = rng.poisson(0.5, (n_bins, 3)) if counts else rng.normal(size=(n_bins, 3))
    trial = np.arange(n_bins) // 90
    trial[700:740] = -1
    time = np.arange(n_bins) / 50.0
    time[333:] += 2.0
    session = make(
        n_bins, frame=frame, responses=responses, trial=trial, time=time, valid=rng.random(n_bins) < 0.9,
        stimulus_type=np.where(np.arange(n_bins) < 1000, "a", "b"),
    )  # fmt: skip
    for stimulus_type in (None, "a"):
        found = triggered_averages(session, n_lags=4, stimulus_type=stimulus_type)
        assert sorted(found.units.tolist()) == [0, 1, 2] and (np.diff(found.strength) <= 0).all()
        for unit, maps in zip(found.units, found.maps, strict=True):
            expected = slow_average(session, unit, 4, stimulus_type)
            np.testing.assert_allclose(maps, expected, atol=2e-3 if counts else 1e-3)
            assert np.abs(expected).max() > 0.5


def test_the_unit_that_follows_a_pixel_is_first_and_its_pixel_and_lag_are_found():
    session = make(2000, frame=(8, 8), trial=None)
    responses = np.random.default_rng(2).poisson(5.0, (2000, 4))  # busier, and driven by nothing
    responses[3:, 2] = session.stimulus[:-3, 5, 1] > 200
    session.responses = responses
    found = triggered_averages(session, n_units=2)
    assert found.units[0] == 2 and len(found.units) == 2 and found.maps.shape == (2, 10, 8, 8)  # 0.2 s at 50 Hz
    assert np.unravel_index(np.abs(found.maps[0]).argmax(), (10, 8, 8)) == (3, 5, 1)
    assert found.maps[0, 3, 5, 1] > 80 and found.strength[0] > 20 > 6 > found.strength[1]
    assert found.n_bins == 2000


def test_images_have_no_lags_and_what_never_changes_drives_nobody():
    session = make(300, trial=np.arange(300))
    session.stimulus[:, 0, 0] = 77
    found = triggered_averages(session)
    assert found.maps.shape[1] == 1 and np.isfinite(found.strength).all() and (found.strength < 5).all()
    np.testing.assert_allclose(found.maps[:, 0, 0, 0], 0, atol=1e-6)


def test_large_frames_are_averaged_over_squares():
    session = make(300, frame=(70, 65), trial=None)
    found = triggered_averages(session, n_lags=1)
    assert found.maps.shape == (3, 1, 23, 21)  # squares of 3 pixels
    small = session.stimulus[:, :69, :63].reshape(300, 23, 3, 21, 3).mean(axis=(2, 4))
    session.stimulus = small.astype(np.float32)
    np.testing.assert_allclose(found.maps[0], slow_average(session, found.units[0], 1), atol=1e-3)


def test_a_sample_of_a_long_recording_is_read_and_no_more():
    asked = []

    def read(start, stop):
        asked.append(stop - start)
        return np.zeros((stop - start, 4, 4), np.uint8)

    session = make(20_000, stimulus=Streamed((20_000, 4, 4), np.dtype(np.uint8), read), trial=None)
    asked.clear()
    found = triggered_averages(session, max_bins=2000, n_lags=3)
    assert sum(asked) <= 2000 + 4 * 2 and len(asked) == 4 and found.n_bins == 2000
    asked.clear()
    stimulus_samples(session, "movie")
    assert asked == [1] * 6


def test_nothing_usable_gives_no_average():
    found = triggered_averages(make(50, valid=np.zeros(50, bool)))
    assert len(found.units) == 0 and found.n_bins == 0


def test_stimulus_samples():
    session = make(100, stimulus_type=["a"] * 50 + ["b"] * 50, valid=np.arange(100) >= 10, trial=None)
    part = stimulus_samples(session, "a", n=3)
    np.testing.assert_array_equal(part, session.stimulus[[10, 30, 49]])
    session = make(1000, frame=(7,), stimulus_type=["a"] * 500 + ["b"] * 500, trial=None)
    part = stimulus_samples(session, "b")
    np.testing.assert_array_equal(part, session.stimulus[750:990])
    session = make(30, frame=(), stimulus_type="c", valid=np.zeros(30, bool))
    np.testing.assert_array_equal(stimulus_samples(session, "c"), session.stimulus)


def rich_session():
    n_bins = 400
    repeat_id = np.full(n_bins, -1)
    repeat_id[:120] = np.tile(np.arange(40), 3)
    valid = np.ones(n_bins, bool)
    valid[200:210] = False
    behavior = {"pupil": np.linspace(2, 4, n_bins), "eye": np.tile([[1.0, -3.0]], (n_bins, 1))}
    behavior["pupil"][205] = -99  # masked
    responses = np.random.default_rng(0).poisson(0.4, (n_bins, 3))
    responses[:, 1] = 0
    trial = np.arange(n_bins) // 40
    trial[380:] = -1
    return make(
        n_bins, responses=responses, repeat_id=repeat_id, valid=valid, behavior=behavior, trial=trial,
        stimulus_type=["clip"] * 120 + ["noise <1>"] * 280, unit_labels={"area": ["V1", "V1", "LM"]},
        notes=["one unit & one trial left out"], info={"lab": "demo"}, split=["test"] * 120 + [""] * 280,
        pixels_per_degree=12.5,
    )  # fmt: skip


def test_rows_and_text():
    session = rich_session()
    clip, noise = type_rows(session)
    assert clip == {
        "stimulus type": "clip", "trials": "3", "bins": "120", "minutes": "0.0", "usable": "100.0%",
        "repeated frames": "40", "times shown": "3",
    }  # fmt: skip
    # Of 280 bins 10 are not valid and 20 lie between trials.
    assert noise["trials"] == "7" and noise["usable"] == "89.3%" and noise["repeated frames"] == "0"
    assert session_row(session)["usable"] == "92.5%" and session_row(session)["types"] == "clip noise <1>"
    text = recording_text(session)
    for line in (
        r"^stimulus +400 x 6 x 5 +uint8$",
        r"^behavior\.eye +400 x 2 +float64$",
        r"^responses of 3 units: counts, mean from 0 to [\d.]+ Hz \(median [\d.]+\), 1 silent$",
        r"^unit label area: LM 1, V1 2$",
        r"^pixels per degree: 12\.5$",
        r"^bins whose split is given: to be drawn 280, test 120$",
        r"^usable: 92\.5% of bins; 5\.0% lie between trials$",
        r"^stretches that are not valid: 1, together 0\.20 s; longest 0\.20 s at 4\.00 s$",
        r"^eye\[1\] +-3 +-3 +-3$",
        r"^lab: demo$",
        r"^- one unit & one trial left out$",
    ):
        assert re.search(line, text, re.M), line
    least = float(re.search(r"^pupil +(\S+)", text, re.M)[1])
    assert least == 2.0  # not the -99 of a masked bin


def test_text_of_real_valued_responses_and_of_nothing_usable():
    text = recording_text(make(50, responses=np.tile([[-1.0, 2.5]], (50, 1))))
    assert "real numbers, mean from -1 to 2.5 a bin (median 0.75), 0 silent, 50.0% of them below 0" in text
    text = recording_text(make(50, valid=np.zeros(50, bool), behavior={"pupil": np.ones(50)}))
    assert "usable: 0.0% of bins" in text and re.search(r"pupil +NaN +NaN +NaN", text)


def test_the_page_stands_alone_and_shows_everything():
    page = recording_page(rich_session(), mapping="stimulus: <movie>")
    assert not re.search(r"""(src|href)\s*=\s*["'](?!data:)""", page) and "@import" not in page
    images = re.findall(r'alt="([^"]+)" src="data:image/png;base64,([^"]+)"', page)
    assert [alt for alt, _ in images] == [
        "Stimulus types and missing spans over time", "Sample frames of each stimulus type", "Raster of responses",
        "Mean response of every unit, and its change over the recording",
        "Range of each behavioural signal over time", "Triggered averages for noise &lt;1&gt;",
        "Triggered averages for clip",
    ]  # fmt: skip
    assert all(base64.b64decode(image).startswith(b"\x89PNG") for _, image in images)
    assert "<1>" not in page and "one unit &amp; one trial left out" in page and "stimulus: &lt;movie&gt;" in page


@pytest.mark.parametrize("frame", [(), (7,), (3, 8, 6), (2, 8, 6)], ids=["field", "bars", "color", "two channels"])
def test_pages_of_every_kind_of_stimulus(frame):
    responses = np.random.default_rng(0).normal(size=(400, 2)) - 0.2
    stimulus = np.random.default_rng(1).normal(size=(400, *frame)).astype(np.float32)
    assert "Triggered averages for movie" in recording_page(make(400, stimulus=stimulus, responses=responses))
    assert "No bin is usable" in recording_page(make(400, frame=frame, valid=np.zeros(400, bool)))
    assert recording_page(make(1, frame=frame, trial=None)).startswith("<!doctype html>")


def test_the_raster_has_a_tick_for_every_bin_with_a_spike():
    responses = np.zeros((20, 3))
    responses[[4, 9], [0, 2]] = 2
    responses[12:15] = np.nan
    (axes,) = draw.raster(responses, start=100.0, bin_rate=10.0, counts=True).axes
    np.testing.assert_allclose(axes.lines[0].get_xydata(), [[100.4, 1], [100.9, 3]])
    (shade,) = axes.patches
    np.testing.assert_allclose([shade.get_x(), shade.get_x() + shade.get_width()], [101.2, 101.5])


def test_maps_of_frames_show_the_lag_of_the_largest_value():
    maps = np.zeros((1, 4, 5, 5))
    maps[0, 2, 1, 3] = -2
    (axes,) = draw.average_maps(maps, labels=["unit 7"], bin_rate=100.0).axes
    assert axes.get_title() == "unit 7, -20 ms"
    np.testing.assert_array_equal(axes.images[0].get_array(), maps[0, 2])
    bars = np.zeros((1, 4, 6))
    bars[0, 3, 2] = 1  # three bins before the response: leftmost
    (axes,) = draw.average_maps(bars, labels=["unit 7"], bin_rate=100.0).axes
    shown = axes.images[0]
    assert np.unravel_index(np.argmax(shown.get_array()), (6, 4)) == (2, 0)
    np.testing.assert_allclose(shown.get_extent()[:2], [-35, 5])
