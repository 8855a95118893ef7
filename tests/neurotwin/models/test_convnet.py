"""Stacks of blocks: shortcuts that look where the block looks, checkpointing that changes nothing."""

import math

import pytest
import torch
from torch.nn import functional as F

from neurotwin.config import ConfigError
from neurotwin.config.dialect import settle
from neurotwin.models.blocks import Block, BlockConfig
from neurotwin.models.convnet import ConvNet, DenseNet, ResNet, Skip


def rand(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


def block(kernel, *, pool=None, norm="none", act="none", **conv) -> dict:
    return {
        "conv_params": {"kernel_size": kernel, **conv}, "act_type": act, "norm_type": norm, "pool_params": pool or {},
    }  # fmt: skip


def test_plain_stack_is_its_convolutions(maps, generator):
    params = ConvNet.Params(
        channels=[4, 5], block_configs=[block([2, 3, 3], act="tanh"), block([1, 3, 3], padding=[0, 1, 1])],
        stem_config={"out_channels": 6, **block([3, 1, 1])}, final_activation="splitrelu",
    )  # fmt: skip
    net, x = ConvNet(params, maps(), generator=generator), rand(2, 3, 8, 9, 7)
    y = F.conv3d(x, net.stem.conv.weight, net.stem.conv.bias)
    y = F.conv3d(y, net.blocks[0].conv.weight, net.blocks[0].conv.bias).tanh()
    y = F.conv3d(y, net.blocks[1].conv.weight, net.blocks[1].conv.bias, padding=(0, 1, 1))
    torch.testing.assert_close(net(x)[0], torch.cat([y.relu(), (-y).relu()], 1))
    assert (net.context, net.outputs) == (3, maps(10, 7, 5))


@pytest.mark.parametrize(
    "config",
    [
        block([3, 5, 5]),
        block([1, 5, 3], padding=[0, 2, 0], stride=[1, 2, 3]),
        block([2, 3, 3], dilation=[2, 2, 1], stride=[2, 2, 1]),
        block([1, 3, 3], padding=[0, 1, 1], pool={"type": "max", "kernel_size": [2, 1, 1], "stride": [1, 2, 2]}),
        block([1, 5, 5], stride=[1, 2, 2], pool={"type": "avg", "kernel_size": 1, "stride": [1, 2, 1]}),
    ],
)
def test_a_skip_takes_the_pixels_that_the_block_is_centred_on(config, maps, generator):
    """A block whose kernel is a delta at its centre passes exactly what the skip passes."""
    inputs, x = maps(3, 17, 15), rand(2, 3, 6, 17, 15)
    config = BlockConfig(**config)
    centred = Block(config, inputs, 3, generator=generator)
    with torch.no_grad():
        _, height, width = config.conv_params.kernel_size
        centred.conv.weight.zero_()
        centred.conv.weight[range(3), range(3), -1, height // 2, width // 2] = 1
    y = centred(x)
    if getattr(config.pool_params.params, "kernel_size", None) == (2, 1, 1):  # of two frames the larger
        x = torch.cat([x[:, :, :1], torch.maximum(x[:, :, 1:], x[:, :, :-1])], dim=2)
    torch.testing.assert_close(Skip(centred, inputs)(x), y)


def test_residual_block(maps, generator):
    params = ResNet.Params(
        channels=[3, 4], block_configs=[block([2, 3, 3], padding=[0, 1, 1], act="tanh"), block([1, 3, 3])],
        resnet_post_add_activation="square",
    )  # fmt: skip
    net, x = ResNet(params, maps(), generator=generator), rand(2, 3, 4, 9, 7)
    first, second = net.blocks
    y = (first.block(x) + x[:, :, 1:]).square()
    assert first.weight is None, "channels and size agree: the shortcut is the identity"
    shortcut = torch.einsum("oi,bithw->bothw", second.weight[:, :, 0, 0], y[..., 1:-1, 1:-1])
    torch.testing.assert_close(net(x)[0], (second.block(y) + shortcut).square())


def test_stochastic_depth_leaves_out_the_blocks_of_some_clips(maps, generator):
    """Each clip takes one of four ways through two blocks, of which the first is left out half as often."""
    params = ResNet.Params(channels=[3, 3], block_configs=[block([2, 3, 3], padding=[0, 1, 1])] * 2, drop_path=0.6)
    net, n = ResNet(params, maps(), generator=generator), 4000
    with torch.no_grad():
        x = rand(1, 3, 3, 9, 7)
        first, second = (residual.block for residual in net.blocks)
        ways, shares = [], []
        for a in (0, 1 / 0.7):
            for b in (0, 1 / 0.4):
                y = a * first(x) + x[:, :, 1:]
                ways.append((b * second(y) + y[:, :, 1:]).flatten())
                shares.append((0.7 if a else 0.3) * (0.4 if b else 0.6))
        out = net(x.expand(n, -1, -1, -1, -1))[0].flatten(1)
        taken = torch.stack([(out - way).abs().amax(dim=1) < 1e-9 for way in ways])
        assert (taken.sum(dim=0) == 1).all(), "all frames of a clip take one way"
        assert taken.double().mean(dim=1).tolist() == pytest.approx(shares, abs=0.03)
        plain = ResNet(params.model_copy(update={"drop_path": 0.0}), maps(), generator=generator)
        plain.load_state_dict(net.state_dict())
        torch.testing.assert_close(net.eval()(x)[0], plain(x)[0], rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["linear", "fourier"])
@pytest.mark.parametrize(("height", "width"), [(9, 7), (1, 4), (5, 1)])
def test_positions_are_channels_of_the_first_block(kind, height, width, maps, generator):
    """By a loop over pixels: −1 and 1 are the outer edges of the map, and the centre of a pixel is where it is."""
    params = ConvNet.Params(channels=[2], block_configs=[block(1)], position_channels=kind)
    net, x = ConvNet(params, maps(3, height, width), generator=generator), rand(2, 3, 4, height, width)
    weight, bias = net.blocks[0].conv.weight.detach()[..., 0, 0, 0], net.blocks[0].conv.bias
    for i in range(height):
        for j in range(width):
            place = [
                c for c, size in (((2 * j + 1) / width - 1, width), ((2 * i + 1) / height - 1, height)) if size > 1
            ]
            if kind == "fourier":
                place += [math.sin(math.pi * p) for p in place[:2]] + [math.cos(math.pi * p) for p in place[:2]]
            known = torch.tensor(place).expand(2, 4, -1)
            seen = torch.cat([x[..., i, j].transpose(1, 2), known], dim=2)
            torch.testing.assert_close(net(x)[0][..., i, j], (seen @ weight.t() + bias).transpose(1, 2))
    with pytest.raises(ConfigError, match=r"position_channels: .* have no positions"):
        ConvNet(params, maps(3, 1, 1), generator=generator)
    assert ConvNet(params, maps(3, 1, 1, axes=0), generator=generator).blocks[0].conv.weight.shape[1] == 3


def test_dense_blocks_append(maps, generator):
    params = DenseNet.Params(channels=[2, 4], block_configs=[block([2, 3, 3]), block([1, 3, 3], padding=[0, 1, 1])])
    net, x = DenseNet(params, maps(), generator=generator), rand(2, 3, 4, 9, 7)
    first = torch.cat([x[:, :, 1:, 1:-1, 1:-1], net.blocks[0].block(x)], dim=1)
    torch.testing.assert_close(net(x)[0], torch.cat([first, net.blocks[1].block(first)], dim=1))
    assert net.outputs == maps(3 + 2 + 4, 7, 5)


def test_around_an_adaptive_pool_a_skip_averages(maps, generator):
    params = ResNet.Params(
        channels=[3], block_configs=[block(1, pool={"type": "adaptivemax", "output_size": [1, 4, 2]})]
    )
    net, x = ResNet(params, maps(), generator=generator), rand(2, 3, 2, 9, 7)
    stage = net.blocks[0]
    means = F.adaptive_avg_pool3d(x, (2, 4, 2))
    shortcut = torch.einsum("oi,bithw->bothw", stage.weight[:, :, 0, 0], means)
    torch.testing.assert_close(net(x)[0], stage.block(x) + shortcut)


def test_checkpointing_changes_nothing(maps):
    results = []
    for checkpointing in (False, True):
        params = ResNet.Params(
            channels=[4, 4], checkpointing=checkpointing, drop_path=0.3,
            block_configs=[block([2, 3, 3], norm=n, act="silu") | {"dropout": 0.3} for n in ("batch", "divisive")],
        )  # fmt: skip
        net = ResNet(params, maps(), generator=torch.Generator().manual_seed(0))
        torch.manual_seed(3)
        y, _ = net(rand(2, 3, 6, 9, 7))
        y.square().sum().backward()
        results.append([y, *[parameter.grad for parameter in net.parameters()], *net.buffers()])
    for plain, recomputed in zip(*results, strict=True):
        torch.testing.assert_close(plain, recomputed)


@pytest.mark.parametrize(
    ("kind", "params", "message"),
    [
        (
            ConvNet,
            ConvNet.Params(channels=[3] * 5),
            r"block_configs.3.conv_params: .*3x3 on maps of 3x1 leaves no pixels",
        ),
        (
            ConvNet,
            ConvNet.Params(channels=[3], stem_config={"out_channels": 4, **block(1, norm="group")}),
            "stem_config.norm_params.num_groups: 8 does not divide 4",
        ),
    ],
)
def test_impossible_stacks_are_refused(kind, params, message, maps, generator):
    with pytest.raises(ConfigError, match=message):
        kind(params, maps(), generator=generator)


@pytest.mark.parametrize("kind", [ResNet, DenseNet])
@pytest.mark.parametrize(
    ("kernel", "padding", "stride", "dilation"),
    [(5, 3, 1, 1), (3, 3, 1, 1), (3, 3, 2, 1), (2, 2, 1, 1), (5, 4, 3, 1), (3, 4, 1, 2), (1, 2, 2, 1), (5, 0, 2, 1)],
)
def test_a_shortcut_is_the_input_where_outputs_are_centred_and_zero_outside(
    kind, kernel, padding, stride, dilation, maps, generator
):
    conv = {"kernel_size": [3, kernel, 3], "padding": [1, padding, 1], "stride": [1, stride, 1]}
    conv |= {"dilation": [1, dilation, 1]}
    params = kind.Params(channels=[3], block_configs=[{"conv_params": conv, "act_type": "none"}])
    net = kind(params, maps(), generator=generator)
    layer, x = net.blocks[0], torch.randn(2, 3, 4, 9, 7, generator=generator)
    y, _ = net(x)
    block = layer.block(x)
    slow = torch.zeros(2, 3, *block.shape[2:])
    for row in range(block.shape[3]):
        centre = math.floor(row * stride + dilation * (kernel - 1) / 2 - padding)
        if 0 <= centre < 9:
            slow[..., row, :] = x[:, :, 2:, centre]
    if kind is DenseNet:
        torch.testing.assert_close(y, torch.cat([slow, block], dim=1))
        return
    if layer.weight is not None:
        slow = torch.einsum("bcthw,oc->bothw", slow, layer.weight[:, :, 0, 0])
    torch.testing.assert_close(y, block + slow)


def test_padding_over_time_makes_no_frames_up():
    padded, plain = (
        BlockConfig(conv_params={"kernel_size": 3, "padding": p}, causal=False) for p in ([1, 1, 1], [0, 1, 1])
    )
    (note,) = settle(padded)
    assert note[0] == ("conv_params", "padding") and "none are made up" in note[1]
    assert not settle(plain) and padded == plain
