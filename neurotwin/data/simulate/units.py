"""Model V1 units: what their rate depends on, and how they are drawn."""

import zlib
from dataclasses import dataclass

import numpy as np

__all__ = [
    "BIN_RATE", "DEMO_SESSIONS", "FRAME_SIZE", "GREY", "PIXELS_PER_DEGREE", "PUPIL_MM", "Units", "draw_units",
    "generator_of", "subject_of",
]  # fmt: skip

BIN_RATE = 240.0
"""Frames a second of the demo sessions, in Hz."""
FRAME_SIZE = 28
"""Height and width of a demo frame, in pixels."""
PIXELS_PER_DEGREE = 28.0
"""Pixels per degree of visual angle."""
PUPIL_MM = (3.0, 0.4)
"""Mean and standard deviation of the pupil diameter, in mm."""
DEMO_SESSIONS = {"ada_demo1": 24, "ada_demo2": 19, "bea_demo1": 27, "bea_demo2": 16}
"""The roster of demo sessions: name and number of units."""
GREY = 127.0
"""The grey of a blank screen, and the mean of all pictures."""

_KERNEL_S = 0.15  # memory of the temporal kernels
_SACCADE_KERNEL_S = 0.2
_SEMI_SATURATION = 0.4  # σ of the normalisation, in units of filter response to contrast (pixel − 127) / 127


