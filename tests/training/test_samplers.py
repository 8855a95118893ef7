"""The order of training: coverage, balance, independence of processes, resumption, and the curriculum's rates."""

import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch.utils.data import DataLoader

from training.samplers import ClipSampler, ContrastWeightedSampler, shuffled

sizes = st.fixed_dictionaries({"n_clips": st.integers(1, 40), "seed": st.integers(0, 5)})


def order(sampler: ClipSampler, steps: int) -> np.ndarray:
    return np.concatenate([sampler.global_indices(step) for step in range(steps)])


# --- the uniform stream ---------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(sizes, st.integers(1, 50))
def test_every_pass_holds_every_clip_once(size, batch_size):
    n = size["n_clips"]
    sampler = ClipSampler(**size, batch_size=batch_size, steps_per_epoch=7)
    stream = order(sampler, -(-3 * n // batch_size))[: 3 * n].reshape(3, n)
    assert (np.sort(stream, axis=1) == np.arange(n)).all()


def test_passes_and_seeds_differ():
    sampler = ClipSampler(50, batch_size=50, steps_per_epoch=1, seed=0)
    first, second = sampler.global_indices(0), sampler.global_indices(1)
    assert (first != second).any()
    assert (first != ClipSampler(50, batch_size=50, steps_per_epoch=1, seed=1).global_indices(0)).any()
    assert (first != np.arange(50)).any()


def test_first_clip_of_a_pass_is_uniform():
    firsts = [ClipSampler(5, batch_size=1, steps_per_epoch=1, seed=seed).global_indices(5)[0] for seed in range(1000)]
    assert chisquare(np.bincount(firsts, minlength=5)).pvalue > 1e-3


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5000), st.integers(0, 3))
def test_shuffled_is_a_permutation(size, seed):
    entries = shuffled(np.arange(size), size, seed)
    assert np.array_equal(np.sort(entries), np.arange(size))
    some = np.arange(0, size, 3)
    assert np.array_equal(shuffled(some, size, seed), entries[some])


def test_shuffled_scatters_neighbours_like_random_permutations():
    """Where one entry goes, and how far apart two neighbours end up, is as with permutations drawn by numpy."""
    size, seeds = 1000, range(4000)
    pairs = np.array([shuffled(np.array([7, 8]), size, seed) for seed in seeds])
    for places in (pairs[:, 0], (pairs[:, 1] - pairs[:, 0]) % size - 1):
        assert chisquare(np.bincount(places * 20 // size, minlength=20)).pvalue > 1e-3


def test_a_long_pass_holds_every_clip_once():
    """More clips than have an order that is written out."""
    n = 40_000
    sampler = ClipSampler(n, batch_size=1000, steps_per_epoch=7, seed=0)
    passes = order(sampler, 3 * n // 1000).reshape(3, n)
    assert (np.sort(passes, axis=1) == np.arange(n)).all() and (passes[0] != passes[1]).mean() > 0.99
    assert sampler._orders == {}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 2)), min_size=1, max_size=8), st.booleans())
def test_groups_of_stretches_are_groups_of_their_clips(stretches, weighted):
    lengths, groups = (np.array(column) for column in zip(*stretches, strict=True))
    n = int(lengths.sum())
    if not n:
        return
    size = {"n_clips": n, "batch_size": 3, "steps_per_epoch": 4, "seed": 1}
    size |= {"scores": np.arange(1.0, n + 1), "warmup_steps": 20} if weighted else {}
    kind = ContrastWeightedSampler if weighted else ClipSampler
    by_clip = kind(**size, groups=np.repeat(groups, lengths))
    by_stretch = kind(**size, groups=groups, sizes=lengths)
    for step in range(12):
        assert np.array_equal(by_clip.global_indices(step), by_stretch.global_indices(step))


