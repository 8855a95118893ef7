"""Responses to a repeated stimulus beside the twin's, and what their variance is made of."""

from typing import Literal

import numpy as np
from matplotlib.figure import Figure
from pydantic import Field

from ..analysis.plots import psth
from ..config import PositiveInt, register
from ..metrics.reliability import cc_max, cc_norm, correlation_to_average, fev, feve, signal_power, stack_repeats
from .base import Experiment, Result
from .presenter import ExperimentError, Presenter
from .recorded import chosen_split, predicted, recorded
from .tables import UnitTable

__all__ = ["PSTH"]


@register("experiment", "psth")
class PSTH(Experiment):
    """Repeats: the mean response of every unit and the twin's, noise ceilings, and a partition of variance.

    The variance of a unit's single responses is split into three shares. `stimulus` is the signal power: what repeats
    have in common (Sahani & Linden 2003). `behavior` is the variance of the twin's prediction over repeats of one
    frame, in which nothing but behaviour and the units' past differs. `rest` is what is left.

    Noise correlations are correlations between units of what is left after the mean over repeats (`raw`), and after the
    twin's prediction (`residual`). A twin that explains why units vary together leaves less of them.
    """

    needs_data = True

    split: Literal["auto", "train", "val", "test"] = Field("auto", description="Part in which repeats are looked for.")
    n_shown: PositiveInt = Field(4, description="Units in the figures: those with the highest noise ceiling.")

    def measure(self, presenter: Presenter) -> Result:
        result, table, skipped = Result(), UnitTable(), []
        for index, data in presenter.prepared.items():
            repeated = np.asarray(data.repeat_id) >= 0
            if not (repeated & (np.asarray(data.n_valid) > 0)).any():
                skipped.append(data.name)
                continue
            split = chosen_split(data, self.split, repeated & (np.asarray(data.n_valid) > 0))
            rates = predicted(presenter.twin, index, data, split)
            kept = np.flatnonzero(repeated & ~np.isnan(rates[:, 0]))
            mask, ids = np.asarray(data.mask[kept]), np.asarray(data.repeat_id[kept])
            y = stack_repeats(np.nan_to_num(recorded(data)[kept]), mask, ids)
            rate = stack_repeats(rates[kept], mask, ids)
            table.add(presenter.spec(index), _figures(y, rate))
            result.arrays[f"responses.{data.name}"] = np.nanmean(y, axis=0) * data.spec.bin_rate
            result.arrays[f"rates.{data.name}"] = np.nanmean(rate, axis=0) * data.spec.bin_rate
            for kind in ("responses", "rates"):
                result.axes[f"{kind}.{data.name}"] = (f"bin.{data.name}", f"unit.{data.name}")
            order = np.argsort(-np.nan_to_num(cc_max(y), nan=-1))[: self.n_shown]
            for unit in order:
                label = f"{data.name}, unit {data.spec.unit_ids[unit]}"
                result.figures[f"psth.{data.name}.{data.spec.unit_ids[unit]}"] = _draw(
                    y[:, :, unit], np.nanmean(rate[:, :, unit], axis=0), data.spec.bin_rate, label
                )
        if not result.arrays:
            raise ExperimentError("experiment psth: no session has repeats (Session.repeat_id) in that part")
        result.tables["units"] = table.columns()
        result.settings["without_repeats"] = skipped
        return result


def _figures(y: np.ndarray, rate: np.ndarray) -> dict[str, np.ndarray]:
    """Figures of every unit from responses and rates (R, N, U), NaN where a repeat is missing."""
    total = np.nanvar(y.reshape(-1, y.shape[2]), axis=0, ddof=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        varies = np.where(total > 0, total, np.nan)
        stimulus = signal_power(y) / varies
        behavior = np.nanmean(np.nanvar(rate, axis=0, ddof=1), axis=0) / varies
    raw, residual = _correlations(y - np.nanmean(y, axis=0)), _correlations(y - rate)
    return {
        "correlation_to_average": correlation_to_average(y, rate), "cc_norm": cc_norm(y, rate), "cc_max": cc_max(y),
        "fev": fev(y), "feve": feve(y, rate), "share_stimulus": stimulus, "share_behavior": behavior,
        "share_rest": 1 - stimulus - behavior, "noise_correlation": raw, "noise_correlation_left": residual,
    }  # fmt: skip


def _correlations(values: np.ndarray) -> np.ndarray:
    """Mean correlation of each unit with all others, (U,), over the repeats (R, N, U) in which all are valid."""
    flat = values.reshape(-1, values.shape[2])
    flat = flat[~np.isnan(flat).any(axis=1)]
    n_units = flat.shape[1]
    if n_units < 2 or len(flat) < 3:
        return np.full(n_units, np.nan)
    flat = flat - flat.mean(axis=0)
    spread = np.sqrt((flat**2).sum(axis=0))
    with np.errstate(invalid="ignore", divide="ignore"):
        matrix = (flat.T @ flat) / np.outer(spread, spread)
    np.fill_diagonal(matrix, np.nan)
    counted = ~np.isnan(matrix).all(axis=1)
    mean = np.full(n_units, np.nan)
    mean[counted] = np.nanmean(matrix[counted], axis=1)
    return mean


def _draw(responses: np.ndarray, rate: np.ndarray, bin_rate: float, label: str):
    def draw() -> Figure:
        return psth(responses, rate, bin_rate=bin_rate, label=label)

    return draw
