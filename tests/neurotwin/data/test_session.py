"""Sessions and their files: round trips to the value, equality, and refusals that name the cure."""

import copy
import json
import subprocess
import sys
from dataclasses import fields

import numpy as np
import pytest
import safetensors.numpy

from neurotwin.data.session import Session, SessionError, frame_shape
from neurotwin.data.streamed import Streamed
from neurotwin.tensorfile import load_arrays, save_arrays

SHAPES = {(): (1, 1, 1), (31,): (1, 31, 1), (5, 6): (1, 5, 6), (3, 5, 6): (3, 5, 6)}
"""Shape of a bin, and C, H and W of it as a frame."""


def same(a, b) -> bool:
    """Whether two values of a field are equal, by means of the test's own."""
    if isinstance(a, dict):
        return set(a) == set(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.dtype.kind == b.dtype.kind and a.shape == b.shape and (np.asarray(a) == np.asarray(b)).all()
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and a == b


@pytest.mark.parametrize("unit_ids", [[7, -3, 2**40, 9], ["imec0-3", "ä", "", "imec1 12"]], ids=["whole", "text"])
def test_a_file_gives_back_every_field_to_the_value(factory, tmp_path, unit_ids):
    session = factory.full_session(unit_ids=unit_ids)
    plain = factory.make_session()
    default = {f.name for f in fields(Session) if same(getattr(session, f.name), getattr(plain, f.name))}
    assert default <= {"name", "stimulus", "responses", "bin_rate"}, "the factory must fill every field"
    loaded = Session.load(session.save(tmp_path / "s.safetensors"))
    differ = [f.name for f in fields(Session) if not same(getattr(session, f.name), getattr(loaded, f.name))]
    assert not differ
    assert loaded == session and isinstance(loaded.stimulus, np.memmap) and not loaded.stimulus.flags.writeable
    assert loaded.unit_ids.tolist() == unit_ids
    again = Session.load(loaded.save(tmp_path / "again.safetensors"))
    assert again == session
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "s.safetensors").read_bytes()


def test_what_is_left_out_stays_left_out(factory, tmp_path):
    session = factory.make_session(trial=None)
    loaded = Session.load(session.save(tmp_path / "s.safetensors"))
    assert loaded == session
    for name in ("time", "exposure", "split", "true_rate", "missing_pct", "unit_positions", "pixels_per_degree"):
        assert getattr(loaded, name) is None, name
    assert loaded.subject == "ada" and loaded.unit_ids.tolist() == [0, 1, 2, 3] and loaded.valid.all()
    assert not loaded.trial.any() and (loaded.repeat_id == -1).all() and set(loaded.stimulus_type) == {"movie"}


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32])
def test_stimuli_of_any_shape_and_type(factory, tmp_path, dtype):
    for shape, frame in SHAPES.items():
        stimulus = (np.random.default_rng(0).normal(100, 20, (50, *shape))).astype(dtype)
        session = factory.make_session(n_bins=50, stimulus=stimulus)
        loaded = Session.load(session.save(tmp_path / "s.safetensors"))
        assert loaded.stimulus.dtype == dtype and np.array_equal(loaded.stimulus, stimulus), shape
        assert loaded.frame_shape == frame_shape(shape) == frame
        assert f"frames {'x'.join(map(str, frame))}," in repr(loaded)


def test_responses_may_be_negative_and_real(factory, tmp_path):
    responses = np.random.default_rng(0).normal(0, 3, (240, 4))
    for dtype in (np.float16, np.float32, np.float64, np.int16, bool):
        session = factory.make_session(responses=responses.astype(dtype))
        loaded = Session.load(session.save(tmp_path / "s.safetensors"))
        np.testing.assert_array_equal(loaded.responses, session.responses, err_msg=str(dtype))


def test_names_of_trials_are_numbered_in_the_order_of_appearance(factory):
    session = factory.make_session(trial=np.repeat(["b", "a", "c", "a"], 60))
    assert session.trial.tolist() == np.repeat([0, 1, 2, 1], 60).tolist()


