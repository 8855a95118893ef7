"""How long does it take, and how much memory, to fit many units on cached features of a long recording?

    python -m benchmarks.transfer

Features and responses are drawn (an hour at 120 Hz, 16 features of 9 × 9 pixels); the core is not run. The bank of
features lies in a file, as `neurotwin transfer` keeps it.
"""

import time
from pathlib import Path

import numpy as np
import torch

from neurotwin.config import DatasetConfig, ModelConfig
from neurotwin.data.prepare import Prepared
from neurotwin.data.spec import SessionSpec
from neurotwin.models import TwinModel
from neurotwin.transfer.features import FeatureBank
from neurotwin.transfer.fit import fit_session, score_bank

from .common import Result, Target, main, watched_memory

__all__ = ["TARGETS", "measure", "synthetic"]

TARGETS = {
    "seconds": Target("seconds to fit 1,000 units on cached features of an hour at 120 Hz", 120, "s", at_most=True),
    "memory": Target("private memory of this fit", 2, "GB", at_most=True),
}

BIN_RATE, CHANNELS, SIZE = 120.0, 16, 9


def synthetic(n_units: int, minutes: float, folder: Path) -> tuple[TwinModel, FeatureBank, np.ndarray]:
    """A twin whose core does nothing, features in a file, and the true positions (U, 2), feature pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    n_bins, rng = round(minutes * 60 * BIN_RATE), np.random.default_rng(0)
    config = DatasetConfig(session="synthetic", keys_lags={"stim": 0})
    spec = SessionSpec(
        name="synthetic", subject="synthetic", unit_ids=tuple(range(n_units)), frame_shape=(CHANNELS, SIZE, SIZE),
        bin_rate=BIN_RATE, n_lags=1, config=config,
    )  # fmt: skip
    model = ModelConfig(initial_input_channels=CHANNELS, readout={"type": "gaussian"})
    twin, truth = TwinModel(model, [spec]), TwinModel(model, [spec]).per_session[0]
    places = torch.from_numpy(rng.uniform(-3, 3, (n_units, 2)).astype(np.float32))
    with torch.no_grad():
        truth.readout.mean.copy_(places)
        truth.readout.features.normal_(std=0.7, generator=torch.Generator().manual_seed(0))
        truth.readout.bias.fill_(-1.5)
    features = np.lib.format.open_memmap(folder / "f.npy", "w+", np.float16, (n_bins, CHANNELS, SIZE, SIZE))
    responses = np.lib.format.open_memmap(folder / "y.npy", "w+", np.uint8, (n_bins, n_units))
    for first in range(0, n_bins, 4096):
        x = rng.standard_normal((min(4096, n_bins - first), CHANNELS, SIZE, SIZE), np.float32) * 1.5
        features[first : first + len(x)] = x
        with torch.no_grad():
            rates = truth(torch.from_numpy(x)[:, :, None])[:, 0].numpy()
        responses[first : first + len(x)] = rng.poisson(rates)
    split = (np.arange(n_bins) // 1200 % 5 == 0).astype(np.int8)
    everything, unit = np.lib.format.open_memmap(folder / "m.npy", "w+", bool, (n_bins, n_units)), np.zeros(n_units)
    everything[:] = True
    prepared = Prepared(
        spec=spec, source=features, frame=np.arange(n_bins), responses=responses, mask=everything,
        n_valid=np.full(n_bins, n_units, np.int32), train_bins=unit, train_presentations=unit, train_sum=unit,
        train_squares=unit, train_zeros=unit, split=split, run_start=np.zeros(n_bins, int),
        run_stop=np.full(n_bins, n_bins), contrast=np.ones(n_bins), trial=np.arange(n_bins) // 1200,
        repeat_id=np.full(n_bins, -1),
    )  # fmt: skip
    del features
    stored = np.load(folder / "f.npy", mmap_mode="r")
    return twin, FeatureBank(prepared=prepared, features=stored, bins=np.arange(n_bins)), places.numpy()


def measure(folder: Path, quick: bool) -> Result:
    """Seconds and private memory of the fit, and how well it found the positions."""
    n_units, minutes = (4, 0.5) if quick else (1000, 60.0)
    twin, bank, places = synthetic(n_units, minutes, folder)
    with watched_memory() as highest:
        start = time.perf_counter()
        report = fit_session(twin, 0, bank)
        seconds = time.perf_counter() - start
    away = np.linalg.norm(twin.per_session[0].readout.mean.detach().numpy() - places, axis=1)
    score = score_bank(twin.per_session[0], bank.part("val").thinned(20_000)).compute()["correlation"]
    rows = [
        ("units", n_units), ("bins", len(bank)), ("training bins used", report.bins), ("seconds", seconds),
        ("private memory, MB", highest[0]), ("median distance from the true position, pixels", float(np.median(away))),
        ("mean correlation with the responses", float(np.nanmean(score))),
    ]  # fmt: skip
    return Result(("what", "value"), rows, {"seconds": seconds, "memory": highest[0] / 1024})


if __name__ == "__main__":
    main(measure, TARGETS, "transfer")
