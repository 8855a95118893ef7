"""The documentation says what is so: references in step, links that lead somewhere, examples that run."""

import re
import runpy
from pathlib import Path

import pytest
import yaml

from neurotwin.config import ConfigError, load_dataset_configs, load_model_config, registry
from neurotwin.sweeps.space import load_sweep
from training.flags import FLAGS

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
BLOCK = re.compile(r"^```(\w+)(?: *(no-run))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
"""A fenced block: its language, `no-run` where it is not to be run, its text."""


def blocks(page: Path, language: str) -> list[str]:
    return [t for kind, mark, t in BLOCK.findall(page.read_text(encoding="utf-8")) if kind == language and not mark]


def ids(path: Path) -> str:
    return path.name


def test_config_reference_is_in_step() -> None:
    render = runpy.run_path(str(ROOT / "docs/make_config_reference.py"))["render"]
    written = (ROOT / "docs/config_reference.md").read_text(encoding="utf-8")
    assert written == render(), "run python docs/make_config_reference.py"


def test_the_page_of_metrics_is_in_step() -> None:
    render = runpy.run_path(str(ROOT / "docs/make_metrics_reference.py"))["render"]
    assert (ROOT / "docs/metrics.md").read_text(encoding="utf-8") == render(), "run docs/make_metrics_reference.py"


def test_the_page_of_shipped_models_is_in_step() -> None:
    render = runpy.run_path(str(ROOT / "docs/make_model_family.py"))["render"]
    assert (ROOT / "docs/model_family.md").read_text(encoding="utf-8") == render(), "run docs/make_model_family.py"


def test_figures_of_frontends_are_drawn_and_small() -> None:
    figures = runpy.run_path(str(ROOT / "docs/make_frontend_figures.py"))["FIGURES"]
    files = {path.stem: path for path in (ROOT / "docs/images").glob("frontend_*.png")}
    assert set(files) == set(figures)
    assert max(path.stat().st_size for path in files.values()) < 200_000
    for draw in figures.values():
        assert all(axes.has_data() for axes in draw().axes)


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith(("http:", "https:")):
            continue
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), f"{page.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w-]", "", heading.lower().replace(" ", "-")) for heading in headings}
            assert anchor in anchors, f"{page.name} links to {target}"


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "yaml")], ids=ids)
def test_yaml_examples_load(page: Path, tmp_path: Path) -> None:
    for number, text in enumerate(blocks(page, "yaml")):
        path = tmp_path / f"{number}.yaml"
        path.write_text(text, encoding="utf-8")
        data = yaml.safe_load(text)
        if "sessions" in data:  # a parent: its sessions need files
            for name in data["sessions"]:
                file = tmp_path / data.get("session_dir", ".") / f"{name}.yaml"
                file.parent.mkdir(exist_ok=True)
                file.touch()
        try:
            load_model_config(path)
        except ConfigError as as_model:
            try:
                assert load_dataset_configs(path)
            except ConfigError as as_dataset:
                try:
                    load_sweep(path)
                except ConfigError as as_sweep:
                    pytest.fail(f"{page.name}, block {number}:\n{as_model}\n{as_dataset}\n{as_sweep}")


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=ids)
def test_python_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The python blocks of a page, in order, as one script in an empty folder; what they register is forgotten."""
    definitions = {kind: dict(known) for kind, known in registry._DEFINITIONS.items()}
    monkeypatch.setattr(registry, "_DEFINITIONS", definitions)
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__example__"}
    for number, text in enumerate(blocks(page, "python")):
        exec(compile(text, f"{page.name}, block {number}", "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_files_and_flags_that_are_named_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    flags = {f"--{flag.name}" for flag in FLAGS}
    for block in re.findall(r"python training/train_ddp_multidataset.py(?:.*\\\n)*.*", text):
        assert set(re.findall(r"(?<!\S)--\w+", block)) <= flags, block
    for name in re.findall(r"`((?:neurotwin|training|experiments|configs|docs|scripts|tests)/[\w./]+\.\w+)`", text):
        assert (ROOT / name).exists(), f"{page.name} names {name}"


def test_readme_shows_every_file_of_the_packages() -> None:
    """The tree of the README, read by its indentation; a folder without lines of its own stands for all in it."""
    (tree,) = re.findall(r"^## Files\n\n```\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    shown, folders = set(), [""]
    for line in tree.splitlines():
        depth, name = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        folders = [*folders[: depth + 1], folders[depth] + name]
        shown.add(folders[-1])
    assert [name for name in shown if not (ROOT / name).exists()] == []
    whole = [name for name in shown if name.endswith("/") and sum(other.startswith(name) for other in shown) == 1]
    modules = {
        str(p.relative_to(ROOT)) for package in ("neurotwin", "training") for p in (ROOT / package).rglob("*.py")
    }
    missing = {name for name in modules - shown if not name.endswith("__init__.py")}
    assert sorted(name for name in missing if not any(name.startswith(folder) for folder in whole)) == []
