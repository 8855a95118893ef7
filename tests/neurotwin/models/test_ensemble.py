"""Ensembles: the mean of what each member predicts alone, whatever it sees; one file; refusals."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from neurotwin.analysis.evaluate import evaluate
from neurotwin.checkpoint_file import CheckpointError
from neurotwin.config import DatasetConfig, ModelConfig
from neurotwin.data.prepare import prepare
from neurotwin.data.session import Session
from neurotwin.errors import UserError
from neurotwin.experiments.presenter import Presenter
from neurotwin.models import Ensemble, EnsembleError, TwinModel, load_twin
from neurotwin.tensorfile import save_arrays

LENGTHS = (30, 24, 40, 17, 26, 33, 24, 35)
STIM = {"stim": {"source": "stim", "ops": ["pixelnorm"]}}
GAZE = {"gaze": {"source": "gaze", "ops": [{"mul": {"factor": 0.5}}], "expose_as": "behavior", "concatenate": True}}
PUPIL = {"pupil": {"source": "pupil", "ops": [{"mul": {"factor": 2.0}}], "expose_as": "behavior"}}
BOTH = GAZE | {"pupil": PUPIL["pupil"] | {"concatenate": True}}


def temporal(size: int) -> dict:
    params = {"kernel_size": size, "num_channels": 2, "init_type": "random"}
    return {"frontend": {"type": "learnable_temporal", "params": params}}


HISTORY = {"model_type": "v1multi_history", "history_encoder": {"type": "mlp", "params": {"num_lags": 2}}}
MEMBERS = {
    "plain": (temporal(3), {"transforms": STIM | BOTH}),
    "long": (temporal(7), {"keys_lags": {"stim": "0..6"}, "transforms": STIM}),
    "behaviour": (temporal(3) | {"modulator": {"type": "film"}}, {"transforms": STIM | BOTH}),
    "pupil only": (
        temporal(2) | {"modulator": {"type": "concat"}},
        {"transforms": STIM | PUPIL, "keys_lags": {"stim": "0..3", "behavior": [2, 0]}},
    ),
    "history": (temporal(3) | HISTORY, {"transforms": STIM, "keys_lags": {"stim": "0..4", "history": [1, 2]}}),
    "recurrent": (
        temporal(2) | {"recurrent": {"type": "convgru", "params": {"hidden_dim": 3}}}, {"transforms": STIM},
    ),
}  # fmt: skip
"""A model and a dataset config each; they differ in architecture, lags and behaviour."""
EVERY = tuple(MEMBERS)


@pytest.fixture(autouse=True)
def double_precision():
    """In place of the package's: recordings are float32, and so are the models that are trained on them."""
    torch.set_default_dtype(torch.float32)


def record(seed: int = 0) -> Session:
    rng, n_bins = np.random.default_rng(seed), sum(LENGTHS)
    return Session(
        name="ada_1", stimulus=rng.integers(0, 256, (n_bins, 9, 7)).astype(np.uint8), bin_rate=60.0,
        responses=rng.poisson(0.7, (n_bins, 3)), unit_ids=[7, 3, 11],
        trial=np.repeat(np.arange(len(LENGTHS)), LENGTHS),
        behavior={"gaze": rng.normal(size=(n_bins, 2)), "pupil": rng.random(n_bins)},
    )  # fmt: skip


@pytest.fixture
def make(tmp_path):
    """A member, or one with changes: of the model, of the dataset."""
    session = record()
    path = session.save(tmp_path / "ada_1.safetensors")

    def member(name: str, model: dict | None = None, likelihood: str = "poisson", **dataset) -> TwinModel:
        config, keys = MEMBERS[name]
        values = {"session": "ada_1", "path": str(path), "keys_lags": {"stim": "0..4"}} | keys | dataset
        (prepared,) = prepare([DatasetConfig(**values)], cache_dir=tmp_path / "prepared")
        config = config | {"likelihood": {"type": likelihood}} | (model or {})
        twin = TwinModel(ModelConfig(**config), [prepared.spec]).eval()
        noise = torch.Generator().manual_seed(len(name))
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=noise))
        return twin

    return SimpleNamespace(member=member, session=session, path=path, folder=tmp_path)


