"""Learning rates against torch's schedulers, closed forms and hand-worked values."""

import math

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, CosineAnnealingWarmRestarts, ReduceLROnPlateau, StepLR

from neurotwin.config import register, registered
from training.schedulers import SCHEDULES, AnnealedRate, Schedule, make_scheduler

LENGTH = {"max_epochs": 6, "steps_per_epoch": 5}


def optimizer_of(*rates: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": [torch.zeros(1, requires_grad=True)], "lr": rate} for rate in rates])


def run(optimizer, scheduler, steps: int) -> list[list[float]]:
    rates = []
    for _ in range(steps):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return rates


def rates(kind: str, steps: int = 30, base=(0.4,), **kwargs) -> list[list[float]]:
    optimizer = optimizer_of(*base)
    return run(optimizer, make_scheduler(optimizer, kind, **{**LENGTH, **kwargs})["scheduler"], steps)


def test_schedules_are_registered_and_a_further_one_is_one_definition():
    assert SCHEDULES == ("none", "step", "plateau", "cosine", "cosine_warmup", "cosine_warmup_restart", "anneal")
    assert all(definition.__doc__ for definition in registered("lr_schedule").values())

    @register("lr_schedule", "half_of_test_schedulers")
    class Half(Schedule):
        """Half of the rate."""

        def factor(self, step):
            return 0.5

    assert rates("half_of_test_schedulers", steps=2) == [[0.2], [0.2]]


def test_a_warmup_of_0_epochs_is_none():
    assert rates("cosine_warmup", warmup_epochs=0) == rates("cosine")


def test_none_is_no_scheduler():
    assert make_scheduler(optimizer_of(0.1), "none", **LENGTH) is None


def test_cosine_is_that_of_torch():
    optimizer = optimizer_of(0.4)
    expected = run(optimizer, CosineAnnealingLR(optimizer, T_max=30), 30)
    torch.testing.assert_close(rates("cosine"), expected)


def test_step_is_that_of_torch():
    optimizer = optimizer_of(0.4)
    torch.testing.assert_close(rates("step"), run(optimizer, StepLR(optimizer, 10, 0.1), 30))


def test_restarts_are_those_of_torch_after_the_warmup():
    optimizer = optimizer_of(0.4)
    expected = run(optimizer, CosineAnnealingWarmRestarts(optimizer, T_0=10), 20)
    found = rates("cosine_warmup_restart", warmup_epochs=2, restart_period=2)
    torch.testing.assert_close(found[10:], expected)
    torch.testing.assert_close(found[:10], [[0.4 * (s + 1) / 10] for s in range(10)])


def test_warmup_by_hand():
    found = [rate for (rate,) in rates("cosine_warmup", warmup_epochs=1, steps_per_epoch=2, max_epochs=3, steps=6)]
    half = 0.5 * (1 + math.cos(math.pi / 4))
    torch.testing.assert_close(found, [0.2, 0.4, 0.4, 0.4 * half, 0.2, 0.4 * (1 - half)])


@pytest.mark.parametrize("kind", [kind for kind in SCHEDULES if kind not in ("none", "plateau")])
def test_groups_keep_their_ratio_and_the_rate_stays_positive_and_bounded(kind):
    for core, readout in rates(kind, base=(0.1, 0.4), warmup_epochs=2, steps=50):
        assert 0 < readout <= 0.4
        assert core == pytest.approx(readout / 4)


@pytest.mark.parametrize("kind", ["step", "cosine", "cosine_warmup", "cosine_warmup_restart", "anneal"])
def test_the_rate_changes_within_epochs_and_stays_after_the_last(kind):
    found = rates(kind, steps=40, warmup_epochs=2, steps_per_epoch=5, restart_period=2)
    assert found[29:] == [found[29]] * 11
    if kind != "step":
        assert len({rate for (rate,) in found[10:15]}) == 5


def test_default_period_is_a_quarter_of_the_epochs_after_the_warmup():
    full = [s for s, (rate,) in enumerate(rates("cosine_warmup_restart", steps=30, warmup_epochs=2)) if rate == 0.4]
    assert full == [9, 10, 15, 20, 25]


def test_plateau_halves_after_six_validations_without_progress():
    optimizer = optimizer_of(0.4, 0.8)
    config = make_scheduler(optimizer, "plateau", **LENGTH)
    assert isinstance(config["scheduler"], ReduceLROnPlateau)
    assert (config["interval"], config["frequency"], config["monitor"]) == ("step", 5, "val_loss")
    assert make_scheduler(optimizer, "plateau", **LENGTH, batches_per_epoch=9)["frequency"] == 9
    for loss in [1.0, 0.5] + [0.6] * 6:
        assert [group["lr"] for group in optimizer.param_groups] == [0.4, 0.8]
        config["scheduler"].step(loss)
    assert [group["lr"] for group in optimizer.param_groups] == [0.2, 0.4]


@pytest.mark.parametrize("kind", [kind for kind in SCHEDULES if kind not in ("none", "plateau")])
def test_a_resumed_schedule_goes_on(kind, tmp_path):
    whole = rates(kind, warmup_epochs=2)
    optimizer = optimizer_of(0.4)
    scheduler = make_scheduler(optimizer, kind, **LENGTH, warmup_epochs=2)["scheduler"]
    run(optimizer, scheduler, 13)
    torch.save([optimizer.state_dict(), scheduler.state_dict()], tmp_path / "state.pt")
    optimizer = optimizer_of(0.4)
    scheduler = make_scheduler(optimizer, kind, **LENGTH, warmup_epochs=2)["scheduler"]
    for part, state in zip((optimizer, scheduler), torch.load(tmp_path / "state.pt", weights_only=True), strict=True):
        part.load_state_dict(state)
    assert run(optimizer, scheduler, 17) == whole[13:]


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("cosin", {}, "did you mean 'cosine'"),
        ("cosine_warmup", {"warmup_epochs": 6}, "less than max_epochs"),
        ("cosine", {"max_epochs": 0}, "positive"),
        ("cosine_warmup_restart", {"warmup_epochs": 1, "restart_period": -1}, "restart_period -1"),
    ],
)
def test_impossible_schedules_are_refused(kind, change, message):
    with pytest.raises(ValueError, match=message):
        make_scheduler(optimizer_of(0.1), kind, **{**LENGTH, **change})


