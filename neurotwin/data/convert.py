"""Recordings of any format to session files: many at once, and again only where a source has changed."""

import glob
import json
import logging
import multiprocessing
import zipfile
from collections.abc import Callable, Generator, Iterator, Mapping, MutableMapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ..config import ConfigError, registered
from ..tensorfile import TensorFileError, load_metadata
from .formats import Format, find_format, reader_for, source_stamp
from .progress import ProgressDisplay
from .session import Session, SessionError
from .streamed import Streamed

__all__ = ["Outcome", "convert_recordings", "expand_sources", "parse_options", "report_line"]

logger = logging.getLogger(__name__)

# What a broken source can make a reader raise; it must not stop the sources after it.
_FAILURES = (
    SessionError, ConfigError, TensorFileError, OSError, ValueError, TypeError, AttributeError, LookupError,
    ArithmeticError, RuntimeError, MemoryError, EOFError, zipfile.BadZipFile, yaml.YAMLError,
)  # fmt: skip
_EXPECTED = (SessionError, ConfigError, TensorFileError, OSError)  # their messages name the file and the cure
_POLL = 0.5  # s between looks at what the processes have done


@dataclass(frozen=True)
class Outcome:
    """What became of one source.

    Attributes
    ----------
    source
        The file or folder.
    state
        "converted", "unchanged" (it was converted before), or "failed".
    text
        One line: the report of the session, or what is wrong.
    target
        The session file; None where there is none.
    """

    source: Path
    state: str
    text: str
    target: Path | None = None


@dataclass(frozen=True)
class _Task:
    """A source that has to be read. `labels` go into the session's `info`, by which a later run knows it again."""

    source: Path
    target: Path
    reader: Format
    labels: Mapping[str, str]
    size: int
    force: bool


def convert_recordings(
    sources: Sequence[str | Path],
    target: str | Path,
    *,
    format: str = "",
    options: Mapping[str, Any] | None = None,
    jobs: int = 1,
    force: bool = False,
) -> list[Outcome]:
    """Convert recordings to session files.

    A source that was converted before is left as it is, unless its files or the options have changed: a session file
    keeps their sizes and times in `info`. A source that fails does not stop the others.

    Parameters
    ----------
    sources
        Files, folders, and patterns such as ``raw/*``.
    target
        Folder for the session files NAME.safetensors; or, for one source, a path that ends in .safetensors.
    format
        Name of the layout of all sources; by default the one that recognises each of them.
    options
        Of the readers, such as `name`, `subject` or `bin_rate`.
    jobs
        Number of processes.
    force
        Convert every source, and replace files that were not made from it.

    Returns
    -------
    list of Outcome
        One for each source, in their order.

    Raises
    ------
    SessionError
        If the target cannot hold the sources.
    """
    target, options = Path(target), dict(options or {})
    paths = expand_sources(sources)
    _check_request(paths, target, options, jobs)
    made = _made_before(target)
    planned = {path: _plan(path, target, format, options, made, force) for path in paths}
    outcomes = {path: plan for path, plan in planned.items() if isinstance(plan, Outcome)}
    tasks = [plan for plan in planned.values() if not isinstance(plan, Outcome)]
    with ProgressDisplay("converting") as display:
        for outcome in outcomes.values():
            if outcome.state == "unchanged":
                display.say(outcome.text)
        progress = _Progress(tasks, len(paths) - len(tasks), display)
        for outcome in _run_here(tasks, progress) if jobs == 1 else _run_in_processes(tasks, jobs, progress):
            outcomes[outcome.source] = outcome
            if outcome.state == "converted":
                display.say(outcome.text)
            progress.finish(outcome.source)
    return [outcomes[path] for path in paths]


def expand_sources(sources: Sequence[str | Path]) -> list[Path]:
    """The paths that sources and patterns stand for, each once, in their order; matches of a pattern are sorted.

    A pattern does not match session files, nor names that begin with a dot. One that matches nothing stands for itself,
    and is then reported as missing.

    Examples
    --------
    >>> expand_sources(["raw/b.npz", "raw/a.npz", "raw/./b.npz"])
    [PosixPath('raw/b.npz'), PosixPath('raw/a.npz')]
    """
    found: dict[Path, Path] = {}
    for source in sources:
        matches = [Path(source)]
        if not matches[0].exists() and any(sign in str(source) for sign in "*?["):
            names = sorted(glob.glob(str(Path(source).expanduser()), recursive=True))
            matches = [Path(name) for name in names if not name.endswith(".safetensors")] or matches
        for path in matches:
            found.setdefault(path.resolve(), path)
    return list(found.values())


