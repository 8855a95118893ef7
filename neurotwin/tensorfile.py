"""Named arrays in one file that is memory-mapped, checked and safe to open.

The format is `safetensors <https://github.com/huggingface/safetensors>`_: eight bytes with the length of a JSON
header, the header (type, shape and byte range of every array, and free text), then the raw bytes. Reading one runs no
code. Files are written under a temporary name and renamed when whole, so a name never stands for half a file.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .files import replacing

__all__ = ["TensorFileError", "blocks", "load_arrays", "save_arrays", "write_arrays"]

_BLOCK = 1 << 24  # bytes that are read, compared or copied at a time

_DTYPES = {
    "BOOL": np.bool_, "U8": np.uint8, "I8": np.int8, "U16": np.uint16, "I16": np.int16, "U32": np.uint32,
    "I32": np.int32, "I64": np.int64, "F16": np.float16, "F32": np.float32, "F64": np.float64,
}  # fmt: skip
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}


class TensorFileError(ValueError):
    """A file is not what it should be: truncated, altered, or of another kind."""


def save_arrays(path: str | Path, arrays: Mapping[str, Any], metadata: Mapping[str, object]) -> None:
    """Write `arrays` and `metadata` (JSON values) to `path`, whole or not at all.

    An array may be anything with a shape, a type and slices along its first axis; it is copied piece by piece.
    """
    specs = {name: (array.dtype, array.shape) for name, array in arrays.items()}
    with write_arrays(path, specs, metadata) as out:
        for name, array in arrays.items():
            if not array.shape:
                out[name][...] = array
            start = 0
            for part in blocks(array):
                out[name][start : start + len(part)] = part
                start += len(part)


def blocks(array: Any) -> Iterator[np.ndarray]:
    """The parts of an array along its first axis, each of about 16 MB.

    Examples
    --------
    >>> sum(len(part) for part in blocks(np.zeros((100_000, 90))))
    100000
    """
    if not array.shape or 0 in array.shape:
        return
    row = int(np.prod(array.shape[1:], dtype=np.int64)) * np.dtype(array.dtype).itemsize
    step = max(1, _BLOCK // max(1, row))
    for start in range(0, len(array), step):
        yield np.asarray(array[start : start + step])


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
    entries, offset = {}, 0
    # Widest types first: every array then starts at a multiple of its item size.
    for name, (dtype, shape) in sorted(specs.items(), key=lambda item: (-np.dtype(item[1][0]).itemsize, item[0])):
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        kind, offsets = _NAMES[np.dtype(dtype)], [offset, offset + size]
        entries[name] = {"dtype": kind, "shape": [int(n) for n in shape], "data_offsets": offsets}
        offset += size
    text = {key: json.dumps(value) for key, value in metadata.items()}
    header = _pack(text, entries, "0" * 64)
    with replacing(path) as temporary:
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
            file.write(_pack(text, entries, digest))


def load_arrays(path: str | Path, *, verify: bool = True) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Map the arrays of a file, read-only, and return them with its metadata.

    The header (types, shapes and metadata) is always compared with its checksum.

    Parameters
    ----------
    path
        The file.
    verify
        Also read the arrays, and compare them with theirs.

    Returns
    -------
    arrays, metadata
        The metadata also hold `digest`, a SHA-256 that differs where anything in the file does.

    Raises
    ------
    TensorFileError
        If the file is not of this format, was cut off, or was altered after it was written.
    """
    path = Path(path)
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(8)
        length = int.from_bytes(head, "little")
        if len(head) < 8 or length > size - 8:
            raise TensorFileError(f"{path}: not a safetensors file, or cut off; write it again")
        raw = file.read(length)
    noted = _HEADER_DIGEST.search(raw)
    if noted is None:
        raise TensorFileError(f"{path}: its header has no checksum, so neurotwin did not write it; write it again")
    if noted[1].decode() != _header_digest(head + raw):
        raise TensorFileError(f"{path}: its header does not match its checksum; it was altered after it was written")
    header = json.loads(raw)
    text = header.pop("__metadata__")
    end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if size != 8 + length + end:
        raise TensorFileError(f"{path}: {size} bytes where its header promises {8 + length + end}; it was cut off")
    arrays = _map(path, header, 8 + length, mode="r")
    if verify and text["digest"] != _digest(arrays):
        raise TensorFileError(f"{path}: its content does not match its checksum; it was altered after it was written")
    metadata = {key: json.loads(value) for key, value in text.items() if key not in _DIGESTS}
    return arrays, {**metadata, "digest": text["header_digest"]}


_DIGESTS = ("header_digest", "digest")
_HEADER_DIGEST = re.compile(rb'"header_digest":"([0-9a-f]{64})"')


def _pack(text: Mapping[str, str], entries: Mapping[str, Any], digest: str) -> bytes:
    """The header with its own checksum, which is that of the header with zeros in the checksum's place."""
    metadata = {"header_digest": "0" * 64, "digest": digest, **text}
    content = json.dumps({"__metadata__": metadata, **entries}, separators=(",", ":")).encode()
    content += b" " * (-len(content) % 64)
    header = len(content).to_bytes(8, "little") + content
    return header.replace(b"0" * 64, _header_digest(header).encode(), 1)


def _header_digest(header: bytes) -> str:
    noted = _HEADER_DIGEST.search(header)
    return hashlib.sha256(header[: noted.start(1)] + b"0" * 64 + header[noted.end(1) :]).hexdigest()


def _map(path: Path, entries: Mapping[str, Any], start: int, mode: str) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for name, entry in entries.items():
        shape, dtype = tuple(entry["shape"]), _DTYPES[entry["dtype"]]
        if 0 in shape:  # nothing to map
            arrays[name] = np.zeros(shape, dtype)
        else:
            mapped = np.memmap(path, dtype, mode, start + entry["data_offsets"][0], shape or (1,))
            arrays[name] = mapped.reshape(shape)
    return arrays


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode())
        flat = arrays[name].reshape(-1).view(np.uint8)
        for first in range(0, len(flat), _BLOCK):
            digest.update(flat[first : first + _BLOCK])
    return digest.hexdigest()
