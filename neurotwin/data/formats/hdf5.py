"""HDF5 files as the readers use them: opened when needed, read in pieces; needs the extra `h5` (h5py)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..session import SessionError

__all__ = ["H5Array", "flattened", "hdf5_files", "looks_like", "opened"]

_MAGIC = b"\x89HDF\r\n\x1a\n"
_SUFFIXES = (".h5", ".hdf5")


class H5Array:
    """A data set of an HDF5 file, which is opened for every piece that is read, so that no handle stays open.

    Parameters
    ----------
    path, key
        The file, and the data set in it.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key
        with opened(path) as file:
            self.shape: tuple[int, ...] = tuple(file[key].shape)
            self.dtype: np.dtype = file[key].dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, part: Any) -> np.ndarray:
        with opened(self.path) as file:
            return file[self.key][part]


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The file, opened for reading.

    Raises
    ------
    SessionError
        If h5py is not installed, or the file is not HDF5.
    """
    try:
        import h5py  # an extra
    except ImportError:
        raise SessionError(f"{path}: reading HDF5 needs the extra: pip install 'neurotwin[h5]'") from None
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise SessionError(f"{path}: not an HDF5 file, or cut off ({' '.join(str(error).split())})") from None
    with file:
        yield file


def hdf5_files(folder: Path) -> list[Path]:
    """HDF5 files of a folder by name."""
    return sorted(path for path in folder.iterdir() if path.suffix in _SUFFIXES and path.is_file())


def looks_like(path: Path, by_content: Callable[[Any], bool], by_name: Callable[[Path], bool]) -> bool:
    """Whether a path is an HDF5 file of a layout: by what it holds, or by its name where h5py is not installed."""
    if path.suffix not in _SUFFIXES or not path.is_file():
        return False
    with open(path, "rb") as raw:
        if raw.read(len(_MAGIC)) != _MAGIC:
            return False
    try:
        import h5py  # an extra
    except ImportError:
        return by_name(path)
    try:
        with h5py.File(path, "r") as file:
            return by_content(file)
    except OSError:  # cut off
        return by_name(path)


def flattened(group: Any) -> dict[str, np.ndarray]:
    """Data sets and attributes of a group and the groups below it, by their path, with text as str."""
    found = {key: np.asarray(value) for key, value in group.attrs.items()}
    for key, item in group.items():
        if hasattr(item, "items"):
            found |= {f"{key}/{inner}": value for inner, value in flattened(item).items()}
        elif item.dtype is not None and item.shape is not None:
            found[key] = np.asarray(item.asstr()[()] if item.dtype.kind in "OS" and _is_text(item) else item[()])
    return {key: value.astype(str) if value.dtype.kind in "OS" else value for key, value in found.items()}


def _is_text(item: Any) -> bool:
    return item.dtype.kind == "S" or (item.dtype.metadata is not None and "vlen" in item.dtype.metadata)
