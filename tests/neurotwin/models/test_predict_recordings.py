"""Predicting whole recordings: what `evaluate` scores is what `predict` returns, and nothing strange passes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neurotwin.analysis.evaluate import evaluate
from neurotwin.config import DatasetConfig, ModelConfig
from neurotwin.data.clips import stream
from neurotwin.data.prepare import prepare
from neurotwin.data.session import SPLITS, Session, SessionError
from neurotwin.models import TwinModel, load_twin
from neurotwin.models.network import Streamer, evaluating
from neurotwin.models.prediction import Draws, Prediction

LENGTHS = (30, 24, 40, 17, 26, 33, 24, 35)
TRANSFORMS = {
    "stim": {"source": "stim", "ops": ["pixelnorm"]},
    "gaze": {"source": "gaze", "ops": ["maxnorm"], "expose_as": "behavior", "concatenate": True},
    "pupil": {"source": "pupil", "ops": [{"mul": {"factor": 2.0}}], "expose_as": "behavior", "concatenate": True},
}
TEMPORAL = {"type": "learnable_temporal", "params": {"kernel_size": 3, "num_channels": 2, "init_type": "random"}}
HISTORY = {"type": "mlp", "params": {"num_lags": 2, "hidden_dims": [3]}}
MODELS = {
    "plain": {"frontend": TEMPORAL},
    "behaviour": {"frontend": TEMPORAL, "modulator": {"type": "film"}},
    "history": {"frontend": TEMPORAL, "model_type": "v1multi_history", "history_encoder": HISTORY},
    "recurrent": {"frontend": TEMPORAL, "recurrent": {"type": "convgru", "params": {"hidden_dim": 3}}},
    "recurrent with behaviour": {
        "frontend": TEMPORAL, "modulator": {"type": "convgru", "params": {"hidden_dim": 3}},
        "readout": {"type": "linear"},
    },
}  # fmt: skip


@pytest.fixture(autouse=True)
def double_precision():
    """In place of the package's: recordings are float32, and so are the models that are trained on them."""
    torch.set_default_dtype(torch.float32)


def record(name: str = "ada_1", seed: int = 0, **changes) -> Session:
    """Trials of two types at 120 Hz, gaps in validity, images summed over several presentations."""
    rng, n_bins = np.random.default_rng(seed), sum(LENGTHS)
    values = {
        "name": name, "stimulus": rng.integers(0, 256, (n_bins, 9, 7)).astype(np.uint8), "bin_rate": 120.0,
        "responses": rng.poisson(0.7, (n_bins, 3)), "unit_ids": [7, 3, 11],
        "trial": np.repeat(np.arange(len(LENGTHS)), LENGTHS), "valid": rng.random(n_bins) > 0.02,
        "stimulus_type": np.repeat(np.where(np.arange(len(LENGTHS)) % 2, "movie", "noise"), LENGTHS),
        "exposure": np.repeat(rng.integers(1, 4, len(LENGTHS)), LENGTHS),
        "behavior": {"gaze": rng.normal(size=(n_bins, 2)), "pupil": rng.random(n_bins)},
    }  # fmt: skip
    return Session(**values | changes)


def train(folder: Path, model: str, *, sampling: bool, session: Session | None = None, **keys):
    """A twin with random weights of a prepared recording, through a file, as after training."""
    session = record() if session is None else session
    folder.mkdir(parents=True, exist_ok=True)
    path = session.save(folder / f"{session.name}.safetensors")
    rates = {"sampling": {"source_rate": 120, "target_rate": 60}} if sampling else {}
    lags = {"stim": "0..4", "behavior": [0, 1], "history": [1, 2]}
    values = {"session": session.name, "path": str(path), "keys_lags": lags, "transforms": TRANSFORMS}
    config = DatasetConfig(**values | rates | keys)
    prepared = prepare([config], cache_dir=folder / "prepared")
    twin = TwinModel(ModelConfig(**MODELS[model]), [prepared[0].spec])
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(4)))
    return load_twin(twin.save(folder / "twin.safetensors")), prepared, session, path


