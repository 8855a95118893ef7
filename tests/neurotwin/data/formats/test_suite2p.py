"""suite2p: units, frame times and the stimulus log, to the value; pickles are never opened."""

import csv
import tracemalloc

import numpy as np
import pytest

from neurotwin.data.formats import find_format, read_session
from neurotwin.data.formats.stimulus_log import StimulusLog
from neurotwin.data.session import Session, SessionError

KEPT = [0, 2, 3, 4, 5]


def shown_at(log, moment):
    """The frame that a slow search of the log finds."""
    rows = [row["frame"] for row in log if row["start"] <= moment < row["stop"]]
    return rows[0] if rows else None


def test_movie_arrives(tmp_path, builder):
    folder, written = builder("suite2p").build(tmp_path)
    assert find_format(folder) == "suite2p"
    session = read_session(folder)
    session = Session.load(session.save(tmp_path / "s.safetensors"))
    assert (session.name, session.subject, session.bin_rate) == ("fox_240501", "fox", 30.0)
    plane = written["planes"][0]
    np.testing.assert_array_equal(session.responses, plane["spks"][KEPT].T)
    assert session.unit_ids.tolist() == KEPT
    np.testing.assert_array_equal(session.unit_positions, plane["positions"][KEPT].astype(np.float32))
    np.testing.assert_array_equal(session.time, written["time"])
    np.testing.assert_array_equal(session.behavior["running"], written["running"].astype(np.float32))
    for bin_ in range(600):
        middle = written["time"][bin_] + 0.5 / 30
        frame = shown_at(written["log"], middle)
        expected = written["stimulus"][frame] if frame is not None else np.full((7, 9), 127)
        np.testing.assert_array_equal(session.stimulus[bin_], expected)
        trial = next((n for n in range(5) if 3 + 3 * n <= middle < 5 + 3 * n), -1)
        assert session.trial[bin_] == trial
    # The last two trials show the same frames.
    ids = [session.repeat_id[session.trial == trial] for trial in range(5)]
    assert (ids[3] >= 0).all() and ids[3].tolist() == ids[4].tolist() and len(set(ids[3])) == 60
    assert all((ids[trial] == -1).all() for trial in (0, 1, 2))
    assert "plane0: 1 of 6 units were left out, because iscell.npy says no cell." in session.notes
    assert not (tmp_path / "opened").exists()  # stat.npy was not


def test_all_paths_to_a_session(tmp_path, builder):
    folder, _ = builder("suite2p").build(tmp_path)
    for path in (folder, folder / "suite2p", folder / "suite2p" / "plane0"):
        assert find_format(path) == "suite2p"
        assert read_session(path) == read_session(folder)


def test_fluorescence_and_all_units(tmp_path, builder):
    folder, written = builder("suite2p").build(tmp_path)
    plane = written["planes"][0]
    np.testing.assert_array_equal(read_session(folder, responses="F", all_units=True).responses[:], plane["F"].T)
    corrected = read_session(folder, responses="F_corrected", neuropil=0.5)
    np.testing.assert_allclose(corrected.responses[:], (plane["F"] - 0.5 * plane["Fneu"])[KEPT].T, rtol=1e-6)


def test_planes_are_joined(tmp_path, builder):
    folder, written = builder("suite2p").build(tmp_path, planes=3)
    session = read_session(folder)
    assert session.unit_ids.tolist() == [100_000 * plane + row for plane in range(3) for row in KEPT]
    expected = np.concatenate([plane["spks"][KEPT] for plane in written["planes"]]).T
    np.testing.assert_array_equal(session.responses[:], expected)
    assert session.unit_labels["plane"].tolist() == [str(plane) for plane in range(3) for _ in KEPT]
    place = folder / "suite2p" / "plane2"
    np.save(place / "spks.npy", written["planes"][2]["spks"][:, :-1])
    session = read_session(folder)
    assert session.n_bins == 599
    np.testing.assert_array_equal(session.time, written["time"][:599])
    np.testing.assert_array_equal(session.behavior["running"][:], written["running"][:599].astype(np.float32))
    assert any("some planes lack it" in note for note in session.notes)
    np.save(place / "spks.npy", written["planes"][2]["spks"][:, :-9])
    with pytest.raises(SessionError, match="planes differ in imaging frames"):
        read_session(folder)


