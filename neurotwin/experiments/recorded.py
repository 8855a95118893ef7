"""What a twin predicts of the recording itself, bin by bin: what experiments on recorded data stand on."""

from dataclasses import replace

import numpy as np
import torch

from ..data.clips import stream
from ..data.prepare import Prepared
from ..data.session import SPLITS
from ..models.network import Streamer, evaluating
from ..models.twin import TwinModel
from .presenter import ExperimentError

__all__ = ["behavior_held", "chosen_split", "predicted", "recorded"]


def predicted(twin: TwinModel, index: int, data: Prepared, split: str) -> np.ndarray:
    """Rates of every bin of a split, (T, U) float32 responses per bin and presentation; NaN where none is predicted.

    Parameters
    ----------
    twin
        The model.
    index
        Of the session in it.
    data
        The session's recording as prepared, or with other behaviour or frames in it.
    split
        "train", "val" or "test".
    """
    rates = np.full((data.n_bins, data.n_units), np.nan, np.float32)
    with evaluating(twin), torch.inference_mode():
        predict = Streamer(twin)
        for sample in stream(data, split, context=twin.context):
            sample = sample.of_session(index).to(twin.like.device)
            found = predict(sample.clip).float().cpu().numpy()
            bins = sample.clip.bins.cpu().numpy()[:, None] + np.arange(sample.clip.length)
            valid = sample.target.mask.any(dim=-1).cpu().numpy()
            rates[bins[valid]] = found[valid]
    return rates


def recorded(data: Prepared) -> np.ndarray:
    """Responses per bin and presentation, (T, U) float64; NaN where they are not valid."""
    responses = np.where(data.mask, data.responses.astype(np.float64), np.nan)
    return responses if data.exposure is None else responses / data.exposure[:, None]


def behavior_held(data: Prepared) -> Prepared:
    """The recording with every behaviour variable at its median over the training bins."""
    if data.behavior is None:
        return data
    return replace(data, behavior=np.broadcast_to(data.median_behavior(), data.behavior.shape).copy())


def chosen_split(data: Prepared, split: str, needed: np.ndarray) -> str:
    """The split itself; for "auto", the first of test, val and train in which most of the bins `needed` lie.

    Raises
    ------
    ExperimentError
        If the split holds none of them.
    """
    counts = {name: int((needed & (np.asarray(data.split) == SPLITS.index(name))).sum()) for name in reversed(SPLITS)}
    chosen = max(counts, key=lambda name: counts[name]) if split == "auto" else split
    if not counts[chosen]:
        raise ExperimentError(f"session {data.name}: the {chosen} split has no such bin; choose another split")
    return chosen
