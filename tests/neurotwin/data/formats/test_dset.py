"""The `.dset` layout: what becomes of every field, what is refused, and how much memory it takes."""

import json
import pickle
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from neurotwin.data.formats import as_session_file, find_format, read_session
from neurotwin.data.formats.dset_archive import open_dset
from neurotwin.data.formats.dset_companions import overlapping
from neurotwin.data.session import Session, SessionError


def joined(written, key):
    return np.concatenate([values[key] for values in written.values()])


def test_every_field_arrives(tmp_path, builder):
    folder, written = builder("dset").build(tmp_path)
    assert find_format(folder) == "dset"
    session = read_session(folder)
    session = Session.load(session.save(tmp_path / "s.safetensors"))
    assert (session.name, session.subject, session.bin_rate) == ("ada_2024-05-01", "ada", 240.0)
    assert session.pixels_per_degree == 37.5
    assert session.info == {"roi_src": "gaze", "screen_distance_cm": "57.0"}
    np.testing.assert_array_equal(session.stimulus, joined(written, "stim"))
    assert session.stimulus.dtype == np.uint8
    np.testing.assert_array_equal(session.responses, joined(written, "robs"))
    np.testing.assert_array_equal(session.stimulus_type, np.repeat(list(written), 240))
    np.testing.assert_allclose(session.time, joined(written, "t_bins") - 0.5 / 240, rtol=0, atol=1e-9)
    np.testing.assert_array_equal(session.valid, joined(written, "dpi_valid") > 0)
    for key in ("eyepos", "dpi_pix"):
        np.testing.assert_array_equal(session.behavior[key], joined(written, key))
    np.testing.assert_array_equal(session.behavior["roi"], joined(written, "roi").reshape(-1, 4))
    assert session.unit_ids.tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(session.unit_positions[:, 0], np.linspace(100, 900, 5))
    assert session.unit_labels["area"].tolist() == ["V1"] * 5
    np.testing.assert_array_equal(session.missing_pct, np.tile(5.0 * np.arange(5), (960, 1)))


def test_trials_are_distinct_between_types_and_repeats_stay_within_one(tmp_path, builder):
    folder, _ = builder("dset").build(tmp_path)
    session = read_session(folder)
    np.testing.assert_array_equal(session.trial, np.repeat(np.arange(16), 60))
    shown = session.stimulus_type == "fixrsvp"
    np.testing.assert_array_equal(session.repeat_id[shown], np.tile(np.arange(60), 4))
    assert (session.repeat_id[~shown] == -1).all()
    assert "gratings: 12 was added to its trial numbers, which other types use as well." in session.notes


def test_trial_numbers_that_do_not_collide_are_kept(tmp_path, builder):
    dset = builder("dset")
    one, two = dset.covariates("backimage"), dset.covariates("gaborium")
    one["trial_inds"] = np.where(one["trial_inds"] == 2, -5, one["trial_inds"])
    two["trial_inds"] = 100.0 + two["trial_inds"]
    two["trial_inds"][7] = np.nan
    for kind, values in (("backimage", one), ("gaborium", two)):
        dset.write_type(tmp_path / "s" / "datasets" / f"{kind}.dset", values, {})
    session = read_session(tmp_path / "s")
    expected = np.concatenate([np.maximum(one["trial_inds"], -1), np.nan_to_num(two["trial_inds"], nan=-1)])
    np.testing.assert_array_equal(session.trial, expected)
    assert any("1 bins lie in no trial" in note for note in session.notes)


def test_signals_of_gratings_are_zero_elsewhere_and_nan_there_does_not_mask(tmp_path, builder):
    folder, written = builder("dset").build(tmp_path)
    session = read_session(folder)
    here = session.stimulus_type == "gratings"
    ori = written["gratings"]["ori"]
    np.testing.assert_array_equal(session.behavior["ori"][:][here], np.nan_to_num(ori))
    np.testing.assert_array_equal(session.behavior["sf"][:][here], written["gratings"]["sf"])
    np.testing.assert_array_equal(session.behavior["stim_phase"][:][~here], 0)
    np.testing.assert_array_equal(session.valid[here], written["gratings"]["dpi_valid"] > 0)
    assert f"Behaviour 'ori': {np.isnan(ori).sum()} bins are 0 where it is NaN." in session.notes


