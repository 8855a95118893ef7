"""A log of the stimulus in plain text: a line for every presentation, with its times and the frame shown."""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...config import nearest
from ..session import SPLITS, SessionError
from .repeats import repeat_ids

__all__ = ["StimulusLog"]

_COLUMNS = ("start", "stop", "frame", "trial", "type", "split")


@dataclass
class StimulusLog:
    """What was shown when, in the order of time.

    Parameters
    ----------
    start, stop
        (L,) s of each presentation; they do not overlap.
    frame
        (L,) int: row of the stimulus; −1: grey.
    trial
        (L,) int, or None where the log does not say.
    type
        (L,) text: stimulus type.
    split
        (L,) text, or None where the log does not say.
    """

    start: np.ndarray
    stop: np.ndarray
    frame: np.ndarray
    trial: np.ndarray | None
    type: np.ndarray
    split: np.ndarray | None

    @classmethod
    def read(cls, path: Path, n_frames: int) -> "StimulusLog":
        """Read a CSV file with a line of column names; `n_frames` is the number of frames that there are.

        Raises
        ------
        SessionError
            If a column is missing or unknown, a value cannot be read, or presentations overlap; with the line.
        """
        with open(path, newline="", encoding="utf-8-sig") as file:
            try:
                rows = list(csv.DictReader(file, skipinitialspace=True))
            except (csv.Error, UnicodeDecodeError) as error:
                raise SessionError(f"{path}: not a CSV file ({error})") from None
        if not rows:
            raise SessionError(f"{path}: has no line below the names of its columns")
        names = [name for name in rows[0] if name is not None]
        for name in names:
            if name not in _COLUMNS:
                raise SessionError(f"{path}: unknown column {name!r}; {nearest(name, _COLUMNS)}")
        for name in _COLUMNS[:3]:
            if name not in names:
                raise SessionError(f"{path}: has no column {name!r} (it has {', '.join(names)})")

        def column(name: str, kind: type, empty: str | None = None) -> np.ndarray:
            values = []
            for number, row in enumerate(rows, start=2):
                text = (row[name] or "").strip() or empty
                try:
                    values.append(kind(text))
                except (TypeError, ValueError):
                    raise SessionError(f"{path}:{number}: {name} is {text!r}; give a {_KINDS[kind]}") from None
            return np.asarray(values)

        start, stop = column("start", float), column("stop", float)
        frame = column("frame", int, "-1")
        split = column("split", str, "") if "split" in names else None
        for bad, what in (
            (~(stop > start), "stops before it starts"),
            ((frame < -1) | (frame >= n_frames), f"shows a frame that is none of the {n_frames} of stimulus.npy"),
            (~np.isin(split, ["", *SPLITS]) if split is not None else np.zeros(0), f"has a split other than {SPLITS}"),
        ):  # fmt: skip
            if bad.any():
                raise SessionError(f"{path}:{int(np.flatnonzero(bad)[0]) + 2}: {what}; correct the line")
        order = np.argsort(start, kind="stable")
        early = np.flatnonzero(start[order][1:] < stop[order][:-1] - 1e-6)
        if len(early):
            raise SessionError(f"{path}:{int(order[early[0] + 1]) + 2}: starts before the line before it has stopped")
        return cls(
            start[order], stop[order], frame[order],
            column("trial", int)[order] if "trial" in names else None,
            (column("type", str, "movie") if "type" in names else np.full(len(rows), "movie"))[order],
            None if split is None else split[order],
        )  # fmt: skip

    def line_at(self, time: np.ndarray) -> np.ndarray:
        """The line that is shown at each time, (T,) int; −1 where none is."""
        line = np.searchsorted(self.start, time, side="right") - 1
        return np.where((line >= 0) & (time < self.stop[line]), line, -1)

    def trials(self, time: np.ndarray, rate: float, duration: float) -> tuple[np.ndarray, np.ndarray]:
        """Trial of each bin and its `repeat_id`, both (T,) int64; −1 between trials.

        Parameters
        ----------
        time
            (T,) middle of each bin, s.
        rate
            Bins a second.
        duration
            s of a trial where the log does not say which lines form one. Longer pauses lie between trials.

        Raises
        ------
        SessionError
            If two trials overlap.
        """
        if self.trial is None:
            return self._cut(time, rate, duration), np.full(len(time), -1, np.int64)
        trial, keys, lengths = np.full(len(time), -1, np.int64), [], []
        numbers, first = np.unique(self.trial, return_index=True)
        for number in numbers[np.argsort(first)].tolist():
            lines = np.flatnonzero(self.trial == number)
            if number < 0:
                continue
            if len(lines) != lines[-1] - lines[0] + 1:
                raise SessionError(f"stimulus_log.csv: the lines of trial {number} lie between those of another trial")
            here = (time >= self.start[lines[0]]) & (time < self.stop[lines[-1]])
            trial[here] = number
            keys.append((self.type[lines[0]], tuple(self.frame[lines].tolist())))
            lengths.append(int(here.sum()))
        repeat_id = np.full(len(time), -1, np.int64)
        repeat_id[trial >= 0] = repeat_ids(keys, lengths)
        return trial, repeat_id

    def _cut(self, time: np.ndarray, rate: float, duration: float) -> np.ndarray:
        """Pieces of about `duration`, where pauses are no longer than that; a change of type begins a new one."""
        line = np.clip(np.searchsorted(self.start, time, side="right") - 1, 0, None)
        inside = (time >= self.start[0]) & (time < self.stop[line] + duration) & (time < self.stop[-1])
        pause = np.append(False, self.start[1:] - self.stop[:-1] > duration)
        inside &= ~(np.append(pause[1:], False)[line] & (time >= self.stop[line]))
        change = np.append(False, self.type[1:] != self.type[:-1])
        stretch = np.cumsum(pause | change)[line]
        bins = max(1, round(duration * rate))
        trial, first = np.full(len(time), -1, np.int64), 0
        for number in np.unique(stretch[inside]).tolist():
            here = inside & (stretch == number)
            place = np.arange(int(here.sum())) // bins
            trial[here] = first + place
            first += int(place.max()) + 1
        return trial


_KINDS = {float: "time in s", int: "whole number", str: "text"}
