"""Write docs/config_reference.md from the typed configuration: run it after every change of neurotwin/config/."""

import types
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

import neurotwin.experiments  # noqa: F401  registers all that files can name
from neurotwin import config
from neurotwin.config import KINDS, params_of, registered
from neurotwin.config.dataset import Labels

__all__ = ["render"]

PATH = Path(__file__).with_name("config_reference.md")

TITLES = {
    "adapter": "Adapter (one a session)",
    "frontend": "Frontend",
    "convnet": "Convnet",
    "modulator": "Modulator",
    "recurrent": "Recurrent",
    "readout": "Readout (one a session)",
    "shifter": "Shifter (one a session)",
    "history_encoder": "History encoder (one a session)",
    "pool": "Pool",
    "augmentation": "Augmentation",
    "likelihood": "Likelihood",
    "link": "Output activation",
}
NAMED = {"norm": "Norms", "penalty": "Penalties", "penalty_schedule": "Schedules of penalties"}
"""Kinds without parameters of their own: what each name means."""

INTRODUCTION = """\
# Configuration reference

*Generated from `neurotwin/config/` by `python docs/make_config_reference.py`; do not edit.*

A run is described by two YAML files: [the model](#model-file) and [the data](#dataset-file). Every key they may hold is
below, with its type, its default and its meaning; a key that is not below is refused, with the file, the line and the
nearest valid key. Time runs oldest first and everything is causal unless a line says otherwise.

A component is written `{type: NAME, params: {...}}`; its parameters are those listed under that type. A default left
blank: not set. Counts and sizes may be at most 100,000. Other ways to write the same, which labs use, are in
[lab_files.md](lab_files.md).
"""

MODEL_EXAMPLE = """\
## Model file

Given by `--model_config`. The path of a frame: adapter of its session, frontend, convnet, modulator (behaviour),
recurrent, readout of its session, output activation.

```yaml
model_type: v1multi
frontend:
  type: learnable_temporal
  params: {kernel_size: 16, num_channels: 6, init_type: gaussian_derivatives}
convnet:
  type: resnet
  params:
    channels: [24, 32]
    block_configs:
      - {conv_params: {kernel_size: [1, 9, 9], padding: [0, 4, 4]}, norm_type: rms, act_type: splitrelu}
      - {conv_params: {kernel_size: [3, 3, 3], padding: [0, 1, 1]}, norm_type: rms, act_type: silu}
modulator: {type: concat, params: {encoder_params: {dims: [32, 16]}}}
readout: {type: gaussian}
regularization:
  - {name: sparse, type: l1, lambda: 1.0e-4, apply_to: [readouts/features], schedule: {type: warmup, end_epoch: 5}}
```
"""

DATASET_EXAMPLE = """\
## Dataset file

Given by `--dataset_configs_path`: a parent file, or a folder of session files each of which is complete by itself. A
parent names its sessions and holds values that they share; any key of a session may stand in it, and a session's own
value wins, mapping by mapping.

```yaml
session_dir: sessions        # sessions/ada_0501.yaml and so on, relative to this file
sessions: [ada_0501, ada_0502]
data_dir: data               # holds ada_0501.safetensors and so on
types: [backimage]
sampling: {source_rate: 240, target_rate: 120}
keys_lags: {stim: [0..31]}   # the 32 frames that end now
transforms:
  stim: {source: stim, ops: [pixelnorm: {}]}
  pupil: {source: pupil, ops: [maxnorm: {}], expose_as: behavior}
datafilters:
  dfs: {ops: [valid_nlags: {n_lags: 31}]}
train_val_split: 0.8
```
"""


def render() -> str:
    """The text of the reference."""
    titles: dict[type[BaseModel], str] = {}
    lines = [INTRODUCTION, MODEL_EXAMPLE, table(config.ModelConfig, titles)]
    for model in nested(config.ModelConfig):
        lines += section(3, model.__name__, model, titles)
    shared: list[type[BaseModel]] = []
    for part in TITLES:
        kinds = {name: params_of(part, name) for name in registered(part)}
        lines.append(f"### {TITLES[part]}\n\n{sentence(KINDS[part])} Types: {', '.join(f'`{n}`' for n in kinds)}.\n")
        lines += meanings(part)
        for model, names in grouped(kinds):
            if model.model_fields:
                lines += section(4, ", ".join(f"`{name}`" for name in names), model, titles)
                shared += [base for base in (*bases(model), *nested(model)) if base not in shared]
    for kind, title in NAMED.items():
        lines += [f"### {title}\n", *meanings(kind)]
    lines.append("### Shared by components\n")
    for model in sorted(shared, key=lambda model: model.__name__):
        if model not in titles:
            lines += section(4, model.__name__, model, titles)
    lines += [DATASET_EXAMPLE, *section(3, "Parent", config.ParentConfig, titles)]
    lines += section(3, "Session", config.DatasetConfig, titles)
    for model in nested(config.DatasetConfig):
        lines += section(3, model.__name__, model, titles)
    for title, kind in (("Transforms", "transform"), ("Filters", "filter")):
        lines.append(f"### {title}\n\nWritten `NAME: {{...}}` in `ops`, applied in order.\n")
        for name in registered(kind):
            lines += section(4, f"`{name}`", params_of(kind, name), titles)
    return "\n".join(lines).rstrip() + "\n"


def sentence(text: str) -> str:
    """A phrase as a sentence."""
    return f"{text[0].upper()}{text[1:]}."


