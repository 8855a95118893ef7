"""What in the stimulus a unit is sensitive to: filters, where they lie, what they prefer."""

from typing import Literal

import numpy as np
import torch
from pydantic import Field

from ..analysis.plots import readout_maps
from ..config import NonNegative, PositiveInt, register
from ..data.clips import stream
from ..models.network import Streamer, evaluating
from .base import Experiment, Result
from .gabor import fit_gabor, measure_gabor
from .maps import Subspace, gradients, leading_subspace, low_passed, measure_filters, noise_movies
from .presenter import Group, Presenter
from .tables import UnitTable

__all__ = ["ReceptiveField"]

GABOR_DIRECTIONS = 16
"""Leading directions of the gradients that the Gabor is fitted to."""


@register("experiment", "receptive_field")
class ReceptiveField(Experiment):
    """Receptive fields: the filters of every unit, their place, size, preferred grating, latency and separability.

    With method `gradient`, the rate is linearised around many movies. The mean gradient is the linear filter, which
    vanishes for complex cells; the leading directions of all gradients are the filters that the rate depends on, simple
    or complex (:func:`~neurotwin.experiments.maps.leading_subspace`). A trained twin also answers to fine patterns that
    its training stimulus hardly held; filters are therefore low-passed in space. With method `noise`, the twin is shown
    white noise and the frames before each bin are averaged, weighted by its rate, as one does with spikes.

    A Gabor with two phases in quadrature is fitted to the leading directions (:func:`~neurotwin.experiments.gabor.
    fit_gabor`). It has fewer free numbers than the filters, so that less of the noise of an estimate is left in it.

    Where the recording is at hand, its own response-triggered average stands beside that of the twin's predictions of
    the same bins. Both keep the correlations of the stimulus, so that they can be compared with nothing undone.
    """

    periods = {"orientation_deg": 180.0, "gabor_orientation_deg": 180.0}

    method: Literal["gradient", "noise"] = Field("gradient", description="How filters are estimated.")
    movies: Literal["auto", "natural", "noise"] = Field(
        "auto",
        description="Around what the rate is linearised: pieces of the training stimulus (natural), or noise whose "
        "amplitude falls as 1/f; auto: natural where the recording is at hand.",
    )
    n_movies: PositiveInt = Field(256, description="Movies around which the rate is linearised.")
    n_frames: PositiveInt = Field(20_000, description="noise: frames of white noise shown.")
    contrast: float = Field(0.3, gt=0, le=1, description="Of noise: standard deviation over the screen's amplitude.")
    n_filters: PositiveInt = Field(2, description="Dimensions of the subspace; 2 are what a complex cell needs.")
    cutoff: NonNegative = Field(
        0.25, description="Filters are low-passed by exp(−(f/cutoff)⁴), f in cycles per pixel; 0: they are not."
    )
    recorded: bool = Field(True, description="Also average the recording itself, where it is at hand.")
    seed: int = Field(0, description="Of the movies.")

    def measure(self, presenter: Presenter) -> Result:
        if self.method == "gradient":
            presenter.require_gradient("receptive_field")
        table, result = UnitTable(), Result()
        for group in presenter.groups:
            for index in group.sessions:
                spec = presenter.spec(index)
                subspaces, linear = self._filters(presenter, group, index)
                gabors = [fit_gabor(subspace, self.cutoff) for subspace in subspaces]
                subspaces = [Subspace(f[: self.n_filters], s[: self.n_filters]) for f, s in subspaces]
                rows = [
                    measure_filters(filters, group.screen, strengths) | measure_gabor(gabor, group.screen)
                    for (filters, strengths), gabor in zip(subspaces, gabors, strict=True)
                ]
                columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
                columns["explained"] = np.array([strengths.sum() for _, strengths in subspaces])
                if self.recorded and index in presenter.prepared:
                    averages = _averages(presenter, index)
                    columns |= _compared(*averages)
                    result.arrays[f"recorded_average.{spec.name}"] = averages[0].sum(0).astype(np.float32)
                    result.arrays[f"predicted_average.{spec.name}"] = averages[1].astype(np.float32)
                table.add(spec, columns)
                result.arrays[f"filters.{spec.name}"] = np.stack([s[0] for s in subspaces]).astype(np.float32)
                result.arrays[f"gabor_filters.{spec.name}"] = np.stack([g.filters for g in gabors]).astype(np.float32)
                result.arrays[f"linear.{spec.name}"] = linear.astype(np.float32)
                result.figures[f"filters.{spec.name}"] = _figure(result.arrays[f"filters.{spec.name}"], spec.unit_ids)
        filter_axes = ("lag", "channel", "y", "x")
        for name in result.arrays:
            units = f"unit.{name.split('.', 1)[1]}"
            result.axes[name] = (units, *(("filter",) if "filters." in name else ()), *filter_axes)
        result.tables["units"] = table.columns()
        return result

    def _filters(self, presenter: Presenter, group: Group, index: int):
        """Of each unit (filters, strengths), and the linear filters of all, (U, T, C, H, W)."""
        rng = np.random.default_rng([self.seed, index])
        if self.method == "noise":
            return self._from_noise(presenter, group, index, rng)
        natural = self.movies == "natural" or (self.movies == "auto" and index in presenter.prepared)
        if natural:
            movies = presenter.natural_movies(index, self.n_movies, rng)
        else:
            size = (self.n_movies, presenter.twin.context + 1)
            movies = noise_movies(group.screen, *size, rng, contrast=self.contrast, exponent=1.0)
        subspaces, linear = [], []
        for samples in gradients(presenter, group, index, movies.to(presenter.twin.like)):
            samples = low_passed(samples, self.cutoff)
            subspaces.append(leading_subspace(samples, max(self.n_filters, GABOR_DIRECTIONS)))
            linear.append(samples.mean(0))
        return subspaces, np.stack(linear)

    def _from_noise(self, presenter: Presenter, group: Group, index: int, rng: np.random.Generator):
        context, chunk = presenter.twin.context, 256
        alone, total, seen = Group((index,), group.screen), 0.0, 0
        mean = None
        while seen < self.n_frames:
            movie = noise_movies(group.screen, 1, context + chunk, rng, contrast=self.contrast, exponent=0.0)
            with torch.no_grad():
                rates = presenter.rates(alone, movie.to(presenter.twin.like))[index][0].double().cpu().numpy()
            # The mean of the first stretch: only a constant, which noise of mean 0 takes out on average.
            mean = rates.mean(0) if mean is None else mean
            frames = (movie[0].double().numpy() - group.screen.grey).reshape(context + chunk, -1)
            total = total + np.stack([(rates - mean).T @ frames[lag : lag + chunk] for lag in range(context + 1)], 1)
            seen += chunk
        scale = seen * (self.contrast * group.screen.amplitude) ** 2
        linear = (total / scale).reshape(-1, context + 1, *group.screen.frame_shape)
        linear = low_passed(linear, self.cutoff)
        norms = np.sqrt((linear**2).sum((1, 2, 3, 4), keepdims=True)).clip(1e-300)
        return [Subspace((one / norm)[None], np.ones(1)) for one, norm in zip(linear, norms, strict=True)], linear


