"""Which pictures were shown, by a hash that tolerates a grey level; near-duplicates across training and the rest."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy

from ..data.session import SPLITS
from .audit_base import Finding, Recording, some

__all__ = ["Pictures", "check_duplicates", "fingerprints", "pictures_of"]

_GRID = 24  # rows and columns at which pictures are compared
_N_PROJECTIONS = 32
_DISTANCE = 0.1  # between standardised pictures; d² = 2 (1 − r), so a correlation of 0.995
_CONTRAST = 8 / 255  # of the range: a grey level here and there then lowers r to 0.995, and not further
_PLAIN = 0.8  # share of one grey level above which a frame is a blank with something in it
_GRATING = 0.7  # share of the power in one frequency; a square wave has 8/π² = 0.81 in its first harmonic
_FEWEST_PIXELS = 16  # fewer cannot tell pictures apart
_SHARE = 0.3  # of the pictures of a trial; fixations of one photograph by chance share a tenth, see docs/audit.md
_HELD_S = 0.05  # a picture that stays for so long is one of its own, not a frame of a movie
_MOST_FRAMES = 60_000  # a session; of longer ones every n-th frame of a run is taken, counted from its start
_MOST_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """The pictures of a recording, one entry for each that stays on; P counts them.

    Attributes
    ----------
    hashes
        (P, 32) float32, see :func:`fingerprints`.
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


def fingerprints(frames: np.ndarray, value_range: tuple[float, float] = (0.0, 255.0)) -> tuple[np.ndarray, np.ndarray]:
    """A perceptual hash of frames, and which of them are pictures that can be told apart.

    Frames are averaged over channels, resampled to 24 × 24, freed of smooth shading (the quadratic surface that fits
    best, in which two views of sky or table top are alike), standardised, and projected on 32 fixed random directions
    of length 1/√32. Distances between projections are those between standardised pictures (Johnson & Lindenstrauss
    1984), hence d² ≈ 2 (1 − r) with their correlation r. Neither brightness nor contrast matter, and frames of other
    sizes can be compared.

    Parameters
    ----------
    frames
        (N, C, H, W) float32.
    value_range
        Lowest and highest grey level of the session.

    Returns
    -------
    hashes
        (N, 32) float32.
    distinct
        (N,) bool: false for blanks, sparse dots and gratings, which recur without anybody having repeated them.

    Examples
    --------
    >>> picture = np.random.default_rng(0).integers(0, 256, (1, 1, 30, 40)).astype(np.float32)
    >>> hashes, distinct = fingerprints(np.concatenate([picture, 0.9 * picture + 5, np.zeros_like(picture)]))
    >>> bool(np.allclose(hashes[0], hashes[1], atol=1e-3)), distinct.tolist()
    (True, [True, True, False])
    """
    grey = frames.mean(axis=1)
    height, width = grey.shape[1:]
    small = _resampling(height) @ grey @ _resampling(width).T
    small = _without_shading(small)
    contrast = small.std(axis=(1, 2))
    spread = max(value_range[1] - value_range[0], 1e-12)
    distinct = contrast >= _CONTRAST * spread
    distinct &= height * width >= _FEWEST_PIXELS
    distinct[distinct] &= ~_plain(grey[distinct], spread)
    distinct[distinct] &= ~_gratings(small[distinct])
    flat = (small / np.maximum(contrast, 1e-12)[:, None, None]).reshape(len(small), -1) / _GRID
    directions = np.random.default_rng(24).standard_normal((_GRID**2, _N_PROJECTIONS)).astype(np.float32)
    return (flat @ directions / np.sqrt(_N_PROJECTIONS)).astype(np.float32), distinct


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
    hashes, distinct = np.empty((len(bins), _N_PROJECTIONS), np.float32), np.empty(len(bins), bool)
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
    still = single | ((held > 1) & (held * step >= _HELD_S * recording.bin_rate))
    trial, split = recording.trial[bins[onset]], recording.split[bins[onset]]
    _, code, number = np.unique(np.stack([trial, split]), axis=1, return_inverse=True, return_counts=True)
    return Pictures(
        hashes=hashes[onset[keep]], trial=trial[keep], split=split[keep], still=still[keep],
        in_trial=number[code.ravel()][keep],
    )  # fmt: skip


