"""Completion, as bash itself gives it."""

import subprocess
import sys

import pytest

from neurotwin import __version__
from neurotwin.cli import COMMANDS, main

COMPLETE = """
source {script}
COMP_WORDS=({words}); COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
_shtab_neurotwin
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """What bash offers after some words, of which the last is not finished."""
    script = tmp_path_factory.mktemp("completion") / "neurotwin.bash"
    command = [sys.executable, "-m", "neurotwin", "completion", "bash"]
    script.write_text(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    def offered(words: str) -> set[str]:
        text = COMPLETE.format(script=script, words=words)
        return set(subprocess.run(["bash", "-c", text], capture_output=True, text=True).stdout.split())

    return offered


def test_commands_flags_and_choices_are_completed(complete):
    assert complete("neurotwin ''") >= set(COMMANDS)
    assert complete("neurotwin ru") == {"run-all"}
    assert complete("neurotwin train --enable_") == {"--enable_curriculum", "--enable_logging"}
    assert complete("neurotwin evaluate --split ''") == {"train", "val", "test"}


def test_without_the_package_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert "pip install 'neurotwin[completion]'" in capsys.readouterr().err


def test_the_version_is_printed(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0 and capsys.readouterr().out == f"neurotwin {__version__}\n"