def streamed(twin: TwinModel, prepared, split: str, **cut) -> np.ndarray:
    """What evaluation predicts, bin by bin; NaN where it predicts nothing valid."""
    rates = np.full(prepared.responses.shape, np.nan)
    predict = Streamer(twin)
    with evaluating(twin), torch.inference_mode():
        for sample in stream(prepared, split, context=twin.context, **cut):
            values, mask = predict(sample.clip).numpy(), sample.target.mask.numpy()
            for row, first in enumerate(sample.clip.bins.tolist()):
                for offset in range(sample.clip.length):
                    if mask[row, offset].any():
                        rates[first + offset] = values[row, offset]
    return rates


@pytest.mark.parametrize("sampling", [False, True], ids=["as recorded", "resampled"])
@pytest.mark.parametrize("model", MODELS)
def test_predict_is_what_evaluate_scores(tmp_path, model, sampling):
    twin, (prepared,), session, path = train(tmp_path, model, sampling=sampling)
    found = {part: twin.predict(session, part=part) for part in SPLITS[:2]}
    whole = twin.predict(str(path), chunk=5)
    for part, prediction in found.items():
        expected = streamed(twin, prepared, part)
        seen = np.isfinite(expected).all(axis=1)
        assert seen.sum() > 10
        np.testing.assert_allclose(prediction.rates[seen], expected[seen], rtol=1e-5)
        np.testing.assert_allclose(whole.rates[seen], expected[seen], rtol=2e-5)
        np.testing.assert_array_equal(prediction.responses, prepared.responses)
        np.testing.assert_array_equal(prediction.mask.any(axis=1), seen)
        assert set(prediction.split[prediction.mask.any(axis=1)]) == {part}
        table = evaluate(twin, [prepared], part)
        for unit in range(3):
            mask = prediction.mask[:, unit]
            y, rate = prediction.responses[mask, unit] / prediction.exposure[mask], prediction.rates[mask, unit]
            assert table["correlation"][unit] == pytest.approx(np.corrcoef(y, rate)[0, 1], abs=1e-4)
    reach = 4
    starts = np.flatnonzero(np.diff(whole.trial, prepend=-1))
    for start in starts:
        assert np.isnan(whole.rates[start : start + reach]).all() and np.isfinite(whole.rates[start + reach]).all()


def test_bins_lead_back_to_the_recording(tmp_path):
    twin, _, session, _ = train(tmp_path, "plain", sampling=True)
    prediction = twin.predict("ada_1")
    assert isinstance(prediction, Prediction) and prediction.bin_rate == 60
    np.testing.assert_array_equal(prediction.trial, session.trial[prediction.bins])
    np.testing.assert_allclose(prediction.time, prediction.bins / 120)
    summed = session.responses[prediction.bins] + session.responses[prediction.bins + 1]
    np.testing.assert_array_equal(prediction.responses, summed)
    np.testing.assert_array_equal(np.asarray(prediction), prediction.rates)
    assert "60 Hz, 3 units" in repr(prediction) and len(prediction) == len(prediction.bins)
    timed = twin.predict(replace(session, time=5 + np.arange(session.n_bins) / 120))
    np.testing.assert_allclose(timed.time, 5 + prediction.time)
    np.testing.assert_array_equal(timed.rates, prediction.rates)


def test_a_frame_has_a_row_for_every_predicted_response(tmp_path):
    pytest.importorskip("pandas")
    twin, _, _, _ = train(tmp_path, "plain", sampling=False)
    prediction = twin.predict("ada_1", part="val")
    frame = prediction.to_frame()
    rows = np.flatnonzero(np.isfinite(prediction.rates).all(axis=1))
    assert len(frame) == 3 * len(rows) and set(frame["split"]) == {"val"}
    one = frame[frame["unit_id"] == 3]
    np.testing.assert_array_equal(one["bin"], prediction.bins[rows])
    np.testing.assert_array_equal(one["rate"], prediction.rates[rows, 1])
    np.testing.assert_array_equal(one["response"], prediction.responses[rows, 1])
    np.testing.assert_array_equal(one["valid"], prediction.mask[rows, 1])


