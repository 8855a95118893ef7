"""The model and the data module in training: the loss, who is stepped, what a run is, on one process or several."""

import copy
import math
import shutil
import traceback
from contextlib import ExitStack
from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from neurotwin.analysis.evaluate import evaluate
from neurotwin.config import ConfigError, DatasetConfig, ModelConfig
from neurotwin.data.session import Session
from neurotwin.metrics.table import summarize_table
from neurotwin.models import TwinModel, load_twin
from training import MultiDatasetDM, MultiDatasetModel
from training.callbacks import CurriculumCallback, EpochHeartbeat
from training.checkpoints import SafeCheckpoint
from training.pl_modules import ClipLoader, multidataset_model
from training.processes import GradientSumStrategy
from training.samplers import ClipSampler

N_LAGS = 5


def make_configs(folder, *, n_sessions=3, seed=0, exposure=False, scale=1):
    """Sessions of unequal size whose units follow a local pixel and the behaviour."""
    configs = []
    for index in range(n_sessions):
        rng = np.random.default_rng([seed, index])
        n_bins, n_units = scale * (240 + 120 * index), 2 + index
        movie = rng.integers(0, 256, (n_bins, 6, 6), dtype=np.uint8)
        behavior = rng.normal(size=(n_bins, 2)).astype(np.float32)
        drive = movie[:, 2:4, 2:4].mean((1, 2))[:, None] / 128 + np.roll(behavior[:, :1], 1, 0) * 0.2
        counts = rng.poisson(0.3 + 0.5 * np.maximum(drive, 0) * rng.random(n_units)).astype(np.uint8)
        session = Session(
            name=f"s{index}_x", stimulus=movie, responses=counts, bin_rate=60.0, behavior={"run": behavior},
            trial=np.arange(n_bins) // 40, valid=rng.random(n_bins) > 0.03,
            exposure=rng.integers(1, 4, n_bins) if exposure else None, true_rate=np.full(counts.shape, 0.5),
        )  # fmt: skip
        path = session.save(folder / f"{session.name}.safetensors")
        configs.append(
            DatasetConfig.model_validate(
                {
                    "session": session.name,
                    "path": str(path),
                    "keys_lags": {"stim": list(range(N_LAGS))},
                    "transforms": {
                        "stim": {"source": "stim", "ops": ["pixelnorm"]},
                        "run": {"source": "run", "expose_as": "behavior"},
                    },
                    "train_val_split": 0.7,
                }
            )
        )
    return configs


MODEL = {
    "frontend": {"type": "learnable_temporal", "params": {"kernel_size": 3, "num_channels": 2}},
    "convnet": {
        "type": "vanilla",
        "params": {
            "channels": [4],
            "block_configs": [{"conv_params": {"kernel_size": [2, 3, 3]}, "norm_type": "batch", "act_type": "silu"}],
        },
    },
    "modulator": {"type": "concat", "params": {"encoder_params": {"dims": [4, 3]}}},
    "readout": {"type": "gaussian"},
    "regularization": [
        {"name": "sparse", "type": "l1", "lambda": 1e-3, "apply_to": ["readouts/features"]},
        {"name": "prox", "type": "proximal_l1", "lambda": 1e-4, "apply_to": ["frontend/weight"]},
    ],
}


def make_model(data, *, config=None, **settings):
    config = ModelConfig.model_validate(config or MODEL)
    return MultiDatasetModel(config, data.specs, statistics=data.statistics(), **{"learning_rate": 1e-2} | settings)


def make_trainer(folder=None, **options):
    callbacks = options.pop("callbacks", [])
    if folder is not None:
        callbacks = [SafeCheckpoint(folder), *callbacks]
    saves = any(isinstance(callback, SafeCheckpoint) for callback in callbacks)
    defaults = {
        "accelerator": "cpu", "max_epochs": 2, "logger": False, "enable_checkpointing": saves,
        "enable_progress_bar": False, "enable_model_summary": False, "use_distributed_sampler": False,
        "num_sanity_val_steps": 0, "gradient_clip_val": 1.0, "callbacks": callbacks,
    }  # fmt: skip
    return pl.Trainer(**defaults | options)


def make_data(configs, **settings):
    return MultiDatasetDM(configs, **{"batch_size": 64, "clip_len": 8, "steps_per_epoch": 6} | settings)


