"""The kinds of tries: each draws something from a random generator, and what is done with it returns what is wrong."""

import argparse
import contextlib
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

from benchmarks.fuzz_files import GOOD_MODELS, SchemaFiles, damage
from neurotwin import cli
from neurotwin.analysis.evaluate import evaluate
from neurotwin.analysis.report import load_run, report_rows, summary_text
from neurotwin.checkpoint_file import read_checkpoint, write_checkpoint
from neurotwin.clip import Clip
from neurotwin.config import DatasetConfig, ModelConfig, load_dataset_configs, load_model_config
from neurotwin.data.arrange import arrange
from neurotwin.data.prepare import Prepared, outline, prepare
from neurotwin.data.session import Session
from neurotwin.data.spec import SessionSpec
from neurotwin.metrics.table import Table
from neurotwin.models import TwinModel, load_twin
from neurotwin.transfer.features import feature_bank
from training.checkpoints import latest_checkpoint
from training.flags import FLAGS, parse_arguments, without_effect
from training.launch import read_launch
from training.runs import read_record

__all__ = ["KINDS", "Attempt", "Lab", "Refused"]

Attempt = Callable[[], str | None]
"""What is tried: returns what is wrong with what was accepted, or None."""


class Refused(ValueError):
    """Refused by what ends the process instead of raising, with the text that it printed."""


