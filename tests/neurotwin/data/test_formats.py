"""Readers, on small files that the tests write."""

from datetime import UTC, datetime

import numpy as np
import pytest

from neurotwin.config import DatasetConfig
from neurotwin.data.formats.arrays import read_arrays
from neurotwin.data.formats.nwb import read_nwb
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


def test_nwb_without_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pynwb", None)
    with pytest.raises(SessionError, match=r"pip install 'neurotwin\[nwb\]'"):
        read_nwb(tmp_path / "a.nwb")


@pytest.mark.filterwarnings("ignore")  # of pynwb's own dependencies
def test_nwb(tmp_path, rng):
    pynwb = pytest.importorskip("pynwb")
    file = pynwb.NWBFile("test", "id", datetime(2026, 1, 1, tzinfo=UTC))
    file.subject = pynwb.file.Subject(subject_id="ada", species="Macaca mulatta")
    movie = rng.integers(0, 256, (30, 4, 5)).astype(np.uint8)
    file.add_stimulus(pynwb.image.ImageSeries("movie", data=movie, unit="n.a.", starting_time=1.0, rate=10.0))
    times = [np.sort(rng.uniform(0, 5, 40)), np.array([1.05, 1.06, 3.99, 4.01])]
    for unit, spike_times in zip((3, 9), times, strict=True):
        file.add_unit(spike_times=spike_times, id=unit)
    file.add_trial(start_time=1.0, stop_time=2.0)
    file.add_trial(start_time=2.5, stop_time=4.0)
    module = file.create_processing_module("behavior", "behaviour")
    module.add(pynwb.TimeSeries("running", data=np.arange(50.0), unit="cm/s", starting_time=0.0, rate=10.0))
    gaze = pynwb.behavior.SpatialSeries(
        "gaze", data=rng.random((12, 2)), timestamps=np.linspace(1, 3.6, 12), reference_frame="screen"
    )
    module.add(pynwb.behavior.EyeTracking(spatial_series=gaze, name="eye"))
    with pynwb.NWBHDF5IO(tmp_path / "ada_5.nwb", "w") as out:
        out.write(file)

    session = read_nwb(tmp_path / "ada_5.nwb")
    assert (session.name, session.subject, session.bin_rate) == ("ada_5", "ada", pytest.approx(10))
    np.testing.assert_array_equal(session.stimulus, movie)
    edges = 1 + np.arange(31) / 10
    for unit in range(2):
        np.testing.assert_array_equal(session.spikes[:, unit], np.histogram(times[unit], edges)[0])
    assert session.unit_ids.tolist() == [3, 9]
    assert session.trial.tolist() == [0] * 10 + [-1] * 5 + [1] * 15
    np.testing.assert_allclose(session.behavior["running"], 10 * (edges[:-1] + 0.05), rtol=1e-6)
    assert session.behavior["eye_gaze"].shape == (30, 2)
    assert session.valid.tolist() == ((edges[:-1] + 0.05) <= 3.6).tolist()
    with pytest.raises(SessionError, match="no movie 'mvie'; did you mean 'movie'"):
        read_nwb(tmp_path / "ada_5.nwb", stimulus="mvie")


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
