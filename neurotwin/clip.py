"""What travels from the data to the model, and the letters of its shapes.

B clips, T frames in, L frames to predict (the last L of the T), C channels, H x W pixels, U units, K behaviour
variables, F features. Time runs oldest first.
"""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

__all__ = ["Batch"]


@dataclass
class Batch:
    """Clips of one session.

    Attributes
    ----------
    session
        Index of the session in the run (`dataset_idx` in the dialect).
    stimulus
        (B, C, T, H, W), uint8 as recorded, or float where a transform made it so. None where only `frames` came along.
    behavior
        (B, T, K) float32, or None for a session without behaviour.
    spikes
        (B, L, U) counts per bin.
    mask
        (B, L, U) bool, true where a count is valid.
    exposure
        (B, L, 1) float32: over how many presentations a count was summed; None means one.
    history
        (B, L + n_history, U) counts, those before the L predicted bins included: what a spike-history model
        conditions on. None for models without.
    bins
        (B,) int64: index of the first predicted bin of each clip in the prepared session.
    frames
        (B, T) int64: index of each frame in the session's source, from which :func:`~neurotwin.data.clips.show` makes
        `stimulus`; None once that is done.
    carries
        True where these clips continue those of the previous batch: recurrent state carries over.
    """

    session: int
    stimulus: Tensor | None
    spikes: Tensor
    mask: Tensor
    bins: Tensor
    behavior: Tensor | None = None
    exposure: Tensor | None = None
    history: Tensor | None = None
    frames: Tensor | None = None
    carries: bool = False

    def to(self, device: torch.device | str, non_blocking: bool = True) -> "Batch":
        """The same clips on another device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """The same clips in page-locked memory, from which copies to a GPU are asynchronous."""
        return self._map(Tensor.pin_memory)

    @property
    def length(self) -> int:
        """L, the number of predicted frames of each clip."""
        return self.spikes.shape[1]

    def _map(self, function) -> "Batch":
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: function(v) for k, v in tensors.items() if isinstance(v, Tensor)})
