"""A node that does not see the run or its store, or cannot write: a setting of the user's, unless others could."""

from pathlib import Path

import pytest
import torch
from small_runs import small

from tpdist.errors import RunError
from tpdist.launch.actor import SpanActor
from tpdist.launch.messages import Job, Process, Rendezvous
from tpdist.training.run_dir import RunDirectory

ELSEWHERE = "must lie where all of them see them"


@pytest.mark.parametrize(
    ("part", "said"),
    [("run", ELSEWHERE), ("store", ELSEWHERE), ("logs", "run/logs/worker-0.log: cannot be written: ")],
)
@pytest.mark.parametrize("generation", [1, 2])
def test_what_a_worker_says_that_does_not_see_them(
    generation: int, part: str, said: str, small_corpus: Path, tmp_path: Path
) -> None:
    run = RunDirectory.create(small(small_corpus), tmp_path / "run").path
    there = {"run": str(run), "store": str(small_corpus)}
    if part == "logs":
        (run / "logs").touch()  # a file where a directory is to be made
    else:
        there[part] = str(tmp_path / "elsewhere")
    job = Job(**there, overrides=(), directory=str(tmp_path), resume=False, threads=torch.get_num_threads())
    worker = SpanActor.__ray_metadata__.modified_class(lease_s=1e9)  # pyright: ignore[reportFunctionMemberAccess]
    here = Rendezvous("127.0.0.1", 1, generation, (Process("127.0.0.1", 1, None),))
    if generation == 1:
        with pytest.raises(RunError, match=said):
            worker.train(job, 0, here)
        return
    ended = worker.train(job, 0, here)
    assert ended.unfit
    assert said in ended.failed
