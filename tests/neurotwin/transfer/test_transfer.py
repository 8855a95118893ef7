"""New sessions on a frozen core: the fit against a plain network, what stays as it was, and what is refused."""

import logging
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from neurotwin.cli import main
from neurotwin.clip import Clip
from neurotwin.config import ConfigError, ModelConfig, load_dataset_configs
from neurotwin.data.prepare import prepare, prepare_session
from neurotwin.data.session import Session, SessionError
from neurotwin.metrics.table import Table
from neurotwin.models import TwinModel, load_twin
from neurotwin.models.ensemble import Ensemble
from neurotwin.models.network import CORE_PARTS, Network
from neurotwin.tensorfile import save_arrays
from neurotwin.transfer import FitOptions, open_new, transfer
from neurotwin.transfer.checks import check_new
from neurotwin.transfer.curve import _halves, learning_curve, saturation
from neurotwin.transfer.features import core_key, feature_bank
from neurotwin.transfer.fit import fit_session, score_bank
from neurotwin.transfer.transfer import fewer, join
from neurotwin.transfer.tune import tune

N_LAGS, N_BINS, N_UNITS = 3, 1200, 4
MODEL = {
    "frontend": {"type": "learnable_temporal", "params": {"kernel_size": 3, "num_channels": 2}},
    "convnet": {
        "type": "vanilla",
        "params": {
            "channels": [3],
            "block_configs": [
                {"conv_params": {"kernel_size": [1, 3, 3], "padding": [0, 1, 1]}, "norm_type": "batch"},
            ],
        },
    },
    "readout": {"type": "gaussian", "params": {"initial_std": 0.6}},
}
QUICK = FitOptions(penalties=(30.0, 3.0, 0.3), iterations=15, refinements=5)