class Lab:
    """A small recording with everything in it, and one of each file, in a folder of their own.

    Parameters
    ----------
    folder
        Where the files are; what tries write goes there too.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = {kind: SchemaFiles(kind) for kind in ("model", "dataset")}
        self.session = Session(**session_fields(np.random.default_rng(0)))
        path = self.session.save(folder / "data" / "ada_1.safetensors")
        lags = {"stim": "0..5", "behavior": [0], "history": [1, 2, 3]}
        transforms = {
            "stim": {"source": "stim", "ops": ["pixelnorm"]},
            "gaze": {"source": "gaze", "ops": ["maxnorm"], "expose_as": "behavior"},
        }
        self.config = DatasetConfig(session="ada_1", path=str(path), keys_lags=lags, transforms=transforms)
        self.sessions = prepare([self.config], cache_dir=folder / "prepared")
        self.spec: SessionSpec = self.sessions[0].spec
        self.twin = TwinModel(ModelConfig(**GOOD_MODELS[4]), [self.spec])
        table = evaluate(self.twin, self.sessions)
        self.damaged = folder / "damaged"
        table.write(folder / "units.csv")
        self.twin.save(folder / "twin.safetensors")
        weights = {f"twin.{name}": tensor for name, tensor in self.twin.state_dict().items()}
        checkpoint = {"twin": json.dumps(self.twin.describe()), "state_dict": weights, "epoch": 3}
        write_checkpoint(folder / "last.ckpt", checkpoint)
        record = {
            "name": "run", "parameters": 3, "flags": {}, "sessions": {}, "global_batch_size": 3, "wall_s": 1.0
        }  # fmt: skip
        (folder / "run.json").write_text(json.dumps(record))
        (folder / "metrics.csv").write_text("epoch,val_bps\n0,0.1\n1,0.2\n")
        (folder / "model.yaml").write_text(json.dumps(GOOD_MODELS[4]))
        (folder / "dataset.yaml").write_text(json.dumps({"session": "ada_1", "data_dir": "data"}))
        self.content = {name: (folder / name).read_bytes() for name in READERS if (folder / name).exists()}
        (self.cached,) = (folder / "prepared").glob("*.safetensors")
        self.content["prepared"] = self.cached.read_bytes()
        feature_bank(self.twin, self.sessions[0], 0, folder / "features")
        (self.features,) = (folder / "features").iterdir()
        self.content["features"] = self.features.read_bytes()
        self.content["session"] = path.read_bytes()


def session_fields(rng: np.random.Generator) -> dict[str, Any]:
    """Values of all fields of a session of 240 bins and 3 units."""
    n_bins, n_units = 240, 3
    return {
        "name": "ada_1", "stimulus": rng.integers(0, 256, (n_bins, 9, 8), dtype=np.uint8),
        "responses": rng.poisson(0.7, (n_bins, n_units)), "bin_rate": 60.0, "unit_ids": np.arange(n_units),
        "behavior": {"gaze": rng.normal(size=(n_bins, 2)), "pupil": rng.random(n_bins)},
        "trial": np.arange(n_bins) // 24, "valid": np.ones(n_bins, bool), "stimulus_type": "movie",
        "repeat_id": np.full(n_bins, -1), "time": np.arange(n_bins) / 60.0, "exposure": np.ones(n_bins),
        "split": None, "true_rate": rng.random((n_bins, n_units)), "missing_pct": rng.random((n_bins, n_units)),
        "unit_positions": rng.random((n_units, 2)), "unit_labels": {"area": ["V1", "V1", "V4"]},
        "pixels_per_degree": 30.0, "scenes": (np.zeros((20, 30), np.uint8),), "scene": np.zeros(n_bins, np.int32),
        "scene_offset": (0.5, 0.0), "subject": "ada", "info": {"lab": "x"}, "notes": ("a note",),
    }  # fmt: skip


# --------------------------------------------------------------------------------------------------------------------
# Model and dataset files
# --------------------------------------------------------------------------------------------------------------------


def model_file(lab: Lab, random: Random) -> tuple[str, Attempt]:
    """A model file: read, built for a session, and run on two clips where it is small."""
    text, what = lab.files["model"].draw(random)
    path = lab.folder / "model_tried.yaml"

    def attempt() -> str | None:
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        config = load_model_config(path)
        again = ModelConfig.model_validate(config.model_dump(mode="json", by_alias=True))
        if again != config:
            return "what was understood is written down as something else"
        twin = TwinModel(config, [lab.spec]).eval()
        number = sum(parameter.numel() for parameter in twin.parameters())
        if number > 3 * 10**8:
            return f"{number:,} parameters for frames of 9x8 pixels"
        return None if number > 10**6 else run_model(twin, lab.spec)

    return f"model file, {what}", attempt


def run_model(twin: TwinModel, spec: SessionSpec) -> str | None:
    """What is wrong with the rates of two clips of noise."""
    generator, frames = torch.Generator().manual_seed(0), twin.context + 2
    stimulus = torch.randint(0, 256, (2, 1, frames, 9, 8), dtype=torch.uint8, generator=generator)
    behavior = torch.randn(2, frames, spec.behavior_dim, generator=generator)
    history = torch.ones(2, 2 + spec.n_history, spec.n_units)
    with torch.no_grad():
        (rates,) = twin([Clip(0, 2, stimulus, behavior=behavior, history=history)])
    if rates.shape != (2, 2, spec.n_units):
        return f"rates have shape {tuple(rates.shape)}"
    return None if bool(rates.isfinite().all()) else "rates are not finite before any training"


def dataset_file(lab: Lab, random: Random) -> tuple[str, Attempt]:
    """A dataset file: read, compared with the recording, and the recording prepared as it says."""
    text, what = lab.files["dataset"].draw(random)
    path = lab.folder / "data" / "ada_1.yaml"

    def attempt() -> str | None:
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        configs = load_dataset_configs(path, data_dir=lab.folder / "data")
        if [Path(config.path).name for config in configs] != ["ada_1.safetensors"]:
            configs = [config.model_copy(update={"path": lab.config.path}) for config in configs]
        (spec,) = outline(configs)
        arrays, found = arrange(lab.session, configs[0], "uint8")
        if (spec.unit_ids, spec.frame_shape, spec.behavior_dim) != (
            found.unit_ids, found.frame_shape, found.behavior_dim,
        ):  # fmt: skip
            return "the outline is not what preparation gives"
        source = arrays.pop("stimulus", lab.session.stimulus)
        prepared = Prepared(spec=found, source=source, **arrays)
        if not np.isfinite(prepared.responses).all() or prepared.mask.shape != prepared.responses.shape:
            return "responses are not finite, or not masked alike"
        strange = prepared.behavior is not None and not np.isfinite(prepared.behavior).all()
        return "behaviour is not finite" if strange or not np.isfinite(source).all() else None

    return f"dataset file, {what}", attempt


# --------------------------------------------------------------------------------------------------------------------
# Flags
# --------------------------------------------------------------------------------------------------------------------

_WORDS = (
    "0", "1", "-1", "2", "3", "1e3", "0.5", "-0.5", "inf", "-inf", "nan", "1e400", "10" * 30, "", " ", "x", "none",
    "auto", "csv", "csv,wandb", "0,1", "0,0", "a,b", "../x", "/", ".", "é", "a\nb", "--", "-", "=", "%s", "%", "{}",
    "1_000", "٣", "0x10", "true", "uint8", "val", "cpu", "32", "[]", "session",
)  # fmt: skip


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Work in a folder for a while, with commands that end the process raising instead."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def ended(call: Callable[[], Any], prefix: str) -> Any:
    """What a call returns; where it ends the process with 2 and a text, that text is raised."""
    said = SaidOnce()
    with contextlib.redirect_stderr(said):
        try:
            result = call()
        except SystemExit as end:
            result = end.code
    lines = [line for line in said.text.splitlines() if line.startswith(prefix)]
    if result == 2:
        others = [line for line in said.text.splitlines() if not line.startswith(prefix)]
        raise Refused("\n".join(lines or others) if len(lines) != 1 else lines[0])
    return result


class SaidOnce:
    """Collects what is written to it."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        """Keep a text."""
        self.text += text
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""


def script_flags(lab: Lab, random: Random) -> tuple[str, Attempt]:
    """Flags of the training script, up to the processes that they ask for."""
    argv = ["--model_config", "model.yaml", "--dataset_configs_path", "dataset.yaml"]
    for flag in random.sample(FLAGS, random.choice((1, 1, 1, 2, 3, 6))):
        argv.append(f"--{flag.name}{random.choice(('', '', '', '', 'x'))}")
        if flag.options.get("action") != "store_true" or random.random() < 0.1:
            choices = [str(choice) for choice in flag.options.get("choices", ())] + [str(flag.default)]
            argv.append(random.choice(choices if random.random() < 0.3 else _WORDS))

    def attempt() -> str | None:
        arguments = ended(lambda: parse_arguments(argv), "error: ")
        if arguments == 0:
            return None if {"-h", "--help"} & set(argv) else "ended as if all were done"
        for name, value in vars(arguments).items():
            if isinstance(value, float) and not math.isfinite(value):
                return f"--{name} is {value}"
        try:
            launch = read_launch("cpu", arguments.num_gpus, arguments.gpu_ids, arguments.num_nodes, environ={})
        except ValueError as error:
            raise Refused(str(error)) from None
        without_effect(arguments, launch.accelerator)
        return None

    return f"script {' '.join(argv[4:])!r}", attempt


_QUICK = ("inspect", "evaluate", "report", "compare", "schema", "audit", "convert")


def command_line(lab: Lab, random: Random) -> tuple[str, Attempt]:
    """The command `neurotwin` with a random command line, run to its end."""
    parser = cli.make_parser()
    (commands,) = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    name = random.choice([command for command in commands.choices if command in _QUICK])
    argv = [name]
    for action in commands.choices[name]._actions:
        if isinstance(action, argparse._HelpAction) or (action.option_strings and random.random() < 0.6):
            continue
        argv += action.option_strings[:1]
        if action.nargs != 0:
            number = random.randrange(1, 3) if action.nargs in ("+", "*") else 1
            argv += [_value(action, random) for _ in range(number)]
    if random.random() < 0.1:
        argv.append(random.choice(_WORDS))

    def attempt() -> str | None:
        with inside(lab.folder):
            code = ended(lambda: cli.main(argv), "neurotwin: ")
        return None if code in (0, 1) else f"exit code {code}"

    return f"neurotwin {' '.join(argv)!r}", attempt


def _value(action: argparse.Action, random: Random) -> str:
    files = [*READERS, "data", "data/ada_1.safetensors", "nowhere", "out/x", "nowhere.yaml", "prepared", "."]
    chosen = random.random()
    if chosen < 0.25 and action.choices:
        return str(random.choice(list(action.choices)))
    return random.choice(files if chosen < 0.7 else _WORDS)


# --------------------------------------------------------------------------------------------------------------------
# Recordings
# --------------------------------------------------------------------------------------------------------------------

_DTYPES = ("u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", "c8", "?", "U3", "O", "M8[s]")


def strange_array(value: Any, random: Random) -> Any:
    """An array like a field's value in part: of another type, shape or length, or with values that cannot be."""
    rng = np.random.default_rng(random.getrandbits(32))
    array = np.asarray(value if value is not None else np.zeros(240))
    action = random.choice(("type", "shape", "length", "value", "scalar", "nothing", "list"))
    if action == "type":
        with np.errstate(all="ignore"), contextlib.suppress(ValueError, TypeError):
            return array.astype(random.choice(_DTYPES))
    if action == "shape":
        shapes = [array[..., None], array[None], array.reshape(-1), np.zeros((0, 3)), np.zeros((240, 0)), array.T]
        return random.choice(shapes)
    if action == "length":
        return np.resize(array, (random.choice((0, 1, 3, 239, 241)), *array.shape[1:]))
    if action == "value" and array.dtype.kind in "iufb" and array.size:
        extremes = (
            np.nan, np.inf, -np.inf, -1, 0, 1e30, -1e30, 2.0**31, 2.0**63, 0.5, 1e-30, 255, 256, 300,
        )  # fmt: skip
        changed = array.astype(np.float64)
        changed.flat[rng.integers(array.size, size=random.choice((1, 5, array.size)))] = random.choice(extremes)
        return changed
    simple = (
        None, 0, 1, -1, 1.5, float("nan"), float("inf"), "", "x", "../x", "a/b", ".", True, [], {}, (), [1, 2],
        "train", ["train"] * 240, ["nothing"] * 240, [None] * 240, {"x": np.zeros(240)}, {"x": np.zeros(3)},
        {"stim": np.zeros(240)}, {1: np.zeros(240)}, {"x": "a"}, {"x": None}, "é" * 300, 10**400, [1, "a", 2],
        np.array(3), b"x", "a\nb",
    )  # fmt: skip
    return array.tolist() if action == "list" and array.ndim < 3 else random.choice(simple)


