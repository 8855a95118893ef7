"""NWB 2 files as labs and archives write them, read to the value; all are written by pynwb."""

import io
import sys
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("pynwb", reason="the extra `nwb` is not installed")
h5py = pytest.importorskip("h5py", reason="the extra `nwb` is not installed")

from neurotwin.data.formats import find_format, read_session  # noqa: E402
from neurotwin.data.formats.nwb import nwb_mapping, signals  # noqa: E402
from neurotwin.data.formats.nwb.contents import Signal  # noqa: E402
from neurotwin.data.formats.nwb.hdf import Series  # noqa: E402
from neurotwin.data.session import Session, SessionError  # noqa: E402

ONSETS = 1 + np.arange(30) / 10


@pytest.fixture
def nwb(builder):
    """The builder of NWB files."""
    return builder("nwb")


@pytest.fixture
def convert(tmp_path):
    """Read a file by a mapping that is given as a dictionary."""

    def convert_by(path, mapping: dict, **options) -> Session:
        file = tmp_path / "mapping.yaml"
        file.write_text(yaml.safe_dump(mapping))
        return read_session(path, mapping=str(file), **options)

    return convert_by


def plan(path) -> dict:
    """What `inspect` writes of a file, as a dictionary."""
    return yaml.safe_load(nwb_mapping(path))


@pytest.mark.parametrize(
    ("place", "kind"),
    [
        ("stimulus", "ImageSeries"),
        ("stimulus", "OpticalSeries"),
        ("stimulus", "TimeSeries"),
        ("stimulus_template", "ImageSeries"),
        ("screen", "TimeSeries"),
        ("screen", "ImageSeries"),
    ],
)
def test_a_lab_s_movie_units_trials_and_behaviour(tmp_path, nwb, place, kind):
    nwb.lab(tmp_path / "ada_5.nwb", place=place, kind=kind)
    assert find_format(tmp_path / "ada_5.nwb") == "nwb"
    session = read_session(tmp_path / "ada_5.nwb")
    assert (session.name, session.subject, session.bin_rate) == ("ada_5", "ada", pytest.approx(10))
    assert session.info["lab"] == "lab of tests"
    np.testing.assert_array_equal(session.stimulus, nwb.movie())
    np.testing.assert_allclose(session.time, ONSETS)
    for unit in range(2):
        expected = np.histogram(nwb.SPIKES[unit], np.append(ONSETS, 4.0))[0]
        np.testing.assert_array_equal(np.asarray(session.responses)[:, unit], expected)
    assert session.unit_ids.tolist() == [3, 9]
    assert session.unit_labels["quality"].tolist() == ["good", "mua"]
    assert session.trial.tolist() == [0] * 10 + [-1] * 5 + [1] * 15
    assert set(session.stimulus_type) == {"movie"}
    assert (session.repeat_id == -1).all()
    middle = ONSETS + 0.05
    np.testing.assert_allclose(session.behavior["running"], 10 * middle, rtol=1e-6)
    seen = middle <= 3.6
    np.testing.assert_allclose(session.behavior["eye_gaze"][seen], 2 * np.stack([middle, -middle], 1)[seen], rtol=1e-6)
    invalid = seen.copy()
    invalid[[3, 4]] = False  # 1.32 to 1.41 s
    assert session.valid.tolist() == invalid.tolist()
    licks = np.histogram(nwb.LICKS, np.append(ONSETS, 4.0))[0]
    np.testing.assert_array_equal(session.behavior["licks"], licks)
    np.testing.assert_allclose(session.behavior["epochs_reward"][:6], [0, 0, 0.5, 1, 1, 0], atol=1e-6)
    notes = " ".join(session.notes)
    for part in ("5 bins of 'movie' are in no row", "2 bins are not valid: they lie in intervals/invalid_times",
                 "4 bins are not valid: behaviour 'eye_gaze'"):  # fmt: skip
        assert part in notes


def test_a_session_is_saved_and_loaded(tmp_path, nwb):
    nwb.allen(tmp_path / "a.nwb")
    session = read_session(tmp_path / "a.nwb")
    assert Session.load(session.save(tmp_path / "a.safetensors")) == session


def test_pieces_between_blanks_are_trials(tmp_path, nwb):
    times = np.concatenate([np.arange(10), 15 + np.arange(12), [40], 45 + np.arange(7)]) / 10
    times[[3, 25]] = np.nan
    nwb.lab(tmp_path / "a.nwb", times=times, trials=False)
    session = read_session(tmp_path / "a.nwb")
    # A frame without a time is a dropped frame, and no blank.
    assert session.trial.tolist() == [0] * 9 + [1] * 12 + [2] + [3] * 6
    known = np.isfinite(times)
    np.testing.assert_array_equal(session.stimulus, nwb.movie()[known])
    np.testing.assert_array_equal(session.time, times[known])
    assert "2 frames without a time (NaN) are left out" in " ".join(session.notes)


