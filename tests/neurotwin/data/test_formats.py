"""Plain arrays as sessions, and configs that name data of another layout."""

import numpy as np
import pytest

from neurotwin.config import DatasetConfig
from neurotwin.data.formats import find_format, read_session
from neurotwin.data.prepare import outline, prepare_session
from neurotwin.data.session import Session, SessionError


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("folder", [False, True])
def test_arrays(tmp_path, rng, folder):
    arrays = {
        "stimulus": rng.integers(0, 256, (20, 5, 6)).astype(np.uint8), "responses": rng.normal(size=(20, 3)),
        "behavior.pupil": rng.random(20, np.float32), "trial": np.repeat([0, 1], 10), "unit_ids": np.array([4, 8, 9]),
        "split": np.repeat(["train", "val"], 10),
        "unit_labels.area": np.array(["V1", "V1", "V4"]), "bin_rate": np.array(60.0), "subject": np.array("ada"),
    }  # fmt: skip
    path = tmp_path / ("ada_7" if folder else "ada_7.npz")
    if folder:
        path.mkdir()
        for key, value in arrays.items():
            np.save(path / f"{key}.npy", value)
    else:
        np.savez(path, **arrays)
    assert find_format(path) == "arrays"
    session = read_session(path)
    assert (session.name, session.subject, session.bin_rate) == ("ada_7", "ada", 60.0)
    for key in ("stimulus", "responses", "trial", "unit_ids", "split"):
        np.testing.assert_array_equal(getattr(session, key), arrays[key])
    np.testing.assert_array_equal(session.behavior["pupil"], arrays["behavior.pupil"])
    assert session.unit_labels["area"].tolist() == ["V1", "V1", "V4"]
    other = read_session(path, name="bea_1", subject="bea", bin_rate=30.0)
    assert (other.name, other.subject, other.bin_rate) == ("bea_1", "bea", 30.0)
    assert Session.load(session.save(tmp_path / "saved.safetensors")) == session


def test_responses_may_be_called_spikes_or_robs(tmp_path):
    for name in ("responses", "spikes", "robs"):
        counts = np.random.default_rng(0).poisson(1, (4, 1))
        np.savez(tmp_path / "x.npz", stimulus=np.zeros((4, 2, 2), np.uint8), bin_rate=30.0, **{name: counts})
        np.testing.assert_array_equal(read_session(tmp_path / "x.npz").responses, counts)


def test_arrays_that_are_no_session(factory, tmp_path):
    movie, counts = np.zeros((4, 2, 2), np.uint8), np.zeros((4, 1))

    def read(**arrays):
        np.savez(tmp_path / "x.npz", **arrays)
        read_session(tmp_path / "x.npz")

    both = {"stimulus": movie, "spikes": counts}
    cases = {
        "no responses": ({"stimulus": movie}, "has no array 'responses' (it has stimulus)"),
        "no stimulus": ({"spikes": counts}, "has no array 'stimulus'"),
        "no rate": (both, "give --bin_rate"),
        "a misspelt name": (both | {"stimulu": movie}, "array 'stimulu' is not part of a session; did you mean 'stim"),
        "responses twice": (both | {"robs": counts}, "has the responses twice, once as 'robs'"),
        "what would unpickle": ({"stimulus": movie, "spikes": np.array([object()])}, "not an .npz file"),
        "what does not agree": (both | {"bin_rate": 1.0, "valid": [True]}, "valid has 1 bins where"),
    }  # fmt: skip
    assert not factory.refusals(cases, read, SessionError)
    with pytest.raises(SessionError, match="no such file"):
        read_session(tmp_path / "absent.npz")
    (tmp_path / "text.npz").write_text("no")
    with pytest.raises(SessionError, match=r"not an \.npz file"):
        read_session(tmp_path / "text.npz")


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
    read_session(tmp_path / "a_1.npz", name="a_1").save(tmp_path / "native" / "a_1.safetensors")
    found = []
    for path in ("a_1.npz", "folder", "native"):
        config = DatasetConfig.model_validate({"session": "a_1", "path": str(tmp_path / path), "train_val_split": 0.5})
        assert outline([config])[0].frame_shape == (1, 6, 6)
        found.append(prepare_session(config, cache_dir=tmp_path / "cache"))
        again = prepare_session(config, cache_dir=tmp_path / "cache")
        np.testing.assert_array_equal(again.responses, arrays["spikes"])
    assert found[0].key == found[1].key == found[2].key
    assert len(list((tmp_path / "cache").glob("*.session.safetensors"))) == 2
    (tmp_path / "empty").mkdir()
    with pytest.raises(SessionError, match="empty"):
        prepare_session(DatasetConfig.model_validate({"session": "b", "path": str(tmp_path / "empty")}))
