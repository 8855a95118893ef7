"""Scripts of the gallery as pages: their text, their code, and below each cell what it printed and drew.

A script is cut at lines that start with `# %%`. A cell that is marked `[markdown]` is text, in comments; all others are
code. Editors and Jupytext know this form, so that the scripts run as they are and open as notebooks.
"""

import base64
import contextlib
import io
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt

__all__ = ["Cell", "cells", "gallery_pages", "run"]

ROOT = Path(__file__).parents[2]
_CELL = re.compile(r"^# %%(?P<markdown> \[markdown\])?$", re.MULTILINE)


@dataclass
class Cell:
    """A cell of a script.

    Attributes
    ----------
    source
        Its text, in Markdown, or its code.
    is_text
        Which of the two it is.
    line
        The line of the script in which it starts, from 1.
    printed
        What it printed, once it was run.
    images
        What it drew, as PNG files.
    """

    source: str
    is_text: bool
    line: int
    printed: str = ""
    images: list[bytes] = field(default_factory=list)


def cells(script: str) -> list[Cell]:
    """Cut a script into its cells.

    Examples
    --------
    >>> [(cell.source, cell.line) for cell in cells("# %% [markdown]\\n# Text.\\n\\n# %%\\nx = 1\\n")]
    [('Text.', 1), ('x = 1', 4)]
    """
    marks = list(_CELL.finditer(script))
    found = []
    for mark, stop in zip(marks, [*(mark.start() for mark in marks[1:]), len(script)], strict=True):
        source, is_text = script[mark.end() : stop].strip(), mark["markdown"] is not None
        if is_text:
            source = re.sub(r"^# ?", "", source, flags=re.MULTILINE)
        found.append(Cell(source, is_text, script.count("\n", 0, mark.start()) + 1))
    return found


def run(path: Path) -> tuple[list[Cell], dict[str, Any]]:
    """Run a script, cell by cell, in the working folder.

    Returns
    -------
    cells, namespace
        The cells with what they printed and drew, and the variables of the script at its end.
    """
    found = cells(path.read_text(encoding="utf-8"))
    namespace: dict[str, Any] = {"__name__": "__main__", "__file__": str(path)}
    with _drawing_to_files():
        for cell in found:
            if cell.is_text:
                continue
            code = "\n" * cell.line + cell.source  # so that an error names the line of the script
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(compile(code, str(path), "exec"), namespace)
            cell.printed = printed.getvalue()
            cell.images = [_png(number) for number in plt.get_fignums()]
            plt.close("all")
    return found, namespace


def gallery_pages(paths: Sequence[Path]) -> dict[str, str]:
    """The pages of scripts, in Markdown, by their names.

    The scripts run one after another in one folder, so that a later one may use what an earlier one wrote. With
    `GALLERY=no` in the environment they are not run, and their results are left out.
    """
    with _empty_folder():
        return {path.stem: _page(path) for path in paths}


# --------------------------------------------------------------------------------------------------------------------


def _page(path: Path) -> str:
    parts = []
    script = ROOT / path
    skipped = os.environ.get("GALLERY") == "no"
    for cell in cells(script.read_text(encoding="utf-8")) if skipped else run(script)[0]:
        parts.append(cell.source if cell.is_text else f"```python\n{cell.source}\n```")
        if cell.printed:
            parts.append(f"```{{ .text .output }}\n{cell.printed.rstrip()}\n```")
        parts += [f"![figure](data:image/png;base64,{base64.b64encode(image).decode()})" for image in cell.images]
    return "\n\n".join([*parts, f"*This page is the script `{path}`.*"]) + "\n"


def _png(number: int) -> bytes:
    buffer = io.BytesIO()
    plt.figure(number).savefig(buffer, format="png", dpi=100, bbox_inches="tight")
    return buffer.getvalue()


@contextmanager
def _drawing_to_files() -> Iterator[None]:
    backend = matplotlib.get_backend()
    plt.switch_backend("Agg")
    try:
        yield
    finally:
        plt.close("all")
        plt.switch_backend(backend)


@contextmanager
def _empty_folder() -> Iterator[None]:
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)