def recording(lab: Lab, random: Random) -> tuple[str, Attempt]:
    """A recording with strange fields: what is accepted is saved and comes back as it was."""
    fields = session_fields(np.random.default_rng(1))
    chosen = random.sample(sorted(fields), random.choice((1, 1, 1, 2, 3)))
    fields |= {key: strange_array(fields[key], random) for key in chosen}
    path = lab.folder / "tried.safetensors"

    def attempt() -> str | None:
        session = Session(**fields)
        for key in ("responses", "stimulus", "trial", "unit_ids"):
            given, kept = fields[key], getattr(session, key)
            if given is not None and np.asarray(given).dtype.kind in "iuf" and not np.array_equal(given, kept):
                return f"{key} was changed"
        loaded = Session.load(session.save(path))
        if not all(np.isfinite(value).all() for value in loaded.behavior.values()):
            return "behaviour is not finite"
        for key in ("stimulus", "responses", "trial", "unit_ids", "valid", "repeat_id", "stimulus_type", "split"):
            if not np.array_equal(np.asarray(getattr(loaded, key)), np.asarray(getattr(session, key))):
                return f"{key} came back as something else"
        return None if repr(loaded) == repr(session) else "its description changed"

    kinds = {key: f"{type(fields[key]).__name__} {np.shape(fields[key]) if key != 'info' else ''}" for key in chosen}
    return f"recording, {kinds}", attempt


