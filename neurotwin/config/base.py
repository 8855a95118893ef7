"""What every part of the dialect stands on: mappings whose unknown keys are refused, errors that name the cure."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Annotated, Any, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError
from pydantic_core.core_schema import no_info_before_validator_function

__all__ = [
    "ConfigError",
    "Names",
    "NonNegative",
    "NullIsNone",
    "Params",
    "PositiveInt",
    "Size",
    "Strict",
    "nearest",
    "recording_reads",
    "unread_keys",
]


class ConfigError(ValueError):
    """A configuration file cannot mean what it says; the message names file, line, key and cure."""


def nearest(word: str, words: Sequence[str]) -> str:
    """A suggestion for a misspelt word: ``did you mean 'threshold'?``, or the list of valid words."""
    close = difflib.get_close_matches(str(word), [str(w) for w in words], n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"valid: {', '.join(map(str, words))}"


class Strict(BaseModel):
    """A mapping whose unknown keys are refused with the nearest valid key.

    A key that holds keys of its own may be left empty (null): it is then as if it were not there.
    """

    model_config = ConfigDict(extra="forbid", populate_by_name=True, validate_default=True, allow_inf_nan=False)

    def __getattribute__(self, name: str) -> Any:
        reads = _READS.get()
        if reads is not None and name in type(self).model_fields:
            reads.add((id(self), name))
        return super().__getattribute__(name)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        known = [field.alias or name for name, field in cls.model_fields.items()]
        for key in data:
            if key not in known and key not in cls.model_fields:
                raise PydanticCustomError(
                    "unknown_key", "unknown key '{key}'; {hint}", {"key": str(key), "hint": nearest(key, known)}
                )
        sections = cls._sections()
        return {key: value for key, value in data.items() if value is not None or key not in sections}

    @classmethod
    def _sections(cls) -> set[str]:
        """Keys that hold keys of their own."""
        return {
            name
            for name, field in cls.model_fields.items()
            for kind in (field.annotation, *get_args(field.annotation))
            if isinstance(kind, type) and issubclass(kind, BaseModel)
        }

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: Any) -> dict[str, Any]:
        reference = handler(core_schema)
        cls.allow_empty(handler.resolve_ref_schema(reference))
        return reference

    @classmethod
    def allow_empty(cls, schema: dict[str, Any]) -> dict[str, Any]:
        """Let the keys that hold keys be null in a JSON schema of this mapping."""
        properties = schema.get("properties", {})
        for name in cls._sections() & set(properties):
            properties[name] = {"anyOf": [properties[name], {"type": "null"}]}
        return schema


class Params(Strict):
    """Base of the parameters of a component."""


_READS: ContextVar[set[tuple[int, str]] | None] = ContextVar("_READS", default=None)


@contextmanager
def recording_reads() -> Iterator[set[tuple[int, str]]]:
    """Note which keys of configs are read within the block; :func:`unread_keys` then lists those that were not.

    Examples
    --------
    >>> class Example(Params):
    ...     used: int = 1
    ...     unused: int = 2
    >>> example = Example(used=3, unused=4)
    >>> with recording_reads() as reads:
    ...     _ = example.used
    >>> unread_keys(example, reads)
    ['unused']
    """
    reads: set[tuple[int, str]] = set()
    token = _READS.set(reads)
    try:
        yield reads
    finally:
        _READS.reset(token)


def unread_keys(config: Strict, reads: set[tuple[int, str]], prefix: str = "") -> list[str]:
    """Keys that were given a value other than their default and were not read: they have no effect.

    Parameters
    ----------
    config
        A config; the configs that it holds are looked at as well.
    reads
        What :func:`recording_reads` noted while the config was used.
    prefix
        Put before every key.
    """
    idle: list[str] = []
    for name, field in type(config).model_fields.items():
        key, value = f"{prefix}{field.alias or name}", vars(config)[name]
        if (id(config), name) not in reads:
            if name in config.model_fields_set and _says_something(value, field):
                idle.append(key)
            continue
        inner = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, tuple) else ()
        for label, part in [(None, value), *inner]:
            if isinstance(part, Strict):
                idle += unread_keys(part, reads, f"{key}." if label is None else f"{key}.{label}.")
    return idle


def _says_something(value: Any, field: Any) -> bool:
    """Whether a value is another than that of a key left out."""
    if isinstance(value, Strict):
        return any(
            name in value.model_fields_set and _says_something(vars(value)[name], inner)
            for name, inner in type(value).model_fields.items()
        )
    return value != field.get_default(call_default_factory=True)


def _names(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _triple(value: Any) -> Any:
    return (value,) * 3 if isinstance(value, int) and not isinstance(value, bool) else value


Size = Annotated[tuple[int, int, int], BeforeValidator(_triple, json_schema_input_type=int | tuple[int, int, int])]
"""``[T, H, W]``; a single number means the same on all three axes."""
PositiveInt = Annotated[int, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Names = Annotated[tuple[str, ...], Field(min_length=1), BeforeValidator(_names, json_schema_input_type=str | list[str])]
"""One name, or a list of names."""


class NullIsNone:
    """Marks a type or name of which `none` is one: null means that."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        inner = handler(source)
        return no_info_before_validator_function(lambda value: "none" if value is None else value, inner)

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: Any) -> dict[str, Any]:
        return {"anyOf": [handler(core_schema), {"type": "null"}]}
