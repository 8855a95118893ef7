"""Links against their equations, their inverses, and finite differences."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from neurotwin.config import ModelConfig, registered
from neurotwin.links import Exp, Identity, Link, ReLU, Softplus, make_link

BUILT = [Softplus(), Softplus(beta=3.0), Softplus(beta=0.4, learned=True), ReLU(), Exp(), Identity()]
DRIVES = torch.linspace(-8, 8, 201, dtype=torch.float64)


@pytest.mark.parametrize(
    ("link", "equation"),
    [
        (Softplus(), lambda x: np.log1p(np.exp(x))),
        (Softplus(beta=3.0), lambda x: np.log1p(np.exp(3 * x)) / 3),
        (Softplus(beta=3.0, learned=True), lambda x: np.log1p(np.exp(3 * x)) / 3),
        (ReLU(), lambda x: np.where(x > 0, x, 0)),
        (Exp(), np.exp),
        (Identity(), lambda x: x),
    ],
)
def test_equations(link: Link, equation) -> None:
    np.testing.assert_allclose(link(DRIVES).detach(), equation(DRIVES.numpy()), rtol=2e-7, atol=1e-15)


def test_the_plain_softplus_is_that_of_torch_to_the_bit() -> None:
    drive = torch.randn(1000) * 20
    assert torch.equal(Softplus()(drive), F.softplus(drive))


@pytest.mark.parametrize("link", BUILT, ids=repr)
@settings(max_examples=50, deadline=None)
@given(rate=st.floats(1e-30, 1e6))
def test_inverse_gives_back_the_rate(link: Link, rate: float) -> None:
    value = torch.tensor(rate, dtype=torch.float64)
    with torch.no_grad():
        assert link(link.inverse(value)).item() == pytest.approx(rate, rel=1e-6)


@pytest.mark.parametrize("link", BUILT, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inverse_is_finite_for_any_finite_rate(link: Link, dtype: torch.dtype) -> None:
    rates = torch.tensor([-3.0, 0.0, 1e-45, 1e-38, 1e-8, 1.0, 1e4, 1e30], dtype=dtype)
    with torch.no_grad():
        drives = link.inverse(rates)
        assert drives.isfinite().all()
        if link.positive:  # a rate out of reach counts as the smallest in reach
            assert link(drives[0]).item() == pytest.approx(0, abs=1e-30)
            assert (link(drives) >= 0).all()


def test_each_unit_has_its_own_sharpness() -> None:
    """Column by column it is the link of that unit; a gradient of one unit does not reach another."""
    params = Softplus.Params(beta=2.0, learned="per_unit")
    link = make_link("softplus", params, positive=True, default="softplus", n_units=3).double()
    torch.testing.assert_close(link.log_beta.exp(), torch.full((3,), 2.0, dtype=torch.float64), atol=1e-6, rtol=0)
    with torch.no_grad():
        link.log_beta.copy_(torch.tensor([0.3, 1.0, 4.0]).log())
    drives = DRIVES[:, None].expand(-1, 3)
    for unit, beta in enumerate((0.3, 1.0, 4.0)):
        rates = link(drives)[:, unit]
        np.testing.assert_allclose(rates.detach(), np.log1p(np.exp(beta * DRIVES.numpy())) / beta, rtol=1e-6)
        torch.testing.assert_close(link.inverse(link(drives))[:, unit], DRIVES)
        (gradient,) = torch.autograd.grad(rates.sum(), link.log_beta)
        assert gradient.nonzero().flatten().tolist() == [unit]


def test_learned_sharpness() -> None:
    link = Softplus(beta=2.0, learned=True).double()
    assert set(dict(link.named_parameters())) == set(link.kinds) == {"log_beta"}
    drive = torch.tensor([-0.3, 0.0, 0.7], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda raw, x: F.softplus(raw.exp() * x) / raw.exp(), (link.log_beta, drive))
    link(drive).sum().backward()
    step = 1e-6
    with torch.no_grad():
        link.log_beta += step
        above = link(drive).sum()
        link.log_beta -= 2 * step
        below = link(drive).sum()
    assert link.log_beta.grad.item() == pytest.approx(((above - below) / (2 * step)).item(), rel=1e-6)


def test_a_fixed_sharpness_is_no_parameter() -> None:
    assert not list(Softplus(beta=2.0).parameters())
    assert Softplus(beta=2.0).state_dict() == {}


@pytest.mark.parametrize("beta", [0.0, -1.0, float("nan"), float("inf")])
def test_a_sharpness_that_is_none_is_refused(beta: float) -> None:
    with pytest.raises(ValueError, match="beta"):
        ModelConfig.model_validate({"output_activation": {"type": "softplus", "params": {"beta": beta}}})


def test_names() -> None:
    assert {name: kind().positive for name, kind in registered("link").items() if name != "auto"} == {
        "softplus": True, "relu": True, "exp": True, "identity": False, "none": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "positive", "default", "expected"),
    [
        ("identity", True, "softplus", Exp),  # the drive is then the log of the rate
        ("none", True, "softplus", Exp),
        ("identity", False, "identity", Identity),
        ("none", False, "identity", Identity),
        ("relu", False, "identity", ReLU),
        ("softplus", True, "softplus", Softplus),
        ("auto", True, "softplus", Softplus),
        ("auto", False, "identity", Identity),
    ],
)
def test_the_link_of_a_config(name: str, positive: bool, default: str, expected: type[Link]) -> None:
    params = registered("link")[name].Params()
    assert type(make_link(name, params, positive=positive, default=default)) is expected
