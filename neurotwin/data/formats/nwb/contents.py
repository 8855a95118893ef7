"""What is in an NWB file: found by what objects are, wherever a lab has put them.

Where things lie was read from the writers of the large archives: AllenSDK (`allensdk/brain_observatory/nwb`: templates
whose timestamps are all NaN, tables NAME_presentations, modules `running`, `licking`, `rewards`, `eye_tracking`,
`raw_gaze_mapping`, `stimulus`) and IBL-to-nwb (`src/ibl_to_nwb/datainterfaces`: module `passive_protocol` with the
frames `rfm_stim` and the tables `gabor_table` and `passive_task_replay`).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .hdf import Series, Table, kind_of, text

__all__ = ["Contents", "Signal", "describe", "is_timed", "list_contents", "series_at"]

_PLACES = ("stimulus/presentation", "stimulus/templates", "processing", "intervals", "acquisition")
_EVENT_KINDS = ("Events", "LabeledEvents", "TTLs", "AnnotationSeries", "EventsTable")
_EVENT_NAMES = re.compile(r"lick|reward|event|pulse|ttl|press|onset", re.IGNORECASE)
_NEURAL = (
    "ElectricalSeries",
    "SpikeEventSeries",
    "FeatureExtraction",
    "TwoPhotonSeries",
    "OnePhotonSeries",
    "DecompositionSeries",
    "CorrectedImageStack",
    "ImageSegmentation",
    "ImageMaskSeries",
    "PlaneSegmentation",
    "PatchClampSeries",
    "CurrentClampSeries",
    "VoltageClampSeries",
)
_CONTINUOUS_KINDS = (
    "SpatialSeries",
    "BehavioralTimeSeries",
    "Position",
    "CompassDirection",
    "EyeTracking",
    "PupilTracking",
)
_CONTINUOUS_NAMES = re.compile(r"wheel|position|speed|velocity|pupil|gaze|running", re.IGNORECASE)
_FEW = 20  # samples below which times alone say nothing
_PROBE = 4096  # samples that say whether a series is of events


@dataclass(frozen=True)
class Signal:
    """A signal that may serve as behaviour.

    Parameters
    ----------
    series
        Its values and times.
    kind
        `continuous` signals are interpolated, `events` are counted, of `intervals` the covered part of a bin is taken.
    """

    series: Series
    kind: str


@dataclass
class Contents:
    """The objects of a file by their paths."""

    file: Any
    frames: dict[str, Any] = field(default_factory=dict)
    """Groups of ImageSeries, Images and other series of frames."""
    external: list[str] = field(default_factory=list)
    """Series whose frames lie in video files."""
    index: dict[str, Series] = field(default_factory=dict)
    """IndexSeries: which image of a stack was shown when."""
    tables: dict[str, Table] = field(default_factory=dict)
    """Tables of intervals, trials and epochs among them."""
    units: dict[str, Table] = field(default_factory=dict)
    """Tables with spike times."""
    rois: dict[str, Series] = field(default_factory=dict)
    """RoiResponseSeries."""
    signals: dict[str, Signal] = field(default_factory=dict)
    """Numeric series and events of the processing modules."""
    acquired: dict[str, Signal] = field(default_factory=dict)
    """The same of `acquisition`: raw signals, which are only taken where a mapping names them."""
    notes: list[str] = field(default_factory=list)

    def shown(self) -> dict[str, Any]:
        """Frames that were presented, by their own times: those of `stimulus`, else templates, else of modules."""
        timed = {path: group for path, group in self.frames.items() if is_timed(group)}
        for place in _PLACES[:3]:
            found = {path: group for path, group in timed.items() if path.startswith(place)}
            if found:
                return found
        return {}


def list_contents(file: Any) -> Contents:
    """List what lies in a file; reads names, types and shapes only."""
    contents = Contents(file)
    for place in _PLACES:
        if place in file:
            for parents, item in _leaves(file[place], (place,), contents.notes):
                _sort_in(contents, parents, item)
    for path in ("units", *(path for path in _module_tables(file))):
        if path in file and "spike_times" in file[path]:
            contents.units[path] = Table(file[path])
    return contents


def is_timed(group: Any) -> bool:
    """Whether frames say when they were shown; templates do not, or hold NaN."""
    return "data" in group and Series.of_group(group).timed


def series_at(file: Any, path: str) -> Signal | None:
    """The signal at a path of a file: a time series, or a column of a table that has a column `timestamps`."""
    path = path.strip("/")
    item = file.get(path)
    if item is not None and hasattr(item, "keys"):
        found = Series.of_group(item)
        return Signal(found, _signal_kind(found, path.split("/"))) if "timestamps" in item or found.rate else None
    table = file.get(path.rpartition("/")[0])
    if item is None or "timestamps" not in table:
        return None
    return _column(Table(table), path.rpartition("/")[2])


def _module_tables(file: Any) -> Iterator[str]:
    for module in file.get("processing", ()):
        yield from (f"processing/{module}/{name}" for name in file["processing"][module])


def _leaves(group: Any, parents: tuple[str, ...], notes: list[str]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every object below a group that is no mere container, with the names and types on the way to it."""
    for name in group:
        item = group.get(name)
        if item is None:
            notes.append(f"{group.name.lstrip('/')}/{name} is a link to what is not there")
        elif not hasattr(item, "keys"):
            continue
        elif "colnames" in item.attrs or kind_of(item) in ("Images", *_NEURAL) or _has_data(item):
            yield parents, item
        else:
            yield from _leaves(item, (*parents, name, kind_of(item)), notes)


