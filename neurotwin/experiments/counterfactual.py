"""The same recording with the retinal input of another gaze: what if the eyes had moved otherwise?"""

from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from pydantic import Field

from ..config import define, name_of, register
from ..data.arrange import modelled_bins
from ..data.pipelines import pixel_scale
from ..data.prepare import Prepared, open_session
from ..data.scene import window_of
from ..data.session import Session
from ..metrics.sums import Sums
from .base import Experiment, Result
from .presenter import ExperimentError, Presenter
from .recorded import chosen_split, predicted
from .saccades import find_saccades
from .tables import UnitTable

__all__ = ["Counterfactual", "other_gaze"]

Change = Literal["stabilised", "stabilised_session", "scaled", "without_saccades"]


@register("experiment", "counterfactual")
class Counterfactual(Experiment):
    """Responses to what the retina would have seen had the gaze been another, scored like the real ones.

    The session must carry the pictures behind its stimulus (`scenes`, `scene`, `scene_offset`), the eye position and
    its pixels per degree. The window is cut from the picture again at every bin, with the gaze changed: held at the
    centroid of the trial (`stabilised`) or of the session (`stabilised_session`), its deviation from the trial's
    centroid multiplied by `factor` (`scaled`), or with every saccade's displacement taken out (`without_saccades`), so
    that drift is left.
    Behaviour stays as it was. Each change is scored against what was really recorded: where the eye's movements drive a
    unit through its receptive field, the score falls.
    """

    needs_data = True

    changes: tuple[Change, ...] = Field(
        ("stabilised", "scaled", "without_saccades"), min_length=1, description="What is done to the gaze."
    )
    factor: float = Field(0.5, ge=0, description="scaled: of the movements about the trial's centroid.")
    signal: str = Field("eyepos", description="The behaviour signal that holds the eye position, degrees, (T, 2).")
    threshold: float = Field(6.0, gt=0, description="without_saccades: of the velocity, in deviations of its noise.")
    split: Literal["auto", "train", "val", "test"] = Field("val", description="Part of the recordings.")

    def measure(self, presenter: Presenter) -> Result:
        result, table = Result(), UnitTable()
        for index, data in presenter.prepared.items():
            session = open_session(data.spec.config)
            self._require(session, data)
            grid = modelled_bins(session, data.spec.config)
            seen = np.asarray(session.scene)[grid.first + grid.factor - 1] >= 0
            split = chosen_split(data, self.split, seen & (np.asarray(data.n_valid) > 0))
            likelihood = presenter.twin.per_session[index].likelihood
            metric = define("metric", likelihood.figure_of_merit)
            rates = {"recorded": predicted(presenter.twin, index, data, split)}
            for change in self.changes:
                moved = _with_gaze(data, session, self._gaze(session, change), grid)
                rates[change] = predicted(presenter.twin, index, moved, split)
            used = ~np.isnan(rates["recorded"][:, 0]) & seen
            columns: dict[str, np.ndarray] = {}
            for name, values in rates.items():
                columns[f"score.{name}"] = _score(values[used], data, used, likelihood, metric)
                columns[f"rate_hz.{name}"] = np.mean(values[used], axis=0) * data.spec.bin_rate
                result.arrays[f"{name}.{data.name}"] = values
                result.axes[f"{name}.{data.name}"] = (f"bin.{data.name}", f"unit.{data.name}")
                if name != "recorded":
                    columns[f"gain.{name}"] = columns["score.recorded"] - columns[f"score.{name}"]
                    columns[f"r.{name}"] = _correlation(rates["recorded"][used], values[used])
            table.add(presenter.spec(index), columns)
        result.tables["units"] = table.columns()
        result.figures["scores"] = _figure(result.tables["units"], self.changes)
        return result

    def _require(self, session: Session, data: Prepared) -> None:
        lacks = [
            what
            for what, there in {
                "scenes and scene": len(session.scenes) > 0 and session.scene is not None,
                f"the signal {self.signal!r}": self.signal in session.behavior,
                "pixels_per_degree": session.pixels_per_degree is not None,
            }.items()
            if not there
        ]
        if lacks:
            raise ExperimentError(
                f"experiment {name_of('experiment', type(self))}: session {session.name} lacks {' and '.join(lacks)}; "
                "give them to Session, or leave it out with --sessions"
            )
        if pixel_scale(data.spec.config) is None:
            raise ExperimentError(f"session {session.name}: its frames are stored transformed; use pixelnorm alone")

    def _gaze(self, session: Session, change: Change) -> np.ndarray:
        return other_gaze(
            np.asarray(session.behavior[self.signal], float), np.asarray(session.trial), change,
            bin_rate=session.bin_rate, factor=self.factor, threshold=self.threshold, valid=np.asarray(session.valid),
        )  # fmt: skip


