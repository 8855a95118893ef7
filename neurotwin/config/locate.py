"""Where the data of a session lie."""

import os
from pathlib import Path

from .base import ConfigError
from .dataset import DatasetConfig

__all__ = ["find_data", "moved"]

_NO_DATA = (".yaml", ".yml", ".tmp")


def find_data(config: DatasetConfig, file: Path, folder: Path, data_dir: str | Path | None) -> Path:
    """The recording of a session: a file, or the folder of one.

    In this order: its `path`; its `directory`, or what has the session's name there; what has the session's name
    in the folder of data, as ``NAME.*`` or as a folder NAME. What does not exist is left to whoever opens it.

    Parameters
    ----------
    config
        Of the session.
    file
        Its YAML, for messages.
    folder
        What a `data_dir` of the YAML is relative to.
    data_dir
        The folder of data; by default that of ``NEUROTWIN_DATA``, else that of the YAML.

    Raises
    ------
    ConfigError
        If several recordings have the name.
    """
    root = Path(data_dir or os.environ.get("NEUROTWIN_DATA") or folder / (config.data_dir or "."))
    root = root.expanduser().resolve()
    if config.path is not None:
        return root / Path(config.path).expanduser()
    own = None if config.directory is None else root / Path(config.directory).expanduser()
    if own is not None and own.exists():
        return _named(config.session, file, own) or own
    return _named(config.session, file, root) or own or root / f"{config.session}.safetensors"


def moved(config: DatasetConfig, data_dir: str | Path | None) -> DatasetConfig:
    """The config of a session whose recording lies in `data_dir` now, under the name that its file had.

    A twin that was pushed does not say what that name was; it is then that of the session. None changes nothing.

    Examples
    --------
    >>> moved(DatasetConfig(session="ada_1", path="/old/a.nwb"), "/new").path
    '/new/a.nwb'
    >>> moved(DatasetConfig(session="ada_1"), "/new").path
    '/new/ada_1.safetensors'
    """
    if data_dir is None:
        return config
    name = Path(config.path).name if config.path else f"{config.session}.safetensors"
    return config.model_copy(update={"path": str(Path(data_dir) / name)})


def _named(name: str, file: Path, folder: Path) -> Path | None:
    """The file or folder of a session in a folder; None where there is none."""
    found = sorted(p for p in folder.glob(f"{_literal(name)}.*") if p.suffix not in _NO_DATA)
    if (folder / name).is_dir():
        found.append(folder / name)
    if len(found) > 1:
        raise ConfigError(f"{file}: {name!r} could be any of {[p.name for p in found]} in {folder}; set `path`")
    return found[0] if found else None


def _literal(name: str) -> str:
    """A name as a pattern that matches itself alone."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
