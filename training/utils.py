"""Small helpers of the process that trains: what it prints, what it keeps of freed memory, how it may end."""

import ctypes
import logging
import sys
import traceback
import warnings
from logging.handlers import MemoryHandler
from pathlib import Path
from types import TracebackType

import torch

__all__ = ["RunLog", "keep_freed_memory", "known_end", "quiet_lightning"]


class RunLog(MemoryHandler):
    """Copies log lines to the file `train.log` of a run: those from before the run has a folder are kept until then.

    Within its block it is a handler of the root logger. An error that ends the block is written with its traceback.
    """

    def __init__(self) -> None:
        super().__init__(capacity=10**6, flushLevel=logging.CRITICAL + 1)

    def __enter__(self) -> "RunLog":
        logging.getLogger().addHandler(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.write("".join(traceback.format_exception(error)))
        logging.getLogger().removeHandler(self)
        file = self.target
        self.close()
        if file is not None:
            file.close()

    def open(self, folder: Path) -> None:
        """Write what was kept, and from now on every line, to the end of the folder's file."""
        file = logging.FileHandler(folder / "train.log", encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        self.setTarget(file)
        self.flush()
        self.capacity = 1

    def write(self, text: str) -> None:
        """Add a line to the file that no logger says."""
        self.handle(logging.makeLogRecord({"msg": text, "levelno": logging.INFO}))


def quiet_lightning() -> None:
    """Leave out Lightning's advertisements and the warnings that do not concern us.

    Figures are reduced over processes before they are logged, so that `sync_dist` is not wanted.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (".*sync_dist=True.*", ".*treespec, LeafSpec.*", ".*does not have many workers.*"):
        warnings.filterwarnings("ignore", message)


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees for what it takes next, where the C library is glibc.

    By default glibc returns the large arrays of a step to the system, and the next step takes them anew page by page:
    a tenth of the time of a small model on the CPU (``docs/performance.md``).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def known_end(error: BaseException) -> str | None:
    """One line about an error that is no fault of the program: no memory is left, or a process is gone.

    None for any other error, whose traceback should be shown.
    """
    text = str(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in text:
        return "not enough memory; take a smaller --batch_size or --clip_len, or fewer sessions"
    if isinstance(error, torch.distributed.DistError) or any(sign in text for sign in _GONE):
        return f"another process of the run is gone, see its own message ({text.splitlines()[0][:200]})"
    return None


_GONE = ("Connection closed by peer", "Connection reset by peer", "Socket closed", "Timed out waiting")  # gloo's words
