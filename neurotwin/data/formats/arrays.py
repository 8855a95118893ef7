"""Sessions from plain numpy arrays: one .npz file, or a folder of .npy files."""

from dataclasses import fields
from pathlib import Path

import numpy as np

from ...config import nearest, register
from ..session import Session, SessionError
from .base import Format

__all__ = ["Arrays"]

_FIELDS = [field.name for field in fields(Session)]
_SCALARS = ("name", "subject", "bin_rate", "pixels_per_degree")
_GROUPS = ("behavior", "unit_labels")
_RESPONSES = ("responses", "spikes", "robs")


@register("format", "arrays")
class Arrays(Format):
    """Arrays that carry the names of the fields of :class:`~neurotwin.data.session.Session`.

    An .npz file, or a folder of .npy files, with `stimulus`, `responses` (or `spikes`, or `robs`, which mean the same)
    and any of the other fields; behaviour as `behavior.NAME`, labels of units as `unit_labels.NAME`. Arrays of Python
    objects are refused: reading them could run code.

    Examples
    --------
    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "ada_0501.npz"
    >>> np.savez(file, stimulus=np.zeros((9, 4, 4), np.uint8), responses=np.ones((9, 2)), bin_rate=60.0)
    >>> Arrays().read(file).name
    'ada_0501'
    """

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """An .npz file, or a folder with stimulus.npy and the responses beside it."""
        if path.is_file():
            return path.suffix == ".npz"
        return (path / "stimulus.npy").exists() and any((path / f"{key}.npy").exists() for key in _RESPONSES)

    def read(self, path: Path) -> Session:
        """The session; see :class:`Format`."""
        arrays = _load(path)
        groups: dict[str, dict[str, np.ndarray]] = {group: {} for group in _GROUPS}
        values: dict[str, np.ndarray] = {}
        for key, array in arrays.items():
            group, _, name = key.partition(".")
            if group in groups and name:
                groups[group][name] = array
                continue
            field = {"spikes": "responses", "robs": "responses"}.get(key, key)
            if field not in _FIELDS:
                raise SessionError(f"{path}: array {key!r} is not part of a session; {nearest(key, _FIELDS)}")
            if field in values:
                raise SessionError(f"{path}: has the {field} twice, once as {key!r}; keep one of them")
            values[field] = array
        for key in ("stimulus", "responses"):
            if key not in values:
                raise SessionError(f"{path}: has no array {key!r} (it has {', '.join(arrays) or 'none'})")
        settings = {key: values.pop(key).item() for key in _SCALARS if key in values}
        settings |= {key: getattr(self, key) for key in _SCALARS[:3] if getattr(self, key)}
        if "bin_rate" not in settings:
            raise SessionError(f"{path}: bins a second are not known; store bin_rate, or give --bin_rate")
        return Session(**{"name": path.stem} | settings | values, **groups)


def _load(path: Path) -> dict[str, np.ndarray]:
    try:
        if path.is_dir():
            return {file.stem: np.load(file, mmap_mode="r", allow_pickle=False) for file in sorted(path.glob("*.npy"))}
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except FileNotFoundError:
        raise SessionError(f"{path}: no such file") from None
    except (ValueError, OSError, AttributeError) as error:
        raise SessionError(f"{path}: not an .npz file or a folder of .npy files ({error})") from None
