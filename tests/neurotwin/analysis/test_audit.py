"""Twelve faults and more, planted one at a time: each is found by its check, by name, and nothing else is."""

import dataclasses
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import nbinom

from neurotwin.analysis.audit import Recording, audit, audit_configs, audit_html, audit_text, audited
from neurotwin.analysis.audit_base import log_chance_of_none
from neurotwin.analysis.audit_stimuli import pictures_of
from neurotwin.cli import main
from neurotwin.config import DatasetConfig, load_dataset_configs
from neurotwin.data.fingerprints import fingerprints
from neurotwin.data.prepare import prepare_session
from neurotwin.data.session import Session, SessionError
from neurotwin.data.simulate import DEMO_SESSIONS, make_demo_sessions

N_TRIALS, LENGTH, N_UNITS, RATE = 40, 60, 6, 60.0
TRIAL = np.repeat(np.arange(N_TRIALS), LENGTH)
SPLIT = np.where(TRIAL % 4 == 3, 1, 0)  # trials 3, 7, 11, ... are for validation
IDS = 10 + 3 * np.arange(N_UNITS)


def smooth_movie(rng, n_bins, size=16):
    """Coloured noise that changes over a few bins, as a movie does."""
    spectrum = 1 / np.maximum(np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)), 1 / size)
    noise = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((n_bins + 2, size, size))) * spectrum, s=(size, size))
    noise = noise[:-2] + noise[1:-1] + noise[2:]
    return np.clip(127 + 45 * noise / noise.std(), 0, 255).astype(np.uint8)


def parts(seed=0):
    """Arrays of a sound session: units respond to a spot of the frame two bins before."""
    rng = np.random.default_rng(seed)
    stimulus = smooth_movie(rng, N_TRIALS * LENGTH)
    pixel = stimulus.reshape(len(stimulus), -1)[:, rng.choice(256, N_UNITS, replace=False)] / 127.0 - 1
    drive = np.concatenate([np.zeros((2, N_UNITS)), pixel[:-2]])
    return {
        "stimulus": stimulus,
        "responses": rng.poisson(0.6 * np.exp(1.2 * drive)),
        "behavior": {"pupil": np.cumsum(rng.standard_normal(len(TRIAL))), "speed": rng.gamma(2, 1, len(TRIAL))},
        "mask": np.ones((len(TRIAL), N_UNITS), bool),
        "time": np.arange(len(TRIAL)) / RATE,
        "bin_rate": RATE,
        "pixels_per_degree": 12.0,
    }


def recording(values, name="ada_1"):
    values = dict(values)
    mask = values.pop("mask")
    return Recording.of_session(Session(name=name, trial=TRIAL, unit_ids=IDS, **values), SPLIT, mask)


def bins(trial):
    return np.equal(TRIAL, trial)


def duplicate(values, other, rng):
    """A copy of a training trial, a grey level off here and there and brighter by three."""
    frames = values["stimulus"][bins(4)].astype(int)
    values["stimulus"][bins(7)] = np.clip(frames + rng.integers(-1, 2, frames.shape) + 3, 0, 255)


def duplicate_elsewhere(values, other, rng):
    values["stimulus"][bins(7)] = other["stimulus"][bins(5)]


def zero(values, other, rng):
    values["responses"][bins(9) | bins(12)] = 0


def constant(values, other, rng):
    values["responses"][bins(9)] = values["responses"][bins(9)].max(axis=0)


def silent(values, other, rng):
    values["responses"][:, 2] = 0


def drifting(values, other, rng):
    keep = np.linspace(1, 0.1, len(TRIAL))
    values["responses"][:, 2] = rng.binomial(values["responses"][:, 2], keep)


def stopping(values, other, rng):
    values["responses"][TRIAL >= 25, 2] = 0


def starting(values, other, rng):
    values["responses"][TRIAL < 12, 2] = 0


def leading(values, other, rng):
    """Responses that were moved five bins ahead: they follow the frame of three bins later."""
    values["responses"] = np.roll(values["responses"], -5, axis=0)


def dropped(values, other, rng):
    values["time"] = values["time"] + np.where(np.arange(len(TRIAL)) >= 9 * LENGTH + 20, 3 / RATE, 0)


