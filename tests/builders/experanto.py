"""A recording of the Experanto layout in small: devices with clocks of their own, written as the real files are."""

import json
from pathlib import Path

import numpy as np
import yaml

# Modality, tier, frames (of a video) or s (of an image or a pause), and which earlier block it shows again.
BLOCKS = (
    ("video", "train", 30, None),
    ("blank", None, 0.5, None),
    ("image", "train", 0.4, None),
    ("video", "oracle", 20, None),
    ("invalid", None, 0.3, None),
    ("video", "oracle", 20, 3),
    ("image", "test", 0.4, 2),
    ("video", "final_test", 20, None),
)


def build(
    folder: Path,
    *,
    name: str = "dynamic17797-6-4-Video-021a75",
    blocks: tuple = BLOCKS,
    rate: float = 30.0,
    size: tuple[int, ...] = (5, 8),
    start: float = 3.0,
    units: int = 4,
    response_rate: float = 8.0,
    phase_shifts: bool = True,
    mapped: bool = True,
    spikes: str = "",
    hashes: bool = False,
    neurons: bool = True,
    behavior: bool = True,
    combined: bool = False,
    seed: int = 0,
) -> tuple[Path, dict]:
    """Write a recording below `folder` and return its path and what was put in.

    Responses and behaviour are linear functions of time, so that what a linear interpolation gives is known:
    `offset + slope * t` for every signal.

    Parameters
    ----------
    spikes
        "raw" (times without a header, as the layout's writers leave them) or "npy": spikes instead of a sequence.
    phase_shifts
        Whether every unit is sampled a little later than the one before it.
    mapped
        Whether sequences are in `data.mem` instead of `data.npy`.
    """
    rng = np.random.default_rng(seed)
    root = Path(folder) / name
    truth = {"blocks": [], "end": None}
    onsets, now = [], start
    for number, (modality, tier, length, again) in enumerate(blocks):
        count = length if modality == "video" else 1
        shape = (count, *size)
        frames = rng.integers(1, 255, shape).astype(np.uint8)
        if again is not None:
            frames = truth["blocks"][again]["frames"].copy()
            frames[0, 0, 0] += 1  # a grey level here and there
        if modality in ("blank", "invalid"):
            frames[:] = 127
        own = now + np.arange(count) / rate
        meta = {"modality": modality, "first_frame_idx": len(onsets), "image_size": list(size), "num_frames": count}
        meta |= {"tier": tier} if tier else {}
        meta |= {"interleave_value": 127} if modality in ("blank", "invalid") else {}
        meta |= {"condition_hash": f"h{number if again is None else again}"} if hashes else {}
        onsets += own.tolist()
        now = float(own[-1] + (1 / rate if modality == "video" else length))
        truth["blocks"].append({"frames": frames, "onset": own[0], "end": now, "tier": tier, "modality": modality})
        _yaml(root / f"screen/meta/{number:05d}.yml", meta)
        if modality in ("image", "video"):
            stored = frames[0] if modality == "image" else frames.astype(np.float32)
            _save(root / f"screen/data/{number:05d}.npy", stored)
    onsets.append(now)  # the screen's last frame, which belongs to no block
    _save(root / "screen/timestamps.npy", np.asarray(onsets))
    _yaml(root / "screen/meta.yml", {"modality": "screen", "frame_rate": rate})
    if combined:
        _combine(root / "screen")
    truth |= {"end": now, "slope": rng.normal(0, 1, units), "offset": rng.normal(0, 5, units)}
    shifts = np.arange(units) * 0.4 / response_rate / units if phase_shifts else np.zeros(units)
    if spikes:
        truth["spikes"] = [np.sort(rng.uniform(start - 1, now + 1, 80)) for _ in range(units)]
        _spikes(root / "responses", truth["spikes"], spikes, start - 1, now + 1)
    else:
        clock = (start - 1, now + 1, response_rate)
        truth["responses"] = _sequence(
            root / "responses", *clock, truth["slope"], truth["offset"], shifts, mapped, phase_shifts
        )
    known = {"unit_ids": np.arange(units) + 100, "fields": np.arange(units) % 2}
    known["cell_motor_coordinates"] = rng.integers(-200, 200, (units, 3))
    truth["neurons"] = known
    if neurons:
        _neurons(root / "responses", known)
    if behavior:
        zero = np.zeros(2)
        _sequence(root / "eye_tracker", start - 0.5, now + 1, 20.0, np.array([1.0, -2]), zero, zero, False, False)
        _sequence(
            root / "treadmill", start - 0.5, now + 1, 100.0, np.array([3.0]), np.ones(1), np.zeros(1), mapped, False
        )
    return root, truth