@dataclass(frozen=True, kw_only=True)
class Units:
    """Model V1 units; each field is an array with one entry per unit.

    Parameters
    ----------
    center
        (U, 2): x (right) and y (down) of the receptive field from the middle of the frame, in pixels.
    orientation
        (U,): direction of the carrier's modulation, in radians; bars lie across it.
    frequency
        (U,): spatial frequency, in cycles per pixel.
    width
        (U, 2): standard deviation of the envelope along and across the carrier, in pixels.
    phase
        (U,): phase of the carrier at the centre, in radians.
    delay, time_constant
        (U,): of the temporal kernels, in s. The faster kernel peaks about 2.1 time constants after the delay.
    direction
        (U,): direction selectivity of the filters, from 0 (separable) to 1.
    complexity
        (U,): from 0 (simple) to 1 (complex): the share of the phase-invariant energy in the drive.
    spontaneous, amplitude
        (U,): rate without a stimulus, and rate added by a drive of 1, in Hz. The drive is at most 4.
    pupil_gain
        (U,): change of the log rate with one standard deviation of the pupil.
    saccade_gain
        (U,): strength of perisaccadic modulation; 1 suppresses the rate about e-fold after a saccade.
    """

    center: np.ndarray
    orientation: np.ndarray
    frequency: np.ndarray
    width: np.ndarray
    phase: np.ndarray
    delay: np.ndarray
    time_constant: np.ndarray
    direction: np.ndarray
    complexity: np.ndarray
    spontaneous: np.ndarray
    amplitude: np.ndarray
    pupil_gain: np.ndarray
    saccade_gain: np.ndarray

    def spatial_filters(self, size: int = FRAME_SIZE) -> np.ndarray:
        """Even and odd Gabor of each unit, (2, U, size, size): no response to grey, unit norm."""
        axis = np.arange(size) - (size - 1) / 2
        x = axis - self.center[:, 0, None, None]
        y = axis[:, None] - self.center[:, 1, None, None]
        cos, sin = (f(self.orientation)[:, None, None] for f in (np.cos, np.sin))
        along, across = x * cos + y * sin, y * cos - x * sin
        envelope = np.exp(-((along / self.width[:, :1, None]) ** 2 + (across / self.width[:, 1:, None]) ** 2) / 2)
        carrier = 2 * np.pi * self.frequency[:, None, None] * along + self.phase[:, None, None]
        gabor = envelope * np.stack([np.cos(carrier), np.sin(carrier)])
        gabor -= envelope * (gabor.sum((-2, -1), keepdims=True) / envelope.sum((-2, -1), keepdims=True))
        return (gabor / np.sqrt((gabor**2).sum((-2, -1), keepdims=True))).astype(np.float32)

    def temporal_filters(self, bin_rate: float = BIN_RATE) -> np.ndarray:
        """Fast and slow biphasic kernel of each unit, (2, U, L): oldest first, unit norm, L bins cover 0.15 s.

        k_n(s) = sⁿ exp(−s) [1/n! − s²/(n+2)!] with n = 3 and 5, s in time constants (Adelson & Bergen 1985).
        """
        ago = np.arange(round(_KERNEL_S * bin_rate))[::-1] / bin_rate
        s = np.maximum(ago - self.delay[:, None], 0) / self.time_constant[:, None]
        kernel = np.stack([s**3 * np.exp(-s) * (1 / 6 - s**2 / 120), s**5 * np.exp(-s) * (1 / 120 - s**2 / 5040)])
        return (kernel / np.sqrt((kernel**2).sum(-1, keepdims=True))).astype(np.float32)

    def filters(self, size: int = FRAME_SIZE, bin_rate: float = BIN_RATE) -> np.ndarray:
        """Space-time filter of E, (U, L, size, size): what a spike-triggered average of a simple unit estimates."""
        (even, odd), (fast, slow) = self.spatial_filters(size), self._weighted_kernels(bin_rate)
        return np.einsum("ul,uhw->ulhw", fast, even) + np.einsum("ul,uhw->ulhw", slow, odd)

    def linear(self, stimulus: np.ndarray, bin_rate: float = BIN_RATE) -> tuple[np.ndarray, np.ndarray]:
        """Responses E and O, each (T, U), to uint8 frames (T, H, W) that follow a grey screen."""
        n_bins, size, n_units = len(stimulus), stimulus.shape[-1], len(self.frequency)
        # In multiples of 2⁻³⁰, sums of products are exact, so that no bit depends on the number of threads.
        weights = np.rint(self.spatial_filters(size).reshape(2 * n_units, -1).T * 2.0**30) / 2.0**30
        seen = np.empty((n_bins, 2 * n_units), np.float32)
        for start in range(0, n_bins, 4096):
            block = stimulus[start : start + 4096].reshape(-1, size * size)
            seen[start : start + 4096] = (block - GREY) @ weights / GREY
        even, odd = seen[:, :n_units], seen[:, n_units:]
        fast, slow = self._weighted_kernels(bin_rate)
        return _filter(even, fast) + _filter(odd, slow), _filter(odd, fast) - _filter(even, slow)

    def drive(self, stimulus: np.ndarray, bin_rate: float = BIN_RATE) -> np.ndarray:
        """Normalised stimulus drive, (T, U), of uint8 frames (T, H, W) that follow a grey screen."""
        even, odd = self.linear(stimulus, bin_rate)
        energy = (even**2 + odd**2) / 2
        mixed = (1 - self.complexity) * np.maximum(even, 0) ** 2 + self.complexity * 2 * energy
        pool = (energy + energy.mean(1, keepdims=True)) / 2
        return (mixed / (_SEMI_SATURATION**2 + pool)).astype(np.float32)

    def rate(self, stimulus: np.ndarray, bin_rate: float = BIN_RATE) -> np.ndarray:
        """Rate in Hz at a gain of 1, (T, U), to uint8 frames (T, H, W) that follow a grey screen."""
        return (self.spontaneous + self.amplitude * self.drive(stimulus, bin_rate)).astype(np.float32)

    def gain(self, pupil: np.ndarray, eye_velocity: np.ndarray, bin_rate: float = BIN_RATE) -> np.ndarray:
        """Behavioural gain, (T, U), from the pupil diameter (T,) in mm and the eye velocity (T, 2) in degrees/s."""
        state = (pupil - PUPIL_MM[0]) / PUPIL_MM[1]
        modulation = _perisaccadic(np.hypot(*eye_velocity.T), bin_rate)
        return np.exp(state[:, None] * self.pupil_gain + modulation[:, None] * self.saccade_gain).astype(np.float32)

    def _weighted_kernels(self, bin_rate: float) -> np.ndarray:
        """Temporal kernels with which the two Gabors enter E, (2, U, L), such that E has unit norm."""
        weights = np.stack([np.ones_like(self.direction), self.direction]) / np.sqrt(1 + self.direction**2)
        return self.temporal_filters(bin_rate) * weights[..., None].astype(np.float32)


