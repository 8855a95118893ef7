"""Repeats by an id, and by what was shown."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neurotwin.data.formats.repeats import alike, repeat_ids, sketch


@given(st.lists(st.tuples(st.sampled_from(["a", "b", ("c", 1), None]), st.integers(1, 4)), min_size=1, max_size=9))
def test_bins_share_an_id_where_key_and_place_agree(trials):
    keys, lengths = zip(*trials, strict=True)
    ids = repeat_ids(keys, lengths)
    bins = [(key, place) for key, length in trials for place in range(length)]
    assert ids.shape == (len(bins),) and ids.dtype == np.int64
    for one, (key, place) in enumerate(bins):
        partners = [k for k, other in enumerate(bins) if other == (key, place) and key is not None]
        same = np.flatnonzero(ids == ids[one]).tolist()
        assert same == partners if len(partners) > 1 else ids[one] == -1


def test_a_key_for_each_trial_is_asked_for():
    with pytest.raises(ValueError, match="argument"):
        repeat_ids(["a"], [1, 2])


@pytest.mark.parametrize("shape", [(), (7,), (5, 6), (1, 9, 3), (3, 2, 5, 9)])
def test_a_sketch_holds_means_of_pieces(shape):
    frames = np.random.default_rng(0).integers(0, 256, (6, *shape)).astype(np.uint8)
    got_shape, means = sketch(frames)
    expected = frames.astype(float)
    for axis in range(frames.ndim):
        pieces, length = min(4, expected.shape[axis]), expected.shape[axis]
        bounds = [k * length // pieces for k in range(pieces + 1)]
        parts = [expected.take(range(a, b), axis).mean(axis) for a, b in itertools.pairwise(bounds)]
        expected = np.stack(parts, axis)
    assert got_shape == frames.shape
    np.testing.assert_allclose(means, expected.reshape(-1))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(1, 6))
def test_presentations_within_a_grey_level_are_found_wherever_the_values_lie(seed, n_movies, n_pixels):
    rng = np.random.default_rng(seed)
    movies = rng.integers(1, 255, (n_movies, 4, n_pixels, 5))
    which = rng.integers(0, n_movies, 8)
    # Noise of 0 or 1 lies within a level of itself, and of the movie.
    shown = [(movies[movie] + rng.integers(0, 2, movies[0].shape)).astype(np.uint8) for movie in which]
    first = alike([sketch(frames) for frames in shown], shown.__getitem__)
    for trial, leader in enumerate(first):
        assert np.abs(shown[trial].astype(int) - shown[leader].astype(int)).max() <= 1
        assert which[leader] == which[trial] or np.abs(movies[which[leader]] - movies[which[trial]]).max() <= 2
        assert leader == next(
            k for k in range(8) if first[k] == k and np.abs(shown[k].astype(int) - shown[trial].astype(int)).max() <= 1
        )


def test_what_differs_by_more_than_a_level_in_one_pixel_is_not_the_same():
    base = np.full((4, 8, 8), 100, np.uint8)
    near, far, longer = base.copy(), base.copy(), np.full((5, 8, 8), 100, np.uint8)
    near[3, 7, 7], far[0, 0, 0] = 99, 102
    shown = [base, far, near, longer, base]
    assert alike([sketch(frames) for frames in shown], shown.__getitem__) == [0, 1, 0, 3, 0]


def test_a_level_below_zero_does_not_wrap_around():
    shown = [np.zeros((1, 4, 4), np.uint8), np.full((1, 4, 4), 255, np.uint8), np.ones((1, 4, 4), np.uint8)]
    # The same means within the tolerance, so that pixels are compared: 0 and 255 must not count as neighbours.
    sketches = [(frames.shape, np.zeros(1)) for frames in shown]
    assert alike(sketches, shown.__getitem__) == [0, 1, 0]


def test_only_candidates_are_loaded():
    shown = [np.full((2, 4, 4), level, np.uint8) for level in range(0, 200, 10)]
    loaded = []

    def load(trial):
        loaded.append(trial)
        return shown[trial]

    assert alike([sketch(frames) for frames in shown], load) == list(range(20))
    assert loaded == []
