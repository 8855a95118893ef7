"""Try what nobody should write, and count how it ends: the fuzzing of files, flags, recordings and damaged files.

    python -m benchmarks.fuzz --tries 5000 --write-docs

A try is right if it was accepted and does what it says, or was refused in exactly one line by an error that the
commands show without a traceback. Anything else is a fault, and is printed with the seed that makes it again.
"""

import argparse
import contextlib
import io
import logging
import signal
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.fuzz_cases import KINDS, Lab, Refused
from benchmarks.pages import write_between
from neurotwin.cli import USER_ERRORS
from neurotwin.config import ConfigError

__all__ = ["HangError", "Outcome", "main", "one_try", "tabulate", "try_many"]

DOCS = Path(__file__).parent.parent / "docs" / "reliability.md"
_MARKS = ("<!-- fuzzing: python -m benchmarks.fuzz --tries 5000 --write-docs -->", "<!-- end of fuzzing -->")
_LONGEST = 60  # s; a try that takes longer hangs, which counts as a traceback
_OUTCOMES = ("accepted", "refused", "traceback", "wrong")


class HangError(Exception):
    """A try takes far too long; not an error that any code under test handles."""


Outcome = tuple[str, str]
"""One of "accepted", "refused", "traceback" and "wrong"; and what was said."""


def one_try(kind: str, lab: Lab, random: Random) -> Outcome:
    """Make one try of a kind, and say how it ended."""
    what, attempt = KINDS[kind](lab, random)
    said = io.StringIO()
    try:
        with _limited(), warnings.catch_warnings(), contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            warnings.simplefilter("ignore")
            fault = attempt()
    except (Refused, *USER_ERRORS) as error:
        text = str(error)
        if isinstance(error, ConfigError):  # a line a mistake, which the commands put into one
            text = "; ".join(text.splitlines())
        wrong = not text.strip() or "\n" in text or len(text) > 5000
        return ("wrong", f"{what}: refused in other than one line: {text[:300]!r}") if wrong else ("refused", text)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return "traceback", f"{what}: {type(error).__name__}: {str(error)[:300]}"
    return ("accepted", what) if fault is None else ("wrong", f"{what}: {fault}")


def try_many(kind: str, tries: int, seed: int, lab: Lab, say: Callable[[str], None] = lambda _: None) -> Counter[str]:
    """Make tries of a kind; each has a generator of its own, so that one can be made again by its number."""
    counts: Counter[str] = Counter()
    for number in range(tries):
        outcome, text = one_try(kind, lab, Random(f"{kind} {seed} {number}"))
        counts[outcome] += 1
        if outcome in ("traceback", "wrong"):
            say(f"{kind}, seed {seed}, try {number}: {outcome}: {text}")
    return counts


def tabulate(counts: dict[str, Counter[str]]) -> str:
    """The counts as a markdown table, with their sum."""
    total = sum(counts.values(), Counter())
    lines = ["| what was tried | tries | refused in one line | accepted, and right | traceback | accepted, and wrong |"]
    lines.append("|:--|--:|--:|--:|--:|--:|")
    for name, row in [*counts.items(), ("**all**", total)]:
        cells = [row.total(), row["refused"], row["accepted"], row["traceback"], row["wrong"]]
        lines.append(f"| {name} | " + " | ".join(f"{cell:,}" for cell in cells) + " |")
    return "\n".join(lines)


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """Raise where a block takes far too long, on systems that can."""
    if not hasattr(signal, "SIGALRM"):
        yield
        return

    def stop(*_: Any) -> None:
        raise HangError(f"still running after {_LONGEST} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, _LONGEST)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def main(argv: Sequence[str] | None = None) -> int:
    """Make the tries; 1 where one of them ended in a fault."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tries", type=int, default=5000, help="in all, shared by the kinds (%(default)s)")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), help="default: all")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    parser.add_argument("--write-docs", action="store_true", help="write the counts to docs/reliability.md")
    arguments = parser.parse_args(argv)
    logging.disable(logging.CRITICAL)
    counts = {}
    with tempfile.TemporaryDirectory(prefix="fuzz_") as folder:
        lab = Lab(Path(folder))
        for index, kind in enumerate(arguments.kinds):
            tries = arguments.tries // len(arguments.kinds) + (index < arguments.tries % len(arguments.kinds))
            counts[kind] = try_many(kind, tries, arguments.seed, lab, lambda text: print(text, flush=True))
            print(f"{kind}: {dict(counts[kind])}", file=sys.stderr, flush=True)
    table = tabulate(counts)
    print(table)
    if arguments.write_docs:
        write_between(DOCS, *_MARKS, f"\n\n{table}\n\n")
    return int(any(row["traceback"] or row["wrong"] for row in counts.values()))


if __name__ == "__main__":
    sys.exit(main())
