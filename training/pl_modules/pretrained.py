"""What a new model takes over from a trained one."""

import logging
from pathlib import Path

from torch import nn

from neurotwin.config import ConfigError
from neurotwin.models.network import CORE_PARTS
from neurotwin.models.parameters import SESSION_PARTS
from neurotwin.models.twin import TwinModel

from ..runs import first_difference

__all__ = ["load_pretrained"]

logger = logging.getLogger(__name__)

_BEHAVIOR_PARTS = ("modulator",)  # parts of the core whose weights belong to the behaviour variables


def load_pretrained(twin: TwinModel, source: TwinModel, path: str | Path, *, exact: tuple[str, ...]) -> None:
    """Start a model from the core of a trained one, and from its parts of the sessions that both know.

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
        If a part that must be taken over is described differently, or the sessions reach the core in another way (rate
        or scale of the stimulus); the message names the first difference.
    """
    here, there = twin.sessions[0], source.sessions[0]
    for what, new, old in (
        ("bins a second", here.bin_rate, there.bin_rate),
        ("channels of the stimulus", here.frame_shape[0], there.frame_shape[0]),
        ("the scale of pixels", [round(v, 9) for v in here.pixel_scale], [round(v, 9) for v in there.pixel_scale]),
    ):
        if new != old:
            raise ConfigError(f"{path}: does not fit: {what} were {old} in its training and are {new} here")
    fresh = []
    for part in CORE_PARTS:
        difference = _difference(twin, source, part)
        if difference is None:
            getattr(twin, part).load_state_dict(getattr(source, part).state_dict())
        elif part in exact:
            raise ConfigError(
                f"{path}: does not fit the model: {difference}; use the model_config it was trained with, or leave "
                "--model_config out"
            )
        else:
            fresh.append(part)
            logger.warning("%s: the %s starts anew: %s", path, part, difference)
    known = {spec.name: index for index, spec in enumerate(source.sessions)}
    taken = 0
    for index, spec in enumerate(twin.sessions):
        other = known.get(spec.name)
        if other is None or source.sessions[other].unit_ids != spec.unit_ids:
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
    shared = ", ".join(part for part in CORE_PARTS if part not in fresh)
    logger.info("%s: starting from its %s, and its parts of %d of %d sessions", path, shared, taken, len(twin.sessions))


def _difference(twin: TwinModel, source: TwinModel, part: str) -> str | None:
    """The first thing in which two models describe a part differently, or see other behaviour with it."""
    new, old = (getattr(model.config, part).model_dump(mode="json", by_alias=True) for model in (twin, source))
    if difference := first_difference(old, new, part):
        return difference
    if part in _BEHAVIOR_PARTS and getattr(twin, part).takes_behavior:
        return first_difference(_behavior(source), _behavior(twin), "behaviour")
    shapes = ({k: tuple(v.shape) for k, v in getattr(model, part).state_dict().items()} for model in (source, twin))
    return first_difference(*shapes, part)


def _behavior(model: TwinModel) -> dict[str, object]:
    """How the behaviour of a model's sessions is made."""
    config = model.sessions[0].config
    pipelines = {
        name: pipeline.model_dump(mode="json")
        for name, pipeline in (config.transforms or {}).items()
        if (pipeline.expose_as or name) == "behavior"
    }
    return {"transforms": pipelines, "lags": list(config.keys_lags.behavior)}


def _session_config(model: TwinModel, index: int, part: str) -> object:
    """How a model describes a part of a session, and the shapes of its arrays."""
    own = getattr(model.sessions[index].config, part, None)
    section = {"link": "output_activation"}.get(part, part)
    described = own or getattr(model.config, section)
    module = getattr(model.per_session[index], part)
    arrays = module.state_dict() if isinstance(module, nn.Module) else {} if module is None else {"": module}
    return described and described.model_dump(mode="json"), {key: tuple(value.shape) for key, value in arrays.items()}