def check_duplicates(recordings: Sequence[Recording], known: Sequence[tuple[str, Pictures]] = ()) -> list[Finding]:
    """Trials that show what training shows: within a session, in another one, or in those of a checkpoint.

    Parameters
    ----------
    recordings
        Sessions of the run.
    known
        Name and pictures of every session that a checkpoint was trained on; those of the same name as a session of
        the run are compared with it as well, because its parts may have been drawn anew.
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
    distance, nearest = scipy.spatial.cKDTree(training.hashes).query(part.hashes, distance_upper_bound=_DISTANCE)
    found = np.isfinite(distance)
    trials, code = np.unique(part.trial, return_inverse=True)
    twins = np.bincount(code, found)
    shown = np.empty(len(trials), np.int64)
    shown[code] = part.in_trial
    still = np.bincount(code, found & part.still & np.append(training.still, False)[nearest])
    guilty = (still > 0) | ((twins >= _SHARE * shown) & (twins >= np.minimum(2, shown)))
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


def _resampling(size: int) -> np.ndarray:
    """Averages of `size` pixels over each of 24 equal stretches, (24, size) float32."""
    edges = np.arange(_GRID + 1) * size / _GRID
    pixel = np.arange(size)
    overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    overlap = np.maximum(overlap, 0)
    return (overlap / overlap.sum(axis=1, keepdims=True)).astype(np.float32)


def _without_shading(small: np.ndarray) -> np.ndarray:
    """Pictures minus the quadratic surface that fits them best."""
    axis = np.linspace(-1, 1, _GRID)
    powers = [(i, j) for i in range(3) for j in range(3 - i)]
    surfaces = np.stack([np.outer(axis**i, axis**j).ravel() for i, j in powers], axis=1)
    basis = np.linalg.qr(surfaces)[0].astype(np.float32)
    flat = small.reshape(len(small), _GRID**2)
    return (flat - flat @ basis @ basis.T).reshape(small.shape)


def _plain(grey: np.ndarray, spread: float) -> np.ndarray:
    """Whether most pixels have the value that is most common, up to a grey level, (N,)."""
    flat = grey.reshape(len(grey), grey.shape[1] * grey.shape[2])
    middle = np.median(flat, axis=1, keepdims=True)
    return (np.abs(flat - middle) <= 1.5 * spread / 255).mean(axis=1) > _PLAIN


def _gratings(small: np.ndarray) -> np.ndarray:
    """Whether one frequency of 1.5 cycles a frame or more holds most of the power, (N,)."""
    window = np.hanning(_GRID + 2)[1:-1].astype(np.float32)
    taper = window[:, None] * window
    centred = small - (small * taper).sum(axis=(1, 2), keepdims=True) / taper.sum()
    power = np.abs(np.fft.rfft2(centred * taper, s=(2 * _GRID, 2 * _GRID))) ** 2
    power[:, :, 1:-1] *= 2  # the half of the spectrum that is left out
    rows = np.abs(np.fft.fftfreq(2 * _GRID) * 2 * _GRID)
    columns = np.arange(_GRID + 1)
    grating = np.zeros(len(small), bool)
    signed = np.fft.fftfreq(2 * _GRID) * 2 * _GRID
    for index, one in enumerate(power):
        row, column = np.unravel_index(np.argmax(one), one.shape)
        if np.hypot(rows[row], columns[column]) < 3:  # in half cycles a frame
            continue
        near = _lobe(signed, signed[row])[:, None] & (np.abs(columns - column) <= 4)
        mirrored = _lobe(signed, -signed[row])[:, None] & (np.abs(columns + column) <= 4)
        grating[index] = one[near | mirrored].sum() > _GRATING * one.sum()
    return grating


def _lobe(frequency: np.ndarray, middle: float) -> np.ndarray:
    """Frequencies in the main lobe of the window about `middle`; the axis is periodic."""
    away = np.abs(frequency - middle)
    return np.minimum(away, 2 * _GRID - away) <= 4
