"""The command `neurotwin`: sessions in, tables out. Every mistake of a user ends with one line and exit code 2."""

import argparse
import importlib
import logging
import sys
from collections.abc import Container, Sequence
from typing import NoReturn

from .errors import UserError

__all__ = ["COMMANDS", "USER_ERRORS", "main", "make_parser"]

USER_ERRORS = (UserError, OSError)
"""What a user can cause and cure: the message says how, so no traceback is shown."""

COMMANDS = {
    "simulate": "Write demo sessions with a known true rate.",
    "convert": "Write session files from recordings of other formats.",
    "inspect": "Show what is in a recording, or a model and its sessions, without training.",
    "audit": "Look for what would fool a model: leaks between parts, lost responses, drifting units, wrong clocks.",
    "evaluate": "Predict every session of a checkpoint and write the table of its units.",
    "experiment": "Put a question to a trained model: receptive fields, gratings, exciting stimuli, events.",
    "transfer": "Fit new recordings on the frozen core of a trained model.",
    "report": "Show the results of runs beside one another.",
    "compare": "Say whether two runs gave the same figures.",
    "schema": "Write the JSON Schemas of model and dataset files.",
}
"""Every command with the line that the help says of it. Its code is the module of its name in `neurotwin.commands`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns
    -------
    int
        0 when done; 1 when `compare` found a difference, `audit` a fault, or `convert` could not convert one of several
        sources; 2 when something asked for is not possible.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    argv = list(sys.argv[1:] if argv is None else argv)
    arguments = make_parser(argv[:1]).parse_args(argv)
    try:
        return arguments.run(arguments)
    except USER_ERRORS as error:
        print(f"neurotwin: {'; '.join(str(error).splitlines())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def make_parser(names: Container[str] = tuple(COMMANDS)) -> argparse.ArgumentParser:
    """The parser of the command line.

    Parameters
    ----------
    names
        The commands whose arguments it knows. It names the others without importing their code, which keeps the start
        quick.
    """
    parser = _OneLineParser(prog="neurotwin", description="Digital twins of visual neurons.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        if name in names:
            module = importlib.import_module(f"neurotwin.commands.{name.replace('-', '_')}")
            module.add_arguments(sub)
            sub.set_defaults(run=module.run)
    return parser


class _OneLineParser(argparse.ArgumentParser):
    """A parser whose errors are one line, like all others of the command."""

    def error(self, message: str) -> NoReturn:
        message = " ".join(message.split())
        message = message if len(message) <= 300 else f"{message[:300]}..."
        self.exit(2, f"neurotwin: {message}; see {self.prog} --help\n")


if __name__ == "__main__":
    sys.exit(main())
