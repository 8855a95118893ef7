"""Calcium imaging as suite2p leaves it, with the times of its frames and a log of the stimulus.

Source of suite2p's files: https://suite2p.readthedocs.io (outputs). suite2p knows nothing of the stimulus, so the plain
form of frame times and log that is read here is our own; :class:`Suite2p` describes it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from ...config import register
from ..session import Session, SessionError
from ..streamed import Streamed
from .base import Format
from .repeats import repeat_ids
from .stimulus_log import StimulusLog
from .streams import bins_per_second, filled, finite_bins, missing_bins

__all__ = ["Suite2p"]

_PLANE = 100_000  # unit ids of plane p begin at p times this
_GREY = 127  # of uint8, where nothing is shown


@register("format", "suite2p")
class Suite2p(Format):
    """A folder with suite2p's results, or with `suite2p/plane0`, `suite2p/plane1` and so on.

    Files of suite2p, one set a plane:

    =======================  ==========================================================================================
    spks.npy, F.npy (N, T)   `responses`, by the option `responses`: deconvolved activity, fluorescence, or
    Fneu.npy                 fluorescence less a share of the neuropil's. One imaging frame is one bin
    iscell.npy (N, 2)        only units whose first entry is 1 are kept, unless `all_units`
    redcell.npy (N, 2)       `unit_labels["red"]`
    stat.npy, ops.npy        not read: they hold Python objects, and opening such files can run code
    =======================  ==========================================================================================

    The folder `combined`, which repeats all planes, is not read. `unit_ids` are rows of the arrays, plus 100,000 times
    the number of the plane. Positions lie in stat.npy, which is not read; to keep them, save them once as plain
    numbers, from your own trusted file, beside it:
    ``np.save("positions.npy", [unit["med"] for unit in np.load("stat.npy", allow_pickle=True)])``.

    Files to add, beside the folder `suite2p` or beside spks.npy:

    =======================  ==========================================================================================
    frame_times.npy (T,)     start of each imaging frame in s; without it give --bin_rate, and frames start at 0 s
    stimulus.npy             frames or images, (K, H, W) or (K, C, H, W), uint8 or float
    stimulus_log.csv         what was shown when: a line for every presentation, with the columns `start` and `stop`
                             (s, on the clock of frame_times) and `frame` (row of stimulus.npy from 0; empty for grey);
                             and, if wanted, `trial` (a whole number), `type` (of the stimulus) and `split`
    behavior.NAME.npy (T,)   behaviour by name, one value or row an imaging frame; NaN makes the bin invalid
    =======================  ==========================================================================================

    A bin shows what the log says for its middle, grey where it says nothing. With the column `trial`, bins from the
    first start to the last stop of a trial belong to it, and trials that show the same frames are repeats. Without it,
    the time from the first line to the last is cut into trials of `trial_duration`, and pauses longer than that lie
    between trials. With ``bins=presentations`` a bin is a line of the log instead, as for flashed images: its response
    is the mean over the imaging frames whose middle lies in the window after `start`, and lines with the same frame are
    repeats.
    """

    responses: Literal["spks", "F", "F_corrected"] = Field("spks", description="What the units' responses are.")
    neuropil: float = Field(0.7, ge=0, le=1, description="Share of the neuropil that F_corrected subtracts.")
    all_units: bool = Field(False, description="Also those that suite2p does not hold for cells.")
    bins: Literal["frames", "presentations"] = Field("frames", description="What a bin is.")
    delay: float = Field(0.0, ge=0, description="presentations: s from the start to the window of the response.")
    window: float | None = Field(None, gt=0, description="presentations: s of the window. Default: stop - start.")
    trial_duration: float = Field(10.0, gt=0, description="s of a trial where the log has no column `trial`.")

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """A folder with spks.npy and iscell.npy, or with planes that have them."""
        return path.is_dir() and bool(_planes(path))

    def read(self, path: Path) -> Session:
        """The session; see :class:`Format`."""
        planes = _planes(path)
        if not planes:
            raise SessionError(f"{path}: holds no plane with spks.npy and iscell.npy; give suite2p's folder")
        root = _root(path)
        places = list(dict.fromkeys([root, path, *(plane.parent for plane in planes), *planes]))
        notes: list[str] = []
        units = _Units(self, planes, notes)
        time = self._times(path, places, units, notes)[: units.n_bins]
        rate = bins_per_second(time, f"{path}: frame_times.npy")
        movie = _numbers(_found(path, places, "stimulus.npy", "frames (K, H, W) that the log refers to"))
        if movie.ndim not in (3, 4):
            raise SessionError(f"{path}: stimulus.npy has the shape {movie.shape}; give (K, H, W) or (K, C, H, W)")
        log = StimulusLog.read(_found(path, places, "stimulus_log.csv", "columns start, stop and frame"), len(movie))
        behavior, known = _behavior(places, units, notes)
        about = {
            "name": self.name or root.name, "subject": self.subject, "unit_ids": units.ids,
            "unit_positions": units.positions, "unit_labels": units.labels,
        }  # fmt: skip
        if self.bins == "presentations":
            if behavior:
                notes.append(f"Behaviour {', '.join(behavior)} was left out, because bins are presentations.")
            return self._presentations(log, movie, units, time, rate, notes, about)
        return self._frames(log, movie, units, time, rate, notes, about | {"behavior": behavior}, known)

    def _times(self, path: Path, places: Sequence[Path], units: "_Units", notes: list[str]) -> np.ndarray:
        file = next((place / "frame_times.npy" for place in places if (place / "frame_times.npy").exists()), None)
        if file is None:
            if self.bin_rate is None:
                raise SessionError(f"{path}: has no frame_times.npy; add the start of each frame in s, or --bin_rate")
            notes.append(
                f"There is no frame_times.npy, so frames are taken to start at 0 s, {self.bin_rate:g} a second."
            )
            return np.arange(units.n_bins) / self.bin_rate
        time = np.asarray(_numbers(file), np.float64).reshape(-1)
        if len(time) not in (units.n_bins, units.n_times):
            raise SessionError(f"{file}: has {len(time)} times for {units.n_bins} imaging frames; align them")
        if not (np.isfinite(time).all() and (np.diff(time) > 0).all()):
            raise SessionError(f"{file}: times must increase and hold no NaN")
        return time

    def _frames(
        self, log: StimulusLog, movie: np.ndarray, units: "_Units", time: np.ndarray, rate: float, notes: list[str],
        about: dict[str, Any], known: np.ndarray,
    ) -> Session:  # fmt: skip
        """One bin an imaging frame."""
        middle = time + 0.5 / rate
        line = log.line_at(middle)
        frame = np.where(line >= 0, log.frame[line], -1)
        last = np.clip(np.searchsorted(log.start, middle, side="right") - 1, 0, None)
        trial, repeat_id = log.trials(middle, rate, self.trial_duration)
        if (trial < 0).any():
            notes.append(f"{int((trial < 0).sum())} imaging frames lie in no trial of the stimulus log.")
        blank = int(((frame < 0) & (trial >= 0)).sum())
        if blank:
            notes.append(f"{blank} imaging frames of trials show grey, because the log says nothing of them.")
        return Session(
            stimulus=_shown(movie, frame), responses=filled(units.responses), bin_rate=rate, time=time, trial=trial,
            repeat_id=repeat_id, valid=known & ~units.missing, stimulus_type=log.type[last],
            split=None if log.split is None else np.where(trial >= 0, log.split[last], ""), notes=notes, **about,
        )  # fmt: skip

    def _presentations(
        self, log: StimulusLog, movie: np.ndarray, units: "_Units", time: np.ndarray, rate: float, notes: list[str],
        about: dict[str, Any],
    ) -> Session:  # fmt: skip
        """One bin a line of the log."""
        middle = time + 0.5 / rate
        start = log.start + self.delay
        stop = start + self.window if self.window else log.stop + self.delay
        first, last = np.searchsorted(middle, start), np.searchsorted(middle, stop)
        seen = last > first
        if not seen.all():
            notes.append(f"{int((~seen).sum())} presentations are not valid: no imaging frame lies in their window.")
        bad = np.cumsum([0, *units.missing])
        complete = bad[last] == bad[np.minimum(first, last)]

        def read(a: int, b: int) -> np.ndarray:
            means = np.zeros((b - a, len(units.ids)), np.float32)
            for place, number in enumerate(range(a, b)):
                if seen[number] and complete[number]:
                    means[place] = units.responses[first[number] : last[number]].mean(axis=0)
            return means

        notes.append("A bin is a presentation; its response is the mean over the imaging frames of its window.")
        return Session(
            stimulus=_shown(movie, log.frame), bin_rate=bins_per_second(log.start, "stimulus_log.csv: start"),
            responses=Streamed((len(log.start), len(units.ids)), np.dtype(np.float32), read), valid=seen & complete,
            trial=np.where(log.frame >= 0, log.frame, len(movie)), 
            repeat_id=repeat_ids(log.frame.tolist(), [1] * len(seen)),
            stimulus_type=log.type, split=log.split, notes=notes, **about,
        )  # fmt: skip


class _Units:
    """Responses and labels of the units of all planes."""

    def __init__(self, options: Suite2p, planes: Sequence[Path], notes: list[str]) -> None:
        loaded = [_plane(options, plane, notes) for plane in planes]
        lengths = {planes[n].name: len(plane["responses"]) for n, plane in enumerate(loaded)}
        self.n_bins = min(lengths.values())
        if max(lengths.values()) - self.n_bins > 1:
            raise SessionError(f"{planes[0].parent}: planes differ in imaging frames, {lengths}; give one session")
        if max(lengths.values()) > self.n_bins:
            notes.append(f"The last imaging frame was left out, because some planes lack it: {lengths}.")
        parts = [plane["responses"] for plane in loaded]
        self.n_times = max(lengths.values())

        def read(start: int, stop: int) -> np.ndarray:
            pieces = [part[start:stop] for part in parts]
            whole = pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=1)
            return whole.astype(np.float32, copy=False)

        every = Streamed((self.n_bins, sum(part.shape[1] for part in parts)), np.dtype(np.float32), read)
        ids = np.concatenate([plane["ids"] for plane in loaded])
        self.missing, empty = missing_bins(every)
        if empty.all():
            raise SessionError(f"{planes[0].parent}: no unit is left; use all_units=true")
        if empty.any():
            notes.append(f"Units {ids[empty].tolist()} were left out, because their responses are NaN throughout.")
        if self.missing.any():
            notes.append(f"{int(self.missing.sum())} imaging frames are not valid, because responses are NaN there.")
        kept = np.flatnonzero(~empty)
        self.ids = ids[kept]
        chosen = Streamed((self.n_bins, len(kept)), every.dtype, lambda a, b: every[a:b][:, kept])
        self.responses = chosen if empty.any() else every
        positions = [plane["positions"] for plane in loaded]
        alike = all(p is not None for p in positions) and len({p.shape[1] for p in positions}) == 1
        self.positions = np.concatenate(positions)[kept] if alike else None
        if not alike:
            notes.append("Positions of the units were left out: stat.npy is not read, and positions.npy is missing.")
        labels = {"plane": self.ids // _PLANE} if len(planes) > 1 else {}
        if all(plane["red"] is not None for plane in loaded):
            labels["red"] = np.concatenate([plane["red"] for plane in loaded])[kept]
        self.labels = {key: values.astype(str) for key, values in labels.items()}


def _plane(options: Suite2p, folder: Path, notes: list[str]) -> dict[str, Any]:
    """Responses (T, U) of the units of a plane that are kept, their ids, positions and whether they are red."""
    iscell = _numbers(folder / "iscell.npy")
    source = _numbers(folder / ("spks.npy" if options.responses == "spks" else "F.npy"))
    if source.ndim != 2 or iscell.ndim != 2 or len(iscell) != len(source):
        raise SessionError(
            f"{folder}: iscell.npy is {iscell.shape}, responses are {source.shape}; give (N, 2) and (N, T)"
        )
    rows = np.arange(len(source)) if options.all_units else np.flatnonzero(np.asarray(iscell[:, 0]) > 0.5)
    left = len(source) - len(rows)
    if left:
        notes.append(f"{folder.name}: {left} of {len(source)} units were left out, because iscell.npy says no cell.")
    neuropil = _numbers(folder / "Fneu.npy") if options.responses == "F_corrected" else None
    if neuropil is not None and neuropil.shape != source.shape:
        raise SessionError(f"{folder}: Fneu.npy has the shape {neuropil.shape}, F.npy {source.shape}; they must agree")

    def read(start: int, stop: int) -> np.ndarray:
        part = np.asarray(source[:, start:stop])[rows]
        return (part if neuropil is None else part - options.neuropil * np.asarray(neuropil[:, start:stop])[rows]).T

    number = int(folder.name[5:]) if folder.name.startswith("plane") and folder.name[5:].isdigit() else 0
    beside = {}
    for key in ("positions", "redcell"):
        file = folder / f"{key}.npy"
        beside[key] = np.asarray(_numbers(file)) if file.exists() else None
        if beside[key] is not None and (beside[key].ndim != 2 or len(beside[key]) != len(source)):
            raise SessionError(f"{file}: has the shape {beside[key].shape} for {len(source)} units; give a row a unit")
    return {
        "responses": Streamed((source.shape[1], len(rows)), np.dtype(np.float32), read), "ids": rows + _PLANE * number,
        "positions": None if beside["positions"] is None else beside["positions"][rows].astype(np.float32),
        "red": None if beside["redcell"] is None else (beside["redcell"][rows, 0] > 0.5).astype(int),
    }  # fmt: skip


def _planes(path: Path) -> list[Path]:
    """Folders of planes, in the order of their numbers."""
    if (path / "spks.npy").exists() or (path / "F.npy").exists():
        return [path] if (path / "iscell.npy").exists() else []
    for base in (path / "suite2p", path):
        planes = [p for p in base.glob("plane*") if p.name[5:].isdigit() and (p / "iscell.npy").exists()]
        if planes:
            return sorted(planes, key=lambda plane: int(plane.name[5:]))
    return []


def _root(path: Path) -> Path:
    """The folder of the session, above those that suite2p makes."""
    path = path.absolute()
    while path.name == "suite2p" or (path.name.startswith("plane") and path.name[5:].isdigit()):
        path = path.parent
    return path


def _found(path: Path, places: Sequence[Path], name: str, what: str) -> Path:
    for place in places:
        if (place / name).exists():
            return place / name
    raise SessionError(f"{path}: has no {name}; add it ({what})")


def _numbers(file: Path) -> np.ndarray:
    """An array that stays on the disk; one of Python objects is refused, because reading it could run code."""
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise SessionError(f"{file}: no such file; give suite2p's folder, or another responses=") from None
    except (ValueError, OSError, EOFError) as error:
        raise SessionError(f"{file}: not an array of numbers ({error})") from None
    if array.dtype.kind not in "biuf":
        raise SessionError(f"{file}: holds {array.dtype}; give numbers")
    return array


def _behavior(places: Sequence[Path], units: _Units, notes: list[str]) -> tuple[dict[str, Streamed], np.ndarray]:
    """Signals by name, and the bins in which all are known."""
    signals: dict[str, Streamed] = {}
    known = np.ones(units.n_bins, bool)
    for file in (file for place in places for file in sorted(place.glob("behavior.*.npy"))):
        name, values = file.stem.removeprefix("behavior."), _numbers(file)
        if values.ndim not in (1, 2) or len(values) not in (units.n_bins, units.n_times):
            raise SessionError(
                f"{file}: has the shape {values.shape} for {units.n_bins} imaging frames; sample it at them"
            )
        values = values[: units.n_bins]
        finite = finite_bins(values)
        if not finite.all():
            notes.append(f"Behaviour {name!r}: {int((~finite).sum())} bins are not valid, because it is NaN there.")
        known &= finite
        signals[name] = filled(values, np.float32)
    return signals, known


def _shown(movie: np.ndarray, frame: np.ndarray) -> Streamed:
    """The frame of every bin, grey where it is −1; grey is 127 for uint8 and 0 for other numbers."""
    dtype = np.dtype(np.float32) if movie.dtype == np.float64 else movie.dtype
    grey = _GREY if dtype == np.uint8 else 0

    def read(start: int, stop: int) -> np.ndarray:
        part = frame[start:stop]
        out = movie[np.maximum(part, 0)].astype(dtype)
        out[part < 0] = grey
        return out

    return Streamed((len(frame), *movie.shape[1:]), dtype, read)
