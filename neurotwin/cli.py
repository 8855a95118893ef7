"""The command `neurotwin`: sessions in, tables out. Every mistake of a user ends with one line and exit code 2."""

import argparse
import json
import logging
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

from .analysis.audit import audit_configs, audit_html, audit_text
from .analysis.compare import compare
from .analysis.evaluate import evaluate
from .analysis.inspect import inspect_text
from .analysis.recording import recording_text, session_row
from .analysis.recording_page import recording_page
from .analysis.report import load_run, markdown_table, report_rows, summary_text, text_table
from .analysis.report_data import gather, stored
from .analysis.report_page import html_page
from .analysis.report_units import changes_text
from .checkpoint_file import CheckpointError, find_checkpoint
from .config import ConfigError, json_schemas, load_dataset_configs, load_model_config, noticing, registered
from .data.convert import convert_recordings, parse_options
from .data.formats import Format, find_format, nwb, read_session
from .data.prepare import prepare
from .data.session import SPLITS, Session, SessionError
from .data.simulate import DEMO_SESSIONS, make_demo_sessions
from .experiments import ExperimentError
from .experiments.command import add_experiment_arguments, run_experiment
from .files import write_text
from .metrics.table import EvaluationError
from .models import TwinModel, check_run, load_twin
from .tensorfile import TensorFileError

__all__ = ["USER_ERRORS", "main"]

USER_ERRORS = (ConfigError, SessionError, TensorFileError, CheckpointError, EvaluationError, ExperimentError, OSError)
"""What a user can cause and cure: the message says how, so no traceback is shown."""

logger = logging.getLogger(__name__)

