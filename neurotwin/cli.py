"""The command `neurotwin`: sessions in, tables out. Every mistake of a user ends with one line and exit code 2."""

import argparse
import importlib
import logging
import sys
from collections.abc import Container, Sequence
from typing import NoReturn

from . import __version__
from .errors import UserError

__all__ = ["COMMANDS", "USER_ERRORS", "main", "make_parser"]

USER_ERRORS = (UserError, OSError)
"""What a user can cause and cure: the message says how, so no traceback is shown."""

COMMANDS = {
    "new": "Make the folder of a project: a model file, dataset files and a script, to be changed for own data.",
    "simulate": "Write demo sessions with a known true rate.",
    "convert": "Write session files from recordings of other formats.",
    "inspect": "Show what is in a recording, or a model and its sessions, without training.",
    "audit": "Look for what would fool a model: leaks between parts, lost responses, drifting units, wrong clocks.",
    "prepare": "Prepare the sessions of a run beforehand, in as many processes or jobs of a cluster as wanted.",
    "train": "Train one model on many recording sessions.",
    "run-all": "Train several models on the same sessions and close with one table.",
    "evaluate": "Predict every session of a checkpoint and write the table of its units.",
    "ensemble": "Make one model of several: the mean of their rates, and how far they disagree.",
    "distil": "Train a compact twin on the rates of an ensemble, and compare the two unit by unit.",
    "experiment": "Put a question to a trained model: receptive fields, gratings, exciting stimuli, events.",
    "sweep": "Search for the best settings of a model and its training, with any number of workers.",
    "transfer": "Fit new recordings on the frozen core of a trained model.",
    "report": "Show the results of runs beside one another.",
    "card": "Write the model card of a run: data, scores with intervals, inputs, licence, commit.",
    "push": "Put a twin, with its card and golden predictions, where others pull it.",
    "pull": "Fetch a twin that was pushed, and compare its checksums.",
    "verify": "Say whether a twin still predicts what it predicted when it was pushed.",
    "compare": "Say whether two runs gave the same figures.",
    "schema": "Write the JSON Schemas of model and dataset files.",
    "completion": "Print what completes these commands in your shell.",
}
"""Every command with the line that the help says of it. Its code is the module of its name in `neurotwin.commands`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns
    -------
    int
        0 when done; 1 when `compare` or `verify` found a difference, `audit` a fault, `convert` could not convert one
        of several sources, or `run-all` train one of several models; 2 when something asked for is not possible; those
        of the training script from `train`.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    argv = list(sys.argv[1:] if argv is None else argv)
    arguments = make_parser(argv[:1]).parse_args(argv, argparse.Namespace(words=argv[1:]))
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
    parser.add_argument("--version", action="version", version=f"neurotwin {__version__}")
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
