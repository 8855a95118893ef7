"""From the signals of a session to what a model is given: the pipelines of `transforms`."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from ..config import DatasetConfig, TransformConfig, nearest
from .transforms import Context

__all__ = [
    "EXPOSED",
    "apply_pipelines",
    "behavior_names",
    "exposed_shapes",
    "fit_pipelines",
    "pixel_scale",
    "runs_of",
]

EXPOSED = ("stim", "robs", "behavior")
"""What pipelines can make: the stimulus, the responses to predict, the behaviour."""


def pixel_scale(config: DatasetConfig) -> tuple[float, float] | None:
    """Factor and offset that the stimulus pipeline amounts to, or None if it is more than that.

    Where it is only scaling, the stimulus stays as recorded until it is on the device, and is scaled there.

    Examples
    --------
    >>> config = DatasetConfig(transforms={"stim": {"source": "stim", "ops": ["pixelnorm", {"mul": {"factor": 2}}]}})
    >>> [round(value * 255, 6) for value in pixel_scale(config)]
    [2.0, -254.0]
    """
    pipelines = [pipeline for _, exposed, pipeline in config.pipelines() if exposed == "stim"]
    if not pipelines:
        return (1.0, 0.0)
    if len(pipelines) > 1 or pipelines[0].source != "stim":
        return None
    factor, offset = 1.0, 0.0
    for op in pipelines[0].ops:
        scale = op.params.scale()
        if scale is None:
            return None
        factor, offset = factor * scale[0], offset * scale[0] + scale[1]
    return factor, offset


def fit_pipelines(
    config: DatasetConfig,
    signals: Mapping[str, np.ndarray],
    runs: np.ndarray,
    train: np.ndarray,
    *,
    bin_ms: float | None = None,
) -> dict[str, Any]:
    """Constants of the pipelines, from the training bins alone.

    Parameters
    ----------
    config
        The session's configuration.
    signals
        Arrays (T, ...) by name: `stim`, `robs` and the behaviour; and `unit_ids`.
    runs
        (N, 2): first and one past the last bin of each run.
    train
        (T,) bool: bins to train on.
    bin_ms
        Width of a bin, ms.

    Returns
    -------
    dict
        ``"PIPELINE.POSITION"`` to value, JSON-able.
    """
    context = Context(config, runs=runs, train=train, bin_ms=bin_ms)
    for name, _, pipeline in config.pipelines():
        if any(op.params.fits for op in pipeline.ops):
            _run(name, pipeline, signals, context)
    return context.fitted


def apply_pipelines(
    config: DatasetConfig,
    signals: Mapping[str, np.ndarray],
    *,
    runs: np.ndarray | None = None,
    fitted: Mapping[str, Any],
    outputs: tuple[str, ...] = EXPOSED,
    bin_ms: float | None = None,
) -> dict[str, np.ndarray]:
    """Run the pipelines and collect what they expose.

    Parameters
    ----------
    config, signals, runs, bin_ms
        As for :func:`fit_pipelines`; without `runs`, all bins are one run.
    fitted
        What :func:`fit_pipelines` returned for the training data.
    outputs
        Which of the exposed names to compute.

    Returns
    -------
    dict
        `behavior` as (T, K) float32, lags stacked; `stim` and `robs` as their pipelines make them. A name that no
        pipeline exposes is absent.

    Raises
    ------
    ValueError
        If a pipeline's source is not among the signals.
    """
    if runs is None:
        runs = np.array([[0, len(next(iter(signals.values())))]])
    n_bins = int(runs[:, 1].max())
    context = Context(config, runs=runs, fitted=dict(fitted), bin_ms=bin_ms)
    collected: dict[str, list[np.ndarray]] = {}
    for name, exposed, pipeline in config.pipelines():
        if exposed in outputs:
            collected.setdefault(exposed, []).append(_run(name, pipeline, signals, context))
    if "behavior" in collected:
        columns = [array.reshape(n_bins, -1).astype(np.float32) for array in collected["behavior"]]
        collected["behavior"] = [_stack_lags(np.concatenate(columns, axis=1), config.keys_lags.behavior, runs)]
    return {name: np.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0] for name, parts in collected.items()}


def exposed_shapes(
    config: DatasetConfig, signals: Mapping[str, np.ndarray], outputs: tuple[str, ...] = EXPOSED
) -> dict[str, dict[str, tuple[int, ...]]]:
    """Shape of a bin of what each pipeline gives, found on the first bins alone.

    Parameters
    ----------
    config, signals
        As for :func:`fit_pipelines`; only the first two bins are read.
    outputs
        Which of the exposed names to consider.

    Returns
    -------
    dict
        For each exposed name, shapes by pipeline, in the order in which they are stacked; lags not counted.

    Raises
    ------
    ValueError
        If a pipeline's source is not among the signals.

    Examples
    --------
    >>> config = DatasetConfig(transforms={"gaze": {"source": "eyepos", "ops": ["symlog"], "expose_as": "behavior"}})
    >>> exposed_shapes(config, {"eyepos": np.zeros((500, 2), np.float32)})
    {'behavior': {'gaze': (2,)}}
    """
    first = {name: array if name == "unit_ids" else np.asarray(array[:2]) for name, array in signals.items()}
    context = Context(config, runs=np.array([[0, 2]]), fitted=defaultdict(lambda: 1.0), bin_ms=1.0)
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, exposed, pipeline in config.pipelines():
        if exposed in outputs:
            shapes.setdefault(exposed, {})[name] = _run(name, pipeline, first, context).shape[1:]
    return shapes


def behavior_names(config: DatasetConfig, signals: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """The pipeline that each of the K behaviour variables comes from, in their order, lags stacked."""
    shapes = exposed_shapes(config, signals, ("behavior",)).get("behavior", {})
    return tuple(name for name, shape in shapes.items() for _ in range(prod(shape))) * len(config.keys_lags.behavior)


def runs_of(*labels: np.ndarray) -> np.ndarray:
    """First and one past the last bin of each stretch in which no label changes, (N, 2).

    Examples
    --------
    >>> runs_of(np.array([1, 1, 2, 2, 2]), np.array([0, 0, 0, 0, 1])).tolist()
    [[0, 2], [2, 4], [4, 5]]
    """
    n_bins = len(labels[0])
    change = np.zeros(n_bins, bool)
    change[:1] = True
    for label in labels:
        change[1:] |= label[1:] != label[:-1]
    starts = np.flatnonzero(change)
    return np.stack([starts, np.append(starts[1:], n_bins)], axis=1) if n_bins else np.zeros((0, 2), int)


# --------------------------------------------------------------------------------------------------------------------


def _run(name: str, pipeline: TransformConfig, signals: Mapping[str, np.ndarray], context: Context) -> np.ndarray:
    if pipeline.source not in signals:
        available = [key for key in signals if key != "unit_ids"]
        raise ValueError(
            f"transforms.{name}.source: no signal {pipeline.source!r}; {nearest(pipeline.source, available)}"
        )
    array = np.asarray(signals[pipeline.source])
    if array.ndim == 1:
        array = array[:, None]
    unit_ids = signals.get("unit_ids")
    for position, op in enumerate(pipeline.ops):
        here = replace(context, name=name, source=pipeline.source, key=f"{name}.{position}", unit_ids=unit_ids)
        array = op.params.apply(array, here)
    return array


def _stack_lags(array: np.ndarray, lags: tuple[int, ...], runs: np.ndarray) -> np.ndarray:
    """Append the values `lags` bins ago; before a run's start, its first value."""
    if lags == (0,):
        return array
    starts = np.repeat(runs[:, 0], runs[:, 1] - runs[:, 0])
    bins = np.arange(len(array))
    return np.concatenate([array[np.maximum(bins - lag, starts)] for lag in lags], axis=1)