def test_rates_are_the_mean_of_what_members_predict_alone_and_disagreement_is_their_spread(make):
    each = [make.member(name).predict(make.session).rates for name in EVERY]
    ensemble = Ensemble([make.member(name) for name in EVERY], EVERY)
    prediction = ensemble.predict(make.session, chunk=11)
    seen = np.isfinite(prediction.rates).all(axis=1)
    # Each trial lacks the frames of the member that sees most: 6.
    starts = np.concatenate([[0], np.cumsum(LENGTHS)[:-1]])
    assert np.array_equal(np.flatnonzero(~seen), np.sort((starts[:, None] + np.arange(6)).ravel()))
    np.testing.assert_allclose(prediction.rates[seen], np.mean(each, axis=0)[seen], rtol=2e-5)
    np.testing.assert_allclose(prediction.disagreement[seen], np.std(each, axis=0)[seen], rtol=1e-3, atol=1e-6)
    assert np.isnan(prediction.disagreement[~seen]).all() and (prediction.disagreement[seen] > 0).any()
    np.testing.assert_allclose(ensemble.predict(make.session, chunk=100).rates, prediction.rates, rtol=2e-5)


def test_members_alone_take_what_the_ensemble_takes(make):
    each = [make.member(name).predict(make.session).rates for name in EVERY]
    ensemble = Ensemble([make.member(name) for name in EVERY], EVERY)
    for alone, rates in zip(ensemble.alone, each, strict=True):
        found = alone.predict(make.session)
        seen = np.isfinite(found.rates).all(axis=1)
        np.testing.assert_allclose(found.rates[seen], rates[seen], rtol=2e-5)
        assert found.disagreement is None and alone.sessions == ensemble.sessions


def test_a_movie_is_predicted_as_a_recording_is(make):
    ensemble = Ensemble([make.member(name) for name in EVERY], EVERY)
    length = LENGTHS[0]
    signals = {name: signal[:length] for name, signal in make.session.behavior.items()}
    responses = make.session.responses[:length]
    movie = ensemble.predict(
        make.session.stimulus[:length], signals, session="ada_1", bin_rate=60.0, responses=responses, chunk=9
    )
    whole = ensemble.predict(make.session).rates[:length]
    np.testing.assert_allclose(movie[6:], whole[6:], rtol=1e-4)
    assert np.isnan(movie[:6]).all()


def test_evaluation_scores_the_mean(make):
    names = ("plain", "behaviour", "recurrent")
    ensemble = Ensemble([make.member(name) for name in names])
    (prepared,) = prepare([ensemble.sessions[0].config], cache_dir=make.folder / "prepared")
    table, prediction = evaluate(ensemble, [prepared], "val"), ensemble.predict("ada_1", part="val")
    for unit in range(3):
        mask = prediction.mask[:, unit]
        expected = np.corrcoef(prediction.responses[mask, unit], prediction.rates[mask, unit])[0, 1]
        assert table["correlation"][unit] == pytest.approx(expected, abs=1e-4) and table["bins"][unit] == mask.sum()


def test_one_file_holds_everything(make):
    paths = [make.member(name).save(make.folder / f"{n}.safetensors") for n, name in enumerate(EVERY)]
    ensemble = Ensemble([load_twin(path) for path in paths], EVERY)
    path, before = ensemble.save(make.folder / "all.safetensors"), ensemble.predict("ada_1")
    for one in paths:
        one.unlink()
    loaded = load_twin(path)
    assert isinstance(loaded, Ensemble) and loaded.names == EVERY and not loaded.training
    assert loaded.sessions == ensemble.sessions and repr(loaded) == repr(ensemble)
    np.testing.assert_array_equal(loaded.predict("ada_1").rates, before.rates)
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="does not match its checksum"):
        load_twin(path)


