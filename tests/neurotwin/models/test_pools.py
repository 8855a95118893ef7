"""Pools against torch's own, scipy's, and slow loops."""

import numpy as np
import pytest
import scipy.ndimage
import scipy.signal
import torch
from torch.nn import functional as F

from neurotwin.config import ConfigError, define
from neurotwin.models.blocks import PoolPart
from neurotwin.models.stages import Maps


def make_pool(config: dict, inputs: Maps, *, generator: torch.Generator) -> torch.nn.Module:
    """The pool of a block's `pool_params`."""
    part = PoolPart.model_validate(config)
    return define("pool", part.type)(part.params, inputs, generator=generator)


def test_max_and_mean_pool_are_torchs(maps, generator, rand):
    x = rand(2, 3, 6, 9, 7)
    for kind, function in (("max", F.max_pool3d), ("avg", F.avg_pool3d)):
        params = {"type": kind, "kernel_size": [2, 3, 3], "stride": [1, 2, 2], "padding": [0, 1, 1]}
        pool = make_pool(params, maps(), generator=generator)
        torch.testing.assert_close(pool(x), function(x, (2, 3, 3), (1, 2, 2), (0, 1, 1)))
        torch.testing.assert_close(make_pool({"type": kind}, maps(), generator=generator)(x), function(x, (1, 2, 2)))
    for kind, function in (("adaptivemax", F.adaptive_max_pool3d), ("adaptiveavg", F.adaptive_avg_pool3d)):
        pool = make_pool({"type": kind, "output_size": [1, 4, 2]}, maps(), generator=generator)
        torch.testing.assert_close(pool(x), function(x, (6, 4, 2)))


@pytest.mark.parametrize("stride", [[1, 2, 2], [2, 3, 2]])
def test_blur_pool_is_scipys_binomial_filter(stride, maps, generator, rand):
    pool = make_pool({"type": "aablur", "stride": stride}, maps(1), generator=generator)
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


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("soft", [True, False])
def test_a_blur_with_a_gate_is_the_gated_pool_with_a_blur_over_time(stride, soft, maps, generator, rand):
    """`r` and `use_soft` mean what they mean for se_pool, whose own test is a loop; over time the blur comes first."""
    blur = make_pool({"type": "aablur", "stride": stride, "r": 2, "use_soft": soft}, maps(4), generator=generator)
    gated = make_pool({"type": "se_pool", "stride": [1, stride, stride], "r": 2, "use_soft": soft}, maps(4),
                      generator=generator)  # fmt: skip
    gated.load_state_dict(blur.state_dict())
    x = rand(2, 4, 5, 9, 7)
    blurred = x if stride == 1 else (x[:, :, :-2] + 2 * x[:, :, 1:-1] + x[:, :, 2:]) / 4
    torch.testing.assert_close(blur(x), gated(blurred))
    assert blur.outputs.step == stride and (blur.context, len(list(blur.parameters()))) == (2 * (stride - 1), 4)
    plain = make_pool({"type": "aablur", "stride": stride}, maps(4), generator=generator)
    assert not list(plain.parameters()) and (blur(x) - plain(x)).abs().max() > 0.01


@pytest.mark.parametrize("soft", [True, False])
@pytest.mark.parametrize("blur", [True, False])
def test_squeeze_excite_pool_by_loops(soft, blur, maps, generator, rand):
    params = {"type": "se_pool", "stride": [1, 2, 3], "use_soft": soft, "use_blur": blur, "r": 2}
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


def test_local_attention_by_loops(maps, generator, rand):
    pool = make_pool({"type": "locatt", "chan_window": 3, "spatial_kernel": 3}, maps(5), generator=generator)
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
        make_pool(params, maps(), generator=generator)


def test_se_pool_of_stride_one_is_squeeze_and_excite_of_each_frame(maps, generator, rand):
    """Beside a depthwise convolution this makes a depthwise-separable block with squeeze and excite."""
    pool, x = make_pool({"type": "se_pool", "stride": 1, "r": 2}, maps(4), generator=generator), rand(2, 4, 3, 9, 7)
    for b, t in np.ndindex(2, 3):
        frame = x[b, :, t]
        hidden = (pool.squeeze.weight @ frame.mean(dim=(1, 2)) + pool.squeeze.bias).clamp_min(0)
        gate = 1 / (1 + (-(pool.excite.weight @ hidden + pool.excite.bias)).exp())
        torch.testing.assert_close(pool(x)[b, :, t], frame * gate[:, None, None])
