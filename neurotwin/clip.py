"""What travels from the data to the model, and the letters of its shapes.

B clips, T frames in, L bins to predict (the last L of the T), C channels, H x W pixels, U units, K behaviour variables,
F features. Time runs oldest first.

Nothing changes these objects once they are made; :func:`dataclasses.replace` makes others. They are not declared as
frozen, because Lightning, which converts what a step is given to float64 in a run of that precision, refuses such.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

__all__ = ["Clip", "Sample", "Target"]

Part = TypeVar("Part")


@dataclass(eq=False)
class Clip:
    """What a model sees: clips of one session.

    Attributes
    ----------
    session
        Index of the session in the run (`dataset_idx` in the dialect).
    length
        L, bins to predict: the last ones of each clip.
    stimulus
        (B, C, T, H, W), as recorded, or float where a transform made it so. None where only `frames` came along.
    behavior
        (B, T, K) float32, or None for a session without behaviour.
    history
        (B, n_history + L, U) responses, those before the L predicted bins included: what a model of spike history
        conditions on. None for models without.
    bins
        (B,) int64: index of the first predicted bin of each clip in the prepared session; None for data that are not
        of a prepared session.
    frames
        (B, T) int64: index of each frame in the session's source, from which :func:`~neurotwin.data.clips.show` makes
        `stimulus`; None once that is done.
    carries
        True where these clips continue those before them: recurrent state carries over.
    """

    session: int
    length: int
    stimulus: Tensor | None
    behavior: Tensor | None = None
    history: Tensor | None = None
    bins: Tensor | None = None
    frames: Tensor | None = None
    carries: bool = False

    def to(self, device: torch.device | str, non_blocking: bool = True) -> "Clip":
        """The same clips on another device."""
        return _map(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def __repr__(self) -> str:
        clips = next((len(v) for v in (self.stimulus, self.frames) if v is not None), 0)
        return f"Clip of session {self.session}: {clips} x {self.length} bins to predict"


@dataclass(eq=False)
class Target:
    """What was recorded in the predicted bins of some clips.

    Attributes
    ----------
    responses
        (B, L, U) counts, or real-valued responses.
    mask
        (B, L, U) bool, true where a response is valid.
    exposure
        (B, L, 1) float32: over how many presentations a response was summed; None means one.
    expected
        (B, L, U) float32: rates of a trained model that another one learns from; NaN where there is none. None for a
        model that learns from the responses alone.
    """

    responses: Tensor
    mask: Tensor
    exposure: Tensor | None = None
    expected: Tensor | None = None


@dataclass(eq=False)
class Sample:
    """Clips of one session, and what was recorded in the bins that they predict."""

    clip: Clip
    target: Target

    @property
    def session(self) -> int:
        """Index of the session in the run."""
        return self.clip.session

    def of_session(self, session: int) -> "Sample":
        """The same, as part of a run in which the session has this index."""
        return replace(self, clip=replace(self.clip, session=session))

    def to(self, device: torch.device | str, non_blocking: bool = True) -> "Sample":
        """The same on another device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Sample":
        """The same in page-locked memory, from which copies to a GPU are asynchronous."""
        return self._map(Tensor.pin_memory)

    def _map(self, function: Callable[[Tensor], Tensor]) -> "Sample":
        return Sample(_map(self.clip, function), _map(self.target, function))


def _map(part: Part, function: Callable[[Tensor], Tensor]) -> Part:
    values: dict[str, Any] = {field.name: getattr(part, field.name) for field in fields(part)}  # type: ignore[arg-type]
    return replace(part, **{k: function(v) for k, v in values.items() if isinstance(v, Tensor)})  # type: ignore[type-var]
