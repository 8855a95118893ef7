"""Layers against torch's own, scipy's, and slow loops."""

import numpy as np
import pytest
import scipy.ndimage
import scipy.signal
import torch
from torch import nn
from torch.nn import functional as F

from neurotwin.config import ConfigError
from neurotwin.models import layers
from neurotwin.models.layers import MLP, Conv, ConvParams, Kernel, KernelParams, taper


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("mode", ["zeros", "replicate", "reflect", "circular"])
@pytest.mark.parametrize(
    "params",
    [
        {"kernel_size": 3},
        {"kernel_size": 3, "dilation": [3, 1, 1], "use_weight_norm": True},
        {"kernel_size": [1, 3, 3], "padding": [0, 1, 1]},
        {"kernel_size": [2, 4, 3], "padding": [0, 2, 0], "stride": [1, 2, 3]},
        {"kernel_size": [3, 3, 2], "dilation": [2, 2, 3], "padding": [0, 2, 1], "groups": 2},
        {"kernel_size": [4, 1, 1]},
        {"kernel_size": [1, 1, 1], "padding": [0, 1, 1]},
        {"kernel_size": [2, 3, 3], "type": "depthwise", "padding": [0, 1, 1]},
        {"kernel_size": [1, 3, 3], "type": "depthwise", "stride": [1, 2, 2]},
    ],
)
def test_convolution_is_torchs(params, mode, large, maps, generator, monkeypatch, rand):
    if large:
        monkeypatch.setattr(layers, "_LARGE_KERNEL", 0)
    config = ConvParams(**params, padding_mode=mode)
    conv = Conv(config, maps(4), 6, bias=True, generator=generator)
    assert conv.folds == (config.kernel_size[0] == 1 or (large and config.type != "depthwise" and config.groups == 1))
    with torch.no_grad():
        conv.bias.copy_(rand(6))
    x = rand(2, 4, 9, 9, 7)
    _, rows, columns = config.padding
    padded = F.pad(x, (columns, columns, rows, rows, 0, 0), mode="constant" if mode == "zeros" else mode)
    stride = (1, *config.stride[1:])
    if config.type == "depthwise":
        between = F.conv3d(padded, conv.weight, None, stride, 0, config.dilation, groups=4)
        expected = (
            torch.einsum("oi,bithw->bothw", conv.pointwise[:, :, 0, 0, 0], between) + conv.bias[:, None, None, None]
        )
    else:
        expected = F.conv3d(padded, conv.weight, conv.bias, stride, 0, config.dilation, config.groups)
    torch.testing.assert_close(conv(x), expected)
    assert conv.outputs.channels == 6
    assert (conv.outputs.height, conv.outputs.width) == expected.shape[-2:]
    assert conv.context == 9 - expected.shape[2]


