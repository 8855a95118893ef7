"""The HDF5 side of NWB 2: files, time series and tables, none of which is loaded whole.

What is read here is fixed by the NWB schema: every object carries an attribute `neurodata_type`; a time series holds
`data` and either `timestamps` or a `starting_time` with an attribute `rate`; a table names its columns in `colnames`,
and a column of lists has a second one, NAME_index, with the end of each row's list. Sources: the specification at
https://nwb-schema.readthedocs.io and https://hdmf-common-schema.readthedocs.io. We read the file by h5py and not by
pynwb, because pynwb refuses files whose extensions are not installed, and reads tables whole.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ....config import nearest
from ...session import SessionError

__all__ = ["Series", "Table", "fits_in_memory", "kind_of", "name_of", "open_nwb", "text"]

_CHUNK_CACHE = 1 << 26  # bytes; frames that share a chunk are then decompressed once
_CONDITION = re.compile(r"^\s*([^\s<>=!]+)\s*(<=|>=|==|!=|<|>|\bin\b|\bnot in\b)\s*(.+?)\s*$")


def open_nwb(path: Path) -> Any:
    """Open an NWB 2 file for reading, as an `h5py.File`.

    A file whose name ends in .nwb.url holds the address of a file in an archive; that one is read in pieces over the
    network by `remfile <https://github.com/magland/remfile>`_.

    Raises
    ------
    SessionError
        If the file is absent, is not NWB 2, or a package that reading needs is not installed.
    """
    try:
        import h5py  # an extra
    except ImportError:
        raise SessionError(f"{path}: reading NWB needs the extra: pip install 'neurotwin[nwb]'") from None
    if not path.exists():
        raise SessionError(f"{path}: no such file")
    source = _remote(path) if path.suffix == ".url" else path
    try:
        file = h5py.File(source, "r", rdcc_nbytes=_CHUNK_CACHE)
    except OSError as error:
        raise SessionError(f"{path}: not an NWB file ({error})") from None
    version = file.attrs.get("nwb_version")
    if version is None or not text(version).startswith("2"):
        file.close()
        found = "has no version of NWB" if version is None else f"is of NWB {text(version)}"
        raise SessionError(f"{path}: {found}; only NWB 2 is read, get the file in that version or write it by pynwb")
    return file


def _remote(path: Path) -> Any:
    address = path.read_text(encoding="utf-8").strip()
    if not re.match(r"https?://\S+$", address):
        raise SessionError(f"{path}: must hold one address that begins with https://, and nothing else")
    try:
        import remfile  # an extra
    except ImportError:
        raise SessionError(f"{path}: reading from an archive needs remfile: pip install 'neurotwin[nwb]'") from None
    return remfile.File(address)


def text(value: Any) -> str:
    """Text of an attribute or a cell, which HDF5 gives as bytes or as str."""
    if isinstance(value, np.ndarray):
        value = value.item() if value.size == 1 else value.tolist()
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def kind_of(item: Any) -> str:
    """The `neurodata_type` of an object; empty where it has none."""
    return text(item.attrs.get("neurodata_type", ""))


@dataclass(frozen=True, eq=False)
class Series:
    """Values over time.

    Parameters
    ----------
    path
        Where the series lies in its file.
    name
        What it is called in a session.
    kind
        Its neurodata type.
    data
        The values, (N, ...), as an h5py dataset; None where there are times only.
    times
        Their times in s, as an h5py dataset; None where the rate is constant.
    start, rate
        First time in s and samples a second in Hz, where the rate is constant.
    """

    path: str
    name: str
    kind: str
    data: Any
    times: Any
    start: float = 0.0
    rate: float = 0.0

    @classmethod
    def of_group(cls, group: Any, name: str = "") -> "Series":
        """The series that an HDF5 group holds."""
        path = group.name.lstrip("/")
        start, rate = 0.0, 0.0
        if "starting_time" in group and "timestamps" not in group:
            start, rate = float(group["starting_time"][()]), float(group["starting_time"].attrs.get("rate", 0))
        data = group.get("data")
        return cls(path, name or path.rsplit("/", 1)[-1], kind_of(group), data, group.get("timestamps"), start, rate)

    def __len__(self) -> int:
        counted = self.times if self.data is None else self.data
        return counted.shape[0]

    @property
    def numeric(self) -> bool:
        """Whether the values are numbers."""
        return self.data is not None and np.dtype(self.data.dtype).kind in "iufb"

    @property
    def timed(self) -> bool:
        """Whether it says when; templates have no times, or only NaN."""
        if self.times is None:
            return self.rate > 0
        return self.times.shape[0] > 0 and bool(np.isfinite(self.times[: 1 << 16]).any())

    def time(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Times in s of the samples `start` to `stop`, float64."""
        stop = len(self) if stop is None else min(stop, len(self))
        if self.times is not None:
            return np.asarray(self.times[start:stop], np.float64)
        if not self.rate > 0:
            raise SessionError(f"{self.path} has neither timestamps nor a rate")
        return self.start + np.arange(start, stop) / self.rate

    def values(self, start: int, stop: int) -> np.ndarray:
        """Values of the samples `start` to `stop` in the unit of the series, (n, K) float64."""
        values = np.asarray(self.data[start:stop], np.float64)
        return (values * self.conversion[0] + self.conversion[1]).reshape(len(values), -1)

    @cached_property
    def conversion(self) -> tuple[float, float]:
        """Factor and offset that bring stored numbers to the unit of the series."""
        return float(self.data.attrs.get("conversion", 1.0)), float(self.data.attrs.get("offset", 0.0))


