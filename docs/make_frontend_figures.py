"""Draw docs/images/frontend_*.png, the figures of docs/frontends.md, with the modules that models use."""

from collections.abc import Callable
from math import pi
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from skimage.color import rgb2gray
from skimage.data import chelsea
from torch import Tensor

from neurotwin.models.frontend import (
    Adapter,
    DynamicalAdaptation,
    LearnableTemporal,
    TemporalBasis,
    temporal_filters,
)
from neurotwin.models.stages import Maps

__all__ = ["FIGURES"]

FOLDER = Path(__file__).parent / "images"
BIN_MS = 1000 / 120
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f")


def temporal_basis() -> Figure:
    """Three bases: as in the shipped configs, evenly spaced, and with single-bin functions."""
    figure, axes = panels(3, "lag before now (ms)", "weight")
    shown = {
        "log_spacing: true": {"num_cosine_funcs": 6, "peak_range_ms": (10, 150)},
        "log_spacing: false": {"num_cosine_funcs": 6, "peak_range_ms": (10, 150), "log_spacing": False},
        "2 delta_funcs, orthogonalize": {
            "num_delta_funcs": 2, "num_cosine_funcs": 4, "peak_range_ms": (30, 150), "orthogonalize": True,
        },
    }  # fmt: skip
    for panel, (title, changes) in zip(axes, shown.items(), strict=True):
        params = TemporalBasis.Params(history_bins=32, bin_size_ms=BIN_MS, **changes)
        basis = TemporalBasis(params, Maps(1, 1, 1, bin_rate=120.0)).basis[0].flip(1)
        for index, function in enumerate(basis):
            panel.plot(BIN_MS * np.arange(32), function, color=COLORS[index % 7], marker=".", markersize=3)
        panel.set_title(title)
    return figure


def dynamical_adaptation() -> Figure:
    """Filters, flashes on three backgrounds, a step up and down, and the steady state."""
    params = DynamicalAdaptation.Params(tau_y_ms=8, tau_z_ms=40, filter_length=60, beta=4.0)
    cone = DynamicalAdaptation(params, Maps(1, 1, 1, bin_rate=240.0))
    time = np.arange(60) * 1000 / 240
    figure, axes = panels(4)
    for kernel, name, color in zip(cone.filters().flip(1), ("$K_y$", "$K_z$"), COLORS, strict=False):
        axes[0].plot(time, kernel, color=color, label=name)
    axes[0].set(xlabel="lag (ms)", ylabel="weight", title="filters")
    backgrounds = (0.1, 0.3, 1.0)
    for background, color in zip(backgrounds, COLORS, strict=False):
        flash = torch.full((180,), background)
        flash[80] += 0.05
        response = seen(cone, flash)
        axes[1].plot(time, (response - response[0])[19:79] / 0.05, color=color, label=f"on {background}")
    axes[1].set(xlabel="after the flash (ms)", ylabel="Δr / Δs", title="a weak flash")
    light = torch.full((400,), 0.2)
    light[150:270] = 1.0
    response = seen(cone, light)
    axes[2].plot(np.arange(len(response)) * 1000 / 240, response, color=COLORS[0], label="r")
    axes[2].plot(np.arange(len(response)) * 1000 / 240, light[59:], color=COLORS[6], linestyle="--", label="s")
    axes[2].set(xlabel="time (ms)", ylabel="", title="a step")
    levels = torch.logspace(-2, 1, 40)
    steady = [seen(cone, torch.full((60,), float(level)))[0] for level in levels]
    axes[3].semilogx(levels, steady, color=COLORS[0], label="model")
    axes[3].semilogx(levels, levels / (1 + 4 * levels), color="k", linestyle=":", label="αs / (1 + βs)")
    axes[3].set(xlabel="constant light s", ylabel="r", title="steady state")
    for panel in axes:
        panel.legend()
    return figure


