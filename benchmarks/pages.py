"""Measured figures in pages of the documentation."""

from pathlib import Path

__all__ = ["write_between"]


def write_between(page: Path, begin: str, end: str, text: str) -> None:
    """Replace what stands between two marks of a page.

    Raises
    ------
    ValueError
        If the page does not hold the first mark once, and the other after it.
    """
    before, *rest = page.read_text(encoding="utf-8").split(begin)
    if len(rest) != 1 or end not in rest[0]:
        raise ValueError(f"{page}: has no place for what belongs between {begin.strip()} and {end.strip()}")
    page.write_text(before + begin + text + end + rest[0].partition(end)[2], encoding="utf-8")
