"""Recordings of retinal ganglion cells in two layouts of HDF5 files; needs the extra `h5` (h5py).

Sources: both layouts are those of data that openretina reads, the first of its artificial example data, the second of
Maheswaranathan et al. 2023 (https://doi.org/10.25740/rk663dm5577).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from ...config import nearest, register
from ..labels import Coded
from ..session import Session, SessionError, whole_numbers
from ..streamed import Streamed
from .base import Format
from .hdf5 import H5Array, flattened, hdf5_files, looks_like, opened
from .repeats import repeat_ids
from .streams import bins_per_second, cut_into_trials, filled, joined, missing_bins, transposed

__all__ = ["RetinaH5", "RetinaResponses"]

_RATE_KEYS = ("bin_rate", "frame_rate", "framerate", "fps", "fs", "sampling_rate")
_POSITION_KEYS = ("positions", "unit_positions", "roi_coords")
_ID_KEYS = ("unit_ids", "roi_ids", "cell_ids")
_PUBLISHED_RATE = 100.0  # Hz: the published files have bins of 10 ms


@dataclass
class _Movie:
    """One movie with the responses to it."""

    kind: str
    stimulus: Any  # (T, ...)
    responses: Any  # (T, U)
    split: str = ""
    repeats: str | None = None  # movies that share it are repeats of one another


class _Retina(Format):
    """What both layouts share."""

    trial_duration: float = Field(
        10.0, ge=0, description="Movies for training are cut into trials of so many s; 0: a movie is one trial."
    )

    def _session(self, path: Path, movies: list[_Movie], rate: float, notes: list[str], **about: Any) -> Session:
        """The movies one after the other; those of a split of their own are one trial each, the others are cut."""
        movies = [_aligned(path, movie, notes) for movie in movies]
        units = {movie.kind: movie.responses.shape[1] for movie in movies}
        if len(set(units.values())) > 1:
            raise SessionError(f"{path}: stimuli differ in their number of units, {units}; convert them one by one")
        frames = {movie.kind: (tuple(movie.stimulus.shape[1:]), str(movie.stimulus.dtype)) for movie in movies}
        if len(set(frames.values())) > 1:
            raise SessionError(f"{path}: stimuli differ in the shape or type of frames, {frames}; save them alike")
        lengths = [len(movie.stimulus) for movie in movies]
        trials, first = [], 0
        for movie, length in zip(movies, lengths, strict=True):
            trials.append(first + cut_into_trials(length, 0 if movie.split else round(self.trial_duration * rate)))
            first = int(trials[-1].max()) + 1
        if self.trial_duration and not all(movie.split for movie in movies):
            notes.append(f"Movies for training are cut into trials of {self.trial_duration:g} s (trial_duration).")
        missing, empty = missing_bins(joined([movie.responses for movie in movies]))
        if missing.any():
            notes.append(f"{int(missing.sum())} bins are not valid, because responses are NaN there.")
        ids = about.pop("unit_ids", None)
        ids = np.arange(len(empty)) if ids is None else ids
        if empty.any():
            notes.append(f"Units {ids[empty].tolist()} were left out, because their responses are NaN throughout.")
        kept = np.flatnonzero(~empty)
        positions = about.pop("unit_positions", None)
        labels = about.pop("unit_labels", {})
        responses = [_columns(movie.responses, kept) for movie in movies]
        return Session(
            stimulus=movies[0].stimulus if len(movies) == 1 else joined([movie.stimulus for movie in movies]),
            responses=filled(joined(responses), _float32(joined(responses).dtype)), bin_rate=rate, subject=self.subject,
            unit_ids=ids[kept], unit_positions=None if positions is None else positions[kept],
            unit_labels={key: values[kept] for key, values in labels.items()}, valid=~missing,
            trial=np.concatenate(trials), split=Coded.of_runs([movie.split for movie in movies], lengths),
            repeat_id=repeat_ids([movie.repeats for movie in movies], lengths),
            stimulus_type=Coded.of_runs([movie.kind for movie in movies], lengths), notes=notes, **about,
        )  # fmt: skip


@register("format", "retina_h5")
class RetinaH5(_Retina):
    """A file SESSION.h5 (or .hdf5) beside a folder `stimuli`, or the folder of both.

    ===============================  ==================================================================================
    in the files                     in the session
    ===============================  ==================================================================================
    responses_NAME (N, T)            `responses`, one stimulus type NAME after the other
    stimuli/NAME.npy (C, T, H, W)    `stimulus`; (T, H, W) is taken as well, and float64 becomes float32
    stimulus_NAME in SESSION.h5      the same, used before the file; or text, the name of the file in `stimuli`
    session_info/ roi_ids (N,)       `unit_ids` (also `unit_ids`, `cell_ids`)
    session_info/ positions (N, D)   `unit_positions` (also `roi_coords`)
    session_info/ other (N,)         `unit_labels` of the same name, as text, such as `celltypes`
    session_info/ frame_rate         `bin_rate`, Hz (also `bin_rate`, `fps`, `fs`; a data set or an attribute)
    session_info/ one value          `info`
    ===============================  ==================================================================================

    A NAME with the word `test` is for testing, one with `val` or `validation` for validation. Other movies are drawn
    for training and validation in trials of `trial_duration`.
    """

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """An HDF5 file with responses_NAME; or a folder of these beside `stimuli`."""
        if path.is_dir():
            return (path / "stimuli").is_dir() and any(map(cls.recognises, hdf5_files(path)))
        return looks_like(
            path,
            lambda file: any(key.startswith("responses_") for key in file),
            lambda file: (file.parent / "stimuli").is_dir(),
        )

    def read(self, path: Path) -> Session:
        """The session; see :class:`Format`."""
        path, notes = _one_file(path, self.name), []
        with opened(path) as file:
            shapes = {key: file[key].shape for key in file if key.startswith("responses_")}
            keys = ", ".join(file)
            info = flattened(file["session_info"]) if "session_info" in file else {}
        for key in [key for key, shape in shapes.items() if len(shape) != 2]:
            notes.append(f"{key} was left out, because its shape {shapes.pop(key)} is not (N, T).")
        if not shapes:
            raise SessionError(f"{path}: holds no responses_NAME of shape (N, T) (it holds {keys or 'nothing'})")
        rate = next((float(info[key].flat[0]) for key in _RATE_KEYS if _is_number(info.get(key))), self.bin_rate)
        if rate is None:
            raise SessionError(f"{path}: frames a second are not known; give --bin_rate, or session_info/frame_rate")
        movies = []
        for key in shapes:
            name = key.removeprefix("responses_")
            movies.append(_Movie(name, _frames(path, name), transposed(H5Array(path, key)), _split(name)))
        about = _about_units(info, next(iter(shapes.values()))[0], notes)
        return self._session(path, movies, rate, notes, name=self.name or path.stem, **about)


@register("format", "retina_responses")
class RetinaResponses(_Retina):
    """A file such as naturalscene.h5 with parts `train` and `test`, or a folder with several such files of one session.

    =============================  ====================================================================================
    in a file                      in the session
    =============================  ====================================================================================
    its name                       `stimulus_type`
    {train,test}/stimulus          `stimulus`, (T, H, W)
    {train,test}/response/NAME     `responses`, (N, T); NAME is the option `response`; rates stay in spikes/s
    test/repeats/cellNN (R, T)     `responses` to the test movie, which the session then shows R times; `repeat_id`
    {train,test}/time (T,), s      `bin_rate`; without it 100 Hz as in the published files, or --bin_rate
    =============================  ====================================================================================

    A response may have one bin more than the stimulus; that bin is left out. Repeats are used if their mean is that of
    the test response, or if they are counts where that is a rate (they are then multiplied by the bin rate). `test` has
    the split `test`; `train` is drawn for training and validation in trials of `trial_duration`.
    """

    response: str = Field("", description="Name in {train,test}/response. Default: firing_rate_10ms, or the only one.")
    repeats: bool = Field(True, description="Use the single repeats of the test rather than their mean.")

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """An HDF5 file with the group train/response or test/response; or a folder of these."""
        if path.is_dir():
            return any(map(cls.recognises, hdf5_files(path)))
        return looks_like(
            path,
            lambda file: any(f"{part}/response" in file for part in ("train", "test")),
            lambda file: file.stem in ("naturalscene", "whitenoise"),
        )

    def read(self, path: Path) -> Session:
        """The session; see :class:`Format`."""
        files = [file for file in hdf5_files(path) if self.recognises(file)] if path.is_dir() else [path]
        if not files:
            raise SessionError(f"{path}: holds no .h5 file with train/response; give the folder of one session")
        notes: list[str] = []
        rates = {file.stem: self._rate(file, notes) for file in files}
        if max(rates.values()) - min(rates.values()) > 1e-3 * max(rates.values()):
            raise SessionError(f"{path}: files differ in bins a second, {rates}; convert them one by one")
        rate = next(iter(rates.values()))
        movies = [movie for file in files for movie in self._movies(file, rate, notes)]
        return self._session(path, movies, rate, notes, name=self.name or (path.name if path.is_dir() else path.stem))

    def _rate(self, path: Path, notes: list[str]) -> float:
        with opened(path) as file:
            time = next((file[f"{part}/time"][:] for part in ("train", "test") if f"{part}/time" in file), None)
        if time is not None:
            return bins_per_second(time, f"{path}: time")
        if self.bin_rate is None:
            notes.append(f"{path.name}: has no time; bins of 10 ms are assumed, as in the published files.")
        return self.bin_rate or _PUBLISHED_RATE

    def _movies(self, path: Path, rate: float, notes: list[str]) -> list[_Movie]:
        with opened(path) as file:
            parts = [part for part in ("train", "test") if f"{part}/response" in file]
            names = list(dict.fromkeys(name for part in parts for name in file[f"{part}/response"]))
            lacking = [f"{part}/stimulus" for part in parts if f"{part}/stimulus" not in file]
            if not parts or lacking:
                raise SessionError(f"{path}: has no {' and no '.join(lacking) or 'train/response'}; add it")
            spikes = "spikes" in file
        name = self.response or ("firing_rate_10ms" if "firing_rate_10ms" in names else names[0])
        if name not in names or not (self.response or len(names) == 1 or name == "firing_rate_10ms"):
            hint = nearest(self.response, names) if self.response else f"choose one of {names} with response="
            raise SessionError(f"{path}: has no response {name!r}; {hint}" if self.response else f"{path}: {hint}")
        others = [other for other in names if other != name]
        if others:
            notes.append(f"{path.name}: responses {name} are used, and {', '.join(others)} left out (response=NAME).")
        if spikes:
            notes.append(f"{path.name}: spike times (spikes/) were left out, because the binned responses are used.")
        movies = []
        for part in parts:
            key = f"{part}/response/{name}"
            with opened(path) as file:
                if key not in file:
                    raise SessionError(f"{path}: has no {key}; choose another response=")
            stimulus, responses = H5Array(path, f"{part}/stimulus"), transposed(H5Array(path, key))
            single = self._repeats(path, responses, name, rate, notes) if part == "test" and self.repeats else []
            repeats = f"{path.stem} {part}" if single else None
            split = "test" if part == "test" else ""
            movies += [_Movie(path.stem, stimulus, values, split, repeats) for values in single or [responses]]
        return movies

    def _repeats(self, path: Path, mean: Streamed, response: str, rate: float, notes: list[str]) -> list[Streamed]:
        """Responses to each repeat of the test, (T, N); empty where they cannot be used, with a note that says why."""
        with opened(path) as file:
            group = file.get("test/repeats", {})
            cells = sorted(group, key=lambda cell: int((re.findall(r"\d+", cell) or [0])[-1]))
            shapes = [group[cell].shape for cell in cells]
            average = np.mean([np.mean(group[cell][...]) for cell in cells]) if cells else 0.0
            whole = all(bool((group[cell][...] % 1 == 0).all()) for cell in cells)
        if not cells:
            return []
        number, length = min(shape[0] for shape in shapes), min(shape[-1] for shape in shapes)
        reason, factor = "", 1.0
        if any(len(shape) != 2 for shape in shapes) or len(cells) != mean.shape[1] or abs(length - len(mean)) > 1:
            reason = f"they are {len(cells)} cells of the shapes {sorted(set(shapes))}, the response is {mean.shape}"
        elif response.startswith("firing_rate"):
            ratio = average / max(float(np.mean(mean[:])), 1e-12)
            factor = 1.0 if 0.8 < ratio < 1.25 or average == 0 else rate
            if not 0.8 < ratio * factor < 1.25 and average > 0:
                reason = f"their mean is {ratio:.3g} times that of {response}, so that their unit is not clear"
        elif not whole:
            reason = f"they are no counts, and {response} are no rates"
        if reason:
            notes.append(f"{path.name}: test/repeats were left out, because {reason}.")
            return []
        if factor != 1:
            notes.append(f"{path.name}: test/repeats are counts and were multiplied by {rate:g} Hz to be rates.")
        if number < max(shape[0] for shape in shapes):
            notes.append(f"{path.name}: repeats beyond the first {number} were left out, because some cells lack them.")
        return [_one_repeat(path, cells, index, length, factor) for index in range(number)]


def _one_repeat(path: Path, cells: Sequence[str], index: int, length: int, factor: float) -> Streamed:
    def read(start: int, stop: int) -> np.ndarray:
        with opened(path) as file:
            values = [file[f"test/repeats/{cell}"][index, start:stop] for cell in cells]
        return np.stack(values, axis=1).astype(np.float32) * np.float32(factor)

    return Streamed((length, len(cells)), np.dtype(np.float32), read)


def _one_file(path: Path, name: str) -> Path:
    """The file itself, or that of a folder: the only one, or the one with the session's name."""
    if not path.is_dir():
        return path
    files = hdf5_files(path)
    chosen = [file for file in files if file.stem == name] if name and len(files) != 1 else files
    if len(chosen) != 1:
        raise SessionError(f"{path}: holds the sessions {[file.stem for file in files]}; give the path of one file")
    return chosen[0]


