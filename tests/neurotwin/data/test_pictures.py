"""Hashes of pictures: which are kept of a session, and what is found by them."""

import numpy as np
import pytest

from neurotwin.data import pictures as pictures_module
from neurotwin.data.fingerprints import fingerprints
from neurotwin.data.pictures import ShownPictures, all_shown, familiar, pack, shown_pictures, unpack
from neurotwin.data.prepare import prepare_session


def photographs(number, seed=0, size=(16, 18)):
    """Noise in squares of four pixels."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 200, (number, size[0] // 2, size[1] // 2)).astype(np.uint8)
    return coarse.repeat(2, axis=1).repeat(2, axis=2)


def shown(frames, *, each=1, held=1, rate=60.0):
    """What a part shows of frames, in runs of `each` bins, every frame for `held` bins."""
    frame = np.arange(len(frames)).repeat(held)
    run = np.arange(len(frame)) // each
    contrast = frames.reshape(len(frames), -1).std(axis=1, dtype=np.float32)[frame]
    bins = np.arange(len(frame))
    return shown_pictures(frames, frame, bins=bins, run=run, contrast=contrast, bin_rate=rate)


def test_few_pictures_are_all_kept_once():
    frames = photographs(30)
    again = shown(np.concatenate([frames, frames, np.full_like(frames[:5], 128)]))
    assert len(again) == again.total == 30 and again.still.all()  # blanks are left out
    np.testing.assert_allclose(np.sort(again.hashes, 0), np.sort(fingerprints(frames[:, None] * 1.0)[0], 0), atol=2e-3)


def test_of_many_a_thousand_evenly_spaced_are_kept():
    frames = photographs(2500)
    some = shown(frames, each=50)
    assert 990 <= len(some) <= 1000 and some.total == pytest.approx(2500, rel=0.05) and not some.still.any()
    every = fingerprints(frames[:, None].astype(np.float32))[0]
    squares = ((every[:, None] - some.hashes[::20].astype(np.float32)) ** 2).sum(-1)
    assert np.abs(np.diff(np.sort(squares.argmin(0))) - 50).max() <= 10


def test_noise_of_equal_contrast_is_told_apart():
    rng = np.random.default_rng(0)
    half = np.r_[np.zeros(144), np.full(144, 255)].astype(np.uint8)
    frames = np.stack([rng.permutation(half) for _ in range(300)]).reshape(300, 16, 18)
    found = shown(np.concatenate([frames, frames]), each=1)
    assert len(found) == found.total == 300


@pytest.mark.parametrize(("held", "each", "still"), [(4, 40, True), (1, 40, False), (1, 1, True), (2, 40, False)])
def test_what_stays_on_is_still(held, each, still):
    assert (shown(photographs(20), held=held, each=each).still == still).all()


def test_brighter_copies_are_found_and_others_are_not():
    old = {"ada_1": shown(photographs(60)), "bea_1": shown(photographs(50, seed=2))}
    new = photographs(40, seed=1)
    assert familiar(shown(new), old) is None
    new[:7] = 20 + 0.8 * photographs(60)[50:57]
    seen = familiar(shown(new), old)
    assert (seen.session, seen.others, seen.found, seen.total, seen.estimated) == ("ada_1", 0, 7, 40, False)
    assert seen.correlation > 0.995 and seen.count == "7 of 40"
    new[8] = photographs(50, seed=2)[3]
    assert familiar(shown(new), old).where == "session 'ada_1' and 1 more"


@pytest.mark.parametrize(("copied", "found"), [(400, True), (40, False)])
def test_of_a_movie_a_third_must_be_shared_however_few_of_its_frames_were_kept(copied, found):
    movie = photographs(8000)
    old = {"ada_1": shown(movie, each=100)}
    assert 990 <= len(old["ada_1"]) <= 1000
    new = photographs(500, seed=1)
    new[:copied] = movie[1000 : 1000 + copied]
    seen = familiar(shown(new, each=100), old)
    assert (seen is not None) == found
    if found:
        assert seen.estimated and seen.found == pytest.approx(copied, rel=0.2) and seen.count.startswith("about ")


def test_pictures_are_packed_and_unpacked_in_their_order():
    known = {"b": shown(photographs(9)), "none": shown(np.zeros((4, 16, 18), np.uint8)), "a": shown(photographs(5, 3))}
    arrays, counts = pack(known)
    assert {name: array.dtype.name for name, array in arrays.items()} == {"hashes": "float16", "still": "bool"}
    back = unpack(arrays, counts)
    assert list(back) == list(known) and len(back["none"]) == back["none"].total == 0
    for name, one in known.items():
        np.testing.assert_array_equal(back[name].hashes, one.hashes)
        np.testing.assert_array_equal(back[name].still, one.still)
        assert back[name].total == one.total
    assert unpack(*pack({})) == {}
    for wrong in (counts[:1], [["b", 20, 20], ["a", -6, 5]]):
        with pytest.raises(ValueError, match="hashes of pictures"):
            unpack(arrays, wrong)


def test_a_session_trained_on_twice_keeps_the_pictures_of_both():
    one, two = (shown(photographs(700, seed)) for seed in (0, 1))
    assert all_shown([{"a": one}, {"a": one}])["a"] is one
    both = all_shown([{"a": one}, {"a": two, "b": two}])
    assert list(both) == ["a", "b"] and both["b"] is two
    assert len(both["a"]) == 1000 and both["a"].total == one.total + two.total
    assert familiar(shown(photographs(5)), both) and familiar(shown(photographs(5, 1)), both)


def test_the_prepared_file_keeps_those_of_training(factory, tmp_path, monkeypatch):
    monkeypatch.delenv("NEUROTWIN_CACHE", raising=False)
    factory.write_session(
        tmp_path, stimulus=photographs(240), split=np.repeat(["train", "val", "test", "test"], 60), trial_bins=60
    )
    config = factory.configure(tmp_path)
    first = prepare_session(config)
    monkeypatch.setattr(pictures_module, "fingerprints", None)  # a second start computes nothing
    kept = prepare_session(config).shown("train")
    monkeypatch.undo()
    assert len(kept) == kept.total == 60 and kept.hashes.dtype == np.float16
    np.testing.assert_array_equal(kept.hashes, first.shown("train").hashes)
    fresh = fingerprints(photographs(240)[:, None].astype(np.float32))[0]
    for split, part in (("train", slice(0, 60)), ("val", slice(60, 120)), ("test", slice(120, 240))):
        np.testing.assert_allclose(first.shown(split).hashes, fresh[part], atol=1e-3)


def test_a_full_field_has_no_pictures(factory, tmp_path):
    factory.write_session(tmp_path, frame=())
    prepared = prepare_session(factory.configure(tmp_path))
    assert [len(prepared.shown(split)) for split in ("train", "val", "test")] == [0, 0, 0]
    assert familiar(prepared.shown("val"), {"a": prepared.shown("train")}) is None
    assert isinstance(prepared.pictures, ShownPictures)
