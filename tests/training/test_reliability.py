"""A run means one thing: killed, interrupted or given broken numbers, on one process or several."""

import copy
import logging
import math
import os
import re
import signal
import sys
from dataclasses import replace
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from neurotwin.analysis.compare import compare
from neurotwin.analysis.evaluate import evaluate
from neurotwin.data.session import Session
from neurotwin.models import load_twin
from training.callbacks import Interrupted, MetricsFile, StopSignals
from training.checkpoints import SafeCheckpoint
from training.pl_modules import NonFiniteLossError
from training.processes import GradientSumStrategy

sys.path.insert(0, str(Path(__file__).parent))
from test_multidataset import MODEL, assert_same, clips_of, make_configs, make_data, make_model, make_trainer

REFERENCE = Path(__file__).parents[1] / "reference" / "units.csv"


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    return make_configs(tmp_path_factory.mktemp("sessions"))


# --- resumption -----------------------------------------------------------------------------------------------------

NOISY = copy.deepcopy(MODEL)
NOISY["convnet"]["params"]["block_configs"][0]["dropout"] = 0.3
NOISY["modulator"]["params"]["encoder_params"]["dropout"] = 0.3
NOISY["readout"] = {"type": "point"}


class Killed(BaseException):
    pass


class KillAt(pl.Callback):
    """Die at an optimizer step, or in the validation of an epoch."""

    def __init__(self, *, step=None, epoch=None):
        self.step, self.epoch = step, epoch

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            raise Killed

    def on_validation_batch_end(self, trainer, *_):
        if trainer.current_epoch == self.epoch:
            raise Killed


def run(folder, configs, *, model=None, settings=None, callbacks=(), resume=False, every=2, trainer=None, **data):
    """Train as the script does; the trainer."""
    data = make_data(configs, **data)
    module = make_model(data, config=model, **settings or {})
    parts = [MetricsFile(folder / "metrics.csv"), SafeCheckpoint(folder, every_n_steps=every), *callbacks]
    trainer = make_trainer(callbacks=parts, **{"max_epochs": 3} | (trainer or {}))
    trainer.fit(module, data, ckpt_path=folder / "last.ckpt" if resume and (folder / "last.ckpt").exists() else None)
    return trainer


