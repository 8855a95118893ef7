"""Which pictures a part of a session shows, kept as hashes: those of training travel with a twin.

A new recording may show pictures that the core of a twin was trained on. Scores on them are too good. The recordings of
that training need not be at hand to find this out, since their hashes are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .fingerprints import CLOSE, N_PROJECTIONS, fingerprints
from .session import frame_shape

__all__ = ["HELD_S", "SHARE", "Familiar", "ShownPictures", "all_shown", "familiar", "pack", "shown_pictures", "unpack"]

HELD_S = 0.05
"""A picture that stays for so many seconds is one of its own, not a frame of a movie."""
SHARE = 0.3
"""Of the frames of a movie that must be shared; fixations of one photograph by chance share a tenth."""

_MOST = 1000  # pictures of a part that are kept
_MOST_BYTES = 1 << 24  # of frames that are hashed together


@dataclass(frozen=True, kw_only=True, eq=False)
class ShownPictures:
    """Different pictures of a part of a session, evenly spaced over all of them; P counts them.

    Blanks, sparse dots and gratings recur without anybody having repeated them, and are left out.

    Attributes
    ----------
    hashes
        (P, 32), see :func:`~neurotwin.data.fingerprints.fingerprints`.
    still
        (P,) bool: stays for 50 ms or more, or is a trial by itself.
    total
        Number of different pictures from which these were taken, estimated where they are not all.
    """

    hashes: np.ndarray
    still: np.ndarray
    total: int

    def __len__(self) -> int:
        return len(self.hashes)


@dataclass(frozen=True)
class Familiar:
    """Pictures that were shown before.

    Attributes
    ----------
    session
        The session that showed most of them.
    others
        Number of further sessions that showed some.
    found
        Pictures that `session` showed; an estimate where not all of its pictures were kept.
    total
        Pictures that were compared.
    correlation
        The lowest of the pairs found.
    estimated
        Whether `found` is an estimate.
    """

    session: str
    others: int
    found: int
    total: int
    correlation: float
    estimated: bool

    @property
    def count(self) -> str:
        """How many of how many."""
        return f"{'about ' * self.estimated}{self.found} of {self.total}"

    @property
    def where(self) -> str:
        """In which sessions."""
        return f"session {self.session!r}" + f" and {self.others} more" * bool(self.others)


def shown_pictures(
    source: np.ndarray, frame: np.ndarray, *, bins: np.ndarray, run: np.ndarray, contrast: np.ndarray, bin_rate: float
) -> ShownPictures:
    """At most 1,000 different pictures among those that some bins show.

    No more frames than that are read. Which of them differ is told by their contrast, and then by their hashes.

    Parameters
    ----------
    source
        (N, ...) frames.
    frame
        (T,) index into `source` of what each bin shows.
    bins
        The bins to look at, ascending.
    run
        (T,) number of the run of each bin, within which time is continuous.
    contrast
        (T,) standard deviation of each bin's frame.
    bin_rate
        Bins a second, Hz.
    """
    run, contrast = np.asarray(run)[bins], np.asarray(contrast)[bins]
    changes = np.ones(len(bins), bool)
    changes[1:] = (np.diff(contrast) != 0) | (np.diff(run) != 0) | (np.diff(bins) != 1)
    onset = np.flatnonzero(changes)
    held = np.diff(np.r_[onset, len(bins)])
    of_run = np.unique(run[onset], return_inverse=True, return_counts=True)
    still = ((held > 1) & (held >= HELD_S * bin_rate)) | (of_run[2][of_run[1]] == 1)
    # Pictures of equal contrast are mostly one that is repeated: the others are looked at where there is room.
    first = np.sort(np.unique(contrast[onset], return_index=True)[1])
    again = np.ones(len(onset), bool)
    again[first] = False
    rest = np.flatnonzero(again)
    groups = [_evenly(first, _MOST)]
    groups.append(_evenly(rest, _MOST - len(groups[0])))
    chosen = np.concatenate(groups)
    hashes, distinct = _hashes(source, np.asarray(frame)[bins[onset[chosen]]])
    keep = np.zeros(len(chosen), bool)
    keep[np.unique(np.round(64 * hashes), axis=0, return_index=True)[1]] = True
    keep &= distinct
    parts = zip((keep[: len(groups[0])], keep[len(groups[0]) :]), (first, rest), strict=True)
    total = round(sum(part.mean() * len(whole) for part, whole in parts if len(part)))
    return ShownPictures(hashes=hashes[keep].astype(np.float16), still=still[chosen[keep]], total=total)


def familiar(part: ShownPictures, known: Mapping[str, ShownPictures]) -> Familiar | None:
    """What a part shows that was shown before; None where no session showed more of it than chance does.

    One picture that stays on is enough. Of the frames of movies, 30 % must be shared, and two at least: an eye that
    scans the same photograph twice sees the same patch now and then. Where a session kept one in n of its pictures,
    one in n of those that are shared is found.

    Parameters
    ----------
    part
        Pictures to look for.
    known
        Pictures shown before, by session.
    """
    found = []
    for name, old in known.items():
        if not len(part) or not len(old):
            continue
        distance, nearest = _nearest(part.hashes, old.hashes)
        near = distance < CLOSE
        kept = min(1.0, len(old) / max(old.total, 1))
        number = min(round(near.sum() / kept), len(part))
        if (near & part.still & old.still[nearest]).any() or (near.sum() >= 2 and number >= SHARE * len(part)):
            found.append((number, name, 1 - float(distance[near].max()) ** 2 / 2, kept < 1))
    if not found:
        return None
    number, name, correlation, estimated = max(found, key=lambda one: one[0])
    return Familiar(name, len(found) - 1, number, len(part), correlation, estimated)


def all_shown(several: Sequence[Mapping[str, ShownPictures]]) -> dict[str, ShownPictures]:
    """Pictures by session of several sources together; of a session that differs between them, those of each."""
    merged: dict[str, ShownPictures] = {}
    for known in several:
        for name, new in known.items():
            old = merged.get(name)
            merged[name] = new if old is None or np.array_equal(old.hashes, new.hashes) else _both(old, new)
    return merged


def pack(known: Mapping[str, ShownPictures]) -> tuple[dict[str, np.ndarray], list[list[str | int]]]:
    """Pictures by session as two arrays, and the name of each session with its numbers of pictures kept and shown."""
    counts: list[list[str | int]] = [[name, len(shown), shown.total] for name, shown in known.items()]
    hashes = [np.zeros((0, N_PROJECTIONS), np.float16), *(shown.hashes for shown in known.values())]
    still = [np.zeros(0, bool), *(shown.still for shown in known.values())]
    return {"hashes": np.concatenate(hashes), "still": np.concatenate(still)}, counts


def unpack(arrays: Mapping[str, np.ndarray], counts: Sequence[Sequence]) -> dict[str, ShownPictures]:
    """The inverse of :func:`pack`.

    Raises
    ------
    ValueError
        If the arrays are not of these sessions.
    """
    hashes, still = np.asarray(arrays["hashes"]), np.asarray(arrays["still"], bool)
    stops = np.cumsum([int(kept) for _, kept, _ in counts])
    total = int(stops[-1]) if len(stops) else 0
    if hashes.shape != (total, N_PROJECTIONS) or still.shape != (total,) or any(int(kept) < 0 for _, kept, _ in counts):
        raise ValueError(f"hashes of pictures of shape {hashes.shape}, where its sessions have {total}")
    return {
        str(name): ShownPictures(hashes=hashes[stop - kept : stop], still=still[stop - kept : stop], total=int(number))
        for (name, kept, number), stop in zip(counts, stops, strict=True)
    }


# --------------------------------------------------------------------------------------------------------------------


def _evenly(items: np.ndarray, most: int) -> np.ndarray:
    """At most `most` of them, evenly spaced."""
    return items[np.arange(min(most, len(items))) * len(items) // max(min(most, len(items)), 1)]


def _hashes(source: np.ndarray, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of some frames, and which of them are pictures that can be told apart."""
    hashes, distinct = np.zeros((len(frames), N_PROJECTIONS), np.float32), np.zeros(len(frames), bool)
    block = max(1, _MOST_BYTES // max(1, 4 * int(np.prod(source.shape[1:], dtype=np.int64))))
    spread = (0.0, 255.0)
    if source.dtype != np.uint8 and len(frames):
        some = np.asarray(source[frames[:: max(1, len(frames) // 200)]])
        spread = float(some.min()), float(some.max())
    for start in range(0, len(frames), block):
        part = slice(start, start + block)
        shown = np.asarray(source[frames[part]], np.float32).reshape(-1, *frame_shape(source.shape[1:]))
        hashes[part], distinct[part] = fingerprints(shown, spread)
    return hashes, distinct


def _nearest(new: np.ndarray, old: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance of each new hash from the nearest old one, and which that is."""
    new, old = np.asarray(new, np.float32), np.asarray(old, np.float32)
    squares = (new**2).sum(axis=1)[:, None] + (old**2).sum(axis=1) - 2 * new @ old.T
    nearest = squares.argmin(axis=1)
    return np.sqrt(np.maximum(squares[np.arange(len(new)), nearest], 0)), nearest


def _both(old: ShownPictures, new: ShownPictures) -> ShownPictures:
    """The pictures of both, at most 1,000; each part keeps its share."""
    chosen = [_evenly(np.arange(len(one)), _MOST // 2 if len(old) + len(new) > _MOST else _MOST) for one in (old, new)]
    pairs = list(zip((old, new), chosen, strict=True))
    return ShownPictures(
        hashes=np.concatenate([one.hashes[index] for one, index in pairs]),
        still=np.concatenate([one.still[index] for one, index in pairs]), total=old.total + new.total,
    )  # fmt: skip
