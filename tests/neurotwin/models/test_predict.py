"""Predicting recordings and drawing responses, with what the user has in hand: raw movies and raw signals."""

import numpy as np
import pytest
import torch
from torch import nn

from neurotwin.clip import Clip
from neurotwin.config import DatasetConfig, ModelConfig
from neurotwin.models import TwinModel

FILTERS = {"type": "learnable_temporal", "params": {"kernel_size": 4, "num_channels": 3, "init_type": "random"}}
HISTORY = {"type": "mlp", "params": {"num_lags": 3, "hidden_dims": []}}


GAZE = DatasetConfig(
    transforms={
        "stim": {"source": "stim", "ops": [{"pixelnorm": {}}]},
        "gaze": {"source": "gaze", "ops": [{"mul": {"factor": 2.0}}], "expose_as": "behavior"},
    }
)


PREDICTED = [
    "resnet", "convgru", "history", "concat", "film", "modulating convgru", "behaviour only", "shifter gaussian",
    "shifter point", "likelihood gaussian", "link softplus",
]  # fmt: skip


@pytest.mark.parametrize("name", PREDICTED)
def test_predict_is_the_model_on_the_whole_movie(name, components, spec):
    twin = TwinModel(ModelConfig(**components[name]), [spec(config=GAZE, behavior_names=("gaze",) * 2)])
    rng = np.random.default_rng(0)
    movie = rng.integers(0, 256, (40, 14, 12), dtype=np.uint8)
    gaze = rng.standard_normal((40, 2)).astype(np.float32)
    responses = rng.poisson(0.5, (40, 3))
    settings = {"session": "ada_1", "bin_rate": 100.0} | ({"responses": responses} if name == "history" else {})
    rates = twin.predict(movie, {"gaze": gaze}, **settings)
    assert twin.training, "the mode is as it was"
    assert np.isnan(rates[: twin.context]).all()
    assert np.isfinite(rates[twin.context :]).all()
    padded = np.concatenate([np.zeros((5, 3)), responses])[twin.context :]
    clip = Clip(
        0, 40 - twin.context, torch.as_tensor(movie)[None, None], behavior=torch.as_tensor(2 * gaze)[None].double(),
        history=torch.as_tensor(padded)[None],
    )  # fmt: skip
    expected = twin.eval()([clip])[0][0].detach()
    np.testing.assert_allclose(rates[twin.context :], expected, rtol=1e-5)
    for chunk in (3, 17):
        pieces = twin.predict(movie[:, None], {"gaze": gaze}, chunk=chunk, **settings)
        np.testing.assert_allclose(pieces, rates, rtol=1e-5)


def test_predict_runs_pipelines_that_are_more_than_scaling(spec):
    stim = {"source": "stim", "ops": [{"pixelnorm": {}}, {"diff": {"axis": 0}}]}
    config = DatasetConfig(transforms={"stim": stim})
    twin = TwinModel(ModelConfig(), [spec(config=config, pixel_scale=(1.0, 0.0))]).eval()
    movie = np.random.default_rng(0).integers(0, 256, (5, 14, 12), dtype=np.uint8)
    change = np.diff(movie / 255.0, axis=0, prepend=movie[:1] / 255.0)
    expected = nn.functional.softplus(twin.per_session[0].readout(torch.as_tensor(change)[None, None]))[0]
    np.testing.assert_allclose(twin.predict(movie, session=0, bin_rate=100.0), expected.detach(), rtol=1e-5)


MOVIE = np.random.default_rng(0).integers(0, 256, (30, 14, 12), dtype=np.uint8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"session": "ada_2"}, "no session 'ada_2'; did you mean 'ada_1'"),
        ({"session": 1}, "no session 1"),
        ({"stimulus": np.zeros((30, 9, 9), np.uint8)}, r"\(9, 9\), where ada_1 has \(1, 14, 12\)"),
        ({"stimulus": MOVIE[:3]}, "3 frames: a prediction sees 5, so give at least as many"),
        ({"stimulus": MOVIE[:0]}, "0 frames: a prediction sees 5"),
        ({"bin_rate": 60.0}, "the movie has 60 bins a second and the model of ada_1 100; resample it"),
        ({"stimulus": MOVIE / np.float32(255)}, "reach from 0 to 1, as if they were scaled already, .* 0 to 255"),
        ({"stimulus": MOVIE * 300.0}, "reach from 0 to 76500, where those that ada_1 was trained on reach from 0"),
        ({"behavior": None}, "no signal 'gaze'"),
        ({"behavior": {"gaze": np.zeros((29, 2))}}, "gaze has 29 bins where the stimulus has 30"),
    ],
)
def test_predict_refuses_what_does_not_fit(arguments, message, components, spec):
    config = ModelConfig(frontend=FILTERS, **components["concat"])
    twin = TwinModel(config, [spec(config=GAZE, stimulus_range=(0.0, 255.0), behavior_names=("gaze",) * 2)])
    n_bins = len(arguments.get("stimulus", MOVIE))
    usual = {"stimulus": MOVIE, "behavior": {"gaze": np.zeros((n_bins, 2))}, "session": 0, "bin_rate": 100.0}
    twin.predict(**usual | {"stimulus": MOVIE, "behavior": {"gaze": np.zeros((30, 2))}})
    for call in (twin.predict, twin.sample):
        with pytest.raises(ValueError, match=message):
            call(**usual | arguments)


