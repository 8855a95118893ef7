"""What lies beside `.dset` files: quality control of spike sorting, and saccades."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..session import SessionError
from ..streamed import Streamed

__all__ = ["overlapping", "read_missing_pct", "read_saccades"]

_WINDOWS = ("window_blocks", "window_times", "windows")
_STARTS = ("start_time", "start", "onset", "t_start", "start_t")
_STOPS = ("end_time", "stop_time", "end", "stop", "offset", "t_stop", "end_t")


def read_missing_pct(
    folder: Path, file: str, unit_ids: np.ndarray, time: np.ndarray, notes: list[str]
) -> Streamed | None:
    """Per cent of spikes below the detection threshold, (T, U) float32, from `qc/.../truncation.npz`.

    The file lists estimates (`mpcts`) and the unit of each (`cid`). One estimate a unit holds for the whole session.
    Several are taken as estimates over windows: where the file gives windows in s of the recording's clock
    (`window_blocks`, (n, 2)), they are interpolated between the windows' middles; otherwise the median is used.

    Parameters
    ----------
    folder
        Of the session.
    file
        truncation.npz relative to it; empty: the only one below `qc`.
    unit_ids
        (U,) ids to look for.
    time
        (T,) start of each bin, s.
    notes
        Takes one sentence for everything that is left out or assumed.

    Returns
    -------
    Streamed or None
        None where there is no such file.
    """
    path = _truncation(folder, file)
    if path is None:
        return None
    arrays = _npz(path)
    cids, estimates = arrays["cid"].reshape(-1), arrays["mpcts"]
    if len(cids) != len(estimates):
        raise SessionError(f"{path}: has {len(cids)} cid for {len(estimates)} mpcts; write one a row")
    estimates = np.asarray(estimates, np.float64).reshape(len(cids), -1)
    windows = next((arrays[key] for key in _WINDOWS if key in arrays), None)
    timed = estimates.shape[1] == 1 and _in_seconds(windows, len(cids), time)
    found = [_curve(cids == unit, estimates, windows if timed else None) for unit in unit_ids.tolist()]
    curves = [(when, values) for when, values, _ in found]
    unknown = [unit for unit, (*_, number) in zip(unit_ids.tolist(), found, strict=True) if number == 0]
    reduced = [unit for unit, (*_, number) in zip(unit_ids.tolist(), found, strict=True) if number > 1 and not timed]
    if unknown:
        notes.append(f"missing_pct is 0 for units {unknown}, of which {path.name} has no estimate.")
    if reduced:
        notes.append(
            f"missing_pct of {len(reduced)} units is the median of several estimates, because {path.name} does not "
            "say in s when each holds."
        )

    def read(start: int, stop: int) -> np.ndarray:
        # Estimates change slowly, so the start of a bin stands for the bin.
        part = [np.interp(time[start:stop], when, values) for when, values in curves]
        return np.stack(part, axis=1).astype(np.float32)

    return Streamed((len(time), len(unit_ids)), np.dtype(np.float32), read)


def read_saccades(
    folder: Path, time: np.ndarray, lengths: Sequence[int], step: float, notes: list[str]
) -> np.ndarray | None:
    """Which bins overlap a saccade, (T,) float32 of 0 and 1, from `saccades/saccades.json`.

    The file is a list of saccades, each with its start and end in s (`start_time` and `end_time`, or the like), or a
    mapping of such lists.

    Parameters
    ----------
    folder
        Of the session.
    time
        (T,) start of each bin, s.
    lengths
        Bins of each stimulus type; the clock increases within one.
    step
        Duration of a bin, s.
    notes
        Takes one sentence for what is left out or assumed.
    """
    path = folder / "saccades" / "saccades.json"
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SessionError(f"{path}: not JSON ({error})") from None
    starts, stops = _events(content)
    if starts is None:
        notes.append(f"{path.name} was left out, because it lists no start of a saccade in s ({', '.join(_STARTS)}).")
        return None
    good = np.isfinite(starts) & np.isfinite(stops) & (stops >= starts)
    if not good.all():
        notes.append(f"{int((~good).sum())} saccades were left out, because they end before they start, or are NaN.")
    signal = [overlapping(part, step, starts[good], stops[good]) for part in np.split(time, np.cumsum(lengths)[:-1])]
    notes.append(f"Behaviour 'saccade' is 1 in bins that overlap one of the {int(good.sum())} saccades, else 0.")
    return np.concatenate(signal).astype(np.float32)


def _curve(rows: np.ndarray, estimates: np.ndarray, windows: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, int]:
    """Times and values between which a unit's estimates are interpolated, and how many there were."""
    values = estimates[rows]
    known = np.isfinite(values)
    number = int(known.sum())
    if not number:
        return np.zeros(1), np.zeros(1), 0
    if windows is None:
        return np.zeros(1), np.array([np.median(values[known])]), number
    middle = windows[rows].mean(axis=1)[known[:, 0]]
    order = np.argsort(middle)
    return middle[order], values[known][order], number