def magno_parvo() -> Figure:
    """A photograph, its two parts, and what passes to each."""
    photograph = torch.tensor(rgb2gray(chelsea()[60:188:2, 150:278:2]), dtype=torch.float32)
    params = LearnableTemporal.Params(kernel_size=1, num_channels=1, init_type="identity", split_MP=True)
    split = LearnableTemporal(params, Maps(1, 64, 64, bin_rate=120.0), generator=torch.Generator())
    magno, parvo = split(photograph[None, None, None])[0][0, :, 0].detach()
    figure, axes = panels(4)
    for panel, image, title in zip(axes, (photograph, magno, parvo), ("frame", "low-pass", "residual"), strict=False):
        panel.imshow(np.asarray(image), cmap="gray")
        panel.set(title=title, xticks=[], yticks=[])
    frequency = np.linspace(0, 0.5, 200)
    low = np.exp(-2 * (pi * LearnableTemporal.SPLIT_SIGMA * frequency) ** 2)
    axes[3].plot(frequency, low, color=COLORS[0], label="low-pass")
    axes[3].plot(frequency, 1 - low, color=COLORS[1], label="residual")
    for phase, color in ((0, COLORS[0]), (1, COLORS[1])):
        measured = [passed(split, f)[phase] for f in (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4)]
        axes[3].plot((0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4), measured, "o", color=color, markersize=4)
    axes[3].set(xlabel="cycles per pixel", ylabel="amplitude passed", title="gain (dots: measured)")
    axes[3].legend()
    return figure


def starts() -> Figure:
    """The filters that `init_type` starts from."""
    figure, axes = panels(3, "lag before now (bins)", "weight")
    for panel, kind in zip(axes, ("gaussian_derivatives", "biphasic", "identity"), strict=True):
        filters = temporal_filters(kind, 4, 16, generator=torch.Generator().manual_seed(0)).flip(1)
        for function, color in zip(filters, COLORS, strict=False):
            panel.plot(np.arange(16), function, color=color, marker=".", markersize=4)
        panel.set_title(kind)
    return figure


def adapter() -> Figure:
    """A grating that the grid cannot represent, sampled with and without blur; the blur that the grid needs."""
    size, grid = 64, 20
    bare, blurred = (Adapter(Adapter.Params(grid_size=grid, init_sigma=0.05), Maps(1, size, size, 120.0)) for _ in "ab")
    bare.sigma = lambda: torch.full((2,), 0.05)
    columns = torch.arange(size) + 0.5
    rows = columns[:, None]
    picture = torch.cos(2 * pi * ((columns - 32) ** 2 + (rows - 32) ** 2) / (2 * size * 1.3))  # a zone plate
    figure, axes = panels(4)
    images = {
        f"frame, {size} x {size}": picture, f"grid of {grid}: no blur": through(bare, picture),
        f"grid of {grid}: σ as needed": through(blurred, picture),
    }  # fmt: skip
    for panel, (title, image) in zip(axes, images.items(), strict=False):
        panel.imshow(np.asarray(image), cmap="gray", vmin=-1, vmax=1)
        panel.set(title=title, xticks=[], yticks=[])
    pitch = torch.linspace(0.5, 5, 200)
    axes[3].plot(pitch, ((pitch - 1) / 2).clamp_min(0), color=COLORS[0])
    axes[3].set(xlabel="input pixels per sample", ylabel="least σ (input pixels)", title="what the grid needs")
    return figure


FIGURES: dict[str, Callable[[], Figure]] = {
    "frontend_temporal_basis": temporal_basis,
    "frontend_da": dynamical_adaptation,
    "frontend_magno_parvo": magno_parvo,
    "frontend_starts": starts,
    "frontend_adapter": adapter,
}
"""What draws each figure, by the name of its file."""


def panels(number: int, xlabel: str = "", ylabel: str = "") -> tuple[Figure, list[Axes]]:
    """A row of axes."""
    figure = Figure(figsize=(3.0 * number, 2.7), layout="constrained")
    axes = figure.subplots(1, number, squeeze=False)[0].tolist()
    for panel in axes:
        panel.spines[["top", "right"]].set_visible(False)
        panel.set(xlabel=xlabel, ylabel=ylabel)
        panel.title.set_fontsize(10)
    return figure, axes


def seen(stage: torch.nn.Module, light: Tensor) -> Tensor:
    """Response of a stage to the light on one pixel."""
    with torch.no_grad():
        return stage(light.float().view(1, 1, -1, 1, 1))[0].flatten()


def through(stage: torch.nn.Module, frame: Tensor) -> Tensor:
    """One frame through a stage of one channel."""
    with torch.no_grad():
        return stage(frame[None, None, None])[0][0, 0, 0]


def passed(split: LearnableTemporal, frequency: float) -> tuple[float, float]:
    """Amplitude of a grating in the low-pass and in the residual, away from the edges."""
    wave = torch.cos(2 * pi * frequency * torch.arange(64.0)).expand(64, 64)
    with torch.no_grad():
        parts = split(wave[None, None, None])[0][0, :, 0, 32, 16:48]
    reference = wave[32, 16:48]
    return tuple(float((part @ reference) / (reference @ reference)) for part in parts)


if __name__ == "__main__":
    for name, draw in FIGURES.items():
        draw().savefig(FOLDER / f"{name}.png", dpi=90)
