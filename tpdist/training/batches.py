"""One worker's minibatches: the windows of an epoch, in order, as tensors on the device."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tpdist.config import Experiment
from tpdist.data import StreamLayout, Tokens, read_blocks
from tpdist.errors import ConfigError
from tpdist.parallel import Place
from tpdist.tprop import Window, make_window


@dataclass(frozen=True)
class Batch:
    """A window and where it lies: `begin` is its first block among the worker's own."""

    window: Window
    begin: int
    closes: bool  # the last window of its streams


class Batches:
    """The training split, laid out in streams, blocks and windows.

    Raises ConfigError with the key where the corpus is too short for them.
    """

    def __init__(self, config: Experiment, tokens: Tokens, place: Place, device: torch.device, dtype: torch.dtype):
        batching, block = config.batching, config.objective.block
        pairs = len(tokens) - 1
        S = batching.streams
        if pairs < S * block:
            raise ConfigError(
                f"{S} streams of at least one block of {block} steps need {S * block + 1} training tokens, the corpus "
                f"has {len(tokens)}; use at most {max(1, pairs // block)}",
                "batching.streams",
            )
        self.layout = StreamLayout(pairs, S, block)
        self.per_window = self.layout.blocks if batching.mode == "batch" else batching.blocks
        if self.per_window > self.layout.blocks:
            raise ConfigError(
                f"a window of {self.per_window} blocks is longer than a stream, which has {self.layout.blocks} blocks "
                f"of {block} steps; use at most {self.layout.blocks}, fewer streams, or batching.mode: batch",
                "batching.blocks",
            )
        self.ranges = self.layout.windows(self.per_window)
        self._tokens = tokens
        self._place = place
        self._device, self._dtype = device, dtype
        self._seed = config.run.seed
        self._shuffled = batching.order == "shuffled"
        method = config.method
        self._edge_free, self._closing = method.edge_free, method.closing
        self._reach = method.relaxation if self._shuffled and method.edge == "carry" else 0
        self.streams = place.own_streams(S)
        shares = [place.own_blocks(begin, end) for begin, end in self.ranges]
        self._begins = [0, *np.cumsum([len(share) for share in shares]).tolist()]

    @property
    def blocks(self) -> int:
        """Blocks of every stream that this worker owns."""
        return self._begins[-1]

    def __len__(self) -> int:
        return len(self.ranges)

    def order(self, epoch: int) -> list[int]:
        """Windows in the order of their visits. Random orders follow from the seed and the epoch alone."""
        if not self._shuffled:
            return list(range(len(self)))
        return np.random.default_rng([self._seed, epoch]).permutation(len(self)).tolist()

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """The windows of one epoch without the first `skip`."""
        for index in self.order(epoch)[skip:]:
            yield self.window(index)

    def window(self, index: int) -> Batch:
        """This worker's part of one window; touches only its own tokens of the store."""
        begin, end = self.ranges[index]
        own = self._place.own_blocks(begin, end)
        reach = min(self._reach, own.start)
        inputs, labels = self._read(own.start - reach, own.stop)
        window = make_window(
            inputs[:, :, reach:],
            labels[:, :, reach:],
            self._dtype,
            tokens=self._count(begin, end),
            opens=begin == 0,
            edge_free=self._edge_free,
            closing=self._closing,
            earlier=inputs[:, :, :reach],
            continues=(own.start > begin, own.stop < end),
        )
        return Batch(window, self._begins[index], end == self.layout.blocks)

    def _read(self, begin: int, end: int) -> tuple[Tensor, Tensor]:
        """[B, S, blocks] each."""
        blocks = read_blocks(self._tokens, self.layout, self.streams, begin, end)
        inputs, labels = (torch.from_numpy(x).permute(2, 0, 1).contiguous() for x in (blocks.inputs, blocks.labels))
        return inputs.to(self._device, non_blocking=True), labels.to(self._device, non_blocking=True)

    def _count(self, begin: int, end: int) -> int:
        """Labels of a window over all streams, all workers."""
        B = self.layout.block
        lengths = np.array([self.layout.length(s) for s in range(self.layout.streams)])
        return int(np.clip(lengths - begin * B, 0, (end - begin) * B).sum())
