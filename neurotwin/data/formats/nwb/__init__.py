"""Sessions from files of Neurodata Without Borders (NWB 2), as labs have them; needs the extra `nwb`."""

from pathlib import Path

from pydantic import Field

from ....config import register
from ...session import Session, SessionError
from ..base import Format
from .hdf import name_of, open_nwb
from .mapping import Mapping
from .overview import nwb_mapping
from .reading import read_nwb

__all__ = ["NWB", "Mapping", "nwb_mapping"]


@register("format", "nwb")
class NWB(Format):
    """A file of Neurodata Without Borders, version 2, or a file NAME.nwb.url with the address of one in an archive.

    No two labs put things in the same places, so a mapping says what becomes of what. For well-known layouts and for
    plain ones it is found by itself; ``neurotwin inspect FILE.nwb`` writes it with comments, to be edited and followed
    by ``neurotwin convert --mapping MAPPING.yaml``.

    *Stimulus.* Frames lie in an ImageSeries or a subclass of it, in `Images` that an IndexSeries points into, or in any
    series (T, H, W), in `stimulus` or a processing module; their own times say when they were shown, or the rows of a
    table `intervals/NAME_presentations`. One frame is one bin where all frames last equally long; else bins are as
    long as the shortest frame. Several stimuli become several types.

    *Responses.* Spikes are counted from each bin's onset for its duration. Without units, a RoiResponseSeries is
    sampled at the bins.

    *Behaviour.* Every numeric series of the processing modules: continuous ones are interpolated at the middle of the
    bins, events such as licks are counted. Bins outside of a signal, or where it is NaN, are not valid.

    *Trials and repeats.* Trials are the rows of the trials table; under a table of presentations, pieces between blanks
    or single images. Frames shown before after the same past are repeats. Bins in `invalid_times` are not valid.

    Layouts were read from the code of AllenSDK and IBL-to-nwb, and from https://nwb-schema.readthedocs.io.
    """

    stimulus: str = Field("", description="Name of the one stimulus to take, where there are several. Default: all.")
    mapping: str = Field("", description="Mapping file (YAML), as `neurotwin inspect FILE.nwb` writes it.")
    scale: float | None = Field(
        None, gt=0, description="Factor that makes grey levels of stored numbers: 255 for a movie from 0 to 1."
    )

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """A file whose name ends in .nwb or .nwb.url."""
        return path.is_file() and path.name.endswith((".nwb", ".nwb.url"))

    def read(self, path: Path) -> Session:
        """The session; see :class:`Format`."""
        path = Path(path)
        file = open_nwb(path)
        try:
            return read_nwb(
                path,
                file,
                name=self.name or name_of(path),
                subject=self.subject,
                stimulus=self.stimulus,
                mapping=Path(self.mapping) if self.mapping else None,
                scale=self.scale,
                bin_rate=self.bin_rate,
            )
        except SessionError as error:
            file.close()
            known = str(error).startswith((str(path), "session ", "mapping "))
            raise SessionError(str(error) if known else f"{path}: {error}") from None