class Table:
    """A `DynamicTable` of a file.

    Parameters
    ----------
    group
        Its HDF5 group.
    """

    def __init__(self, group: Any) -> None:
        self.group = group
        self.path = group.name.lstrip("/")
        self.name = self.path.rsplit("/", 1)[-1]

    def __len__(self) -> int:
        if "id" in self.group:
            return self.group["id"].shape[0]
        return self.group[self.columns[0]].shape[0] if self.columns else 0

    @cached_property
    def columns(self) -> list[str]:
        """Names of the columns."""
        named = [text(name) for name in np.atleast_1d(self.group.attrs.get("colnames", []))]
        return [name for name in named if name in self.group]

    @property
    def ids(self) -> np.ndarray:
        """(N,) int64, the id of each row."""
        return np.asarray(self.group["id"][:], np.int64) if "id" in self.group else np.arange(len(self))

    def ends(self, name: str) -> np.ndarray | None:
        """End of each row's list in the values of a column of lists; None where a row is one value."""
        index = self.group.get(f"{name}_index")
        return None if index is None else np.asarray(index[:], np.int64)

    def column(self, name: str) -> np.ndarray:
        """(N,) values of a column, numbers or text.

        Of a list of numbers the first one is given (NaN where it is empty), and a list of text as one text.

        Raises
        ------
        SessionError
            If there is no such column, or a cell is more than a value or a list.
        """
        if name not in self.columns and name != "id":
            raise SessionError(f"{self.path} has no column {name!r}; {nearest(name, self.columns)}")
        data, ends = self.group[name], self.ends(name)
        if f"{name}_index_index" in self.group or (ends is None and data.ndim > 1) or data.dtype.names:
            raise SessionError(f"column {name!r} of {self.path} holds neither numbers nor text")
        values = _decoded(data)
        if ends is None:
            return values
        parts = [values[a:b] for a, b in zip(np.concatenate([[0], ends[:-1]]), ends, strict=True)]
        if values.dtype.kind == "U":
            return np.asarray([", ".join(part) for part in parts], str)
        return np.asarray([part[0] if len(part) else np.nan for part in parts])

    def is_text(self, name: str) -> bool:
        """Whether a column holds text."""
        data = self.group[name]
        return np.dtype(data.dtype).kind in "OSU" and not _is_reference(data)

    def rows(self, name: str, number: int) -> slice:
        """Where the list of a row lies in the values of a column of lists."""
        index = self.group[f"{name}_index"]
        return slice(int(index[number - 1]) if number else 0, int(index[number]))

    def select(self, conditions: list[str]) -> Iterator[tuple[str, np.ndarray]]:
        """Each condition and the rows that meet it, (N,) bool; NaN meets none.

        Parameters
        ----------
        conditions
            Such as ``presence_ratio > 0.9``, ``quality == good`` or ``location in [VISp, VISl]``.

        Raises
        ------
        SessionError
            If a condition is not of this form, or names no column.
        """
        for condition in conditions:
            match = _CONDITION.match(condition)
            if match is None:
                raise SessionError(
                    f"condition {condition!r} of {self.path} is not COLUMN OPERATOR VALUE, "
                    "with one of < <= > >= == != in, such as 'presence_ratio > 0.9'"
                )
            yield condition, _meets(self.column(match[1]), match[2], match[3], condition)


def _is_reference(data: Any) -> bool:
    import h5py  # an extra

    return h5py.check_ref_dtype(data.dtype) is not None


def _decoded(data: Any) -> np.ndarray:
    values = data[:]
    if values.dtype.kind in "OS":
        if _is_reference(data):
            raise SessionError(f"{data.name.lstrip('/')} holds references, neither numbers nor text")
        values = np.asarray([text(value) for value in values], str) if len(values) else np.zeros(0, "U1")
    elements = data.attrs.get("elements")  # of a column that numbers its words
    if elements is not None and values.dtype.kind in "iu":
        names = data.file[elements][:] if not isinstance(elements, np.ndarray) else elements
        values = np.asarray([text(name) for name in names], str)[values]
    return values


def _meets(values: np.ndarray, operator: str, given: str, condition: str) -> np.ndarray:
    wanted = (
        [part.strip().strip("'\"") for part in given.strip("[]()").split(",")]
        if "in" in operator
        else [given.strip("'\"")]
    )
    if values.dtype.kind == "U":
        if operator not in ("==", "!=", "in", "not in"):
            raise SessionError(f"condition {condition!r} orders text; use ==, != or in")
        met = np.isin(values, wanted)
    else:
        words = {"true": 1.0, "false": 0.0}
        try:
            numbers = [words[word.lower()] if word.lower() in words else float(word) for word in wanted]
        except ValueError:
            raise SessionError(f"condition {condition!r} compares numbers with text") from None
        values = values.astype(np.float64)
        if operator in _ORDER:
            return _ORDER[operator](values, numbers[0])
        met = np.isin(values, numbers)
    if operator in ("!=", "not in"):
        return ~met & ~_missing(values)
    return met


def _missing(values: np.ndarray) -> np.ndarray:
    return np.isnan(values) if values.dtype.kind == "f" else np.zeros(len(values), bool)


_ORDER = {"<": np.less, "<=": np.less_equal, ">": np.greater, ">=": np.greater_equal}


def fits_in_memory(data: Any, limit: int = 1 << 27) -> bool:
    """Whether a dataset is small enough to be kept, at most 128 MB."""
    return int(np.prod(data.shape, dtype=np.int64)) * np.dtype(data.dtype).itemsize <= limit


def name_of(path: Path) -> str:
    """Name of the session of a file: without .nwb, and without .nwb.url."""
    return path.name.removesuffix(".url").removesuffix(".nwb") or os.fspath(path)