def _has_data(item: Any) -> bool:
    # Allen has a series that is called "timestamps", so that a name alone does not tell.
    return any(hasattr(item.get(key), "shape") for key in ("data", "timestamps", "external_file"))


def _sort_in(contents: Contents, parents: tuple[str, ...], item: Any) -> None:
    path, kind, place = item.name.lstrip("/"), kind_of(item), parents[0]
    if kind in _NEURAL or "electrodes" in item or {*_NEURAL} & {*parents}:
        return
    if "colnames" in item.attrs:
        _sort_table(contents, Table(item), place)
    elif kind == "Images" or kind == "IndexSeries" or "external_file" in item:
        if kind == "IndexSeries":
            contents.index[path] = Series.of_group(item)
        elif place == "acquisition" or "ophys" in path:
            return
        elif "external_file" in item and item["external_file"].size:
            contents.external.append(path)
        else:
            contents.frames[path] = item
    elif place.startswith("stimulus") or _is_movie(item, kind):
        if place == "acquisition":
            return  # of a camera that filmed the animal, or of the microscope
        if "data" in item and item["data"].ndim >= 3 and item["data"].dtype.kind in "iufb" and item["data"].size:
            contents.frames[path] = item
        else:
            contents.notes.append(
                f"{path} is left out: it holds no frames (T, H, W); a mapping may name it as `series`"
            )
    elif "rois" in item or kind == "RoiResponseSeries":
        contents.rois[path] = Series.of_group(item)
    elif place in ("processing", "acquisition"):
        _sort_signal(contents, parents, item)


def _is_movie(item: Any, kind: str) -> bool:
    """Whether a series of a module is one of frames and not of, say, positions of several markers."""
    if not hasattr(item.get("data"), "shape") or item["data"].ndim < 3:
        return False
    return item["data"].dtype == np.uint8 or kind.endswith(("ImageSeries", "OpticalSeries", "StimulusTemplate"))


def _sort_table(contents: Contents, table: Table, place: str) -> None:
    if {"start_time", "stop_time"} <= set(table.columns):
        contents.tables[table.path] = table
    elif "timestamps" in table.columns and place == "processing":
        for name in table.columns:
            signal = _column(table, name) if name != "timestamps" else None
            if signal is not None:
                contents.signals[f"{table.path}/{name}"] = signal


def _column(table: Table, name: str) -> Signal | None:
    data = table.group[name]
    if data.ndim > 2 or np.dtype(data.dtype).kind not in "iufb" or table.ends(name) is not None:
        return None
    series = Series(f"{table.path}/{name}", f"{table.name}_{name}", "VectorData", data, table.group["timestamps"])
    return Signal(series, "continuous")


def _sort_signal(contents: Contents, parents: tuple[str, ...], item: Any) -> None:
    path, module = item.name.lstrip("/"), parents[1] if len(parents) > 1 else ""
    if module == "stimulus" or path.rsplit("/", 1)[-1] == "timestamps":
        return  # the clock of the screen, which AllenSDK keeps as a series
    names = path.split("/")[2:] if parents[0] == "processing" else path.split("/")[1:]
    series = Series.of_group(item, "_".join(names))
    if series.data is not None and not series.numeric and kind_of(item) not in _EVENT_KINDS:
        contents.notes.append(f"{path} is left out: it holds text")
    elif series.times is None and not series.rate > 0:
        contents.notes.append(f"{path} is left out: it has neither timestamps nor a rate")
    elif len(series) == 0:
        contents.notes.append(f"{path} is left out: it is empty")
    else:
        found = contents.signals if parents[0] == "processing" else contents.acquired
        found[path] = Signal(series, _signal_kind(series, path.split("/"), parents))


def _signal_kind(series: Series, names: list[str], parents: tuple[str, ...] = ()) -> str:
    """`events` where the name, the type or the times say so: intervals of events differ from one another."""
    if series.kind == "IntervalSeries":
        return "intervals"
    if series.data is None or series.kind in _EVENT_KINDS or "BehavioralEvents" in parents:
        return "events"
    if series.times is None or {series.kind, *parents} & {*_CONTINUOUS_KINDS}:
        return "continuous"
    named = any(_EVENT_NAMES.search(name) for name in names[1:])
    if not named and _CONTINUOUS_NAMES.search(names[-1]):
        return "continuous"  # a wheel is sampled when it moves, so that its times are uneven as well
    steps = np.diff(series.time(0, _PROBE))
    steps = steps[np.isfinite(steps)]
    if len(steps) < _FEW:
        return "events" if named else "continuous"
    uneven = float(np.mean(np.abs(steps - np.median(steps)) > 0.5 * np.median(steps)))
    return "events" if uneven > (0.02 if named else 0.4) else "continuous"


def describe(group: Any) -> str:
    """Shape, type and kind of frames, as a few words."""
    if "data" not in group:
        return f"{kind_of(group)}, {sum(1 for name in group if name != 'order_of_images')} images"
    data = group["data"]
    return f"{kind_of(group) or 'series'}, {'x'.join(map(str, data.shape))} {text(data.dtype)}"
