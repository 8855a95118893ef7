"""Twins by name and revision, in a folder that others can read, or on the Hugging Face hub."""

import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..files import write_text
from ..models import load_twin
from ..models.twin import write_twin
from .bundle import CARD, GOLDEN, MANIFEST, TWIN, SharingError, read_bundle, write_bundle
from .card import model_card
from .golden import write_golden
from .hub import HUB, pull_from_hub, push_to_hub

__all__ = ["pull", "push"]

_LATEST = "latest"
_PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"


def push(run: str | Path, name: str, to: str | Path, *, api: Any = None) -> str:
    """Pack a run's twin with its card and golden predictions, and put it where others pull it.

    Where the recordings lay is left out of the file.

    Parameters
    ----------
    run
        A run's folder, or the file of a saved twin.
    name
        NAME, or NAME@REVISION. Without a revision it is the first 12 digits of the content's SHA-256.
    to
        A folder, or "hub" for the Hugging Face hub, where the name is OWNER/NAME.
    api
        What is asked in place of `huggingface_hub.HfApi()`.

    Returns
    -------
    str
        NAME@REVISION. `latest` stands for it from now on.

    Raises
    ------
    SharingError
        If the name is none, or the revision holds other content: what was pushed is never changed.
    """
    name, revision = _split(name)
    if revision == _LATEST:
        raise SharingError(f"{name}@{_LATEST}: stands for the revision pushed last; leave it out or give another")
    hub = str(to) == HUB
    if not hub:
        (Path(to) / name).mkdir(parents=True, exist_ok=True)
    with _working_folder(Path(to) / name if not hub else Path.cwd()) as folder:
        twin = load_twin(run)
        write_twin(twin, folder / TWIN, _without_places(twin.describe()))
        write_golden(load_twin(folder / TWIN), folder / GOLDEN)
        write_text(folder / CARD, model_card(run, f"{name}@{revision or _LATEST}"))
        content = write_bundle(folder)
        revision = revision or content[:12]
        if hub:
            push_to_hub(folder, name, revision, content, api)
        else:
            _publish(folder, Path(to) / name / revision, content)
            write_text(Path(to) / name / _LATEST, revision + "\n")
    return f"{name}@{revision}"


def pull(name: str, source: str | Path, output: str | Path | None = None, *, api: Any = None) -> tuple[str, Path]:
    """Fetch a twin, and compare every file with its checksum.

    Parameters
    ----------
    name
        NAME@REVISION; NAME alone or NAME@latest is the revision pushed last.
    source
        A folder that twins were pushed to, or "hub".
    output
        Folder to make. Default: NAME-REVISION here.
    api
        As for :func:`push`.

    Returns
    -------
    pinned, folder
        NAME@REVISION, and the folder, which :func:`~neurotwin.models.load_twin` opens.

    Raises
    ------
    SharingError
        If there is no such twin, it was altered, or the output holds something else.
    """
    name, revision = _split(name)
    if str(source) == HUB:
        with _working_folder(Path.cwd()) as folder:
            revision = pull_from_hub(name, revision or _LATEST, folder, api)
            return _deliver(folder, name, revision, output)
    if revision in (None, _LATEST):
        path = Path(source) / name / _LATEST
        try:
            revision = path.read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            raise SharingError(f"{source}: holds no twin {name!r}; it has {_names(Path(source))}") from None
        if not re.fullmatch(_PART, revision):
            raise SharingError(f"{path}: names no revision; give NAME@REVISION")
    folder = Path(source) / name / revision
    if not folder.is_dir():
        raise SharingError(f"{source}: holds no revision {revision!r} of {name!r}; it has {_names(folder.parent)}")
    return _deliver(folder, name, revision, output)


def _split(name: str) -> tuple[str, str | None]:
    noted = re.fullmatch(rf"({_PART}(?:/{_PART})?)(?:@({_PART}))?", name)
    if noted is None:
        raise SharingError(f"{name!r}: give NAME@REVISION, of letters, digits, dots, dashes and underscores")
    return noted[1], noted[2]


def _names(folder: Path) -> str:
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name[0] != ".") if folder.is_dir() else []
    return ", ".join(names) or "none"


@contextmanager
def _working_folder(beside: Path) -> Iterator[Path]:
    folder = beside / f".{uuid.uuid4().hex[:12]}.tmp"
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _publish(folder: Path, target: Path, content: str) -> None:
    """Give a whole folder its name; a name that is taken stays as it is."""
    try:
        os.rename(folder, target)
    except OSError:
        if not target.is_dir():
            raise
        if read_bundle(target) != content:
            raise SharingError(
                f"{target}: holds other content already, and a revision is never changed; choose another revision"
            ) from None


def _deliver(folder: Path, name: str, revision: str, output: str | Path | None) -> tuple[str, Path]:
    read_bundle(folder)
    target = Path(output or f"{name.replace('/', '-')}-{revision}")
    target.parent.mkdir(parents=True, exist_ok=True)
    with _working_folder(target.parent) as copy:
        for file in (TWIN, GOLDEN, CARD, MANIFEST):
            shutil.copyfile(folder / file, copy / file)
        content = read_bundle(copy)  # of what arrived
        if target.exists() and not (target / MANIFEST).exists():
            raise SharingError(f"--output {target}: exists and holds no twin; give another folder")
        _publish(copy, target, content)
    return f"{name}@{revision}", target


def _without_places(value: Any) -> Any:
    """A description that does not say where recordings lay."""
    if isinstance(value, dict):
        is_config = {"session", "path", "data_dir"} <= value.keys()
        hidden = dict.fromkeys(("path", "directory", "data_dir")) if is_config else {}
        return {key: _without_places(item) for key, item in value.items()} | hidden
    return [_without_places(item) for item in value] if isinstance(value, list | tuple) else value
