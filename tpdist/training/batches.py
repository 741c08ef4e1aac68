"""One worker's minibatches: the windows of an epoch, in order, as tensors on the device."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from tpdist.config import Experiment
from tpdist.data import StreamLayout, Tokens, read_blocks
from tpdist.errors import ConfigError
from tpdist.parallel import Place, balanced
from tpdist.tprop import Window, make_window, plan_epoch


@dataclass(frozen=True)
class Batch:
    """This worker's part of one update.

    window: None where no block of the window is this worker's. begin: the window's first place in `Boundaries`.
    tokens: labels of the update over all workers; own: this worker's. active: workers along time that have blocks,
    from the first.
    """

    window: Window | None
    begin: int
    tokens: int
    own: int
    active: int


class Ahead:
    """Batches one after another; `prepare` makes the next one, while the device is at work on the one before."""

    def __init__(self, batches: Iterator[Batch]):
        self._batches, self._made = batches, list[Batch]()

    def prepare(self) -> None:
        if not self._made:
            self._made += islice(self._batches, 1)

    def __iter__(self) -> Iterator[Batch]:
        self.prepare()
        while self._made:
            yield self._made.pop()
            self.prepare()


class Batches:
    """The training split, laid out in streams, blocks and windows.

    Workers along time share every window; with windows in random order each draws windows of its own span.
    Raises ConfigError with the key where the corpus is too short for them.
    """

    def __init__(self, config: Experiment, tokens: Tokens, place: Place, device: torch.device, dtype: torch.dtype):
        batching = config.batching
        self.layout = layout_of(config, len(tokens), place.times)
        self.per_window = self.layout.blocks if batching.mode == "batch" else batching.blocks
        self._tokens, self._place = tokens, place
        self._device, self._dtype = device, dtype
        self._seed = config.run.seed
        self._plan = plan_epoch(config, 1, self.per_window)  # what is read of it is the same in every epoch
        self.streams = place.own_streams(batching.streams)
        self.own_windows = self._plan.shuffled and place.times > 1
        self._windows = self._cut()
        self._begins, self.slots = self._places()

    def _cut(self) -> list[list[range]]:
        """Windows [update][worker along time]: the blocks of the window that each draws, all the same if shared."""
        blocks, K, times = self.layout.blocks, self.per_window, self._place.times
        if not self.own_windows:
            return [[range(begin, end)] * times for begin, end in self.layout.windows(K)]
        spans = balanced(blocks, times)
        updates = -(-len(spans[0]) // K)
        return [
            [range(min(s.start + i * K, s.stop), min(s.start + (i + 1) * K, s.stop)) for s in spans]
            for i in range(updates)
        ]

    def _places(self) -> tuple[list[int], list[int]]:
        """Where each update's blocks begin in `Boundaries`, and which boundary of the corpus each place there is.

        A closing target has a place of its own behind its window's, written -(the block after the window). Without
        one there is one place more than blocks, for what waits at the last window's end.
        """
        begins, slots = [], []
        for index in range(len(self)):
            own = self._own(index)
            begins.append(len(slots))
            # an idle worker's would be taken for that of the worker which has the window's last block
            slots += [*own, -own.stop] if self._plan.closing and own else own
        return begins, slots if self._plan.closing else [*slots, slots[-1] + 1]

    def __len__(self) -> int:
        """Updates in an epoch."""
        return len(self._windows)

    def order(self, epoch: int) -> list[int]:
        """Windows in the order of their visits. Random orders follow from the seed and the epoch alone."""
        if not self._plan.shuffled:
            return list(range(len(self)))
        return np.random.default_rng([self._seed, epoch]).permutation(len(self)).tolist()

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """The updates of one epoch without the first `skip`."""
        for index in self.order(epoch)[skip:]:
            yield self.batch(index)

    def batch(self, index: int) -> Batch:
        """This worker's part of one update; touches only its own tokens of the store."""
        drawn = self._windows[index]
        whole, own = drawn[self._place.time], self._own(index)
        distinct = drawn if self.own_windows else drawn[:1]
        tokens = sum(self._count(window, range(self.layout.streams)) for window in distinct)
        active = min(len(whole), self._place.times)
        window = self._window(whole, own, tokens) if own else None
        return Batch(window, self._begins[index], tokens, self._count(own, self.streams), active)

    def begin_index(self) -> dict[int, int]:
        """The update that begins at a place in `Boundaries`."""
        return {begin: index for index, begin in enumerate(self._begins)}

    def _own(self, index: int) -> range:
        whole = self._windows[index][self._place.time]
        return whole if self.own_windows else self._place.own_blocks(whole.start, whole.stop)

    def _window(self, whole: range, own: range, tokens: int) -> Window:
        span_begin = balanced(self.layout.blocks, self._place.times)[self._place.time].start if self.own_windows else 0
        reach = min(self._plan.reach, own.start - span_begin)
        inputs, labels = self._read(own.start - reach, own.stop)
        follows = None
        if own.stop < whole.stop:
            lengths = torch.tensor([self.layout.length(s) for s in self.streams])
            follows = (lengths > own.stop * self.layout.block).to(self._device)
        return make_window(
            inputs[:, :, reach:],
            labels[:, :, reach:],
            self._dtype,
            tokens=tokens,
            opens=whole.start == 0,
            edge_free=self._plan.edge_free,
            closing=self._plan.closing,
            earlier=inputs[:, :, :reach],
            continues=(own.start > whole.start, own.stop < whole.stop),
            follows=follows,
            offset=own.start - whole.start,
        )

    def _read(self, begin: int, end: int) -> tuple[Tensor, Tensor]:
        """[B, S, blocks] each; on a GPU they are under way, from memory that does not hold the host up."""
        blocks = read_blocks(self._tokens, self.layout, self.streams, begin, end)
        inputs, labels = (torch.from_numpy(x).permute(2, 0, 1).contiguous() for x in (blocks.inputs, blocks.labels))
        if self._device.type == "cuda":
            inputs, labels = inputs.pin_memory(), labels.pin_memory()
        return inputs.to(self._device, non_blocking=True), labels.to(self._device, non_blocking=True)

    def _count(self, blocks: range, streams: range) -> int:
        """Labels of a run of blocks."""
        B, lengths = self.layout.block, np.array([self.layout.length(s) for s in streams])
        return int(np.clip(lengths - blocks.start * B, 0, len(blocks) * B).sum())


