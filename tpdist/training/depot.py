"""Where a run's checkpoints are kept: a directory that all workers see, or an object store.

While it is written, a checkpoint has a *stage*, known by its name and a token that the leader draws, so that what a
dead or a stopped worker left is never taken for this one's. In a directory the stage is `.<name>.<token>.tmp`, and one
rename makes it a checkpoint. An object store cannot rename: there the manifest, written last, makes it one, and the
token stands in the names of receipts alone. A late worker may still write over a file there; the manifest's SHA-256
then tells.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

MANIFEST = "manifest.json"
OWNER = "run"  # the file with the id of the run whose checkpoints these are
NAME = re.compile(r"step-(\d{8,})(-epoch)?")  # of a checkpoint: a copy beside it, such as step-00000009.bak, is none
RECEIPT = ".receipt"  # behind a file's name: a worker's word that it is whole
ASIDE = "damaged-"


def oldest_first(names: Iterable[str]) -> list[str]:
    """Those of `names` that are checkpoints', by their updates."""
    found = [match for name in names if (match := NAME.fullmatch(name))]
    return [match[0] for match in sorted(found, key=lambda match: (int(match[1]), match[0]))]


class Depot(Protocol):
    """Every method may raise OSError; that of an object store raises RunError."""

    where: str

    def claim(self, run: str) -> str:
        """The id of the run whose checkpoints these are: of the first that has claimed the place."""
        ...

    def release(self) -> None:
        """The place is nobody's again."""
        ...

    def names(self) -> list[str]:
        """The checkpoints, oldest first. Raises RunError where nobody can tell."""
        ...

    def fetch(self, name: str, scratch: Path) -> Path:
        """A checkpoint as a local directory; what has to be copied for it goes below `scratch`."""
        ...

    def begin(self, name: str, token: int) -> None:
        """Make the stage. The leader alone, before any other method is called for it."""
        ...

    def stage(self, name: str, token: int) -> Path:
        """The local directory that this worker writes the stage's files into."""
        ...

    def publish(self, name: str, token: int, file: str) -> None:
        """A file of `stage` is complete: make it last, and let the other workers see it."""
        ...

    def read(self, name: str, token: int, file: str) -> bytes | None:
        """A small file that another worker published; None while it is not there."""
        ...

    def finish(self, name: str, token: int, unwanted: list[str]) -> None:
        """The manifest is published: the stage without the files `unwanted` is the checkpoint. The leader alone."""
        ...

    def leave(self, token: int) -> None:
        """This worker is done with a stage, but for the leader, who finishes or discards it."""
        ...

    def discard(self, name: str, token: int) -> None:
        """Remove a stage that came to nothing. The leader alone."""
        ...

    def remove(self, name: str) -> None: ...

    def set_aside(self, name: str) -> None:
        """Rename a damaged checkpoint, so that it is none any more."""
        ...

    def clear_leftovers(self) -> None:
        """Remove what killed processes were writing. Only for who has the run to itself."""
        ...
