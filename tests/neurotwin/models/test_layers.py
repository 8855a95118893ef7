"""Layers against torch's own, scipy's, and slow loops."""

from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import scipy.signal
import torch
from torch import nn
from torch.nn import functional as F

from neurotwin.config import ActParams, BlockConfig, ConfigError, ConvParams, KernelParams, NormParams, PoolParams
from neurotwin.models import layers
from neurotwin.models.layers import MLP, Activation, BatchNorm, Block, Conv, Kernel, make_norm, make_pool, taper


def rand(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


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
def test_convolution_is_torchs(params, mode, large, maps, generator, monkeypatch):
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


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("taps", [1, 2])
@pytest.mark.parametrize("channels", [1, 3])
def test_convolutions_hand_on_channels_last(channels, taps, large, maps, generator, monkeypatch):
    """Else what follows copies, or pairs values and gradients that lie differently in memory: slow, not wrong."""
    if large:
        monkeypatch.setattr(layers, "_LARGE_KERNEL", 0)
    conv = Conv(ConvParams(kernel_size=[taps, 3, 3]), maps(channels), 4, bias=True, generator=generator)
    for x in (rand(2, channels, 5, 9, 7), rand(2, 5, channels, 9, 7).transpose(1, 2)):
        with torch.no_grad():  # in the precision of training: 3-D convolutions of doubles are other code
            assert conv.float()(x.float()).permute(0, 2, 3, 4, 1).is_contiguous()


def test_a_temporal_stride_spreads_the_taps_of_what_follows(maps, generator):
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
    step, *stride = pool.stride
    taps, *size = pool.kernel_size or pool.stride
    function = {"max": F.max_pool3d, "avg": F.avg_pool3d}[pool.type]
    x = function(pad_time(x, taps - 1), (taps, *size), (1, *stride))
    return x.flip(2)[:, :, ::step].flip(2)


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


def test_weight_norm_is_torchs():
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


def test_unit_norm_stays():
    kernel = Kernel(rand(4, 3, 1, 5, 5), KernelParams(keep_unit_norm=True, weight_norm_dim=1, aa_signal=True))
    torch.testing.assert_close(kernel.kernel().movedim(1, 0).flatten(1).norm(dim=1), torch.ones(3))
    assert [name for name, _ in kernel.named_parameters()] == ["weight"]


@pytest.mark.parametrize(
    ("kind", "reference"),
    [
        ("instance", lambda frame: F.instance_norm(frame)),
        ("layer", lambda frame: F.layer_norm(frame, frame.shape[1:])),
        ("group", lambda frame: F.group_norm(frame, 2)),
        ("rms", lambda frame: frame / (frame.square().mean(dim=(1, 2, 3), keepdim=True) + 1e-5).sqrt()),
    ],
)
def test_norms_are_of_each_frame(kind, reference, maps):
    norm = make_norm(kind, NormParams(num_groups=2), maps(4))
    x = 2 * rand(2, 4, 3, 9, 7) + 1
    expected = torch.stack([reference(x[:, :, t]) for t in range(3)], dim=2)
    torch.testing.assert_close(norm(x), expected)
    with torch.no_grad():
        norm.weight.copy_(rand(4))
    torch.testing.assert_close(norm(x), expected * norm.weight.view(4, 1, 1, 1))


def test_global_response_norm_by_loops(maps):
    norm = make_norm("grn", NormParams(), maps(4))
    x = rand(2, 4, 2, 3, 3)
    torch.testing.assert_close(norm(x), x)
    with torch.no_grad():
        norm.weight.copy_(rand(4)), norm.bias.copy_(rand(4) + 1)
    y = norm(x)
    for b in range(2):
        for t in range(2):
            energy = [float(x[b, c, t].square().sum()) ** 0.5 for c in range(4)]
            for c in range(4):
                share = energy[c] / np.mean(energy)
                expected = norm.weight[c] * x[b, c, t] * share + norm.bias[c] + x[b, c, t]
                torch.testing.assert_close(y[b, c, t], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_is_torchs(affine):
    ours, reference = BatchNorm(4, NormParams(affine=affine)), nn.BatchNorm3d(4, affine=affine)
    for seed in range(3):
        x = torch.randn(2, 4, 3, 5, 5, generator=torch.Generator().manual_seed(seed)) * 2 + 100
        x.requires_grad_()
        weight = rand(2, 4, 3, 5, 5)
        found, expected = (
            torch.autograd.grad((norm(x) * weight).sum(), (x, *norm.parameters())) for norm in (ours, reference)
        )
        for gradient, other in zip(found, expected, strict=True):
            torch.testing.assert_close(gradient, other)
        torch.testing.assert_close(ours(x), reference(x))
    torch.testing.assert_close(ours.running_mean, reference.running_mean)
    torch.testing.assert_close(ours.running_var, reference.running_var)
    ours.eval(), reference.eval()
    torch.testing.assert_close(ours(x), reference(x))


def test_batch_norm_computes_statistics_in_single_precision_under_autocast():
    norm = BatchNorm(4, NormParams()).float()
    x = (rand(2, 4, 3, 5, 5) * 2 + 3).bfloat16().requires_grad_()
    y = norm(x)
    assert y.dtype == torch.bfloat16
    assert torch.autograd.grad(y.float().square().sum(), x)[0].dtype == torch.bfloat16
    values = x.detach().double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(norm.running_mean.double(), 0.1 * values.mean(1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(norm.running_var.double(), 0.9 + 0.1 * values.var(1), rtol=1e-5, atol=1e-6)


def test_batch_norm_of_two_processes_is_that_of_one(tmp_path):
    x, weight = rand(5, 2, 3, 4, 4), rand(5, 2, 3, 4, 4)
    torch.multiprocessing.spawn(half_a_batch, (str(tmp_path), x, weight), nprocs=2)
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    norm = BatchNorm(2, NormParams())
    x.requires_grad_()
    y = norm(x)
    (y * weight).sum().backward()
    torch.testing.assert_close(torch.cat([part["y"] for part in parts]), y.detach())
    torch.testing.assert_close(torch.cat([part["gradient"] for part in parts]), x.grad)
    torch.testing.assert_close(sum(part["weight_gradient"] for part in parts), norm.weight.grad)
    for part in parts:
        torch.testing.assert_close(part["running_var"], norm.running_var)


def half_a_batch(rank: int, folder: str, x: torch.Tensor, weight: torch.Tensor) -> None:
    torch.set_default_dtype(torch.float64)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    rows = slice(0, 3) if rank == 0 else slice(3, 5)
    x, norm = x[rows].clone().requires_grad_(), BatchNorm(2, NormParams())
    y = norm(x)
    (y * weight[rows]).sum().backward()
    kept = {"gradient": x.grad, "weight_gradient": norm.weight.grad, "running_var": norm.running_var}
    torch.save({"y": y.detach(), **kept}, Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("kind", "params", "message"),
    [
        ("group", {"num_groups": 3}, r"num_groups: 3 does not divide 4; use one of \[1, 2, 4\]"),
        ("instance", {}, "one pixel"),
    ],
)
def test_impossible_norms_are_refused(kind, params, message, maps):
    with pytest.raises(ConfigError, match=message):
        make_norm(kind, NormParams(**params), maps(4, 1, 1))


@pytest.mark.parametrize(
    ("name", "params", "expected"),
    [
        ("none", {}, lambda x: x),
        ("identity", {}, lambda x: x),
        ("relu", {}, lambda x: x.clamp_min(0)),
        ("leakyrelu", {"negative_slope": 0.3}, lambda x: torch.where(x > 0, x, 0.3 * x)),
        ("gelu", {}, lambda x: x * (1 + torch.erf(x / 2**0.5)) / 2),
        ("sigmoid", {}, lambda x: 1 / (1 + (-x).exp())),
        ("tanh", {}, torch.tanh),
        ("silu", {}, lambda x: x / (1 + (-x).exp())),
        ("swish", {}, lambda x: x / (1 + (-x).exp())),
        ("mish", {}, lambda x: x * (1 + x.exp()).log().tanh()),
        ("softplus", {"beta": 2.0}, lambda x: (1 + (2 * x).exp()).log() / 2),
        ("bsoftplus", {"beta": 3.0}, lambda x: (1 + (3 * x).exp()).log() / 3),
        ("splitrelu", {}, lambda x: torch.cat([x.clamp_min(0), (-x).clamp_min(0)], 1)),
        ("square", {}, lambda x: x * x),
        ("ELU", {}, lambda x: torch.where(x > 0, x, x.exp() - 1)),
        ("PReLU", {}, lambda x: torch.where(x > 0, x, 0.25 * x)),
        ("GLU", {}, lambda x: x[:, :2] / (1 + (-x[:, 2:]).exp())),
        ("Softmax", {}, lambda x: x.exp() / x.exp().sum(1, keepdim=True)),
        ("Softmax2d", {}, lambda x: x.exp() / x.exp().sum(1, keepdim=True)),
    ],
)
def test_activations(name, params, expected):
    act, x = Activation(name, ActParams(**params)), rand(2, 4, 3, 5, 5)
    torch.testing.assert_close(act(x), expected(x))
    assert act.channels(4) == expected(x).shape[1]


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("relu", {"negative_slope": 0.1}, "negative_slope: relu does not read it"),
        ("splitrelu", {"split_dim": 3}, "only the channels"),
        ("Threshold", {}, "cannot give it"),
    ],
)
def test_activation_parameters_that_nothing_reads_are_refused(name, params, message):
    with pytest.raises(ConfigError, match=message):
        Activation(name, ActParams(**params))


def test_max_and_mean_pool_are_torchs(maps, generator):
    x = rand(2, 3, 6, 9, 7)
    for kind, function in (("max", F.max_pool3d), ("avg", F.avg_pool3d)):
        params = PoolParams(type=kind, kernel_size=[2, 3, 3], stride=[1, 2, 2], padding=[0, 1, 1])
        pool = make_pool(params, maps(), generator=generator)
        torch.testing.assert_close(pool(x), function(x, (2, 3, 3), (1, 2, 2), (0, 1, 1)))
        torch.testing.assert_close(
            make_pool(PoolParams(type=kind), maps(), generator=generator)(x), function(x, (1, 2, 2))
        )
    for kind, function in (("adaptivemax", F.adaptive_max_pool3d), ("adaptiveavg", F.adaptive_avg_pool3d)):
        pool = make_pool(PoolParams(type=kind, output_size=[1, 4, 2]), maps(), generator=generator)
        torch.testing.assert_close(pool(x), function(x, (6, 4, 2)))


@pytest.mark.parametrize("stride", [[1, 2, 2], [2, 3, 2]])
def test_blur_pool_is_scipys_binomial_filter(stride, maps, generator):
    pool = make_pool(PoolParams(type="aablur", stride=stride), maps(1), generator=generator)
    x = rand(1, 1, 5, 9, 7)
    kernels = [
        np.array([1.0]) if s == 1 else {2: np.array([1, 2, 1]) / 4, 3: np.array([1, 4, 6, 4, 1]) / 16}[s]
        for s in stride
    ]
    expected = x[0, 0].numpy()
    for axis in (1, 2):
        expected = scipy.ndimage.correlate1d(expected, kernels[axis], axis=axis, mode="nearest")
    taps = len(kernels[0])
    expected = np.stack([np.tensordot(kernels[0], expected[t : t + taps], 1) for t in range(6 - taps)])
    expected = expected[:, :: stride[1], :: stride[2]]
    np.testing.assert_allclose(pool(x)[0, 0], expected, atol=1e-12)
    assert pool.outputs.step == stride[0]


@pytest.mark.parametrize("soft", [True, False])
@pytest.mark.parametrize("blur", [True, False])
def test_squeeze_excite_pool_by_loops(soft, blur, maps, generator):
    params = PoolParams(type="se_pool", stride=[1, 2, 3], use_soft=soft, use_blur=blur, r=2)
    pool = make_pool(params, maps(4), generator=generator)
    x = 3 * rand(2, 4, 1, 9, 7)
    y = pool(x)
    kernel = (3, 5) if blur else (2, 3)
    weights = np.ones(kernel) / np.prod(kernel)
    if blur:
        weights = np.outer(np.array([1, 2, 1]) / 4, np.array([1, 4, 6, 4, 1]) / 16)
    for b in range(2):
        image = x[b, :, 0].numpy()
        if blur:
            image = np.pad(image, ((0, 0), (1, 1), (2, 2)), mode="edge")
        pooled = np.zeros((4, *y.shape[-2:]))
        for i, j in np.ndindex(*y.shape[-2:]):
            patch = image[:, 2 * i : 2 * i + kernel[0], 3 * j : 3 * j + kernel[1]]
            weight = weights * (np.exp(patch) if soft else np.ones_like(patch))
            pooled[:, i, j] = (weight * patch).sum((1, 2)) / weight.sum((1, 2))
        squeezed = np.maximum(pool.squeeze.weight.detach().numpy() @ pooled.mean((1, 2)), 0)
        gate = 1 / (1 + np.exp(-pool.excite.weight.detach().numpy() @ squeezed))
        np.testing.assert_allclose(y[b, :, 0].detach(), pooled * gate[:, None, None], atol=1e-12)


def test_local_attention_by_loops(maps, generator):
    pool = make_pool(PoolParams(type="locatt", chan_window=3, spatial_kernel=3), maps(5), generator=generator)
    with torch.no_grad():
        pool.weight.copy_(rand(5, 1, 3, 3))
    x = rand(1, 5, 1, 4, 4)
    score = np.stack(
        [scipy.ndimage.correlate(x[0, c, 0], pool.weight[c, 0].detach(), mode="constant") for c in range(5)]
    )
    for c in range(5):
        rivals = [k for k in (c - 1, c, c + 1) if 0 <= k < 5]
        share = np.exp(score[c]) / sum(np.exp(score[k]) for k in rivals)
        np.testing.assert_allclose(pool(x)[0, c, 0].detach(), x[0, c, 0].numpy() * share * len(rivals), atol=1e-12)
    same = torch.ones(1, 5, 1, 4, 4)
    with torch.no_grad():
        pool.weight.fill_(1 / 9)
    torch.testing.assert_close(pool(same), same)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"type": "max", "kernel_size": [1, 10, 2]}, "leaves no pixels"),
        ({"type": "max", "kernel_size": [1, 2, 2], "padding": [0, 2, 2]}, "more than half"),
        ({"type": "adaptiveavg", "output_size": 3}, "never pooled"),
        ({"type": "adaptiveavg"}, "needs output_size"),
    ],
)
def test_impossible_pools_are_refused(params, message, maps, generator):
    with pytest.raises(ConfigError, match=message):
        make_pool(PoolParams(**params), maps(), generator=generator)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"kernel_size": [1, 11, 3]}, r"11x3 on maps of 9x7 leaves no pixels"),
        ({"kernel_size": [1, 3, 3], "dilation": [1, 5, 1]}, "leaves no pixels"),
        ({"kernel_size": 1, "groups": 2}, "2 groups do not divide 3 channels"),
        ({"kernel_size": 3, "padding": [0, 8, 8], "padding_mode": "circular"}, "circular needs padding of at most 7"),
    ],
)
def test_impossible_convolutions_are_refused(params, message, maps, generator):
    with pytest.raises(ConfigError, match=message):
        Conv(ConvParams(**params), maps(), 4, bias=True, generator=generator)


def test_a_block_follows_its_order(maps, generator):
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


def test_dropout_drops_channels_in_training_only(maps, generator):
    block = Block(BlockConfig(act_type="none", dropout=0.5), maps(3), 64, generator=generator)
    x = rand(1, 3, 4, 9, 7)
    dropped = block(x).flatten(2).eq(0).all(dim=2)
    assert 10 < dropped.sum() < 54
    assert not block.eval()(x).eq(0).any()


def test_perceptron_adds_its_input_where_widths_agree(generator):
    mlp, x = MLP(4, (6, 6), activation="tanh", residual=True, generator=generator), rand(2, 3, 4)
    first = (x @ mlp.layers[0][0].weight.t()).tanh()
    torch.testing.assert_close(mlp(x), first + (first @ mlp.layers[1][0].weight.t()).tanh())