@settings(max_examples=30, deadline=None)
@given(sizes, st.sampled_from([1, 2, 4, 8]), st.integers(0, 30), st.booleans(), st.booleans())
def test_the_number_of_processes_changes_nothing(size, world_size, step, balanced, weighted):
    n = size["n_clips"]
    size |= {"groups": np.arange(n) ** 2 % 3} if balanced else {}
    kind = ContrastWeightedSampler if weighted else ClipSampler
    size |= {"scores": np.arange(1.0, n + 1), "warmup_steps": 20} if weighted else {}
    one = kind(**size, batch_size=8, steps_per_epoch=5).indices(step)
    parts = [
        kind(**size, batch_size=8 // world_size, steps_per_epoch=5, rank=rank, world_size=world_size).indices(step)
        for rank in range(world_size)
    ]
    assert (np.concatenate(parts) == one).all()


def test_processes_share_no_position():
    parts = [
        ClipSampler(32, batch_size=8, steps_per_epoch=5, seed=3, rank=rank, world_size=4).indices(6)
        for rank in range(4)
    ]
    assert sorted(np.concatenate(parts)) == list(range(32))


# --- balance --------------------------------------------------------------------------------------------------------


def test_groups_of_unequal_size_are_drawn_equally_often_and_completely():
    groups = np.repeat([7, 3, 5], [1, 4, 10])  # codes need not be 0, 1, 2
    sampler = ClipSampler(15, batch_size=5, steps_per_epoch=10, seed=0, groups=groups)
    stream = order(sampler, 24)  # 120 draws: 40 of each group
    assert [int((groups[stream] == code).sum()) for code in (7, 3, 5)] == [40, 40, 40]
    counts = np.bincount(stream, minlength=15)
    assert (counts[0], *set(counts[1:5]), *set(counts[5:])) == (40, 10, 4)
    for code, length in ((3, 4), (5, 10)):
        own = stream[groups[stream] == code].reshape(-1, length)
        assert (np.sort(own, axis=1) == np.flatnonzero(groups == code)).all()


def test_each_block_holds_each_group_once_in_a_changing_order():
    groups = np.arange(12) % 4
    blocks = groups[order(ClipSampler(12, batch_size=6, steps_per_epoch=4, seed=0, groups=groups), 10)].reshape(-1, 4)
    assert (np.sort(blocks, axis=1) == np.arange(4)).all()
    assert len(np.unique(blocks, axis=0)) > 3


# --- steps, epochs, resumption --------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(sizes, st.integers(0, 23), st.booleans())
def test_resuming_at_any_step_gives_the_same_order(size, at, weighted):
    kind = ContrastWeightedSampler if weighted else ClipSampler
    size |= {"scores": np.arange(1.0, size["n_clips"] + 1), "warmup_steps": 15} if weighted else {}
    whole = kind(**size, batch_size=3, steps_per_epoch=8)
    every = [indices for _ in range(3) for indices in whole]
    assert len(every) == 24
    resumed = kind(**size, batch_size=3, steps_per_epoch=8)
    resumed.load_state_dict({"step": at})
    rest = []
    while resumed.step < 24:
        rest += list(resumed)
    assert np.array_equal(rest, every[at:])


def test_step_counts_what_was_handed_out():
    sampler = ClipSampler(10, batch_size=2, steps_per_epoch=4, seed=0)
    iterator = iter(sampler)
    for step in range(3):
        assert sampler.state_dict() == {"step": step}
        next(iterator)
    assert sampler.step == 3
    assert len(list(sampler)) == 1  # a loop that was cut short goes on, and ends where the epoch ends
    assert len(list(sampler)) == len(sampler) == 4


def test_a_loader_takes_the_sampler_as_it_is():
    sampler = ClipSampler(10, batch_size=5, steps_per_epoch=2, seed=0)
    loader = DataLoader(range(10), batch_sampler=sampler, collate_fn=list)
    assert sorted(clip for clips in loader for clip in clips) == list(range(10))
    assert len(loader) == 2
    assert loader.batch_sampler is sampler


# --- the curriculum -------------------------------------------------------------------------------------------------

SCORES = np.array([0.0, 0.0, 0.5, 1.0, 3.0, 1.5])


def draws_at(step: int, n_seeds: int = 3000, **kwargs) -> np.ndarray:
    """The first clip of a step under many seeds: independent draws of its distribution."""
    return np.array(
        [
            ContrastWeightedSampler(
                len(SCORES), scores=SCORES, warmup_steps=100, batch_size=1, steps_per_epoch=1000, seed=seed, **kwargs
            ).global_indices(step)[0]
            for seed in range(n_seeds)
        ]
    )


@pytest.mark.parametrize(("step", "a"), [(0, 0.9), (25, 0.675), (50, 0.45), (99, 0.009), (100, 0.0), (5000, 0.0)])
def test_rates_anneal_linearly_to_uniform(step, a):
    expected = (1 - a) + a * SCORES / SCORES.mean()
    counts = np.bincount(draws_at(step), minlength=6)
    assert chisquare(counts, expected / expected.sum() * 3000).pvalue > 1e-3


@pytest.mark.parametrize("groups", [[0, 0, 0, 1, 1, 1], [0, 1, 0, 1, 0, 1], [1, 0, 1, 1, 0, 0]], ids=str)
def test_rates_within_groups_follow_contrast_and_groups_stay_equal(groups):
    """In whatever order the clips of the groups stand in the table: sessions of one subject need not be neighbours."""
    groups = np.array(groups)
    drawn = draws_at(0, groups=groups)
    for code in (0, 1):
        own = SCORES[groups == code]
        p = 0.1 + 0.9 * own / own.mean()
        counts = np.bincount(drawn[groups[drawn] == code], minlength=6)[groups == code]
        assert chisquare(counts, p / p.sum() * counts.sum()).pvalue > 1e-3
    assert chisquare(np.bincount(groups[drawn])).pvalue > 1e-3


def test_emphasis_falls_at_every_step_and_never_jumps():
    sampler = ContrastWeightedSampler(
        6, scores=SCORES, warmup_steps=40, batch_size=1, steps_per_epoch=1000, seed=0, emphasis=0.8
    )
    a = np.array([sampler.emphasis_at(step) for step in range(60)])
    np.testing.assert_allclose(np.diff(a[:41]), -0.8 / 40)
    assert (a[40:] == 0).all() and a[0] == 0.8


def test_after_warm_up_it_is_the_uniform_stream():
    shared = {"batch_size": 4, "steps_per_epoch": 10, "seed": 2}
    weighted = ContrastWeightedSampler(6, scores=SCORES, warmup_steps=5, **shared)
    uniform = ClipSampler(6, **shared)
    same = [np.array_equal(weighted.global_indices(s), uniform.global_indices(s)) for s in range(15)]
    assert all(same[5:]) and not all(same[:5])


def test_clips_without_contrast_are_drawn_from_the_first_step():
    share = np.isin(draws_at(0), [0, 1]).mean()
    assert share == pytest.approx(0.1 * 2 / 6, abs=0.01)


def test_a_group_without_contrast_is_uniform_and_said_so(caplog):
    scores, groups = np.array([0.0, 0.0, 1.0, 3.0]), np.array([0, 0, 1, 1])
    shared = {"batch_size": 1000, "steps_per_epoch": 10, "seed": 2, "groups": groups, "warmup_steps": 100}
    with caplog.at_level(logging.WARNING):
        sampler = ContrastWeightedSampler(4, scores=scores, **shared)
    assert "group 0" in caplog.text
    counts = np.bincount(sampler.global_indices(0), minlength=4)
    assert counts[0] == counts[1] == 250
    assert counts[2] + counts[3] == 500 and counts[3] / 500 == pytest.approx(0.05 + 0.9 * 0.75, abs=0.06)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (np.ones(5), "not frames"),
        (np.ones((6, 1)), "one score for each"),
        (np.array([1, 1, 1, 1, 1, np.nan]), "1 contrast scores are not finite"),
        (np.array([1, 1, 1, 1, 1, -1.0]), "1 negative"),
        (np.zeros(6), "no clip has contrast"),
    ],
)
def test_impossible_scores_are_refused(scores, message):
    with pytest.raises(ValueError, match=message):
        ContrastWeightedSampler(6, scores=scores, warmup_steps=5, batch_size=1, steps_per_epoch=1, seed=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_clips": 0}, "no clips"),
        ({"batch_size": 0}, "positive"),
        ({"rank": 2, "world_size": 2}, "rank 2"),
        ({"groups": np.zeros(3)}, "one group for each"),
    ],
)
def test_impossible_sizes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        ClipSampler(**{"n_clips": 6, "batch_size": 2, "steps_per_epoch": 2, "seed": 0} | change)
