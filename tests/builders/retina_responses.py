"""A session of the retina as naturalscene.h5 and whitenoise.h5, with a part for training and a repeated test."""

from pathlib import Path

import h5py
import numpy as np

__all__ = ["build"]


def build(
    folder: Path,
    kinds: tuple[str, ...] = ("naturalscene", "whitenoise"),
    *,
    name: str = "15-10-07",
    n_units: int = 3,
    size: tuple[int, int] = (6, 6),
    n_train: int = 2500,
    n_test: int = 50,
    n_repeats: int = 4,
    repeats: str = "counts",
    time: bool = True,
    names: tuple[str, ...] = ("firing_rate_5ms", "firing_rate_10ms", "firing_rate_20ms"),
    seed: int = 0,
) -> tuple[Path, dict[str, dict[str, np.ndarray]]]:
    """Write the session `folder/name`; returns its folder and what each file holds.

    Of each file: train, train_rate, test, test_rate and repeats (N, R, T).

    The test's response has a bin more than its stimulus. `repeats` are "counts", "rates", "odd" (of another unit) or
    "" for none. The rates of the three smoothings differ by one spike a second.
    """
    rng = np.random.default_rng(seed)
    session, written = folder / name, {}
    session.mkdir(parents=True, exist_ok=True)
    for kind in kinds:
        counts = rng.poisson(0.3, (n_units, n_repeats, n_test + 1)).astype(np.float64)
        values = {
            "train": rng.integers(0, 256, (n_train, *size), np.uint8),
            "test": rng.integers(0, 256, (n_test, *size), np.uint8),
            "train_rate": rng.gamma(1.0, 10.0, (n_units, n_train)), "test_rate": 100 * counts.mean(axis=1),
            "repeats": counts * {"counts": 1, "rates": 100, "odd": 7}.get(repeats, 0),
        }  # fmt: skip
        written[kind] = values
        with h5py.File(session / f"{kind}.h5", "w") as file:
            for part in ("train", "test"):
                file[f"{part}/stimulus"] = values[part]
                for name in names:
                    extra = {"firing_rate_5ms": 1.0, "firing_rate_20ms": -1.0}.get(name, 0.0)
                    file[f"{part}/response/{name}"] = values[f"{part}_rate"] + extra
                if time:
                    file[f"{part}/time"] = np.arange(len(values[part])) / 100
            if repeats:
                for cell in range(n_units):
                    file[f"test/repeats/cell{cell + 1:02d}"] = values["repeats"][cell]
    return session, written
