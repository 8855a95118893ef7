"""Single images with counts summed over repeats, or with the responses to every repeat, beside an archive of images."""

import hashlib
import io
import re
import zipfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, UnidentifiedImageError
from pydantic import Field

from ...config import nearest, register
from ..session import Session, SessionError
from ..streamed import Streamed
from .base import Format
from .repeats import alike, repeat_ids, sketch
from .streams import filled, missing_bins

__all__ = ["ImageTrials"]

_IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".gif")
_SHOWN = ("images", "image", "stimuli", "stimulus")
_ROLES = ("counts", "repeats", "trials", "responses")
_RESPONSES = ("counts", "trials", "responses")
_BLOCK = 1 << 26  # bytes of single trials that are looked at at a time


@register("format", "image_trials")
class ImageTrials(Format):
    """A folder with `images_S.zip` and the responses of the recording S, or the path of such an archive.

    ================================  =================================================================================
    in the folder                     in the session
    ================================  =================================================================================
    images_S.zip, or a folder         `stimulus`: (T, H, W) for grey images, else (T, 3, H, W). Row n of the arrays is
    images_S                          the n-th image by its base name, where numbers count as numbers
    trials_S.npy (N, images, R)       `responses`, one bin for every presentation; all presentations of an image follow
    or responses_S.npy                one another. NaN in all units: there was no such presentation
    counts_S.npy (images, N)          `responses`, one bin for every image: the sum over its repeats
    repeats_S.npy (images,)           `exposure` of the counts
    ================================  =================================================================================

    `_S` may be absent or stand first. An archive without it, or the only one, serves all recordings of its folder. With
    single trials and counts of a recording at hand, the single trials are read: a Poisson model learns the same from
    them, and how reliable a unit is can be told from them alone.

    An image is one bin. Its `trial` is the picture that it shows, so that a picture that is shown twice, or stored in
    two rows (up to one grey level in every pixel), lies on one side of the split; the rows are repeats of one another.
    Where sessions share pictures, set `val_share` and `test_share`: the part of a picture is then drawn by its content,
    which is the same in every session.
    """

    session: str = Field("", description="S in the names of the files, where there are several. Default: by the name.")
    form: Literal["auto", "trials", "counts"] = Field("auto", description="Which responses to read, if both are there.")
    reduce: int = Field(1, ge=1, description="Average so many pixels along each axis into one.")
    val_share: float = Field(0.0, ge=0, lt=1, description="Share of pictures for validation, drawn by content.")
    test_share: float = Field(0.0, ge=0, lt=1, description="Share of pictures for testing, drawn by content.")

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """An archive of images beside responses, or a folder that holds both."""
        if path.is_dir():
            return bool(_recordings(path))
        return path.suffix == ".zip" and any(images == path for images, _ in _recordings(path.parent).values())

    def read(self, path: Path) -> Session:
        """The session; see :class:`Format`."""
        name, images, arrays = self._choose(path)
        pictures = _Pictures(images, self.reduce)
        notes = pictures.notes
        single = next((key for key in ("trials", "responses") if key in arrays and self.form != "counts"), None)
        if single is not None and self.form == "auto" and "counts" in arrays:
            notes.append(f"{arrays['counts'].name} was left out, because {arrays[single].name} has the single trials.")
        values = _array(arrays[single or "counts"]) if single or "counts" in arrays else None
        if values is None or (self.form == "trials" and values.ndim != 3):
            wanted = "trials_S.npy (N, images, repeats)" if self.form == "trials" else "counts_S.npy (images, N)"
            raise SessionError(f"{images}: has no {wanted} beside it; choose another form=")
        first = pictures.first_shown()
        exposure = None
        if values.ndim == 3:
            row, responses, valid = _single_trials(arrays[single or "counts"], values, len(pictures), notes)
        else:
            row, valid = np.arange(len(pictures)), None
            responses = _one_a_picture(arrays[single or "counts"], values, len(pictures))
            if single is None:
                exposure, valid = _exposure(arrays.get("repeats"), len(pictures), notes)
        missing, empty = missing_bins(responses)
        if empty.any():
            raise SessionError(f"{images}: units {np.flatnonzero(empty).tolist()} have no responses; leave them out")
        if missing.any():
            notes.append(f"{int(missing.sum())} bins are not valid, because the response of a unit is NaN there.")
        if self.bin_rate is None:
            notes.append("Responses are taken as counts in 100 ms (10 bins a second); give --bin_rate otherwise.")
        picture = np.asarray(first)[row]
        return Session(
            name=self.name or name, subject=self.subject, stimulus=pictures.shown(row),
            responses=filled(responses), bin_rate=self.bin_rate or 10.0, trial=picture,
            valid=~missing if valid is None else valid & ~missing, exposure=exposure, stimulus_type="image",
            repeat_id=repeat_ids(picture.tolist(), [1] * len(row)), split=self._split(pictures, first, row),
            notes=notes,
        )  # fmt: skip

    def _choose(self, path: Path) -> tuple[str, Path, dict[str, Path]]:
        """Name of the recording, its images, and its arrays by role."""
        known = _recordings(path if path.is_dir() else path.parent)
        if not path.is_dir():
            known = {name: found for name, found in known.items() if found[0] == path}
        if not known:
            raise SessionError(f"{path}: holds no archive of images beside counts_S.npy or trials_S.npy")
        if self.session and self.session not in known:
            raise SessionError(f"{path}: has no recording {self.session!r}; {nearest(self.session, list(known))}")
        named = [key for key in known if key and (key == self.name or self.name.endswith(f"_{key}"))]
        chosen = [self.session] if self.session else list(known) if len(known) == 1 else named
        if len(chosen) != 1:
            raise SessionError(f"{path}: holds the recordings {', '.join(known)}; choose one with session=")
        folder = path.absolute() if path.is_dir() else path.absolute().parent
        return chosen[0] or folder.name, *known[chosen[0]]

    def _split(self, pictures: "_Pictures", first: Sequence[int], row: np.ndarray) -> np.ndarray | None:
        if not self.val_share and not self.test_share:
            return None
        if self.val_share + self.test_share >= 1:
            raise SessionError(f"{pictures.path}: val_share and test_share leave nothing to train on")
        part = {}
        for number in set(first):
            digest = hashlib.sha256(pictures.one(number).tobytes()).digest()
            place = int.from_bytes(digest[:8], "little") / 2**64
            part[number] = (
                "test" if place < self.test_share
                else "val" if place < self.test_share + self.val_share else "train"
            )  # fmt: skip
        return np.array([part[number] for number in first])[row]