def test_unknown_gaze_and_responses_are_masked(tmp_path, builder):
    dset = builder("dset")
    values = dset.covariates("backimage")
    values["dpi_valid"][:] = 1
    values["eyepos"][5, 1] = np.nan
    values["robs"][8, 2] = np.nan
    values["robs"][:, 4] = np.nan
    path = dset.write_type(tmp_path / "backimage.dset", values, {})
    session = read_session(path, name="x")
    assert np.flatnonzero(~session.valid).tolist() == [5, 8]
    assert session.unit_ids.tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(session.responses[:], np.nan_to_num(values["robs"][:, :4]))
    np.testing.assert_array_equal(session.behavior["eyepos"][:][5], [values["eyepos"][5, 0], 0])
    assert any("Units [4] were left out" in note for note in session.notes)
    session.check()


def test_gaps_in_time_stay_gaps(tmp_path, builder):
    dset = builder("dset")
    values = dset.covariates("backimage")
    values["t_bins"][30:60] += 0.5  # within the first trial
    session = read_session(dset.write_type(tmp_path / "backimage.dset", values, {}))
    steps = np.diff(session.time) * session.bin_rate
    assert np.flatnonzero(np.abs(steps - 1) > 0.5).tolist() == [29, 59, 119, 179]


def test_metadata_decide_what_a_unit_id_is(tmp_path, builder):
    folder, _ = builder("dset").build(tmp_path, cluster_ids=[7, 3, 40, 12, 9])
    session = read_session(folder)
    assert session.unit_ids.tolist() == [7, 3, 40, 12, 9]
    np.testing.assert_array_equal(session.missing_pct[:][0], 5.0 * np.arange(5))
    listed = builder("dset").build(tmp_path / "a", metadata={"cids": [7, 3, 40, 12, 9]}, qc=False)[0]
    assert read_session(listed).unit_ids.tolist() == [7, 3, 40, 12, 9]
    assert read_session(folder, unit_ids="columns").unit_ids.tolist() == [0, 1, 2, 3, 4]
    other = builder("dset").build(tmp_path / "b")[0]
    with pytest.raises(SessionError, match="list no cluster_ids; use unit_ids=columns"):
        read_session(other, unit_ids="cluster_ids")


def test_types_with_other_units_share_what_they_can(tmp_path, builder):
    dset = builder("dset")
    one, two = dset.covariates("backimage"), dset.covariates("gaborium", n_units=4)
    folder = tmp_path / "s" / "datasets"
    dset.write_type(folder / "backimage.dset", one, {"cluster_ids": torch.tensor([5, 6, 7, 8, 9])})
    dset.write_type(folder / "gaborium.dset", two, {"cluster_ids": [9, 7, 5, 2]})
    session = read_session(folder.parent)
    assert session.unit_ids.tolist() == [5, 7, 9]
    np.testing.assert_array_equal(session.responses[:240], one["robs"][:, [0, 2, 4]])
    np.testing.assert_array_equal(session.responses[240:], two["robs"][:, [2, 1, 0]])
    assert "backimage: units [6, 8] were left out, because another stimulus type lacks them." in session.notes
    assert "gaborium: units [2] were left out, because another stimulus type lacks them." in session.notes


@pytest.mark.parametrize("place", ["datasets", "datasets/left_eye", "."])
def test_paths_that_stand_for_a_session(tmp_path, builder, place):
    eye = "left_eye" if "left" in place else ""
    folder, written = builder("dset").build(tmp_path, eye=eye)
    path = folder / place
    assert find_format(path) == "dset"
    session = read_session(path)
    assert session.name == "ada_2024-05-01"
    assert session.missing_pct is not None
    assert session.n_bins == 960
    one = read_session((folder / "datasets" / eye) / "gratings.dset")
    assert (one.name, one.n_bins) == ("ada_2024-05-01", 240)
    np.testing.assert_array_equal(one.stimulus, written["gratings"]["stim"])


