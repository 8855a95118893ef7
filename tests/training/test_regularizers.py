"""Penalties against slow loops and finite differences, proximal steps against their definition."""

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import nn

from neurotwin.config import ConfigError, RegularizerConfig, ScheduleConfig, registered
from neurotwin.models.parameters import KINDS, ParameterInfo
from neurotwin.models.penalties import Proximal, scheduled_weight, soft_threshold
from training.regularizers import Regularizers

PENALTIES = {name: kind.value for name, kind in registered("penalty").items() if not issubclass(kind, Proximal)}

SHAPE = (3, 2, 4, 3, 5)  # (O, I, T, H, W)


def term(kind: str, weight: float = 0.1, apply_to=("weight",), schedule="constant", name="term") -> RegularizerConfig:
    return RegularizerConfig(
        **{"name": name, "type": kind, "lambda": weight, "apply_to": apply_to, "schedule": schedule}
    )


def random_weight(*shape: int, seed: int = 0) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


def described(parameters: nn.Module | dict[str, nn.Parameter]) -> list[ParameterInfo]:
    """Parameters as a model describes them, by their dialect names; `readouts.N` are of session N."""
    if isinstance(parameters, nn.Module):
        parameters = dict(parameters.named_parameters())
    infos = []
    for name, parameter in parameters.items():
        head, *rest = name.split(".")
        own = name.rpartition(".")[2]
        kind = "kernel" if own == "weight" else own if own in KINDS else "constant"
        session = int(rest[0]) if head == "readouts" and rest[0].isdigit() else None
        infos.append(ParameterInfo(name, parameter, kind, session, "readout" if session is not None else head))
    return infos


# --- penalties ------------------------------------------------------------------------------------------------------


def slow_second_difference(w: np.ndarray, index: tuple[int, ...], axis: int) -> float:
    """x[i - 1] + x[i + 1] - 2 x[i]; a neighbour beyond the edge is the edge itself."""
    total = 0.0
    for step in (-1, 1):
        near = list(index)
        near[axis] = min(max(near[axis] + step, 0), w.shape[axis] - 1)
        total += w[tuple(near)] - w[index]
    return total


def slow(kind: str, w: np.ndarray) -> float:
    flat = w.reshape(len(w), -1)
    everywhere = list(itertools.product(*map(range, w.shape)))
    if kind == "l1":
        return sum(abs(x) for x in w.ravel())
    if kind == "l2":
        return sum(x**2 for x in w.ravel())
    if kind == "group_lasso":
        return sum(sum(x**2 for x in row) ** 0.5 for row in flat)
    if kind == "ortho":
        pairs = itertools.product(range(len(flat)), repeat=2)
        return sum((sum(a * b for a, b in zip(flat[i], flat[j], strict=True)) - (i == j)) ** 2 for i, j in pairs)
    if kind == "laplacian":
        return sum(
            (slow_second_difference(w, i, w.ndim - 1) + slow_second_difference(w, i, w.ndim - 2)) ** 2
            for i in everywhere
        )
    return sum(slow_second_difference(w, i, 2) ** 2 for i in everywhere)


@pytest.mark.parametrize("kind", PENALTIES)
def test_penalties_are_those_of_a_slow_loop(kind):
    weight = random_weight(*SHAPE)
    assert PENALTIES[kind](weight).item() == pytest.approx(slow(kind, weight.detach().numpy()), rel=1e-12)


@pytest.mark.parametrize("kind", PENALTIES)
def test_gradients_are_those_of_finite_differences(kind):
    assert torch.autograd.gradcheck(PENALTIES[kind], random_weight(2, 2, 3, 2, 2))


def test_penalties_that_vanish_where_they_should():
    constant = torch.full(SHAPE, 1.7)
    ramp = torch.linspace(0, 1, 4)[None, None, :, None, None].expand(SHAPE)
    laplacian, smooth_t = PENALTIES["laplacian"], PENALTIES["smooth_t"]
    assert laplacian(constant) == smooth_t(constant) == laplacian(ramp) == 0
    assert smooth_t(ramp).item() == pytest.approx(90 * 2 / 9)  # a ramp bends at its two edges only, by 1/3
    rows = torch.linalg.qr(random_weight(6, 4).detach())[0]
    for matrix in (rows, rows.T):
        assert PENALTIES["ortho"](matrix).item() == pytest.approx(0, abs=1e-12)