_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
_ROLE = re.compile(r":[a-z]+:`~?(?:[a-z_]+[.])*")  # what docstrings put before the name of a class


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns
    -------
    int
        0 when done; 1 when `compare` found a difference, `audit` a fault, or `convert` could not convert one of several
        sources; 2 when something asked for is not possible.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    arguments = _parser().parse_args(argv)
    try:
        return arguments.command(arguments)
    except USER_ERRORS as error:
        print(f"neurotwin: {'; '.join(str(error).splitlines())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def simulate(arguments: argparse.Namespace) -> int:
    """Write demo sessions with a known true rate."""
    for path in make_demo_sessions(arguments.folder, arguments.sessions, seed=arguments.seed):
        print(path)
    return 0


def convert(arguments: argparse.Namespace) -> int:
    """Write session files from recordings of other formats."""
    options = _reader_options(arguments)
    outcomes = convert_recordings(
        arguments.sources, arguments.target, format=arguments.format or "", options=options, jobs=arguments.jobs,
        force=arguments.force,
    )  # fmt: skip
    failed = [outcome for outcome in outcomes if outcome.state == "failed"]
    if len(outcomes) == len(failed) == 1:
        raise SessionError(failed[0].text)
    for outcome in outcomes:
        if outcome.target is not None:
            print(outcome.target)
    if len(outcomes) > 1:
        logger.info("%d of %d sources are session files now", len(outcomes) - len(failed), len(outcomes))
    for outcome in failed:
        print(f"neurotwin: {outcome.text}", file=sys.stderr)
    return 1 if failed else 0


def inspect(arguments: argparse.Namespace) -> int:
    """Show what is in a recording, or a model and its sessions, without training."""
    if (arguments.recording is None) == (arguments.model_config is None):
        raise ConfigError("inspect: give a recording, or --model_config and --dataset_configs_path; one of the two")
    if arguments.recording is not None:
        return _inspect_recording(arguments)
    if arguments.dataset_configs_path is None:
        raise ConfigError("inspect: --model_config needs --dataset_configs_path")
    with noticing() as notices:
        config = load_model_config(arguments.model_config)
        datasets = load_dataset_configs(
            arguments.dataset_configs_path, data_dir=arguments.data_dir, max_datasets=arguments.max_datasets
        )
        check_run(config, datasets)
    sessions = prepare(datasets, progress=_progress)
    twin = TwinModel(config, [session.spec for session in sessions])
    print(inspect_text(twin, sessions, notices=notices.lines()))
    return 0


def audit_sessions(arguments: argparse.Namespace) -> int:
    """Look for what would fool a model: leaks between parts, lost responses, drifting units, wrong clocks."""
    configs = load_dataset_configs(arguments.dataset_configs, data_dir=arguments.data_dir)
    result = audit_configs(configs, checkpoint=arguments.checkpoint, progress=_progress)
    print(audit_text(result))
    if arguments.html:
        write_text(arguments.html, audit_html(result))
        logger.info("page: %s", arguments.html)
    return 1 if result.findings else 0


def _inspect_recording(arguments: argparse.Namespace) -> int:
    path, options = Path(arguments.recording), _reader_options(arguments)
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else []
    if files and not any(kind.recognises(path) for kind in registered("format").values()):
        print(text_table([session_row(Session.load(file, verify=False)) for file in files]))
        return 0
    mapping = ""
    if path.suffix == ".safetensors":
        session = Session.load(path)
        logger.info("%s: a session file, whole and as it was written", path)
    else:
        kind = arguments.format or find_format(path)
        logger.info("%s: a recording of format %s", path, kind)
        if kind == "nwb" and "mapping" not in options:
            mapping = _nwb_mapping(path, arguments.write_mapping)
        try:
            session = read_session(path, format=kind, **options)
        except SessionError as error:
            if not mapping or arguments.html:
                raise
            logger.warning("it cannot be read without a mapping yet: %s", error)
            return 0
    if arguments.write_mapping and not mapping:
        raise SessionError(f"{path}: --write_mapping is for NWB files that are read without --mapping")
    print(recording_text(session))
    if arguments.html:
        write_text(arguments.html, recording_page(session, mapping=mapping))
        logger.info("page: %s", arguments.html)
    return 0


def _nwb_mapping(path: Path, target: str | None) -> str:
    """Print the mapping that an NWB file suggests, and write it where a file is named."""
    mapping = nwb.nwb_mapping(path)
    print(mapping)
    if target:
        write_text(target, mapping)
        logger.info("mapping: %s; correct what is not right, then convert with --mapping %s", target, target)
    return mapping


def evaluate_checkpoint(arguments: argparse.Namespace) -> int:
    """Predict every session of a checkpoint and write the table of its units."""
    twin = load_twin(arguments.checkpoint).to(arguments.device)
    configs = [spec.config for spec in twin.sessions]
    if arguments.sessions:
        known = {config.session: config for config in configs}
        unknown = [name for name in arguments.sessions if name not in known]
        if unknown:
            raise EvaluationError(f"{arguments.checkpoint}: has no session {unknown[0]!r}, but {', '.join(known)}")
        configs = [known[name] for name in arguments.sessions]
    if arguments.data_dir is not None:
        configs = [
            config.model_copy(update={"path": str(Path(arguments.data_dir) / Path(config.path).name)})
            for config in configs
        ]
    table = evaluate(twin, prepare(configs), arguments.split, progress=_progress)
    output = Path(arguments.output or find_checkpoint(arguments.checkpoint).with_suffix(f".{arguments.split}.csv"))
    table.write(output)
    print(summary_text(table))
    logger.info("table of %d units: %s", len(table), output)
    return 0


def experiment(arguments: argparse.Namespace) -> int:
    """Put a question to a trained model: receptive fields, gratings, exciting stimuli, what behaviour adds."""
    print(run_experiment(arguments))
    return 0


def report(arguments: argparse.Namespace) -> int:
    """Show the results of runs beside one another."""
    compare = arguments.compare is not None
    runs = [load_run(folder) for folder in [*([arguments.compare] if arguments.compare else []), *arguments.runs]]
    if compare and len(runs) != 2:
        raise EvaluationError(f"--compare needs two runs, the earlier first; {len(runs)} are given")
    data = [stored(run) for run in runs]
    if arguments.html and not arguments.no_data:
        options = {"data_dir": arguments.data_dir, "device": arguments.device, "progress": _progress}
        data = [gather(run, **options) for run in runs]
    rows = report_rows(runs, [found.test for found in data])
    print(markdown_table(rows) if arguments.markdown else text_table(rows))
    for note in (note for run, found in zip(runs, data, strict=True) for note in (*run.notes, *found.notes)):
        logger.info("%s", note)
    if compare:
        print(changes_text(*(run.table for run in runs), tolerance=arguments.tolerance))
    if arguments.html:
        page = html_page(runs, title=arguments.title, data=data, compare=compare, tolerance=arguments.tolerance)
        write_text(arguments.html, page)
        logger.info("page: %s", arguments.html)
    return 0


def compare_runs(arguments: argparse.Namespace) -> int:
    """Say whether two runs gave the same figures."""
    result = compare(arguments.run_a, arguments.run_b, arguments.tolerance)
    print(result.text(arguments.worst))
    return 0 if result.same else 1


def schema(arguments: argparse.Namespace) -> int:
    """Write the JSON Schemas of model and dataset files."""
    folder = Path(arguments.folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in json_schemas().items():
        path = folder / f"{name}.schema.json"
        path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
        print(path)
    return 0


def _add_reader_flags(command: argparse.ArgumentParser) -> None:
    """Flags that say how a recording is read."""
    flags = command.add_argument_group("how a recording is read")
    flags.add_argument("--format", choices=list(registered("format")), help="default: what the source looks like")
    flags.add_argument("--name", help="of the session; default: the source's")
    flags.add_argument("--subject", help="default: the source's, else the name up to the first _")
    flags.add_argument("--bin_rate", help="bins a second, Hz, where the source does not say")
    flags.add_argument("--stimulus", help="name of the stimulus, where there are several")
    flags.add_argument("--mapping", metavar="FILE", help="nwb: which series is what (.yaml)")
    flags.add_argument("--options", nargs="+", default=[], metavar="KEY=VALUE", help="further options; see below")
    command.formatter_class = argparse.RawDescriptionHelpFormatter
    command.epilog = "\n".join(["options of the formats:", *_format_lines()])


def _format_lines() -> list[str]:
    lines = []
    shared = set(Format.model_fields) | {"stimulus", "mapping"}
    for name, kind in registered("format").items():
        first = (kind.__doc__ or "").strip().splitlines()[0]
        lines.append(f"  {name}: {re.sub(_ROLE, '', first).replace('`', '')}")
        for key, field in kind.model_fields.items():
            if key not in shared:
                default = field.get_default(call_default_factory=True)
                lines.append(f"    {key} ({default!r}): {field.description or ''}".rstrip(": "))
    return lines


def _reader_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The reader's options that were given, by flags of their own or by --options."""
    options = parse_options(arguments.options)
    for key in ("name", "subject", "bin_rate", "stimulus", "mapping"):
        value = getattr(arguments, key)
        if value is None:
            continue
        if key in options:
            raise SessionError(f"--{key} and --options {key}=...: give one of them")
        options[key] = value
    return options


class _OneLineParser(argparse.ArgumentParser):
    """A parser whose errors are one line, like all others of the command."""

    def error(self, message: str) -> NoReturn:
        message = " ".join(message.split())
        message = message if len(message) <= 300 else f"{message[:300]}..."
        self.exit(2, f"neurotwin: {message}; see {self.prog} --help\n")


def _number(kind: type, least: float, most: float) -> Callable[[str], float]:
    """A `type` for arguments: a number within bounds."""

    def parse(text: str) -> float:
        value = kind(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text[:20]}: must be from {least:g} to {most:g}")
        return value

    parse.__name__ = "number" if kind is float else "whole number"
    return parse


def _device(text: str) -> str:
    """A `type` for arguments: what this machine can compute on."""
    kind, _, index = text.partition(":")
    devices = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if kind not in devices or (index and not index.isdecimal()) or int(index or 0) >= devices[kind]:
        there = [name for name, number in devices.items() if number]
        raise argparse.ArgumentTypeError(f"{text[:20]}: this machine has {', '.join(there)}")
    return text


def _parser() -> argparse.ArgumentParser:
    parser = _OneLineParser(prog="neurotwin", description="Digital twins of visual neurons.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=function.__doc__, description=function.__doc__, allow_abbrev=False)
        sub.set_defaults(command=function)
        return sub

    _data_commands(command)
    _model_commands(command)
    sub = command("schema", schema)
    sub.add_argument("folder", nargs="?", default="schemas", help="where they are written (%(default)s)")
    return parser


def _data_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Commands on recordings."""
    sub = command("simulate", simulate)
    sub.add_argument("folder", nargs="?", default="data/demo", help="where sessions are written (%(default)s)")
    sub.add_argument("--sessions", nargs="+", choices=list(DEMO_SESSIONS), help="default: all")
    sub.add_argument(
        "--seed", type=_number(int, 0, 2**63 - 1), default=0, help="of units, gaze and spikes (%(default)s)"
    )

    sub = command("convert", convert)
    sub.add_argument("sources", nargs="+", metavar="SOURCE", help="files, folders, or patterns such as 'raw/*'")
    sub.add_argument("target", help="folder for NAME.safetensors; for one source also a file (.safetensors)")
    sub.add_argument(
        "--jobs", type=_number(int, 1, 4096), default=1, metavar="N", help="sources converted at once (%(default)s)"
    )
    sub.add_argument("--force", action="store_true", help="convert all again, and replace files of other origin")
    _add_reader_flags(sub)

    sub = command("inspect", inspect)
    sub.add_argument("recording", nargs="?", help="recording of any format, session file, or folder of session files")
    sub.add_argument("--html", metavar="FILE", help="also write a page with pictures, which needs no other file")
    sub.add_argument("--write_mapping", metavar="FILE", help="nwb: write the mapping (.yaml), to be changed by hand")
    _add_reader_flags(sub)
    sub = sub.add_argument_group("instead of a recording: a model with its sessions")
    sub.add_argument("--model_config", help="YAML of the model")
    sub.add_argument("--dataset_configs_path", help="parent YAML, or folder of session YAMLs")
    sub.add_argument("--data_dir", help="folder of session data; overrides the YAML and NEUROTWIN_DATA")
    sub.add_argument("--max_datasets", type=_number(int, 1, 10**6), help="use at most the first N sessions")

    sub = command("audit", audit_sessions)
    sub.add_argument("dataset_configs", help="parent YAML, or folder of session YAMLs")
    sub.add_argument("--checkpoint", help="also compare with what this model was trained on")
    sub.add_argument("--data_dir", help="folder of session data; overrides the YAML and NEUROTWIN_DATA")
    sub.add_argument("--html", metavar="FILE", help="also write a page, which needs no other file")


def _model_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Commands on trained models and runs."""
    sub = command("evaluate", evaluate_checkpoint)
    sub.add_argument("checkpoint", help="training checkpoint (.ckpt) or saved model (.safetensors)")
    sub.add_argument("--split", default="val", choices=SPLITS, help="part of the data (%(default)s)")
    sub.add_argument("--sessions", nargs="+", metavar="NAME", help="default: all that the model knows")
    sub.add_argument("--data_dir", help="folder of session data, if it has moved since training")
    sub.add_argument("--output", help="table (.csv); default: beside the checkpoint, CHECKPOINT.SPLIT.csv")
    sub.add_argument("--device", type=_device, default=_DEVICE, help="(%(default)s)")

    add_experiment_arguments(command("experiment", experiment))

    sub = command("report", report)
    sub.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run")
    sub.add_argument("--markdown", action="store_true", help="print the table as markdown")
    sub.add_argument("--html", metavar="FILE", help="also write a page with figures, which needs no other file")
    sub.add_argument("--title", default="Runs", help="of the page (%(default)s)")
    sub.add_argument(
        "--compare", nargs="?", const="", metavar="RUN",
        help="mark the units that changed since this run, or since the first of two that are given",
    )  # fmt: skip
    sub.add_argument(
        "--tolerance", type=_number(float, 0, 1e9), default=0.01, help="what is no change of a unit (%(default)s)"
    )
    sub.add_argument("--no_data", action="store_true", help="page: use neither checkpoints nor recordings")
    sub.add_argument("--data_dir", help="page: folder of session data, if it has moved since training")
    sub.add_argument("--device", type=_device, default=_DEVICE, help="page: (%(default)s)")

    sub = command("compare", compare_runs)
    sub.add_argument("run_a", help="folder of a run, or a table of units (.csv)")
    sub.add_argument("run_b", help="the other")
    sub.add_argument(
        "--tolerance", type=_number(float, 0, 1e9), default=1e-6, help="relative to figures above 1 (%(default)s)"
    )
    sub.add_argument("--worst", type=_number(int, 0, 10**6), default=10, help="differences to list (%(default)s)")


def _progress(index: int, number: int, name: str) -> None:
    logger.info("session %d of %d: %s", index + 1, number, name)


if __name__ == "__main__":
    sys.exit(main())
