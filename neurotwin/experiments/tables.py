"""Tables with one row a unit."""

from collections.abc import Mapping

import numpy as np

from ..data.spec import SessionSpec

__all__ = ["UnitTable"]


class UnitTable:
    """Gathers columns session by session; a column that one session lacks is NaN there.

    Examples
    --------
    >>> spec = SessionSpec(
    ...     name="ada_1", subject="ada", unit_ids=(4, 7), frame_shape=(1, 8, 8), bin_rate=60.0, n_lags=1
    ... )
    >>> table = UnitTable()
    >>> table.add(spec, {"rate_hz": np.array([1.0, 2.0])})
    >>> {name: column.tolist() for name, column in table.columns().items()}
    {'session': ['ada_1', 'ada_1'], 'unit_id': [4, 7], 'rate_hz': [1.0, 2.0]}
    """

    def __init__(self) -> None:
        self._parts: list[tuple[SessionSpec, Mapping[str, np.ndarray]]] = []

    def add(self, spec: SessionSpec, columns: Mapping[str, np.ndarray]) -> None:
        """Add the units of a session: columns (U,) by name."""
        self._parts.append((spec, columns))

    def columns(self) -> dict[str, np.ndarray]:
        """All rows. Ids become text where those of one session are text."""
        names = dict.fromkeys(name for _, columns in self._parts for name in columns)
        ids = [np.asarray(spec.unit_ids) for spec, _ in self._parts]
        if len({part.dtype.kind for part in ids}) > 1:
            ids = [part.astype(str) for part in ids]
        table = {"session": np.concatenate([np.full(spec.n_units, spec.name) for spec, _ in self._parts])}
        table["unit_id"] = np.concatenate(ids)
        for name in names:
            table[name] = np.concatenate([
                np.asarray(columns.get(name, np.full(spec.n_units, np.nan))) for spec, columns in self._parts
            ])  # fmt: skip
        return table
