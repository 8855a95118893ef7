"""Twins whose weights are the truth: linear and energy units with the filters of simulated ones."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from neurotwin.config import DatasetConfig, ModelConfig
from neurotwin.data.prepare import prepare
from neurotwin.data.session import Session
from neurotwin.data.simulate import draw_units
from neurotwin.data.spec import SessionSpec
from neurotwin.models import TwinModel

RATE, SIZE = 60.0, 16


def quadrature(units, size=SIZE, rate=RATE):
    """Filters of E and O, (U, 2, L, H, W), oldest first; O is E a quarter of a cycle on."""
    (even, odd), kernels = units.spatial_filters(size), units.temporal_filters(rate)
    fast, slow = kernels[0], kernels[1] * units.direction[:, None]
    e = np.einsum("ul,uhw->ulhw", fast, even) + np.einsum("ul,uhw->ulhw", slow, odd)
    o = np.einsum("ul,uhw->ulhw", fast, odd) - np.einsum("ul,uhw->ulhw", slow, even)
    return np.stack([e, o], 1).astype(np.float32)


def make_twin(kind, names=("linear",), n_units=6):
    """A twin of sessions that share one set of units: rate = relu(E) (linear) or E² + O² (energy)."""
    units = draw_units("linear", n_units=n_units)
    filters = quadrature(units)
    lags = filters.shape[2]
    block = {"conv_params": {"kernel_size": [lags, SIZE, SIZE]}, "act_type": "none" if kind == "linear" else "square"}
    config = ModelConfig(
        convnet={"type": "vanilla", "params": {"channels": [2 * n_units], "block_configs": [block]}},
        readout={"type": "linear", "params": {"bias": False}}, output_activation="relu",
    )  # fmt: skip
    specs = [
        SessionSpec(
            name=name, subject=name, unit_ids=tuple(range(n_units)), frame_shape=(1, SIZE, SIZE), bin_rate=RATE,
            n_lags=lags, pixel_scale=(1 / 127, -1.0), pixels_per_degree=16.0,
            config=DatasetConfig(
                session=name, transforms={"stim": {"source": "stim", "ops": [{"pixelnorm": {}}]}}
            ),
        )
        for name in names
    ]  # fmt: skip
    twin = TwinModel(config, specs).eval()
    with torch.no_grad():
        conv = twin.convnet.blocks[0].conv
        conv.weight.copy_(torch.from_numpy(filters).reshape(conv.weight.shape))
        conv.bias.zero_()
        for module in twin.per_session:
            weights = torch.zeros(n_units, n_units, 2)
            weights[range(n_units), range(n_units), 0] = 1.0
            if kind == "energy":
                weights[range(n_units), range(n_units), 1] = 1.0
            module.readout.features.copy_(weights.reshape(module.readout.features.shape))
    return SimpleNamespace(twin=twin, units=units, filters=filters)


@pytest.fixture(scope="session")
def linear():
    return make_twin("linear")


@pytest.fixture(scope="session")
def energy():
    return make_twin("energy")


GAIN, BASE = 0.8, np.log(0.3)


@pytest.fixture(scope="session")
def gated(tmp_path_factory):
    """A session whose rates are exp(BASE + GAIN · pupil), and the twin that knows it; `noise` has no effect."""
    rng = np.random.default_rng(3)
    n_bins, n_trials = 6000, 60
    # Whole numbers of a few levels: quick to check by hand, and float32 keeps them.
    pupil = rng.choice([-1.0, 0.0, 1.0], n_bins).astype(np.float32)
    rate = np.exp(BASE + GAIN * pupil)[:, None].repeat(2, 1)
    session = Session(
        name="ada_1", stimulus=rng.integers(0, 256, (n_bins, 4, 4)).astype(np.uint8), bin_rate=RATE,
        responses=rng.poisson(rate).astype(np.uint8), trial=np.repeat(np.arange(n_trials), n_bins // n_trials),
        behavior={"pupil": pupil, "noise": rng.standard_normal(n_bins).astype(np.float32)},
        true_rate=rate.astype(np.float32), pixels_per_degree=4.0, unit_ids=[3, 8],
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("gated")
    path = session.save(folder / "ada_1.safetensors")
    ops = {"ops": [{"mul": {"factor": 1.0}}], "expose_as": "behavior", "concatenate": True}
    signals = {name: {"source": name, **ops} for name in ("pupil", "noise")}
    stim = {"stim": {"source": "stim", "ops": [{"pixelnorm": {}}]}}
    data = DatasetConfig(session="ada_1", path=str(path), keys_lags={"stim": [0, 1]}, transforms=stim | signals)
    (prepared,) = prepare([data])
    config = ModelConfig(
        convnet={"type": "vanilla", "params": {
            "channels": [1], "block_configs": [{"conv_params": {"kernel_size": [2, 4, 4]}, "act_type": "none"}],
        }},
        modulator={"type": "concat", "params": {"encoder_params": {
            "dims": [2], "activation": "none", "residual": False, "use_layer_norm": False,
        }}},
        readout={"type": "linear"}, output_activation="exp",
    )  # fmt: skip
    twin = TwinModel(config, [prepared.spec]).eval()
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
        (weight,) = [p for name, p in twin.modulator.named_parameters() if p.shape == (2, 2)]
        weight.copy_(torch.eye(2))
        module = twin.per_session[0]
        names = list(prepared.spec.behavior_names)
        features = torch.zeros(2, 3)
        features[:, 1 + names.index("pupil")] = GAIN
        module.readout.features.copy_(features.reshape(module.readout.features.shape))
        module.readout.bias.fill_(BASE)
    path = twin.save(folder / "twin.safetensors")
    return SimpleNamespace(twin=twin, prepared=prepared, path=path, folder=folder, gain=GAIN, base=BASE)
