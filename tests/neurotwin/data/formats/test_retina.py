"""The two layouts of the retina: what becomes of every field, and how they are told apart."""

import tracemalloc

import h5py
import numpy as np
import pytest

from neurotwin.data.formats import find_format, read_session
from neurotwin.data.session import Session, SessionError


def test_h5_every_field_arrives(tmp_path, builder):
    path, movies, responses = builder("retina_h5").build(tmp_path)
    assert find_format(path) == find_format(tmp_path) == "retina_h5"
    session = read_session(path)
    session = Session.load(session.save(tmp_path / "s.safetensors"))
    assert (session.name, session.subject, session.bin_rate) == ("mouse7_240501", "mouse7", 30.0)
    for name, count in (("noise_test", 40), ("noise_train", 900)):
        here = session.stimulus_type == name
        assert here.sum() == count
        np.testing.assert_array_equal(
            session.stimulus[here], movies[name].transpose(1, 0, 2, 3).astype(np.float32)
        )  # fmt: skip
        np.testing.assert_array_equal(session.responses[here], responses[name].T.astype(np.float32))
    assert (session.responses < 0).any()  # not clipped
    np.testing.assert_array_equal(session.split, np.where(session.stimulus_type == "noise_test", "test", ""))
    assert session.unit_ids.tolist() == [10, 12, 14, 16]
    assert session.unit_labels["celltypes"].tolist() == ["0", "1", "2", "0"]
    np.testing.assert_array_equal(session.unit_positions, np.arange(8.0).reshape(4, 2))
    assert session.info == {"frame_rate": "30.0", "eye": "left"}
    # The test is one trial; the 900 bins of training are three of 10 s.
    np.testing.assert_array_equal(np.unique(session.trial, return_counts=True)[1], [40, 300, 300, 300])
    assert session.valid.all()


def test_h5_stimuli_inside_grey_uint8_and_nan(tmp_path, builder):
    path, movies, responses = builder("retina_h5").build(
        tmp_path, channels=1, dtype=np.uint8, inside=("noise_train",), nan_bins=(3, 7)
    )
    session = read_session(path, trial_duration=0)
    assert session.stimulus.dtype == np.uint8
    assert session.stimulus.shape == (940, 6, 5)
    np.testing.assert_array_equal(session.stimulus[40:], movies["noise_train"][0])
    assert np.flatnonzero(~session.valid).tolist() == [43, 47]
    np.testing.assert_array_equal(session.responses[40:], np.nan_to_num(responses["noise_train"]).T.astype(np.float32))
    assert np.unique(session.trial).tolist() == [0, 1]
    assert any("2 bins are not valid" in note for note in session.notes)


def test_h5_a_stimulus_may_be_named_in_the_file(tmp_path, builder):
    path, movies, _ = builder("retina_h5").build(tmp_path)
    (tmp_path / "stimuli" / "noise_train.npy").rename(tmp_path / "stimuli" / "shared.npy")
    with h5py.File(path, "a") as file:
        file["stimulus_noise_train"] = "shared"
        file["responses_noise_test_by_trial"] = np.zeros((2, 4, 40))
        file["session_info/receptive_fields"] = np.zeros((4, 6, 5))
    session = read_session(path)
    np.testing.assert_array_equal(session.stimulus[40:], np.moveaxis(movies["noise_train"], 0, 1).astype(np.float32))
    assert any(note.startswith("responses_noise_test_by_trial was left out") for note in session.notes)
    assert any(note.startswith("session_info/receptive_fields was left out") for note in session.notes)


def test_h5_silent_units_and_the_odd_bin(tmp_path, builder):
    path, _, responses = builder("retina_h5").build(tmp_path)
    with h5py.File(path, "a") as file:
        for name, values in responses.items():
            values = values.copy()
            values[2] = np.nan
            del file[f"responses_{name}"]
            file[f"responses_{name}"] = values[:, :-1] if name == "noise_train" else values
    session = read_session(path)
    assert session.unit_ids.tolist() == [10, 12, 16]
    assert session.unit_labels["celltypes"].tolist() == ["0", "1", "0"]
    assert session.n_bins == 939
    assert "Units [14] were left out, because their responses are NaN throughout." in session.notes
    assert any(note.startswith("noise_train: 900 frames have responses in 899 bins") for note in session.notes)