def movie(lab: Lab, random: Random) -> tuple[str, Attempt]:
    """Arrays given to `predict`: what is accepted has finite rates where there are frames to see."""
    fields = session_fields(np.random.default_rng(2))
    given = {"stimulus": fields["stimulus"], "bin_rate": 60.0, "session": "ada_1", "chunk": 64}
    given["behavior"] = dict(fields["behavior"])
    for key in random.sample(sorted(given), random.choice((0, 1, 1, 2))):
        if key == "behavior" and random.random() < 0.7:
            given[key]["gaze"] = strange_array(fields["behavior"]["gaze"], random)
        else:
            given[key] = strange_array(given[key], random)

    def attempt() -> str | None:
        try:
            rates = lab.twin.predict(**given)
        except (ValueError, TypeError) as error:
            raise Refused(str(error)) from None
        shown = np.asarray(rates)
        length = len(shown)
        if shown.shape != (length, 3) or not np.isfinite(shown[lab.twin.context :]).all():
            return "rates are not finite, or not one a bin and unit"
        return None

    return f"movie, { ({key: str(value)[:40] for key, value in given.items()}) }", attempt


# --------------------------------------------------------------------------------------------------------------------
# Damaged files
# --------------------------------------------------------------------------------------------------------------------


def _read_run(path: Path) -> str:
    return str(report_rows([load_run(path.parent)]))


