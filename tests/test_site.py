"""The site is made from `docs/`, whole and without a network; links of all pages lead somewhere."""

import re
import runpy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HOOK = runpy.run_path(str(ROOT / "scripts/site_hook.py"))
PAGES = [ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*/*.md"))]
"""Pages that tests/test_docs.py does not look at."""


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith(("http:", "https:")):
            continue
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), f"{page.name} links to {target}"
        headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE) if anchor else []
        anchors = {re.sub(r"[^\w-]", "", heading.lower().replace(" ", "-")) for heading in headings}
        assert not anchor or anchor in anchors, f"{page.name} links to {target}"


def test_cells_become_text_and_code() -> None:
    page = HOOK["cells_to_markdown"]("# %% [markdown]\n# # Title\n#\n# Text.\n\n# %%\n# a comment\nx = 1\n")
    assert page == "# Title\n\nText.\n\n```python\n# a comment\nx = 1\n```\n"


def test_links_that_leave_the_site_become_text() -> None:
    docs = ROOT / "docs"
    text = "[a](../README.md) [b](own_data.md#train) [c](gallery/training.py) [d](https://e.org) `[a](../README.md)`"
    found = HOOK["without_links_that_leave"](text, docs / "x.md", docs)
    assert found == "a [b](own_data.md#train) [c](gallery/training.md) [d](https://e.org) `[a](../README.md)`"


@pytest.mark.slow
@pytest.mark.skipif(find_spec("mkdocs") is None, reason="needs the extra docs")
def test_the_site_builds_and_needs_no_network(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    pages = {
        path.relative_to(tmp_path).as_posix(): path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.html")
    }
    assert "simulate_session" in pages["gallery/training.html"] and "Session" in pages["api.html"]
    assert (tmp_path / "search/search_index.json").stat().st_size > 100_000
    for name, page in pages.items():
        loaded = re.findall(r"<(?:script|img|iframe)[^>]*\ssrc=\"?(https?:[^\"\s>]*)", page)
        loaded += [tag for tag in re.findall(r"<link[^>]*>", page) if "stylesheet" in tag and "http" in tag]
        assert not loaded, f"{name} loads {loaded}"