def bins_of(truth: dict, rate: float, frame_rate: float = 30.0) -> dict[str, np.ndarray]:
    """What the bins of a recording must be, bin by bin: the reference that tests compare a reader with."""
    rows = []
    for number, block in enumerate(truth["blocks"]):
        count = int(np.floor((block["end"] - block["onset"]) * rate + 0.5 + 1e-6))
        for place in range(count):
            begin = block["onset"] + place / rate
            end = min(begin + 1 / rate, block["end"])
            frame = min(int(((begin + end) / 2 - block["onset"]) * frame_rate), len(block["frames"]) - 1)
            rows.append((begin, end, number, frame, block["frames"][frame]))
    columns = list(zip(*rows, strict=True))
    names = ("start", "stop", "block", "frame", "shown")
    return {name: np.asarray(column) for name, column in zip(names, columns, strict=True)}


def _sequence(folder, start, end, rate, slope, offset, shifts, mapped, shifted):
    count = int(np.floor((end - start) * rate)) + 1
    times = start + np.arange(count)[:, None] / rate + shifts
    data = offset + slope * times
    meta = {
        "modality": "sequence", "sampling_rate": rate, "start_time": start,
        "end_time": float(start + (count - 1) / rate), "n_signals": len(slope), "n_timestamps": count,
        "dtype": str(data.dtype), "is_mem_mapped": mapped,
        "phase_shift_per_signal": shifted,
    }  # fmt: skip
    _yaml(folder / "meta.yml", meta)
    if mapped:
        data.tofile(folder / "data.mem")
    else:
        _save(folder / "data.npy", data)
    for name, values in {"means": data.mean(axis=0), "stds": data.std(axis=0)}.items():
        _save(folder / f"meta/{name}.npy", values)
    if shifted:
        _save(folder / "meta/phase_shifts.npy", shifts)
    return data


def _spikes(folder, times, how, start, end):
    bounds = np.concatenate([[0], np.cumsum([len(unit) for unit in times])])
    meta = {"modality": "spikes", "n_signals": len(times), "spike_indices": bounds.tolist(), "start_time": start}
    _yaml(folder / "meta.yml", meta | {"end_time": end, "sampling_rate": 1000.0})
    flat = np.concatenate(times)
    if how == "raw":
        flat.tofile(folder / "spikes.npy")
    else:
        _save(folder / "spikes.npy", flat)


def _neurons(folder, known):
    meta = yaml.safe_load((folder / "meta.yml").read_text())
    meta["neuron_properties"] = {name: f"meta/neurons/{name}.npy" for name in known}
    _yaml(folder / "meta.yml", meta)
    for name, values in known.items():
        _save(folder / f"meta/neurons/{name}.npy", values)


def _combine(screen):
    files = sorted((screen / "meta").glob("*.yml"))
    metas = {file.stem: yaml.safe_load(file.read_text()) for file in files}
    for file in files:
        file.unlink()
    (screen / "meta").rmdir()
    (screen / "combined_meta.json").write_text(json.dumps(metas))


def _save(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, values)


def _yaml(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(values))
