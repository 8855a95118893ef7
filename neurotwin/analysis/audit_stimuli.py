"""Which pictures were shown, by a hash that tolerates a grey level; near-duplicates across training and the rest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.spatial

from ..data.fingerprints import CLOSE, N_PROJECTIONS, fingerprints
from ..data.pictures import HELD_S, SHARE, ShownPictures, familiar
from ..data.session import SPLITS
from .audit_base import Finding, Recording, some

__all__ = ["Pictures", "check_duplicates", "grey_levels", "pictures_of"]

_MOST_FRAMES = 60_000  # a session; of longer ones every n-th frame of a run is taken, counted from its start
_MOST_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """The pictures of a recording, one entry for each that stays on; P counts them.

    Attributes
    ----------
    hashes
        (P, 32) float32, see :func:`~neurotwin.data.fingerprints.fingerprints`.
    trial
        (P,) trial of each.
    split
        (P,) part of each: 0 training, 1 validation, 2 test.
    still
        (P,) bool: stays for 50 ms or more, or is a trial by itself.
    in_trial
        (P,) pictures of its trial and part, those that cannot be told apart included.
    """

    hashes: np.ndarray
    trial: np.ndarray
    split: np.ndarray
    still: np.ndarray
    in_trial: np.ndarray


def pictures_of(recording: Recording) -> Pictures:
    """All pictures that a run trains or tests on; frames of long recordings are sampled."""
    shown = np.asarray(recording.split) >= 0
    frame_bytes = 4 * int(np.prod(recording.source.shape[1:], dtype=np.int64))
    most = max(1000, min(_MOST_FRAMES, _MOST_BYTES // max(frame_bytes, 1)))
    step = -(-int(shown.sum()) // most)
    runs = recording.runs()
    start = np.repeat(runs[:, 0], runs[:, 1] - runs[:, 0])
    bins = np.flatnonzero(shown & ((np.arange(recording.n_bins) - start) % step == 0))
    value_range = grey_levels(recording)
    hashes, distinct = np.empty((len(bins), N_PROJECTIONS), np.float32), np.empty(len(bins), bool)
    block = max(1, (1 << 24) // max(frame_bytes, 1))
    for first in range(0, len(bins), block):
        part = slice(first, first + block)
        hashes[part], distinct[part] = fingerprints(recording.frames(bins[part]), value_range)
    run = recording.run[bins]
    same = np.zeros(len(bins), bool)
    same[1:] = (np.abs(np.diff(hashes, axis=0)).max(axis=1) < 1e-4) & (np.diff(run) == 0)
    onset = np.flatnonzero(~same)
    held = np.diff(np.r_[onset, len(bins)])
    single = np.bincount(run, minlength=run.max(initial=0) + 1)[run[onset]] == 1
    keep = distinct[onset]
    still = single | ((held > 1) & (held * step >= HELD_S * recording.bin_rate))
    trial, split = recording.trial[bins[onset]], recording.split[bins[onset]]
    _, code, number = np.unique(np.stack([trial, split]), axis=1, return_inverse=True, return_counts=True)
    return Pictures(
        hashes=hashes[onset[keep]], trial=trial[keep], split=split[keep], still=still[keep],
        in_trial=number[code.ravel()][keep],
    )  # fmt: skip


def check_duplicates(
    recordings: Sequence[Recording], known: Sequence[tuple[str, Pictures]] = (),
    hashed: Mapping[str, ShownPictures] | None = None,
) -> list[Finding]:  # fmt: skip
    """Trials that show what training shows: within a session, in another one, or in those of a checkpoint.

    Parameters
    ----------
    recordings
        Sessions of the run.
    known
        Name and pictures of every session that a checkpoint was trained on; those of the same name as a session of
        the run are compared with it as well, because its parts may have been drawn anew.
    hashed
        Pictures of further sessions that a checkpoint was trained on, of which only the hashes are at hand.
    """
    pictures = [pictures_of(recording) for recording in recordings]
    sources = [(f"training of {r.name!r}", _part(p, 0)) for r, p in zip(recordings, pictures, strict=True)]
    findings = []
    for own, (recording, mine) in enumerate(zip(recordings, pictures, strict=True)):
        parts = [_part(mine, code) for code in (1, 2)]
        for index, (name, training) in enumerate(sources):
            for code, part in zip((1, 2), parts, strict=True):
                where = "its own training part" if index == own else f"the {name}"
                findings += _compared(recording.name, SPLITS[code], part, training, where)
        for name, theirs in known:
            for code, part in zip((1, 2), parts, strict=True):
                where = f"what the checkpoint was trained on ({name!r})"
                findings += _compared(recording.name, SPLITS[code], part, _part(theirs, 0), where)
        for code, part in zip((1, 2), parts, strict=True):
            findings += _hashed_before(recording.name, SPLITS[code], part, hashed or {})
    return findings


def grey_levels(recording: Recording, n_frames: int = 200) -> tuple[float, float]:
    """Lowest and highest grey level: those of the type for whole numbers, else of some frames."""
    if np.dtype(recording.source.dtype) == np.uint8:
        return 0.0, 255.0
    bins = np.unique(np.linspace(0, recording.n_bins - 1, n_frames).astype(int))
    parts = [recording.frames(bins[i : i + 1]) for i in range(len(bins))]
    return float(min(part.min() for part in parts)), float(max(part.max() for part in parts))


def _part(pictures: Pictures, code: int) -> Pictures:
    chosen = pictures.split == code
    return Pictures(**{key: value[chosen] for key, value in vars(pictures).items()})


def _compared(session: str, split: str, part: Pictures, training: Pictures, where: str) -> list[Finding]:
    if not len(part.trial) or not len(training.trial):
        return []
    distance, nearest = scipy.spatial.cKDTree(training.hashes).query(part.hashes, distance_upper_bound=CLOSE)
    found = np.isfinite(distance)
    trials, code = np.unique(part.trial, return_inverse=True)
    twins = np.bincount(code, found)
    shown = np.empty(len(trials), np.int64)
    shown[code] = part.in_trial
    still = np.bincount(code, found & part.still & np.append(training.still, False)[nearest])
    guilty = (still > 0) | ((twins >= SHARE * shown) & (twins >= np.minimum(2, shown)))
    if not guilty.any():
        return []
    first = np.flatnonzero(guilty[code] & found)[0]
    correlation = 1 - float(distance[found & guilty[code]].max()) ** 2 / 2
    return [Finding(
        "duplicates", "error", session, f"{split} trials {some(trials[guilty], len(trials))}",
        f"{int(twins[guilty].sum())} of {int(shown[guilty].sum())} pictures, r ≥ {correlation:.4f}",
        f"they show pictures of {where}, such as trial {training.trial[nearest[first]]} (shown in trial "
        f"{part.trial[first]}), so a model is scored on what it learnt; give trials that share pictures the same split "
        "with Session(split=...)",
    )]  # fmt: skip


def _hashed_before(session: str, split: str, part: Pictures, known: Mapping[str, ShownPictures]) -> list[Finding]:
    seen = familiar(ShownPictures(hashes=part.hashes, still=part.still, total=len(part.hashes)), known)
    if seen is None:
        return []
    return [Finding(
        "duplicates", "error", session, f"{split} pictures",
        f"{seen.count} pictures, r ≥ {seen.correlation:.4f}",
        f"the checkpoint was trained on them ({seen.where}, by its hashes), so a model that starts from it is scored "
        "on what it learnt; give their trials to training with Session(split=...)",
    )]  # fmt: skip