@pytest.mark.parametrize("kernel", [(3, 3, 3), (2, 5, 1), (1, 3, 3), (4, 1, 1)])
def test_a_factorized_convolution_is_one_over_space_then_one_over_time(kernel, maps, generator, rand):
    """With a relu between, and as many weights as a whole kernel has, or a few less (Tran et al. 2018)."""
    params = ConvParams(
        type="factorized", kernel_size=kernel, padding=[0, kernel[1] // 2, 0], stride=[3, 2, 1], dilation=[2, 1, 1],
    )  # fmt: skip
    conv = Conv(params, maps(4, step=2), 6, bias=True, generator=generator)
    with torch.no_grad():
        conv.bias.copy_(rand(6))
    x, taps = rand(2, 4, 16, 9, 7), kernel[0]
    between = F.conv3d(x, conv.weight, None, (1, 2, 1), (0, kernel[1] // 2, 0)).clamp_min(0)
    torch.testing.assert_close(conv(x), F.conv3d(between, conv.temporal, conv.bias, dilation=(4, 1, 1)))
    assert conv.context == 4 * (taps - 1) and conv.outputs.step == 6 and conv.outputs.channels == 6
    whole = 6 * 4 * np.prod(kernel)
    one_more = 4 * kernel[1] * kernel[2] + 6 * taps
    assert whole - one_more < conv.weight.numel() + conv.temporal.numel() <= whole
    start = Conv(params, maps(4, step=2), 400, bias=False, generator=generator)(rand(2, 4, 40, 9, 7))
    assert 0.5 < start[..., 1:-1, :].std() < 2.5, "as large as what comes in"


@pytest.mark.parametrize("large", [False, True])
def test_after_a_stride_over_time_taps_lie_further_apart(large, maps, generator, monkeypatch, rand):
    """A stride is not taken but becomes the distance of later taps, on top of their own dilation."""
    if large:
        monkeypatch.setattr(layers, "_LARGE_KERNEL", 0)
    params = ConvParams(kernel_size=[3, 1, 1], stride=[5, 1, 1], dilation=[2, 1, 1])
    conv = Conv(params, maps(4, step=3), 6, bias=False, generator=generator)
    x = rand(2, 4, 15, 3, 3)
    torch.testing.assert_close(conv(x), F.conv3d(x, conv.weight, dilation=(6, 1, 1)))
    assert conv.context == 12 and conv.outputs.step == 15


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("taps", [1, 2])
@pytest.mark.parametrize("channels", [1, 3])
def test_convolutions_hand_on_channels_last(channels, taps, large, maps, generator, monkeypatch, rand):
    """Else what follows copies, or pairs values and gradients that lie differently in memory: slow, not wrong."""
    if large:
        monkeypatch.setattr(layers, "_LARGE_KERNEL", 0)
    conv = Conv(ConvParams(kernel_size=[taps, 3, 3]), maps(channels), 4, bias=True, generator=generator)
    for x in (rand(2, channels, 5, 9, 7), rand(2, 5, channels, 9, 7).transpose(1, 2)):
        with torch.no_grad():  # in the precision of training: 3-D convolutions of doubles are other code
            assert conv.float()(x.float()).permute(0, 2, 3, 4, 1).is_contiguous()


@pytest.mark.parametrize("window", ["hann", "hamming", "blackman", "kaiser"])
@pytest.mark.parametrize("size", [5, 8])
def test_taper_is_scipys_window_without_its_ends(window, size):
    name = ("kaiser", 12.0) if window == "kaiser" else window
    expected = scipy.signal.get_window(name, size + 2, fftbins=False)[1:-1]
    expected = (expected / expected.max()) ** 0.5
    np.testing.assert_allclose(taper(size, window, 0.5), expected, atol=1e-12)
    assert taper(4, window, 1.0).tolist() == [1.0] * 4


def test_a_kernel_is_tapered_on_its_long_axes():
    kernel = Kernel(torch.ones(2, 1, 3, 5, 5), KernelParams(aa_signal=True)).kernel()
    window = torch.tensor([0.25, 0.75, 1.0, 0.75, 0.25])
    expected = torch.outer(window, window).expand(2, 1, 3, 5, 5)
    torch.testing.assert_close(kernel / kernel.max(), expected)
    torch.testing.assert_close(kernel.square().mean(), torch.tensor(1.0))


def test_weight_norm_is_torchs(rand):
    weight = rand(4, 3, 2, 3, 3)
    ours = Kernel(weight, KernelParams(use_weight_norm=True))
    reference = nn.Conv3d(3, 4, (2, 3, 3), bias=False)
    with torch.no_grad():
        reference.weight.copy_(weight)
    reference = nn.utils.parametrizations.weight_norm(reference)
    torch.testing.assert_close(ours.kernel(), weight)
    with torch.no_grad():
        ours.weight.mul_(rand(4, 3, 2, 3, 3)), ours.gain.mul_(3)
        reference.parametrizations.weight.original1.copy_(ours.weight)
        reference.parametrizations.weight.original0.copy_(ours.gain.view(4, 1, 1, 1, 1))
    torch.testing.assert_close(ours.kernel(), reference.weight)


def test_unit_norm_stays(rand):
    kernel = Kernel(rand(4, 3, 1, 5, 5), KernelParams(keep_unit_norm=True, weight_norm_dim=1, aa_signal=True))
    torch.testing.assert_close(kernel.kernel().movedim(1, 0).flatten(1).norm(dim=1), torch.ones(3))
    assert [name for name, _ in kernel.named_parameters()] == ["weight"]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"kernel_size": [1, 11, 3]}, r"11x3 on maps of 9x7 leaves no pixels"),
        ({"kernel_size": [1, 3, 3], "dilation": [1, 5, 1]}, "leaves no pixels"),
        ({"kernel_size": 1, "groups": 2, "type": "factorized"}, "use groups: 1"),
        ({"kernel_size": 1, "groups": 2}, "2 groups do not divide 3 channels"),
        ({"kernel_size": 3, "padding": [0, 8, 8], "padding_mode": "circular"}, "circular needs padding of at most 7"),
    ],
)
def test_impossible_convolutions_are_refused(params, message, maps, generator):
    with pytest.raises(ConfigError, match=message):
        Conv(ConvParams(**params), maps(), 4, bias=True, generator=generator)


def test_perceptron_adds_its_input_where_widths_agree(generator, rand):
    mlp, x = MLP(4, (6, 6), activation="tanh", residual=True, generator=generator), rand(2, 3, 4)
    first = (x @ mlp.layers[0][0].weight.t()).tanh()
    torch.testing.assert_close(mlp(x), first + (first @ mlp.layers[1][0].weight.t()).tanh())
