"""What the site has beside the pages of docs/: its start, reference, commands, gallery, files that are linked.

MkDocs calls the functions `on_...` while it builds. Pages are the same Markdown that people read in the repository, so
what the two understand differently is translated here: links out of docs/ get a page of the site, and the mark `no-run`
of a code block is taken away.
"""

import argparse
import ast
import html
import logging
import os
import posixpath
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import neurotwin  # noqa: E402
from docs.website.gallery import gallery_pages  # noqa: E402
from neurotwin.cli import COMMANDS, make_parser  # noqa: E402

HOME = {"README.md": "index.md"}
"""Files of the repository that have another name in the site."""
LEFT_OUT = {"commands", "templates"}
"""Packages without a page of their own: `commands` has that of the commands."""
LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s#]+)(#[^)\s]*)?(\))")
log = logging.getLogger("mkdocs.hooks")


def slug(title: str, separator: str = "-") -> str:
    """The anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w-]", "", title.lower().replace(" ", separator))


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Stamp the version, and name the pages that are made."""
    config.site_name = f"neurotwin {neurotwin.__version__}"
    sections = {name: pages for entry in config.nav for name, pages in entry.items()}
    sections["Gallery"] += [f"gallery/{path.stem}.md" for path in gallery()]
    sections["Reference"].append({"Python": [{name: f"api/{name}.md"} for name in packages()]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made, and one for every file outside of docs/ that a page links to."""
    made = {HOME.get(name, name): (ROOT / name).read_text(encoding="utf-8") for name in outside_pages()}
    made |= {f"api/{name}.md": api_page(name, modules) for name, modules in packages().items()}
    made |= {f"gallery/{name}.md": text for name, text in gallery_pages(gallery()).items()}
    made["commands.md"] = commands_page()
    linked = set()
    for name in outside_pages():
        linked |= links_of(made[HOME.get(name, name)], Path(name))
    for file in files.documentation_pages():
        linked |= links_of(file.content_string, Path("docs", file.src_uri))
    for path in sorted(linked):
        if page_of(path).startswith("files/"):
            made[page_of(path)] = file_page(path)
    for name, text in made.items():
        level = InclusionLevel.NOT_IN_NAV if name.startswith("files/") else InclusionLevel.UNDEFINED
        files.append(File.generated(config, name, content=text, inclusion=level))
    for name in ("website.css", "iframe-worker.js"):
        files.append(File.generated(config, name, abs_src_path=str(Path(__file__).with_name(name))))
    return files


def on_page_markdown(text: str, *, page: Any, **_: Any) -> str:
    """Links out of docs/ lead to their pages, and code blocks lose their marks for the tests."""
    name = page.file.src_uri
    home = next((outside for outside, inside in HOME.items() if inside == name), name)
    is_outside = home in outside_pages()
    place = Path(home) if is_outside else Path("docs", name)

    def moved(found: re.Match) -> str:
        path = target(found[2], place)
        if path is None:
            return found[0]
        inside = page_of(path)
        relative = posixpath.relpath(inside, posixpath.dirname(name) or ".")
        return f"{found[1]}{relative}{found[3] or ''}{found[4]}"

    if is_outside or page.file.abs_src_path is not None:  # not what is made here
        text = outside_code(text, lambda prose: LINK.sub(moved, prose))
    return re.sub(r"^```(\w+) +no-run$", r"```\1", text, flags=re.MULTILINE)


def on_page_content(content: str, **_: Any) -> str:
    """Write formulas as MathML, which browsers draw by themselves."""

    def drawn(found: re.Match) -> str:
        latex = html.unescape(found[2]).strip()[2:-2]
        return convert(latex, display="block" if found[1] == "div" else "inline")

    return re.sub(r'<(span|div) class="arithmatex">(.*?)</\1>', drawn, content, flags=re.DOTALL)


def on_post_build(config: MkDocsConfig) -> None:
    """Write the page beside this version that lists all versions, where the site is built as FOLDER/VERSION."""
    folder = Path(config.site_dir)
    if folder.name != neurotwin.__version__:
        return
    versions = sorted((path.parent.name for path in folder.parent.glob("*/index.html")), key=by_number, reverse=True)
    items = "".join(f'<li><a href="{name}/index.html">{name}</a></li>' for name in versions)
    head = '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    text = f"{head}<title>neurotwin</title><h1>Documentation of neurotwin, by version</h1><ul>{items}</ul></html>\n"
    (folder.parent / "index.html").write_text(text, encoding="utf-8")


# --------------------------------------------------------------------------------------------------------------------


def gallery() -> list[Path]:
    """The scripts of the gallery, in the order of its first page."""
    names = re.findall(r"\((\w+)\.py\)", (ROOT / "docs/gallery/README.md").read_text(encoding="utf-8"))
    return [Path("docs/gallery", f"{name}.py") for name in names]


def outside_pages() -> tuple[str, ...]:
    """Pages that lie in the root of the repository."""
    return ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")


@cache
def packages() -> dict[str, list[str]]:
    """The modules of every package, by its dotted name."""
    found = {}
    for root in ("neurotwin", "training"):
        for init in sorted((ROOT / root).rglob("__init__.py")):
            folder = init.parent
            if not LEFT_OUT & set(folder.parts):
                modules = sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("__"))
                name = ".".join(folder.relative_to(ROOT).parts)
                found[name] = [f"{name}.{module}" for module in modules if module != "cli"]
    return found


def api_page(package: str, modules: list[str]) -> str:
    """Everything public of a package, module by module."""
    tree = ast.parse((ROOT / package.replace(".", "/") / "__init__.py").read_text(encoding="utf-8"))
    own = [node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]  # not what it gathers
    members = [name for name in own if not name.startswith("_")] or "false"
    head = f"---\nsearch: {{boost: 0.5}}\n---\n\n::: {package}\n    options: {{members: {members}, heading_level: 1}}\n"
    return "\n".join([head, *(f"::: {module}\n" for module in modules)])


def commands_page() -> str:
    """The help of every command."""
    os.environ["COLUMNS"] = "100"
    parser = make_parser()
    commands = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction)).choices
    parts = ["# Commands", "What `neurotwin COMMAND --help` prints, for every command."]
    for name, text in COMMANDS.items():
        parts += [f"## neurotwin {name}", text, f"```text\n{commands[name].format_help()}```"]
    return "\n\n".join(parts)


def links_of(text: str, place: Path) -> set[Path]:
    """The files and folders outside of docs/ that a page links to, relative to the root."""
    found: set[Path] = set()

    def note(prose: str) -> str:
        found.update(path for _, link, _, _ in LINK.findall(prose) if (path := target(link, place)) is not None)
        return prose

    outside_code(text, note)
    return found


def target(link: str, place: Path) -> Path | None:
    """What a relative link leads to, relative to the root; None if MkDocs finds it by itself."""
    if "://" in link or link.startswith("mailto:"):
        return None
    path = Path(os.path.normpath(place.parent / link))
    is_inside = place.parts[0] == "docs" and path.parts[0] == "docs"
    return None if is_inside and (ROOT / path).is_file() and path.suffix != ".py" else path


def page_of(path: Path) -> str:
    """The page of the site that a file of the repository has."""
    if path in gallery():
        return f"gallery/{path.stem}.md"
    if path.parts[0] == "docs" and path.suffix in (".md", ".png"):
        return Path(*path.parts[1:]).as_posix()
    name = path.as_posix()
    return HOME.get(name, name) if name in outside_pages() else f"files/{name}.md"


def file_page(path: Path) -> str:
    """A page that shows a file, or lists a folder."""
    head = f"---\nsearch: {{exclude: true}}\n---\n\n# {path}\n\n"
    whole = ROOT / path
    if whole.is_dir():
        names = sorted(f"{p.relative_to(whole)}" for p in whole.rglob("*") if p.is_file() and p.suffix != ".pyc")
        return head + "A folder of the repository, with the files\n\n" + "\n".join(f"- `{name}`" for name in names)
    if not whole.is_file():
        log.warning("there is no %s, which a page links to", path)
        return head
    language = {".py": "python", ".yaml": "yaml", ".cff": "yaml", ".sh": "bash"}.get(path.suffix, "text")
    return f"{head}````{language}\n{whole.read_text(encoding='utf-8')}\n````\n"


def outside_code(text: str, change: Any) -> str:
    """A text whose parts outside of fenced blocks are changed."""
    parts = re.split(r"(^```.*?^```$)", text, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if index % 2 else change(part) for index, part in enumerate(parts))


def by_number(name: str) -> tuple:
    """A version as numbers, so that 0.10 is after 0.9."""
    return tuple(int(part) for part in re.findall(r"\d+", name))
