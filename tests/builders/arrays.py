"""A small recording as arrays that carry the names of a session's fields."""

from pathlib import Path

import numpy as np

__all__ = ["build"]


def build(folder: Path, *, name: str = "ada_0501", n_bins: int = 1200, n_units: int = 3, seed: int = 0) -> Path:
    """Write FOLDER/NAME.npz: noise of 12 x 12 pixels at 60 Hz; each unit counts with the brightness of one pixel."""
    rng = np.random.default_rng(seed)
    stimulus = rng.integers(0, 256, (n_bins, 12, 12)).astype(np.uint8)
    brightness = stimulus[:, 5, 4 : 4 + n_units] / 255
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.npz"
    np.savez(
        path, stimulus=stimulus, responses=rng.poisson(brightness), bin_rate=60.0, trial=np.arange(n_bins) // 60,
        **{"behavior.pupil": rng.random(n_bins), "unit_labels.area": np.full(n_units, "V1")},
    )  # fmt: skip
    return path
