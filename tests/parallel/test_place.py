"""Who owns what: contiguous runs, as equal as can be."""

from hypothesis import given
from hypothesis import strategies as st

from tpdist.parallel import Place, balanced

totals, parts = st.integers(0, 10_000), st.integers(1, 200)


@given(totals, parts)
def test_spans_are_contiguous_and_balanced(total: int, parts: int):
    spans = balanced(total, parts)
    assert len(spans) == parts
    assert [i for span in spans for i in span] == list(range(total))
    lengths = [len(span) for span in spans]
    assert max(lengths) - min(lengths) <= 1
    assert lengths == sorted(lengths, reverse=True)  # the longer ones first: no empty one between two others
    assert all(span.step == 1 for span in spans)


@given(st.integers(1, 50), st.integers(0, 500), st.integers(0, 500), st.integers(1, 8), st.integers(1, 8))
def test_every_block_of_every_stream_has_one_owner(streams: int, begin: int, blocks: int, rows: int, columns: int):
    owned: list[tuple[int, int]] = []
    for row in range(rows):
        for column in range(columns):
            place = Place(row, column, rows, columns)
            own = place.own_blocks(begin, begin + blocks)
            owned += [(stream, block) for stream in place.own_streams(streams) for block in own]
    assert sorted(owned) == [(s, b) for s in range(streams) for b in range(begin, begin + blocks)]


def test_one_worker_owns_all():
    assert Place().own_streams(7) == range(7)
    assert Place().own_blocks(3, 9) == range(3, 9)


def test_neighbours_in_time_own_neighbouring_blocks():
    owners = [Place(0, i, 1, 3).own_blocks(10, 18) for i in range(3)]
    assert owners == [range(10, 13), range(13, 16), range(16, 18)]
