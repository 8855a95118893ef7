"""Values of the command line that take the place of those in a model or dataset file: ``--set KEY=VALUE``.

The key is a path from the top of the file, with dots between its parts; an entry of a list has its number, counted from
0. Its first part says which file is meant. Where both files have it, ``model.`` or ``dataset.`` stands before it. The
value is YAML. A change is made before a file is checked, so that what a file may not say cannot be set either.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from .base import ConfigError, nearest
from .dataset import DatasetConfig
from .model import ModelConfig

__all__ = ["Change", "changed", "parse_changes"]


@dataclass(frozen=True)
class Change:
    """One key of a file with its new value.

    Attributes
    ----------
    file
        "model" or "dataset".
    key
        The parts of the key; an entry of a list has its number.
    value
        Its new value.
    """

    file: str
    key: tuple[str | int, ...]
    value: Any

    @property
    def name(self) -> str:
        """The key as it is written, with the option before it."""
        return f"--set {self.file}.{'.'.join(map(str, self.key))}"


def parse_changes(texts: Sequence[str]) -> list[Change]:
    """Changes from texts KEY=VALUE.

    Raises
    ------
    ConfigError
        If a text is of another form, a key is given twice, or neither file can have it.

    Examples
    --------
    >>> [change.name for change in parse_changes(["convnet.params.channels=[32, 64]", "dataset.readout.type=linear"])]
    ['--set model.convnet.params.channels', '--set dataset.readout.type']
    """
    changes = [_parse(text) for text in texts]
    for number, change in enumerate(changes):
        if (change.file, change.key) in [(other.file, other.key) for other in changes[:number]]:
            raise ConfigError(f"{change.name} is given twice; keep one")
    return changes


def changed(content: Mapping[str, Any], changes: Sequence[Change], path: object = "the file") -> dict[str, Any]:
    """The content of a file with changes made in their order; mappings that are absent are made.

    Parameters
    ----------
    content
        As it was read; it is left as it is.
    changes
        Those of this file.
    path
        Name of the file, for messages.

    Raises
    ------
    ConfigError
        If a key leads into something that has no keys, or past the end of a list.

    Examples
    --------
    >>> changed({"convnet": {"type": "resnet"}}, parse_changes(["convnet.params.channels=[8]"]))
    {'convnet': {'type': 'resnet', 'params': {'channels': [8]}}}
    """
    content = copy.deepcopy(dict(content))
    for change in changes:
        place: Any = content
        for depth, part in enumerate(change.key):
            where = f"{change.name}: {'.'.join(map(str, change.key[:depth]))} in {path}"
            if isinstance(place, list):
                if not (isinstance(part, int) and part < len(place)):
                    raise ConfigError(f"{where} is a list of {len(place)}; give the number of an entry, from 0")
            elif not isinstance(place, dict):
                raise ConfigError(f"{where} is {place!r:.40}, which has no keys; set the whole of it")
            if depth == len(change.key) - 1:
                place[part] = copy.deepcopy(change.value)
            elif isinstance(place, dict) and place.get(part) is None:
                place[part] = {}
            place = place[part]
    return content


def _parse(text: str) -> Change:
    name, sign, value = text.partition("=")
    parts = tuple(int(part) if part.isdecimal() else part for part in name.strip().split("."))
    if not sign or "" in parts:
        raise ConfigError(f"--set {text:.80}: give KEY=VALUE, such as convnet.params.channels=[32,64]")
    fields = {"model": _keys(ModelConfig), "dataset": _keys(DatasetConfig)}
    file, parts = (str(parts[0]), parts[1:]) if parts[0] in fields and len(parts) > 1 else ("", parts)
    if not file:
        holders = [file for file, keys in fields.items() if parts[0] in keys]
        if len(holders) == 2:
            raise ConfigError(f"--set {name}: both files can have {parts[0]}; write model.{name} or dataset.{name}")
        if not holders:
            known = sorted({key for keys in fields.values() for key in keys})
            raise ConfigError(f"--set {name}: neither file has a key {parts[0]!r}; {nearest(str(parts[0]), known)}")
        file = holders[0]
    try:
        return Change(file, parts, yaml.safe_load(value))
    except yaml.YAMLError:
        raise ConfigError(f"--set {text:.80}: its value is not YAML; put it in quotes, such as 'key=[1, 2]'") from None


def _keys(config: type) -> set[str]:
    return {field.alias or name for name, field in config.model_fields.items()}
