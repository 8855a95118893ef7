"""What layouts of one array a property say about units: ids, positions, labels; and about whose they are."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ..session import SessionError

__all__ = ["UnitTable", "as_text", "subject_of_name", "unit_table"]

_NAMES = {"animal_ids": "animal_id", "sessions": "session", "fields": "field"}


@dataclass
class UnitTable:
    """Fields of a session that describe its units; see :class:`~neurotwin.data.session.Session`."""

    ids: np.ndarray
    positions: np.ndarray | None = None
    labels: dict[str, np.ndarray] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def unit_table(properties: Mapping[str, np.ndarray], n_units: int, kept: np.ndarray, where: str) -> UnitTable:
    """Sort the properties of units into ids (`unit_ids`), positions (`cell_motor_coordinates`) and labels.

    Parameters
    ----------
    properties
        Arrays by name, with a row a unit.
    n_units
        Units of the recording.
    kept
        (U,) int: rows of the units that the session keeps.
    where
        What to call the place of the arrays in messages.

    Raises
    ------
    SessionError
        If ids or positions do not have a row for each unit.
    """
    table = UnitTable(kept)
    for name, values in properties.items():
        if not values.ndim or len(values) != n_units:
            if name in ("unit_ids", "cell_motor_coordinates"):
                raise SessionError(f"{where}/{name}.npy: has shape {values.shape} where responses have {n_units} units")
            table.notes.append(f"{name} is left out: its shape {values.shape} is not that of {n_units} units.")
        elif name == "unit_ids":
            if len(np.unique(values)) == n_units:
                table.ids = values[kept]
            else:
                table.notes.append("unit_ids repeat; units are numbered by their row instead.")
        elif name == "cell_motor_coordinates":
            table.positions = np.asarray(values[kept], np.float32)
        elif values.ndim == 1:
            table.labels[_NAMES.get(name, name)] = as_text(values[kept])
        else:
            table.notes.append(f"{name} is left out: a label has one value a unit, and it has {values.shape[1:]}.")
    return table


def as_text(values: np.ndarray) -> np.ndarray:
    """Values as text; bytes are read as UTF-8."""
    return np.char.decode(values, "utf-8") if values.dtype.kind == "S" else values.astype(str)


def subject_of_name(name: str) -> str:
    """The first number of a name that goes on with two more; empty where there is none.

    Examples
    --------
    >>> [subject_of_name(name) for name in ("static29156-11-10-GrayImageNet", "29156-11-10", "mouse_4")]
    ['29156', '29156', '']
    """
    found = re.match(r"[A-Za-z_]*?(\d+)-\d+-\d+", name)
    return found[1] if found else ""
