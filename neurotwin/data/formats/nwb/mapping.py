"""Which objects of an NWB file become which part of a session: the mapping that ``convert --mapping`` follows."""

from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from ....config import Strict
from ....config.base import PositiveInt
from ...session import SessionError

__all__ = ["Mapping", "RoisMapping", "SignalMapping", "StimulusMapping", "TypesMapping", "UnitsMapping", "load_mapping"]


class StimulusMapping(Strict):
    """One stimulus: where its frames lie, and what says when each was shown."""

    name: str = Field(description="Stimulus type of its bins.")
    series: str = Field(
        "",
        description="Path of the frames in the file: an ImageSeries, Images, an IndexSeries or any (T, H, W) series.",
    )
    file: str = Field(
        "",
        description="Another file that holds the frames: .npy (then `series` may still name the series with their "
        "times), or .nwb or .h5 (then `series` is the path in it).",
    )
    table: str = Field("", description="Table whose rows say when. Default: the times of the series itself.")
    where: list[str] = Field([], description="Conditions that rows of the table must meet, such as 'active == true'.")
    frame: str = Field(
        "",
        description="Column with the index of the frame of a row, from 0 (negative or NaN: a blank), or with the name "
        "of the image. Default: a row shows the series from its first to its last frame.",
    )
    block: str = Field("", description="Column whose changes begin a new trial.")
    repeat: str = Field("", description="Column with the number of the repeat; its changes begin a new trial as well.")
    trials: str = Field(
        "pieces",
        description="How trials are cut: `pieces` (stretches between blanks, blocks and repeats), `rows` (each row of "
        "the table is one, as for single images), `one`, or the path of a table.",
    )
    scale: float | None = Field(
        None, gt=0, description="Factor that makes grey levels of the stored numbers: 255 for a movie from 0 to 1."
    )
    swap_axes: bool = Field(False, description="Whether frames are stored as (W, H), as some writers do.")

    @model_validator(mode="after")
    def _complete(self) -> "StimulusMapping":
        if not self.series and not self.file:
            raise ValueError("give `series`, the path of its frames, or `file`")
        for key in ("where", "frame", "block", "repeat"):
            if getattr(self, key) and not self.table:
                raise ValueError(f"`{key}` is about rows, but no `table` is given")
        if self.trials == "rows" and not self.table:
            raise ValueError("`trials: rows` needs a `table`")
        return self


class UnitsMapping(Strict):
    """Sorted units."""

    table: str = Field("units", description="Table with spike times.")
    where: list[str] = Field([], description="Conditions that units must meet, such as 'presence_ratio > 0.9'.")
    ids: str = Field("id", description="Column with the ids of units.")
    labels: dict[str, str] = Field(
        {}, description="Labels to keep, by name: a column, or electrodes/COLUMN for that of the unit's electrode."
    )


class RoisMapping(Strict):
    """Responses of regions of interest in imaging, in place of spikes."""

    series: list[str] = Field(min_length=1, description="Paths of RoiResponseSeries, one or one for each plane.")
    where: list[str] = Field([], description="Conditions on columns of the table of regions, such as 'valid_roi == 1'.")
    ids: str = Field("id", description="Column of the table of regions with their ids.")
    labels: dict[str, str] = Field({}, description="Labels to keep, by name: columns of the table of regions.")


class SignalMapping(Strict):
    """One behaviour signal."""

    series: str = Field(description="Path of a series, or of a column of a table that has a column `timestamps`.")
    kind: Literal["continuous", "events", "intervals"] = Field(
        "continuous",
        description="`continuous` is interpolated, `events` are counted per bin, and `intervals` give the part of a "
        "bin that they cover.",
    )


class TypesMapping(Strict):
    """Stimulus types from a table of the session's parts."""

    table: str = Field(description="Table, such as intervals/epochs or intervals/trials.")
    column: str = Field(description="Its column with the name of each part.")


class Mapping(Strict):
    """What of an NWB file becomes what of a session."""

    stimuli: list[StimulusMapping] = Field(min_length=1, description="What was shown; each becomes a stimulus type.")
    bin_rate: float | None = Field(
        None, gt=0, description="Bins a second, Hz. Default: one bin a frame, or the fastest of several stimuli."
    )
    fill_gaps: float = Field(
        0.0, ge=0, description="Blanks of up to so many seconds between frames become blank bins of the same trial."
    )
    blank: float | None = Field(
        None, description="Grey level of blank bins. Default: 127, or 0.5 for frames stored as numbers from 0 to 1."
    )
    size: tuple[PositiveInt, PositiveInt] | None = Field(
        None,
        description="Height and width to which all frames are brought, by averaging over areas. Default: as stored.",
    )
    types: TypesMapping | None = Field(None, description="Stimulus types from a table instead of the stimulus' name.")
    units: UnitsMapping | None = Field(None, description="Sorted units; or give `rois`.")
    rois: RoisMapping | None = Field(None, description="Imaging responses; or give `units`.")
    behavior: dict[str, SignalMapping] = Field({}, description="Behaviour signals by name.")
    exclude: list[str] = Field([], description="Tables of intervals whose bins are not valid.")

    @model_validator(mode="after")
    def _one_response(self) -> "Mapping":
        if (self.units is None) == (self.rois is None):
            raise ValueError("give either `units` or `rois`")
        names = [stimulus.name for stimulus in self.stimuli]
        if len(set(names)) < len(names):
            raise ValueError(f"two of the stimuli {names} have the same name")
        return self


def load_mapping(path: Path) -> Mapping:
    """Read a mapping file.

    Raises
    ------
    SessionError
        If it is absent, no YAML, or not a mapping; the message names the key.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SessionError(f"mapping {path}: cannot be read ({error.strerror})") from None
    except yaml.YAMLError as error:
        raise SessionError(f"mapping {path}: not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict):
        raise SessionError(
            f"mapping {path}: must hold keys such as `stimuli` and `units`; `neurotwin inspect FILE.nwb` writes one"
        )
    try:
        return Mapping.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        place = "".join(f"{part}." for part in first["loc"])[:-1]
        raise SessionError(f"mapping {path}: {place}{': ' if place else ''}{message}") from None
