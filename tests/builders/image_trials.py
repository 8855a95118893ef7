"""Recordings of single images: an archive of images beside counts and repeats, or single trials, or both."""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

__all__ = ["build"]


def build(
    folder: Path,
    *,
    session: str = "210325",
    n_images: int = 12,
    n_units: int = 4,
    n_repeats: int = 5,
    size: tuple[int, int] = (8, 10),
    colour: bool = True,
    trials: bool = True,
    counts: bool = True,
    twice: dict[int, int] | None = None,
    padded_names: bool = True,
    unpacked: bool = False,
    inner: str = "images",
    extension: str = "png",
    seed: int = 0,
) -> tuple[Path, dict[str, Any]]:
    """Write the files; returns the path of the images, and images (n, H, W[, 3]), trials, counts and repeats.

    `twice` gives images that are a copy of an earlier one, up to a grey level. The archive lists its images in any
    order and holds a file that a Macintosh adds.
    """
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    images = rng.integers(1, 255, (n_images, *size, *((3,) if colour else ())), np.uint8)
    for later, earlier in (twice or {}).items():
        images[later] = images[earlier] + rng.integers(0, 2, images[earlier].shape, np.uint8)
    repeats = rng.integers(2, n_repeats + 1, n_images).astype(np.int16)
    values = rng.poisson(1.5, (n_units, n_images, n_repeats)).astype(np.float32)
    values[:, np.arange(n_repeats) >= repeats[:, None]] = np.nan
    tail = f"_{session}" if session else ""
    width = 4 if padded_names else 1
    names = [f"image{number + 1:0{width}d}.{extension}" for number in range(n_images)]
    encoded = {}
    for name, image in zip(names, images, strict=True):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "png" if extension == "png" else "jpeg")
        encoded[f"{inner}/{name}" if inner else name] = buffer.getvalue()
    path = folder / (f"images{tail}" if unpacked else f"images{tail}.zip")
    order = rng.permutation(list(encoded)).tolist()
    if unpacked:
        for name in order:
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(encoded[name])
    else:
        with zipfile.ZipFile(path, "w") as archive:
            for name in order:
                archive.writestr(name, encoded[name])
            archive.writestr(f"__MACOSX/._{names[0]}", b"no image")
    summed = np.nansum(values, axis=2).T.astype(np.int16)
    if trials:
        np.save(folder / f"trials{tail}.npy", values)
    if counts:
        np.save(folder / f"counts{tail}.npy", summed)
        np.save(folder / f"repeats{tail}.npy", repeats)
    return path, {"images": images, "trials": values, "counts": summed, "repeats": repeats}