def test_allen_neuropixels(tmp_path, nwb):
    nwb.allen(tmp_path / "a.nwb", images=False)
    session = read_session(tmp_path / "a.nwb")
    assert session.subject == "699733573"
    assert set(session.stimulus_type) == {"natural_movie_one"}
    np.testing.assert_array_equal(session.stimulus, nwb.movie(4, 1)[[0, 1, 2, 3] * 3])
    np.testing.assert_allclose(session.time, [row[0] for row in nwb.MOVIE_ROWS])
    assert session.trial.tolist() == np.repeat([0, 1, 2], 4).tolist()
    assert session.repeat_id.tolist() == [0, 1, 2, 3] * 3
    assert session.unit_ids.tolist() == [950, 955]
    assert session.unit_labels["area"].tolist() == ["VISp", "VISl"]
    np.testing.assert_array_equal(session.unit_positions, [[0, 2, 3], [50, 2, 3]])
    np.testing.assert_array_equal(np.asarray(session.responses)[:, 0], [2] + [0] * 10 + [1])
    assert set(session.behavior) == {"running_speed", "pupil_ellipse_fits_width"}
    np.testing.assert_allclose(session.behavior["running_speed"], 3 * (session.time + 0.05), rtol=1e-5)
    notes = " ".join(session.notes)
    for condition in ("quality == good", "isi_violations < 0.5", "amplitude_cutoff < 0.1", "presence_ratio > 0.9"):
        assert f"1 of 6 units are left out: they do not meet '{condition}'" in notes
    assert "intervals/drifting_gratings_presentations (1 rows) is left out" in notes


def test_stimuli_of_different_rates_share_the_faster_clock(tmp_path, nwb):
    nwb.allen(tmp_path / "a.nwb")
    session = read_session(tmp_path / "a.nwb")
    assert session.bin_rate == pytest.approx(10)
    images = session.stimulus_type == "natural_scenes"
    assert images.tolist() == [False] * 12 + [True] * 14
    frames = np.concatenate([nwb.movie(3, 2), np.full((1, 4, 5), 127, np.uint8)])  # the last one is the blank sweep
    shown = [frame for _, frame in nwb.IMAGE_ROWS for _ in range(2)]
    np.testing.assert_array_equal(np.asarray(session.stimulus[:])[images], frames[shown])
    np.testing.assert_allclose(session.time[images][:4], [10.0, 10.1, 10.25, 10.35])
    assert session.trial[images].tolist() == np.repeat(np.arange(3, 10), 2).tolist()
    ids = session.repeat_id[images].reshape(-1, 2)
    assert (ids[0] == ids[4]).all() and (ids[1] == ids[6]).all() and (ids[2] == ids[5]).all()
    assert ids[3].tolist() == [-1, -1] and len(set(ids[:3].ravel())) == 6
    one = read_session(tmp_path / "a.nwb", stimulus="natural_scenes")
    assert one.bin_rate == pytest.approx(4)
    np.testing.assert_array_equal(one.stimulus, frames[shown[::2]])


def test_templates_in_another_file(tmp_path, nwb, convert):
    nwb.allen(tmp_path / "a.nwb", templates=False)
    with pytest.raises(SessionError, match=r"a\.nwb: holds no movie: .*drifting_gratings_presentations.*FRAMES\.npy"):
        read_session(tmp_path / "a.nwb")
    np.save(tmp_path / "scenes.npy", nwb.movie(3, 2))
    nwb.allen(tmp_path / "templates.nwb")
    table = {"table": "intervals/natural_scenes_presentations", "frame": "frame", "trials": "rows"}
    for source in ({"file": "scenes.npy"}, {"file": "templates.nwb", "series": "stimulus/templates/natural_scenes"}):
        mapping = {"stimuli": [{"name": "scenes", **table, **source}], "units": {}, "blank": 0}
        session = convert(tmp_path / "a.nwb", mapping)
        frames = np.concatenate([nwb.movie(3, 2), np.zeros((1, 4, 5), np.uint8)])
        np.testing.assert_array_equal(session.stimulus, frames[[frame for _, frame in nwb.IMAGE_ROWS]])
        assert session.n_units == 6
    mapping["stimuli"][0]["file"] = "absent.npy"
    with pytest.raises(SessionError, match=r"absent\.npy: no such file; it is named as `file`"):
        convert(tmp_path / "a.nwb", mapping)
    mapping["stimuli"][0] |= {"file": "templates.nwb", "series": "stimulus/templates/none"}
    with pytest.raises(SessionError, match="there is no such object"):
        convert(tmp_path / "a.nwb", mapping)


@pytest.mark.parametrize("turned", [False, True])
def test_imaging_goes_below_zero_and_nan_is_masked(tmp_path, nwb, turned):
    nwb.calcium(tmp_path / "c.nwb", turned=turned)
    session = read_session(tmp_path / "c.nwb")
    assert session.unit_ids.tolist() == [700, 703]
    samples = [[10, 11, 12], [18, 19], [25, 26, 27], [33, 34]]  # within 250 ms of each onset
    expected = np.asarray([np.mean(part) - 20 for part in samples])
    np.testing.assert_allclose(np.asarray(session.responses)[:, 1], expected - 30, atol=1e-4)
    np.testing.assert_allclose(np.asarray(session.responses)[1:, 0], expected[1:], atol=1e-4)
    assert session.valid.tolist() == [False, True, True, True]  # sample 12 of region 0 is NaN
    frames = np.concatenate([nwb.movie(2, 3), np.full((1, 4, 5), 127, np.uint8)])
    np.testing.assert_array_equal(session.stimulus, frames[[0, 1, 2, 0]])
    assert session.trial.tolist() == [0, 1, 2, 3]
    assert session.repeat_id.tolist() == [0, -1, -1, 0]
    assert session.behavior["volume"].tolist() == [1, 0, 0, 1]
    notes = " ".join(session.notes)
    for part in ("1 rows name no image (omitted) and are blanks", "they do not meet 'valid_roi == true'",
                 "1 regions of processing/ophys/dff/traces are left out: they hold only NaN",
                 "processing/ophys/neuropil_trace/neuropil are left out"):  # fmt: skip
        assert part in notes