def same(a, b, path=""):
    """Assert that two checkpoints hold the same, to the bit."""
    assert type(a) is type(b), path
    if isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            same(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for index, pair in enumerate(zip(a, b, strict=True)):
            same(*pair, f"{path}/{index}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    else:
        assert a == b or (a != a and b != b), (path, a, b)


def assert_same_files(whole, other):
    for name in ("last.ckpt", "best.ckpt"):
        same(*(torch.load(folder / name, weights_only=True) for folder in (whole, other)))
    assert (whole / "metrics.csv").read_bytes() == (other / "metrics.csv").read_bytes()


@pytest.mark.parametrize(
    "options",
    [
        {
            "model": NOISY,
            "settings": {"lr_scheduler": "cosine", "optimizer": "muon"},
            "curriculum_steps": 9,
            "balance": "session",
        },
        {
            "settings": {"lr_scheduler": "plateau"},
            "accumulate": 2,
            "trainer": {"accumulate_grad_batches": 2},
            "every": 1,
        },
    ],
    ids=["dropout-point-cosine-curriculum-muon", "plateau-accumulation"],
)
@pytest.mark.parametrize("kill", [{"step": 5}, {"epoch": 1}], ids=["in-an-epoch", "in-validation"])
def test_a_killed_run_ends_with_the_same_files(configs, tmp_path, options, kill):
    run(tmp_path / "whole", configs, **options)
    with pytest.raises(Killed):
        run(tmp_path / "killed", configs, callbacks=[KillAt(**kill)], **options)
    run(tmp_path / "killed", configs, resume=True, **options)
    assert_same_files(tmp_path / "whole", tmp_path / "killed")


def test_dropout_differs_between_steps_and_seeds(configs):
    data = make_data(configs[:1])
    module = make_model(data, config=NOISY)
    module.trainer = trainer = make_trainer()
    batch = data.train_dataloader().batch(0)

    def rates(step, seed):
        trainer.fit_loop.epoch_loop.batch_progress.total.ready, module.seed = step, seed
        module.on_train_batch_start(batch, 0)
        return module(clips_of(batch))[0]

    module.train()
    first = rates(1, 0)
    assert torch.equal(first, rates(1, 0))
    assert not torch.equal(first, rates(2, 0)) and not torch.equal(first, rates(1, 1))


def test_metrics_have_one_row_an_epoch_and_the_figures_of_the_run(configs, tmp_path):
    trainer = run(tmp_path, configs)
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert lines[0] == "epoch,step,train_loss,val_loss,val_bps,val_bps/s0_x,val_bps/s1_x,val_bps/s2_x,lr"
    assert [line.split(",")[:2] for line in lines[1:]] == [["1", "6"], ["2", "12"], ["3", "18"]]
    last = dict(zip(lines[0].split(","), lines[-1].split(","), strict=True))
    assert float(last["val_bps"]) == trainer.callback_metrics["val_bps"].item()
    assert float(last["lr"]) == 1e-2


def test_the_training_loss_is_that_of_all_valid_counts_of_the_epoch(configs, tmp_path):
    """Also where the last optimizer step of an epoch has fewer micro-batches."""
    seen = []

    class Sum(pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            with torch.no_grad():
                for rates, sample in zip(module.train()(clips_of(batch)), batch.samples, strict=True):
                    target = sample.target
                    seen.append((rates - target.responses * rates.log())[target.mask])

    model = copy.deepcopy(MODEL)
    model["convnet"]["params"]["block_configs"][0]["norm_type"] = "rms"
    options = {"max_epochs": 1, "accumulate_grad_batches": 4}
    trainer = run(tmp_path, configs, model=model, callbacks=[Sum()], accumulate=4, trainer=options, every=9)
    assert trainer.callback_metrics["train_loss"].item() == pytest.approx(torch.cat(seen).mean().item(), rel=1e-5)


# --- signals --------------------------------------------------------------------------------------------------------


class SignalAt(pl.Callback):
    """Send this process a signal."""

    def __init__(self, number, *, batch=None, validation=None):
        self.number, self.batch, self.validation = number, batch, validation

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.fit_loop.epoch_loop.total_batch_idx == self.batch:
            self._send()

    def on_validation_batch_start(self, trainer, *_):
        if trainer.current_epoch == self.validation:
            self._send()

    def _send(self):
        self.batch = self.validation = None
        os.kill(os.getpid(), self.number)


@pytest.mark.parametrize(
    ("number", "moment", "accumulate", "done"),
    [
        (signal.SIGTERM, {"batch": 7}, 1, 8),
        (signal.SIGINT, {"batch": 7}, 1, 8),
        (signal.SIGUSR1, {"batch": 7}, 1, 8),
        (signal.SIGTERM, {"batch": 8}, 2, 10),  # the optimizer step is finished
        (signal.SIGTERM, {"batch": 5}, 1, 6),  # the last of the epoch: after its validation
        (signal.SIGINT, {"validation": 0}, 1, 7),
        (signal.SIGINT, {"validation": 2}, 1, 18),  # all is trained
    ],
)
def test_a_signal_saves_and_the_run_goes_on_as_if_nothing_was(configs, tmp_path, number, moment, accumulate, done):
    options = {"accumulate": accumulate, "trainer": {"accumulate_grad_batches": accumulate}, "every": None}
    run(tmp_path / "whole", configs, **options)
    with StopSignals() as signals, pytest.raises(Interrupted) as stop:
        run(tmp_path / "stopped", configs, callbacks=[signals, SignalAt(number, **moment)], **options)
    assert stop.value.signum == number
    loops = torch.load(tmp_path / "stopped" / "last.ckpt", weights_only=True)["loops"]["fit_loop"]
    assert loops["epoch_loop.batch_progress"]["total"]["ready"] == done
    run(tmp_path / "stopped", configs, resume=True, **options)
    assert_same_files(tmp_path / "whole", tmp_path / "stopped")


def test_outside_of_training_a_signal_ends_at_once_and_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals() as signals:
        with pytest.raises(Interrupted, match="15"):
            os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_second_signal_ends_at_once(monkeypatch):
    codes = []
    monkeypatch.setattr(os, "_exit", codes.append)
    with StopSignals() as signals:
        signals._module, signals._training = pl.LightningModule(), True
        os.kill(os.getpid(), signal.SIGINT)
        assert codes == []
        os.kill(os.getpid(), signal.SIGINT)
    assert codes == [130]


@pytest.mark.parametrize(
    ("sent", "received"),
    [
        ("USR1 TERM", "TERM"), ("TERM USR1", "TERM"), ("USR1 USR1 INT", "INT"), ("INT USR1", "INT"), ("USR1", "USR1"),
    ],
)  # fmt: skip
def test_the_notice_of_a_cluster_is_no_second_signal(monkeypatch, sent, received):
    codes = []
    monkeypatch.setattr(os, "_exit", codes.append)
    with StopSignals() as signals:
        signals._module, signals._training = pl.LightningModule(), True
        for name in sent.split():
            os.kill(os.getpid(), getattr(signal, f"SIG{name}"))
        assert signals._module.stop_requested and signals.received == getattr(signal, f"SIG{received}")
        assert codes == []
        if received != "USR1":
            os.kill(os.getpid(), signal.SIGTERM)
            assert codes == [143]


# --- numbers --------------------------------------------------------------------------------------------------------


def spoil(data, session=1, bins=slice(50, 51), value=np.nan):
    """Break the behaviour of some bins of a session."""
    data.setup()
    behavior = np.array(data.sessions[session].behavior)
    behavior[bins] = value
    data.sessions[session] = replace(data.sessions[session], behavior=behavior)
    return data


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_stops_and_says_where(configs, tmp_path, value):
    data = spoil(make_data(configs), value=value)
    module, trainer = make_model(data), make_trainer(callbacks=[SafeCheckpoint(tmp_path, every_n_steps=1)])
    with pytest.raises(NonFiniteLossError) as error:
        trainer.fit(module, data)
    found = re.fullmatch(
        r"the loss of session s1_x is (nan|inf): trial (\d+), bins (\d+) to (\d+) \(step (\d+), learning rate 0.01\)",
        str(error.value),
    )
    trial, first, last, step = map(int, found.groups()[1:])
    context = module.twin.context
    assert first - context <= 50 <= last and last - first == 7 and trial == first // 40
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True) if step > 1 else {"global_step": 0, "state_dict": {}}
    assert saved["global_step"] == step - 1
    assert all(value.isfinite().all() for value in saved["state_dict"].values())
    rows = data.train_dataloader().sampler.indices(step - 1)
    assert first in data.table.locate().start[rows][data.table.locate().session[rows] == 1]


def test_weights_that_are_not_finite_are_never_saved(configs, tmp_path):
    class Break(pl.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            with torch.no_grad():
                module.twin.per_session[2].readout.features[0] = math.nan

    data = make_data(configs)
    trainer = make_trainer(callbacks=[Break(), SafeCheckpoint(tmp_path, every_n_steps=1)])
    with pytest.raises(NonFiniteLossError, match=r"per_session.2.readout.features is no longer finite after step 1"):
        trainer.fit(make_model(data), data)
    assert list(tmp_path.iterdir()) == []


def test_skipping_leaves_out_the_session_and_nothing_else(configs, tmp_path, caplog):
    """The loss and gradients of a step with a broken session are those of the rest of it."""
    model = copy.deepcopy(MODEL) | {"regularization": []}
    data = spoil(make_data(configs), bins=slice(None))
    batch = next(b for b in map(data.train_dataloader().batch, range(9)) if len(b.samples) == 3)
    gradients, buffers = [], []
    for on_nan, parts in (("skip", batch.samples), ("stop", [s for s in batch.samples if s.session != 1])):
        module = make_model(data, config=model, on_nan=on_nan)
        module.trainer = make_trainer()
        module.trainer.fit_loop.epoch_loop.batch_progress.total.ready = 1
        module.on_train_batch_start(batch, 1)
        module.training_step(replace(batch, samples=parts), 1).backward()
        gradients.append({n: p.grad for n, p in module.twin.named_parameters() if p.grad is not None})
        buffers.append(dict(module.twin.named_buffers()))
    assert gradients[0].keys() == gradients[1].keys() and not any("per_session.1" in n for n in gradients[0])
    assert_same(*gradients, 1e-6)
    assert_same(*buffers, 1e-6)
    assert "session s1_x is nan" in caplog.text and "skipped at micro-batch 1 (1 so far)" in caplog.text


def test_skipped_parts_are_counted_logged_and_kept(configs, tmp_path, caplog):
    data = spoil(make_data(configs))
    trainer = make_trainer(callbacks=[MetricsFile(tmp_path / "m.csv"), SafeCheckpoint(tmp_path)], max_epochs=2)
    module = make_model(data, on_nan="skip")
    trainer.fit(module, data)
    assert module.skipped == len(re.findall("skipped at micro-batch", caplog.text)) > 0
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["run"]["skipped"] == module.skipped
    assert all(value.isfinite().all() for value in saved["state_dict"].values())
    head, *rows = [line.split(",") for line in (tmp_path / "m.csv").read_text().splitlines()]
    assert float(rows[-1][head.index("skipped")]) == module.skipped


@pytest.mark.parametrize("n_sessions", [1, 3], ids=["nothing-left", "one-of-three"])
def test_too_many_skipped_parts_stop(configs, n_sessions):
    data = make_data(configs[-n_sessions:])
    data.setup()
    spoil(data, session=0, bins=data.sessions[0].split == 0)  # in validation the first would stop
    with pytest.raises(NonFiniteLossError, match=r"; 11 parts of 1[1-9] batches were skipped"):
        make_trainer(max_epochs=4).fit(make_model(data, on_nan="skip"), data)


@pytest.mark.parametrize("on_nan", ["stop", "skip"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_prediction_in_validation_that_is_not_finite_stops_and_says_where(configs, tmp_path, on_nan, value):
    """Also with --on_nan skip, which is about what is trained on."""
    data = make_data(configs)
    data.setup()
    prepared = data.sessions[1]
    bins = np.flatnonzero((prepared.split == 1) & prepared.mask.any(axis=1))
    spoil(data, bins=slice(bins[3], bins[3] + 1), value=value)
    module = make_model(data, on_nan=on_nan)
    trainer = make_trainer(callbacks=[SafeCheckpoint(tmp_path), MetricsFile(tmp_path / "metrics.csv")])
    where = rf"trial {prepared.trial[bins[3]]}, bin {bins[3]}"
    with pytest.raises(NonFiniteLossError, match=rf"^in validation, a prediction of session s1_x .*: {where}$"):
        trainer.fit(module, data)
    assert module.skipped == 0 and trainer.global_step == 6  # of the first epoch, after which validation came
    assert list(tmp_path.iterdir()) == []


def test_masked_bins_of_validation_may_be_anything(configs):
    """What is not valid is not looked at: neither prediction nor response."""
    data = make_data(configs)
    data.setup()
    prepared = data.sessions[1]
    first = np.flatnonzero(prepared.split == 1)[0]
    mask = prepared.mask.copy()
    mask[first : first + 12] = False
    data.sessions[1] = replace(prepared, mask=mask)
    spoil(data, bins=slice(first, first + 8))  # the prediction of a bin sees behaviour of up to three bins before it
    trainer = make_trainer(max_epochs=1)
    trainer.fit(make_model(data), data)
    assert math.isfinite(trainer.callback_metrics["val_bps/s1_x"].item())


@pytest.mark.slow
def test_two_processes_skip_like_one(configs):
    """The broken session is left out on both, also where only one of them has it."""
    results = []
    for devices, batch_size in ((1, 32), (2, 16)):
        data = spoil(make_data(configs, batch_size=batch_size))
        module = make_model(data, on_nan="skip")
        strategy = GradientSumStrategy(start_method="spawn") if devices > 1 else "auto"
        make_trainer(devices=devices, strategy=strategy, precision="64-true").fit(module, data)
        results.append({name: value.double() for name, value in module.twin.state_dict().items()})
    assert_same(*results, 1e-6)


# --- sessions at their limits ---------------------------------------------------------------------------------------


def test_silent_units_and_blank_stimuli_train_and_are_stated(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    (config,) = make_configs(tmp_path, n_sessions=1)
    session = Session.load(config.path)
    counts = np.array(session.responses)[:, [0, 1, 0, 1]]
    counts[:, 1:3] = 0
    counts[:, 2][np.flatnonzero(np.asarray(session.valid))[::2]] = 0
    data = make_data([config])
    data.setup()
    train_bins = np.flatnonzero(data.sessions[0].mask[:, 0] & (data.sessions[0].split == 0))
    counts[data.sessions[0].frame[train_bins[3]], 2] = 1
    replace_session = Session(
        name=session.name, bin_rate=60.0, stimulus=np.full_like(session.stimulus, 90), responses=counts,
        behavior=dict(session.behavior), trial=session.trial, valid=session.valid,
    )  # fmt: skip
    replace_session.save(config.path)
    caplog.clear()
    trainer = run(tmp_path / "run", [config])
    assert "session s0_x: 1 of 4 units without a spike in training (1)" in caplog.text
    assert "1 with a single one (2)" in caplog.text and "every frame is blank" in caplog.text
    table = evaluate(load_twin(tmp_path / "run" / "last.ckpt"), trainer.datamodule.sessions, "val")
    assert np.isnan(table["bps"][1]) and np.isfinite(table["bps"][[0, 3]]).all()
    assert all(math.isfinite(value) for value in table["nll"])
    assert math.isfinite(trainer.callback_metrics["val_bps"].item())


# --- the reference --------------------------------------------------------------------------------------------------


def test_a_small_run_gives_the_results_it_always_gave(tmp_path):
    """The results move only on purpose: NEUROTWIN_NEW_REFERENCE=1 pytest -k it_always_gave writes them anew."""
    settings = {"lr_scheduler": "cosine_warmup", "warmup_epochs": 1}
    configs = make_configs(tmp_path, seed=7, scale=4)
    trainer = run(tmp_path / "run", configs, settings=settings, steps_per_epoch=30, curriculum_steps=30, batch_size=256)
    table = evaluate(load_twin(tmp_path / "run" / "best.ckpt"), trainer.datamodule.sessions, "val")
    table.write(tmp_path / "units.csv")
    if os.environ.get("NEUROTWIN_NEW_REFERENCE"):
        REFERENCE.parent.mkdir(exist_ok=True)
        table.write(REFERENCE)
    comparison = compare(REFERENCE, tmp_path / "units.csv", tolerance=1e-3)
    assert comparison.same, comparison.text()