def test_h5_mistakes_are_named(tmp_path, builder):
    build = builder("retina_h5").build
    path, *_ = build(tmp_path / "a", rate=None)
    with pytest.raises(SessionError, match="frames a second are not known; give --bin_rate"):
        read_session(path)
    assert read_session(path, bin_rate=60.0).bin_rate == 60.0
    build(tmp_path / "a", name="other")
    with pytest.raises(SessionError, match=r"holds the sessions \['mouse7_240501', 'other'\]; give the path of one"):
        read_session(tmp_path / "a")
    assert read_session(tmp_path / "a", name="other").name == "other"
    (tmp_path / "a" / "stimuli" / "noise_test.npy").unlink()
    with pytest.raises(SessionError, match=r"responses_noise_test have no stimulus; add .*noise_test\.npy"):
        read_session(path, bin_rate=60.0)
    np.save(tmp_path / "a" / "stimuli" / "noise_test.npy", np.array([object()]), allow_pickle=True)
    with pytest.raises(SessionError, match=r"noise_test\.npy: not an array of numbers"):
        read_session(path, bin_rate=60.0)
    np.save(tmp_path / "a" / "stimuli" / "noise_test.npy", np.zeros((2, 30, 6, 5)))
    with pytest.raises(SessionError, match="'noise_test' has 30 frames and responses in 40 bins; align them"):
        read_session(path, bin_rate=60.0)
    np.save(tmp_path / "a" / "stimuli" / "noise_test.npy", np.zeros((2, 40, 6, 4)))
    with pytest.raises(SessionError, match="stimuli differ in the shape or type of frames"):
        read_session(path, bin_rate=60.0)
    np.save(tmp_path / "a" / "stimuli" / "noise_test.npy", np.zeros(40))
    with pytest.raises(SessionError, match=r"has the shape \(40,\); give \(C, T, H, W\)"):
        read_session(path, bin_rate=60.0)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(SessionError, match="not an HDF5 file, or cut off"):
        read_session(path, format="retina_h5")
    with h5py.File(path, "w") as file:
        file["rates"] = np.zeros((2, 3))
    with pytest.raises(SessionError, match=r"holds no responses_NAME of shape \(N, T\) \(it holds rates\)"):
        read_session(path, format="retina_h5")
    with pytest.raises(SessionError, match="not a recording of a known layout"):
        find_format(path)


def test_responses_every_field_arrives(tmp_path, builder):
    folder, written = builder("retina_responses").build(tmp_path / "15-10-07")
    assert find_format(folder) == find_format(folder / "whitenoise.h5") == "retina_responses"
    session = read_session(folder)
    session = Session.load(session.save(tmp_path / "s.safetensors"))
    assert (session.name, session.bin_rate, session.n_bins) == ("15-10-07", 100.0, 2 * (2500 + 4 * 50))
    for start, (kind, values) in zip((0, 2700), written.items(), strict=True):
        train, test = slice(start, start + 2500), slice(start + 2500, start + 2700)
        assert (session.stimulus_type[start : start + 2700] == kind).all()
        np.testing.assert_array_equal(session.stimulus[train], values["train"])
        np.testing.assert_array_equal(session.responses[train], values["train_rate"].T.astype(np.float32))
        np.testing.assert_array_equal(session.stimulus[test], np.tile(values["test"], (4, 1, 1)))
        repeats = 100 * values["repeats"][:, :, :50].transpose(1, 2, 0).reshape(200, 3)  # counts to spikes a second
        np.testing.assert_array_equal(session.responses[test], repeats)
        assert (session.split[train] == "").all() and (session.split[test] == "test").all()
        ids = session.repeat_id[test].reshape(4, 50)
        assert (ids == ids[0]).all() and len(np.unique(ids)) == 50
        assert (session.repeat_id[train] == -1).all()
        assert len(np.unique(session.trial[test])) == 4
        np.testing.assert_array_equal(np.unique(session.trial[train], return_counts=True)[1], [1000, 1500])
    assert len(set(session.repeat_id[2500:2700]) & set(session.repeat_id[5200:])) == 0
    assert len(np.unique(session.trial)) == 2 * (2 + 4)
    assert any("naturalscene: 50 frames have responses in 51 bins" in note for note in session.notes)


