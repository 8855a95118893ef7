"""A session of the retina in SESSION.h5, with its movies in the folder `stimuli` beside it."""

from pathlib import Path

import h5py
import numpy as np

__all__ = ["build"]


def build(
    folder: Path,
    *,
    name: str = "mouse7_240501",
    n_units: int = 4,
    channels: int = 2,
    size: tuple[int, int] = (6, 5),
    lengths: dict[str, int] | None = None,
    rate: float | None = 30.0,
    inside: tuple[str, ...] = (),
    dtype: type = np.float64,
    nan_bins: tuple[int, ...] = (),
    seed: int = 0,
) -> tuple[Path, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Write the files; returns the path of SESSION.h5, the movies (C, T, H, W) and the responses (N, T) by name.

    Movies named in `inside` lie in the .h5 file; responses of the first movie are NaN in `nan_bins`.
    """
    rng = np.random.default_rng(seed)
    lengths = {"noise_train": 900, "noise_test": 40} if lengths is None else lengths
    (folder / "stimuli").mkdir(parents=True, exist_ok=True)
    movies, responses = {}, {}
    for stimulus, length in lengths.items():
        shape = (channels, length, *size)
        movies[stimulus] = (
            rng.integers(0, 256, shape, np.uint8) if dtype is np.uint8 else rng.normal(size=shape).astype(dtype)
        )
        responses[stimulus] = rng.gamma(2.0, 1.0, (n_units, length)) - 0.5
        if nan_bins and stimulus == next(iter(lengths)):
            responses[stimulus][1, list(nan_bins)] = np.nan
        if stimulus not in inside:
            np.save(folder / "stimuli" / f"{stimulus}.npy", movies[stimulus])
    path = folder / f"{name}.h5"
    with h5py.File(path, "w") as file:
        for stimulus in lengths:
            file[f"responses_{stimulus}"] = responses[stimulus]
            if stimulus in inside:
                file[f"stimulus_{stimulus}"] = movies[stimulus]
        file["session_info/celltypes"] = np.arange(n_units) % 3
        file["session_info/roi_ids"] = 10 + 2 * np.arange(n_units)
        file["session_info/roi_coords"] = np.arange(2.0 * n_units).reshape(n_units, 2)
        file["session_info/eye"] = "left"
        if rate is not None:
            file["session_info"].attrs["frame_rate"] = rate
    return path, movies, responses