def test_group_lasso_has_a_gradient_at_zero():
    weight = nn.Parameter(torch.zeros(2, 3))
    PENALTIES["group_lasso"](weight).backward()
    assert (weight.grad == 0).all()


# --- schedules ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [2, 2, 2, 2, 2, 2, 2]),
        ({"type": "warmup", "start_epoch": 1, "end_epoch": 5}, [0, 0, 0.5, 1, 1.5, 2, 2]),
        ({"type": "linear_ramp", "start_epoch": 1, "end_epoch": 5}, [0, 0, 0.5, 1, 1.5, 2, 2]),
        ({"type": "linear_decay", "start_epoch": 1, "end_epoch": 5, "start_lambda": 10}, [10, 10, 8, 6, 4, 2, 2]),
        ({"type": "warmup", "start_epoch": 3, "end_epoch": 3}, [0, 0, 0, 2, 2, 2, 2]),
        ({"type": "linear_ramp", "start_epoch": 3}, [0, 0, 0, 2, 2, 2, 2]),
        ({"type": "linear_decay", "start_epoch": 2, "start_lambda": 5}, [5, 5, 2, 2, 2, 2, 2]),
    ],
)
def test_schedules_by_hand(schedule, expected):
    config = ScheduleConfig.model_validate(schedule)
    assert [scheduled_weight(2.0, config, epoch) for epoch in range(7)] == expected
    assert scheduled_weight(2.0, config, 1000) == 2.0  # it never falls back


# --- terms of a model -----------------------------------------------------------------------------------------------


class Model(nn.Module):
    def __init__(self, n_sessions: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 2, (2, 3, 3))
        self.readouts = nn.ModuleList(nn.ParameterDict({"features": torch.ones(3, 2)}) for _ in range(n_sessions))


def test_terms_add_up_and_are_weighted_and_scheduled():
    model = Model()
    configs = [
        term("l2", 0.5, ["conv/weight"], name="a"),
        term("l1", 0.1, ["readouts/features"], name="b", schedule={"type": "warmup", "start_epoch": 1, "end_epoch": 3}),
    ]
    regularizers = Regularizers(configs, described(model))
    l2 = 0.5 * model.conv.weight.square().sum().item()
    for epoch, b in ((0, 0.0), (2, 0.1 * 24 / 2), (9, 0.1 * 24)):
        total, terms = regularizers.penalty(epoch)
        assert (terms["a"].item(), terms["b"].item()) == pytest.approx((l2, b))
        assert total.item() == pytest.approx(l2 + b)


def test_no_terms_no_penalty():
    total, terms = Regularizers([], described(Model())).penalty(0)
    assert total.item() == 0 and terms == {}


def test_only_readouts_of_the_step_get_a_gradient_and_the_mean_over_steps_is_that_of_all():
    model = Model()
    regularizers = Regularizers([term("l2", 0.1, ["features"]), term("l1", name="core")], described(model))
    regularizers.penalty(0, active=[1, 3])[0].backward()
    assert [readout["features"].grad is not None for readout in model.readouts] == [False, True, False, True]
    assert model.conv.weight.grad is not None
    model.zero_grad()
    subsets = [s for size in (1, 2, 3, 4) for s in itertools.combinations(range(4), size)]
    for size in (1, 2, 3, 4):
        values = [regularizers.penalty(0, active=s)[1]["term"].item() for s in subsets if len(s) == size]
        assert np.mean(values) == pytest.approx(regularizers.penalty(0)[1]["term"].item())
    assert regularizers.penalty(0, active=[])[1]["term"].item() == 0


def test_frozen_parameters_are_left_out():
    model = Model()
    model.conv.requires_grad_(False)
    total, _ = Regularizers([term("l1", apply_to=["conv"])], described(model)).penalty(0)
    assert total.item() == 0 and not total.requires_grad


