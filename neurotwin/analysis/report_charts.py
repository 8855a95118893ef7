"""Pictures of a report that are small: charts as SVG in the colours of the page, maps as PNG of few colours."""

import html
import math
import struct
import zlib
from collections.abc import Mapping

import numpy as np

__all__ = ["chart_svg", "diverging_png", "grey_png", "ticks"]

_WIDTH, _HEIGHT = 420, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 10, 10, 40
_COLORS = 6  # of series; as many as the style has
_LEVELS = 33


def ticks(low: float, high: float, n: int = 5) -> list[float]:
    """Round numbers from `low` to `high`, about `n` of them.

    Examples
    --------
    >>> ticks(0, 1)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    if not high > low:
        return [low]
    raw = (high - low) / n
    power = 10.0 ** math.floor(math.log10(raw))
    step = min((factor * power for factor in (1, 2, 5, 10)), key=lambda size: abs(size - raw))
    first = math.ceil(low / step - 1e-9)
    return [round(first * step + k * step, 12) for k in range(int((high - first * step) / step + 1e-9) + 1)]


def chart_svg(
    title: str, *, lines: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None,
    dots: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None, xlabel: str, ylabel: str, diagonal: bool = False,
) -> str:  # fmt: skip
    """A chart of lines and dots, with a legend where there are several series.

    Parameters
    ----------
    title
        What it shows, for those who do not see it.
    lines, dots
        (x, y) by name. Points that are not finite are left out.
    xlabel, ylabel
        Names of the axes, with their units.
    diagonal
        Draw y = x.

    Returns
    -------
    str
        An SVG element as HTML holds it, without the chart's own legend where there is one series.
    """
    series = {("line", name): _finite(*pair) for name, pair in (lines or {}).items()}
    series |= {("dots", name): _finite(*pair) for name, pair in (dots or {}).items()}
    xs, ys = (np.concatenate([pair[axis] for pair in series.values()] or [np.empty(0)]) for axis in (0, 1))
    if not len(xs):
        return ""
    (x0, x1), (y0, y1) = _range(xs), _range(ys, include=0.0)
    names = list(dict.fromkeys(name for _, name in series))

    def place(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        across = _LEFT + (x - x0) / (x1 - x0) * (_WIDTH - _LEFT - _RIGHT)
        return np.round(across, 1), np.round(_HEIGHT - _BOTTOM - (y - y0) / (y1 - y0) * (_HEIGHT - _TOP - _BOTTOM), 1)

    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" class="chart"><title>{html.escape(title)}</title>']
    parts.append(_axes((x0, x1), (y0, y1), place, xlabel, ylabel))
    if diagonal and min(x1, y1) > max(x0, y0):
        x, y = place(*(np.array([max(x0, y0), min(x1, y1)]),) * 2)
        parts.append(f'<path class="limit" d="M{x[0]:g} {y[0]:g}L{x[1]:g} {y[1]:g}"/>')
    for (kind, name), (x, y) in series.items():
        points = [f"{a:g} {b:g}" for a, b in zip(*place(x, y), strict=True)]
        path = "M" + "L".join(points) if kind == "line" else "".join(f"M{point}h0" for point in points)
        parts.append(f'<path class="{kind} c{names.index(name) % _COLORS}" d="{path}"/>' if points else "")
    legend = "".join(f'<span class="key k{n % _COLORS}">{html.escape(name)}</span> ' for n, name in enumerate(names))
    return "".join([*parts, "</svg>"]) + (f'<p class="legend">{legend}</p>' if len(names) > 1 else "")


def diverging_png(values: np.ndarray, side: int) -> bytes:
    """A map (H, W) with red for positive and blue for negative, scaled to its largest value; 0 is white."""
    values = _reduced(np.nan_to_num(np.asarray(values, np.float64)), side)
    limit = np.abs(values).max() or 1.0
    levels = np.rint((values / limit + 1) / 2 * (_LEVELS - 1)).astype(np.uint8)
    place = np.linspace(-1, 1, _LEVELS)[:, None]
    white, red, blue = np.array([247, 247, 247]), np.array([178, 24, 43]), np.array([33, 102, 172])
    colors = white + np.abs(place) * (np.where(place > 0, red, blue) - white)
    return _png(levels, np.rint(colors).astype(np.uint8))


def grey_png(values: np.ndarray, side: int) -> bytes:
    """A grey image (H, W) of pixels from 0 to 254, its contrast stretched about grey (127) so that it is visible."""
    values = _reduced(np.asarray(values, np.float64) - 127, side)
    limit = np.abs(values).max() or 1.0
    levels = np.rint((values / limit + 1) / 2 * (_LEVELS - 1)).astype(np.uint8)
    return _png(levels, np.repeat(np.linspace(0, 255, _LEVELS).round().astype(np.uint8)[:, None], 3, axis=1))


def _png(levels: np.ndarray, palette: np.ndarray) -> bytes:
    """A PNG file of indices (H, W) into a palette (N, 3) (PNG specification, third edition, 2025)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = levels.shape
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    rows = np.pad(levels, ((0, 0), (1, 0))).tobytes()  # a filter byte, 0 for none, before each row
    body = chunk(b"IHDR", header) + chunk(b"PLTE", palette.tobytes()) + chunk(b"IDAT", zlib.compress(rows, 9))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


def _reduced(values: np.ndarray, side: int) -> np.ndarray:
    """Means over blocks, so that neither side exceeds `side`; an incomplete block at an edge is dropped."""
    step = math.ceil(max(values.shape) / side)
    if step == 1:
        return values
    height, width = (max(1, n // step) for n in values.shape)
    across, down = min(step, values.shape[0]), min(step, values.shape[1])
    return values[: height * across, : width * down].reshape(height, across, width, down).mean((1, 3))


def _finite(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    keep = np.isfinite(x) & np.isfinite(y)
    return x[keep], y[keep]


def _range(values: np.ndarray, include: float | None = None) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    if include is not None:
        low, high = min(low, include), max(high, include)
    if high > low:
        return low, high + 0.03 * (high - low)
    return low - 0.5, high + 0.5


def _axes(xs: tuple[float, float], ys: tuple[float, float], place, xlabel: str, ylabel: str) -> str:
    parts = []
    for value in ticks(*ys):
        _, (y,) = place(np.array([xs[0]]), np.array([value]))
        parts.append(f'<path class="grid" d="M{_LEFT} {y:g}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:g}" text-anchor="end">{value:g}</text>')
    for value in ticks(*xs):
        (x,), _ = place(np.array([value]), np.array([ys[0]]))
        parts.append(f'<text x="{x:g}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{value:g}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle:g}" y="{_HEIGHT - 4}" text-anchor="middle">{html.escape(xlabel)}</text>')
    down = (_TOP + _HEIGHT - _BOTTOM) / 2
    parts.append(
        f'<text transform="translate(12 {down:g}) rotate(-90)" text-anchor="middle">{html.escape(ylabel)}</text>'
    )
    return "".join(parts)