def test_presentations_average_over_their_window(tmp_path, builder):
    folder, written = builder("suite2p").build(tmp_path, kind="images", trials=False)
    session = read_session(folder, bins="presentations", delay=0.1, window=0.3)
    session = Session.load(session.save(tmp_path / "s.safetensors"))
    assert (session.n_bins, session.bin_rate) == (40, 2.0)
    middle = written["time"] + 0.5 / 30
    for bin_, row in enumerate(written["log"]):
        inside = (middle >= row["start"] + 0.1) & (middle < row["start"] + 0.4)
        expected = written["planes"][0]["spks"][KEPT][:, inside].mean(axis=1)
        np.testing.assert_allclose(session.responses[bin_], expected, rtol=1e-5)
        np.testing.assert_array_equal(session.stimulus[bin_], written["stimulus"][row["frame"]])
    assert session.trial.tolist() == [row["frame"] for row in written["log"]]
    assert (session.repeat_id.reshape(4, 10) == session.repeat_id[:10]).all()
    assert len(set(session.repeat_id)) == 10
    assert session.valid.all()
    assert any("Behaviour running was left out" in note for note in session.notes)
    late = read_session(folder, bins="presentations", delay=1.0)
    np.testing.assert_array_equal(late.valid, [row["start"] + 1.0 < written["time"][-1] for row in written["log"]])


def test_without_trials_the_log_is_cut(tmp_path, builder):
    folder, written = builder("suite2p").build(tmp_path, trials=False)
    session = read_session(folder, trial_duration=2.0)
    middle = written["time"] + 0.5 / 30
    inside = (middle >= 3) & (middle < 17)
    np.testing.assert_array_equal(session.trial >= 0, inside)
    assert np.unique(session.trial[inside], return_counts=True)[1].tolist() == [60] * 7
    assert any("show grey" in note for note in session.notes)
    short = read_session(folder, trial_duration=0.5)  # the pauses of 1 s are longer
    paused = [shown_at(written["log"], moment) is None for moment in middle]
    np.testing.assert_array_equal(short.trial < 0, paused)


def test_log_columns(tmp_path, builder):
    folder, written = builder("suite2p").build(tmp_path)
    rows = written["log"]
    with open(folder / "stimulus_log.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["start", "stop", "frame", "trial", "type", "split"])
        for row in rows:
            kind, split = ("noise", "") if row["trial"] < 3 else ("scenes", "test")
            frame = "" if row["frame"] == 0 else row["frame"]
            writer.writerow([row["start"], row["stop"], frame, row["trial"], kind, split])
    session = read_session(folder)
    np.testing.assert_array_equal(session.split == "test", session.trial >= 3)
    inside = session.trial >= 0
    np.testing.assert_array_equal((session.stimulus_type == "scenes")[inside], session.trial[inside] >= 3)
    first = np.flatnonzero(session.trial == 0)[:2]  # the first frame is grey now
    np.testing.assert_array_equal(session.stimulus[first[0] : first[1] + 1], np.full((2, 7, 9), 127))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("start,stop,frame\n", "has no line below"),
        ("start,stop,image\n1,2,0\n", "unknown column 'image'; valid: start"),
        ("start,stop,frames\n1,2,0\n", "unknown column 'frames'; did you mean 'frame'"),
        ("start,frame\n1,0\n", "has no column 'stop'"),
        ("start,stop,frame\n1,2,0\n2,x,1\n", r"csv:3: stop is 'x'; give a time in s"),
        ("start,stop,frame\n1,2,0.5\n", r"csv:2: frame is '0.5'; give a whole number"),
        ("start,stop,frame\n2,1,0\n", r"csv:2: stops before it starts"),
        ("start,stop,frame\n1,2,0\n3,4,9\n", r"csv:3: shows a frame that is none of the 9"),
        ("start,stop,frame\n1,3,0\n2,4,1\n", r"csv:3: starts before the line before it has stopped"),
        ("start,stop,frame,split\n1,3,0,dev\n", r"csv:2: has a split other than"),
    ],
)
def test_mistakes_of_the_log_are_named(tmp_path, text, message):
    (tmp_path / "log.csv").write_text(text)
    with pytest.raises(SessionError, match=message):
        StimulusLog.read(tmp_path / "log.csv", 9)


