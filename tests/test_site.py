"""The site is made from `docs/`, whole and without a network; links of all pages lead somewhere."""

import json
import re
import runpy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import neurotwin

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*/*.md")),
    *sorted((ROOT / "docs/gallery").glob("*.py")), *sorted((ROOT / "zoo").rglob("README.md")),
]  # fmt: skip
"""Pages that tests/test_docs.py does not look at."""
needs_mkdocs = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("mkdocs", "material", "mkdocstrings", "griffe", "latex2mathml")),
    reason="needs the extra docs (pip install -c constraints.txt -e '.[docs]')",
)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http:", "https:")):
            continue
        path, _, anchor = target.partition("#")
        if page.suffix == ".py" and path.startswith(tuple(f"{other.stem}.md" for other in PAGES)):
            path = path.replace(".md", ".py")  # scripts link to the pages that the site makes of scripts
        linked = page.parent / path if path else page
        assert linked.exists(), f"{page.name} links to {target}"
        headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE) if anchor else []
        anchors = {re.sub(r"[^\w-]", "", heading.lower().replace(" ", "-")) for heading in headings}
        assert not anchor or anchor in anchors, f"{page.name} links to {target}"


@needs_mkdocs
def test_docstrings_become_markdown() -> None:
    as_markdown = runpy.run_path(str(ROOT / "docs/website/docstrings.py"))["as_markdown"]
    cases = {
        "a :meth:`run` b": "a `run` b",
        ":class:`~neurotwin.clip.Clip`": "[`Clip`][neurotwin.clip.Clip]",
        ":mod:`training.flags`": "[`training.flags`][training.flags]",
        "of :math:`r = e/a`": r"of \(r = e/a\)",
        "``x``, `y`": "`x`, `y`",
        ".. math:: a = b\n\nText": "\\[a = b\\]\n\nText",
        ".. math::\n    a\n    = b\n\nText": "\\[a = b\\]\n\nText",
        "It is ::\n\n    a = b\n\nText": "It is:\n\n```python\na = b\n```\n\nText",
        "Text.\n\n>>> [1]\n[1]\n": "Text.\n\n```pycon\n>>> [1]\n[1]\n```\n",
        "Examples\n--------\n>>> 1\n1\n": "Examples\n--------\n>>> 1\n1\n",
    }
    assert {text: as_markdown(text) for text in cases} == cases


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as docs/build.sh builds it, but without running the gallery, which tests/test_gallery.py does."""
    folder = tmp_path_factory.mktemp("site") / neurotwin.__version__
    # Not --quiet: it hides warnings from --strict as well.
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {"GALLERY": "no", "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=280, env=environment)
    assert done.returncode == 0, done.stderr
    return folder


@needs_mkdocs
@pytest.mark.slow
def test_the_site_has_every_page_and_every_public_name(site: Path) -> None:
    pages = {path.relative_to(site).as_posix(): path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    for path in (ROOT / "docs").rglob("*.md"):
        name = path.relative_to(ROOT / "docs").with_suffix(".html").as_posix().replace("README", "index")
        assert name in pages, f"{path} has no page"
    assert 'id="neurotwin.models.twin.TwinModel.predict"' in pages["api/neurotwin.models.html"]
    assert 'id="neurotwin.data.formats.nwb.NWB"' in pages["api/neurotwin.data.formats.nwb.html"]
    assert "<math" in pages["api/neurotwin.likelihoods.html"] and "arithmatex" not in "".join(pages.values())
    assert ":class:`" not in "".join(pages.values())
    assert "--enable_curriculum" in pages["commands.html"] and "simulate_session" in pages["gallery/training.html"]
    assert neurotwin.__version__ in re.search(r"<title>(.*?)</title>", pages["index.html"])[1]
    assert f'href="{site.name}/index.html"' in (site.parent / "index.html").read_text(encoding="utf-8")


@needs_mkdocs
@pytest.mark.slow
def test_links_of_the_site_lead_somewhere(site: Path) -> None:
    anchors = {path: set(re.findall(r'\sid="?([^"\s>]+)', path.read_text())) for path in site.rglob("*.html")}
    del anchors[site / "404.html"]  # its links are those of a server's root
    for path in anchors:
        for link in re.findall(r'<a[^>]*\shref="?([^"\s>]+)', path.read_text(encoding="utf-8")):
            target, _, anchor = link.partition("#")
            if target.startswith(("http", "mailto:")) or link == "#":
                continue
            linked = (path.parent / target).resolve() if target not in ("", ".") else path
            assert linked.exists(), f"{path.name} links to {link}"
            assert not anchor or anchor in anchors[linked] or "__" in anchor, f"{path.name} links to {link}"


@needs_mkdocs
@pytest.mark.slow
@pytest.mark.parametrize("width", (400, 1400))
def test_the_site_is_searched_from_the_disk_and_asks_no_server(site: Path, chromium: Any, width: int) -> None:
    wait = pytest.importorskip("selenium.webdriver.support.wait")
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    for page in ("experiments.html", "api/neurotwin.models.html", "index.html"):
        chromium.get(f"file://{site / page}")
        assert chromium.execute_script("return document.documentElement.scrollWidth") <= width, page
    chromium.execute_script("document.querySelector('label[for=__search]').click()")
    box = chromium.find_element("css selector", "input.md-search__input")
    chromium.execute_script("arguments[0].focus()", box)
    box.send_keys("leave frames out")
    found = wait.WebDriverWait(chromium, 60).until(
        lambda one: one.find_elements("css selector", "a.md-search-result__link")
    )
    assert all((site / link.get_attribute("href").split(f"{site}/")[1].split("?")[0]).exists() for link in found)
    assert [entry for entry in chromium.get_log("browser") if entry["level"] != "DEBUG"] == []
    events = [json.loads(entry["message"])["message"] for entry in chromium.get_log("performance")]
    asked = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
    assert not [url for url in asked if not url.startswith(("file:", "data:"))]
