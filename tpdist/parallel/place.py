"""A worker's place on the mesh (`stream`, `time`), and what it owns there."""

from dataclasses import dataclass
from itertools import pairwise


def balanced(total: int, parts: int) -> list[range]:
    """`total` things in `parts` contiguous runs whose lengths differ by at most one; the longer ones first."""
    size, longer = divmod(total, parts)
    ends = [i * size + min(i, longer) for i in range(parts + 1)]
    return [range(begin, end) for begin, end in pairwise(ends)]


@dataclass(frozen=True)
class Place:
    """Coordinates on a mesh of `streams` x `times` workers."""

    stream: int = 0
    time: int = 0
    streams: int = 1
    times: int = 1

    def own_streams(self, streams: int) -> range:
        """Which of all streams this worker reads."""
        return balanced(streams, self.streams)[self.stream]

    def own_blocks(self, begin: int, end: int) -> range:
        """Which blocks of the window [begin, end) this worker owns."""
        own = balanced(end - begin, self.times)[self.time]
        return range(begin + own.start, begin + own.stop)
