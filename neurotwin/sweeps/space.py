"""The file of a sweep: a model file, datasets, flags, and what is varied among them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from ..config import ConfigError, PositiveInt, Strict, load_model_config
from ..config.locate import joined
from ..config.yamlfile import line_of, read_yaml
from ..errors import UserError

__all__ = ["Dimension", "SweepConfig", "SweepError", "flags_of", "load_sweep", "model_of", "write_model"]

_RESERVED = {
    "model_config",
    "dataset_configs_path",
    "data_dir",
    "experiment_name",
    "checkpoint_dir",
    "resume",
    "logger",
}
"""Flags that the sweep sets itself."""


class SweepError(UserError):
    """A sweep is not possible as it was asked for; the message says why and what to do."""


class Dimension(Strict):
    """What one value may be: a range, or one of several choices."""

    low: int | float | None = Field(None, description="Smallest value; whole numbers if both ends are.")
    high: int | float | None = Field(None, description="Largest value.")
    log: bool = Field(False, description="Search evenly in the logarithm.")
    step: int | float | None = Field(None, gt=0, description="Distance of values.")
    choices: tuple[Any, ...] | None = Field(None, min_length=1, description="The values, of any kind that YAML has.")

    @model_validator(mode="after")
    def _check(self) -> "Dimension":
        ends = (self.low is not None) + (self.high is not None)
        if (self.choices is None) != (ends == 2) or (ends == 1):
            raise ValueError("give low and high, or choices")
        if self.choices is not None and (self.log or self.step):
            raise ValueError("log and step are of a range, not of choices")
        if self.choices is None and (self.low >= self.high or (self.log and self.low <= 0)):
            raise ValueError("low must be below high, and above 0 where log is true")
        if self.log and self.step:
            raise ValueError("give log or step, not both")
        return self

    def suggest(self, trial: Any, name: str) -> Any:
        """The value of this dimension in an Optuna trial."""
        if self.choices is not None:
            return json.loads(trial.suggest_categorical(name, [json.dumps(value) for value in self.choices]))
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(name, self.low, self.high, log=self.log, step=int(self.step or 1))
        return trial.suggest_float(name, self.low, self.high, log=self.log, step=self.step)

    def value(self, stored: Any) -> Any:
        """The value, from what Optuna keeps of it."""
        return stored if self.choices is None else json.loads(stored)


class SweepConfig(Strict):
    """A sweep."""

    study: str = Field(..., pattern=r"^[\w.+-]+$", description="Name; workers of one name and storage work together.")
    model: str = Field(..., description="Model file that is varied, relative to this file.")
    datasets: str = Field(..., description="Parent YAML or folder of session YAMLs, relative to this file.")
    data_dir: str | None = Field(None, description="Folder of session data, relative to this file, or its URL.")
    flags: dict[str, Any] = Field(default_factory=dict, description="Flags of the training script, without dashes.")
    search: dict[str, Dimension] = Field(
        ...,
        min_length=1,
        description="By dotted key (model.convnet.params.channels.0, flags.learning_rate): the values.",
    )
    trials: PositiveInt = Field(..., description="Trials of the study, those of all workers together.")
    metric: str = Field(
        "", description="Column of metrics.csv that is maximised. Default: the model's figure of merit."
    )
    storage: str | None = Field(
        None, description="URL of Optuna's storage. Default: an SQLite file in the study's folder."
    )
    output: str = Field("runs/sweeps", description="Where the study's folder is made.")
    pruner: Literal["median", "hyperband", "none"] = Field("median", description="Which trials are ended early.")
    startup_trials: PositiveInt = Field(5, description="Trials at random, before any is proposed or ended early.")
    seed: int = Field(0, ge=0, description="Of what is proposed.")
    heartbeat_s: PositiveInt = Field(
        60, description="Seconds between signs of life of a worker; after three without one its trial is queued again."
    )

    @model_validator(mode="after")
    def _check(self) -> "SweepConfig":
        for key in self.search:
            part, _, name = key.partition(".")
            if part not in ("model", "flags") or not name:
                raise ValueError(f"search.{key}: begin with model. or flags.")
        named = set(self.flags) | {key.partition(".")[2] for key in self.search if key.startswith("flags.")}
        if reserved := sorted(named & _RESERVED):
            raise ValueError(f"flags.{reserved[0]} is set by the sweep; leave it out")
        return self

    @property
    def folder(self) -> Path:
        """The study's folder."""
        return Path(self.output) / self.study


def load_sweep(path: str | Path) -> SweepConfig:
    """Read the file of a sweep.

    Raises
    ------
    ConfigError
        If the file is missing, is not YAML, or says something that a sweep does not have.
    """
    path = Path(path)
    data, node = read_yaml(path)
    try:
        config = SweepConfig.model_validate(data if isinstance(data, dict) else {})
    except ValidationError as error:
        first = error.errors()[0]
        key = first["loc"]
        line = line_of(node, key)
        where = f"{path}:{line}" if line else str(path)
        text = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{where}: {'.'.join(map(str, key))}{': ' if key else ''}{text}") from None
    for name in ("model", "datasets", "data_dir"):
        if (value := getattr(config, name)) is not None:
            setattr(config, name, joined(path.parent, value))
    return config


def model_of(config: SweepConfig, values: Mapping[str, Any]) -> dict[str, Any]:
    """The content of the model file with the values of a trial in it.

    Raises
    ------
    SweepError
        If a key leads through something that is neither a mapping nor a list.
    """
    data, _ = read_yaml(Path(config.model))
    for key, value in values.items():
        part, _, name = key.partition(".")
        if part == "model":
            _put(data, name.split("."), value, key)
    return data


def _put(data: Any, path: list[str], value: Any, key: str) -> None:
    """Set a value by its path; a mapping that is absent is made, an entry of a list must be there."""
    for number, name in enumerate(path):
        last = number == len(path) - 1
        if isinstance(data, list):
            if not (name.isdecimal() and int(name) < len(data)):
                raise SweepError(f"search.{key}: the list of the model file has {len(data)} entries, and no {name}")
            name = int(name)
        elif not isinstance(data, dict):
            raise SweepError(f"search.{key}: in the model file, {'.'.join(path[:number])} is {data!r}, not a mapping")
        if last:
            data[name] = value
        else:
            data = data[name] if isinstance(data, list) else data.setdefault(name, {})


def write_model(config: SweepConfig, values: Mapping[str, Any], path: Path) -> None:
    """Write the model file of a trial, and check it.

    Raises
    ------
    ConfigError
        If it is no valid model file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # JSON is YAML, and keeps every value as it is.
    path.write_text(json.dumps(model_of(config, values), indent=2) + "\n", encoding="utf-8")
    load_model_config(path)


def flags_of(config: SweepConfig, values: Mapping[str, Any]) -> list[str]:
    """Flags of the training script, those of the sweep and of the trial, as on a command line."""
    flags = config.flags | {key.partition(".")[2]: v for key, v in values.items() if key.startswith("flags.")}
    line: list[str] = []
    for name, value in flags.items():
        if value is True:
            line.append(f"--{name}")
        elif value is not None and value is not False:
            line += [f"--{name}", ",".join(map(str, value)) if isinstance(value, list) else str(value)]
    return line
