"""The screen of the Experanto layout: blocks of frames with the times of their onsets.

Facts of the files: `ScreenInterpolator` and its trials in sensorium-competition/experanto.
"""

import itertools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...config import nearest
from ..session import SessionError
from .devices import load_npy, read_mapping
from .npyfiles import as_pixels
from .repeats import alike, sketch

__all__ = ["Bins", "Block", "cut", "frame_size", "read_blocks", "read_frames", "stimuli"]

_MODALITIES = ("image", "video", "blank", "invalid")
_ENCODED = (".mp4", ".avi", ".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class Block:
    """An image, a video or a pause on the screen."""

    file: Path
    modality: str
    meta: Mapping[str, Any]
    onsets: np.ndarray
    """(T,) s of its frames."""
    end: float
    """s: when the next block begins, or the last frame ends."""

    @property
    def valid(self) -> bool:
        """Whether something was shown that counts."""
        return self.modality != "invalid" and self.meta.get("valid_trial") is not False

    @property
    def stored(self) -> bool:
        """Whether there is a file of frames; pauses have one value."""
        return self.modality in ("image", "video")

    @property
    def tier(self) -> str:
        """Its tier; a pause without one counts as training, because it shows nothing that could be tested."""
        return str(self.meta.get("tier") or ("train" if self.modality == "blank" else "none"))

    @property
    def kind(self) -> str:
        """Its stimulus's name, where it has one."""
        return str(self.meta.get("stimulus_name") or self.meta.get("stim_type") or self.modality)

    def frames(self) -> np.ndarray:
        """(T, H, W) or (T, C, H, W) as stored, memory-mapped."""
        other = next((suffix for suffix in _ENCODED if self.file.with_suffix(suffix).exists()), None)
        if other and not self.file.exists():
            raise SessionError(f"{self.file.with_suffix(other)}: frames are encoded; decode them to {self.file.name}")
        frames = load_npy(self.file)
        if frames.ndim == 2 or (frames.ndim == 3 and self.modality == "image" and frames.shape[-1] in (1, 3)):
            frames = frames[None]
        if frames.ndim == 4 and frames.shape[-1] in (1, 3):
            frames = frames[..., 0] if frames.shape[-1] == 1 else np.moveaxis(frames, -1, 1)
        if frames.ndim not in (3, 4):
            raise SessionError(f"{self.file}: frames have shape {frames.shape}; (T, H, W) or (T, H, W, 3) is expected")
        if len(frames) < len(self.onsets):
            raise SessionError(f"{self.file}: holds {len(frames)} frames where its meta says {len(self.onsets)}")
        return frames[: len(self.onsets)]


@dataclass
class Bins:
    """Bins of a session: (T,) beginning and end in s, block, frame within the block, and place within the block."""

    starts: np.ndarray
    stops: np.ndarray
    block: np.ndarray
    frame: np.ndarray
    place: np.ndarray


def read_blocks(path: Path) -> tuple[list[Block], float]:
    """The blocks of a screen in the order of time, and its frames a second.

    The frames a second are the inverse of the median time between frames of videos, of all frames where there is no
    video.

    Raises
    ------
    SessionError
        If a block names frames that `timestamps.npy` lacks, or is of an unknown modality.
    """
    screen = path / "screen"
    times = np.asarray(load_npy(screen / "timestamps.npy"), np.float64).reshape(-1)
    if len(times) < 2 or not (np.diff(times) > 0).all():
        raise SessionError(
            f"{screen / 'timestamps.npy'}: the times of at least two frames must be there, and must rise"
        )
    metas = [(stem, meta, *_place(screen, stem, meta, len(times))) for stem, meta in _metas(screen)]
    if not metas:
        raise SessionError(f"{screen}: describes no block; files meta/00000.yml are expected")
    metas.sort(key=lambda item: item[2])
    for (_, _, first, count), (stem, _, later, _) in itertools.pairwise(metas):
        if later < first + count:
            raise SessionError(f"{screen}/meta/{stem}.yml: its first frame {later} lies in the block before it")
    gaps = [np.diff(times[first : first + count]) for _, _, first, count in metas if count > 1]
    period = float(np.median(np.concatenate(gaps) if gaps else np.diff(times)))
    blocks = []
    for stem, meta, first, count in metas:
        onsets = times[first : first + count]
        told = meta.get("presentation_time")
        told = float(told) if isinstance(told, int | float) and told > 0 else np.inf
        own = float(np.median(np.diff(onsets))) if count > 1 else told
        end = times[first + count] if first + count < len(times) else onsets[-1] + min(own, period)
        if count > 1 and end > onsets[-1] + 1.5 * own:
            end = onsets[-1] + own  # nothing is known of what was on the screen after the video
        modality = str(meta["modality"]).lower()
        end = min(end, onsets[0] + own) if modality == "image" else end
        blocks.append(Block(screen / "data" / f"{stem}.npy", modality, meta, onsets, float(end)))
    return blocks, 1 / period


def cut(blocks: Sequence[Block], rate: float) -> Bins:
    """Cut blocks into bins of 1 / `rate` s from their first onset on; a rest of half a bin or more makes a bin."""
    parts = []
    for number, block in enumerate(blocks):
        count = int(np.floor((block.end - block.onsets[0]) * rate + 0.5 + 1e-6))
        starts = block.onsets[0] + np.arange(count) / rate
        stops = np.minimum(starts + 1 / rate, block.end)
        frame = np.searchsorted(block.onsets, (starts + stops) / 2, side="right") - 1
        parts.append((starts, stops, np.full(count, number), np.maximum(frame, 0), np.arange(count)))
    return Bins(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def frame_size(blocks: Sequence[Block]) -> tuple[int, ...]:
    """(H, W) or (C, H, W) of all frames."""
    first = next((block for block in blocks if block.stored and block.valid), None)
    if first is None:
        raise SessionError(f"{blocks[0].file.parents[1]}: no image and no video is shown; a session needs a stimulus")
    return first.frames().shape[1:]


def read_frames(blocks: Sequence[Block], bins: Bins, size: tuple[int, ...], start: int, stop: int) -> np.ndarray:
    """What is on the screen in the bins from `start` to before `stop`, (T, *size) uint8."""
    out = np.zeros((max(0, stop - start), *size), np.uint8)
    block, frame = bins.block[start:stop], bins.frame[start:stop]
    for number in np.unique(block):
        here, shown = np.flatnonzero(block == number), blocks[number]
        if not shown.valid or not shown.stored:
            value = np.asarray(shown.meta.get("interleave_value") or 0)
            out[here] = as_pixels(value.reshape(-1)[:1], str(shown.file))[0] if shown.modality == "blank" else 0
            continue
        frames = shown.frames()
        if frames.shape[1:] != size:
            raise SessionError(
                f"{shown.file}: frames of {frames.shape[1:]} where the first block has {size}; bring all to one size"
            )
        chosen, back = np.unique(frame[here], return_inverse=True)
        out[here] = as_pixels(np.asarray(frames[chosen]), str(shown.file))[back]
    return out


def stimuli(blocks: Sequence[Block]) -> list[Hashable | None]:
    """What each block shows: its `condition_hash`, else the first block whose frames are alike; None for pauses."""
    keys: list[Hashable | None] = [None] * len(blocks)
    compared = []
    for number, block in enumerate(blocks):
        if not block.stored or not block.valid:
            continue
        if block.meta.get("condition_hash"):
            keys[number] = ("hash", str(block.meta["condition_hash"]))
        else:
            compared.append(number)
    sketches = [sketch(blocks[number].frames()) for number in compared]
    first = alike(sketches, lambda index: blocks[compared[index]].frames())
    for number, leader in zip(compared, first, strict=True):
        keys[number] = ("like", compared[leader])
    return keys


def _metas(screen: Path) -> list[tuple[str, dict[str, Any]]]:
    files = sorted(file for file in (screen / "meta").glob("*.yml") if file.stem.isdigit())
    if files or not (screen / "combined_meta.json").exists():
        return [(file.stem, read_mapping(file)) for file in files]
    combined = read_mapping(screen / "combined_meta.json")
    return [(stem, meta) for stem, meta in combined.items() if stem.isdigit() and isinstance(meta, dict)]


def _place(screen: Path, stem: str, meta: Mapping[str, Any], n_frames: int) -> tuple[int, int]:
    """First frame of a block, and their number."""
    where = f"{screen}/meta/{stem}.yml"
    modality = str(meta.get("modality", "")).lower()
    if modality not in _MODALITIES:
        raise SessionError(
            f"{where}: modality {meta.get('modality')!r} is not known; {nearest(modality, list(_MODALITIES))}"
        )
    keys = ("first_frame_idx", "num_frames") if modality == "video" else ("first_frame_idx",)
    for key in keys:
        if not isinstance(meta.get(key), int):
            raise SessionError(f"{where}: {key} is {meta.get(key)!r}; a whole number is expected")
    first, count = meta["first_frame_idx"], meta["num_frames"] if modality == "video" else 1
    if first < 0 or count < 1 or first + count > n_frames:
        raise SessionError(f"{where}: frames {first} to {first + count - 1} where timestamps.npy has {n_frames}")
    return first, count
