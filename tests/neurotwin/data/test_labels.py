"""Names of bins are kept as codes, and read as names."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neurotwin.data.labels import Coded
from neurotwin.data.session import Session, SessionError
from neurotwin.data.streamed import Streamed


def session_of(n_bins: int, **values) -> Session:
    return Session(
        name="a_1", stimulus=np.zeros(n_bins, np.uint8), responses=np.zeros((n_bins, 1)), bin_rate=1, **values
    )


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=5), min_size=1, max_size=20))
def test_codes_are_those_of_numpy(values):
    names, codes = np.unique(np.asarray(values, str), return_inverse=True)
    found = Coded.of(values)
    assert found.names.tolist() == names.tolist() and found.codes.tolist() == codes.tolist()
    assert found.labels().tolist() == values and found.codes.dtype == np.int32


def test_no_bins_have_no_names():
    assert Coded.of([]).names.tolist() == [] and len(Coded.of([]).labels()) == 0


@pytest.mark.parametrize("kind", [list, tuple, np.asarray, lambda v: np.asarray(v, object)])
def test_a_session_gives_back_the_names_that_it_was_given(kind):
    names = ["noise", "a", "noise"]
    session = session_of(3, stimulus_type=kind(names), split=kind(["", "test", "val"]))
    assert session.stimulus_type.tolist() == names and session.split.tolist() == ["", "test", "val"]
    assert session.types == ("a", "noise") and session.type_codes.tolist() == [1, 0, 1]
    assert replace(session) == session != replace(session, split=["", "test", "train"])
    session.stimulus_type = "b"
    assert session.types == ("b",) and session.stimulus_type.tolist() == ["b"] * 3
    session.split = ["test", "oops", ""]
    with pytest.raises(SessionError, match=r"split holds .*oops"):
        session.check()


def test_what_is_left_out_and_one_name_for_all():
    session = session_of(2)
    assert session.stimulus_type.tolist() == ["movie"] * 2 and session.split is None


def test_writing_to_the_names_is_refused_where_it_would_be_lost():
    with pytest.raises(ValueError, match="read-only"):
        session_of(2).stimulus_type[0] = "other"


def test_names_that_are_streamed_are_read_in_pieces_and_take_four_bytes_a_bin():
    n_bins, names = 3_000_000, np.asarray(["a" * 30, "b" * 30])
    streamed = Streamed((n_bins,), names.dtype, lambda a, b: names[np.arange(a, b) % 2])
    tracemalloc.start()
    coded = Coded.of(streamed)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 4.1 * n_bins and peak < 8.1 * n_bins + 60e6 < names.itemsize * n_bins
    assert coded.codes[:4].tolist() == [0, 1, 0, 1]
