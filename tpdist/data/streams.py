"""The layout of a corpus: streams, blocks, windows (the words of ARCHITECTURE.md).

A corpus of M+1 tokens gives M pairs (input, label), the label being the next token. The pairs are cut into S
contiguous streams whose lengths differ by at most one; each stream is cut into blocks of B pairs, of which the
last may be short. Every pair is in exactly one block.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tpdist.data.store import Tokens

PAD_INPUT = 0
PAD_LABEL = -1


@dataclass(frozen=True)
class StreamLayout:
    """`pairs` M pairs in `streams` S streams of blocks of `block` B pairs; every stream has one at least."""

    pairs: int
    streams: int
    block: int

    @property
    def blocks(self) -> int:
        """Blocks of the longest stream."""
        return -(-self.length(0) // self.block)

    def length(self, stream: int) -> int:
        """Pairs of a stream; the first M mod S streams have one more than the others."""
        return self.pairs // self.streams + (stream < self.pairs % self.streams)

    def offset(self, stream: int) -> int:
        """Index in the corpus of a stream's first input."""
        return stream * (self.pairs // self.streams) + min(stream, self.pairs % self.streams)

    def windows(self, blocks_per_window: int) -> list[tuple[int, int]]:
        """Block ranges [begin, end) of the windows; the last may be shorter. Batch mode is `windows(blocks)`."""
        total = self.blocks
        return [(begin, min(begin + blocks_per_window, total)) for begin in range(0, total, blocks_per_window)]


class Blocks(NamedTuple):
    """Some blocks of some streams.

    inputs: int64 [S, K, B], 0 where there is no pair; labels: int64 [S, K, B], -1 there. A block's pairs come first.
    """

    inputs: NDArray[np.int64]
    labels: NDArray[np.int64]


def read_blocks(tokens: Tokens, layout: StreamLayout, streams: range, begin: int, end: int) -> Blocks:
    """Blocks begin … end-1 of the given streams. Reads just their tokens, so a worker touches only its own part.

    Shapes are those of `Blocks`, with S = len(streams) and K = end - begin.
    """
    if len(tokens) != layout.pairs + 1:
        raise ValueError(f"a layout of {layout.pairs} pairs for {len(tokens)} tokens")
    if not 0 <= begin <= end <= layout.blocks:
        raise IndexError(f"blocks {begin} … {end} of {layout.blocks}")
    if any(not 0 <= stream < layout.streams for stream in streams):
        raise IndexError(f"{streams} of {layout.streams} streams")
    steps = (end - begin) * layout.block
    inputs = np.full((len(streams), steps), PAD_INPUT, dtype=np.int64)
    labels = np.full((len(streams), steps), PAD_LABEL, dtype=np.int64)
    for row, stream in enumerate(streams):
        pairs = min(max(layout.length(stream) - begin * layout.block, 0), steps)
        if pairs == 0:
            continue
        first = layout.offset(stream) + begin * layout.block
        ids = tokens.read(first, first + pairs + 1)
        inputs[row, :pairs] = ids[:-1]
        labels[row, :pairs] = ids[1:]
    shape = (len(streams), end - begin, layout.block)
    return Blocks(inputs.reshape(shape), labels.reshape(shape))
