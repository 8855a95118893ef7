"""Demo sessions whose true rate is known: photographs and Gabors, seen through a moving gaze by model V1 units.

The expected count of unit u in bin t is ::

    rate  = (spontaneous + amplitude · drive) · gain · (1 − missing) / bin_rate
    drive = [(1 − complexity) · ⌊E⌋² + complexity · (E² + O²)] / (σ² + P)
    gain  = exp(pupil_gain · pupil + saccade_gain · perisaccadic)

E and O are responses of two space-time Gabor filters in quadrature and `complexity` runs from 0, a simple cell, to 1, a
complex cell (Adelson & Bergen 1985). P is the energy (E² + O²) / 2, averaged between the unit itself and the mean of
all units of the session (divisive normalisation, Heeger 1992). `pupil` is the standardised diameter and `perisaccadic`
the eye speed filtered by a kernel that first suppresses, then enhances. Responses are drawn from a likelihood given the
rate: by default Poisson spike counts.
"""

import logging
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from scipy.signal import lfilter
from scipy.special import expit
from skimage.color import rgb2gray
from skimage.io import imread

from ..config import Params, define
from ..likelihoods import Likelihood
from .session import Session

__all__ = [
    "BIN_RATE",
    "DEMO_SESSIONS",
    "FRAME_SIZE",
    "PIXELS_PER_DEGREE",
    "PUPIL_MM",
    "Units",
    "draw_units",
    "make_demo_sessions",
    "simulate_linear_session",
    "simulate_session",
]

log = logging.getLogger(__name__)

DEMO_SESSIONS = {"ada_demo1": 24, "ada_demo2": 19, "bea_demo1": 27, "bea_demo2": 16}
"""The roster of demo sessions: name and number of units."""
BIN_RATE = 240.0
"""Frames a second of the demo sessions, in Hz."""
FRAME_SIZE = 28
"""Height and width of a demo frame, in pixels."""
PIXELS_PER_DEGREE = 28.0
"""Pixels per degree of visual angle."""
PUPIL_MM = (3.0, 0.4)
"""Mean and standard deviation of the pupil diameter, in mm."""

_PHOTOGRAPHS = ("astronaut", "brick", "camera", "chelsea", "coffee", "coins", "grass", "gravel", "motorcycle_left")
_GREY = 127.0
# All durations are multiples of 12 frames, so that every whole ratio of sampling rates up to 4, 6 and 12 fits.
_TRIAL_BINS = {"backimage": 600, "gaborium": 960, "fixrsvp": 360}
_N_TRIALS = {"backimage": 80, "gaborium": 18, "fixrsvp": 40}
_GAP_BINS = 48  # of grey before each trial: longer than any unit remembers, so repeats have equal pasts
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
            seen[start : start + 4096] = (block - _GREY) @ weights / _GREY
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
    rng = _generator(name, "units", seed)
    scale = _subject(name, seed)[1]
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


