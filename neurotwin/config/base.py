"""What every part of the dialect stands on: mappings whose unknown keys are refused, errors that name the cure."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

__all__ = ["ConfigError", "Names", "NonNegative", "Params", "PositiveInt", "Size", "Strict", "nearest"]


class ConfigError(ValueError):
    """A configuration file cannot mean what it says; the message names file, line, key and cure."""


def nearest(word: str, words: Sequence[str]) -> str:
    """A suggestion for a misspelt word: ``did you mean 'threshold'?``, or the list of valid words."""
    close = difflib.get_close_matches(str(word), [str(w) for w in words], n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"valid: {', '.join(map(str, words))}"


class Strict(BaseModel):
    """A mapping whose unknown keys are refused with the nearest valid key."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True, validate_default=True, allow_inf_nan=False)

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
        return data


class Params(Strict):
    """Base of the parameters of a component."""


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
