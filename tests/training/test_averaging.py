"""Averaged weights against the formula, where they are used, and through checkpoints."""

import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from neurotwin.analysis.evaluate import evaluate
from neurotwin.models import load_twin
from training.averaging import WeightAverage
from training.processes import GradientSumStrategy

sys.path.insert(0, str(Path(__file__).parent))
from test_multidataset import assert_same, make_configs, make_data, make_model, make_trainer
from test_reliability import NOISY, KillAt, Killed, assert_same_files, run


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    return make_configs(tmp_path_factory.mktemp("sessions"))


class Watch(pl.Callback):
    """The weights after every optimizer step, and those of every validation."""

    def __init__(self):
        self.steps, self.validated = [], []

    def on_train_batch_end(self, trainer, module, *_):
        if trainer.global_step > len(self.steps):
            self.steps.append({k: v.clone() for k, v in module.twin.state_dict().items()})

    def on_validation_batch_start(self, trainer, module, *_):
        self.validated.append({k: v.clone() for k, v in module.twin.state_dict().items()})


def average(start, weights, decay):
    """The definition, weight by weight in float64."""
    mean = {name: value.double() for name, value in start.items() if value.is_floating_point()}
    for n, now in enumerate(weights, 1):
        d = min(decay, n / (n + 9))
        mean = {name: d * value + (1 - d) * now[name].double() for name, value in mean.items()}
    return mean


@pytest.mark.parametrize("accumulate", [1, 4])
def test_it_is_the_average_of_all_steps_and_is_validated_and_loaded(configs, tmp_path, accumulate):
    data = make_data(configs, accumulate=accumulate)
    module, watch = make_model(data), Watch()
    start = {k: v.clone() for k, v in module.twin.state_dict().items()}
    callback = WeightAverage(0.7)
    trainer = make_trainer(tmp_path, callbacks=[watch, callback], max_epochs=4, accumulate_grad_batches=accumulate)
    trainer.fit(module, data)
    assert callback.updates == trainer.global_step == len(watch.steps) == {1: 24, 4: 8}[accumulate]
    expected = average(start, watch.steps, 0.7)
    running = [name for name in expected if name.endswith("running_mean")]
    assert running and all(not torch.equal(expected[name], start[name].double()) for name in running)
    twin = load_twin(tmp_path / "last.ckpt")
    loaded = {k: v.double() for k, v in twin.state_dict().items() if k in expected}
    assert_same(loaded, expected, 1e-5)
    assert_same({k: v.double() for k, v in watch.validated[-1].items() if k in expected}, loaded, 0)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    raw = module.twin.state_dict()
    assert all(torch.equal(saved[f"twin.{name}"], value) for name, value in raw.items())
    assert all(torch.equal(watch.steps[-1][name], value) for name, value in raw.items())  # validation left no trace
    assert any(not torch.equal(twin.state_dict()[name], value) for name, value in raw.items())
    table = evaluate(twin, data.sessions, "val")
    scores = [table["bps"][[name == spec.name for name in table["session"]]] for spec in data.specs]
    merit = sum(score.mean() for score in scores) / len(scores)
    assert trainer.callback_metrics["val_bps"].item() == pytest.approx(merit, abs=1e-5)


def test_training_is_the_same_with_and_without_it(configs):
    raw = []
    for callbacks in ([], [WeightAverage(0.9)]):
        data = make_data(configs)
        module = make_model(data)
        make_trainer(callbacks=callbacks).fit(module, data)
        raw.append(module.twin.state_dict())
    assert all(torch.equal(raw[0][name], raw[1][name]) for name in raw[0])


@pytest.mark.parametrize("kill", [{"step": 5}, {"epoch": 1}], ids=["in-an-epoch", "in-validation"])
def test_a_killed_run_ends_with_the_same_average(configs, tmp_path, kill):
    options = {"model": NOISY, "settings": {"lr_scheduler": "anneal", "warmup_epochs": 1}}
    run(tmp_path / "whole", configs, callbacks=[WeightAverage(0.8)], **options)
    with pytest.raises(Killed):
        run(tmp_path / "killed", configs, callbacks=[WeightAverage(0.8), KillAt(**kill)], **options)
    run(tmp_path / "killed", configs, callbacks=[WeightAverage(0.8)], resume=True, **options)
    assert "averaged" in torch.load(tmp_path / "whole" / "last.ckpt", weights_only=True)
    assert_same_files(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.slow
def test_two_processes_average_like_one(configs, tmp_path):
    results = []
    for devices, batch_size in ((1, 64), (2, 32)):
        data = make_data(configs, batch_size=batch_size)
        strategy = GradientSumStrategy(start_method="spawn") if devices > 1 else "auto"
        callbacks, folder = [WeightAverage(0.8)], tmp_path / f"of{devices}"
        trainer = make_trainer(folder, callbacks=callbacks, devices=devices, strategy=strategy, precision="64-true")
        trainer.fit(make_model(data), data)
        averaged = torch.load(folder / "last.ckpt", weights_only=True)["averaged"]
        results.append({name: value.double() for name, value in averaged.items()})
    assert_same(*results, 1e-6)


def test_half_precision_is_averaged_in_float32(monkeypatch):
    module, callback = pl.LightningModule(), WeightAverage(0.999)
    module.twin = torch.nn.Linear(1, 1, bias=False).half()
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    with torch.no_grad():
        module.twin.weight.fill_(1.0)
        callback.on_train_start(trainer, module)
        callback.updates = 100_000
        module.twin.weight.fill_(1.125)
    for step in range(1, 11):
        monkeypatch.setattr(type(trainer), "global_step", step)
        callback.on_train_batch_end(trainer, module, None, None, 0)
    assert callback._average["weight"].item() == pytest.approx(1.125 - 0.125 * 0.999**10, abs=1e-6)


@pytest.mark.parametrize("decay", [1.0, -0.1, 2.0])
def test_a_decay_that_cannot_be_is_refused(decay):
    with pytest.raises(ValueError, match="less than 1"):
        WeightAverage(decay)