def simulate_session(
    name: str, *, seed: int = 0, n_units: int | None = None, n_trials: Mapping[str, int] | None = None,
    likelihood: str = "poisson", likelihood_params: Params | Mapping[str, object] | None = None,
) -> Session:  # fmt: skip
    """Simulate a session of free viewing, flashed Gabors and a repeated clip.

    The stimulus is what falls on a window of 1 × 1 degree around the receptive fields as the eye moves, at 240 Hz.

    - `backimage`: free viewing of a photograph for 2.5 s.
    - `gaborium`: fixation for 4 s on sparse Gabors that are drawn anew every 4 frames and stay put on the screen.
    - `fixrsvp`: fixation for 1.5 s on a clip of 30 pieces of photographs. Clip and gaze are the same in every
      repeat, so the stimulus drive is too; the pupil is not, so the true rate differs by its gain. All repeats carry
      the split label "test", so that no model is tested on a clip that it was trained on.

    Behaviour: `eyepos` (T, 2), right and up, in degrees; `eyevel` (T, 2) in degrees/s, from the bin before to this
    one; `pupil` (T,), diameter in mm. The gain is computed from `eyevel` and `pupil` alone. Blinks make 2% of the
    bins invalid. The gap of grey before each trial has trial −1. Two or three units lose spikes to the detection
    threshold for part of the session; the true rate is that of the spikes that are left.

    Parameters
    ----------
    name
        Session and, up to the first underscore, subject. Names outside the roster need `n_units`.
    seed
        The same name, seed and sizes give the same bits.
    n_units
        Default: that of the roster :data:`DEMO_SESSIONS`. Unit ids are 2, 5, 8, ...
    n_trials
        Trials of each stimulus type; those left out default to 80 backimage, 18 gaborium and 40 fixrsvp
        (together 6 minutes with the gaps).
    likelihood
        Name of the likelihood that responses are drawn from, given the true rate. Counts are stored as uint8 (int32
        where one is larger than 255), real responses as float32.
    likelihood_params
        Its parameters, the same for all units; default those of the likelihood. Rates are small, about 0.01 to 0.4 a
        bin, and so should be the variance of a Gaussian or the event of a gamma likelihood.

    Raises
    ------
    ValueError
        If a stimulus type is unknown, there are no trials, the number of units cannot be known, or there is no such
        likelihood or parameter.

    Examples
    --------
    >>> session = simulate_session("ada_demo1", n_trials={"backimage": 1, "gaborium": 0, "fixrsvp": 2})
    >>> session.n_units, session.bin_rate, session.frame_shape, session.duration
    (24, 240.0, (1, 28, 28), 6.1)
    """
    counts = _N_TRIALS | dict(n_trials or {})
    if set(counts) != set(_N_TRIALS) or sum(counts.values()) < 1:
        raise ValueError(f"n_trials is {n_trials}; give a positive number of trials of some of {list(_N_TRIALS)}")
    units = draw_units(name, seed=seed, n_units=n_units)
    rng = _generator(name, "stimulus", seed)
    types = rng.permutation(np.repeat(list(counts), list(counts.values())))
    lengths = np.array([_TRIAL_BINS[kind] for kind in types])
    starts = np.cumsum(_GAP_BINS + lengths) - lengths
    n_bins = int(starts[-1] + lengths[-1])

    stimulus = np.full((n_bins, FRAME_SIZE, FRAME_SIZE), int(_GREY), np.uint8)
    eyepos, eyevel = np.zeros((n_bins, 2), np.float32), np.zeros((n_bins, 2), np.float32)
    trial, repeat_id = np.full(n_bins, -1, np.int32), np.full(n_bins, -1, np.int32)
    stimulus_type = np.repeat(types, _GAP_BINS + lengths)
    receptive_field = _subject(name, seed)[0]
    photographs = iter(rng.permutation(counts["backimage"]) % len(_PHOTOGRAPHS))
    clip = _fixrsvp(rng)
    for index, (kind, start, length) in enumerate(zip(types, starts, lengths, strict=True)):
        bins = slice(start, start + length)
        match kind:
            case "backimage":
                frames, gaze = _backimage(rng, _photographs()[next(photographs)], receptive_field)
            case "gaborium":
                frames, gaze = _gaborium(rng)
            case "fixrsvp":
                frames, gaze = clip
                repeat_id[bins] = np.arange(length)
        stimulus[bins], eyepos[bins], trial[bins] = frames, gaze, index
        eyepos[start - _GAP_BINS : start] = gaze[0]
        eyevel[start + 1 : start + length] = np.diff(gaze, axis=0) * BIN_RATE

    rng = _generator(name, "behavior", seed)
    pupil = _pupil(rng, n_bins)
    missing = _missing_spikes(rng, n_bins, len(units.frequency))
    rate = (units.rate(stimulus) * units.gain(pupil, eyevel) * (1 - missing / 100) / BIN_RATE).astype(np.float32)
    return Session(
        name=name, stimulus=stimulus, bin_rate=BIN_RATE, unit_ids=2 + 3 * np.arange(rate.shape[1]),
        responses=_draw_responses(_generator(name, "spikes", seed), rate, likelihood, likelihood_params),
        true_rate=rate, missing_pct=missing,
        behavior={"eyepos": eyepos, "eyevel": eyevel, "pupil": pupil}, trial=trial, repeat_id=repeat_id,
        valid=_tracked(rng, n_bins), stimulus_type=stimulus_type,
        split=np.where(stimulus_type == "fixrsvp", "test", ""),
        unit_positions=(units.center * [1, -1] / PIXELS_PER_DEGREE + receptive_field).astype(np.float32),
        pixels_per_degree=PIXELS_PER_DEGREE, info={"lab": "simulation", "seed": str(seed)},
    )  # fmt: skip


