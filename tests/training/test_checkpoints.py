"""Checkpoints: whole, verified, resumed to the bit."""

import os
import shutil

import lightning.pytorch as pl
import pytest
import torch

from training.callbacks import TimeBudgetCallback
from training.checkpoints import SafeCheckpoint, SafeCheckpointIO, latest_checkpoint


@pytest.fixture
def keep_all(tmp_path, monkeypatch):
    """A copy of every checkpoint that is written while `copies` is not None."""
    kept: dict = {"copies": []}
    save = SafeCheckpoint._save

    def keep(self, trainer, name):
        save(self, trainer, name)
        if kept["copies"] is not None:
            copy = tmp_path / f"{len(kept['copies'])}_{name}"
            kept["copies"].append(shutil.copy(self.folder / name, copy))

    monkeypatch.setattr(SafeCheckpoint, "_save", keep)
    return kept


def end_of(trainer: pl.Trainer, checkpoint: SafeCheckpoint) -> list:
    state = trainer.lightning_module.state_dict() | trainer.optimizers[0].state_dict()["state"][0]
    return [*(value.tolist() for value in state.values()), trainer.global_step, trainer.current_epoch, checkpoint.best]


@pytest.mark.parametrize(("schedule", "accumulate"), [("cosine_warmup", 1), ("cosine_warmup", 3), ("plateau", 2)])
def test_every_checkpoint_resumes_to_the_bit(fit, tiny, tmp_path, keep_all, schedule, accumulate):
    def run(folder, ckpt_path=None):
        model = tiny.Model(schedule, steps=4)
        checkpoint = SafeCheckpoint(tmp_path / folder, every_n_steps=1)
        trainer = fit(checkpoint, model=model, ckpt_path=ckpt_path, accumulate_grad_batches=accumulate)
        return model, end_of(trainer, checkpoint)

    whole, end = run("whole")
    copies, keep_all["copies"] = keep_all["copies"], None
    assert {path.name.split("_")[1] for path in copies} == {"best.ckpt", "last.ckpt"}
    if schedule == "plateau":
        assert len(set(whole.rates)) > 1
    for number, path in enumerate(copies):
        resumed, its_end = run(f"resumed{number}", ckpt_path=path)
        assert its_end == end
        assert resumed.seen == whole.seen[len(whole.seen) - len(resumed.seen) :]
        assert resumed.rates == whole.rates[len(whole.seen) - len(resumed.seen) :]


@pytest.mark.parametrize(
    ("mode", "scores"), [("max", [0.1, 0.3, float("nan"), 0.2]), ("min", [-0.1, -0.3, -0.2, -0.1])]
)
def test_the_best_is_that_of_the_best_validation(fit, tiny, tmp_path, mode, scores):
    values = iter(scores)

    class Model(tiny.Model):
        def on_validation_epoch_end(self):
            self.log("score", next(values))

    checkpoint = SafeCheckpoint(tmp_path, monitor="score", mode=mode)
    fit(checkpoint, model=Model(), epochs=4)
    assert checkpoint.best == pytest.approx(scores[1])
    steps = {name: torch.load(tmp_path / name, weights_only=True)["global_step"] for name in ("best.ckpt", "last.ckpt")}
    assert steps == {"best.ckpt": 8, "last.ckpt": 16}
    assert sorted(os.listdir(tmp_path)) == ["best.ckpt", "best.previous.ckpt", "last.ckpt", "last.previous.ckpt"]


def test_a_metric_that_is_not_logged_is_an_error(fit, tmp_path):
    with pytest.raises(ValueError, match="'val_bpss' was not logged; there is: val_bps, val_loss"):
        fit(SafeCheckpoint(tmp_path, monitor="val_bpss"))


def test_a_run_that_a_time_budget_cut_short_goes_on_where_it_was(fit, tiny, tmp_path):
    whole, model = tiny.Model(), tiny.Model()
    end = end_of(fit(SafeCheckpoint(tmp_path / "whole"), model=whole), SafeCheckpoint(tmp_path))[:-1]
    clock = tiny.Clock(1.0, 1.5)
    fit(clock, TimeBudgetCallback(10 / 60, clock), SafeCheckpoint(tmp_path / "cut"), model=model)
    assert model.seen == whole.seen[:6]
    resumed = tiny.Model()
    trainer = fit(SafeCheckpoint(tmp_path / "cut"), model=resumed, ckpt_path=tmp_path / "cut" / "last.ckpt")
    assert resumed.seen == whole.seen[6:]
    assert end_of(trainer, SafeCheckpoint(tmp_path))[:-1] == end


def test_a_torn_checkpoint_is_recognised_and_the_one_before_used(tmp_path, caplog):
    files = SafeCheckpointIO()
    assert latest_checkpoint(tmp_path) is None
    for step in (1, 2):
        files.save_checkpoint({"step": step, "x": torch.arange(1000.0)}, tmp_path / "last.ckpt")
    assert files.load_checkpoint(latest_checkpoint(tmp_path))["step"] == 2
    whole = (tmp_path / "last.ckpt").read_bytes()
    altered = bytearray(whole)
    altered[whole.index(torch.arange(1000.0).numpy().tobytes()) + 40] ^= 1
    for content, fault in ((whole[:-100], "torn"), (b"", "torn"), (bytes(altered), "altered")):
        (tmp_path / "last.ckpt").write_bytes(content)
        caplog.clear()
        assert files.load_checkpoint(latest_checkpoint(tmp_path))["step"] == 1
        assert fault in caplog.text and "going on from" in caplog.text
        with pytest.raises(ValueError, match=f"last.ckpt: {fault}"):
            files.load_checkpoint(tmp_path / "last.ckpt")
    (tmp_path / "last.previous.ckpt").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"last.ckpt: altered.*; .*last.previous.ckpt: torn"):
        latest_checkpoint(tmp_path)


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    files = SafeCheckpointIO()
    path = tmp_path / "last.ckpt"
    files.save_checkpoint({"step": 1}, path)
    save = torch.save

    def full_disk(value, file):
        save(value, file)
        file.truncate(100)
        raise RuntimeError("unexpected pos 64 vs 0")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match=r"cannot be written .unexpected pos.*; the checkpoint before it is untouched"):
        files.save_checkpoint({"step": 2}, path)
    assert os.listdir(tmp_path) == ["last.ckpt"]
    assert files.load_checkpoint(path)["step"] == 1


def test_loading_runs_no_code(tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"state_dict": Hostile()}, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match=r"last.ckpt: refused"):
        SafeCheckpointIO().load_checkpoint(tmp_path / "last.ckpt", weights_only=False)
    assert not (tmp_path / "ran").exists()
