"""The faults that benchmarks/mutants.py plants: each can be planted, and whether tests notice is told rightly."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def mutants(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT)
    return importlib.import_module("benchmarks.mutants")


def test_no_entry_is_stale(mutants: ModuleType) -> None:
    assert len(mutants.MUTANTS) >= 45 and len(set(mutants.MUTANTS)) == len(mutants.MUTANTS)
    faults = [fault for mutant in mutants.MUTANTS if (fault := mutants.stale(mutant))]
    assert not faults
    assert not [mutant for mutant in mutants.MUTANTS if mutant.old == mutant.new]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tiny package of which the test looks at one of two functions."""
    root = tmp_path / "tree"
    root.mkdir()
    (root / "tiny.py").write_text("def plus(a, b):\n    return a + b\n\n\ndef minus(a, b):\n    return a - b\n")
    (root / "test_tiny.py").write_text("import tiny\n\n\ndef test_plus():\n    assert tiny.plus(3, 2) == 5\n")
    (root / "pyproject.toml").write_text("[tool.pytest.ini_options]\n")
    return root


def test_a_copy_is_whole_but_for_data_beside_the_code(mutants: ModuleType, tree: Path) -> None:
    for folder in ("data", "tests/data", ".git"):
        (tree / folder).mkdir(parents=True)
        (tree / folder / "test_tiny.py").write_text((tree / "test_tiny.py").read_text())
    entry = mutants.Mutant("tiny.py", "a + b", "a * b", ("tests/data/test_tiny.py",))
    assert mutants.run_mutants([entry], tree) == []
    with pytest.raises(RuntimeError, match="file or directory not found: data"):
        mutants.run_mutants([entry._replace(tests=("data/test_tiny.py",))], tree)


def test_what_no_test_notices_survives(mutants: ModuleType, tree: Path, monkeypatch, capsys) -> None:
    plus, minus = (mutants.Mutant("tiny.py", f"a {sign} b", "a * b", ("test_tiny.py",)) for sign in "+-")
    before = (tree / "tiny.py").read_text()
    assert mutants.run_mutants([plus, minus], tree) == [minus]
    assert (tree / "tiny.py").read_text() == before
    run = mutants.run_mutants
    monkeypatch.setattr(mutants, "run_mutants", lambda chosen: run(chosen, tree))
    for entries, code in (([plus, minus], 1), ([plus], 0)):
        monkeypatch.setattr(mutants, "MUTANTS", entries)
        assert mutants.main(["tiny"]) == code
        assert f"of {len(entries)} faults were noticed" in capsys.readouterr().out


def test_what_cannot_be_told_is_an_error(mutants: ModuleType, tree: Path) -> None:
    entry = mutants.Mutant("tiny.py", "a + b", "a * b", ("test_tiny.py",))
    for change, message in (
        ({"old": "return"}, "'return' occurs 2 times and not once"),
        ({"old": "a / b"}, "'a / b' occurs 0 times"),
        ({"file": "absent.py"}, "absent.py: no such file"),
        ({"tests": ("absent.py",)}, "no such tests: absent.py"),
    ):
        with pytest.raises(RuntimeError, match=message):
            mutants.run_mutants([entry._replace(**change)], tree)
    (tree / "test_tiny.py").write_text("def test_plus():\n    assert False\n")
    with pytest.raises(RuntimeError, match=r"test_tiny.py fail where nothing is broken"):
        mutants.run_mutants([entry], tree)