def test_planes_are_joined(tmp_path, nwb):
    with nwb.writing(tmp_path / "p.nwb") as (pynwb, file):
        file.add_stimulus(pynwb.image.ImageSeries("movie", data=nwb.movie(), unit="", starting_time=1.0, rate=10.0))
        device = file.create_device("scope")
        channel = pynwb.ophys.OpticalChannel("green", "green", 500.0)
        segmentation, series = pynwb.ophys.ImageSegmentation(), []
        module = file.create_processing_module("ophys", "imaging")
        module.add(segmentation)
        for number in range(2):
            plane = file.create_imaging_plane(
                name=f"plane{number}", optical_channel=channel, description="", device=device, excitation_lambda=910.0,
                indicator="GCaMP6f", location="V1",
            )  # fmt: skip
            cells = segmentation.create_plane_segmentation("cells", plane, f"cells{number}")
            for _ in range(2 + number):
                cells.add_roi(image_mask=np.eye(3))
            region = cells.create_roi_table_region(region=list(range(2 + number)), description="")
            values = np.full((60, 2 + number), 10.0 * number) + np.arange(2 + number)
            series.append(pynwb.ophys.RoiResponseSeries(
                f"plane{number}", data=values, rois=region, unit="NA", starting_time=0.02 * number, rate=10.0
            ))  # fmt: skip
        module.add(pynwb.ophys.Fluorescence(roi_response_series=series, name="Deconvolved"))
    session = read_session(tmp_path / "p.nwb")
    np.testing.assert_allclose(np.asarray(session.responses), np.tile([0, 1, 10, 11, 12], (30, 1)))
    assert session.unit_ids.tolist() == [0, 1, 2, 3, 4]
    assert (
        session.unit_labels["plane"].tolist()
        == ["processing/ophys/Deconvolved/plane0"] * 2 + ["processing/ophys/Deconvolved/plane1"] * 3
    )


def test_trials_that_say_which_image_was_shown(tmp_path, nwb):
    with nwb.writing(tmp_path / "t.nwb") as (pynwb, file):
        pictures = [pynwb.image.GrayscaleImage(name=f"im{n}", data=nwb.movie(1, n)[0]) for n in range(3)]
        file.add_stimulus_template(pynwb.base.Images(name="pictures", images=pictures, description=""))
        file.add_trial_column("image_id", "which")
        for number, image in enumerate([2, 0, 2, 1]):
            file.add_trial(start_time=1.0 + number, stop_time=1.3 + number, image_id=image)
        file.add_unit(spike_times=[1.0, 1.29, 1.31, 3.1])
    session = read_session(tmp_path / "t.nwb")
    np.testing.assert_array_equal(session.stimulus, np.concatenate([nwb.movie(1, n) for n in (2, 0, 2, 1)]))
    assert np.asarray(session.responses)[:, 0].tolist() == [2, 0, 1, 0]
    assert session.trial.tolist() == [0, 1, 2, 3] and session.repeat_id.tolist() == [0, -1, 0, -1]
    assert session.bin_rate == pytest.approx(1 / 0.3)


def test_imaging_between_samples_is_interpolated(tmp_path, nwb):
    nwb.calcium(tmp_path / "c.nwb", missing=False)
    session = read_session(tmp_path / "c.nwb", bin_rate=20)
    assert session.n_bins == 4 * 5
    middle = session.time + 0.025
    expected = 10 * middle[:, None] - 10.0 * np.array([0, 2, 3]) - 20
    np.testing.assert_allclose(session.responses, expected, atol=1e-4)
    assert session.valid.all()


def test_slow_imaging_sets_the_clock(tmp_path, nwb):
    nwb.calcium(tmp_path / "c.nwb", missing=False, times=np.arange(0, 6, 0.5), clip=True)
    session = read_session(tmp_path / "c.nwb", stimulus="clip")
    assert (session.bin_rate, session.n_bins) == (pytest.approx(2), 10)
    np.testing.assert_array_equal(session.stimulus, nwb.movie(50)[2::5])  # on at the middle of bins of 0.5 s from 0.5 s
    np.testing.assert_allclose(np.asarray(session.responses)[:, 0], np.arange(10) + 1.5 - 20, atol=1e-4)
    assert "bins follow the imaging (2 Hz)" in " ".join(session.notes)
    assert read_session(tmp_path / "c.nwb", stimulus="Natural_Images_A").bin_rate == pytest.approx(4)


