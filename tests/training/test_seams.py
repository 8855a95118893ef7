"""What the project takes from inside Lightning, checked in a run; a release that moves it makes these fail."""

import ast
import re
import signal
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.plugins import TorchCheckpointIO

from training import seams
from training.checkpoints import SafeCheckpoint
from training.processes import GradientSumStrategy

ROOT = Path(__file__).parents[2]


class Watch(pl.Callback):
    """What the seams say at each micro-batch, and whether the optimizer really stepped."""

    def __init__(self):
        self.done, self.said, self.stepped, self.at_end, self._steps = [], [], [], [], 0

    def on_train_batch_start(self, trainer, *_):
        self.done.append(seams.micro_batches_done(trainer))
        self._steps = trainer.global_step

    def on_after_backward(self, trainer, *_):
        self.said.append(seams.optimizer_steps_now(trainer))

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        assert seams.micro_batches_done(trainer) == self.done[-1]
        self.stepped.append(trainer.global_step > self._steps)
        self.at_end.append(seams.at_epoch_end(trainer))


def test_micro_batches_steps_and_ends_of_epochs(fit):
    watch = Watch()
    fit(watch, epochs=2, steps=5, accumulate_grad_batches=2)
    assert watch.done == list(range(10))
    assert watch.said == watch.stepped == [False, True, False, True, True] * 2
    assert watch.at_end == [False, False, False, False, True] * 2


def test_micro_batches_are_counted_on_after_a_resumption(fit, tmp_path):
    fit(SafeCheckpoint(tmp_path), epochs=1)
    watch = Watch()
    fit(watch, SafeCheckpoint(tmp_path), epochs=2, ckpt_path=tmp_path / "last.ckpt")
    assert watch.done == [4, 5, 6, 7]


def test_training_that_stops_within_an_epoch_is_not_at_its_end(fit):
    class Stop(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            trainer.should_stop = True

    watch = Watch()
    fit(Stop(), watch)
    assert watch.at_end == [False]


@pytest.mark.parametrize("epochs", [1, 2])
def test_epochs_of_a_checkpoint(fit, tmp_path, epochs):
    fit(SafeCheckpoint(tmp_path), epochs=epochs)
    assert seams.epochs_trained(torch.load(tmp_path / "last.ckpt", weights_only=True)) == epochs


def test_signals_are_left_alone(fit):
    class Leave(pl.Callback):
        def setup(self, trainer, pl_module, stage):
            seams.leave_signals_alone(trainer)

    class Look(pl.Callback):
        def on_train_start(self, *_):
            self.handler = signal.getsignal(signal.SIGTERM)

    before, look = signal.getsignal(signal.SIGTERM), Look()
    fit(look)
    assert look.handler is not before  # the trainer's own, without the seam
    fit(Leave(), look)
    assert look.handler is before


def test_processes_do_not_wait_for_each_other_before_a_batch():
    """Before each batch the trainer asks an inner function for signals; the seam replaces the one that it asks."""
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    loop = trainer.fit_loop.epoch_loop
    assert callable(loop._broadcast_sigterm_tensor)
    assert "self._broadcast_sigterm_tensor()" in Path(sys.modules[type(loop).__module__].__file__).read_text()
    seams.leave_signals_alone(trainer)
    assert loop._broadcast_sigterm_tensor() is None


def test_checkpoints_go_through_the_given_io(fit, tmp_path):
    written = []

    class Noted(TorchCheckpointIO):
        def save_checkpoint(self, checkpoint, path, storage_options=None):
            written.append(Path(path).name)

    class Use(pl.Callback):
        def setup(self, trainer, pl_module, stage):
            seams.use_checkpoint_io(trainer, Noted())

        def on_train_end(self, trainer, *_):
            trainer.save_checkpoint(tmp_path / "a.ckpt")

    fit(Use(), epochs=1)
    assert written == ["a.ckpt"]


def test_processes_that_the_trainer_started_are_killed():
    options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    seams.kill_processes(pl.Trainer(**options))  # one process: nothing to kill
    trainer = pl.Trainer(devices=2, strategy=GradientSumStrategy(), **options)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        trainer.strategy.launcher.procs.append(process)
        seams.kill_processes(trainer)
        assert process.wait(timeout=30) == -signal.SIGTERM


@pytest.mark.parametrize("path", sorted((ROOT / "training").rglob("*.py")), ids=lambda path: path.name)
def test_no_other_file_reaches_into_lightning(path):
    """Attributes of a trainer that its documentation does not name are used in seams.py alone."""
    source = path.read_text()
    inner = re.findall(
        r"fit_loop|epoch_loop|batch_progress|_signal_connector|strategy\.(?:checkpoint_io|launcher)", source
    )
    private = [
        ast.unparse(node)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and "trainer" in ast.unparse(node.value)
    ]
    assert (inner == [] and private == []) is (path.name != "seams.py")
