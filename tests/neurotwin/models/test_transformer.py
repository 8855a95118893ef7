"""The transformer against a loop over frames, patches and heads; that attention is bounded, causal and relative."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from neurotwin.config import ConfigError
from neurotwin.models.transformer import Transformer, rotated


def make(maps, generator, *size, **params):
    inputs = maps(3, *(size or (6, 8)))
    defaults = {"width": 8, "heads": 2, "depth": 1, "frames": 3, "patch_size": [1, 2, 2], "hidden_dim": 5}
    return Transformer(Transformer.Params(**defaults | params), inputs, generator=generator).eval()


def turned(vector: np.ndarray, place: tuple[float, ...], axes: int) -> np.ndarray:
    """A vector with pairs of entries as complex numbers, turned by the rotary angles of a place (t, x, y)."""
    pairs = len(vector) // 2
    values = vector[:pairs] + 1j * vector[pairs:]
    each = -(-pairs // axes)
    for pair in range(pairs):
        values[pair] *= np.exp(1j * place[pair % axes] * 100.0 ** (-(pair // axes) / each))
    return np.concatenate([values.real, values.imag])


@pytest.mark.parametrize("width", [8, 12])
def test_a_layer_by_loops(width, maps, generator, rand):
    """Queries of the newest frame and keys of all frames, each turned by where and when it is (absolute times)."""
    net = make(maps, generator, 4, 6, width=width)
    layer, (height, columns), (batch, frames) = net.layers[0], (2, 3), (2, 5)
    with torch.no_grad():
        x = rand(batch, frames, 6, width)
        y = layer(x)
        for b in range(batch):
            normed = F.layer_norm(x[b], (width,))
            projected = {name: getattr(layer, name)(normed).numpy() for name in ("query", "key", "value")}
            for t in range(2, frames):
                for p in range(height * columns):
                    joined = []
                    for head in np.split(np.arange(width), 2):
                        query = turned(projected["query"][t, p, head], (t, p % columns, p // columns), 3)
                        others = [(s, q) for s in range(t - 2, t + 1) for q in range(height * columns)]
                        keys = [
                            turned(projected["key"][s, q, head], (s, q % columns, q // columns), 3) for s, q in others
                        ]
                        scores = np.exp(np.array(keys) @ query / np.sqrt(width / 2))
                        values = np.array([projected["value"][s, q, head] for s, q in others])
                        joined.append(scores @ values / scores.sum())
                    after = x[b, t, p] + layer.out(torch.tensor(np.concatenate(joined)))
                    hidden = F.gelu(layer.hidden(F.layer_norm(after, (width,))))
                    torch.testing.assert_close(y[b, t - 2, p], after + layer.back(hidden))


def test_patches_are_a_strided_convolution(maps, generator, rand):
    net, x = make(maps, generator, depth=1, frames=1, patch_size=[3, 2, 4]), rand(2, 3, 7, 6, 8)
    patches = F.conv3d(x, net.patch.weight, net.patch.bias, stride=(1, 2, 4))
    expected = F.layer_norm(net.layers[0](patches.permute(0, 2, 3, 4, 1).flatten(2, 3)), (8,))
    torch.testing.assert_close(net(x)[0], expected.unflatten(2, (3, 2)).permute(0, 4, 1, 2, 3))
    assert net.outputs == maps(8, 3, 2) and net.context == 2


@pytest.mark.parametrize("step", [1, 2])
def test_a_clip_gives_what_windows_give_and_sees_no_further(step, maps, generator, rand):
    params = Transformer.Params(width=8, depth=2, frames=3, patch_size=[2, 3, 3])
    net = Transformer(params, maps(3, step=step), generator=generator).eval()
    assert net.context == step * (1 + 2 * 2)
    x = rand(2, 3, net.context + 6, 9, 7)
    y = net(x)[0]
    for t in range(6):
        torch.testing.assert_close(net(x[:, :, t : t + net.context + 1])[0][:, :, 0], y[:, :, t])
    for frame in range(x.shape[2]):
        changed = x.clone()
        changed[:, :, frame] += 1
        moved = (net(changed)[0] - y).abs().amax(dim=(0, 1, 3, 4)) > 1e-9
        ages = [t + net.context - frame for t in range(6)]
        reach = [t for t, age in enumerate(ages) if 0 <= age <= net.context and age % step == 0]
        assert moved.nonzero().flatten().tolist() == reach


def test_attention_depends_on_how_far_apart_patches_are(rand):
    """Turning query and key by the same angle leaves their product as it is, whatever the angle."""
    query, key, angle, shift = rand(5, 6), rand(5, 6) + 1, rand(5, 3), 3 * rand(3)
    product = (rotated(query, angle) * rotated(key, 0.5 * angle)).sum(-1)
    shifted = (rotated(query, angle + shift) * rotated(key, 0.5 * angle + shift)).sum(-1)
    torch.testing.assert_close(product, shifted)
    assert not torch.allclose(product, (query * key).sum(-1))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"width": 6}, "width: 6 is no multiple of 4"),
        ({"patch_size": [1, 9, 9]}, r"patch_size.conv_params: .*9x9 on maps of 6x8 leaves no pixels"),
    ],
)
def test_impossible_transformers_are_refused(params, message, maps, generator):
    with pytest.raises(ConfigError, match=message):
        make(maps, generator, **params)
