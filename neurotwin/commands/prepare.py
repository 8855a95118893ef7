"""The command `neurotwin prepare`."""

import argparse
import sys

from ..config import load_dataset_configs, noticing, parse_changes
from ..data.prepare_many import parse_shard, prepare_many, share_of
from .arguments import number

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("dataset_configs", help="parent YAML, or folder of session YAMLs")
    parser.add_argument(
        "--jobs", type=number(int, 1, 4096), default=1, metavar="N", help="sessions prepared at once (%(default)s)"
    )
    parser.add_argument(
        "--shard", default="1/1", metavar="I/N", help="do the I-th of N shares: each job of a cluster one (%(default)s)"
    )
    parser.add_argument("--data_dir", help="folder of session data, or its URL; overrides the YAML and NEUROTWIN_DATA")
    parser.add_argument("--max_datasets", type=number(int, 1, 10**6), help="use at most the first N sessions")
    parser.add_argument(
        "--dset_dtype", default="uint8", choices=("uint8", "bfloat16", "float32"), help="that of the run (%(default)s)"
    )
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE",
        help="other values of keys of the dataset file, those of the run",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Prepare the sessions of a run beforehand; 1 if one of them cannot be prepared."""
    shard = parse_shard(arguments.shard)
    with noticing():
        configs = load_dataset_configs(
            arguments.dataset_configs, data_dir=arguments.data_dir, max_datasets=arguments.max_datasets,
            changes=parse_changes(arguments.set),
        )  # fmt: skip
    outcomes = prepare_many(share_of(configs, shard), jobs=arguments.jobs, dtype=arguments.dset_dtype)
    for outcome in outcomes:
        if outcome.fault:
            print(f"neurotwin: {outcome.name}: {outcome.fault}", file=sys.stderr)
    return 1 if any(outcome.fault for outcome in outcomes) else 0
