"""Names of bins, kept as codes: a recording has millions of bins and few names."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..tensorfile import blocks

__all__ = ["BinLabels", "Coded"]


class Coded(NamedTuple):
    """Names (N,) and the index of each bin's name among them, (T,) int32."""

    names: np.ndarray
    codes: np.ndarray

    @classmethod
    def of(cls, values: Any) -> "Coded":
        """From a name for every bin, (T,); the names are sorted.

        Examples
        --------
        >>> names, codes = Coded.of(["b", "a", "b"])
        >>> names.tolist(), codes.tolist()
        (['a', 'b'], [1, 0, 1])
        """
        array = values if hasattr(values, "shape") else np.asarray(values)
        found = {name for part in blocks(array) for name in np.unique(part.astype(str)).tolist()}
        names = np.asarray(sorted(found), str)
        parts = [np.searchsorted(names, part.astype(str)).astype(np.int32) for part in blocks(array)]
        return cls(names, np.concatenate(parts) if parts else np.zeros(0, np.int32))

    @classmethod
    def of_runs(cls, values: Sequence[str], lengths: Sequence[int]) -> "Coded":
        """From names that each hold for a run of bins; the name of a bin is never written out.

        Examples
        --------
        >>> Coded.of_runs(["noise", "image", "noise"], [2, 1, 1]).codes.tolist()
        [1, 1, 0, 1]
        """
        names, codes = np.unique(np.asarray(values, str), return_inverse=True)
        return cls(names, np.repeat(codes.astype(np.int32), lengths))

    def labels(self) -> np.ndarray:
        """The name of every bin, (T,), read-only; takes four bytes for every letter of the longest name."""
        labels = self.names[self.codes]
        labels.flags.writeable = False  # writing to it would change nothing
        return labels


class BinLabels:
    """An attribute of a session that is a name for every bin, (T,), and is kept as :class:`Coded`.

    It is read as an array of names, which is made anew each time. Anything that is no array of text with one axis is
    kept as it is, until the session has checked what it was given.

    Parameters
    ----------
    default
        Value where none is given.
    """

    def __init__(self, default: str | None) -> None:
        self.default = default

    def __set_name__(self, owner: type, name: str) -> None:
        self.place = f"_{name}"

    def __get__(self, session: Any, owner: type | None = None) -> Any:
        if session is None:
            return self.default
        kept = vars(session)[self.place]
        return kept.labels() if isinstance(kept, Coded) else kept

    def __set__(self, session: Any, value: Any) -> None:
        is_text = isinstance(value, np.ndarray) and value.dtype.kind == "U" and value.ndim == 1
        vars(session)[self.place] = Coded.of(value) if is_text else value
