"""An epoch's windows: every label once, in order, whatever S, K and B."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_runs import small

from tpdist import ConfigError
from tpdist.data import ArrayTokens
from tpdist.models import IGNORED
from tpdist.parallel import Place
from tpdist.tprop import Window
from tpdist.training.batches import Ahead, Batches, crew_sizes


def make(tokens: int, block: int, place: Place | None = None, method=None, seed: int = 0, **batching) -> Batches:
    run = {"seed": seed}
    config = small("nowhere", objective={"block": block}, batching=batching, method=method or {}, run=run)
    ids = ArrayTokens(np.arange(tokens, dtype=np.int32))
    return Batches(config, ids, place or Place(), torch.device("cpu"), torch.float32)


@st.composite
def layouts(draw: st.DrawFn) -> tuple[int, int, int, int]:
    """Streams, blocks a window, block, tokens."""
    streams, block = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    tokens = draw(st.integers(streams * block + 1, 200))
    longest = math.ceil(math.ceil((tokens - 1) / streams) / block)
    return streams, draw(st.integers(1, longest)), block, tokens


@given(layouts(), st.booleans(), st.data())
def test_workers_along_time_see_the_boundaries_that_one_sees(
    layout: tuple[int, int, int, int], closing: bool, data: st.DataObject
):
    """Which are constraints and which may move, also where streams end in the middle of a window."""
    streams, blocks, block, tokens = layout
    workers = data.draw(st.integers(1, blocks))

    def windows(place: Place) -> list[Window | None]:
        batches = make(tokens, block, place, {"closing": closing}, streams=streams, blocks=blocks)
        return [batch.window for batch in batches.epoch(1)]

    parts = [windows(Place(0, time, 1, workers)) for time in range(workers)]
    for whole, *shares in zip(windows(Place()), *parts, strict=True):
        own = [share for share in shares if share is not None]
        assert whole is not None
        for name in ("coupled", "movable"):
            joined = [*(getattr(share, name)[:, :-1] for share in own), getattr(own[-1], name)[:, -1:]]
            assert torch.equal(torch.cat(joined, 1), getattr(whole, name))
        for left, right in pairwise(own):
            assert torch.equal(left.coupled[:, -1], right.coupled[:, 0])
            assert left.offset + left.blocks == right.offset


@given(layouts(), st.booleans(), st.data())
def test_every_label_is_met_once(layout: tuple[int, int, int, int], shuffled: bool, data: st.DataObject):
    """By one worker, or by one of the workers of any mesh."""
    streams, blocks, block, tokens = layout
    longest = math.ceil(math.ceil((tokens - 1) / streams) / block)
    most = longest if shuffled else blocks  # of workers along time
    mesh = data.draw(st.integers(1, streams)), data.draw(st.integers(1, most))
    order = "shuffled" if shuffled else "sequential"
    labels: list[int] = []
    counts: list[list[int]] = []
    for place in (Place(s, t, *mesh) for s in range(mesh[0]) for t in range(mesh[1])):
        batches = make(tokens, block, place, streams=streams, blocks=blocks, order=order)
        updates = list(batches.epoch(1))
        assert len(updates) == len(batches)
        counts.append([batch.tokens for batch in updates])
        own = []
        for batch in updates:
            window = batch.window
            if window is None:
                assert batch.own == 0
                continue
            real = window.labels != IGNORED
            assert batch.own == real.sum()
            assert torch.equal(window.labels[real], window.inputs[real] + 1)
            labels += window.labels[real].tolist()
            own += batches.slots[batch.begin : batch.begin + window.blocks]
        assert sorted(own) == sorted(batches.slots[:-1])
    assert sorted(labels) == list(range(1, tokens))
    assert all(count == counts[0] for count in counts)
    assert sum(counts[0]) == tokens - 1


def test_a_sequential_epoch_reads_each_stream_in_order():
    windows = [batch.window for batch in make(41, 4, streams=2, blocks=2).epoch(1)]
    first = torch.cat([window.inputs[:, 0].T.reshape(-1) for window in windows])
    assert first.tolist() == list(range(20))
    assert [window.blocks for window in windows] == [2, 2, 1]


def test_skipped_windows_are_those_at_the_front():
    batches = make(201, 4, streams=2, blocks=3, order="shuffled")
    whole = [batch.begin for batch in batches.epoch(3)]
    assert [batch.begin for batch in batches.epoch(3, skip=4)] == whole[4:]


def test_every_seed_and_every_epoch_has_an_order_of_its_own():
    orders = [make(201, 4, seed=s, streams=2, blocks=3, order="shuffled").order(e) for s in (0, 1) for e in (1, 2)]
    assert all(sorted(order) == list(range(9)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4


@pytest.mark.parametrize("ignored", [1, 16])
def test_batch_mode_is_one_window(ignored: int):
    batches = make(100, 4, streams=3, mode="batch", blocks=ignored)
    (batch,) = batches.epoch(1)
    assert batch.window.blocks == batches.layout.blocks == 9


def test_earlier_blocks_come_with_a_window_that_relaxes_across_its_edge():
    method = {"first": "persistent", "relaxation": 2}
    batches = make(41, 4, method=method, streams=2, blocks=2, order="shuffled")
    reach = {batch.begin: batch.window.earlier.shape[2] for batch in batches.epoch(1)}
    assert reach == {0: 0, 2: 2, 4: 2}
    third = batches.batch(2)
    assert third.window.earlier[:, 0].T.reshape(-1).tolist() == list(range(8, 16))


def test_a_worker_of_its_own_span_reaches_no_further_back():
    """The blocks before it are another worker's. Spans of three blocks."""
    method = {"first": "persistent", "relaxation": 2}
    batches = make(49, 4, Place(0, 1, 1, 2), method, streams=2, blocks=1, order="shuffled")
    assert {batch.begin: batch.window.earlier.shape[2] for batch in batches.epoch(1)} == {0: 0, 1: 1, 2: 2}


