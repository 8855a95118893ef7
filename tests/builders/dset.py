"""A session in the `.dset` layout: `datasets/TYPE.dset`, quality control and saccades beside it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

__all__ = ["build", "covariates", "write_type"]

RATE = 240.0
KINDS = ("backimage", "fixrsvp", "gaborium", "gratings")


def covariates(
    kind: str,
    *,
    n_trials: int = 4,
    n_bins: int = 60,
    n_units: int = 5,
    size: int = 8,
    start: float = 10.0,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Covariates of one stimulus type, T first: trials of `n_bins` bins with a second between them."""
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    total = n_trials * n_bins
    place, trial = np.tile(np.arange(n_bins), n_trials), np.repeat(np.arange(n_trials), n_bins)
    values = {
        "stim": rng.integers(0, 256, (total, size, size), dtype=np.uint8),
        "robs": rng.poisson(0.3, (total, n_units)).astype(np.float32),
        "t_bins": start + place / RATE + trial * (n_bins / RATE + 1.0),
        "trial_inds": trial,
        "eyepos": rng.normal(0, 1, (total, 2)).astype(np.float32),
        "dpi_pix": rng.normal(500, 9, (total, 2)).astype(np.float32),
        "dpi_valid": (rng.random(total) > 0.02).astype(np.float32),
        "roi": rng.integers(0, 99, (total, 2, 2)),
    }
    if kind == "gratings":
        values |= {
            "stim_phase": rng.random(total).astype(np.float32),
            "sf": rng.choice([1.0, 2.0, 4.0], total),
            "ori": np.where(rng.random(total) < 0.2, np.nan, rng.choice([0.0, 45.0, 90.0], total)),
        }
    if kind == "fixrsvp":
        values["psth_inds"] = place
    return values


def write_type(path: Path, values: dict[str, Any], metadata: dict[str, Any]) -> Path:
    """One .dset file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {key: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for key, v in values.items()}
    torch.save({"covariates": tensors, "metadata": metadata}, path)
    return path


def build(
    folder: Path,
    kinds: tuple[str, ...] = KINDS,
    *,
    name: str = "ada_2024-05-01",
    eye: str = "",
    cluster_ids: list[int] | None = None,
    qc: bool = True,
    windows: bool = False,
    saccades: bool = True,
    seed: int = 0,
    metadata: dict[str, Any] | None = None,
    **sizes: int,
) -> tuple[Path, dict[str, dict[str, np.ndarray]]]:
    """Write the session `folder/name`; returns its folder and the covariates by stimulus type.

    With `windows`, truncation.npz holds two estimates a unit, with the windows in s to which they belong.
    """
    session, written = folder / name, {}
    details: dict[str, Any] = {
        "ppd": np.float64(37.5), "roi_src": "gaze", "screen_distance_cm": np.float32(57.0),
        "depth_um": np.linspace(100, 900, sizes.get("n_units", 5)), "region": "V1",
    } | (metadata or {})  # fmt: skip
    if cluster_ids is not None:
        details["cluster_ids"] = np.array(cluster_ids)
    for number, kind in enumerate(kinds):
        written[kind] = covariates(kind, start=10.0 + 1000 * number, seed=seed, **sizes)
        write_type(session / "datasets" / eye / f"{kind}.dset", written[kind], details)
    n_units = sizes.get("n_units", 5)
    ids = np.arange(n_units) if cluster_ids is None else np.array(cluster_ids)
    if qc:
        path = session / "qc" / "amp_truncation" / "truncation.npz"
        path.parent.mkdir(parents=True)
        if windows:
            last = max(values["t_bins"].max() for values in written.values())
            blocks = np.tile([[0.0, 10.0], [last, last + 10.0]], (n_units, 1))
            np.savez(path, cid=np.repeat(ids, 2), mpcts=np.tile([10.0, 50.0], n_units), window_blocks=blocks)
        else:
            np.savez(path, cid=ids, mpcts=5.0 * np.arange(n_units))
    if saccades:
        (session / "saccades").mkdir(parents=True)
        events = [{"start_time": 10.0 + k, "end_time": 10.05 + k, "amplitude": 1.5} for k in range(3)]
        (session / "saccades" / "saccades.json").write_text(json.dumps(events))
    return session, written
