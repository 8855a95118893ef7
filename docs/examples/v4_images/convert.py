"""Convert the macaque V4 recordings of Cowley et al. to session files: single images, counts summed over repeats.

    python docs/examples/v4_images/convert.py SOURCE [TARGET] [--names NAME ...]

Each image is one bin, and its `trial` is the picture that it shows, so that a picture is on one side of the split only.
Images 601 to 1200 of two sessions are the test; the same picture anywhere else is marked invalid.
"""

import argparse
import io
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from neurotwin import Session
from neurotwin.data.session import SessionError

__all__ = ["convert", "load_images", "main", "recordings", "same_picture"]

SUBJECTS = {
    "190923": "WE", "190925": "WE", "190927": "WE", "190928": "WE", "190929": "WE", "201025": "PE",
    "210224": "PE", "210305": "PE", "210322": "PE", "210325": "PE", "210621": "RA",
}  # fmt: skip
TEST_SESSIONS = ("190923", "201025")
FIRST_TEST_IMAGE = 600  # counted from 0
VALIDATION_SHARE = 0.1
SAME_PICTURE = 0.95  # correlation of 28 × 28 grey thumbnails above which two images count as one picture


def recordings(source: Path) -> list[str]:
    """Names of all recordings in a folder: those of which it has counts."""
    return sorted(path.stem.removeprefix("counts_") for path in source.glob("counts_*.npy"))


def convert(source: Path, target: Path, names: Sequence[str] | None = None, limit: int | None = None) -> list[Path]:
    """Write a session file for each recording.

    Parameters
    ----------
    source
        Folder with `images_NAME.zip`, `counts_NAME.npy` and `repeats_NAME.npy`.
    target
        Folder for `SUBJECT_NAME.safetensors`; the subject of a recording that is not listed above is "V4".
    names
        Recordings to convert; None: all. The whole set at once, or a picture may be test here and training there.
    limit
        Use the first images only; None: all.

    Raises
    ------
    SessionError
        If the folder lacks a file of a recording, or its files do not fit together.
    """
    names = recordings(source) if names is None else list(names)
    if not names:
        raise SessionError(f"{source}: holds no counts_NAME.npy; give the folder of the recordings")
    for name in names:
        for file in (f"images_{name}.zip", f"counts_{name}.npy", f"repeats_{name}.npy"):
            if not (source / file).exists():
                raise SessionError(f"{source}: no {file}; the recordings there are {', '.join(recordings(source))}")
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
            name=f"{SUBJECTS.get(name, 'V4')}_{name}",
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


def main(argv: Sequence[str] | None = None) -> int:
    """Convert; 2 with one line where that is not possible."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("source", type=Path, help="folder v4_images")
    parser.add_argument("target", type=Path, nargs="?", default="data/v4", help="folder for sessions (%(default)s)")
    parser.add_argument("--names", nargs="+", metavar="NAME", help="recordings, such as 190923; default: all")
    arguments = parser.parse_args(argv)
    try:
        convert(arguments.source, arguments.target, arguments.names)
    except (SessionError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
