"""Sessions of the Sensorium competitions: one .npy file a trial, in a folder or a zip file a mouse.

The layout as its readers know it: `neuralpredictors.data.datasets` (sinzlab, `FileTreeDataset` and
`MovieFileTreeDataset`), the loaders of ecker-lab/sensorium_2023, and V1T (B. Li), which reads the same files by itself.
"""

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydantic import Field

from ...config import register
from ..session import Session, SessionError
from ..streamed import Streamed
from .base import Format
from .npyfiles import NpyFiles, as_pixels
from .repeats import alike, repeat_ids, sketch
from .tiers import leaks, split_of_tier, tier_notes
from .units import UnitTable, as_text, subject_of_name, unit_table

__all__ = ["Sensorium"]

_KINDS = ("videos", "images")
_SIGNALS = {3: ("pupil_dilation", "pupil_derivative", "running"), 2: ("pupil_dilation", "running")}
_IMAGE_IDS = ("image", "colorframeprojector_image", "frame_image")
_MANY = 1000  # responses of a trial that are never all zero by chance, even where most responses are


@register("format", "sensorium")
class Sensorium(Format):
    """A mouse of the Sensorium competitions of 2022 (images) or 2023 (videos): a folder, or its zip file as downloaded.

    `data/videos/N.npy` (H, W, T), `data/responses/N.npy` (U, T), `data/behavior/N.npy` (2, T) and
    `data/pupil_center/N.npy` (2, T) belong to the trial N. Of images, `data/images/N.npy` (C, H, W), responses (U,),
    behaviour (3,) and pupil (2,). What becomes of them:

    - An image is one bin, a video as many as it has frames before the NaN at its end. Frames become uint8. Every
      file is a trial of its own, read when it is needed; a zip file is not unpacked.
    - Responses are deconvolved calcium signals: real numbers, many of them a little below zero, kept as they are.
    - Where responses were withheld, the files hold zeros. A tier whose responses are all zero is taken as withheld, and
      so is a trial of 1000 responses or more that are all zero; their bins are not valid. The same holds for a tier
      whose behaviour is all zero. Behaviour that is zero everywhere is left out.
    - Bins with NaN in a response or in a signal are not valid; units that are never finite are left out.
    - `behavior` becomes `pupil_dilation`, `pupil_derivative` (images only) and `running`.
    - `meta/trials/tiers.npy` gives the split: `train` trains, `validation` and `oracle` validate, tiers with "test" in
      their name test. Bins of other tiers ("none") are not valid. The notes say which stimuli stand in two splits.
    - Images of equal class and id (`frame_image_id`, `colorframeprojector_image_id`) are repeats. Without ids, and for
      videos, presentations are compared: repeats may differ by a grey level in a pixel.
    - `meta/neurons`: `unit_ids`, `cell_motor_coordinates` (positions in µm), and every array with a value a unit as a
      label. The standard deviation by which the competition divides responses, `meta/statistics/responses/all/std`, is
      the label `response_std`. Nothing is divided here.
    - The subject is the first number of the folder's name: 29156 of `dynamic29156-11-10-Video-8744…`.
    - Videos have 30 bins a second. For images, `bin_rate` is the number of presentations a second: that of
      `meta/trials/*presentation_time` and `*pre_blank_period`, else 1, which the notes say.
    """

    bin_rate: float | None = Field(
        None, gt=0, description="Bins a second, Hz. Default: 30 for videos; for images, presentations a second."
    )

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """A folder or zip file that holds `meta/trials` beside `data/videos` or `data/images`."""
        if not path.is_dir() and path.suffix != ".zip":
            return False
        try:
            files = NpyFiles(path, "meta/trials")
        except SessionError:
            return False
        return files.exists("meta/trials") and any(files.exists(f"data/{kind}") for kind in _KINDS)

    def read(self, path: Path) -> Session:
        """The session; see :class:`Format`."""
        files = NpyFiles(path, "meta")
        kind = next((kind for kind in _KINDS if files.exists(f"data/{kind}")), None)
        if kind is None:
            raise SessionError(f"{path}: has neither data/images nor data/videos; give the folder or zip of one mouse")
        source = Path(files.root.rstrip("/") or path).stem if path.is_file() else Path(path, files.root).resolve().name
        trials = _trials(files, kind)
        signals = _Signals.read(files, kind, trials)
        units = np.flatnonzero(signals.finite_units)
        keys = _stimuli(files, kind, trials)
        splits = [split_of_tier(tier) for tier in trials.tiers]
        rate, rate_notes = (self.bin_rate, []) if self.bin_rate else _rate(files, kind)
        table = _units(files, signals.n_units, units)
        subject, subject_notes = _subject(files, source)
        bounds = np.repeat(np.arange(len(trials.numbers)), trials.lengths)
        return Session(
            name=self.name or source,
            subject=self.subject or subject,
            bin_rate=rate,
            stimulus=Streamed.of_parts(trials.lengths, lambda n: _frames(files, kind, trials, n), trials.like),
            responses=Streamed.of_parts(
                trials.lengths,
                lambda n: np.nan_to_num(_bins(files, "responses", kind, trials, n, signals.n_units)[:, units]),
                np.zeros(len(units), np.float32),
            ),
            behavior=signals.behavior,
            valid=signals.valid & np.concatenate(trials.shown) & np.asarray([s != "" for s in splits])[bounds],
            trial=np.asarray(trials.numbers)[bounds],
            repeat_id=repeat_ids(keys, trials.lengths),
            split=np.asarray(splits)[bounds],
            stimulus_type=kind,
            unit_ids=table.ids,
            unit_positions=table.positions,
            unit_labels=table.labels,
            notes=[
                *trials.notes, *signals.notes, *table.notes, *tier_notes(trials.tiers), *leaks(keys, splits, kind),
                *rate_notes, *subject_notes,
            ],
        )  # fmt: skip


