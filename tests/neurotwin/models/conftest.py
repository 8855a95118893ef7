"""Double precision throughout: what is equal is equal to rounding. A small model of every component.

A test with an argument `component` (or `behaving`) runs once for each of them (or of those that take behaviour); its
value is the name, from which the fixture `build` makes a twin.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from neurotwin.config import ModelConfig
from neurotwin.models import TwinModel
from neurotwin.models.stages import Maps

TEMPORAL = {"type": "learnable_temporal", "params": {"kernel_size": 4, "num_channels": 3, "init_type": "random"}}
RESNET = {
    "type": "resnet",
    "params": {
        "channels": [4, 5],
        "block_configs": [
            {
                "conv_params": {"kernel_size": [2, 5, 5], "padding": 2, "aa_signal": True, "use_weight_norm": True},
                "norm_type": "rms",
                "act_type": "splitrelu",
            },
            {
                "conv_params": {"kernel_size": [2, 3, 3], "stride": [1, 2, 2]},
                "norm_type": "batch",
                "act_type": "bsoftplus",
            },
        ],
    },
}


def block(kernel=(2, 3, 3), *, norm="none", act="tanh", act_params=None, pool=None) -> dict:
    return {
        "conv_params": {"kernel_size": kernel, "padding": [0, kernel[1] // 2, kernel[2] // 2]}, "norm_type": norm,
        "act_type": act, "pool_params": pool or {}, "norm_params": {"num_groups": 2}, "act_params": act_params or {},
    }  # fmt: skip


FACTORIZED = block(act="silu", pool={"type": "se_pool", "stride": 1, "r": 1})
FACTORIZED["conv_params"]["type"] = "factorized"
ROTATED = block((2, 5, 5), act="silu")
ROTATED["conv_params"]["rotations"] = 4


def vanilla(**options) -> dict:
    return {"convnet": {"type": "vanilla", "params": {"channels": [4], "block_configs": [block(**options)]}}}


def part(name, kind, **params) -> dict:
    return {name: {"type": kind, "params": params}}


POOLS = (
    {"type": "max", "stride": 2}, {"type": "avg", "stride": [2, 2, 2]}, {"type": "aablur", "stride": 2},
    {"type": "adaptivemax", "output_size": [1, 3, 3]}, {"type": "adaptiveavg", "output_size": [1, 3, 3]},
    {"type": "se_pool", "stride": 2, "r": 1}, {"type": "locatt"}, {"type": "learned", "stride": 2},
)  # fmt: skip
NORMS = ("batch", "instance", "layer", "rms", "group", "grn", "divisive")
ACTIVATIONS = ("bsoftplus", "splitrelu", "square", "energy", "amplitude", "PReLU", "mish")
COMPONENTS = {
    "resnet": {"frontend": TEMPORAL, "convnet": RESNET},
    "densenet": {"convnet": {"type": "densenet", "params": {"channels": [3, 2], "block_configs": [block(), block()]}}},
    "adapter": part("adapter", "adapter", grid_size=9) | vanilla(),
    "affine adapter": part("adapter", "adapter", grid_size=9, transform="affine") | vanilla(),
    "adapter as frontend": part("frontend", "adapter", grid_size=9),
    "split_MP": part("frontend", "learnable_temporal", kernel_size=3, num_channels=2, split_MP=True, bias=True),
    "temporal_basis": part("frontend", "temporal_basis", history_bins=8, num_cosine_funcs=3, batch_norm=True),
    "da": part("frontend", "da", filter_length=6, learnable_params=True),
    "conv": part("frontend", "conv", out_channels=3, conv_params={"kernel_size": 3}),
    **{f"norm {kind}": vanilla(norm=kind) for kind in NORMS},
    **{f"act {kind}": vanilla(act=kind) for kind in ACTIVATIONS},
    "simple and complex": vanilla(act="amplitude", act_params={"paired": 0.5}, norm="divisive"),
    "rotations": {"convnet": {"type": "vanilla", "params": {"channels": [4], "block_configs": [ROTATED]}}},
    "factorized": {"convnet": {"type": "vanilla", "params": {"channels": [4], "block_configs": [FACTORIZED]}}},
    **{
        f"{kind} positions": {"convnet": {"type": "densenet", "params": {"channels": [3], "position_channels": kind}}}
        for kind in ("linear", "fourier")
    },
    "transformer": {"convnet": {"type": "transformer", "params": {"width": 12, "frames": 3, "patch_size": [2, 4, 3]}}},
    "drop_path": {"convnet": {"type": "resnet", "params": {"channels": [3], "drop_path": 0.4}}},
    **{f"pool {pool['type']}": vanilla(pool=pool) for pool in POOLS},
    "concat": part("modulator", "concat", encoder_params={"dims": [4, 4]}) | vanilla(),
    "film": part("modulator", "film") | vanilla(),
    "modulating convgru": part("modulator", "convgru", hidden_dim=3) | vanilla() | {"lambda_pred": 0.5},
    "behaviour only": {"initial_input_channels": 0} | part("modulator", "concat") | part("readout", "linear"),
    **{kind: part("recurrent", kind, hidden_dim=3, n_layers=2) for kind in ("convgru", "convlstm")},
    **{kind: part("recurrent", kind, hidden_dim=3, n_layers=2) | part("readout", "linear") for kind in ("gru", "lstm")},
    **{
        f"readout {kind}": part("readout", kind) | vanilla()
        for kind in ("gaussian", "gaussianei", "linear", "pixels", "factorized", "point", "attention")
    },
    **{
        f"low rank {kind}": part("readout", kind, rank=2) | vanilla()
        for kind in ("gaussian", "gaussianei", "linear", "factorized", "point")
    },
    **{
        f"retinotopy {kind}": part("readout", kind, retinotopy=True) | vanilla()
        for kind in ("gaussian", "gaussianei", "point")
    },
    "predicted points": part("readout", "point", predict_positions=True),
    **{
        f"shifter {kind}": part("shifter", "mlp", hidden_dims=[4]) | part("readout", kind) | vanilla()
        for kind in ("gaussian", "gaussianei", "point")
    },
    "baseline": {"baseline": {"enabled": True}},
    **{
        f"likelihood {kind}": part("likelihood", kind) for kind in ("poisson", "negative_binomial", "gamma", "gaussian")
    },
    **{f"link {kind}": part("output_activation", kind) for kind in ("auto", "exp", "relu", "identity", "none")},
    "link softplus": part("output_activation", "softplus", learned=True),
    "sharpness of each unit": part("output_activation", "softplus", learned="per_unit"),
    "history": {"model_type": "v1multi_history"}
    | part("history_encoder", "mlp", num_lags=4, hidden_dims=[5], spectral_norm=True, bias=True),
}
"""Every component, in a small model of two sessions."""
BEHAVING = (
    "concat", "film", "modulating convgru", "behaviour only", "shifter gaussian", "shifter gaussianei", "shifter point",
)  # fmt: skip
"""Those that depend on behaviour."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test for each component that its arguments ask for."""
    for argument, names in (("component", list(COMPONENTS)), ("behaving", BEHAVING)):
        if argument in metafunc.fixturenames:
            metafunc.parametrize(argument, names)


@pytest.fixture
def components() -> dict[str, dict[str, Any]]:
    """The model config of each component, by name."""
    return copy.deepcopy(COMPONENTS)


@pytest.fixture
def build(spec) -> Callable[..., TwinModel]:
    """A twin of two sessions, from the name of a component or a config.

    Its parameters are moved away from the start, where some have no gradient yet.
    """

    def make(config: str | dict[str, Any], **changes: Any) -> TwinModel:
        specs = [spec(name, **changes) for name in ("ada_1", "bob_1")]
        config = COMPONENTS[config] if isinstance(config, str) else config
        twin = TwinModel(ModelConfig.model_validate(config), specs)
        noise = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=noise))
        return twin

    return make


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(1)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def rand() -> Callable[..., Tensor]:
    """Normal numbers, the same at each call."""
    return lambda *shape: torch.randn(shape, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def maps() -> Callable[..., Maps]:
    def make(channels: int = 3, height: int = 9, width: int = 7, **changes: Any) -> Maps:
        return Maps(channels, height, width, bin_rate=100.0, **changes)

    return make
