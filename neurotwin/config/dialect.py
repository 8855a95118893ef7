"""From files as labs write them to the strict config, which has one meaning a key.

Labs write the same thing in several forms: a bare value for an operation's one parameter, a mapping where we have a
number, a key whose value the data decide. None of these is a mistake. They are rewritten here, and what has no effect
is set to the value that it amounts to and noted, so that two files that mean the same give the same config, and a run
says at its start what it did not take as written. What this module does not know is left as it is for the strict config
to judge. The forms stand in ``docs/lab_files.md``.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .base import ConfigError, Only, Strict
from .dataset import DatasetConfig
from .part import FlatPart, Op, params_of
from .registry import registered

__all__ = ["Key", "RefusedFormError", "Understood", "settle", "understand_dataset", "understand_model"]

Key = tuple[str | int, ...]
"""Where something stands in a file: the keys and positions that lead to it from the top."""


class RefusedFormError(ConfigError):
    """A form that cannot mean anything here.

    Attributes
    ----------
    key
        Where it stands.
    """

    def __init__(self, key: Key, text: str) -> None:
        super().__init__(text)
        self.key = key


@dataclass
class Understood:
    """What a file means, and what there is to say about it.

    Attributes
    ----------
    data
        Its content in the strict config's own words.
    notes
        Key and text of each notice.
    renamed
        Where a key that has been rewritten stands in the file, by its place in `data`.
    """

    data: dict[str, Any]
    notes: list[tuple[Key, str]] = field(default_factory=list)
    renamed: dict[Key, Key] = field(default_factory=dict)

    def original(self, key: Key) -> Key:
        """Where a key of `data` stands in the file."""
        for length in range(len(key), 0, -1):
            if key[:length] in self.renamed:
                return self.renamed[key[:length]] + key[length:]
        return key

    def get(self, *key: str | int) -> Any:
        """The value of a key, or None where there is none."""
        value: Any = self.data
        for part in key:
            inside = isinstance(value, Mapping) and part in value
            inside |= isinstance(value, list) and isinstance(part, int) and part < len(value)
            value = value[part] if inside else None
        return value

    def set(self, key: Key, value: Any) -> None:
        """Give a key, whose mapping or list is there, another value."""
        self.get(*key[:-1])[key[-1]] = value


def understand_model(written: Mapping[str, Any]) -> Understood:
    """The content of a model file in the strict config's own words.

    Raises
    ------
    RefusedFormError
        If a form cannot mean anything here.
    """
    file = Understood(copy.deepcopy(dict(written)))
    if file.get("history_encoder", "params", "output_activation") is False:
        file.set(("history_encoder", "params", "output_activation"), "none")
    _behaviour_only(file)
    return file


def understand_dataset(written: Mapping[str, Any]) -> Understood:
    """The content of a session's file, its parent's merged in, in the strict config's own words.

    Raises
    ------
    RefusedFormError
        If a form cannot mean anything here.
    """
    file = Understood(copy.deepcopy(dict(written)))
    for kind, section in (("transform", "transforms"), ("filter", "datafilters")):
        pipelines = file.get(section)
        for name in pipelines if isinstance(pipelines, Mapping) else ():
            ops = file.get(section, name, "ops")
            for position in range(len(ops) if isinstance(ops, list) else 0):
                _op(file, kind, (section, name, "ops", position))
    return file


def settle(config: Strict) -> list[tuple[Key, str]]:
    """Give keys without effect the value that they amount to, in a config and all that it holds.

    Which these are, the parts say themselves (:meth:`~neurotwin.config.base.Strict.idle`).

    Returns
    -------
    list
        Key and text of what there is to say about the config.
    """
    notes = list(_settle(config, ()))
    return notes + (list(_data_notes(config)) if isinstance(config, DatasetConfig) else [])


# --------------------------------------------------------------------------------------------------------------------
# Model files
# --------------------------------------------------------------------------------------------------------------------


def _behaviour_only(file: Understood) -> None:
    """Nothing between the frames and a concat modulator: labs' way to write that the stimulus is not seen."""
    seeing = ("adapter", "frontend", "convnet")
    absent = all(_type(file.data.get(part), "none") == "none" for part in seeing)
    blind = _type(file.data.get("modulator"), "none") == "concat" and _type(file.data.get("readout"), "") == "linear"
    channels = file.data.get("initial_input_channels", 1)
    if absent and blind and isinstance(channels, int) and not isinstance(channels, bool) and channels > 0:
        file.data["initial_input_channels"] = 0
        why = "is 0: with concat and linear alone, and no frontend or convnet, the model is one of behaviour only"
        file.notes.append((("initial_input_channels",), why))


