"""Preparation: resampling, units, masks, splits and storage against slow references, and the cache."""

import json
from dataclasses import replace

import numpy as np
import pytest

from neurotwin.config import DatasetConfig
from neurotwin.data import prepare as prepare_module
from neurotwin.data.arrange import bin_stretches
from neurotwin.data.clips import usable_runs
from neurotwin.data.masks import lags_valid, missing_below
from neurotwin.data.pipelines import pixel_scale, runs_of
from neurotwin.data.prepare import outline, prepare, prepare_session
from neurotwin.data.session import Session, SessionError
from neurotwin.data.simulate import simulate_linear_session
from neurotwin.data.spec import SessionSpec

IDS = [10, 20, 30, 40]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(autouse=True)
def no_shared_cache(monkeypatch):
    monkeypatch.delenv("NEUROTWIN_CACHE", raising=False)


@pytest.fixture
def make(factory, tmp_path, rng):
    """Write a session of 240 Hz with gaze, and prepare it."""

    def prepared(fields: dict | None = None, *, name: str = "ada_01", dtype: str = "uint8", **keys):
        eye = {"eye": rng.normal(size=(240, 2)).astype(np.float32)}
        values = {"bin_rate": 240.0, "unit_ids": IDS, "behavior": eye} | (fields or {})
        factory.write_session(tmp_path, name, **values)
        return prepare_session(factory.configure(tmp_path, name, **keys), dtype=dtype)

    return prepared


def recorded(tmp_path, name="ada_01") -> Session:
    return Session.load(tmp_path / f"{name}.safetensors")


# --- bins -----------------------------------------------------------------------------------------------------------


