"""What tests of the training package share: a tiny model, data module and run."""

from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from neurotwin.clip import Clip, Sample, Target
from training.samplers import ClipSampler
from training.schedulers import make_scheduler


@dataclass
class TinyBatch:
    """What the callbacks count: clips and their targets, one Sample a session."""

    samples: list[Sample]


class TinyLoader:
    """Clips of 3 predicted bins, in the order of a sampler."""

    def __init__(self, sampler: ClipSampler) -> None:
        self.sampler = sampler

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[TinyBatch]:
        for clips in self.sampler:
            yield self.batch(clips)

    @staticmethod
    def batch(clips: np.ndarray) -> TinyBatch:
        values = torch.from_numpy(clips)[:, None, None].float().expand(-1, 3, 1).sin()
        clip = Clip(0, 3, values, bins=torch.from_numpy(clips))
        return TinyBatch([Sample(clip, Target(values, values > -2))])

    def state_dict(self) -> dict:
        """Lightning takes a loader with a state for one that can resume within an epoch."""
        return {}

    def load_state_dict(self, state: dict) -> None:
        """The data module restores the sampler's step."""


class TinyData(pl.LightningDataModule):
    """10 clips to train on, 4 to validate on."""

    def __init__(self, sampler: ClipSampler) -> None:
        super().__init__()
        self.sampler = sampler

    def train_dataloader(self) -> TinyLoader:
        return TinyLoader(self.sampler)

    def val_dataloader(self) -> DataLoader:
        held_out = ClipSampler(4, batch_size=2, steps_per_epoch=2, seed=1)
        return DataLoader(list(TinyLoader(held_out)), batch_size=None)

    def state_dict(self) -> dict:
        return self.sampler.state_dict()

    def load_state_dict(self, state: dict) -> None:
        self.sampler.load_state_dict(state)


class TinyModel(pl.LightningModule):
    """One weight and bias; `val_bps` falls and rises with them."""

    def __init__(self, lr_scheduler: str = "none", epochs: int = 3, steps: int = 4) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        nn.init.constant_(self.layer.weight, 0.5)
        nn.init.constant_(self.layer.bias, 0.1)
        self.plan = {"kind": lr_scheduler, "max_epochs": epochs, "steps_per_epoch": steps, "warmup_epochs": 1}
        self.seen: list[list[int]] = []
        self.rates: list[float] = []

    def training_step(self, batch: TinyBatch, batch_idx: int) -> Tensor:
        (sample,) = batch.samples
        self.seen.append(sample.clip.bins.tolist())
        self.rates.append(self.optimizers().param_groups[0]["lr"])
        return (self.layer(sample.clip.stimulus) - sample.target.responses.cos()).square().mean()

    def on_train_epoch_end(self) -> None:
        self.log("train_loss", 0.25)

    def validation_step(self, batch: TinyBatch, batch_idx: int) -> None:
        loss = (self.layer(batch.samples[0].clip.stimulus) - 0.3).square().mean()
        self.log("val_loss", loss, batch_size=1)
        self.log("val_bps", -loss, batch_size=1)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.05)
        schedule = make_scheduler(optimizer, **self.plan)
        if self.plan["kind"] == "plateau":
            schedule["scheduler"].patience = 0
        return optimizer if schedule is None else {"optimizer": optimizer, "lr_scheduler": schedule}


class Clock(pl.Callback):
    """Time as it would pass: seconds a step and a validation take."""

    def __init__(self, step: float, validation: float) -> None:
        self.now, self.step, self.validation, self.validations = 0.0, step, validation, 0

    def __call__(self) -> float:
        return self.now

    def on_train_batch_end(self, *_) -> None:
        self.now += self.step

    def on_validation_end(self, *_) -> None:
        self.now += self.validation
        self.validations += 1


@pytest.fixture
def tiny() -> SimpleNamespace:
    """The classes above, for tests that vary them."""
    return SimpleNamespace(Model=TinyModel, Loader=TinyLoader, Data=TinyData, Clock=Clock)


@pytest.fixture
def fit():
    """Train a tiny model: 3 epochs of 4 steps of 2 clips out of 10, unless told otherwise."""

    def run(*callbacks, model=None, epochs=3, steps=4, sampler=None, ckpt_path=None, **options):
        model = model or TinyModel(epochs=epochs, steps=steps)
        sampler = sampler or ClipSampler(10, batch_size=2, steps_per_epoch=steps, seed=0)
        saves = any(isinstance(callback, pl.callbacks.Checkpoint) for callback in callbacks)
        trainer = pl.Trainer(
            accelerator="cpu", max_epochs=epochs, callbacks=list(callbacks), enable_checkpointing=saves,
            enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
            num_sanity_val_steps=0, **{"logger": False, **options},
        )  # fmt: skip
        trainer.fit(model, TinyData(sampler), ckpt_path=ckpt_path)
        return trainer

    return run
