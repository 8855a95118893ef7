"""Memory of `neurotwin convert` on recordings of 1 and of 3 GB: a recording is never held whole."""

import shutil
import time
from pathlib import Path

import numpy as np
import torch

from neurotwin.cli import main as neurotwin

from .common import UNITS, Result, Target, in_fresh_process, main

__all__ = ["TARGETS", "convert", "measure", "write_recording"]

TARGETS = {
    "growth": Target("memory of a conversion that a recording of 3 GB takes beyond one of 1 GB", 100, "MB", True),
    "long": Target("memory of the conversion of 20 GB, from the line through those of 1 and 3 GB", 1000, "MB", True),
}
RATE, SIZE = 240.0, 51
"""Of the recordings: bins a second (Hz), pixels a side."""


def measure(folder: Path, quick: bool) -> Result:
    """Convert recordings in the `.dset` layout, each in a process of its own.

    Peak memory counts all pages that a process has in memory at once, those of mapped files too.
    """
    rows, peaks = [], {}
    for size in (2e6, 6e6) if quick else (1e9, 3e9):
        source = folder / f"ada_{size / 1e6:.0f}"
        n_bins = write_recording(source, size)
        seconds, before, peak = in_fresh_process(
            "benchmarks.conversion:convert", source=str(source), target=str(folder / "converted")
        )
        shutil.rmtree(source)
        peaks[size] = peak
        rows.append((f"{size / 1e9:.3g} GB", n_bins / RATE / 60, seconds, before, peak))
    shutil.rmtree(folder / "converted")
    smaller, larger = peaks.values()
    columns = ("recording", "minutes", "s", "MB before", "MB at most")
    # What grows are the numbers that every bin has: its time, its trial, its repeat.
    return Result(columns, rows, {"growth": larger - smaller, "long": larger + 17 * (larger - smaller) / 2})


def write_recording(folder: Path, size: float) -> int:
    """Write FOLDER/datasets/gaborium.dset of about `size` bytes, with gaze and quality control; its number of bins.

    Frames are written to a file that is mapped, because this process should not hold them either.
    """
    n_bins = int(size) // (SIZE * SIZE + 4 * UNITS)
    rng, trial = np.random.default_rng(0), np.arange(n_bins) // 600
    (folder / "datasets").mkdir(parents=True)
    frames = np.memmap(folder / "frames", np.uint8, "w+", shape=(n_bins, SIZE, SIZE))
    for first in range(0, n_bins, 4096):
        part = frames[first : first + 4096]
        part[:] = rng.integers(0, 256, part.shape, dtype=np.uint8)
    covariates = {
        "stim": torch.from_numpy(frames),
        "robs": torch.from_numpy(rng.poisson(0.2, (n_bins, UNITS)).astype(np.float32)),
        "t_bins": torch.from_numpy((np.arange(n_bins) + 0.5) / RATE + trial),
        "trial_inds": torch.from_numpy(trial),
        "eyepos": torch.from_numpy(rng.normal(size=(n_bins, 2)).astype(np.float32)),
        "dpi_pix": torch.from_numpy(rng.normal(size=(n_bins, 2)).astype(np.float32)),
        "dpi_valid": torch.ones(n_bins),
    }
    torch.save({"covariates": covariates, "metadata": {"ppd": 37.5}}, folder / "datasets" / "gaborium.dset")
    del covariates, frames
    (folder / "frames").unlink()
    (folder / "qc").mkdir()
    windows = np.tile([[0.0, 300.0], [300.0, 600.0]], (UNITS, 1))
    missing = {"cid": np.repeat(np.arange(UNITS), 2), "mpcts": rng.uniform(0, 60, 2 * UNITS), "window_blocks": windows}
    np.savez(folder / "qc" / "truncation.npz", **missing)
    return n_bins


def convert(source: str, target: str) -> tuple[float, float, float]:
    """Seconds of a conversion, and the most memory of this process before it and until its end, MB."""
    before, began = peak_memory(), time.perf_counter()
    if neurotwin(["convert", source, target]):
        raise RuntimeError(f"{source} was not converted")
    return time.perf_counter() - began, before, peak_memory()


def peak_memory() -> float:
    """The most memory that this process has had, MB; unlike that of `getrusage`, not that of its parent."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


if __name__ == "__main__":
    main(measure, TARGETS, "conversion")