def test_resampling_sums_responses_and_takes_the_last_frame(make, tmp_path, rng):
    trial = np.repeat([0, 1, 2, 3], [50, 61, 64, 65])
    valid = rng.random(240) > 0.05
    responses = rng.normal(size=(240, 4)).astype(np.float32)  # real-valued, below zero too
    transforms = {"eye": {"source": "eye", "expose_as": "behavior"}}
    prepared = make(
        {"trial": trial, "valid": valid, "true_rate": rng.random((240, 4)), "responses": responses,
         "exposure": rng.integers(1, 5, 240)},
        sampling={"source_rate": 240, "target_rate": 80}, transforms=transforms, cids=[40, 10],
    )  # fmt: skip
    session = recorded(tmp_path)
    bins = [
        range(start + 3 * k, start + 3 * k + 3)
        for start, length in zip([0, 50, 111, 175], [50, 61, 64, 65], strict=True)
        for k in range(length // 3)
    ]
    assert prepared.n_bins == len(bins) and prepared.spec.bin_rate == 80 and prepared.spec.unit_ids == (40, 10)
    assert prepared.n_units == 2 and prepared.responses.dtype == np.float32 and prepared.responses.min() < 0
    for index, group in enumerate(bins):
        group = list(group)
        np.testing.assert_allclose(prepared.responses[index], responses[group][:, [3, 0]].sum(0), atol=1e-6)
        np.testing.assert_allclose(prepared.true_rate[index], session.true_rate[group][:, [3, 0]].sum(0), rtol=1e-6)
        np.testing.assert_array_equal(prepared.source[prepared.frame[index]], session.stimulus[group[-1]])
        np.testing.assert_allclose(
            prepared.behavior[index], session.behavior["eye"][group].mean(0), rtol=1e-5, atol=1e-7
        )
        np.testing.assert_allclose(prepared.exposure[index], session.exposure[group].mean(), rtol=1e-6)
        assert prepared.mask[index].all() == prepared.mask[index].any() == valid[group].all()
        assert prepared.trial[index] == trial[group[0]]


def test_types_are_concatenated_in_order_and_never_crossed(make):
    kinds = np.repeat(["b", "a", "b", "c"], 60)
    split = np.tile(["train", "val"], 120)
    prepared = make({"stimulus_type": kinds, "trial": np.zeros(240, int), "split": split}, types=["a", "b"])
    np.testing.assert_array_equal(prepared.frame, [*range(60, 120), *range(60), *range(120, 180)])
    assert np.unique(prepared.run_start).tolist() == [0, 60, 120]


def test_gaps_of_more_than_half_a_bin_end_a_run_and_so_do_bins_between_trials(make):
    """A clock jitters; a bin that begins late or early by more than half of one is another stretch."""
    trial = np.where(np.arange(240) < 200, 0, -1)
    split = np.where(np.arange(240) % 2, "train", "val")
    for late, runs in ((0.0, [0]), (0.4, [0]), (0.6, [0, 100]), (1.2, [0, 100]), (-0.4, [0]), (-0.6, [0, 100])):
        time = (np.arange(240) + late * (np.arange(240) >= 100)) / 240
        prepared = make({"time": time, "trial": trial, "split": split})
        assert prepared.n_bins == 200
        assert np.unique(prepared.run_start).tolist() == runs, late
        assert np.unique(prepared.run_stop).tolist() == [*runs[1:], 200], late


def test_a_window_never_leaves_its_trial_whatever_the_filters(make):
    for filters in ({}, {"dfs": {"ops": [{"valid_nlags": {"n_lags": 0}}]}}):
        prepared = make(keys_lags={"stim": "0..9"}, datafilters=filters)
        np.testing.assert_array_equal(prepared.mask.all(axis=1), np.arange(240) % 40 >= 9)


# --- masks ----------------------------------------------------------------------------------------------------------


def test_lags_valid_against_a_slow_loop(rng):
    valid = rng.random(300) > 0.1
    runs = runs_of(np.repeat(np.arange(10), 30))
    for n_lags in (0, 1, 7):
        slow = [t - n_lags >= (t // 30) * 30 and all(valid[t - n_lags : t + 1]) for t in range(300)]
        np.testing.assert_array_equal(lags_valid(valid, runs, n_lags), slow)


def test_validity_covers_what_is_read_and_more_where_asked_for(make, rng):
    """A filter of fewer lags than a prediction reads covers these all the same; without a filter, only the bin."""
    valid = rng.random(240) > 0.1
    runs = runs_of(np.arange(240) // 40)
    inside = lags_valid(np.ones(240, bool), runs, 4)
    for n_lags, covered in ((None, 0), (0, 4), (2, 4), (4, 4), (9, 9)):
        filters = {} if n_lags is None else {"dfs": {"ops": [{"valid_nlags": {"n_lags": n_lags}}]}}
        prepared = make({"valid": valid}, keys_lags={"stim": "0..4"}, datafilters=filters)
        expected = inside & (valid if n_lags is None else lags_valid(valid, runs, covered))
        np.testing.assert_array_equal(prepared.mask, expected[:, None].repeat(4, 1), err_msg=str(n_lags))
        np.testing.assert_array_equal(prepared.n_valid, 4 * expected)


def test_stretches_are_those_of_the_arrays(make, rng):
    """They are kept so that clips are cut without reading bins; they must say the same."""
    prepared = make({"valid": rng.random(240) > 0.3}, keys_lags={"stim": "0..4"})
    assert np.array_equal(prepared.stretches, bin_stretches(prepared.run_start, prepared.split, prepared.n_valid))
    assert len(prepared.stretches) > 20
    other = replace(prepared)
    assert other.stretches is None
    for part in ("train", "val", None):
        assert np.array_equal(usable_runs(prepared, part), usable_runs(other, part))


def test_missing_pct_spares_units_that_always_miss(make, rng):
    missing = np.array([[10.0, 90.0], [60.0, 95.0], [10.0, 99.0]])
    np.testing.assert_array_equal(missing_below(missing, 45), [[True, True], [False, True], [True, True]])
    missing = rng.uniform(0, 100, (240, 4)).astype(np.float32)
    missing[:, 2] += 100
    filters = {"dfs": {"ops": [{"missing_pct": {"threshold": 60}}]}}
    prepared = make({"missing_pct": missing}, datafilters=filters, cids=[30, 20])
    np.testing.assert_array_equal(prepared.mask, np.stack([np.ones(240, bool), missing[:, 1] <= 60], axis=1))


# --- units ----------------------------------------------------------------------------------------------------------


def test_units_are_selected_by_ids_and_labels(make, rng):
    responses = rng.poisson(1.0, (240, 4)).astype(np.uint8)
    labels = {"area": ["V1", "V4", "V1", "V1"], "quality": ["good", "good", "mua", "noise"]}
    names = ["imec0-1", "imec0-2", "imec1-1", "imec1-2"]
    for keys, columns in (
        ({}, [0, 1, 2, 3]),
        ({"units": {"area": "V1"}}, [0, 2, 3]),
        ({"units": {"area": ["V1"], "quality": ["good", "mua"]}}, [0, 2]),
        ({"cids": [names[3], names[1], names[0]]}, [3, 1, 0]),
        ({"cids": [names[3], names[1], names[0]], "units": {"area": "V1"}}, [3, 0]),
    ):
        fields = {
            "responses": responses,
            "unit_labels": labels,
            "unit_ids": names,
            "unit_positions": rng.random((4, 2)),
        }
        prepared = make(fields, **keys)
        assert prepared.spec.unit_ids == tuple(names[column] for column in columns), keys
        np.testing.assert_array_equal(prepared.responses, responses[:, columns], err_msg=str(keys))
        positions = fields["unit_positions"][columns].astype(np.float32)
        np.testing.assert_array_equal(np.float32(prepared.spec.unit_positions), positions)


# --- splits ---------------------------------------------------------------------------------------------------------


def test_split_draws_whole_trials_and_differs_between_sessions(make):
    trial = np.tile(np.repeat(np.arange(20), 6), 2)  # every trial in two places
    splits = []
    for name in ("ada_01", "ada_02"):
        prepared = make({"trial": trial}, name=name, test_split=0.2, seed=3)
        by_trial = [np.unique(prepared.split[trial == t]).tolist() for t in range(20)]
        assert all(len(codes) == 1 for codes in by_trial)
        assert np.bincount(np.concatenate(by_trial), minlength=3).tolist() == [10, 6, 4]
        splits.append(by_trial)
    assert splits[0] != splits[1]
    state = np.random.get_state()[1].copy()  # noqa: NPY002  (that the global generator is left alone)
    again = make({"trial": trial}, name="ada_02", test_split=0.2, seed=4)
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002
    assert [np.unique(again.split[trial == t]).tolist() for t in range(20)] != splits[1]


def test_trials_without_a_valid_bin_are_not_drawn(make):
    """Of ten trials five are never valid: the other five are what the fractions are of."""
    trial = np.arange(240) // 24
    prepared = make({"trial": trial, "valid": trial % 2 == 0}, train_val_split=0.6)
    codes = [int(prepared.split[trial == t][0]) for t in range(0, 10, 2)]
    assert sorted(codes) == [0, 0, 0, 1, 1]
    assert (prepared.split[trial % 2 == 1] == -1).all()


def test_labels_override_the_drawn_split_bin_by_bin(make):
    prepared = make({"split": np.repeat(["test", "", "", "", "", ""], 40)})
    assert (prepared.split[:40] == 2).all() and set(prepared.split[40:]) == {0, 1}


def test_a_session_that_labels_all_of_its_bins_need_not_validate(make):
    prepared = make({"split": np.repeat(["train", "test"], 120)})
    assert prepared.split.tolist() == [0] * 120 + [2] * 120
    with pytest.raises(SessionError, match="the train split is empty"):
        make({"split": np.full(240, "val")})


def test_a_session_may_give_all_its_trials_to_training(make):
    assert set(make(train_val_split=1.0).split) == {0}


# --- what comes of the training part --------------------------------------------------------------------------------


def test_constants_come_from_the_training_part_alone(make):
    signal = np.ones(240, np.float32)
    signal[:120] = 5
    labels = np.repeat(["val", "train"], 120)
    transforms = {"x": {"source": "x", "ops": ["maxnorm"], "expose_as": "behavior"}}
    prepared = make({"split": labels, "behavior": {"x": signal}}, transforms=transforms)
    assert prepared.spec.fitted == {"x.0": 1.0} and prepared.behavior[0, 0] == 5


def test_statistics_are_of_valid_training_bins_per_presentation(make, rng):
    labels = np.repeat(["train", "val"], 120)
    exposure = rng.integers(1, 5, 240).astype(np.float32)
    valid = rng.random(240) > 0.3
    kept = valid & (labels == "train")
    for responses in (rng.poisson(2.0, (240, 4)).astype(np.uint8), rng.normal(1, 2, (240, 4)).astype(np.float32)):
        prepared = make({"split": labels, "exposure": exposure, "valid": valid, "responses": responses})
        y, e, found = responses[kept].astype(float), exposure[kept, None], prepared.statistics()
        mean = found.mean.numpy()
        np.testing.assert_allclose(found.mean, y.sum(0) / e.sum())
        np.testing.assert_allclose(found.zero_share, (y <= 0).mean(0))
        np.testing.assert_allclose(found.variance, (e * (y / e - mean) ** 2).mean(0), rtol=1e-6)
        assert prepared.spec.response_range == (responses.min(), responses.max())
    silent = make({"responses": np.zeros((240, 4), np.uint8)}).statistics()
    assert not silent.mean.any() and not silent.variance.any() and (silent.zero_share == 1).all()


# --- the stimulus ---------------------------------------------------------------------------------------------------


def test_pixels_are_normalised_by_default_and_real_values_are_not(make, rng):
    raw = make()
    factor, offset = raw.spec.pixel_scale
    pixels = np.arange(256)
    np.testing.assert_allclose(factor * pixels + offset, (pixels - 127) / 255, atol=1e-9)
    for dtype in (np.float16, np.float32):
        real = make({"stimulus": rng.normal(size=(240, 5)).astype(dtype)})
        assert real.spec.pixel_scale == (1.0, 0.0) and real.source.dtype == dtype
    assert make(transforms={}).spec.pixel_scale == (1.0, 0.0)


def test_stimuli_of_any_shape_are_prepared(make, rng):
    for shape, frame, axes in (
        ((), (1, 1, 1), 0),
        ((7,), (1, 7, 1), 1),
        ((5, 6), (1, 5, 6), 2),
        ((2, 5, 6), (2, 5, 6), 2),
    ):
        for dtype in (np.uint8, np.float16, np.float32):
            stimulus = rng.normal(100, 20, (240, *shape)).astype(dtype)
            prepared = make({"stimulus": stimulus})
            assert (prepared.spec.frame_shape, prepared.spec.axes) == (frame, axes), (shape, dtype)
            np.testing.assert_array_equal(prepared.source[prepared.frame], stimulus, err_msg=f"{shape} {dtype}")
            low, high = float(stimulus.min()), float(stimulus.max())
            assert prepared.spec.stimulus_range == (low, high)
            contrast = stimulus.reshape(240, -1).astype(float).std(1) / (255 if dtype == np.uint8 else high - low)
            np.testing.assert_allclose(prepared.contrast, contrast, rtol=1e-3, atol=1e-6)


def test_scaling_is_left_to_the_device_and_the_rest_is_not(make, tmp_path):
    scaled = make()
    raw = recorded(tmp_path).stimulus
    assert scaled.source.dtype == np.uint8 and pixel_scale(scaled.spec.config) is not None
    ops = ["pixelnorm", {"mul": {"factor": 3}}, {"cast": {"dtype": "float32"}}]
    several = make(transforms={"stim": {"source": "stim", "ops": ops}})
    assert several.source.dtype == np.uint8
    factor, offset = several.spec.pixel_scale
    np.testing.assert_allclose(factor * np.arange(256) + offset, 3 * (np.arange(256) - 127) / 255, atol=1e-9)
    ops = ["pixelnorm", {"diff": {"axis": 0}}]
    changed = make(transforms={"stim": {"source": "stim", "ops": ops}})
    assert changed.source.dtype == np.float32 and changed.spec.pixel_scale == (1.0, 0.0)
    np.testing.assert_allclose(changed.source[41], (raw[41] - raw[40].astype(float)) / 255, atol=1e-6)
    assert not changed.source[40].any()  # the first bin of a trial
    for dtype, kind in (("float32", np.float32), ("bfloat16", np.float16)):
        as_float = make(dtype=dtype)
        assert as_float.source.dtype == kind and as_float.spec.pixel_scale == scaled.spec.pixel_scale
        np.testing.assert_array_equal(as_float.source[as_float.frame], raw[scaled.frame])


# --- specs ----------------------------------------------------------------------------------------------------------


def test_a_spec_is_the_same_after_a_way_through_json(make, rng):
    transforms = {
        "stim": {"source": "stim", "ops": ["pixelnorm"]},
        "eye": {"source": "eye", "ops": ["maxnorm"], "expose_as": "behavior"},
    }
    fields = {"unit_ids": ["a", "b", "c", "d"], "unit_positions": rng.random((4, 2)), "pixels_per_degree": 12.5}
    spec = make(fields, transforms=transforms, keys_lags={"stim": "0..3", "history": [1, 2]}, units={}).spec
    again = SessionSpec.from_json(json.loads(json.dumps(spec.to_json())))
    assert again == spec
    assert (spec.n_lags, spec.n_history, spec.behavior_dim, spec.behavior_names) == (4, 2, 2, ("eye", "eye"))
    assert spec.pixels_per_degree == 12.5 and spec.subject == "ada" and list(spec.fitted) == ["eye.0"]


def test_an_outline_reads_no_bin(make, factory, tmp_path):
    prepared = make()
    (spec,) = outline([factory.configure(tmp_path)])
    known = {"fitted": prepared.spec.fitted, "stimulus_range": None, "response_range": None}
    assert vars(spec) == vars(prepared.spec) | known


# --- the cache ------------------------------------------------------------------------------------------------------


def test_a_second_start_computes_nothing(make, factory, tmp_path, monkeypatch):
    first = make()

    def computed(*_):
        raise AssertionError("computed again")

    monkeypatch.setattr(prepare_module, "arrange", computed)
    second = prepare_session(factory.configure(tmp_path, lab="another label"))
    for name, value in vars(first).items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(getattr(second, name), value, err_msg=name)
    assert second.spec.config.lab == "another label" and second.key == first.key
    with pytest.raises(AssertionError, match="computed again"):
        prepare_session(factory.configure(tmp_path, seed=5))


def test_a_changed_source_is_prepared_again(make):
    first = make().responses.copy()
    assert not np.array_equal(make({"seed": 1}).responses, first)


# --- refusals -------------------------------------------------------------------------------------------------------

LABELS = {"unit_labels": {"area": ["V1", "V1", "V4", "V1"]}}
REFUSED = {
    "an id that is not there": ({"cids": [10, 11]}, "cids [11] are not among its 4 units (ids 10 to 40); correct cids"),
    "an id of another kind": ({"cids": ["10"]}, "cids ['10'] are not among"),
    "a label that is not there": ({"fields": LABELS, "units": {"aera": "V1"}}, "no label 'aera'; did you mean 'area'"),
    "no labels at all": ({"units": {"area": "V1"}}, "its units have no label 'area'; it has none"),
    "a label's value": ({"fields": LABELS, "units": {"area": "V2"}}, "no unit has area 'V2'; valid: V1, V4"),
    "labels that leave none": ({"fields": LABELS, "units": {"area": "V4"}, "cids": [10]}, "no unit has all labels"),
    "a type": ({"types": ["moviee"]}, "no stimulus type 'moviee'; did you mean 'movie'"),
    "a rate": ({"sampling": {"source_rate": 120, "target_rate": 60}}, "source_rate is 120 Hz, the recording has 240"),
    "lags": ({"keys_lags": {"stim": "0..40"}}, "no valid bin is left after the filters (longest run 40 bins"),
    "no training": ({"train_val_split": 0.01}, "the train split is empty"),
    "no validation": ({"train_val_split": 0.99}, "the val split is empty"),
    "a signal": ({"transforms": {"b": {"source": "eyee", "expose_as": "behavior"}}}, "did you mean 'eye'"),
    "missing_pct": ({"datafilters": {"dfs": {"ops": [{"missing_pct": {"threshold": 45}}]}}}, "asks for missing_pct"),
    "nothing in a trial": ({"fields": {"trial": np.full(240, -1)}}, "no bin of the types ['movie'] lies in a trial"),
    "a signal of zeros": (
        {"fields": {"behavior": {"x": np.zeros(240)}},
         "transforms": {"x": {"source": "x", "ops": ["maxnorm"], "expose_as": "behavior"}}},
        "maxnorm, but the signal is 0 throughout",
    ),
}  # fmt: skip


def test_what_cannot_be_is_refused_with_the_session_named(make, factory, tmp_path):
    assert not factory.refusals(REFUSED, make, SessionError)
    for keys, _ in REFUSED.values():
        with pytest.raises(SessionError, match="session 'ada_01': "):
            make(**keys)
    assert not list(tmp_path.glob("prepared/*"))


def test_sessions_that_disagree_are_refused(factory, tmp_path):
    factory.write_session(tmp_path)
    factory.write_session(tmp_path, "bob_01", bin_rate=120.0)
    configs = [factory.configure(tmp_path, name) for name in ("ada_01", "bob_01")]
    for function in (prepare, outline):
        with pytest.raises(SessionError, match="'ada_01' and 'bob_01' have 60 and 120 bins a second"):
            function(configs)


def test_an_altered_source_and_a_folder_that_cannot_be_are_refused(factory, tmp_path):
    factory.write_session(tmp_path)
    factory.flip(tmp_path / "ada_01.safetensors")
    with pytest.raises(SessionError, match="altered"):
        prepare_session(factory.configure(tmp_path))
    factory.write_session(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(SessionError, match="NEUROTWIN_CACHE"):
        prepare_session(factory.configure(tmp_path), cache_dir=tmp_path / "file" / "below")
    with pytest.raises(SessionError, match="no such session file"):
        prepare_session(DatasetConfig(session="eve_01", path=str(tmp_path / "eve_01.safetensors")))


@pytest.mark.parametrize("known", ("/old/place/linear.safetensors", None), ids=("moved", "of a pulled twin"))
def test_recordings_that_have_moved_are_found_in_their_folder(known, tmp_path):
    session, _ = simulate_linear_session(n_bins=6000)
    session.save(tmp_path / "linear.safetensors")
    config = DatasetConfig.model_validate({"session": "linear", "path": known, "keys_lags": {"stim": ["0..3"]}})
    (prepared,) = prepare([config], data_dir=tmp_path)
    assert prepared.n_bins == 6000
    with pytest.raises(SessionError, match="no such session file"):
        prepare([config], data_dir=tmp_path / "elsewhere")
