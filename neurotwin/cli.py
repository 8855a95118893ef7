"""The command `neurotwin`: sessions in, tables out. Every mistake of a user ends with one line and exit code 2."""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from .analysis.audit import audit_configs, audit_html, audit_text
from .analysis.compare import compare
from .analysis.evaluate import evaluate
from .analysis.inspect import inspect_text
from .analysis.report import html_page, load_run, markdown_table, report_rows, summary_text, text_table
from .checkpoint_file import CheckpointError
from .config import ConfigError, json_schemas, load_dataset_configs, load_model_config
from .data.formats import read_session
from .data.prepare import prepare
from .data.session import SPLITS, SessionError
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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns
    -------
    int
        0 when done, 1 when `compare` found a difference or `audit` a fault, 2 when something asked for is not possible.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    arguments = _parser().parse_args(argv)
    try:
        return arguments.command(arguments)
    except USER_ERRORS as error:
        print(f"neurotwin: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def simulate(arguments: argparse.Namespace) -> int:
    """Write demo sessions with a known true rate."""
    for path in make_demo_sessions(arguments.folder, arguments.sessions, seed=arguments.seed):
        print(path)
    return 0


def convert(arguments: argparse.Namespace) -> int:
    """Write a session file from data of another format."""
    session = read_session(
        arguments.source, format=arguments.format or "", name=arguments.name, subject=arguments.subject,
        bin_rate=arguments.bin_rate, stimulus=arguments.stimulus,
    )  # fmt: skip
    target = Path(arguments.target)
    target = target if target.suffix == ".safetensors" else target / f"{session.name}.safetensors"
    if target.exists():
        raise SessionError(f"{target}: exists; choose another name, or delete it first")
    print(session.save(target))
    logger.info("%d units, %d bins, %.1f minutes", session.n_units, session.n_bins, session.duration / 60)
    return 0


def inspect(arguments: argparse.Namespace) -> int:
    """Show a model and its sessions without training."""
    config = load_model_config(arguments.model_config)
    datasets = load_dataset_configs(
        arguments.dataset_configs_path, data_dir=arguments.data_dir, max_datasets=arguments.max_datasets
    )
    check_run(config, datasets)
    sessions = prepare(datasets, progress=_progress)
    print(inspect_text(TwinModel(config, [session.spec for session in sessions]), sessions))
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
    output = Path(arguments.output or Path(arguments.checkpoint).with_suffix(f".{arguments.split}.csv"))
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
    runs = [load_run(folder) for folder in arguments.runs]
    rows = report_rows(runs)
    print(markdown_table(rows) if arguments.markdown else text_table(rows))
    if arguments.html:
        Path(arguments.html).write_text(html_page(runs, title=arguments.title), encoding="utf-8")
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="neurotwin", description="Digital twins of visual neurons.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=function.__doc__, description=function.__doc__, allow_abbrev=False)
        sub.set_defaults(command=function)
        return sub

    sub = command("simulate", simulate)
    sub.add_argument("folder", nargs="?", default="data/demo", help="where sessions are written (%(default)s)")
    sub.add_argument("--sessions", nargs="+", choices=list(DEMO_SESSIONS), help="default: all")
    sub.add_argument("--seed", type=int, default=0, help="of units, gaze and spikes (%(default)s)")

    sub = command("convert", convert)
    sub.add_argument("source", help=".npz file, folder of .npy files, Sensorium folder or .nwb file")
    sub.add_argument("target", help="session file (.safetensors), or a folder for NAME.safetensors")
    sub.add_argument("--format", choices=("arrays", "sensorium", "nwb"), help="default: what the source looks like")
    sub.add_argument("--name", default="", help="of the session; default: the source's")
    sub.add_argument("--subject", default="", help="default: the source's, else the name up to the first _")
    sub.add_argument("--bin_rate", type=float, help="bins a second, Hz, where the source does not say")
    sub.add_argument("--stimulus", default="", help="nwb: name of the movie, where there are several")

    sub = command("inspect", inspect)
    sub.add_argument("--model_config", required=True, help="YAML of the model")
    sub.add_argument("--dataset_configs_path", required=True, help="parent YAML, or folder of session YAMLs")
    sub.add_argument("--data_dir", help="folder of session data; overrides the YAML and NEUROTWIN_DATA")
    sub.add_argument("--max_datasets", type=int, help="use at most the first N sessions")

    sub = command("audit", audit_sessions)
    sub.add_argument("dataset_configs", help="parent YAML, or folder of session YAMLs")
    sub.add_argument("--checkpoint", help="also compare with what this model was trained on")
    sub.add_argument("--data_dir", help="folder of session data; overrides the YAML and NEUROTWIN_DATA")
    sub.add_argument("--html", metavar="FILE", help="also write a page, which needs no other file")

    sub = command("evaluate", evaluate_checkpoint)
    sub.add_argument("checkpoint", help="training checkpoint (.ckpt) or saved model (.safetensors)")
    sub.add_argument("--split", default="val", choices=SPLITS, help="part of the data (%(default)s)")
    sub.add_argument("--sessions", nargs="+", metavar="NAME", help="default: all that the model knows")
    sub.add_argument("--data_dir", help="folder of session data, if it has moved since training")
    sub.add_argument("--output", help="table (.csv); default: beside the checkpoint, CHECKPOINT.SPLIT.csv")
    sub.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(%(default)s)")

    add_experiment_arguments(command("experiment", experiment))

    sub = command("report", report)
    sub.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run")
    sub.add_argument("--markdown", action="store_true", help="print the table as markdown")
    sub.add_argument("--html", metavar="FILE", help="also write a page with figures, which needs no other file")
    sub.add_argument("--title", default="Runs", help="of the page (%(default)s)")

    sub = command("compare", compare_runs)
    sub.add_argument("run_a", help="folder of a run, or a table of units (.csv)")
    sub.add_argument("run_b", help="the other")
    sub.add_argument("--tolerance", type=float, default=1e-6, help="relative to figures above 1 (%(default)s)")
    sub.add_argument("--worst", type=int, default=10, help="differences to list (%(default)s)")

    sub = command("schema", schema)
    sub.add_argument("folder", nargs="?", default="schemas", help="where they are written (%(default)s)")
    return parser


def _progress(index: int, number: int, name: str) -> None:
    logger.info("session %d of %d: %s", index + 1, number, name)


if __name__ == "__main__":
    sys.exit(main())
