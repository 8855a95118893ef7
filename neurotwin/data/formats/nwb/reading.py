"""From an open NWB file and its mapping to a session."""

from pathlib import Path
from typing import Any

import numpy as np

from ...session import Session, SessionError
from .contents import Contents, list_contents, series_at
from .frames import open_frames
from .guess import guess
from .hdf import Table, open_nwb, text
from .imaging import imaging_rate, roi_responses
from .mapping import Mapping, load_mapping
from .signals import Responses, covered, on_bins, spike_counts
from .stimulus import Bins, Shown, bins_of, presented, stream
from .trials import by_intervals, cut_trials, number_repeats

__all__ = ["read_nwb"]

_LEAST_KNOWN = 0.5  # part of the bins in which a signal that nobody asked for must be known
_INFO = {
    "lab": "general/lab",
    "institution": "general/institution",
    "session": "general/session_id",
    "description": "session_description",
    "identifier": "identifier",
}


def read_nwb(
    path: Path,
    file: Any,
    *,
    name: str,
    subject: str,
    stimulus: str,
    mapping: Path | None,
    scale: float | None,
    bin_rate: float | None,
) -> Session:
    """The session of an open file; see :class:`neurotwin.data.formats.nwb.NWB` for the options.

    Raises
    ------
    SessionError
        If the file lacks what a session needs, or the mapping names what is not there.
    """
    contents = list_contents(file)
    plan = load_mapping(mapping) if mapping else guess(contents, stimulus=stimulus)
    plan = _with_options(plan, stimulus, scale)
    folder = mapping.parent if mapping else path.parent
    notes = list(contents.notes)
    shown = []
    for one in plan.stimuli:
        shown.append(presented(one, open_frames(file, one, folder, _open_other, plan.size), file))
        notes += shown[-1].notes
    bins = bins_of(shown, plan, bin_rate or plan.bin_rate or _slower_imaging(file, plan, shown, notes))
    notes += cut_trials(bins, shown, contents.tables)
    number_repeats(bins, shown)
    valid = _seen(bins, shown, notes) & ~_excluded(bins, plan, contents, notes)
    _name_types(bins, plan, contents)
    if plan.units is not None:
        responses = spike_counts(file, plan.units, bins.time, bins.duration)
    else:
        responses = roi_responses(file, plan.rois, bins.time, bins.duration)
    notes += responses.notes
    behavior = _behavior(bins, plan, file, notes, asked=mapping is not None)
    for values in behavior.values():
        valid &= np.isfinite(values).reshape(len(valid), -1).all(axis=1)
    notes += _left_out(contents, plan)
    return _session(
        file,
        bins,
        shown,
        plan,
        responses,
        name=name,
        subject=subject,
        valid=valid & responses.valid,
        behavior={key: np.nan_to_num(values, posinf=0.0, neginf=0.0) for key, values in behavior.items()},
        notes=notes,
    )


def _session(
    file: Any,
    bins: Bins,
    shown: list[Shown],
    plan: Mapping,
    responses: Responses,
    *,
    name: str,
    subject: str,
    **values: Any,
) -> Session:
    if not subject and "general/subject/subject_id" in file:
        subject = text(file["general/subject/subject_id"][()])
    info = {key: text(file[place][()]) for key, place in _INFO.items() if place in file}
    return Session(
        name=name,
        subject=subject,
        stimulus=stream(bins, shown, plan.blank),
        responses=responses.values,
        bin_rate=1 / bins.duration,
        unit_ids=responses.ids,
        trial=bins.trial,
        stimulus_type=bins.type,
        repeat_id=bins.repeat,
        time=bins.time,
        unit_labels=responses.labels,
        unit_positions=responses.positions,
        info=info,
        **values,
    )


def _slower_imaging(file: Any, plan: Mapping, shown: list[Shown], notes: list[str]) -> float | None:
    """The rate of imaging where it is clearly slower than the frames: bins between two samples would tell nothing."""
    rate = imaging_rate(file, plan.rois) if plan.rois is not None else None
    fastest = 1 / min(one.duration for one in shown)
    # Single images last as long as they do: their bins are presentations.
    if rate is None or rate > 0.7 * fastest or any(one.mapping.trials == "rows" for one in shown):
        return None
    notes.append(
        f"bins follow the imaging ({rate:.4g} Hz) and not the frames ({fastest:.4g} Hz), of which each bin shows the "
        "one at its middle; give --bin_rate for other bins"
    )
    return rate


def _open_other(path: Path) -> Any:
    if path.suffix in (".nwb", ".url"):
        return open_nwb(path)
    import h5py  # an extra

    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise SessionError(
            f"{path}: cannot be opened as HDF5 ({error}); it is named as `file` in the mapping"
        ) from None


def _with_options(plan: Mapping, stimulus: str, scale: float | None) -> Mapping:
    chosen = [one for one in plan.stimuli if not stimulus or stimulus in (one.name, one.series, one.table)]
    if not chosen:
        raise SessionError(f"its mapping has no stimulus {stimulus!r} ({', '.join(s.name for s in plan.stimuli)})")
    if scale is not None:
        chosen = [one.model_copy(update={"scale": one.scale or scale}) for one in chosen]
    return plan.model_copy(update={"stimuli": chosen})


