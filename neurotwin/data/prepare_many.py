"""Sessions prepared before a run starts: in several processes, and on several machines that each take a share.

All write to the same cache. A prepared file gets its name when it is whole, and its name says what it was made from, so
that nothing is locked: who comes late finds the file, and two who make the same one write the same bytes.
"""

import multiprocessing
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from ..config import DatasetConfig
from ..errors import UserError
from .prepare import prepare_session
from .progress import ProgressDisplay
from .session import SessionError

__all__ = ["PreparedSession", "parse_shard", "prepare_many", "share_of"]


@dataclass(frozen=True)
class PreparedSession:
    """What became of one session: `fault` says in one line why it could not be prepared; None where it was."""

    name: str
    fault: str | None = None


def prepare_many(
    configs: Sequence[DatasetConfig], *, jobs: int = 1, cache_dir: str | Path | None = None, dtype: str = "uint8"
) -> list[PreparedSession]:
    """Prepare sessions so that a run which uses them only maps files; one that fails does not stop the others.

    Parameters
    ----------
    configs
        Of the sessions.
    jobs
        Number of processes.
    cache_dir, dtype
        See :func:`~neurotwin.data.prepare.prepare_session`; they must be those of the run.

    Returns
    -------
    list of PreparedSession
        One for each config, in their order.
    """
    found: dict[int, PreparedSession] = {}
    with ProgressDisplay("preparing") as display:
        for number, (index, outcome) in enumerate(_outcomes(configs, jobs, cache_dir, dtype)):
            found[index] = outcome
            if outcome.fault is None:
                display.say(f"{outcome.name}: prepared")
            display.update((number + 1) / len(configs), f"{number + 1} of {len(configs)}")
    return [found[index] for index in range(len(configs))]


def share_of(configs: Sequence[DatasetConfig], shard: tuple[int, int]) -> list[DatasetConfig]:
    """The sessions of one of several jobs: every n-th, from the i-th on. Shares are disjoint and together all.

    Examples
    --------
    >>> [share_of("abcde", (i, 2)) for i in (1, 2)]
    [['a', 'c', 'e'], ['b', 'd']]
    """
    index, number = shard
    return list(configs[index - 1 :: number])


def parse_shard(text: str) -> tuple[int, int]:
    """The job i of n from the text ``i/n``, counted from 1.

    Raises
    ------
    SessionError
        If it is of another form, or there is no such job.

    Examples
    --------
    >>> parse_shard("2/8")
    (2, 8)
    """
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise SessionError(f"--shard {text:.40}: give i/n with i from 1 to n, such as 1/8 for the first of eight jobs")
    return int(match[1]), int(match[2])


def _outcomes(
    configs: Sequence[DatasetConfig], jobs: int, cache_dir: str | Path | None, dtype: str
) -> Iterator[tuple[int, PreparedSession]]:
    """Index and outcome of each session, as they end."""
    if jobs == 1 or len(configs) < 2:
        for index, config in enumerate(configs):
            yield index, _prepare(config, cache_dir, dtype)
        return
    # Started from nothing, since threads that torch or a reader has started do not survive a fork.
    with ProcessPoolExecutor(min(jobs, len(configs)), multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(_prepare, config, cache_dir, dtype): index for index, config in enumerate(configs)}
        for future in as_completed(futures):
            index = futures[future]
            try:
                yield index, future.result()
            except BrokenProcessPool:
                fault = "the process that prepared it, or one beside it, was ended (no memory?); take fewer --jobs"
                yield index, PreparedSession(configs[index].session, fault)


def _prepare(config: DatasetConfig, cache_dir: str | Path | None, dtype: str) -> PreparedSession:
    try:
        prepare_session(config, cache_dir=cache_dir, dtype=dtype)
    except (UserError, OSError) as error:
        return PreparedSession(config.session, " ".join(str(error).split()))
    return PreparedSession(config.session)