def test_a_new_recording_has_the_constants_of_training(tmp_path):
    """Another recording of the same units: gaze is divided by the largest in training, not by its own."""
    twin, _, session, _ = train(tmp_path, "behaviour", sampling=False)
    later = record(seed=1, split=np.full(session.n_bins, "test"))
    doubled = replace(later, behavior={"gaze": 2 * later.behavior["gaze"], "pupil": later.behavior["pupil"]})
    largest = np.abs(session.behavior["gaze"][np.repeat(twin.predict(session).split, 1) == "train"]).max()
    assert twin.sessions[0].fitted["gaze.0"] == pytest.approx(largest)
    one, two = twin.predict(later, part="test"), twin.predict(doubled, part="test")
    assert np.nanmax(np.abs(one.rates - two.rates)) > 1e-3
    trial = later.trial == 2
    signals = {key: np.asarray(value)[trial] for key, value in later.behavior.items()}
    raw = twin.predict(later.stimulus[trial], signals, session="ada_1", bin_rate=120.0)
    np.testing.assert_allclose(raw[4:], one.rates[np.isin(one.bins, np.flatnonzero(trial))][4:], rtol=1e-5)


def test_units_are_those_of_the_model_in_its_order(tmp_path):
    twin, _, session, _ = train(tmp_path, "history", sampling=False, cids=[11, 7])
    order = [2, 0, 1]
    moved = replace(session, responses=session.responses[:, order], unit_ids=session.unit_ids[order])
    one, two = twin.predict(session), twin.predict(moved)
    assert one.unit_ids == (11, 7)
    np.testing.assert_array_equal(one.rates, two.rates)
    np.testing.assert_array_equal(one.responses, session.responses[one.bins][:, [2, 0]])
    every, _, _, _ = train(tmp_path / "every", "history", sampling=False)
    np.testing.assert_array_equal(every.predict(moved).responses, every.predict(session).responses)
    with pytest.raises(SessionError, match=r"cids \[11\] are not among its 2 units"):
        twin.predict(replace(session, responses=session.responses[:, :2], unit_ids=[7, 3]))


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chunk=st.integers(2, 90), bins=st.integers(20, 300), data=st.data())
@pytest.mark.parametrize("model", ["recurrent", "recurrent with behaviour", "plain"])
def test_no_figure_depends_on_how_a_recording_is_cut(tmp_path, model, chunk, bins, data):
    twin, (prepared,), session, _ = train(tmp_path, model, sampling=False)
    want, got = twin.predict(session), twin.predict(session, chunk=chunk)
    np.testing.assert_allclose(got.rates, want.rates, rtol=1e-4, atol=1e-7)
    seen = want.mask.any(axis=1) & (want.split == "train")
    cut = streamed(twin, prepared, "train", chunk=chunk, bins=bins)
    np.testing.assert_allclose(cut[seen], want.rates[seen], rtol=1e-4, atol=1e-7)
    one, other = evaluate(twin, [prepared], "val"), evaluate(twin, [prepared], "val", chunk=chunk, bins=bins)
    np.testing.assert_allclose(other["bps"], one["bps"], rtol=1e-4, atol=1e-6)
    length = data.draw(st.integers(twin.context + 1, LENGTHS[2]))
    trial = np.flatnonzero(session.trial == 2)[:length]
    signals = {key: np.asarray(value)[trial] for key, value in session.behavior.items()}
    movie = twin.predict(session.stimulus[trial], signals, session=0, bin_rate=120.0, chunk=chunk)
    np.testing.assert_allclose(movie[4:], want.rates[want.trial == 2][4:length], rtol=1e-4, atol=1e-7)


