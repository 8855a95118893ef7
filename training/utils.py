"""Small helpers of the process that trains: what it prints, what it keeps of freed memory, how it may end."""

import ctypes
import logging
import sys
import warnings

import torch

__all__ = ["keep_freed_memory", "known_end", "quiet_lightning"]


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