@pytest.mark.parametrize("order", [True, False])
def test_images_and_an_index_series(tmp_path, nwb, order):
    nwb.indexed(tmp_path / "i.nwb", order=order)
    session = read_session(tmp_path / "i.nwb")
    images = [nwb.movie(1, seed)[0] for seed in ((4, 5, 6) if order else (5, 4, 6))]
    np.testing.assert_array_equal(session.stimulus, np.stack(images)[[0, 2, 1, 0]])
    np.testing.assert_array_equal(session.time, [1, 1.5, 2, 2.5])
    assert session.repeat_id.tolist() == [0, -1, -1, 0]


def test_images_of_different_sizes(tmp_path, nwb):
    nwb.indexed(tmp_path / "i.nwb", sizes=True)
    with pytest.raises(SessionError, match="different sizes"):
        read_session(tmp_path / "i.nwb")


def test_ibl(tmp_path, nwb):
    nwb.ibl(tmp_path / "i.nwb")
    with pytest.raises(
        SessionError, match=r"gabor_table gives parameters .*position, contrast, phase.*no frames; render"
    ):
        read_session(tmp_path / "i.nwb")
    text = nwb_mapping(tmp_path / "i.nwb")
    assert "# A session cannot be made of it by itself" in text and "gabor_stimulus_contrast" in text
    nwb.ibl(tmp_path / "noise.nwb", noise=True)
    session = read_session(tmp_path / "noise.nwb")
    np.testing.assert_array_equal(session.stimulus, nwb.movie(20, 7, (15, 15)))
    assert session.unit_labels["area"].tolist() == ["VISp", "CA1"]
    assert session.unit_labels["quality"].tolist() == ["good", "mua"]
    assert session.trial.tolist() == [0] * 20
    assert "no bin of 'rfm_stim' lies in a row of intervals/trials" in " ".join(session.notes)


def test_a_movie_from_0_to_1(tmp_path, nwb):
    data = nwb.movie() / 255.0
    data[7, 0, 0] = np.nan
    nwb.lab(tmp_path / "f.nwb", data=data)
    kept = read_session(tmp_path / "f.nwb")
    assert kept.stimulus.dtype == np.float32
    np.testing.assert_allclose(kept.stimulus, np.nan_to_num(data), rtol=1e-6)
    assert not kept.valid[7] and kept.valid[8]
    notes = " ".join(kept.notes)
    assert "`scale: 255`" in notes and "1 bins of 'movie' are not valid: their frames hold NaN" in notes
    scaled = read_session(tmp_path / "f.nwb", scale=255)
    assert scaled.stimulus.dtype == np.uint8
    np.testing.assert_array_equal(scaled.stimulus[8:], nwb.movie()[8:])


def test_numbers_that_are_no_grey_levels(tmp_path, nwb):
    nwb.lab(tmp_path / "f.nwb", data=nwb.movie().astype(np.int16) * 4)
    with pytest.raises(SessionError, match=r"f\.nwb: stimulus/presentation/movie holds grey levels .* give `scale`"):
        read_session(tmp_path / "f.nwb").save(tmp_path / "f.safetensors")
    assert read_session(tmp_path / "f.nwb", scale=0.25).stimulus.dtype == np.uint8


def test_colours_and_axes(tmp_path, nwb, convert):
    data = nwb.movie(shape=(4, 5, 3))
    nwb.lab(tmp_path / "c.nwb", data=data)
    np.testing.assert_array_equal(read_session(tmp_path / "c.nwb").stimulus, np.moveaxis(data, -1, 1))
    mapping = plan(tmp_path / "c.nwb")
    mapping["stimuli"][0]["swap_axes"] = True
    swapped = convert(tmp_path / "c.nwb", mapping).stimulus
    np.testing.assert_array_equal(swapped, data.transpose(0, 3, 2, 1))


def test_the_demo_of_the_documentation(tmp_path, nwb):
    nwb.demo(tmp_path / "ada_0501.nwb")
    session = read_session(tmp_path / "ada_0501.nwb")
    assert (session.n_bins, session.n_units, session.trial.max()) == (1200, 4, 19)
    repeats = session.repeat_id.reshape(20, 60)
    assert [int(ids[0] >= 0) for ids in repeats] == [1, 0, 0, 0, 0] * 4
    assert (repeats[::5] == repeats[0]).all() and len(set(repeats[0])) == 60


@pytest.mark.parametrize(("change", "same"), [(0, True), (1, True), (2, False)])
def test_repeats_of_a_movie_without_a_table(tmp_path, nwb, change, same):
    data = nwb.movie() // 2
    data[15:25] = data[:10]
    data[20, 2, 2] += change  # neither of the first, the middle nor the last frame that are compared first
    nwb.lab(tmp_path / "r.nwb", data=data)
    session = read_session(tmp_path / "r.nwb")
    first, second = session.repeat_id[:10], session.repeat_id[15:25]
    assert (first == second).all() == same or not same
    assert (first >= 0).all() == same
    assert (session.repeat_id[10:15] == -1).all() and (session.repeat_id[25:] == -1).all()