def test_two_eyes_need_a_choice(tmp_path, builder):
    builder("dset").build(tmp_path, eye="left_eye", qc=False, saccades=False)
    folder, right = builder("dset").build(tmp_path, eye="right_eye", seed=1)
    with pytest.raises(SessionError, match=r"left_eye', 'right_eye'\]; choose one with eye="):
        read_session(folder)
    with pytest.raises(SessionError, match="did you mean 'right_eye'"):
        read_session(folder, eye="right_eyes")
    np.testing.assert_array_equal(read_session(folder, eye="right_eye").stimulus[:], joined(right, "stim"))


def test_types_can_be_chosen(tmp_path, builder):
    folder, written = builder("dset").build(tmp_path)
    session = read_session(folder, types=("gratings", "backimage"))
    np.testing.assert_array_equal(session.stimulus[:240], written["gratings"]["stim"])
    assert session.stimulus_type[::240].tolist() == ["gratings", "backimage"]
    with pytest.raises(SessionError, match="did you mean 'gratings'"):
        read_session(folder, types=("grating",))


def test_missing_pct_follows_windows_in_seconds(tmp_path, builder):
    folder, _ = builder("dset").build(tmp_path, windows=True)
    session = read_session(folder)
    last = session.time.max() + 0.5 / 240
    middles = [5.0, last + 5.0]
    np.testing.assert_allclose(
        session.missing_pct[:][:, 3], np.interp(session.time, middles, [10.0, 50.0]), rtol=1e-6
    )  # fmt: skip
    path = folder / "qc" / "amp_truncation" / "truncation.npz"
    np.savez(path, cid=[0, 0, 0, 2, 9], mpcts=[10.0, 60.0, 20.0, np.nan, 5.0])  # without times, the median
    session = read_session(folder)
    np.testing.assert_array_equal(session.missing_pct[:][5], [20.0, 0, 0, 0, 0])
    assert any("median of several" in note for note in session.notes)
    assert "missing_pct is 0 for units [1, 2, 3, 4], of which truncation.npz has no estimate." in session.notes
    shutil.copytree(path.parent, folder / "qc" / "other")
    with pytest.raises(SessionError, match="choose one with truncation="):
        read_session(folder)
    assert read_session(folder, truncation="qc/other/truncation.npz").missing_pct is not None
    with pytest.raises(SessionError, match="no such file; give truncation="):
        read_session(folder, truncation="qc/none.npz")


def test_saccades_mark_the_bins_that_they_overlap(tmp_path, builder):
    folder, written = builder("dset").build(tmp_path, kinds=("backimage",))
    time = written["backimage"]["t_bins"] - 0.5 / 240
    step = 1 / 240
    events = [
        {"start_time": time[3] + 0.3 * step, "end_time": time[5] + 0.3 * step},  # bins 3, 4 and 5
        {"start_time": time[9] + 0.4 * step, "end_time": time[9] + 0.4 * step},  # one moment in bin 9
        {"start_time": time[59] + 0.1, "end_time": time[59] + 0.2},  # between trials
        {"start_time": time[119] - 0.4 * step, "end_time": time[120] + 0.4 * step},  # over the pause
        {"start_time": 7.0, "end_time": 6.0},
    ]
    file = folder / "saccades" / "saccades.json"
    file.write_text(json.dumps(events))
    session = read_session(folder)
    assert np.flatnonzero(session.behavior["saccade"]).tolist() == [3, 4, 5, 9, 118, 119, 120]
    assert any("1 saccades were left out" in note for note in session.notes)
    file.write_text(json.dumps({"start": [events[0]["start_time"]], "stop": [events[0]["end_time"]]}))
    assert np.flatnonzero(read_session(folder).behavior["saccade"]).tolist() == [3, 4, 5]
    file.write_text("[]")
    assert not read_session(folder).behavior["saccade"].any()
    file.write_text(json.dumps([{"amplitude": 3.0}]))
    session = read_session(folder)
    assert "saccade" not in session.behavior
    assert any(note.startswith("saccades.json was left out") for note in session.notes)
    file.write_text("{")
    with pytest.raises(SessionError, match=r"saccades\.json: not JSON"):
        read_session(folder)


