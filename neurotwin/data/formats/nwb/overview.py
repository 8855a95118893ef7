"""What lies in an NWB file, written as a commented mapping that can be edited and followed."""

from pathlib import Path
from typing import Any

import yaml

from ...session import SessionError
from .contents import Contents, describe, list_contents
from .guess import guess
from .hdf import Table, open_nwb
from .mapping import Mapping

__all__ = ["nwb_mapping"]

_HEAD = """\
# What lies in {path}, and what becomes of it in a session.
# Edit this file and follow it: neurotwin convert {path} TARGET --mapping THIS_FILE
# Lines with # are comments; what they list is in the file and may be used in the place of what is there now.
"""


def nwb_mapping(path: str | Path) -> str:
    """The mapping of a file as YAML with comments: what was found by itself, and what else there is.

    Parameters
    ----------
    path
        A file .nwb, or .nwb.url with the address of one.

    Raises
    ------
    SessionError
        If the file is absent or is not NWB 2.
    """
    path = Path(path)
    with open_nwb(path) as file:
        contents = list_contents(file)
        try:
            plan, problem = guess(contents), ""
        except SessionError as error:
            plan, problem = None, str(error)
        parts = [_HEAD.format(path=path.name)]
        if problem:
            parts.append(f"# A session cannot be made of it by itself: the file {problem}.\n")
        parts += [
            _stimuli(contents, plan),
            _clock(plan),
            _responses(contents, plan),
            _behavior(contents, plan),
            _others(contents, plan),
        ]
    return "\n".join(part for part in parts if part)


def _yaml(key: str, value: Any) -> str:
    return yaml.safe_dump({key: value}, sort_keys=False, allow_unicode=True, width=1000)


def _listed(title: str, lines: list[str]) -> str:
    return f"# {title}\n" + "".join(f"#   {line}\n" for line in lines) if lines else ""


def _stimuli(contents: Contents, plan: Mapping | None) -> str:
    frames = [f"{path} ({describe(group)})" for path, group in contents.frames.items()]
    frames += [f"{path} (IndexSeries, {len(series)} entries)" for path, series in contents.index.items()]
    frames += [f"{path} (in a video file; decode it to .npy and give `file`)" for path in contents.external]
    out = _listed("Frames (for `series`):", frames)
    out += _listed(
        "Tables (for `table`, `trials`, `types` and `exclude`), with their columns:",
        [f"{path} ({len(table)} rows): {', '.join(table.columns)}" for path, table in contents.tables.items()],
    )
    out += (
        "# Each stimulus: `name` of its type; `series` with its frames (`file` where they lie in another one);\n"
        "# `table` and its columns `frame`, `block`, `repeat`, and conditions `where` on its rows; `trials`, which\n"
        "# are pieces, rows, one, or a table; `scale: 255` for a movie from 0 to 1; `swap_axes: true` where frames\n"
        "# are stored as (W, H).\n"
    )
    if plan is None:
        return (
            out + "stimuli: []  # one entry or more, such as {name: movie, file: FRAMES.npy, table: intervals/trials}\n"
        )
    return out + _yaml("stimuli", [one.model_dump(exclude_defaults=True) for one in plan.stimuli])


def _clock(plan: Mapping | None) -> str:
    return (
        "# Bins a second, in Hz. Null: one bin a frame where all last equally long, else as the shortest.\n"
        "bin_rate: null\n"
        "# Blanks of up to so many seconds between frames become blank bins of the same trial.\n"
        "fill_gaps: 0.0\n"
        "# Grey level of a blank. Null: 127, or 0.5 for frames from 0 to 1.\n"
        "blank: null\n"
        "# Height and width to which all frames are brought, such as [36, 64]. Null: as they are stored.\n"
        "size: null\n"
        "# Stimulus types from a table: {table: intervals/epochs, column: tags}.\n"
        "types: null\n"
    )


def _responses(contents: Contents, plan: Mapping | None) -> str:
    out = ""
    for path, table in contents.units.items():
        out += _listed(f"Units {path} ({len(table)}), with columns for `where`, `ids` and `labels`:", _columns(table))
    out += _listed(
        "Imaging responses (for `rois: {series: [...]}` in the place of `units`):",
        [
            f"{path} ({'x'.join(map(str, series.data.shape))})"
            for path, series in contents.rois.items()
            if series.data is not None
        ],
    )
    out += "# Conditions: COLUMN < VALUE, and > <= >= == !=, or COLUMN in [A, B]. A unit must meet all of them.\n"
    if plan is None:
        return out + "units: {table: units}\n"
    key = "units" if plan.units is not None else "rois"
    value = (plan.units or plan.rois).model_dump()
    return out + _yaml(key, value)


def _columns(table: Table) -> list[str]:
    skipped = ("spike_times", "obs_intervals", "waveforms", "waveform_mean", "waveform_sd", "spike_amplitudes")
    lines = []
    for name in table.columns:
        data = table.group[name]
        if name in skipped or data.ndim > 1 or table.ends(name) is not None:
            continue
        if table.is_text(name):
            values = sorted(set(table.column(name).tolist()))
            shown = ", ".join(values[:8]) + (", ..." if len(values) > 8 else "")
        elif data.dtype.kind in "iuf" and len(table):
            values = data[:]
            shown = f"{values.min():g} to {values.max():g}"
        else:
            shown = str(data.dtype)
        lines.append(f"{name}: {' '.join(shown.split())}")
    return lines


def _behavior(contents: Contents, plan: Mapping | None) -> str:
    out = (
        "# Behaviour: `continuous` signals are interpolated, `events` are counted per bin, and of `intervals` the\n"
        "# covered part of a bin is taken. Bins in which a signal is not known are not valid: leave out what you do\n"
        "# not need.\n"
    )
    acquired = [f"{path} ({signal.kind})" for path, signal in contents.acquired.items()]
    out += _listed("Raw signals of the acquisition, taken only where they are named:", acquired)
    found = plan.behavior if plan else {}
    if not found:
        return out + "behavior: {}\n"
    return out + _yaml("behavior", {key: value.model_dump() for key, value in found.items()})


def _others(contents: Contents, plan: Mapping | None) -> str:
    out = "# Tables of intervals whose bins are not valid.\n"
    return out + _yaml("exclude", plan.exclude if plan else [])
