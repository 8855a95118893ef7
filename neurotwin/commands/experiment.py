"""The command `neurotwin experiment`: a question to a trained model, from the command line."""

import argparse
import logging
from pathlib import Path

import yaml

from ..config import registered
from ..config.locate import moved
from ..data.prepare import prepare
from ..data.progress import session_progress
from ..data.remote import cached
from ..experiments import ExperimentError, options_of
from ..models import load_twin
from .arguments import add_device, add_moved_data

__all__ = ["add_arguments", "run"]

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command; its help lists every experiment with its options."""
    parser.formatter_class, parser.epilog = argparse.RawDescriptionHelpFormatter, _experiments_help()
    parser.add_argument("name", choices=list(registered("experiment")), metavar="NAME", help="see below")
    parser.add_argument("checkpoint", help="run folder, training checkpoint (.ckpt) or saved model (.safetensors)")
    parser.add_argument("--output", metavar="DIR", help="folder of the result; default: beside the checkpoint")
    parser.add_argument(
        "--options", nargs="+", default=[], metavar="KEY=VALUE", help="of the experiment; values are YAML"
    )
    parser.add_argument("--sessions", nargs="+", metavar="NAME", help="default: all that the model knows")
    parser.add_argument(
        "--behavior", default="median", help="held at: median (of training), zeros, or K numbers: 0.1,0.2"
    )
    add_moved_data(parser)
    add_device(parser)


def run(arguments: argparse.Namespace) -> int:
    """Do what the arguments ask for, unless that has been done, and print the folder of the result.

    Raises
    ------
    ExperimentError
        If it is not possible.
    """
    options = options_of(arguments.name, dict(_option(text) for text in arguments.options))
    twin = load_twin(arguments.checkpoint).to(arguments.device)
    specs = [spec for spec in twin.sessions if not arguments.sessions or spec.name in arguments.sessions]
    configs = [moved(spec.config, arguments.data_dir) for spec in specs]
    # Without the recordings an experiment is possible as long as it does not need them; it says what it needs.
    there = [config for config in configs if cached(config.path)]
    for config in configs:
        if config not in there:
            logger.info("session %s: its recording is not at %s; going on without", config.session, config.path)
    with session_progress("preparing") as progress:
        prepared = prepare(there, progress=progress) if there else []
    behavior = arguments.behavior
    if behavior not in ("median", "zeros"):
        try:
            behavior = [float(value) for value in behavior.split(",")]
        except ValueError:
            raise ExperimentError(
                f"--behavior {behavior}: give median, zeros, or numbers separated by commas"
            ) from None
    checkpoint = Path(arguments.checkpoint)
    beside = checkpoint / arguments.name if checkpoint.is_dir() else checkpoint.with_suffix(f".{arguments.name}")
    folder = Path(arguments.output or beside)
    asked = {"sessions": arguments.sessions, "behavior": behavior}
    if options.is_done(folder, twin, prepared, **asked):
        logger.info("%s holds this result already", folder)
    else:
        result = options.run(twin, prepared, folder=folder, **asked)
        logger.info("%d rows of %d columns", *(lambda t: (len(t["unit_id"]), len(t)))(result.tables["units"]))
    print(folder)
    return 0


def _option(text: str) -> tuple[str, object]:
    key, equals, value = text.partition("=")
    try:
        if equals:
            return key, yaml.safe_load(value)
    except yaml.YAMLError:
        pass
    raise ExperimentError(f"--options {text}: write KEY=VALUE, the value as in YAML: contrast=0.5, units=[3,8]")


def _experiments_help() -> str:
    """Every experiment with its options, one line each."""
    lines = ["experiments and their options:"]
    for name, kind in registered("experiment").items():
        lines += ["", f"{name}: {kind.__doc__.strip().splitlines()[0]}"]
        for key, field in kind.model_fields.items():
            lines.append(f"  {key}={field.default}: {field.description}".replace("%", "%%"))
    return "\n".join(lines)
