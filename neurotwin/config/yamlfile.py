"""YAML files as plain values, with the line of every key; what a file must not hold is refused in one line."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from .base import ConfigError, nearest

__all__ = ["dump_yaml", "has_key", "line_of", "read_yaml"]

_LOADER, _DUMPER = (getattr(yaml, f"CSafe{kind}", getattr(yaml, f"Safe{kind}")) for kind in ("Loader", "Dumper"))
"""Those of libyaml, which are ten times as fast, where PyYAML was built with it."""
_SHORT = 10_000
"""Characters of a text that libyaml may read. It calls itself for every level of nesting, which takes a character at
least, and some ten thousand levels end the process; what is longer is read by Python, which refuses them."""
_MOST_VALUES = 1_000_000
"""Values in a file, those that aliases repeat counted each time: a few lines of aliases can stand for billions."""


def read_yaml(path: Path) -> tuple[Any, yaml.Node | None]:
    """The content of a YAML file, None where it is empty, and its nodes for :func:`line_of`.

    Raises
    ------
    ConfigError
        If there is no such file, it cannot be read, is not YAML, gives a key twice in one mapping, or is nested or
        repeats itself without end.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        siblings = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        hint = f"; {nearest(path.name, sorted(siblings))}" if siblings else ""
        raise ConfigError(f"{path}: no such file{hint}") from None
    except (OSError, UnicodeDecodeError, ValueError) as error:
        reason = "it is a folder" if path.is_dir() else " ".join(str(error).split())
        raise ConfigError(f"{path}: cannot be read ({reason})") from None
    try:
        loader = (_LOADER if len(text) < _SHORT else yaml.SafeLoader)(text)
        node = loader.get_single_node()
        _check(node, path, {}, set())
        data = None if node is None else loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply to be read") from None
    except (ValueError, TypeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path}: holds a value that YAML cannot read: {' '.join(str(error).split())}") from None
    return data, node


def dump_yaml(value: Any) -> str:
    """Plain values as the text of a YAML file, keys in their order.

    Examples
    --------
    >>> dump_yaml({"b": [1, 2], "a": None})
    'b:\\n- 1\\n- 2\\na: null\\n'
    """
    return yaml.dump(value, Dumper=_DUMPER, sort_keys=False)


def line_of(node: yaml.Node | None, key: Sequence[Any]) -> int | None:
    """Line of the deepest part of a key, a path from the top, that the file has; None if it has nothing of it."""
    line = None
    for part in key:
        if isinstance(node, yaml.MappingNode):
            for name, value in node.value:
                if name.value == str(part):
                    line, node = name.start_mark.line + 1, value
                    break
            else:
                return line
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            return line
    return line


def has_key(node: yaml.Node | None, key: Sequence[Any]) -> bool:
    """Whether a file has something at a key, a path from the top."""
    for part in key:
        if isinstance(node, yaml.MappingNode):
            node = next((value for name, value in node.value if name.value == str(part)), None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
        else:
            return False
    return node is not None


def _check(node: yaml.Node | None, path: Path, sizes: dict[int, int], above: set[int]) -> int:
    """Number of values below a node; each is looked at once, however often aliases repeat it."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) in above:
        raise ConfigError(f"{path}:{node.start_mark.line + 1}: holds itself, through an alias")
    if id(node) not in sizes:
        parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        if isinstance(node, yaml.MappingNode):
            _check_keys(node, path)
        sizes[id(node)] = 1 + sum(_check(part, path, sizes, above | {id(node)}) for part in parts)
        if sizes[id(node)] > _MOST_VALUES:
            raise ConfigError(f"{path}:{node.start_mark.line + 1}: holds more than {_MOST_VALUES:,} values")
    return sizes[id(node)]


def _check_keys(node: yaml.MappingNode, path: Path) -> None:
    lines: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise ConfigError(f"{path}:{line}: a key must be a word, not a list or a mapping")
        if key.value in lines and key.tag != "tag:yaml.org,2002:merge":
            raise ConfigError(f"{path}:{line}: {key.value} is given twice, first in line {lines[key.value]}; keep one")
        lines[key.value] = line
