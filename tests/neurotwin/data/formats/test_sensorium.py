"""The Sensorium reader on files that a builder writes, to the value."""

import itertools
import tracemalloc

import numpy as np
import pytest

from neurotwin.data.formats import find_format, read_session
from neurotwin.data.session import Session, SessionError


@pytest.fixture
def build(builder, tmp_path):
    module = builder("sensorium")
    return lambda **options: module.build(tmp_path, **options)


def _note(session, *words):
    return any(all(word in note for word in words) for note in session.notes)


@pytest.mark.parametrize("zipped", ["", "stored", "deflated", "flat"])
def test_videos(build, zipped):
    path, truth = build(zipped=zipped)
    assert find_format(path) == "sensorium"
    session = read_session(path)
    assert (session.name, session.subject) == ("dynamic29156-11-10-Video-8744ed", "29156")
    assert session.bin_rate == 30
    np.testing.assert_array_equal(session.stimulus, np.concatenate(truth["frames"]))
    assert session.stimulus.dtype == np.uint8
    responses = np.concatenate(truth["responses"])
    np.testing.assert_array_equal(session.responses, responses)
    assert np.asarray(session.responses).min() < 0
    lengths = [len(frames) for frames in truth["frames"]]
    assert session.trial.tolist() == np.repeat(range(7), lengths).tolist()
    for column, name in enumerate(("pupil_dilation", "running")):
        np.testing.assert_array_equal(
            session.behavior[name], np.concatenate(truth["behavior"])[:, column].astype(np.float32)
        )
    np.testing.assert_array_equal(session.behavior["pupil_center"], np.concatenate(truth["pupil"]).astype(np.float32))
    assert set(session.stimulus_type) == {"videos"}


def test_withheld_tiers_are_masked_and_tiers_become_splits(build):
    path, truth = build()
    session = read_session(path)
    tier = np.repeat(truth["tiers"], [len(frames) for frames in truth["frames"]])
    assert session.valid.tolist() == [t not in ("live_test_main", "final_test_bonus", "none") for t in tier]
    expected = {"train": "train", "oracle": "val", "live_test_main": "test", "final_test_bonus": "test", "none": ""}
    assert session.split.tolist() == [expected[t] for t in tier]
    assert _note(session, "1 trials", "'live_test_main'", "withheld")
    assert _note(session, "1 trials", "'none'", "for no split")


def test_silence_in_a_recorded_tier_is_kept(build):
    path, _ = build()
    np.save(path / "data/responses/0.npy", np.zeros((6, 20), np.float32))
    assert read_session(path).valid[:20].all()


def test_a_long_trial_of_zeros_is_withheld(build):
    path, _ = build(units=50)
    np.save(path / "data/responses/0.npy", np.zeros((50, 20), np.float32))
    session = read_session(path)
    assert not session.valid[:20].any() and session.valid[20:39].all()
    assert _note(session, "1 trials", "'train'", "withheld")


def test_repeats_differ_by_a_grey_level(build):
    path, truth = build(tiers=("oracle", "train", "oracle", "train", "oracle"))
    session = read_session(path)
    lengths = [len(frames) for frames in truth["frames"]]
    starts = np.cumsum([0, *lengths])
    ids = [session.repeat_id[a:b].tolist() for a, b in itertools.pairwise(starts)]
    assert ids[0] == ids[2] == ids[4] == list(range(20)) and set(ids[1] + ids[3]) == {-1}
    assert not np.array_equal(truth["frames"][0], truth["frames"][2])


@pytest.mark.parametrize("prefix", ["frame_image", "colorframeprojector_image", "image", ""])
def test_repeated_images_by_class_and_id_or_by_content(build, prefix):
    path, truth = build(year=2022, image_ids=prefix)
    session = read_session(path)
    same = truth["same"]
    for one in range(8):
        for other in range(8):
            alike = session.repeat_id[one] >= 0 and session.repeat_id[one] == session.repeat_id[other]
            assert alike == (same[one] == same[other] and same.count(same[one]) > 1)
    assert session.repeat_id.tolist()[:4] == [-1] * 4


