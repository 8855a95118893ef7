"""Lines of life, the time budget by a clock of its own, the curriculum's watch, figures."""

import itertools
import logging
import re
from dataclasses import replace
from types import SimpleNamespace

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from neurotwin.analysis import plots
from neurotwin.config import DatasetConfig, ModelConfig
from neurotwin.data.prepare import Prepared
from neurotwin.data.spec import SessionSpec
from neurotwin.models.twin import TwinModel
from training.callbacks import (
    CurriculumCallback,
    EpochHeartbeat,
    Heartbeat,
    ModelLogging,
    TimeBudgetCallback,
    annealed,
)
from training.samplers import ClipSampler, ContrastWeightedSampler

# --- signs of life --------------------------------------------------------------------------------------------------


@pytest.fixture
def lines(caplog):
    """Call to get the lines that the callbacks have written."""
    caplog.set_level(logging.INFO, "training.callbacks")
    return lambda: [record.getMessage() for record in caplog.records if record.name == "training.callbacks"]


def test_a_line_an_epoch_holds_what_was_logged(fit, lines):
    trainer = fit(EpochHeartbeat())
    first, _, last = lines()
    loss = trainer.callback_metrics["val_loss"].item()
    expected = rf"epoch 3/3: train_loss 0.2500, val_loss {loss:.4f}, val_bps {-loss:.4f}, lr 0.05, 0:00:\d\d"
    assert re.fullmatch(expected + r" \([1-9]\d* predictions/s\), 0:00:00 to go", last)
    assert first.startswith("epoch 1/3: ")


@pytest.mark.parametrize(("options", "n"), [({"steps": 2}, 7), ({"steps": 3}, 4), ({}, 1), ({"seconds": 0.0}, 12)])
def test_lines_within_an_epoch(fit, lines, options, n):
    fit(Heartbeat(**options))
    assert len(lines()) == n  # one of them after the first step
    assert all(re.match(r"epoch \d, step \d/4: loss \d\.\d{4}, [1-9]\d* predictions/s", line) for line in lines())


def test_the_loss_of_a_line_is_that_of_the_batch(fit, tiny, lines):
    losses = []

    class Model(tiny.Model):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            losses.append(loss.item())
            return loss

    fit(Heartbeat(steps=1), model=Model(), accumulate_grad_batches=2)
    assert [re.search(r"loss (\S+),", line)[1] for line in lines()] == [f"{loss:.4f}" for loss in losses]


# --- time budget ----------------------------------------------------------------------------------------------------


@pytest.fixture
def within_budget(fit, tiny):
    """Train within a budget, each step and validation of a given length."""

    def run(*, minutes: float, steps: int, step: float, validation: float):
        clock = tiny.Clock(step, validation)
        trainer = fit(clock, TimeBudgetCallback(minutes, clock), epochs=50, steps=steps)
        assert clock.now <= 60 * minutes
        return trainer, clock

    return run


def test_training_stops_in_time_for_the_last_validation_and_uses_the_time(within_budget):
    trainer, clock = within_budget(minutes=10, steps=100, step=1.0, validation=60.0)
    # Three epochs take 480 s; 1.2 * 60 + 0.02 * 600 = 84 s are kept of the 120 that are left.
    assert (trainer.global_step, clock.validations, clock.now) == (336, 4, 576)


def test_before_a_validation_was_timed_half_of_the_budget_is_kept_for_it(within_budget):
    trainer, clock = within_budget(minutes=10, steps=1000, step=1.0, validation=299.0)
    assert (trainer.global_step, clock.validations) == (300, 1)


def test_no_second_validation_after_one_that_used_up_the_time(within_budget):
    trainer, clock = within_budget(minutes=10, steps=100, step=1.0, validation=230.0)
    assert (trainer.global_step, clock.validations) == (100, 1)


def test_time_left_to_train_on_is_not_given_up(within_budget):
    trainer, _ = within_budget(minutes=1000, steps=4, step=1.0, validation=1.0)
    assert trainer.current_epoch == 50


