"""Recordings of gaze-contingent stimuli in the `.dset` layout: one torch archive a stimulus type."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from ...config import nearest, register
from ..labels import Coded
from ..session import Session, SessionError, whole_numbers
from ..streamed import Streamed
from .base import Format
from .dset_archive import as_array, open_dset, plain
from .dset_companions import read_missing_pct, read_saccades
from .streams import bins_per_second, filled, finite_bins, joined, missing_bins

__all__ = ["Dset"]

_NEEDED = ("stim", "robs", "t_bins", "trial_inds")
_IDS = ("cluster_ids", "cids")
_GAZE = ("eyepos", "dpi_pix")
_USED = (*_NEEDED, "dpi_valid", "psth_inds")
_WIDEST = 64  # values a bin of an unknown covariate that is still taken as behaviour


@register("format", "dset")
class Dset(Format):
    """A folder SESSION with `datasets/TYPE.dset`, or one such file.

    Every file is a `torch.save` archive of ``{"covariates": {name: tensor}, "metadata": dict}``, all covariates with
    the T bins first. All types become one session, one after the other in the order of their names.

    ==========================  =====================================================================================
    in the file                 in the session
    ==========================  =====================================================================================
    name of the file            `stimulus_type`
    stim (T, H, W)              `stimulus`
    robs (T, U)                 `responses`; NaN becomes 0 and makes the bin invalid
    t_bins (T,), s, centres     `time` (the start of each bin) and `bin_rate`; a jump in time is a gap
    trial_inds (T,)             `trial`; where types use the same numbers, those of later types are shifted
    dpi_valid (T,)              `valid` where above 0
    eyepos, dpi_pix (T, 2)      behaviour of the same names; bins where they are NaN are not valid
    roi, stim_phase, sf, ori    behaviour of the same names, 0 in the types that lack them
    psth_inds (T,)              `repeat_id` where 0 or more
    other covariates            behaviour, if they are numbers of at most 64 values a bin
    metadata ppd                `pixels_per_degree`
    metadata cluster_ids, cids  `unit_ids`; without it a unit's id is its column, counted from 0
    metadata depth_um, region   `unit_positions`, `unit_labels["area"]`
    qc/.../truncation.npz       `missing_pct`
    saccades/saccades.json      behaviour `saccade`: 1 in bins that overlap one
    ==========================  =====================================================================================

    The numbers of eye-gaze signals are kept in their units (degrees, pixels of the tracker). Because the stimulus is
    cut out around the gaze, repeats of a sequence (`psth_inds`) share the sequence, not every pixel.
    """

    types: tuple[str, ...] = Field((), description="Stimulus types to read, in this order. Default: all.")
    eye: str = Field("", description="Folder below `datasets`, such as left_eye, where there are several.")
    unit_ids: Literal["auto", "columns", "cluster_ids"] = Field(
        "auto", description="What a unit's id is. auto: metadata's cluster_ids where there are, else its column."
    )
    truncation: str = Field("", description="truncation.npz, relative to the session, where there are several.")

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """A .dset file, a folder with some, or the folder of a session with some below `datasets`."""
        return path.suffix == ".dset" if path.is_file() else any(path.glob("*.dset")) or bool(_eyes(path))

    def read(self, path: Path) -> Session:
        """The session; see :class:`Format`."""
        files = self._files(path)
        parts = [_Part.open(kind, file) for kind, file in files.items()]
        notes = [note for part in parts for note in part.notes]
        folder = _session_folder(path.absolute())
        rate = _common_rate(parts, self.bin_rate)
        ids = _Units(parts, self.unit_ids, notes)
        responses, valid = ids.responses(parts, notes)
        time = np.concatenate([np.asarray(part.covariates["t_bins"], np.float64) for part in parts]) - 0.5 / rate
        behavior, gaze_known = _behavior(parts, notes)
        lengths = [part.n_bins for part in parts]
        signals: dict[str, Any] = dict(behavior)
        missing = None
        if folder is not None:
            saccade = read_saccades(folder, time, lengths, 1 / rate, notes)
            signals |= {} if saccade is None else {"saccade": saccade}
            missing = read_missing_pct(folder, self.truncation, ids.ids, time, notes)
        return Session(
            name=self.name or (folder.name if folder is not None else path.stem), subject=self.subject,
            stimulus=_stimulus(parts), responses=responses, bin_rate=rate, unit_ids=ids.ids, behavior=signals,
            trial=_trials(parts, notes), valid=valid & gaze_known & _tracked(parts, notes), time=time,
            stimulus_type=Coded.of_runs(list(files), lengths), repeat_id=_repeats(parts), missing_pct=missing,
            unit_positions=ids.positions(parts, notes), unit_labels=ids.labels(parts, notes),
            pixels_per_degree=_pixels_per_degree(parts, notes), info=_info(parts), notes=notes,
        )  # fmt: skip

    def _files(self, path: Path) -> dict[str, Path]:
        """The files of a session by stimulus type."""
        if path.is_file():
            return {path.stem: path}
        folder = path
        if not any(path.glob("*.dset")):
            eyes = _eyes(path)
            names = [eye.name for eye in eyes]
            if self.eye and self.eye not in names:
                raise SessionError(f"{path}: has no folder {self.eye!r} with .dset files; {nearest(self.eye, names)}")
            chosen = [eye for eye in eyes if eye.name == self.eye] if self.eye else eyes
            if len(chosen) != 1:
                raise SessionError(
                    f"{path}: {f'.dset files lie in {names}; choose one with eye=' if names else 'holds no .dset file'}"
                )
            folder = chosen[0]
        found = {file.stem: file for file in sorted(folder.glob("*.dset"))}
        for kind in self.types:
            if kind not in found:
                raise SessionError(f"{path}: has no stimulus type {kind!r}; {nearest(kind, list(found))}")
        return {kind: found[kind] for kind in self.types or found}


@dataclass
class _Part:
    """One file: its covariates with T rows each."""

    kind: str
    path: Path
    covariates: dict[str, Any]
    metadata: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    @classmethod
    def open(cls, kind: str, path: Path) -> "_Part":
        raw, metadata = open_dset(path)
        part = cls(kind, path, {}, metadata)
        for key in _NEEDED:
            if key not in raw:
                raise SessionError(f"{path}: has no covariate {key!r} (it has {', '.join(raw) or 'none'})")
        stimulus = as_array(path, "stim", raw["stim"])
        if stimulus is None or not stimulus.shape:
            raise SessionError(f"{path}: stim is no array of frames; give a tensor (T, H, W)")
        for key, value in raw.items():
            array, reason = as_array(path, key, value), ""
            if array is None:
                reason = f"it is a {type(value).__name__}, not numbers"
            elif not array.shape or len(array) != len(stimulus):
                reason = f"it has the shape {tuple(array.shape)} where the stimulus has {len(stimulus)} bins"
            elif key not in _USED and int(np.prod(array.shape[1:])) > _WIDEST:
                reason = (
                    f"it has {int(np.prod(array.shape[1:]))} values a bin, and more than {_WIDEST} are no behaviour"
                )
            if reason and key in _USED:
                raise SessionError(f"{path}: covariate {key!r} cannot be used: {reason}")
            if reason:
                part.notes.append(f"{kind}: covariate {key!r} was left out, because {reason}.")
            else:
                part.covariates[key] = array
        if np.ndim(part.covariates["robs"]) != 2:
            raise SessionError(f"{path}: robs have the shape {part.covariates['robs'].shape}; give (T, U)")
        if not np.isfinite(np.asarray(part.covariates["t_bins"])).all():
            raise SessionError(f"{path}: t_bins hold NaN; give the middle of every bin in s")
        return part

    @property
    def n_bins(self) -> int:
        return len(self.covariates["stim"])


class _Units:
    """Which units a session has: those of all files, found by their ids."""

    def __init__(self, parts: Sequence[_Part], kind: str, notes: list[str]) -> None:
        self._own = [_unit_ids(part, kind) for part in parts]
        common = set.intersection(*(set(own.tolist()) for own in self._own))
        for part, own in zip(parts, self._own, strict=True):
            absent = [unit for unit in own.tolist() if unit not in common]
            if absent:
                notes.append(f"{part.kind}: units {absent} were left out, because another stimulus type lacks them.")
        kept = np.array([unit for unit in self._own[0].tolist() if unit in common], np.int64)
        if not len(kept):
            raise SessionError(f"{parts[0].path}: no unit is in all of {[part.kind for part in parts]}; choose types")
        self.ids = kept

    def columns(self, number: int) -> np.ndarray:
        """Columns of the session's units in a file."""
        place = {unit: column for column, unit in enumerate(self._own[number].tolist())}
        return np.array([place[unit] for unit in self.ids.tolist()])

    def responses(self, parts: Sequence[_Part], notes: list[str]) -> tuple[Streamed, np.ndarray]:
        """Responses of all files and the bins in which all are known; units without any are dropped."""

        def chosen(number: int, part: _Part) -> Streamed:
            robs, columns = part.covariates["robs"], self.columns(number)
            return Streamed((len(robs), len(columns)), robs.dtype, lambda a, b: np.asarray(robs[a:b])[:, columns])

        missing, empty = missing_bins(joined([chosen(*item) for item in enumerate(parts)]))
        if empty.all():
            raise SessionError(f"{parts[0].path}: robs hold no number")
        if empty.any():
            notes.append(f"Units {self.ids[empty].tolist()} were left out, because their responses are NaN throughout.")
            self.ids = self.ids[~empty]
        if missing.any():
            notes.append(f"{int(missing.sum())} bins are not valid, because responses are NaN there.")
        return filled(joined([chosen(*item) for item in enumerate(parts)])), ~missing

    def _per_unit(self, parts: Sequence[_Part], key: str, notes: list[str]) -> np.ndarray | None:
        for number, part in enumerate(parts):
            value = part.metadata.get(key)
            if value is None:
                continue
            n_units = len(self._own[number])
            values = np.full(n_units, value) if isinstance(value, str) else np.asarray(plain(value))
            if len(values.reshape(-1)) == n_units and values.dtype.kind in "biufU":
                return values.reshape(-1)[self.columns(number)]
            notes.append(f"{part.kind}: metadata {key!r} were left out, because they are not one value a unit.")
        return None

    def positions(self, parts: Sequence[_Part], notes: list[str]) -> np.ndarray | None:
        """Depths, (U, 1) in µm."""
        depth = self._per_unit(parts, "depth_um", notes)
        if depth is None or depth.dtype.kind == "U":
            return None
        if not np.isfinite(depth.astype(np.float64)).all():
            notes.append("Depths of the units were left out, because some are NaN.")
            return None
        return depth.astype(np.float32)[:, None]

    def labels(self, parts: Sequence[_Part], notes: list[str]) -> dict[str, np.ndarray]:
        """Area and quality of the units, where known."""
        found = {"area": self._per_unit(parts, "region", notes), "quality": self._per_unit(parts, "quality", notes)}
        return {key: values.astype(str) for key, values in found.items() if values is not None}