def test_a_session_says_what_it_is(factory):
    text = repr(factory.make_session(n_bins=7200, trial_bins=600, stimulus_type=np.repeat(["b", "a"], 3600)))
    assert text == "Session 'ada_01' of ada: 4 units, 7200 bins at 60 Hz (2.0 min), frames 1x5x6, types a, b"


def test_a_session_without_a_stimulus_type_is_refused(factory):
    with pytest.raises(SessionError, match="stimulus_type is None"):
        factory.make_session(stimulus_type=None)


def test_sessions_are_equal_by_value(factory):
    session = factory.full_session()
    assert session == factory.full_session() and session == copy.copy(session)
    assert session != "a session"
    changed = {
        "name": "ada_02", "subject": "bea", "bin_rate": 30.0, "pixels_per_degree": None, "info": {}, "notes": ("x",),
        "stimulus_type": "b", "behavior": {"eye": session.behavior["eye"]}, "split": None,
        "unit_labels": {"area": ["V1", "V1", "V4", "V4"], "quality": session.unit_labels["quality"]},
        "stimulus": session.stimulus ^ (np.arange(240) == 239)[:, None, None],
        **{
            key: getattr(session, key) + 1
            for key in ("responses", "unit_ids", "trial", "repeat_id", "time", "exposure", "true_rate", "missing_pct",
                        "unit_positions")
        },
        "valid": ~session.valid, "scenes": session.scenes[::-1], "scene": session.scene * 0, "scene_offset": (0, 0),
    }  # fmt: skip
    assert set(changed) == {field.name for field in fields(Session)}
    alike = [key for key, value in changed.items() if factory.full_session(**{key: value}) == session]
    assert not alike
    with pytest.raises(TypeError, match="unhashable"):
        hash(session)


def test_an_independent_reader_agrees(factory, tmp_path):
    session = factory.make_session()
    arrays = safetensors.numpy.load_file(session.save(tmp_path / "s.safetensors"))
    np.testing.assert_array_equal(arrays["stimulus"], session.stimulus)
    np.testing.assert_array_equal(arrays["responses"], session.responses)


def with_nan(*shape):
    array = np.ones(shape, np.float32)
    array[(-1,) * len(shape)] = np.nan
    return array


