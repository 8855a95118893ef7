"""Experiments on a twin: receptive fields, gratings and the image that excites a unit most.

Movies are in the units of prepared frames: pixels from 0 to 255, unless the session's stimulus pipeline is more than
scaling. A model that is driven by behaviour needs `behavior`, the K variables as prepared, held for the whole movie.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..clip import Clip
from ..models.twin import TwinModel

__all__ = ["GratingTuning", "drifting_grating", "grating_tuning", "most_exciting_image", "receptive_field", "responses"]

GREY = 127.0


@dataclass(frozen=True)
class GratingTuning:
    """Responses of all units of a session to drifting gratings.

    Attributes
    ----------
    directions
        (D,) directions of drift, degrees.
    f0, f1
        (D, U) mean rate, and amplitude at the temporal frequency, Hz.
    """

    directions: np.ndarray
    f0: np.ndarray
    f1: np.ndarray

    @property
    def preferred(self) -> np.ndarray:
        """(U,) index of the direction of the largest response (F0 or F1, whichever is larger)."""
        return np.maximum(self.f0, self.f1).argmax(axis=0)

    @property
    def modulation_ratio(self) -> np.ndarray:
        """(U,) F1/F0 at the preferred direction: above 1 simple, below complex (Skottun et al. 1991)."""
        units = np.arange(self.f0.shape[1])
        return self.f1[self.preferred, units] / self.f0[self.preferred, units]

    @property
    def orientation_selectivity(self) -> np.ndarray:
        """(U,) 1 − circular variance over orientation of F0 (Ringach et al. 2002)."""
        angles = np.exp(2j * np.deg2rad(self.directions))[:, None]
        return np.abs((self.f0 * angles).sum(axis=0)) / self.f0.sum(axis=0)


def responses(twin: TwinModel, movies: Tensor, *, session: str | int, behavior: Tensor | None = None) -> Tensor:
    """Rates in the last bins of movies; gradients flow back to the pixels.

    Parameters
    ----------
    twin
        The model, in evaluation mode.
    movies
        (N, T, H, W) or (N, T, C, H, W), T ≥ `twin.context` + 1.
    session
        Name or index.
    behavior
        (K,) or None.

    Returns
    -------
    Tensor
        (N, T − context, U) expected counts per bin.
    """
    index, length = twin.session_index(session), movies.shape[1] - twin.context
    movies = movies[:, :, None] if movies.ndim == 4 else movies
    held = None if behavior is None else behavior.to(movies.device).expand(*movies.shape[:2], -1)
    return twin([Clip(index, length, movies.transpose(1, 2), behavior=held)])[0]


def receptive_field(
    twin: TwinModel, unit_id: int, *, session: str | int, movies: Tensor | None = None, behavior: Tensor | None = None
) -> np.ndarray:
    """Gradient of a unit's rate with respect to the pixels of the last frames, averaged over movies.

    Parameters
    ----------
    twin, session, behavior
        As for :func:`responses`.
    unit_id
        The unit.
    movies
        (N, T, ...) around which the rate is linearised. Default: one grey movie, at which the gradient of a complex
        cell is 0.

    Returns
    -------
    np.ndarray
        (T, C, H, W), oldest first, counts per bin and unit of pixel.
    """
    movies = _grey(twin, session) if movies is None else movies
    movies = movies.detach().clone().requires_grad_()
    rate = responses(twin, movies, session=session, behavior=behavior)[:, -1, _column(twin, unit_id, session)]
    (gradient,) = torch.autograd.grad(rate.mean(), movies)
    field = gradient.sum(dim=0)
    return (field[:, None] if field.ndim == 3 else field).cpu().numpy()


def drifting_grating(
    shape: tuple[int, int], n_bins: int, *, direction: float, cycles_per_pixel: float, cycles_per_bin: float,
    contrast: float = 1.0,
) -> Tensor:  # fmt: skip
    """A sinusoidal grating, (T, H, W), that drifts towards `direction` (degrees; 0 is right, 90 is down).

    Examples
    --------
    >>> frame = drifting_grating((1, 4), 1, direction=0, cycles_per_pixel=0.25, cycles_per_bin=0.1)[0]
    >>> [round(value) for value in frame[0].tolist()]
    [127, 254, 127, 0]
    """
    y, x = torch.meshgrid(*(torch.arange(size, dtype=torch.float64) for size in shape), indexing="ij")
    angle = np.deg2rad(direction)
    along = x * np.cos(angle) + y * np.sin(angle)
    phase = cycles_per_pixel * along - cycles_per_bin * torch.arange(n_bins, dtype=torch.float64)[:, None, None]
    return (GREY + GREY * contrast * torch.sin(2 * torch.pi * phase)).float()


@torch.no_grad()
def grating_tuning(
    twin: TwinModel, *, session: str | int, directions: Sequence[float], cycles_per_pixel: float, temporal_hz: float,
    contrast: float = 1.0, n_cycles: int = 4, behavior: Tensor | None = None,
) -> GratingTuning:  # fmt: skip
    """Show drifting gratings, and measure mean and first harmonic over whole cycles.

    Parameters
    ----------
    twin, session, behavior
        As for :func:`responses`.
    directions
        Degrees.
    cycles_per_pixel, temporal_hz
        Frequencies.
    contrast
        From 0 to 1.
    n_cycles
        Cycles measured, after a warm-up of the model's context.
    """
    spec = twin.sessions[twin.session_index(session)]
    channels, height, width = spec.frame_shape
    n_bins = round(n_cycles * spec.bin_rate / temporal_hz)
    per_bin = n_cycles / n_bins  # whole cycles in whole bins: the frequency shown may differ a little
    f0, f1 = [], []
    for direction in directions:
        movie = drifting_grating(
            (height, width), twin.context + n_bins, direction=direction, cycles_per_pixel=cycles_per_pixel,
            cycles_per_bin=per_bin, contrast=contrast,
        ).to(twin.like)  # fmt: skip
        movie = movie[None, :, None].expand(1, -1, channels, -1, -1)
        rates = responses(twin, movie, session=session, behavior=behavior)[0].double() * spec.bin_rate
        wave = torch.exp(-2j * torch.pi * per_bin * torch.arange(n_bins, device=rates.device))[:, None]
        f0.append(rates.mean(dim=0).cpu().numpy())
        f1.append(2 * (rates * wave).mean(dim=0).abs().cpu().numpy())
    return GratingTuning(np.asarray(directions, float), np.stack(f0), np.stack(f1))


def most_exciting_image(
    twin: TwinModel, unit_id: int, *, session: str | int, contrast: float = 0.2, n_steps: int = 100,
    step_size: float = 0.1, frames_shown: int | None = None, behavior: Tensor | None = None, seed: int = 0,
) -> np.ndarray:  # fmt: skip
    """The still image of fixed contrast that drives a unit most, by gradient ascent (Walker et al. 2019).

    Parameters
    ----------
    twin, session, behavior
        As for :func:`responses`.
    unit_id
        The unit.
    contrast
        Root mean square of the image about grey, as a fraction of 127. Pixels stay between 0 and 254.
    n_steps, step_size
        Steps of ascent, each along the normalised gradient, by this share of the image's norm.
    frames_shown
        The image is shown in this many last frames, after grey. Default: all that the model sees.
    seed
        Of the noise that the ascent starts from.

    Returns
    -------
    np.ndarray
        (C, H, W) pixels.
    """
    grey, column = _grey(twin, session), _column(twin, unit_id, session)
    shown = grey.shape[1] if frames_shown is None else frames_shown
    on = (torch.arange(grey.shape[1]) >= grey.shape[1] - shown).to(grey)[:, None, None, None]
    shape = grey.shape[2:]
    norm = contrast * GREY * float(np.sqrt(np.prod(shape)))
    image = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(grey)
    image = image * norm / image.norm()
    for _ in range(n_steps):
        image.requires_grad_()
        rate = responses(twin, grey + on * image, session=session, behavior=behavior)[0, -1, column]
        # The log: its gradient does not vanish where the unit is nearly silent.
        (gradient,) = torch.autograd.grad(rate.clamp_min(1e-12).log(), image)
        image = image.detach() + step_size * norm * gradient / gradient.norm().clamp_min(1e-20)
        image = (image * norm / image.norm()).clamp(-GREY, GREY)
    return (image + GREY).cpu().numpy()


def _column(twin: TwinModel, unit_id: int, session: str | int) -> int:
    spec = twin.sessions[twin.session_index(session)]
    if unit_id not in spec.unit_ids:
        raise ValueError(f"session {spec.name}: has no unit {unit_id}; its units are {spec.unit_ids}")
    return spec.unit_ids.index(unit_id)


def _grey(twin: TwinModel, session: str | int) -> Tensor:
    """One grey movie of the length that a prediction needs, (1, T, C, H, W)."""
    spec = twin.sessions[twin.session_index(session)]
    return twin.like.new_full((1, twin.context + 1, *spec.frame_shape), GREY)