def simulate_linear_session(
    *, seed: int = 0, n_units: int = 4, n_bins: int = 40_000, size: int = 16, bin_rate: float = 60.0
) -> tuple[Session, np.ndarray]:
    """Simulate linear-nonlinear units under white noise: what an LN model must recover exactly.

    rate = softplus(2 (filter ∗ x) / s), counts per bin, with x = (pixel − 127) / 127 and s its standard deviation.

    Parameters
    ----------
    seed, n_units, n_bins
        Of the session.
    size
        Height and width of the frame, in pixels.
    bin_rate
        Bins a second, in Hz; the filters cover 0.15 s.

    Returns
    -------
    session
        One trial every 600 bins; Gaussian white noise of standard deviation 40 grey levels.
    filters
        (U, L, size, size) float32, oldest first, applied to the last L frames.

    Examples
    --------
    >>> session, filters = simulate_linear_session(n_bins=600)
    >>> session.responses.shape, filters.shape
    ((600, 4), (4, 9, 16, 16))
    """
    units = draw_units("linear", seed=seed, n_units=n_units)
    rng = _generator("linear", "stimulus", seed)
    noise = rng.standard_normal((n_bins, size, size), np.float32) * 40 + _GREY
    stimulus = np.clip(np.rint(noise), 0, 255).astype(np.uint8)
    filtered = units.linear(stimulus, bin_rate)[0] * _GREY / 40
    rate = np.logaddexp(0, 2 * filtered).astype(np.float32)
    session = Session(
        name="linear", stimulus=stimulus, responses=rng.poisson(rate).astype(np.uint8), bin_rate=bin_rate,
        true_rate=rate, trial=np.arange(n_bins) // 600, stimulus_type="noise",
    )  # fmt: skip
    return session, units.filters(size, bin_rate)


def make_demo_sessions(folder: str | Path, names: Sequence[str] | None = None, *, seed: int = 0) -> list[Path]:
    """Write the demo sessions that `folder` lacks, each whole or not at all, and return the paths of all.

    Parameters
    ----------
    folder
        Made if absent; files are NAME.safetensors.
    names
        Default: all of :data:`DEMO_SESSIONS`.
    seed
        Of the sessions that are made.

    Raises
    ------
    ValueError
        If a name is not in the roster.
    """
    names = list(DEMO_SESSIONS) if names is None else names
    paths = [Path(folder) / f"{name}.safetensors" for name in names]
    missing = [path for path in paths if not path.exists()]
    for path in missing:
        simulate_session(path.stem, seed=seed).save(path)
    if missing:
        log.info("simulated %d demo sessions in %s: %s", len(missing), folder, ", ".join(p.stem for p in missing))
    return paths


def _generator(name: str, stream: str, seed: int) -> np.random.Generator:
    """Independent streams, so that a longer session has the same units and the same gaze has other spikes."""
    return np.random.default_rng([seed, zlib.crc32(f"{name}/{stream}".encode())])


def _draw_responses(
    rng: np.random.Generator, rate: np.ndarray, likelihood: str, params: Params | Mapping[str, object] | None
) -> np.ndarray:
    """Responses (T, U) to rates (T, U), drawn from a likelihood."""
    definition = define("likelihood", likelihood)
    model: Likelihood = definition(definition.Params.model_validate({} if params is None else params), rate.shape[1])
    if likelihood == "poisson":  # NumPy's generator keeps its bits from version to version, and so do the demo sessions
        return rng.poisson(rate).astype(np.uint8)
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    drawn = model.sample(torch.from_numpy(rate), generator=generator).numpy()
    if not model.discrete:
        return drawn.astype(np.float32)
    return drawn.astype(np.uint8 if drawn.max(initial=0) < 256 else np.int32)


def _subject(name: str, seed: int) -> tuple[np.ndarray, float]:
    """Receptive-field position, (2,) right and up in degrees, and preferred frequency in cycles/pixel, of a subject."""
    rng = _generator(name.split("_")[0], "subject", seed)
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


@lru_cache(maxsize=1)
def _photographs() -> list[np.ndarray]:
    """Grey photographs from the folder of scikit-image's wheel: float32, mean 127, standard deviation 45."""
    folder = files("skimage") / "data"
    images = []
    for name in _PHOTOGRAPHS:
        image = imread(str(folder / f"{name}.png"))
        image = rgb2gray(image) if image.ndim == 3 else image.astype(float)
        images.append(np.clip((image - image.mean()) / image.std() * 45 + _GREY, 0, 255).astype(np.float32))
    return images