class _Pictures:
    """The images of an archive or a folder, in the order of their base names."""

    def __init__(self, path: Path, reduce: int) -> None:
        self.path, self.reduce = path, reduce
        self.notes: list[str] = []
        names = _image_names(path)
        by_base: dict[str, str] = {}
        for name in names:
            base = Path(name).name
            if base in by_base:
                raise SessionError(f"{path}: holds {by_base[base]} and {name}; base names give the order, so keep one")
            by_base[base] = name
        order = sorted(by_base, key=_natural)
        if order != sorted(by_base):
            self.notes.append(f"Rows follow the numbers in the names of the images: {', '.join(order[:3])}, ...")
        self.names = [by_base[base] for base in order]
        if not self.names:
            raise SessionError(f"{path}: holds no image ({', '.join(_IMAGES)})")
        heads = [self._open(number) for number in range(len(self.names))]
        sizes = {head.size: self.names[number] for number, head in enumerate(heads)}
        if len(sizes) > 1:
            (one, first), (other, second), *_ = sizes.items()
            raise SessionError(f"{path}: {first} has {one} pixels, {second} has {other}; resize them alike")
        modes = {head.mode for head in heads}
        strange = modes - {"1", "L", "P", "RGB"}
        if strange:
            raise SessionError(f"{path}: images of the modes {sorted(strange)}; save them as 8-bit grey or RGB")
        self.mode = "L" if modes <= {"1", "L"} else "RGB"

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def _archive(self) -> zipfile.ZipFile:
        return zipfile.ZipFile(self.path)

    def _open(self, number: int) -> Image.Image:
        name = self.names[number]
        try:
            raw = (self.path / name).read_bytes() if self.path.is_dir() else self._archive.read(name)
            return Image.open(io.BytesIO(raw))
        except (UnidentifiedImageError, OSError, zipfile.BadZipFile, RuntimeError) as error:
            raise SessionError(f"{self.path}: {name} is not a whole image ({error})") from None

    def one(self, number: int) -> np.ndarray:
        """One image, (H, W) or (3, H, W) uint8."""
        try:
            picture = self._open(number).convert(self.mode)
        except OSError as error:
            raise SessionError(f"{self.path}: {self.names[number]} is not a whole image ({error})") from None
        pixels = np.asarray(picture.reduce(self.reduce) if self.reduce > 1 else picture)
        return pixels if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)

    def first_shown(self) -> list[int]:
        """For every image the number of the first that looks the same; decodes each image once."""
        sketches = [sketch(self.one(number)) for number in range(len(self))]
        first = alike(sketches, self.one)
        twice = sum(number != own for own, number in enumerate(first))
        if twice:
            self.notes.append(f"{twice} images are the same as an earlier one, and count as repeats of it.")
        return first

    def shown(self, row: np.ndarray) -> Streamed:
        """The images with the numbers `row`, decoded when they are read."""
        example = self.one(0)

        def read(start: int, stop: int) -> np.ndarray:
            numbers, place = np.unique(row[start:stop], return_inverse=True)
            return np.stack([self.one(int(number)) for number in numbers])[place] if len(numbers) else example[None][:0]

        return Streamed((len(row), *example.shape), example.dtype, read)


