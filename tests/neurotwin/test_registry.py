"""The registry: what can be added, what is refused, and that what is added is part of the dialect at once."""

import pytest
import torch
from torch import nn

from neurotwin.config import (
    KINDS,
    ConfigError,
    ModelConfig,
    NoParams,
    Params,
    define,
    json_schemas,
    name_of,
    params_of,
    register,
    registered,
    registry,
)
from neurotwin.models import TwinModel


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch):
    """What a test registers is gone after it."""
    copies = {kind: dict(known) for kind, known in registry._DEFINITIONS.items()}
    monkeypatch.setattr(registry, "_DEFINITIONS", copies)


class Blank(nn.Module):
    """A readout that sees nothing: one constant for each unit."""

    class Params(Params):
        """The constant."""

        level: float = 1.0

    def __init__(self, params, inputs, n_units, **_):
        super().__init__()
        self.bias = nn.Parameter(torch.full((n_units,), params.level))

    def forward(self, x):
        return self.bias.expand(x.shape[0], x.shape[2], -1)


def test_a_component_of_ones_own(spec, clips):
    assert register("readout", "blank", "empty")(Blank) is Blank
    assert registered("readout")["empty"] is define("readout", "blank") is Blank
    assert (name_of("readout", Blank), params_of("readout", "empty")) == ("blank", Blank.Params)
    config = ModelConfig.model_validate({"readout": {"type": "blank", "params": {"level": 2.0}}})
    twin = TwinModel(config, [spec()])
    torch.testing.assert_close(twin([clips(twin)])[0], nn.functional.softplus(torch.full((2, 4, 3), 2.0)))
    with pytest.raises(ValueError, match=r"did you mean 'level'\?"):
        ModelConfig.model_validate({"readout": {"type": "blank", "params": {"levle": 2.0}}})
    text = str(json_schemas()["model"])
    assert "'blank'" in text and "'level'" in text, "editors know it"


def test_what_has_no_parameters_takes_none():
    register("readout", "bare")(type("Bare", (nn.Module,), {}))
    assert params_of("readout", "bare") is NoParams


class NotParams(nn.Module):
    """Its attribute Params is no class of parameters."""

    Params = dict


@pytest.mark.parametrize(
    ("arguments", "definition", "message"),
    [
        (("readuot", "blank"), Blank, "nothing of the kind 'readuot' can be registered; did you mean 'readout'"),
        (("readout",), Blank, "give the name under which files ask for this readout"),
        (("readout", "gaussian"), Blank, "readout 'gaussian' exists already; choose another name"),
        (("readout", "blank", "linear"), Blank, "readout 'linear' exists already"),
        (("readout", "odd"), NotParams, "its attribute Params must be a subclass of neurotwin.config.Params"),
    ],
)
def test_what_cannot_be_registered_is_refused(arguments, definition, message):
    before = registered("readout")["gaussian"]
    with pytest.raises(ValueError, match=message):
        register(*arguments)(definition)
    assert registered("readout")["gaussian"] is before


def test_a_module_that_is_loaded_twice_replaces_its_own_definitions():
    again = type("Blank", (Blank,), {"__qualname__": Blank.__qualname__})
    register("readout", "blank")(Blank)
    register("readout", "blank")(again)
    assert registered("readout")["blank"] is again


def test_a_name_that_is_not_there_names_the_nearest():
    with pytest.raises(ConfigError, match="unknown penalty schedule 'linear_rmap'; did you mean 'linear_ramp'"):
        define("penalty_schedule", "linear_rmap")


def test_what_is_registered_can_only_be_changed_by_registering():
    with pytest.raises(TypeError):
        registered("readout")["blank"] = Blank


def test_every_definition_says_what_it_is():
    """In a docstring; metrics, of which there are many, in a title and a formula."""
    silent = [
        f"{kind} {name}"
        for kind in KINDS
        for name, definition in registered(kind).items()
        if isinstance(definition, type) and not (definition.__doc__ or getattr(definition, "title", "")).strip()
    ]
    silent += [
        f"{kind} {name}.{key}"
        for kind in KINDS
        for name in registered(kind)
        for key, field in params_of(kind, name).model_fields.items()
        if not field.description
    ]
    assert not silent
