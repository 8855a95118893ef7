"""Preparation: resampling, transforms, masks and splits against slow references, and the cache."""

import numpy as np
import pytest
from scipy import ndimage

from neurotwin.config import DatasetConfig, TemporalBasisParams
from neurotwin.data import prepare as prepare_module
from neurotwin.data.masks import lags_valid, missing_below
from neurotwin.data.prepare import prepare, prepare_session
from neurotwin.data.session import Session, SessionError
from neurotwin.data.transforms import apply_pipelines, fit_pipelines, pixel_scale, raised_cosine_basis, runs_of


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def write_session(folder, rng, *, n_bins=240, n_units=4, name="ada_01", **changes):
    fields = {
        "name": name, "bin_rate": 240.0,
        "stimulus": rng.integers(0, 256, (n_bins, 5, 6), dtype=np.uint8),
        "spikes": rng.poisson(0.5, (n_bins, n_units)).astype(np.uint8),
        "unit_ids": np.array([10, 20, 30, 40])[:n_units],
        "trial": np.repeat(np.arange(6), n_bins // 6),
        "behavior": {"eye": rng.normal(size=(n_bins, 2)).astype(np.float32)},
    }  # fmt: skip
    return Session(**fields | changes).save(folder / f"{name}.safetensors")


def configure(path, **keys):
    return DatasetConfig.model_validate({"session": path.stem, "path": str(path), "train_val_split": 0.5, **keys})


def test_resampling_sums_counts_and_takes_the_last_frame(tmp_path, rng):
    trial = np.repeat([0, 1, 2, 3], [50, 61, 64, 65])
    valid = rng.random(240) > 0.05
    path = write_session(tmp_path, rng, trial=trial, valid=valid, true_rate=rng.random((240, 4)))
    session = Session.load(path)
    transforms = {"eye": {"source": "eye", "expose_as": "behavior"}}
    prepared = prepare_session(
        configure(path, sampling={"source_rate": 240, "target_rate": 80}, transforms=transforms, cids=[40, 10])
    )
    bins = [
        range(start + 3 * k, start + 3 * k + 3)
        for start, length in zip([0, 50, 111, 175], [50, 61, 64, 65], strict=True)
        for k in range(length // 3)
    ]
    assert prepared.n_bins == len(bins) and prepared.bin_rate == 80 and prepared.unit_ids.tolist() == [40, 10]
    for index, group in enumerate(bins):
        group = list(group)
        np.testing.assert_array_equal(prepared.spikes[index], session.spikes[group][:, [3, 0]].sum(0))
        np.testing.assert_allclose(prepared.true_rate[index], session.true_rate[group][:, [3, 0]].sum(0), rtol=1e-6)
        np.testing.assert_array_equal(prepared.source[prepared.frame[index]], session.stimulus[group[-1]])
        np.testing.assert_allclose(
            prepared.behavior[index], session.behavior["eye"][group].mean(0), rtol=1e-5, atol=1e-7
        )
        assert prepared.mask[index].all() == prepared.mask[index].any() == valid[group].all()


def test_types_are_concatenated_in_order_and_never_crossed(tmp_path, rng):
    kinds = np.repeat(["b", "a", "b", "c"], 60)
    path = write_session(
        tmp_path, rng, stimulus_type=kinds, trial=np.zeros(240, int), split=np.tile(["train", "val"], 120)
    )
    prepared = prepare_session(configure(path, types=["a", "b"]))
    np.testing.assert_array_equal(prepared.frame, [*range(60, 120), *range(60), *range(120, 180)])
    assert np.unique(prepared.run_start).tolist() == [0, 60, 120]


def test_gaps_and_bins_between_trials_end_a_run(tmp_path, rng):
    time = np.arange(240) / 240
    time[100:] += 0.5
    trial = np.where(np.arange(240) < 200, 0, -1)
    split = np.where(np.arange(240) % 2, "train", "val")
    prepared = prepare_session(configure(write_session(tmp_path, rng, time=time, trial=trial, split=split)))
    assert prepared.n_bins == 200
    assert np.unique(prepared.run_start).tolist() == [0, 100]


def test_a_window_never_leaves_its_trial_whatever_the_filters(tmp_path, rng):
    prepared = prepare_session(configure(write_session(tmp_path, rng), keys_lags={"stim": "0..9"}))
    in_trial = np.arange(240) % 40
    np.testing.assert_array_equal(prepared.mask.all(axis=1), in_trial >= 9)


def test_lags_valid_against_a_slow_loop(rng):
    valid = rng.random(300) > 0.1
    runs = runs_of(np.repeat(np.arange(10), 30))
    for n_lags in (0, 1, 7):
        slow = [t - n_lags >= (t // 30) * 30 and all(valid[t - n_lags : t + 1]) for t in range(300)]
        np.testing.assert_array_equal(lags_valid(valid, runs, n_lags), slow)


def test_missing_pct_spares_units_that_always_miss():
    missing = np.array([[10.0, 90.0], [60.0, 95.0], [10.0, 99.0]])
    np.testing.assert_array_equal(missing_below(missing, 45), [[True, True], [False, True], [True, True]])


def test_split_draws_whole_trials_and_differs_between_sessions(tmp_path, rng):
    trial = np.tile(np.repeat(np.arange(20), 6), 2)  # every trial in two places
    splits = []
    for name in ("ada_01", "ada_02"):
        path = write_session(tmp_path, rng, name=name, trial=trial)
        prepared = prepare_session(configure(path, test_split=0.2, seed=3))
        by_trial = [np.unique(prepared.split[trial == t]).tolist() for t in range(20)]
        assert all(len(codes) == 1 for codes in by_trial)
        assert np.bincount(np.concatenate(by_trial), minlength=3).tolist() == [10, 6, 4]
        splits.append(by_trial)
    assert splits[0] != splits[1]
    state = np.random.get_state()[1].copy()  # noqa: NPY002  (that the global generator is left alone)
    prepare_session(configure(path, seed=4))
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002


def test_labels_override_the_drawn_split_bin_by_bin(tmp_path, rng):
    labels = np.repeat(["test", "", "", "", "", ""], 40)
    prepared = prepare_session(configure(write_session(tmp_path, rng, split=labels)))
    assert (prepared.split[:40] == 2).all() and set(prepared.split[40:]) == {0, 1}


def test_constants_come_from_the_training_part_alone(tmp_path, rng):
    signal = np.ones(240, np.float32)
    signal[:120] = 5
    labels = np.repeat(["val", "train"], 120)
    path = write_session(tmp_path, rng, split=labels, behavior={"x": signal})
    transforms = {"x": {"source": "x", "ops": ["maxnorm"], "expose_as": "behavior"}}
    prepared = prepare_session(configure(path, transforms=transforms))
    assert prepared.fitted == {"x.0": 1.0} and prepared.behavior[0, 0] == 5


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        ("pixelnorm", lambda x: (x - 127) / 255),
        ({"mul": {"factor": 3}}, lambda x: 3 * x),
        ("symlog", lambda x: np.sign(x) * np.log(1 + abs(x))),
        ({"splitrelu": {"split_dim": 1}}, lambda x: np.hstack([np.maximum(x, 0), np.maximum(-x, 0)])),
        ({"select_units": {"indices": [1]}}, lambda x: x[:, [1]]),
        ({"diff": {"axis": 0}}, lambda x: np.vstack([0 * x[:1], x[1:7] - x[:6], 0 * x[:1], x[8:] - x[7:-1]])),
        (
            {"smooth": {"sigma": 1.5}},
            lambda x: np.vstack([ndimage.gaussian_filter1d(p, 1.5, axis=0, mode="nearest") for p in (x[:7], x[7:])]),
        ),
    ],
)
def test_each_transform_against_its_formula(op, expected, rng, caplog):
    x = rng.normal(0, 20, (20, 2))
    config = DatasetConfig.model_validate({"transforms": {"x": {"source": "x", "ops": [op], "expose_as": "behavior"}}})
    runs = np.array([[0, 7], [7, 20]])
    fit_pipelines(config, {"x": x}, runs, np.ones(20, bool))
    out = apply_pipelines(config, {"x": x}, runs=runs, fitted={})["behavior"]
    np.testing.assert_allclose(out, expected(x), rtol=1e-5, atol=1e-5)
    assert ("looks ahead" in caplog.text) == ("smooth" in op)


def test_temporal_basis_is_a_causal_convolution_within_runs(rng):
    params = TemporalBasisParams(num_cosine_funcs=3, num_delta_funcs=1, history_bins=6, peak_range_ms=(10, 40))
    x = rng.normal(size=(25, 2))
    op = {"temporal_basis": params.model_dump()}
    config = DatasetConfig.model_validate({"transforms": {"x": {"source": "x", "ops": [op], "expose_as": "behavior"}}})
    runs = np.array([[0, 11], [11, 25]])
    out = apply_pipelines(config, {"x": x}, runs=runs, fitted={})["behavior"]
    kernels = raised_cosine_basis(params)
    slow = np.zeros((25, 4, 2))
    for t in range(25):
        for lag in range(6):
            slow[t] += kernels[:, 5 - lag, None] * x[max(t - lag, 0 if t < 11 else 11)]
    np.testing.assert_allclose(out, slow.reshape(25, 8), rtol=1e-4, atol=1e-5)


def test_raised_cosines_peak_where_they_should():
    params = TemporalBasisParams(num_cosine_funcs=4, history_bins=200, peak_range_ms=(10, 150), bin_size_ms=1.0)
    basis = raised_cosine_basis(params)
    peaks = 199 - basis.argmax(axis=1)
    centres = np.exp(np.linspace(np.log(11), np.log(151), 4)) - 1
    np.testing.assert_allclose(peaks, centres, atol=1)
    np.testing.assert_allclose(np.linalg.norm(basis, axis=1), 1)
    orthogonal = raised_cosine_basis(params.model_copy(update={"orthogonalize": True}))
    np.testing.assert_allclose(orthogonal @ orthogonal.T, np.eye(4), atol=1e-8)


def test_behavior_lags_are_stacked_and_stay_in_their_run():
    config = DatasetConfig.model_validate(
        {"keys_lags": {"behavior": [0, 2]}, "transforms": {"x": {"source": "x", "expose_as": "behavior"}}}
    )
    out = apply_pipelines(config, {"x": np.arange(6.0)}, runs=np.array([[0, 3], [3, 6]]), fitted={})["behavior"]
    np.testing.assert_array_equal(out[:, 1], [0, 0, 0, 3, 3, 3])


def test_scaling_is_left_to_the_device_and_the_rest_is_not(tmp_path, rng):
    path = write_session(tmp_path, rng)
    raw = Session.load(path).stimulus
    scaled = prepare_session(configure(path))
    assert scaled.source.dtype == np.uint8 and scaled.source is not None and pixel_scale(scaled.config) is not None
    factor, offset = scaled.pixel_scale
    np.testing.assert_allclose(factor * raw + offset, (raw - 127.0) / 255, atol=1e-9)
    ops = ["pixelnorm", {"diff": {"axis": 0}}]
    changed = prepare_session(configure(path, transforms={"stim": {"source": "stim", "ops": ops}}))
    assert changed.source.dtype == np.float32 and changed.pixel_scale == (1.0, 0.0)
    np.testing.assert_allclose(changed.source[41], (raw[41] - raw[40].astype(float)) / 255, atol=1e-6)
    assert not changed.source[40].any()  # the first bin of a trial
    for dtype, kind in (("float32", np.float32), ("bfloat16", np.float16)):
        as_float = prepare_session(configure(path), dtype=dtype)
        assert as_float.source.dtype == kind and as_float.pixel_scale == scaled.pixel_scale
        np.testing.assert_array_equal(as_float.source[as_float.frame], raw[scaled.frame])


def test_a_second_start_computes_nothing(tmp_path, rng, monkeypatch):
    path = write_session(tmp_path, rng)
    first = prepare_session(configure(path))
    monkeypatch.setattr(prepare_module, "_compute", None)
    second = prepare_session(configure(path, lab="another label"))
    np.testing.assert_array_equal(first.mask, second.mask)
    with pytest.raises(TypeError):
        prepare_session(configure(path, seed=5))


def test_a_changed_source_is_prepared_again(tmp_path, rng):
    path = write_session(tmp_path, rng)
    first = prepare_session(configure(path)).spikes.copy()
    write_session(tmp_path, rng)
    assert not np.array_equal(prepare_session(configure(path)).spikes, first)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"cids": [10, 11]}, r"cids \[11\]"),
        ({"types": ["moviee"]}, "did you mean 'movie'"),
        ({"sampling": {"source_rate": 120, "target_rate": 60}}, "source_rate is 120"),
        ({"keys_lags": {"stim": "0..40"}}, "no valid bin"),
        ({"train_val_split": 0.01}, "train split is empty"),
        ({"train_val_split": 0.99}, "val split is empty"),
        ({"transforms": {"b": {"source": "eyee", "expose_as": "behavior"}}}, "did you mean 'eye'"),
        ({"datafilters": {"dfs": {"ops": [{"missing_pct": {"threshold": 45}}]}}}, "missing_pct"),
    ],
)
def test_what_cannot_be_is_refused_with_the_session_named(tmp_path, rng, keys, message):
    path = write_session(tmp_path, rng)
    with pytest.raises(SessionError, match=message) as error:
        prepare_session(configure(path, **keys))
    assert "'ada_01'" in str(error.value)
    assert not list(tmp_path.glob("prepared/*"))


