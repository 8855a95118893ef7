"""Augmentation in training: what the model sees, for any number of processes, resumed, and never in validation."""

import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from neurotwin.data.augmentation import Contrast, Luminance, Shift, augment
from training.augmentation import Augment
from training.processes import GradientSumStrategy

sys.path.insert(0, str(Path(__file__).parent))
from test_multidataset import assert_same, make_configs, make_data, make_model, make_trainer
from test_reliability import KillAt, Killed, assert_same_files, run

PARTS = (Shift(pixels=1), Contrast(amount=0.3), Luminance(amount=20.0))


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    return make_configs(tmp_path_factory.mktemp("sessions"))


def test_training_sees_augmented_clips_and_validation_does_not(configs):
    seen, validated = [], []

    class Watch(pl.Callback):
        def on_validation_batch_start(self, trainer, module, batch, *_):
            validated.append(batch.clip.stimulus.clone())

    data = make_data(configs, seed=3)
    module = make_model(data)
    step_of = module.training_step

    def training_step(batch, batch_idx):
        seen.append([sample.clip.stimulus.clone() for sample in batch.samples])
        return step_of(batch, batch_idx)

    module.training_step = training_step
    make_trainer(callbacks=[Augment(PARTS, 3), Watch()]).fit(module, data)
    fresh = make_data(configs, seed=3)
    make_trainer().strategy.connect(module)
    fresh.setup()
    loader = fresh.train_dataloader()
    loader.context = module.twin.context
    for step, found in enumerate(seen):
        expected = [augment(s, PARTS, seed=3, step=step).clip.stimulus for s in loader.batch(step).samples]
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert len(seen) == 12 and len(validated) > 0
    plain = [sample.clip.stimulus for sample in data.val_dataloader()]
    assert all(torch.equal(a, b) for a, b in zip(validated[: len(plain)], plain, strict=True))


def test_a_killed_run_ends_with_the_same_files(configs, tmp_path):
    run(tmp_path / "whole", configs, callbacks=[Augment(PARTS, 0)])
    with pytest.raises(Killed):
        run(tmp_path / "killed", configs, callbacks=[Augment(PARTS, 0), KillAt(step=5)])
    run(tmp_path / "killed", configs, callbacks=[Augment(PARTS, 0)], resume=True)
    assert_same_files(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.slow
def test_two_processes_augment_like_one(configs):
    results = []
    for devices, batch_size in ((1, 64), (2, 32)):
        data = make_data(configs, batch_size=batch_size)
        module = make_model(data)
        strategy = GradientSumStrategy(start_method="spawn") if devices > 1 else "auto"
        options = {"devices": devices, "strategy": strategy, "precision": "64-true"}
        make_trainer(callbacks=[Augment(PARTS, 0)], **options).fit(module, data)
        results.append({name: value.double() for name, value in module.twin.state_dict().items()})
    assert_same(*results, 1e-6)


def test_it_matters(configs):
    weights = []
    for callbacks in ([], [Augment(PARTS, 0)]):
        data = make_data(configs)
        module = make_model(data)
        make_trainer(callbacks=callbacks).fit(module, data)
        weights.append(module.twin.frontend.weight.detach())
    assert not torch.allclose(*weights)
