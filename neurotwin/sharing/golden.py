"""Golden predictions: what a twin said to a movie that anybody can make again, and whether it still says so."""

import hashlib
import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..checkpoint_file import find_checkpoint
from ..data.pipelines import apply_pipelines, behavior_names
from ..data.spec import SessionSpec
from ..models import TwinModel, load_twin
from ..models.inputs import Movie, padded_history
from ..models.network import Streamer, evaluating
from ..tensorfile import TensorFileError, load_arrays, save_arrays
from .bundle import GOLDEN, SharingError, check_version

__all__ = ["Verdict", "golden_predictions", "verify", "write_golden"]

_FORMAT = "neurotwin-golden-1"
_BINS = 32  # that are predicted, after the frames that the first of them sees
_BLOCK, _HOLD = 4, 3  # pixels and bins over which the movie is constant, so that filters of any size respond
_RECORDED, _PREPARED = "recorded", "prepared"


@dataclass(frozen=True)
class Verdict:
    """How far a twin's predictions are from its golden ones.

    Attributes
    ----------
    difference
        The largest |new − golden| / max(1, |golden|) over sessions, bins and units; infinite where a rate is NaN.
    tolerance
        Up to which the twin does what it did.
    session, unit
        Of the largest difference.
    count
        Predictions compared.
    inputs
        By session: "recorded" where the movie and the signals passed the session's transforms, "prepared" where they
        entered after them.
    """

    difference: float
    tolerance: float
    session: str
    unit: int | str
    count: int
    inputs: dict[str, str]

    @property
    def same(self) -> bool:
        """Whether the difference is within the tolerance."""
        return self.difference <= self.tolerance

    @property
    def text(self) -> str:
        """One line that says so."""
        does = "does what it did" if self.same else "no longer does what it did"
        return (
            f"The twin {does}: the largest difference of {self.count:,} predictions is {self.difference:.2g} (unit "
            f"{self.unit} of {self.session}), the tolerance {self.tolerance:g}."
        )


def golden_predictions(twin: TwinModel, seed: int = 0, inputs: dict[str, str] | None = None) -> dict[str, Any]:
    """The rates of every session for a movie and signals that follow from a seed by SHAKE-256, on any machine alike.

    Parameters
    ----------
    twin
        The twin; it predicts where it lies, in evaluation.
    seed
        Of the movie, the behaviour and, for spike history, the responses.
    inputs
        How the inputs enter, by session, see :class:`Verdict`. Default: "recorded" where a recording's shapes follow
        from the session's config, else "prepared".

    Returns
    -------
    dict
        `inputs` by session, and `rates`: by session (32, U) float32 expected responses per bin.
    """
    found, rates = {}, {}
    for index, spec in enumerate(twin.sessions):
        how = None if inputs is None else inputs[spec.name]
        found[spec.name], rates[spec.name] = _rates(twin, index, seed, how)
    return {"inputs": found, "rates": rates}


def write_golden(twin: TwinModel, path: str | Path, seed: int = 0) -> Path:
    """Write the golden predictions of a twin to a safetensors file, and return its path."""
    made = golden_predictions(twin, seed)
    metadata = {"format": _FORMAT, "seed": seed, "inputs": made["inputs"]}
    save_arrays(path, {f"rates.{name}": values for name, values in made["rates"].items()}, metadata)
    return Path(path)


def verify(path: str | Path, tolerance: float = 1e-4) -> Verdict:
    """Predict the golden inputs again and compare. No recording is needed.

    Parameters
    ----------
    path
        A pulled folder, or the file of a twin with golden predictions beside it (`golden.safetensors`).
    tolerance
        Of the difference, relative to rates above 1. Rounding on other machines stays below the default.

    Raises
    ------
    SharingError
        If there are no golden predictions, or they are not of this twin.
    CheckpointError
        If the twin cannot be opened.
    """
    file = find_checkpoint(path)
    golden = file.with_name(GOLDEN)
    if not golden.exists():
        raise SharingError(f"{golden}: no golden predictions lie beside the twin; `neurotwin push` writes them")
    try:
        arrays, metadata = load_arrays(golden)
    except (TensorFileError, OSError) as error:
        raise SharingError(str(error)) from None
    check_version(golden, metadata.get("format"), _FORMAT)
    twin = load_twin(file)
    names = [spec.name for spec in twin.sessions]
    if set(arrays) != {f"rates.{name}" for name in names}:
        raise SharingError(f"{golden}: is of other sessions than {file.name}; push the twin again")
    made = golden_predictions(twin, metadata["seed"], metadata["inputs"])
    worst, session, unit, count = -1.0, "", 0, 0
    for spec in twin.sessions:
        old, new = arrays[f"rates.{spec.name}"].astype(float), made["rates"][spec.name].astype(float)
        if old.shape != new.shape:
            raise SharingError(f"{golden}: {old.shape} rates of {spec.name}, where the twin has {new.shape}")
        differences = np.abs(new - old) / np.maximum(1, np.abs(old))
        differences[~np.isfinite(differences)] = math.inf
        count += differences.size
        if differences.size and differences.max() > worst:
            worst, session = float(differences.max()), spec.name
            unit = spec.unit_ids[int(differences.max(axis=0).argmax())]
    return Verdict(worst, tolerance, session, unit, count, metadata["inputs"])


