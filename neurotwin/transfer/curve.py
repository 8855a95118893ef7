"""How a score grows with the amount of data, and what more of it would bring."""

import csv
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import scipy

from ..config import ConfigError, DatasetConfig, nearest
from ..data.prepare import Prepared, prepare_session
from ..data.session import SessionError
from ..files import replacing
from ..metrics.definitions import metrics
from ..metrics.table import summarize
from ..models.twin import TwinModel
from .features import feature_bank
from .fit import FitOptions, fit_session, score_bank
from .transfer import cache_folder, fewer, join

__all__ = ["Curve", "Saturation", "learning_curve", "saturation"]

logger = logging.getLogger(__name__)

_DRAWS = 400


@dataclass(frozen=True, kw_only=True)
class Saturation:
    """The curve a · m / (m + h) fitted to scores after m minutes, with the 90 % range over resampled points.

    Attributes
    ----------
    limit, limit_range
        a, the score of a recording without end.
    half, half_range
        h, minutes that reach half of it.
    double, double_range
        Score expected of twice the data there are.
    """

    limit: float
    limit_range: tuple[float, float]
    half: float
    half_range: tuple[float, float]
    double: float
    double_range: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Scores of fits on growing parts of a session.

    Attributes
    ----------
    session, metric
        Names.
    n_trials, minutes, seed
        (N,) of each fit.
    score
        (N,) mean over units, on validation trials that no penalty was chosen by.
    saturation
        None where there are too few points, or scores do not grow.
    """

    session: str
    metric: str
    n_trials: np.ndarray
    minutes: np.ndarray
    seed: np.ndarray
    score: np.ndarray
    saturation: Saturation | None

    def write(self, path: str | Path) -> None:
        """Write a CSV file with a row for each fit."""
        with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["session", "n_trials", "minutes", "seed", self.metric])
            columns = (self.n_trials.tolist(), self.minutes.tolist(), self.seed.tolist(), self.score.tolist())
            writer.writerows([self.session, *row] for row in zip(*columns, strict=True))

    def plot(self, path: str | Path) -> None:
        """Draw scores, and the saturating curve as far as twice the data."""
        figure, axes = plt.subplots(figsize=(5, 3.5), layout="constrained")
        axes.plot(self.minutes, self.score, "o", label="fits")
        if (fitted := self.saturation) is not None:
            x = np.linspace(self.minutes.min(), 2 * self.minutes.max(), 200)
            axes.plot(x, fitted.limit * x / (x + fitted.half), "-", label=f"limit {fitted.limit:.3f}")
            low, high = fitted.double_range
            axes.errorbar(
                [2 * self.minutes.max()], [fitted.double],
                [[max(0, fitted.double - low)], [max(0, high - fitted.double)]],
                fmt="s", capsize=4, label="twice the data, 90 %",
            )  # fmt: skip
        axes.set(xlabel="minutes of training data", ylabel=self.metric, title=self.session)
        axes.legend()
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png", dpi=120)
        plt.close(figure)

    def summary(self) -> str:
        """The curve in words: mean score at each amount, then what more data would bring."""
        lines = [f"{self.session}: {self.metric} after minutes of training data"]
        for n in np.unique(self.n_trials):
            here = self.n_trials == n
            spread = f" ± {self.score[here].std(ddof=1):.4f}" if here.sum() > 1 else ""
            lines.append(
                f"  {self.minutes[here].mean():8.3g} min, {n:5d} trials: {self.score[here].mean():.4f}{spread}"
            )
        if (fitted := self.saturation) is None:
            return "\n".join([*lines, "  no saturation: scores do not grow with the data, or there are too few"])
        low, high = fitted.double_range
        lines.append(f"  twice the data: {fitted.double:.4f} (90 %: {low:.4f} to {high:.4f})")
        low, high = fitted.limit_range
        return "\n".join([*lines, f"  limit: {fitted.limit:.4f} (90 %: {low:.4f} to {high:.4f})"])


def learning_curve(
    twin: TwinModel, config: DatasetConfig, *, fractions: Sequence[float] = (0.05, 0.1, 0.25, 0.5, 1.0),
    n_seeds: int = 3, seed: int = 0, metric: str | None = None, options: FitOptions | None = None,
    cache_dir: str | Path | None = None,
) -> Curve:  # fmt: skip
    """Fit growing parts of a session on a frozen core, and see how the score grows.

    Every second validation trial chooses penalties (in proportion to the part); the others score.

    Parameters
    ----------
    twin
        The trained twin.
    config
        Of the new session.
    fractions
        Parts of the training trials; at least two trials each, and no amount twice.
    n_seeds, seed
        Fits of each part but the whole, with other trials; the seed of the first.
    metric
        Name of a figure; default: the correlation with the responses.
    options, cache_dir
        As for :func:`~neurotwin.transfer.transfer.transfer`.

    Raises
    ------
    ConfigError
        If there is no such figure, the session does not fit the core, or the twin is an ensemble.
    SessionError
        If the session has fewer than two validation trials.
    """
    metric = metric or "correlation"
    if metric not in metrics():
        raise ConfigError(f"metric: there is no figure {metric!r}; {nearest(metric, list(metrics()))}")
    prepared = prepare_session(config)
    if len(prepared.trials("val")) < 2:
        raise SessionError(
            f"session {prepared.name}: a curve needs two validation trials, one to choose penalties and one to score"
        )
    joined, index = join(twin, [prepared]), len(twin.sessions)
    bank = feature_bank(joined, prepared, index, cache_folder(config, cache_dir))
    joined.cpu()
    choosing, judging = _halves(prepared)
    judge = replace(bank, prepared=judging).part("val")
    trials = choosing.trials("train")
    module, rows = joined.per_session[index], []
    start = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    amounts = sorted({min(len(trials), max(2, round(fraction * len(trials)))) for fraction in fractions})
    for n_trials in amounts:
        for own in range(seed, seed + (n_seeds if n_trials < len(trials) else 1)):
            part = fewer(choosing, n_trials=n_trials, seed=own)
            module.load_state_dict(start)
            fit_session(joined, index, replace(bank, prepared=part), options)
            score = summarize(score_bank(module, judge).compute()[metric]).mean
            minutes = np.count_nonzero(part.split == 0) / part.spec.bin_rate / 60
            logger.info("%s: %d trials, %.3g minutes: %s %.4f", prepared.name, n_trials, minutes, metric, score)
            rows.append((n_trials, minutes, own, score))
    n_trials, minutes, seeds, scores = map(np.array, zip(*rows, strict=True))
    fitted = saturation(minutes, scores, seed=seed)
    return Curve(
        session=prepared.name, metric=metric, n_trials=n_trials, minutes=minutes, seed=seeds, score=scores,
        saturation=fitted,
    )  # fmt: skip


def saturation(minutes: np.ndarray, scores: np.ndarray, *, seed: int = 0) -> Saturation | None:
    """Fit a · m / (m + h) by least squares, and again to resampled points for 90 % ranges.

    Parameters
    ----------
    minutes, scores
        (N,) amount of data and score of each fit; scores that are not finite are left out.
    seed
        Of the resampling.

    Returns
    -------
    Saturation or None
        None for fewer than three amounts, or scores that do not grow.

    Examples
    --------
    >>> m = np.array([1.0, 2.0, 4.0, 8.0])
    >>> fitted = saturation(m, 0.6 * m / (m + 2))
    >>> round(fitted.limit, 3), round(fitted.half, 3), round(fitted.double, 3)
    (0.6, 2.0, 0.533)
    """
    good = np.isfinite(scores)
    minutes, scores = minutes[good], scores[good]
    if len(np.unique(minutes)) < 3 or np.corrcoef(minutes, scores)[0, 1] <= 0 or scores.max() <= 0:
        return None
    rng, found = np.random.default_rng(seed), [_saturating(minutes, scores)]
    while len(found) < 1 + _DRAWS:
        drawn = rng.integers(0, len(minutes), len(minutes))
        if len(np.unique(minutes[drawn])) > 1:
            found.append(_saturating(minutes[drawn], scores[drawn]))
    limit, half = np.array(found).T
    twice = 2 * minutes.max()
    values = [limit, half, limit * twice / (twice + half)]
    ranges = [tuple(float(v) for v in np.quantile(value[1:], (0.05, 0.95))) for value in values]
    (a, h, double), (of_a, of_h, of_double) = (float(value[0]) for value in values), ranges
    return Saturation(
        limit=a, limit_range=of_a, half=h, half_range=of_h, double=double, double_range=of_double
    )  # fmt: skip


def _saturating(minutes: np.ndarray, scores: np.ndarray) -> tuple[float, float]:
    """a and h; for each h, the best a has a closed form, so that only one number is searched."""

    def rest(log_half: float) -> float:
        shape = minutes / (minutes + np.exp(log_half))
        return float(np.square(scores - shape * (shape @ scores) / (shape @ shape)).sum())

    low, high = np.log(minutes.min()) - 6, np.log(minutes.max()) + 3
    half = float(np.exp(scipy.optimize.minimize_scalar(rest, bounds=(low, high), method="bounded").x))
    shape = minutes / (minutes + half)
    return float(shape @ scores / (shape @ shape)), half


def _halves(prepared: Prepared) -> tuple[Prepared, Prepared]:
    """The session with every second validation trial, and with the others."""
    trials, halves = prepared.trials("val"), []
    for number in range(2):
        split = np.array(prepared.split)
        split[(split == 1) & ~np.isin(prepared.trial, trials[number::2])] = -1
        halves.append(replace(prepared, split=split))
    return halves[0], halves[1]