def record(folder, name, seed, **fields):
    """A session of noise in trials of 40 bins, and its YAML."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (N_BINS, 6, 7), dtype=np.uint8)
    values = {
        "name": name, "subject": name[:3], "bin_rate": 60.0, "trial": np.arange(N_BINS) // 40, "stimulus": frames,
        "responses": rng.poisson(1.0, (N_BINS, N_UNITS)).astype(np.uint8),
    } | fields  # fmt: skip
    path = Session(**values).save(folder / f"{name}.safetensors")
    (folder / f"{name}.yaml").write_text(
        f"session: {name}\npath: {path}\nkeys_lags: {{stim: [0..{N_LAGS - 1}]}}\ntrain_val_split: 0.7\n"
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("transfer")


@pytest.fixture(scope="module")
def trained(folder):
    """A twin of two sessions with a random core, whose running statistics are not those of the start."""
    record(folder, "ada_1", 1)
    record(folder, "bea_1", 2)
    sessions = prepare(open_new_configs(folder, "ada_1", "bea_1"))
    twin = TwinModel(ModelConfig.model_validate(MODEL), [s.spec for s in sessions])
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for module in twin.modules():
            if hasattr(module, "running_mean") and module.running_mean is not None:
                module.running_mean.normal_(generator=generator).mul_(0.1)
        for module in twin.per_session:
            module.readout.features.normal_(generator=generator)
    return twin.eval()


def open_new_configs(folder, *names):
    return [load_dataset_configs(folder / f"{name}.yaml")[0] for name in names]


@pytest.fixture(scope="module")
def new(folder, trained):
    """A session whose units are readouts of the trained core, at places that the fit must find."""
    record(folder, "cat_1", 3)
    (config,) = open_new_configs(folder, "cat_1")
    prepared = prepare_session(config)
    truth = trained.add_session(prepared.spec)
    module = truth.per_session[-1]
    with torch.no_grad():
        module.readout.mean.copy_(torch.tensor([[-2.0, -1.5], [2.0, 1.5], [0.0, 0.5], [-2.0, 1.5]]))
        module.readout.features.copy_(3 * torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, -1, 0]]))
        module.readout.bias.fill_(0.5)
    recording = Session.load(folder / "cat_1.safetensors")
    rates = truth.predict(recording, session="cat_1").rates
    drawn = np.random.default_rng(0).poisson(np.nan_to_num(rates)).astype(np.uint8)
    record(folder, "cat_1", 3, responses=drawn)
    return config, module.readout.mean.detach().clone(), rates


@pytest.fixture(scope="module")
def result(trained, new, folder):
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    found = transfer(trained, [new[0]], options=QUICK)
    return found, before


def test_frozen_means_frozen(trained, result):
    found, before = result
    after = trained.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    for name, tensor in found.twin.state_dict().items():
        if not name.startswith("per_session"):
            assert torch.equal(tensor, before[name]), name
    assert not any(p.grad is not None for p in trained.parameters())


def test_units_are_found_where_they_look(result, new):
    found, places = result[0], new[1]
    mean = found.twin.per_session[0].readout.mean.detach()
    assert (mean - places).norm(dim=1).median() < 0.75
    true, rates = new[2], found.twin.predict("cat_1").rates
    seen = np.isfinite(true[:, 0])
    assert np.median([np.corrcoef(true[seen, u], rates[seen, u])[0, 1] for u in range(N_UNITS)]) > 0.9
    assert found.twin.sessions[0].name == "cat_1" and len(found.twin.sessions) == 1


def test_cached_features_predict_what_the_whole_network_predicts(trained, result, new):
    found = result[0]
    prepared = prepare_session(new[0])
    bank = feature_bank(found.twin, prepared, 0, new[0].path.rsplit("/", 1)[0] + "/again")
    module = found.twin.per_session[0]
    recorded = found.twin.predict("cat_1")
    with torch.no_grad():
        rates = module(bank.seen(), bank.behavior(), bank.history())[:, 0].numpy()
    np.testing.assert_allclose(rates, recorded.rates[bank.bins], rtol=1e-5, atol=1e-6)
    figures = score_bank(module, bank.part("val")).compute()
    np.testing.assert_allclose(figures["correlation"], found.table["correlation"], rtol=1e-5)


def test_features_are_computed_once_and_known_by_their_core(trained, new, tmp_path, monkeypatch):
    prepared = prepare_session(new[0])
    joined = join(trained, [prepared])
    bank = feature_bank(joined, prepared, 2, tmp_path)
    assert (np.diff(bank.bins) > 0).all() and set(np.unique(prepared.split[bank.bins])) == {0, 1}
    monkeypatch.setattr(Network, "features", None)
    again = feature_bank(joined, prepared, 2, tmp_path)
    np.testing.assert_array_equal(again.features, bank.features)
    monkeypatch.undo()
    key = core_key(joined, 2)
    with torch.no_grad():
        joined.convnet.get_buffer(next(n for n, _ in joined.convnet.named_buffers() if "running_mean" in n)).add_(1)
    assert core_key(joined, 2) != key


def test_old_readouts_stay_to_the_bit(trained, new):
    found = transfer(trained, [new[0]], add=True, options=QUICK, n_trials=5)
    assert [s.name for s in found.twin.sessions] == ["ada_1", "bea_1", "cat_1"]
    old = trained.state_dict()
    joined = found.twin.state_dict()
    assert all(torch.equal(joined[name], tensor) for name, tensor in old.items())
    back = found.twin.without(["cat_1"])
    assert {n: t.tolist() for n, t in back.state_dict().items()} == {n: t.tolist() for n, t in old.items()}
    without_first = found.twin.without(["ada_1"])
    clip = Clip(0, 4, torch.randint(0, 256, (2, 1, N_LAGS + 3, 6, 7), dtype=torch.uint8))
    with torch.no_grad():
        torch.testing.assert_close(without_first([clip])[0], found.twin([replace(clip, session=1)])[0])


@pytest.mark.parametrize("part", ["core", "modulator", "all"])
def test_tuning_changes_what_it_says(trained, new, part):
    remembers = MODEL | {"recurrent": {"type": "convgru", "params": {"hidden_dim": 3}}}
    prepared = prepare_session(new[0])
    twin = TwinModel(ModelConfig.model_validate(remembers), [prepared.spec])
    before = {name: tensor.clone() for name, tensor in twin.state_dict().items()}
    tune(twin, [prepared], part, learning_rate=2e-3, rounds=2)
    changed = {name for name, tensor in twin.state_dict().items() if not torch.equal(tensor, before[name])}
    stages = {"core": {"frontend", "convnet"}, "modulator": {"recurrent"}}
    stages["all"] = stages["core"] | stages["modulator"]
    assert {name.split(".")[0] for name in changed} == {"per_session"} | stages[part]
    assert not any("running" in name for name in changed)


def test_a_part_that_the_twin_lacks_is_not_tuned(trained, new, monkeypatch):
    """Readouts alone would be tuned, without a word, where a modulator was asked for."""
    monkeypatch.setattr(sys.modules["neurotwin.transfer.transfer"], "fit_session", None)
    for twin in (trained, Ensemble([trained, trained])):
        with pytest.raises(ConfigError, match=r"--tune modulator: the model has no modulator.*use one of core, all"):
            transfer(twin, [new[0]], tune_part="modulator")
    with pytest.raises(ConfigError, match="no such part"):
        transfer(trained, [new[0]], tune_part="readout")


def test_tuning_keeps_what_validation_likes_best(trained, new):
    fitted = transfer(trained, [new[0]], options=QUICK)
    before = {name: tensor.clone() for name, tensor in fitted.twin.state_dict().items()}
    tune(fitted.twin, [prepare_session(new[0])], "all", learning_rate=10.0, rounds=1)  # every step does harm
    assert all(torch.equal(tensor, before[name]) for name, tensor in fitted.twin.state_dict().items())
    assert transfer(trained, [new[0]], options=QUICK, n_trials=4, tune_part="core").seconds["tune"] > 0


def test_trials_that_choose_do_not_judge(new):
    choosing, judging = (set(half.trial[half.split == 1]) for half in _halves(prepare_session(new[0])))
    whole = prepare_session(new[0])
    assert not choosing & judging and choosing | judging == set(whole.trial[whole.split == 1])


def test_every_member_of_an_ensemble_is_fitted(trained, result, new, tmp_path):
    found = transfer(Ensemble([trained, deepcopy(trained)]), [new[0]], options=QUICK)
    assert isinstance(found.twin, Ensemble) and len(found.twin.members) == 2
    assert list(found.reports) == ["cat_1, member 1", "cat_1, member 2"]
    loaded = load_twin(found.twin.save(tmp_path / "both.safetensors"))
    alone = result[0].twin.predict("cat_1").rates  # two equal members are as one
    np.testing.assert_allclose(loaded.predict("cat_1").rates, alone, rtol=1e-5)
    with pytest.raises(ConfigError, match="several cores"):
        learning_curve(Ensemble([trained, trained]), new[0])


def test_an_ensemble_gains_and_loses_sessions_member_by_member(trained, new):
    other = deepcopy(trained)
    with torch.no_grad():
        other.per_session[1].readout.features.mul_(2)
    both = Ensemble([trained, other], ["one", "two"]).eval()
    grown = both.add_session(prepare_session(new[0]).spec)
    assert [spec.name for spec in grown.sessions] == ["ada_1", "bea_1", "cat_1"] and grown.names == ("one", "two")
    back = grown.without(["cat_1", "ada_1"])
    assert isinstance(back, Ensemble) and [spec.name for spec in back.sessions] == ["bea_1"] and not back.training
    clip = Clip(1, 4, torch.randint(0, 256, (2, 1, N_LAGS + 3, 6, 7), dtype=torch.uint8))
    with torch.no_grad():
        torch.testing.assert_close(grown([clip])[0], both([clip])[0])
        torch.testing.assert_close(back([replace(clip, session=0)])[0], both([clip])[0])
    assert len(both.sessions) == len(trained.sessions) == 2
    with pytest.raises(ValueError, match="no session"):
        both.without(["dan_1"])


@pytest.mark.parametrize(
    "readout",
    [
        {"type": "gaussian", "params": {"rank": 2}},
        {"type": "gaussianei"},
        {"type": "point"},
        {"type": "linear"},
        {"type": "pixels"},
        {"type": "factorized"},
        {"type": "attention"},
    ],
    ids=lambda readout: "".join([readout["type"], *readout.get("params", {})]),
)
def test_every_readout_beats_a_constant(trained, new, readout):
    prepared = prepare_session(new[0])
    twin = TwinModel(ModelConfig.model_validate(MODEL | {"readout": readout}), [replace(prepared.spec, name="old")])
    for part in CORE_PARTS:
        getattr(twin, part).load_state_dict(getattr(trained, part).state_dict())
    found = transfer(twin, [new[0]], options=FitOptions(penalties=(100.0, 10.0, 1.0), iterations=25, refinements=5))
    fitted = found.twin.per_session[0]
    bank = feature_bank(found.twin, prepared, 0, Path(new[0].path).parent / readout["type"])
    constant = deepcopy(fitted)
    constant.initialise(bank.part("train").statistics())
    with torch.no_grad():
        constant.readout.features.zero_()
    of_fitted, of_constant = (
        score_bank(module, bank.part("val")).evidence().sums["log_likelihood"].sum() for module in (fitted, constant)
    )
    assert np.isfinite([loss for _, loss in found.reports["cat_1"].path]).all()
    # Units look at places, which the mean over the map hardly shows.
    assert of_fitted > of_constant + (-1 if readout["type"] == "linear" else 1)


def test_fewer_trials(new):
    prepared = prepare_session(new[0])
    part = fewer(prepared, n_trials=5, seed=1)
    train = prepared.split == 0
    assert len(np.unique(prepared.trial[part.split == 0])) == 5
    assert set(prepared.trial[part.split == 0]) <= set(prepared.trial[train])
    n_val = len(np.unique(prepared.trial[prepared.split == 1]))
    n_train = len(np.unique(prepared.trial[train]))
    assert len(np.unique(prepared.trial[part.split == 1])) == max(2, round(n_val * 5 / n_train))
    minutes = fewer(prepared, minutes=100 / 60 / 60, seed=1)  # 100 bins: three trials of 40
    assert (minutes.split == 0).sum() == 120
    with pytest.raises(ConfigError, match="training trials"):
        fewer(prepared, n_trials=1000)
    with pytest.raises(ConfigError, match="--minutes"):
        fewer(prepared, minutes=1e3)


def test_a_session_that_cannot_choose_a_penalty_is_refused_before_it_is_fitted(trained, new, monkeypatch):
    """Without validation bins every penalty is as good, and the strongest would win without a word."""
    monkeypatch.setattr(sys.modules["neurotwin.transfer.transfer"], "fit_session", None)
    with pytest.raises(SessionError, match="no validation part"):
        transfer(trained, [new[0].model_copy(update={"train_val_split": 1.0})])


def test_a_curve_needs_two_validation_trials_and_fits_no_amount_twice(trained, new, monkeypatch):
    n_trials = len(np.unique(prepare_session(new[0]).trial))
    few = new[0].model_copy(update={"train_val_split": 1 - 1 / n_trials})
    with pytest.raises(SessionError, match="two validation trials"):
        learning_curve(trained, few)
    monkeypatch.setattr("neurotwin.transfer.curve.fit_session", lambda *_: None)
    found = learning_curve(trained, new[0], fractions=(0.001, 0.002, 0.01, 1.0), n_seeds=2)
    assert found.n_trials.tolist()[:2] == [2, 2] and (found.n_trials > 2).sum() == 1


def test_a_file_of_features_that_was_altered_is_refused(trained, new, tmp_path):
    prepared = prepare_session(new[0])
    joined = trained.add_session(prepared.spec)
    rows = np.array(feature_bank(joined, prepared, len(trained.sessions), tmp_path).features)
    (path,) = tmp_path.iterdir()  # what it was sorted in is gone
    content = path.read_bytes()
    flipped = content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]
    for damaged in (flipped, content[:-4], content[:500]):
        path.unlink()  # it may be mapped
        path.write_bytes(damaged)
        with pytest.raises(SessionError, match=r"delete .*\.features\.safetensors, it will be computed again"):
            feature_bank(joined, prepared, len(trained.sessions), tmp_path)
    path.unlink()
    save_arrays(path, {"features": rows[:-3]}, {})
    with pytest.raises(SessionError, match="rows for"):
        feature_bank(joined, prepared, len(trained.sessions), tmp_path)
    path.unlink()
    np.testing.assert_array_equal(feature_bank(joined, prepared, 2, tmp_path).features, rows)


def test_features_too_large_for_half_precision_are_kept_whole(trained, new, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    prepared = prepare_session(new[0])
    joined = trained.add_session(prepared.spec)
    whole = feature_bank(joined, prepared, 2, tmp_path / "whole").features
    monkeypatch.setattr("neurotwin.transfer.features._HALF", 0)
    half = feature_bank(joined, prepared, 2, tmp_path / "half").features
    assert (whole.dtype, half.dtype) == (np.float32, np.float16)
    np.testing.assert_allclose(half, whole, rtol=1e-3, atol=1e-6)
    with torch.no_grad():
        norm = joined.convnet.get_parameter(next(n for n, _ in joined.convnet.named_parameters() if "norm" in n))
        norm.mul_(1e5)
    large = feature_bank(joined, prepared, 2, tmp_path / "large").features
    assert large.dtype == np.float32 and large.max() > 6e4 and np.isfinite(large).all()
    assert "too large for float16" in caplog.text and len(list((tmp_path / "large").iterdir())) == 1


def test_losses_that_are_no_numbers_name_the_session(trained, new, tmp_path):
    joined = trained.add_session(prepare_session(new[0]).spec)
    bank = feature_bank(joined, prepare_session(new[0]), 2, tmp_path)
    with pytest.raises(SessionError, match="session cat_1: no fit has a finite loss"):
        endless = np.where(bank.prepared.split[:, None] == 1, np.inf, bank.prepared.responses)
        fit_session(joined, 2, replace(bank, prepared=replace(bank.prepared, responses=endless)), QUICK)
    with torch.no_grad():
        next(joined.convnet.parameters()).fill_(torch.nan)
    with pytest.raises(SessionError, match="session cat_1: the core gives features that are not finite"):
        feature_bank(joined, prepare_session(new[0]), 2, tmp_path)


def test_refusals(trained, new):
    spec = prepare_session(new[0]).spec
    changed = {
        "sampling": {"bin_rate": 30.0},
        "adapter": {"frame_shape": (1, 5, 7)},
        "a session of this name": {"name": "ada_1"},
        "scale the stimulus": {"stimulus_range": (0.0, 2.0)},
    }
    for text, change in changed.items():
        with pytest.raises(ConfigError, match=text):
            check_new(trained, replace(spec, **change))
    for outside in ((0.0, 2550.0), (600.0, 800.0)):
        with pytest.raises(ConfigError, match="scale the stimulus"):
            check_new(trained, replace(spec, stimulus_range=outside))
    known = trained.sessions
    try:
        trained.sessions = tuple(replace(old, pixels_per_degree=20.0) for old in known)
        with pytest.raises(ConfigError, match="pixels per degree"):
            check_new(trained, replace(spec, pixels_per_degree=30.0))
        check_new(trained, replace(spec, pixels_per_degree=20.2))
    finally:
        trained.sessions = known
    with pytest.raises(ConfigError, match="--add"):
        transfer(trained, [new[0]], add=True, tune_part="core")
    with pytest.raises(ConfigError, match="no such file"):
        open_new(trained, "nowhere.yaml")
    with pytest.raises(ConfigError, match="no new session"):
        transfer(trained, [])
    with pytest.raises(ConfigError, match="no figure 'corelation'; did you mean 'correlation'"):
        learning_curve(trained, new[0], metric="corelation")


def test_a_recording_alone_takes_the_settings_of_the_checkpoint(trained, folder):
    record(folder, "bea_2", 7, bin_rate=120.0)
    (config,) = open_new(trained, folder / "bea_2.safetensors")
    assert config.session == "bea_2" and config.subject == "bea"
    assert config.sampling.factor == 2 and config.keys_lags == trained.sessions[1].config.keys_lags


def test_the_curve_grows_and_saturates(trained, new, tmp_path):
    curve = learning_curve(trained, new[0], fractions=(0.1, 0.4, 1.0), n_seeds=2, options=QUICK)
    assert list(curve.n_trials) == [2, 2, 8, 8, 21] and curve.minutes[-1] == pytest.approx(21 * 40 / 60 / 60)
    assert curve.score[-1] > curve.score[:2].mean()
    curve.write(tmp_path / "c.csv")
    curve.plot(tmp_path / "c.png")
    lines = (tmp_path / "c.csv").read_text().splitlines()
    assert len(lines) == 6 and lines[0] == "session,n_trials,minutes,seed,correlation"
    assert (tmp_path / "c.png").read_bytes()[:4] == b"\x89PNG"


def test_saturation_covers_the_truth():
    rng = np.random.default_rng(0)
    minutes = np.repeat([1.0, 2.0, 5.0, 10.0, 20.0], 3)
    inside = 0
    for seed in range(20):
        fitted = saturation(minutes, 0.6 * minutes / (minutes + 3) + rng.normal(0, 0.01, 15), seed=seed)
        inside += fitted.double_range[0] < 0.6 * 40 / 43 < fitted.double_range[1]
    assert inside >= 13
    assert saturation(minutes[:3], minutes[:3]) is None
    assert saturation(minutes, -minutes) is None


def test_the_command(trained, new, folder, tmp_path, handlers, capsys):
    twin = trained.save(tmp_path / "core.safetensors")
    arguments = [
        "transfer",
        str(twin),
        str(folder / "cat_1.yaml"),
        "--output",
        str(tmp_path / "out"),
        "--n_trials",
        "4",
    ]
    assert main(arguments) == 0
    assert "cat_1" in capsys.readouterr().out
    loaded = load_twin(tmp_path / "out" / "twin.safetensors")
    assert [s.name for s in loaded.sessions] == ["cat_1"]
    table = Table.read(tmp_path / "out" / "units.csv")
    assert main(["evaluate", str(tmp_path / "out" / "twin.safetensors")]) == 0
    again = Table.read(tmp_path / "out" / "twin.val.csv")
    np.testing.assert_array_equal(table["correlation"], again["correlation"])
    assert main([*arguments, "--add", "--tune", "all"]) == 2
    assert "leave out --tune all" in capsys.readouterr().err
