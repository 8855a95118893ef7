"""Random model and dataset files: made from the schemas, so that a key that is added later is tried as well.

A file is either random in all of its parts or a file that works, and then one of its values is replaced, left out,
given twice or put elsewhere. Most hostile values are of a wrong type or far too large.
"""

from collections import Counter
from collections.abc import Iterator
from random import Random
from typing import Any

import yaml

from neurotwin.config import json_schemas

__all__ = ["GOOD_DATASETS", "GOOD_MODELS", "HOSTILE", "SchemaFiles", "damage", "keys_of", "strange_text"]

HOSTILE = (
    None, True, False, 0, -1, 1, 2, 3, 7, 64, 10**6, 10**12, -(10**12), 10**30, 0.5, -0.5, 1.0, 1e-300, 1e9, 1e300,
    float("inf"), float("-inf"), float("nan"), "", "x", "none", "1", "1e9", "0..3", "0..99999999999", "-1..3", "[]", [],
    [0], [1, 2], [1, 2, 3], [10**9] * 3, [-1, -1, -1], [0, 0, 0], [[]], [None], {}, {"type": "none"}, {"type": None},
    {"type": "nothing"}, {"a": 1}, {None: 1}, {1: 2}, [{}], [True, False], "é" * 300, ["x"] * 200, "a\nb", "\t", "~",
)  # fmt: skip
"""Values that a key is given whatever its type."""

_BLOCK = {"conv_params": {"kernel_size": [1, 3, 3], "padding": [0, 1, 1]}, "norm_type": "rms", "act_type": "relu"}
_POOLED = _BLOCK | {"pool_params": {"type": "max", "stride": 2}, "order": ["conv", "norm", "act", "pool"]}
_TEMPORAL = {"type": "learnable_temporal", "params": {"kernel_size": 3, "num_channels": 2}}
_PENALTY = {
    "name": "sparse", "type": "l1", "lambda": 0.1, "apply_to": ["readout/features"],
    "schedule": {"kind": "warmup", "start_epoch": 1, "end_epoch": 3},
}  # fmt: skip

GOOD_MODELS: tuple[dict[str, Any], ...] = (
    {"frontend": _TEMPORAL, "convnet": {"type": "resnet", "params": {"channels": [4], "block_configs": [_BLOCK]}}},
    {"convnet": {"type": "vanilla", "params": {"channels": [3, 4], "block_configs": [_POOLED, _BLOCK]}}},
    {"convnet": {"type": "densenet", "params": {"channels": [3], "block_configs": [_BLOCK]}}, "readout": "gaussianei"},
    {
        "frontend": _TEMPORAL, "recurrent": {"type": "convgru", "params": {"hidden_dim": 3}},
        "modulator": {"type": "film"}, "regularization": [_PENALTY],
    },
    {
        "frontend": _TEMPORAL, "modulator": {"type": "concat"}, "readout": {"type": "linear"},
        "baseline": {"enabled": True}, "output_activation": "softplus",
    },
    {
        "model_type": "v1multi_history", "readout": {"type": "linear"},
        "history_encoder": {"type": "mlp", "params": {"num_lags": 2, "hidden_dims": [3]}},
    },
    {"adapter": {"type": "adapter", "params": {"grid_size": 7}}, "likelihood": {"type": "negative_binomial"}},
    {"shifter": {"type": "mlp"}, "readout": {"type": "point"}},
)  # fmt: skip
"""Small models that work on the session of the fuzzing."""

_STIM = {"source": "stim", "ops": ["pixelnorm"]}
GOOD_DATASETS: tuple[dict[str, Any], ...] = (
    {
        "keys_lags": {"stim": "0..3", "behavior": [0, 1], "history": [1, 2]}, "types": ["movie"],
        "transforms": {"stim": _STIM, "gaze": {"source": "gaze", "ops": ["maxnorm"], "expose_as": "behavior"}},
        "train_val_split": 0.7, "test_split": 0.1, "seed": 3, "cids": [2, 0],
    },
    {
        "sampling": {"source_rate": 60, "target_rate": 30}, "keys_lags": {"stim": ["0..4"]},
        "datafilters": {"dfs": {"ops": [{"valid_nlags": {"n_lags": 4}}, {"missing_pct": {"threshold": 40}}]}},
        "transforms": {
            "stim": {"source": "stim", "ops": ["pixelnorm", {"diff": {"axis": 0}}]},
            "pupil": {"source": "pupil", "ops": [{"temporal_basis": {"history_bins": 5}}], "expose_as": "behavior"},
        },
    },
    {"keys_lags": {"stim": 0}, "subject": "ada", "units": {"area": ["V1"]}, "adapter": "none", "readout": "linear"},
)  # fmt: skip
"""Configs that work on the session of the fuzzing."""


