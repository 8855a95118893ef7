"""The command `neurotwin completion`."""

import argparse
import sys
from collections.abc import Iterator

from .. import cli
from ..errors import UserError

__all__ = ["add_arguments", "run"]

_SHELLS = ("bash", "zsh", "tcsh")


class CompletionError(UserError):
    """What makes completions is not installed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("shell", choices=_SHELLS, help="for example: neurotwin completion bash > ~/.neurotwin.bash")


def run(arguments: argparse.Namespace) -> int:
    """Print the completion script of a shell: commands, their options, choices, and files where a value is free."""
    try:
        import shtab
    except ImportError:
        raise CompletionError("completion needs the extra: pip install 'neurotwin[completion]'") from None
    parser = cli.make_parser()
    for action in _actions(parser):
        if action.choices is None and action.nargs != 0:
            action.complete = shtab.FILE
    sys.stdout.write(shtab.complete(parser, arguments.shell))
    return 0


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """The arguments of a parser and of the commands within it."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
        else:
            yield action