def _unit_ids(part: _Part, kind: str) -> np.ndarray:
    n_units = part.covariates["robs"].shape[1]
    listed = next((part.metadata[key] for key in _IDS if part.metadata.get(key) is not None), None)
    if kind == "columns" or (kind == "auto" and listed is None):
        return np.arange(n_units)
    if listed is None:
        raise SessionError(f"{part.path}: its metadata list no cluster_ids; use unit_ids=columns")
    ids = whole_numbers(np.asarray(plain(listed)).reshape(-1), f"{part.path}: cluster_ids")
    if len(ids) != n_units or len(np.unique(ids)) != n_units:
        raise SessionError(
            f"{part.path}: lists {len(np.unique(ids))} different cluster_ids for {n_units} columns of robs; correct "
            "them, or use unit_ids=columns"
        )
    return ids


def _stimulus(parts: Sequence[_Part]) -> Any:
    shapes = {part.kind: tuple(part.covariates["stim"].shape[1:]) for part in parts}
    if len(set(shapes.values())) > 1:
        raise SessionError(f"{parts[0].path.parent}: frames differ in shape, {shapes}; choose with types=")
    if len(parts) == 1:
        return parts[0].covariates["stim"]
    kinds = {part.kind: str(part.covariates["stim"].dtype) for part in parts}
    if len(set(kinds.values())) > 1:
        raise SessionError(f"{parts[0].path.parent}: frames differ in type, {kinds}; save them alike, or choose types=")
    return joined([part.covariates["stim"] for part in parts])