def test_drawing_feeds_every_member_what_was_drawn(make):
    """With spike history; without, the rates drawn from are those predicted."""
    plain = Ensemble([make.member(name) for name in ("plain", "recurrent")])
    draws = plain.sample(make.session, n_samples=3)
    rates = plain.predict(make.session).rates
    np.testing.assert_allclose(draws.rates, np.broadcast_to(rates, draws.rates.shape), rtol=2e-5)
    longer = {"keys_lags": {"stim": "0..4", "history": [1, 2, 3]}}
    encoder = {"history_encoder": {"type": "mlp", "params": {"num_lags": 3}}}
    members = [make.member("history"), make.member("history", encoder, **longer)]
    ensemble = Ensemble(members)
    assert ensemble.history_lags == 3
    drawn, rates = ensemble.sample(make.session.stimulus[:20], session="ada_1", bin_rate=60.0, n_samples=2)
    for sample, rate in zip(drawn, rates, strict=True):
        past = np.nan_to_num(sample)
        again = ensemble.predict(make.session.stimulus[:20], session="ada_1", bin_rate=60.0, responses=past)
        np.testing.assert_allclose(rate[4:], again[4:], rtol=1e-4)


def test_what_is_shown_to_all_units_goes_through_every_member(make):
    names = ("plain", "behaviour", "pupil only", "recurrent")
    ensemble = Ensemble([make.member(name) for name in names])
    presenter = Presenter(ensemble, behavior="zeros")
    (group,) = presenter.groups
    movies = torch.rand(2, ensemble.context + 4, *group.screen.frame_shape) * 255
    movies.requires_grad_()
    found = presenter.rates(group, movies)[0]
    expected = [
        Presenter(make.member(name), behavior="zeros").rates(group, movies[:, -(3 + 1 + context) :])[0][:, -4:]
        for name, context in zip(names, (2, 2, 1, ensemble.context), strict=True)
    ]
    assert torch.allclose(found, torch.stack(expected).mean(0), rtol=1e-4)
    (gradient,) = torch.autograd.grad(found.sum(), movies)
    assert gradient.abs().sum() > 0
    alone = torch.stack([one.rates(group, movies)[0] for one in presenter.alone])
    assert torch.allclose(alone.mean(0), found, rtol=1e-4) and alone.std(0).max() > 0


@pytest.mark.parametrize("kind", ["negative_binomial", "gaussian", "gamma"])
def test_the_likelihood_gives_the_mean_of_the_variances(make, kind):
    members = [make.member(name, likelihood=kind) for name in ("plain", "behaviour")]
    with torch.no_grad():
        for spread, member in zip((-1.0, 0.7), members, strict=True):
            for parameter in member.per_session[0].likelihood.parameters():
                parameter.fill_(spread)
    ensemble = Ensemble(members)
    rates = torch.full((400_000, 3), 0.02 if kind == "gamma" else 1.5)
    generator = torch.Generator().manual_seed(0)

    def drawn(twin: TwinModel) -> torch.Tensor:
        return twin.per_session[0].likelihood.sample(rates, generator=generator).double().mean(1)

    three = [drawn(twin) for twin in (ensemble, *members)]
    variances, means = [values.var().item() for values in three], [values.mean().item() for values in three]
    assert means[0] == pytest.approx(rates[0, 0].item(), rel=0.05)
    assert variances[0] == pytest.approx(np.mean(variances[1:]), rel=0.05)
    assert variances[1] != pytest.approx(variances[2], rel=0.2)
    path = ensemble.save(make.folder / "kind.safetensors")
    for name, value in load_twin(path).per_session[0].likelihood.state_dict().items():
        assert torch.equal(value, ensemble.per_session[0].likelihood.state_dict()[name])


def test_an_ensemble_as_a_member_stands_for_its_members(make):
    inner = Ensemble([make.member("plain"), make.member("behaviour")])
    outer = Ensemble([inner, make.member("long")], ["pair", "third"])
    assert len(outer.members) == 3 and outer.names == ("pair", "pair", "third")


