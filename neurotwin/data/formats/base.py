"""What all readers of recordings share: their options, and how a reader is found for a path."""

from pathlib import Path

from pydantic import Field

from ...config import Params
from ..session import Session

__all__ = ["Format"]


class Format(Params):
    """Base of the readers: one class a layout, registered as a ``format``.

    Its fields are the reader's options, which ``neurotwin convert --options KEY=VALUE`` sets. Reading must not load a
    recording whole: give large arrays of the session as memory-mapped arrays or as
    :class:`~neurotwin.data.session.Streamed`.
    """

    name: str = Field("", description="Name of the session. Default: that of the source.")
    subject: str = Field("", description="Subject. Default: the source's, else the name up to the first _.")
    bin_rate: float | None = Field(None, gt=0, description="Bins a second, Hz, where the source does not say.")

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether a file or folder looks like this layout; looks at names and headers only."""
        raise NotImplementedError

    def read(self, path: Path) -> Session:
        """The session that lies at a path.

        What is not taken over (units, bins, signals) is said in the session's `notes`, each with its reason.

        Raises
        ------
        SessionError
            If the source is not of this layout, or lacks what a session needs; the message names the cure.
        """
        raise NotImplementedError
