"""Pages that stand alone: one HTML file with its style, its tables and its pictures in it."""

import base64
import html
from collections.abc import Sequence

from matplotlib.figure import Figure

from .plots import png

__all__ = ["html_image", "html_table", "standalone_page"]


def standalone_page(title: str, parts: Sequence[str], *, style: str = "", script: str = "") -> str:
    """A page from parts that are HTML already; the title is text. It follows the reader's choice of light or dark.

    Parameters
    ----------
    title
        Of the page, text.
    parts
        HTML.
    style, script
        Further rules, and what runs once the page has been read.
    """
    body = "\n".join([*parts, f"<script>{script}</script>" if script else ""])
    return _PAGE.format(title=html.escape(title), style=_STYLE + style, body=body.rstrip())


def html_image(figure: Figure, alt: str) -> str:
    """A figure as an image inside the page."""
    data = base64.b64encode(png(figure)).decode()
    return f'<p><img alt="{html.escape(alt)}" src="data:image/png;base64,{data}"></p>'


def html_table(rows: Sequence[dict[str, str]]) -> str:
    """Rows as a table, which scrolls where the page is too narrow for it.

    Examples
    --------
    >>> html_table([{"a": "1 < 2"}])
    '<div class="wide"><table><tr><th>a</th></tr><tr><td>1 &lt; 2</td></tr></table></div>'
    """
    head = "".join(f"<th>{html.escape(name)}</th>" for name in rows[0])
    body = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row.values()) + "</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""
_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #222; --muted: #5c5c5c; --rule: #ddd; --shade: #f4f5f7;
  --link: #0b5cad; --seen: #777; --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #b8568f; --c4: #b07a00;
  --c5: #3f8fc4 }
@media (prefers-color-scheme: dark) {
  :root { --paper: #16181b; --ink: #e6e6e6; --muted: #a8adb3; --rule: #3a3e44; --shade: #22262b; --link: #7db8f0;
    --seen: #9aa0a6; --c0: #56b4e9; --c1: #f28e3d; --c2: #2fc79a; --c3: #e39ac6; --c4: #e6b422; --c5: #8fd0f5 } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 60rem;
  margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.2rem; margin-top: 2rem } h3 { font-size: 1.05rem; margin-top: 1.5rem }
h1, h2, h3, h4, p, li, summary { overflow-wrap: anywhere }
.wide { overflow-x: auto }
.runs { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr)); gap: 0 2rem }
.runs > * { min-width: 0 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .55rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--rule) }
th:first-child, td:first-child { text-align: left }
th { border-bottom: 2px solid var(--ink) }
img { max-width: 100%; height: auto; background: #fff }
pre { background: var(--shade); padding: .8rem; overflow-x: auto; font-size: 12px }
summary { cursor: pointer; color: var(--muted) }
"""