@dataclass
class _Trials:
    """The trials that have a stimulus, in the order of their numbers."""

    numbers: list[int]
    tiers: list[str]
    shown: list[np.ndarray]
    """(T,) bool a trial: whether there is a frame, up to the last one."""
    like: np.ndarray
    notes: list[str]

    @property
    def lengths(self) -> list[int]:
        return [len(shown) for shown in self.shown]


def _trials(files: NpyFiles, kind: str) -> _Trials:
    tiers = files.load("meta/trials/tiers.npy").astype(str)
    there = {int(stem): stem for stem in files.stems(f"data/{kind}") if stem.isdigit()}
    numbers = sorted(number for number in there if number < len(tiers))
    notes = []
    if not numbers:
        raise SessionError(f"{files.path}: data/{kind} holds no trial of the {len(tiers)} in meta/trials/tiers.npy")
    if len(there) > len(numbers):
        notes.append(f"{len(there) - len(numbers)} files of data/{kind} are left out: meta/trials has no row for them.")
    if len(tiers) > len(numbers):
        notes.append(
            f"{len(tiers) - len(numbers)} trials of meta/trials are left out: data/{kind} has no file of them."
        )
    shown = [_shown(files, kind, number) for number in numbers]
    inside = sum(int((~part).sum()) for part in shown)
    if inside:
        notes.append(f"{inside} bins are not valid, because their frame is NaN though the video goes on after it.")
    trials = _Trials(numbers, [str(tiers[number]) for number in numbers], shown, np.empty(0), notes)
    trials.like = np.zeros(_load_frames(files, kind, trials, 0).shape[1:], np.uint8)
    return trials


def _shown(files: NpyFiles, kind: str, number: int) -> np.ndarray:
    """Whether there is a frame in each bin, up to the last frame; NaN fills videos up to a common length."""
    if kind == "images":
        return np.ones(1, bool)
    name = f"data/{kind}/{number}.npy"
    pixel = files.last_axis(name)
    shown = ~np.isnan(pixel) if pixel.dtype.kind == "f" else np.ones(len(pixel), bool)
    if not shown.any():
        raise SessionError(f"{files.where(name)}: every frame is NaN; remove the trial, or download the file again")
    return shown[: np.flatnonzero(shown)[-1] + 1]


def _load_frames(files: NpyFiles, kind: str, trials: _Trials, index: int) -> np.ndarray:
    """Frames of a trial, (T, H, W) or (T, C, H, W) uint8."""
    name = f"data/{kind}/{trials.numbers[index]}.npy"
    values, shown = files.load(name), trials.shown[index]
    axes = {"videos": (3, 4), "images": (2, 3)}[kind]
    if values.ndim not in axes:
        expected = "(H, W, T)" if kind == "videos" else "(C, H, W)"
        raise SessionError(f"{files.where(name)}: has shape {values.shape} where {expected} is expected")
    frames = np.moveaxis(values, -1, 0)[: len(shown)] if kind == "videos" else values[None]
    if frames.ndim == 4 and frames.shape[1] == 1:
        frames = frames[:, 0]
    if frames.dtype.kind == "f":
        if np.isnan(frames[shown]).any():
            raise SessionError(f"{files.where(name)}: holds NaN inside of a frame; only whole frames may be NaN")
        frames = np.where(shown.reshape(-1, *(1,) * (frames.ndim - 1)), frames, 0)
    return np.ascontiguousarray(as_pixels(frames, files.where(name)))