def test_ids_are_trusted_over_content(build):
    path, _ = build(year=2022)
    np.save(path / "meta/trials/frame_image_id.npy", np.array([9, 9, 1, 2, 3, 4, 5, 6]))
    np.save(path / "meta/trials/frame_image_class.npy", np.array(["a"] * 8))
    ids = read_session(path).repeat_id
    assert ids[0] == ids[1] >= 0 and (ids[2:] == -1).all()


@pytest.mark.parametrize("zipped", ["", "deflated"])
def test_images(build, zipped):
    path, truth = build(year=2022, zipped=zipped, times=True)
    assert find_format(path) == "sensorium"
    session = read_session(path)
    assert session.subject == "26872" and session.bin_rate == pytest.approx(1.25)
    np.testing.assert_array_equal(session.stimulus, np.concatenate(truth["frames"]))
    np.testing.assert_array_equal(session.responses, np.concatenate(truth["responses"]))
    assert session.valid.tolist() == [True] * 6 + [False] * 2
    assert session.split.tolist() == ["train"] * 3 + ["val"] + ["test"] * 4
    names = ("pupil_dilation", "pupil_derivative", "running")
    for column, name in enumerate(names):
        np.testing.assert_allclose(session.behavior[name], np.concatenate(truth["behavior"])[:, column], rtol=1e-6)


def test_the_rate_of_images_is_an_option(build):
    path, _ = build(year=2022)
    session = read_session(path)
    assert session.bin_rate == 1 and _note(session, "presentations a second", "--bin_rate")
    assert read_session(path, bin_rate=2.5).bin_rate == 2.5


def test_images_of_two_channels(build):
    path, _ = build(year=2022)
    images = np.random.default_rng(1).integers(0, 256, (8, 2, 6, 9)).astype(np.uint8)
    for trial, image in enumerate(images):
        np.save(path / f"data/images/{trial}.npy", image)
    np.testing.assert_array_equal(read_session(path).stimulus, images)


def test_units(build):
    path, truth = build()
    session, known = read_session(path), truth["neurons"]
    assert session.unit_ids.tolist() == known["unit_ids"].tolist()
    np.testing.assert_array_equal(session.unit_positions, known["cell_motor_coordinates"])
    for label, key in [("area", "area"), ("layer", "layer"), ("animal_id", "animal_ids"), ("session", "sessions")]:
        assert session.unit_labels[label].tolist() == [str(value) for value in known[key]]
    np.testing.assert_allclose(session.unit_labels["response_std"].astype(float), truth["std"], rtol=1e-5)


def test_without_what_is_optional(build):
    path, _ = build(neurons=False, behavior="absent", name="mouse_a")
    (path / "meta/statistics/responses/all/std.npy").unlink()
    session = read_session(path)
    assert session.unit_ids.tolist() == list(range(6)) and session.unit_positions is None
    assert not session.behavior and not session.unit_labels and session.subject == "mouse"


@pytest.mark.parametrize(
    ("name", "subject"),
    [("29156-11-10-Video-8744", "29156"), ("static29156-11-10-GrayImageNet", "29156"), ("mouse_a", "1"), ("m7", "7")],
)
def test_the_subject(build, name, subject):
    path, _ = build(name=name)
    assert read_session(path).subject == subject
    assert read_session(path, subject="ada", name="ada_1").subject == "ada"


def test_two_subjects_are_said(build):
    path, _ = build()
    np.save(path / "meta/neurons/animal_ids.npy", np.full(6, 5))
    session = read_session(path)
    assert session.subject == "29156" and _note(session, "29156", "animal_ids.npy says 5")


def test_withheld_behavior(build):
    session = read_session(build(behavior="withheld")[0])
    assert not session.behavior and session.valid.any()
    assert _note(session, "data/behavior", "withheld") and _note(session, "data/pupil_center", "withheld")
    session = read_session(build(behavior="partly", name="29156-1-1")[0])
    assert set(session.behavior) == {"pupil_dilation", "running", "pupil_center"}
    assert session.valid.sum() == 20 + 19 + 18 + 18
    assert not _note(session, "data/behavior")


def test_behavior_withheld_where_responses_are_not(build):
    path, _ = build()
    for trial in (2, 3):
        np.save(path / f"data/behavior/{trial}.npy", np.zeros((2, 20)))
    session = read_session(path)
    assert not session.valid[39 : 39 + 36].any() and session.valid[:39].all()
    assert _note(session, "'oracle'", "data/behavior", "withheld")


