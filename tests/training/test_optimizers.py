"""Muon beside torch's own, and beside AdamW for what is no kernel."""

import copy

import pytest
import torch

from neurotwin.models.parameters import ParameterInfo
from training.optimizers import Muon, make_optimizer, orthogonalised


def steps(optimizer, parameter, gradients):
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach()


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (5, 5)])
def test_orthogonalised_is_near_the_polar_factor(shape):
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    found = orthogonalised(matrix)
    inside = u.T @ found @ vh.T
    torch.testing.assert_close(u @ inside @ vh, found)  # no direction beside those of the matrix
    assert (inside - torch.diag(inside.diagonal())).abs().max() < 1e-4
    assert inside.diagonal().min() > 0.65 and inside.diagonal().max() < 1.25
    torch.testing.assert_close(orthogonalised(1e-6 * matrix), found, atol=1e-3, rtol=1e-3)
    assert not orthogonalised(torch.zeros(shape)).any()


@pytest.mark.parametrize("shape", [(4, 9), (9, 4)])
def test_muon_is_torchs_to_its_rounding(shape):
    """Torch iterates in bfloat16, which has three digits."""
    generator = torch.Generator().manual_seed(1)
    start, gradients = torch.randn(*shape, generator=generator), torch.randn(6, *shape, generator=generator)
    theirs, ours = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone().view(shape[0], -1, 1, 1))
    reference = torch.optim.Muon([theirs], lr=0.1, weight_decay=0.3, adjust_lr_fn="match_rms_adamw")
    optimizer = Muon([{"params": [ours], "orthogonal": True, "lr": 0.1, "weight_decay": 0.3}])
    steps(reference, theirs, gradients)
    steps(optimizer, ours, gradients.view(6, *ours.shape))
    moved = (theirs - start).norm()
    assert (ours.view(shape) - theirs).norm() < 0.02 * moved
    size = (orthogonalised(gradients[0]) * 0.2 * max(shape) ** 0.5).square().mean().sqrt()
    assert 0.1 < size < 0.25, "the root mean square of a step at a rate of 1"


def test_other_groups_are_adamws_to_the_bit_with_a_closure_and_after_a_restart():
    generator = torch.Generator().manual_seed(2)
    start, gradients = torch.randn(7, generator=generator), torch.randn(6, 7, generator=generator)
    plain, mixed, kernel = (torch.nn.Parameter(v) for v in (start.clone(), start.clone(), torch.ones(2, 3)))
    expected = steps(torch.optim.AdamW([{"params": [plain], "lr": 0.01}], weight_decay=0.1), plain, gradients)

    def fresh(*parameters):
        groups = zip((False, True), parameters, strict=True)
        return Muon(
            [{"params": [p], "orthogonal": turned, "lr": 0.01, "weight_decay": 0.1} for turned, p in groups],
            momentum=0.5,
        )

    optimizer = fresh(mixed, kernel)
    for index, gradient in enumerate(gradients):
        if index == 3:  # as a run that was killed and goes on
            saved, optimizer = copy.deepcopy(optimizer.state_dict()), fresh(mixed, kernel)
            optimizer.load_state_dict(saved)

        def closure(gradient=gradient, optimizer=optimizer):
            optimizer.zero_grad()
            assert mixed.grad is None and kernel.grad is None
            mixed.grad, kernel.grad = gradient.clone(), gradient[:6].view(2, 3).clone()
            return 7.0

        assert optimizer.step(closure) == 7.0
    assert torch.equal(mixed.detach(), expected)
    whole = torch.nn.Parameter(torch.ones(2, 3))
    alone = fresh(torch.nn.Parameter(torch.ones(1)), whole)
    assert torch.equal(kernel.detach(), steps(alone, whole, gradients[:, :6].view(6, 2, 3)))
    assert [group["orthogonal"] for group in optimizer.param_groups] == [False, True]


def test_a_kernel_without_a_gradient_stays_and_errors_leave_the_groups():
    kernel = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = Muon([{"params": [kernel], "orthogonal": True, "lr": 1.0, "weight_decay": 0.5}])
    optimizer.step()
    assert torch.equal(kernel, torch.ones(2, 2)) and not optimizer.state
    with pytest.raises(ValueError, match="momentum 1 must be"):
        Muon([{"params": [kernel]}], momentum=1)
    with pytest.raises(ValueError, match=r"shape \(3,\) has no rows"):
        Muon([{"params": [torch.nn.Parameter(torch.ones(3))], "orthogonal": True}])


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_only_kernels_of_the_core_are_turned(kind, caplog):
    def info(name, kind, session=None, lr_scale=1.0):
        parameter = torch.nn.Parameter(torch.ones(2, 2))
        return ParameterInfo(name, parameter, kind, session, name.split(".")[0], lr_scale)

    infos = [
        info("convnet.conv", "kernel"), info("convnet.norm", "scale"), info("modulator.mlp", "weight"),
        info("convnet.turned", "coefficients"),
        info("adapters.0.conv", "kernel", 0), info("readouts.0.mean", "position", 0, 4.0),
        info("convnet.still", "kernel"),
    ]  # fmt: skip
    infos[-1].parameter.requires_grad_(False)
    optimizer = make_optimizer(
        kind, infos, session_rate=0.1, core_rate=0.05, weight_decay=0.01, no_decay={"modulator.mlp"}
    )
    found = {group["name"]: group for group in optimizer.param_groups}
    kernels = "core/kernels/decay" if kind == "muon" else "core/decay"
    assert set(found) == {kernels, "core/decay", "core/no_decay", "session/decay", "session/no_decay/x4"}
    ours = [infos[0]] if kind == "muon" else [infos[0], infos[3]]  # turned filters are never orthogonalised
    assert [id(p) for p in found[kernels]["params"]] == [id(info.parameter) for info in ours]
    assert found[kernels].get("orthogonal", False) == (kind == "muon")
    assert not any(group.get("orthogonal") for name, group in found.items() if name != kernels)
    assert (found[kernels]["lr"], found["session/no_decay/x4"]["lr"]) == (0.05, 0.4)
    assert found["session/no_decay/x4"]["eps"] == 2.5e-9
    assert not caplog.records
    make_optimizer(kind, infos[1:], session_rate=0.1, core_rate=0.05, weight_decay=0.01)
    assert ("no kernel of the core is trained" in caplog.text) == (kind == "muon")
    assert len(found["core/no_decay"]["params"]) == 2 and found["core/no_decay"]["weight_decay"] == 0
