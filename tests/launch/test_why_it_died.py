"""What is said of a worker that is lost, in a few words."""

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, OutOfMemoryError, RayError

from tpdist.launch.hosted import why_it_died

ERRORS = [
    (ActorUnavailableError("The actor is temporarily unavailable", None), "cannot be reached"),
    (OutOfMemoryError("1 worker(s) were killed due to the node running low on memory."), "running out of memory"),
    (RayError("The actor died because its node has died."), "was lost with its node"),
    (ActorDiedError(), "died"),
]


@pytest.mark.parametrize(("error", "said"), ERRORS, ids=lambda value: type(value).__name__)
def test_why(error: RayError, said: str) -> None:
    assert why_it_died(error).endswith(said)
