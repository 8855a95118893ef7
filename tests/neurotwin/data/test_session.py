"""Sessions and their files: round trips, and refusals that name the cure."""

import json

import numpy as np
import pytest
import safetensors.numpy

from neurotwin.data.session import Session, SessionError
from neurotwin.tensorfile import TensorFileError, load_arrays, save_arrays, verify_arrays, write_arrays


def make_session(n_bins=40, n_units=3, **changes):
    rng = np.random.default_rng(0)
    fields = {
        "name": "ada_01", "bin_rate": 60.0,
        "stimulus": rng.integers(0, 256, (n_bins, 4, 5), dtype=np.uint8),
        "spikes": rng.poisson(1.0, (n_bins, n_units)).astype(np.uint8),
    }  # fmt: skip
    return Session(**fields | changes)


def test_a_file_gives_back_what_was_saved(tmp_path):
    session = make_session(
        unit_ids=np.array([7, 3, 9]),
        behavior={"eye": np.arange(80.0).reshape(40, 2), "pupil": np.arange(40.0)},
        trial=np.repeat([-1, 2, 5, 2], 10),
        valid=np.arange(40) % 7 > 0,
        stimulus_type=np.repeat(["b", "a"], 20),
        repeat_id=np.arange(40) % 20,
        time=np.arange(40) / 60,
        exposure=np.arange(1, 41),
        split=np.repeat(["train", "val", "", "test"], 10),
        true_rate=np.full((40, 3), 0.5),
        missing_pct=np.full((40, 3), 5.0),
        unit_positions=np.arange(6.0).reshape(3, 2),
        info={"lab": "x"},
    )
    loaded = Session.load(session.save(tmp_path / "s.safetensors"))
    for key in ("stimulus", "spikes", "unit_ids", "trial", "valid", "stimulus_type", "repeat_id", "time", "exposure",
                "split", "true_rate", "missing_pct", "unit_positions"):  # fmt: skip
        np.testing.assert_array_equal(getattr(loaded, key), getattr(session, key), err_msg=key)
    np.testing.assert_array_equal(loaded.behavior["eye"], session.behavior["eye"])
    assert (loaded.name, loaded.subject, loaded.bin_rate, dict(loaded.info)) == ("ada_01", "ada", 60.0, {"lab": "x"})
    assert isinstance(loaded.stimulus, np.memmap)


def test_an_independent_reader_agrees(tmp_path):
    session = make_session()
    arrays = safetensors.numpy.load_file(session.save(tmp_path / "s.safetensors"))
    np.testing.assert_array_equal(arrays["stimulus"], session.stimulus)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stimulus": np.zeros((40, 4, 5), np.float32)}, "use uint8"),
        ({"stimulus": np.zeros((40, 4), np.uint8)}, r"\(T, H, W\)"),
        ({"spikes": np.zeros((39, 3))}, "spikes has 39 bins where the stimulus has 40"),
        ({"behavior": {"eye": np.zeros(12)}}, r"behavior\['eye'\] has 12 bins"),
        ({"unit_ids": np.array([1, 1, 2])}, "unit_ids repeat"),
        ({"unit_ids": np.array([1, 2])}, "unit_ids covers 2 units"),
        ({"spikes": np.full((40, 3), np.nan)}, "NaN"),
        ({"spikes": np.full((40, 3), -1.0)}, "negative"),
        ({"exposure": np.zeros(40)}, "exposure must be positive"),
        ({"split": np.full(40, "training")}, "training"),
        ({"bin_rate": 0.0}, "Hz"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(changes, message):
    with pytest.raises(SessionError, match=message) as error:
        make_session(**changes)
    assert "'ada_01'" in str(error.value)


def test_broken_files_are_refused(tmp_path):
    path = make_session().save(tmp_path / "s.safetensors")
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(SessionError, match="cut off"):
        Session.load(path)
    path.write_bytes(b"PK\x03\x04" + content)
    with pytest.raises(SessionError, match="not a safetensors file"):
        Session.load(path)
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(TensorFileError, match="checksum"):
        verify_arrays(path)
    with pytest.raises(SessionError, match="no such session file"):
        Session.load(tmp_path / "absent.safetensors")
    save_arrays(tmp_path / "other.safetensors", {"x": np.zeros(3)}, {})
    with pytest.raises(SessionError, match="not a session file"):
        Session.load(tmp_path / "other.safetensors")


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.safetensors"
    save_arrays(path, {"x": np.arange(4)}, {})

    def interrupted():
        with write_arrays(path, {"x": (np.int64, (4,))}, {}) as out:
            out["x"][:] = 9
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    np.testing.assert_array_equal(load_arrays(path)[0]["x"], np.arange(4))
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_metadata_and_empty_arrays_survive(tmp_path):
    path = tmp_path / "a.safetensors"
    save_arrays(path, {"x": np.zeros((0, 3), np.float32), "y": np.ones(2, bool)}, {"a": [1, {"b": None}], "c": "text"})
    arrays, metadata = load_arrays(path)
    assert arrays["x"].shape == (0, 3) and arrays["y"].all()
    assert metadata["a"] == [1, {"b": None}] and metadata["c"] == "text"
    verify_arrays(path)
    header = json.loads(path.read_bytes()[8 : 8 + int.from_bytes(path.read_bytes()[:8], "little")])
    assert set(header) == {"__metadata__", "x", "y"}