def _frames(files: NpyFiles, kind: str, trials: _Trials, index: int) -> np.ndarray:
    frames = _load_frames(files, kind, trials, index)
    if frames.shape[1:] != trials.like.shape:
        raise SessionError(
            f"{files.where(f'data/{kind}/{trials.numbers[index]}.npy')}: frames of {frames.shape[1:]} where the first "
            f"trial has {trials.like.shape}; bring all trials to one size"
        )
    return frames


def _bins(files: NpyFiles, signal: str, kind: str, trials: _Trials, index: int, width: int | None) -> np.ndarray:
    """A signal of a trial, (T, width) float32; NaN where the file, or the end of it, is missing."""
    name, length = f"data/{signal}/{trials.numbers[index]}.npy", trials.lengths[index]
    if not files.exists(name):
        return np.full((length, width or 0), np.nan, np.float32)
    values = files.load(name)
    values = values.reshape(1, -1) if kind == "images" else np.atleast_2d(values).T
    if width is not None and values.shape[1] != width:
        raise SessionError(f"{files.where(name)}: has {values.shape[1]} rows where other trials have {width}")
    if values.dtype.kind not in "biuf":
        raise SessionError(f"{files.where(name)}: holds {values.dtype}; give numbers")
    bins = np.full((length, values.shape[1]), np.nan, np.float32)
    bins[: len(values)] = values[:length]
    return bins


@dataclass
class _Signals:
    """What one pass over all trials finds out about responses and behaviour."""

    n_units: int
    finite_units: np.ndarray
    valid: np.ndarray
    behavior: dict[str, np.ndarray]
    notes: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, files: NpyFiles, kind: str, trials: _Trials) -> "_Signals":
        stems = files.stems("data/responses")
        first = next((n for n, number in enumerate(trials.numbers) if str(number) in stems), None)
        if first is None:
            raise SessionError(f"{files.path}: data/responses is missing or empty; a session needs responses")
        n_units = _bins(files, "responses", kind, trials, first, None).shape[1]
        finite_units, zero, unknown = np.zeros(n_units, bool), [], []
        for index in range(len(trials.numbers)):
            bins = _bins(files, "responses", kind, trials, index, n_units)
            finite = np.isfinite(bins)
            finite_units |= finite.any(axis=0)
            zero.append(not bins[finite].any())
            unknown.append((~finite).sum(axis=1))
        notes = []
        withheld = _withheld(trials, np.asarray(zero), n_units)
        if withheld.all():
            raise SessionError(f"{files.path}: all responses are zero or missing; the file that holds them is needed")
        for tier, count in Counter(np.asarray(trials.tiers)[withheld]).items():
            notes.append(
                f"The bins of {count} trials of the tier {str(tier)!r} are not valid, because their responses were "
                "withheld: they are zero or missing."
            )
        dead = int((~finite_units).sum())
        if dead:
            notes.append(f"{dead} units are left out, because their responses are NaN in every bin.")
        # Units that are left out are unknown in every bin, so a bin is whole where as many are unknown as are left out.
        recorded = ~np.repeat(withheld, trials.lengths)
        whole = np.concatenate(unknown) == dead
        lost = int((recorded & ~whole).sum())
        if lost:
            notes.append(f"{lost} bins are not valid, because a response in them is NaN or missing.")
        behavior, seen, more = _behavior(files, kind, trials, withheld)
        return cls(n_units, finite_units, recorded & whole & seen, behavior, [*notes, *more])


def _withheld(trials: _Trials, zero: np.ndarray, width: int) -> np.ndarray:
    """(N,) bool: trials of tiers that are zero throughout, and long trials that are."""
    tiers = np.asarray(trials.tiers)
    whole = {tier for tier in np.unique(tiers) if zero[tiers == tier].all()}
    return zero & (np.isin(tiers, list(whole)) | (np.asarray(trials.lengths) * width >= _MANY))


