"""Clips: what is gathered, what is masked, and that every bin comes exactly once."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neurotwin.config import DatasetConfig
from neurotwin.data.clips import clip_table, gather, has_part, show, stream, usable_runs
from neurotwin.data.prepare import Prepared
from neurotwin.data.spec import SessionSpec


def make_prepared(lengths, *, n_lags=4, seed=0, n_units=2, exposure=False, n_history=0, frame=(2, 3)):
    """Runs of some lengths; the frame of bin t holds t in every pixel."""
    rng = np.random.default_rng(seed)
    n_bins = sum(lengths)
    starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
    stops = np.repeat(np.cumsum(lengths), lengths)
    lags = {"stim": list(range(n_lags)), "history": list(range(1, n_history + 1))}
    mask = rng.random((n_bins, n_units)) > 0.2
    mask[np.arange(n_bins) - starts < n_lags - 1] = False
    spec = SessionSpec(
        name="s", subject="s", unit_ids=tuple(range(n_units)), frame_shape=(1, 2, 3), bin_rate=60.0, n_lags=n_lags,
        behavior_dim=2, n_history=n_history, config=DatasetConfig.model_validate({"keys_lags": lags}),
    )  # fmt: skip
    nothing, split = np.zeros(n_units), np.repeat(rng.integers(0, 3, len(lengths)), lengths)
    source = np.multiply.outer(np.arange(n_bins, dtype=np.uint8), np.ones(frame, np.uint8))
    return Prepared(
        spec=spec, source=source, frame=np.arange(n_bins),
       
        responses=rng.poisson(1, (n_bins, n_units)).astype(np.uint8), mask=mask,
        n_valid=mask.sum(axis=1), train_bins=nothing, train_presentations=nothing, train_sum=nothing,
        train_squares=nothing, train_zeros=nothing, split=split.astype(np.int8),
        run_start=starts, run_stop=stops, contrast=rng.random(n_bins).astype(np.float32),
        trial=np.repeat(np.arange(len(lengths)), lengths), repeat_id=np.full(n_bins, -1),
        behavior=rng.normal(size=(n_bins, 2)).astype(np.float32),
        exposure=rng.integers(1, 4, n_bins).astype(np.float32) if exposure else None,
    )  # fmt: skip


def test_a_clip_by_hand():
    prepared = make_prepared([10, 10], n_history=2, exposure=True)
    sample = gather(prepared, np.array([13, 18]), np.array([15, 20]), length=3, context=3)
    clip, target = sample.clip, sample.target
    frames = clip.stimulus[:, 0, :, 0, 0].tolist()
    assert frames == [[10, 11, 12, 13, 14, 15], [15, 16, 17, 18, 19, 19]]  # the last repeats beyond the run
    assert clip.stimulus.shape == (2, 1, 6, 2, 3) and clip.stimulus.dtype == torch.uint8
    assert (clip.session, clip.length, clip.carries, clip.bins.tolist()) == (0, 3, False, [13, 18])
    assert not target.mask[0, 2].any() and not target.mask[1, 2].any()  # beyond `stops`
    np.testing.assert_array_equal(target.mask[0, :2], prepared.mask[13:15])
    np.testing.assert_array_equal(target.responses[0], prepared.responses[13:16])
    np.testing.assert_array_equal(clip.behavior[0], prepared.behavior[10:16])
    np.testing.assert_array_equal(clip.history[0], prepared.responses[11:16])
    np.testing.assert_array_equal(target.exposure[0, :, 0], prepared.exposure[13:16])
    assert sample.of_session(4).clip.session == sample.of_session(4).session == 4


@pytest.mark.parametrize(("context", "n_history"), [(1, 4), (4, 1), (0, 0)])
def test_history_and_context_each_have_their_own_reach(context, n_history):
    prepared = make_prepared([20], n_history=n_history)
    clip = gather(prepared, np.array([9]), np.array([12]), length=3, context=context).clip
    assert clip.stimulus[0, 0, :, 0, 0].tolist() == list(range(9 - context, 12))
    assert len(clip.behavior[0]) == context + 3
    if n_history:
        np.testing.assert_array_equal(clip.history[0], prepared.responses[9 - n_history : 12])
    else:
        assert clip.history is None


def test_context_never_reaches_into_the_run_before():
    prepared = make_prepared([6, 8])
    clip = gather(prepared, np.array([7]), np.array([8]), length=1, context=3).clip
    assert clip.stimulus[0, 0, :, 0, 0].tolist() == [6, 6, 6, 7]


@pytest.mark.parametrize("frame", [(), (7,), (2, 3), (3, 2, 3)])
def test_frames_shown_later_are_those_shown_at_once(frame):
    prepared = make_prepared([10, 10], frame=frame)
    cut = {"length": 3, "context": 3}
    now = gather(prepared, np.array([13, 18]), np.array([15, 20]), **cut).clip
    later = gather(prepared, np.array([13, 18]), np.array([15, 20]), shown=False, **cut).clip
    assert later.stimulus is None and later.frames.tolist() == [[10, 11, 12, 13, 14, 15], [15, 16, 17, 18, 19, 19]]
    for source in (prepared.source, torch.from_numpy(prepared.source)):
        shown = show(later, source)
        assert torch.equal(shown.stimulus, now.stimulus) and shown.frames is None
    assert now.stimulus.shape == (2, *{0: (1, 6, 1, 1), 1: (1, 6, 7, 1), 2: (1, 6, 2, 3), 3: (3, 6, 2, 3)}[len(frame)])


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=12),
    length=st.integers(1, 12),
    n_lags=st.integers(1, 5),
    seed=st.integers(0, 5),
)
def test_training_clips_cover_every_valid_bin_once(lengths, length, n_lags, seed):
    prepared = make_prepared(lengths, n_lags=n_lags, seed=seed)
    wanted = prepared.mask & (prepared.split == 0)[:, None]
    if not wanted.any():
        with pytest.raises(ValueError, match="no session has a valid bin"):
            clip_table([prepared], "train", length=length)
        return
    table = clip_table([prepared], "train", length=length)
    seen = np.zeros_like(wanted, int)
    for sample in table.samples(np.arange(len(table)), context=n_lags - 1):
        for row, start in enumerate(sample.clip.bins.tolist()):
            part = sample.target.mask[row].numpy()
            n = min(table.length, prepared.n_bins - start)
            assert not part[n:].any()
            assert part.sum() == table.count()[row]
            seen[start : start + n] += part[:n]
    np.testing.assert_array_equal(seen, wanted)
    assert table.count().sum() == wanted.sum() and (table.count() > 0).all()


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    chunk=st.integers(1, 15),
    bins=st.integers(1, 60),
    n_parts=st.integers(1, 3),
    seed=st.integers(0, 5),
)
def test_a_stream_covers_every_valid_bin_once_for_any_number_of_processes(lengths, chunk, bins, n_parts, seed):
    prepared = make_prepared(lengths, seed=seed)
    wanted = prepared.mask & (prepared.split == 1)[:, None]
    seen = np.zeros_like(wanted, int)
    for rank in range(n_parts):
        previous = None
        for sample in stream(prepared, "val", context=3, chunk=chunk, bins=bins, part=(rank, n_parts)):
            clip, mask = sample.clip, sample.target.mask
            starts = clip.bins.numpy()
            assert clip.length <= chunk
            for row, start in enumerate(starts.tolist()):
                for offset in range(clip.length):
                    if mask[row, offset].any():
                        seen[start + offset] += mask[row, offset].numpy()
                        assert not clip.carries or start == previous[row]
            assert not clip.carries or len(starts) == len(previous)
            previous = starts + clip.length
    np.testing.assert_array_equal(seen, wanted)


def test_a_stream_says_where_its_clips_continue_those_before():
    """Only then is a recurrent model's state carried: two stretches of 25 bins in pieces of 10, two batches."""
    prepared = make_prepared([28, 28, 28, 13], n_lags=4)
    prepared.split[:] = 1
    prepared.mask[:] = prepared.mask | True
    prepared.n_valid[:] = 2
    clips = [sample.clip for sample in stream(prepared, "val", context=3, chunk=10, bins=20)]
    found = [(clip.bins.tolist(), clip.length, clip.carries) for clip in clips]
    assert found == [
        ([3, 31], 10, False), ([13, 41], 10, True), ([23, 51], 5, True),
        ([59, 87], 10, False), ([69, 96], 10, True), ([79, 96], 5, True),
    ]  # fmt: skip


