"""Pages that stand alone: one HTML file with its style, its tables and its pictures in it."""

import base64
import html
from collections.abc import Sequence

from matplotlib.figure import Figure

from .plots import png

__all__ = ["html_image", "html_table", "standalone_page"]


def standalone_page(title: str, parts: Sequence[str]) -> str:
    """A page from parts that are HTML already; the title is text."""
    return _PAGE.format(title=html.escape(title), style=_STYLE, body="\n".join(parts))


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
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin-top: 2rem }
.wide { overflow-x: auto }
.runs { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr)); gap: 0 2rem }
.runs > * { min-width: 0 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .55rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #ddd }
th:first-child, td:first-child { text-align: left }
th { border-bottom: 2px solid #222 }
img { max-width: 100%; height: auto }
pre { background: #f5f5f5; padding: .8rem; overflow-x: auto; font-size: 12px }
summary { cursor: pointer; color: #555 }
"""
