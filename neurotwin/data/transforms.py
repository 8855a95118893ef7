"""From the signals of a session to what a model is given: the pipelines of `transforms`.

Every operation takes an array whose first axis is time, and works within runs of bins that belong together (a trial
without a gap), so that nothing reaches across a boundary. Operations with a constant that comes from the data
(`maxnorm`) compute it on the training part once, in :func:`fit_pipelines`, and it is kept with the model.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from scipy import ndimage, signal, special

from ..config import DatasetConfig, DynamicalAdaptationParams, TemporalBasisParams, TransformConfig, nearest

__all__ = [
    "PIXEL_NORM",
    "adaptation_filters",
    "apply_pipelines",
    "behavior_names",
    "exposed_shapes",
    "fit_pipelines",
    "pixel_scale",
    "raised_cosine_basis",
    "runs_of",
]

logger = logging.getLogger(__name__)

PIXEL_NORM = (1 / 255, -127 / 255)
"""Factor and offset that take an 8-bit pixel to what a model sees, (x - 127) / 255."""


def pixel_scale(config: DatasetConfig) -> tuple[float, float] | None:
    """Factor and offset that the stimulus pipeline amounts to, or None if it is more than that.

    Where it is only scaling, the stimulus stays uint8 until it is on the device, and is scaled there.

    Examples
    --------
    >>> pixel_scale(DatasetConfig()) == PIXEL_NORM
    True
    """
    pipelines = _pipelines(config, "stim")
    if not pipelines:
        return (1.0, 0.0)
    if len(pipelines) > 1 or pipelines[0].source != "stim":
        return None
    factor, offset = 1.0, 0.0
    for op in pipelines[0].ops:
        match op.name, op.params:
            case "pixelnorm", _:
                factor, offset = factor * PIXEL_NORM[0], offset * PIXEL_NORM[0] + PIXEL_NORM[1]
            case "mul", params:
                factor, offset = factor * params.factor, offset * params.factor
            case "unsqueeze", params if params.dim == 1:  # the channel axis, which frames are given anyway
                pass
            case "cast", params if params.dtype.startswith("float"):
                pass
            case _:
                return None
    return factor, offset


def fit_pipelines(
    config: DatasetConfig, signals: Mapping[str, np.ndarray], runs: np.ndarray, train: np.ndarray
) -> dict[str, float]:
    """Constants of the pipelines, from the training bins alone.

    Parameters
    ----------
    config
        The session's configuration.
    signals
        Arrays (T, ...) by name: `stim`, `robs` and the behaviour.
    runs
        (N, 2): first and one past the last bin of each run.
    train
        (T,) bool: bins to train on.

    Returns
    -------
    dict
        ``"PIPELINE.POSITION"`` to value, JSON-able.
    """
    fitted: dict[str, float] = {}
    for name, pipeline in config.transforms.items():
        ahead = [op.name for op in pipeline.ops if op.name in _LOOK_AHEAD]
        if ahead:
            logger.warning("transforms.%s: %s looks ahead; predictions see the future of it", name, " and ".join(ahead))
        if any(op.name == "maxnorm" for op in pipeline.ops):
            _run(config, name, pipeline, signals, runs, fitted, train)
    return fitted


def apply_pipelines(
    config: DatasetConfig,
    signals: Mapping[str, np.ndarray],
    *,
    runs: np.ndarray | None = None,
    fitted: Mapping[str, float],
    outputs: tuple[str, ...] = ("stim", "robs", "behavior"),
) -> dict[str, np.ndarray]:
    """Run the pipelines and collect what they expose.

    Parameters
    ----------
    config, signals, runs
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
    collected: dict[str, list[np.ndarray]] = {}
    for name, pipeline in config.transforms.items():
        exposed = pipeline.expose_as or name
        if exposed in outputs:
            array = _run(config, name, pipeline, signals, runs, dict(fitted), None)
            collected.setdefault(exposed, []).append(array)
    if "behavior" in collected:
        columns = [array.reshape(n_bins, -1).astype(np.float32) for array in collected["behavior"]]
        collected["behavior"] = [_stack_lags(np.concatenate(columns, axis=1), config.keys_lags.behavior, runs)]
    return {name: np.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0] for name, parts in collected.items()}


