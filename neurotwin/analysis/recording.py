"""What is in a recording, before any model: its fields, rates, ranges and gaps.

Everything is computed in blocks, so a recording larger than memory can be looked at.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data.session import Session
from ..tensorfile import blocks
from .report import text_table

__all__ = [
    "Span",
    "SpanStatistics",
    "mean_responses",
    "missing_spans",
    "recording_text",
    "session_row",
    "span_statistics",
    "stimulus_samples",
    "type_rows",
    "usable_bins",
]

_LONGEST = 5  # missing spans that are listed


@dataclass(frozen=True)
class SpanStatistics:
    """Sums and extremes of a signal in successive parts of a recording of nearly equal length.

    Attributes
    ----------
    edges
        (N + 1,) first bins of the N parts, and the number of bins.
    count
        (N,) bins of each part that were used.
    total, least, most
        (N, K) sum, minimum and maximum of each column over them; NaN extremes where there is none.
    whole
        Whether all values are whole numbers of 0 or more, as counts are.
    negative
        (K,) number of bins below 0.
    """

    edges: np.ndarray
    count: np.ndarray
    total: np.ndarray
    least: np.ndarray
    most: np.ndarray
    whole: bool
    negative: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """(K,) mean over all bins that were used; NaN if there is none."""
        used = self.count.sum()
        return self.total.sum(axis=0) / used if used else np.full(self.total.shape[1], np.nan)


@dataclass(frozen=True)
class Span:
    """A stretch without data: `start` and `stop` in s from the start of the recording, and what is missing."""

    start: float
    stop: float
    kind: str

    @property
    def length(self) -> float:
        """Length in s."""
        return self.stop - self.start


def usable_bins(session: Session) -> np.ndarray:
    """(T,) bool: valid, and not between trials."""
    return np.asarray(session.valid) & (np.asarray(session.trial) >= 0)


def span_statistics(array: Any, usable: np.ndarray, n_spans: int = 100) -> SpanStatistics:
    """Sums and extremes of (T,) or (T, K) values over usable bins, in up to `n_spans` parts, in one pass."""
    n_bins = len(array)
    n_columns = int(np.prod(array.shape[1:]))
    n_spans = min(n_spans, n_bins)
    span_of = np.arange(n_bins) * n_spans // n_bins
    edges = np.searchsorted(span_of, np.arange(n_spans + 1))
    count = np.bincount(span_of[usable], minlength=n_spans)
    total = np.zeros((n_spans, n_columns))
    least, most = np.full((n_spans, n_columns), np.inf), np.full((n_spans, n_columns), -np.inf)
    negative, whole, start = np.zeros(n_columns, np.int64), True, 0
    for part in blocks(array):
        used = usable[start : start + len(part)]
        values = part.reshape(len(part), n_columns)[used].astype(np.float64)
        spans = span_of[start : start + len(part)][used]
        start += len(part)
        if not len(values):
            continue
        firsts = np.flatnonzero(np.diff(spans, prepend=-1))
        rows = spans[firsts]
        total[rows] += np.add.reduceat(values, firsts)
        least[rows] = np.minimum(least[rows], np.minimum.reduceat(values, firsts))
        most[rows] = np.maximum(most[rows], np.maximum.reduceat(values, firsts))
        negative += (values < 0).sum(axis=0)
        whole = whole and bool((values == np.floor(values)).all())
    least[count == 0], most[count == 0] = np.nan, np.nan
    return SpanStatistics(edges, count, total, least, most, whole and not negative.any(), negative)


def mean_responses(session: Session, statistics: SpanStatistics) -> tuple[np.ndarray, str]:
    """(U,) mean response of each unit, and its unit: Hz for counts, else the response of a bin as it is stored."""
    means = statistics.mean
    if session.exposure is not None and statistics.count.sum():
        means = means / np.asarray(session.exposure, np.float64)[usable_bins(session)].mean()
    return (means * session.bin_rate, "Hz") if statistics.whole else (means, "a bin")


def missing_spans(session: Session) -> list[Span]:
    """Stretches of bins that are not valid, and jumps of the clock of more than half a bin, in their order."""
    time = _clock(session)
    width = 1 / session.bin_rate
    invalid = ~np.asarray(session.valid)
    steps = np.diff(np.concatenate([[False], invalid, [False]]).astype(np.int8))
    spans = [
        Span(float(time[first]), float(time[last - 1] + width), "not valid")
        for first, last in zip(np.flatnonzero(steps == 1), np.flatnonzero(steps == -1), strict=True)
    ]
    jumps = np.flatnonzero(np.diff(time) > 1.5 * width)
    spans += [Span(float(time[bin] + width), float(time[bin + 1]), "gap") for bin in jumps]
    return sorted(spans, key=lambda span: span.start)


def stimulus_samples(session: Session, stimulus_type: str, n: int = 6) -> np.ndarray:
    """Bins of a stimulus type as they were shown.

    Frames are taken at equal distances over the type's usable bins, (n, H, W) or (n, C, H, W). A full field or a row of
    bars says little in one bin, so there up to 240 neighbouring bins are taken, (T,) or (T, F).
    """
    shown = session.stimulus_type == stimulus_type
    bins = np.flatnonzero(shown & usable_bins(session))
    if not len(bins):
        bins = np.flatnonzero(shown)
    if session.stimulus.ndim <= 2:
        first = int(bins[len(bins) // 2])
        first = max(int(bins[0]), min(first, int(bins[-1]) - 239))
        part = np.asarray(session.stimulus[first : first + 240])
        return part[shown[first : first + len(part)]]
    chosen = bins[np.linspace(0, len(bins) - 1, min(n, len(bins))).round().astype(int)]
    return np.concatenate([np.asarray(session.stimulus[int(bin) : int(bin) + 1]) for bin in chosen])


def type_rows(session: Session) -> list[dict[str, str]]:
    """One row a stimulus type, the values as they are shown."""
    usable = usable_bins(session)
    rows = []
    for code, name in enumerate(session.types):
        shown = session.type_codes == code
        trials = np.unique(session.trial[shown])
        repeats = session.repeat_id[shown]
        _, times = np.unique(repeats[repeats >= 0], return_counts=True)
        rows.append(
            {
                "stimulus type": name,
                "trials": f"{np.count_nonzero(trials >= 0):,}",
                "bins": f"{shown.sum():,}",
                "minutes": f"{shown.sum() / session.bin_rate / 60:.1f}",
                "usable": f"{usable[shown].mean():.1%}",
                "repeated frames": f"{np.count_nonzero(times > 1):,}",
                "times shown": f"{np.median(times[times > 1]):g}" if (times > 1).any() else "",
            }
        )
    return rows


def session_row(session: Session) -> dict[str, str]:
    """A session in one row of a table."""
    return {
        "session": session.name,
        "subject": session.subject,
        "units": str(session.n_units),
        "bins": f"{session.n_bins:,}",
        "Hz": f"{session.bin_rate:g}",
        "minutes": f"{session.duration / 60:.1f}",
        "frame": "x".join(map(str, session.frame_shape)),
        "usable": f"{usable_bins(session).mean():.1%}",
        "behaviour": str(len(session.behavior)),
        "types": " ".join(session.types),
    }


def recording_text(session: Session, statistics: SpanStatistics | None = None) -> str:
    """A recording for a person to read: fields, stimulus types, units, behaviour, missing spans, notes."""
    usable = usable_bins(session)
    statistics = statistics or span_statistics(session.responses, usable)
    parts = [repr(session), text_table(_field_rows(session)), text_table(type_rows(session))]
    parts.append("\n".join([*_unit_lines(session, statistics), *_split_lines(session), *_missing_lines(session)]))
    if session.behavior:
        parts.append(text_table(_behavior_rows(session, usable)))
    if session.info:
        parts.append("\n".join(f"{key}: {value}" for key, value in session.info.items()))
    parts.append("\n".join(["notes:", *(f"- {note}" for note in session.notes)]) if session.notes else "notes: none")
    return "\n\n".join(parts)


def _field_rows(session: Session) -> list[dict[str, str]]:
    fields = {"stimulus": session.stimulus, "responses": session.responses}
    optional = ("time", "exposure", "true_rate", "missing_pct", "unit_positions")
    fields |= {key: getattr(session, key) for key in optional if getattr(session, key) is not None}
    fields |= {f"behavior.{key}": value for key, value in session.behavior.items()}
    return [
        {"field": key, "shape": " x ".join(f"{n:,}" for n in value.shape), "type": str(np.dtype(value.dtype))}
        for key, value in fields.items()
    ]


def _unit_lines(session: Session, statistics: SpanStatistics) -> list[str]:
    means, unit = mean_responses(session, statistics)
    kind = "counts" if statistics.whole else "real numbers"
    lines = [f"responses of {session.n_units} units: {kind}"]
    if statistics.count.sum():
        silent = (
            np.nanmax(np.abs([np.nanmin(statistics.least, axis=0), np.nanmax(statistics.most, axis=0)]), axis=0) == 0
        )
        lines[0] += f", mean from {means.min():.3g} to {means.max():.3g} {unit} (median {np.median(means):.3g})"
        lines[0] += f", {silent.sum()} silent"
        if statistics.negative.any():
            share = statistics.negative.sum() / (statistics.count.sum() * session.n_units)
            lines[0] += f", {share:.1%} of them below 0"
    for key, labels in session.unit_labels.items():
        names, counts = np.unique(labels, return_counts=True)
        shown = [f"{name or '(empty)'} {count}" for name, count in zip(names, counts, strict=True)]
        more = f" and {len(shown) - 12} more" if len(shown) > 12 else ""
        lines.append(f"unit label {key}: {', '.join(shown[:12])}{more}")
    if session.exposure is not None:
        low, high = np.min(session.exposure), np.max(session.exposure)
        lines.append(f"exposure: responses are summed over {low:g} to {high:g} presentations")
    if session.pixels_per_degree is not None:
        lines.append(f"pixels per degree: {session.pixels_per_degree:g}")
    return lines


def _split_lines(session: Session) -> list[str]:
    if session.split is None:
        return []
    names, counts = np.unique(session.split, return_counts=True)
    shown = [f"{name or 'to be drawn'} {count:,}" for name, count in zip(names, counts, strict=True)]
    return [f"bins whose split is given: {', '.join(shown)}"]


def _missing_lines(session: Session) -> list[str]:
    usable, trial = usable_bins(session), np.asarray(session.trial)
    lines = [f"usable: {usable.mean():.1%} of bins; {np.mean(trial < 0):.1%} lie between trials"]
    for kind in ("not valid", "gap"):
        spans = [span for span in missing_spans(session) if span.kind == kind]
        if not spans:
            continue
        longest = sorted(spans, key=lambda span: -span.length)[:_LONGEST]
        where = ", ".join(f"{span.length:.2f} s at {span.start:.2f} s" for span in longest)
        total = sum(span.length for span in spans)
        what = {"not valid": "stretches that are not valid", "gap": "gaps of the clock"}[kind]
        lines.append(f"{what}: {len(spans):,}, together {total:.2f} s; longest {where}")
    return lines


def _behavior_rows(session: Session, usable: np.ndarray) -> list[dict[str, str]]:
    rows = []
    for key, values in session.behavior.items():
        statistics = span_statistics(values, usable)
        for column in range(statistics.total.shape[1]):
            known = bool(statistics.count.sum())
            rows.append(
                {
                    "behaviour": key if statistics.total.shape[1] == 1 else f"{key}[{column}]",
                    "least": f"{np.nanmin(statistics.least[:, column]):.4g}" if known else "NaN",
                    "mean": f"{statistics.mean[column]:.4g}" if known else "NaN",
                    "most": f"{np.nanmax(statistics.most[:, column]):.4g}" if known else "NaN",
                }
            )
    return rows


def _clock(session: Session) -> np.ndarray:
    """(T,) start of each bin in s, from the start of the recording."""
    if session.time is None:
        return np.arange(session.n_bins) / session.bin_rate
    return np.asarray(session.time, np.float64) - float(session.time[0])
