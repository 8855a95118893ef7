"""A recording on one page that needs no other file: its summary, and pictures of what is in it."""

import html

import numpy as np

from ..data.session import Session
from . import recording_plots as draw
from .page import html_image, html_table, standalone_page
from .recording import (
    SpanStatistics,
    mean_responses,
    recording_text,
    span_statistics,
    stimulus_samples,
    type_rows,
    usable_bins,
)
from .triggered import triggered_averages

__all__ = ["recording_page"]

_TYPES = 12  # stimulus types that are drawn
_AVERAGED = 3  # stimulus types with triggered averages
_SIGNALS = 16  # columns of behaviour that are drawn
_PARTS = 400  # parts of the time axis
_RASTER_S = 10.0  # length of the raster
_RASTER_UNITS = 200


def recording_page(session: Session, *, title: str = "", mapping: str = "") -> str:
    """The page, as HTML.

    Parameters
    ----------
    session
        The recording.
    title
        Default: the session's name.
    mapping
        A mapping file to show beside it, as text.
    """
    usable = usable_bins(session)
    statistics = span_statistics(session.responses, usable)
    title = title or f"Session {session.name}"
    parts = [f"<h1>{html.escape(title)}</h1>", f"<p>{html.escape(repr(session))}</p>", html_table(type_rows(session))]
    if session.notes:
        parts.append("<ul>" + "".join(f"<li>{html.escape(note)}</li>" for note in session.notes) + "</ul>")
    parts += [_timeline_part(session), _stimulus_part(session), *_raster_part(session, usable, statistics)]
    if statistics.count.any():
        parts.append(_overview_part(session, statistics))
    if session.behavior:
        parts.append(_behavior_part(session, usable))
    parts += _average_parts(session, usable, statistics)
    text = html.escape(recording_text(session, statistics))
    parts.append(f"<h2>Summary</h2><details open><summary>as text</summary><pre>{text}</pre></details>")
    if mapping:
        parts.append(f"<h2>Mapping</h2><pre>{html.escape(mapping)}</pre>")
    return standalone_page(title, parts)


def _types(session: Session) -> list[str]:
    """Stimulus types, those with the most bins first."""
    counts = np.bincount(session.type_codes)
    return [session.types[code] for code in np.argsort(-counts, kind="stable")]


def _hours(session: Session) -> float:
    return session.duration / 3600


def _timeline_part(session: Session) -> str:
    types = _types(session)[:_TYPES]
    n_parts = min(_PARTS, session.n_bins)
    part = np.arange(session.n_bins) * n_parts // session.n_bins
    length = np.bincount(part, minlength=n_parts)
    rows = {
        name: np.bincount(part, session.type_codes == session.types.index(name), n_parts) / length for name in types
    }
    missing = np.bincount(part, ~np.asarray(session.valid), n_parts) / length
    figure = draw.timeline(rows, missing, hours=_hours(session))
    return (
        "<h2>What was shown when, and what is missing</h2>"
        + html_image(figure, "Stimulus types and missing spans over time")
        + "<p>The time axis counts bins: gaps of the clock are left out.</p>"
    )


def _stimulus_part(session: Session) -> str:
    types = _types(session)
    figure = draw.stimulus_panels({name: stimulus_samples(session, name) for name in types[:_TYPES]})
    more = f"<p>{len(types) - _TYPES} further types are not drawn.</p>" if len(types) > _TYPES else ""
    return "<h2>Stimuli</h2>" + html_image(figure, "Sample frames of each stimulus type") + more


def _raster_part(session: Session, usable: np.ndarray, statistics: SpanStatistics) -> list[str]:
    """The stretch with the most usable bins, of 10 s or, where bins are long, of 200 bins."""
    if not usable.any():
        return ["<p>No bin is usable, so no responses are drawn.</p>"]
    length = min(session.n_bins, max(200, round(_RASTER_S * session.bin_rate)))
    total = np.concatenate([[0], np.cumsum(usable)])
    start = int(np.argmax(total[length:] - total[:-length]))
    units = np.linspace(0, session.n_units - 1, min(session.n_units, _RASTER_UNITS)).round().astype(int)
    responses = np.asarray(session.responses[start : start + length])[:, units].astype(np.float64)
    responses[~usable[start : start + length]] = np.nan
    figure = draw.raster(
        responses, start=start / session.bin_rate, bin_rate=session.bin_rate, counts=statistics.whole
    )  # fmt: skip
    shown = f"<p>{len(units)} of {session.n_units} units are drawn.</p>" if len(units) < session.n_units else ""
    return ["<h2>Responses</h2>" + html_image(figure, "Raster of responses") + shown]


def _overview_part(session: Session, statistics: SpanStatistics) -> str:
    means, unit = mean_responses(session, statistics)
    bins = np.where(statistics.count > 0, statistics.count, np.nan)[:, None]
    overall = statistics.mean
    # Scaled as the means are, so that a part like the whole recording shows as 1.
    factor = np.divide(means, overall, out=np.ones_like(means), where=overall != 0)
    figure = draw.response_overview(means, statistics.total / bins * factor, hours=_hours(session), unit=unit)
    return html_image(figure, "Mean response of every unit, and its change over the recording")


def _behavior_part(session: Session, usable: np.ndarray) -> str:
    signals: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name, values in session.behavior.items():
        statistics = span_statistics(values, usable, _PARTS)
        n_columns = statistics.total.shape[1]
        for column in range(n_columns):
            label = name if n_columns == 1 else f"{name}[{column}]"
            signals[label] = statistics.least[:, column], statistics.most[:, column]
    drawn = dict(list(signals.items())[:_SIGNALS])
    more = f"<p>{len(signals) - _SIGNALS} further signals are not drawn.</p>" if len(signals) > _SIGNALS else ""
    figure = draw.behavior_over_time(drawn, hours=_hours(session))
    return (
        "<h2>Behaviour</h2>"
        + html_image(figure, "Range of each behavioural signal over time")
        + "<p>Band: from the least to the largest value in each part. Shaded: no usable bin.</p>"
        + more
    )


def _average_parts(session: Session, usable: np.ndarray, statistics: SpanStatistics) -> list[str]:
    parts = []
    for name in _types(session)[:_AVERAGED]:
        if not (usable & (session.type_codes == session.types.index(name))).any():
            continue
        average = triggered_averages(session, stimulus_type=name, statistics=statistics)
        if not len(average.units):
            continue
        labels = [
            f"unit {session.unit_ids[index]}: {strength:.0f}"
            for index, strength in zip(average.units, average.strength, strict=True)
        ]
        figure = draw.average_maps(average.maps, labels=labels, bin_rate=session.bin_rate)
        parts.append(
            f"<h3>{html.escape(name)}</h3><p>From {average.n_bins:,} bins. Beside the unit: the largest correlation "
            "with a pixel, times the square root of the number of bins; about 4 would be noise.</p>"
            + html_image(figure, f"Triggered averages for {name}")
        )
    return ["<h2>What drives the units</h2>", *parts] if parts else []