@pytest.mark.parametrize("step", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_rates_that_anneal_end_with_the_budget(fit, tiny, step, accumulate):
    clock, model = tiny.Clock(step, 20.0), tiny.Model("anneal", epochs=50, steps=100 // accumulate)
    model.plan["warmup_epochs"] = 0
    budget = TimeBudgetCallback(10, clock)
    trainer = fit(clock, budget, model=model, epochs=50, steps=100, accumulate_grad_batches=accumulate)
    (schedule,) = annealed(trainer)
    rates = model.rates[::accumulate]
    assert clock.now <= 600 and trainer.global_step < 0.3 * schedule.most
    assert schedule.position > 0.97 and rates[-1] < 0.01 * 0.05
    assert max(b - a for a, b in itertools.pairwise(rates)) < 0.05 * 0.05  # estimates change, a little
    half = rates[len(rates) // 2]
    assert 0.3 * 0.05 < half < 0.7 * 0.05  # on the way too it follows the time that is left


def test_the_steps_to_come_are_estimated_with_the_validations_between_them(fit, tiny):
    planned = {}

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, *_) -> None:
            planned[trainer.global_step] = annealed(trainer)[0].planned

    clock, model = tiny.Clock(1.0, 60.0), tiny.Model("anneal", epochs=50, steps=100)
    trainer = fit(clock, TimeBudgetCallback(20, clock), Watch(), model=model, epochs=50, steps=100)
    assert planned[50] > 1.3 * trainer.global_step  # no validation was timed yet
    assert all(planned[step] == pytest.approx(trainer.global_step, rel=0.1) for step in (101, 250, 400, 550))


def test_a_budget_that_is_not_used_up_leaves_the_schedule_alone(fit, tiny):
    runs = []
    for callbacks in ([], [TimeBudgetCallback(1000)]):
        model = tiny.Model("anneal", epochs=3, steps=4)
        fit(*callbacks, model=model)
        runs.append(model.rates)
    assert runs[0] == runs[1]


def test_process_0_plans_for_all(fit, tiny, monkeypatch):
    planned = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, *_) -> None:
            planned.append(annealed(trainer)[0].planned)

    monkeypatch.setattr("lightning.pytorch.strategies.SingleDeviceStrategy.broadcast", lambda self, value, src=0: 2.0)
    fit(TimeBudgetCallback(1000), Watch(), model=tiny.Model("anneal", epochs=1, steps=6), epochs=1, steps=6)
    assert planned == [3, 4, 5, 6, 6, 6]  # told that two more steps fit after each, of six in all


def test_process_0_decides(fit, monkeypatch):
    told = iter([8.0, 0.0])  # look again after 2 more steps; then: stop

    def broadcast(self, value, src=0):
        return next(told) if isinstance(value, float) else value

    monkeypatch.setattr("lightning.pytorch.strategies.SingleDeviceStrategy.broadcast", broadcast)
    trainer = fit(TimeBudgetCallback(1000), steps=100)
    assert trainer.global_step == 3


def test_a_budget_must_be_positive():
    with pytest.raises(ValueError, match="must be positive"):
        TimeBudgetCallback(0)


# --- curriculum -----------------------------------------------------------------------------------------------------


def curriculum(steps: int = 4) -> ContrastWeightedSampler:
    return ContrastWeightedSampler(
        10, scores=np.arange(10.0), warmup_steps=8, batch_size=2, steps_per_epoch=steps, seed=0
    )


class Recorder(pl.Callback):
    def __init__(self) -> None:
        self.values = []

    def on_train_batch_end(self, trainer, *_) -> None:
        self.values.append([trainer.callback_metrics[f"curriculum/{name}"].item() for name in ("step", "emphasis")])


def test_the_emphasis_falls_within_epochs_and_what_is_trained_is_what_the_sampler_says(fit, tiny):
    recorder, sampler, model = Recorder(), curriculum(), tiny.Model()
    fit(CurriculumCallback(), recorder, sampler=sampler, model=model)
    expected = [[step, 0.9 * max(0, 1 - step / 8)] for step in range(12)]
    np.testing.assert_allclose(recorder.values, expected, rtol=1e-6)
    assert model.seen == [curriculum().global_indices(step).tolist() for step in range(12)]


def test_a_replaced_sampler_is_an_error(fit):
    with pytest.raises(RuntimeError, match=r"found: ClipSampler\); use Trainer\(use_distributed_sampler=False\)"):
        fit(CurriculumCallback(), sampler=ClipSampler(10, batch_size=2, steps_per_epoch=4, seed=0))


def test_a_sampler_that_training_does_not_follow_is_an_error(fit, tiny, monkeypatch):
    own_order = [np.array([0, 1])] * 4
    monkeypatch.setattr(tiny.Loader, "__iter__", lambda self: iter([tiny.Loader.batch(clips) for clips in own_order]))
    with pytest.raises(RuntimeError, match="micro-batch 0 and the sampler at 0"):
        fit(CurriculumCallback(), sampler=curriculum(), limit_val_batches=0)


# --- figures --------------------------------------------------------------------------------------------------------


def session_of(exposure: bool) -> Prepared:
    """40 bins of 6 by 5 pixels and 3 units in two trials, the second for validation."""
    rng, n_bins = np.random.default_rng(0), 40
    counts = rng.poisson([0.1, 2.0, 1.0], (n_bins, 3)).astype(np.uint8)
    mask = rng.random((n_bins, 3)) > 0.1
    config = DatasetConfig.model_validate(
        {
            "keys_lags": {"stim": [0, 1, 2, 3]},
            "transforms": {"stim": {"source": "stim", "ops": ["pixelnorm"]}},
        }
    )
    spec = SessionSpec(
        name="s", subject="s", unit_ids=(4, 7, 9), frame_shape=(1, 6, 5), bin_rate=60.0, n_lags=4,
        pixel_scale=(1 / 255, 0.0), config=config,
    )  # fmt: skip
    names = ("train_bins", "train_presentations", "train_sum", "train_squares", "train_zeros")
    sums = {name: np.zeros(3) for name in names}
    return Prepared(
        spec=spec, source=rng.integers(0, 255, (n_bins, 6, 5)).astype(np.uint8), frame=np.arange(n_bins),
        responses=counts, mask=mask, n_valid=mask.sum(axis=1), trial=np.arange(n_bins) // 20,
        split=np.repeat([0, 1], 20).astype(np.int8), run_start=np.repeat([0, 20], 20),
        run_stop=np.repeat([20, 40], 20), contrast=np.ones(n_bins, np.float32), repeat_id=np.full(n_bins, -1),
        exposure=np.full(n_bins, 2, np.float32) if exposure else None, **sums,
    )  # fmt: skip


def twin_of(prepared: Prepared, readout: str, n_sessions: int = 1) -> TwinModel:
    frontend = {"type": "learnable_temporal", "params": {"kernel_size": 3, "num_channels": 2}}
    config = ModelConfig.model_validate({"frontend": frontend, "readout": {"type": readout}})
    spec = prepared.spec
    return TwinModel(config, [spec, *(replace(spec, name=f"s{i}") for i in range(1, n_sessions))]).eval()


def log_epochs(callback: ModelLogging, prepared: Prepared, twin: TwinModel, epochs: int, loggers=()) -> None:
    for epoch in range(epochs):
        trainer = SimpleNamespace(
            sanity_checking=False, state=SimpleNamespace(fn="fit"), current_epoch=epoch, loggers=loggers,
            global_step=epoch, datamodule=SimpleNamespace(sessions=[prepared] * len(twin.sessions)),
        )  # fmt: skip
        callback.on_validation_end(trainer, SimpleNamespace(twin=twin, device=torch.device("cpu")))


def test_figures_come_at_their_intervals_and_go_to_tensorboard(tmp_path):
    prepared = session_of(exposure=False)
    board = TensorBoardLogger(tmp_path, name="", version="board")
    callback = ModelLogging(tmp_path / "figures", fast_interval=2, slow_interval=3)
    log_epochs(callback, prepared, twin_of(prepared, "gaussian"), 4, [board])
    board.finalize("success")
    names = ["kernels_0002", "kernels_0004", "predictions_0003", "readouts_0002", "readouts_0004"]
    assert sorted(path.stem for path in (tmp_path / "figures").glob("*.png")) == names
    events = EventAccumulator(str(tmp_path / "board"), size_guidance={"images": 0}).Reload()
    assert {tag: len(events.Images(tag)) for tag in events.Tags()["images"]} == {
        "kernels": 2,
        "readouts": 2,
        "predictions": 1,
    }


@pytest.mark.parametrize("exposure", [False, True])
def test_predictions_are_those_of_the_units_with_most_spikes(tmp_path, monkeypatch, exposure):
    drawn = {}
    monkeypatch.setattr(plots, "png", lambda figure: b"")
    monkeypatch.setattr(plots, "traces", lambda *args, **kwargs: drawn.update(args=args, **kwargs))
    prepared = session_of(exposure)
    twin = twin_of(prepared, "gaussian", n_sessions=2)
    callback = ModelLogging(tmp_path, fast_interval=9, slow_interval=1, max_units=2, session=1)
    log_epochs(callback, prepared, twin, 1)
    observed, predicted = drawn["args"]
    counts = np.where(prepared.mask, prepared.responses / (2 if exposure else 1), np.nan)[23:, [1, 2]]
    np.testing.assert_array_equal(observed, counts)
    expected = twin.predict(prepared.source[20:], session=1, bin_rate=60.0)[3:, [1, 2]]
    np.testing.assert_allclose(predicted, expected, rtol=1e-5)
    assert drawn["labels"] == ["s1, unit 7", "s1, unit 9"] and drawn["bin_rate"] == 60


@pytest.mark.parametrize("readout", ["gaussian", "gaussianei", "linear", "factorized", "point", "attention"])
def test_what_is_drawn_of_each_readout(tmp_path, monkeypatch, readout):
    drawn = {}
    monkeypatch.setattr(plots, "png", lambda figure: b"")
    monkeypatch.setattr(plots, "readout_maps", lambda maps, labels, **_: drawn.update(maps=maps, labels=labels))
    monkeypatch.setattr(plots, "temporal_kernels", lambda kernels, bin_rate, **_: drawn.update(kernels=kernels))
    prepared = session_of(exposure=False)
    twin = twin_of(prepared, readout)
    log_epochs(ModelLogging(tmp_path, fast_interval=1, slow_interval=9), prepared, twin, 1)
    np.testing.assert_array_equal(drawn["kernels"], twin.frontend.weight.detach()[:, 0, :, 0, 0])
    if readout in ("point", "attention", "linear"):  # the linear one pools over space
        assert "maps" not in drawn
    else:
        assert drawn["maps"].shape == (3, 6, 5) and drawn["labels"] == ["4", "7", "9"]


def test_kernels_in_space_are_drawn_where_they_are_strongest(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(plots, "temporal_kernels", lambda kernels, bin_rate, **_: drawn.update(kernels=kernels))
    monkeypatch.setattr(plots, "readout_maps", lambda *args, **kwargs: None)
    monkeypatch.setattr(plots, "png", lambda figure: b"")
    prepared = session_of(exposure=False)
    block = {"conv_params": {"kernel_size": 3, "padding": 1}}
    convnet = {"type": "vanilla", "params": {"channels": [2], "block_configs": [block]}}
    twin = TwinModel(ModelConfig.model_validate({"convnet": convnet}), [prepared.spec]).eval()
    (weight,) = [p for p in twin.convnet.parameters() if p.ndim == 5]
    with torch.no_grad():
        weight.fill_(0.1)[1, 0, :, 2, 0] = torch.tensor([1.0, -2.0, 3.0])
    log_epochs(ModelLogging(tmp_path, fast_interval=1, slow_interval=9), prepared, twin, 1)
    np.testing.assert_allclose(drawn["kernels"], [[0.1, 0.1, 0.1], [1, -2, 3]])


def test_a_session_without_validation_is_said(tmp_path, caplog):
    prepared = session_of(exposure=False)
    twin = twin_of(prepared, "gaussian")
    prepared.split[:] = 0
    log_epochs(ModelLogging(tmp_path, fast_interval=9, slow_interval=1), prepared, twin, 1)
    assert "s has no validation bins" in caplog.text


def test_repeats_in_validation_give_a_psth_of_the_unit_that_responds_most(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(plots, "psth", lambda *args, **kwargs: drawn.update(args=args, **kwargs))
    monkeypatch.setattr(plots, "png", lambda figure: b"")
    prepared = session_of(exposure=False)
    repeats = np.full(40, -1)
    repeats[24:28] = repeats[30:34] = np.arange(4)
    prepared = replace(prepared, repeat_id=repeats)
    twin = twin_of(prepared, "gaussian")
    log_epochs(ModelLogging(tmp_path, fast_interval=9, slow_interval=1), prepared, twin, 1)
    valid = np.where(prepared.mask, prepared.responses, np.nan)
    unit = int(np.nansum(valid[repeats >= 0], axis=0).argmax())
    responses, predicted = drawn["args"]
    for frame in range(4):
        seen = [value for value in valid[np.flatnonzero(repeats == frame), unit] if not np.isnan(value)]
        assert [value for value in responses[:, frame] if not np.isnan(value)] == seen
    rates = twin.predict(prepared.source[20:], session=0, bin_rate=60.0)[:, unit]
    both = np.stack([np.where(prepared.mask[start : start + 4, unit], rates[start - 20 : start - 16], np.nan)
                     for start in (24, 30)])  # fmt: skip
    np.testing.assert_allclose(predicted, np.nanmean(both, axis=0), rtol=1e-4)
    assert f"unit {prepared.spec.unit_ids[unit]}" in drawn["label"] and "epoch 1" in drawn["label"]


def test_figures_have_titles_and_scales():
    kernels = plots.temporal_kernels(np.ones((2, 3)), bin_rate=60.0, title="kernels, epoch 2")
    maps = plots.readout_maps(np.stack([np.eye(3), -2 * np.eye(3)]), labels=["4", "7"], title="readouts, epoch 2")
    traces = plots.traces(np.ones((5, 1)), np.ones((5, 1)), bin_rate=60.0, labels=["4"], title="validation, epoch 2")
    assert [figure.get_suptitle() for figure in (kernels, maps, traces)] == [
        "kernels, epoch 2", "readouts, epoch 2", "validation, epoch 2",
    ]  # fmt: skip
    assert [axes.get_title() for axes in maps.axes[:2]] == ["4: ±1", "7: ±2"]
    assert maps.axes[-1].get_xlabel() == "share of the largest value of the unit"
    assert "Hz" in traces.axes[0].get_ylabel() and "(ms)" in kernels.axes[0].get_xlabel()
