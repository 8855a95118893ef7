"""From YAML files to typed configs: reading, merging a parent with its sessions, naming the line of a mistake."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from .base import ConfigError, Strict, nearest
from .changes import Change, changed
from .dataset import DatasetConfig
from .dialect import RefusedFormError, Understood, settle, understand_dataset, understand_model
from .locate import file_name, find_data, is_url
from .model import ModelConfig
from .notices import MODEL, notice, noticing
from .registry import know_shipped
from .yamlfile import has_key, line_of, read_yaml

__all__ = ["ParentConfig", "json_schemas", "load_dataset_configs", "load_model_config"]


def json_schemas() -> dict[str, dict[str, Any]]:
    """JSON Schemas of the files by name, `model` and `dataset`, from which editors complete and check the YAML.

    A dataset file is a session's or a parent's, so its schema has the keys of both.
    """
    know_shipped()
    dataset, parent = DatasetConfig.model_json_schema(), ParentConfig.model_json_schema()
    dataset["properties"] |= parent["properties"]
    schemas = {"model": ModelConfig.model_json_schema(), "dataset": dataset}
    return {name: {"$schema": "https://json-schema.org/draft/2020-12/schema"} | s for name, s in schemas.items()}


def load_model_config(path: str | Path, *, changes: Sequence[Change] = ()) -> ModelConfig:
    """Read a model YAML, in any of the forms that labs write (:mod:`~neurotwin.config.dialect`).

    Parameters
    ----------
    path
        The file.
    changes
        What takes the place of its values; those of dataset files are passed over.

    Raises
    ------
    ConfigError
        If the file is missing, empty, is not YAML, or says something that is not in the dialect.
    """
    path = Path(path)
    with noticing() as notices:
        data, node = _read(path)
        if node is None:
            raise ConfigError(f"{path}: says nothing of a model; name a part, such as readout: gaussian, or write {{}}")
        changes = [change for change in changes if change.file == "model"]
        data = changed(data, changes, path)
        notices.place(MODEL, (str(path), data))
        return _understood(ModelConfig, understand_model, data, path, node, subject=MODEL, changes=changes)


class ParentConfig(Strict):
    """A parent file: which sessions, and values that all of them share (any key of a session)."""

    session_dir: str = Field(".", description="Folder of the session YAMLs, relative to this file.")
    sessions: tuple[str, ...] | None = Field(
        None, min_length=1, description="Names of the sessions; NAME.yaml each. Default: all files of session_dir."
    )


def load_dataset_configs(
    path: str | Path, *, data_dir: str | Path | None = None, max_datasets: int | None = None,
    changes: Sequence[Change] = (),
) -> list[DatasetConfig]:  # fmt: skip
    """Read a parent YAML, or a directory of session YAMLs each complete by itself (sorted by name).

    Every config returned has its `session` set, and its `path` as an absolute path, or a URL, where the data lie.
    `data_dir` is taken from the argument, else from ``NEUROTWIN_DATA``, else from the YAML. `changes` take the place of
    values of every session; those of the model file are passed over.

    Raises
    ------
    ConfigError
        As :func:`load_model_config`; also if a session is named twice, or has no data.
    """
    path = Path(path)
    with noticing() as notices:
        files, parent, base = _session_files(path)
        changes = [change for change in changes if change.file == "dataset"]
        configs = []
        for file in files[:max_datasets]:
            data, node = _read(file)
            merged = changed(_merge(parent, data), changes, file)
            subject = str(data.get("session") or file.stem)
            notices.place(subject, (str(file), data), *([(str(path), parent)] if base else []))
            config = _understood(
                DatasetConfig, understand_dataset, merged, file, node, subject=subject, changes=changes
            )
            config.session = config.session or file.stem
            folder = file.parent if data.get("data_dir") or base is None else base
            found = find_data(config, file, folder, data_dir)
            there = is_url(found) or Path(found).exists()
            if base is None and file == path and not there and not _OF_ONE_SESSION & set(data):
                raise ConfigError(
                    f"{path}: has neither session_dir nor sessions, so it is the file of one session, and there is no "
                    f"recording of that name ({file_name(found)}); give session_dir for a parent file, or path for a "
                    "session"
                )
            config.path, config.data_dir = found, None
            configs.append(config)
    names = [config.session for config in configs]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{path}: session {name!r} occurs twice; give each file its own `session`")
    return configs


_OF_ONE_SESSION = {"session", "path", "directory", "data_dir", "cids"}


def _session_files(path: Path) -> tuple[list[Path], dict[str, Any], Path | None]:
    """The sessions' files, what a parent says of all, and the parent's folder (None where there is no parent)."""
    if path.is_dir():
        return _yaml_files(path, "give a parent file or a folder of session files"), {}, None
    data, node = _read(path)
    if not {"sessions", "session_dir"} & set(data):
        return [path], {}, None
    keys = set(ParentConfig.model_fields)
    known = [*keys, *DatasetConfig.model_fields]
    for key in data:
        if key not in known:
            raise ConfigError(f"{path}:{line_of(node, [key])}: unknown key {key!r}; {nearest(str(key), known)}")
    head = _validate(ParentConfig, {k: v for k, v in data.items() if k in keys}, path, node)
    parent = {k: v for k, v in data.items() if k not in keys}
    with noticing():  # what is said here is said again of the sessions
        _understood(DatasetConfig, understand_dataset, parent, path, node, subject=None)
    folder = path.parent / head.session_dir
    if not folder.is_dir():
        raise ConfigError(f"{path}: session_dir: no folder {folder}; correct it")
    if head.sessions is None:
        found = _yaml_files(folder, "name the sessions in `sessions`, or correct session_dir", but=path)
    else:
        found = [folder / f"{name}.yaml" for name in head.sessions]
        found = [file if file.exists() else _first([file.with_suffix(".yml")], file) for file in found]
    return found, parent, path.parent


def _yaml_files(folder: Path, cure: str, but: Path | None = None) -> list[Path]:
    same = None if but is None else but.resolve()
    files = sorted(p for p in folder.iterdir() if p.suffix in (".yaml", ".yml") and p.resolve() != same)
    if not files:
        raise ConfigError(f"{folder}: holds no .yaml file{' of a session' if but else ''}; {cure}")
    return files


def _first(files: Sequence[Path], default: Path) -> Path:
    return next((file for file in files if file.exists()), default)


def _merge(parent: Mapping[str, Any], child: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(parent)
    for key, value in child.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _read(path: Path) -> tuple[dict[str, Any], yaml.Node | None]:
    data, node = read_yaml(path)
    data = {} if data is None else data
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: holds a {type(data).__name__} where keys with values are expected")
    return data, node


def _understood(
    kind: type[Strict], understand: Callable[[Mapping[str, Any]], Understood], data: dict[str, Any], path: Path,
    node: yaml.Node | None, *, subject: str | None, changes: Sequence[Change] = (),
) -> Any:  # fmt: skip
    """The config that a file means; its notices go under `subject`, or nowhere."""
    try:
        file = understand(data)
    except RefusedFormError as error:
        raise ConfigError(f"{_where(path, node, error.key, changes)}: {error}") from None
    config = _validate(kind, file.data, path, node, file.original, changes)
    for key, text in [*file.notes, *settle(config)]:
        if subject is not None:
            notice(subject, file.original(key), text)
    return config


def _where(path: Path, node: yaml.Node | None, key: Sequence[Any], changes: Sequence[Change] = ()) -> str:
    """``FILE:LINE: a.b.c`` of a key; of one that a change brought, the change and the key."""
    for change in changes:
        short = min(len(key), len(change.key))
        if tuple(key[:short]) == change.key[:short] and (len(key) >= len(change.key) or not has_key(node, key)):
            return f"{change.name}: {'.'.join(map(str, key))}"
    line = line_of(node, key)
    return f"{path}{f':{line}' if line else ''}" + (f": {'.'.join(map(str, key))}" if key else "")


def _validate(
    kind: type[Strict], data: dict[str, Any], path: Path, node: yaml.Node | None,
    original: Callable[[tuple], tuple] = tuple, changes: Sequence[Change] = (),
) -> Any:  # fmt: skip
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        found = _distinct(_flatten(error.errors()))
        lines = [f"{_where(path, node, original(key), changes)}: {text}" for key, text in found]
        raise ConfigError("\n".join(dict.fromkeys(lines))) from None


def _distinct(errors: list[tuple[tuple, str]]) -> list[tuple[tuple, str]]:
    """Errors without those that others bring with them: of the same number on three axes, of a list that lost one."""
    kept: dict[tuple, tuple[tuple, str]] = {}
    for key, text in errors:
        inside = any(other[: len(key)] == key and len(other) > len(key) for other, _ in errors)
        if not inside:
            same = key[:-1] if key and isinstance(key[-1], int) else key
            kept.setdefault((same, text), (key, text))
    return list(kept.values())


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