def draw_units(name: str, *, seed: int = 0, n_units: int | None = None) -> Units:
    """Units of a demo session: those which :func:`simulate_session` of the same name and seed records.

    Parameters
    ----------
    name
        Session; sessions of one subject share the eccentricity and the preferred scale of their receptive fields.
    seed
        Of the draw.
    n_units
        Default: that of the roster :data:`DEMO_SESSIONS`.

    Raises
    ------
    ValueError
        If the name is not in the roster and `n_units` is not given.

    Examples
    --------
    >>> draw_units("ada_demo1").center.shape
    (24, 2)
    """
    if n_units is None:
        if name not in DEMO_SESSIONS:
            raise ValueError(f"{name!r} is no demo session ({', '.join(DEMO_SESSIONS)}); give n_units to simulate it")
        n_units = DEMO_SESSIONS[name]
    rng = generator_of(name, "units", seed)
    scale = subject_of(name, seed)[1]
    frequency = np.clip(scale * 2 ** rng.normal(0, 0.3, n_units), 0.09, 0.22)
    cycles = rng.uniform([0.38, 0.45], [0.52, 0.75], (n_units, 2))
    # Half of the units draw from each end: modulation ratios of V1 are bimodal (Skottun et al. 1991).
    is_complex = rng.permutation(n_units) < round(0.55 * n_units)
    return Units(
        center=np.clip(rng.normal(0, 2.5, (n_units, 2)), -5, 5),
        orientation=rng.uniform(0, 2 * np.pi, n_units),
        frequency=frequency,
        width=np.minimum(cycles / frequency[:, None], 3.5),
        phase=rng.uniform(0, 2 * np.pi, n_units),
        delay=rng.uniform(0.020, 0.035, n_units),
        time_constant=rng.uniform(0.006, 0.009, n_units),
        direction=rng.beta(0.8, 1.2, n_units),
        complexity=np.where(is_complex, rng.beta(4, 1.2, n_units), rng.beta(1, 6, n_units)),
        spontaneous=rng.lognormal(np.log(1.5), 0.5, n_units),
        amplitude=rng.lognormal(np.log(20), 0.4, n_units),
        pupil_gain=np.clip(rng.normal(0.4, 0.1, n_units), 0, 0.55),
        saccade_gain=np.clip(rng.normal(0.8, 0.3, n_units), 0, 1.4),
    )


def generator_of(name: str, stream: str, seed: int) -> np.random.Generator:
    """Independent streams, so that a longer session has the same units and the same gaze has other spikes."""
    return np.random.default_rng([seed, zlib.crc32(f"{name}/{stream}".encode())])


def subject_of(name: str, seed: int) -> tuple[np.ndarray, float]:
    """Receptive-field position, (2,) right and up in degrees, and preferred frequency in cycles/pixel, of a subject."""
    rng = generator_of(name.split("_")[0], "subject", seed)
    return np.array([rng.uniform(0.4, 1.0), rng.uniform(-0.8, -0.2)]), rng.uniform(0.10, 0.14)


def _filter(signals: np.ndarray, kernels: np.ndarray) -> np.ndarray:
    """Causal filter of each column of (T, U) by its own kernel of (U, L), oldest first; before the first bin is 0."""
    pairs = zip(signals.T, kernels[:, ::-1], strict=True)
    return np.stack([np.convolve(signal, kernel)[: len(signal)] for signal, kernel in pairs], axis=1)


def _perisaccadic(speed: np.ndarray, bin_rate: float) -> np.ndarray:
    """Suppression about 40 ms and enhancement about 120 ms after a saccade, (T,), from eye speed in degrees/s."""
    saccade = np.clip((speed - 10) / 30, 0, 1)  # drift is slower than 10 degrees/s
    ago = np.arange(round(_SACCADE_KERNEL_S * bin_rate)) / bin_rate
    kernel = 0.7 * np.exp(-(((ago - 0.12) / 0.03) ** 2) / 2) - np.exp(-(((ago - 0.04) / 0.015) ** 2) / 2)
    return np.convolve(saccade, kernel / (0.03 * bin_rate))[: len(speed)]
