"""Sessions from plain numpy arrays: one .npz file, or a folder of .npy files."""

from dataclasses import fields
from pathlib import Path

import numpy as np

from ...config import nearest
from ..session import Session, SessionError

__all__ = ["read_arrays"]

_FIELDS = [field.name for field in fields(Session)]
_SCALARS = ("name", "subject", "bin_rate")


def read_arrays(path: str | Path, *, name: str = "", subject: str = "", bin_rate: float | None = None) -> Session:
    """Read a session whose arrays carry the names of the fields of :class:`~neurotwin.data.session.Session`.

    Parameters
    ----------
    path
        An .npz file, or a folder of .npy files, with `stimulus`, `spikes` and any of the other fields; behaviour as
        `behavior.NAME`. Arrays of Python objects are refused: reading them could run code.
    name, subject, bin_rate
        Override what the file says. The name defaults to the file's; the rate, in Hz, has no default.

    Raises
    ------
    SessionError
        If an array is missing, unknown, or does not agree with the others.

    Examples
    --------
    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "ada_0501.npz"
    >>> np.savez(file, stimulus=np.zeros((9, 4, 4), np.uint8), spikes=np.ones((9, 2)), bin_rate=60.0)
    >>> read_arrays(file).name
    'ada_0501'
    """
    path = Path(path)
    arrays = _load(path)
    behavior = {k.removeprefix("behavior."): v for k, v in arrays.items() if k.startswith("behavior.")}
    values = {k: v for k, v in arrays.items() if not k.startswith("behavior.")}
    for key in values:
        if key not in _FIELDS:
            raise SessionError(f"{path}: array {key!r} is not part of a session; {nearest(key, _FIELDS)}")
    for key in ("stimulus", "spikes"):
        if key not in values:
            raise SessionError(f"{path}: has no array {key!r} (it has {', '.join(arrays)})")
    settings = {key: values.pop(key).item() for key in _SCALARS if key in values}
    settings |= {k: v for k, v in {"name": name, "subject": subject, "bin_rate": bin_rate}.items() if v}
    if "bin_rate" not in settings:
        raise SessionError(f"{path}: bins a second are not known; store bin_rate, or give --bin_rate")
    return Session(**{"name": path.stem} | settings | values, behavior=behavior)


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
