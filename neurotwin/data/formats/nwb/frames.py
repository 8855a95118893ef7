"""Frames of a stimulus, read when they are asked for, as a session keeps them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ...session import SessionError
from .guess import frame_names, image_order, indexed
from .hdf import fits_in_memory
from .mapping import StimulusMapping

__all__ = ["Frames", "open_frames", "resized"]

_WHOLE = 1 << 22  # pixels of floats that are looked at at a time


class Frames:
    """N frames, (H, W) or (C, H, W) each, uint8 or float32.

    Parameters
    ----------
    where
        What messages call them.
    data
        The stored frames: anything with a shape, a type and slices along its first axis.
    names
        Names of the frames, where they have some.
    stimulus
        How stored numbers become frames.
    size
        Height and width to which frames are brought; None as they are stored.
    """

    def __init__(
        self, where: str, data: Any, names: list[str], stimulus: StimulusMapping, size: tuple[int, int] | None = None
    ) -> None:
        self.where, self.names, self.scale, self.swap = where, names, stimulus.scale, stimulus.swap_axes
        self.size = size
        self._data = data
        self._kept: np.ndarray | None = None
        self._channels_last = len(data.shape) == 4 and data.shape[-1] in (1, 3, 4)
        kind = np.dtype(data.dtype).kind
        if kind not in "iufb":
            raise SessionError(f"{where} holds {data.dtype}, no numbers")
        self.dtype = np.dtype(np.float32 if kind == "f" and self.scale is None else np.uint8)
        self.shape = self._converted(np.zeros((1, *data.shape[1:]), data.dtype)).shape[1:]
        if size is not None:
            if len(self.shape) < 2:
                raise SessionError(f"{where} has no height and width that `size` could change")
            self.shape = (*self.shape[:-2], *size)
        self.bad, self.largest = self._scan() if kind == "f" else (np.zeros(len(data), bool), 255.0)

    def __len__(self) -> int:
        return len(self._data)

    @property
    def blank(self) -> float:
        """The grey level of a blank."""
        return 127.0 if self.dtype == np.uint8 else 0.5 if self.largest <= 1 else 0.0

    @property
    def level(self) -> float:
        """Size of one grey level."""
        return 1.0 if self.dtype == np.uint8 or self.largest > 1 else 1 / 255

    def read(self, indices: np.ndarray) -> np.ndarray:
        """The frames of the given indices, in that order."""
        unique, inverse = np.unique(indices, return_inverse=True)
        if not len(unique):
            return np.zeros((0, *self.shape), self.dtype)
        return self._load(unique)[inverse]

    def release(self) -> None:
        """Forget what was kept for quick reading."""
        self._kept = None

    def _load(self, unique: np.ndarray) -> np.ndarray:
        frames = self._converted(self._stored(unique))
        return frames if self.size is None else resized(frames, self.size)

    def _stored(self, unique: np.ndarray) -> np.ndarray:
        first, last = int(unique[0]), int(unique[-1]) + 1
        if last - first <= 2 * len(unique):
            return self._data[first:last][unique - first]
        if self._kept is None and fits_in_memory(self._data):
            self._kept = self._data[:]
        if self._kept is not None:
            return self._kept[unique]
        # One by one, since h5py is slow with a list of indices.
        return np.stack([self._data[int(index)] for index in unique])

    def _converted(self, values: np.ndarray) -> np.ndarray:
        values = np.asarray(values)
        if self._channels_last:
            values = np.moveaxis(values, -1, 1)
            values = values[:, 0] if values.shape[1] == 1 else values[:, :3]
        if self.swap:
            values = np.swapaxes(values, -1, -2)
        if self.dtype == np.float32:
            return np.nan_to_num(values.astype(np.float32), posinf=0.0, neginf=0.0)
        if values.dtype == np.uint8 and self.scale is None:
            return values
        if values.dtype == bool and self.scale is None:
            return values.astype(np.uint8)
        levels = np.rint(np.nan_to_num(values.astype(np.float64)) * (self.scale or 1.0))
        if values.size and not (levels.min() >= 0 and levels.max() <= 255):
            raise SessionError(
                f"{self.where} holds grey levels from {levels.min():g} to {levels.max():g}, which do "
                "not fit into 0 to 255; give `scale` in a mapping"
            )
        return levels.astype(np.uint8)

    def _scan(self) -> tuple[np.ndarray, float]:
        """Which frames hold NaN, and the largest value; floats are looked at once, block by block."""
        bad, largest = np.zeros(len(self._data), bool), 0.0
        step = max(1, _WHOLE // max(1, int(np.prod(self._data.shape[1:]))))
        for start in range(0, len(bad), step):
            values = np.asarray(self._data[start : start + step]).reshape(-1, int(np.prod(self._data.shape[1:])))
            finite = np.isfinite(values)
            bad[start : start + step] = ~finite.all(axis=1)
            largest = max(largest, float(np.abs(values, where=finite, out=np.zeros_like(values)).max(initial=0)))
        return bad, largest


def resized(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Frames (..., H, W) brought to another size: each new pixel is the mean over the area that it covers.

    Examples
    --------
    >>> resized(np.array([[[0, 4, 8], [0, 4, 8]]], np.uint8), (1, 2)).tolist()
    [[[1, 7]]]
    """
    if frames.shape[-2:] == tuple(size):
        return frames
    rows, columns = (_areas(old, new) for old, new in zip(frames.shape[-2:], size, strict=True))
    out = np.empty((*frames.shape[:-2], *size), frames.dtype)
    for index, frame in enumerate(frames):  # one by one, so that no movie is held as floats
        values = rows @ frame.astype(np.float32) @ columns.T
        out[index] = np.rint(values) if frames.dtype == np.uint8 else values
    return out


