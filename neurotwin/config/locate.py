"""Where the data of a session lie."""

import os
import re
from pathlib import Path

from .base import ConfigError
from .dataset import DatasetConfig

__all__ = ["file_name", "find_data", "is_url", "joined", "moved"]

_NO_DATA = (".yaml", ".yml", ".tmp")
_PROTOCOL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")  # two letters or more, since C:// is a drive


def is_url(path: str | Path | None) -> bool:
    """Whether a path is the address of what lies elsewhere: a protocol, then ``://``.

    Examples
    --------
    >>> is_url("s3://bucket/ada_1.safetensors"), is_url("C://ada_1.safetensors"), is_url("data/ada:1.safetensors")
    (True, False, False)
    """
    return isinstance(path, str) and _PROTOCOL.match(path) is not None


def joined(folder: str | Path, name: str) -> str:
    """A path within a folder, either of which may be a URL; one that is complete by itself stands for itself.

    Examples
    --------
    >>> joined("s3://bucket/data", "ada_1.nwb"), joined("data", "s3://bucket/ada_1.nwb"), joined("data", "ada_1.nwb")
    ('s3://bucket/data/ada_1.nwb', 's3://bucket/ada_1.nwb', 'data/ada_1.nwb')
    """
    if is_url(name):
        return name
    if is_url(folder) and not Path(name).is_absolute():
        return f"{str(folder).rstrip('/')}/{name}"
    return str(Path(folder) / name)


def file_name(path: str | Path) -> str:
    """The name of a file, of a URL without its query.

    Examples
    --------
    >>> file_name("/data/ada_1.nwb"), file_name("https://host/data/ada_1.nwb?version=2")
    ('ada_1.nwb', 'ada_1.nwb')
    """
    if not is_url(path):
        return Path(path).name
    inner = _PROTOCOL.sub("", str(path), count=1).split("::")[0]
    return re.split(r"[?#]", inner)[0].rstrip("/").rpartition("/")[2]


def find_data(config: DatasetConfig, file: Path, folder: Path, data_dir: str | Path | None) -> str:
    """The recording of a session: a file, the folder of one, or the URL of a file.

    In this order: its `path`; its `directory`, or what has the session's name there; what has the session's name
    in the folder of data, as ``NAME.*`` or as a folder NAME. A folder elsewhere is not listed: the recording is then
    ``NAME.safetensors`` in it. What does not exist is left to whoever opens it.

    Parameters
    ----------
    config
        Of the session.
    file
        Its YAML, for messages.
    folder
        What a `data_dir` of the YAML is relative to.
    data_dir
        The folder of data, or its URL; by default that of ``NEUROTWIN_DATA``, else that of the YAML.

    Raises
    ------
    ConfigError
        If several recordings have the name.
    """
    root = str(data_dir or os.environ.get("NEUROTWIN_DATA") or joined(folder, config.data_dir or "."))
    if not is_url(root):
        root = str(Path(root).expanduser().resolve())
    if config.path is not None:
        return joined(root, os.path.expanduser(config.path))
    own = None if config.directory is None else joined(root, os.path.expanduser(config.directory))
    if own is not None and (is_url(own) or Path(own).exists()):
        return _named(config.session, file, own) or own
    return _named(config.session, file, root) or own or joined(root, f"{config.session}.safetensors")


def moved(config: DatasetConfig, data_dir: str | Path | None) -> DatasetConfig:
    """The config of a session whose recording lies in `data_dir` now, under the name that its file had.

    A twin that was pushed does not say what that name was; it is then that of the session. None changes nothing.

    Examples
    --------
    >>> moved(DatasetConfig(session="ada_1", path="/old/a.nwb"), "/new").path
    '/new/a.nwb'
    >>> moved(DatasetConfig(session="ada_1"), "s3://bucket").path
    's3://bucket/ada_1.safetensors'
    """
    if data_dir is None:
        return config
    name = file_name(config.path) if config.path else f"{config.session}.safetensors"
    return config.model_copy(update={"path": joined(data_dir, name)})


def _named(name: str, file: Path, place: str) -> str | None:
    """The file or folder of a session in a folder; None where there is none."""
    if is_url(place):
        return joined(place, f"{name}.safetensors")
    folder = Path(place)
    found = sorted(p for p in folder.glob(f"{_literal(name)}.*") if p.suffix not in _NO_DATA)
    if (folder / name).is_dir():
        found.append(folder / name)
    if len(found) > 1:
        raise ConfigError(f"{file}: {name!r} could be any of {[p.name for p in found]} in {folder}; set `path`")
    return str(found[0]) if found else None


def _literal(name: str) -> str:
    """A name as a pattern that matches itself alone."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
