"""The fields of a session from whatever is given for them: arrays, text, mappings; or one line that says what is wrong.

Nothing is changed silently: a value that the stored type cannot hold is refused.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..errors import UserError
from ..tensorfile import blocks
from .streamed import Streamed

__all__ = [
    "SessionError", "as_array", "as_booleans", "as_float32", "as_ids", "as_mapping", "as_names", "as_text", "naming",
    "number_trials", "shortened", "whole_numbers",
]  # fmt: skip


class SessionError(UserError):
    """A session is not usable as it stands; the message names it and the cure."""


@contextmanager
def naming(name: Any) -> Iterator[None]:
    """Say of which session an error within the block is."""
    try:
        yield
    except SessionError as error:
        text = str(error)
        raise SessionError(text if text.startswith("session ") else f"session {shortened(name)}: {text}") from None


def shortened(value: Any) -> str:
    """A value as one short line."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def as_text(value: Any, what: str) -> str:
    """Text as it is."""
    if not isinstance(value, str):
        raise SessionError(f"{what} is {shortened(value)}; give text")
    return value


def as_mapping(values: Any, what: str) -> Mapping[str, Any]:
    """A mapping whose keys are text."""
    if not isinstance(values, Mapping):
        raise SessionError(f"{what} is a {type(values).__name__}; give a mapping of names to values")
    for key in values:
        as_text(key, f"a name in {what}")
    return values


def as_names(values: Any, what: str, length: int) -> np.ndarray:
    """(length,) names; a single one stands for all."""
    if isinstance(values, str):
        return np.full(length, values)
    array = np.asarray(values) if _is_regular(values) else np.asarray(values, object)
    if array.ndim == 1 and array.dtype.kind == "O" and all(isinstance(value, str) for value in array):
        array = array.astype(str)
    if array.ndim != 1 or (array.dtype.kind != "U" and array.size):
        raise SessionError(
            f"{what} is {array.dtype} of shape {array.shape}; give one name for all, or as many as there are"
        )
    return array.astype(str)


def as_array(values: Any, what: str, *, axes: Sequence[int]) -> Any:
    """An array of numbers with one of some numbers of axes; arrays that lie elsewhere stay there."""
    if isinstance(values, Streamed):
        return values
    if not isinstance(values, np.ndarray):
        if not _is_regular(values):
            raise SessionError(f"{what} is {shortened(values)}; give an array of numbers")
        values = np.asarray(values)
    if values.dtype.kind not in "iufb" or values.dtype.itemsize > 8:
        raise SessionError(f"{what} is {values.dtype}; give numbers")
    if values.ndim not in axes:
        raise SessionError(f"{what} has shape {values.shape}; give {' or '.join(map(str, axes))} axes")
    return values if values.dtype.isnative else values.astype(values.dtype.newbyteorder("="))


def as_float32(values: Any, what: str, *, axes: Sequence[int]) -> Any:
    """An array whose values float32 can hold, as it is; it is stored as float32."""
    values = as_array(values, what, axes=axes)
    if values.dtype == np.float64:
        for part in blocks(values):
            largest = np.abs(part, dtype=np.float64).max(initial=0, where=np.isfinite(part))
            if largest > np.finfo(np.float32).max:
                raise SessionError(f"{what} reaches {largest:.3g}, more than float32 can hold; scale it")
    return values


def whole_numbers(values: Any, what: str) -> np.ndarray:
    """Values as int64, unchanged.

    Raises
    ------
    SessionError
        If one is not a whole number that int64 can hold.
    """
    array = np.asarray(values) if _is_regular(values) else np.asarray(values, object)
    if array.dtype.kind == "b" or array.dtype.kind not in "iuf":
        raise SessionError(f"{what} are {array.dtype}; give whole numbers")
    if array.ndim != 1:
        raise SessionError(f"{what} have shape {array.shape}; give one number for each")
    wrong = array[:0]
    if array.dtype.kind == "f":
        wrong = array[~((array == np.floor(array)) & (np.abs(array) < 2**63))]
    elif array.dtype == np.uint64:
        wrong = array[array > np.iinfo(np.int64).max]
    if wrong.size:
        raise SessionError(f"{what} hold {wrong[0]!s}, which is not a whole number of 64 bits")
    return array.astype(np.int64)


def as_ids(values: Any, what: str) -> np.ndarray:
    """Whole numbers as int64, or text as it is."""
    array = np.asarray(values) if _is_regular(values) else np.asarray(values, object)
    if array.dtype.kind == "O" and array.ndim == 1 and all(isinstance(value, str) for value in array):
        array = array.astype(str)
    if array.dtype.kind == "U" and isinstance(values, list | tuple) and not all(isinstance(v, str) for v in values):
        raise SessionError(f"{what} are numbers and text; give one or the other")
    return as_names(array, what, len(array)) if array.dtype.kind == "U" and array.ndim else whole_numbers(array, what)


def number_trials(names: np.ndarray) -> np.ndarray:
    """The number of each name, counted from 0 in the order of appearance.

    Examples
    --------
    >>> number_trials(np.array(["b", "b", "a", "b"])).tolist()
    [0, 0, 1, 0]
    """
    _, first, codes = np.unique(names, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[codes].astype(np.int64)


def as_booleans(values: Any, what: str) -> np.ndarray:
    """Truth values, also where they are given as 0 and 1."""
    array = np.asarray(as_array(values, what, axes=(1,)))
    if array.dtype != bool and not np.isin(array, (0, 1)).all():
        raise SessionError(f"{what} holds {array[~np.isin(array, (0, 1))].flat[0]!s}; give true or false")
    return array.astype(bool)


def _is_regular(values: Any) -> bool:
    """Whether numpy makes an array of these values, that is, rows have one length."""
    try:
        np.asarray(values)
    except (ValueError, TypeError, OverflowError):
        return False
    return True