def test_a_unit_that_is_left_out_is_that_unit(build):
    path, truth = build()
    for trial in range(7):
        values = np.load(path / f"data/responses/{trial}.npy")
        values[1] = np.nan
        np.save(path / f"data/responses/{trial}.npy", values)
    np.testing.assert_array_equal(read_session(path).responses, np.concatenate(truth["responses"])[:, [0, 2, 3, 4, 5]])


def test_nan_in_responses_behavior_and_video(build):
    path, truth = build()
    responses = np.load(path / "data/responses/0.npy")
    responses[2, 4], responses[5, :] = np.nan, np.nan
    np.save(path / "data/responses/0.npy", responses)
    for trial in range(1, 7):
        values = np.load(path / f"data/responses/{trial}.npy")
        values[5] = np.nan
        np.save(path / f"data/responses/{trial}.npy", values)
    pupil = np.load(path / "data/pupil_center/0.npy")
    pupil[1, 7] = np.nan
    np.save(path / "data/pupil_center/0.npy", pupil)
    video = np.load(path / "data/videos/0.npy")
    video[..., 9] = np.nan
    np.save(path / "data/videos/0.npy", video)
    session = read_session(path)
    assert np.flatnonzero(~session.valid[:20]).tolist() == [4, 7, 9] and session.valid[20:39].all()
    assert session.n_units == 5 and session.unit_ids.tolist() == [11, 14, 17, 20, 23]
    assert len(session.unit_labels["area"]) == len(session.unit_positions) == 5
    assert session.responses[4:5][0, 2] == 0 and not np.asarray(session.stimulus[9:10]).any()
    np.testing.assert_array_equal(session.stimulus[10:20], truth["frames"][0][10:])
    for words in [("1 units", "left out"), ("1 bins", "response"), ("1 bins", "pupil_center"), ("1 bins", "frame")]:
        assert _note(session, *words)


def test_missing_and_short_files(build):
    path, _ = build()
    (path / "data/responses/1.npy").unlink()
    np.save(path / "data/responses/0.npy", np.load(path / "data/responses/0.npy")[:, :15])
    (path / "data/behavior/2.npy").unlink()
    (path / "data/videos/6.npy").unlink()
    session = read_session(path)
    assert session.valid[:15].all() and not session.valid[15:39].any() and not session.valid[39:57].any()
    assert session.valid[57:75].all()
    assert _note(session, "1 trials", "data/videos has no file")
    assert sorted(set(session.trial.tolist())) == list(range(6))


def test_leaks_are_said(build):
    path, _ = build()
    for trial in (0, 4):
        video = np.load(path / "data/videos/2.npy")
        np.save(path / f"data/videos/{trial}.npy", video)
    session = read_session(path)
    assert _note(session, "1 of the videos", "shown in val", "shown in train")
    assert _note(session, "1 of the videos", "shown in test", "shown in train")
    assert session.repeat_id[0] == session.repeat_id[18 + 19] >= 0  # the first trial is as long as its copy now


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_saved_session_is_the_same(build, tmp_path, order):
    path, truth = build()
    for trial in range(7):
        file = path / f"data/videos/{trial}.npy"
        np.save(file, np.asarray(np.load(file), order=order))
    session = read_session(path)
    loaded = Session.load(session.save(tmp_path / "m.safetensors"))
    assert loaded == session
    np.testing.assert_array_equal(loaded.stimulus, np.concatenate(truth["frames"]))


def test_any_part_can_be_read_by_itself(build):
    path, truth = build(zipped="deflated")
    session, frames = read_session(path), np.concatenate(truth["frames"])
    for start, stop in [(70, 90), (3, 5), (18, 60), (0, 134)]:
        np.testing.assert_array_equal(session.stimulus[start:stop], frames[start:stop])
        np.testing.assert_array_equal(session.responses[start:stop], np.concatenate(truth["responses"])[start:stop])