def meanings(kind: str) -> list[str]:
    """One line for each name of a kind: what it stands for."""
    groups: dict[Any, list[str]] = {}
    for name, definition in registered(kind).items():
        groups.setdefault(definition, []).append(name)
    rows = []
    for definition, names in groups.items():
        meaning = (definition.__doc__ or "").strip().split("\n\n")[0]
        rows.append(f"- {', '.join(f'`{name}`' for name in names)}: {' '.join(meaning.split())}")
    return ["\n".join(rows) + "\n"]


def section(level: int, title: str, model: type[BaseModel], titles: dict[type[BaseModel], str]) -> list[str]:
    """Heading, meaning and keys of a model; a link where it had its section already. Notes its title in `titles`."""
    head = f"{'#' * level} {title}\n"
    if model in titles:
        return [head, f"The keys are those of [{titles[model]}](#{anchor(titles[model])}).\n"]
    titles[model] = title
    return [head, " ".join((model.__doc__ or "").split()) + "\n", table(model, titles)]


def table(model: type[BaseModel], titles: Mapping[type[BaseModel], str]) -> str:
    """A markdown table of the keys of a model; those of its base are linked to."""
    inherited = [(base, titles.get(base, base.__name__)) for base in bases(model)[:1]]
    notes = [f"Also all keys of [{title}](#{anchor(title)}).\n" for _, title in inherited]
    known = {name for base, _ in inherited for name in base.model_fields}
    rows = [
        f"| `{field.alias or name}` | {escape(spell(whole(field)))} | {default(field)} | {escape(field.description)} |"
        for name, field in model.model_fields.items()
        if name not in known
    ]
    if not rows:
        return notes[0] if notes else "No parameters.\n"
    return "\n".join([*notes, "| key | type | default | meaning |", "|---|---|---|---|", *rows]) + "\n"


def bases(model: type[BaseModel]) -> list[type[BaseModel]]:
    """The models with keys that a model extends, nearest first."""
    return [base for base in model.__mro__[1:] if issubclass(base, config.Strict) and base.model_fields]


def whole(field: FieldInfo) -> Any:
    """The annotation of a field with the bounds and converters that pydantic keeps beside it."""
    return Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation


def spell(annotation: Any) -> str:
    """A type as a person would say it."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in (config.Size, config.PositiveSize):
        return "int or [T, H, W]"
    if annotation == Labels:
        return "number, text, or list of them"
    if annotation == config.Lags:
        return "int or list, such as [0..31]"
    if origin is Annotated:
        return spell(arguments[0]) + bounds(arguments[1:])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(spell(a) for a in arguments if a is not type(None))
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return f"list of {spell(arguments[0])}"
        return f"[{', '.join(spell(a) for a in arguments)}]"
    if origin is dict:
        return f"mapping of names to {spell(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, config.Part | config.FlatPart):
        return f"[{annotation.kind.replace('_', ' ')}](#{anchor(TITLES[annotation.kind])})"
    if isinstance(annotation, type) and issubclass(annotation, config.Op):
        return f"[{annotation.kind}s](#{annotation.kind}s)"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"[{annotation.__name__}](#{anchor(annotation.__name__)})"
    return {int: "int", float: "number", bool: "bool", str: "text", type(None): "null"}[annotation]


def bounds(metadata: Any) -> str:
    """Limits among the metadata of a type: ``, > 0``."""
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    flat = [m for item in metadata for m in (item.metadata if isinstance(item, FieldInfo) else [item])]
    found = [(sign, getattr(m, key)) for m in flat for key, sign in signs.items() if hasattr(m, key)]
    limits = [f"{sign} {bound:g}" for sign, bound in found if bound < config.LARGEST]
    return f", {', '.join(limits)}" if limits else ""


def default(field: FieldInfo) -> str:
    """The default of a field as it would stand in YAML; nothing where it is not set."""
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, config.Part | config.FlatPart):
        value = {"type": value.type}
    elif isinstance(value, BaseModel):
        value = value.model_dump(mode="json", exclude_defaults=True)
        if not value:
            return "its own"
    value = list(value) if isinstance(value, tuple) else value
    if value in (None, [], {}, ""):
        return ""
    first_line = yaml.safe_dump(value, default_flow_style=True, width=200).splitlines()[0]
    return f"`{escape(first_line)}`"


def grouped(kinds: Mapping[str, type[BaseModel]]) -> list[tuple[type[BaseModel], list[str]]]:
    """Types of one part that share their parameters, together."""
    groups: dict[type[BaseModel], list[str]] = {}
    for name, model in kinds.items():
        groups.setdefault(model, []).append(name)
    return list(groups.items())


def nested(model: type[BaseModel]) -> list[type[BaseModel]]:
    """Models below a model, in the order in which they are met; parts and operations have sections of their own."""
    found: list[type[BaseModel]] = []
    for field in model.model_fields.values():
        for inner in models_in(field.annotation):
            found += [m for m in (inner, *nested(inner)) if m not in found]
    return found


def models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [] if issubclass(annotation, config.Part | config.FlatPart | config.Op) else [annotation]
    return [model for argument in get_args(annotation) for model in models_in(argument)]


def anchor(title: str) -> str:
    """The link target that a heading gets."""
    return "".join(c for c in title.lower().replace(" ", "-") if c.isalnum() or c in "-_")


def escape(text: str | None) -> str:
    return (text or "").replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    PATH.write_text(render(), encoding="utf-8")
