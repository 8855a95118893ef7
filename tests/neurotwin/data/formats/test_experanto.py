"""The Experanto reader on files that a builder writes, to the value."""

import tracemalloc

import numpy as np
import pytest
import yaml

from neurotwin.data.formats import find_format, read_session
from neurotwin.data.formats.devices import open_device
from neurotwin.data.session import Session, SessionError


@pytest.fixture
def module(builder):
    return builder("experanto")


@pytest.fixture
def build(module, tmp_path):
    return lambda **options: module.build(tmp_path, **options)


def _note(session, *words):
    return any(all(word in note for word in words) for note in session.notes)


def _change(file, **values):
    meta = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump(meta | values))


@pytest.mark.parametrize("bin_rate", [None, 30.0, 60.0, 12.0, 7.0])
@pytest.mark.parametrize("options", [{}, {"phase_shifts": False}, {"mapped": False}, {"combined": True}])
def test_every_device_is_brought_to_the_bins(build, module, bin_rate, options):
    path, truth = build(**options)
    assert find_format(path) == "experanto"
    session = read_session(path, bin_rate=bin_rate)
    rate = bin_rate or 30.0
    bins = module.bins_of(truth, rate)
    assert session.bin_rate == pytest.approx(rate) and session.name == path.name and session.subject == "17797"
    np.testing.assert_allclose(session.time, bins["start"], atol=1e-9)
    valid = np.asarray([truth["blocks"][n]["modality"] != "invalid" for n in bins["block"]])
    assert session.valid.tolist() == valid.tolist()
    assert session.trial.tolist() == np.where(valid, bins["block"], -1).tolist()
    np.testing.assert_array_equal(np.asarray(session.stimulus)[valid], bins["shown"][valid])
    middle = (bins["start"] + bins["stop"]) / 2
    np.testing.assert_allclose(
        session.responses, truth["offset"] + np.outer(middle, truth["slope"]), rtol=1e-4, atol=1e-4
    )
    np.testing.assert_allclose(session.behavior["eye_tracker"], np.outer(middle, [1, -2]), rtol=1e-5)
    np.testing.assert_allclose(session.behavior["treadmill"], 1 + 3 * middle, rtol=1e-5)


def test_tiers_and_blocks(build):
    path, truth = build()
    session = read_session(path)
    split = {"train": "train", "oracle": "val", "test": "test", "final_test": "test"}
    block = np.repeat(range(8), [30, 15, 12, 20, 9, 20, 12, 20])
    expected = [split.get(truth["blocks"][n]["tier"]) for n in block]
    assert [s for s, e in zip(session.split, expected, strict=True) if e] == [e for e in expected if e]
    assert set(session.split[block == 1]) == {"train"}
    assert set(session.stimulus_type[block == 1]) == {"blank"} and set(session.stimulus_type[block == 0]) == {"video"}
    assert (np.asarray(session.stimulus[30:45]) == 127).all()
    assert _note(session, "1 blocks", "invalid")
    assert _note(session, "1 of the blocks", "shown in test", "shown in train")


@pytest.mark.parametrize("hashes", [False, True])
def test_repeats(build, hashes):
    session = read_session(build(hashes=hashes)[0])
    block = np.repeat(range(8), [30, 15, 12, 20, 9, 20, 12, 20])
    ids = [session.repeat_id[block == n] for n in range(8)]
    assert ids[3].tolist() == ids[5].tolist() and (ids[3] >= 0).all() and len(set(ids[3])) == 20
    assert ids[2].tolist() == ids[6].tolist() and len(set(ids[2])) == 12
    assert not set(ids[2]) & set(ids[3])
    assert all((ids[n] == -1).all() for n in (0, 1, 4, 7))


def test_a_dropped_frame_is_no_repeat_of_its_place(build):
    path, _ = build()
    file = path / "screen/timestamps.npy"
    times = np.load(file)
    first = 30 + 1 + 1 + 20 + 1  # of the second presentation
    times[first + 10] += 0.8 / 30  # the tenth frame comes a frame late
    np.save(file, times)
    session = read_session(path)
    block = np.flatnonzero(session.trial == 5)
    assert session.repeat_id[block[10]] == -1 and (np.delete(session.repeat_id[block], 10) >= 0).all()
    np.testing.assert_array_equal(session.stimulus[block[10] : block[10] + 1], session.stimulus[block[9] : block[10]])


