"""Clips: what is gathered, what is masked, and that every bin comes exactly once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neurotwin.config import DatasetConfig
from neurotwin.data.clips import clip_table, gather, stream, usable_runs
from neurotwin.data.prepare import Prepared


def make_prepared(lengths, *, n_lags=4, seed=0, n_units=2, exposure=False, n_history=0):
    rng = np.random.default_rng(seed)
    n_bins = sum(lengths)
    starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
    stops = np.repeat(np.cumsum(lengths), lengths)
    lags = {"stim": list(range(n_lags)), "history": list(range(1, n_history + 1))}
    mask = rng.random((n_bins, n_units)) > 0.2
    mask[np.arange(n_bins) - starts < n_lags - 1] = False
    return Prepared(
        name="s", subject="s", config=DatasetConfig.model_validate({"keys_lags": lags}), bin_rate=60.0,
        unit_ids=np.arange(n_units), source=np.arange(n_bins, dtype=np.uint8)[:, None, None].repeat(2, 1).repeat(3, 2),
        frame=np.arange(n_bins), pixel_scale=(1.0, 0.0), spikes=rng.poisson(1, (n_bins, n_units)).astype(np.uint8),
        mask=mask, n_valid=mask.sum(axis=1), train_spikes=np.zeros(n_units), train_presentations=np.zeros(n_units),
        split=np.repeat(rng.integers(0, 3, len(lengths)), lengths).astype(np.int8), run_start=starts,
        run_stop=stops, contrast=rng.random(n_bins).astype(np.float32), repeat_id=np.full(n_bins, -1),
        behavior=rng.normal(size=(n_bins, 2)).astype(np.float32),
        exposure=rng.integers(1, 4, n_bins).astype(np.float32) if exposure else None,
    )  # fmt: skip


def test_a_clip_by_hand():
    prepared = make_prepared([10, 10], n_history=2, exposure=True)
    batch = gather(prepared, np.array([13, 18]), np.array([15, 20]), length=3, context=3)
    frames = batch.stimulus[:, 0, :, 0, 0].tolist()
    assert frames == [[10, 11, 12, 13, 14, 15], [15, 16, 17, 18, 19, 19]]  # the last repeats beyond the run
    assert batch.stimulus.shape == (2, 1, 6, 2, 3) and batch.stimulus.dtype.is_floating_point is False
    assert not batch.mask[0, 2].any() and not batch.mask[1, 2].any()  # beyond `stops`
    np.testing.assert_array_equal(batch.mask[0, :2], prepared.mask[13:15])
    np.testing.assert_array_equal(batch.spikes[0], prepared.spikes[13:16])
    np.testing.assert_array_equal(batch.behavior[0], prepared.behavior[10:16])
    np.testing.assert_array_equal(batch.history[0], prepared.spikes[11:16])
    np.testing.assert_array_equal(batch.exposure[0, :, 0], prepared.exposure[13:16])


def test_context_never_reaches_into_the_run_before():
    prepared = make_prepared([6, 8])
    batch = gather(prepared, np.array([7]), np.array([8]), length=1, context=3)
    assert batch.stimulus[0, 0, :, 0, 0].tolist() == [6, 6, 6, 7]


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
    for batch in table.batches(np.arange(len(table)), context=n_lags - 1):
        for row, start in enumerate(batch.bins.tolist()):
            part = batch.mask[row].numpy()
            n = min(table.length, prepared.n_bins - start)
            assert not part[n:].any()
            seen[start : start + n] += part[:n]
    np.testing.assert_array_equal(seen, wanted)
    assert table.count.sum() == wanted.sum()


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
        for batch in stream(prepared, "val", context=3, chunk=chunk, bins=bins, part=(rank, n_parts)):
            starts = batch.bins.numpy()
            for row, start in enumerate(starts.tolist()):
                for offset in range(batch.length):
                    if batch.mask[row, offset].any():
                        seen[start + offset] += batch.mask[row, offset].numpy()
                        assert not batch.carries or start == previous[row]
            assert not batch.carries or len(starts) == len(previous)
            previous = starts + batch.length
    np.testing.assert_array_equal(seen, wanted)


def test_clip_scores_are_those_of_the_clips_own_frames():
    """Contrast is looked up by the clip's frames, not by its row."""
    prepared = make_prepared([30, 30, 30])
    prepared.split[:] = 0
    table = clip_table([prepared, prepared], "train", length=5)
    for row in range(len(table)):
        expected = prepared.contrast[table.start[row] : table.stop[row]].mean()
        np.testing.assert_allclose(table.contrast[row], expected, rtol=1e-6)


def test_single_images_make_clips_of_one_bin():
    prepared = make_prepared([1] * 50, n_lags=1)
    table = clip_table([prepared], "train", length=32)
    assert table.length == 1 and (table.stop - table.start == 1).all()


def test_usable_runs_are_of_one_split_and_have_whole_windows():
    prepared = make_prepared([10, 3, 10])
    prepared.split[:] = 0
    prepared.split[6:8] = 1
    assert usable_runs(prepared, "train").tolist() == [[3, 6], [8, 10], [16, 23]]
    assert usable_runs(prepared, "val").tolist() == [[6, 8]]


def test_a_limited_stream_is_the_same_subset_each_time():
    prepared = make_prepared([10] * 40)
    prepared.split[:] = 1
    full = sum(batch.mask.sum() for batch in stream(prepared, "val", context=3))
    once, again = ([b.bins.tolist() for b in stream(prepared, "val", context=3, limit=0.25)] for _ in range(2))
    assert once == again and 0 < sum(map(len, once)) == 10 and full > 0
    assert sum(len(b.bins) for b in stream(prepared, "val", context=3, limit=3)) == 3
