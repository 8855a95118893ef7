"""Stimuli of fewer spatial axes than two: bars (one) and full fields (none).

What a config says of an axis that is not there is not looked at. So such a stimulus gives what the same numbers give
as frames of one pixel along that axis, under a config whose windows are explicitly of one pixel there.
"""

import copy

import pytest
import torch

from neurotwin.config import ModelConfig, registered
from neurotwin.models import TwinModel
from neurotwin.models.convnet import ConvNet
from neurotwin.models.norms import BatchNorm

POOLS = [
    {"type": "none"},
    {"type": "max", "kernel_size": [1, 3, 3], "stride": [1, 2, 2], "padding": [0, 1, 1]},
    {"type": "avg"},
    {"type": "avg", "kernel_size": [2, 2, 3], "stride": [2, 1, 3]},
    {"type": "learned", "kernel_size": [1, 3, 3], "padding": [0, 1, 1]},
    {"type": "aablur", "stride": [1, 2, 3]},
    {"type": "se_pool", "stride": [1, 2, 2], "r": 1},
    {"type": "adaptivemax", "output_size": [1, 3, 2]},
    {"type": "adaptiveavg", "kernel_size": [1, 2, 3], "stride": [1, 2, 2], "padding": [0, 1, 1]},
]
CONVS = [
    {"kernel_size": [2, 5, 5], "padding": [0, 2, 2], "stride": [1, 2, 2], "aa_signal": True},
    {"kernel_size": [1, 3, 3], "padding": [0, 2, 2], "dilation": [1, 2, 2], "padding_mode": "reflect"},
    {"kernel_size": [2, 3, 3], "padding": [0, 1, 1], "type": "depthwise", "padding_mode": "circular"},
    {"kernel_size": [3, 3, 3], "use_weight_norm": True},
    {"kernel_size": [3, 3, 3], "padding": [0, 1, 1], "type": "factorized"},
]
ONE = {"kernel_size": 1, "stride": 1, "output_size": 1, "padding": 0}
"""What a window is along an axis on which it does nothing."""


BLOCKS = [name for name, kind in registered("convnet").items() if issubclass(kind, ConvNet)]


def network(kind: str, conv: dict, pool: dict) -> dict:
    blocks = [
        {"conv_params": conv, "norm_type": "batch", "act_type": "splitrelu", "pool_params": pool},
        {"conv_params": {"kernel_size": [1, 3, 3], "padding": [0, 1, 1]}, "norm_type": "rms", "act_type": "tanh"},
    ]
    return {
        "convnet": {"type": kind, "params": {"channels": [4, 3], "block_configs": blocks}},
        "readout": {"type": "linear"},
    }


def explicit(config: dict, axes: int, pool_defaults: tuple[int, int, int] = (1, 2, 2)) -> dict:
    """The same config with windows of one pixel along the axes that are not there."""
    config = copy.deepcopy(config)
    for block in config["convnet"]["params"]["block_configs"]:
        pool = block.get("pool_params", {"type": "none"})
        if pool["type"] not in ("none", "adaptivemax", "adaptiveavg", "locatt"):
            pool.setdefault("stride", list(pool_defaults))
        for sizes in (block["conv_params"], pool):
            for key in ONE.keys() & sizes.keys():
                sizes[key] = [sizes[key][0], *(s if a < axes else ONE[key] for a, s in enumerate(sizes[key][1:]))]
    return config


def rates_of(config: dict, session, clips) -> torch.Tensor:
    twin = TwinModel(ModelConfig.model_validate(config), [session]).eval()
    for module in twin.modules():
        if isinstance(module, BatchNorm):
            module.running_mean.copy_(torch.linspace(-1, 1, len(module.running_mean)))
    clip = clips(twin, generator=torch.Generator().manual_seed(3))
    twin.train()([clip])[0].sum().backward()
    assert all(parameter.grad is not None for parameter in twin.parameters())
    return twin.eval()([clip])[0]


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("axes", [0, 1])
def test_windows_are_of_one_pixel_along_axes_that_are_not_there(kind, axes, spec, clips):
    size = [(1, 1, 1), (2, 16, 1)][axes]
    for conv in CONVS:
        for pool in POOLS:
            config = network(kind, conv, pool)
            session = spec(frame_shape=size, axes=axes)
            config["initial_input_channels"] = size[0]
            rates = rates_of(config, session, clips)
            torch.testing.assert_close(rates, rates_of(explicit(config, axes), spec(frame_shape=size), clips))


@pytest.mark.parametrize("kind", BLOCKS)
def test_frames_keep_their_windows(kind, spec, clips):
    """With both axes there the explicit config would be another model: the comparison above can fail."""
    config = network(kind, CONVS[0], POOLS[1])
    shapes = {
        tuple(parameter.shape) for parameter in TwinModel(ModelConfig.model_validate(config), [spec()]).parameters()
    }
    assert (4, 1, 2, 5, 5) in shapes and (4, 1, 2, 5, 1) not in shapes


@pytest.mark.parametrize(
    ("axes", "size", "kernel"), [(0, (3, 1, 1), (1, 1)), (1, (3, 9, 1), (3, 1)), (2, (3, 9, 7), (3, 3))]
)
def test_local_attention_compares_the_pixels_that_there_are(axes, size, kernel, spec, clips):
    block = {"conv_params": {"kernel_size": 1}, "pool_params": {"type": "locatt"}, "act_type": "none"}
    net = {"type": "vanilla", "params": {"channels": [4], "block_configs": [block]}}
    config = ModelConfig(initial_input_channels=3, convnet=net)
    twin = TwinModel(config, [spec(frame_shape=size, axes=axes)])
    pool = twin.convnet.blocks[0].pool
    assert tuple(pool.weight.shape) == (4, 1, *kernel)
    same = torch.ones(1, 4, 2, *size[1:])
    inner = (slice(None),) * 3 + tuple(slice(1, -1) if n > 1 else slice(None) for n in size[1:])
    torch.testing.assert_close(pool(same)[inner], same[inner])
    assert twin([clips(twin)])[0].isfinite().all()


@pytest.mark.parametrize("axes", [0, 1])
def test_every_component_takes_stimuli_of_fewer_axes(axes, components, spec, clips):
    """Adapters and turned filters aside, which are for frames, and at one pixel shifters and the norm over pixels."""
    size, failed = [(1, 1, 1), (1, 14, 1)][axes], []
    for name, config in components.items():
        if "adapter" in name or name == "rotations" or (axes == 0 and (name == "norm instance" or "shifter" in name)):
            continue
        twin = TwinModel(ModelConfig.model_validate(config), [spec(frame_shape=size, axes=axes)])
        rates = twin.eval()([clips(twin)])[0]
        if rates.shape != (2, 4, 3) or not rates.isfinite().all():
            failed.append(name)
    assert not failed