def test_a_state_reaches_beyond_the_window(tmp_path):
    """The test above would pass on a core that forgets; this one does not."""
    twin, _, session, _ = train(tmp_path, "recurrent", sampling=False)
    changed = np.array(session.stimulus)
    first = np.flatnonzero(session.trial == 2)[0]
    changed[first + 2] = 255 - changed[first + 2]
    one, two = twin.predict(session), twin.predict(replace(session, stimulus=changed))
    moved = np.flatnonzero(np.abs(one.rates - two.rates).max(axis=1, initial=0, where=np.isfinite(one.rates)) > 1e-7)
    assert one.bins[moved].max() > first + 2 + twin.receptive_field and set(one.trial[moved]) == {2}


@pytest.mark.parametrize("model", ["plain", "history", "recurrent"])
def test_drawn_recordings_are_of_the_rates(tmp_path, model):
    twin, _, session, _ = train(tmp_path, model, sampling=False)
    draws = twin.sample(session, part="val", n_samples=500)
    drawn, rates = draws
    assert isinstance(draws, Draws) and drawn.shape == rates.shape == (500, session.n_bins, 3)
    seen = np.isfinite(rates[0]).all(axis=1)
    assert set(draws.split[seen]) == {"val"} and np.isnan(drawn[:, ~seen]).all()
    expected = (rates * draws.exposure[:, None])[:, seen]
    assert (drawn[:, seen] - expected).mean() == pytest.approx(0, abs=0.01)
    assert ((drawn[:, seen] - expected) ** 2).mean() == pytest.approx(expected.mean(), rel=0.03)
    if model == "history":
        assert rates[:, seen].std(axis=0).max() > 0
        start = np.flatnonzero(seen)[0]
        trial = draws.trial == draws.trial[start]
        movie, own = session.stimulus[draws.bins[trial]], np.nan_to_num(drawn[3, trial])
        again = twin.predict(movie, session=0, bin_rate=120.0, responses=own)
        np.testing.assert_allclose(again[4:], rates[3, trial][4:], rtol=1e-4)
    else:
        np.testing.assert_allclose(rates[7][seen], twin.predict(session).rates[seen], rtol=1e-5)


# --- what is refused ------------------------------------------------------------------------------------------------


def changed_copy(path: Path) -> Path:
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    other = path.with_name("altered.safetensors")
    other.write_bytes(content)
    return other


RECORDED = {
    "scaled frames": (lambda s, p: replace(s, stimulus=(s.stimulus / 255).astype(np.float32)), "scaled already"),
    "frames around 0": (lambda s, p: replace(s, stimulus=s.stimulus.astype(np.float32) - 127), "reach from -127"),
    "another size": (lambda s, p: replace(s, stimulus=s.stimulus[:, :8]), r"\(1, 8, 7\).*\(1, 9, 7\)"),
    "turned frames": (lambda s, p: replace(s, stimulus=s.stimulus.swapaxes(1, 2)), r"\(1, 7, 9\).*\(1, 9, 7\)"),
    "a rate that does not divide": (lambda s, p: replace(s, bin_rate=150.0), "150 bins a second.* 120.* multiple"),
    "a lower rate": (lambda s, p: replace(s, bin_rate=60.0), "60 bins a second.* multiple"),
    "a signal less": (lambda s, p: replace(s, behavior={"gaze": s.behavior["gaze"]}), "no signal 'pupil'"),
    "a column more": (
        lambda s, p: replace(s, behavior=dict(s.behavior) | {"gaze": np.ones((s.n_bins, 3))}), "8 behaviour variables"
    ),
    "a stranger": (lambda s, p: replace(s, name="bob_1"), "no session 'bob_1'"),
    "no file": (lambda s, p: p / "nothing.safetensors", "no such file, and no session of this model"),
    "a misspelt name": (lambda s, p: "ada_2", "did you mean 'ada_1'"),
    "an altered file": (lambda s, p: changed_copy(p / "ada_1.safetensors"), "altered after it was written"),
    "only new types": (lambda s, p: replace(s, stimulus_type="gratings"), "shows gratings, where .* trained on movie"),
}  # fmt: skip


