"""Two small sessions, and a stand-in for a twin that is quick and has a memory."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from neurotwin.data.prepare import prepare_session
from neurotwin.data.session import Session
from neurotwin.likelihoods import Poisson
from neurotwin.metrics import Table

N_LAGS = 3


class StandIn(torch.nn.Module):
    """Predicts from the mean of the last frames plus a leaky sum over all frames since the start of the stretch."""

    context = N_LAGS - 1

    def __init__(self, sessions):
        super().__init__()
        self.sessions = [session.spec for session in sessions]
        self.per_session = [SimpleNamespace(likelihood=Poisson(n_units=session.n_units)) for session in sessions]
        self.gain = torch.nn.Parameter(torch.tensor(1.0))

    @property
    def like(self):
        return self.gain

    def step(self, clips, state):
        (clip,) = clips
        assert not self.training
        brightness = clip.stimulus.float().mean((1, 3, 4)) / 255  # (B, T)
        leak = torch.zeros(len(brightness)) if state is None else state
        slope = torch.linspace(0.2, 1.0, len(self.sessions[clip.session].unit_ids)) * (1 + clip.session)
        rates = []
        for t in range(clip.length):
            window = brightness[:, t : t + N_LAGS].mean(1)
            leak = 0.5 * leak + brightness[:, t + N_LAGS - 1]
            rates.append((window + 0.3 * leak)[:, None] * slope * self.gain)
        return [torch.stack(rates, 1)], leak


def slow_rates_of(session, n_units, index):
    """What the stand-in predicts in every bin of a session with whole window, by a plain loop; NaN elsewhere."""
    brightness = session.stimulus.reshape(session.n_bins, -1).mean(1) / 255
    rates = np.full((session.n_bins, n_units), np.nan)
    for t in range(session.n_bins):
        first = t
        while first > 0 and session.trial[first - 1] == session.trial[t]:
            first -= 1
        if t - first >= N_LAGS - 1:
            leak = 0.0
            for s in range(first + N_LAGS - 1, t + 1):
                leak = 0.5 * leak + brightness[s]
            rates[t] = (
                (brightness[t - N_LAGS + 1 : t + 1].mean() + 0.3 * leak) * np.linspace(0.2, 1, n_units) * (1 + index)
            )
    return rates


def record(name, n_units, seed):
    """Ten trials of unequal length; the last four show one clip again and are for testing; the last unit is silent."""
    rng = np.random.default_rng(seed)
    lengths = [11, 17, 9, 30, 12, 13, 20, 20, 20, 20]
    stimulus = rng.integers(0, 256, (sum(lengths), 4, 4)).astype(np.uint8)
    stimulus[-60:] = np.tile(stimulus[-80:-60], (3, 1, 1))
    repeat_id = np.full(len(stimulus), -1)
    repeat_id[-80:] = np.tile(np.arange(20), 4)
    rate = 0.2 + 2 * stimulus.reshape(len(stimulus), -1).mean(1, keepdims=True) / 255 * rng.random(n_units)
    counts = rng.poisson(rate).astype(np.uint8)
    counts[:, -1] = 0
    trial = np.repeat(np.arange(len(lengths)), lengths)
    return Session(
        name=name, stimulus=stimulus, responses=counts, bin_rate=60.0, trial=trial, repeat_id=repeat_id,
        unit_ids=10 + 3 * np.arange(n_units), true_rate=rate.astype(np.float32), valid=rng.random(len(trial)) < 0.9,
        split=np.where(trial < 3, "train", np.where(trial < 6, "val", "test")),
    )  # fmt: skip


@pytest.fixture(scope="session")
def recorded():
    return [record("ada_1", 4, 0), record("bea_1", 3, 1)]


@pytest.fixture(scope="session")
def prepared(recorded, factory, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sessions")
    for session in recorded:
        session.save(folder / f"{session.name}.safetensors")
    lags = {"keys_lags": {"stim": list(range(N_LAGS))}}
    return [prepare_session(factory.configure(folder, s.name, **lags), cache_dir=folder / "cache") for s in recorded]


@pytest.fixture
def twin(prepared):
    return StandIn(prepared)


@pytest.fixture
def slow_rates():
    return slow_rates_of


@pytest.fixture
def table():
    """A table of units: sessions and ids given, figures by name, NaN for others."""

    def make(sessions=("a_1", "a_1", "b_1"), unit_ids=(3, 7, 3), **figures):
        parts = []
        for row, (session, unit) in enumerate(zip(sessions, unit_ids, strict=True)):
            values = {name: np.array([value[row]]) for name, value in figures.items()}
            values = {"bins": np.array([10]), "spikes": np.array([5.0])} | values
            parts.append(Table.of_session(session, session.split("_")[0], [unit], "poisson", values))
        return Table.concatenate(parts)

    return make


@pytest.fixture(scope="session")
def made_runs(tmp_path_factory, builder) -> Path:
    """Runs with all that a report shows: a and b of 20 units, of which two changed in b, and big of 1,000."""
    build = builder("report_run").build_run
    root = tmp_path_factory.mktemp("runs")
    build(root / "a", sessions=2, units=10)
    build(root / "b", sessions=2, units=10, shift=0.1)
    build(root / "big", sessions=10, units=100)
    return root
