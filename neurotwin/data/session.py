"""One recording session: what was shown, what the units did, how the animal behaved."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .tensorfile import TensorFileError, load_arrays, save_arrays

__all__ = ["SPLITS", "Session", "SessionError"]

SPLITS = ("train", "val", "test")
_FORMAT = "neurotwin-session-1"


class SessionError(ValueError):
    """A session is not usable as it stands; the message names it and the cure."""


@dataclass(kw_only=True)
class Session:
    """One recording session on a common clock of T bins.

    Movies and single images are alike: an image is one bin, usually a trial of its own. Arrays may be memory-mapped;
    nothing here copies the stimulus.

    Parameters
    ----------
    name
        Name of the session, also of its file.
    stimulus
        (T, H, W) or (T, C, H, W), uint8: the frame on the screen in each bin.
    spikes
        (T, U): spike count of every unit in every bin (any non-negative number, so deconvolved calcium too).
    bin_rate
        Bins a second, in Hz. For single images: presentations a second.
    unit_ids
        (U,) int: the ids that `cids` of a dataset config refers to. Default 0 to U−1.
    behavior
        Signals by name, each (T,) or (T, K), float32.
    trial
        (T,) int: trial of every bin; negative means between trials (never predicted, never context). Default: one
        trial. Bins of equal trial always land in the same split, also where they are not adjacent.
    valid
        (T,) bool: false where the gaze was lost or the bin must not be used. Default all true.
    stimulus_type
        One name for all, or (T,) names.
    repeat_id
        (T,) int: bins of equal id ≥ 0 saw the same frame after the same recent past, that is, they are repeats of
        one another. Negative: shown once. Default all −1.
    time
        (T,) float64: start of each bin in s. Only needed where the recording has gaps.
    exposure
        (T,) float32: number of presentations over which a bin's counts are summed. Loss and metrics use
        exposure × rate.
    split
        (T,) names of the split ("train", "val", "test", or "" for none): overrides the drawn split.
    true_rate
        (T, U) float32: expected counts per bin, where the data are simulated.
    missing_pct
        (T, U) float32: estimated percentage of spikes lost to the detection threshold.
    unit_positions
        (U, D) float32: coordinates of the units (cortical or in retinotopic space).
    subject
        Subject; default the name up to the first underscore.
    info
        Free text labels (`lab`, `eye`, a citation).

    Raises
    ------
    SessionError
        If the arrays do not agree with one another; the message says which, and what to do.

    Examples
    --------
    >>> movie = np.zeros((100, 16, 16), np.uint8)
    >>> counts = np.ones((100, 3), np.uint8)
    >>> session = Session(name="ada_0501", stimulus=movie, spikes=counts, bin_rate=60.0)
    >>> session.subject, session.n_units, session.duration
    ('ada', 3, 1.6666666666666667)
    """

    name: str
    stimulus: np.ndarray
    spikes: np.ndarray
    bin_rate: float
    unit_ids: np.ndarray | None = None
    behavior: Mapping[str, np.ndarray] = field(default_factory=dict)
    trial: np.ndarray | None = None
    valid: np.ndarray | None = None
    stimulus_type: str | Sequence[str] | np.ndarray = "movie"
    repeat_id: np.ndarray | None = None
    time: np.ndarray | None = None
    exposure: np.ndarray | None = None
    split: Sequence[str] | np.ndarray | None = None
    true_rate: np.ndarray | None = None
    missing_pct: np.ndarray | None = None
    unit_positions: np.ndarray | None = None
    subject: str = ""
    info: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n_bins = len(self.stimulus)
        if self.unit_ids is None and np.ndim(self.spikes) == 2:
            self.unit_ids = np.arange(np.shape(self.spikes)[1])
        self.trial = np.zeros(n_bins, np.int32) if self.trial is None else np.asarray(self.trial)
        self.valid = np.ones(n_bins, bool) if self.valid is None else np.asarray(self.valid)
        self.repeat_id = np.full(n_bins, -1, np.int32) if self.repeat_id is None else np.asarray(self.repeat_id)
        self.unit_ids = np.asarray(self.unit_ids)
        if isinstance(self.stimulus_type, str):
            self.stimulus_type = np.full(n_bins, self.stimulus_type)
        self.stimulus_type = np.asarray(self.stimulus_type)
        if self.split is not None:
            self.split = np.asarray(self.split)
        self.subject = self.subject or self.name.split("_")[0]
        self.check()

    @property
    def n_bins(self) -> int:
        """Number of bins, T."""
        return len(self.stimulus)

    @property
    def n_units(self) -> int:
        """Number of units, U."""
        return self.spikes.shape[1]

    @property
    def duration(self) -> float:
        """Length in s, gaps not counted."""
        return self.n_bins / self.bin_rate

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a frame."""
        shape = self.stimulus.shape[1:]
        return (1, *shape) if len(shape) == 2 else shape

    @classmethod
    def load(cls, path: str | Path) -> "Session":
        """Open a session file; its arrays are memory-mapped.

        Only shapes are checked: values were before the file was written, and its checksum covers them
        (:func:`~neurotwin.data.tensorfile.verify_arrays`).

        Raises
        ------
        SessionError
            If the file is missing, cut off or not a session.
        """
        path = Path(path)
        try:
            arrays, metadata = load_arrays(path)
        except FileNotFoundError:
            raise SessionError(f"{path}: no such session file") from None
        except TensorFileError as error:
            raise SessionError(str(error)) from None
        if metadata.get("format") != _FORMAT:
            raise SessionError(f"{path}: not a session file (its format is {metadata.get('format')!r})")
        behavior = {k.removeprefix("behavior."): v for k, v in arrays.items() if k.startswith("behavior.")}
        names = np.asarray(metadata["stimulus_types"])
        split = arrays.get("split")
        plain = ("trial", "valid", "repeat_id", "time", "exposure", "true_rate", "missing_pct", "unit_positions")
        session = cls.__new__(cls)
        vars(session).update(
            name=metadata["name"], subject=metadata["subject"], info=metadata["info"], bin_rate=metadata["bin_rate"],
            stimulus=arrays["stimulus"], spikes=arrays["spikes"], unit_ids=arrays["unit_ids"], behavior=behavior,
            stimulus_type=names[arrays["stimulus_type"]],
            split=None if split is None else np.asarray(("", *SPLITS))[split],
            **{key: arrays.get(key) for key in plain},
        )  # fmt: skip
        session._check_shapes()
        return session

    def save(self, path: str | Path) -> Path:
        """Write the session to one safetensors file, whole or not at all, and return its path."""
        self.check()
        names, codes = np.unique(self.stimulus_type, return_inverse=True)
        arrays = {
            "stimulus": self.stimulus, "spikes": self.spikes, "unit_ids": self.unit_ids.astype(np.int64),
            "trial": self.trial.astype(np.int32), "valid": self.valid.astype(bool),
            "repeat_id": self.repeat_id.astype(np.int32), "stimulus_type": codes.astype(np.int16),
        }  # fmt: skip
        for key in ("exposure", "true_rate", "missing_pct", "unit_positions"):
            if (value := getattr(self, key)) is not None:
                arrays[key] = np.asarray(value, np.float32)
        if self.time is not None:
            arrays["time"] = np.asarray(self.time, np.float64)
        if self.split is not None:
            codes = {label: code for code, label in enumerate(("", *SPLITS))}
            arrays["split"] = np.asarray([codes[str(label)] for label in self.split], np.uint8)
        arrays |= {f"behavior.{key}": np.asarray(value, np.float32) for key, value in self.behavior.items()}
        save_arrays(path, arrays, {
            "format": _FORMAT, "name": self.name, "subject": self.subject, "info": dict(self.info),
            "bin_rate": float(self.bin_rate), "stimulus_types": [str(name) for name in names],
        })  # fmt: skip
        return Path(path)

    def check(self) -> None:
        """Check that all arrays agree; see the class for what each must be."""
        self._check_shapes()
        self._check_values()

    def _check_shapes(self) -> None:
        self._require(
            self.stimulus.dtype == np.uint8, f"stimulus is {self.stimulus.dtype}; scale it to 0–255 and use uint8"
        )
        self._require(
            self.stimulus.ndim in (3, 4), f"stimulus has shape {self.stimulus.shape}; give (T, H, W) or (T, C, H, W)"
        )
        self._require(self.n_bins > 0, "it has no bins")
        self._require(np.ndim(self.spikes) == 2, f"spikes have shape {np.shape(self.spikes)}; give (T, U)")
        self._require(self.bin_rate > 0, f"bin_rate is {self.bin_rate}; give bins a second, in Hz")
        per_bin = {
            "spikes": self.spikes, "trial": self.trial, "valid": self.valid, "repeat_id": self.repeat_id,
            "stimulus_type": self.stimulus_type, "time": self.time, "exposure": self.exposure, "split": self.split,
            "true_rate": self.true_rate, "missing_pct": self.missing_pct,
            **{f"behavior[{key!r}]": value for key, value in self.behavior.items()},
        }  # fmt: skip
        for key, value in per_bin.items():
            self._require(
                value is None or len(value) == self.n_bins,
                f"{key} has {0 if value is None else len(value)} bins where the stimulus has {self.n_bins}; "
                "align them first",
            )
        per_unit = {"unit_ids": self.unit_ids, "unit_positions": self.unit_positions}
        per_unit |= {
            key: getattr(self, key).T for key in ("true_rate", "missing_pct") if getattr(self, key) is not None
        }
        for key, value in per_unit.items():
            self._require(
                value is None or len(value) == self.n_units,
                f"{key} covers {0 if value is None else len(value)} units where spikes have {self.n_units}",
            )

    def _check_values(self) -> None:
        self._require(len(np.unique(self.unit_ids)) == self.n_units, "unit_ids repeat; every unit needs its own id")
        self._require(
            bool(np.all(np.isfinite(self.spikes))), "spikes hold NaN; set them to 0 and mask the bins with `valid`"
        )
        self._require(bool(np.min(self.spikes, initial=0) >= 0), "spikes hold negative counts")
        if self.exposure is not None:
            self._require(
                bool(np.all(np.asarray(self.exposure) > 0)), "exposure must be positive; use `valid` for bins not shown"
            )
        if self.split is not None:
            wrong = set(np.unique(self.split)) - {"", *SPLITS}
            self._require(not wrong, f"split holds {sorted(wrong)}; use {SPLITS} or an empty string")

    def _require(self, condition: bool, message: str) -> None:
        if not condition:
            raise SessionError(f"session {self.name!r}: {message}")
