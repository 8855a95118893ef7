"""Sections of a file whose keys depend on a name: ``{type: NAME, params: {...}}``, and ``NAME: {...}``.

What a name may be, and which parameters it has, stands in the registry.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field, SerializeAsAny, ValidationError, field_validator, model_serializer, model_validator
from pydantic_core import PydanticCustomError

from .base import ConfigError, Params, Strict
from .registry import define, registered

__all__ = ["FlatPart", "NoParams", "Op", "Part", "params_of"]


class NoParams(Params):
    """No parameters."""


def params_of(kind: str, name: str) -> type[Params]:
    """The class of the parameters of a definition: its attribute `Params`, or itself where its fields are these."""
    definition = define(kind, name)
    if isinstance(definition, type) and issubclass(definition, Params):
        return definition
    return getattr(definition, "Params", NoParams)


def _known(kind: str, name: Any) -> type[Params]:
    try:
        return params_of(kind, name)
    except ConfigError as error:
        raise PydanticCustomError("unknown_name", "{text}", {"text": str(error)}) from None


def _validated(kind: type[Params], value: Any, under: str = "") -> Params:
    if isinstance(value, kind):
        return value
    if isinstance(value, Params):
        value = value.model_dump(exclude_unset=True)
    try:
        return kind.model_validate({} if value is None else value)
    except ValidationError as error:
        details: dict[str, Any] = {"text": str(error), "errors": error.errors()}
        raise PydanticCustomError("nested", "{text}", details | ({"under": under} if under else {})) from None


class Part(Strict):
    """One component: its type and the parameters of that type.

    Attributes
    ----------
    kind
        Kind of definitions of which `type` names one.
    """

    kind: ClassVar[str]

    type: str = "none"
    params: SerializeAsAny[Params] = Field(default_factory=dict)  # type: ignore[arg-type]

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, data: Any) -> Any:
        """A name alone means its default parameters; null means none."""
        if data is None or isinstance(data, str):
            return {"type": data or "none"}
        return data

    @field_validator("type", mode="before")
    @classmethod
    def _known_type(cls, value: Any) -> Any:
        value = "none" if value is None else value
        _known(cls.kind, value)
        return value

    @field_validator("params", mode="before")
    @classmethod
    def _params_of_type(cls, value: Any, info: Any) -> Any:
        if "type" not in info.data:
            return NoParams()
        return _validated(_known(cls.kind, info.data["type"]), value)

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: Any) -> dict[str, Any]:
        """The keys that `params` may have depend on `type`."""
        reference = handler(core_schema)
        schema, default = handler.resolve_ref_schema(reference), cls.model_fields["type"].default
        null, names = {"type": "null"}, list(registered(cls.kind))
        kinds = [*names, *([None] if "none" in names else [])]
        schema["properties"] = {"type": {"enum": kinds, "default": default}, "params": {}}
        schema["allOf"] = [
            {
                "if": {"properties": {"type": {"const": name}}, "required": [] if name == default else ["type"]},
                "then": {"properties": {"params": {"anyOf": [_schema(params_of(cls.kind, name), handler), null]}}},
            }
            for name in names
        ]
        return {"anyOf": [reference, {"enum": kinds}]}


class FlatPart(Strict):
    """One component whose parameters stand beside its type: ``{type: NAME, key: value}``.

    Attributes
    ----------
    kind
        Kind of definitions of which `type` names one.
    """

    kind: ClassVar[str]
    beside = ("params",)

    type: str = "none"
    params: SerializeAsAny[Params]

    @model_validator(mode="before")
    @classmethod
    def _from_yaml(cls, data: Any) -> Any:
        if data is None or isinstance(data, str):
            data = {"type": data}
        if not isinstance(data, Mapping):
            raise PydanticCustomError("part", "write '{{type: NAME, ...}}'", {})
        if isinstance(data.get("params"), Params):
            return data
        name = data.get("type") or "none"
        rest = {key: value for key, value in data.items() if key != "type"}
        if rest and "type" not in data:
            text = f"{', '.join(map(str, rest))}: of which type? write type: {' | '.join(registered(cls.kind))} as well"
            raise PydanticCustomError("part", "{text}", {"text": text})
        try:
            known = params_of(cls.kind, name)
        except ConfigError as error:
            inner = {"type": "unknown_name", "loc": ("type",), "msg": str(error)}
            raise PydanticCustomError("nested", "{text}", {"text": str(error), "errors": [inner]}) from None
        return {"type": name, "params": _validated(known, rest)}

    @model_serializer
    def _flat(self) -> dict[str, Any]:
        return {"type": self.type, **self.params.model_dump(mode="json", by_alias=True)}

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: Any) -> dict[str, Any]:
        """Beside `type` stand the keys of that type."""
        kinds = []
        for name in registered(cls.kind):
            keys = _schema(params_of(cls.kind, name), handler)
            keys = handler.resolve_ref_schema(keys)
            type_key = {"enum": [name, None]} if name == "none" else {"const": name}
            required = [] if name == "none" else ["type"]
            kinds.append(keys | {"properties": {"type": type_key, **keys.get("properties", {})}, "required": required})
        return {"anyOf": [*kinds, {"enum": [*registered(cls.kind), None]}]}


class Op(Strict):
    """One operation of a pipeline, written ``name: {params}`` or ``name``.

    Attributes
    ----------
    kind
        Kind of definitions of which `name` names one.
    """

    kind: ClassVar[str]

    name: str
    params: SerializeAsAny[Params]

    @model_validator(mode="before")
    @classmethod
    def _from_yaml(cls, data: Any) -> Any:
        if isinstance(data, str):
            data = {data: {}}
        if not isinstance(data, Mapping):
            raise PydanticCustomError("op", "write an operation as 'name: {params}'", {})
        if set(data) == {"name", "params"}:
            data = {data["name"]: data["params"]}
        if len(data) != 1:
            raise PydanticCustomError("op", "one operation an entry; start each with '- '", {})
        ((name, params),) = data.items()
        kind = _known(cls.kind, name)
        return {"name": name, "params": _validated(kind, params, under=name)}

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: Any) -> dict[str, Any]:
        """A name, or one name with its parameters."""
        null, names = {"type": "null"}, list(registered(cls.kind))
        entries = {name: {"anyOf": [_schema(params_of(cls.kind, name), handler), null]} for name in names}
        one = {"type": "object", "properties": entries, "additionalProperties": False, "maxProperties": 1}
        return {"anyOf": [{"enum": names}, one | {"minProperties": 1}]}


def _schema(kind: type[Params], handler: Any) -> dict[str, Any]:
    return kind.allow_empty(handler(kind.__pydantic_core_schema__))