# --- annealing to the time budget -----------------------------------------------------------------------------------


def annealed(optimizer, **lengths) -> AnnealedRate:
    return make_scheduler(optimizer, "anneal", **LENGTH | lengths)["scheduler"]


def test_without_a_budget_anneal_is_a_cosine_times_the_warmup():
    cosine = [rate for (rate,) in rates("cosine")]
    torch.testing.assert_close([rate for (rate,) in rates("anneal", warmup_epochs=0)], cosine)
    expected = [rate * min(1, (step + 1) / 10) for step, rate in enumerate(cosine)]
    torch.testing.assert_close([rate for (rate,) in rates("anneal", warmup_epochs=2)], expected)


def test_a_run_that_turns_out_shorter_or_longer_still_ends_its_cosine():
    """By hand: 4 of 30 steps; then the run is thought to have 10 in all; a slow while is over: it has 20."""
    optimizer = optimizer_of(1.0)
    scheduler = annealed(optimizer, warmup_epochs=0)
    run(optimizer, scheduler, 4)
    assert scheduler.position == pytest.approx(4 / 30)
    scheduler.plan(10)
    assert scheduler.position == pytest.approx(4 / 10)
    run(optimizer, scheduler, 3)
    scheduler.plan(20)
    scheduler.step()
    found = [rate for (rate,) in run(optimizer, scheduler, 12)]
    torch.testing.assert_close(found, [(1 + math.cos(math.pi * step / 20)) / 2 for step in range(8, 20)])
    assert found[-1] < 0.01


def test_the_plan_is_never_longer_than_the_run_nor_in_the_past():
    optimizer = optimizer_of(1.0)
    scheduler = annealed(optimizer, warmup_epochs=0)
    scheduler.plan(1e9)
    assert scheduler.planned == 30
    run(optimizer, scheduler, 6)
    scheduler.plan(-5.0)
    run(optimizer, scheduler, 3)
    assert scheduler.planned == 7 and scheduler.position == 6 / 7


def test_a_saved_position_goes_on_as_if_nothing_was():
    whole, first, second = (optimizer_of(1.0) for _ in range(3))
    schedulers = [annealed(optimizer, warmup_epochs=1) for optimizer in (whole, first, second)]
    for optimizer, scheduler in zip((whole, first), schedulers, strict=False):
        scheduler.plan(21)
        run(optimizer, scheduler, 8)
    second.load_state_dict(first.state_dict())
    schedulers[2].load_state_dict(schedulers[1].state_dict())
    assert run(second, schedulers[2], 9) == run(whole, schedulers[0], 9)
