"""Arrays that lie elsewhere and are read in pieces, so that a recording larger than memory can be converted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Streamed"]


@dataclass(frozen=True, eq=False)
class Streamed:
    """An array that lies elsewhere and is read in pieces along its first axis, never whole.

    Any array of a :class:`Session` may be one, so that a recording larger than memory can be converted.

    Parameters
    ----------
    shape, dtype
        Of the array.
    read
        Called with the first and one past the last index, returns that part.

    Examples
    --------
    >>> squares = Streamed((1000,), np.dtype(np.int64), lambda start, stop: np.arange(start, stop) ** 2)
    >>> squares[3:6].tolist(), len(squares)
    ([9, 16, 25], 1000)
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[int, int], np.ndarray]

    @classmethod
    def of_parts(cls, lengths: Sequence[int], load: Callable[[int], np.ndarray], like: np.ndarray) -> "Streamed":
        """The concatenation of parts, each loaded when it is needed; `like` has the shape of a row and the type.

        The part read last is kept, because pieces are usually asked for in order.
        """
        bounds = np.concatenate([[0], np.cumsum(lengths)])
        kept: dict[int, np.ndarray] = {}

        def read(start: int, stop: int) -> np.ndarray:
            pieces = [np.empty((0, *like.shape), like.dtype)]
            for part in range(np.searchsorted(bounds, start, side="right") - 1, len(lengths)):
                if bounds[part] >= stop:
                    break
                if part not in kept:
                    kept.clear()
                    kept[part] = load(part)
                first = bounds[part]
                pieces.append(kept[part][max(start - first, 0) : stop - first])
            return np.concatenate(pieces)

        return cls((int(bounds[-1]), *like.shape), like.dtype, read)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def astype(self, dtype: Any, copy: bool = True) -> "Streamed":
        """The same array in another type; each piece is converted when it is read."""
        return Streamed(
            self.shape, np.dtype(dtype), lambda start, stop: self.read(start, stop).astype(dtype, copy=copy)
        )

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, part: int | slice | tuple) -> np.ndarray:
        first, *rest = part if isinstance(part, tuple) else (part,)
        if isinstance(first, int | np.integer):
            index = range(len(self))[first]
            return self.read(index, index + 1)[(0, *rest)]
        start, stop, step = first.indices(len(self))
        return self.read(start, stop)[(slice(None, None, step), *rest)]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.read(0, len(self)), dtype)