def test_responses_can_be_chosen(tmp_path, builder):
    folder, written = builder("retina_responses").build(tmp_path, kinds=("whitenoise",), repeats="rates")
    session = read_session(folder / "whitenoise.h5", response="firing_rate_5ms")
    rate = written["whitenoise"]["train_rate"]
    np.testing.assert_array_equal(session.responses[:2500], (rate + 1).T.astype(np.float32))
    test = written["whitenoise"]["repeats"][:, 0, :50].T
    np.testing.assert_array_equal(session.responses[2500:2550], test)  # rates already
    mean = read_session(folder, repeats=False)
    assert mean.n_bins == 2550
    np.testing.assert_array_equal(
        mean.responses[2500:], written["whitenoise"]["test_rate"].T[:50].astype(np.float32)
    )  # fmt: skip
    assert (mean.repeat_id == -1).all()
    with pytest.raises(SessionError, match="has no response 'firing_rate_15ms'; did you mean"):
        read_session(folder, response="firing_rate_15ms")


def test_responses_without_repeats_time_or_a_clear_unit(tmp_path, builder):
    build = builder("retina_responses").build
    folder, _ = build(tmp_path / "a", repeats="odd")
    session = read_session(folder)
    assert session.n_bins == 2 * 2550
    assert any("so that their unit is not clear" in note for note in session.notes)
    folder, _ = build(tmp_path / "b", repeats="", time=False, names=("firing_rate_20ms",))
    session = read_session(folder)
    assert session.bin_rate == 100.0
    assert "naturalscene.h5: has no time; bins of 10 ms are assumed, as in the published files." in session.notes
    assert read_session(folder, bin_rate=50.0).bin_rate == 50.0
    folder, _ = build(tmp_path / "c", names=("firing_rate_20ms", "firing_rate_5ms"))
    with pytest.raises(SessionError, match=r"choose one of \['firing_rate_20ms', 'firing_rate_5ms'\] with response="):
        read_session(folder)


def test_repeats_that_are_no_counts_do_not_stand_beside_counts(tmp_path, builder):
    folder, _ = builder("retina_responses").build(tmp_path, kinds=("whitenoise",), names=("binned",))
    assert read_session(folder).n_bins == 2500 + 4 * 50
    with h5py.File(folder / "whitenoise.h5", "a") as file:
        file["test/repeats/cell02"][0, 3] = 0.25
    session = read_session(folder)
    assert session.n_bins == 2550
    assert any("they are no counts, and binned are no rates" in note for note in session.notes)


def test_responses_mistakes_are_named(tmp_path, builder):
    build = builder("retina_responses").build
    folder, _ = build(tmp_path / "a", kinds=("naturalscene",))
    build(tmp_path / "a", kinds=("whitenoise",), n_units=2)
    with pytest.raises(SessionError, match="stimuli differ in their number of units"):
        read_session(folder)
    with h5py.File(folder / "whitenoise.h5", "a") as file:
        del file["train/time"], file["test/time"]
        file["train/time"] = np.arange(2500) / 50
    with pytest.raises(SessionError, match="files differ in bins a second"):
        read_session(folder)
    with h5py.File(folder / "naturalscene.h5", "a") as file:
        del file["train/stimulus"]
    with pytest.raises(SessionError, match="has no train/stimulus; add it"):
        read_session(folder / "naturalscene.h5")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SessionError, match=r"holds no \.h5 file with train/response"):
        read_session(tmp_path / "empty", format="retina_responses")


def test_layouts_are_not_confused(tmp_path, builder):
    path, *_ = builder("retina_h5").build(tmp_path / "a")
    folder, _ = builder("retina_responses").build(tmp_path / "b")
    (folder / "stimuli").mkdir()
    assert find_format(folder) == "retina_responses"
    assert find_format(path.parent) == "retina_h5"
    text = tmp_path / "naturalscene.h5"
    text.write_text("no HDF5")
    with pytest.raises(SessionError, match="not a recording of a known layout"):
        find_format(text)


@pytest.mark.parametrize("layout", ["retina_h5", "retina_responses"])
def test_memory_does_not_grow_with_the_recording(tmp_path, builder, layout):
    if layout == "retina_h5":
        options = {"lengths": {"noise": 12_000}, "size": (40, 60), "dtype": np.uint8}
    else:
        options = {"kinds": ("whitenoise",), "n_train": 24_000, "size": (40, 60)}
    path, *_ = builder(layout).build(tmp_path, **options)
    tracemalloc.start()
    read_session(path).save(tmp_path / "s.safetensors")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "s.safetensors").stat().st_size > 57e6
    assert peak < 45e6
