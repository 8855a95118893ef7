"""Every figure that the project draws. Each function takes arrays and returns a matplotlib Figure."""

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

__all__ = [
    "plain",
    "png",
    "psth",
    "readout_maps",
    "temporal_kernels",
    "traces",
    "tuning_curve",
]

_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f")  # Okabe & Ito 2008
_OBSERVED, _PREDICTED = "#555555", "#d55e00"


def png(figure: Figure, dpi: int = 110) -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def traces(
    observed: np.ndarray, predicted: np.ndarray, *, bin_rate: float, labels: Sequence[str], smooth: float = 0.0,
    title: str = "",
) -> Figure:  # fmt: skip
    """Recorded and predicted rates over time, one panel a unit.

    Parameters
    ----------
    observed, predicted
        (T, U) counts per bin; NaN leaves a gap.
    bin_rate
        Bins a second, Hz.
    labels
        (U,) titles.
    smooth
        Standard deviation of a Gaussian that smooths the recorded counts, in s; 0 leaves them.
    title
        Of the whole figure.
    """
    n_units = observed.shape[1]
    figure, panels = _figure(n_units, width=7.5, height=1.3 * n_units + 0.5)
    time = np.arange(len(observed)) / bin_rate
    kernel = np.ones(1)
    if smooth:
        lags = np.arange(-round(4 * smooth * bin_rate), round(4 * smooth * bin_rate) + 1) / bin_rate
        kernel = np.exp(-((lags / smooth) ** 2) / 2)
    weight = np.convolve(np.ones(len(time)), kernel, "same")
    for unit, axes in enumerate(panels):
        # Divided by the kernel's weight inside the record, so that the ends are not pulled to 0.
        drawn = np.convolve(observed[:, unit], kernel, "same") / weight if smooth else observed[:, unit]
        axes.plot(time, drawn * bin_rate, color=_OBSERVED, linewidth=0.9, label="recorded")
        axes.plot(time, predicted[:, unit] * bin_rate, color=_PREDICTED, linewidth=0.9, label="predicted")
        axes.set_title(labels[unit], loc="left", fontsize=9)
        axes.set_ylabel("rate (Hz)", fontsize=8)
    panels[0].legend(frameon=False, fontsize=8, ncols=2, loc="upper right")
    panels[-1].set_xlabel("time (s)")
    _title(figure, title)
    return figure


def psth(responses: np.ndarray, predicted: np.ndarray, *, bin_rate: float, label: str = "") -> Figure:
    """Spikes of every repeat of one unit, and below them their mean and the prediction.

    Parameters
    ----------
    responses
        (R, T) counts per bin, NaN where a repeat is missing.
    predicted
        (T,) expected counts per bin.
    bin_rate
        Bins a second, Hz.
    label
        Title.
    """
    figure, (raster, rates) = _figure(2, width=6.4, height=4.2)
    time = np.arange(responses.shape[1]) / bin_rate
    repeat, bins = np.nonzero(np.nan_to_num(responses) > 0)
    raster.plot(time[bins], repeat + 1, "|", color=_OBSERVED, markersize=3)
    raster.set(ylabel="repeat", ylim=(0, len(responses) + 1), title=label)
    counted = (~np.isnan(responses)).sum(0)
    mean = np.where(counted > 0, np.nansum(responses, 0) / np.maximum(counted, 1), np.nan)
    rates.plot(time, mean * bin_rate, color=_OBSERVED, linewidth=0.9, label="mean of repeats")
    rates.plot(time, predicted * bin_rate, color=_PREDICTED, linewidth=1.2, label="predicted")
    rates.set(xlabel="time (s)", ylabel="rate (Hz)")
    raster.set_xlim(time[0], time[-1])
    rates.set_xlim(time[0], time[-1])
    _legend(rates, 2)
    return figure


def temporal_kernels(
    kernels: np.ndarray, *, bin_rate: float, labels: Sequence[str] | None = None, title: str = ""
) -> Figure:
    """Temporal filters, (N, T) oldest first, against the time before the response."""
    figure, (axes,) = _figure(1, width=4.6, height=3.2)
    time = (np.arange(kernels.shape[1]) - kernels.shape[1] + 1) / bin_rate * 1000
    for index, (kernel, color) in enumerate(zip(kernels, _cycle(len(kernels)), strict=True)):
        axes.plot(time, kernel, color=color, label=None if labels is None else labels[index])
    axes.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    axes.set(xlabel="time before the response (ms)", ylabel="weight")
    _legend(axes, 0 if labels is None else len(kernels))
    _title(figure, title)
    return figure


def readout_maps(maps: np.ndarray, *, labels: Sequence[str], columns: int = 8, title: str = "") -> Figure:
    """Spatial maps of units, (U, H, W), each scaled to its own largest value; red is positive, blue negative.

    With a title, the largest value stands behind each label, and a bar says what the colours mean.
    """
    rows = -(-len(maps) // columns)
    width, height = 1.15 * min(columns, len(maps)), 1.3 * rows
    size = (max(width, 4.0), height + 0.9) if title else (width, height)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, min(columns, len(maps)), squeeze=False).reshape(-1)
    for axes in grid:
        axes.set_axis_off()
    for axes, values, label in zip(grid, maps, labels, strict=False):
        limit = np.abs(values).max() or 1.0
        axes.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
        axes.set_title(f"{label}: ±{limit:.2g}" if title else label, fontsize=7, pad=2)
    if title:
        colors = ScalarMappable(Normalize(-1, 1), "RdBu_r")
        bar = figure.colorbar(colors, ax=grid.tolist(), location="bottom", shrink=0.6, aspect=30)
        bar.set_label("share of the largest value of the unit", fontsize=7)
        bar.ax.tick_params(labelsize=7)
    _title(figure, title)
    return figure


def tuning_curve(orientations: np.ndarray, rates: np.ndarray, *, labels: Sequence[str]) -> Figure:
    """Rates, (N, U) in Hz, against orientation, (N,) in degrees."""
    figure, (axes,) = _figure(1, width=4.6, height=3.2)
    for unit, color in enumerate(_cycle(rates.shape[1])):
        axes.plot(orientations, rates[:, unit], color=color, marker="o", markersize=3, label=labels[unit])
    axes.set(xlabel="orientation (degrees)", ylabel="rate (Hz)", ylim=(0, None))
    _legend(axes, rates.shape[1])
    return figure


def _figure(rows: int, *, width: float, height: float) -> tuple[Figure, np.ndarray]:
    # A Figure of its own rather than pyplot: no window system, no global state.
    figure = Figure(figsize=(width, height), layout="constrained")
    panels = figure.subplots(rows, 1, squeeze=False)[:, 0]
    for axes in panels:
        plain(axes)
    return figure, panels


def plain(axes: Axes) -> None:
    """Leave out the frame above and to the right; small labels."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def _title(figure: Figure, title: str) -> None:
    if title:
        figure.suptitle(title, fontsize=9)


def _cycle(n: int) -> list[str]:
    return [_COLORS[index % len(_COLORS)] for index in range(n)]


def _legend(axes: Axes, n: int) -> None:
    if n > 1:
        axes.legend(frameon=False, fontsize=8)
