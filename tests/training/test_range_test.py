"""The range test: its rates, what it notes, what it proposes, and that it writes nothing."""

import contextlib
import sys
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from training import train_ddp_multidataset as script
from training.range_test import RangeTest

from .test_cli import arguments_of, lab  # noqa: F401

sys.path.insert(0, str(Path(__file__).parent))
from test_multidataset import clips_of, make_configs, make_data, make_model, make_trainer


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    return make_configs(tmp_path_factory.mktemp("sessions"))


def test_rates_rise_by_one_factor_and_groups_keep_their_ratios(configs):
    seen = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            seen.append({group["name"]: group["lr"] for group in trainer.optimizers[0].param_groups})

    data, test = make_data(configs, steps_per_epoch=5), RangeTest(5, 1e-4, 1e-2)
    trainer = make_trainer(callbacks=[test, Watch()], max_epochs=1, limit_val_batches=0)
    trainer.fit(make_model(data, core_lr_scale=0.25, learning_rate=0.7), data)
    np.testing.assert_allclose(test.rates, [1e-4, 10**-3.5, 1e-3, 10**-2.5, 1e-2])
    np.testing.assert_allclose([rates["session/decay"] for rates in seen], test.rates)
    np.testing.assert_allclose([rates["core/decay"] for rates in seen], 0.25 * np.array(test.rates))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_gain_is_the_fall_of_the_loss_on_the_same_clips(configs, accumulate):
    """Against losses computed apart, from the model at the start and from the model before each step."""
    norm = {"block_configs": [{"conv_params": {"kernel_size": [2, 3, 3]}}]}  # no batch norm: training as in evaluation
    model = {"convnet": {"type": "vanilla", "params": {"channels": [3], **norm}}, "readout": {"type": "gaussian"}}
    model["regularization"] = [{"name": "small", "type": "l2", "lambda": 0.01, "apply_to": ["convnet"]}]
    parts = []

    class Watch(pl.Callback):
        def on_train_start(self, trainer, module):
            self.first = self.loss(module, None)[1]

        def loss(self, module, batch):
            with torch.no_grad():
                penalty = module.regularizers.penalty(0)[0].item()
                rates = module(clips_of(batch)) if batch else []
                total = 0.0
                for rate, sample in zip(rates, batch.samples if batch else (), strict=True):
                    loss = rate - sample.target.responses * rate.clamp_min(1e-8).log()
                    total += loss[sample.target.mask].sum().item()
            return total, penalty

        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            now, penalty = self.loss(module, batch)
            weights = {k: v.clone() for k, v in module.twin.state_dict().items()}
            module.twin.load_state_dict(start)
            before = self.loss(module, batch)[0]
            module.twin.load_state_dict(weights)
            parts.append((before - now) / batch.count + (self.first - penalty) / accumulate)

    data = make_data(configs, steps_per_epoch=6 * accumulate, accumulate=accumulate)
    module, test = make_model(data, config=model), RangeTest(6, 1e-3, 1e-1)
    start = {k: v.clone() for k, v in module.twin.state_dict().items()}
    options = {"max_epochs": 1, "limit_val_batches": 0, "accumulate_grad_batches": accumulate}
    make_trainer(callbacks=[Watch(), test], **options).fit(module, data)
    expected = np.array(parts).reshape(6, accumulate).sum(axis=1)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(test.gains, expected, atol=2e-5)


def of(gains) -> RangeTest:
    test = RangeTest(len(gains), 1e-4, 1e-4 * 10 ** ((len(gains) - 1) / 10))  # ten steps a decade
    test.gains, test.rates = list(gains), [test.rate(step) for step in range(len(gains))]
    return test


def test_the_curve_weighs_gains_by_0_9_a_step():
    np.testing.assert_allclose(of([1.0, 0.0, 2.0]).curve(), [1, 0.9 / 1.9, (0.81 + 2) / 2.71])


def test_the_proposal_is_a_fifth_of_the_last_rate_that_keeps_half_of_the_gain():
    test = of([0.0] * 10 + [1.0] * 30 + [-1.0] * 20)
    curve = test.curve()
    last = max(step for step in range(60) if curve[step] >= curve.max() / 2)
    assert 40 <= last <= 44
    assert test.proposal() == pytest.approx(1e-4 * 10 ** (last / 10) / 5)
    assert f"propose --learning_rate {test.proposal():.1e}" in test.text()
    assert len(test.text().splitlines()) == 1 + 6 + 1


@pytest.mark.parametrize("gains", [[], [-1.0, -2.0], [0.0] * 5, [float("nan")] * 2])
def test_without_a_gain_nothing_is_proposed(gains):
    assert of(gains).proposal() is None and "learns at none" in of(gains).text()


def test_what_comes_after_a_loss_that_is_not_finite_does_not_count():
    assert of([1.0] * 10 + [float("nan"), 1.0]).proposal() == pytest.approx(1e-4 * 10**0.9 / 5)


def test_it_ends_where_the_model_is_lost(configs):
    data = make_data(configs, steps_per_epoch=200)
    test = RangeTest(200, 1e-3, 1e4)
    trainer = make_trainer(callbacks=[test], max_epochs=1, limit_val_batches=0, gradient_clip_val=None)
    with contextlib.suppress(ArithmeticError):
        trainer.fit(make_model(data), data)
    assert 20 < len(test.gains) < 200 and test.proposal() is not None


def test_the_flag_prints_a_rate_and_writes_nothing(lab, tmp_path, capsys):  # noqa: F811
    flags = {"--find_lr": None, "--lr_scheduler": "plateau", "--accumulate_grad_batches": "2"}
    assert script.main(arguments_of(lab, flags, tmp_path / "runs")) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].split()[:2] == ["rate", "gain"] and len(out.splitlines()) > 5
    assert not (tmp_path / "runs").exists()