@pytest.mark.parametrize(
    ("closing", "place", "coupled", "movable"),
    [
        (False, Place(), [["010", "010"], ["010", "010"], ["00", "00"]], None),
        (True, Place(), [["011", "011"], ["011", "011"], ["01", "00"]], None),  # the other stream's last block is short
        (False, Place(0, 0, 1, 2), [["01", "01"], ["01", "01"], ["00", "00"]], [["00", "00"]] * 3),
        (False, Place(0, 1, 1, 2), [["10", "10"], ["10", "10"]], None),
    ],
)
def test_the_constraints_of_windows(closing: bool, place: Place, coupled: list[list[str]], movable: list | None):
    """Streams of 20 and 19 pairs in blocks of four and windows of two, of which the last has one block.

    Boundaries inside a window are constraints, and move where they are a worker's own; a closing target is one too.
    """
    batches = make(40, 4, place, {"closing": closing, "starts": "tied"}, streams=2, blocks=2)
    windows = [batch.window for batch in batches.epoch(1) if batch.window is not None]
    shown = lambda of: [["".join(str(int(x)) for x in stream) for stream in of(w)] for w in windows]  # noqa: E731
    assert shown(lambda w: w.coupled) == coupled
    assert shown(lambda w: w.movable) == (coupled if movable is None else movable)
    assert [window.opens for window in windows] == [True, False, False][: len(windows)]
    assert {window.offset for window in windows} == {place.time}


@pytest.mark.parametrize(("time", "movable"), [(0, [True, False]), (1, [True, False])])
def test_a_free_edge_is_the_first_workers(time: int, movable: list[bool]):
    batches = make(40, 4, Place(0, time, 1, 2), {"edge_free": True, "starts": "tied"}, streams=1, blocks=2)
    window = batches.batch(1).window
    assert (window.movable[0].tolist(), bool(window.coupled[0, 0])) == (movable, time > 0)


