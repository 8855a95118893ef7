"""Recordings that lie elsewhere: each is copied once, through fsspec, into a folder of limited size on this machine.

The folder is ``remote`` in ``NEUROTWIN_CACHE``, else in the user's cache folder, and holds up to
``NEUROTWIN_CACHE_SIZE`` GB. The name of a copy hashes its URL and the version of the file there, so that a file that
has changed is fetched again. A copy gets its name when it is whole.
"""

import errno
import hashlib
import io
import json
import logging
import os
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from ..config.base import nearest
from ..config.locate import file_name, is_url
from ..errors import UserError
from ..files import replacing
from ..tensorfile import TensorFileError, load_arrays
from .copies import CopyFolder, size_text
from .fields import SessionError
from .progress import ProgressDisplay

__all__ = ["RemoteError", "cached", "local_path", "local_places"]

logger = logging.getLogger(__name__)

_DEFAULT_SIZE = "50"  # GB
# By what servers tell one version of a file from another; where none is given, fsspec's own key of a version is taken.
_MARKS = ("ETag", "etag", "Content-MD5", "Digest", "Last-Modified")


class RemoteError(SessionError):
    """A file elsewhere cannot be had; the message names its URL and the cure."""


class _UnreachableError(RemoteError):
    """The host does not answer."""


def local_path(path: str | Path) -> Path:
    """The local file of a path: itself, or of a URL a copy, which is fetched unless this version of it is here.

    If the host cannot be reached, the copy that was used last is taken, and a warning says so.

    Raises
    ------
    SessionError
        If there is no such file elsewhere, or it cannot be fetched or kept.
    """
    if not is_url(path):
        return Path(path)
    url, copies = str(path), _copies()
    shown, name, family = _shown(url), file_name(url) or "recording", _hash(url)
    try:
        files, inner = _connected(url)
        size, version = _version(files, inner, url)
    except _UnreachableError as error:
        return _latest(copies, family, name, error)
    key = f"{family}-{_hash(version)}"
    try:
        target = copies.claim(key) / name
        with copies.locked(key, waiting=f"waiting for another process that fetches {shown}"):
            if not (target.exists() and target.stat().st_size == size):
                copies.reserve(key, size, shown)
                try:
                    _copy(files, inner, target, size, url)
                except BaseException:
                    copies.release(key)
                    raise
            copies.last_use(key, now=True)
    except OSError as error:
        raise RemoteError(
            f"{shown}: cannot be kept in {copies.root} ({error.strerror or error}); free space there, or set "
            "NEUROTWIN_CACHE to a folder that can be written"
        ) from None
    return target


def local_places(path: str | Path, cache_dir: str | Path | None = None) -> tuple[Path, Path]:
    """The local file of a recording, and the folder for what is made from it.

    That folder is `cache_dir`, else ``NEUROTWIN_CACHE``, else `prepared` beside the file. Of a URL it is `cache_dir`,
    else `prepared` beside the copy, where it counts to the size of the folder of copies, and is removed with the copy.

    Raises
    ------
    SessionError
        As :func:`local_path`.
    """
    file = local_path(path)
    shared = None if is_url(path) else os.environ.get("NEUROTWIN_CACHE")
    return file, Path(cache_dir or shared or file.parent / "prepared")


def cached(path: str | None) -> bool:
    """Whether a recording can be had; one elsewhere is fetched, and if that fails, a warning says why."""
    if path is None or not is_url(path):
        return path is not None and Path(path).exists()
    try:
        return local_path(path).exists()
    except SessionError as error:
        logger.warning("%s", error)
        return False