def two_movies(nwb, path, start: float, shape=(4, 5)) -> None:
    with nwb.writing(path) as (pynwb, file):
        for number, (begin, size) in enumerate([(1.0, (4, 5)), (start, shape)]):
            file.add_stimulus(pynwb.image.ImageSeries(
                f"movie_{number}", data=nwb.movie(10, number, size), unit="n.a.", starting_time=begin, rate=10.0
            ))  # fmt: skip
        file.add_epoch_column("part", "name")
        file.add_epoch(start_time=0.0, stop_time=1.5, part="before")
        file.add_epoch(start_time=1.5, stop_time=9.0, part="after")
        for unit in nwb.SPIKES:
            file.add_unit(spike_times=unit)


def test_several_movies_are_several_types(tmp_path, nwb, convert):
    two_movies(nwb, tmp_path / "m.nwb", 3.0)
    session = read_session(tmp_path / "m.nwb")
    assert session.stimulus_type.tolist() == ["movie_0"] * 10 + ["movie_1"] * 10
    np.testing.assert_array_equal(session.stimulus, np.concatenate([nwb.movie(10, 0), nwb.movie(10, 1)]))
    np.testing.assert_array_equal(session.stimulus[7:12], np.asarray(session.stimulus)[7:12])
    assert session.trial.tolist() == [0] * 10 + [1] * 10
    np.testing.assert_array_equal(read_session(tmp_path / "m.nwb", stimulus="movie_1").stimulus, nwb.movie(10, 1))
    with pytest.raises(SessionError, match="no movie 'mvie_0'; did you mean 'movie_0'"):
        read_session(tmp_path / "m.nwb", stimulus="mvie_0")
    mapping = plan(tmp_path / "m.nwb") | {"types": {"table": "intervals/epochs", "column": "part"}}
    assert convert(tmp_path / "m.nwb", mapping).stimulus_type.tolist() == ["before"] * 5 + ["after"] * 15


def test_movies_that_cannot_be_joined(tmp_path, nwb):
    two_movies(nwb, tmp_path / "m.nwb", 1.5)
    with pytest.raises(SessionError, match=r"'movie_0' and 'movie_1' were shown at the same time .* --stimulus"):
        read_session(tmp_path / "m.nwb")
    two_movies(nwb, tmp_path / "n.nwb", 3.0, (5, 5))
    with pytest.raises(SessionError, match=r"movie_0 4x5 uint8, movie_1 5x5 uint8.*--stimulus"):
        read_session(tmp_path / "n.nwb")


def test_frames_of_several_sizes_are_brought_to_one(tmp_path, nwb, convert):
    nwb.allen(tmp_path / "a.nwb", sizes=True)
    with pytest.raises(SessionError, match=r"natural_movie_one 4x5 uint8, natural_scenes 6x5 uint8.*`size: \[H, W\]`"):
        read_session(tmp_path / "a.nwb")
    session = convert(tmp_path / "a.nwb", plan(tmp_path / "a.nwb") | {"size": [2, 5]})
    assert session.frame_shape == (1, 2, 5)
    frames = np.asarray(session.stimulus)
    np.testing.assert_array_equal(frames[:4], np.rint(nwb.movie(4, 1).reshape(4, 2, 2, 5).mean(2)))
    image = nwb.movie(3, 2, (6, 5))[2].reshape(2, 3, 5).mean(1)
    np.testing.assert_allclose(frames[12], image, atol=0.51)


def test_series_of_a_module_that_are_no_movies(tmp_path, nwb):
    nwb.ibl(tmp_path / "i.nwb", noise=True)
    with h5py.File(tmp_path / "i.nwb", "a") as file:
        file.copy("processing/passive_protocol/rfm_stim", "processing/passive_protocol/markers")
        group = file["processing/passive_protocol/markers"]
        del group["data"]
        group["data"] = np.arange(120.0).reshape(20, 3, 2)
        file.copy("processing/passive_protocol/rfm_stim", "stimulus/presentation/level")
        del file["stimulus/presentation/level/data"]
        file["stimulus/presentation/level/data"] = np.arange(20, dtype=np.uint8)
    session = read_session(tmp_path / "i.nwb")
    assert set(session.stimulus_type) == {"rfm_stim"}
    # Markers are sampled at the onsets of the frames, so that a bin's middle lies between two samples.
    np.testing.assert_allclose(session.behavior["markers"][:19], np.arange(114).reshape(19, 6) + 3, rtol=1e-5)
    assert "stimulus/presentation/level is left out: it holds no frames" in " ".join(session.notes)
    mapping = tmp_path / "level.yaml"
    mapping.write_text("stimuli: [{name: level, series: stimulus/presentation/level}]\nunits: {}\n")
    flicker = read_session(tmp_path / "i.nwb", mapping=str(mapping))
    np.testing.assert_array_equal(flicker.stimulus, np.arange(20))


def test_blanks_may_be_bridged(tmp_path, nwb, convert):
    nwb.calcium(tmp_path / "c.nwb", missing=False)
    mapping = plan(tmp_path / "c.nwb") | {"bin_rate": 8, "fill_gaps": 0.6}
    session = convert(tmp_path / "c.nwb", mapping)
    assert session.trial.tolist() == [0] * 20
    frames = np.concatenate([nwb.movie(2, 3), np.full((1, 4, 5), 127, np.uint8)])
    shown = [0, 0, 2, 2, 2, 2, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 0, 0]
    np.testing.assert_array_equal(session.stimulus, frames[shown])