def layout_of(config: Experiment, tokens: int, times: int) -> StreamLayout:
    """Of a training split of so many tokens, for `times` workers along time.

    Raises ConfigError with the key where it is too short for the streams, the windows or the workers.
    """
    layout = _layout(config, tokens)
    blocks, K = layout.blocks, config.batching.blocks
    if config.batching.mode == "minibatch" and blocks < K:
        raise ConfigError(
            f"a window of {K} blocks is longer than a stream, which has {blocks} blocks of {layout.block} steps; use "
            f"at most {blocks}, fewer streams, or batching.mode: batch",
            "batching.blocks",
        )
    if misfit := _time_misfit(config, blocks, times):
        raise ConfigError(misfit, "cluster.workers")
    return layout


def crew_sizes(config: Experiment, tokens: int) -> tuple[int, ...]:
    """How many workers may share a training split of so many tokens, in rising order: their mesh fits the batching too.

    Raises ConfigError with the key where no number does.
    """
    blocks = _layout(config, tokens).blocks
    misfits = {size: _time_misfit(config, blocks, config.mesh(size)[1]) for size in config.sizes()}
    fit = tuple(size for size, misfit in misfits.items() if misfit is None)
    if not fit:
        raise ConfigError(str(next(iter(misfits.values()))), "cluster.workers")
    return fit


def _time_misfit(config: Experiment, blocks: int, times: int) -> str | None:
    """Why so many workers along time cannot share streams of so many blocks."""
    if times > blocks:
        return f"{times} workers along time share streams of {blocks} blocks; use at most that many"
    K = blocks if config.batching.mode == "batch" else config.batching.blocks
    shortest = blocks % K or K
    if config.method.name == "als" and times > shortest:
        return (
            f"als needs a block of every window for each of {times} workers along time, and the shortest window "
            f"has {shortest}; use at most {shortest}"
        )
    return None


def _layout(config: Experiment, tokens: int) -> StreamLayout:
    S, block = config.batching.streams, config.objective.block
    if tokens - 1 < block:
        raise ConfigError(
            f"a block of {block} steps needs {block + 1} training tokens, the corpus has {tokens}; "
            + (f"use at most {tokens - 1}" if tokens > 1 else "prepare a longer one"),
            "objective.block",
        )
    if tokens - 1 < S * block:
        raise ConfigError(
            f"{S} streams of at least one block of {block} steps need {S * block + 1} training tokens, the corpus "
            f"has {tokens}; use at most {(tokens - 1) // block}",
            "batching.streams",
        )
    return StreamLayout(tokens - 1, S, block)