def _common_rate(parts: Sequence[_Part], given: float | None) -> float:
    rates = {
        part.kind: given
        if given and part.n_bins < 2
        else bins_per_second(part.covariates["t_bins"], f"{part.path}: t_bins")
        for part in parts
    }
    slowest, fastest = min(rates.values()), max(rates.values())
    if fastest - slowest > 1e-3 * fastest:
        raise SessionError(f"{parts[0].path.parent}: types differ in bins a second, {rates}; choose with types=")
    return float(np.median(list(rates.values())))


def _trials(parts: Sequence[_Part], notes: list[str]) -> np.ndarray:
    own = []
    for part in parts:
        values = np.asarray(part.covariates["trial_inds"]).reshape(part.n_bins, -1)[:, 0]
        known = np.isfinite(values)
        if not known.all():
            notes.append(f"{part.kind}: {int((~known).sum())} bins lie in no trial, because trial_inds is NaN there.")
        ids = whole_numbers(np.where(known, values, -1), f"{part.path}: trial_inds")
        own.append(np.maximum(ids, -1))
    seen = np.concatenate([np.unique(ids[ids >= 0]) for ids in own])
    if len(np.unique(seen)) < len(seen):
        offset = 0
        for number, part in enumerate(parts):
            inside = own[number] >= 0
            own[number] = np.where(inside, own[number] + offset, -1)
            if offset and inside.any():
                notes.append(f"{part.kind}: {offset} was added to its trial numbers, which other types use as well.")
            offset = max(offset, int(own[number].max()) + 1)
    return np.concatenate(own)


