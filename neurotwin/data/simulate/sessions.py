"""Demo sessions: free viewing, flashed Gabors and a repeated clip.

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
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.special import expit

from ...config import Params, define
from ...likelihoods import Likelihood
from ..session import Session
from .movies import TRIAL_BINS, autoregress, flashed_gabors, free_viewing, photographs, repeated_clip
from .units import (
    BIN_RATE,
    DEMO_SESSIONS,
    FRAME_SIZE,
    GREY,
    PIXELS_PER_DEGREE,
    PUPIL_MM,
    draw_units,
    generator_of,
    subject_of,
)

__all__ = ["make_demo_sessions", "simulate_linear_session", "simulate_session"]

log = logging.getLogger(__name__)

_N_TRIALS = {"backimage": 80, "gaborium": 18, "fixrsvp": 40}
_GAP_BINS = 48  # of grey before each trial: longer than any unit remembers, so repeats have equal pasts


def simulate_session(
    name: str, *, seed: int = 0, n_units: int | None = None, n_trials: Mapping[str, int] | None = None,
    likelihood: str = "poisson", likelihood_params: Params | Mapping[str, object] | None = None,
) -> Session:  # fmt: skip
    """Simulate a session of free viewing, flashed Gabors and a repeated clip.

    What is shown and recorded is said in :mod:`neurotwin.data.simulate.sessions`.

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
    units, receptive_field = draw_units(name, seed=seed, n_units=n_units), subject_of(name, seed)[0]
    shown = _show(generator_of(name, "stimulus", seed), counts, receptive_field)
    n_bins = len(shown["stimulus"])
    rng = generator_of(name, "behavior", seed)
    pupil = pupil_diameter(rng, n_bins)
    missing = missing_spikes(rng, n_bins, len(units.frequency))
    rate = units.rate(shown["stimulus"]) * units.gain(pupil, shown["eyevel"])
    rate = (rate * (1 - missing / 100) / BIN_RATE).astype(np.float32)
    return Session(
        name=name, stimulus=shown["stimulus"], bin_rate=BIN_RATE, unit_ids=2 + 3 * np.arange(rate.shape[1]),
        responses=_draw_responses(generator_of(name, "spikes", seed), rate, likelihood, likelihood_params),
        true_rate=rate, missing_pct=missing,
        behavior={"eyepos": shown["eyepos"], "eyevel": shown["eyevel"], "pupil": pupil}, trial=shown["trial"],
        repeat_id=shown["repeat_id"], valid=tracked(rng, n_bins), stimulus_type=shown["type"],
        split=np.where(shown["type"] == "fixrsvp", "test", ""),
        unit_positions=(units.center * [1, -1] / PIXELS_PER_DEGREE + receptive_field).astype(np.float32),
        scenes=_scenes(), scene=shown["scene"], scene_offset=receptive_field,
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
    rng = generator_of("linear", "stimulus", seed)
    noise = rng.standard_normal((n_bins, size, size), np.float32) * 40 + GREY
    stimulus = np.clip(np.rint(noise), 0, 255).astype(np.uint8)
    filtered = units.linear(stimulus, bin_rate)[0] * GREY / 40
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


def _show(rng: np.random.Generator, counts: Mapping[str, int], receptive_field: np.ndarray) -> dict[str, np.ndarray]:
    """Trials in random order: frames, eye position and velocity, trial, repeat and stimulus type of every bin."""
    types = rng.permutation(np.repeat(list(counts), list(counts.values())))
    lengths = np.array([TRIAL_BINS[kind] for kind in types])
    starts = np.cumsum(_GAP_BINS + lengths) - lengths
    n_bins = int(starts[-1] + lengths[-1])
    stimulus = np.full((n_bins, FRAME_SIZE, FRAME_SIZE), int(GREY), np.uint8)
    eyepos, eyevel = np.zeros((n_bins, 2), np.float32), np.zeros((n_bins, 2), np.float32)
    trial, repeat_id = np.full(n_bins, -1, np.int32), np.full(n_bins, -1, np.int32)
    stimulus_type = np.repeat(types, _GAP_BINS + lengths)
    pictures, scene = photographs(), np.full(n_bins, -1, np.int32)
    order = iter(rng.permutation(counts["backimage"]) % len(pictures))
    clip = repeated_clip(rng)
    for index, (kind, start, length) in enumerate(zip(types, starts, lengths, strict=True)):
        bins = slice(start, start + length)
        match kind:
            case "backimage":
                picture = next(order)
                frames, gaze, mirrored = free_viewing(rng, pictures[picture], receptive_field)
                scene[bins] = picture + len(pictures) * mirrored
            case "gaborium":
                frames, gaze = flashed_gabors(rng)
            case "fixrsvp":
                frames, gaze = clip
                repeat_id[bins] = np.arange(length)
        stimulus[bins], eyepos[bins], trial[bins] = frames, gaze, index
        eyepos[start - _GAP_BINS : start] = gaze[0]
        eyevel[start + 1 : start + length] = np.diff(gaze, axis=0) * BIN_RATE
    return {
        "stimulus": stimulus, "eyepos": eyepos, "eyevel": eyevel, "trial": trial, "repeat_id": repeat_id,
        "type": stimulus_type, "scene": scene,
    }  # fmt: skip


def _scenes() -> list[np.ndarray]:
    """The photographs as 8-bit pictures, then the same mirrored."""
    pictures = [np.rint(picture).astype(np.uint8) for picture in photographs()]
    return [*pictures, *(picture[:, ::-1] for picture in pictures)]


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


def pupil_diameter(rng: np.random.Generator, n_bins: int) -> np.ndarray:
    """Pupil diameter (T,) in mm: the sum of fluctuations over about 2 s and 15 s."""
    state = np.zeros(n_bins)
    for seconds, variance in ((2.0, 0.4), (15.0, 0.6)):
        decay = np.exp(-1 / (seconds * BIN_RATE))
        noise = rng.standard_normal(n_bins) * np.sqrt(variance * (1 - decay**2))
        noise[0] = rng.normal(0, np.sqrt(variance))
        state += autoregress(noise, decay)
    return (PUPIL_MM[0] + PUPIL_MM[1] * state).astype(np.float32)


def missing_spikes(rng: np.random.Generator, n_bins: int, n_units: int) -> np.ndarray:
    """Percentage of spikes below threshold (T, U): few in most units, while one in eight drifts off or returns."""
    missing = np.full((n_bins, n_units), rng.lognormal(0, 0.7, n_units), np.float32)
    for unit in rng.choice(n_units, -(-n_units // 8), replace=False):
        onset, slope = n_bins * rng.uniform(0.55, 0.85), rng.choice([-1, 1]) * n_bins * 0.04
        ramp = expit((np.arange(n_bins) - onset) / slope if slope > 0 else (np.arange(n_bins) - n_bins + onset) / slope)
        missing[:, unit] += rng.uniform(40, 70) * ramp
    return missing


def tracked(rng: np.random.Generator, n_bins: int) -> np.ndarray:
    """False in blinks of 0.15 to 0.25 s, 2% of the bins, (T,)."""
    valid = np.ones(n_bins, bool)
    for start in rng.integers(0, n_bins, rng.poisson(0.02 * n_bins / 48)):
        valid[start : start + rng.integers(36, 61)] = False
    return valid
