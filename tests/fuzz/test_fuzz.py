"""A part of the fuzzing in every run of the suite, and all of it where slow tests are wanted."""

import importlib
import logging
import random
import signal
from types import ModuleType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neurotwin.config import KINDS as REGISTRY
from neurotwin.config import json_schemas, registered
from neurotwin.config.part import params_of

HEADINGS = (
    "model files", "dataset files", "flags of the training script", "command lines of `neurotwin`", "recordings",
    "arrays to predict", "damaged files",
)  # fmt: skip
IN_FILES = (
    "adapter", "frontend", "convnet", "modulator", "recurrent", "readout", "shifter", "history_encoder", "link",
    "likelihood", "transform", "filter",
)  # fmt: skip
"""Kinds of the registry whose parameters are keys of files."""


@pytest.fixture(scope="module")
def fuzz(pytestconfig) -> ModuleType:
    """The command, as a module; the benchmarks are no installed package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(pytestconfig.rootpath)
        return importlib.import_module("benchmarks.fuzz")


@pytest.fixture(scope="module")
def files(pytestconfig) -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(pytestconfig.rootpath)
        return importlib.import_module("benchmarks.fuzz_files")


@pytest.fixture(scope="module")
def lab(fuzz, tmp_path_factory):
    return fuzz.Lab(tmp_path_factory.mktemp("fuzz"))


@pytest.fixture(autouse=True)
def quiet(handlers):
    """Commands say much of what they refuse."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("kind", HEADINGS)
def test_tries_end_as_they_should(kind, fuzz, lab):
    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(generator=st.randoms(use_true_random=False))
    def check(generator: random.Random) -> None:
        for source in lab.files.values():
            source.tried.clear()  # what is drawn follows from the generator alone
        outcome, text = fuzz.one_try(kind, lab, generator)
        assert outcome in ("accepted", "refused"), text

    check()


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", HEADINGS)
def test_many_tries_end_as_they_should(kind, fuzz, lab):
    faults: list[str] = []
    counts = fuzz.try_many(kind, 700, 1, lab, faults.append)
    assert not faults
    assert counts["accepted"] > 20 and counts["refused"] > 20, "tries that all end alike show little"


def test_the_kinds_are_all_tried(fuzz):
    assert tuple(fuzz.KINDS) == HEADINGS


def test_a_key_that_is_added_is_tried(files):
    """Every parameter of every definition that files can name is among the keys that are drawn, and so is damaged."""
    drawn = {kind: files.SchemaFiles(kind) for kind in ("model", "dataset")}
    known = set().union(*(files.keys_of(schema) for schema in json_schemas().values()))
    for kind in IN_FILES:
        assert kind in REGISTRY
        for name in registered(kind):
            fields = params_of(kind, name).model_fields
            assert {field.alias or key for key, field in fields.items()} <= known, (kind, name)
    seen: set[str] = set()
    for kind, source in drawn.items():
        generator = random.Random(0)
        for _ in range(9000):
            seen |= keys_in(source.instance(source.schema, generator))
        missing = files.keys_of(source.schema) - seen
        assert not missing, f"{kind} files never have {sorted(missing)}"


def keys_in(value) -> set[str]:
    if isinstance(value, list):
        return set().union(*map(keys_in, value))
    if not isinstance(value, dict):
        return set()
    return {key for key in value if isinstance(key, str)}.union(*map(keys_in, value.values()))


class Planned:
    """A kind of try that ends as the test says."""

    def __init__(self, end) -> None:
        self.end = end

    def __call__(self, lab, generator):
        def attempt():
            if isinstance(self.end, BaseException):
                raise self.end
            return self.end

        return "planned", attempt


@pytest.mark.parametrize(
    ("end", "outcome"),
    [
        (None, "accepted"),
        ("rates are negative", "wrong"),
        (KeyError("x"), "traceback"),
        (RecursionError("deep"), "traceback"),
        (MemoryError(), "traceback"),
        (SystemExit(1), "traceback"),
        (FileNotFoundError("no such file"), "refused"),
        (FileNotFoundError("two\nlines"), "wrong"),
        (FileNotFoundError(" "), "wrong"),
    ],
)
def test_every_end_is_told_apart(end, outcome, fuzz, monkeypatch):
    monkeypatch.setitem(fuzz.KINDS, "planned", Planned(end))
    assert fuzz.one_try("planned", None, random.Random(0))[0] == outcome


def test_counts_are_written_between_the_marks(fuzz, tmp_path, monkeypatch, capsys):
    docs = tmp_path / "reliability.md"
    docs.write_text("before\n\n" + "\nold\n".join(fuzz._MARKS) + "\nafter\n")
    monkeypatch.setattr(fuzz, "DOCS", docs)
    assert fuzz.main(["--kinds", "recordings", "--seed", "3", "--tries", "3", "--write-docs"]) == 0
    logging.disable(logging.NOTSET)
    text = docs.read_text()
    assert "| **all** | 3 |" in text and "old" not in text and text.startswith("before") and text.endswith("after\n")
    monkeypatch.setitem(fuzz.KINDS, "recordings", Planned("wrong"))
    assert fuzz.main(["--tries", "2", "--kinds", "recordings"]) == 1
    assert "recordings, seed 0, try 1: wrong: planned: wrong" in capsys.readouterr().out


def test_the_reliability_page_has_the_table(fuzz, pytestconfig):
    text = (pytestconfig.rootpath / "docs/reliability.md").read_text(encoding="utf-8")
    _, _, rest = text.partition(fuzz._MARKS[0])
    table, end, _ = rest.partition(fuzz._MARKS[1])
    rows = [line.strip("| ").split(" | ") for line in table.strip().splitlines()[2:]]
    assert end and [row[0] for row in rows] == [*HEADINGS, "**all**"]
    assert int(rows[-1][1].replace(",", "")) >= 5000 and rows[-1][4] == rows[-1][5] == "0"


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="needs a system with alarms")
def test_what_takes_too_long_is_a_fault(fuzz, monkeypatch):
    monkeypatch.setattr(fuzz, "_LONGEST", 0.05)

    def endless():
        while True:
            pass

    monkeypatch.setitem(fuzz.KINDS, "planned", lambda lab, generator: ("planned", endless))
    outcome, text = fuzz.one_try("planned", None, random.Random(0))
    assert outcome == "traceback" and "HangError: still running" in text
