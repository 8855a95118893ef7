"""What the demo animals see: photographs, Gabors and a clip, through a window that moves with the gaze."""

from functools import lru_cache
from importlib.resources import files

import numpy as np
import scipy
from skimage.color import rgb2gray
from skimage.io import imread

from ..scene import window_of
from .units import BIN_RATE, FRAME_SIZE, GREY, PIXELS_PER_DEGREE

__all__ = ["TRIAL_BINS", "autoregress", "flashed_gabors", "free_viewing", "photographs", "repeated_clip"]

# All durations are multiples of 12 frames, so that every whole ratio of sampling rates up to 4, 6 and 12 fits.
TRIAL_BINS = {"backimage": 600, "gaborium": 960, "fixrsvp": 360}
"""Bins of a trial of each stimulus type."""

_PHOTOGRAPHS = ("astronaut", "brick", "camera", "chelsea", "coffee", "coins", "grass", "gravel", "motorcycle_left")


@lru_cache(maxsize=1)
def photographs() -> list[np.ndarray]:
    """Grey photographs from the folder of scikit-image's wheel: float32, mean 127, standard deviation 45."""
    folder = files("skimage") / "data"
    images = []
    for name in _PHOTOGRAPHS:
        image = imread(str(folder / f"{name}.png"))
        image = rgb2gray(image) if image.ndim == 3 else image.astype(float)
        images.append(np.clip((image - image.mean()) / image.std() * 45 + GREY, 0, 255).astype(np.float32))
    return images


def free_viewing(rng: np.random.Generator, photograph: np.ndarray, receptive_field: np.ndarray):
    """Frames and gaze of one free viewing of a photograph in the middle of the screen, and whether it is mirrored."""
    mirrored = rng.random() < 0.5
    if mirrored:
        photograph = photograph[:, ::-1]
    gaze = _gaze(rng, TRIAL_BINS["backimage"], _extent(photograph), receptive_field, fixation=False)
    return _see(photograph, gaze + receptive_field), gaze, mirrored


def flashed_gabors(rng: np.random.Generator, n_gabors: int = 14, hold: int = 4, margin: float = 8.0):
    """Frames and gaze of fixation on Gabors that are scattered anew every `hold` frames over the window + `margin`."""
    n_bins = TRIAL_BINS["gaborium"]
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
    return _to_uint8(GREY + 50 * contrast), gaze


def repeated_clip(rng: np.random.Generator, hold: int = 12):
    """Frames and gaze of fixation on pieces of photographs, a new one every `hold` frames."""
    n_bins = TRIAL_BINS["fixrsvp"]
    gaze = _gaze(rng, n_bins, np.zeros(2), np.zeros(2), fixation=True)
    frames = []
    for start in range(0, n_bins, hold):
        photograph = photographs()[rng.integers(len(_PHOTOGRAPHS))]
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
    velocity = autoregress(speed * rng.standard_normal((n_warm + n_bins, 2)), np.exp(-1 / (0.02 * BIN_RATE)))
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
    return window_of(photograph, center, (FRAME_SIZE, FRAME_SIZE), PIXELS_PER_DEGREE)


def _to_uint8(frames: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(frames), 0, 255).astype(np.uint8)


def autoregress(noise: np.ndarray, decay: float) -> np.ndarray:
    """y[t] = decay · y[t−1] + noise[t], along the first axis."""
    return scipy.signal.lfilter([1.0], [1.0, -decay], noise, axis=0)