def test_bins_of_another_rate(tmp_path, nwb):
    nwb.lab(tmp_path / "l.nwb")
    session = read_session(tmp_path / "l.nwb", bin_rate=5)
    assert (session.n_bins, session.bin_rate) == (15, 5)
    np.testing.assert_array_equal(session.stimulus, nwb.movie()[1::2])  # the frame that is on at the middle
    expected = np.histogram(nwb.SPIKES[0], np.append(ONSETS[::2], 4.0))[0]
    np.testing.assert_array_equal(np.asarray(session.responses)[:, 0], expected)


def test_rows_that_play_whole_movies(tmp_path, nwb, convert):
    nwb.lab(tmp_path / "l.nwb", spikes=[np.arange(0, 9, 0.01)])
    np.save(tmp_path / "clip.npy", nwb.movie(5, 9))
    stimulus = {"name": "clip", "file": "clip.npy", "table": "intervals/trials", "trials": "rows"}
    with pytest.raises(SessionError, match=r"presentations last between 0\.2 and 0\.3 s; give --bin_rate"):
        convert(tmp_path / "l.nwb", {"stimuli": [stimulus], "units": {}})
    session = convert(tmp_path / "l.nwb", {"stimuli": [stimulus], "units": {}, "bin_rate": 10})
    shown = np.concatenate([np.repeat(np.arange(5), 2), np.repeat(np.arange(5), 3)])
    np.testing.assert_array_equal(session.stimulus, nwb.movie(5, 9)[shown])
    assert session.trial.tolist() == [0] * 10 + [1] * 15
    assert session.repeat_id[0] == session.repeat_id[10] >= 0 and session.repeat_id[2] == -1
    assert "each of 2 rows of intervals/trials is taken to play all 5 frames" in " ".join(session.notes)


@pytest.mark.parametrize("layout", ["lab", "allen", "calcium", "indexed"])
def test_what_inspect_writes_gives_the_same_session(tmp_path, nwb, convert, layout):
    path = tmp_path / "a.nwb"
    getattr(nwb, layout)(path)
    text = nwb_mapping(path)
    (tmp_path / "written.yaml").write_text(text)
    assert read_session(path, mapping=str(tmp_path / "written.yaml")) == read_session(path)
    assert text.startswith("# What lies in a.nwb")


def test_units_by_conditions(tmp_path, nwb, convert):
    nwb.lab(tmp_path / "l.nwb")
    mapping = plan(tmp_path / "l.nwb")
    for condition, kept in [("presence_ratio > 0.9", [3]), ("presence_ratio <= 0.5", [9]), ("quality != good", [9]),
                            ("quality in [good, mua]", [3, 9]), ("quality not in [mua]", [3]),
                            ("id == 9", [9])]:  # fmt: skip
        mapping["units"]["where"] = [condition]
        assert convert(tmp_path / "l.nwb", mapping).unit_ids.tolist() == kept
    for condition, message in [
        ("presence_ratio > 2", "none of the 2 units of units meets presence_ratio > 2"),
        ("presence > 0.9", "has no column 'presence'; did you mean 'presence_ratio'"),
        ("presence_ratio ~ 1", "is not COLUMN OPERATOR VALUE"),
        ("quality > good", "orders text"),
        ("presence_ratio == good", "compares numbers with text"),
    ]:
        mapping["units"]["where"] = [condition]
        with pytest.raises(SessionError, match=message):
            convert(tmp_path / "l.nwb", mapping)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"unit": {}}, r"mapping .*mapping\.yaml: unknown key 'unit'; did you mean 'units'"),
        ({"rois": {"series": ["a"]}}, "give either `units` or `rois`"),
        ({"stimuli": []}, "stimuli: "),
        ({"stimuli": [{"name": "a"}]}, r"stimuli\.0: give `series`"),
        ({"stimuli": [{"name": "a", "series": "x", "frame": "f"}]}, "no `table` is given"),
        ({"stimuli": [{"name": "a", "series": "x"}, {"name": "a", "series": "y"}]}, "the same name"),
        ({"stimuli": [{"name": "a", "series": "x"}]}, "x: there is no such object"),
        ({"exclude": ["intervals/bad"]}, "there is no table 'intervals/bad'"),
        ({"behavior": {"x": {"series": "processing/x"}}}, "behavior 'x': there is no series 'processing/x'"),
        ({"behavior": {"x": {"series": "processing/behavior/words"}}}, "no numbers"),
        ({"units": {"table": "processing/units"}}, "has no table 'processing/units' with spike_times"),
        ({"units": None, "rois": {"series": ["processing/a"]}}, "has no RoiResponseSeries 'processing/a'"),
    ],
)
def test_mappings_that_are_wrong(tmp_path, nwb, convert, change, message):
    nwb.lab(tmp_path / "l.nwb")
    mapping = plan(tmp_path / "l.nwb") | change
    with pytest.raises(SessionError, match=message) as error:
        convert(tmp_path / "l.nwb", mapping)
    assert "\n" not in str(error.value)


