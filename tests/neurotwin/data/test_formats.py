"""Readers, on small files that the tests write."""

import numpy as np
import pytest

from neurotwin.config import DatasetConfig
from neurotwin.data.formats.arrays import read_arrays
from neurotwin.data.formats.sensorium import read_sensorium
from neurotwin.data.prepare import outline, prepare_session
from neurotwin.data.session import Session, SessionError


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("folder", [False, True])
def test_arrays(tmp_path, rng, folder):
    arrays = {
        "stimulus": rng.integers(0, 256, (20, 5, 6)).astype(np.uint8), "spikes": rng.poisson(1, (20, 3)),
        "behavior.pupil": rng.random(20), "trial": np.repeat([0, 1], 10), "unit_ids": np.array([4, 8, 9]),
        "split": np.repeat(["train", "val"], 10), "bin_rate": np.array(60.0), "subject": np.array("ada"),
    }  # fmt: skip
    path = tmp_path / ("ada_7" if folder else "ada_7.npz")
    if folder:
        path.mkdir()
        for key, value in arrays.items():
            np.save(path / f"{key}.npy", value)
    else:
        np.savez(path, **arrays)
    session = read_arrays(path)
    assert (session.name, session.subject, session.bin_rate) == ("ada_7", "ada", 60.0)
    for key in ("stimulus", "spikes", "trial", "unit_ids", "split"):
        np.testing.assert_array_equal(getattr(session, key), arrays[key])
    np.testing.assert_array_equal(session.behavior["pupil"], arrays["behavior.pupil"])
    assert read_arrays(path, name="bea_1", subject="bea", bin_rate=30.0).bin_rate == 30.0
    Session.load(session.save(tmp_path / "saved.safetensors"))


def test_arrays_that_are_no_session(tmp_path):
    def written(**arrays):
        np.savez(tmp_path / "x.npz", **arrays)
        return tmp_path / "x.npz"

    movie, counts = np.zeros((4, 2, 2), np.uint8), np.zeros((4, 1))
    for path, message in [
        (lambda: written(stimulus=movie), "no array 'spikes'"),
        (lambda: written(stimulus=movie, spikes=counts), "give --bin_rate"),
        (lambda: written(stimulus=movie, spikes=counts, spike=1), "'spike' is .* did you mean 'spikes'"),
        (lambda: written(stimulus=movie, spikes=np.array([object()])), "not an .npz file"),  # would unpickle
        (lambda: tmp_path / "absent.npz", "no such file"),
    ]:  # fmt: skip
        with pytest.raises(SessionError, match=message):
            read_arrays(path())
    (tmp_path / "text.npz").write_text("no")
    with pytest.raises(SessionError, match=r"not an \.npz file"):
        read_arrays(tmp_path / "text.npz")


def write_sensorium(folder, kind, stimuli, responses, behavior, pupil, tiers):
    for name, values in ((kind, stimuli), ("responses", responses), ("behavior", behavior), ("pupil_center", pupil)):
        (folder / "data" / name).mkdir(parents=True)
        for trial, value in enumerate(values):
            if value is not None:
                np.save(folder / "data" / name / f"{trial}.npy", value)
    (folder / "meta" / "trials").mkdir(parents=True)
    (folder / "meta" / "neurons").mkdir(parents=True)
    np.save(folder / "meta" / "trials" / "tiers.npy", np.array(tiers))
    np.save(folder / "meta" / "neurons" / "unit_ids.npy", np.array([11, 12]))
    np.save(folder / "meta" / "neurons" / "cell_motor_coordinates.npy", np.arange(6).reshape(2, 3))


def test_sensorium_images(tmp_path, rng):
    images = [rng.integers(0, 256, (1, 4, 6)).astype(np.float32) for _ in range(5)]
    images[4] = images[2]  # shown again
    responses = [rng.random(2) for _ in range(5)]
    behavior = [rng.random(3) for _ in range(5)]
    pupil = [rng.random(2) for _ in range(5)]
    responses[3] = None  # held back
    write_sensorium(
        tmp_path / "m1", "images", images, responses, behavior, pupil,
        ["train", "validation", "test", "final_test", "test"],
    )  # fmt: skip
    session = read_sensorium(tmp_path / "m1", bin_rate=2.0)
    assert session.stimulus.shape == (5, 4, 6) and session.name == "m1"
    np.testing.assert_array_equal(session.stimulus[1], images[1][0])
    np.testing.assert_allclose(session.spikes[[0, 1, 2, 4]], np.array([responses[i] for i in (0, 1, 2, 4)]), rtol=1e-6)
    assert session.valid.tolist() == [True, True, True, False, True]
    assert session.split.tolist() == ["train", "val", "test", "test", "test"]
    assert session.repeat_id.tolist() == [-1, -1, 2, -1, 2]
    assert session.trial.tolist() == [0, 1, 2, 3, 4] and session.unit_ids.tolist() == [11, 12]
    np.testing.assert_allclose(session.behavior["running"], [b[2] for b in behavior], rtol=1e-6)
    np.testing.assert_allclose(session.behavior["pupil_center"], pupil, rtol=1e-6)
    with pytest.raises(SessionError, match="give --bin_rate"):
        read_sensorium(tmp_path / "m1")