def _frames(path: Path, name: str) -> Any:
    """Frames (T, H, W) or (T, C, H, W), from the session's file or from `stimuli`; they stay on the disk."""
    source: Any = None
    key, stem = f"stimulus_{name}", name
    with opened(path) as file:
        if key in file and file[key].dtype.kind in "OS":
            value = file[key][()]
            stem = Path(value.decode() if isinstance(value, bytes) else str(value)).name.removesuffix(".npy")
        elif key in file:
            source = H5Array(path, key)
    if source is None:
        file = path.parent / "stimuli" / f"{stem}.npy"
        try:
            source = np.load(file, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            raise SessionError(f"{path}: responses_{name} have no stimulus; add {file}, or {key} to the file") from None
        except (ValueError, OSError) as error:
            raise SessionError(f"{file}: not an array of numbers ({error})") from None
    if len(source.shape) not in (3, 4):
        raise SessionError(f"{path}: the stimulus {name!r} has the shape {source.shape}; give (C, T, H, W)")
    dtype = _float32(np.dtype(source.dtype))
    if len(source.shape) == 3:
        return Streamed(
            source.shape, dtype, lambda start, stop: np.asarray(source[start:stop]).astype(dtype, copy=False)
        )
    channels, length, *size = source.shape
    row = size if channels == 1 else [channels, *size]

    def read(start: int, stop: int) -> np.ndarray:
        return np.moveaxis(np.asarray(source[:, start:stop]), 0, 1).reshape(-1, *row).astype(dtype, copy=False)

    return Streamed((length, *row), dtype, read)


def _aligned(path: Path, movie: _Movie, notes: list[str]) -> _Movie:
    """The movie without a last bin that only its frames or only its responses have."""
    frames, bins = len(movie.stimulus), len(movie.responses)
    if abs(frames - bins) > 1:
        raise SessionError(f"{path}: {movie.kind!r} has {frames} frames and responses in {bins} bins; align them first")
    if frames != bins:
        sentence = f"{movie.kind}: {frames} frames have responses in {bins} bins; the one more was left out."
        notes += [] if sentence in notes else [sentence]
    length = min(frames, bins)
    return _Movie(
        movie.kind, _first(movie.stimulus, length), _first(movie.responses, length), movie.split, movie.repeats
    )


def _first(array: Any, length: int) -> Streamed:
    return Streamed((length, *array.shape[1:]), np.dtype(array.dtype), lambda start, stop: array[start:stop])


def _columns(array: Any, columns: np.ndarray) -> Streamed:
    return Streamed((len(array), len(columns)), np.dtype(array.dtype), lambda a, b: np.asarray(array[a:b])[:, columns])


def _float32(dtype: np.dtype) -> np.dtype:
    return np.dtype(np.float32) if dtype == np.float64 else dtype


def _is_number(value: np.ndarray | None) -> bool:
    return value is not None and value.size == 1 and value.dtype.kind in "iuf" and float(value.flat[0]) > 0


def _split(name: str) -> str:
    words = set(re.split(r"[^a-z]+", name.lower()))
    return "test" if "test" in words else "val" if words & {"val", "validation"} else ""


def _about_units(info: dict[str, np.ndarray], n_units: int, notes: list[str]) -> dict[str, Any]:
    """What session_info says of the units and of the session, as fields of a Session."""
    about: dict[str, Any] = {"unit_labels": {}, "info": {}}
    for key, value in info.items():
        if (value.size == 1 and value.ndim <= 1 and n_units != 1) or value.ndim == 0:
            about["info"][key] = str(value.flat[0])
        elif key in _ID_KEYS and len(value) == n_units and "unit_ids" not in about:
            ids = value.reshape(-1)
            about["unit_ids"] = ids if ids.dtype.kind == "U" else whole_numbers(ids, f"session_info/{key}")
        elif key in _POSITION_KEYS and value.ndim == 2 and len(value) == n_units and np.isfinite(value).all():
            about["unit_positions"] = value
        elif value.ndim == 1 and len(value) == n_units:
            about["unit_labels"][key] = value.astype(str)
        else:
            notes.append(f"session_info/{key} was left out, because it is neither one value nor one a unit.")
    return about