def test_rows_of_several_sessions_come_one_sample_a_session():
    sessions = [make_prepared([30] * 4, seed=seed) for seed in (0, 1, 2)]
    for prepared in sessions:
        prepared.split[:] = 0
    table = clip_table(sessions, "train", length=5)
    rows = np.random.default_rng(0).permutation(np.flatnonzero(table.locate().session != 1))[:9]
    samples = table.samples(rows, context=3)
    assert [sample.session for sample in samples] == [0, 2]
    for sample in samples:
        own = rows[table.locate().session[rows] == sample.session]
        np.testing.assert_array_equal(sample.clip.bins, table.locate().start[own])


def test_clip_scores_are_those_of_the_clips_own_frames():
    """Contrast is looked up by the clip's frames, not by its row."""
    prepared = make_prepared([30, 30, 30])
    prepared.split[:] = 0
    table = clip_table([prepared, prepared], "train", length=5)
    for row in range(len(table)):
        expected = prepared.contrast[table.locate().start[row] : table.locate().stop[row]].mean()
        np.testing.assert_allclose(table.contrast()[row], expected, rtol=1e-6)


def test_single_images_make_clips_of_one_bin():
    prepared = make_prepared([1] * 50, n_lags=1)
    table = clip_table([prepared], "train", length=32)
    assert table.length == 1 and (table.locate().stop - table.locate().start == 1).all()


