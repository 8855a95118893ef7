"""The mapping of files whose layout is well known, and of plain ones with a movie, units and trials.

Sources of what is known: AllenSDK (`allensdk/brain_observatory/nwb/__init__.py` writes one table STIMULUS_presentations
for each stimulus, with `frame`, `stimulus_block` and, from Visual Behavior, `image_name` and `image_index`; its
`EcephysProjectCache` keeps units with isi_violations below 0.5, amplitude_cutoff below 0.1 and presence_ratio above
0.9) and IBL-to-nwb (columns `ibl_quality_score`, `kilosort2_label`, and locations of units).
"""

from typing import Any

import numpy as np

from ....config import nearest
from ...session import SessionError
from .contents import Contents
from .hdf import Series, Table, kind_of, text
from .mapping import Mapping, RoisMapping, SignalMapping, StimulusMapping, UnitsMapping

__all__ = ["frame_names", "guess", "image_order", "indexed", "is_presented", "roi_table"]

_FRAME_COLUMNS = (
    "frame",
    "stimulus_frame",
    "frame_index",
    "movie_frame_index",
    "movie_frame",
    "image_index",
    "image_id",
    "image",
)
_BLOCK_COLUMNS = ("stimulus_block", "block", "block_index", "stimulus_block_id")
_REPEAT_COLUMNS = ("repeat", "movie_repeat", "repeat_index", "stimulus_repeat", "repetition", "trial_repeat")
_NAME_COLUMNS = ("stimulus_name", "image_set", "stimulus_template", "template", "movie", "movie_name", "stimulus")
_QUALITY = ("isi_violations < 0.5", "amplitude_cutoff < 0.1", "presence_ratio > 0.9")
_AREA_COLUMNS = (
    "location",
    "brain_area",
    "area",
    "region",
    "brain_region",
    "structure",
    "ecephys_structure_acronym",
    "beryl_location",
    "cosmos_location",
)
_QUALITY_COLUMNS = (
    "quality",
    "label",
    "kilosort2_label",
    "ks_label",
    "KSLabel",
    "group",
    "cluster_group",
    "ibl_quality_score",
)
_ROI_ORDER = ("event", "deconv", "df", "dff", "trace", "fluor")
_OWN_TABLES = ("intervals/trials", "intervals/epochs", "intervals/invalid_times")


def guess(contents: Contents, *, stimulus: str = "") -> Mapping:
    """The mapping of a file, found by itself.

    Parameters
    ----------
    contents
        What is in the file.
    stimulus
        Name or path of the one stimulus to take. Default: all.

    Raises
    ------
    SessionError
        If the file holds no frames that say when they were shown, or no responses.
    """
    stimuli = _stimuli(contents)
    if stimulus:
        chosen = [s for s in stimuli if stimulus in (s.name, s.series, s.table)]
        if not chosen:
            raise _no_movie(contents, stimulus, stimuli)
        stimuli = chosen
    if not stimuli:
        raise SessionError(_nothing_shown(contents))
    responses: dict[str, Any] = {}
    if contents.units:
        responses["units"] = _units(next(iter(contents.units.values())))
    elif contents.rois:
        responses["rois"] = _rois(contents)
    else:
        raise SessionError("has no units table, so no sorted spikes, and no RoiResponseSeries, so no imaging")
    exclude = [path for path in ("intervals/invalid_times",) if path in contents.tables]
    return Mapping(stimuli=stimuli, behavior=_behavior(contents), exclude=exclude, **responses)


def _no_movie(contents: Contents, stimulus: str, stimuli: list[StimulusMapping]) -> SessionError:
    names = [s.name for s in stimuli]
    for path in contents.external:
        if stimulus in (path, path.rsplit("/", 1)[-1]):
            return SessionError(_external(path))
    return SessionError(f"holds no movie {stimulus!r}; {nearest(stimulus, names)}")


def _external(path: str) -> str:
    return (
        f"the frames of {path} lie in a video file; decode them to FRAMES.npy, (T, H, W) uint8, and give `file: "
        f"FRAMES.npy` and `series: {path}`, which has their times, in a mapping (`neurotwin inspect FILE.nwb` writes "
        "one)"
    )


def _nothing_shown(contents: Contents) -> str:
    if contents.external:
        return _external(contents.external[0])
    asked = (
        "render the frames to FRAMES.npy, (N, H, W) uint8, and give a mapping with `file: FRAMES.npy`, the "
        "`table`, and the `frame` column that says which was shown (`neurotwin inspect FILE.nwb` lists tables)"
    )
    tables = [path for path, table in contents.tables.items() if path not in _OWN_TABLES and len(table)]
    parameters = [path for path in tables if _parameters(contents.tables[path])]
    trials = contents.tables.get("intervals/trials")
    if not parameters and trials is not None and _parameters(trials):
        parameters = ["intervals/trials"]
    if parameters:
        columns = ", ".join(_parameters(contents.tables[parameters[0]]))
        return (
            f"holds no movie: {', '.join(parameters)} gives parameters of what was shown ({columns}), but no "
            f"frames; {asked}"
        )
    if contents.frames or tables:
        found = ", ".join([*contents.frames, *tables])
        return f"holds frames without times, or times without frames ({found}); {asked}"
    return f"holds no ImageSeries, Images or uint8 frames in stimulus or processing; {asked}"


