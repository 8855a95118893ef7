"""The command `neurotwin distil`."""

import argparse
import logging
import subprocess
import sys
from pathlib import Path

from ..analysis.parity import parity
from ..checkpoint_file import find_checkpoint
from ..data.prepare import prepare
from ..data.progress import session_progress
from ..errors import UserError
from ..models import load_twin
from .arguments import number

__all__ = ["DistillationError", "add_arguments", "run"]

logger = logging.getLogger(__name__)


class DistillationError(UserError):
    """The student was not trained; the message of the training stands before it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("teacher", help="ensemble or model: run folder, checkpoint or saved model (.safetensors)")
    parser.add_argument("--model_config", required=True, help="YAML of the student")
    parser.add_argument("--dataset_configs_path", required=True, help="parent YAML, or folder of session YAMLs")
    parser.add_argument("--data_dir", help="folder of session data, or its URL; overrides the YAML and NEUROTWIN_DATA")
    parser.add_argument("--experiment_name", help="name of the run; default: STUDENT-distilled")
    parser.add_argument("--checkpoint_dir", default="./checkpoints", help="where run folders are made (%(default)s)")
    parser.add_argument(
        "--teacher_weight", type=number(float, 1e-9, 1), default=0.5,
        help="share of the loss that is about the teacher's rates (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--output", metavar="FILE", help="also save the student alone (.safetensors)")
    parser.add_argument(
        "--flags", nargs=argparse.REMAINDER, default=[], metavar="FLAG",
        help="all that follows goes to the training script: --flags --max_epochs 20 --learning_rate 1e-3",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Train a compact twin on the rates of a larger one, and say unit by unit how well it stands in for it.

    Raises
    ------
    CheckpointError
        If the teacher cannot be opened.
    DistillationError
        If training did not end well.
    """
    teacher = load_twin(arguments.teacher)
    name = arguments.experiment_name or f"{Path(arguments.model_config).stem}-distilled"
    given = {
        "teacher": arguments.teacher, "teacher_weight": arguments.teacher_weight, "experiment_name": name,
        "model_config": arguments.model_config, "dataset_configs_path": arguments.dataset_configs_path,
        "checkpoint_dir": arguments.checkpoint_dir, "data_dir": arguments.data_dir,
    }  # fmt: skip
    flags = [part for key, value in given.items() if value is not None for part in (f"--{key}", str(value))]
    flags += arguments.flags
    # A process of its own, since the library does not know the training scripts; it prints what it does.
    done = subprocess.run([sys.executable, "-m", "neurotwin", "train", *flags], check=False)
    if done.returncode:
        raise DistillationError(f"the student was not trained (exit code {done.returncode}); see above")
    folder = _latest(Path(arguments.checkpoint_dir), name)
    student = load_twin(find_checkpoint(folder))
    with session_progress("preparing") as progress:
        sessions = prepare([spec.config for spec in student.sessions], progress=progress)
    found = parity(teacher, student, sessions)
    found.write(folder / "parity.csv")
    print(found.text())
    print(folder / "parity.csv")
    if arguments.output:
        print(student.save(arguments.output))
    return 0


def _latest(root: Path, name: str) -> Path:
    """The run's folder: the last one written of NAME, NAME-2, NAME-3, ..."""
    found = [path for path in root.glob(f"{name}*") if path.name == name or path.name[len(name) + 1 :].isdecimal()]
    return max(found, key=lambda path: (path / "run.json").stat().st_mtime)