def padded(values, other, rng):
    values["responses"][np.flatnonzero(bins(9))[-25:]] = 0


def frozen(values, other, rng):
    last = np.flatnonzero(bins(9))[-25:]
    values["stimulus"][last] = values["stimulus"][last[0]]


def clipped(values, other, rng):
    pupil = values["behavior"]["speed"]
    values["behavior"]["speed"] = np.minimum(pupil, np.quantile(pupil, 0.93))


def constant_behavior(values, other, rng):
    values["behavior"]["pupil"] = np.full(len(TRIAL), 3.5)


def masked(values, other, rng):
    values["mask"][: int(0.7 * len(TRIAL)), 2] = False


def other_rate(values, other, rng):
    values["bin_rate"], values["time"] = 2 * RATE, values["time"] / 2


def other_scale(values, other, rng):
    values["pixels_per_degree"] = 24.0


def other_levels(values, other, rng):
    values["stimulus"] = (values["stimulus"] / 255).astype(np.float32)


FAULTS = {
    "duplicates in the session": (duplicate, "duplicates", "val trials 7 (1 of 10)"),
    "duplicates across sessions": (duplicate_elsewhere, "duplicates", "val trials 7 (1 of 10)"),
    "trials of zeros": (zero, "zero trials", "trials 9, 12 (2 of 40)"),
    "a constant trial": (constant, "constant trials", "trials 9 (1 of 40)"),
    "a silent unit": (silent, "silent unit", "unit 16"),
    "a drifting unit": (drifting, "drifting unit", "unit 16"),
    "a unit that stops": (stopping, "stopping unit", "unit 16"),
    "a unit that starts late": (starting, "stopping unit", "unit 16"),
    "a clock that leads": (leading, "clock", "all units"),
    "dropped frames": (dropped, "frame count", "trials 9 (1 of 40)"),
    "padded responses": (padded, "frame count", "trials 9 (1 of 40)"),
    "padded frames": (frozen, "frame count", "trials 9 (1 of 40)"),
    "clipped behaviour": (clipped, "clipped behaviour", "behaviour speed"),
    "constant behaviour": (constant_behavior, "constant behaviour", "behaviour pupil"),
    "a masked unit": (masked, "mask", "unit 16"),
    "another bin rate": (other_rate, "rate", "bin rate"),
    "another pixel scale": (other_scale, "pixel scale", "pixels per degree"),
    "other grey levels": (other_levels, "pixel scale", "grey levels"),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_and_nothing_else(fault, seed):
    plant, check, what = FAULTS[fault]
    sound, broken = parts(2 * seed), parts(2 * seed + 1)
    plant(broken, sound, np.random.default_rng(seed))
    found = audit([recording(sound, "ada_1"), recording(broken, "ada_2")]).findings
    assert [(f.check, f.session, f.what) for f in found] == [(check, "ada_2", what)]
    assert found[0].figure and ";" in found[0].message


@pytest.mark.parametrize(
    ("plant", "figure"),
    [
        (stopping, r"silent in the last (37|38)% of its bins"),
        (starting, r"silent in the first 30% of its bins"),
        (leading, r"best lag −3 bins \(-50 ms\)"),
        (padded, r"no response in the last 2[5-9] bins"),
        (frozen, r"stays for 25 bins, elsewhere for 1$"),
        (dropped, r"trial 9: 60 frames where its clock has room for 63.0"),
        (masked, r"70% of its bins masked"),
        (clipped, r"7.0% of bins at"),
    ],
)
def test_figures_are_those_of_the_fault(plant, figure):
    values = parts(1)
    plant(values, None, np.random.default_rng(0))
    (found,) = audit([recording(values)]).findings
    assert re.search(figure, found.figure), found.figure


@pytest.mark.parametrize("seed", range(5))
def test_sound_sessions_are_left_in_peace(seed):
    assert audit([recording(parts(seed + s), f"s_{s}") for s in (0, 100)]).findings == ()


def test_what_a_checkpoint_saw_is_a_leak():
    seen, new = parts(0), parts(1)
    new["stimulus"][bins(7)] = seen["stimulus"][bins(5)]
    known = [("old_1", pictures_of(recording(seen)))]
    (found,) = audit([recording(new, "new_1")], known=known).findings
    assert (found.check, found.session, found.what) == ("duplicates", "new_1", "val trials 7 (1 of 10)")
    assert "'old_1'" in found.message and "trial 5" in found.message


def test_a_picture_that_recurs_is_found_wherever_it_stands_among_other_pictures():
    rng = np.random.default_rng(0)
    values = parts(0)
    values["stimulus"] = np.repeat(smooth_movie(rng, 3 * len(TRIAL) // 10)[::3], 10, axis=0)  # six pictures a trial
    values["responses"] = rng.poisson(1.0, values["responses"].shape)
    assert audit([recording(values)]).findings == ()
    values["stimulus"][np.flatnonzero(bins(7))[20:30]] = values["stimulus"][np.flatnonzero(bins(5))[50]]
    (found,) = audit([recording(values)]).findings
    assert (found.check, found.what) == ("duplicates", "val trials 7 (1 of 10)")
    assert found.figure.startswith("1 of 6 pictures")


@pytest.mark.parametrize("kind", ["grey", "gratings", "dots", "noise", "repeats in one part"])
def test_stimuli_that_recur_by_nature_are_no_leak(kind):
    rng, values = np.random.default_rng(1), parts(0)
    values["responses"] = rng.poisson(1.0, values["responses"].shape)
    n_bins, axis = len(TRIAL), np.arange(16)
    if kind == "grey":
        values["stimulus"][:] = 127
    elif kind == "gratings":  # four directions that drift through the same phases in every trial
        angle = TRIAL[:, None, None] % 4 * np.pi / 4
        wave = np.cos(angle) * axis + np.sin(angle) * axis[:, None]
        phase = np.arange(n_bins)[:, None, None] % 60 / 15
        values["stimulus"] = np.rint(127 + 100 * np.cos(2 * np.pi * (0.16 * wave - phase))).astype(np.uint8)
    elif kind == "dots":
        values["stimulus"][:] = 127
        place = rng.integers(0, 256, n_bins)
        values["stimulus"].reshape(n_bins, -1)[np.arange(n_bins), place] = rng.choice([0, 255], n_bins)
    elif kind == "noise":
        values["stimulus"] = rng.choice([0, 255], (n_bins, 16, 16)).astype(np.uint8)
    else:
        clip = values["stimulus"][bins(0)]
        values["repeat_id"] = np.where(TRIAL % 4 == 0, np.tile(np.arange(LENGTH), N_TRIALS), -1)
        for trial in range(0, N_TRIALS, 4):
            values["stimulus"][bins(trial)] = clip
    assert audit([recording(values)]).findings == ()


def test_a_repeat_that_shows_something_else_is_found():
    values = parts(0)
    values["responses"] = np.random.default_rng(0).poisson(1.0, values["responses"].shape)
    clip = values["stimulus"][bins(0)].copy()
    values["repeat_id"] = np.where(TRIAL % 4 == 0, np.tile(np.arange(LENGTH), N_TRIALS), -1)
    for trial in range(0, N_TRIALS, 4):
        values["stimulus"][bins(trial)] = np.roll(clip, 2 if trial == 8 else 0, axis=0)
    (found,) = audit([recording(values)]).findings
    assert (found.check, found.what) == ("frame count", "trials 8 (1 of 10)")


def test_images_whose_rows_are_one_off_are_found():
    rng, n = np.random.default_rng(0), 1500
    images = rng.integers(0, 256, (n, 16, 16)).astype(np.uint8)
    weights = rng.standard_normal((256, 5)) / 16
    rate = np.exp(1 + (images.reshape(n, -1) / 127.0 - 1) @ weights)
    for shift, expected in ((0, []), (-1, ["clock"])):
        counts = np.roll(rng.poisson(rate), shift, axis=0)
        session = Session(name="v4_1", stimulus=images, responses=counts, bin_rate=2.0, trial=np.arange(n))
        split = np.arange(n) % 5 == 0
        assert [f.check for f in audit([Recording.of_session(session, split)]).findings] == expected


def test_movies_are_read_in_pieces(monkeypatch):
    values = parts(0)
    duplicate(values, None, np.random.default_rng(0))
    zero(values, None, np.random.default_rng(0))
    whole = audit([recording(values)])
    monkeypatch.setattr("neurotwin.analysis.audit_base._BLOCK", 5000)
    assert audit([recording(values)]) == whole and len(whole.findings) == 2


def test_the_order_of_recording_counts_and_not_that_of_the_file():
    values = parts(0)
    stopping(values, None, None)
    shuffled = np.random.default_rng(3).permutation(N_TRIALS)
    order = np.concatenate([np.flatnonzero(bins(t)) for t in shuffled])
    sound = recording(values)
    moved = dataclasses.replace(
        sound, frame=order, position=order, trial=TRIAL[order], split=SPLIT[order], mask=sound.mask[order],
        responses=sound.responses[order], run=np.repeat(np.arange(N_TRIALS), LENGTH),
    )  # fmt: skip
    assert audit([moved]).findings == audit([sound]).findings != ()


def test_withheld_responses_in_most_trials_are_found():
    values = parts(0)
    values["responses"][TRIAL % 3 > 0] = 0
    checks = {f.check for f in audit([recording(values)]).findings}
    assert checks == {"zero trials"}


def test_arrays_that_do_not_agree_are_refused():
    values = parts(0)
    with pytest.raises(SessionError, match=r"ada_1.*split has shape"):
        Recording.of_session(Session(name="ada_1", stimulus=values["stimulus"], responses=values["responses"],
                                     bin_rate=60), SPLIT[:-1])  # fmt: skip
    with pytest.raises(SessionError, match="at least one session"):
        audit([])


@given(st.floats(0.1, 50), st.floats(1.01, 20))
def test_chance_of_none_is_that_of_the_negative_binomial(mean, fano):
    reference = nbinom.logpmf(0, mean / (fano - 1), 1 / fano)
    assert log_chance_of_none(mean, fano) == pytest.approx(reference, rel=1e-6)
    assert log_chance_of_none(mean, 1.0) == pytest.approx(-mean)


@pytest.mark.parametrize("size", [(16, 16), (28, 28), (36, 64)])
def test_hashes_keep_distances_and_forgive_a_grey_level(size):
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (50, 1, *size)).astype(np.float32)
    noisy = pictures + rng.integers(-1, 2, pictures.shape) + 4
    hashes, distinct = fingerprints(pictures)
    assert distinct.all()
    assert np.linalg.norm(hashes - fingerprints(noisy)[0], axis=1).max() < 0.1
    distances = np.linalg.norm(hashes[:, None] - hashes, axis=2)[~np.eye(50, dtype=bool)]
    assert distances.min() > 0.5 and np.mean(distances**2) == pytest.approx(2, rel=0.1)


def test_text_and_page_name_session_thing_and_cure():
    values = parts(0)
    silent(values, None, None)
    result = audit([recording(values, "ada<1>")])
    text, html = audit_text(result), audit_html(result)
    for part in ("silent unit", "unit 16", "always 0", "cids"):
        assert part in text and part in html
    assert "ada<1>" in text and "ada&lt;1&gt;" in html and "<1>" not in html
    nothing = audit([recording(parts(0))])
    assert "nothing found" in audit_text(nothing) and "Nothing found" in audit_html(nothing)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two sessions as files with a config each, of which the second has a silent unit."""
    monkeypatch.setenv("NEUROTWIN_CACHE", str(tmp_path / "cache"))
    (tmp_path / "configs").mkdir()
    for index, name in enumerate(("ada_1", "ada_2")):
        values = parts(index)
        del values["mask"]
        if index:
            silent(values, None, None)
        session = Session(name=name, trial=TRIAL, unit_ids=IDS, **values)
        session.save(tmp_path / f"{name}.safetensors")
        (tmp_path / "configs" / f"{name}.yaml").write_text(
            f"session: {name}\ndata_dir: ..\nkeys_lags: {{stim: [0..4]}}\n"
        )
    return tmp_path


def test_the_command_tells_by_its_exit_code(folder, capsys):
    assert main(["audit", str(folder / "configs" / "ada_1.yaml")]) == 0
    assert "nothing found" in capsys.readouterr().out
    page = folder / "audit.html"
    assert main(["audit", str(folder / "configs"), "--html", str(page)]) == 1
    out = capsys.readouterr().out
    assert "ada_2" in out and "silent unit" in out and "unit 16" in out
    assert "silent unit" in page.read_text() and page.read_text().startswith("<!doctype html>")
    assert main(["audit", str(folder / "nowhere.yaml")]) == 2
    assert "nowhere.yaml" in capsys.readouterr().err


def test_the_command_compares_with_a_checkpoint(folder, monkeypatch, capsys):
    (old, new) = load_dataset_configs(folder / "configs")
    gone = old.model_copy(update={"session": "gone_1", "path": str(folder / "gone.safetensors")})
    twin = SimpleNamespace(sessions=[SimpleNamespace(name=c.session, config=c) for c in (old, gone)], pictures={})
    monkeypatch.setattr("neurotwin.analysis.audit.load_twin", lambda path: twin)
    trained, shown = audited(old), audited(new)
    lesson, exam = trained.trial[trained.split == 0][0], shown.trial[shown.split == 1][0]
    session = Session.load(new.path)
    stimulus = np.array(session.stimulus)
    stimulus[bins(exam)] = trained.source[bins(lesson)]
    dataclasses.replace(session, stimulus=stimulus).save(new.path)
    assert main(["audit", str(folder / "configs" / "ada_2.yaml"), "--checkpoint", "twin.safetensors"]) == 1
    out = capsys.readouterr().out
    assert "duplicates" in out and f"val trials {exam} (1 of " in out and f"trial {lesson} (shown" in out
    assert "not compared with session 'gone_1'" in out


def test_the_command_compares_with_the_hashes_of_a_checkpoint_whose_recordings_are_gone(folder, monkeypatch, capsys):
    (_, new) = load_dataset_configs(folder / "configs")
    gone = new.model_copy(update={"session": "gone_1", "path": str(folder / "gone.safetensors")})
    session = Session.load(new.path)
    shown = audited(new)
    exam = np.isin(session.trial, shown.trial[shown.split == 1])
    learnt = np.where(exam[:, None, None], 0.9 * session.stimulus + 20, 0).astype(np.uint8)
    old = dataclasses.replace(session, name="gone_1", stimulus=learnt, split=np.where(exam, "train", "val"))
    old.save(gone.path)
    pictures = {"gone_1": prepare_session(gone).shown("train")}
    pictures["older_1"] = dataclasses.replace(pictures["gone_1"], hashes=-pictures["gone_1"].hashes)
    Path(gone.path).unlink()
    twin = SimpleNamespace(sessions=[SimpleNamespace(name="gone_1", config=gone)], pictures=pictures)
    monkeypatch.setattr("neurotwin.analysis.audit.load_twin", lambda path: twin)
    command = ["audit", str(folder / "configs" / "ada_2.yaml"), "--checkpoint", "twin.safetensors"]
    assert main(command) == 1
    out = capsys.readouterr().out
    kept, total = len(pictures["gone_1"]), pictures["gone_1"].total
    assert f"its data are not at {gone.path}; compared by the hashes of {kept} of {total} pictures" in out
    assert "session 'older_1' of twin.safetensors: where its data lie is not known" in out
    assert "val pictures" in out and "trained on them (session 'gone_1', by its hashes)" in out
    pictures.pop("gone_1")
    main(command)
    out = capsys.readouterr().out
    assert "val pictures" not in out and "not compared with session 'gone_1'" in out


@pytest.mark.slow
def test_the_demo_sessions_are_sound(tmp_path, monkeypatch):
    monkeypatch.setenv("NEUROTWIN_CACHE", str(tmp_path / "cache"))
    paths = make_demo_sessions(tmp_path)
    ops = [{"valid_nlags": {"n_lags": 20}}, {"missing_pct": {"threshold": 45}}]
    configs = [
        DatasetConfig(
            session=path.stem, path=str(path), sampling={"source_rate": 240, "target_rate": 120},
            keys_lags={"stim": list(range(20))}, datafilters={"dfs": {"ops": ops}},
        )
        for path in paths
    ]  # fmt: skip
    assert audit_configs(configs).findings == ()
    assert [config.session for config in configs] == list(DEMO_SESSIONS)