@pytest.mark.parametrize("how", ["raw", "npy"])
@pytest.mark.parametrize("rate", [30.0, 11.0])
def test_spikes_are_counted(build, module, how, rate):
    path, truth = build(spikes=how)
    session = read_session(path, bin_rate=rate)
    bins = module.bins_of(truth, rate)
    expected = [
        [int(((times >= a) & (times < b)).sum()) for times in truth["spikes"]]
        for a, b in zip(session.time, bins["stop"], strict=True)
    ]
    assert np.asarray(session.responses).tolist() == expected and session.responses.dtype == np.uint16
    np.testing.assert_array_equal(session.responses[40:50], expected[40:50])


def test_unsorted_spikes_and_a_recording_that_ends_early(build, module):
    path, truth = build(spikes="npy")
    sorted_counts = np.asarray(read_session(path).responses)
    flat = np.load(path / "responses/spikes.npy")
    flat[:80] = np.random.default_rng(1).permutation(flat[:80])
    np.save(path / "responses/spikes.npy", flat)
    _change(path / "responses/meta.yml", end_time=float(truth["blocks"][7]["onset"] + 0.1))
    session = read_session(path)
    np.testing.assert_array_equal(session.responses, sorted_counts)
    last = np.flatnonzero(session.trial == 7)
    assert session.valid[last].tolist() == [True] * 3 + [False] * 17
    assert _note(session, "17 bins", "outside of the times of responses")


def test_the_device_of_the_responses(build):
    path, _ = build(spikes="raw")
    (path / "responses").rename(path / "probe")
    assert read_session(path).responses.dtype == np.uint16
    session = read_session(path, responses="eye_tracker")
    assert session.n_units == 2 and set(session.behavior) == {"treadmill"} and _note(session, "spikes of probe")
    with pytest.raises(SessionError, match=r"has no device 'prob' for the responses; did you mean"):
        read_session(path, responses="prob")


def test_units(build):
    path, truth = build()
    session, known = read_session(path), truth["neurons"]
    assert session.unit_ids.tolist() == [100, 101, 102, 103]
    np.testing.assert_array_equal(session.unit_positions, known["cell_motor_coordinates"])
    assert session.unit_labels["field"].tolist() == ["0", "1", "0", "1"]
    session = read_session(build(neurons=False, behavior=False, name="mouse")[0])
    assert session.unit_ids.tolist() == [0, 1, 2, 3] and not session.behavior and session.subject == "mouse"


def test_signals_without_values(build):
    path, _ = build(mapped=False, response_rate=30.0, phase_shifts=False, start=3.0)
    data = np.load(path / "responses/data.npy")
    data[:, 1] = np.nan
    data[::3, 2] = np.nan
    data[30 + 30 + 5, 3] = np.nan  # a second before the screen, and then the blank
    np.save(path / "responses/data.npy", data)
    session = read_session(path)
    assert session.unit_ids.tolist() == [100, 103] and session.unit_labels["field"].tolist() == ["0", "1"]
    assert _note(session, "2 signals of responses", "left out", "10%")
    # The sample lies at the border of two bins, whose middles are interpolated from it.
    assert np.flatnonzero(~session.valid[:60]).tolist() == [34, 35]
    assert _note(session, "bins", "responses has no value") and (np.asarray(session.responses[34:36])[:, 1] == 0).all()
    session = read_session(path, max_missing=0.9)
    assert session.unit_ids.tolist() == [100, 102, 103] and session.valid.mean() < 0.5


def test_a_device_that_begins_late_and_one_without_values(build):
    path, truth = build()
    _change(path / "treadmill/meta.yml", start_time=float(truth["blocks"][2]["onset"]))
    np.save(path / "eye_tracker/data.npy", np.full((10, 2), np.nan))
    session = read_session(path)
    assert set(session.behavior) == {"treadmill"} and not session.valid[:45].any() and session.valid[45:57].all()
    assert _note(session, "2 signals of eye_tracker", "left out") and _note(session, "45 bins", "treadmill")


def test_a_fast_device_is_averaged_over_the_bin(build, module):
    path, _ = build()
    rng = np.random.default_rng(2)
    meta = yaml.safe_load((path / "treadmill/meta.yml").read_text())
    data = rng.normal(size=(meta["n_timestamps"], 1))
    data.tofile(path / "treadmill/data.mem")
    session = read_session(path, bin_rate=10.0)
    clock = meta["start_time"] + np.arange(len(data)) / 100
    for at in (0, 7, 31):
        points = session.time[at] + (np.arange(10) + 0.5) / 100
        expected = np.interp(points, clock, data[:, 0]).mean()
        assert session.behavior["treadmill"][at] == pytest.approx(expected, abs=1e-5)


