"""What `mkdocs build` does beyond copying `docs/`: pages of the gallery, and links that leave the site."""

import re
from pathlib import Path
from typing import Any

__all__ = ["cells_to_markdown", "on_files", "on_page_markdown", "without_links_that_leave"]

_CELL = re.compile(r"^# %%(?P<markdown> \[markdown\])?$", re.MULTILINE)
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)")
_CODE = re.compile(r"(^```.*?^```$|`[^`\n]+`)", re.MULTILINE | re.DOTALL)


def cells_to_markdown(source: str) -> str:
    """A script of `# %%` cells as a page: text of the cells marked [markdown], the others as code."""
    _, *parts = _CELL.split(source)
    page = []
    for marked, cell in zip(parts[::2], parts[1::2], strict=True):
        if marked:
            page.append(re.sub(r"^# ?", "", cell.strip(), flags=re.MULTILINE))
        else:
            page.append(f"```python\n{cell.strip()}\n```")
    return "\n\n".join(page) + "\n"


def without_links_that_leave(text: str, page: Path, docs: Path) -> str:
    """Links to files outside of the site as plain text; those to scripts of the gallery lead to their pages."""

    def replace(link: re.Match[str]) -> str:
        name, target = link.groups()
        if target.startswith(("http:", "https:", "#")):
            return link[0]
        path = (page.parent / target.partition("#")[0]).resolve()
        if path.parent == docs / "gallery" and path.suffix == ".py":
            return f"[{name}]({target.removesuffix('.py')}.md)"
        return link[0] if path.is_relative_to(docs) and not path.is_dir() and path.suffix != ".py" else name

    pieces = _CODE.split(text)
    return "".join(piece if index % 2 else _LINK.sub(replace, piece) for index, piece in enumerate(pieces))


def on_files(files: Any, config: Any) -> Any:
    """Add one page for each script of the gallery; scripts themselves stay out of the site."""
    from mkdocs.structure.files import File

    for file in list(files):
        if file.src_uri.endswith(".py"):
            files.remove(file)
    for path in sorted((Path(config.docs_dir) / "gallery").glob("*.py")):
        page = cells_to_markdown(path.read_text(encoding="utf-8"))
        files.append(File.generated(config, f"gallery/{path.stem}.md", content=page))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Take out links that leave the site, and marks of code blocks that are for the tests."""
    docs = Path(config.docs_dir).resolve()
    if page.file.abs_src_path is None or page.file.generated_by:
        return markdown  # a page of the gallery, which has neither
    markdown = re.sub(r"^(```\w+) *no-run$", r"\1", markdown, flags=re.MULTILINE)
    return without_links_that_leave(markdown, Path(page.file.abs_src_path).resolve(), docs)
