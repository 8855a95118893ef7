"""Pictures of a new session that the core was trained on are found by their hashes, and said in one line."""

import logging
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from neurotwin.config import ModelConfig
from neurotwin.data.prepare import prepare_session
from neurotwin.models import Ensemble, TwinModel
from neurotwin.transfer import transfer
from neurotwin.transfer.checks import shown_before

MODEL = ModelConfig(frontend={"type": "learnable_temporal", "params": {"kernel_size": 3}})
PARTS = np.repeat(["train", "val", "test"], [80, 20, 20])


@pytest.fixture
def session(factory, tmp_path, monkeypatch):
    """Write and prepare a session of pictures that stay for four bins each, a trial of four pictures."""
    monkeypatch.setenv("NEUROTWIN_CACHE", str(tmp_path / "cache"))

    def made(name, pictures, **keys):
        fields = {"stimulus": pictures.repeat(4, axis=0), "split": PARTS.repeat(4), "trial_bins": 16, **keys}
        factory.write_session(tmp_path, name, n_bins=480, **fields)
        return factory.configure(tmp_path, name, keys_lags={"stim": [0, 1, 2]})

    return made


def pictures(seed, shape=(9, 10)):
    return np.random.default_rng(seed).integers(0, 200, (120, *shape)).astype(np.uint8)


@pytest.fixture
def trained(session):
    """A twin of two sessions, and the hashes of their training."""
    sessions = [prepare_session(session(name, pictures(seed))) for seed, name in enumerate(("ada_1", "bea_1"))]
    twin = TwinModel(MODEL, [prepared.spec for prepared in sessions])
    twin.pictures = {prepared.name: prepared.shown("train") for prepared in sessions}
    return twin


def test_brighter_copies_of_training_pictures_are_said_in_one_line(trained, session, monkeypatch, caplog):
    shown = pictures(5)
    shown[103:110] = 15 + 0.9 * pictures(0)[10:17].astype(float)
    config = session("cat_1", shown)
    line = shown_before(trained, prepare_session(config))
    assert line.startswith("session cat_1: the core was trained on 7 of 20 test pictures in session 'ada_1', so scores")
    assert "\n" not in line and "validation" not in line
    both = Ensemble([trained, trained.without(["bea_1"]).add_session(trained.sessions[1])])
    monkeypatch.setattr(sys.modules[transfer.__module__], "_transfer", lambda *_, **__: SimpleNamespace())
    for twin in (trained, trained.without(["ada_1"]), both):  # a core still knows a session that is left out
        caplog.clear()
        transfer(twin, [config])
        assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [line]


def test_both_parts_are_told_apart(trained, session):
    shown = pictures(5)
    shown[80:83], shown[100:102] = pictures(0)[:3], pictures(1)[:2]
    line = shown_before(trained, prepare_session(session("cat_1", shown)))
    assert "3 of 20 validation pictures in session 'ada_1' and on 2 of 20 test pictures in session 'bea_1'" in line


@pytest.mark.parametrize("case", ["others", "in training", "of validation", "other channels", "full field", "unknown"])
def test_nothing_is_said_of(trained, session, case):
    shown = pictures(5)
    if case == "in training":  # repeats of what the core was trained on leave no score too good
        shown[:40] = pictures(0)[:40]
    elif case == "of validation":
        shown[100:] = pictures(0)[100:]
    elif case == "other channels":
        shown = np.stack([pictures(0)[np.r_[:120] % 80]] * 2, axis=1)
    elif case == "full field":
        shown = pictures(5)[:, 0, 0]
    elif case == "unknown":
        shown, trained.pictures = pictures(0)[np.r_[:120] % 80], {}
    assert shown_before(trained, prepare_session(session("cat_1", shown))) is None
