"""How a worker's blocks are cut into parts that are worked on at once, those at its edge first.

Given the boundaries, blocks do not know each other, so any cut and any order give the same sums. A block at the edge of
a span is a part of its own where other parts follow: what it has to tell the neighbour is then under way while they are
computed.

Shape letters: `window.py`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from torch import Tensor

from tpdist.tprop.window import Window


@dataclass(frozen=True)
class Part:
    """Blocks `blocks` of streams `streams`; n of them, laid side by side as [..., n, d]."""

    streams: slice
    blocks: slice

    @property
    def touched(self) -> tuple[slice, slice]:
        """Where the boundaries of its blocks lie, the one at its right end too."""
        return self.streams, slice(self.blocks.start, self.blocks.stop + 1)

    def of(self, values: Tensor) -> Tensor:
        """values [S, k, d] or [S, k] -> [n, d] or [n]; a view where it can be one."""
        return values[self.streams, self.blocks].flatten(0, 1)

    def right(self, values: Tensor) -> Tensor:
        """The right boundaries of the blocks: values [S, k+1, d] or [S, k+1] -> [n, d] or [n]."""
        after = slice(self.blocks.start + 1, self.blocks.stop + 1)
        return values[self.streams, after].flatten(0, 1)

    def tokens(self, ids: Tensor) -> Tensor:
        """ids [B, S, k] -> [B, n]."""
        return ids[:, self.streams, self.blocks].flatten(1)

    def shaped(self, values: Tensor) -> Tensor:
        """values [n, d] by stream and block: [streams, blocks, d]."""
        return values.view(-1, self.blocks.stop - self.blocks.start, values.shape[-1])

    def window(self, whole: Window) -> Window:
        """The same blocks of a window as a window of their own, with the boundaries that they touch."""
        cut = (slice(None), self.streams, self.blocks)
        return replace(
            whole,
            inputs=whole.inputs[cut],
            labels=whole.labels[cut],
            coupled=whole.coupled[self.touched],
            movable=whole.movable[self.touched],
            offset=whole.offset + self.blocks.start,
        )

    def put(self, into: Tensor, values: Tensor) -> None:
        """values [n, d] in their places of `into` [S, k, d]."""
        place = into[self.streams, self.blocks]
        place.copy_(values.view(place.shape))


def cut(streams: int, blocks: int, size: int, edge: Literal["first", "last"] | None) -> tuple[list[Part], list[Part]]:
    """Parts of at most `size` blocks: those that come first, and the others.

    What comes first is the block at the edge; where everything is one part, that; else nothing.
    """
    if edge is None or streams * blocks <= size:
        parts = list(_parts(streams, range(blocks), size))
        return (parts, []) if len(parts) == 1 else ([], parts)
    at = 0 if edge == "first" else blocks - 1
    others = range(1, blocks) if edge == "first" else range(blocks - 1)
    return list(_parts(streams, range(at, at + 1), size)), list(_parts(streams, others, size))


def from_right_to_left(streams: int, blocks: int, size: int, edges: tuple[bool, bool]) -> list[Part]:
    """Parts of at most `size` blocks. edges: whether the first block and the last are parts of their own."""
    inside = sorted({edge for edge, own in zip((1, blocks - 1), edges, strict=True) if own})
    ranges = pairwise([0, *inside, blocks])
    return [part for begin, end in ranges for part in _parts(streams, range(begin, end), size)][::-1]


def _parts(streams: int, blocks: range, size: int) -> Iterator[Part]:
    """Rectangles, of all streams if they fit."""
    rows = min(streams, size)
    columns = max(1, size // streams)
    for block in range(blocks.start, blocks.stop, columns):
        for stream in range(0, streams, rows):
            yield Part(slice(stream, min(stream + rows, streams)), slice(block, min(block + columns, blocks.stop)))


def chunks(total: int, size: int) -> Iterator[slice]:
    """0 … total - 1 in order, cut into slices of `size`; the last may be shorter."""
    return (slice(begin, min(begin + size, total)) for begin in range(0, total, size))
