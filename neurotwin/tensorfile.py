"""Named arrays in one file that is memory-mapped, checked and safe to open.

The format is `safetensors <https://github.com/huggingface/safetensors>`_: eight bytes with the length of a JSON
header, the header (type, shape and byte range of every array, and free text), then the raw bytes. Reading one runs no
code. Files are written under a temporary name and renamed when whole, so a name never stands for half a file.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .errors import UserError
from .files import replacing

__all__ = ["TensorFileError", "blocks", "format_fault", "load_arrays", "load_metadata", "save_arrays"]

_BLOCK = 1 << 24  # bytes that are read, compared or copied at a time

_DTYPES = {
    "BOOL": np.bool_, "U8": np.uint8, "I8": np.int8, "U16": np.uint16, "I16": np.int16, "U32": np.uint32,
    "I32": np.int32, "I64": np.int64, "U64": np.uint64, "F16": np.float16, "F32": np.float32, "F64": np.float64,
}  # fmt: skip
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}


class TensorFileError(UserError):
    """A file is not what it should be: truncated, altered, or of another kind."""


def save_arrays(path: str | Path, arrays: Mapping[str, Any], metadata: Mapping[str, object]) -> None:
    """Write `arrays` and `metadata` (JSON values) to `path`, whole or not at all.

    An array may be anything with a shape, a type and slices along its first axis. It is written piece by piece, so that
    it never needs to fit in memory. Two processes may write the same file at once: the last one names it.

    Raises
    ------
    OSError
        If the file cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.safetensors"
    >>> save_arrays(path, {"x": np.arange(6).reshape(2, 3)}, {"unit": "px"})
    >>> arrays, metadata = load_arrays(path)
    >>> int(arrays["x"].sum()), metadata["unit"]
    (15, 'px')
    """
    entries, offset = {}, 0
    # Widest types first: every array then starts at a multiple of its item size.
    order = sorted(arrays, key=lambda name: (-np.dtype(arrays[name].dtype).itemsize, name))
    for name in order:
        dtype, shape = np.dtype(arrays[name].dtype), [int(n) for n in arrays[name].shape]
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        entries[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = {key: json.dumps(value) for key, value in metadata.items()}
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(_pack(text, entries, "0" * 64))
        digests = {}
        for name in order:
            digest, dtype = hashlib.sha256(), np.dtype(arrays[name].dtype)
            for part in blocks(arrays[name]):
                content = np.ascontiguousarray(part, dtype).reshape(-1).view(np.uint8).data
                digest.update(content)
                file.write(content)
                del part, content  # else this part would be held while the next one is read
            digests[name] = digest.hexdigest()
        file.seek(0)
        file.write(_pack(text, entries, _combined(digests)))


def blocks(array: Any) -> Iterator[np.ndarray]:
    """The parts of an array along its first axis, each of about 16 MB.

    Examples
    --------
    >>> sum(len(part) for part in blocks(np.zeros((100_000, 90))))
    100000
    """
    if not array.shape:
        yield np.asarray(array)
    if not array.shape or 0 in array.shape:
        return
    row = int(np.prod(array.shape[1:], dtype=np.int64)) * np.dtype(array.dtype).itemsize
    step = max(1, _BLOCK // max(1, row))
    for start in range(0, len(array), step):
        yield np.asarray(array[start : start + step])


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
    header, text, start = _header(path)
    arrays = _map(path, header, start)
    if verify and text["digest"] != _digest(arrays):
        raise TensorFileError(f"{path}: its content does not match its checksum; it was altered after it was written")
    return arrays, _metadata(text)


def load_metadata(path: str | Path) -> dict[str, Any]:
    """The metadata of a file, as :func:`load_arrays` gives them; its arrays are not mapped.

    Raises
    ------
    TensorFileError
        If the file is not of this format, was cut off, or its header was altered.
    """
    return _metadata(_header(Path(path))[1])


def _metadata(text: Mapping[str, str]) -> dict[str, Any]:
    metadata = {key: json.loads(value) for key, value in text.items() if key not in _DIGESTS}
    return {**metadata, "digest": text["header_digest"]}


def _header(path: Path) -> tuple[dict[str, Any], dict[str, str], int]:
    """The entry of every array, the metadata as text, and where the first array starts; compared with the checksum."""
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
    return header, text, 8 + length


def format_fault(found: object, current: str, cure: str) -> str | None:
    """Why a file of a format is not read, with the cure; None where it is the current one.

    Parameters
    ----------
    found
        What the file says of its format.
    current
        The one that is read: a name that ends with its number.
    cure
        What to do about a file of an older one.

    Examples
    --------
    >>> format_fault("neurotwin-twin-9", "neurotwin-twin-3", "train it anew")
    "its format 'neurotwin-twin-9' is of a newer neurotwin; run pip install --upgrade neurotwin"
    """
    if found == current:
        return None
    kind, number = current.rsplit("-", 1)
    noted = re.fullmatch(rf"{re.escape(kind)}-(\d{{1,9}})", str(found))
    if noted and int(noted[1]) > int(number):
        return f"its format {found!r} is of a newer neurotwin; run pip install --upgrade neurotwin"
    return f"its format is {found!r}, where {current!r} can be read; {cure}"


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


def _map(path: Path, entries: Mapping[str, Any], start: int) -> dict[str, np.ndarray]:
    """Views of one map of the whole file: of maps, a process may have some ten thousand."""
    arrays: dict[str, np.ndarray] = {}
    whole = np.memmap(path, np.uint8, "r")
    for name, entry in entries.items():
        shape, dtype = tuple(entry["shape"]), _DTYPES[entry["dtype"]]
        first, last = (start + offset for offset in entry["data_offsets"])
        # Where nothing is stored, there is nothing to map.
        arrays[name] = np.zeros(shape, dtype) if 0 in shape else whole[first:last].view(dtype).reshape(shape)
    return arrays


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    digests = {}
    for name, array in arrays.items():
        digest = hashlib.sha256()
        for part in blocks(array):
            digest.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
        digests[name] = digest.hexdigest()
    return _combined(digests)


def _combined(digests: Mapping[str, str]) -> str:
    """One digest of those of all arrays by name."""
    return hashlib.sha256(json.dumps(sorted(digests.items())).encode()).hexdigest()