def _parameters(table: Table) -> list[str]:
    words = ("contrast", "orientation", "gabor", "spatial_frequency", "phase", "position")
    return [name for name in table.columns if any(word in name.lower() for word in words)]


def _stimuli(contents: Contents) -> list[StimulusMapping]:
    listed = [table for path, table in contents.tables.items() if path not in _OWN_TABLES and len(table)]
    found = [stimulus for table in listed for stimulus in _from_table(contents, table)]
    used = {stimulus.series for stimulus in found}
    for path, series in contents.index.items():
        target = indexed(contents.file[path])
        if target and target not in used and path.startswith("stimulus") and series.timed:
            found.append(StimulusMapping(name=path.rsplit("/", 1)[-1], series=path, trials=_trials(contents)))
            used.add(target)
    for path in contents.shown():
        if path not in used and (path.startswith("stimulus/presentation") or not found):
            found.append(StimulusMapping(name=path.rsplit("/", 1)[-1], series=path, trials=_trials(contents)))
    if not found and "intervals/trials" in contents.tables:  # each trial shows an image
        found = _from_table(contents, contents.tables["intervals/trials"])
    names = [stimulus.name for stimulus in found]
    return [s if names.count(s.name) == 1 else s.model_copy(update={"name": s.series}) for s in found]


def indexed(group: Any) -> str:
    """Path of the frames that an IndexSeries points into; empty where there is none."""
    for name in ("indexed_images", "indexed_timeseries"):
        target = group.get(name)
        if target is not None:
            # An object that was reached by a soft link gives the link's path as its name, and not its own.
            link = group.get(name, getlink=True)
            return getattr(link, "path", target.name).lstrip("/")
    return ""


def _trials(contents: Contents) -> str:
    return "intervals/trials" if "intervals/trials" in contents.tables else "pieces"


def _from_table(contents: Contents, table: Table) -> list[StimulusMapping]:
    """The stimuli that a table of presentations shows: of one template, or of those that a column names."""
    base = table.name.removesuffix("_presentations").removesuffix("_presentation").removesuffix("_stimulus")
    templates = {path.rsplit("/", 1)[-1]: path for path in contents.frames}
    columns = [name for name in _NAME_COLUMNS if name in table.columns and table.is_text(name)]
    for column in columns:
        values = table.column(column)
        named = {value: _alike(value, templates) for value in dict.fromkeys(values.tolist())}
        named = {value: path for value, path in named.items() if path}
        if named:
            single = len(set(values.tolist())) == 1
            return [
                _presented(contents, table, path, value, [] if single else [f"{column} == {value}"])
                for value, path in named.items()
            ]
    path = _alike(base, templates)
    if not path and len(templates) == 1 and _frame_column(table, None):
        tables = {p for p, t in contents.tables.items() if p not in _OWN_TABLES and _frame_column(t, None)}
        only = next(iter(templates.values()))
        path = only if tables <= {table.path} and not (is_presented(only) and contents.shown()) else ""
    if not path and "image_name" in table.columns and table.is_text("image_name"):
        shown = set(table.column("image_name").tolist())
        path = next((p for p, group in contents.frames.items() if shown & set(frame_names(group))), "")
    return [_presented(contents, table, path, base, [])] if path else []


def is_presented(path: str) -> bool:
    """Whether frames lie where NWB keeps what was shown as it was shown."""
    return path.startswith("stimulus/presentation")


def _alike(name: str, templates: dict[str, str]) -> str:
    """The template of a name, up to an ending such as `_template` or `_movie`."""
    if name in templates:
        return templates[name]
    endings = ("_template", "_templates", "_movie", "_images", "_frames")
    for template, path in templates.items():
        short = template
        for ending in endings:
            short = short.removesuffix(ending)
        if name.lower() in (template.lower(), short.lower()):
            return path
    return ""


def _frame_column(table: Table, group: Any) -> str:
    names = set(frame_names(group)) if group is not None else set()
    # Of an omitted flash Allen's tables give an index beyond the images, but a name that no image has.
    if names and "image_name" in table.columns and names & set(table.column("image_name").tolist()):
        return "image_name"
    return next((name for name in _FRAME_COLUMNS if name in table.columns), "")