@settings(max_examples=80, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=6), length=st.integers(1, 8), n_lags=st.integers(1, 4),
    seed=st.integers(0, 50), valid=st.sampled_from([0.1, 0.5, 0.95]),
)  # fmt: skip
def test_clips_against_a_slow_loop(lengths, length, n_lags, seed, valid):
    """Bins of any split, with stretches that are blank: the clips lie as if every stretch were cut by hand."""
    rng = np.random.default_rng(seed)
    prepared = make_prepared(lengths, n_lags=n_lags, seed=seed)
    prepared.split[:] = np.repeat(rng.integers(0, 2, prepared.n_bins), 4)[: prepared.n_bins]
    prepared.mask[:] = (np.repeat(rng.random(prepared.n_bins) < valid, 3)[: prepared.n_bins])[:, None]
    prepared.n_valid[:] = prepared.mask.sum(axis=1)
    runs = usable_runs(prepared, "train")
    longest = max((int(stop - start) for start, stop in runs), default=0)
    expected = [
        (first, min(first + min(length, longest), stop))
        for start, stop in runs.tolist()
        for first in range(start, stop, min(length, longest))
        if prepared.n_valid[first : min(first + min(length, longest), stop)].sum()
    ]
    assert has_part(prepared, "train") == bool(expected)
    if not expected:
        with pytest.raises(ValueError, match="no session has a valid bin"):
            clip_table([prepared], "train", length=length)
        return
    table = clip_table([prepared, prepared], "train", length=length)
    found = table.locate()
    assert list(zip(found.start.tolist(), found.stop.tolist(), strict=True)) == 2 * expected
    assert found.session.tolist() == [0] * len(expected) + [1] * len(expected)
    rows = rng.permutation(len(table))[:5]
    assert np.array_equal(table.locate(rows).start, found.start[rows])
    assert table.count(rows).tolist() == [
        prepared.n_valid[a:b].sum() for _, a, b in zip(*table.locate(rows), strict=True)
    ]
    np.testing.assert_allclose(table.contrast()[rows], table.contrast(rows))


def test_usable_runs_are_of_one_split_and_have_whole_windows():
    prepared = make_prepared([10, 3, 10])
    prepared.split[:] = 0
    prepared.split[6:8] = 1
    assert usable_runs(prepared, "train").tolist() == [[3, 6], [8, 10], [16, 23]]
    assert usable_runs(prepared, "val").tolist() == [[6, 8]]


@pytest.mark.parametrize(
    ("limit", "trials"),
    [(1.0, range(41)), (0.25, range(0, 41, 4)), (5, range(0, 41, 10)), (100, range(41)), (2, [0, 40]), (0.001, [0])],
)
def test_a_limited_stream_takes_trials_evenly_from_the_whole_session(limit, trials):
    """The first trials alone would be the first minutes, in which animals are most awake."""
    prepared = make_prepared([10] * 41)
    prepared.split[:] = 1
    prepared.mask[:] = True
    prepared.n_valid[:] = 2
    if limit == 0.25:
        limit = 11 / 41
    for _ in range(2):
        samples = list(stream(prepared, "val", context=3, limit=limit))
        starts = np.concatenate([sample.clip.bins for sample in samples])
        assert sorted(prepared.trial[starts].tolist()) == list(trials)