def test_no_decay_lists_what_l2_and_group_lasso_match():
    configs = [
        term("l2", apply_to=["conv/weight"], name="a"),
        term("group_lasso", apply_to=["readouts.1"], name="b"),
        term("l1", apply_to=["readouts.0"], name="c"),
    ]
    assert Regularizers(configs, described(Model())).no_decay == {"conv.weight", "readouts.1.features"}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (term("l1", apply_to=["readout/featurs"]), "matches no parameter; nearest: readouts.3.features"),
        (term("l1", apply_to=["conv", "modulator/weight"]), "'modulator/weight' matches no parameter"),
        (term("l1", apply_to=["conv/"]), "'conv/' matches no parameter"),
        (term("laplacian", apply_to=["features"]), r"needs space.*readouts.0.features, shape \(3, 2\)"),
        (term("smooth_t", apply_to=["features"]), "needs time"),
        (term("group_lasso", apply_to=["conv"]), r"conv.bias, shape \(2,\)"),
        (term("ortho", apply_to=["conv/bias"]), "needs output units"),
        (term("proximal_clamp", 0.0, apply_to=["conv"]), "would hold at 0"),
        (term("proximal_clamp_positive", 0.0, apply_to=["conv"]), "lambda is the upper bound, and 0 leaves nothing"),
        (term("laplacian", apply_to=["conv/bias"]), "needs space"),
    ],
)
def test_terms_that_make_no_sense_are_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        Regularizers([config], described(Model()))


def test_parts_of_a_readout_are_groups_and_its_mask_has_space():
    parameters = {"features": nn.Parameter(torch.tensor([[[3.0, 4.0]], [[0.0, 2.0]]])), "mask": random_weight(2, 3, 4)}
    total, _ = Regularizers([term("group_lasso", 1.0, ["features"])], described(parameters)).penalty(0)
    assert total.item() == pytest.approx(5 + 2)
    total, _ = Regularizers([term("laplacian", 1.0, ["mask"])], described(parameters)).penalty(0)
    assert total.item() == pytest.approx(slow("laplacian", parameters["mask"].detach().numpy()))


def test_kernels_of_one_step_or_pixel_have_nothing_to_smooth():
    model = nn.ModuleDict({"a": nn.Conv3d(1, 2, (1, 3, 3)), "b": nn.Conv3d(1, 2, (3, 1, 1))})
    for kind, name in (("smooth_t", "a"), ("laplacian", "b")):
        with pytest.raises(ConfigError, match=f"parameter {name}.weight"):
            Regularizers([term(kind)], described(model))


# --- proximal steps -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [0.0, 0.3, 2.0])
def test_soft_threshold_minimises_what_defines_it(threshold):
    for w in (-1.5, -0.2, 0.0, 0.31, 3.0):
        best = minimize_scalar(lambda x, w=w: threshold * abs(x) + (x - w) ** 2 / 2, bounds=(-4, 4), method="bounded")
        assert soft_threshold(torch.tensor(w), threshold).item() == pytest.approx(best.x, abs=1e-4)


def stepped(kind: type, weight: nn.Parameter, steps: int = 3, **kwargs) -> torch.optim.Optimizer:
    optimizer = kind([weight], lr=0.01, **kwargs)
    for seed in range(steps):
        weight.grad = random_weight(*weight.shape, seed=seed + 1).detach()
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_proximal_l1_uses_adams_own_step_sizes(kind, amsgrad):
    weight = random_weight(4, 5)
    optimizer = stepped(kind, weight, amsgrad=amsgrad)
    before = weight.detach().clone()
    grads = [random_weight(4, 5, seed=seed).detach() for seed in (1, 2, 3)]
    second, largest = torch.zeros(4, 5), torch.zeros(4, 5)
    for grad in grads:
        second = 0.999 * second + 0.001 * grad**2
        largest = torch.maximum(largest, second)
    unbiased = (largest if amsgrad else second) / (1 - 0.999**3)
    threshold = 20.0 * 0.01 / (unbiased.sqrt() + 1e-8)
    expected = torch.where(before.abs() > threshold, before - threshold * before.sign(), 0.0)
    Regularizers([term("proximal_l1", 20.0)], described({"weight": weight})).proximal_step(optimizer, 0)
    torch.testing.assert_close(weight.detach(), expected)
    assert 0 < (weight == 0).sum() < 20