def _presented(contents: Contents, table: Table, path: str, name: str, where: list[str]) -> StimulusMapping:
    frame = _frame_column(table, contents.file[path])
    block = next((column for column in _BLOCK_COLUMNS if column in table.columns), "")
    repeat = next((column for column in _REPEAT_COLUMNS if column in table.columns), "")
    trials = "pieces"
    if frame:
        values = table.column(frame)
        if values.dtype.kind == "U" or not np.mean(np.isin(np.diff(values), (0, 1))) > 0.5:
            trials = "rows"  # images in no order, and not the frames of a movie
    return StimulusMapping(
        name=name, series=path, table=table.path, where=where, frame=frame, block=block, repeat=repeat, trials=trials
    )


def frame_names(group: Any) -> list[str]:
    """Names of the frames of a template, in order; empty where they have none."""
    if "data" not in group:
        return image_order(group)
    named = group.get("control_description")
    return [text(name) for name in named[:]] if named is not None and len(named) == len(group["data"]) else []


def image_order(group: Any) -> list[str]:
    """Names of the images of an `Images` object in the order that its indices count."""
    order = group.get("order_of_images")
    if order is not None:
        return [group.file[reference].name.rsplit("/", 1)[-1] for reference in order[:]]
    names = [name for name in group if hasattr(group[name], "shape")]
    numbers = ["".join(c for c in name if c.isdigit()) for name in names]
    return sorted(names, key=lambda name: int(numbers[names.index(name)])) if all(numbers) else sorted(names)


def _units(table: Table) -> UnitsMapping:
    names = {condition.split()[0] for condition in _QUALITY}
    where = list(_QUALITY) if names <= set(table.columns) else []
    if where and "quality" in table.columns and "good" in table.column("quality"):
        where.insert(0, "quality == good")
    labels = {}
    area = next((column for column in _AREA_COLUMNS if column in table.columns and table.is_text(column)), "")
    electrodes = table.group.file.get("general/extracellular_ephys/electrodes")
    if area:
        labels["area"] = area
    elif electrodes is not None and "location" in electrodes and _has_electrode(table):
        labels["area"] = "electrodes/location"
    quality = next((column for column in _QUALITY_COLUMNS if column in table.columns), "")
    if quality:
        labels["quality"] = quality
    labels |= {column: column for column in ("layer", "cell_type", "probe_name") if column in table.columns}
    return UnitsMapping(table=table.path, where=where, labels=labels)


def _has_electrode(table: Table) -> bool:
    return "electrodes" in table.columns or "peak_channel_id" in table.columns


def _rois(contents: Contents) -> RoisMapping:
    def rank(path: str) -> int:
        words = path.lower()
        if "neuropil" in words or "demix" in words:
            return len(_ROI_ORDER) + 1
        return next((number for number, word in enumerate(_ROI_ORDER) if word in words), len(_ROI_ORDER))

    best = min(contents.rois, key=rank)
    table = roi_table(contents.rois[best], contents.file)
    chosen = [best, *_other_planes(contents, best, table)]
    where, ids, labels = [], "id", {}
    if table is not None:
        where = ["valid_roi == true"] if "valid_roi" in table.columns else []
        ids = "cell_specimen_id" if "cell_specimen_id" in table.columns else "id"
        area = next((column for column in _AREA_COLUMNS if column in table.columns and table.is_text(column)), "")
        labels = {"area": area} if area else {}
    return RoisMapping(series=chosen, where=where, ids=ids, labels=labels)


def _other_planes(contents: Contents, best: str, table: Table | None) -> list[str]:
    """Series beside the chosen one whose regions lie in tables of their own, with the same columns."""
    known, planes = {table.path} if table is not None else set(), []
    for path, series in contents.rois.items():
        other = roi_table(series, contents.file)
        beside = path != best and path.rpartition("/")[0] == best.rpartition("/")[0]
        if beside and table is not None and other is not None and other.path not in known:
            if set(other.columns) == set(table.columns):
                planes.append(path)
            known.add(other.path)
    return planes


def roi_table(series: Series, file: Any) -> Table | None:
    """The table of regions that the columns of a RoiResponseSeries are rows of."""
    region = file[series.path].get("rois")
    reference = region.attrs.get("table") if region is not None else None
    if reference is None or not reference:
        return None
    target = file[reference]
    return Table(target) if kind_of(target) else None


def _behavior(contents: Contents) -> dict[str, SignalMapping]:
    names: dict[str, list[str]] = {}
    for path, signal in contents.signals.items():
        names.setdefault(signal.series.name, []).append(path)
    found = {}
    for name, paths in names.items():
        for path in paths:
            module = path.split("/")[1]
            # Two modules may hold series of one name, as the raw and the filtered gaze of AllenSDK.
            key = name if len(paths) == 1 else f"{module}_{name}"
            found[key] = SignalMapping(series=path, kind=contents.signals[path].kind)
    return found