def _replace(path, name, values):
    np.save(path / name, values, allow_pickle=True)
    return path


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("data/videos/0.npy", np.full((6, 9, 20), 300.0), r"0\.npy: pixels reach from 300 to 300; they must lie"),
        ("data/videos/0.npy", np.full((6, 9, 20), np.nan), r"videos/0\.npy: every frame is NaN"),
        ("data/videos/0.npy", np.zeros((6, 9)), r"has shape \(6, 9\) where \(H, W, T\) is expected"),
        ("data/videos/3.npy", np.zeros((5, 9, 20)), r"3\.npy: frames of \(5, 9\) where the first trial has \(6, 9\)"),
        ("data/responses/2.npy", np.ones((5, 20)), r"2\.npy: has 5 rows where other trials have 6"),
        ("data/responses/2.npy", np.full((6, 20), "x"), r"2\.npy: holds <U1; give numbers"),
        ("data/responses/2.npy", np.array([object()]), r"2\.npy: cannot be read .*allow_pickle"),
        ("data/videos/2.npy", np.full((6, 9, 20), None), r"2\.npy: cannot be read .*could run code"),
        ("meta/neurons/unit_ids.npy", np.arange(5), r"unit_ids\.npy: has shape \(5,\) where responses have 6 units"),
        ("meta/trials/tiers.npy", np.array([], str), r"holds no trial of the 0 in meta/trials/tiers"),
    ],
)
def test_files_that_are_wrong(build, name, values, message):
    path, _ = build()
    with pytest.raises(SessionError, match=message):
        read_session(_replace(path, name, values), format="sensorium").stimulus[0:]


def test_a_frame_that_is_nan_in_part(build):
    path, _ = build()
    video = np.load(path / "data/videos/1.npy")
    video[3, 3, 3] = np.nan
    with pytest.raises(SessionError, match=r"1\.npy: holds NaN inside of a frame"):
        read_session(_replace(path, "data/videos/1.npy", video))


def test_image_ids_for_other_trials(build):
    path, _ = build(year=2022)
    with pytest.raises(SessionError, match=r"frame_image_id\.npy: has shape \(3,\); one value for each trial"):
        read_session(_replace(path, "meta/trials/frame_image_id.npy", np.arange(3)))


def test_paths_that_are_no_mouse(build, tmp_path):
    with pytest.raises(SessionError, match="neither data/images nor data/videos"):
        read_session(tmp_path, format="sensorium")
    path, _ = build(withheld=("train", "oracle", "none", "live_test_main", "final_test_bonus"))
    with pytest.raises(SessionError, match="all responses are zero or missing"):
        read_session(path)
    for file in (path / "data/responses").glob("*.npy"):
        file.unlink()
    with pytest.raises(SessionError, match="data/responses is missing or empty"):
        read_session(path)
    (path / "meta/trials/tiers.npy").unlink()
    with pytest.raises(SessionError, match=r"tiers\.npy: no such file; give the folder or zip"):
        read_session(path)


def test_damaged_zip_files(build, tmp_path):
    path, _ = build(zipped="stored")
    raw = bytearray(path.read_bytes())
    with pytest.raises(SessionError, match="not a zip file, or cut off"):
        (tmp_path / "cut.zip").write_bytes(raw[: len(raw) // 2])
        read_session(tmp_path / "cut.zip", format="sensorium")
    place = raw.index(b"responses/3.npy") + 600
    raw[place] ^= 255
    (tmp_path / "29156-1-1.zip").write_bytes(raw)
    with pytest.raises(SessionError, match=r"responses/3\.npy: cannot be read \(Bad CRC-32"):
        read_session(tmp_path / "29156-1-1.zip")


def test_other_layouts_are_not_taken(tmp_path):
    (tmp_path / "data/images").mkdir(parents=True)
    with pytest.raises(SessionError, match="not a recording of a known layout"):
        find_format(tmp_path)


def test_memory_does_not_grow_with_the_recording(build, tmp_path):
    peaks = []
    for number, count in enumerate((20, 80)):
        tiers = ("train",) * count + ("oracle",) * 2
        path, _ = build(tiers=tiers, units=100, size=(36, 64), length=30, zipped="deflated", name=f"29{number}-1-1")
        tracemalloc.start()
        read_session(path).save(tmp_path / "m.safetensors")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # 60 videos more are 33 MB in their files and 4 MB as uint8; one block of up to 16 MB holds the latter.
    assert peaks[1] - peaks[0] < 12e6
    assert peaks[1] < 16e6
