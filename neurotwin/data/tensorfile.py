"""Named arrays in one file that is memory-mapped, checked and safe to open.

The format is `safetensors <https://github.com/huggingface/safetensors>`_: eight bytes with the length of a JSON
header, the header (type, shape and byte range of every array, and free text), then the raw bytes. Reading one runs no
code. Files are written under a temporary name and renamed when whole, so a name never stands for half a file.
"""

import hashlib
import json
import os
import time
import uuid
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

__all__ = ["TensorFileError", "load_arrays", "save_arrays", "verify_arrays", "write_arrays"]

_DTYPES = {
    "BOOL": np.bool_, "U8": np.uint8, "I8": np.int8, "U16": np.uint16, "I16": np.int16, "U32": np.uint32,
    "I32": np.int32, "I64": np.int64, "F16": np.float16, "F32": np.float32, "F64": np.float64,
}  # fmt: skip
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}


class TensorFileError(ValueError):
    """A file is not what it should be: truncated, altered, or of another kind."""


def save_arrays(path: str | Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, object]) -> None:
    """Write `arrays` and `metadata` (JSON values) to `path`, whole or not at all."""
    specs = {name: (array.dtype, array.shape) for name, array in arrays.items()}
    with write_arrays(path, specs, metadata) as out:
        for name, array in arrays.items():
            out[name][...] = array


@contextmanager
def write_arrays(
    path: str | Path, specs: Mapping[str, tuple[np.dtype | type, tuple[int, ...]]], metadata: Mapping[str, object]
):
    """Yield writable memory-mapped arrays of the given types and shapes; name the file `path` once they are filled.

    The arrays start as zeros and never need to fit in memory. The header keeps a digest of their content. Two
    processes may write the same file at once: the last one names it.

    Raises
    ------
    OSError
        If the file cannot be written. All of its space is taken before anything is, because a disk that is full
        under a memory-mapped array kills the process instead.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with write_arrays(folder / "a.safetensors", {"x": (np.uint8, (2, 3))}, {"unit": "px"}) as out:
    ...     out["x"][1] = 7
    >>> arrays, metadata = load_arrays(folder / "a.safetensors")
    >>> int(arrays["x"].sum()), metadata["unit"]
    (21, 'px')
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    entries, offset = {}, 0
    # Widest types first: every array then starts at a multiple of its item size.
    for name, (dtype, shape) in sorted(specs.items(), key=lambda item: (-np.dtype(item[1][0]).itemsize, item[0])):
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        entries[name] = {
            "dtype": _NAMES[np.dtype(dtype)],
            "shape": list(shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = {key: json.dumps(value) for key, value in metadata.items()}
    header = _pack({"__metadata__": {**text, "digest": "0" * 64}, **entries})
    _remove_stale(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(header)
            file.flush()
            os.posix_fallocate(file.fileno(), 0, len(header) + offset)
        arrays = _map(temporary, entries, len(header), mode="r+")
        yield arrays
        for array in arrays.values():
            if isinstance(array, np.memmap):
                array.flush()
        digest = _digest(arrays)
        with open(temporary, "r+b") as file:
            file.write(_pack({"__metadata__": {**text, "digest": digest}, **entries}))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_arrays(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, object]]:
    """Map the arrays of a file, read-only, and return them with its metadata.

    The metadata also holds `digest`, the SHA-256 of the content that :func:`verify_arrays` compares.

    Raises
    ------
    TensorFileError
        If the file is not of this format or its size is not the one its header promises.
    """
    path = Path(path)
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(8)
        length = int.from_bytes(head, "little")
        if len(head) < 8 or length > size - 8:
            raise TensorFileError(f"{path}: not a safetensors file, or cut off; write it again")
        try:
            header = json.loads(file.read(length))
            text = header.pop("__metadata__", {})
            end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
            known = all(entry["dtype"] in _DTYPES for entry in header.values())
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise TensorFileError(f"{path}: not a safetensors file ({error})") from None
    if not known:
        raise TensorFileError(f"{path}: holds a number type that is not supported ({sorted(_DTYPES)} are)")
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        if last - first != int(np.prod(entry["shape"], dtype=np.int64)) * np.dtype(_DTYPES[entry["dtype"]]).itemsize:
            raise TensorFileError(f"{path}: the bytes of {name!r} do not fit their shape; the header was altered")
    if size != 8 + length + end:
        raise TensorFileError(f"{path}: {size} bytes where its header promises {8 + length + end}; it was cut off")
    metadata = {key: value if key == "digest" else _from_json(value) for key, value in text.items()}
    return _map(path, header, 8 + length, mode="r"), metadata


def verify_arrays(path: str | Path) -> None:
    """Read a file whole and compare its content with the digest in its header.

    Raises
    ------
    TensorFileError
        If they differ: the file was altered after it was written.
    """
    arrays, metadata = load_arrays(path)
    if metadata.get("digest") != _digest(arrays):
        raise TensorFileError(f"{path}: its content does not match its checksum; it was altered after it was written")


def _remove_stale(path: Path) -> None:
    """Remove what a process that was killed left of this file more than a day ago."""
    for temporary in path.parent.glob(f".{path.name}.*.tmp"):
        if time.time() - temporary.stat().st_mtime > 86400:
            temporary.unlink(missing_ok=True)


def _pack(header: dict) -> bytes:
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 64)
    return len(text).to_bytes(8, "little") + text


def _from_json(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _map(path: Path, entries: dict, start: int, mode: str) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for name, entry in entries.items():
        shape, dtype = tuple(entry["shape"]), _DTYPES[entry["dtype"]]
        if 0 in shape:  # nothing to map
            arrays[name] = np.zeros(shape, dtype)
        else:
            arrays[name] = np.memmap(path, dtype, mode, start + entry["data_offsets"][0], shape)
    return arrays


def _digest(arrays: Mapping[str, np.ndarray], block: int = 1 << 24) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode())
        flat = np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8)
        for first in range(0, len(flat), block):
            digest.update(flat[first : first + block])
    return digest.hexdigest()