@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=8, unique=True),
    st.lists(st.tuples(st.integers(-2, 28), st.integers(0, 9)), max_size=4),
)
def test_overlap_is_that_of_a_slow_search(starts, events):
    time = np.sort(starts).astype(float)  # bins of 1 s with gaps; events at halves of a second
    begins = np.array([begin / 2 for begin, _ in events])
    ends = np.array([(begin + length) / 2 for begin, length in events])
    expected = [
        any(
            (t < end and t + 1 > begin) if end > begin else t <= begin < t + 1
            for begin, end in zip(begins, ends, strict=True)
        )
        for t in time
    ]
    np.testing.assert_array_equal(overlapping(time, 1.0, begins, ends), expected)


def test_covariates_that_cannot_be_carried_are_told(tmp_path, builder):
    dset = builder("dset")
    values = dset.covariates("backimage") | {
        "wheel": np.arange(240.0), "video": np.zeros((240, 9, 9), np.float32), "total": np.arange(3), "name": "text",
        "half": torch.arange(240, dtype=torch.bfloat16),
    }  # fmt: skip
    session = read_session(dset.write_type(tmp_path / "backimage.dset", values, {}))
    np.testing.assert_array_equal(session.behavior["wheel"][:], values["wheel"])
    np.testing.assert_array_equal(session.behavior["half"][:], values["half"].float().numpy())
    for key in ("video", "total", "name"):
        assert sum(f"covariate {key!r} was left out" in note for note in session.notes) == 1