def test_sensorium_videos(tmp_path, rng):
    videos = [np.full((3, 4, 8), np.nan) for _ in range(3)]
    lengths = [5, 8, 5]
    for video, length in zip(videos, lengths, strict=True):
        video[..., :length] = rng.integers(0, 256, (3, 4, length))
    videos[2] = videos[0].copy()
    responses = [rng.random((2, 8)) for _ in range(3)]
    behavior = [rng.random((2, 8)) for _ in range(3)]
    behavior[1][0, 3] = np.nan
    pupil = [rng.random((2, 8)) for _ in range(3)]
    write_sensorium(tmp_path, "videos", videos, responses, behavior, pupil, ["oracle", "train", "live_test_main"])
    session = read_sensorium(tmp_path, name="mouse_1")
    assert session.stimulus.shape == (18, 3, 4) and session.bin_rate == 30 and session.subject == "mouse"
    np.testing.assert_array_equal(session.stimulus[5:13], np.moveaxis(videos[1], -1, 0))
    np.testing.assert_allclose(session.spikes[5:13], responses[1].T, rtol=1e-6)
    np.testing.assert_allclose(session.spikes[13:], responses[2].T[:5], rtol=1e-6)
    assert np.flatnonzero(~session.valid).tolist() == [8]
    assert session.trial.tolist() == [0] * 5 + [1] * 8 + [2] * 5
    assert session.split.tolist() == ["val"] * 5 + ["train"] * 8 + ["test"] * 5
    assert session.repeat_id.tolist() == [*range(5), *[-1] * 8, *range(5)]
    np.testing.assert_allclose(session.behavior["pupil_dilation"][13:], behavior[2][0, :5], rtol=1e-6)


def test_sensorium_folders_that_are_none(tmp_path, rng):
    with pytest.raises(SessionError, match="neither data/images nor data/videos"):
        read_sensorium(tmp_path)
    write_sensorium(tmp_path, "images", [np.full((1, 2, 2), 300.0)], [np.ones(2)], [], [], ["train"])
    with pytest.raises(SessionError, match=r"0\.npy: pixels must lie between 0 and 255"):
        read_sensorium(tmp_path, bin_rate=2)


def test_a_config_may_name_data_of_another_format(tmp_path):
    """An .npz file, a folder of .npy files, and a folder that holds the session file: converted once, all the same."""
    rng = np.random.default_rng(0)
    arrays = {
        "stimulus": rng.integers(0, 256, (200, 6, 6), dtype=np.uint8),
        "spikes": rng.poisson(0.5, (200, 2)),
        "trial": np.arange(200) // 20,
        "bin_rate": 60.0,
    }
    np.savez(tmp_path / "a_1.npz", **arrays)
    (tmp_path / "folder").mkdir()
    for key, value in arrays.items():
        np.save(tmp_path / "folder" / f"{key}.npy", value)
    read_arrays(tmp_path / "a_1.npz", name="a_1").save(tmp_path / "native" / "a_1.safetensors")
    found = []
    for path in ("a_1.npz", "folder", "native"):
        config = DatasetConfig.model_validate({"session": "a_1", "path": str(tmp_path / path), "train_val_split": 0.5})
        assert outline([config])[0].frame_shape == (1, 6, 6)
        found.append(prepare_session(config, cache_dir=tmp_path / "cache"))
        again = prepare_session(config, cache_dir=tmp_path / "cache")
        np.testing.assert_array_equal(again.spikes, arrays["spikes"])
    assert found[0].key == found[1].key == found[2].key
    assert len(list((tmp_path / "cache").glob("*.session.safetensors"))) == 2
    (tmp_path / "empty").mkdir()
    with pytest.raises(SessionError, match="empty"):
        prepare_session(DatasetConfig.model_validate({"session": "b", "path": str(tmp_path / "empty")}))