def _backimage(rng: np.random.Generator, photograph: np.ndarray, receptive_field: np.ndarray):
    """Frames and gaze of one free viewing of a photograph in the middle of the screen."""
    if rng.random() < 0.5:
        photograph = photograph[:, ::-1]
    gaze = _gaze(rng, _TRIAL_BINS["backimage"], _extent(photograph), receptive_field, fixation=False)
    return _see(photograph, gaze + receptive_field), gaze


def _gaborium(rng: np.random.Generator, n_gabors: int = 14, hold: int = 4, margin: float = 8.0):
    """Frames and gaze of fixation on Gabors that are scattered anew every `hold` frames over the window + `margin`."""
    n_bins = _TRIAL_BINS["gaborium"]
    gaze = _gaze(rng, n_bins, np.zeros(2), np.zeros(2), fixation=True)
    draws, half = n_bins // hold, FRAME_SIZE / 2 + margin
    shape = (draws, n_gabors)
    place = rng.uniform(-half, half, (*shape, 2))
    angle, frequency = rng.uniform(0, 2 * np.pi, shape), rng.uniform(0.07, 0.2, shape)
    sigma, phase = 0.45 / frequency, rng.uniform(0, 2 * np.pi, shape)
    moved = gaze * [1, -1] * PIXELS_PER_DEGREE
    moved = (moved - np.repeat(moved[::hold], hold, axis=0)).reshape(draws, hold, 1, 2)
    axis = np.arange(FRAME_SIZE) - (FRAME_SIZE - 1) / 2
    waves = []
    for dim, wave in enumerate((frequency * np.cos(angle), frequency * np.sin(angle))):
        offset = (axis - (place[:, None, :, dim] - moved[..., dim])[..., None]).astype(np.float32)
        envelope = -((offset / sigma[:, None, :, None]) ** 2) / 2
        waves.append(np.exp(envelope + 2j * np.pi * wave[:, None, :, None] * offset).astype(np.complex64))
    # A Gabor is the real part of a product of a function of x and one of y: all of a frame are one matrix product.
    columns, rows = waves
    rows *= np.exp(1j * phase)[:, None, :, None].astype(np.complex64)
    contrast = (np.swapaxes(rows, -1, -2) @ columns).real.reshape(n_bins, FRAME_SIZE, FRAME_SIZE)
    return _to_uint8(_GREY + 50 * contrast), gaze


def _fixrsvp(rng: np.random.Generator, hold: int = 12):
    """Frames and gaze of fixation on pieces of photographs, a new one every `hold` frames."""
    n_bins = _TRIAL_BINS["fixrsvp"]
    gaze = _gaze(rng, n_bins, np.zeros(2), np.zeros(2), fixation=True)
    frames = []
    for start in range(0, n_bins, hold):
        photograph = _photographs()[rng.integers(len(_PHOTOGRAPHS))]
        middle = rng.uniform(-1, 1, 2) * _extent(photograph)
        frames.append(_see(photograph, gaze[start : start + hold] + middle))
    return np.concatenate(frames), gaze


def _gaze(rng: np.random.Generator, n_bins: int, extent: np.ndarray, aim: np.ndarray, *, fixation: bool) -> np.ndarray:
    """Eye position (n_bins, 2), right and up, in degrees: drift between saccades of minimum jerk.

    In fixation, microsaccades bring the eye back to the middle; in free viewing, one in five is a microsaccade and the
    others leap so that gaze + `aim` stays within ±`extent`.
    """
    n_warm = 48
    speed = 0.7 * np.sqrt(1 - np.exp(-2 / (0.02 * BIN_RATE)))  # Brownian drift of 0.01 degrees²/s beyond 20 ms
    velocity = _autoregress(speed * rng.standard_normal((n_warm + n_bins, 2)), np.exp(-1 / (0.02 * BIN_RATE)))
    gaze = np.cumsum(velocity[n_warm:], axis=0) / BIN_RATE
    gaze += 0 if fixation else rng.uniform(-0.7, 0.7, 2) * extent - aim
    start = 0
    while True:
        pause = 0.35 + rng.gamma(2, 0.15) if fixation else 0.12 + rng.gamma(2, 0.07)
        start += round(pause * BIN_RATE)
        if start >= n_bins:
            return gaze
        here = gaze[start].copy()
        if fixation:
            leap = rng.normal(0, 0.12, 2) - 0.8 * here
        else:
            size = rng.lognormal(np.log(0.3), 0.4) if rng.random() < 0.2 else rng.lognormal(np.log(2.5), 0.6)
            angle = rng.uniform(0, 2 * np.pi)
            goal = 0.85 * (here + aim) + size * np.array([np.cos(angle), np.sin(angle)])
            leap = np.clip(goal, -extent, extent) - aim - here
        n_move = round((0.021 + 0.0022 * np.hypot(*leap)) * BIN_RATE)  # main sequence (Carpenter 1988)
        s = np.clip(np.arange(1, n_bins - start + 1) / n_move, 0, 1)
        gaze[start:] += leap * (s**3 * (10 - 15 * s + 6 * s**2))[:, None]


