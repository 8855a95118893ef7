"""Convert the macaque V4 recordings of Cowley et al. to session files: single images, counts summed over repeats.

    python docs/examples/v4_images/convert.py SOURCE [TARGET]

Each image is one bin, and its `trial` is the picture that it shows, so that a picture is on one side of the split only.
Images 601 to 1200 of two sessions are the test; the same picture anywhere else is marked invalid.
"""

import argparse
import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from neurotwin import Session

__all__ = ["convert", "load_images", "same_picture"]

SUBJECTS = {
    "190923": "WE", "190925": "WE", "190927": "WE", "190928": "WE", "190929": "WE", "201025": "PE",
    "210224": "PE", "210305": "PE", "210322": "PE", "210325": "PE", "210621": "RA",
}  # fmt: skip
TEST_SESSIONS = ("190923", "201025")
FIRST_TEST_IMAGE = 600  # counted from 0
VALIDATION_SHARE = 0.1
SAME_PICTURE = 0.95  # correlation of 28 × 28 grey thumbnails above which two images count as one picture


def convert(source: Path, target: Path, names: Sequence[str] = tuple(SUBJECTS), limit: int | None = None) -> list[Path]:
    """Write a session file for each recording.

    Parameters
    ----------
    source
        Folder with `images_NAME.zip`, `counts_NAME.npy` and `repeats_NAME.npy`.
    target
        Folder for `SUBJECT_NAME.safetensors`.
    names
        Recordings to convert. The whole set at once, or a picture may be test here and training there.
    limit
        Use the first images only; None: all.
    """
    images = {name: load_images(source / f"images_{name}.zip", limit) for name in names}
    recording = np.repeat(names, [len(images[name]) for name in names])
    row = np.concatenate([np.arange(len(images[name])) for name in names])

    picture = same_picture(np.concatenate(list(images.values())))
    is_test = np.isin(recording, TEST_SESSIONS) & (row >= FIRST_TEST_IMAGE)
    seen_in_test = np.isin(picture, picture[is_test])
    others = np.unique(picture[~seen_in_test])
    validation = np.random.default_rng(0).choice(others, round(VALIDATION_SHARE * len(others)), replace=False)
    split = np.where(is_test, "test", np.where(np.isin(picture, validation), "val", "train"))
    valid = is_test | ~seen_in_test

    paths = []
    for name in names:
        here = recording == name
        session = Session(
            name=f"{SUBJECTS[name]}_{name}",
            stimulus=images[name].transpose(0, 3, 1, 2),
            responses=np.load(source / f"counts_{name}.npy")[:limit],
            exposure=np.load(source / f"repeats_{name}.npy")[:limit],
            bin_rate=10.0,  # counts are of 100 ms
            trial=picture[here],
            valid=valid[here],
            split=split[here],
            stimulus_type="image",
            info={"source": "Cowley, Stan, Pillow & Smith, Nature 2026; GPL-3"},
        )
        used = [f"{np.sum(session.valid & (session.split == part))} {part}" for part in ("train", "val", "test")]
        print(f"{session.name}: {session.n_units} units, images: {', '.join(used)}, {np.sum(~session.valid)} left out")
        paths.append(session.save(target / f"{session.name}.safetensors"))
    return paths


def load_images(path: Path, limit: int | None = None) -> np.ndarray:
    """Images of an archive by their base name, each 2 × 2 pixels averaged, (images, 56, 56, 3) uint8."""
    with zipfile.ZipFile(path) as archive:
        files = sorted((n for n in archive.namelist() if n.endswith(".jpg")), key=lambda n: Path(n).name)[:limit]
        return np.stack([np.asarray(Image.open(io.BytesIO(archive.read(name))).reduce(2)) for name in files])


def same_picture(images: np.ndarray) -> np.ndarray:
    """A label for every image, (images,), equal where two show the same picture or one that is almost the same."""
    thumbnails = images.mean(-1, dtype=np.float32).reshape(-1, 28, 2, 28, 2).mean((2, 4)).reshape(len(images), -1)
    thumbnails -= thumbnails.mean(1, keepdims=True)
    thumbnails /= np.maximum(np.linalg.norm(thumbnails, axis=1, keepdims=True), 1e-6)
    return connected_components(csr_array(thumbnails @ thumbnails.T > SAME_PICTURE))[1]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("source", type=Path, help="folder v4_images")
    parser.add_argument("target", type=Path, nargs="?", default="data/v4", help="folder for sessions (%(default)s)")
    arguments = parser.parse_args()
    convert(arguments.source, arguments.target)
