"""A calcium imaging session: suite2p's files, times of the imaging frames, and a log of the stimulus."""

import csv
import pickle
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["build"]


class _Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.target,))


def build(
    folder: Path,
    *,
    name: str = "fox_240501",
    planes: int = 1,
    n_rois: int = 6,
    n_frames: int = 600,
    rate: float = 30.0,
    kind: str = "movie",
    trials: bool = True,
    frame_times: bool = True,
    positions: bool = True,
    behavior: bool = True,
    seed: int = 0,
) -> tuple[Path, dict[str, Any]]:
    """Write the session `folder/name`; returns its folder and the arrays that were written.

    kind "movie": frames of 1/15 s, in five trials of 2 s with 1 s of grey between them; the last two show the same.
    kind "images": forty images of 0.25 s, each followed by 0.25 s of grey; ten pictures, four times each.
    ROI 1 is no cell. stat.npy is a pickle that makes the file `opened` when it is opened.
    """
    rng = np.random.default_rng(seed)
    session, written = folder / name, {"planes": []}
    for plane in range(planes):
        place = session / "suite2p" / f"plane{plane}"
        place.mkdir(parents=True)
        arrays = {
            "spks": rng.gamma(1.0, 2.0, (n_rois, n_frames)).astype(np.float32),
            "F": rng.normal(100, 9, (n_rois, n_frames)).astype(np.float32),
            "Fneu": rng.normal(50, 5, (n_rois, n_frames)).astype(np.float32),
            "iscell": np.stack([np.arange(n_rois) != 1, np.linspace(0.1, 0.9, n_rois)], axis=1),
        }
        if positions:
            arrays["positions"] = rng.random((n_rois, 2)) * 512
        for key, values in arrays.items():
            np.save(place / f"{key}.npy", values)
        with open(place / "stat.npy", "wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": (1,)})
            pickle.dump(_Evil(folder / "opened"), file)
        written["planes"].append(arrays)
    written["time"] = 2.0 + np.arange(n_frames) / rate
    if frame_times:
        np.save(session / "frame_times.npy", written["time"])
    if kind == "movie":
        written["stimulus"] = rng.integers(0, 256, (150, 7, 9), np.uint8)
        rows = [
            {"start": onset + k / 15, "stop": onset + (k + 1) / 15, "frame": 30 * min(trial, 3) + k, "trial": trial}
            for trial, onset in enumerate(range(3, 18, 3))
            for k in range(30)
        ]
    else:
        written["stimulus"] = rng.integers(0, 256, (10, 7, 9), np.uint8)
        rows = [{"start": 2 + k / 2, "stop": 2.25 + k / 2, "frame": k % 10} for k in range(40)]
    if not trials:
        rows = [{key: value for key, value in row.items() if key != "trial"} for row in rows]
    np.save(session / "stimulus.npy", written["stimulus"])
    with open(session / "stimulus_log.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    written["log"] = rows
    if behavior:
        written["running"] = rng.random(n_frames)
        np.save(session / "behavior.running.npy", written["running"])
    return session, written