def test_mapping_files_that_are_none(tmp_path, nwb):
    nwb.lab(tmp_path / "l.nwb")
    (tmp_path / "list.yaml").write_text("- 1")
    (tmp_path / "broken.yaml").write_text("a: [")
    for name, message in (("none", "cannot be read"), ("list", "must hold keys"), ("broken", "not YAML")):
        with pytest.raises(SessionError, match=message):
            read_session(tmp_path / "l.nwb", mapping=str(tmp_path / f"{name}.yaml"))


def test_bins_in_which_a_unit_was_not_observed(tmp_path, nwb):
    nwb.lab(tmp_path / "o.nwb", obs=True)
    session = read_session(tmp_path / "o.nwb")
    assert not session.valid[20:].any() and session.valid[:3].all()
    assert "1 units were not observed in all bins" in " ".join(session.notes)


def test_a_signal_that_is_hardly_known_is_left_out_unless_named(tmp_path, nwb, convert):
    with nwb.writing(tmp_path / "s.nwb") as (pynwb, file):
        file.add_stimulus(pynwb.image.ImageSeries("movie", data=nwb.movie(), unit="", starting_time=1.0, rate=10.0))
        file.add_unit(spike_times=nwb.SPIKES[0])
        module = file.create_processing_module("pupil", "pupil")
        module.add(pynwb.TimeSeries("diameter", data=np.ones(10), unit="mm", starting_time=1.0, rate=10.0))
        file.add_acquisition(pynwb.TimeSeries("raw", data=np.arange(90.0), unit="V", starting_time=0.0, rate=20.0))
    session = read_session(tmp_path / "s.nwb")
    assert not session.behavior and session.valid.all()
    notes = " ".join(session.notes)
    assert "behaviour 'diameter' is left out: it is known in 30% of the bins only" in notes
    assert "acquisition/raw is left out" in notes
    mapping = plan(tmp_path / "s.nwb")
    mapping["behavior"]["raw"] = {"series": "acquisition/raw"}
    session = convert(tmp_path / "s.nwb", mapping)
    assert session.valid.sum() == 9
    np.testing.assert_allclose(session.behavior["raw"], 20 * (ONSETS + 0.05), rtol=1e-6)


def test_frames_in_a_video_file(tmp_path, nwb, convert):
    nwb.lab(tmp_path / "v.nwb", external=True)
    with pytest.raises(SessionError, match=r"v\.nwb: the frames of stimulus/presentation/movie lie in a video file"):
        read_session(tmp_path / "v.nwb")
    mapping = plan(tmp_path / "v.nwb")
    stimulus = {"name": "movie", "series": "stimulus/presentation/movie", "file": "frames.npy"}
    mapping["stimuli"] = [stimulus]
    for count in (30, 29):
        np.save(tmp_path / "frames.npy", nwb.movie(count))
        if count == 30:
            session = convert(tmp_path / "v.nwb", mapping)
            np.testing.assert_array_equal(session.stimulus, nwb.movie())
            np.testing.assert_allclose(session.time, ONSETS)
    with pytest.raises(SessionError, match="30 times of stimulus/presentation/movie for 29 frames"):
        convert(tmp_path / "v.nwb", mapping)


def test_a_file_without_responses(tmp_path, nwb):
    with nwb.writing(tmp_path / "s.nwb") as (pynwb, file):
        file.add_stimulus(pynwb.image.ImageSeries("movie", data=nwb.movie(), unit="", starting_time=1.0, rate=10.0))
    with pytest.raises(SessionError, match="no units table, so no sorted spikes, and no RoiResponseSeries"):
        read_session(tmp_path / "s.nwb")


def test_files_that_are_no_nwb_2(tmp_path, monkeypatch):
    (tmp_path / "a.nwb").write_bytes(b"no HDF5")
    with pytest.raises(SessionError, match=r"a\.nwb: not an NWB file"):
        read_session(tmp_path / "a.nwb")
    with h5py.File(tmp_path / "b.nwb", "w") as file:
        file.attrs["nwb_version"] = "1.0.6"
    with pytest.raises(SessionError, match=r"is of NWB 1\.0\.6; only NWB 2"):
        read_session(tmp_path / "b.nwb")
    with h5py.File(tmp_path / "c.nwb", "w") as file:
        file["x"] = 1
    with pytest.raises(SessionError, match="has no version of NWB"):
        read_session(tmp_path / "c.nwb")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(SessionError, match=r"pip install 'neurotwin\[nwb\]'"):
        read_session(tmp_path / "a.nwb")


def test_a_file_in_an_archive(tmp_path, nwb, monkeypatch):
    nwb.lab(tmp_path / "far.nwb")
    (tmp_path / "ada_7.nwb.url").write_text("https://archive.test/ada.nwb\n")
    asked = []

    def fetch(address):
        asked.append(address)
        return io.BytesIO((tmp_path / "far.nwb").read_bytes())

    monkeypatch.setitem(sys.modules, "remfile", SimpleNamespace(File=fetch))
    session = read_session(tmp_path / "ada_7.nwb.url")
    assert asked == ["https://archive.test/ada.nwb"] and session.name == "ada_7"
    np.testing.assert_array_equal(session.stimulus, nwb.movie())
    (tmp_path / "bad.nwb.url").write_text("far.nwb")
    with pytest.raises(SessionError, match="must hold one address"):
        read_session(tmp_path / "bad.nwb.url")
    monkeypatch.setitem(sys.modules, "remfile", None)
    with pytest.raises(SessionError, match="needs remfile"):
        read_session(tmp_path / "ada_7.nwb.url")


