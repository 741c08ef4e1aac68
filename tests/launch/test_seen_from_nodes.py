"""A node that does not see the run's directory, or its store: a setting of the user's, unless others have seen both."""

from pathlib import Path

import pytest
import torch
from small_runs import small

from tpdist.errors import RunError
from tpdist.launch.actor import SpanActor
from tpdist.launch.messages import Job, Process, Rendezvous
from tpdist.training.run_dir import RunDirectory


@pytest.fixture(params=["run", "store"])
def job(request: pytest.FixtureRequest, small_corpus: Path, tmp_path: Path) -> Job:
    """What it names has one part that is not there."""
    run = RunDirectory.create(small(small_corpus), tmp_path / "run").path
    there = {"run": str(run), "store": str(small_corpus)}
    there[request.param] = str(tmp_path / "elsewhere")
    return Job(**there, overrides=(), directory=str(tmp_path), resume=False, threads=torch.get_num_threads())


@pytest.mark.parametrize("generation", [1, 2])
def test_what_a_worker_says_that_does_not_see_them(generation: int, job: Job) -> None:
    worker = SpanActor.__ray_metadata__.modified_class(lease_s=1e9)  # pyright: ignore[reportFunctionMemberAccess]
    here = Rendezvous("127.0.0.1", 1, generation, (Process("a", "127.0.0.1", 1, None),))
    if generation == 1:
        with pytest.raises(RunError, match="must lie where all of them see them"):
            worker.train(job, 0, here)
        return
    ended = worker.train(job, 0, here)
    assert ended.unfit
    assert "must lie where all of them see them" in ended.failed
