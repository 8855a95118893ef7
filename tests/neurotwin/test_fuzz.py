"""Files with a random bit changed, or cut anywhere, are refused with one line; none is read as something else."""

import runpy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from neurotwin import Session, TwinModel, load_twin
from neurotwin.checkpoint_file import CheckpointError, read_checkpoint, write_checkpoint
from neurotwin.config import ModelConfig
from neurotwin.data.prepare import prepare_session
from neurotwin.data.session import SessionError

FACTORY = runpy.run_path(str(Path(__file__).parents[1] / "factories/sessions.py"))
Reader = tuple[Path, Callable[[], object], type[Exception]]


@pytest.fixture
def session(tmp_path: Path) -> Reader:
    path = FACTORY["full_session"](unit_ids=["a", "b", "c", "d"]).save(tmp_path / "ada_01.safetensors")
    return path, lambda: Session.load(path), SessionError


@pytest.fixture
def prepared(tmp_path: Path) -> Reader:
    FACTORY["write_session"](tmp_path)
    config = FACTORY["configure"](tmp_path)
    prepare_session(config, cache_dir=tmp_path / "cache")
    (path,) = (tmp_path / "cache").glob("*.safetensors")
    return path, lambda: prepare_session(config, cache_dir=tmp_path / "cache"), SessionError


@pytest.fixture
def twin(tmp_path: Path) -> Reader:
    FACTORY["write_session"](tmp_path)
    spec = prepare_session(FACTORY["configure"](tmp_path), cache_dir=tmp_path / "cache").spec
    path = TwinModel(ModelConfig(readout={"type": "linear"}), [spec]).save(tmp_path / "twin.safetensors")
    return path, lambda: load_twin(path), CheckpointError


@pytest.fixture
def checkpoint(tmp_path: Path) -> Reader:
    path = tmp_path / "last.ckpt"
    write_checkpoint(path, {"step": 3, "weights": torch.randn(40, 30), "names": ["a", "b"]})
    return path, lambda: read_checkpoint(path), CheckpointError


def damages(content: bytes, number: int) -> dict[str, bytes]:
    """Single bits changed, evenly over header and content, and cuts; by what was done."""
    rng = np.random.default_rng(number)
    made = {}
    length = min(8 + int.from_bytes(content[:8], "little"), len(content))  # the header, where there is one
    for index in range(number):
        at = int(rng.integers(length if index % 2 else len(content)))
        bit = int(rng.integers(8))
        if index % 5 == 4:
            made[f"cut at {at}"] = content[:at]
        else:
            made[f"bit {bit} of byte {at}"] = content[:at] + bytes([content[at] ^ (1 << bit)]) + content[at + 1 :]
    return made


def check(reader: Reader, number: int) -> None:
    path, read, error = reader
    whole = path.read_bytes()
    read()
    faults = {}
    for damage, content in damages(whole, number).items():
        path.write_bytes(content)
        try:
            read()
        except error as refused:
            text = str(refused)
            if "\n" in text or path.name not in text or len(text) > 500:
                faults[damage] = text
        else:
            faults[damage] = "it was read"
    assert not faults
    path.write_bytes(whole)
    read()


KINDS = ["session", "prepared", "twin", "checkpoint"]


@pytest.mark.parametrize("kind", KINDS)
def test_200_damaged_files_are_refused(kind: str, request: pytest.FixtureRequest) -> None:
    check(request.getfixturevalue(kind), 200)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_2000_damaged_files_are_refused(kind: str, request: pytest.FixtureRequest) -> None:
    check(request.getfixturevalue(kind), 2000)
