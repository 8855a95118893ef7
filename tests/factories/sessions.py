"""Small sessions of noise, their files and their configs: what most tests of the data need, made in one place.

Test modules are not imported from one another, so conftest files load this one and give its functions out as fixtures.
"""

from pathlib import Path
from typing import Any

import numpy as np

from neurotwin.config import DatasetConfig
from neurotwin.data.session import Session

__all__ = ["configure", "flip", "full_session", "make_session", "refusals", "write_session"]


def make_session(
    name: str = "ada_01", *, n_bins: int = 240, n_units: int = 4, frame: tuple[int, ...] = (5, 6), trial_bins: int = 40,
    seed: int = 0, **fields: Any,
) -> Session:  # fmt: skip
    """Noise at 60 Hz in trials of `trial_bins`; any field may be given, None among them."""
    rng = np.random.default_rng(seed)
    values = {
        "name": name, "bin_rate": 60.0, "trial": np.arange(n_bins) // trial_bins,
        "stimulus": rng.integers(0, 256, (n_bins, *frame), dtype=np.uint8),
        "responses": rng.poisson(0.5, (n_bins, n_units)).astype(np.uint8),
    }  # fmt: skip
    return Session(**values | fields)


def full_session(**fields: Any) -> Session:
    """A session in which no field has its default."""
    rng = np.random.default_rng(1)
    values = {
        "subject": "lady ada",
        "unit_ids": np.array([7, -3, 2**40, 9]),
        "behavior": {"eye": rng.normal(size=(240, 2)).astype(np.float32), "pupil": np.arange(240, dtype=np.float32)},
        "trial": np.repeat([-1, 2, 5, 2], 60),
        "valid": np.arange(240) % 7 > 0,
        "stimulus_type": np.repeat(["b", "a"], 120),
        "repeat_id": np.arange(240) % 20,
        "time": 1e6 + np.arange(240) / 60,
        "exposure": np.arange(1, 241, dtype=np.float32),
        "split": np.repeat(["train", "val", "", "test"], 60),
        "true_rate": rng.random((240, 4)).astype(np.float32),
        "missing_pct": rng.random((240, 4)).astype(np.float32),
        "unit_positions": rng.random((4, 2)).astype(np.float32),
        "unit_labels": {"area": np.array(["V1", "V1", "V4", "MT"]), "quality": np.array(["good", "", "mua", "good"])},
        "scenes": (rng.integers(0, 256, (20, 30), dtype=np.uint8), rng.integers(0, 256, (25, 20), dtype=np.uint8)),
        "scene": np.arange(240) % 3 - 1, "scene_offset": (0.5, -0.25), "pixels_per_degree": 28.5,
        "info": {"lab": "x", "citation": "Ünïcode, 2024"},
        "notes": ("two units were left out", "and \"why\""),
    }  # fmt: skip
    return make_session(**values | fields)


def write_session(folder: Path, name: str = "ada_01", **fields: Any) -> Session:
    """A session of noise, saved as NAME.safetensors and opened from there."""
    return Session.load(make_session(name, **fields).save(folder / f"{name}.safetensors"))


def configure(folder: Path, name: str = "ada_01", **keys: Any) -> DatasetConfig:
    """The config of a session in a folder."""
    values = {"session": name, "path": str(folder / f"{name}.safetensors"), "train_val_split": 0.5}
    return DatasetConfig.model_validate(values | keys)


def flip(path: Path, at: int = -1, bit: int = 0) -> None:
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1 << bit
    path.write_bytes(content)


def refusals(cases: dict[str, tuple[dict[str, Any], str]], call: Any, error: type[Exception]) -> dict[str, str]:
    """What is wrong with the refusals of `call`: by case, what was said in place of the text expected.

    `cases` are keyword arguments of `call` and a text that the error's one line must hold.
    """
    wrong = {}
    for case, (arguments, expected) in cases.items():
        try:
            call(**arguments)
        except error as refused:
            if expected not in str(refused) or "\n" in str(refused):
                wrong[case] = str(refused)
        else:
            wrong[case] = "it was accepted"
    return wrong