def _recordings(folder: Path) -> dict[str, tuple[Path, dict[str, Path]]]:
    """Recordings of a folder: the images of each and its arrays by role."""
    arrays: dict[str, dict[str, Path]] = {}
    for file in sorted(folder.glob("*.npy")):
        role, session = _parted(file.stem, _ROLES)
        if role:
            arrays.setdefault(session, {})[role] = file
    arrays = {name: roles for name, roles in arrays.items() if any(role in roles for role in _RESPONSES)}
    if not arrays:
        return {}
    images = {}
    for path in sorted(folder.iterdir()):
        role, session = _parted(path.name if path.is_dir() else path.stem, _SHOWN)
        if path.suffix == ".zip" or (path.is_dir() and role):
            images[session] = path
    only = next(iter(images.values())) if len(images) == 1 and not set(images) & set(arrays) else None
    found = {name: images.get(name, images.get("", only)) for name in arrays}
    return {name: (path, arrays[name]) for name, path in found.items() if path is not None and _image_names(path)}


def _parted(stem: str, words: Sequence[str]) -> tuple[str, str]:
    """The word that says what a file is, empty if it has none, and the rest of its name."""
    parts = re.split(r"[_-]", stem)
    role = next((part.lower() for part in parts if part.lower() in words), "")
    return role, "_".join(part for part in parts if part and part.lower() != role)


def _image_names(path: Path) -> list[str]:
    """Paths of the images in an archive or a folder, without the hidden files that some systems add."""
    if path.is_dir():
        names = [str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()]
    else:
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except (zipfile.BadZipFile, OSError):
            return []
    return [
        name for name in names
        if Path(name).suffix.lower() in _IMAGES and not Path(name).name.startswith(".") and "__MACOSX" not in name
    ]  # fmt: skip


def _natural(name: str) -> list[tuple[int, str]]:
    """A key by which image2 comes before image10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _array(path: Path) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise SessionError(f"{path}: not an array of numbers ({error})") from None
    if array.ndim not in (2, 3) or array.dtype.kind not in "iuf":
        raise SessionError(f"{path}: is {array.dtype} of shape {array.shape}; give numbers, (N, images, repeats)")
    return array


def _one_a_picture(path: Path, values: np.ndarray, n_images: int) -> np.ndarray:
    if values.shape[0] != n_images:
        raise SessionError(f"{path}: has {values.shape[0]} rows for {n_images} images; give (images, N)")
    return values


def _exposure(path: Path | None, n_images: int, notes: list[str]) -> tuple[np.ndarray | None, np.ndarray]:
    """Repeats of every image, and whether it was shown at all."""
    if path is None:
        notes.append("There is no repeats_S.npy, so every count is taken as that of one presentation.")
        return None, np.ones(n_images, bool)
    try:
        repeats = np.asarray(np.load(path, allow_pickle=False), np.float32).reshape(-1)
    except (ValueError, OSError, EOFError) as error:
        raise SessionError(f"{path}: not an array of numbers ({error})") from None
    if len(repeats) != n_images:
        raise SessionError(f"{path}: has {len(repeats)} numbers for {n_images} images; give one an image")
    shown = np.isfinite(repeats) & (repeats > 0)
    if not shown.all():
        notes.append(f"{int((~shown).sum())} images are not valid, because they were never shown (0 repeats).")
    return np.where(shown, repeats, 1).astype(np.float32), shown


def _single_trials(
    path: Path, values: np.ndarray, n_images: int, notes: list[str]
) -> tuple[np.ndarray, Streamed, np.ndarray]:
    """Image of every presentation, the responses (T, N), and where all units have one."""
    n_units, n_shown, n_repeats = values.shape
    if n_shown != n_images:
        raise SessionError(f"{path}: has the shape {values.shape} for {n_images} images; give (N, images, repeats)")
    step = max(1, _BLOCK // max(1, n_units * n_repeats * values.dtype.itemsize))
    blocks = [np.isfinite(values[:, a : a + step]) for a in range(0, n_images, step)]
    some = np.concatenate([block.any(axis=0) for block in blocks])
    every = np.concatenate([block.all(axis=0) for block in blocks])
    if not some.any():
        raise SessionError(f"{path}: holds only NaN")
    never = int((~some.any(axis=1)).sum())
    if never:
        notes.append(f"{never} images were left out, because none of their presentations has a response.")
    padding = int((~some).sum())
    if padding:
        notes.append(f"{padding} presentations of {some.size} were left out, because they are padding (NaN).")
    bounds = np.cumsum([0, *some.sum(axis=1)])

    def read(start: int, stop: int) -> np.ndarray:
        a, b = np.searchsorted(bounds, start, side="right") - 1, np.searchsorted(bounds, stop)
        rows = np.moveaxis(values[:, a:b], 0, -1)[some[a:b]]
        return rows[start - bounds[a] : stop - bounds[a]]

    row = np.repeat(np.arange(n_images), some.sum(axis=1))
    return row, Streamed((len(row), n_units), values.dtype, read), every[some]
