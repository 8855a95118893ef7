"""The factory of sessions for the tests in this folder."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest


@pytest.fixture(scope="session")
def factory() -> SimpleNamespace:
    """The functions of tests/factories/sessions.py."""
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "factories/sessions.py")))
