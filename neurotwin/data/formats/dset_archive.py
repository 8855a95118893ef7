"""Open the torch archives of the `.dset` layout without running code of theirs.

To open such an archive means to unpickle it, which can run code. Here only tensors, plain containers and the
constructors of numpy's numbers and arrays are allowed, and the tensors stay on the disk.
"""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core import multiarray

from ..session import SessionError
from ..streamed import Streamed

__all__ = ["as_array", "open_dset", "plain"]

_NUMBERS = ("Bool", "Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "UInt64", "Float16", "Float32",
            "Float64", "Str")  # fmt: skip
# Structured and object types of numpy are left out on purpose: a forged one can point anywhere in memory.
_ALLOWED: list[Any] = [
    np.ndarray, np.dtype, *(getattr(np.dtypes, f"{name}DType") for name in _NUMBERS),
    *((getattr(multiarray, name), f"{package}.multiarray.{name}")
      for name in ("_reconstruct", "scalar") for package in ("numpy.core", "numpy._core")),
]  # fmt: skip


def open_dset(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The covariates (arrays that stay on the disk) and the metadata of one .dset file; no code of the file is run.

    Raises
    ------
    SessionError
        If the file is no such archive, or holds anything but numbers, text and plain containers.
    """
    try:
        with torch.serialization.safe_globals(_ALLOWED):
            content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it asks for {wanted[1]}" if wanted else f"it is more than plain data ({_one_line(error)})"
        raise SessionError(
            f"{path}: refused, because opening it could run code: {reason}; save tensors, numbers and text only"
        ) from None
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, EOFError, OSError) as error:
        raise SessionError(
            f"{path}: not a whole archive of torch.save ({_one_line(error)}); save it again with a current torch"
        ) from None
    covariates = content.get("covariates") if isinstance(content, dict) else None
    if not isinstance(covariates, Mapping):
        raise SessionError(f"{path}: has no mapping 'covariates'; save {{'covariates': ..., 'metadata': ...}}")
    metadata = content.get("metadata") or {}
    if not isinstance(metadata, Mapping):
        raise SessionError(f"{path}: its metadata are a {type(metadata).__name__}; give a mapping")
    return {str(key): value for key, value in covariates.items()}, {str(key): v for key, v in metadata.items()}


def as_array(path: Path, key: str, value: Any) -> np.ndarray | Streamed | None:
    """A covariate of a file as an array that is read in pieces; None if it holds no numbers.

    The file is opened again for every piece, and each piece is a copy. Otherwise the part of the file that has been
    read would stay mapped, and count as memory of the process until all of a recording does.
    """
    if isinstance(value, np.ndarray):
        return value if value.dtype.kind in "biuf" else None
    if not isinstance(value, torch.Tensor) or value.layout is not torch.strided:
        return None
    if value.is_complex() or value.is_quantized:
        return None

    def read(start: int, stop: int) -> np.ndarray:
        return _numpy(open_dset(path)[0][key][start:stop]).copy()

    return Streamed(tuple(value.shape), _numpy(value[:0]).dtype, read) if value.ndim else _numpy(value)


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach()
    return (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy()  # numpy has no bfloat16


def plain(value: Any) -> Any:
    """A tensor as an array; anything else as it is."""
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
