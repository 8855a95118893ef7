"""Builders of small files in the layouts that readers read, loaded by path: the tests are no package."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

_BUILDERS = Path(__file__).parents[3] / "builders"


def _builder(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"builders_{name}", _BUILDERS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def builder():
    """A function from a name to the module `tests/builders/NAME.py`."""
    return _builder