REFUSALS = {
    "likelihood": ({"likelihood": "negative_binomial"}, "b: its likelihood is negative_binomial"),
    "units": ({"cids": [7, 11, 3]}, "b: session 'ada_1': its units, in their order, have 11, where a has 3"),
    "fewer units": ({"cids": [7, 3]}, "b: session 'ada_1': number of units 2, where a has 3"),
    "rate": ({"sampling": {"source_rate": 60, "target_rate": 30}}, "bins a second 30.0, where a has 60.0"),
    "parts": ({"seed": 4}, "b: session 'ada_1': seed 4, where a has 1002"),
    "shares": ({"train_val_split": 0.5}, "train_val_split 0.5, where a has 0.8"),
    "behaviour": (
        {"transforms": STIM | {"gaze": GAZE["gaze"] | {"ops": []}}}, "b: session 'ada_1': transforms.gaze is defined",
    ),
    "stimulus": (
        {"transforms": {"stim": {"source": "stim", "ops": ["pixelnorm", "dacones"]}}}, "transforms of the stimulus",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_members_that_do_not_share_what_they_must_are_refused(make, name):
    changes, text = REFUSALS[name]
    with pytest.raises(EnsembleError, match=text) as caught:
        Ensemble([make.member("plain"), make.member("plain", **changes)], ["a", "b"])
    assert "\n" not in str(caught.value) and isinstance(caught.value, UserError)


def test_other_sessions_are_refused(make):
    one = make.member("plain")
    other = TwinModel(one.config, [replace(one.sessions[0], name="bob_2")])
    with pytest.raises(EnsembleError, match="session 'ada_1' is known to a and not to b"):
        Ensemble([one, other], ["a", "b"])
    with pytest.raises(EnsembleError, match="at least one"):
        Ensemble([])


def test_sessions_are_found_by_name(make):
    """Members may know them in another order."""
    one = make.member("plain")
    specs = [one.sessions[0], replace(one.sessions[0], name="bob_2")]
    first, second = TwinModel(one.config, specs), TwinModel(one.config, specs[::-1])
    second.load_state_dict(first.state_dict())
    with torch.no_grad():
        second.per_session[1].readout.bias.add_(1.0)  # of ada_1
    movie = np.asarray(make.session.stimulus[:20])
    alone = [twin.predict(movie, session="ada_1", bin_rate=60.0) for twin in (first, second)]
    both = Ensemble([first, second]).predict(movie, session="ada_1", bin_rate=60.0)
    np.testing.assert_allclose(both, np.mean(alone, axis=0), rtol=1e-5)
    assert not np.allclose(*alone, equal_nan=True)


def test_filters_that_wait_for_lags_wait_for_the_longest(make, tmp_path: Path):
    def keys(lags: int) -> dict:
        filters = {"dfs": {"ops": [{"valid_nlags": {"n_lags": lags}}]}}
        return {"datafilters": filters, "keys_lags": {"stim": f"0..{lags - 1}"}}

    ensemble = Ensemble([make.member("plain", **keys(4)), make.member("plain", **keys(9))])
    config = ensemble.sessions[0].config
    assert config.keys_lags.n_lags == 9 and config.datafilters["dfs"].ops[0].params.n_lags == 9
    assert ensemble.sessions[0].n_lags == 9


@pytest.mark.parametrize(
    "spoil",
    [
        lambda d: [],
        lambda d: d | {"members": d["members"][:1]},
        lambda d: d | {"members": []},
        lambda d: d | {"names": ["a"]},
    ],
)  # fmt: skip
def test_a_description_that_is_not_whole_is_one_line(make, spoil):
    ensemble = Ensemble([make.member("plain"), make.member("behaviour")])
    arrays = {name: tensor.numpy() for name, tensor in ensemble.state_dict().items()}
    description = spoil(json.loads(json.dumps(ensemble.describe())))
    path = make.folder / "spoilt.safetensors"
    save_arrays(path, arrays, {"format": "neurotwin-ensemble-1", "twin": json.dumps(description)})
    with pytest.raises(CheckpointError) as caught:
        load_twin(path).predict(make.session)
    assert "\n" not in str(caught.value)