def _averages(presenter: Presenter, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Response-triggered averages of the training bins: of the recording, by halves of the trials, (2, U, T, C, H, W),
    and of the twin's predictions of the same bins, (U, T, C, H, W); in responses × units of pixel."""
    data, twin = presenter.prepared[index], presenter.twin
    context, mean = twin.context, data.statistics().mean.numpy()
    shape = (3, data.n_units, context + 1, int(np.prod(data.spec.frame_shape)))
    sums = np.zeros(shape, np.float32)
    grey = presenter.screen(index).grey
    with evaluating(twin), torch.inference_mode():
        predict = Streamer(twin)
        for sample in stream(data, "train", context=context):
            sample = sample.of_session(index).to(twin.like.device)
            rates, target = predict(sample.clip).double().cpu().numpy(), sample.target
            frames = sample.clip.stimulus.transpose(1, 2).float().flatten(2).cpu().numpy()
            mask, exposure = (
                target.mask.cpu().numpy(),
                1.0 if target.exposure is None else target.exposure.cpu().numpy(),
            )
            recorded = np.where(mask, target.responses.double().cpu().numpy() - exposure * mean, 0)
            predicted = np.where(mask, exposure * (rates - mean), 0)
            starts = np.minimum(sample.clip.bins.cpu().numpy(), data.n_bins - 1)
            odd = (np.searchsorted(np.unique(data.trial), data.trial[starts]) % 2).astype(bool)[:, None, None]
            length = sample.clip.length
            weights = np.stack([np.where(odd, 0, recorded), np.where(odd, recorded, 0), predicted])
            flat = weights.transpose(0, 3, 1, 2).reshape(3 * data.n_units, -1).astype(np.float32)
            first = frames.shape[1] - length - context
            centred = (frames - grey).astype(np.float32)
            for lag in range(context + 1):
                seen = centred[:, first + lag : first + lag + length].reshape(flat.shape[1], -1)
                sums[:, :, lag] += (flat @ seen).reshape(3, data.n_units, -1)
    bins = np.maximum(data.train_bins, 1)[:, None, None]
    sums = (sums / bins).reshape(*shape[:3], *data.spec.frame_shape)
    return sums[:2], sums[2]


def _compared(recorded: np.ndarray, predicted: np.ndarray) -> dict[str, np.ndarray]:
    """Correlation of the recording's halves with one another, and of the recording with the twin, unit by unit."""
    whole = recorded.sum(0)
    return {
        "average_reliability": np.array([_correlation(a, b) for a, b in zip(*recorded, strict=True)]),
        "average_agreement": np.array([_correlation(a, b) for a, b in zip(whole, predicted, strict=True)]),
    }


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.ravel() - a.mean(), b.ravel() - b.mean()
    norm = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / norm) if norm > 0 else float("nan")


def _figure(filters: np.ndarray, unit_ids: tuple):
    """Draws the first filter of each unit in its most effective frame."""

    def draw():
        first = filters[:, 0].sum(2)  # over channels
        when = (first**2).sum((2, 3)).argmax(1)
        return readout_maps(first[np.arange(len(first)), when], labels=[str(unit) for unit in unit_ids])

    return draw
