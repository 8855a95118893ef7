"""Sessions of the Experanto layout: devices with clocks of their own, brought to one clock.

The layout as sensorium-competition/experanto reads it and as its tests write it; OmniMouse recordings have it.
"""

from pathlib import Path

import numpy as np
from pydantic import Field

from ...config import nearest, register
from ..session import Session, SessionError
from ..streamed import Streamed
from .base import Format
from .devices import Device, Spikes, Survey, open_device, read_mapping
from .repeats import repeat_ids
from .screen import Bins, Block, cut, frame_size, read_blocks, read_frames, stimuli
from .tiers import leaks, split_of_tier, tier_notes
from .units import subject_of_name, unit_table

__all__ = ["Experanto"]


@register("format", "experanto")
class Experanto(Format):
    """A folder with `screen`, `responses` and further devices, each with a clock of its own.

    What becomes of the parts:

    - `screen/timestamps.npy` (F,) holds the onset of every frame in s; `screen/meta/NNNNN.yml` describe the blocks
      (`modality`, `tier`, `first_frame_idx`, `num_frames`, `image_size`); `screen/data/NNNNN.npy` hold their frames,
      (H, W) or (T, H, W), colours last. Every block is a trial. It is cut into bins of equal length from its first
      onset to the next block's. A rest of half a bin or more makes a bin. A bin shows the frame that is on the screen
      in its middle, so that an image is as many bins as it is shown for.
    - A `blank` shows its `interleave_value`. A block of the modality `invalid`, or with `valid_trial: false`, is no
      trial, and its bins are not valid.
    - The bins a second are `bin_rate`, by default the screen's frames a second: the inverse of the median time between
      two frames of a video, or of any two frames where there is no video.
    - A device of the modality `sequence` (`data.npy`, or `data.mem` with its shape and type in `meta.yml`) has sample k
      of signal i at `start_time + k / sampling_rate + phase_shifts[i]`. It is interpolated linearly in the middle of
      each bin; where the device is faster than the bins, the mean over the bin is taken. A device of the modality
      `spikes` holds the times of all units one after another, and `spike_indices`: its spikes are counted.
    - The responses are the device `responses`, else the one with spikes. Every other sequence is a behaviour of its
      name. Bins without a value of one of them are not valid. Signals that lack a value in more than `max_missing` of
      the bins are left out.
    - `tier` gives the split: `train` trains, `validation` and `oracle` validate, names with "test" test.
      A `blank` without a tier trains; bins of other tiers are not valid. Without any tier, the split is drawn later.
    - Bins at the same place of blocks that show the same frame there are repeats. Blocks show the same where their
      `condition_hash` is the same, or, without one, where their frames agree to a grey level in each pixel.
    - `neuron_properties` of the responses' `meta.yml`, and arrays in their `meta` folder, become ids, positions and
      labels of the units. The subject is that of `meta.json`, else the first number of the folder's name.

    Frames that are stored as .mp4, .jpg or .png are refused: decode them to .npy first. Devices of other modalities are
    left out, which the notes say.
    """

    bin_rate: float | None = Field(None, gt=0, description="Bins a second, Hz. Default: the screen's frames a second.")
    responses: str = Field("", description="Device that holds the responses. Default: the one of that name.")
    max_missing: float = Field(
        0.1, ge=0, lt=1, description="Share of the recorded bins in which a signal may lack a value and still be kept."
    )

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """A folder with `screen/timestamps.npy`, and `screen/meta` or `screen/combined_meta.json`."""
        screen = path / "screen"
        described = (screen / "meta").is_dir() or (screen / "combined_meta.json").is_file()
        return (screen / "timestamps.npy").is_file() and described

    def read(self, path: Path) -> Session:
        """The session; see :class:`Format`."""
        blocks, screen_rate = read_blocks(path)
        rate = self.bin_rate or screen_rate
        bins, size = cut(blocks, rate), frame_size(blocks)
        shown = np.asarray([block.valid for block in blocks])[bins.block]
        if not shown.any():
            raise SessionError(f"{path}: no block lasts half a bin of {1 / rate:g} s; give a higher --bin_rate")
        devices, notes = _devices(path)
        responses = devices.pop(_name_of_responses(path, devices, self.responses))
        units = responses.survey(bins.starts, bins.stops, shown, self.max_missing)
        if not len(units.kept) or not units.known.any():
            raise SessionError(f"{responses.folder}: has no value while a stimulus is shown; compare the clocks")
        behavior, known, told = _behavior(devices, bins, shown, self.max_missing)
        table = unit_table(responses.properties(), responses.n_signals, units.kept, f"{responses.folder}/meta")
        keys, splits = stimuli(blocks), [split_of_tier(block.tier) for block in blocks]
        tiered = any(block.meta.get("tier") and split_of_tier(block.tier) for block in blocks)
        split = np.asarray(splits)[bins.block] if tiered else None
        return Session(
            name=self.name or path.resolve().name,
            subject=self.subject or _subject(path),
            bin_rate=rate,
            stimulus=Streamed(
                (len(shown), *size), np.dtype(np.uint8), lambda a, b: read_frames(blocks, bins, size, a, b)
            ),
            responses=_streamed(responses, units, bins),
            behavior=behavior,
            trial=np.where(shown, bins.block, -1),
            valid=shown & units.known & known & (True if split is None else split != ""),
            time=bins.starts,
            repeat_id=_repeats(keys, bins),
            split=split,
            stimulus_type=np.asarray([block.kind for block in blocks])[bins.block],
            unit_ids=table.ids,
            unit_positions=table.positions,
            unit_labels=table.labels,
            notes=[
                *notes, *units.notes, *told, *table.notes, *_about_blocks(blocks, bins, rate, screen_rate),
                *(tier_notes([block.tier for block in blocks if block.valid]) if tiered else []),
                *leaks(keys, splits, "blocks"),
            ],
        )  # fmt: skip