def _truncation(folder: Path, file: str) -> Path | None:
    if file:
        if not (folder / file).is_file():
            raise SessionError(f"{folder / file}: no such file; give truncation= relative to {folder}")
        return folder / file
    found = sorted((folder / "qc").rglob("truncation.npz"))
    if len(found) > 1:
        names = [str(path.relative_to(folder)) for path in found]
        raise SessionError(f"{folder}: has several truncation.npz, {names}; choose one with truncation=")
    return found[0] if found else None


def _npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in ("cid", "mpcts", *_WINDOWS) if key in archive.files}
    except (ValueError, OSError, AttributeError) as error:
        raise SessionError(f"{path}: not an .npz file of plain arrays ({error})") from None
    for key in ("cid", "mpcts"):
        if key not in arrays:
            raise SessionError(f"{path}: has no array {key!r}; it needs cid and mpcts")
    return arrays


def _in_seconds(windows: np.ndarray | None, rows: int, time: np.ndarray) -> bool:
    """Whether windows are times of the recording: whole numbers count spikes or samples instead."""
    if windows is None or windows.shape != (rows, 2) or windows.dtype.kind != "f":
        return False
    return bool(np.isfinite(windows).all() and windows.min() <= time.max() and windows.max() >= time.min())


def _events(content: Any) -> tuple[np.ndarray | None, np.ndarray]:
    """Starts and stops of events, s; None where the content has no such thing."""
    columns = content if isinstance(content, Mapping) else {}
    if isinstance(content, Sequence) and content and all(isinstance(event, Mapping) for event in content):
        columns = {key: [event.get(key) for event in content] for key in content[0]}
    if isinstance(content, Sequence) and not content:
        return np.zeros(0), np.zeros(0)
    start = next((columns[key] for key in _STARTS if key in columns), None)
    stop = next((columns[key] for key in _STOPS if key in columns), start)
    try:
        starts, stops = (None if start is None else np.asarray(values, np.float64) for values in (start, stop))
    except (TypeError, ValueError):
        return None, np.zeros(0)
    if starts is None or starts.ndim != 1 or starts.shape != stops.shape:
        return None, np.zeros(0)
    return starts, stops


def overlapping(time: np.ndarray, step: float, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """Which bins share a moment with one of the events, (T,) bool.

    Parameters
    ----------
    time
        (T,) start of each bin, s, increasing; a bin lasts `step` s and does not hold its end.
    step
        Duration of a bin, s.
    starts, stops
        (E,) s of each event, which does not hold its stop either, unless it has no duration.
    """
    first = np.searchsorted(time + step, starts, side="right")  # the first bin that ends after the start
    last = np.searchsorted(time, stops, side="left")  # the first bin that begins at the stop or after it
    # An event without duration lies in one bin, unless that bin begins after it because of a gap.
    within = np.append(time, np.inf)[first] <= starts
    last = np.where(within, np.maximum(last, first + 1), last)
    change = np.zeros(len(time) + 1)
    kept = last > first
    np.add.at(change, first[kept], 1)
    np.add.at(change, last[kept], -1)
    return np.cumsum(change)[:-1] > 0
