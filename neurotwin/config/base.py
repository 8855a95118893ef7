"""What every part of the dialect stands on: mappings whose unknown keys are refused, errors that name the cure."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError
from pydantic_core.core_schema import no_info_after_validator_function, no_info_before_validator_function

from ..errors import UserError

__all__ = [
    "LARGEST",
    "ConfigError",
    "Names",
    "NonNegative",
    "NullIsNone",
    "Only",
    "Params",
    "PositiveInt",
    "PositiveSize",
    "Size",
    "Strict",
    "nearest",
    "recording_reads",
    "unread_keys",
]


LARGEST = 100_000
"""The largest number of channels, taps, pixels, layers and the like that a config may ask for."""


class ConfigError(UserError):
    """A configuration file cannot mean what it says; the message names file, line, key and cure."""


def nearest(word: str, words: Sequence[str]) -> str:
    """A suggestion for a misspelt word: ``did you mean 'threshold'?``, or the list of valid words."""
    close = difflib.get_close_matches(str(word), [str(w) for w in words], n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"valid: {', '.join(map(str, words))}"


class Strict(BaseModel):
    """A mapping whose unknown keys are refused with the nearest valid key.

    A key that holds keys of its own may be left empty (null): it is then as if it were not there.
    """

    beside: ClassVar[tuple[str, ...]] = ()
    """Fields whose own keys stand beside those of this mapping in a file."""

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

    def idle(self) -> dict[str, tuple[Any, str]]:
        """Keys that have no effect as they stand: what each amounts to, and the reason ("": not worth a word)."""
        return {}

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """`true` is not 1, which it would become."""
        kinds = _scalars(cls.model_fields[info.field_name].annotation) if _holds_truth(value) else set()
        if kinds & {int, float} and bool not in kinds:
            raise PydanticCustomError("number", "true or false, where a number belongs", {})
        return value

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
        below = prefix if name in config.beside else f"{key}."
        for label, part in [(None, value), *inner]:
            if isinstance(part, Strict):
                idle += unread_keys(part, reads, below if label is None else f"{below}{label}.")
    return idle


def _says_something(value: Any, field: Any) -> bool:
    """Whether a value is another than that of a key left out."""
    if isinstance(value, Strict):
        return any(
            name in value.model_fields_set and _says_something(vars(value)[name], inner)
            for name, inner in type(value).model_fields.items()
        )
    return value != field.get_default(call_default_factory=True)


@dataclass(frozen=True)
class Only:
    """Marks a key that may have one value alone, as files have it; another one is refused with the reason.

    Attributes
    ----------
    value
        The value.
    reason
        Why there is no other.
    """

    value: Any
    reason: str

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        return no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, core_schema: Any, handler: Any) -> dict[str, Any]:
        return {"const": self.value}

    def _check(self, given: Any) -> Any:
        if given != self.value:
            raise ValueError(f"{str(given).lower()} is not possible, only {str(self.value).lower()}: {self.reason}")
        return given


def _holds_truth(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, list | tuple) and any(map(_holds_truth, value)))


def _scalars(annotation: Any) -> set[type]:
    """The plain types that an annotation names, at any depth."""
    if get_origin(annotation) is Literal:
        return {type(value) for value in get_args(annotation)}
    if isinstance(annotation, type) and not get_args(annotation):
        return {annotation}
    return set().union(*(_scalars(inner) for inner in get_args(annotation)))


def _names(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _triple(value: Any) -> Any:
    return (value,) * 3 if isinstance(value, int) and not isinstance(value, bool) else value


PositiveInt = Annotated[int, Field(gt=0, le=LARGEST)]
_Natural = Annotated[int, Field(ge=0, le=LARGEST)]
_Triple = BeforeValidator(_triple, json_schema_input_type=int | tuple[int, int, int])
Size = Annotated[tuple[_Natural, _Natural, _Natural], _Triple]
"""``[T, H, W]``; a single number means the same on all three axes."""
PositiveSize = Annotated[tuple[PositiveInt, PositiveInt, PositiveInt], _Triple]
"""``[T, H, W]``, at least 1 on each axis."""
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
