"""How similar units are, across sessions, by the features of the shared core that they read."""

import numpy as np
import scipy
import torch
from matplotlib.figure import Figure
from pydantic import Field

from ..config import PositiveInt, register
from .base import Experiment, Result
from .presenter import ExperimentError, Presenter

__all__ = ["Population"]


@register("experiment", "population")
class Population(Experiment):
    """Tuning similarity of all units of all sessions, an embedding in two dimensions, and clusters.

    Units of different sessions read the same core, so their feature weights can be compared, wherever on the screen
    they look. Similarity is the cosine of two units' weights, each weight times the standard deviation of its feature
    under noise, so that a feature that hardly varies does not count. Of an ensemble it is the mean of the members'
    cosines. The embedding is classical scaling (the two first principal axes of the similarity); clusters are those of
    average linkage on one minus the similarity.
    """

    comparable = ("similarity_within",)  # axes and numbers of clusters are arbitrary

    n_clusters: PositiveInt = Field(6, description="Clusters at most.")
    n_movies: PositiveInt = Field(64, description="Noise movies that scale the features.")
    seed: int = Field(0, description="Of the noise.")

    def measure(self, presenter: Presenter) -> Result:
        vectors, sessions, ids = [], [], []
        for group in presenter.groups:
            scales = self._spread(presenter, group)
            for index in group.sessions:
                parts = []
                for member, scale in zip(presenter.twin.members, scales, strict=True):
                    weights = _weights(member.module(index).readout, len(scale))
                    if weights is None:
                        raise ExperimentError(
                            f"session {presenter.spec(index).name}: its readout has no weight for each feature and unit"
                        )
                    parts.append(_normed(weights * scale))
                vectors.append(np.concatenate(parts, axis=1))
                sessions += [presenter.spec(index).name] * len(parts[0])
                ids += list(presenter.spec(index).unit_ids)
        units = _normed(np.concatenate(vectors))
        similarity = np.nan_to_num(units @ units.T)
        np.fill_diagonal(similarity, 1.0)
        labels = _clusters(similarity, self.n_clusters)
        place = _embedding(similarity)
        return Result(
            tables={
                "units": {
                    "session": np.array(sessions), "unit_id": np.array(ids), "cluster": labels, "x": place[:, 0],
                    "y": place[:, 1], "similarity_within": _within(similarity, labels),
                }
            },
            arrays={"similarity": similarity, "features": units},
            axes={"similarity": ("unit", "other_unit"), "features": ("unit", "feature")},
            figures={"embedding": _figure(place, labels)},
        )  # fmt: skip

    def _spread(self, presenter: Presenter, group) -> list[np.ndarray]:
        """Standard deviation of each feature of the core of each member over noise movies, pixels and bins, (C,)."""
        twin, screen = presenter.twin, group.screen
        generator = torch.Generator().manual_seed(self.seed)
        captured: list[list[torch.Tensor]] = [[] for _ in twin.members]
        handles = [
            member.network.recurrent.register_forward_hook(
                lambda module, inputs, output, kept=kept: kept.append(output[0])
            )
            for member, kept in zip(twin.members, captured, strict=True)
        ]
        try:
            with torch.no_grad():
                noise = torch.randn(self.n_movies, twin.context + 4, *screen.frame_shape, generator=generator)
                movies = (screen.grey + 0.3 * screen.amplitude * noise).to(twin.like)
                presenter.rates(group, movies)
        finally:
            for handle in handles:
                handle.remove()
        return [kept[0].double().std(dim=(0, 2, 3, 4)).cpu().numpy() for kept in captured]


def _normed(vectors: np.ndarray) -> np.ndarray:
    """Rows of length one; NaN where there is none."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms > 0, norms, np.nan)


def _weights(readout: torch.nn.Module, n_features: int) -> np.ndarray | None:
    """Feature weights (U, C) of a readout; excitatory and inhibitory parts, or heads, are added with their sign."""
    features = getattr(readout, "features", None)
    if features is None:
        return None
    kind = readout.kinds.get("features")
    if getattr(readout, "basis", None) is not None:
        features = readout.feature_weights()
    values = features.detach().double().cpu().numpy()
    if kind == "feature_maps":
        return values.mean(axis=(2, 3))
    if values.ndim == 2:
        return values
    if values.shape[0] == 2 and values.shape[2] == n_features:
        return np.abs(values[0]) - np.abs(values[1])
    return values.sum(axis=1)


def _clusters(similarity: np.ndarray, number: int) -> np.ndarray:
    if len(similarity) < 2:
        return np.ones(len(similarity), np.int64)
    distance = np.clip(1 - (similarity + similarity.T) / 2, 0, None)
    np.fill_diagonal(distance, 0)
    pairs = scipy.spatial.distance.squareform(distance, checks=False)
    tree = scipy.cluster.hierarchy.linkage(pairs, "average")
    return scipy.cluster.hierarchy.fcluster(tree, number, "maxclust").astype(np.int64)


def _embedding(similarity: np.ndarray) -> np.ndarray:
    """Classical scaling to two dimensions, (U, 2)."""
    centred = similarity - similarity.mean(axis=0) - similarity.mean(axis=1)[:, None] + similarity.mean()
    values, vectors = np.linalg.eigh(centred)
    place = vectors[:, ::-1][:, :2] * np.sqrt(np.maximum(values[::-1][:2], 0))
    return np.pad(place, ((0, 0), (0, 2 - place.shape[1])))


def _within(similarity: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Mean similarity of each unit with the others of its cluster; NaN where it is alone."""
    same = labels[:, None] == labels
    np.fill_diagonal(same, False)
    number = same.sum(axis=1)
    return np.where(number > 0, (similarity * same).sum(axis=1) / np.maximum(number, 1), np.nan)


def _figure(place: np.ndarray, labels: np.ndarray):
    def draw() -> Figure:
        figure = Figure(figsize=(4.4, 4.0), layout="constrained")
        axes = figure.subplots()
        axes.spines[["top", "right"]].set_visible(False)
        axes.scatter(place[:, 0], place[:, 1], c=labels, cmap="tab10", s=14)
        axes.set(xlabel="first axis", ylabel="second axis", title="similarity of units by the features they read")
        return figure

    return draw