def _extent(photograph: np.ndarray) -> np.ndarray:
    """How far the window's middle may be from the photograph's, (2,) right and up, in degrees."""
    return (np.array(photograph.shape[::-1]) - FRAME_SIZE - 2) / 2 / PIXELS_PER_DEGREE


def _see(photograph: np.ndarray, center: np.ndarray) -> np.ndarray:
    """The window around `center` (T, 2), right and up of the photograph's middle in degrees: (T, size, size) uint8."""
    height, width = photograph.shape
    corner = (np.array([height, width]) - FRAME_SIZE) / 2 + center[:, ::-1] * [-1, 1] * PIXELS_PER_DEGREE
    corner = np.clip(corner, 0, np.array([height, width]) - FRAME_SIZE - 1.001)
    whole = corner.astype(int)
    dy, dx = (corner - whole).astype(np.float32).T[:, :, None, None]
    windows = np.lib.stride_tricks.sliding_window_view(photograph, (FRAME_SIZE + 1, FRAME_SIZE + 1))
    patch = windows[whole[:, 0], whole[:, 1]]
    patch = patch[:, :-1] + dy * np.diff(patch, axis=1)
    return _to_uint8(patch[:, :, :-1] + dx * np.diff(patch, axis=2))


def _to_uint8(frames: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(frames), 0, 255).astype(np.uint8)


def _pupil(rng: np.random.Generator, n_bins: int) -> np.ndarray:
    """Pupil diameter (T,) in mm: the sum of fluctuations over about 2 s and 15 s."""
    state = np.zeros(n_bins)
    for seconds, variance in ((2.0, 0.4), (15.0, 0.6)):
        decay = np.exp(-1 / (seconds * BIN_RATE))
        noise = rng.standard_normal(n_bins) * np.sqrt(variance * (1 - decay**2))
        noise[0] = rng.normal(0, np.sqrt(variance))
        state += _autoregress(noise, decay)
    return (PUPIL_MM[0] + PUPIL_MM[1] * state).astype(np.float32)


def _autoregress(noise: np.ndarray, decay: float) -> np.ndarray:
    """y[t] = decay · y[t−1] + noise[t], along the first axis."""
    return lfilter([1.0], [1.0, -decay], noise, axis=0)


def _missing_spikes(rng: np.random.Generator, n_bins: int, n_units: int) -> np.ndarray:
    """Percentage of spikes below threshold (T, U): few in most units, while one in eight drifts off or returns."""
    missing = np.full((n_bins, n_units), rng.lognormal(0, 0.7, n_units), np.float32)
    for unit in rng.choice(n_units, -(-n_units // 8), replace=False):
        onset, slope = n_bins * rng.uniform(0.55, 0.85), rng.choice([-1, 1]) * n_bins * 0.04
        ramp = expit((np.arange(n_bins) - onset) / slope if slope > 0 else (np.arange(n_bins) - n_bins + onset) / slope)
        missing[:, unit] += rng.uniform(40, 70) * ramp
    return missing


def _tracked(rng: np.random.Generator, n_bins: int) -> np.ndarray:
    """False in blinks of 0.15 to 0.25 s, 2% of the bins, (T,)."""
    valid = np.ones(n_bins, bool)
    for start in rng.integers(0, n_bins, rng.poisson(0.02 * n_bins / 48)):
        valid[start : start + rng.integers(36, 61)] = False
    return valid
