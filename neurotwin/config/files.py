"""From YAML files to typed configs: reading, merging a parent with its sessions, naming the line of a mistake."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from .base import ConfigError, Strict, nearest
from .dataset import DatasetConfig
from .model import ModelConfig

__all__ = ["ParentConfig", "json_schemas", "load_dataset_configs", "load_model_config"]


def json_schemas() -> dict[str, dict[str, Any]]:
    """JSON Schemas of the files by name, `model` and `dataset`, from which editors complete and check the YAML.

    A dataset file is a session's or a parent's, so its schema has the keys of both.
    """
    dataset, parent = DatasetConfig.model_json_schema(), ParentConfig.model_json_schema()
    dataset["properties"] |= parent["properties"]
    schemas = {"model": ModelConfig.model_json_schema(), "dataset": dataset}
    return {name: {"$schema": "https://json-schema.org/draft/2020-12/schema"} | s for name, s in schemas.items()}


def load_model_config(path: str | Path) -> ModelConfig:
    """Read a model YAML.

    Raises
    ------
    ConfigError
        If the file is missing, is not YAML, or says something that is not in the dialect.
    """
    data, node = _read(Path(path))
    return _validate(ModelConfig, data, Path(path), node)


class ParentConfig(Strict):
    """A parent file: which sessions, and values that all of them share (any key of a session)."""

    session_dir: str = Field(".", description="Folder of the session YAMLs, relative to this file.")
    sessions: tuple[str, ...] = Field(..., min_length=1, description="Names of the sessions; NAME.yaml each.")


def load_dataset_configs(
    path: str | Path, *, data_dir: str | Path | None = None, max_datasets: int | None = None
) -> list[DatasetConfig]:
    """Read a parent YAML, or a directory of session YAMLs each complete by itself (sorted by name).

    Every config returned has its `session` set, and its `path` as an absolute path where the data lie. `data_dir`
    is taken from the argument, else from ``NEUROTWIN_DATA``, else from the YAML.

    Raises
    ------
    ConfigError
        As :func:`load_model_config`; also if a session is named twice, or has no data.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix in (".yaml", ".yml"))
        if not files:
            raise ConfigError(f"{path}: holds no .yaml file; give a parent file or a folder of session files")
        parent: dict[str, Any] = {}
        base = None
    else:
        data, node = _read(path)
        files, parent, base = [path], {}, None
        if "sessions" in data or "session_dir" in data:
            keys = set(ParentConfig.model_fields)
            known = [*keys, *DatasetConfig.model_fields]
            for key in data:
                if key not in known:
                    raise ConfigError(f"{path}:{_line(node, [key])}: unknown key {key!r}; {nearest(str(key), known)}")
            head = _validate(ParentConfig, {k: v for k, v in data.items() if k in keys}, path, node)
            parent = {k: v for k, v in data.items() if k not in keys}
            _validate(DatasetConfig, parent, path, node)
            folder = path.parent / head.session_dir
            files, base = [folder / f"{name}.yaml" for name in head.sessions], path.parent
    configs = []
    for file in files[:max_datasets]:
        data, node = _read(file)
        own_dir = data.get("data_dir")
        merged = _merge(parent, data)
        config = _validate(DatasetConfig, merged, file, node)
        config.session = config.session or file.stem
        folder = file.parent if own_dir or base is None else base
        config.path = str(_find_data(config, file, folder, data_dir))
        config.data_dir = None
        configs.append(config)
    names = [config.session for config in configs]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{path}: session {name!r} occurs twice; give each file its own `session`")
    return configs


def _find_data(config: DatasetConfig, file: Path, folder: Path, data_dir: str | Path | None) -> Path:
    """Where the data of a session lie. A file that does not exist yet is left to whoever opens it."""
    root = (
        Path(data_dir or os.environ.get("NEUROTWIN_DATA") or folder / (config.data_dir or ".")).expanduser().resolve()
    )
    if config.path is not None:
        return root / Path(config.path).expanduser()
    found = sorted(p for p in root.glob(f"{config.session}.*") if p.suffix not in (".yaml", ".yml", ".tmp"))
    if len(found) > 1:
        raise ConfigError(f"{file}: {config.session!r} could be any of {[p.name for p in found]} in {root}; set `path`")
    return found[0] if found else root / f"{config.session}.safetensors"


def _merge(parent: Mapping[str, Any], child: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(parent)
    for key, value in child.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _read(path: Path) -> tuple[dict[str, Any], yaml.Node | None]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        siblings = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        hint = f"; {nearest(path.name, sorted(siblings))}" if siblings else ""
        raise ConfigError(f"{path}: no such file{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: holds a {type(data).__name__} where keys with values are expected")
    return data, node


def _validate(kind: type[Strict], data: dict[str, Any], path: Path, node: yaml.Node | None) -> Any:
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        lines = []
        for loc, message in _flatten(error.errors()):
            line = _line(node, loc)
            where = ".".join(str(part) for part in loc)
            lines.append(f"{path}{f':{line}' if line else ''}: {f'{where}: ' if where else ''}{message}")
        raise ConfigError("\n".join(dict.fromkeys(lines))) from None


def _flatten(errors: Sequence[Any], prefix: tuple = ()) -> list[tuple[tuple, str]]:
    flat: list[tuple[tuple, str]] = []
    for error in errors:
        loc = (*prefix, *error["loc"])
        context = error.get("ctx", {})
        if error["type"] == "nested":
            under = (context["under"],) if "under" in context else ()
            flat += _flatten(context["errors"], (*loc, *under))
        else:
            if error["type"] == "unknown_key":
                loc = (*loc, context["key"])
            flat.append((loc, error["msg"].removeprefix("Value error, ")))
    return flat


def _line(node: yaml.Node | None, loc: Sequence[Any]) -> int | None:
    """Line of the deepest key of `loc` that the file has."""
    line = None
    for part in loc:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == str(part):
                    line, node = key.start_mark.line + 1, value
                    break
            else:
                return line
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            return line
    return line