def test_trials_of_the_log_must_not_interleave(tmp_path):
    (tmp_path / "log.csv").write_text("start,stop,frame,trial\n1,2,0,0\n2,3,0,1\n3,4,0,0\n")
    log = StimulusLog.read(tmp_path / "log.csv", 9)
    with pytest.raises(SessionError, match="trial 0 lie between those of another trial"):
        log.trials(np.arange(1.5, 4), 1.0, 10.0)


def test_mistakes_are_named(tmp_path, builder):
    folder, written = builder("suite2p").build(tmp_path)
    plane = folder / "suite2p" / "plane0"

    def fails(message, **options):
        with pytest.raises(SessionError, match=message):
            read_session(folder, **options)

    np.save(folder / "frame_times.npy", written["time"][:-1])
    fails("has 599 times for 600 imaging frames")
    np.save(folder / "frame_times.npy", written["time"][::-1])
    fails("times must increase")
    (folder / "frame_times.npy").unlink()
    fails("has no frame_times.npy; add the start of each frame in s, or --bin_rate")
    assert read_session(folder, bin_rate=30.0).time[0] == 0
    np.save(folder / "frame_times.npy", written["time"])
    np.save(folder / "behavior.pupil.npy", np.zeros(7))
    fails(r"behavior\.pupil\.npy: has the shape \(7,\) for 600 imaging frames")
    (folder / "behavior.pupil.npy").unlink()
    np.save(folder / "stimulus.npy", np.zeros(3))
    fails(r"stimulus\.npy has the shape \(3,\)")
    np.save(folder / "stimulus.npy", np.array([object()]), allow_pickle=True)
    fails(r"stimulus\.npy: not an array of numbers")
    (folder / "stimulus.npy").unlink()
    fails("has no stimulus.npy; add it")
    np.save(folder / "stimulus.npy", written["stimulus"])
    (folder / "stimulus_log.csv").rename(folder / "log.csv")
    fails("has no stimulus_log.csv; add it")
    (folder / "log.csv").rename(folder / "stimulus_log.csv")
    np.save(plane / "positions.npy", np.zeros((2, 2)))
    fails(r"positions\.npy: has the shape \(2, 2\) for 6 units")
    (plane / "positions.npy").unlink()
    assert any("stat.npy is not read" in note for note in read_session(folder).notes)
    (plane / "Fneu.npy").unlink()
    fails(r"Fneu\.npy: no such file", responses="F_corrected")
    np.save(plane / "iscell.npy", np.zeros((6, 2)))
    fails("no unit is left; use all_units=true")
    np.save(plane / "iscell.npy", np.zeros((5, 2)))
    fails(r"iscell\.npy is \(5, 2\), responses are \(6, 600\)")


def test_unknown_values_are_masked(tmp_path, builder):
    folder, written = builder("suite2p").build(tmp_path)
    spks = written["planes"][0]["spks"].copy()
    spks[2, 40], spks[4] = np.nan, np.nan
    np.save(folder / "suite2p" / "plane0" / "spks.npy", spks)
    running = written["running"].copy()
    running[50] = np.nan
    np.save(folder / "behavior.running.npy", running)
    session = read_session(folder)
    assert np.flatnonzero(~session.valid).tolist() == [40, 50]
    assert session.unit_ids.tolist() == [0, 2, 3, 5]
    assert "Units [4] were left out, because their responses are NaN throughout." in session.notes
    session.check()


def test_memory_does_not_grow_with_the_recording(tmp_path, builder):
    folder, _ = builder("suite2p").build(tmp_path, n_rois=400, n_frames=40_000)
    tracemalloc.start()
    read_session(folder).save(tmp_path / "s.safetensors")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "s.safetensors").stat().st_size > 60e6
    assert peak < 60e6
