"""Responses around saccades, stimulus onsets or any list of times: data, twin, and twin without behaviour."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.figure import Figure
from pydantic import Field

from ..config import PositiveInt, register
from ..data.arrange import modelled_bins
from ..data.prepare import Prepared, open_session
from ..data.session import Session
from ..metrics.reliability import nan_mean
from .base import Experiment, Result
from .presenter import ExperimentError, Presenter
from .recorded import behavior_held, chosen_split, predicted, recorded
from .saccades import find_saccades
from .tables import UnitTable

__all__ = ["Events"]


@register("experiment", "events")
class Events(Experiment):
    """The average response of every unit around events, in the data, in the twin, and in the twin without behaviour.

    Saccades are found in the eye position (Engbert & Kliegl 2003); onsets are the first bins of trials; a file names
    events by session and time. Only bins of the event's own trial count. Without behaviour means with every variable at
    its training median: what is then left of a modulation comes in through the stimulus.

    The band is of the mean over events, from bootstraps of events; `inside` is the share of lags at which the twin lies
    within the band of the data.
    """

    needs_data = True

    kind: Literal["saccades", "onsets", "file"] = Field("saccades", description="What the events are.")
    signal: str = Field("eyepos", description="saccades: the behaviour signal that holds the eye position, (T, 2).")
    threshold: float = Field(6.0, gt=0, description="saccades: of the velocity, in standard deviations of its noise.")
    file: str = Field("", description="file: a CSV with the columns session and time, s from the recording's start.")
    before: float = Field(0.1, ge=0, description="s before an event.")
    after: float = Field(0.3, gt=0, description="s after an event.")
    split: Literal["auto", "train", "val", "test"] = Field("val", description="Part of the recordings.")
    n_bootstraps: PositiveInt = Field(500, description="Draws of events.")
    confidence: float = Field(0.95, gt=0, lt=1, description="Of the band.")
    seed: int = Field(0, description="Of the draws.")

    def measure(self, presenter: Presenter) -> Result:
        result, table, counts = Result(), UnitTable(), {}
        for index, data in presenter.prepared.items():
            events = self._events(data)
            split = chosen_split(data, self.split, np.asarray(data.n_valid) > 0)
            windows, lags = self._windows(data, events)
            rates = {
                "data": recorded(data),
                "twin": predicted(presenter.twin, index, data, split),
                "without_behavior": predicted(presenter.twin, index, behavior_held(data), split),
            }
            usable = (windows >= 0) & ~np.isnan(rates["twin"][windows, 0])
            kept = usable.any(axis=1)
            if kept.sum() < 2:
                raise ExperimentError(
                    f"session {data.name}: {int(kept.sum())} events in the {split} split; choose another split or kind"
                )
            rng = np.random.default_rng([self.seed, index])
            averages: dict[str, np.ndarray] = {}
            for name, values in rates.items():
                cut = np.where(usable[kept][..., None], values[windows[kept]], np.nan) * data.spec.bin_rate
                averages[name] = nan_mean(cut)
                if name == "data":
                    band = _band(cut, rng, self.n_bootstraps, self.confidence)
                result.arrays[f"{name}.{data.name}"] = averages[name]
                result.axes[f"{name}.{data.name}"] = ("lag", f"unit.{data.name}")
            result.arrays[f"band.{data.name}"] = band
            result.axes[f"band.{data.name}"] = ("bound", "lag", f"unit.{data.name}")
            result.arrays["lag_s"] = lags / data.spec.bin_rate
            result.axes["lag_s"] = ("lag",)
            counts[data.name] = int(kept.sum())
            table.add(presenter.spec(index), _figures(averages, band))
            result.figures[f"events.{data.name}"] = _figure(averages, lags / data.spec.bin_rate, data.name)
        result.tables["units"] = table.columns()
        result.settings["events"] = counts
        return result

    def _events(self, data: Prepared) -> np.ndarray:
        """Modelled bins in which events lie."""
        if self.kind == "onsets":
            return np.unique(data.run_start)
        session = open_session(data.spec.config)
        from_file = self.kind == "file"
        bins = _bins_of_times(self._times(data.name), session) if from_file else self._saccades(session)
        grid = modelled_bins(session, data.spec.config)
        order = np.argsort(grid.first, kind="stable")  # types may stand in another order than they were recorded
        first = grid.first[order]
        place = np.searchsorted(first, bins, side="right") - 1
        inside = (place >= 0) & (bins < first[np.maximum(place, 0)] + grid.factor)
        return np.unique(order[place[inside]])

    def _saccades(self, session: Session) -> np.ndarray:
        if self.signal not in session.behavior:
            raise ExperimentError(
                f"session {session.name}: has no signal {self.signal!r} to find saccades in; it has "
                f"{', '.join(session.behavior) or 'no behaviour'}"
            )
        gaze = np.asarray(session.behavior[self.signal])
        if gaze.ndim != 2 or gaze.shape[1] != 2:
            raise ExperimentError(
                f"session {session.name}: {self.signal} has shape {gaze.shape}; eye position is (T, 2)"
            )
        tracked = np.asarray(session.valid) & (np.asarray(session.trial) >= 0)
        return find_saccades(gaze, session.bin_rate, threshold=self.threshold, valid=tracked)[:, 0]

    def _times(self, name: str) -> np.ndarray:
        path = Path(self.file)
        try:
            with open(path, newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            return np.array([float(row["time"]) for row in rows if row["session"] == name])
        except (OSError, KeyError, ValueError) as error:
            raise ExperimentError(
                f"option file: {path} is no CSV with the columns session and time ({error})"
            ) from None

    def _windows(self, data: Prepared, events: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Bins around each event, (N, L), -1 outside of its trial; and the lags, bins."""
        rate = data.spec.bin_rate
        lags = np.arange(-round(self.before * rate), round(self.after * rate) + 1)
        windows = events[:, None] + lags
        inside = (windows >= data.run_start[events][:, None]) & (windows < data.run_stop[events][:, None])
        return np.where(inside, windows, -1), lags