def _connected(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it."""
    protocol, options = url.partition("://")[0], {}
    try:
        import filelock  # noqa: F401
        import fsspec
        from fsspec.registry import known_implementations
    except ImportError:
        raise RemoteError(f"{_shown(url)}: lies elsewhere; pip install 'neurotwin[remote]' to fetch it") from None
    if protocol not in {*known_implementations, *fsspec.registry}:
        cure = nearest(protocol, known_implementations)
        raise RemoteError(f"{_shown(url)}: no protocol {protocol!r} (a local path has no '://'); {cure}")
    try:
        if protocol in ("http", "https"):  # which would end every download after five minutes
            import aiohttp

            own = fsspec.config.conf.get(protocol, {}).get("client_kwargs", {})
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)
            options["client_kwargs"] = {"timeout": timeout, **own}
        return fsspec.url_to_fs(url, **options)
    except ImportError:
        package = known_implementations[protocol]["class"].split(".")[0]
        package = f"'fsspec[{protocol}]'" if package == "fsspec" else package
        raise RemoteError(f"{_shown(url)}: {protocol} needs a package that is absent; pip install {package}") from None
    except Exception as error:
        raise _refusal(url, error) from None


def _version(files: Any, inner: str, url: str) -> tuple[int, str]:
    """Bytes of a file elsewhere, and a text that differs where its content does."""
    try:
        files.invalidate_cache(inner)  # what was listed before may have changed
        info = files.info(inner)
        marks = {mark: str(info[mark]) for mark in _MARKS if info.get(mark)}
        version = json.dumps(marks) if marks else str(files.ukey(inner))
    except Exception as error:
        raise _refusal(url, error) from None
    if info["type"] == "directory":
        raise RemoteError(f"{_shown(url)}: is a folder; give the URL of one file, such as a session file made from it")
    if info["size"] is None:
        raise RemoteError(f"{_shown(url)}: its size is not told, so nothing tells whether it came whole; copy it here")
    if not marks and url.startswith("http"):
        logger.warning("%s: the server tells only the size, so that no other change is noticed", _shown(url))
    return int(info["size"]), f"{info['size']} {version}"


def _copy(files: Any, inner: str, target: Path, size: int, url: str) -> None:
    """Fetch a file under a temporary name, look whether it is whole, and rename it."""
    from fsspec.callbacks import Callback

    for left in target.parent.glob(".*.tmp"):  # of a process that was killed
        left.unlink()
    started, shown = time.monotonic(), _shown(url)
    display = ProgressDisplay("fetching", Console(file=io.StringIO()))  # log lines; a bar may be shown already
    report = Callback(hooks={"log": lambda _, value, **__: display.update(value / max(size, 1), shown)})
    try:
        with replacing(target) as temporary:
            files.get_file(inner, str(temporary), callback=report)
            _check(temporary, target.suffix, size, shown)
    except UserError:
        raise
    except Exception as error:
        raise _refusal(url, error) from None
    rate = size / max(time.monotonic() - started, 1e-9)
    logger.info("fetched %s: %s at %s/s, to %s", shown, size_text(size), size_text(rate), target.parent)


def _check(temporary: Path, suffix: str, size: int, shown: str) -> None:
    """Refuse what is not as it lies elsewhere; a session file knows its own checksum."""
    if (got := temporary.stat().st_size) != size:
        raise RemoteError(f"{shown}: {got} of {size} bytes came; try again")
    if suffix == ".safetensors":
        try:
            load_arrays(temporary)
        except TensorFileError as error:
            fault = str(error).removeprefix(f"{temporary}: ")
            raise RemoteError(f"{shown}: {fault}; put it there again") from None


def _refusal(url: str, error: Exception) -> Exception:
    """What went wrong between here and elsewhere, in one line; of no room on this disk, the error itself."""
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__) is not None:
        causes.append(cause)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return error
    names = ("status", "status_code", "code")  # of HTTP, in the packages of different protocols
    codes = [next((getattr(cause, name) for name in names if hasattr(cause, name)), None) for cause in causes]
    kinds = " ".join(kind.__name__.lower() for cause in causes for kind in type(cause).__mro__)
    said = f"{type(causes[-1]).__name__}: {' '.join(str(causes[-1]).split())}".removesuffix(": ")
    if 401 in codes or 403 in codes or "permissionerror" in kinds or "credential" in kinds:
        cure = "give the protocol's credentials, or ask for access"
        return RemoteError(f"{_shown(url)}: access is refused ({said}); {cure}")
    if any(word in kinds for word in ("connect", "timeout", "gaierror")):
        cure = "check the address and the network"
        return _UnreachableError(f"{_shown(url)}: the host cannot be reached ({said}); {cure}")
    if isinstance(error, FileNotFoundError):
        return RemoteError(f"{_shown(url)}: no such file there; correct path or data_dir")
    return RemoteError(f"{_shown(url)}: cannot be fetched ({said}); try again, or copy it here and give its path")


def _latest(copies: CopyFolder, family: str, name: str, error: RemoteError) -> Path:
    """The copy of a URL that was used last, where its host cannot be reached; raises the error if there is none."""
    whole = [
        path.parent.name for path in copies.root.glob(f"{family}-*/{name}")
        if path.stat().st_size == copies.noted(path.parent.name).get("size")
    ]  # fmt: skip
    if not whole:
        raise error
    target = copies.claim(max(whole, key=copies.last_use)) / name
    logger.warning("%s; going on with the copy that was used last", error)
    return target


def _copies() -> CopyFolder:
    own = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "neurotwin"
    root = Path(os.environ.get("NEUROTWIN_CACHE") or own).expanduser().absolute() / "remote"
    text = os.environ.get("NEUROTWIN_CACHE_SIZE") or _DEFAULT_SIZE
    try:
        size = float(text)
    except ValueError:
        size = 0.0
    if not size > 0:
        raise RemoteError(f"NEUROTWIN_CACHE_SIZE is {text!r}; give a number of GB above 0, such as {_DEFAULT_SIZE}")
    return CopyFolder(root, size * 1e9)


def _shown(url: str) -> str:
    """A URL without what may be secret: a password, or a signature in the query."""
    protocol, _, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    return f"{protocol}://{host.rpartition('@')[2]}{slash}{path.partition('?')[0]}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
