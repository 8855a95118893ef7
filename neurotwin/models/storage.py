"""Twins from files: saved models and training checkpoints, compared with their checksums and never run as code."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from ..checkpoint_file import CheckpointError, find_checkpoint, read_checkpoint
from ..config import DatasetConfig, ModelConfig, noticing
from ..data.prepare import outline
from ..tensorfile import TensorFileError, load_arrays
from .ensemble import ENSEMBLE_FORMAT, Ensemble
from .twin import TwinModel

__all__ = ["check_run", "load_twin"]


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

    A run's folder stands for its best checkpoint. Where the run averaged its weights (``--ema``), the twin has the
    average. No code from the file is run.

    Raises
    ------
    CheckpointError
        If the file is missing, cut off, altered, holds anything but numbers and text, or is no such model.
    """
    path = find_checkpoint(path)
    try:
        if path.suffix == ".ckpt":
            checkpoint = read_checkpoint(path)
            text, prefix = checkpoint["twin"], "twin."
            weights = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
            weights |= checkpoint.get("averaged", {})
        else:
            arrays, metadata = load_arrays(path)
            text, weights = metadata["twin"], {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
        description = json.loads(text)
        kind = Ensemble if str(description.get("format")).startswith(ENSEMBLE_FORMAT[:-1]) else TwinModel
        twin = kind.from_description(description)
        twin.load_state_dict(weights)
    except CheckpointError as error:
        text = str(error)
        raise CheckpointError(text if text.startswith(str(path)) else f"{path}: {text}") from None
    except TensorFileError as error:
        raise CheckpointError(str(error)) from None
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, OSError, EOFError) as error:
        text = " ".join(str(error).split())
        raise CheckpointError(f"{path}: not a model that can be loaded: {type(error).__name__}: {text}") from None
    return twin.eval()
