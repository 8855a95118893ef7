"""Double precision throughout: what is equal is equal to rounding. Factories for what most tests need."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from neurotwin.models.spec import SessionSpec
from torch import Tensor

from neurotwin.clip import Batch
from neurotwin.models.stages import Maps
from neurotwin.models.twin import TwinModel


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(1)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def rand() -> Callable[..., Tensor]:
    """Normal numbers, the same at each call."""
    return lambda *shape: torch.randn(shape, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def maps() -> Callable[..., Maps]:
    def make(channels: int = 3, height: int = 9, width: int = 7, **changes: Any) -> Maps:
        return Maps(channels, height, width, bin_rate=100.0, **changes)

    return make


@pytest.fixture
def spec() -> Callable[..., SessionSpec]:
    def make(name: str = "ada_1", **changes: Any) -> SessionSpec:
        values: dict[str, Any] = {
            "name": name, "subject": "ada", "unit_ids": (4, 7, 9), "frame_shape": (1, 14, 12), "bin_rate": 100.0,
            "n_lags": 24, "behavior_dim": 2, "n_history": 5, "pixel_scale": (1 / 255, -127 / 255),
        }  # fmt: skip
        return SessionSpec(**values | changes)

    return make


@pytest.fixture
def clips() -> Callable[..., Batch]:
    """Clips of noise for a session of a model."""

    def make(twin: TwinModel, session: int = 0, n_clips: int = 2, length: int = 4, context: int | None = None) -> Batch:
        spec = twin.sessions[session]
        frames = (twin.context if context is None else context) + length
        n_units, (channels, *size) = len(spec.unit_ids), spec.frame_shape
        return Batch(
            session=session,
            stimulus=torch.randint(0, 256, (n_clips, channels, frames, *size), dtype=torch.uint8),
            behavior=torch.randn(n_clips, frames, spec.behavior_dim) if spec.behavior_dim else None,
            spikes=torch.zeros(n_clips, length, n_units),
            mask=torch.ones(n_clips, length, n_units, dtype=torch.bool),
            bins=torch.arange(n_clips),
            history=torch.rand(n_clips, length + spec.n_history, n_units).round() if spec.n_history else None,
        )  # fmt: skip

    return make


@pytest.fixture
def cut() -> Callable[[Batch, int, int, int], Batch]:
    """The part of some clips that predicts bins `start` to `stop`, with `context` frames before them."""

    def part(batch: Batch, start: int, stop: int, context: int) -> Batch:
        offset = batch.stimulus.shape[2] - batch.length

        def frames(x: Tensor | None, axis: int) -> Tensor | None:
            return None if x is None else x.narrow(axis, offset + start - context, context + stop - start)

        n_history = 0 if batch.history is None else batch.history.shape[1] - batch.length
        return Batch(
            session=batch.session, stimulus=frames(batch.stimulus, 2), behavior=frames(batch.behavior, 1),
            spikes=batch.spikes[:, start:stop], mask=batch.mask[:, start:stop], bins=batch.bins + start,
            history=None if batch.history is None else batch.history[:, start : stop + n_history],
        )  # fmt: skip

    return part