def test_proximal_l1_runs_once_a_parameter_with_the_rate_of_its_group():
    a, b, alone = (nn.Parameter(torch.tensor([1.0])) for _ in range(3))
    optimizer = torch.optim.SGD([{"params": [a], "lr": 0.1}, {"params": [b], "lr": 0.2}, {"params": [alone]}], lr=1.0)
    for parameter in (a, b, alone):
        parameter.grad = torch.zeros(1)
    config = term("proximal_l1", 0.5, apply_to=["a.w", "w"])
    Regularizers([config], described({"a.w": a, "b.w": b, "c": alone})).proximal_step(optimizer, 0)
    assert [a.item(), b.item(), alone.item()] == pytest.approx([0.95, 0.9, 1.0])


def test_two_proximal_terms_each_apply_once():
    weight = nn.Parameter(torch.tensor([-1.0, 0.02, 1.0]))
    optimizer = stepped(torch.optim.SGD, weight, steps=0)
    weight.grad = torch.zeros(3)
    configs = [term("proximal_l1", 5.0, name="a"), term("proximal_clamp_positive", 1.0, name="b")]
    Regularizers(configs, described({"weight": weight})).proximal_step(optimizer, 0)
    assert weight.tolist() == pytest.approx([1e-6, 1e-6, 0.95])


def test_readouts_that_were_not_stepped_are_left_alone_and_the_others_weigh_more():
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.readouts[2]["features"].grad = torch.zeros(3, 2)
    Regularizers([term("proximal_l1", 0.5, ["features"])], described(model)).proximal_step(optimizer, 0)
    values = [readout["features"].unique().tolist() for readout in model.readouts]
    assert values == [[1.0], [1.0], [pytest.approx(1 - 0.1 * 0.5 * 4)], [1.0]]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("proximal_clamp", [-0.5, -0.1, 0.1, 0.5]),
        ("proximal_clamp_positive", [1e-6, 1e-6, 0.1, 0.5]),
        ("proximal_clamp_min", [0.5, 0.5, 0.5, 2.0]),
    ],
)
def test_clamps_by_hand_and_from_their_start(kind, expected):
    weight = nn.Parameter(torch.tensor([-2.0, -0.1, 0.1, 2.0]))
    optimizer = stepped(torch.optim.SGD, weight, steps=0)
    weight.grad = torch.zeros(4)
    config = term(kind, 0.5, schedule={"type": "warmup", "start_epoch": 2, "end_epoch": 8})
    regularizers = Regularizers([config], described({"weight": weight}))
    regularizers.proximal_step(optimizer, 1)
    assert weight.tolist() == pytest.approx([-2.0, -0.1, 0.1, 2.0])
    weight.grad = None  # not stepped
    regularizers.proximal_step(optimizer, 2)
    assert weight.tolist() == pytest.approx([-2.0, -0.1, 0.1, 2.0])
    weight.grad = torch.zeros(4)
    regularizers.proximal_step(optimizer, 2)
    assert weight.tolist() == pytest.approx(expected)


def test_the_bound_of_a_clamp_can_tighten():
    weight = nn.Parameter(torch.tensor([9.0]))
    optimizer = stepped(torch.optim.SGD, weight, steps=0)
    weight.grad = torch.zeros(1)
    schedule = {"type": "linear_decay", "start_epoch": 0, "end_epoch": 4, "start_lambda": 5.0}
    regularizers = Regularizers([term("proximal_clamp", 1.0, schedule=schedule)], described({"weight": weight}))
    bounds = []
    for epoch in range(6):
        regularizers.proximal_step(optimizer, epoch)
        bounds.append(weight.item())
    assert bounds == [5, 4, 3, 2, 1, 1]