def train(configs, *, devices=1, batch_size=64, model=None, folder=None, settings=None, precision=64, **data):
    """Train, in float64 unless told otherwise; return the weights and the metrics."""
    data = make_data(configs, batch_size=batch_size, **data)
    module = make_model(data, config=model, **settings or {})
    strategy = GradientSumStrategy(start_method="spawn") if devices > 1 else "auto"
    trainer = make_trainer(folder, devices=devices, strategy=strategy, precision=f"{precision}-true")
    trainer.fit(module, data)
    metrics = {name: value.item() for name, value in trainer.callback_metrics.items()}
    return {name: value.double() for name, value in module.twin.state_dict().items()}, metrics


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    return make_configs(tmp_path_factory.mktemp("sessions"))


def clips_of(batch):
    return [sample.clip for sample in batch.samples]


def assert_same(a, b, tolerance):
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


def test_the_loss_is_the_mean_over_valid_counts_of_the_step(configs):
    data = make_data(configs)
    module = make_model(data)
    loader = ClipLoader(data.table, ClipSampler(len(data.table), batch_size=8, steps_per_epoch=6, seed=0), context=4)
    batch = loader.batch(3)
    total, count = 0.0, 0
    for sample, rates in zip(batch.samples, module(clips_of(batch)), strict=True):
        target = sample.target
        for rate, y, valid in zip(rates.flatten(), target.responses.flatten(), target.mask.flatten(), strict=True):
            if valid:
                total, count = total + rate.item() - y.item() * math.log(rate.item()), count + 1
    module.trainer = make_trainer()
    loss = module.training_step(batch, 1) - module.regularizers.penalty(0, active=batch.sessions)[0]
    assert count == batch.count
    assert loss.item() == pytest.approx(total / count, rel=1e-5)


def test_the_count_is_that_of_all_processes_and_micro_batches(configs):
    data = make_data(configs)

    def count(world_size, accumulate, batch_size):
        batches = []
        for rank in range(world_size):
            sampler = ClipSampler(
                len(data.table), batch_size=batch_size, steps_per_epoch=6, seed=0, rank=rank, world_size=world_size
            )
            loader = ClipLoader(data.table, sampler, context=4, accumulate=accumulate)
            batches += [loader.batch(step) for step in range(accumulate)]
        own = sum(int(sample.target.mask.sum()) for batch in batches for sample in batch.samples)
        assert {batch.count for batch in batches} == {own}
        assert len({batch.sessions for batch in batches}) == 1
        return own

    assert count(1, 1, 12) == count(2, 1, 6) == count(1, 2, 6) == count(3, 2, 2)


def test_a_session_goes_to_as_few_processes_as_can_be(configs):
    data = make_data(configs)
    settings = {"n_clips": len(data.table), "batch_size": 4, "steps_per_epoch": 6, "seed": 0, "world_size": 2}
    samplers = [ClipSampler(**settings, rank=rank) for rank in (0, 1)]
    for step in range(6):
        parts = [ClipLoader(data.table, sampler, context=4).batch(step).samples for sampler in samplers]
        rows = samplers[0].global_indices(step)
        expected = zip(
            data.table.locate().session[rows].tolist(), data.table.locate().start[rows].tolist(), strict=True
        )
        assert sorted((b.session, first) for own in parts for b in own for first in b.clip.bins.tolist()) == sorted(
            expected
        )
        first, second = ({b.session for b in own} for own in parts)
        assert max(first) <= min(second)


def test_accumulated_micro_batches_equal_one_batch(configs):
    """Without batch statistics, which differ by micro-batch."""
    model = copy.deepcopy(MODEL)
    model["convnet"]["params"]["block_configs"][0]["norm_type"] = "rms"
    whole, _ = train(configs, batch_size=64, model=model)
    data = make_data(configs, batch_size=32, steps_per_epoch=12, accumulate=2)
    module = make_model(data, config=model)
    make_trainer(precision="64-true", accumulate_grad_batches=2).fit(module, data)
    assert_same(whole, {n: v.double() for n, v in module.twin.state_dict().items()}, 1e-9)


