"""Twins from files: saved models and training checkpoints, compared with their checksums and never run as code."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint_file import CheckpointError, find_checkpoint, read_checkpoint
from ..config import DatasetConfig, ModelConfig, noticing
from ..data.pictures import unpack
from ..data.prepare import outline
from ..data.remote import local_path
from ..tensorfile import TensorFileError, format_fault, load_arrays
from .ensemble import ENSEMBLE_FORMAT, Ensemble
from .twin import PICTURES, TWIN_FORMAT, TwinModel

__all__ = ["READERS", "check_run", "load_twin"]


def check_run(config: ModelConfig, datasets: Sequence[DatasetConfig]) -> None:
    """Refuse a run that is not possible before its data are prepared. Only headers of session files are read.

    Raises
    ------
    ConfigError
        If model and sessions do not fit together.
    SessionError
        If a session is missing, or a config asks for what it does not have.
    """
    with noticing():
        TwinModel(config, outline(datasets))


def load_twin(path: str | Path) -> TwinModel:
    """Open a model or ensemble saved by :meth:`TwinModel.save`, or a training checkpoint (``.ckpt``), ready to predict.

    A run's folder stands for its best checkpoint. Of a URL, a copy is used (:mod:`~neurotwin.data.remote`). Where the
    run averaged its weights (``--ema``), the twin has the average. No code from the file is run.

    Raises
    ------
    CheckpointError
        If the file is missing, cut off, altered, holds anything but numbers and text, or is no such model.
    SessionError
        If a URL cannot be fetched.
    """
    path = find_checkpoint(local_path(path))
    try:
        if path.suffix == ".ckpt":
            checkpoint = read_checkpoint(path)
            text, prefix = checkpoint["twin"], "twin."
            weights = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
            weights |= checkpoint.get("averaged", {})
            pictures = dict(checkpoint.get("pictures", {}))
            counts = pictures.pop("counts", [])
        else:
            arrays, metadata = load_arrays(path)
            text, weights = metadata["twin"], {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
            held = [name for name in weights if name.startswith(PICTURES)]
            pictures = {name.removeprefix(PICTURES): weights.pop(name) for name in held}
            counts = metadata.get("pictures", [])
        description = json.loads(text)
        found = str(description.get("format"))
        if found not in READERS:
            of_ensemble = found.startswith(ENSEMBLE_FORMAT.rstrip("0123456789"))
            current, cure = (ENSEMBLE_FORMAT, "make it anew") if of_ensemble else (TWIN_FORMAT, "train it anew")
            raise CheckpointError(format_fault(found, current, cure))
        twin = READERS[found](description, weights)
        if pictures:  # twins of older formats have none
            twin.pictures = unpack(pictures, counts)
    except CheckpointError as error:
        text = str(error)
        raise CheckpointError(text if text.startswith(str(path)) else f"{path}: {text}") from None
    except TensorFileError as error:
        raise CheckpointError(str(error)) from None
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, OSError, EOFError) as error:
        text = " ".join(str(error).split())
        raise CheckpointError(f"{path}: not a model that can be loaded: {type(error).__name__}: {text}") from None
    return twin.eval()


def _read_twin(description: Mapping[str, Any], weights: Mapping[str, Tensor]) -> TwinModel:
    twin = TwinModel.from_description(description)
    twin.load_state_dict(weights)
    return twin


def _read_ensemble(description: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Ensemble:
    ensemble = Ensemble.from_description(description)
    ensemble.load_state_dict(weights)
    return ensemble


def _read_twin_3(description: Mapping[str, Any], weights: Mapping[str, Tensor]) -> TwinModel:
    """A twin without hashes of the pictures of its training; nothing else is different."""
    return _read_twin({**description, "format": TWIN_FORMAT}, weights)


def _read_ensemble_1(description: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Ensemble:
    """An ensemble of twins of format 3."""
    known = {"neurotwin-twin-3": TWIN_FORMAT}
    members = [member | {"format": known.get(member["format"])} for member in description["members"]]
    return _read_ensemble({**description, "format": ENSEMBLE_FORMAT, "members": members}, weights)


READERS: dict[str, Callable[[Mapping[str, Any], Mapping[str, Tensor]], TwinModel]] = {
    "neurotwin-twin-3": _read_twin_3,
    TWIN_FORMAT: _read_twin,
    "neurotwin-ensemble-1": _read_ensemble_1,
    ENSEMBLE_FORMAT: _read_ensemble,
}
"""What opens a twin of each format, from its description and weights.

Whoever changes the format gives it the next number, keeps the reader of the one before, which brings its description
and weights to the new form, and adds a file of it with its golden predictions to `tests/data/formats`.
"""