def _devices(path: Path) -> tuple[dict[str, Device], list[str]]:
    devices, notes = {}, []
    for folder in sorted(child for child in path.iterdir() if child.is_dir() and child.name != "screen"):
        if not (folder / "meta.yml").exists():
            notes.append(f"The folder {folder.name} is left out: it has no meta.yml, so it is no device.")
            continue
        device = open_device(folder)
        if device is None:
            modality = read_mapping(folder / "meta.yml").get("modality")
            notes.append(f"The device {folder.name} is left out: of the modality {modality!r} a session has no signal.")
            continue
        devices[folder.name] = device
    return devices, notes


def _name_of_responses(path: Path, devices: dict[str, Device], wanted: str) -> str:
    spiking = [name for name, device in devices.items() if isinstance(device, Spikes)]
    name = wanted or ("responses" if "responses" in devices or len(spiking) != 1 else spiking[0])
    if name not in devices:
        there = f"{nearest(name, list(devices))}" if devices else "it has no device but the screen"
        raise SessionError(f"{path}: has no device {name!r} for the responses; {there}; give --options responses=NAME")
    return name


def _behavior(
    devices: dict[str, Device], bins: Bins, shown: np.ndarray, max_missing: float
) -> tuple[dict[str, np.ndarray], np.ndarray, list[str]]:
    """Signals by device, which bins have all of them, and notes."""
    behavior, known, notes = {}, np.ones(len(shown), bool), []
    for name, device in devices.items():
        if isinstance(device, Spikes):
            notes.append(f"The spikes of {name} are left out: the responses are those of another device.")
            continue
        found = device.survey(bins.starts, bins.stops, shown, max_missing)
        notes += found.notes
        if len(found.kept):
            values = np.nan_to_num(device.sample(bins.starts, bins.stops)[:, found.kept])
            behavior[name] = values[:, 0].copy() if device.n_signals == 1 else values
            known &= found.known
    return behavior, known, notes


def _streamed(device: Device, found: Survey, bins: Bins) -> Streamed:
    def read(start: int, stop: int) -> np.ndarray:
        return np.nan_to_num(device.sample(bins.starts[start:stop], bins.stops[start:stop])[:, found.kept])

    return Streamed((len(bins.starts), len(found.kept)), device.dtype, read)


def _repeats(keys: list, bins: Bins) -> np.ndarray:
    seen = [
        None if keys[block] is None else (keys[block], place, frame)
        for block, place, frame in zip(bins.block.tolist(), bins.place.tolist(), bins.frame.tolist(), strict=True)
    ]
    return repeat_ids(seen, [1] * len(seen))


def _about_blocks(blocks: list[Block], bins: Bins, rate: float, screen_rate: float) -> list[str]:
    notes = []
    invalid = sum(not block.valid for block in blocks)
    if invalid:
        notes.append(f"The bins of {invalid} blocks are not valid, because the recording marks the blocks as invalid.")
    short = len(blocks) - len(np.unique(bins.block))
    if short:
        notes.append(f"{short} blocks are left out, because they last less than half a bin of {1 / rate:g} s.")
    if rate < 0.99 * screen_rate and any(len(block.onsets) > 1 for block in blocks):
        notes.append(f"Some frames of videos are not shown: {screen_rate:g} frames a second become {rate:g} bins.")
    return notes


def _subject(path: Path) -> str:
    meta = read_mapping(path / "meta.json") if (path / "meta.json").exists() else {}
    for place in (meta, meta.get("scan_key")):
        for key in ("subject", "subject_id", "animal_id"):
            if isinstance(place, dict) and isinstance(place.get(key), str | int):
                return str(place[key])
    return subject_of_name(path.resolve().name)
