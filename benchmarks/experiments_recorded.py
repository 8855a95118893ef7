"""Experiments on the recording itself beside the simulator: responses around saccades, and a gaze that stands still."""

from dataclasses import replace

import numpy as np

from neurotwin.data.arrange import modelled_bins
from neurotwin.data.prepare import Prepared, open_session
from neurotwin.data.scene import window_of
from neurotwin.data.session import Session
from neurotwin.data.simulate import FRAME_SIZE, draw_units
from neurotwin.experiments import Counterfactual, Events
from neurotwin.experiments.counterfactual import other_gaze
from neurotwin.models import TwinModel

__all__ = ["around_saccades", "rates_of_gaze", "stabilised"]


def around_saccades(twin: TwinModel, prepared: list[Prepared]) -> dict:
    """The saccade-triggered average of the twin beside that of the true rate, over all lags of all units."""
    names = [p.name for p in prepared]
    result = Events().run(twin, prepared, sessions=names)
    # The same averages, had the recording held the true rates.
    exact = [replace(p, responses=np.asarray(p.true_rate)) for p in prepared]
    truth = Events(n_bootstraps=1).run(twin, exact, sessions=names)
    near, inside, ceiling, alike = [], [], [], []
    for data in prepared:
        low, high = result.arrays[f"band.{data.name}"]
        found, true, mean = (part.arrays[f"{kind}.{data.name}"]
                             for part, kind in ((result, "twin"), (truth, "data"), (result, "data")))  # fmt: skip
        near += ((found - true >= low - mean) & (found - true <= high - mean)).mean(0).tolist()
        inside += ((found >= low) & (found <= high)).mean(0).tolist()
        ceiling += ((true >= low) & (true <= high)).mean(0).tolist()
        alike += [np.corrcoef(a, b)[0, 1] for a, b in zip(found.T, true.T, strict=True)]
    return {
        "lags at which the twin is within the 95% band about the truth, share": np.mean(near),
        "lags at which the twin is within the 95% band of the data, share": np.mean(inside),
        "lags at which the truth is within the 95% band of the data, share": np.mean(ceiling),
        "correlation with the true average, median": np.median(alike),
    }


def stabilised(twin: TwinModel, prepared: list[Prepared]) -> dict:
    """What a gaze that stands still in each trial changes, beside what it changes in the simulator."""
    result = Counterfactual(changes=("stabilised",)).run(twin, prepared, sessions=[p.name for p in prepared])
    over_bins, found, true = [], [], []
    for data in prepared:
        session = open_session(data.spec.config)
        gaze, trial = np.asarray(session.behavior["eyepos"], float), np.asarray(session.trial)
        still = other_gaze(gaze, trial, "stabilised", bin_rate=session.bin_rate)
        grid = modelled_bins(session, data.spec.config)
        bins = grid.first[:, None] + np.arange(grid.factor)
        was, would_be = (rates_of_gaze(session, one)[bins].mean(1) for one in (None, still))
        predicted, changed = (result.arrays[f"{kind}.{data.name}"] for kind in ("recorded", "stabilised"))
        # Only where a picture is behind the frame does the gaze change what is seen.
        seen = (np.asarray(session.scene)[bins[:, -1]] >= 0) & ~np.isnan(predicted[:, 0])
        pairs = zip((changed - predicted)[seen].T, (would_be - was)[seen].T, strict=True)
        over_bins += [np.corrcoef(a, b)[0, 1] for a, b in pairs]
        found += (changed[seen].mean(0) / predicted[seen].mean(0)).tolist()
        true += (would_be[seen].mean(0) / was[seen].mean(0)).tolist()
    return {
        "change of the rate over bins, correlation with the simulator's, median": np.median(over_bins),
        "mean rate over that with the gaze as it was, correlation over units": np.corrcoef(found, true)[0, 1],
        "mean rate over that with the gaze as it was, median, twin": np.median(found),
        "mean rate over that with the gaze as it was, median, simulator": np.median(true),
    }  # fmt: skip


def rates_of_gaze(session: Session, gaze: np.ndarray | None) -> np.ndarray:
    """Rates (T, U), Hz, of the units of a demo session had the gaze been another, (T, 2) degrees; None: as it was."""
    units, frames = draw_units(session.name), np.asarray(session.stimulus).reshape(-1, FRAME_SIZE, FRAME_SIZE).copy()
    if gaze is not None:
        scene, center = np.asarray(session.scene), gaze + np.asarray(session.scene_offset)
        for picture in np.unique(scene[scene >= 0]):
            bins, size = np.flatnonzero(scene == picture), frames.shape[1:]
            frames[bins] = window_of(np.asarray(session.scenes[picture]), center[bins], size, session.pixels_per_degree)
    return units.rate(frames) * units.gain(session.behavior["pupil"], session.behavior["eyevel"])