def test_frames_that_are_not_there_and_rows_that_overlap(tmp_path, nwb, convert):
    nwb.allen(tmp_path / "a.nwb")
    mapping = plan(tmp_path / "a.nwb")
    np.save(tmp_path / "two.npy", nwb.movie(2, 2))
    mapping["stimuli"] = [mapping["stimuli"][1] | {"file": "two.npy"}]
    with pytest.raises(SessionError, match=r"frame 2 was shown, but .*two\.npy has 2, counted from 0"):
        convert(tmp_path / "a.nwb", mapping)
    mapping["stimuli"][0]["where"] = ["frame < 2"]
    assert convert(tmp_path / "a.nwb", mapping).n_bins == 5
    with nwb.writing(tmp_path / "b.nwb") as (pynwb, file):
        file.add_stimulus_template(pynwb.image.ImageSeries(
            "pictures", data=nwb.movie(3), unit="", timestamps=np.full(3, np.nan)
        ))  # fmt: skip
        table = pynwb.epoch.TimeIntervals("pictures_presentations")
        table.add_column("stimulus_frame", "frame")
        for number in range(3):
            table.add_interval(start_time=number * 0.1, stop_time=number * 0.1 + 0.3, stimulus_frame=number)
        file.add_time_intervals(table)
        file.add_unit(spike_times=nwb.SPIKES[0])
    with pytest.raises(SessionError, match=r"2 rows of intervals/pictures_presentations begin before .*`where`"):
        read_session(tmp_path / "b.nwb")


def as_series(values: np.ndarray, times: np.ndarray) -> Series:
    data = SimpleNamespace(shape=values.shape, ndim=values.ndim, dtype=values.dtype, attrs={})

    class Data:
        def __getitem__(self, part):
            return values[part]

    stored = Data()
    vars(stored).update(vars(data))
    return Series("processing/x", "x", "TimeSeries", stored, times)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(1, 9), st.integers(0, 2**31))
def test_signals_are_interpolated_block_by_block(samples, block, seed):
    rng = np.random.default_rng(seed)
    times = np.sort(rng.uniform(0, 5, samples))
    values = rng.normal(size=(samples, 2))
    values[rng.random(samples) < 0.1] = np.nan
    bins = np.arange(0, 5, 0.21)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(signals, "_SAMPLES", 2 * block)
        found = signals.on_bins(Signal(as_series(values, times), "continuous"), bins, 0.2)
    for column in range(2):
        expected = np.interp(bins + 0.1, times, values[:, column], left=np.nan, right=np.nan)
        np.testing.assert_allclose(found[:, column], expected.astype(np.float32), rtol=1e-5, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 90), st.integers(0, 30)), max_size=8))
def test_the_covered_part_of_bins(pairs):
    """Against a grid of hundredths of a bin."""
    intervals = np.asarray([(a, a + b) for a, b in pairs], float).reshape(-1, 2) / 10
    time = np.arange(12.0)
    grid = (np.arange(1200) + 0.5) / 100
    inside = np.zeros(1200, bool)
    for start, stop in intervals:
        inside |= (grid > start) & (grid < stop)
    np.testing.assert_allclose(signals.covered(intervals, time, 1.0), inside.reshape(12, 100).mean(1), atol=1e-9)


def test_counts_in_a_temporary_file_are_the_same(tmp_path, nwb, monkeypatch):
    nwb.lab(tmp_path / "l.nwb")
    expected = np.asarray(read_session(tmp_path / "l.nwb").responses)
    monkeypatch.setattr(signals, "_IN_MEMORY", 0)
    found = read_session(tmp_path / "l.nwb").responses
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(found[11:29], expected[11:29])


def test_memory_does_not_grow_with_the_recording(tmp_path, nwb):
    """A movie of 160 MB is converted with less than half of that."""
    nwb.lab(tmp_path / "l.nwb", trials=False)
    with h5py.File(tmp_path / "l.nwb", "a") as file:
        group = file["stimulus/presentation/movie"]
        attributes = dict(group["data"].attrs)
        del group["data"]
        data = group.create_dataset("data", (4000, 200, 200), np.uint8, chunks=(10, 200, 200), compression="gzip",
                                    compression_opts=1, fillvalue=9)  # fmt: skip
        data.attrs.update(attributes)
        data[3990:] = 5
    tracemalloc.start()
    read_session(tmp_path / "l.nwb").save(tmp_path / "l.safetensors")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 80e6
    stimulus = Session.load(tmp_path / "l.safetensors", verify=False).stimulus
    assert stimulus.shape == (4000, 200, 200) and stimulus[3989, 0, 0] == 9 and stimulus[3990, 0, 0] == 5