@pytest.mark.parametrize("case", RECORDED)
def test_recordings_of_another_kind_are_refused(tmp_path, case):
    twin, _, session, _ = train(tmp_path, "behaviour", sampling=False, types=["movie", "noise"])
    change, message = RECORDED[case]
    given = change(session, tmp_path)
    for call in (twin.predict, twin.sample):
        with pytest.raises(ValueError, match=message) as caught:
            call(given)
        assert "\n" not in str(caught.value)


def test_a_recording_of_a_whole_multiple_of_the_rate_is_resampled(tmp_path):
    twin, _, session, _ = train(tmp_path, "behaviour", sampling=False)
    fast = record(
        bin_rate=240.0,
        **{key: np.repeat(getattr(session, key), 2, axis=0) for key in ("stimulus", "trial", "valid", "exposure")},
        stimulus_type=np.repeat(session.stimulus_type, 2), responses=np.repeat(session.responses, 2, axis=0),
        behavior={key: np.repeat(value, 2, axis=0) for key, value in session.behavior.items()},
    )  # fmt: skip
    got, want = twin.predict(fast), twin.predict(session)
    np.testing.assert_allclose(got.rates, want.rates, rtol=1e-5)
    np.testing.assert_array_equal(got.responses, 2 * want.responses)
    with pytest.raises(SessionError, match="has 240 bins a second, not 120"):
        twin.predict(fast, bin_rate=120.0)


MOVIES = {
    "no rate": ({"bin_rate": None}, "give bin_rate"),
    "no session": ({"session": None}, "give session"),
    "another rate": ({"bin_rate": 240.0}, "240 bins a second and the model of ada_1 120"),
    "a rate that is none": ({"bin_rate": float("nan")}, "nan bins a second"),
    "scaled": ({"stimulus": lambda x: x / np.float32(255)}, "scaled already"),
    "scaled and centred": ({"stimulus": lambda x: (x - 127.0) / 255}, "reach from -0"),
    "z-scored": ({"stimulus": lambda x: (x - x.mean()) / x.std()}, "reach from -"),
    "ones and zeros": ({"stimulus": lambda x: (x > 127).astype(np.uint8)}, "scaled already"),
    "truth values": ({"stimulus": lambda x: x > 127}, "scaled already"),
    "bytes with a sign": ({"stimulus": lambda x: x.astype(np.int8)}, "reach from -128"),
    "twelve bits": ({"stimulus": lambda x: x.astype(np.int16) * 16}, "reach from 0 to 4"),
    "NaN": ({"stimulus": lambda x: np.where(np.arange(len(x))[:, None, None] == 7, np.nan, x)}, "NaN .*in bin 7"),
    "infinite": ({"stimulus": lambda x: np.where(x == 3, np.inf, x)}, "NaN or infinite"),
    "complex": ({"stimulus": lambda x: x + 1j}, "complex128"),
    "text": ({"stimulus": lambda x: x.astype(str)}, "give numbers"),
    "turned": ({"stimulus": lambda x: x.swapaxes(1, 2)}, r"\(7, 9\), where ada_1 has \(1, 9, 7\)"),
    "flat": ({"stimulus": lambda x: x.reshape(len(x), -1)}, r"\(63,\), where"),
    "channels last": ({"stimulus": lambda x: x[..., None]}, r"\(9, 7, 1\), where"),
    "a batch": ({"stimulus": lambda x: x[None, :, None]}, "give as many|where ada_1|frames: a prediction|has"),
    "too few frames": ({"stimulus": lambda x: x[:3]}, "has 40 bins where the stimulus has 3|3 frames"),
    "no behaviour": ({"behavior": None}, "no signal 'gaze'"),
    "a signal less": ({"behavior": lambda b: {"gaze": b["gaze"]}}, "no signal 'pupil'"),
    "another name": ({"behavior": lambda b: {"gaze": b["gaze"], "pupils": b["pupil"]}}, "did you mean 'pupils'"),
    "behaviour of another rate": ({"behavior": lambda b: {k: v[::2] for k, v in b.items()}}, "has 20 bins"),
    "columns swapped": (
        {"behavior": lambda b: {"gaze": b["pupil"], "pupil": b["gaze"]}}, r"6 variables .*'gaze': 2.*'gaze': 4"
    ),
    "a column more": ({"behavior": lambda b: b | {"gaze": np.ones((40, 3))}}, "8 variables"),
    "NaN in behaviour": ({"behavior": lambda b: b | {"pupil": np.full(40, np.nan)}}, "pupil: NaN .*in bin 0"),
    "text as behaviour": ({"behavior": lambda b: b | {"pupil": np.full(40, "a")}}, "pupil: .* give numbers"),
    "no chunk": ({"chunk": 0}, "chunk is 0"),
    "a part": ({"part": "val"}, "an array has no parts"),
}  # fmt: skip


