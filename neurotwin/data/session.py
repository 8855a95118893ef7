"""One recording session: what was shown, what the units did, how the animal behaved."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from ..tensorfile import TensorFileError, blocks, format_fault, load_arrays, save_arrays
from .fields import (
    SessionError,
    as_array,
    as_booleans,
    as_float32,
    as_ids,
    as_mapping,
    as_names,
    as_text,
    naming,
    number_trials,
    shortened,
    whole_numbers,
)
from .labels import BinLabels, Coded

__all__ = ["SPLITS", "Session", "SessionError", "frame_shape", "whole_numbers"]

SPLITS = ("train", "val", "test")
_FORMAT = "neurotwin-session-2"
_LARGEST = 1e7  # of a response: no unit spikes so often in a bin, and float32 sums lose their digits
_LARGEST_RATE = 1e9  # Hz; nothing is binned so finely
_PER_BIN = ("exposure", "true_rate", "missing_pct")


@dataclass(kw_only=True, eq=False)
class Session:
    """One recording session on a common clock of T bins.

    Movies and single images are alike: an image is one bin, usually a trial of its own. Arrays may be memory-mapped or
    :class:`Streamed`; nothing here copies the stimulus.

    Parameters
    ----------
    name
        Name of the session, also of its file.
    stimulus
        What was shown in each bin, uint8, float16 or float32: (T,) a full field, (T, F) a row of bars or the bands of a
        spectrogram, (T, H, W) frames, (T, C, H, W) frames of several channels.
    responses
        (T, U): what every unit did in every bin. Spike counts, or real numbers such as dF/F or deconvolved calcium,
        which may lie below zero.
    bin_rate
        Bins a second, in Hz. For single images: presentations a second.
    unit_ids
        (U,) ids that `cids` of a dataset config refers to: 64-bit whole numbers, or text. Default 0 to U−1.
    behavior
        Signals by name, each (T,) or (T, K), float32.
    trial
        (T,) trial of every bin: 64-bit whole numbers, of which negative ones mean between trials (never predicted,
        never context); or text, which is numbered in the order of appearance. Default: one trial. Bins of equal trial
        always land in the same split, also where they are not adjacent.
    valid
        (T,) bool: false where the gaze was lost, the responses were withheld, or the bin must not be used. Default all
        true.
    stimulus_type
        One name for all, or (T,) names.
    repeat_id
        (T,) int: bins of equal id ≥ 0 saw the same frame after the same recent past, that is, they are repeats of
        one another. Negative: shown once. Default all −1.
    time
        (T,) float64: start of each bin in s. Only needed where the recording has gaps.
    exposure
        (T,) float32: number of presentations over which a bin's responses are summed. Loss and metrics use
        exposure × rate.
    split
        (T,) names of the split ("train", "val", "test", or "" for none): overrides the drawn split.
    true_rate
        (T, U) float32: expected response per bin, where the data are simulated.
    missing_pct
        (T, U) float32: estimated percentage of spikes lost to the detection threshold.
    unit_positions
        (U, D) float32: coordinates of the units (cortical or in retinotopic space).
    unit_labels
        Labels of the units by name (`area`, `quality`, `layer`), each (U,) text, by which `units` of a dataset config
        selects.
    pixels_per_degree
        Pixels of the stimulus per degree of visual angle, where known.
    scenes
        Pictures (H, W) uint8, at the pixels of the stimulus, through which the stimulus is a window that moves with the
        gaze. With `scene`, `scene_offset`, `pixels_per_degree` and the behaviour signal `eyepos`, the stimulus can be
        computed for any other gaze.
    scene
        (T,) index into `scenes` of the picture behind each bin; negative for none.
    scene_offset
        (2,) degrees, right and up, from the gaze to the middle of the window. The picture's middle is where gaze and
        offset are 0.
    subject
        Subject; default the name up to the first underscore.
    info
        Free text labels (`lab`, `eye`, a citation).
    notes
        What whoever reads the session should know: what a conversion left out, and why.

    Raises
    ------
    SessionError
        If the arrays do not agree with one another, or hold what cannot be stored as it is; the message says which, and
        what to do.

    Examples
    --------
    >>> movie = np.zeros((100, 16, 16), np.uint8)
    >>> counts = np.ones((100, 3), np.uint8)
    >>> session = Session(name="ada_0501", stimulus=movie, responses=counts, bin_rate=60.0)
    >>> session
    Session 'ada_0501' of ada: 3 units, 100 bins at 60 Hz (1.7 s), frames 1x16x16, types movie
    """

    name: str
    stimulus: np.ndarray
    responses: np.ndarray
    bin_rate: float
    unit_ids: np.ndarray | Sequence[int] | Sequence[str] | None = None
    behavior: Mapping[str, np.ndarray] = field(default_factory=dict)
    trial: np.ndarray | Sequence[int] | Sequence[str] | None = None
    valid: np.ndarray | None = None
    stimulus_type: str | Sequence[str] | np.ndarray = BinLabels("movie")  # type: ignore[assignment]  # noqa: RUF009
    repeat_id: np.ndarray | None = None
    time: np.ndarray | None = None
    exposure: np.ndarray | None = None
    split: Sequence[str] | np.ndarray | None = BinLabels(None)  # type: ignore[assignment]  # noqa: RUF009
    true_rate: np.ndarray | None = None
    missing_pct: np.ndarray | None = None
    unit_positions: np.ndarray | None = None
    unit_labels: Mapping[str, Sequence[str] | np.ndarray] = field(default_factory=dict)
    pixels_per_degree: float | None = None
    scenes: Sequence[np.ndarray] = ()
    scene: np.ndarray | None = None
    scene_offset: Sequence[float] = (0.0, 0.0)
    subject: str = ""
    info: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        with naming(self.name):
            self._take()
        self.check()

    def _take(self) -> None:
        """Bring what was given into the types in which it is kept."""
        self.name, self.subject = as_text(self.name, "name"), as_text(self.subject, "subject")
        self.subject = self.subject or self.name.split("_")[0]
        self.stimulus = as_array(self.stimulus, "stimulus", axes=range(1, 65))
        self.responses = as_array(self.responses, "responses", axes=range(1, 65))
        self._require(np.ndim(self.responses) == 2, f"responses have shape {np.shape(self.responses)}; give (T, U)")
        n_bins, n_units = len(self.stimulus), self.responses.shape[1]
        self.unit_ids = as_ids(np.arange(n_units) if self.unit_ids is None else self.unit_ids, "unit_ids")
        trial = np.zeros(n_bins, np.int64) if self.trial is None else as_ids(self.trial, "trial")
        self.trial = trial if trial.dtype == np.int64 else number_trials(trial)
        self.repeat_id = whole_numbers(np.full(n_bins, -1) if self.repeat_id is None else self.repeat_id, "repeat_id")
        self.valid = np.ones(n_bins, bool) if self.valid is None else as_booleans(self.valid, "valid")
        for key in ("stimulus_type", "split"):
            self._coded(key)
        self._require(self._coded("stimulus_type") is not None, "stimulus_type is None; give one name, or T")
        axes = {"exposure": (1,), "true_rate": range(1, 65), "missing_pct": range(1, 65), "unit_positions": (2,)}
        for key in axes:
            if getattr(self, key) is not None:
                setattr(self, key, as_float32(getattr(self, key), key, axes=axes[key]))
        if self.time is not None:
            self.time = np.asarray(as_array(self.time, "time", axes=(1,)))
        behavior = as_mapping(self.behavior, "behavior")
        self.behavior = {key: as_float32(value, f"behavior[{key!r}]", axes=(1, 2)) for key, value in behavior.items()}
        labels = as_mapping(self.unit_labels, "unit_labels")
        self.unit_labels = {key: as_names(value, f"unit_labels[{key!r}]", n_units) for key, value in labels.items()}
        self.info = {key: str(value) for key, value in as_mapping(self.info, "info").items()}
        notes = [self.notes] if isinstance(self.notes, str) else self.notes
        if not isinstance(notes, list | tuple):
            raise SessionError(f"notes are {shortened(self.notes)}; give a list of texts")
        self.notes = tuple(map(str, notes))
        if not isinstance(self.scenes, list | tuple) and np.ndim(self.scenes) != 3:
            raise SessionError(f"scenes are {shortened(self.scenes)}; give a list of them")
        self.scenes = tuple(self.scenes)
        self.scene = None if self.scene is None else whole_numbers(self.scene, "scene")
        offset = as_array(self.scene_offset, "scene_offset", axes=(1,))
        self.scene_offset = tuple(map(float, offset))

    def __repr__(self) -> str:
        types = ", ".join(self.types)
        size = "x".join(map(str, self.frame_shape))
        length = f"{self.duration / 60:.1f} min" if self.duration >= 60 else f"{self.duration:.1f} s"
        return (
            f"Session {self.name!r} of {self.subject}: {self.n_units} units, {self.n_bins} bins at {self.bin_rate:g} "
            f"Hz ({length}), frames {size}, types {types}"
        )

    def __eq__(self, other: object) -> bool:
        """Whether two sessions hold the same values."""
        if not isinstance(other, Session):
            return NotImplemented
        return all(_same(getattr(self, f.name), getattr(other, f.name)) for f in fields(self))

    __hash__ = None  # type: ignore[assignment]

    @property
    def n_bins(self) -> int:
        """Number of bins, T."""
        return len(self.stimulus)

    @property
    def n_units(self) -> int:
        """Number of units, U."""
        return self.responses.shape[1]

    @property
    def types(self) -> tuple[str, ...]:
        """Names of the stimulus types, sorted."""
        return tuple(self._coded("stimulus_type").names.tolist())

    @property
    def type_codes(self) -> np.ndarray:
        """Index of each bin's stimulus type among :attr:`types`, (T,) int32; smaller than `stimulus_type`."""
        return self._coded("stimulus_type").codes

    @property
    def duration(self) -> float:
        """Length in s, gaps not counted."""
        return self.n_bins / self.bin_rate

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of what is shown in a bin; axes that the stimulus does not have count 1."""
        return frame_shape(self.stimulus.shape[1:])

    @classmethod
    def load(cls, path: str | Path, *, verify: bool = True) -> "Session":
        """Open a session file; its arrays are memory-mapped.

        Parameters
        ----------
        path
            The file.
        verify
            Read the file whole and compare its content with its checksum. Preparation, which notes what it has
            compared, leaves it out.

        Raises
        ------
        SessionError
            If the file is missing, cut off, altered or not a session.
        """
        path = Path(path)
        try:
            arrays, metadata = load_arrays(path, verify=verify)
        except FileNotFoundError:
            raise SessionError(f"{path}: no such session file") from None
        except (TensorFileError, OSError) as error:
            raise SessionError(str(error)) from None
        if fault := format_fault(metadata.get("format"), _FORMAT, "convert the recording again"):
            raise SessionError(f"{path}: not a session file of this version, {fault}")
        behavior = {k.removeprefix("behavior."): v for k, v in arrays.items() if k.startswith("behavior.")}
        names, split = np.asarray(metadata["stimulus_types"]), arrays.get("split")
        ids = arrays["unit_ids"] if metadata["unit_ids"] is None else np.asarray(metadata["unit_ids"])
        count = sum(key.startswith("scenes.") for key in arrays)
        scenes = tuple(arrays[f"scenes.{index}"] for index in range(count))
        plain = ("scene", "trial", "valid", "repeat_id", "time", *_PER_BIN, "unit_positions")
        session = cls.__new__(cls)
        vars(session).update(
            {key: metadata[key] for key in ("name", "subject", "info", "bin_rate", "pixels_per_degree")},
            stimulus=arrays["stimulus"], responses=arrays["responses"], scenes=scenes,
            scene_offset=tuple(metadata.get("scene_offset", (0.0, 0.0))), unit_ids=ids, behavior=behavior,
            _stimulus_type=Coded(names, arrays["stimulus_type"]), notes=tuple(metadata["notes"]),
            _split=None if split is None else Coded(np.asarray(("", *SPLITS)), split),
            unit_labels={key: np.asarray(values, str) for key, values in metadata["unit_labels"].items()},
            **{key: arrays.get(key) for key in plain},
        )  # fmt: skip
        session._check_shapes()
        return session

    def save(self, path: str | Path) -> Path:
        """Write the session to one safetensors file, whole or not at all, and return its path."""
        self.check()
        text_ids = self.unit_ids.dtype != np.int64
        arrays: dict[str, Any] = {
            "stimulus": self.stimulus, "responses": self.responses, "trial": self.trial, "valid": self.valid,
            "repeat_id": self.repeat_id, "stimulus_type": self.type_codes,
            "unit_ids": np.arange(self.n_units) if text_ids else self.unit_ids,
        }  # fmt: skip
        arrays |= {
            key: getattr(self, key).astype(np.float32, copy=False) for key in _PER_BIN if getattr(self, key) is not None
        }
        if self.unit_positions is not None:
            arrays["unit_positions"] = np.asarray(self.unit_positions, np.float32)
        arrays |= {f"scenes.{index}": np.asarray(picture) for index, picture in enumerate(self.scenes)}
        if self.scene is not None:
            arrays["scene"] = np.asarray(self.scene, np.int32)
        if self.time is not None:
            arrays["time"] = np.asarray(self.time, np.float64)
        if (split := self._coded("split")) is not None:
            order = [("", *SPLITS).index(name) for name in split.names.tolist()]
            arrays["split"] = np.asarray(order, np.uint8)[split.codes]
        arrays |= {f"behavior.{key}": value.astype(np.float32, copy=False) for key, value in self.behavior.items()}
        save_arrays(path, arrays, {
            "format": _FORMAT, "name": self.name, "subject": self.subject, "info": dict(self.info),
            "bin_rate": float(self.bin_rate), "stimulus_types": list(self.types), "notes": list(self.notes),
            "unit_ids": self.unit_ids.tolist() if text_ids else None,
            "unit_labels": {key: values.tolist() for key, values in self.unit_labels.items()},
            "pixels_per_degree": self.pixels_per_degree, "scene_offset": [float(value) for value in self.scene_offset],
        })  # fmt: skip
        return Path(path)

    def _coded(self, key: str) -> Coded | None:
        """What is kept of names of bins, None where there are none; also of names that were set later."""
        if not isinstance(vars(self)[f"_{key}"], Coded | None):
            with naming(self.name):
                setattr(self, key, as_names(getattr(self, key), key, self.n_bins))
        return vars(self)[f"_{key}"]

    def check(self) -> None:
        """Check that all arrays agree; see the class for what each must be."""
        self._check_shapes()
        self._check_values()

    def _check_shapes(self) -> None:
        require, shape = self._require, self.stimulus.shape
        require(
            bool(re.fullmatch(r"[^/\\\0.][^/\\\0]*", self.name)) and self.name.isprintable(),
            "a name must not be empty, begin with a dot, or hold a slash or a break; it is also the name of a file",
        )
        require(
            self.stimulus.dtype in (np.uint8, np.float16, np.float32),
            f"stimulus is {self.stimulus.dtype}; use uint8 for pixels from 0 to 255, else float32 or float16",
        )
        require(1 <= len(shape) <= 4, f"stimulus has shape {shape}; give (T,), (T, F), (T, H, W) or (T, C, H, W)")
        require(
            not (len(shape) == 4 and shape[3] in (1, 3, 4) and shape[1] not in (1, 2, 3, 4)),
            f"stimulus has shape {shape}, its channels last; give (T, C, H, W): np.moveaxis(stimulus, -1, 1)",
        )
        require(min(shape) > 0, f"stimulus has shape {shape}: nothing is shown")
        require(np.dtype(self.responses.dtype).kind in "iufb", f"responses are {self.responses.dtype}; give numbers")
        for key in ("bin_rate", "pixels_per_degree"):
            value = getattr(self, key)
            positive = isinstance(value, int | float | np.integer | np.floating) and 0 < value < _LARGEST_RATE
            positive = positive and not isinstance(value, bool)
            what = "bins a second, in Hz" if key == "bin_rate" else "or None"
            require(
                positive or (value is None and key != "bin_rate"),
                f"{key} is {shortened(value)}; give a positive number, {what}",
            )
        per_bin = {
            "responses": self.responses, "trial": self.trial, "valid": self.valid, "repeat_id": self.repeat_id,
            "stimulus_type": self.type_codes, "scene": self.scene, "time": self.time,
            "split": None if (split := self._coded("split")) is None else split.codes,
            **{key: getattr(self, key) for key in _PER_BIN},
            **{f"behavior[{key!r}]": value for key, value in self.behavior.items()},
        }  # fmt: skip
        for key, value in per_bin.items():
            require(
                value is None or len(value) == self.n_bins,
                f"{key} has {0 if value is None else len(value)} bins where the stimulus has {self.n_bins}; "
                "align them first",
            )
        taken = {"stim", "robs", "unit_ids"} & set(self.behavior)
        require(not taken, f"behavior[{min(taken, default='')!r}] has the name of something else; rename the signal")
        per_unit = {"unit_ids": self.unit_ids, "unit_positions": self.unit_positions}
        per_unit |= {f"unit_labels[{key!r}]": values for key, values in self.unit_labels.items()}
        for key, value in per_unit.items():
            require(
                value is None or len(value) == self.n_units,
                f"{key} covers {0 if value is None else len(value)} units where responses have {self.n_units}",
            )
        for key in ("true_rate", "missing_pct"):
            value = getattr(self, key)
            require(
                value is None or np.shape(value) == np.shape(self.responses),
                f"{key} has shape {np.shape(value)} where responses have {np.shape(self.responses)}",
            )

    def _check_values(self) -> None:
        require = self._require
        require(len(np.unique(self.unit_ids)) == self.n_units, "unit_ids repeat; every unit needs its own id")
        for part in blocks(self.responses):
            require(bool(np.all(np.isfinite(part))), "responses hold NaN; set them to 0 and mask the bins with `valid`")
            largest = float(np.abs(part, dtype=np.float64).max(initial=0))
            require(largest <= _LARGEST, f"responses reach {largest:.3g}; no response is so large, scale them")
        if self.stimulus.dtype != np.uint8:
            for part in blocks(self.stimulus):
                require(bool(np.isfinite(part).all()), "stimulus holds NaN or infinite values; set those bins to 0")
        for key, value in self.behavior.items():
            kind = np.dtype(value.dtype).kind
            require(kind in "iufb", f"behavior[{key!r}] is {value.dtype}; give numbers")
            for part in blocks(value):
                require(
                    bool(np.isfinite(part).all()),
                    f"behavior[{key!r}] holds NaN or infinite values; set them to 0 and mask the bins with `valid`",
                )
        if self.time is not None:
            require(bool(np.isfinite(self.time).all()), "time holds NaN; give the start of each bin in s")
        if self.exposure is not None:
            exposure = np.asarray(self.exposure)
            require(
                bool((np.isfinite(exposure) & (exposure > 0)).all()),
                "exposure must be positive; use `valid` for bins not shown",
            )
        for key in ("true_rate", "missing_pct", "unit_positions"):
            for part in blocks(getattr(self, key)) if getattr(self, key) is not None else ():
                require(bool(np.isfinite(part).all()), f"{key} holds NaN or infinite values")
        if self.scene is not None:
            index = whole_numbers(self.scene, "scene")
            require(
                bool((index < len(self.scenes)).all()), f"scene names pictures beyond the {len(self.scenes)} scenes"
            )
        for picture in self.scenes:
            require(
                np.ndim(picture) == 2 and np.asarray(picture).dtype == np.uint8, "scenes are pictures (H, W), uint8"
            )
        require(len(self.scene_offset) == 2, "scene_offset is (right, up) in degrees")
        if (split := self._coded("split")) is not None:
            wrong = set(split.names.tolist()) - {"", *SPLITS}
            require(not wrong, f"split holds {sorted(wrong)}; use {SPLITS} or an empty string")

    def _require(self, condition: bool, message: str) -> None:
        if not condition:
            raise SessionError(f"session {self.name!r}: {message}")


def frame_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    """C, H and W of a bin of shape (), (F,), (H, W) or (C, H, W): bars are rows of one column.

    Examples
    --------
    >>> frame_shape(()), frame_shape((31,)), frame_shape((28, 36)), frame_shape((3, 28, 36))
    ((1, 1, 1), (1, 31, 1), (1, 28, 36), (3, 28, 36))
    """
    channels, size = (shape[0], tuple(shape[1:])) if len(shape) == 3 else (1, tuple(shape))
    return (channels, *size, *(1,) * (2 - len(size)))


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if a is None or b is None or isinstance(a, str | float | int):
        return bool(np.all(a == b))
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    if np.shape(a) != np.shape(b):
        return False
    return all(np.array_equal(x, y) for x, y in zip(blocks(a), blocks(b), strict=True))
