"""Operations on a signal of a session, one class each: its parameters are its fields, `apply` is what it does.

Every operation takes an array whose first axis is time, and works within runs of bins that belong together (a trial
without a gap), so that nothing reaches across a boundary. An operation with constants that come from the data computes
them on the training part once, and they are kept with the model.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np
import scipy
from pydantic import Field

from ..config import DatasetConfig, Only, Params, register
from .kernels import AdaptationParams, RaisedCosineParams, adaptation_filters, raised_cosine_basis
from .session import frame_shape

__all__ = ["PIXEL_NORM", "Context", "Transform"]

PIXEL_NORM = (1 / 255, -127 / 255)
"""Factor and offset that take an 8-bit pixel to what a model sees, (x - 127) / 255."""


@dataclass(frozen=True)
class Context:
    """What an operation may need besides its array.

    Attributes
    ----------
    config
        The session's config.
    name
        Of the pipeline, for messages.
    source
        Of the signal that the pipeline starts from.
    runs
        (N, 2): first and one past the last bin of each run.
    bin_ms
        Width of a bin, ms; None where it is not known.
    fitted
        Constants by key; an operation that fits adds its own.
    key
        Of this operation, ``PIPELINE.POSITION``.
    train
        (T,) bool: bins to fit on; None where the constants are known.
    unit_ids
        (U,) ids of the session's units.
    """

    config: DatasetConfig
    name: str = ""
    source: str = ""
    runs: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), int))
    bin_ms: float | None = None
    fitted: dict[str, float | list[float]] = field(default_factory=dict)
    key: str = ""
    train: np.ndarray | None = None
    unit_ids: np.ndarray | None = None

    def per_run(self, function: Callable[[np.ndarray], np.ndarray], array: np.ndarray) -> np.ndarray:
        """Apply a function to each run of bins by itself."""
        parts = [function(array[start:stop]) for start, stop in self.runs]
        return np.concatenate(parts) if parts else array


class Transform(Params):
    """Base of the operations.

    Attributes
    ----------
    looks_ahead
        What a run says at its start where a bin's value depends on later ones; empty where it does not.
    fits
        Whether it has constants that come from the training part.
    """

    @property
    def looks_ahead(self) -> str:
        """What a run says at its start where a bin's value depends on later ones; empty where it does not."""
        return ""

    @property
    def fits(self) -> bool:
        """Whether it has constants that come from the training part."""
        return False

    def scale(self) -> tuple[float, float] | None:
        """(a, b) where the operation is a·x + b for the stimulus, which is then left to the device; else None."""
        return None

    def apply(self, array: np.ndarray, context: Context) -> np.ndarray:
        """The array (T, ...) after the operation.

        Raises
        ------
        ValueError
            If the operation makes no sense for such a signal.
        """
        raise NotImplementedError


@register("transform", "pixelnorm")
class PixelNorm(Transform):
    """(x - 127) / 255."""

    def scale(self) -> tuple[float, float]:
        return PIXEL_NORM

    def apply(self, array: np.ndarray, context: Context) -> np.ndarray:
        return _float(array) * np.float32(PIXEL_NORM[0]) + np.float32(PIXEL_NORM[1])


@register("transform", "diff")
class Diff(Transform):
    """Difference to the bin before, within a trial; same length, 0 in a trial's first bin."""

    axis: int = Field(0, description="0: time. Another axis: along it, the first entry 0.")

    def apply(self, array: np.ndarray, context: Context) -> np.ndarray:
        def difference(part: np.ndarray) -> np.ndarray:
            return np.diff(part, axis=self.axis, prepend=np.take(part, [0], axis=self.axis))

        return context.per_run(difference, _float(array))


@register("transform", "mul")
class Mul(Transform):
    """Multiply."""

    factor: float = Field(..., description="Factor.")

    def scale(self) -> tuple[float, float]:
        return self.factor, 0.0

    def apply(self, array: np.ndarray, context: Context) -> np.ndarray:
        return _float(array) * np.float32(self.factor)


@register("transform", "symlog")
class SymLog(Transform):
    """sign(x) log(1 + |x|)."""

    def apply(self, array: np.ndarray, context: Context) -> np.ndarray:
        return np.sign(array) * np.log1p(np.abs(_float(array)))