def exposed_shapes(
    config: DatasetConfig,
    signals: Mapping[str, np.ndarray],
    outputs: tuple[str, ...] = ("stim", "robs", "behavior"),
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
    first = {name: array if name == "unit_ids" else array[:2] for name, array in signals.items()}
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, pipeline in config.transforms.items():
        exposed = pipeline.expose_as or name
        if exposed in outputs:
            array = _run(config, name, pipeline, first, np.array([[0, 2]]), defaultdict(lambda: 1.0), None)
            shapes.setdefault(exposed, {})[name] = array.shape[1:]
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


def raised_cosine_basis(params: TemporalBasisParams) -> np.ndarray:
    """Causal basis functions (n_functions, history_bins), oldest bin first, the newest bin (lag 0) last.

    Single-bin functions at the newest bins, then raised cosines, b_j(t) = (1 + cos(clip((g(t) - c_j) π / (2 Δ), ±π)))/2
    with g(t) = log(t + 1 bin) (or t), c_j evenly spaced between the peaks and Δ their distance: Pillow et al. 2008,
    Nature 454:995.
    """
    lags = np.arange(params.history_bins) * params.bin_size_ms

    def warp(time: np.ndarray) -> np.ndarray:
        return np.log(time + params.bin_size_ms) if params.log_spacing else time

    first, last = warp(np.asarray(params.peak_range_ms, float))
    centres = np.linspace(first, last, params.num_cosine_funcs)
    spacing = (last - first) / max(params.num_cosine_funcs - 1, 1) or 1.0
    phase = np.clip((warp(lags)[None] - centres[:, None]) * np.pi / (2 * spacing), -np.pi, np.pi)
    basis = np.concatenate([np.eye(params.history_bins)[: params.num_delta_funcs], (1 + np.cos(phase)) / 2])
    basis[:, : params.num_delta_funcs] *= np.eye(len(basis))[:, : params.num_delta_funcs]
    if params.chomp:
        basis = np.roll(basis, params.chomp, axis=1)
        basis[:, : params.chomp] = 0
    if params.orthogonalize:
        basis = np.linalg.qr(basis.T)[0].T
    if params.normalize:
        basis = basis / np.maximum(np.linalg.norm(basis, axis=1, keepdims=True), 1e-12)
    return np.ascontiguousarray(basis[:, ::-1])


def adaptation_filters(params: DynamicalAdaptationParams, bin_ms: float) -> tuple[np.ndarray, np.ndarray]:
    """The fast filter K_y and the slow filter K_z of dynamical adaptation, newest bin first, each of sum 1.

    K_y(t) = t^n_y exp(-t/τ_y), K_z = γ K_y + (1 - γ) t^n_z exp(-t/τ_z), both normalised (Clark et al. 2013, PLoS
    Comput Biol 9:e1003289, eqs. 15 to 17).
    """
    time = np.arange(params.filter_length) * bin_ms

    def gamma_filter(order: float, tau: float) -> np.ndarray:
        kernel = np.exp(special.xlogy(order, time / tau) - time / tau)
        return kernel / kernel.sum()

    fast = gamma_filter(params.n_y, params.tau_y_ms)
    return fast, params.gamma * fast + (1 - params.gamma) * gamma_filter(params.n_z, params.tau_z_ms)


# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Context:
    """What an operation may need besides its array and parameters."""

    config: DatasetConfig
    runs: np.ndarray
    fitted: dict[str, float]
    train: np.ndarray | None
    key: str
    unit_ids: np.ndarray | None

    def per_run(self, function: Callable[[np.ndarray], np.ndarray], array: np.ndarray) -> np.ndarray:
        """Apply a function to each run of bins by itself."""
        parts = [function(array[start:stop]) for start, stop in self.runs]
        return np.concatenate(parts) if parts else array


def _run(
    config: DatasetConfig,
    name: str,
    pipeline: TransformConfig,
    signals: Mapping[str, np.ndarray],
    runs: np.ndarray,
    fitted: dict[str, float],
    train: np.ndarray | None,
) -> np.ndarray:
    if pipeline.source not in signals:
        available = [key for key in signals if key != "unit_ids"]
        raise ValueError(
            f"transforms.{name}.source: no signal {pipeline.source!r}; {nearest(pipeline.source, available)}"
        )
    array = np.asarray(signals[pipeline.source])
    if array.ndim == 1:
        array = array[:, None]
    for position, op in enumerate(pipeline.ops):
        key = f"{name}.{position}"
        context = _Context(config, runs, fitted, train, key, signals.get("unit_ids"))
        array = _OPS[op.name](array, op.params, context)
    return array


def _pipelines(config: DatasetConfig, output: str) -> list[TransformConfig]:
    return [pipeline for name, pipeline in config.transforms.items() if (pipeline.expose_as or name) == output]


def _stack_lags(array: np.ndarray, lags: tuple[int, ...], runs: np.ndarray) -> np.ndarray:
    """Append the values `lags` bins ago; before a run's start, its first value."""
    if lags == (0,):
        return array
    starts = np.repeat(runs[:, 0], runs[:, 1] - runs[:, 0])
    bins = np.arange(len(array))
    return np.concatenate([array[np.maximum(bins - lag, starts)] for lag in lags], axis=1)


def _float(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32, copy=False)


def _pixelnorm(array: np.ndarray, _params: Any, _context: _Context) -> np.ndarray:
    return _float(array) * np.float32(PIXEL_NORM[0]) + np.float32(PIXEL_NORM[1])


def _diff(array: np.ndarray, params: Any, context: _Context) -> np.ndarray:
    def difference(part: np.ndarray) -> np.ndarray:
        first = np.take(part, [0], axis=params.axis)
        return np.diff(part, axis=params.axis, prepend=first)

    return context.per_run(difference, _float(array))


def _mul(array: np.ndarray, params: Any, _context: _Context) -> np.ndarray:
    return _float(array) * np.float32(params.factor)


def _symlog(array: np.ndarray, _params: Any, _context: _Context) -> np.ndarray:
    return np.sign(array) * np.log1p(np.abs(_float(array)))


def _maxnorm(array: np.ndarray, _params: Any, context: _Context) -> np.ndarray:
    if context.train is not None:
        context.fitted[context.key] = float(np.max(np.abs(array[context.train]), initial=0.0))
    largest = context.fitted[context.key]
    if largest == 0:
        raise ValueError(
            f"transforms.{context.key.split('.')[0]}: maxnorm, but the signal is 0 throughout the training part"
        )
    return _float(array) / np.float32(largest)


def _smooth(array: np.ndarray, params: Any, context: _Context) -> np.ndarray:
    return context.per_run(
        lambda part: ndimage.gaussian_filter1d(part, params.sigma, axis=0, mode="nearest"), _float(array)
    )


def _unsqueeze(array: np.ndarray, params: Any, _context: _Context) -> np.ndarray:
    return np.expand_dims(array, params.dim)


def _cast(array: np.ndarray, params: Any, _context: _Context) -> np.ndarray:
    return array.astype(params.dtype)


def _select_units(array: np.ndarray, params: Any, context: _Context) -> np.ndarray:
    if params.indices != "cids":
        return array[:, list(params.indices)]
    if context.config.cids is None or context.unit_ids is None:
        return array
    column = {int(unit): index for index, unit in enumerate(context.unit_ids)}
    return array[:, [column[unit] for unit in context.config.cids]]


def _splitrelu(array: np.ndarray, params: Any, _context: _Context) -> np.ndarray:
    array = _float(array)
    return np.concatenate([np.maximum(array, 0), np.maximum(-array, 0)], axis=params.split_dim)


def _temporal_basis(array: np.ndarray, params: Any, context: _Context) -> np.ndarray:
    kernels = raised_cosine_basis(params)[:, ::-1]  # newest first, as a convolution wants it

    def filtered(part: np.ndarray) -> np.ndarray:
        flat = _float(part).reshape(len(part), -1)
        # As if the run's first value had lasted: an onset of the recording is not an onset of the behaviour.
        padded = np.concatenate([np.repeat(flat[:1], params.history_bins - 1, axis=0), flat])
        outputs = [signal.lfilter(kernel, 1.0, padded, axis=0)[params.history_bins - 1 :] for kernel in kernels]
        return np.concatenate(outputs, axis=1).astype(np.float32)

    return context.per_run(filtered, array)


def _dacones(array: np.ndarray, params: Any, context: _Context) -> np.ndarray:
    sampling = context.config.sampling
    if sampling is None:
        raise ValueError("dacones has time constants in ms; give `sampling` so that the width of a bin is known")
    fast, slow = adaptation_filters(params, 1000 / sampling.target_rate)

    def adapted(part: np.ndarray) -> np.ndarray:
        padded = np.concatenate([np.repeat(part[:1], params.filter_length - 1, axis=0), part])
        y = signal.lfilter(fast, 1.0, padded, axis=0)[params.filter_length - 1 :]
        z = signal.lfilter(slow, 1.0, padded, axis=0)[params.filter_length - 1 :]
        # Light is not negative; where a stimulus around 0 is, the floor stands in, as in the frontend.
        return (params.alpha * y / np.maximum(1 + params.beta * z, 0.1)).astype(np.float32)

    return context.per_run(adapted, _float(array))


def _fftwhitening(array: np.ndarray, params: Any, context: _Context) -> np.ndarray:
    if array.ndim not in (3, 4):
        raise ValueError(
            f"transforms.{context.key.split('.')[0]}: fftwhitening is for frames (T, H, W) or (T, C, H, W)"
        )

    def whitened(part: np.ndarray) -> np.ndarray:
        axes = (0, part.ndim - 2, part.ndim - 1)
        grids = np.meshgrid(*[np.fft.fftfreq(part.shape[axis]) for axis in axes], indexing="ij", sparse=True)
        radius = np.sqrt(sum(grid**2 for grid in grids))
        gain = radius * np.exp(-((radius / params.f_0) ** params.n))
        if part.ndim == 4:
            gain = gain[:, None]
        return np.fft.ifftn(np.fft.fftn(part, axes=axes) * gain, axes=axes).real.astype(np.float32)

    return context.per_run(whitened, _float(array))


_LOOK_AHEAD = ("smooth", "fftwhitening")
_OPS: dict[str, Callable[[np.ndarray, Any, _Context], np.ndarray]] = {
    "pixelnorm": _pixelnorm,
    "diff": _diff,
    "mul": _mul,
    "symlog": _symlog,
    "maxnorm": _maxnorm,
    "smooth": _smooth,
    "unsqueeze": _unsqueeze,
    "cast": _cast,
    "select_units": _select_units,
    "splitrelu": _splitrelu,
    "temporal_basis": _temporal_basis,
    "dacones": _dacones,
    "fftwhitening": _fftwhitening,
}