# --------------------------------------------------------------------------------------------------------------------
# Dataset files
# --------------------------------------------------------------------------------------------------------------------


def _op(file: Understood, kind: str, key: Key) -> None:
    """One operation: a bare value is that of its one parameter, and `smooth` has forms of its own."""
    entry = file.get(*key)
    if not isinstance(entry, dict) or len(entry) != 1:
        return
    ((name, value),) = entry.items()
    key = (*key, name)
    if name == "smooth":
        _smooth(file, key)
    elif name == "missing_pct" and isinstance(value, dict) and "theshold" in value and "threshold" not in value:
        file.set(key, {("threshold" if k == "theshold" else k): v for k, v in value.items()})
        file.renamed[(*key, "threshold")] = (*key, "theshold")
        file.notes.append(((*key, "theshold"), "is read as threshold"))
    elif value is not None and not isinstance(value, dict) and (parameter := _one_parameter(kind, name)):
        file.set(key, {parameter: value})
        file.renamed[(*key, parameter)] = key


def _smooth(file: Understood, key: Key) -> None:
    """``{type: gaussian, params: σ}``, the same as a list of mappings, or σ alone: ``{sigma: σ}``."""
    value = file.get(*key)
    if isinstance(value, list) and all(isinstance(part, dict) for part in value):
        value = {name: inner for part in value for name, inner in part.items()}
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = {"params": value}
    if not isinstance(value, dict) or not value.keys() & {"type", "params"}:
        return
    if value.get("type", "gaussian") != "gaussian":
        raise RefusedFormError((*key, "type"), f"{value['type']!r} is not possible: smoothing is gaussian")
    params, rest = value.get("params"), {k: v for k, v in value.items() if k not in ("type", "params")}
    while isinstance(params, list) and len(params) == 1:
        (params,) = params
    given = params if isinstance(params, dict) else {} if params is None else {"sigma": params}
    file.set(key, rest | given)
    file.renamed |= {(*key, name): key for name in given}


def _one_parameter(kind: str, name: str) -> str | None:
    """The one parameter of an operation, those aside that can have one value only; None where there are more."""
    if name not in registered(kind):
        return None
    fields = params_of(kind, name).model_fields
    free = [key for key, info in fields.items() if not any(isinstance(mark, Only) for mark in info.metadata)]
    return free[0] if len(free) == 1 else None


# --------------------------------------------------------------------------------------------------------------------


def _type(part: Any, default: str) -> Any:
    """The type that a part names, in any of the ways to write it."""
    if isinstance(part, Mapping):
        return part.get("type", default) or "none"
    return part or default


def _settle(config: Strict, key: Key) -> Iterator[tuple[Key, str]]:
    fields = type(config).model_fields
    for name, (amounts_to, why) in config.idle().items():
        if why and name in config.model_fields_set and vars(config)[name] != amounts_to:
            yield (*key, fields[name].alias or name), why
        setattr(config, name, amounts_to)
    for name, info in fields.items():
        here = key if isinstance(config, FlatPart) and name == "params" else (*key, info.alias or name)
        if isinstance(config, Op):
            here = (*key, config.name)
        value = vars(config)[name]
        inner = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, tuple) else ()
        for label, part in [(None, value), *inner]:
            if isinstance(part, Strict):
                yield from _settle(part, here if label is None else (*here, label))


def _data_notes(config: DatasetConfig) -> Iterator[tuple[Key, str]]:
    """What operations and masks do that their names do not tell."""
    for name, pipeline in (config.transforms or {}).items():
        for position, op in enumerate(pipeline.ops):
            if text := getattr(op.params, "looks_ahead", ""):
                yield ("transforms", name, "ops", position, op.name), text
    reach = config.keys_lags.reach
    for name, mask in config.datafilters.items():
        for position, op in enumerate(mask.ops):
            lags = getattr(op.params, "lags", None)
            if lags is not None and lags < reach:
                text = f"covers {lags} bins, and keys_lags reads {reach} before a bin: validity covers {reach}"
                yield ("datafilters", name, "ops", position, op.name), text