class SchemaFiles:
    """Draws random contents of files from their JSON schemas.

    Parameters
    ----------
    kind
        "model" or "dataset".

    Attributes
    ----------
    tried
        How often each key was given a hostile value.
    """

    def __init__(self, kind: str) -> None:
        self.schema = json_schemas()[kind]
        self.good = GOOD_MODELS if kind == "model" else GOOD_DATASETS
        self.tried: Counter[str] = Counter()

    def draw(self, random: Random) -> tuple[str, str]:
        """A file's text, and what is strange about it."""
        if random.random() < 0.1:
            return strange_text(random)
        data = _copy(random.choice(self.good)) if random.random() < 0.5 else self.instance(self.schema, random)
        kept = self.instance(self.schema, random)
        for key in random.sample(sorted(kept), min(len(kept), random.randrange(3))):
            data[key] = kept[key]
        what = "as it is"
        for _ in range(random.choice((0, 1, 1, 1, 1, 2, 3))):
            what = self._damage(data, random)
        text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
        if random.random() < 0.05:
            lines = text.splitlines(keepends=True)
            line = random.randrange(len(lines))
            return "".join([*lines[: line + 1], lines[line], *lines[line + 1 :]]), f"line {line + 1} twice"
        return text, what

    def instance(self, schema: Any, random: Random, depth: int = 0) -> Any:
        """A random value that a schema allows, more or less."""
        if "$ref" in schema:
            return self.instance(self.schema["$defs"][schema["$ref"].rpartition("/")[2]], random, depth)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return random.choice(schema["enum"])
        branches = [part for part in schema.get("allOf", ()) if "then" in part]
        if branches:
            return self._part(schema, random.choice(branches), random, depth)
        if options := schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf"):
            return self.instance(random.choice(options), random, depth)
        kind = schema.get("type")
        if kind == "object" or "properties" in schema:
            return self._mapping(schema, random, depth)
        if kind == "array":
            if "prefixItems" in schema:
                return [self.instance(item, random, depth + 1) for item in schema["prefixItems"]]
            number = random.randint(schema.get("minItems", 0), min(schema.get("maxItems", 3), 3) or 1)
            return [self.instance(schema.get("items", {}), random, depth + 1) for _ in range(max(number, 0))]
        low = schema.get("minimum", schema.get("exclusiveMinimum", 0))
        if kind == "integer":
            return random.choice((int(low), int(low) + 1, int(low) + random.randrange(1, 9)))
        if kind == "number":
            return random.choice((low, low + random.random(), low + 10 * random.random(), 1))
        plain = {"boolean": random.random() < 0.5, "null": None, "string": random.choice(_WORDS)}
        return plain[kind] if kind in plain else random.choice(HOSTILE)

    def _part(self, schema: Any, branch: Any, random: Random, depth: int) -> Any:
        """A component: a type, and the parameters that this type has."""
        plain = {key: value for key, value in schema.items() if key != "allOf"}
        known = {**schema.get("properties", {}), **branch["if"]["properties"], **branch["then"]["properties"]}
        needed = [*schema.get("required", []), "type", "params"]
        return self._mapping(plain | {"properties": known, "required": needed}, random, depth)

    def _mapping(self, schema: Any, random: Random, depth: int) -> dict[str, Any]:
        needed, share = schema.get("required", []), 0.4 if depth else 0.25
        known = schema.get("properties", {})
        least = min((self.tried[key] for key in known), default=0)
        chosen = [k for k in known if k in needed or random.random() < (share if self.tried[k] > least else 0.5)]
        if depth > 8:
            chosen = [key for key in chosen if key in needed]
        if schema.get("maxProperties") == 1:
            chosen = [random.choice(list(known))]
        made = {key: self.instance(known[key], random, depth + 1) for key in chosen}
        if isinstance(inner := schema.get("additionalProperties"), dict):
            made |= {
                name: self.instance(inner, random, depth + 1)
                for name in random.sample(_WORDS, random.randrange(3))
            }  # fmt: skip
        return made

    def _damage(self, data: dict[str, Any], random: Random) -> str:
        """Change one value in place, preferring keys that had few; say what."""
        places = [place for place in _places(data) if isinstance(place[1], str)] or [(data, "convnet")]
        least = min(self.tried[key] for _, key in places)
        holder, key = random.choice([place for place in places if self.tried[place[1]] <= least + 2])
        self.tried[key] += 1
        action = random.random()
        if action < 0.8:
            holder[key] = _copy(random.choice(HOSTILE))
            return f"{key}: {str(holder[key])[:60]}"
        value = holder.pop(key, None)
        if action < 0.9:
            holder[key[:-1] + random.choice("xs_")] = value
            return f"{key} misspelt"
        if action < 0.95:
            return f"no {key}"
        holder[key] = [value] if random.random() < 0.5 else {key: value}
        return f"{key} one level deeper"


