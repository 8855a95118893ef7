"""What the members of an ensemble must share, and the sessions that give each of them what it needs.

Members may see different numbers of frames, lags and behaviour variables. The sessions of the ensemble then have the
longest of the lags and all of the variables, and each member is given its own part of them. What decides on the
responses and on the parts of the data must be the same, because otherwise one member would have been trained on what
another is validated with.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isclose
from typing import Any

from ..config import DatasetConfig, ModelConfig
from ..data.pipelines import pixel_scale
from ..data.spec import SessionSpec
from ..errors import UserError

__all__ = ["EnsembleError", "SharedSession", "shared_sessions"]

_PARTS = ("types", "sampling", "datafilters", "train_val_split", "test_split", "seed")
"""Keys of a dataset file that decide which bins and responses there are, and in which part."""


class EnsembleError(UserError):
    """Models cannot be members of one ensemble; the message names the first difference, and what to do."""


@dataclass(frozen=True)
class SharedSession:
    """A session of an ensemble.

    Attributes
    ----------
    spec
        What all of its members see.
    indices
        Of the session in each member.
    columns
        Of each member, which of the behaviour variables it was trained on; None for all of them.
    """

    spec: SessionSpec
    indices: tuple[int, ...]
    columns: tuple[tuple[int, ...] | None, ...]


def shared_sessions(
    configs: Sequence[ModelConfig], sessions: Sequence[Sequence[SessionSpec]], names: Sequence[str]
) -> list[SharedSession]:
    """The sessions of an ensemble, in the order of its first member.

    Parameters
    ----------
    configs, sessions, names
        Of each member its config, its sessions, and what it is called in messages.

    Raises
    ------
    EnsembleError
        If the members do not share their sessions, units, bins per second or likelihood.
    """
    first, known = names[0], [[spec.name for spec in specs] for specs in sessions]
    for name, config, there in zip(names[1:], configs[1:], known[1:], strict=True):
        here = f"{config.likelihood.type} {_set(config.likelihood)}"
        if here != (other := f"{configs[0].likelihood.type} {_set(configs[0].likelihood)}"):
            raise EnsembleError(f"{name}: its likelihood is {here}, that of {first} {other}; members must share it")
        if odd := sorted(set(there) ^ set(known[0])):
            owner, lacks = (name, first) if odd[0] in there else (first, name)
            raise EnsembleError(
                f"{name}: session {odd[0]!r} is known to {owner} and not to {lacks}; members must share all sessions"
            )
    shared = []
    for spec in sessions[0]:
        indices = tuple(there.index(spec.name) for there in known)
        specs = [of_member[index] for of_member, index in zip(sessions, indices, strict=True)]
        for other, name in zip(specs[1:], names[1:], strict=True):
            _compare(spec, other, first, name)
        merged, columns = _merged(specs, names)
        shared.append(SharedSession(merged, indices, columns))
    return shared


def _set(likelihood: Any) -> dict[str, Any]:
    return likelihood.params.model_dump(mode="json")


def _compare(spec: SessionSpec, other: SessionSpec, first: str, name: str) -> None:
    """Refuse what members may not differ in, naming the first difference."""
    for what, there, here in _pairs(spec, other):
        if there != here:
            raise EnsembleError(
                f"{name}: session {spec.name!r}: {what} {_short(here)}, where {first} has {_short(there)}; members "
                "must be trained on the same responses and parts of the data"
            )


def _pairs(spec: SessionSpec, other: SessionSpec) -> Iterator[tuple[str, Any, Any]]:
    if len(spec.unit_ids) != len(other.unit_ids):
        yield "number of units", len(spec.unit_ids), len(other.unit_ids)
    odd = next(((a, b) for a, b in zip(spec.unit_ids, other.unit_ids, strict=False) if a != b), None)
    if odd is not None:
        yield "its units, in their order, have", *odd
    yield "bins a second", round(spec.bin_rate, 6), round(other.bin_rate, 6)
    yield "frames (C, H, W)", spec.frame_shape, other.frame_shape
    configs = [one.config.model_dump(mode="json", by_alias=True) for one in (spec, other)]
    for key in _PARTS:
        yield key, *(_without_lags(config[key]) for config in configs)
    yield "transforms of the responses", *(_pipelines(one.config, "robs") for one in (spec, other))
    if pixel_scale(spec.config) is None or pixel_scale(other.config) is None:  # else each network scales for itself
        yield "transforms of the stimulus", *(_pipelines(one.config, "stim") for one in (spec, other))


def _without_lags(value: Any) -> Any:
    """A filter that waits for the lags to be valid does so for those of the ensemble."""
    if isinstance(value, Mapping):
        own = value.get("name") == "valid_nlags"
        return {key: _without_lags(part) for key, part in value.items() if not (own and key == "params")}
    return [_without_lags(part) for part in value] if isinstance(value, list | tuple) else value


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def _pipelines(config: DatasetConfig, output: str) -> dict[str, Any]:
    """Definition of each pipeline that makes an input, by name."""
    return {
        name: pipeline.model_dump(mode="json", include={"source", "ops"})
        for name, exposed, pipeline in config.pipelines()
        if exposed == output
    }


def _merged(
    specs: Sequence[SessionSpec], names: Sequence[str]
) -> tuple[SessionSpec, tuple[tuple[int, ...] | None, ...]]:
    """The session with the longest lags and every behaviour variable, and the variables of each member."""
    first = specs[0]
    transforms, fitted = dict(first.config.transforms or {}), dict(first.fitted)
    definitions = _pipelines(first.config, "behavior")
    for spec, name in zip(specs[1:], names[1:], strict=True):
        for pipeline, definition in _pipelines(spec.config, "behavior").items():
            if definitions.setdefault(pipeline, definition) != definition:
                raise EnsembleError(
                    f"{name}: session {spec.name!r}: transforms.{pipeline} is defined otherwise than in {names[0]}; "
                    "name it differently, or train with one definition"
                )
            transforms.setdefault(pipeline, (spec.config.transforms or {})[pipeline])
        _merge_constants(fitted, spec, name)
    widths = _widths(specs, names, definitions)
    lags = tuple(dict.fromkeys(lag for spec in specs for lag in spec.config.keys_lags.behavior))
    if len(widths) > 1:
        transforms |= {key: transforms[key].model_copy(update={"concatenate": True}) for key in widths}
    keys_lags = first.config.keys_lags.model_copy(
        update={
            "stim": max((spec.config.keys_lags.stim for spec in specs), key=len),
            "history": max((spec.config.keys_lags.history for spec in specs), key=len),
            "behavior": lags,
        }
    )
    order = [name for name, exposed, _ in first.config.pipelines() if exposed == "behavior"]
    order += [name for name in widths if name not in order]
    ordered = {name: pipe for name, pipe in transforms.items() if name not in order}
    ordered |= {name: transforms[name] for name in order}
    filters = max(specs, key=lambda spec: spec.config.keys_lags.reach).config.datafilters
    changes = {"transforms": ordered or None, "keys_lags": keys_lags, "datafilters": filters}
    config = first.config.model_copy(update={**changes, "adapter": None, "readout": None})
    behavior = tuple(name for name in order for _ in range(widths[name])) * len(lags)
    merged = replace(
        first, config=config, fitted=fitted, n_lags=max(spec.n_lags for spec in specs),
        n_history=max(spec.n_history for spec in specs), behavior_dim=len(behavior), behavior_names=behavior,
    )  # fmt: skip
    return merged, tuple(_columns(spec, order, widths, lags) for spec in specs)


def _merge_constants(fitted: dict[str, Any], spec: SessionSpec, name: str) -> None:
    """Constants that training found for a transform must be the same wherever there are any."""
    for key, value in spec.fitted.items():
        known = fitted.setdefault(key, value)
        if known != value and not (isinstance(value, float) and isclose(known, value, rel_tol=1e-6)):
            raise EnsembleError(
                f"{name}: session {spec.name!r}: the constant of transforms.{key} is {_short(value)}, where that of "
                f"another member is {_short(known)}; train members on one recording, with lags that leave the same bins"
            )


def _widths(specs: Sequence[SessionSpec], names: Sequence[str], definitions: Mapping[str, Any]) -> dict[str, int]:
    """Number of variables that each behaviour pipeline makes."""
    widths: dict[str, int] = {}
    for spec, name in zip(specs, names, strict=True):
        if spec.behavior_dim != len(spec.behavior_names):
            raise EnsembleError(f"{name}: session {spec.name!r} does not say what its behaviour is; train it anew")
        for pipeline in _pipelines(spec.config, "behavior"):
            widths[pipeline] = spec.behavior_names.count(pipeline) // len(spec.config.keys_lags.behavior)
    return {name: widths[name] for name in definitions}


def _columns(
    spec: SessionSpec, order: Sequence[str], widths: Mapping[str, int], lags: Sequence[int]
) -> tuple[int, ...] | None:
    """Columns of a member's behaviour among those of the ensemble: lag by lag, in each pipeline by pipeline."""
    starts, total = {}, 0
    for name in order:
        starts[name], total = total, total + widths[name]
    own = list(_pipelines(spec.config, "behavior"))
    columns = tuple(
        list(lags).index(lag) * total + starts[name] + place
        for lag in spec.config.keys_lags.behavior
        for name in own
        for place in range(widths[name])
    )
    return None if columns == tuple(range(total * len(lags))) else columns