def _areas(old: int, new: int) -> np.ndarray:
    """(new, old) the part of each new pixel that each old one fills."""
    left, right = np.arange(new) * old / new, np.arange(1, new + 1) * old / new
    overlap = np.minimum(right[:, None], np.arange(1, old + 1)) - np.maximum(left[:, None], np.arange(old))
    return (np.clip(overlap, 0, None) * new / old).astype(np.float32)


class _Images:
    """Images of an `Images` object as one array."""

    def __init__(self, where: str, images: list[Any]) -> None:
        shapes = {image.shape for image in images}
        if len(shapes) != 1:
            raise SessionError(
                f"{where} holds images of different sizes {sorted(shapes)}; resize them to one size and "
                "give them as `file: FRAMES.npy` in a mapping"
            )
        self._images = images
        self.shape, self.dtype = (len(images), *images[0].shape), images[0].dtype

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, part: slice | int) -> np.ndarray:
        if isinstance(part, slice):
            return np.stack([image[()] for image in self._images[part]])
        return self._images[part][()]


def open_frames(
    file: Any,
    stimulus: StimulusMapping,
    folder: Path,
    open_other: Callable[[Path], Any],
    size: tuple[int, int] | None = None,
) -> Frames:
    """The frames of a stimulus.

    Parameters
    ----------
    file
        The NWB file.
    stimulus
        Its part of the mapping.
    folder
        What a relative `file` of the mapping is relative to.
    open_other
        Opens another NWB or HDF5 file.
    size
        Height and width of the frames; None as they are stored.

    Raises
    ------
    SessionError
        If the frames are not there, or lie in a video.
    """
    where = f"{file.filename}: {stimulus.series}"
    if stimulus.file:
        source = folder / stimulus.file
        if source.suffix == ".npy":
            return Frames(str(source), _array(source), [], stimulus, size)
        if not stimulus.series:
            raise SessionError(f"stimulus {stimulus.name!r}: give `series`, the path of its frames in {source}")
        file, where = open_other(source), f"{source}: {stimulus.series}"
    item = file.get(stimulus.series)
    if item is None:
        raise SessionError(f"{where}: there is no such object; `neurotwin inspect FILE.nwb` lists what there is")
    if hasattr(item, "keys") and indexed(item):
        item = file[indexed(item)]
    if hasattr(item, "shape"):
        return Frames(where, item, [], stimulus, size)
    if "data" not in item:
        names = image_order(item)
        if not names:
            raise SessionError(f"{where}: holds no frames")
        return Frames(where, _Images(where, [item[name] for name in names]), names, stimulus, size)
    if "external_file" in item and item["external_file"].size:
        raise SessionError(
            f"{where}: its frames lie in a video file; decode them to FRAMES.npy, (T, H, W) uint8, and "
            "give `file: FRAMES.npy` in the mapping"
        )
    return Frames(where, item["data"], frame_names(item), stimulus, size)


def _array(source: Path) -> np.ndarray:
    try:
        return np.load(source, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise SessionError(f"{source}: no such file; it is named as `file` in the mapping") from None
    except (ValueError, OSError) as error:
        raise SessionError(f"{source}: not an array of frames ({error})") from None