def _rates(twin: TwinModel, index: int, seed: int, how: str | None) -> tuple[str, np.ndarray]:
    spec, n_bins = twin.sessions[index], twin.context + _BINS
    noise = _noise(seed, f"{spec.name}/responses", (n_bins, spec.n_units))
    responses = (noise < 32).astype(np.float32) if twin.takes_history else None
    stimulus = _movie(spec, seed, n_bins)
    if how != _PREPARED:
        try:
            behavior = _signals(spec, seed, n_bins) if twin.takes_behavior else None
            rates = twin.predict(stimulus, behavior, session=index, bin_rate=spec.bin_rate, responses=responses)
            return _RECORDED, rates[twin.context :]
        except ValueError:
            if how == _RECORDED:
                raise
    behavior = _noise(seed, f"{spec.name}/behavior", (n_bins, spec.behavior_dim)) / np.float32(127.5) - 1
    frames = stimulus.reshape(n_bins, *spec.frame_shape)
    history = padded_history(twin, index, responses, n_bins)
    movie = Movie(index, frames, behavior.astype(np.float32) if twin.takes_behavior else None, history)
    streamer, parts = Streamer(twin), []
    with evaluating(twin), torch.no_grad():
        for clip, _ in movie.clips(twin, 256):
            parts.append(streamer(clip)[0].cpu().numpy())
    return _PREPARED, np.concatenate(parts).astype(np.float32)


def _noise(seed: int, what: str, shape: tuple[int, ...]) -> np.ndarray:
    """Whole numbers from 0 to 255, uint8, which no version of any library draws otherwise."""
    content = hashlib.shake_256(f"neurotwin/{seed}/{what}".encode()).digest(math.prod(shape))
    return np.frombuffer(content, np.uint8).reshape(shape)


def _movie(spec: SessionSpec, seed: int, n_bins: int) -> np.ndarray:
    """Noise (T, ...) in squares of pixels, each held for some bins, in the range of the session's stimulus."""
    channels, *size = spec.frame_shape
    coarse = (-(-n_bins // _HOLD), channels, *(-(-n // _BLOCK) for n in size))
    noise = _noise(seed, f"{spec.name}/movie", coarse).repeat(_HOLD, 0).repeat(_BLOCK, 2).repeat(_BLOCK, 3)
    noise = noise[:n_bins, :, : size[0], : size[1]]
    low, high = spec.stimulus_range or (0.0, 255.0)
    values = low + (high - low) * noise.astype(np.float64) / 255
    if low >= 0 and 1 < high <= 255:
        return np.round(values).astype(np.uint8)
    return values.astype(np.float32)


def _signals(spec: SessionSpec, seed: int, n_bins: int) -> dict[str, np.ndarray]:
    """Signals by name between -10 and 10, of as many columns as give the variables that training saw.

    Raises
    ------
    ValueError
        If no number of columns up to 4 does.
    """
    exposed = [pipeline for _, exposes, pipeline in spec.config.pipelines() if exposes == "behavior"]
    sources = list(dict.fromkeys(pipeline.source for pipeline in exposed))
    for columns in itertools.product((None, 1, 2, 3, 4), repeat=min(len(sources), 6)):
        signals = {}
        for name, width in zip(sources, columns, strict=False):
            shape = (n_bins,) if width is None else (n_bins, width)
            signals[name] = (_noise(seed, f"{spec.name}/{name}", shape) / np.float32(12.75) - 10).astype(np.float32)
        try:
            if behavior_names(spec.config, signals) != spec.behavior_names:
                continue
            made = apply_pipelines(
                spec.config, signals, fitted=spec.fitted, outputs=("behavior",), bin_ms=1000 / spec.bin_rate
            )
        except (ValueError, LookupError):
            continue
        if made["behavior"].shape[1:] == (spec.behavior_dim,):
            return signals
    raise ValueError(f"session {spec.name}: the shapes of its behaviour do not follow from its config")
