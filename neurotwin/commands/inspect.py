"""The command `neurotwin inspect`."""

import argparse
import logging
from pathlib import Path

from ..analysis.inspect import inspect_text
from ..analysis.recording import recording_text, session_row
from ..analysis.recording_page import recording_page
from ..analysis.report import text_table
from ..config import ConfigError, load_dataset_configs, load_model_config, noticing, registered
from ..data.formats import find_format, nwb, read_session
from ..data.prepare import prepare
from ..data.progress import session_progress
from ..data.remote import local_path
from ..data.session import Session, SessionError
from ..files import write_text
from ..models import TwinModel, check_run
from .arguments import number
from .reading import add_reader_arguments, reader_options

__all__ = ["add_arguments", "run"]

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "recording", nargs="?", help="recording of any format, session file (or their URL), or folder of session files"
    )
    parser.add_argument("--html", metavar="FILE", help="also write a page with pictures, which needs no other file")
    parser.add_argument("--write_mapping", metavar="FILE", help="nwb: write the mapping (.yaml), to be changed by hand")
    add_reader_arguments(parser)
    group = parser.add_argument_group("instead of a recording: a model with its sessions")
    group.add_argument("--model_config", help="YAML of the model")
    group.add_argument("--dataset_configs_path", help="parent YAML, or folder of session YAMLs")
    group.add_argument("--data_dir", help="folder of session data, or its URL; overrides the YAML and NEUROTWIN_DATA")
    group.add_argument("--max_datasets", type=number(int, 1, 10**6), help="use at most the first N sessions")


def run(arguments: argparse.Namespace) -> int:
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
    with session_progress("preparing") as progress:
        sessions = prepare(datasets, progress=progress)
    twin = TwinModel(config, [session.spec for session in sessions])
    print(inspect_text(twin, sessions, notices=notices.lines()))
    return 0


def _inspect_recording(arguments: argparse.Namespace) -> int:
    path, options = local_path(arguments.recording), reader_options(arguments)
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
