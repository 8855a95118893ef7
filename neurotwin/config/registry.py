"""One registry for everything that is added often: components, transforms, formats, likelihoods, metrics and so on.

A definition stands in one place. Its class (or function) carries its parameters, its docstring and its behaviour, and
the decorator :func:`register` makes it known under the name that configuration files use. Schema, reference and command
line are generated from what is registered here.
"""

import importlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

from .base import ConfigError, Params, nearest

__all__ = ["KINDS", "define", "know_shipped", "name_of", "register", "registered"]

KINDS: dict[str, str] = {
    "adapter": "a session's way from its frames to the grid that the core sees",
    "frontend": "what happens to frames before the convnet",
    "convnet": "spatio-temporal features",
    "modulator": "how behaviour enters",
    "recurrent": "memory beyond the lags",
    "readout": "from features to the units of a session",
    "shifter": "how gaze moves what the readouts of a session look at",
    "history_encoder": "what the units' own past adds",
    "norm": "normalisation inside a block",
    "pool": "pooling at the end of a block",
    "link": "from what drives a unit to its rate",
    "likelihood": "how responses scatter about their expectation",
    "penalty": "what is asked of weights",
    "penalty_schedule": "how the weight of a penalty changes over epochs",
    "lr_schedule": "how learning rates change over steps",
    "augmentation": "a change of training clips that leaves their responses as they are",
    "transform": "one operation on a signal of a session",
    "filter": "one mask over bins, or over bins and units",
    "format": "recordings of one layout, read as a session",
    "metric": "a figure of merit of one unit",
    "experiment": "a question that is put to a trained twin",
}
"""What can be registered, and what it is."""

_DEFINITIONS: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS}

Definition = TypeVar("Definition")


def register(kind: str, *names: str) -> Callable[[Definition], Definition]:
    """A decorator that makes a definition available to configuration files under one or several names.

    Parameters
    ----------
    kind
        One of :data:`KINDS`.
    names
        What files call it; further names mean the same.

    Raises
    ------
    ValueError
        If there is no such kind, a name is taken, or an attribute `Params` is no class of parameters.

    Examples
    --------
    >>> @register("penalty_schedule", "doctest_half")
    ... class Half:
    ...     '''Half of the weight, always.'''
    >>> registered("penalty_schedule")["doctest_half"] is Half
    True
    """
    if kind not in KINDS:
        raise ValueError(f"nothing of the kind {kind!r} can be registered; {nearest(kind, list(KINDS))}")
    if not names:
        raise ValueError(f"give the name under which files ask for this {kind}")

    def decorate(definition: Definition) -> Definition:
        params = getattr(definition, "Params", None)
        if params is not None and not (isinstance(params, type) and issubclass(params, Params)):
            raise ValueError(f"{definition}: its attribute Params must be a subclass of neurotwin.config.Params")
        for name in names:
            # The same class may come again where a module is loaded twice, as notebooks do.
            known = _DEFINITIONS[kind].get(name, definition)
            if getattr(known, "__qualname__", known) != getattr(definition, "__qualname__", definition):
                raise ValueError(f"{kind} {name!r} exists already; choose another name")
            _DEFINITIONS[kind][name] = definition
        return definition

    return decorate


def know_shipped() -> None:
    """Import what the library ships, so that files may name it, also where only :mod:`neurotwin.config` was imported.

    This is the one look from configuration up to the code that it configures; it is by name, since the code imports the
    configuration.
    """
    importlib.import_module("neurotwin.models")


def registered(kind: str) -> Mapping[str, Any]:
    """All definitions of a kind by name, in the order in which they were registered."""
    return MappingProxyType(_DEFINITIONS[kind])


def name_of(kind: str, definition: Any) -> str:
    """The first name under which a definition is registered."""
    return next(name for name, known in _DEFINITIONS[kind].items() if known is definition)


def define(kind: str, name: str) -> Any:
    """The definition of a name.

    Raises
    ------
    ConfigError
        If there is none; the message names the nearest that there is.
    """
    known = _DEFINITIONS[kind]
    if not isinstance(name, str) or name not in known:
        know_shipped()
    if not isinstance(name, str) or name not in known:
        raise ConfigError(f"unknown {kind.replace('_', ' ')} {name!r}; {nearest(str(name), list(known))}")
    return known[name]
