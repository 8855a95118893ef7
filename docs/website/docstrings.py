"""Docstrings in the dialect of Sphinx, as the Markdown that MkDocs reads: roles, formulas and literal blocks."""

import re
import textwrap
from typing import Any

import griffe

__all__ = ["Docstrings", "as_markdown"]

ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc|obj):`(~?)([\w.]+)`")
MATH = re.compile(r":math:`([^`]+)`")
BLOCK = re.compile(r"^([ ]*)\.\. math::[ ]*(\S[^\n]*)?\n((?:[ ]*\n|\1[ ]+\S[^\n]*\n?)*)", re.MULTILINE)
LITERAL = re.compile(r"^([ ]*)(\S.*?)[ ]*::\n\n((?:\1[ ]+\S.*(?:\n|$)|[ ]*\n)+)", re.MULTILINE)
DOCTEST = re.compile(r"^([ ]*)>>> .*\n?(?:\1\S.*(?:\n|$))*", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Translates the docstring of every object."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Translate one."""
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(text: str) -> str:
    r"""A docstring whose roles are links, whose formulas stand in \(...\), and whose literal blocks are fenced.

    Examples
    --------
    >>> as_markdown("See :func:`~neurotwin.data.prepare.prepare` and :meth:`run`: :math:`r = e`.")
    'See [`prepare`][neurotwin.data.prepare.prepare] and `run`: \\(r = e\\).'
    """
    if "Examples\n---" not in text:  # else they are found by the reader of the dialect
        text = DOCTEST.sub(lambda m: textwrap.indent(f"```pycon\n{textwrap.dedent(m[0]).rstrip()}\n```\n", m[1]), text)
    text = LITERAL.sub(_literal, text)
    text = BLOCK.sub(lambda m: f"{m[1]}\\[{' '.join(f'{m[2] or str()} {m[3]}'.split())}\\]\n\n", text)
    text = MATH.sub(lambda m: rf"\({m[1]}\)", text)
    text = re.sub(r"(?<!`)``([^`]+)``(?!`)", r"`\1`", text)
    return ROLE.sub(_link, text)


def _literal(found: re.Match) -> str:
    block = textwrap.indent(f"```python\n{textwrap.dedent(found[3]).strip()}\n```", found[1])
    return f"{found[1]}{found[2]}:\n\n{block}\n\n"


def _link(found: re.Match) -> str:
    short, name = found[1], found[2]
    if not name.startswith(("neurotwin.", "training.")):
        return f"`{name}`"
    return f"[`{name.rpartition('.')[2] if short else name}`][{name}]"
