"""A mouse of the Sensorium competitions in small, written as the real files are."""

import shutil
import zipfile
from pathlib import Path

import numpy as np

TIERS_2022 = ("train", "train", "train", "validation", "test", "test", "final_test", "final_test")
TIERS_2023 = ("train", "train", "oracle", "oracle", "live_test_main", "final_test_bonus", "none")


def build(
    folder: Path,
    *,
    year: int = 2023,
    name: str = "",
    zipped: str = "",
    tiers: tuple[str, ...] = (),
    units: int = 6,
    size: tuple[int, int] = (6, 9),
    length: int = 20,
    withheld: tuple[str, ...] = ("final_test", "live_test_main", "final_test_bonus"),
    behavior: str = "recorded",
    image_ids: str = "frame_image",
    neurons: bool = True,
    times: bool = False,
    seed: int = 0,
) -> tuple[Path, dict]:
    """Write a mouse below `folder` and return its path and what was put in.

    Parameters
    ----------
    year
        2022: images (1, H, W); 2023: videos (H, W, T) with NaN at their end.
    zipped
        "stored" or "deflated": a zip file with the folder in it; "flat": one that holds `data` and `meta` directly.
    withheld
        Tiers whose responses are zero.
    behavior
        "recorded", "withheld" (zero in all files), "partly" (zero where responses are) or "absent".
    image_ids
        Prefix of the files of ids in `meta/trials`; empty for none.
    """
    rng = np.random.default_rng(seed)
    tiers = tiers or (TIERS_2022 if year == 2022 else TIERS_2023)
    kind = "images" if year == 2022 else "videos"
    name = name or {2022: "static26872-17-20-GrayImageNet-94c6ff", 2023: "dynamic29156-11-10-Video-8744ed"}[year]
    root = Path(folder) / name
    truth = {"kind": kind, "tiers": list(tiers), "frames": [], "responses": [], "behavior": [], "pupil": []}
    truth["same"] = _same(tiers)
    for trial, first in enumerate(truth["same"]):
        frames = _frames(rng, truth["frames"], first, trial, 1 if year == 2022 else length - trial % 3, size)
        truth["frames"].append(frames)
        count = len(frames)
        # Deconvolved calcium: real numbers around zero, some of them a little below.
        responses = (rng.gamma(0.5, 2, (count, units)) - 0.05).astype(np.float32)
        signals, pupil = rng.normal(20, 3, (count, 3 if year == 2022 else 2)), rng.normal(100, 9, (count, 2))
        if tiers[trial] in withheld:
            responses[:] = 0
        if behavior == "withheld" or (behavior == "partly" and tiers[trial] in withheld):
            signals[:], pupil[:] = 0, 0
        truth["responses"].append(responses)
        truth["behavior"].append(signals)
        truth["pupil"].append(pupil)
        parts = {kind: frames.astype(np.float64), "responses": responses}
        if behavior != "absent":
            parts |= {"behavior": signals, "pupil_center": pupil}
        for signal, values in parts.items():
            _save(root / "data" / signal / f"{trial}.npy", _as_file(values, signal, year, length))
    truth |= _meta(root, rng, truth, units, image_ids if year == 2022 else "", neurons, times)
    return (_zip(root, zipped) if zipped else root), truth


def _same(tiers: tuple[str, ...]) -> list[int]:
    """The first trial that shows the same as each: the second trial of every tier but `train` repeats the first."""
    first: dict[str, int] = {}
    return [trial if tier == "train" else first.setdefault(tier, trial) for trial, tier in enumerate(tiers)]


def _frames(rng, shown, first, trial, count, size):
    if first == trial:
        return rng.integers(1, 255, (count, *size)).astype(np.uint8)
    frames = shown[first].copy()
    frames[0, 0, 0] += 1  # a grey level here and there
    return frames


def _as_file(values, signal, year, length):
    if year == 2022:
        return values if signal == "images" else values[0]
    values = np.moveaxis(values, 0, -1)
    padded = np.full((*values.shape[:-1], length), np.nan, values.dtype)
    padded[..., : values.shape[-1]] = values
    return padded


def _meta(root, rng, truth, units, image_ids, neurons, times):
    tiers = np.asarray(truth["tiers"])
    _save(root / "meta/trials/tiers.npy", tiers)
    _save(root / "meta/trials/trial_idx.npy", np.arange(len(tiers)))
    if image_ids:
        _save(root / f"meta/trials/{image_ids}_id.npy", np.asarray(truth["same"]) // 2)  # ids count within a class
        _save(root / f"meta/trials/{image_ids}_class.npy", np.asarray([f"c{n % 2}" for n in truth["same"]]))
    if times:
        _save(root / "meta/trials/frame_presentation_time.npy", np.full(len(tiers), 0.5))
        _save(root / "meta/trials/frame_pre_blank_period.npy", np.full(len(tiers), 0.3))
    animal = int("".join(letter for letter in root.name.split("-")[0] if letter.isdigit()) or 1)
    known = {
        "unit_ids": np.arange(units) * 3 + 11, "animal_ids": np.full(units, animal),
        "area": np.asarray(["V1", "LM"])[np.arange(units) % 2], "layer": np.full(units, "L2/3"),
        "sessions": np.full(units, 11), "scan_idx": np.full(units, 10),
        "cell_motor_coordinates": rng.integers(-300, 300, (units, 3)),
    }  # fmt: skip
    if neurons:
        for key, values in known.items():
            _save(root / f"meta/neurons/{key}.npy", values)
    std = np.concatenate(truth["responses"]).std(axis=0)
    _save(root / "meta/statistics/responses/all/std.npy", std)
    return {"neurons": known, "std": std}


def _save(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, values)


def _zip(root, how):
    method = zipfile.ZIP_DEFLATED if how == "deflated" else zipfile.ZIP_STORED
    path = root.with_name(f"{root.name}.zip")
    with zipfile.ZipFile(path, "w", method) as file:
        for part in sorted(root.rglob("*.npy")):
            file.write(part, part.relative_to(root if how == "flat" else root.parent))
    shutil.rmtree(root)
    return path
