"""Figures of a recording before any model. Each function takes arrays and returns a matplotlib Figure."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .plots import plain

__all__ = [
    "average_maps",
    "behavior_over_time",
    "raster",
    "response_overview",
    "stimulus_panels",
    "timeline",
]

_INK, _MISSING = "#333333", "#d55e00"
_WIDTH = 8.2  # inches


def stimulus_panels(samples: Mapping[str, np.ndarray]) -> Figure:
    """What each stimulus type looks like: frames (N, H, W) or (N, C, H, W), bars (T, F), or a full field (T,)."""
    columns = max(min(6, len(part)) if part.ndim >= 3 else 1 for part in samples.values())
    figure = Figure(figsize=(_WIDTH, 1.65 * len(samples) + 0.1), layout="constrained")
    grid = figure.add_gridspec(len(samples), columns)
    for row, (name, part) in enumerate(samples.items()):
        if part.ndim < 3:
            axes = figure.add_subplot(grid[row, :])
            _bars_or_field(axes, part)
            axes.set_title(name, fontsize=9, loc="left")
            continue
        images, limits = _pictures(part[:columns])
        for column, image in enumerate(images):
            axes = figure.add_subplot(grid[row, column])
            axes.set_axis_off()
            axes.imshow(image, cmap="gray", vmin=limits[0], vmax=limits[1], interpolation="nearest")
            if column == 0:
                axes.set_title(name, fontsize=9, loc="left")
    return figure


def raster(responses: np.ndarray, *, start: float, bin_rate: float, counts: bool) -> Figure:
    """Responses of all units in one stretch of time: a tick for every bin with a spike, or shades of grey.

    Parameters
    ----------
    responses
        (T, U); NaN where a bin is not usable.
    start
        Time of the first bin, in s from the start of the recording.
    bin_rate
        Bins a second, Hz.
    counts
        Whether the responses are counts. Others are shown as their distance from the unit's mean, in standard
        deviations.
    """
    figure, axes = _axes(height=min(5.0, 1.6 + 0.035 * responses.shape[1]))
    n_bins, n_units = responses.shape
    if counts:
        bins, units = np.nonzero(np.nan_to_num(responses) > 0)
        size = np.clip(170 / n_units, 1.0, 6.0)
        axes.plot(start + bins / bin_rate, units + 1, "|", color=_INK, markersize=size, markeredgewidth=0.7)
        axes.set(xlim=(start, start + n_bins / bin_rate), ylim=(0.25, n_units + 0.75))
    else:
        scaled = _standardised(responses)
        extent = (start, start + n_bins / bin_rate, 0.5, n_units + 0.5)
        options = {"cmap": "Greys", "vmin": 0.0, "vmax": 3.0, "interpolation": "nearest"}
        drawn = axes.imshow(scaled.T, origin="lower", aspect="auto", extent=extent, **options)
        figure.colorbar(drawn, ax=axes, label="standard deviations", shrink=0.8)
    axes.set(xlabel="time (s)", ylabel="unit")
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    _shade(axes, np.isnan(responses).all(axis=1), start, start + n_bins / bin_rate)
    return figure


def response_overview(means: np.ndarray, over_time: np.ndarray, *, hours: float, unit: str) -> Figure:
    """Mean response of every unit, sorted; and how it changes over the recording.

    Parameters
    ----------
    means
        (U,) mean responses.
    over_time
        (N, U) mean response in N successive parts, NaN where there is none.
    hours
        Length of the recording, in hours.
    unit
        Of the responses, such as "Hz".
    """
    figure = Figure(figsize=(_WIDTH, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.8))
    order = np.argsort(means, kind="stable")
    left.plot(np.arange(1, len(means) + 1), means[order], ".", color=_INK, markersize=4)
    left.set(xlabel="unit, sorted", ylabel=f"mean response ({unit})")
    left.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    plain(left)
    scale = np.abs(means[order])
    change = over_time[:, order] / np.where(scale > 0, scale, 1)
    extent = (0, hours * 60, 0.5, len(means) + 0.5)
    options = {"cmap": "viridis", "vmin": 0.0, "vmax": 2.0, "interpolation": "nearest"}
    drawn = right.imshow(change.T, origin="lower", aspect="auto", extent=extent, **options)
    figure.colorbar(drawn, ax=right, label="of the unit's mean")
    right.set(xlabel="time (min)", ylabel="unit, sorted")
    right.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    right.tick_params(labelsize=8)
    return figure


def behavior_over_time(signals: Mapping[str, tuple[np.ndarray, np.ndarray]], *, hours: float) -> Figure:
    """Range of every signal in successive parts of the recording.

    Parameters
    ----------
    signals
        By name, minimum and maximum in N parts, each (N,); NaN where the signal is missing.
    hours
        Length of the recording, in hours.
    """
    figure = Figure(figsize=(_WIDTH, 1.0 * len(signals) + 0.6), layout="constrained")
    panels = figure.subplots(len(signals), 1, squeeze=False, sharex=True)[:, 0]
    for axes, (name, (least, most)) in zip(panels, signals.items(), strict=True):
        time = (np.arange(len(least)) + 0.5) / len(least) * hours * 60
        axes.fill_between(time, least, most, color="#0072b2", alpha=0.5, linewidth=0)
        axes.plot(time, (least + most) / 2, color="#0072b2", linewidth=0.7)
        axes.set_title(name, fontsize=9, loc="left", pad=2)
        axes.set_xlim(0, hours * 60)
        _shade(axes, np.isnan(least), 0, hours * 60)
        plain(axes)
    panels[-1].set_xlabel("time (min)")
    return figure


def timeline(rows: Mapping[str, np.ndarray], missing: np.ndarray, *, hours: float) -> Figure:
    """Which stimulus type was shown when, and where data are missing.

    Parameters
    ----------
    rows
        By stimulus type, the share of bins in N successive parts at which it was shown, (N,).
    missing
        (N,) share of bins that are not valid.
    hours
        Length of the recording, in hours.
    """
    n_rows = len(rows) + 1
    figure, axes = _axes(height=0.32 * n_rows + 0.75)
    blue, red = (ListedColormap(_fade(color)) for color in ("#0072b2", _MISSING))
    for index, (share, colors) in enumerate([*((share, blue) for share in rows.values()), (missing, red)]):
        extent = (0, hours * 60, index - 0.4, index + 0.4)
        axes.imshow(share[None], cmap=colors, vmin=0, vmax=1, aspect="auto", extent=extent, interpolation="nearest")
    axes.set_yticks(range(n_rows), [*rows, "not valid"])
    axes.set(xlim=(0, hours * 60), ylim=(n_rows - 0.5, -0.5), xlabel="time (min)")
    return figure


def average_maps(maps: np.ndarray, *, labels: Sequence[str], bin_rate: float) -> Figure:
    """Triggered averages (N, L, *frame), lag 0 first: red where brighter, blue where darker than the mean frame.

    Of frames, the lag at which the average is largest is shown, and above it its time. Bars are shown over all lags,
    and a full field as a line.
    """
    columns = min(4, len(maps))
    n_rows = -(-len(maps) // columns)
    figure = Figure(figsize=(2.05 * columns, 2.15 * n_rows), layout="constrained")
    grid = figure.subplots(n_rows, columns, squeeze=False).reshape(-1)
    for axes in grid[len(maps) :]:
        axes.set_axis_off()
    for axes, values, label in zip(grid, maps, labels, strict=False):
        first, last = -1000 * (values.shape[0] - 0.5) / bin_rate, 500 / bin_rate
        limit = np.abs(values).max() or 1.0
        options = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit, "interpolation": "nearest"}
        if values.ndim == 1:
            axes.plot(-1000 * np.arange(len(values)) / bin_rate, values, color=_INK, marker=".")
            axes.axhline(0, color="0.6", linewidth=0.8, zorder=0)
            axes.set_xlabel("ms", fontsize=7)
        elif values.ndim == 2:
            extent = (first, last, values.shape[1] - 0.5, -0.5)
            axes.imshow(values[::-1].T, aspect="auto", extent=extent, **options)
            axes.set_xlabel("ms", fontsize=7)
        else:
            lag = int(np.abs(values).reshape(len(values), -1).max(axis=1).argmax())
            shown = values[lag]
            if shown.ndim == 3:  # the channel that the unit follows most
                shown = shown[int(np.abs(shown).reshape(len(shown), -1).max(axis=1).argmax())]
            axes.imshow(shown, **options)
            axes.set_xticks([])
            axes.set_yticks([])
            label = f"{label}, {-1000 * lag / bin_rate:.0f} ms" if len(values) > 1 else label
        axes.set_title(label, fontsize=8)
        axes.tick_params(labelsize=7)
    return figure


def _axes(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    axes = figure.subplots()
    plain(axes)
    return figure, axes


def _pictures(part: np.ndarray) -> tuple[list[np.ndarray], tuple[float, float]]:
    """Images of frames with the grey levels between which they are shown; two channels stand beside one another."""
    uint8 = part.dtype == np.uint8
    low, high = (0.0, 255.0) if uint8 else (float(part.min()), float(part.max()))
    if part.ndim == 4 and part.shape[1] == 3:
        scaled = (part.astype(np.float32) - low) / ((high - low) or 1.0)
        return list(np.moveaxis(scaled, 1, -1)), (0.0, 1.0)
    if part.ndim == 4:
        part = np.concatenate(list(np.moveaxis(part, 1, 0)), axis=-1)
    return list(part.astype(np.float32)), (low, high if high > low else low + 1)


def _bars_or_field(axes: Axes, part: np.ndarray) -> None:
    plain(axes)
    if part.ndim == 1:
        axes.plot(part.astype(np.float32), color=_INK, linewidth=0.9)
    else:
        axes.imshow(part.T.astype(np.float32), cmap="gray", aspect="auto", interpolation="nearest")
    axes.set_xlabel("bin", fontsize=8)


def _standardised(responses: np.ndarray) -> np.ndarray:
    known = ~np.isnan(responses)
    count = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, responses, 0).sum(axis=0) / count
    spread = np.sqrt(np.where(known, (responses - mean) ** 2, 0).sum(axis=0) / count)
    return (responses - mean) / np.where(spread > 0, spread, 1)


def _shade(axes: Axes, missing: np.ndarray, start: float, stop: float) -> None:
    """Mark the parts of the time axis, which run at equal length from `start` to `stop`, that are missing."""
    edges = np.diff(np.concatenate([[False], missing, [False]]).astype(np.int8))
    width = (stop - start) / len(missing)
    for first, last in zip(np.flatnonzero(edges == 1), np.flatnonzero(edges == -1), strict=True):
        axes.axvspan(start + first * width, start + last * width, color=_MISSING, alpha=0.15, linewidth=0)


def _fade(color: str) -> np.ndarray:
    """Colors from white to `color`, (256, 3)."""
    rgb = np.array([int(color[index : index + 2], 16) for index in (1, 3, 5)]) / 255
    return 1 - np.linspace(0, 1, 256)[:, None] * (1 - rgb)