def parse_options(pairs: Sequence[str]) -> dict[str, Any]:
    """Options from texts KEY=VALUE. A value in brackets or braces is YAML, `null` is None, others stay text.

    The reader turns text into the number or the truth value that its option asks for.

    Raises
    ------
    SessionError
        If a text has no equals sign, a key comes twice, or a list is not closed.

    Examples
    --------
    >>> parse_options(["bin_rate=30", "areas=[V1, LM]", "path=a=b"])
    {'bin_rate': '30', 'areas': ['V1', 'LM'], 'path': 'a=b'}
    """
    options: dict[str, Any] = {}
    for pair in pairs:
        key, sign, text = pair.partition("=")
        if not sign or not key:
            raise SessionError(f"--options {pair}: give KEY=VALUE, such as bin_rate=60")
        if key in options:
            raise SessionError(f"--options: {key} is given twice")
        try:
            options[key] = yaml.safe_load(text) if text[:1] in ("[", "{") or text == "null" else text
        except yaml.YAMLError:
            raise SessionError(f"--options {pair}: not a list or mapping; give [a, b] or {{a: b}}, in quotes") from None
    return options


def report_line(session: Session) -> str:
    """One line on a session: units kept, of those found where the reader says so, minutes, types, behaviour, notes.

    A reader says how many units it found by ``info["units_found"]``.
    """
    found = session.info.get("units_found", "")
    names, bins = session.types, np.bincount(session.type_codes)
    types = ", ".join(
        f"{name} ({count / session.bin_rate / 60:.1f} min)" for name, count in zip(names, bins, strict=True)
    )
    behavior = ", ".join(
        name if values.ndim == 1 or values.shape[1] == 1 else f"{name} x {values.shape[1]}"
        for name, values in session.behavior.items()
    )
    parts = [
        f"{session.n_units}{f' of {found}' if found else ''} units",
        f"{session.duration / 60:.1f} min at {session.bin_rate:g} Hz",
        f"types {types}",
        f"behaviour {behavior}" if behavior else "no behaviour",
        f"{session.valid.mean():.1%} valid",
    ]
    notes = " ".join(note.strip().rstrip(".") + "." for note in session.notes)
    return "; ".join(parts) + (f". {notes}" if notes else "")


def _check_request(paths: Sequence[Path], target: Path, options: Mapping[str, Any], jobs: int) -> None:
    if not paths:
        raise SessionError("no source is given; name a file, a folder or a pattern such as 'raw/*'")
    if jobs < 1:
        raise SessionError(f"--jobs {jobs}: give 1 or more")
    if target.suffix != ".safetensors" and target.exists() and not target.is_dir():
        raise SessionError(f"{target}: is a file; give a folder, or a name that ends in .safetensors")
    if target.suffix == ".safetensors" and target.is_dir():
        raise SessionError(f"{target}: is a folder; give the name of a file, or a folder with another name")
    if len(paths) > 1 and target.suffix == ".safetensors":
        raise SessionError(f"{target}: one file cannot hold {len(paths)} recordings; give a folder")
    if len(paths) > 1 and options.get("name"):
        raise SessionError(f"--name {options['name']}: {len(paths)} recordings cannot share a name; leave it out")


def _plan(
    path: Path, target: Path, format: str, options: Mapping[str, Any], made: Sequence["_Made"], force: bool
) -> "_Task | Outcome":
    """What is to be done with a source; nothing of its data is read."""
    try:
        if not path.exists():
            raise SessionError(f"{path}: no such file or folder")
        kind = format or _format_of(path)
        reader = reader_for(path, format=kind, **options)
        # An option may name a file, such as a mapping, whose content counts as much as its name.
        named = [
            Path(value) for value in options.values() if isinstance(value, str) and value and Path(value).is_file()
        ]
        stamp, size = source_stamp(path, [*reader.companions(path), *named])
    except _FAILURES as error:
        return _failure(path, error)
    labels = {
        "source": str(path.resolve()),
        "source_stamp": stamp,
        "source_options": json.dumps({"format": kind, **options}, sort_keys=True, default=str),
    }
    same = [known for known in made if known.labels == labels or known.moved(labels)]
    if same and not force:
        return Outcome(path, "unchanged", f"{path}: unchanged since {same[0].path} was made from it", same[0].path)
    return _Task(path, target, reader, labels, size, force)


def _format_of(path: Path) -> str:
    try:
        return find_format(path)
    except SessionError:
        inside = sorted(path.iterdir()) if path.is_dir() else []
        kinds = registered("format").values()
        if any(kind.recognises(child) for child in inside for kind in kinds):
            raise SessionError(f"{path}: holds recordings, but is none; give the pattern '{path}/*'") from None
        raise


@dataclass(frozen=True)
class _Made:
    """A session file that was converted from a source, and what it keeps of it."""

    path: Path
    labels: Mapping[str, str]

    def moved(self, labels: Mapping[str, str]) -> bool:
        """Whether these are the labels of the same source in another place, and the old place is gone."""
        before = Path(self.labels["source"])
        elsewhere = {**labels, "source": self.labels["source"]} == dict(self.labels)
        return elsewhere and before.name == Path(labels["source"]).name and not before.exists()


_LABELS = ("source", "source_stamp", "source_options")


def _made_before(target: Path) -> list[_Made]:
    """The whole session files in a folder that name their source."""
    if target.suffix == ".safetensors":
        paths = [target] if target.exists() else []
    else:
        paths = sorted(target.glob("*.safetensors"))
    made = []
    for path in paths:
        try:
            info = Session.load(path, verify=False).info
        except SessionError:  # cut off, altered or of an older version: it is made again
            continue
        if all(label in info for label in _LABELS):
            made.append(_Made(path, {label: info[label] for label in _LABELS}))
    return made