class Harmful:
    """Makes a file when it is unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


def test_a_file_that_wants_code_is_refused(tmp_path, builder):
    dset = builder("dset")
    target = tmp_path / "made"
    path = dset.write_type(tmp_path / "x.dset", dset.covariates("backimage"), {"note": Harmful(target)})
    with pytest.raises(SessionError, match=r"x\.dset: refused, because opening it could run code: it asks for \S*touch|"
                       r"x\.dset: refused, because opening it could run code: it asks for \S*getattr"):  # fmt: skip
        read_session(path)
    assert not target.exists()
    path.write_bytes(pickle.dumps({"covariates": {"stim": Harmful(target)}}))
    with pytest.raises(SessionError, match=r"x\.dset: (refused|not a whole archive)"):
        read_session(path)
    assert not target.exists()


@pytest.mark.parametrize("dtype", ["O", [("a", "O")]], ids=["object", "structured"])
def test_arrays_of_objects_are_refused(tmp_path, builder, dtype):
    dset = builder("dset")
    path = dset.write_type(tmp_path / "x.dset", dset.covariates("backimage"), {"rows": np.zeros(2, dtype).__class__})
    with pytest.raises(SessionError, match="refused, because opening it could run code"):
        metadata = {"rows": np.empty(2, dtype)}
        open_dset(dset.write_type(path, dset.covariates("backimage"), metadata))


def test_plain_numpy_metadata_open(tmp_path, builder):
    metadata = {
        "a": np.float64(1.5), "b": np.int64(3), "c": np.arange(3), "d": np.array(["x", "yy"]), "e": np.bool_(True),
        "f": np.float32(0.5), "g": {"h": [1, (2, None)]}, "i": np.zeros((2, 2), np.uint8), "j": np.str_("k"),
    }  # fmt: skip
    path = builder("dset").write_type(tmp_path / "x.dset", builder("dset").covariates("backimage"), metadata)
    _, read = open_dset(path)
    assert read.keys() == metadata.keys()
    for key in "abcdefij":
        np.testing.assert_array_equal(read[key], metadata[key])
    assert read["g"] == metadata["g"]


def test_what_is_no_session_says_why(tmp_path, builder):
    dset = builder("dset")
    path = tmp_path / "x.dset"

    def written(metadata=None, drop=(), **changes):
        values = {key: value for key, value in dset.covariates("backimage").items() if key not in drop} | changes
        return dset.write_type(path, values, metadata or {})

    def raw(content):
        torch.save(content, path)
        return path

    def cut():
        written()
        path.write_bytes(path.read_bytes()[:-2000])
        return path

    for make, message in [
        (lambda: written(drop=["robs"]), r"x\.dset: has no covariate 'robs' \(it has stim, t_bins"),
        (lambda: written(robs=np.zeros(240)), r"robs have the shape \(240,\); give \(T, U\)"),
        (lambda: written(robs=np.zeros((7, 2))), r"covariate 'robs' cannot be used: it has the shape \(7, 2\)"),
        (lambda: written(stim="no"), "stim is no array of frames"),
        (lambda: written(t_bins=np.full(240, np.nan)), "t_bins hold NaN"),
        (lambda: written(t_bins=np.zeros(240)), "do not tell the rate"),
        (lambda: written({"cluster_ids": [1, 1, 2, 3, 4]}), "lists 4 different cluster_ids for 5 columns"),
        (lambda: raw({"a": 1}), "has no mapping 'covariates'"),
        (lambda: raw({"covariates": {}, "metadata": [1]}), "its metadata are a list"),
        (cut, "not a whole archive of torch.save"),
    ]:
        with pytest.raises(SessionError, match=message):
            read_session(make())
    (tmp_path / "s" / "datasets").mkdir(parents=True)
    with pytest.raises(SessionError, match="not a recording of a known layout"):
        find_format(tmp_path / "s")
    with pytest.raises(SessionError, match=r"holds no \.dset file"):
        read_session(tmp_path / "s", format="dset")


def test_types_that_do_not_fit_together(tmp_path, builder):
    dset = builder("dset")
    folder = tmp_path / "s" / "datasets"
    dset.write_type(folder / "backimage.dset", dset.covariates("backimage"), {"ppd": 30.0})
    dset.write_type(folder / "gaborium.dset", dset.covariates("gaborium", size=6), {"ppd": 31.0})
    with pytest.raises(SessionError, match="frames differ in shape"):
        read_session(folder.parent)
    values = dset.covariates("gaborium")
    dset.write_type(folder / "gaborium.dset", values, {"ppd": 31.0})
    session = read_session(folder.parent)
    assert session.pixels_per_degree is None
    assert any(note.startswith("Pixels per degree were left out") for note in session.notes)
    dset.write_type(folder / "gaborium.dset", values | {"t_bins": 2 * values["t_bins"]}, {})
    with pytest.raises(SessionError, match="types differ in bins a second"):
        read_session(folder.parent)
    dset.write_type(folder / "gaborium.dset", values | {"stim": values["stim"].astype(np.float32)}, {})
    with pytest.raises(SessionError, match="frames differ in type"):
        read_session(folder.parent)


def test_a_folder_found_by_the_name_of_its_session_is_converted_once(tmp_path, builder):
    folder, written = builder("dset").build(tmp_path)
    first = as_session_file(folder, name="ada_2024-05-01", folder=tmp_path / "cache")
    stamp = first.stat().st_mtime_ns
    again = as_session_file(folder, name="ada_2024-05-01", folder=tmp_path / "cache")
    assert (again, again.stat().st_mtime_ns) == (first, stamp)
    np.testing.assert_array_equal(Session.load(first).stimulus, joined(written, "stim"))


def test_memory_does_not_grow_with_the_recording(tmp_path, builder):
    folder, written = builder("dset").build(tmp_path, kinds=("backimage", "gaborium"), n_bins=2000, size=64)
    size = sum(values["stim"].nbytes for values in written.values())
    del written
    tracemalloc.start()
    read_session(folder).save(tmp_path / "s.safetensors")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert size > 65e6
    assert peak < 56e6  # three blocks of 16 MB, and what is one number a bin
