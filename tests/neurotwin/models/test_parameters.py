"""What each parameter is: said by its module, read by weight decay, penalties and files."""

from pathlib import Path

import pytest
import torch
from torch import nn

from neurotwin.config import Params, RegularizerConfig, load_model_config, registry
from neurotwin.models import TwinModel
from neurotwin.models.parameters import KINDS, SESSION_PARTS, describe_parameters, dialect_name
from training.regularizers import Regularizers

ROOT = Path(__file__).parents[3]
MODELS = sorted([ROOT / "configs" / "model.yaml", *(ROOT / "experiments" / "model_configs").rglob("*.yaml")])


def faults_of(twin: TwinModel) -> list[str]:
    """What is wrong with the description of a model's parameters."""
    infos, parameters = list(describe_parameters(twin)), dict(twin.named_parameters())
    faults = [f"{info.name}: no kind {info.kind!r}" for info in infos if info.kind not in KINDS]
    if [id(info.parameter) for info in infos] != [id(parameter) for parameter in parameters.values()]:
        faults.append("other parameters, or another order")
    if [info.name for info in infos] != [dialect_name(name) for name in parameters]:
        faults.append("other names")
    if len({info.name for info in infos}) != len(infos):
        faults.append("a name twice")
    for info in infos:
        parts = SESSION_PARTS if info.session is not None else dir(twin)
        if info.part not in parts or (info.session is not None and info.session >= len(twin.sessions)):
            faults.append(f"{info.name}: part {info.part} of session {info.session}")
    return faults


def test_every_parameter_of_every_shipped_model_has_a_kind(spec):
    faults = []
    for path in MODELS:
        session = {"frame_shape": (1, 51, 51), "n_lags": 64, "n_history": 64, "bin_rate": 120.0}
        twin = TwinModel(load_model_config(path), [spec(**session), spec("bea_1", **session)])
        faults += [f"{path.stem}: {fault}" for fault in faults_of(twin)]
    assert not faults


def test_every_parameter_of_every_component_has_a_kind(components, build):
    assert not [f"{name}: {fault}" for name in components for fault in faults_of(build(name))]


def test_weight_decay_is_for_weights(components, build):
    """By what a parameter is, not by its shape or its name."""
    decays = {
        info.name
        for name in ("resnet", "affine adapter", "film", "shifter gaussian", "history", "baseline", "likelihood gamma")
        for info in describe_parameters(build(name))
        if info.decays
    }
    assert {
        "frontend.weight", "convnet.blocks.0.block.conv.weight", "convnet.blocks.0.weight", "readouts.1.features",
        "modulator.head.weight", "shifters.0.head.weight", "history_encoders.0.layers.0.weight",
    } <= decays  # fmt: skip
    spared = {
        info.name: info.kind
        for name in components
        for info in describe_parameters(build(name))
        if not info.decays and info.parameter.ndim >= 2
    }
    # Matrices of positions: at 0 they are the frame as it is, or the middle of the map, and not nothing.
    assert {kind for name, kind in spared.items() if "readouts" in name or "adapters" in name} == {"position"}
    assert "adapters.0.shift" in spared and "readouts.0.mean" in spared
    assert "convnet.blocks.0.block.norm.weight" not in decays and "convnet.blocks.0.block.conv.gain" not in decays


def test_decay_draws_weights_to_zero_and_leaves_the_adapters_frame(build, clips):
    """The optimizer's groups from the kinds, under a decay so strong that everything that decays is gone."""
    twin = build("affine adapter")
    infos = list(describe_parameters(twin))
    groups = [
        {"params": [info.parameter for info in infos if info.decays == decays], "weight_decay": 1000.0 * decays}
        for decays in (True, False)
    ]
    before = {info.name: info.parameter.detach().clone() for info in infos}
    twin([clips(twin)])[0].mul(0).sum().backward()
    torch.optim.AdamW(groups, lr=1e-3).step()
    moved = {info.name for info in infos if not torch.equal(info.parameter, before[info.name])}
    assert "readouts.0.features" in moved and "convnet.blocks.0.conv.weight" in moved
    assert not moved & {"adapters.0.shift", "adapters.0.sigma_raw", "readouts.0.mean", "convnet.blocks.0.conv.bias"}


class Silent(nn.Module):
    """A readout that does not say what its parameter is."""

    class Params(Params):
        """No parameters."""

    def __init__(self, params, inputs, n_units, **_):
        super().__init__()
        self.level = nn.Parameter(torch.zeros(n_units))


@pytest.mark.parametrize("kinds", [None, {}, {"lever": "bias"}, {"level": "bais"}])
def test_a_component_that_does_not_say_what_its_parameters_are_is_named(kinds, monkeypatch, build):
    monkeypatch.setitem(registry._DEFINITIONS, "readout", dict(registry._DEFINITIONS["readout"]))
    registry.register("readout", "silent")(Silent)
    if kinds is not None:
        monkeypatch.setattr(Silent, "kinds", kinds, raising=False)
    with pytest.raises(
        TypeError, match="Silent does not say what its parameter 'level' is; add it to the class attribute"
    ):
        list(describe_parameters(build({"readout": "silent"})))
    monkeypatch.setattr(Silent, "kinds", {"level": "bias"}, raising=False)
    assert [info.kind for info in describe_parameters(build({"readout": "silent"}))] == ["bias", "bias"]


@pytest.mark.parametrize(
    ("pattern", "matched"),
    [
        ("readouts.0.features", {"readouts.0.features"}),
        ("readouts/features", {"readouts.0.features", "readouts.1.features"}),
        ("readouts.1", {f"readouts.1.{own}" for own in ("bias", "features", "mean", "std", "theta")}),
        ("adapters/log_scale", {"adapters.0.log_scale", "adapters.1.log_scale"}),
        ("convnet/conv/weight", {"convnet.blocks.0.conv.weight"}),
    ],
)
def test_penalties_find_parameters_by_the_names_of_files(pattern, matched, build):
    twin = build("adapter")
    config = RegularizerConfig(**{"name": "decay", "type": "l2", "lambda": 1.0, "apply_to": [pattern]})
    regularizers = Regularizers([config], describe_parameters(twin))
    assert regularizers.no_decay == matched
    squares = sum(p.square().sum() for n, p in twin.named_parameters() if dialect_name(n) in matched)
    torch.testing.assert_close(regularizers.penalty(0)[0], squares)


def test_a_parameter_that_is_shared_comes_once():
    first = nn.Linear(2, 2)
    assert [info.name for info in describe_parameters(nn.ModuleList([first, first]))] == ["0.weight", "0.bias"]