@pytest.mark.parametrize("case", MOVIES)
def test_arrays_of_another_kind_are_refused(case, trained):
    twin, session = trained
    trial = session.trial == 2
    usual = {
        "stimulus": session.stimulus[trial][:40], "session": "ada_1", "bin_rate": 120.0,
        "behavior": {key: np.asarray(value)[trial][:40] for key, value in session.behavior.items()},
    }  # fmt: skip
    assert np.isfinite(twin.predict(**usual)[4:]).all()
    changes, message = MOVIES[case]
    given = {key: change(usual[key]) if callable(change) else change for key, change in changes.items()}
    for call in (twin.predict, twin.sample):
        with pytest.raises(ValueError, match=message) as caught:
            call(**usual | given)
        assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    torch.set_default_dtype(torch.float32)
    twin, _, session, _ = train(tmp_path_factory.mktemp("trained"), "behaviour", sampling=False)
    return twin, session


def test_the_type_of_a_movie_does_not_matter(trained):
    twin, session = trained
    trial = session.trial == 2
    behavior = {key: np.asarray(value)[trial] for key, value in session.behavior.items()}
    settings = {"behavior": behavior, "session": 0, "bin_rate": 120.0}
    want = twin.predict(session.stimulus[trial], **settings)
    for dtype in (np.int16, np.int64, np.uint16, np.float16, np.float32, np.float64):
        np.testing.assert_allclose(twin.predict(session.stimulus[trial].astype(dtype), **settings), want, rtol=1e-6)
    grey = np.full((30, 9, 7), 127.5)
    still = {key: value[:30] for key, value in behavior.items()}
    assert np.isfinite(twin.predict(grey, still, session=0, bin_rate=120.0)[4:]).all()


def test_history_is_checked(tmp_path):
    twin, _, session, _ = train(tmp_path, "history", sampling=False)
    movie = session.stimulus[:30]
    settings = {"session": 0, "bin_rate": 120.0}
    with pytest.raises(ValueError, match="sees spike history; give responses"):
        twin.predict(movie, **settings)
    for responses, message in (
        (session.responses[:29], r"\(29, 3\); give \(30, 3\)"),
        (session.responses[:30, :2], r"\(30, 2\); give \(30, 3\)"),
        (np.full((30, 3), np.nan), "NaN"),
    ):
        with pytest.raises(ValueError, match=message):
            twin.predict(movie, responses=responses, **settings)
    with pytest.raises(ValueError, match="a recording brings its own"):
        twin.predict(session, responses=session.responses)
    with pytest.raises(ValueError, match="no part 'vall'; did you mean 'val'"):
        twin.predict(session, part="vall")
    with pytest.raises(SessionError, match="no bin of the test part can be predicted"):
        twin.predict(session, part="test")
