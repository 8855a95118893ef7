"""Sessions of the Sensorium competitions: folders of one .npy file a trial.

Static (Willeke et al. 2022): `data/images/N.npy` (C, H, W), `data/responses/N.npy` (units,), `data/behavior/N.npy`
(3,): pupil dilation, its derivative, running speed; `data/pupil_center/N.npy` (2,). Dynamic (Turishcheva et al. 2023):
`data/videos/N.npy` (H, W, T), padded with NaN at the end, `responses` (units, T), `behavior` (2, T): pupil dilation,
running speed; `pupil_center` (2, T). Beside them `meta/trials/tiers.npy` and `meta/neurons/*.npy`.
"""

from collections import Counter
from pathlib import Path

import numpy as np

from ...config import register
from ..session import Session, SessionError
from .base import Format

__all__ = ["Sensorium"]

_SPLITS = {"train": "train", "validation": "val", "oracle": "val"}
_BEHAVIOR = {3: ("pupil_dilation", "pupil_derivative", "running"), 2: ("pupil_dilation", "running")}


@register("format", "sensorium")
class Sensorium(Format):
    """A folder of the Sensorium layout."""

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """A folder that holds the folders `meta` and `data`."""
        return (path / "meta").is_dir() and (path / "data").is_dir()

    def read(self, path: Path) -> Session:
        """The session; see :class:`Format`."""
        return _read_sensorium(path, name=self.name, subject=self.subject, bin_rate=self.bin_rate)


def _read_sensorium(path: str | Path, *, name: str = "", subject: str = "", bin_rate: float | None = None) -> Session:
    """Read a folder of the Sensorium layout.

    Every file is a trial. `train` stays training, `validation` and `oracle` validate, all tiers whose name contains
    "test" test. Responses that were held back (absent, or NaN) make their bins invalid. Images and videos shown more
    than once, found by their content, become repeats.

    Parameters
    ----------
    path
        The folder that holds `data` and `meta`.
    name, subject
        Default: the folder's name, and that up to the first underscore.
    bin_rate
        Bins a second, Hz. Default: 30 for videos; for images there is none, give presentations a second.

    Raises
    ------
    SessionError
        If the folder is not of this layout.
    """
    path = Path(path)
    kind = "videos" if (path / "data" / "videos").is_dir() else "images"
    if not (path / "data" / kind).is_dir():
        raise SessionError(f"{path}: has neither data/images nor data/videos; give the folder of one recording")
    bin_rate = bin_rate or (30.0 if kind == "videos" else None)
    if bin_rate is None:
        raise SessionError(f"{path}: the rate of the images is not known; give --bin_rate, presentations a second")
    tiers = _load(path / "meta" / "trials" / "tiers.npy").astype(str)
    trials = [index for index in range(len(tiers)) if (path / "data" / kind / f"{index}.npy").exists()]
    if not trials:
        raise SessionError(f"{path}: data/{kind} holds no trial of the {len(tiers)} in meta/trials/tiers.npy")
    unit_ids = path / "meta" / "neurons" / "unit_ids.npy"
    positions = path / "meta" / "neurons" / "cell_motor_coordinates.npy"

    stimulus = [_frames(path / "data" / kind / f"{index}.npy", kind) for index in trials]
    lengths = [len(frames) for frames in stimulus]
    signals: dict[str, list[np.ndarray]] = {}
    for signal in ("responses", "behavior", "pupil_center"):
        files = [path / "data" / signal / f"{index}.npy" for index in trials]
        present = [file for file in files if file.exists()]
        if not present:
            continue
        width = len(_load(present[0]))
        signals[signal] = [
            _bins(file, length, width) if file.exists() else np.full((length, width), np.nan)
            for file, length in zip(files, lengths, strict=True)
        ]
    if "responses" not in signals:
        raise SessionError(f"{path}: data/responses is missing or empty")
    responses, *others = (np.concatenate(parts) for parts in signals.values())
    valid = np.isfinite(np.concatenate([responses, *others], axis=1)).all(axis=1)
    behavior: dict[str, np.ndarray] = {}
    for signal, values in zip(list(signals)[1:], others, strict=True):
        values = np.nan_to_num(values).astype(np.float32)
        names = _BEHAVIOR.get(values.shape[1]) if signal == "behavior" else None
        behavior |= {signal: values} if names is None else dict(zip(names, values.T, strict=True))
    tier = np.repeat(tiers[trials], lengths)
    return Session(
        name=name or path.name, subject=subject, bin_rate=bin_rate, stimulus=np.concatenate(stimulus),
        responses=np.nan_to_num(responses).astype(np.float32), behavior=behavior, valid=valid,
        trial=np.repeat(trials, lengths), repeat_id=_repeats(stimulus),
        split=np.array([_SPLITS.get(t, "test" if "test" in t else "") for t in tier]), stimulus_type=kind,
        unit_ids=_load(unit_ids) if unit_ids.exists() else None,
        unit_positions=_load(positions) if positions.exists() else None,
    )  # fmt: skip


def _load(file: Path) -> np.ndarray:
    try:
        return np.load(file, allow_pickle=False)
    except FileNotFoundError:
        raise SessionError(f"{file}: no such file; give the folder of one recording") from None
    except (ValueError, OSError) as error:
        raise SessionError(f"{file}: cannot be read ({error})") from None


def _frames(file: Path, kind: str) -> np.ndarray:
    """Frames of a trial, (T, H, W) or (T, C, H, W) uint8, without the NaN at its end."""
    values = _load(file)
    frames = np.moveaxis(values, -1, 0) if kind == "videos" else values[None]
    if frames.ndim == 4 and frames.shape[1] == 1:
        frames = frames[:, 0]
    if np.issubdtype(frames.dtype, np.floating):
        shown = ~np.isnan(frames).all(axis=tuple(range(1, frames.ndim)))
        frames = np.rint(frames[shown])
    if not len(frames) or not (frames.min() >= 0 and frames.max() <= 255):
        raise SessionError(f"{file}: pixels must lie between 0 and 255, with NaN only in whole frames at the end")
    return frames.astype(np.uint8)


def _bins(file: Path, length: int, width: int) -> np.ndarray:
    """A signal of a trial, (T, width)."""
    values = _load(file)
    values = values[None] if values.ndim == 1 else values.T
    if len(values) < length or values.shape[1] != width:
        raise SessionError(f"{file}: has shape {values.T.shape} where {width} rows of {length} bins are expected")
    return values[:length].astype(np.float64)


def _repeats(stimulus: list[np.ndarray]) -> np.ndarray:
    """Ids of the frames of trials that were shown more than once; -1 for the others."""
    contents = [frames.tobytes() for frames in stimulus]
    shown = Counter(contents)
    first = {content: number for number, content in reversed(list(enumerate(contents)))}
    starts = np.cumsum([0, *map(len, stimulus)])
    return np.concatenate(
        [
            np.arange(len(frames)) + starts[first[content]] if shown[content] > 1 else np.full(len(frames), -1)
            for frames, content in zip(stimulus, contents, strict=True)
        ]
    )
