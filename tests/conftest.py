"""What tests of several packages share: sessions as a model knows them, clips, and modules beside the tests."""

import importlib.util
import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from neurotwin.clip import Clip
from neurotwin.data.spec import SessionSpec
from neurotwin.models import TwinModel


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A headless Chromium that keeps its console and what it asks of the network; skips where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (pip install -e '.[dev]')")
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("no Chromium with its driver here (apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    # --no-sandbox: containers run as root, where Chromium refuses its sandbox; the pages are our own.
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    session = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield session
    session.quit()


@pytest.fixture(scope="session")
def spec() -> Callable[..., SessionSpec]:
    """A session of three units that has everything a model may ask for."""

    def make(name: str = "ada_1", **changes: Any) -> SessionSpec:
        values: dict[str, Any] = {
            "name": name, "subject": "ada", "unit_ids": (4, 7, 9), "frame_shape": (1, 14, 12), "bin_rate": 100.0,
            "n_lags": 24, "behavior_dim": 2, "behavior_names": ("gaze", "pupil"), "n_history": 5,
            "pixel_scale": (1 / 255, -127 / 255), "unit_positions": ((0.0, 1.0), (2.0, 0.5), (1.0, 3.0)),
        }  # fmt: skip
        if changes.get("behavior_dim", 2) != 2:
            values["behavior_names"] = ("gaze",) * changes["behavior_dim"]
        if "unit_ids" in changes:
            values["unit_positions"] = tuple((float(i), i / 2) for i in range(len(changes["unit_ids"])))
        return SessionSpec(**values | changes)

    return make


@pytest.fixture(scope="session")
def clips() -> Callable[..., Clip]:
    """Clips of noise for a session of a model; of the global generator's, unless given another."""

    def make(
        twin: TwinModel, session: int = 0, n_clips: int = 2, length: int = 4, context: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Clip:  # fmt: skip
        spec = twin.sessions[session]
        frames = (twin.context if context is None else context) + length
        n_units, (channels, *size) = spec.n_units, spec.frame_shape
        shape, own = (n_clips, channels, frames, *size), {"generator": generator}
        stimulus = torch.randint(0, 256, shape, dtype=torch.uint8, **own)
        behavior = torch.randn(n_clips, frames, spec.behavior_dim, **own) if spec.behavior_dim else None
        history = torch.rand(n_clips, length + spec.n_history, n_units, **own).round() if spec.n_history else None
        return Clip(session, length, stimulus, behavior=behavior, history=history, bins=torch.arange(n_clips))

    return make


@pytest.fixture(scope="session")
def cut() -> Callable[[Clip, int, int, int], Clip]:
    """The part of some clips that predicts bins `start` to `stop`, with `context` frames before them."""

    def part(clip: Clip, start: int, stop: int, context: int) -> Clip:
        offset = clip.stimulus.shape[2] - clip.length

        def frames(x: Tensor | None, axis: int) -> Tensor | None:
            return None if x is None else x.narrow(axis, offset + start - context, context + stop - start)

        history = clip.history
        if history is not None:
            history = history[:, start : stop + history.shape[1] - clip.length]
        return replace(
            clip, length=stop - start, stimulus=frames(clip.stimulus, 2), behavior=frames(clip.behavior, 1),
            history=history, bins=clip.bins + start,
        )  # fmt: skip

    return part


def _module(path: Path) -> ModuleType:
    """A module beside the tests, loaded by its path: the tests are no package."""
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def builder() -> Callable[[str], ModuleType]:
    """A function from a name to the module `tests/builders/NAME.py`, which makes small files in a format."""
    return lambda name: _module(Path(__file__).parent / "builders" / f"{name}.py")


@pytest.fixture(scope="session")
def factory() -> ModuleType:
    """The module `tests/factories/sessions.py`."""
    return _module(Path(__file__).parent / "factories" / "sessions.py")


@pytest.fixture
def handlers() -> Iterator[None]:
    """Commands set up logging, to a stream that ends with the test."""
    before = logging.root.handlers[:]
    yield
    logging.root.handlers[:] = before