def keys_of(schema: Any) -> set[str]:
    """All keys that a schema names, at any depth."""
    if isinstance(schema, list):
        return set().union(*map(keys_of, schema))
    if not isinstance(schema, dict):
        return set()
    own = schema.get("properties")
    found = set(own) if isinstance(own, dict) else set()
    return found.union(*(keys_of(value) for value in schema.values()))


def strange_text(random: Random) -> tuple[str, str]:
    """Text that is no file of ours, or hardly; and what it is."""
    depth = random.choice((10, 100, 5000))
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9))
    texts = {
        "nothing": "", "a comment": "# nothing\n", "a number": "3", "a list": "- 1\n- 2\n", "text": "convnet",
        "two documents": "{}\n---\n{}\n", "a tab": "\tconvnet: none", "an open bracket": "convnet: [",
        "brackets": "convnet: " + "[" * depth + "]" * depth,
        "braces": "a: " + "{a: " * depth + "1" + "}" * depth,
        "lists in lists": "convnet:\n  " + "- " * depth + "1",
        "an object": "convnet: !!python/object/apply:os.getcwd []", "a bomb": bomb,
        "a loop": "convnet: &a {params: *a}",
        "a key twice": "convnet: none\nconvnet: none\n", "a merge": "<<: {convnet: none}\n",
        "a date": "seed: 2020-01-01",
        "bytes": "session: !!binary aGVsbG8=", "a set": "cids: !!set {1, 2}", "a key that is a list": "[1, 2]: 3\n",
        "a key that is a mapping": "{a: 1}: 2\n", "no character": "session: \0\n",
        "half a pair": 'session: "\\ud800"\n',
        "a mark at the start": "\ufeffconvnet: none\n", "a number of many digits": f"seed: {'9' * 5000}\n",
        "sexagesimal": "seed: 1:30:00\n", "octal": "seed: 0777\n", "an alias of nothing": "convnet: *a\n",
    }  # fmt: skip
    what = random.choice(sorted(texts))
    return texts[what], what


def damage(content: bytes, random: Random) -> tuple[bytes, str]:
    """A file's content with something wrong, and what."""
    action = random.choice(("bit", "bit", "bit", "cut", "byte", "insert", "repeat", "zeros", "empty", "other", "head"))
    # A safetensors header is small beside the arrays: half of the damage is done to the first thousand bytes.
    end = len(content) if random.random() < 0.5 else min(len(content), 1000)
    at = random.randrange(max(1, end))
    changed = bytearray(content)
    if action == "bit":
        changed[at] ^= 1 << random.randrange(8)
    elif action == "byte":
        changed[at] = random.randrange(256)
    elif action == "insert":
        changed[at:at] = random.randbytes(random.randrange(1, 9))
    elif action == "zeros":
        changed[at : at + 200] = bytes(len(changed[at : at + 200]))
    elif action == "repeat":
        changed += changed[at:]
    elif action == "head":
        changed = changed[at:]
    else:
        changed = {"cut": changed[:at], "empty": bytearray(), "other": bytearray(random.randbytes(300))}[action]
    return bytes(changed), f"{action} at {at}"


_WORDS = (
    "stim", "robs", "behavior", "history", "gaze", "pupil", "x", "movie", "val", "ada_1", "a/b", "readout", "std",
    "dfs", "0..3", "relu", "core",
)  # fmt: skip


def _places(data: Any) -> Iterator[tuple[Any, Any]]:
    """Every mapping or list with each of its keys or positions, at any depth."""
    inner = list(data.items()) if isinstance(data, dict) else list(enumerate(data)) if isinstance(data, list) else []
    for key, value in inner:
        yield data, key
        yield from _places(value)


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(inner) for key, inner in value.items()}
    return [_copy(inner) for inner in value] if isinstance(value, list) else value
