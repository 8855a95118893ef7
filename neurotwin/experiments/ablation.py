"""What each behaviour variable, and spike history, adds to the prediction of every unit."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from pydantic import Field
from torch import Tensor

from ..clip import Clip, Sample
from ..config import PositiveInt, define, register
from ..data.clips import stream
from ..data.prepare import Prepared
from ..data.session import SPLITS
from ..metrics.definitions import Evidence
from ..metrics.sums import Sums
from ..models.network import Streamer, evaluating, mean_of
from .base import Experiment, Result
from .presenter import ExperimentError, Presenter
from .tables import UnitTable

__all__ = ["Ablation"]


@register("experiment", "ablation")
class Ablation(Experiment):
    """What behaviour and spike history add: scores of every unit with all inputs, and with one of them taken away.

    A variable is every column that one transform makes of it. It is set to its training median (`median`), to 0
    (`zero`), or to what it was in another trial (`permuted`), which keeps its distribution and its course and breaks
    its relation to this trial alone. `behavior` takes all variables away at once, `history` what the history encoder
    adds. Gains are scores of the whole model minus those of the ablated one, with intervals over bootstraps of trials:
    trials are drawn with replacement, the same for both, so that what makes a trial hard cancels.

    `gain_sd` says how strongly an input moves the rates: the standard deviation over bins of the logarithm of the
    ratio of the two predictions.
    """

    needs_data = True

    split: Literal["train", "val", "test"] = Field("val", description="Part of the recordings that is scored.")
    modes: tuple[Literal["median", "permuted", "zero"], ...] = Field(
        ("median", "permuted"), min_length=1, description="What a variable is set to."
    )
    metric: str = Field("", description="Score; default the figure of merit of the likelihood (bps for counts).")
    n_bootstraps: PositiveInt = Field(500, description="Draws of trials.")
    confidence: float = Field(0.95, gt=0, lt=1, description="Of the intervals.")
    seed: int = Field(0, description="Of the permutation and the draws.")

    def measure(self, presenter: Presenter) -> Result:
        twin = presenter.twin
        if not (twin.takes_behavior or twin.takes_history):
            raise ExperimentError("experiment ablation: the model sees neither behaviour nor spike history")
        gains, whole = UnitTable(), UnitTable()
        long: dict[str, list] = {
            name: [] for name in ("condition", "score", "gain", "gain_low", "gain_high", "gain_sd")
        }
        specs = []
        for index in presenter.indices:
            spec, rng = presenter.spec(index), np.random.default_rng([self.seed, index])
            conditions = self._conditions(presenter, index, rng)
            runs = {name: self._run(presenter, index, *condition) for name, condition in conditions.items()}
            metric = define("metric", self.metric or runs["full"].likelihood.figure_of_merit)
            full, n_trials = runs["full"].score(metric), len(runs["full"].sums)
            whole.add(spec, {"score": full, "trials": np.full(spec.n_units, n_trials)})
            draws = rng.multinomial(n_trials, np.full(n_trials, 1 / n_trials), self.n_bootstraps)
            columns: dict[str, np.ndarray] = {"full": full}
            for name, run in runs.items():
                if name == "full":
                    continue
                row = self._gains(runs["full"], run, metric, draws)
                columns |= {f"{name}": row["score"], f"{name}.gain": row["gain"]}
                columns |= {f"{name}.gain_low": row["gain_low"], f"{name}.gain_high": row["gain_high"]}
                columns[f"{name}.gain_sd"] = row["gain_sd"]
                long["condition"].append(np.full(spec.n_units, name))
                for key, values in row.items():
                    long[key].append(values)
                specs.append(spec)
            gains.add(spec, columns)
        rows = {
            "session": np.concatenate([np.full(s.n_units, s.name) for s in specs]),
            "unit_id": np.concatenate([np.asarray(s.unit_ids).astype(str) for s in specs]),
        }
        rows |= {name: np.concatenate(parts) for name, parts in long.items()}
        figures = {"gains": _figure(rows)}
        return Result(tables={"units": gains.columns(), "conditions": rows, "whole": whole.columns()}, figures=figures)

    def _conditions(self, presenter: Presenter, index: int, rng: np.random.Generator):
        """By name, the recording with one input taken away, and whether history is heard."""
        data, twin = presenter.prepared[index], presenter.twin
        conditions: dict[str, tuple[Prepared, bool]] = {"full": (data, True)}
        if twin.takes_history:
            conditions["history"] = (data, False)
        if not twin.takes_behavior:
            return conditions
        names = np.asarray(presenter.spec(index).behavior_names or ["behavior"] * data.behavior.shape[1])
        groups: dict[str, np.ndarray] = {str(name): names == name for name in dict.fromkeys(names.tolist())}
        if len(groups) > 1:
            groups["behavior"] = np.ones(len(names), bool)
        other = _of_another_trial(data, self.split, rng) if "permuted" in self.modes else None
        for name, columns in groups.items():
            for mode in self.modes:
                behavior = np.array(data.behavior)
                if mode == "median":
                    behavior[:, columns] = data.median_behavior()[columns]
                elif mode == "zero":
                    behavior[:, columns] = 0
                else:
                    behavior[:, columns] = data.behavior[other][:, columns]
                conditions[f"{name}.{mode}"] = (replace(data, behavior=behavior), True)
        return conditions

    def _run(self, presenter: Presenter, index: int, data: Prepared, history: bool) -> "_Run":
        """Predict a split, and add up what scores follow from, trial by trial."""
        twin = presenter.twin
        run = _Run(twin.per_session[index].likelihood)
        with evaluating(twin), torch.inference_mode():
            streamer = Streamer(twin)
            for sample in stream(data, self.split, context=twin.context):
                sample = sample.of_session(index).to(twin.like.device)
                rates = streamer(sample.clip) if history else _without_history(streamer, sample.clip)
                run.add(sample, rates, data)
        if not run.sums:
            raise ExperimentError(f"session {data.name}: no valid bin in the {self.split} split; choose another")
        return run

    def _gains(self, full: "_Run", run: "_Run", metric: type, draws: np.ndarray) -> dict[str, np.ndarray]:
        stacked = [one.stacked() for one in (full, run)]
        differences = np.stack([
            full.score(metric, torch.from_numpy(weights) @ stacked[0])
            - run.score(metric, torch.from_numpy(weights) @ stacked[1])
            for weights in draws.astype(np.float64)
        ])  # fmt: skip
        tail = (1 - self.confidence) / 2
        # Where a draw holds no spike the score is not defined, and the draw does not count.
        counted = ~np.isnan(differences).all(0)
        low, high = np.full((2, differences.shape[1]), np.nan)
        if counted.any():
            low[counted], high[counted] = np.nanquantile(differences[:, counted], [tail, 1 - tail], axis=0)
        ratio = np.concatenate(full.logs) - np.concatenate(run.logs)
        score = run.score(metric)
        return {
            "score": score, "gain": full.score(metric) - score, "gain_low": low, "gain_high": high,
            "gain_sd": ratio.std(0),
        }  # fmt: skip


class _Run:
    """The sums of one condition, by trial, and the logarithms of its predictions."""

    def __init__(self, likelihood) -> None:
        self.likelihood, self.sums, self.logs = likelihood, {}, []
        self._rows: tuple[str, ...] = Sums(likelihood).rows

    def add(self, sample: Sample, rates: Tensor, data: Prepared) -> None:
        """Add clips, each of which lies in one trial."""
        target, mask = sample.target, sample.target.mask
        starts = np.minimum(sample.clip.bins.cpu().numpy(), data.n_bins - 1)
        for row, trial in enumerate(data.trial[starts].tolist()):
            sums = self.sums.setdefault(trial, Sums(self.likelihood, rates.device))
            exposure = None if target.exposure is None else target.exposure[row]
            sums.update(rates[row], target.responses[row], mask[row], exposure)
        self.logs.append(rates.clamp_min(1e-9).log()[mask.any(-1)].cpu().numpy())

    def stacked(self) -> Tensor:
        """(trials, R × U), trials in ascending order."""
        return torch.stack([self.sums[trial].sums.flatten().cpu() for trial in sorted(self.sums)])

    def score(self, metric: type, sums: Tensor | None = None) -> np.ndarray:
        """A figure of merit, (U,), of all trials or of sums given."""
        values = (self.stacked().sum(0) if sums is None else sums).view(len(self._rows), -1)
        evidence = Evidence(self.likelihood, dict(zip(self._rows, values, strict=True)))
        return np.asarray(metric.compute(evidence), dtype=np.float64)


def _without_history(streamer: Streamer, clip: Clip) -> Tensor:
    modules = [member.module(clip.session) for member in streamer.network.members]
    return mean_of([module.rate(drive) for module, drive in zip(modules, streamer.drives(clip), strict=True)])


def _of_another_trial(data: Prepared, split: str, rng: np.random.Generator) -> np.ndarray:
    """For each bin, a bin equally long after the start of another trial of the same split, (T,).

    Trials are put into a random order and shifted by one, so that none keeps its own. Where the other trial is shorter,
    it starts over.
    """
    of_split = np.asarray(data.split) == SPLITS.index(split)
    starts = np.unique(data.run_start[of_split])
    bins = np.arange(data.n_bins)
    if len(starts) < 2:
        raise ExperimentError(
            f"session {data.name}: {len(starts)} trial in the {split} split; permuting needs two, use modes [median]"
        )
    order = rng.permutation(starts)
    donor = dict(zip(order.tolist(), np.roll(order, 1).tolist(), strict=True))
    lengths = {start: int(data.run_stop[start] - start) for start in starts.tolist()}
    other = bins.copy()
    for start in starts.tolist():
        own = bins[start : start + lengths[start]]
        other[own] = donor[start] + (own - start) % lengths[donor[start]]
    return other


def _figure(rows: Mapping[str, np.ndarray]):
    """Draws the gains of all units, one column a condition, with the median."""

    def draw() -> Figure:
        names = list(dict.fromkeys(rows["condition"].tolist()))
        figure = Figure(figsize=(1.5 + 1.0 * len(names), 3.6), layout="constrained")
        axes = figure.subplots()
        axes.spines[["top", "right"]].set_visible(False)
        for place, name in enumerate(names):
            values = rows["gain"][rows["condition"] == name]
            values = values[~np.isnan(values)]
            spread = np.linspace(-0.25, 0.25, len(values)) if len(values) else []
            axes.plot(place + np.asarray(spread), np.sort(values), ".", color="#0072b2", markersize=3)
            if len(values):
                axes.plot([place - 0.35, place + 0.35], [np.median(values)] * 2, color="#d55e00")
        axes.axhline(0, color="0.6", linewidth=0.8)
        axes.set_xticks(range(len(names)), names, rotation=40, ha="right", fontsize=8)
        axes.set_ylabel("gain of the score")
        return figure

    return draw