def _bins_of_times(times: np.ndarray, session: Session) -> np.ndarray:
    """Recorded bins in which times lie, s from the recording's start."""
    start = np.arange(session.n_bins) / session.bin_rate if session.time is None else session.time - session.time[0]
    bins = np.searchsorted(start, times + 1e-9, side="right") - 1
    return bins[(bins >= 0) & (times < start[-1] + 1 / session.bin_rate)]


def _band(cut: np.ndarray, rng: np.random.Generator, draws: int, confidence: float) -> np.ndarray:
    """Bounds (2, L, U) of the mean over events (N, L, U), from bootstraps of events."""
    counted, values = ~np.isnan(cut), np.nan_to_num(cut)
    weights = rng.multinomial(len(cut), np.full(len(cut), 1 / len(cut)), draws).astype(float)
    sums = np.tensordot(weights, values, axes=1)
    numbers = np.tensordot(weights, counted.astype(float), axes=1)
    means = np.where(numbers > 0, sums / np.maximum(numbers, 1), np.nan)
    tail = (1 - confidence) / 2
    low, high = np.full((2, *cut.shape[1:]), np.nan)
    known = ~np.isnan(means).all(axis=0)
    low[known], high[known] = np.nanquantile(means[:, known], [tail, 1 - tail], axis=0)
    return np.stack([low, high])


def _figures(averages: Mapping[str, np.ndarray], band: np.ndarray) -> dict[str, np.ndarray]:
    low, high = band
    known = ~np.isnan(averages["data"]) & ~np.isnan(averages["twin"])  # lags that some event reaches
    columns: dict[str, np.ndarray] = {}
    with np.errstate(invalid="ignore", divide="ignore"):
        centred = {}
        for name, values in averages.items():
            values = np.where(known, values, np.nan)
            mean = nan_mean(values)
            span = np.where(known, values, -np.inf).max(axis=0) - np.where(known, values, np.inf).min(axis=0)
            columns[f"modulation_{name}"] = np.where(known.any(axis=0), span / mean, np.nan)
            centred[name] = np.nan_to_num(values - mean)
        for name in ("twin", "without_behavior"):
            a, b = centred["data"], centred[name]
            columns[f"r_{name}"] = (a * b).sum(axis=0) / np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0))
            inside = (averages[name] >= low) & (averages[name] <= high)
            columns[f"inside_{name}"] = (inside & known).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    return columns


def _figure(averages: Mapping[str, np.ndarray], seconds: np.ndarray, name: str):
    """Draws the mean over units of each average, each unit divided by its mean in the data."""

    def draw() -> Figure:
        figure = Figure(figsize=(4.6, 3.2), layout="constrained")
        axes = figure.subplots()
        axes.spines[["top", "right"]].set_visible(False)
        scale = nan_mean(averages["data"])
        scale = np.where(scale > 0, scale, np.nan)
        colors = {"data": "#555555", "twin": "#d55e00", "without_behavior": "#0072b2"}
        for kind, values in averages.items():
            axes.plot(
                seconds * 1000, nan_mean(values / scale, axis=1), color=colors[kind], label=kind.replace("_", " ")
            )
        axes.axvline(0, color="0.6", linewidth=0.8)
        axes.set(xlabel="time from event (ms)", ylabel="rate over its mean", title=name)
        axes.legend(frameon=False, fontsize=8)
        return figure

    return draw
