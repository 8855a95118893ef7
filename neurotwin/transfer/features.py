"""What a frozen core makes of a session, computed once and mapped from a file from then on."""

import hashlib
import json
import logging
import tempfile
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..data.clips import stream, usable_runs
from ..data.prepare import Prepared
from ..data.session import SPLITS, SessionError
from ..likelihoods import ResponseStatistics
from ..models.network import CORE_PARTS, Streamer, evaluating
from ..models.session_module import SessionModule
from ..models.twin import TwinModel
from ..tensorfile import TensorFileError, load_arrays, save_arrays

__all__ = ["FeatureBank", "core_key", "feature_bank", "row_parts"]

logger = logging.getLogger(__name__)

_FORMAT = "neurotwin-features-1"
_VALUES = 1 << 25  # of features, or of features of units, that are worked on together
_ROWS = 4096  # whose responses are summed together
_HALF = 1 << 28  # bytes of float32 above which features are kept as float16
_LARGEST_HALF = 6e4
_PARTS = ("train", "val")


@dataclass(frozen=True, kw_only=True)
class FeatureBank:
    """Features of the predicted bins of a session, one row a bin; N counts them.

    Attributes
    ----------
    prepared
        The session.
    features
        (N, C, H, W) float32 or float16, memory-mapped.
    bins
        (N,) bin of each row in the prepared session, ascending.
    """

    prepared: Prepared
    features: np.ndarray
    bins: np.ndarray

    def __len__(self) -> int:
        return len(self.bins)

    def part(self, split: str) -> "FeatureBank":
        """The rows of one part, "train" or "val"; a copy of their features where they are not neighbours."""
        return self.rows(np.flatnonzero(self.prepared.split[self.bins] == SPLITS.index(split)))

    def rows(self, rows: np.ndarray) -> "FeatureBank":
        """The bank of some rows. They are read from the file when they are used."""
        return replace(self, features=_Rows(self.features, rows), bins=self.bins[rows])

    def thinned(self, most: int) -> "FeatureBank":
        """At most `most` rows, evenly spaced."""
        if len(self) <= most:
            return self
        return self.rows(np.unique(np.linspace(0, len(self) - 1, most).round().astype(int)))

    def seen(self, part: slice = slice(None)) -> Tensor:
        """(N, C, 1, H, W) float32 features of some rows, as a readout takes them."""
        return torch.from_numpy(np.array(self.features[part], np.float32))[:, :, None]

    def behavior(self, part: slice = slice(None)) -> Tensor | None:
        """(N, 1, K) behaviour of some rows; None for a session without."""
        known = self.prepared.behavior
        return None if known is None else torch.from_numpy(np.asarray(known[self.bins[part]]))[:, None]

    def history(self, part: slice = slice(None)) -> Tensor | None:
        """(N, n + 1, U) responses up to each bin; None for a session without spike history."""
        before = self.prepared.spec.n_history
        if not before:
            return None
        bins = self.bins[part, None] + np.arange(-before, 1)
        bins = np.maximum(bins, self.prepared.run_start[self.bins[part]][:, None])
        return torch.from_numpy(np.asarray(self.prepared.responses[bins]))

    def target(self, part: slice = slice(None)) -> tuple[Tensor, Tensor, Tensor | None]:
        """Responses and mask, (N, 1, U), and exposure (N, 1, 1) or None, of some rows."""
        prepared, bins = self.prepared, self.bins[part]
        exposure = None if prepared.exposure is None else torch.from_numpy(prepared.exposure[bins])[:, None, None]
        responses, mask = (torch.from_numpy(np.asarray(a[bins]))[:, None] for a in (prepared.responses, prepared.mask))
        return responses, mask, exposure

    def statistics(self) -> ResponseStatistics:
        """Mean, variance and share of zeros of each unit in these rows: what a fit starts from."""
        sums = torch.zeros(5, self.prepared.n_units, dtype=torch.float64)
        for first in range(0, len(self), _ROWS):
            y, mask, exposure = self.target(slice(first, first + _ROWS))
            y, mask = y[:, 0].double(), mask[:, 0]
            e = torch.ones_like(y) if exposure is None else exposure[:, 0].double().expand_as(y)
            terms = (torch.ones_like(y), e, y, y.square() / e, (y <= 0).double())
            sums += torch.stack([torch.where(mask, term, 0).sum(0) for term in terms])
        bins, shown = sums[0].clamp_min(1), sums[1].clamp_min(1e-12)
        mean = sums[2] / shown
        variance = (sums[3] - mean.square() * shown) / bins
        return ResponseStatistics(mean, variance.clamp_min(0), sums[4] / bins)