def test_two_processes_train_like_one(configs, tmp_path):
    """Same global batch, batch norm, penalties, and sessions that a process does not see in a step."""
    one, metrics_one = train(configs, batch_size=32, curriculum_steps=8, balance="session")
    two, metrics_two = train(configs, batch_size=16, devices=2, curriculum_steps=8, balance="session")
    # Adam divides rounding by small gradients: what batch norm cancels differs in the eighth digit.
    assert_same(one, two, 1e-6)
    for name in ("train_loss", "val_loss", "val_bps", "val_bps/s2_x"):
        assert metrics_two[name] == pytest.approx(metrics_one[name], rel=1e-6), name


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "devices", "tolerance"), [(64, 4, 1e-6), (32, 2, 1e-3)])
def test_more_processes_train_like_one(configs, precision, devices, tolerance):
    """With the curriculum and balance; four processes of one clip each see one session each."""
    settings = {"curriculum_steps": 8, "balance": "session", "precision": precision}
    one, metrics_one = train(configs, batch_size=32, **settings)
    more, metrics_more = train(configs, batch_size=32 // devices, devices=devices, **settings)
    assert_same(one, more, tolerance)
    for name in ("train_loss", "val_loss", "val_bps", "val_bps/s2_x"):
        assert metrics_more[name] == pytest.approx(metrics_one[name], rel=tolerance), name


def test_validation_and_evaluation_give_the_same_figures(configs, tmp_path):
    data = make_data(configs)
    module = make_model(data)
    trainer = make_trainer(tmp_path)
    trainer.fit(module, data)
    table = evaluate(load_twin(tmp_path / "last.ckpt"), data.sessions, "val")
    summary = summarize_table(table)[-1]
    assert trainer.callback_metrics["val_bps"].item() == pytest.approx(summary.mean, rel=1e-6)
    nll = np.nansum(table["nll"] * table["bins"]) / table["bins"].sum()
    assert trainer.callback_metrics["val_loss"].item() == pytest.approx(nll, rel=1e-6)


def test_only_readouts_of_sessions_in_the_step_change(configs):
    data = make_data(configs, batch_size=8, steps_per_epoch=1)
    module = make_model(data)
    before = {name: value.clone() for name, value in module.twin.state_dict().items()}
    make_trainer(max_epochs=1).fit(module, data)
    in_step = set(data.train_dataloader().batch(0).sessions)
    changed = {
        int(name.split(".")[1])
        for name, value in module.twin.state_dict().items()
        if name.startswith("per_session") and not torch.equal(value, before[name])
    }
    assert len(in_step) == 1 and changed == in_step


def test_a_process_without_a_clip_leaves_sessions_that_are_not_in_the_step_alone(configs):
    """A gradient of zeros would let the optimizer move them, on this process and on no other."""
    data = make_data(configs, batch_size=8, steps_per_epoch=1)
    module = make_model(data, config={key: value for key, value in MODEL.items() if key != "regularization"})
    batch = replace(data.train_dataloader().batch(0), samples=())
    module.trainer = make_trainer()
    module._step_sessions = set(batch.sessions)
    module.training_step(batch, 1).backward()
    reached = {name for name, p in module.twin.named_parameters() if p.grad is not None}
    assert {int(name.split(".")[1]) for name in reached if name.startswith("per_session")} == set(batch.sessions)


def test_every_parameter_is_in_one_group_and_decay_is_for_weights(configs):
    model = copy.deepcopy(MODEL) | {"recurrent": {"type": "convgru", "params": {"hidden_dim": 3}}}
    model["regularization"] = [{"name": "w", "type": "l2", "lambda": 1.0, "apply_to": ["convnet/weight"]}]
    data = make_data(configs, steps_per_epoch=1)
    module = make_model(data, config=model, core_lr_scale=0.1, weight_decay=0.5)
    make_trainer(max_epochs=1).fit(module, data)
    groups = {group["name"]: group for group in module.optimizers().param_groups}
    names = {id(p): n for n, p in module.twin.named_parameters()}
    members = {key: {names[id(p)] for p in group["params"]} for key, group in groups.items()}
    assert sorted(sum(map(sorted, members.values()), [])) == sorted(names.values())  # noqa: RUF017
    assert all(n.startswith("per_session") for k in members if k.startswith("session") for n in members[k])
    assert any("recurrent" in n for n in members["core/decay"])
    decaying = members["core/decay"] | members["session/decay"]
    assert not any(n.endswith(("bias", "mean", "std", "theta")) or "norm" in n for n in decaying)
    assert "convnet.blocks.0.conv.weight" in members["core/no_decay"]
    assert groups["core/decay"]["lr"] == pytest.approx(1e-3) and groups["session/decay"]["lr"] == pytest.approx(1e-2)
    assert groups["core/decay"]["weight_decay"] == 0.5 and groups["core/no_decay"]["weight_decay"] == 0


def test_training_starts_at_the_mean_training_rates(configs):
    data = make_data(configs)
    module = make_model(data)
    with torch.no_grad():
        for part, known in zip(module.twin.per_session, data.statistics(), strict=True):
            torch.testing.assert_close(F.softplus(part.readout.bias), known.mean.float(), rtol=1e-5, atol=1e-6)


def test_resuming_within_an_epoch_ends_with_the_same_bits(configs, tmp_path):
    whole = make_data(configs, curriculum_steps=9)
    model = make_model(whole, lr_scheduler="cosine_warmup", warmup_epochs=1)
    make_trainer(tmp_path / "whole").fit(model, whole)

    class Killed(BaseException):
        pass

    class KillAt(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if trainer.global_step == 9:
                raise Killed

    data = make_data(configs, curriculum_steps=9)
    killed = make_model(data, lr_scheduler="cosine_warmup", warmup_epochs=1)
    checkpoints = SafeCheckpoint(tmp_path / "killed", every_n_steps=2)
    with pytest.raises(Killed):
        make_trainer(callbacks=[checkpoints, KillAt()]).fit(killed, data)
    data = make_data(configs, curriculum_steps=9)
    resumed = make_model(data, lr_scheduler="cosine_warmup", warmup_epochs=1, seed=5)
    checkpoints = SafeCheckpoint(tmp_path / "killed", every_n_steps=2)
    make_trainer(callbacks=[checkpoints]).fit(resumed, data, ckpt_path=tmp_path / "killed" / "last.ckpt")
    a, b = (torch.load(tmp_path / run / "last.ckpt", weights_only=True) for run in ("whole", "killed"))
    assert all(torch.equal(a["state_dict"][key], b["state_dict"][key]) for key in a["state_dict"])
    for (_, x), (_, y) in zip(
        a["optimizer_states"][0]["state"].items(), b["optimizer_states"][0]["state"].items(), strict=True
    ):
        assert all(torch.equal(x[key], y[key]) for key in x)
    assert a["lr_schedulers"] == b["lr_schedulers"] and a["MultiDatasetDM"] == b["MultiDatasetDM"]


def test_a_checkpoint_stands_alone(configs, tmp_path):
    data = make_data(configs)
    module = make_model(data)
    make_trainer(tmp_path).fit(module, data)
    twin = load_twin(tmp_path / "last.ckpt")
    assert isinstance(twin, TwinModel)
    assert [spec.name for spec in twin.sessions] == ["s0_x", "s1_x", "s2_x"]
    assert twin.sessions[1].unit_ids == (0, 1, 2)
    session = Session.load(configs[1].path)
    rates = twin.predict(np.asarray(session.stimulus), dict(session.behavior), session="s1_x", bin_rate=60.0)
    prepared = data.sessions[1]
    table = evaluate(twin, [prepared], "val")
    bins = np.flatnonzero((prepared.split == 1) & prepared.mask.all(axis=1))
    expected = rates[bins].astype(float)
    y = prepared.responses[bins].astype(float)
    own = prepared.mask[(prepared.split == 1)].all(axis=1).sum()
    assert own == table["bins"][0]
    np.testing.assert_allclose((expected - y * np.log(expected)).mean(axis=0), table["nll"], rtol=1e-4)


def test_pretrained_core_is_loaded_and_frozen(configs, tmp_path):
    data = make_data(configs[:2])
    first = make_model(data)
    make_trainer(tmp_path).fit(first, data)
    trained = load_twin(tmp_path / "last.ckpt").state_dict()
    data = make_data(configs[1:])
    module = make_model(data, pretrained_checkpoint=tmp_path / "last.ckpt", freeze_vision=True, seed=9)
    state = module.twin.state_dict()
    assert torch.equal(state["convnet.blocks.0.conv.weight"], trained["convnet.blocks.0.conv.weight"])
    assert torch.equal(
        state["per_session.0.readout.features"], trained["per_session.1.readout.features"]
    )  # by name, not by position
    assert state["per_session.1.readout.features"].shape == (4, 7)
    make_trainer(max_epochs=1).fit(module, data)
    after = module.twin.state_dict()
    assert torch.equal(after["convnet.blocks.0.conv.weight"], trained["convnet.blocks.0.conv.weight"])
    assert not torch.equal(after["per_session.0.readout.features"], trained["per_session.1.readout.features"])
    with pytest.raises(ConfigError, match="random weights"):
        make_model(data, freeze_vision=True)
    other = copy.deepcopy(MODEL)
    other["convnet"]["params"]["channels"] = [5]
    with pytest.raises(ConfigError, match="does not fit"):
        make_model(data, config=other, pretrained_checkpoint=tmp_path / "last.ckpt")


@pytest.mark.parametrize("freeze", ["freeze_vision", "freeze_core"])
def test_what_is_frozen_keeps_weights_and_running_statistics(configs, tmp_path, freeze):
    """Over epochs with validation, with dropout and a proximal term on a frozen kernel; everything else learns."""
    config = copy.deepcopy(MODEL) | {"recurrent": {"type": "convgru", "params": {"hidden_dim": 3}}}
    config["convnet"]["params"]["block_configs"][0]["dropout"] = 0.3
    data = make_data(configs[:2], steps_per_epoch=3)
    make_trainer(tmp_path, max_epochs=1).fit(make_model(data, config=config), data)
    data = make_data(configs[:2], steps_per_epoch=3)
    module = make_model(data, config=config, pretrained_checkpoint=tmp_path / "last.ckpt", seed=9, **{freeze: True})
    before = {name: value.clone() for name, value in module.twin.state_dict().items()}
    make_trainer(max_epochs=2, check_val_every_n_epoch=1).fit(module, data)
    shared = ("frontend", "convnet") if freeze == "freeze_vision" else ("frontend", "convnet", "modulator", "recurrent")
    after = module.twin.state_dict()
    same = {name for name, value in after.items() if torch.equal(value, before[name])}
    assert {name for name in after if name.startswith(shared)} <= same
    assert "convnet.blocks.0.norm.running_mean" in same
    learning = {name for name, p in module.twin.named_parameters() if not name.startswith(shared)}
    assert learning and not learning & same
    groups = {group["name"].split("/")[0] for group in module.optimizers().param_groups}
    assert groups == ({"core", "session"} if freeze == "freeze_vision" else {"session"})
    known = load_twin(tmp_path / "last.ckpt").state_dict()
    assert all(torch.equal(before[name], value) for name, value in known.items())


def test_exposure_scales_the_expected_count(tmp_path):
    data = make_data(make_configs(tmp_path, n_sessions=1, exposure=True))
    module = make_model(data)
    batch = data.train_dataloader().batch(0)
    (rates,), target = module(clips_of(batch)), batch.samples[0].target
    expected = rates * target.exposure
    nll = (expected - target.responses * expected.log())[target.mask].sum() / batch.count
    module.trainer = make_trainer()
    loss = module.training_step(batch, 1) - module.regularizers.penalty(0, active=batch.sessions)[0]
    assert loss.item() == pytest.approx(nll.item(), rel=1e-5)
    assert target.exposure.unique().numel() == 3


def test_clips_train_like_windows(configs):
    """Same predictions in a step, as one clip of 8 bins or as 8 windows: the same gradient."""
    model = copy.deepcopy(MODEL)
    model["convnet"]["params"]["block_configs"][0]["norm_type"] = "grn"
    data = make_data(configs[:1])
    module = make_model(data, config=model).double()
    clips, windows = data.table, make_data(configs[:1], clip_len=1).table
    rows = np.array([2, 5])
    bins = np.concatenate([np.arange(start, stop) for _, start, stop in zip(*clips.locate(rows), strict=True)])
    gradients = []
    for table, chosen in ((clips, rows), (windows, np.flatnonzero(np.isin(windows.locate().start, bins)))):
        module.zero_grad()
        (sample,) = table.samples(chosen, context=4)
        (rates,), target = module([sample.clip]), sample.target
        (rates - target.responses * rates.log())[target.mask].sum().backward()
        gradients.append({name: p.grad.clone() for name, p in module.twin.named_parameters() if p.grad is not None})
    assert_same(*gradients, 1e-9)


def test_threads_give_the_same_batches_in_order_and_pass_errors_on(configs):
    data = make_data(configs)
    batches = []
    for threads in (0, 1, 3):
        sampler = ClipSampler(len(data.table), batch_size=4, steps_per_epoch=7, seed=0)
        loader = ClipLoader(data.table, sampler, context=4, threads=threads)
        batches.append([[sample.clip.bins.tolist() for sample in batch.samples] for batch in loader])
        assert sampler.step == 7
    assert batches[0] == batches[1] == batches[2]
    loader.batch = lambda step: 1 / 0
    with pytest.raises(ZeroDivisionError):
        list(loader)


def test_settings_that_cannot_be_are_refused(configs):
    for setting in ({"batch_size": 0}, {"clip_len": 0}, {"steps_per_epoch": 0}, {"balance": "unit"}):
        with pytest.raises(ValueError, match=next(iter(setting))):
            make_data(configs, **setting)


def test_bfloat16_trains_like_float32(configs):
    """As a GPU does; a processor too, where --precision bf16-mixed is given. Scores agree to 0.001 bits per spike."""
    curves, scores = [], []
    for precision in ("32-true", "bf16-mixed"):
        data = make_data(configs)
        module = make_model(data)
        trainer = make_trainer(precision=precision)
        trainer.fit(module, data)
        assert all(p.dtype == torch.float32 for p in module.twin.parameters())
        curves.append([trainer.callback_metrics[name].item() for name in ("train_loss", "val_loss")])
        scores.append([value.item() for name, value in trainer.callback_metrics.items() if name.startswith("val_bps")])
    assert curves[1] == pytest.approx(curves[0], rel=2e-2)
    assert curves[1] != curves[0]
    assert scores[1] == pytest.approx(scores[0], abs=1e-3) and len(scores[0]) == 1 + len(configs)


def test_stimuli_on_the_device_change_nothing(configs):
    expected, metrics = train(configs)
    found, others = train(configs, on_device=True)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    assert others == metrics


class HostReads(TorchDispatchMode):
    """Collects the operations whose result Python waits for, but for the step counters that AdamW keeps on the host."""

    def __init__(self, optimizer_of):
        super().__init__()
        self.optimizer_of, self.found = optimizer_of, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        waits = torch.Tag.data_dependent_output in function.tags or torch.Tag.dynamic_output_shape in function.tags
        if waits and not any(args[0] is state["step"] for state in self.optimizer_of().state.values()):
            self.found.append(f"{function} in {''.join(traceback.format_stack(limit=4)[:-1])}")
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("readout", ["gaussian", "point"])
def test_a_step_does_not_wait_for_the_device(configs, readout, monkeypatch):
    """Nothing that a step computes is read by the host, but for whether it went well, one step later."""

    class Watch(pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            self.reads, self.inside = HostReads(lambda: trainer.optimizers[0]), ExitStack()
            self.inside.enter_context(self.reads)
            for name in ("cpu", "tolist"):
                self.inside.enter_context(mock.patch.object(torch.Tensor, name, None))

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            self.inside.close()
            assert not self.reads.found, self.reads.found[0]

    data = make_data(configs, curriculum_steps=6, on_device=True)
    config = ModelConfig.model_validate(MODEL | {"readout": {"type": readout}})
    module = MultiDatasetModel(
        config, data.specs, statistics=data.statistics(), lr_scheduler="cosine_warmup", warmup_epochs=1
    )
    monkeypatch.setattr(multidataset_model, "Late", lambda values: SimpleNamespace(read=lambda: (0.0, 0.0)))
    callbacks = [Watch(), CurriculumCallback(), EpochHeartbeat()]
    make_trainer(callbacks=callbacks, accumulate_grad_batches=2, limit_val_batches=0).fit(module, data)


@pytest.mark.parametrize("recurrent", [False, True])
def test_the_core_is_compiled_where_that_helps(recurrent, configs, monkeypatch, caplog):
    monkeypatch.setattr(torch, "compile", lambda function: ("compiled", function))
    config = MODEL | ({"recurrent": {"type": "convgru", "params": {"hidden_dim": 2}}} if recurrent else {})
    module = make_model(make_data(configs), config=config, compile=True)
    module.on_fit_start()
    assert module.twin.core[0] == "compiled" if recurrent else "not compiled" in caplog.text


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's own
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs a C++ compiler")
def test_a_compiled_core_computes_the_same(configs):
    config = MODEL | {"recurrent": {"type": "convgru", "params": {"hidden_dim": 2}}}
    settings = {"steps_per_epoch": 2, "clip_len": 2}
    plain, _ = train(configs, model=config, **settings)
    compiled, _ = train(configs, model=config, settings={"compile": True}, **settings)
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-6, atol=1e-9, msg=name)