def test_as_few_frames_as_a_prediction_sees_are_enough(spec):
    twin = TwinModel(ModelConfig(frontend=FILTERS), [spec(stimulus_range=(0.0, 255.0))])
    rates = twin.predict(MOVIE[:4], session=0, bin_rate=100.0)
    assert np.isfinite(rates).all(axis=1).tolist() == [False, False, False, True]
    dark = twin.predict(np.zeros_like(MOVIE), session=0, bin_rate=100.0)
    assert np.isfinite(dark[3:]).all(), "a dark movie of bytes is as recorded"


@pytest.mark.parametrize("likelihood", ["negative_binomial", "gamma", "gaussian"])
def test_samples_are_of_the_likelihood(likelihood, spec):
    twin = TwinModel(ModelConfig(frontend=FILTERS, likelihood=likelihood), [spec()])
    with torch.no_grad():
        twin.per_session[0].readout.bias.fill_(1.0)
    drawn, rates = twin.sample(MOVIE[:8], session=0, bin_rate=100.0, n_samples=6000)
    np.testing.assert_allclose(drawn[:, 3:].mean(0), rates[0, 3:], atol=0.1)
    assert (drawn[:, 3:] < 0).any() == (likelihood == "gaussian")
    assert (drawn[:, 3:] == 0).any() == (likelihood != "gaussian")
    assert (np.mod(drawn[:, 3:], 1) == 0).all() == (likelihood == "negative_binomial")


def test_samples_are_poisson_counts_of_the_rates(spec):
    twin = TwinModel(ModelConfig(frontend=FILTERS), [spec()])
    movie = np.random.default_rng(0).integers(0, 256, (10, 14, 12), dtype=np.uint8)
    spikes, rates = twin.sample(movie, session=0, bin_rate=100.0, n_samples=4000)
    assert np.isnan(spikes[:, :3]).all()
    np.testing.assert_allclose(rates[0], twin.predict(movie, session=0, bin_rate=100.0), rtol=1e-6)
    np.testing.assert_allclose(spikes[:, 3:].mean(0), rates[0, 3:], atol=0.06)
    np.testing.assert_allclose(spikes[:, 3:].var(0), rates[0, 3:], rtol=0.15)


def test_a_glm_with_history_is_recovered_from_its_own_samples(spec):
    """Spikes drawn forward from known coupling filters; a fresh model fitted to them finds the filters."""
    config = ModelConfig(
        model_type="v1multi_history", output_activation="exp", readout={"type": "linear"},
        history_encoder=HISTORY,
    )  # fmt: skip
    session = spec(unit_ids=(0, 1), frame_shape=(1, 1, 1), n_history=3, pixel_scale=(1.0, 0.0))
    truth, fitted = (TwinModel(config, [session]) for _ in range(2))
    with torch.no_grad():  # rows: unit driven; columns: unit 0 from 3 bins ago to the last bin, then unit 1
        filters = torch.tensor([[-0.1, -0.4, -1.5, 0.1, 0.2, 0.5], [0.0, 0.0, 0.3, -0.2, -0.5, -1.0]])
        truth.per_session[0].history_encoder.layers[0].weight.copy_(filters)
        truth.per_session[0].readout.bias.fill_(-1.0)
    movie = np.zeros((1000, 1, 1), np.uint8)
    spikes, rates = truth.sample(movie, session=0, bin_rate=100.0, n_samples=20)
    again = truth.predict(movie, session=0, bin_rate=100.0, responses=spikes[3])
    np.testing.assert_allclose(again, rates[3], rtol=1e-5)
    counts = torch.as_tensor(spikes).double()
    clip = Clip(0, 1000, torch.zeros(20, 1, 1000, 1, 1), history=torch.cat([torch.zeros(20, 3, 2), counts], dim=1))
    optimizer = torch.optim.LBFGS(fitted.parameters(), max_iter=30, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        rate = fitted([clip])[0]
        value = (rate - counts * rate.log()).mean()
        value.backward()
        return value

    optimizer.step(loss)
    torch.testing.assert_close(fitted.per_session[0].history_encoder.layers[0].weight, filters, atol=0.12, rtol=0)
    torch.testing.assert_close(fitted.per_session[0].readout.bias, truth.per_session[0].readout.bias, atol=0.05, rtol=0)


def test_a_bounded_history_stays_stable(spec):
    """Filters that would explode are held by their spectral norm."""
    encoder = {"type": "mlp", "params": HISTORY["params"] | {"spectral_norm": True}}
    config = ModelConfig(model_type="v1multi_history", history_encoder=encoder)
    twin = TwinModel(config, [spec()])
    with torch.no_grad():
        twin.per_session[0].history_encoder.layers[0].weight.fill_(5.0)
    _, rates = twin.sample(np.zeros((300, 14, 12), np.uint8), session=0, bin_rate=100.0, n_samples=3)
    assert np.isfinite(rates).all()
