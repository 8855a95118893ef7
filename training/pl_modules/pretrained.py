"""What a new model takes over from a trained one."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from neurotwin.config import ConfigError
from neurotwin.data.pipelines import pixel_scale
from neurotwin.data.spec import SessionSpec
from neurotwin.models.ensemble import Ensemble
from neurotwin.models.network import CORE_PARTS
from neurotwin.models.parameters import SESSION_PARTS
from neurotwin.models.storage import load_twin
from neurotwin.models.twin import TwinModel

from ..runs import first_difference

__all__ = ["load_pretrained", "open_pretrained"]

logger = logging.getLogger(__name__)


def open_pretrained(path: str | Path) -> TwinModel:
    """The trained model to start from.

    Raises
    ------
    CheckpointError
        If it cannot be opened.
    ConfigError
        If it is an ensemble, which has no one core.
    """
    twin = load_twin(path)
    if isinstance(twin, Ensemble):
        raise ConfigError(
            f"{path}: is an ensemble, which has no one core to start from; give one of its members "
            f"({', '.join(twin.names)}), or learn from all of them with --teacher"
        )
    return twin


def load_pretrained(twin: TwinModel, source: TwinModel, path: str | Path, *, exact: tuple[str, ...]) -> None:
    """Start a model from the core of a trained one, and from its parts of the sessions that both know.

    The hashes of the pictures that this core was trained on come with it.

    A part is taken over only where both models describe it equally: arrays of equal shapes are not enough, because a
    core under another norm, pool or activation computes something else. Sessions are known by name and unit ids.

    Parameters
    ----------
    twin
        The new model.
    source
        The trained one.
    path
        Where it was read, for messages.
    exact
        Parts of the core that must be taken over; any other that differs starts anew, with a warning.

    Raises
    ------
    ConfigError
        If a part that must be taken over is described differently, or the sessions reach the core in another way (rate,
        channels, scale or transforms of the stimulus); the message names the first difference.
    """
    if difference := _first_of_sessions(twin.sessions, source.sessions, _entrance):
        raise ConfigError(f"{path}: does not fit: {difference}; prepare the sessions as those of its training")
    shared = _take_core(twin, source, path, exact)
    twin.pictures = source.pictures
    taken = _take_sessions(twin, source, path)
    logger.info(
        "%s: starting from its %s, and its parts of %d of %d sessions", path, ", ".join(shared), taken,
        len(twin.sessions),
    )  # fmt: skip


def _take_core(twin: TwinModel, source: TwinModel, path: str | Path, exact: tuple[str, ...]) -> list[str]:
    """Take over the parts of the core that are described equally; their names."""
    taken = []
    for part in CORE_PARTS:
        difference = _difference(twin, source, part)
        if difference is None:
            getattr(twin, part).load_state_dict(getattr(source, part).state_dict())
            taken.append(part)
        elif part in exact:
            raise ConfigError(
                f"{path}: does not fit the model: {difference}; use the model_config it was trained with, or leave "
                "--model_config out"
            )
        else:
            logger.warning("%s: the %s starts anew: %s", path, part, difference)
    return taken


def _take_sessions(twin: TwinModel, source: TwinModel, path: str | Path) -> int:
    """Take over the parts of sessions that both know; the number of such sessions."""
    known = {(spec.name, spec.unit_ids): index for index, spec in enumerate(source.sessions)}
    taken = 0
    for index, spec in enumerate(twin.sessions):
        other = known.get((spec.name, spec.unit_ids))
        if other is None:
            continue
        taken += 1
        for part in SESSION_PARTS:
            new, old = getattr(twin.per_session[index], part), getattr(source.per_session[other], part)
            if _session_config(twin, index, part) != _session_config(source, other, part):
                logger.warning(
                    "%s: the %s of session %s starts anew: it is described differently", path, part, spec.name
                )
            elif isinstance(new, nn.Module) and isinstance(old, nn.Module):
                new.load_state_dict(old.state_dict())
            elif isinstance(new, nn.Parameter) and isinstance(old, nn.Parameter):
                new.data.copy_(old.data)
    return taken


def _difference(twin: TwinModel, source: TwinModel, part: str) -> str | None:
    """The first thing in which two models describe a part differently, or see other behaviour with it."""
    new, old = (getattr(model.config, part).model_dump(mode="json", by_alias=True) for model in (twin, source))
    if difference := first_difference(old, new, part):
        return difference
    if getattr(twin, part).takes_behavior and (
        difference := _first_of_sessions(twin.sessions, source.sessions, _behavior)
    ):
        return difference
    shapes = ({k: tuple(v.shape) for k, v in getattr(model, part).state_dict().items()} for model in (source, twin))
    return first_difference(*shapes, part)


def _first_of_sessions(
    here: Sequence[SessionSpec], there: Sequence[SessionSpec], describe: Callable[[SessionSpec], dict[str, Any]]
) -> str | None:
    """The first thing in which a session differs from what a trained model has seen; None where there is none.

    A session that the trained model knows by name is compared with itself. Any other may be like any of them.
    """
    known = {spec.name: spec for spec in there}
    for spec in here:
        seen = [describe(known[spec.name])] if spec.name in known else list(map(describe, there))
        new = describe(spec)
        if new not in seen:
            return f"{first_difference(seen[0], new)} (session {spec.name})"
    return None


def _entrance(spec: SessionSpec) -> dict[str, Any]:
    """How frames reach the core."""
    scaled = pixel_scale(spec.config) is not None
    return {
        "bins a second": round(spec.bin_rate, 6),
        "channels of the stimulus": spec.frame_shape[0],
        "scale of pixels": [round(value, 9) for value in spec.pixel_scale],
        "transforms of the stimulus": None if scaled else _pipelines(spec, "stim"),
    }


def _behavior(spec: SessionSpec) -> dict[str, Any]:
    """How behaviour is made: pipelines in their order, which is that of the variables, and lags."""
    lags = list(spec.config.keys_lags.behavior)
    return {"transforms of behaviour": _pipelines(spec, "behavior"), "lags of behaviour": lags}


def _pipelines(spec: SessionSpec, output: str) -> list[dict[str, Any]]:
    """The source and the operations of the pipelines that make an input of the model."""
    return [
        pipeline.model_dump(mode="json", include={"source", "ops"})
        for _, exposed, pipeline in spec.config.pipelines()
        if exposed == output
    ]


def _session_config(model: TwinModel, index: int, part: str) -> object:
    """How a model describes a part of a session, and the shapes of its arrays."""
    spec, module = model.sessions[index], getattr(model.per_session[index], part)
    section = {"link": "output_activation"}.get(part, part)
    described = getattr(spec.config, part, None) or getattr(model.config, section)
    arrays = module.state_dict() if isinstance(module, nn.Module) else {} if module is None else {"": module}
    seen = _behavior(spec) if part == "shifter" and module is not None else None
    shapes = {key: tuple(value.shape) for key, value in arrays.items()}
    return described and described.model_dump(mode="json"), seen, shapes