def _seen(bins: Bins, shown: list[Shown], notes: list[str]) -> np.ndarray:
    """(T,) whether the frame of a bin is whole; frames with NaN are shown as 0 and are not valid."""
    valid = np.ones(len(bins.time), bool)
    for number, one in enumerate(shown):
        mine = np.flatnonzero((bins.source == number) & (bins.frame >= 0))
        bad = one.frames.bad[bins.frame[mine]]
        valid[mine[bad]] = False
        if bad.any():
            notes.append(f"{int(bad.sum())} bins of {one.mapping.name!r} are not valid: their frames hold NaN")
        if one.frames.dtype == np.float32 and one.frames.largest <= 1:
            notes.append(
                f"frames of {one.mapping.name!r} are numbers up to 1 and are kept as they are; with "
                "`scale: 255` they become grey levels"
            )
    return valid


def _excluded(bins: Bins, plan: Mapping, contents: Contents, notes: list[str]) -> np.ndarray:
    """(T,) whether a bin overlaps a row of the tables that are excluded."""
    out = np.zeros(len(bins.time), bool)
    for path in plan.exclude:
        table = _table(contents, path, "exclude")
        intervals = np.stack([table.column(name).astype(float) for name in ("start_time", "stop_time")], axis=1)
        inside = covered(intervals, bins.time, bins.duration) > 1e-6
        if inside.any():
            notes.append(f"{int(inside.sum())} bins are not valid: they lie in {path}")
        out |= inside
    return out


def _table(contents: Contents, path: str, key: str) -> Table:
    if path not in contents.tables:
        raise SessionError(
            f"`{key}` of its mapping: there is no table {path!r} with start_time and stop_time; there "
            f"are {', '.join(contents.tables) or 'none'}"
        )
    return contents.tables[path]


def _name_types(bins: Bins, plan: Mapping, contents: Contents) -> None:
    if plan.types is None:
        return
    table = _table(contents, plan.types.table, "types")
    row = by_intervals(bins.time, bins.duration, table)
    names = table.column(plan.types.column).astype(str)
    bins.type = np.where(row >= 0, names[row], bins.type)


def _behavior(bins: Bins, plan: Mapping, file: Any, notes: list[str], *, asked: bool) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for key, wanted in plan.behavior.items():
        signal = series_at(file, wanted.series)
        if signal is None or (signal.series.data is None and wanted.kind != "events"):
            raise SessionError(f"behavior {key!r}: there is no series {wanted.series!r} with values and times")
        if wanted.kind == "continuous" and not signal.series.numeric:
            raise SessionError(f"behavior {key!r}: {wanted.series} holds {signal.series.data.dtype}, no numbers")
        try:
            values = on_bins(type(signal)(signal.series, wanted.kind), bins.time, bins.duration)
        except SessionError as error:
            if asked:
                raise
            notes.append(f"behaviour {key!r} is left out: {error}")
            continue
        known = float(np.isfinite(values).reshape(len(values), -1).all(axis=1).mean())
        if known < _LEAST_KNOWN and not asked:
            notes.append(
                f"behaviour {key!r} is left out: it is known in {known:.0%} of the bins only, and bins in "
                "which a signal is not known are not valid; name it in a mapping to take it"
            )
            continue
        found[key] = values
        if known < 1:
            notes.append(f"{round((1 - known) * len(values))} bins are not valid: behaviour {key!r} is not known there")
    return found


def _left_out(contents: Contents, plan: Mapping) -> list[str]:
    """What the file holds beside what was taken, one sentence each."""
    used = {one.table for one in plan.stimuli} | set(plan.exclude)
    used |= {one.trials for one in plan.stimuli} | ({plan.types.table} if plan.types else set())
    series = {one.series for one in plan.stimuli}
    tables = [path for path, table in contents.tables.items() if path not in used and len(table)]
    notes = [
        f"{path} ({len(contents.tables[path])} rows) is left out: no frames belong to it"
        for path in tables
        if path not in ("intervals/epochs", "intervals/trials")
    ]
    notes += [
        f"{path} is left out: it cuts no trials and names no types in the mapping"
        for path in tables
        if path in ("intervals/epochs", "intervals/trials")
    ]
    if not any(path in contents.index for path in series):
        notes += [
            f"the frames {path} are left out: no stimulus of the mapping names them"
            for path in contents.frames
            if path not in series
        ]
    notes += [f"the frames of {path} are left out: they lie in a video file" for path in contents.external]
    taken = set(plan.rois.series if plan.rois else ())
    notes += [f"the responses {path} are left out: others were taken" for path in contents.rois if path not in taken]
    if plan.units is not None:
        notes += [
            f"the units of {path} are left out: others were taken"
            for path in contents.units
            if path != plan.units.table
        ]
    signals = {one.series for one in plan.behavior.values()}
    notes += [
        f"{path} is left out: the mapping does not name it as behaviour"
        for path in (*contents.signals, *contents.acquired)
        if path not in signals
    ]
    return notes