def test_sessions_that_disagree_are_refused(tmp_path, rng):
    a = configure(write_session(tmp_path, rng))
    b = configure(write_session(tmp_path, rng, name="bob_01", bin_rate=120.0))
    with pytest.raises(SessionError, match="240 and 120 bins a second"):
        prepare([a, b])


def test_an_altered_source_and_a_read_only_cache_are_refused(tmp_path, rng):
    path = write_session(tmp_path, rng)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(SessionError, match="altered"):
        prepare_session(configure(path))
    path = write_session(tmp_path, rng)
    (tmp_path / "file").write_text("")
    with pytest.raises(SessionError, match="NEUROTWIN_CACHE"):
        prepare_session(configure(path), cache_dir=tmp_path / "file" / "below")


def test_mean_counts_are_of_valid_training_bins(tmp_path, rng):
    labels = np.repeat(["train", "val"], 120)
    exposure = rng.integers(1, 5, 240).astype(np.float32)
    valid = rng.random(240) > 0.3
    path = write_session(tmp_path, rng, split=labels, exposure=exposure, valid=valid)
    session = Session.load(path)
    kept = valid & (labels == "train")
    expected = session.spikes[kept].sum(0) / exposure[kept].sum()
    np.testing.assert_allclose(prepare_session(configure(path)).mean_counts(), expected)


def test_fitting_needs_a_signal_that_varies(rng):
    config = DatasetConfig.model_validate(
        {"transforms": {"x": {"source": "x", "ops": ["maxnorm"], "expose_as": "behavior"}}}
    )
    signals, runs = {"x": np.zeros(10)}, np.array([[0, 10]])
    with pytest.raises(ValueError, match="maxnorm"):
        fit_pipelines(config, signals, runs, np.ones(10, bool))