def _behavior(
    files: NpyFiles, kind: str, trials: _Trials, withheld: np.ndarray
) -> tuple[dict[str, np.ndarray], np.ndarray, list[str]]:
    """Signals by name, which bins have all of them, and notes."""
    behavior: dict[str, np.ndarray] = {}
    notes: list[str] = []
    valid = np.ones(sum(trials.lengths), bool)
    for signal in ("behavior", "pupil_center"):
        present = [n for n, number in enumerate(trials.numbers) if files.exists(f"data/{signal}/{number}.npy")]
        if not present:
            continue
        width = _bins(files, signal, kind, trials, present[0], None).shape[1]
        parts = [_bins(files, signal, kind, trials, n, width) for n in range(len(trials.numbers))]
        zero = np.asarray([not np.nan_to_num(part).any() for part in parts])
        if zero.all():
            notes.append(f"data/{signal} is left out, because it was withheld: it is zero in every trial.")
            continue
        tiers = np.asarray(trials.tiers)
        for tier in np.unique(tiers[~withheld]):
            if zero[tiers == tier].all():
                notes.append(f"The bins of the tier {str(tier)!r} are not valid, because data/{signal} was withheld.")
                for n in np.flatnonzero(tiers == tier):
                    parts[n][:] = np.nan
        values = np.concatenate(parts)
        finite = np.isfinite(values).all(axis=1)
        lost = int((~finite & ~np.repeat(withheld, trials.lengths)).sum())
        if lost:
            notes.append(f"{lost} bins are not valid, because data/{signal} is NaN or missing in them.")
        valid &= finite
        values = np.nan_to_num(values)
        names = _SIGNALS.get(width) if signal == "behavior" else None
        behavior |= {signal: values} if names is None else dict(zip(names, values.T.copy(), strict=True))
    return behavior, valid, notes


def _stimuli(files: NpyFiles, kind: str, trials: _Trials) -> list[Hashable]:
    """What each trial showed: the class and id of its image, else the number of the first trial alike."""
    if kind == "images":
        for prefix in _IMAGE_IDS:
            if files.exists(f"meta/trials/{prefix}_id.npy"):
                ids = _of_trials(files, f"meta/trials/{prefix}_id.npy", trials)
                name = f"meta/trials/{prefix}_class.npy"
                classes = _of_trials(files, name, trials) if files.exists(name) else [""] * len(ids)
                return list(zip(classes, ids, strict=True))
    sketches = [sketch(_frames(files, kind, trials, index)) for index in range(len(trials.numbers))]
    return list(alike(sketches, lambda index: _frames(files, kind, trials, index)))


def _of_trials(files: NpyFiles, name: str, trials: _Trials) -> list[str]:
    values = files.load(name)
    if values.ndim != 1 or len(values) <= trials.numbers[-1]:
        raise SessionError(f"{files.where(name)}: has shape {values.shape}; one value for each trial is expected")
    return [str(values[number]) for number in trials.numbers]


def _rate(files: NpyFiles, kind: str) -> tuple[float, list[str]]:
    if kind == "videos":
        return 30.0, []
    for prefix in ("frame", "colorframeprojector", ""):
        names = [
            f"meta/trials/{prefix}_{part}.npy".replace("/_", "/") for part in ("presentation_time", "pre_blank_period")
        ]
        if all(files.exists(name) for name in names):
            period = sum(np.asarray(files.load(name), np.float64) for name in names)
            if np.isfinite(period).all() and np.median(period) > 0:
                return float(1 / np.median(period)), []
    return 1.0, ["The presentations a second are not known and are taken as 1; give --bin_rate where they matter."]


def _units(files: NpyFiles, n_units: int, kept: np.ndarray) -> UnitTable:
    properties = {stem: files.load(f"meta/neurons/{stem}.npy") for stem in files.stems("meta/neurons")}
    table = unit_table(properties, n_units, kept, files.where("meta/neurons"))
    name = "meta/statistics/responses/all/std.npy"
    if files.exists(name):
        std = files.load(name).reshape(-1)
        if len(std) == n_units:
            table.labels["response_std"] = np.asarray([f"{value:.6g}" for value in std[kept]])
        else:
            table.notes.append(f"{name} is left out: it has {len(std)} values for {n_units} units.")
    return table


def _subject(files: NpyFiles, source: str) -> tuple[str, list[str]]:
    """The first number of a name such as static29156-11-10-…, else the one animal of meta/neurons."""
    named, name = subject_of_name(source), "meta/neurons/animal_ids.npy"
    animals = set(as_text(np.atleast_1d(files.load(name))).tolist()) if files.exists(name) else set()
    if not named:
        return (animals.pop() if len(animals) == 1 else ""), []
    other = ", ".join(sorted(animals - {named}))
    return named, [f"The name says that the subject is {named}, {name} says {other}."] if other else []