def test_colours_and_sizes(build):
    path, truth = build(size=(5, 8, 3))
    session = read_session(path)
    assert session.stimulus.shape[1:] == (3, 5, 8)
    np.testing.assert_array_equal(session.stimulus[:30], np.moveaxis(truth["blocks"][0]["frames"], -1, 1))
    assert (np.asarray(session.stimulus[30:45]) == 127).all()
    np.testing.assert_array_equal(session.stimulus[45:46][0], np.moveaxis(truth["blocks"][2]["frames"][0], -1, 0))


def test_other_folders_and_devices_are_said(build):
    path, _ = build()
    (path / "stimuli").mkdir()
    (path / "licks").mkdir()
    (path / "licks/meta.yml").write_text("modality: time_interval\n")
    (path / "meta.json").write_text('{"scan_key": {"animal_id": 23}}')
    session = read_session(path)
    assert (
        session.subject == "23"
        and _note(session, "stimuli", "no meta.yml")
        and _note(session, "licks", "time_interval")
    )
    (path / "meta.json").write_text('{"subject": "ada"}')
    assert read_session(path).subject == "ada"


def test_blocks_too_short_and_frames_left_out(build):
    session = read_session(build()[0], bin_rate=1.1)
    assert _note(session, "blocks are left out", "less than half a bin") and _note(session, "Some frames of videos")
    assert sorted(set(session.trial.tolist())) == [0, 1, 3, 5, 7]


def test_without_any_tier_nothing_is_split(build):
    session = read_session(build(blocks=(("video", None, 30, None), ("blank", None, 0.2, None)))[0])
    assert session.split is None and not _note(session, "split")


def test_tiers_that_are_no_split(build):
    session = read_session(build(blocks=(("video", "train", 30, None), ("video", "none", 20, None)))[0])
    assert session.valid.tolist() == [True] * 30 + [False] * 20
    assert _note(session, "1 trials", "'none'", "for no split")


def test_a_spike_at_the_border_belongs_to_the_bin_that_begins(build):
    path, truth = build(spikes="npy")
    onset = truth["blocks"][0]["onset"]
    np.save(path / "responses/spikes.npy", np.full(320, onset))
    session = read_session(path)
    assert session.responses[0:1].tolist() == [[80] * 4] and not np.asarray(session.responses[1:]).any()
    np.save(path / "responses/spikes.npy", np.full(320, session.time[4]))
    assert np.flatnonzero(np.asarray(read_session(path).responses)[:, 0]).tolist() == [4]


def test_an_image_ends_when_its_meta_says_so(build):
    path, _ = build()
    _change(path / "screen/meta/00002.yml", presentation_time=0.2)
    assert (read_session(path).trial == 2).sum() == 6


def test_a_recording_of_images_alone(build):
    blocks = tuple(("image", "train" if n else "test", 0.5, None) for n in range(6))
    session = read_session(build(blocks=blocks)[0])
    assert session.bin_rate == pytest.approx(2) and session.n_bins == 6
    assert session.trial.tolist() == list(range(6))


def test_a_pause_that_no_block_describes_is_no_video(build):
    path, _ = build(blocks=(("video", "train", 30, None), ("video", "test", 30, None)))
    times = np.load(path / "screen/timestamps.npy")
    times[30:] += 2.0
    np.save(path / "screen/timestamps.npy", times)
    assert read_session(path).n_bins == 60


def test_a_saved_session_is_the_same(build, tmp_path):
    session = read_session(build()[0])
    assert Session.load(session.save(tmp_path / "saved.safetensors")) == session


def test_memory_does_not_grow_with_the_recording(build, tmp_path):
    peaks = []
    for number, count in enumerate((10, 60)):
        blocks = tuple(("video", "train", 30, None) for _ in range(count))
        path, _ = build(blocks=blocks, size=(36, 64), units=50, name=f"m{number}", response_rate=30.0)
        tracemalloc.start()
        read_session(path).save(tmp_path / "saved.safetensors")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 12e6 and peaks[1] < 60e6  # 50 videos more are 14 MB in their files


