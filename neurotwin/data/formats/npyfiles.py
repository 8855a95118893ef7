"""Recordings of many .npy files, in a folder or in a zip file that stays as it is."""

import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeVar

import numpy as np

from ..session import SessionError

__all__ = ["NpyFiles", "as_pixels"]

_Read = TypeVar("_Read")
_BROKEN = (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError)


class NpyFiles:
    """The .npy files of a recording, by their names relative to its root.

    A zip file is not unpacked: each file in it is read by itself when it is asked for, whether it is stored or
    compressed. The root may lie one folder deeper than the path, as it does where a folder was zipped together with its
    name.

    Parameters
    ----------
    path
        A folder or a zip file.
    marker
        A file or folder that the root holds; without it the path itself is the root.
    """

    def __init__(self, path: Path, marker: str = "") -> None:
        self.path = Path(path)
        self._zip: zipfile.ZipFile | None = None
        if self.path.is_file():
            try:
                self._zip = zipfile.ZipFile(self.path)
            except _BROKEN as error:
                raise SessionError(f"{path}: not a zip file, or cut off ({error}); download it again") from None
            names = self._zip.namelist()
            parents = {str(parent) for name in names for parent in PurePosixPath(name).parents}
            self._names, self._folders = frozenset(names), frozenset(parents)
        self.root = self._find_root(marker)

    def exists(self, name: str) -> bool:
        """Whether there is such a file or folder."""
        if self._zip is None:
            return (self.path / self.root / name).exists()
        return self._member(f"{self.root}{name}")

    def stems(self, folder: str) -> list[str]:
        """Names, without .npy, of the files in a folder, sorted."""
        if self._zip is None:
            return sorted(file.stem for file in (self.path / self.root / folder).glob("*.npy"))
        parent = PurePosixPath(f"{self.root}{folder}")
        files = (PurePosixPath(name) for name in self._names if name.endswith(".npy"))
        return sorted(file.stem for file in files if file.parent == parent)

    def load(self, name: str) -> np.ndarray:
        """A file's array.

        Raises
        ------
        SessionError
            If there is no such file, it is damaged, or it holds Python objects, which could run code.
        """
        return self._reading(name, lambda file: np.lib.format.read_array(file, allow_pickle=False))

    def last_axis(self, name: str) -> np.ndarray:
        """The values along the last axis at the first place of all other axes, (T,) of an array (…, T).

        Only the beginning of the file is read, where its order permits it.
        """

        def read(file: BinaryIO) -> np.ndarray:
            shape, fortran, dtype = _header(file)
            if dtype.hasobject:
                raise ValueError("it holds Python objects, and reading them could run code")
            if not shape or 0 in shape:
                raise ValueError(f"its shape is {shape}")
            if fortran and len(shape) > 1:
                return self.load(name).reshape(-1, shape[-1])[0]
            raw = file.read(shape[-1] * dtype.itemsize)
            if len(raw) < shape[-1] * dtype.itemsize:
                raise ValueError("it is cut off")
            return np.frombuffer(raw, dtype)

        return self._reading(name, read)

    def where(self, name: str) -> str:
        """How to name a file to the user."""
        return f"{self.path / self.root / name}"

    def _reading(self, name: str, read: Callable[[Any], _Read]) -> _Read:
        try:
            if self._zip is None:
                with open(self.path / self.root / name, "rb") as file:
                    return read(file)
            with self._zip.open(f"{self.root}{name}") as member:
                return read(member)
        except (FileNotFoundError, KeyError):
            raise SessionError(f"{self.where(name)}: no such file; give the folder or zip of one recording") from None
        except SessionError:
            raise
        except _BROKEN as error:
            raise SessionError(f"{self.where(name)}: cannot be read ({error})") from None

    def _find_root(self, marker: str) -> str:
        if not marker or self._holds("", marker):
            return ""
        if self._zip is None:
            inside = sorted(child.name for child in self.path.iterdir() if child.is_dir())
        else:
            inside = sorted({name.split("/")[0] for name in self._names if "/" in name})
        found = [f"{folder}/" for folder in inside if self._holds(f"{folder}/", marker)]
        return found[0] if len(found) == 1 else ""

    def _holds(self, root: str, marker: str) -> bool:
        if self._zip is None:
            return (self.path / root / marker).exists()
        return self._member(f"{root}{marker}")

    def _member(self, name: str) -> bool:
        return name in self._names or name in self._folders


def as_pixels(frames: np.ndarray, where: str) -> np.ndarray:
    """Frames as uint8, rounded to whole grey levels.

    Raises
    ------
    SessionError
        If a value does not lie between 0 and 255.
    """
    if frames.dtype == np.uint8:
        return frames
    if frames.dtype.kind not in "biuf":
        raise SessionError(f"{where}: pixels are {frames.dtype}; give numbers between 0 and 255")
    low, high = float(frames.min()), float(frames.max())
    if not (low >= 0 and high <= 255):
        raise SessionError(f"{where}: pixels reach from {low:g} to {high:g}; they must lie between 0 and 255")
    return np.rint(frames).astype(np.uint8) if frames.dtype.kind == "f" else frames.astype(np.uint8)


def _header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    return np.lib.format.read_array_header_2_0(file)