def other_gaze(
    gaze: np.ndarray, trial: np.ndarray, change: Change, *, bin_rate: float, factor: float = 0.5,
    threshold: float = 6.0, valid: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """An eye position (T, 2) changed, trial by trial; see :class:`Counterfactual`.

    Examples
    --------
    >>> gaze = np.array([[0.0, 0.0], [2.0, 0.0], [5.0, 1.0]])
    >>> other_gaze(gaze, np.array([0, 0, 1]), "stabilised", bin_rate=60.0).tolist()
    [[1.0, 0.0], [1.0, 0.0], [5.0, 1.0]]
    """
    if change == "stabilised_session":
        return np.broadcast_to(gaze[trial >= 0].mean(axis=0), gaze.shape).copy()
    moved = gaze.copy()
    for number in np.unique(trial):
        own = np.flatnonzero(trial == number)
        centre = gaze[own].mean(axis=0)
        if change == "stabilised":
            moved[own] = centre
        elif change == "scaled":
            moved[own] = centre + factor * (gaze[own] - centre)
        else:
            tracked = None if valid is None else valid[own]
            for start, stop in find_saccades(gaze[own], bin_rate, threshold=threshold, valid=tracked):
                first, last = own[start], own[min(stop, len(own) - 1)]
                leap = gaze[last] - gaze[first]
                moved[own[start:stop]] = moved[first]
                moved[own[min(stop, len(own) - 1) :]] -= leap
    return moved


def _with_gaze(data: Prepared, session: Session, gaze: np.ndarray, grid) -> Prepared:
    """The recording with the frames of another gaze wherever a picture is behind them; other frames stay."""
    last = grid.first + grid.factor - 1
    scene, size = np.asarray(session.scene)[last], data.spec.frame_shape[1:]
    frames = np.asarray(session.stimulus[last]).reshape(len(last), *size).copy()
    for picture in np.unique(scene[scene >= 0]):
        bins = np.flatnonzero(scene == picture)
        center = gaze[last[bins]] + np.asarray(session.scene_offset)
        frames[bins] = window_of(np.asarray(session.scenes[picture]), center, size, session.pixels_per_degree)
    return replace(data, source=frames, frame=np.arange(len(last)))


def _score(rates: np.ndarray, data: Prepared, used: np.ndarray, likelihood, metric: type) -> np.ndarray:
    sums = Sums(likelihood)
    exposure = None if data.exposure is None else torch.from_numpy(np.asarray(data.exposure)[used][:, None])
    responses = torch.from_numpy(np.asarray(data.responses)[used])
    sums.update(torch.from_numpy(rates), responses, torch.from_numpy(np.asarray(data.mask)[used]), exposure)
    return np.asarray(metric.compute(sums.evidence()), float)


def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (a * b).sum(axis=0) / np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0))


def _figure(columns: dict[str, np.ndarray], changes: tuple[str, ...]):
    def draw() -> Figure:
        figure = Figure(figsize=(3.2 * len(changes), 3.2), layout="constrained")
        panels = figure.subplots(1, len(changes), squeeze=False)[0]
        for axes, change in zip(panels, changes, strict=True):
            axes.spines[["top", "right"]].set_visible(False)
            axes.plot(columns["score.recorded"], columns[f"score.{change}"], ".", color="#0072b2", markersize=4)
            limit = np.nanmax(np.abs(columns["score.recorded"])) or 1.0
            axes.plot([0, limit], [0, limit], color="0.6", linewidth=0.8)
            axes.set(xlabel="score, gaze as it was", ylabel=f"score, {change.replace('_', ' ')}")
        return figure

    return draw