def _broken(path, name, content):
    file = path / name
    if content is None:
        file.unlink()
    elif isinstance(content, dict):
        _change(file, **content)
    elif isinstance(content, np.ndarray):
        np.save(file, content, allow_pickle=True)
    else:
        file.write_text(content)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("screen/timestamps.npy", np.arange(9)[::-1], r"timestamps\.npy: the times of at least two frames"),
        ("screen/meta/00000.yml", {"num_frames": 900}, r"00000\.yml: frames 0 to 899 where timestamps\.npy has 95"),
        ("screen/meta/00000.yml", {"num_frames": 31}, r"00001\.yml: its first frame 30 lies in the block before it"),
        ("screen/meta/00000.yml", {"num_frames": "x"}, r"00000\.yml: num_frames is 'x'; a whole number is expected"),
        ("screen/meta/00000.yml", {"modality": "vidio"}, r"modality 'vidio' is not known; did you mean 'video'"),
        ("screen/meta/00000.yml", "[1", r"00000\.yml: cannot be read"),
        ("screen/meta/00000.yml", "7", r"00000\.yml: holds int where names and values are expected"),
        ("screen/data/00000.npy", None, r"00000\.npy: no such file"),
        ("screen/data/00000.npy", np.zeros((9, 5, 8)), r"00000\.npy: holds 9 frames where its meta says 30"),
        ("screen/data/00003.npy", np.zeros((20, 5, 9)), r"00003\.npy: frames of \(5, 9\) where the first"),
        ("screen/data/00003.npy", np.full((20, 5, 8), -1.0), r"00003\.npy: pixels reach from -1 to -1"),
        ("screen/data/00003.npy", np.zeros((20, 1, 1, 5, 8)), r"00003\.npy: frames have shape"),
        ("screen/data/00003.npy", np.array([object()]), r"00003\.npy: cannot be read"),
        ("responses/meta.yml", {"n_timestamps": 3}, r"data\.mem: .* bytes where meta\.yml says 96"),
        ("responses/meta.yml", {"dtype": "what"}, r"dtype is 'what', which numpy lacks"),
        ("responses/meta.yml", {"sampling_rate": 0}, r"sampling_rate is 0; it must be positive"),
        ("responses/meta.yml", {"start_time": None}, r"meta\.yml: start_time is None; a number is expected"),
        ("responses/meta.yml", {"start_time": 1e6}, r"responses: has no value while a stimulus is shown; compare"),
        ("responses/meta.yml", {"modality": "else"}, r"has no device 'responses' for the responses"),
        ("responses/meta/phase_shifts.npy", np.zeros(3), r"phase_shifts\.npy: 3 shifts for 4 signals"),
        ("responses/meta/neurons/unit_ids.npy", np.zeros(3), r"unit_ids\.npy: has shape \(3,\) where responses have 4"),
        ("eye_tracker/data.npy", np.zeros((2, 2, 2)), r"data\.npy: has shape \(2, 2, 2\) of float64; numbers \(T, N\)"),
    ],
)  # fmt: skip
def test_files_that_are_wrong(build, name, content, message):
    path, _ = build()
    _broken(path, name, content)
    with pytest.raises(SessionError, match=message):
        read_session(path).stimulus[:]


def test_encoded_frames_are_refused(build):
    path, _ = build()
    (path / "screen/data/00003.npy").rename(path / "screen/data/00003.mp4")
    with pytest.raises(SessionError, match=r"00003\.mp4: frames are encoded; decode them to 00003\.npy"):
        read_session(path)


def test_spikes_that_are_wrong(build):
    path, _ = build(spikes="raw")
    _change(path / "responses/meta.yml", spike_indices=[0, 9, 5, 320])
    with pytest.raises(SessionError, match="spike_indices must rise from 0 to the number of spikes, 320"):
        read_session(path)
    (path / "responses/spikes.npy").write_bytes(b"123")
    with pytest.raises(SessionError, match="3 bytes are no whole number of float64"):
        read_session(path)
    (path / "responses/spikes.npy").unlink()
    with pytest.raises(SessionError, match="holds no times of spikes"):
        read_session(path)


def test_nothing_but_pauses(build):
    path, _ = build(blocks=(("blank", None, 0.5, None), ("invalid", None, 0.5, None)))
    with pytest.raises(SessionError, match="no image and no video is shown"):
        read_session(path)


def test_a_sample_that_is_met_needs_no_neighbour(tmp_path):
    meta = {"modality": "sequence", "sampling_rate": 1.0, "start_time": 0.0}
    (tmp_path / "meta.yml").write_text(yaml.safe_dump(meta))
    np.save(tmp_path / "data.npy", np.array([5.0, np.nan, 7.0]))
    middle = np.array([-0.1, 0.0, 0.5, 1.0, 2.0, 2.1])
    values = open_device(tmp_path).sample(middle - 0.5, middle + 0.5)[:, 0]
    np.testing.assert_array_equal(values, [np.nan, 5, np.nan, np.nan, 7, np.nan])