def test_a_worker_without_a_block_of_the_last_window():
    """Windows of five, five and two blocks on three workers: the third takes no part in the last."""
    batches = make(49, 4, Place(0, 2, 1, 3), {"closing": True, "starts": "tied"}, streams=1, blocks=5)
    assert [(batch.window is None, batch.active) for batch in batches.epoch(1)] == [(False, 3), (False, 3), (True, 2)]
    assert batches.slots == [4, -5, 9, -10]


@pytest.mark.parametrize(
    ("tokens", "batching", "said"),
    [
        (12, {"streams": 3}, "batching.streams: 3 streams of at least one block of 4 steps need 13 training tokens, "
                             "the corpus has 12; use at most 2"),
        (3, {"streams": 3}, "objective.block: a block of 4 steps needs 5 training tokens, the corpus has 3; use at "
                            "most 2"),
        (1, {"streams": 1}, "objective.block: a block of 4 steps needs 5 training tokens, the corpus has 1; prepare a "
                            "longer one"),
        (41, {"streams": 2, "blocks": 6}, "batching.blocks: a window of 6 blocks is longer than a stream, which has 5 "
                                          "blocks of 4 steps; use at most 5, fewer streams, or batching.mode: batch"),
    ],
)  # fmt: skip
def test_a_corpus_that_is_too_short(tokens: int, batching: dict, said: str):
    with pytest.raises(ConfigError) as caught:
        make(tokens, 4, **batching)
    assert str(caught.value) == said


def test_the_next_batch_is_made_ahead():
    made: list[int] = []
    batches = make(tokens=49, block=2, streams=2, blocks=3)  # 4 updates
    one_by_one = (made.append(batch.begin) or batch for batch in batches.epoch(1))
    coming, seen = Ahead(one_by_one), []
    for batch in coming:
        seen.append(batch.begin)
        coming.prepare()
        coming.prepare()  # one ahead, no more
        assert len(made) == min(len(seen) + 1, 4)
    assert seen == made == [batch.begin for batch in batches.epoch(1)]
    assert len(seen) == 4


def sizes(tokens: int, **batching) -> tuple[int, ...]:
    cluster = {"workers": {"min": 1, "max": 8}}
    return crew_sizes(small("nowhere", batching=batching, cluster=cluster), tokens)


def test_a_run_grows_to_as_many_workers_as_the_corpus_has_blocks_for():
    # two streams of three blocks of four steps: one or two workers along stream, one to three along time
    assert sizes(25, streams=2, blocks=16) == (1, 2, 3, 4, 6)
    assert sizes(25, streams=2, blocks=2) == (1, 2, 4)  # the window's own limit, as before
    assert sizes(25, streams=1, mode="batch") == (1, 2, 3, 4, 5, 6)


def test_workers_that_no_corpus_can_fill():
    with pytest.raises(
        ConfigError, match=r"^cluster.workers: 3 workers along time share streams of 2 blocks; use at most that many$"
    ):
        crew_sizes(small("nowhere", batching={"streams": 1, "blocks": 16}, cluster={"workers": 3, "mesh": [1, 3]}), 9)


def test_als_wants_a_block_of_every_window_for_every_worker_along_time():
    linear = {"model": {"cell": "elman", "activation": "identity"}, "objective": {"block": 1, "loss_on": "target"}}

    def fit(blocks: int, workers: int, **batching: str | int) -> tuple[int, ...]:
        cluster = {"workers": workers, "mesh": [1, workers]}
        batching = {"streams": 1, "blocks": 4, **batching}
        return crew_sizes(
            small("nowhere", method={"name": "als"}, batching=batching, cluster=cluster, **linear), blocks + 1
        )

    assert fit(12, 4) == (4,)
    assert fit(11, 3) == (3,)
    assert fit(11, 11, mode="batch") == (11,)
    with pytest.raises(ConfigError) as caught:
        fit(11, 4)
    assert str(caught.value) == (
        "cluster.workers: als needs a block of every window for each of 4 workers along time, and the shortest window "
        "has 3; use at most 3"
    )
