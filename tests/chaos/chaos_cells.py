"""Loaded in every worker as the module of its cell: the one that the plan names kills or stops itself, once.

The plan, `$TPDIST_CHAOS/plan.json`, says phase, rank, step (or the number of a file operation) and signal. Whoever
fires has to take the token `$TPDIST_CHAOS/token` away first, so nobody fires twice. Without a plan it only counts: file
operations below a run's `checkpoints/` are written to `$TPDIST_CHAOS/operations-<rank>`, a line each.
"""

import errno
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

import tpdist.parallel.mesh
import tpdist.parallel.reduce
import tpdist.training.epoch_end
import tpdist.training.trainer
from tpdist.models import cells

visits = import_module("tpdist.tprop.visit")  # the room exports a function of this name
HOME = Path(os.environ["TPDIST_CHAOS"])
PLAN: dict[str, Any] = json.loads((HOME / "plan.json").read_text())
# audit events of what changes a directory or a file, with the place of `dir_fd` among their arguments
CHANGES = {"open": None, "os.mkdir": 2, "os.rename": None, "os.remove": 1, "os.rmdir": 1, "os.chmod": None,
           "os.truncate": None, "shutil.rmtree": None}  # fmt: skip


class Now:
    """Where this worker is."""

    step = 0
    inside: set[str] = set()  # noqa: RUF012
    operations = 0


def fire(phase: str) -> None:
    """The end of this worker, if the plan is about it, here and now."""
    if PLAN["phase"] != phase or dist.get_rank() != PLAN["rank"] or PLAN["step"] != Now.step:
        return
    try:
        (HOME / "token").unlink()
    except FileNotFoundError:
        return
    if PLAN["raises"] == "own":
        raise KeyError("own")
    if PLAN["raises"] == "disk":
        raise OSError(errno.EIO, os.strerror(errno.EIO), "disk")
    os.kill(os.getpid(), PLAN["signal"])


@contextmanager
def inside(what: str):
    Now.inside.add(what)
    try:
        yield
    finally:
        Now.inside.discard(what)


def wrap(module: Any, name: str, before: str | None = None, marks: str | None = None) -> None:
    """Fire phase `before` as `module.name` is called; `marks` what its inside is."""
    function: Callable[..., Any] = getattr(module, name)

    def wrapped(*arguments: Any, **named: Any) -> Any:
        if before is not None:
            fire(before)
        if marks is None:
            return function(*arguments, **named)
        with inside(marks):
            return function(*arguments, **named)

    setattr(module, name, wrapped)


def swap(operations: list[dist.P2POp]) -> list[dist.Work]:
    """Messages of an H-step: ended before one is sent, or with one received and not yet read."""
    h_step = "H-step" in Now.inside
    if h_step and any(one.op is dist.isend for one in operations):
        fire("H-step send")
    works = batch_isend_irecv(operations)
    if h_step and any(one.op is dist.irecv for one in operations):
        for work in works:
            work.wait()
        fire("H-step receive")
        return []
    return works


def all_reduce(*arguments: Any, **named: Any) -> Any:
    """The gradient's sum: ended once this worker's part is on its way."""
    work = plain_all_reduce(*arguments, **named)
    if "all-reduce" in Now.inside:
        fire("all-reduce")
    return work


def visit(trainer: Any, batch: Any) -> Any:
    Now.step = trainer.state.step + 1
    time.sleep(PLAN["pace"])
    return plain_visit(trainer, batch)


def blocks_pass(*arguments: Any, **named: Any) -> Any:
    with inside("backward") if named.get("to_theta") else inside("another pass"):
        return plain_blocks_pass(*arguments, **named)


class Mark(torch.autograd.Function):
    """Nothing, but it is passed in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        if "backward" in Now.inside:
            fire("backward")
        return gradient


class Gru(cells.GRU):
    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        outputs, last = super().forward(x, state)
        return Mark.apply(outputs), last  # the starts need no gradient in a θ-step, what comes out of θ does


def operation(what: str) -> None:
    """One file operation below `checkpoints/` is about to happen."""
    if not dist.is_initialized():
        return
    rank, Now.operations = dist.get_rank(), Now.operations + 1
    if PLAN["phase"] is None:
        with (HOME / f"operations-{rank}").open("a") as log:
            log.write(what + "\n")
    if PLAN["phase"] == "checkpoint":
        step, Now.step = Now.step, Now.operations
        fire("checkpoint")
        Now.step = step


def audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event not in CHANGES:
        return
    if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
        return
    path = os.fsdecode(arguments[0]) if isinstance(arguments[0], str | bytes | os.PathLike) else ""
    at = CHANGES[event]
    if at is not None and arguments[at] is not None and arguments[at] >= 0:
        path = f"{os.readlink(f'/proc/self/fd/{arguments[at]}')}/{path}"
    if "/checkpoints/" in path:
        operation(f"{event} {path}")


def fsync(descriptor: int) -> None:
    path = os.readlink(f"/proc/self/fd/{descriptor}")
    if "/checkpoints" in path:
        operation(f"os.fsync {path}")
    plain_fsync(descriptor)


def serialize_file(tensors: Any, filename: Any, **named: Any) -> None:
    """Ended before a file of tensors is written, and when half of it is."""
    ours = "/checkpoints/" in os.fspath(filename)
    if ours:
        operation(f"save {filename}")
    plain_serialize_file(tensors, filename, **named)
    ends = PLAN["phase"] == "checkpoint" and (HOME / "token").exists() and Now.operations + 1 == PLAN["step"]
    if ours and ends and dist.is_initialized() and dist.get_rank() == PLAN["rank"]:
        os.truncate(filename, os.path.getsize(filename) // 2)
    if ours:
        operation(f"half of {filename}")


wrap(visits, "first_values", before="first H")
wrap(visits, "ask_right", marks="H-step")
wrap(visits, "h_step", marks="H-step")
wrap(visits, "_step_duals", before="dual update")
wrap(tpdist.training.epoch_end, "share_of_loss", before="evaluation")
wrap(tpdist.parallel.reduce.Sum, "_under_way", marks="all-reduce")
plain_blocks_pass, visits.blocks_pass = visits.blocks_pass, blocks_pass
plain_visit, tpdist.training.trainer.Trainer._visit = tpdist.training.trainer.Trainer._visit, visit
batch_isend_irecv, dist.batch_isend_irecv = dist.batch_isend_irecv, swap
plain_all_reduce, dist.all_reduce = dist.all_reduce, all_reduce
plain_fsync, os.fsync = os.fsync, fsync
plain_serialize_file, safetensors.torch.serialize_file = safetensors.torch.serialize_file, serialize_file
register_optimizer_step_pre_hook(
    lambda optimizer, *_: fire("optimiser step") if len(optimizer.param_groups[0]["params"]) > 1 else None
)
sys.addaudithook(audit)