class _Rows:
    """Some rows of an array, read when they are used."""

    def __init__(self, array: "np.ndarray | _Rows", rows: np.ndarray) -> None:
        self.array, self.index = array, rows
        if isinstance(array, _Rows):
            self.array, self.index = array.array, array.index[rows]
        self.shape, self.dtype = (len(rows), *array.shape[1:]), array.dtype

    def __getitem__(self, part: slice) -> np.ndarray:
        return self.array[self.index[part]]


def row_parts(bank: FeatureBank, module: SessionModule) -> list[slice]:
    """Slices of the rows of a bank that fit in memory, for all units of a session."""
    each = max(int(np.prod(bank.features.shape[1:])), module.likelihood.n_units * bank.features.shape[1], 1)
    size = max(1, _VALUES // each)
    return [slice(first, min(first + size, len(bank))) for first in range(0, len(bank), size)]


def core_key(twin: TwinModel, index: int) -> str:
    """Hash of all that the features of a session depend on: weights, running statistics, config and adapter."""
    digest = hashlib.sha256()
    config = twin.config.model_dump(mode="json", by_alias=True)
    known = [_FORMAT, *(config.get(part) for part in ("adapter", *CORE_PARTS))]
    spec = twin.sessions[index]
    known += [spec.config.model_dump(mode="json", by_alias=True).get("adapter"), spec.pixel_scale]
    digest.update(json.dumps(known, sort_keys=True, default=str).encode())
    for module in (twin.per_session[index].adapter, *twin.stages):
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def feature_bank(twin: TwinModel, prepared: Prepared, index: int, folder: str | Path) -> FeatureBank:
    """Features of the training and validation bins of a session, from the file that holds them or computed now.

    They are float32, or float16 where float32 would take more than 256 MB and no value is too large for it. Rounding
    changes them by at most 0.05 % of their size, and what is fitted is scored by the whole network in float32.

    Parameters
    ----------
    twin
        Its core must not change afterwards; the file is known by a hash of it. Features are computed where it lies.
    prepared, index
        The session, and its index in the twin.
    folder
        Where the file is kept.

    Raises
    ------
    SessionError
        If the file was altered, cut off, or is of other bins; or if a feature is not finite.
    """
    path = Path(folder) / f"{prepared.name}-{prepared.key}-{core_key(twin, index)}.features.safetensors"
    runs = np.concatenate([usable_runs(prepared, split) for split in _PARTS])
    bins = np.sort(np.concatenate([np.zeros(0, np.int64), *(np.arange(*run) for run in runs)]))
    bins = bins[np.asarray(prepared.n_valid)[bins] > 0]
    if not path.exists():
        maps = twin.recurrent.outputs
        shape = (len(bins), maps.channels, maps.height, maps.width)
        half = 4 * int(np.prod(shape, dtype=np.int64)) > _HALF
        if not (half and _compute(twin, prepared, index, bins, shape, np.float16, path)):
            _compute(twin, prepared, index, bins, shape, np.float32, path)
    try:
        features = load_arrays(path)[0]["features"]
    except (TensorFileError, LookupError) as error:
        raise SessionError(f"{error}; delete {path}, it will be computed again") from None
    if len(features) != len(bins):
        raise SessionError(f"{path}: {len(features)} rows for {len(bins)} bins; delete it, it will be computed again")
    return FeatureBank(prepared=prepared, features=features, bins=bins)


@torch.inference_mode()
def _compute(
    twin: TwinModel, prepared: Prepared, index: int, bins: np.ndarray, shape: tuple[int, ...], dtype: type, path: Path
) -> bool:  # fmt: skip
    """Write the file of features; False, and no file, where float16 cannot hold one of them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Stretches come side by side, not in the order of bins: they are sorted in a file that nobody sees.
    with tempfile.TemporaryFile(dir=path.parent) as file, evaluating(twin):
        stored = np.memmap(file, dtype, "w+", shape=shape)
        for split in _PARTS:
            streamer = Streamer(twin)
            for sample in stream(prepared, split, context=twin.context):
                sample = sample.of_session(index).to(twin.like.device)
                x, _ = streamer.features(sample.clip)
                largest = float(x.abs().max())
                if not isfinite(largest):
                    raise SessionError(
                        f"session {prepared.name}: the core gives features that are not finite; look for values that "
                        "are far too large in its stimulus and behaviour (neurotwin inspect)"
                    )
                if dtype is np.float16 and largest > _LARGEST_HALF:
                    logger.info("session %s: its features are too large for float16; kept as float32", prepared.name)
                    return False
                valid = sample.target.mask.any(-1).cpu()
                at = (sample.clip.bins.cpu()[:, None] + torch.arange(sample.clip.length))[valid]
                stored[np.searchsorted(bins, at.numpy())] = x.movedim(1, 2).cpu()[valid].numpy()
        save_arrays(path, {"features": stored}, {"format": _FORMAT})
    return True
