"""Blocks against the network that they stand for."""

import torch
from torch.nn import functional as F

from neurotwin.models.blocks import Block, BlockConfig


def test_a_temporal_stride_spreads_the_taps_of_what_follows(maps, generator, rand):
    """Every output equals that of a strided, padded network run on the window that ends there."""
    blocks, inputs = [], maps(1)
    for conv, pool in (
        ({"kernel_size": [3, 3, 3], "stride": [2, 1, 1], "padding": [0, 1, 1]}, {"type": "none"}),
        ({"kernel_size": [2, 3, 3], "padding": [0, 1, 1]}, {"type": "max", "stride": [3, 2, 2]}),
        ({"kernel_size": [2, 1, 1], "dilation": [2, 1, 1]}, {"type": "avg", "kernel_size": [2, 1, 1], "stride": 1}),
    ):
        config = BlockConfig(conv_params=conv, pool_params=pool, act_type="tanh")
        blocks.append((config, Block(config, inputs, 3, generator=generator)))
        inputs = blocks[-1][1].outputs
    assert inputs.step == 6
    context = sum(block.context for _, block in blocks)
    assert context == 2 + 2 * (1 + 2) + 6 * (2 + 1)
    movie = rand(1, 1, context + 3, 9, 7)
    dense = movie
    for _, block in blocks:
        dense = block(dense)
    assert dense.shape[2] == 3
    for index in range(3):
        window = movie[:, :, index : index + context + 1]
        for config, block in blocks:
            window = windowed_block(window, config, block)
        torch.testing.assert_close(window[:, :, -1], dense[:, :, index])


def windowed_block(x, config, block):
    """A block as run on windows: padded on the left in time, strided with the newest frame kept."""

    def pad_time(x, frames):
        return torch.cat([x[:, :, :1].expand(-1, -1, frames, -1, -1), x], dim=2)

    conv, pool = config.conv_params, config.pool_params
    x = pad_time(x, (conv.kernel_size[0] - 1) * conv.dilation[0])
    x = F.conv3d(x, block.conv.weight, block.conv.bias, 1, (0, *conv.padding[1:]), conv.dilation)
    x = x.flip(2)[:, :, :: conv.stride[0]].flip(2).tanh()
    if pool.type == "none":
        return x
    step, *stride = pool.params.stride
    taps, *size = pool.params.kernel_size or pool.params.stride
    function = {"max": F.max_pool3d, "avg": F.avg_pool3d}[pool.type]
    x = function(pad_time(x, taps - 1), (taps, *size), (1, *stride))
    return x.flip(2)[:, :, ::step].flip(2)


def test_a_block_follows_its_order(maps, generator, rand):
    config = BlockConfig(
        conv_params={"kernel_size": [1, 3, 3], "padding": [0, 1, 1]}, norm_type="rms", act_type="splitrelu",
        pool_params={"type": "max"}, order=["norm", "act", "pool", "conv"],
    )  # fmt: skip
    block, x = Block(config, maps(3), 5, generator=generator), rand(2, 3, 2, 9, 7)
    normed = x / (x.square().mean(dim=(1, 3, 4), keepdim=True) + 1e-5).sqrt()
    pooled = F.max_pool3d(torch.cat([normed.relu(), (-normed).relu()], 1), (1, 2, 2))
    torch.testing.assert_close(block(x), F.conv3d(pooled, block.conv.weight, None, padding=(0, 1, 1)))
    assert block.conv.bias is None, "a bias only without a norm"
    assert block.outputs == maps(5, 4, 3)


def test_dropout_drops_channels_in_training_only(maps, generator, rand):
    block = Block(BlockConfig(act_type="none", dropout=0.5), maps(3), 64, generator=generator)
    x = rand(1, 3, 4, 9, 7)
    dropped = block(x).flatten(2).eq(0).all(dim=2)
    assert 10 < dropped.sum() < 54
    assert not block.eval()(x).eq(0).any()
