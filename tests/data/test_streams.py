"""The data layout: every pair in exactly one block, in order, whatever the sizes."""

from itertools import chain, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpdist.data import ArrayTokens, StreamLayout, read_blocks

SIZES = {
    "pairs": st.integers(1, 400),
    "streams": st.integers(1, 12),
    "block": st.integers(1, 30),
    "blocks_per_window": st.integers(1, 9),
}


@given(**SIZES)
def test_every_pair_is_in_exactly_one_block_in_order(pairs: int, streams: int, block: int, blocks_per_window: int):
    streams = min(streams, pairs)
    layout = StreamLayout(pairs, streams, block)
    tokens = np.arange(1000, 1000 + pairs + 1)  # all different: an id says where a pair comes from
    read: dict[int, list[tuple[int, int]]] = {stream: [] for stream in range(streams)}
    for begin, end in layout.windows(blocks_per_window):
        blocks = read_blocks(ArrayTokens(tokens), layout, range(streams), begin, end)
        assert blocks.inputs.shape == blocks.labels.shape == (streams, end - begin, block)
        for stream in range(streams):
            for k in range(end - begin):
                count = int((blocks.labels[stream, k] >= 0).sum())
                assert (blocks.labels[stream, k, count:] == -1).all()
                assert (blocks.inputs[stream, k, count:] == 0).all()
                read[stream] += zip(
                    blocks.inputs[stream, k, :count].tolist(), blocks.labels[stream, k, :count].tolist(), strict=True
                )
    for stream in range(streams):
        assert len(read[stream]) == layout.length(stream)
        assert read[stream][0][0] == tokens[layout.offset(stream)]
    assert list(chain.from_iterable(read.values())) == [(int(x), int(x) + 1) for x in tokens[:-1]]


@given(pairs=SIZES["pairs"], streams=SIZES["streams"], block=SIZES["block"])
def test_streams_differ_by_one_pair_at_most(pairs: int, streams: int, block: int):
    layout = StreamLayout(pairs, min(streams, pairs), block)
    lengths = [layout.length(stream) for stream in range(layout.streams)]
    assert sum(lengths) == pairs
    assert lengths == sorted(lengths, reverse=True)
    assert max(lengths) - min(lengths) <= 1
    assert [layout.offset(stream) for stream in range(layout.streams)] == np.cumsum([0, *lengths[:-1]]).tolist()


@given(**SIZES, cuts=st.lists(st.integers(0, 400), max_size=4), stream_cuts=st.lists(st.integers(0, 12), max_size=3))
def test_workers_read_together_what_one_reads(pairs, streams, block, blocks_per_window, cuts, stream_cuts):
    layout = StreamLayout(pairs, min(streams, pairs), block)
    tokens = ArrayTokens(np.arange(pairs + 1))
    whole = read_blocks(tokens, layout, range(layout.streams), 0, layout.blocks)
    times = sorted({0, layout.blocks, *(c for c in cuts if c < layout.blocks)})
    rows = sorted({0, layout.streams, *(c for c in stream_cuts if c < layout.streams)})
    for kind in range(2):
        joined = np.concatenate(
            [
                np.concatenate(
                    [read_blocks(tokens, layout, range(s, t), b, e)[kind] for b, e in pairwise(times)],
                    axis=1,
                )
                for s, t in pairwise(rows)
            ]
        )
        assert (joined == whole[kind]).all()


def test_a_worker_touches_only_its_own_tokens():
    class Recorder(ArrayTokens):
        def __init__(self, ids):
            super().__init__(ids)
            self.ranges = []

        def read(self, begin, end):
            self.ranges.append((begin, end))
            return super().read(begin, end)

    tokens = Recorder(np.arange(1001))
    layout = StreamLayout(1000, 4, 10)
    read_blocks(tokens, layout, range(1, 3), 5, 8)
    assert tokens.ranges == [(300, 331), (550, 581)]


def test_windows_and_batch_mode():
    layout = StreamLayout(95, 1, 10)
    assert layout.blocks == 10
    assert layout.windows(4) == [(0, 4), (4, 8), (8, 10)]
    assert layout.windows(layout.blocks) == [(0, 10)]
    assert layout.windows(1000) == [(0, 10)]


def test_what_is_not_of_the_layout_is_not_read():
    layout, tokens = StreamLayout(95, 2, 10), ArrayTokens(np.arange(96))
    with pytest.raises(ValueError, match="a layout of 95 pairs for 97 tokens"):
        read_blocks(ArrayTokens(np.arange(97)), layout, range(2), 0, 5)
    for streams, begin, end in ((range(2), 0, 6), (range(1, 2), -1, 5), (range(3), 0, 5)):
        with pytest.raises(IndexError):
            read_blocks(tokens, layout, streams, begin, end)
    with pytest.raises(IndexError, match="of 2 streams"):  # the tokens would not refuse it: it would be padding alone
        read_blocks(ArrayTokens(np.arange(82)), StreamLayout(81, 2, 10), range(2, 3), 4, 5)