NAME = "a name must not be empty, begin with a dot, or hold a slash"
REFUSED = {
    "no name": ({"name": ""}, NAME),
    "a hidden name": ({"name": ".ada"}, NAME),
    "a name with a slash": ({"name": "ada/01"}, NAME),
    "a name with a backslash": ({"name": "ada\\01"}, NAME),
    "a name with a null": ({"name": "ada\x00"}, NAME),
    "stimulus float64": ({"stimulus": np.zeros((240, 4, 5))}, "stimulus is float64; use uint8"),
    "stimulus int16": ({"stimulus": np.zeros((240, 4, 5), np.int16)}, "stimulus is int16; use uint8"),
    "stimulus of five axes": ({"stimulus": np.zeros((240, 1, 1, 4, 5), np.uint8)}, "give (T,), (T, F), (T, H, W) or"),
    "channels last": ({"stimulus": np.zeros((240, 16, 16, 3), np.uint8)}, "np.moveaxis(stimulus, -1, 1)"),
    "no pixels": ({"stimulus": np.zeros((240, 0, 5), np.uint8)}, "nothing is shown"),
    "NaN in the stimulus": ({"stimulus": with_nan(240, 4, 5)}, "stimulus holds NaN or infinite values"),
    "infinite stimulus": ({"stimulus": np.full((240, 4), np.inf, np.float16)}, "stimulus holds NaN or infinite"),
    "responses of one axis": ({"responses": np.zeros(240), "unit_ids": [1]}, "responses have shape (240,); give (T"),
    "responses that are no numbers": ({"responses": np.full((240, 4), "a")}, "responses is <U1; give numbers"),
    "responses of another length": ({"responses": np.zeros((239, 4))}, "responses has 239 bins where the stimulus has"),
    "NaN in responses": ({"responses": with_nan(240, 4)}, "responses hold NaN; set them to 0 and mask"),
    "huge responses": ({"responses": np.full((240, 4), -2e7)}, "responses reach 2e+07"),
    "a bin rate of 0": ({"bin_rate": 0.0}, "bin_rate is 0.0; give a positive number, bins a second, in Hz"),
    "a bin rate of NaN": ({"bin_rate": float("nan")}, "bin_rate is nan; give a positive number"),
    "an infinite bin rate": ({"bin_rate": float("inf")}, "bin_rate is inf; give a positive number"),
    "a bin rate of text": ({"bin_rate": "60"}, "bin_rate is '60'; give a positive number"),
    "no bin rate": ({"bin_rate": None}, "bin_rate is None; give a positive number"),
    "pixels per degree": ({"pixels_per_degree": -1}, "pixels_per_degree is -1; give a positive number, or None"),
    "unit ids repeat": ({"unit_ids": [1, 1, 2, 3]}, "unit_ids repeat; every unit needs its own id"),
    "text ids repeat": ({"unit_ids": ["a", "b", "b", "c"]}, "unit_ids repeat"),
    "too few unit ids": ({"unit_ids": [1, 2]}, "unit_ids covers 2 units where responses have 4"),
    "unit ids with a fraction": ({"unit_ids": [1, 2.5, 3, 4]}, "unit_ids hold 2.5, which is not a whole number"),
    "unit ids too large": ({"unit_ids": np.full(4, 2**63, np.uint64)}, "which is not a whole number of 64 bits"),
    "unit ids that are NaN": ({"unit_ids": [1, 2, np.nan, 4]}, "unit_ids hold nan"),
    "unit ids of truth": ({"unit_ids": np.ones(4, bool)}, "unit_ids are bool; give whole numbers"),
    "unit ids of objects": ({"unit_ids": np.array([None, 1, 2, 3])}, "unit_ids are object; give whole numbers"),
    "trial with a fraction": ({"trial": np.arange(240) / 2}, "trial hold 0.5, which is not a whole number"),
    "repeat_id with a fraction": ({"repeat_id": np.arange(240) / 2}, "repeat_id hold 0.5"),
    "repeat_id of text": ({"repeat_id": np.full(240, "a")}, "repeat_id are <U1; give whole numbers"),
    "valid that is neither": ({"valid": np.full(240, 2)}, "valid holds 2; give true or false"),
    "valid that is NaN": ({"valid": with_nan(240)}, "valid holds nan; give true or false"),
    "behaviour of another length": ({"behavior": {"eye": np.zeros(12)}}, "behavior['eye'] has 12 bins where"),
    "behaviour of text": ({"behavior": {"eye": np.full(240, "a")}}, "behavior['eye'] is <U1; give numbers"),
    "NaN in behaviour": ({"behavior": {"eye": with_nan(240, 2)}}, "behavior['eye'] holds NaN or infinite values"),
    "NaN in time": ({"time": with_nan(240)}, "time holds NaN; give the start of each bin in s"),
    "no exposure": ({"exposure": np.zeros(240)}, "exposure must be positive; use `valid` for bins not shown"),
    "NaN in exposure": ({"exposure": with_nan(240)}, "exposure must be positive"),
    "NaN in true_rate": ({"true_rate": with_nan(240, 4)}, "true_rate holds NaN or infinite values"),
    "NaN in missing_pct": ({"missing_pct": with_nan(240, 4)}, "missing_pct holds NaN or infinite values"),
    "NaN in unit_positions": ({"unit_positions": with_nan(4, 2)}, "unit_positions holds NaN or infinite values"),
    "true_rate of another shape": ({"true_rate": np.ones((240, 3))}, "true_rate has shape (240, 3) where responses"),
    "missing_pct of another shape": ({"missing_pct": np.ones(240)}, "missing_pct has shape (240,) where responses"),
    "positions of other units": ({"unit_positions": np.ones((3, 2))}, "unit_positions covers 3 units where"),
    "labels of other units": ({"unit_labels": {"area": ["V1"]}}, "unit_labels['area'] covers 1 units where"),
    "a split of another name": ({"split": np.full(240, "training")}, "split holds ['training']; use ('train', 'val'"),
    **{
        f"{key} of another length": ({key: value}, f"{key} has 12 bins where the stimulus has 240; align them first")
        for key, value in {
            "trial": np.zeros(12, int), "valid": np.ones(12, bool), "repeat_id": np.zeros(12, int),
            "stimulus_type": ["a"] * 12, "time": np.zeros(12), "exposure": np.ones(12), "split": ["train"] * 12,
        }.items()
    },
}  # fmt: skip


