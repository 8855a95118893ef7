"""Norms against torch's own and slow loops, on one process and two."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from neurotwin.config import ConfigError, define
from neurotwin.models.norms import BatchNorm, NormParams
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
