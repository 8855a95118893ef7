"""Double precision throughout: what is equal is equal to rounding. Noise, and the sizes of maps."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from neurotwin.models.stages import Maps


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
