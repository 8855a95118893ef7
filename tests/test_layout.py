"""The shape of the code: where things are, which way imports run, what is public, what is declared."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("neurotwin", "training")
    for path in sorted((ROOT / package).rglob("*.py"))
}
"""Every module of the two packages, by its dotted name."""
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}
LAYERS = (
    ("neurotwin.errors",),
    (
        "neurotwin.config", "neurotwin.files", "neurotwin.tensorfile", "neurotwin.checkpoint_file", "neurotwin.clip",
        "neurotwin.processes",
    ),
    ("neurotwin.links",),
    ("neurotwin.likelihoods",),
    ("neurotwin.metrics",),
    ("neurotwin.data",),
    ("neurotwin.models",),
    ("neurotwin.analysis",),
    ("neurotwin.transfer",),
    ("neurotwin.experiments",),
    ("neurotwin.sweeps",),
    ("neurotwin.sharing",),
    ("neurotwin", "neurotwin.cli", "neurotwin.commands", "neurotwin.templates", "neurotwin.__main__", "training"),
)  # fmt: skip
"""Imports run from a later line to an earlier one, never back."""
OPTIONAL = {
    "pynwb", "h5py", "hdmf", "remfile", "wandb", "optuna", "pandas", "xarray", "shtab", "huggingface_hub",
    "fsspec", "filelock", "aiohttp",
}  # fmt: skip
"""Extras: imported where they are used, since they may be absent."""
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def layer(module: str) -> int:
    """Index of the most specific entry of LAYERS that holds a module."""
    found = [
        (len(head), index)
        for index, heads in enumerate(LAYERS)
        for head in heads
        if module == head or (module.startswith(f"{head}.") and head != "neurotwin")
    ]
    assert found, f"{module} belongs to no layer; see docs of LAYERS"
    return max(found)[1]


def imports(tree: ast.AST, module: str) -> Iterator[str]:
    """Absolute names of what a module imports; `from . import x` gives both the package and x."""
    package = module if FILES[module].name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            base = ".".join([*parts, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
            yield from (name if name in FILES else base for name in names)


def project_imports(module: str) -> set[str]:
    return {name for name in imports(TREES[module], module) if name in FILES}


def test_imports_run_one_way() -> None:
    backwards = [
        f"{module} imports {name}, which is above it"
        for module in FILES
        for name in sorted(project_imports(module))
        if layer(name) > layer(module)
    ]
    assert not backwards


def test_imports_form_no_cycle() -> None:
    # A package's __init__ gathers its modules; inside the package it is not to be imported from.
    TopologicalSorter({module: project_imports(module) - {module} for module in FILES}).prepare()


def test_the_library_knows_neither_lightning_nor_training() -> None:
    strangers = {"lightning", "pytorch_lightning", "training"}
    found = [
        f"{module} imports {name}"
        for module in FILES
        if module.startswith("neurotwin")
        for name in sorted(set(imports(TREES[module], module)))
        if name.split(".")[0] in strangers
    ]
    assert not found


def test_imports_stand_at_the_top() -> None:
    late = [
        f"{module} imports {name} inside a function; only optional packages may come late"
        for module in FILES
        for function in ast.walk(TREES[module])
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for name in imports(function, module)
        if name.split(".")[0] not in OPTIONAL
    ]
    assert not late


def test_no_path_hacks() -> None:
    pattern = re.compile(r"sys\.path|PYTHONPATH|site\.addsitedir")
    assert not [module for module, path in FILES.items() if pattern.search(path.read_text(encoding="utf-8"))]


def test_what_is_public_is_declared_and_documented() -> None:
    faults = [f"{module}{fault}" for module in FILES for fault in undocumented(module)]
    assert not faults


def undocumented(module: str) -> Iterator[str]:
    """What a module's public names lack."""
    loaded = importlib.import_module(module)
    if not loaded.__doc__:
        yield " has no docstring"
    if len(TREES[module].body) == 1:  # a package that gathers nothing
        return
    public = getattr(loaded, "__all__", None)
    if public is None:
        yield " has no __all__"
        return
    if len(set(public)) != len(public):
        yield ".__all__ names something twice"
    for name in public:
        thing = getattr(loaded, name)
        if (inspect.isclass(thing) or inspect.isfunction(thing)) and not thing.__doc__:
            yield f".{name} has no docstring"
        for key, value in vars(thing).items() if inspect.isclass(thing) else ():
            speaks = callable(value) or isinstance(value, property | classmethod | staticmethod)
            if speaks and not key.startswith("_") and not inspect.getdoc(getattr(thing, key)):
                yield f".{name}.{key} has no docstring"


def test_names_that_scripts_rely_on() -> None:
    promised = {
        "training": ["MultiDatasetModel", "MultiDatasetDM"],
        "training.pl_modules": ["MultiDatasetModel", "MultiDatasetDM"],
        "training.pl_modules.multidataset_model": ["MultiDatasetModel"],
        "training.pl_modules.multidataset_dm": ["MultiDatasetDM"],
        "training.callbacks": ["CurriculumCallback", "EpochHeartbeat", "Heartbeat", "TimeBudgetCallback"],
        "training.samplers": ["ContrastWeightedSampler"],
        "neurotwin": [
            "Session",
            "TwinModel",
            "SessionSpec",
            "Clip",
            "Sample",
            "Target",
            "load_twin",
            "load_model_config",
        ],
    }
    for module, names in promised.items():
        assert set(names) <= set(importlib.import_module(module).__all__), module


def declared() -> dict[str, list[Requirement]]:
    """Requirements of the project by extra; "" for what is always installed."""
    groups = {"": PROJECT["dependencies"]} | PROJECT["optional-dependencies"]
    return {extra: [Requirement(text) for text in texts] for extra, texts in groups.items()}


def test_every_import_is_declared() -> None:
    distributions = packages_distributions()
    known = {canonicalize_name(requirement.name) for group in declared().values() for requirement in group}
    known.add("pydantic-core")  # the other half of pydantic, whose errors are documented to come from there
    roots = {name.split(".")[0] for module in FILES for name in imports(TREES[module], module)}
    third_party = roots - set(sys.stdlib_module_names) - {"neurotwin", "training"}
    undeclared = {
        root for root in third_party if not {canonicalize_name(d) for d in distributions.get(root, [root])} & known
    }
    assert not undeclared, f"{undeclared} are imported but pyproject.toml does not ask for them"


def test_every_requirement_is_pinned() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    for group in declared().values():
        for requirement in group:
            version = pins.get(canonicalize_name(requirement.name))
            assert version, f"{requirement.name} is not pinned in constraints.txt"
            assert requirement.specifier.contains(version, prereleases=True), f"{requirement} is pinned to {version}"


def test_ruff() -> None:
    for command in (("check", "--no-cache"), ("format", "--check", "--no-cache")):
        done = subprocess.run([sys.executable, "-m", "ruff", *command, ROOT], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