READERS: dict[str, Callable[[Path], Any]] = {
    "twin.safetensors": load_twin,
    "last.ckpt": load_twin,
    "units.csv": lambda path: summary_text(Table.read(path)),
    "run.json": _read_run,
    "metrics.csv": _read_run,
    "model.yaml": load_model_config,
    "dataset.yaml": load_dataset_configs,
}
"""How each file is read."""
_SEALED = ("twin.safetensors", "last.ckpt", "session", "prepared", "features")


def damaged_file(lab: Lab, random: Random) -> tuple[str, Attempt]:
    """A file with something wrong in it: those with checksums are refused, of the others only what reads well."""
    name = random.choice(sorted(lab.content))
    content, what = damage(lab.content[name], random)

    def attempt() -> str | None:
        if name == "prepared":
            lab.cached.write_bytes(content)
            try:
                prepare([lab.config], cache_dir=lab.folder / "prepared")
            finally:
                lab.cached.write_bytes(lab.content[name])
        elif name == "features":
            lab.features.write_bytes(content)
            try:
                feature_bank(lab.twin, lab.sessions[0], 0, lab.folder / "features")
            finally:
                lab.features.write_bytes(lab.content[name])
        elif name == "session":
            path = lab.folder / "session_tried.safetensors"
            path.write_bytes(content)
            Session.load(path)
        else:
            lab.damaged.mkdir(exist_ok=True)
            for other in ("run.json", "units.csv", "metrics.csv"):
                (lab.damaged / other).write_bytes(lab.content[other])
            path = lab.damaged / name
            path.write_bytes(content)
            READERS[name](path)
            if name == "run.json":
                record(path)
            if name == "last.ckpt":
                read_checkpoint(path)
                latest_checkpoint(lab.damaged)
        sealed = name in _SEALED and content != lab.content[name]
        return "it was read as if it were whole" if sealed else None

    def record(path: Path) -> None:
        try:
            read_record(path.parent)
        except ValueError as error:
            raise Refused(str(error)) from None

    return f"{name}, {what}", attempt


KINDS: dict[str, Callable[[Lab, Random], tuple[str, Attempt]]] = {
    "model files": model_file,
    "dataset files": dataset_file,
    "flags of the training script": script_flags,
    "command lines of `neurotwin`": command_line,
    "recordings": recording,
    "arrays to predict": movie,
    "damaged files": damaged_file,
}
"""What is tried, by its heading in the table."""