def test_what_does_not_fit_is_refused_with_the_session_and_the_cure(factory):
    assert not factory.refusals(REFUSED, factory.make_session, SessionError)
    for changes, _ in REFUSED.values():
        with pytest.raises(SessionError) as error:
            factory.make_session(**changes)
        assert str(error.value).startswith(f"session {changes.get('name', 'ada_01')!r}: ")


def test_a_session_that_was_made_wrong_later_is_not_saved(factory, tmp_path):
    session = factory.make_session()
    session.valid = session.valid[:5]
    with pytest.raises(SessionError, match="valid has 5 bins"):
        session.save(tmp_path / "s.safetensors")
    assert not list(tmp_path.iterdir())


def test_broken_files_are_refused(factory, tmp_path):
    path = factory.make_session().save(tmp_path / "s.safetensors")
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    save_arrays(tmp_path / "other.safetensors", {"x": np.zeros(3)}, {})
    safetensors.numpy.save_file({"x": np.zeros(3)}, tmp_path / "foreign.safetensors")
    cases = {
        "cut at the end": (content[:-1], "it was cut off"),
        "cut in the header": (content[: length // 2], "not a safetensors file, or cut off"),
        "empty": (b"", "not a safetensors file, or cut off"),
        "something longer": (content + b"\0", "bytes where its header promises"),
        "a zip": (b"PK\x03\x04" + content, "not a safetensors file"),
        "a bit of the content": (content[:-1] + bytes([content[-1] ^ 1]), "its content does not match its checksum"),
        "a word of the header": (content.replace(b"ada_01", b"bea_01"), "its header does not match its checksum"),
        "another file of ours": ((tmp_path / "other.safetensors").read_bytes(), "its format is None"),
        "a file of others": ((tmp_path / "foreign.safetensors").read_bytes(), "neurotwin did not write it"),
    }  # fmt: skip

    def load(content):
        path.write_bytes(content)
        Session.load(path)

    wrong = {case: ({"content": content}, message) for case, (content, message) in cases.items()}
    assert not factory.refusals(wrong, load, SessionError)
    path.unlink()
    with pytest.raises(SessionError, match="no such session file"):
        Session.load(path)


def test_reading_the_content_can_be_left_out_and_the_header_cannot(factory, tmp_path):
    path = factory.make_session().save(tmp_path / "s.safetensors")
    factory.flip(path)
    assert Session.load(path, verify=False).n_bins == 240
    factory.flip(path, at=40)
    with pytest.raises(SessionError, match="header"):
        Session.load(path, verify=False)


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.safetensors"
    save_arrays(path, {"x": np.arange(4)}, {})

    def interrupted(start, stop):
        if start:
            raise KeyboardInterrupt
        return np.zeros((stop - start, 1000), np.uint8)

    with pytest.raises(KeyboardInterrupt):
        save_arrays(path, {"x": Streamed((100_000, 1000), np.dtype(np.uint8), interrupted)}, {})
    np.testing.assert_array_equal(load_arrays(path)[0]["x"], np.arange(4))
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_metadata_and_arrays_of_any_size_survive(tmp_path):
    path = tmp_path / "a.safetensors"
    empty, scalar, wide = np.zeros((0, 3), np.float32), np.array(3.5), np.arange(5_000_000, dtype=np.int64)
    written = {"x": empty, "y": np.ones(2, bool), "z": scalar, "w": wide}
    save_arrays(path, written, {"a": [1, {"b": None}], "c": 'te"xt', "d": "0" * 64})
    arrays, metadata = load_arrays(path)
    for name, array in written.items():
        assert arrays[name].shape == array.shape and arrays[name].dtype == array.dtype, name
        assert arrays[name].flags.aligned, f"{name} starts where the processor reads it slowly"
        np.testing.assert_array_equal(arrays[name], array)
    assert metadata.pop("digest") and metadata == {"a": [1, {"b": None}], "c": 'te"xt', "d": "0" * 64}
    header = json.loads(path.read_bytes()[8 : 8 + int.from_bytes(path.read_bytes()[:8], "little")])
    assert set(header) == {"__metadata__", *written}


# --- larger than memory ---------------------------------------------------------------------------------------------


def test_streamed_arrays_are_sliced_as_arrays_are():
    whole = np.random.default_rng(0).normal(size=(20, 3, 2)).astype(np.float32)
    bounds = [0, 7, 7, 12, 20]
    loaded = []

    def load(part):
        loaded.append(part)
        return whole[bounds[part] : bounds[part + 1]]

    for streamed in (
        Streamed(whole.shape, whole.dtype, lambda start, stop: whole[start:stop]),
        Streamed.of_parts(np.diff(bounds), load, whole[0]),
    ):
        assert (len(streamed), streamed.shape, streamed.ndim, streamed.dtype) == (20, whole.shape, 3, whole.dtype)
        for part in (
            slice(3, 15),
            slice(None),
            slice(-4, None),
            slice(2, 18, 3),
            slice(5, 5),
            (slice(1, 9), 0),
            7,
            -1,
            (3, 1),
        ):
            np.testing.assert_array_equal(streamed[part], whole[part], err_msg=str(part))
        np.testing.assert_array_equal(np.asarray(streamed), whole)
        np.testing.assert_array_equal(np.asarray(streamed, np.float64), whole.astype(float))
    loaded.clear()
    assert [len(streamed[start : start + 2]) for start in range(0, 20, 2)] == [2] * 10
    assert loaded == [0, 1, 2, 3], "pieces in order load every part once"


def test_a_streamed_session_is_saved_as_the_arrays_that_it_streams(factory, tmp_path):
    def streamed(array, dtype=None):
        array = array if dtype is None else array.astype(dtype)
        return Streamed(array.shape, array.dtype, lambda start, stop: array[start:stop])

    session = factory.full_session()
    other = factory.full_session(
        stimulus=streamed(session.stimulus), responses=streamed(session.responses),
        behavior={key: streamed(value, np.float64) for key, value in session.behavior.items()},
        true_rate=streamed(session.true_rate, np.float64), missing_pct=streamed(session.missing_pct),
    )  # fmt: skip
    session.save(tmp_path / "a.safetensors")
    other.save(tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


SAVE = """
import resource, sys
import numpy as np
from neurotwin.data.session import Session
from neurotwin.data.streamed import Streamed

def status(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))

def read(start, stop):
    assert stop - start < 20_000, f"{stop - start} frames at once"
    return np.full((stop - start, 32, 32), 7, np.uint8)

limit = status("VmData") + (90 << 20)
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
responses = np.ones((200_000, 2), np.uint8)
Session(name="a_1", stimulus=Streamed((200_000, 32, 32), np.dtype(np.uint8), read), responses=responses,
        bin_rate=60.0).save(sys.argv[1])
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
assert Session.load(sys.argv[1], verify=False).n_bins == 200_000
"""


def test_a_recording_larger_than_memory_can_be_saved(tmp_path):
    """200 MB of frames with 90 MB to work in: a process that asked for more would get a MemoryError.

    The limit is on memory of the process's own; pages of files that it writes or maps are the system's.
    """
    path = tmp_path / "a_1.safetensors"
    done = subprocess.run([sys.executable, "-c", SAVE, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert path.stat().st_size > 200_000 * 32 * 32
    assert (Session.load(path, verify=False).stimulus[::9999] == 7).all()
    path.unlink()