def _repeats(parts: Sequence[_Part]) -> np.ndarray:
    ids, offset = [], 0
    for part in parts:
        own = np.full(part.n_bins, -1, np.int64)
        if "psth_inds" in part.covariates:
            values = np.asarray(part.covariates["psth_inds"]).reshape(part.n_bins, -1)[:, 0]
            inside = np.isfinite(values) & (values >= 0)
            own[inside] = whole_numbers(values[inside], f"{part.path}: psth_inds") + offset
            offset = max(offset, int(own.max()) + 1)
        ids.append(own)
    return np.concatenate(ids)


def _tracked(parts: Sequence[_Part], notes: list[str]) -> np.ndarray:
    found = []
    for part in parts:
        if "dpi_valid" in part.covariates:
            tracked = (np.asarray(part.covariates["dpi_valid"]).reshape(part.n_bins, -1) > 0).all(axis=1)
            if not tracked.all():
                notes.append(f"{part.kind}: {int((~tracked).sum())} bins are not valid: the gaze was lost (dpi_valid).")
        else:
            tracked = np.ones(part.n_bins, bool)
            notes.append(f"{part.kind}: has no dpi_valid, so the gaze counts as tracked throughout.")
        found.append(tracked)
    return np.concatenate(found)


def _behavior(parts: Sequence[_Part], notes: list[str]) -> tuple[dict[str, Streamed], np.ndarray]:
    """Behaviour by name, and the bins in which the gaze is known."""
    keys = dict.fromkeys(key for part in parts for key in part.covariates if key not in _USED)
    signals, known = {}, np.ones(sum(part.n_bins for part in parts), bool)
    for key in keys:
        having = [part for part in parts if key in part.covariates]
        rows = {tuple(part.covariates[key].shape[1:]) for part in having}
        if len(rows) > 1:
            notes.append(f"Covariate {key!r} was left out, because its shape differs between stimulus types.")
            continue
        row = (int(np.prod(rows.pop())),)
        row = () if row == (1,) else row
        arrays = [_flat(part.covariates[key], row) if part in having else _zeros(part.n_bins, row) for part in parts]
        lacking = [part.kind for part in parts if part not in having]
        if lacking:
            notes.append(f"Behaviour {key!r} is 0 in {', '.join(lacking)}, which lack it.")
        finite = finite_bins(joined(arrays))
        if key in _GAZE:
            known &= finite
            reason = "bins are not valid, because it is NaN there"
        else:
            reason = "bins are 0 where it is NaN"
        if not finite.all():
            notes.append(f"Behaviour {key!r}: {int((~finite).sum())} {reason}.")
        signals[key] = filled(joined(arrays), np.float32)
    return signals, known


def _flat(array: Any, row: tuple[int, ...]) -> Streamed:
    """A signal with its axes after the first as one."""
    return Streamed(
        (len(array), *row), np.dtype(array.dtype), lambda a, b: np.asarray(array[a:b]).reshape(-1, *row)
    )  # fmt: skip


def _zeros(n_bins: int, row: tuple[int, ...]) -> Streamed:
    return Streamed((n_bins, *row), np.dtype(np.float32), lambda a, b: np.zeros((b - a, *row), np.float32))


def _pixels_per_degree(parts: Sequence[_Part], notes: list[str]) -> float | None:
    known = {part.kind: float(plain(part.metadata["ppd"])) for part in parts if part.metadata.get("ppd") is not None}
    if len(set(known.values())) > 1:
        notes.append(f"Pixels per degree were left out, because they differ between stimulus types: {known}.")
        return None
    return next(iter(known.values()), None)


def _info(parts: Sequence[_Part]) -> dict[str, str]:
    """Metadata that are one number or text; as TYPE.key where the types differ."""
    texts: dict[str, dict[str, str]] = {}
    for part in parts:
        for key, value in part.metadata.items():
            value = value.item() if isinstance(value, np.generic) else value
            if isinstance(value, str | int | float | bool) and key not in ("ppd", "region"):
                texts.setdefault(key, {})[part.kind] = str(value)
    info = {}
    for key, by_kind in texts.items():
        if len(set(by_kind.values())) == 1:
            info[key] = next(iter(by_kind.values()))
        else:
            info |= {f"{kind}.{key}": text for kind, text in by_kind.items()}
    return info


def _session_folder(path: Path) -> Path | None:
    """The folder of the session to which a path belongs; None for a file that lies in no such folder."""
    if not (path / "datasets").is_dir():
        for place in (path, *path.parents[:2]):
            if place.name == "datasets":
                return place.parent
    return path if path.is_dir() else None


def _eyes(path: Path) -> list[Path]:
    """Folders of a session that hold .dset files: `datasets` itself, or the folders below it."""
    places = [path / "datasets", *sorted(p for p in (path / "datasets").glob("*") if p.is_dir())]
    if path.name == "datasets":
        places = sorted(p for p in path.glob("*") if p.is_dir())
    return [place for place in places if any(place.glob("*.dset"))]