def _convert(task: _Task, claims: MutableMapping[str, str], shares: MutableMapping[str, float]) -> Outcome:
    """Read and write one source. `claims` are the targets of this run with their sources."""
    try:
        session = task.reader.read(task.source)
        target = task.target if task.target.suffix == ".safetensors" else task.target / f"{session.name}.safetensors"
        source = str(task.source)
        first = claims.setdefault(str(target), source)
        if first != source:
            raise SessionError(f"{source}: makes session {session.name!r} as {first} does; convert one with --name")
        if target.exists() and not task.force:
            _check_ours(target, task.labels["source"])
        session.info = {**session.info, **task.labels}
        session.stimulus = _watched(session.stimulus, lambda share: shares.__setitem__(source, share))
        session.save(target)
        return Outcome(task.source, "converted", f"{source} -> {target}: {report_line(session)}", target)
    except _FAILURES as error:
        return _failure(task.source, error)


def _check_ours(target: Path, source: str) -> None:
    """Refuse to replace a file unless it was converted from the same source."""
    try:
        info = load_metadata(target).get("info", {})
    except TensorFileError as error:
        raise SessionError(f"{error}; delete it, or give --force to replace it") from None
    before = info.get("source") if all(label in info for label in _LABELS) else None
    if before != source:
        origin = f"was made from {before}" if before else "exists, and was not made by a conversion"
        raise SessionError(f"{target}: {origin}; choose another name with --name, or give --force to replace it")


def _watched(array: Any, note: Callable[[float], None]) -> Streamed:
    """The same array, which notes the share of its rows that has been read."""

    def read(start: int, stop: int) -> np.ndarray:
        note(stop / len(array))
        return np.asarray(array[start:stop])

    return Streamed(tuple(array.shape), np.dtype(array.dtype), read)


def _failure(path: Path, error: BaseException) -> Outcome:
    text = " ".join(str(error).split())
    if not isinstance(error, _EXPECTED):
        text = f"cannot be read ({type(error).__name__}: {text})"
        logger.debug("%s", path, exc_info=error)
    return Outcome(path, "failed", text if str(path) in text else f"{path}: {text}")


class _Progress:
    """Bytes of sources that are done, of all that are to be read."""

    def __init__(self, tasks: Sequence[_Task], n_done: int, display: ProgressDisplay) -> None:
        self.sizes = {str(task.source): max(task.size, 1) for task in tasks}
        self.shares = dict.fromkeys(self.sizes, 0.0)
        self.n_done, self.n_all, self.display = n_done, n_done + len(tasks), display

    def __setitem__(self, source: str, share: float) -> None:
        self.shares[source] = share
        self.show()

    def finish(self, source: Path) -> None:
        """Count a source as done, whether it was converted or failed."""
        self.n_done += 1
        self[str(source)] = 1.0

    def show(self) -> None:
        """Draw the state."""
        done = sum(self.sizes[source] * share for source, share in self.shares.items() if source in self.sizes)
        self.display.update(done / sum(self.sizes.values()), f"{self.n_done} of {self.n_all}")


def _run_here(tasks: Sequence[_Task], progress: _Progress) -> Iterator[Outcome]:
    claims: dict[str, str] = {}
    for task in tasks:
        yield _convert(task, claims, progress)


def _run_in_processes(tasks: Sequence[_Task], jobs: int, progress: _Progress) -> Iterator[Outcome]:
    """Outcomes as they come.

    When a process is killed, its pool is lost with all that it was at. Those sources are then tried again one by one,
    so that only the one that kills its process fails.
    """
    if not tasks:
        return
    with multiprocessing.get_context("spawn").Manager() as manager:
        shared = manager.dict(), manager.dict()
        lost = yield from _one_pool(tasks, min(jobs, max(1, len(tasks))), shared, progress)
        for task in lost:
            for again in (yield from _one_pool([task], 1, shared, progress)):
                error = SessionError(f"{again.source}: its process was killed; perhaps the memory was full")
                yield _failure(again.source, error)


def _one_pool(
    tasks: Sequence[_Task], jobs: int, shared: tuple[Any, Any], progress: _Progress
) -> Generator[Outcome, None, list[_Task]]:
    """Outcomes as they come; returns the tasks that were lost with the pool."""
    lost = []
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"))
    try:
        waiting: dict[Future, _Task] = {pool.submit(_convert, task, *shared): task for task in tasks}
        while waiting:
            done, _ = wait(waiting, _POLL, FIRST_COMPLETED)
            for source, share in shared[1].items():
                progress.shares[source] = share
            progress.show()
            for future in done:
                task = waiting.pop(future)
                try:
                    yield future.result()
                except BrokenProcessPool:
                    lost.append(task)
    finally:  # also where the user interrupts: what has not begun is not begun
        pool.shutdown(cancel_futures=True)
    return lost