@register("transform", "maxnorm")
class MaxNorm(Transform):
    """Divide by the largest absolute value in the training part."""

    @property
    def fits(self) -> bool:
        return True

    def apply(self, array: np.ndarray, context: Context) -> np.ndarray:
        if context.train is not None:
            context.fitted[context.key] = float(np.max(np.abs(array[context.train]), initial=0.0))
        largest = context.fitted[context.key]
        if largest == 0:
            raise ValueError(f"transforms.{context.name}: maxnorm, but the signal is 0 throughout the training part")
        return _float(array) / np.float32(largest)


@register("transform", "smooth")
class Smooth(Transform):
    """Gaussian smoothing within a trial; looks ahead, and says so."""

    sigma: float = Field(..., gt=0, le=10_000, description="Standard deviation, bins.")

    @property
    def looks_ahead(self) -> str:
        return f"looks ahead: a bin holds what comes up to about {2 * self.sigma:g} bins after it"

    def apply(self, array: np.ndarray, context: Context) -> np.ndarray:
        return context.per_run(
            lambda part: scipy.ndimage.gaussian_filter1d(part, self.sigma, axis=0, mode="nearest"), _float(array)
        )


@register("transform", "unsqueeze")
class Unsqueeze(Transform):
    """Insert an axis. For the stimulus, whose axes are known anyway, nothing happens."""

    dim: int = Field(-1, description="Where.")

    def scale(self) -> tuple[float, float]:
        return 1.0, 0.0

    def apply(self, array: np.ndarray, context: Context) -> np.ndarray:
        return array if context.source == "stim" else np.expand_dims(array, self.dim)


@register("transform", "cast")
class Cast(Transform):
    """Change the number type."""

    dtype: Literal["float32", "float16", "uint8", "int16", "int32", "bool"] = Field("float32", description="Type.")

    def scale(self) -> tuple[float, float] | None:
        return (1.0, 0.0) if self.dtype.startswith("float") else None

    def apply(self, array: np.ndarray, context: Context) -> np.ndarray:
        return array.astype(self.dtype)


@register("transform", "select_units")
class SelectUnits(Transform):
    """Keep some columns."""

    indices: Literal["cids"] | tuple[int, ...] = Field("cids", description="cids: the units to fit; or columns.")

    def apply(self, array: np.ndarray, context: Context) -> np.ndarray:
        if self.indices != "cids":
            return array[:, list(self.indices)]
        if context.config.cids is None or context.unit_ids is None:
            return array
        column = {unit: index for index, unit in enumerate(context.unit_ids.tolist())}
        return array[:, [column[unit] for unit in context.config.cids]]


@register("transform", "splitrelu")
class SplitReLU(Transform):
    """relu(x) and relu(-x): doubles an axis."""

    split_dim: int = Field(-1, description="The axis.")
    trainable_gain: Annotated[bool, Only(False, "a transform has nothing to train")] = Field(
        False, description="Must be false: a transform has nothing to train."
    )

    def apply(self, array: np.ndarray, context: Context) -> np.ndarray:
        array = _float(array)
        return np.concatenate([np.maximum(array, 0), np.maximum(-array, 0)], axis=self.split_dim)


