"""Norms against torch's own and slow loops, on one process and two."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from neurotwin.config import ConfigError, define
from neurotwin.models.norms import BatchNorm, DivisiveNorm, NormParams
from neurotwin.models.stages import Maps

MAPS = Maps(4, 5, 5, bin_rate=100.0)


@pytest.mark.parametrize(
    ("kind", "reference"),
    [
        ("instance", lambda frame: F.instance_norm(frame)),
        ("layer", lambda frame: F.layer_norm(frame, frame.shape[1:])),
        ("group", lambda frame: F.group_norm(frame, 2)),
        ("rms", lambda frame: frame / (frame.square().mean(dim=(1, 2, 3), keepdim=True) + 1e-5).sqrt()),
    ],
)
def test_norms_are_of_each_frame(kind, reference, maps, rand):
    norm = define("norm", kind)(NormParams(num_groups=2), maps(4))
    x = 2 * rand(2, 4, 3, 9, 7) + 1
    expected = torch.stack([reference(x[:, :, t]) for t in range(3)], dim=2)
    torch.testing.assert_close(norm(x), expected)
    with torch.no_grad():
        norm.weight.copy_(rand(4)), norm.bias.copy_(rand(4) + 1)
    per_channel = (4, 1, 1, 1)
    torch.testing.assert_close(norm(x), expected * norm.weight.view(per_channel) + norm.bias.view(per_channel))


def test_global_response_norm_by_loops(maps, rand):
    norm = define("norm", "grn")(NormParams(), maps(4))
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


def divided(norm: DivisiveNorm, z: np.ndarray) -> np.ndarray:
    """The responses of one frame (C, H, W), whose root mean square is 1, by the equation and loops over pixels."""
    n, sigma, weights = (np.exp(v.detach().numpy()) for v in (norm.log_exponent, norm.log_sigma, norm.log_pool))
    side, (channels, height, width) = norm.size, z.shape
    window = np.exp(norm.window.detach().numpy()).reshape(side)
    y = np.empty_like(z)
    for c, i, j in np.ndindex(z.shape):
        pool = 0.0
        for k in range(channels):
            for u, v in np.ndindex(side):
                row = min(max(i + u - side[0] // 2, 0), height - 1)
                column = min(max(j + v - side[1] // 2, 0), width - 1)
                pool += weights[c, k] * window[u, v] / window.sum() * abs(z[k, row, column]) ** n[k]
        y[c, i, j] = np.sign(z[c, i, j]) * abs(z[c, i, j]) ** n[c] / (sigma[c] ** n[c] + pool)
    return norm.weight.detach().numpy()[:, None, None] * y + norm.bias.detach().numpy()[:, None, None]


@pytest.mark.parametrize("pool_size", [3, 5])
def test_divisive_norm_by_loops(pool_size, maps, rand):
    norm = DivisiveNorm(NormParams(pool_size=pool_size, eps=1e-12), maps(3, 5, 4))
    x = rand(2, 3, 2, 5, 4)
    assert norm.log_exponent.exp().tolist() == pytest.approx([2.0] * 3), "Heeger's exponent at the start"
    for moved in (0.0, 0.2):
        with torch.no_grad():
            for index, parameter in enumerate(norm.parameters()):
                parameter.add_(moved * (index + 1) * rand(*parameter.shape))
        y = norm.eval()(x)
        for b in range(2):
            for t in range(2):
                expected = divided(norm, x[b, :, t].numpy())
                np.testing.assert_allclose(y[b, :, t].detach(), expected, rtol=1e-6, atol=1e-6)


def test_divisive_norm_saturates_with_contrast_and_is_suppressed_by_others(maps):
    """Two textbook effects: half of the maximum at σ (Naka & Rushton 1966), and less of it under a mask."""
    norm = DivisiveNorm(NormParams(affine=False), maps(2, 5, 5)).eval()
    with torch.no_grad():
        norm.log_pool.copy_(torch.tensor([[1.0, 3.0], [1e-9, 1e-9]]).log()), norm.log_sigma.fill_(0.5)
    contrast = torch.tensor([0.01, 0.5**0.5, torch.e**0.5, 20.0, 1000.0])
    x = torch.zeros(5, 2, 1, 5, 5)
    x[:, 0] = contrast[:, None, None, None]
    response = norm(x)[:, 0, 0, 2, 2]
    torch.testing.assert_close(response, contrast**2 / (torch.e + contrast**2), atol=1e-4, rtol=1e-4)
    x[:, 1] = 1.0
    masked = norm(x)[:, 0, 0, 2, 2]
    torch.testing.assert_close(masked, contrast**2 / (torch.e + contrast**2 + 3), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_divisive_norm_starts_at_a_usual_size_whatever_comes_in(scale, maps, rand):
    norm = DivisiveNorm(NormParams(), maps(4))
    x = (scale * rand(2, 4, 3, 9, 7)).requires_grad_()
    y = norm(x)
    assert 0.5 < y.std() < 3 and y.abs().max() < 50
    (y * rand(2, 4, 3, 9, 7)).sum().backward()
    assert 0.1 < scale * x.grad.std() < 10
    assert all(p.grad.isfinite().all() and p.grad.abs().max() < 1e3 for p in norm.parameters())
    torch.testing.assert_close(norm.eval()(x), y)
    silent = torch.zeros(1, 4, 1, 9, 7, requires_grad=True)
    norm(silent).sum().backward()
    assert silent.grad.isfinite().all()


def test_divisive_norm_measures_its_inputs_over_steps_and_processes(maps, rand, monkeypatch):
    """The weighted mean of the squares of all steps so far; a second pass over the same values changes nothing."""
    norm, steps = DivisiveNorm(NormParams(momentum=0.3), maps(4)), [rand(2, 4, 3, 9, 7) * s for s in (1, 3, 2)]
    for x in steps:
        norm(x)
    squares = [x.square().mean(dim=(0, 2, 3, 4)) for x in steps]
    weights = [0.7**2, 0.7, 1.0]
    expected = sum(w * s for w, s in zip(weights, squares, strict=True)) / sum(weights)
    torch.testing.assert_close(norm._scale().square(), expected)
    norm.frozen = True
    norm(100 * steps[0])
    torch.testing.assert_close(norm._scale().square(), expected)
    other = rand(1, 4, 3, 9, 7) * 5
    shared = DivisiveNorm(NormParams(), maps(4))
    monkeypatch.setattr(
        "neurotwin.models.norms.all_reduce_sum",
        lambda mine: mine + torch.cat([other.square().sum(dim=(0, 2, 3, 4)), torch.tensor([189.0])]),
    )
    shared(steps[0])
    torch.testing.assert_close(shared._scale().square(), torch.cat([steps[0], other]).square().mean(dim=(0, 2, 3, 4)))


@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_is_torchs(affine, rand):
    ours, reference = BatchNorm(NormParams(affine=affine), MAPS), nn.BatchNorm3d(4, affine=affine)
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


def test_batch_norm_computes_statistics_in_single_precision_under_autocast(rand):
    norm = BatchNorm(NormParams(), MAPS).float()
    x = (rand(2, 4, 3, 5, 5) * 2 + 3).bfloat16().requires_grad_()
    y = norm(x)
    assert y.dtype == torch.bfloat16
    assert torch.autograd.grad(y.float().square().sum(), x)[0].dtype == torch.bfloat16
    values = x.detach().double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(norm.running_mean.double(), 0.1 * values.mean(1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(norm.running_var.double(), 0.9 + 0.1 * values.var(1), rtol=1e-5, atol=1e-6)


def test_batch_norm_of_two_processes_is_that_of_one(tmp_path, rand):
    x, weight = rand(5, 2, 3, 4, 4), rand(5, 2, 3, 4, 4)
    torch.multiprocessing.spawn(half_a_batch, (str(tmp_path), x, weight), nprocs=2)
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    norm = BatchNorm(NormParams(), Maps(2, 4, 4, bin_rate=100.0))
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
    x, norm = x[rows].clone().requires_grad_(), BatchNorm(NormParams(), Maps(2, 4, 4, bin_rate=100.0))
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
        define("norm", kind)(NormParams(**params), maps(4, 1, 1))
