"""Checkpoint files: any flipped bit and any missing byte is noticed, in one line, and nothing is loaded differently."""

import hashlib
import os
import random
import shutil
import zipfile
from pathlib import Path

import pytest
import torch

from neurotwin.checkpoint_file import (
    CheckpointError,
    checkpoint_fault,
    find_checkpoint,
    read_checkpoint,
    write_checkpoint,
)

CONTENT = {
    "twin": '{"format": "neurotwin 1"}',
    "state_dict": {"twin.a": torch.arange(90.0).reshape(9, 10), "twin.b": torch.ones(3, dtype=torch.int64)},
    "step": 7,
    "nested": [1.5, None, True, ("x", 2)],
}


@pytest.fixture
def whole(tmp_path) -> Path:
    write_checkpoint(tmp_path / "last.ckpt", CONTENT)
    return tmp_path / "last.ckpt"


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return type(a) is type(b) and a == b


def test_a_file_holds_what_was_written_and_other_programs_read_it(whole):
    assert same(read_checkpoint(whole), CONTENT)
    assert same(torch.load(whole, weights_only=True), CONTENT)
    with zipfile.ZipFile(whole) as archive:
        assert archive.testzip() is None and archive.comment.startswith(b"neurotwin sha256 ")
    assert checkpoint_fault(whole) is None


def test_the_seal_is_the_sha256_of_what_stands_before_it(whole):
    content = whole.read_bytes()
    assert content[-64:].decode() == hashlib.sha256(content[:-64]).hexdigest()


def test_a_copy_of_the_file_alone_is_checked_as_well(whole, tmp_path):
    copy = shutil.copy(whole, tmp_path / "elsewhere.ckpt")
    assert same(read_checkpoint(copy), CONTENT)
    Path(copy).write_bytes(whole.read_bytes() + b"\0")
    with pytest.raises(CheckpointError, match=r"elsewhere.ckpt: torn"):
        read_checkpoint(copy)


def refused(path: Path, content: bytes) -> bool:
    """Whether a file with this content is refused in one line, by every reader."""
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(path)
    fault = checkpoint_fault(path)
    return str(error.value) == f"{path}: {fault}" and "\n" not in fault


def damages(content: bytes, n: int, rng: random.Random):
    for _ in range(n):
        flipped = bytearray(content)
        flipped[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        yield bytes(flipped)
        yield content[: rng.randrange(len(content))]


def test_any_flipped_bit_of_directory_and_seal_is_noticed(whole, tmp_path):
    """Every byte of what zip's own checksums leave out: the directory, its end and the seal."""
    content = whole.read_bytes()
    for position in range(content.index(b"PK\1\2"), len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        assert refused(tmp_path / "damaged.ckpt", bytes(damaged)), position


@pytest.mark.parametrize("n", [50, pytest.param(1000, marks=pytest.mark.slow)])
def test_random_flips_and_truncations_are_refused(whole, tmp_path, n):
    for damaged in damages(whole.read_bytes(), n, random.Random(n)):
        assert refused(tmp_path / "damaged.ckpt", damaged)


@pytest.mark.parametrize("n", [50, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_file_of_another_program_loads_the_same_or_not_at_all(tmp_path, n):
    path = tmp_path / "other.ckpt"
    torch.save(CONTENT, path)
    assert same(read_checkpoint(path), CONTENT)
    refusals = 0
    for damaged in damages(path.read_bytes(), n, random.Random(n)):
        path.write_bytes(damaged)
        try:
            assert same(read_checkpoint(path), CONTENT)
        except CheckpointError as error:
            assert "\n" not in str(error)
            refusals += 1
    assert refusals > n


def test_code_in_a_file_is_not_run(tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    write_checkpoint(tmp_path / "bad.ckpt", {"state_dict": Hostile()})
    with pytest.raises(CheckpointError, match=r"bad.ckpt: refused, it holds more than numbers and text"):
        read_checkpoint(tmp_path / "bad.ckpt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(("content", "fault"), [(b"", "torn"), (b"noise" * 99, "torn"), (None, "no such file")])
def test_what_is_no_checkpoint_is_refused(tmp_path, content, fault):
    if content is not None:
        (tmp_path / "x.ckpt").write_bytes(content)
    assert checkpoint_fault(tmp_path / "x.ckpt").startswith(fault)
    with pytest.raises(CheckpointError, match=f"x.ckpt: {fault}"):
        read_checkpoint(tmp_path / "x.ckpt")


def test_a_folder_and_a_list_are_no_checkpoints(tmp_path):
    with pytest.raises(CheckpointError, match=r"cannot be read \(Is a directory\)"):
        read_checkpoint(tmp_path)
    torch.save([1, 2], tmp_path / "list.ckpt")
    with pytest.raises(CheckpointError, match="holds a list where names are wanted"):
        read_checkpoint(tmp_path / "list.ckpt")


def test_a_write_that_fails_leaves_what_was_there(whole, monkeypatch):
    before = whole.read_bytes()

    def full_disk(value, file):
        file.write(b"half")
        raise RuntimeError("unexpected pos 64 vs 0\nand more")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match=r"cannot be written \(unexpected pos 64 vs 0\); the checkpoint before"):
        write_checkpoint(whole, {})
    assert whole.read_bytes() == before and os.listdir(whole.parent) == ["last.ckpt"]


def test_the_checkpoint_of_a_run_folder_is_found(tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    with pytest.raises(CheckpointError, match="run: is a folder without"):
        find_checkpoint(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"gone.ckpt: no such file"):
        find_checkpoint(tmp_path / "gone.ckpt")
    (folder / "last.ckpt").write_bytes(b"")
    assert find_checkpoint(tmp_path / "run") == folder / "last.ckpt"
    (folder / "best.ckpt").write_bytes(b"")
    for path in (tmp_path / "run", folder):
        assert find_checkpoint(path) == folder / "best.ckpt"
        assert find_checkpoint(path, prefer="last") == folder / "last.ckpt"
    assert find_checkpoint(folder / "last.ckpt") == folder / "last.ckpt"