@register("transform", "temporal_basis")
class TemporalBasis(Transform, RaisedCosineParams):
    """Raised cosines over the past of a signal (Pillow et al. 2008); over its future too with ``causal: false``.

    Before the first bin of a run its first value is repeated, and after the last bin its last value. Zeros would look
    as if the behaviour began with the recording.
    """

    @property
    def looks_ahead(self) -> str:
        if self.causal:
            return ""
        later = self.history_bins - 1
        return (
            f"is centred on the bin (causal: false): predictions see up to {later} bins of the signal after it; at the "
            "ends of a trial its first and last value are repeated"
        )

    @property
    def fits(self) -> bool:
        return self.batch_norm

    def apply(self, array: np.ndarray, context: Context) -> np.ndarray:
        if not self.causal and context.source in ("stim", "robs"):
            raise ValueError(
                f"transforms.{context.name}: causal: false lets a prediction see the future of the "
                f"{'stimulus' if context.source == 'stim' else 'responses'}; it is possible for behaviour only"
            )
        bin_ms = self.bin_size_ms or context.bin_ms
        if bin_ms is None:
            raise ValueError(f"transforms.{context.name}: temporal_basis has times in ms; give bin_size_ms")
        kernels = raised_cosine_basis(self, bin_ms)[:, ::-1]  # newest first, as a convolution wants it
        before, after = self.history_bins - 1, 0 if self.causal else self.history_bins - 1
        trail = array.shape[1:]

        def filtered(part: np.ndarray) -> np.ndarray:
            flat = _float(part).reshape(len(part), -1)
            padded = np.concatenate([np.repeat(flat[:1], before, axis=0), flat, np.repeat(flat[-1:], after, axis=0)])
            outputs = [scipy.signal.lfilter(kernel, 1.0, padded, axis=0)[before + after :] for kernel in kernels]
            stacked = np.concatenate(outputs, axis=1).astype(np.float32)
            # Over the stimulus, the functions are channels of frames.
            return stacked.reshape(len(part), -1, *frame_shape(trail)[1:]) if context.source == "stim" else stacked

        array = context.per_run(filtered, array)
        return self._normalised(array, context) if self.batch_norm else array

    def _normalised(self, array: np.ndarray, context: Context) -> np.ndarray:
        axes = (0, *range(2, array.ndim))
        if context.train is not None:
            part = array[context.train].astype(np.float64)
            context.fitted[f"{context.key}.mean"] = part.mean(axis=axes).tolist()
            context.fitted[f"{context.key}.std"] = np.sqrt(part.var(axis=axes) + 1e-5).tolist()
        shape = (-1, *(1,) * (array.ndim - 2))
        mean, std = (np.reshape(context.fitted[f"{context.key}.{name}"], shape) for name in ("mean", "std"))
        return ((array - mean) / std).astype(np.float32)


@register("transform", "dacones")
class DACones(Transform, AdaptationParams):
    """Dynamical adaptation of photoreceptors as a fixed transform of the stimulus (Clark et al. 2013)."""

    def apply(self, array: np.ndarray, context: Context) -> np.ndarray:
        if context.bin_ms is None:
            raise ValueError("dacones has time constants in ms; give `sampling` so that the width of a bin is known")
        fast, slow = adaptation_filters(self, context.bin_ms)
        before = self.filter_length - 1

        def adapted(part: np.ndarray) -> np.ndarray:
            padded = np.concatenate([np.repeat(part[:1], before, axis=0), part])
            y, z = (scipy.signal.lfilter(kernel, 1.0, padded, axis=0)[before:] for kernel in (fast, slow))
            # Light is not negative; where a stimulus around 0 is, the floor stands in, as in the frontend.
            return (self.alpha * y / np.maximum(1 + self.beta * z, 0.1)).astype(np.float32)

        return context.per_run(adapted, _float(array))


@register("transform", "fftwhitening")
class FFTWhitening(Transform):
    """Scale by radial spatio-temporal frequency times exp(-(f/f_0)^n), per trial; looks ahead, and says so."""

    f_0: float = Field(0.4, gt=0, description="Cut-off, cycles per sample (0.5 is Nyquist).")
    n: float = Field(4.0, gt=0, description="Steepness.")

    @property
    def looks_ahead(self) -> str:
        return "looks ahead: every bin depends on the whole trial"

    def apply(self, array: np.ndarray, context: Context) -> np.ndarray:
        if array.ndim not in (3, 4):
            raise ValueError(f"transforms.{context.name}: fftwhitening is for frames (T, H, W) or (T, C, H, W)")

        def whitened(part: np.ndarray) -> np.ndarray:
            axes = (0, part.ndim - 2, part.ndim - 1)
            grids = np.meshgrid(*[np.fft.fftfreq(part.shape[axis]) for axis in axes], indexing="ij", sparse=True)
            radius = np.sqrt(sum(grid**2 for grid in grids))
            gain = radius * np.exp(-((radius / self.f_0) ** self.n))
            if part.ndim == 4:
                gain = gain[:, None]
            return np.fft.ifftn(np.fft.fftn(part, axes=axes) * gain, axes=axes).real.astype(np.float32)

        return context.per_run(whitened, _float(array))


def _float(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32, copy=False)
