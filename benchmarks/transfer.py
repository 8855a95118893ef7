"""How long does it take, and how much memory, to fit many units on cached features of a long recording?

    python -m benchmarks.transfer [--units 1000] [--minutes 60] [--folder DIR]

Features and responses are drawn (an hour at 120 Hz, 16 features of 9 × 9 pixels); the core is not run. The bank of
features lies in a file, as `neurotwin transfer` keeps it.
"""

import argparse
import json
import resource
import tempfile
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

__all__ = ["main", "synthetic"]

BIN_RATE, CHANNELS, SIZE = 120.0, 16, 9


def synthetic(n_units: int, minutes: float, folder: Path) -> tuple[TwinModel, FeatureBank, np.ndarray]:
    """A twin whose core does nothing, features in a file, and the true positions (U, 2), feature pixels."""
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
    responses = np.empty((n_bins, n_units), np.uint8)
    for first in range(0, n_bins, 4096):
        x = rng.standard_normal((min(4096, n_bins - first), CHANNELS, SIZE, SIZE), np.float32) * 1.5
        features[first : first + len(x)] = x
        with torch.no_grad():
            rates = truth(torch.from_numpy(x)[:, :, None])[:, 0].numpy()
        responses[first : first + len(x)] = rng.poisson(rates)
    split = (np.arange(n_bins) // 1200 % 5 == 0).astype(np.int8)
    everything, unit = np.ones((n_bins, n_units), bool), np.zeros(n_units)
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


def main() -> None:
    """Fit, and print time, memory and how well the positions were found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--units", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--folder", help="of the features; default: a temporary one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        twin, bank, places = synthetic(arguments.units, arguments.minutes, Path(folder))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start, cpu = time.perf_counter(), time.process_time()
        report = fit_session(twin, 0, bank)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        away = np.linalg.norm(twin.per_session[0].readout.mean.detach().numpy() - places, axis=1)
        score = score_bank(twin.per_session[0], bank.part("val").thinned(20_000)).compute()["correlation"]
        print(
            json.dumps(
                {
                    "units": arguments.units, "bins": len(bank), "bins used": report.bins, "seconds": round(seconds, 1),
                    "cpu seconds": round(cpu, 1), "penalty": report.penalty,
                    "peak MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, "MB before": before // 1024,
                    "median pixels away": round(float(np.median(away)), 3),
                    "mean correlation": round(float(score.nanmean()), 4),
                },
                indent=2,
            )
        )  # fmt: skip


if __name__ == "__main__":
    main()
