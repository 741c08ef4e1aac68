"""Checkpoints written beside the training: every worker copies its tensors and goes on; a thread writes the copy.

Threads of different workers share no process group with the training, whose calls they would get between. So they meet
in the depot: a worker leaves beside its file, once that is synced, a *receipt* with its size and SHA-256; the leader
waits for all receipts, then writes `state.json`, and the manifest last. What the workers have to agree on is agreed in
`write` and `wait`, which all of them call between two updates.
"""

import errno
import json
import secrets
import socket
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from tpdist.errors import RunError, first_line
from tpdist.parallel import Workers
from tpdist.training.checkpoints import Packed
from tpdist.training.depot import MANIFEST, RECEIPT, Depot
from tpdist.training.files import dump_json, save_tensors
from tpdist.training.manifest import FORMAT, STATE, TENSORS, FileRow, file_row, verify_checkpoint, write_manifest

LOOK_S = 0.05  # between two looks at the threads of all workers, while they are waited for
RECEIPTS_S = (0.005, 0.5)  # between two looks for receipts: at first, and at most
GRACE_S = 2.0  # that a run which has failed waits for receipts


class PartMissingError(OSError):
    """Another worker has not written its part of a checkpoint; why, it says itself."""


class Writer:
    """Writes one checkpoint at a time; a second one waits for it. keep: how many checkpoints stay."""

    def __init__(self, depot: Depot, workers: Workers, keep: int):
        self.depot, self._workers, self._keep = depot, workers, keep
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._failed = threading.Event()  # the run has: nobody is sure to answer any more

    @property
    def busy(self) -> bool:
        """Whether this worker's part of a checkpoint is still being written."""
        return self._thread is not None and self._thread.is_alive()

    def check(self) -> None:
        """Raise what went wrong in the thread, OSError for one, if anything did."""
        if self._error is not None and not self.busy:
            error, self._error = self._error, None
            raise error

    def wait(self) -> None:
        """Until the checkpoint that is being written is whole. All workers call it at once. Raises as `check` does."""
        while self._workers.any(self.busy):  # together, so that the death of a worker is noticed here too
            if self._workers.any(self._error is not None):
                self._failed.set()  # who has failed may not have been able to leave word of it in the depot
            if self._thread is not None:
                self._thread.join(LOOK_S)
        self.check()

    def write(self, name: str, packed: Packed, best: str | None = None) -> None:
        """Begin to write a checkpoint, and then prune the older ones but for `best`. All workers call it at once.

        A name says step and phase, so a whole one that exists already holds the same state.
        """
        self.wait()
        token = int(self._workers.from_leader(float(self._begin(name)) if self._workers.leads else 0.0))
        if token:
            shared = packed.tensors if self._workers.leads else {}
            own = replace(packed, tensors=_copied(shared), states=_copied(packed.states))
            self._thread = threading.Thread(
                target=self._run, args=(name, token, own, best), name=f"checkpoint {name}", daemon=True
            )
            self._thread.start()

    def give_up(self) -> None:
        """The run has failed. Finish what can be finished without the other workers; no error comes of it."""
        self._failed.set()
        if self._thread is not None:
            self._thread.join()

    def _begin(self, name: str) -> int:
        """The stage's token; 0 where nothing is to be written."""
        if name in self.depot.names():
            with tempfile.TemporaryDirectory() as scratch:
                if verify_checkpoint(self.depot.fetch(name, Path(scratch)), self.depot.where) is None:
                    return 0
            self.depot.remove(name)
        token = 1 + secrets.randbits(52)  # a float64 holds it
        self.depot.begin(name, token)
        return token

    def _run(self, name: str, token: int, packed: Packed, best: str | None) -> None:
        try:
            stage = self.depot.stage(name, token)
            if not stage.is_dir():
                raise RunError(
                    f"{stage}: not there; on several machines the run directory must lie where every worker sees it, "
                    f"or give run.checkpoint_to"
                )
            own = self._save(name, token, packed.shard.file, packed.states)
            if self._workers.leads:
                self._lead(name, token, packed, own)
            else:
                # the leader may have read it, and have given the stage its name, before it is synced here
                with suppress(FileNotFoundError):
                    self._publish(name, token, _receipt(packed.shard.file), {**own, **packed.shard.to_json()})
                self.depot.leave(token)
        except BaseException as error:
            self._error = error
            self._tell(name, token, packed.shard.file, error)
            return
        if self._workers.leads:
            self._prune(best)

    def _prune(self, best: str | None) -> None:
        """Remove the older checkpoints. What cannot be removed stays until the next time: the newest is whole.

        An update at an epoch's end may have two, before the evaluation and after; they count as one.
        """
        with suppress(RunError, OSError):
            names = self.depot.names()
            kept = [name for name in names if f"{name}-epoch" not in names][-self._keep :]
            for old in names:
                if old not in (*kept, best):
                    self.depot.remove(old)

    def _lead(self, name: str, token: int, packed: Packed, own: FileRow) -> None:
        """The rest of a checkpoint, once every other worker's receipt is there."""
        files = {TENSORS: self._save(name, token, TENSORS, packed.tensors), packed.shard.file: own}
        place = self._workers.place
        others = [f"states-{s}-{t}.safetensors" for s in range(place.streams) for t in range(place.times)]
        others.remove(packed.shard.file)
        shards: list[Any] = [packed.shard.to_json()]
        for file, receipt in self._receipts(name, token, others).items():
            if "error" in receipt:
                number, text, path = receipt["error"]
                raise RunError(text) if number is None else OSError(number, text, path)
            files[file] = {"bytes": receipt.pop("bytes"), "sha256": receipt.pop("sha256")}
            shards.append(receipt)
        state = {"format": FORMAT, **packed.state, "shards": shards}
        files[STATE] = self._publish(name, token, STATE, state)
        stage = self.depot.stage(name, token)
        write_manifest(stage / MANIFEST, files)
        self.depot.publish(name, token, MANIFEST)
        self.depot.finish(name, token, [_receipt(file) for file in others])

    def _save(self, name: str, token: int, file: str, tensors: dict[str, Tensor]) -> FileRow:
        path = self.depot.stage(name, token) / file
        save_tensors(tensors, path)
        row = file_row(path)
        self.depot.publish(name, token, file)
        return row

    def _publish(self, name: str, token: int, file: str, value: Any) -> FileRow:
        path = self.depot.stage(name, token) / file
        dump_json(path, value)
        self.depot.publish(name, token, file)
        return file_row(path)

    def _receipts(self, name: str, token: int, files: list[str]) -> dict[str, dict[str, Any]]:
        """What every other worker says of its file. Raises PartMissingError where the run failed before all have."""
        found: dict[str, dict[str, Any]] = {}
        pause, longest = RECEIPTS_S
        until = None
        while True:
            for file in set(files) - found.keys():
                if content := self.depot.read(name, token, _receipt(file)):
                    with suppress(ValueError):  # half written
                        found[file] = json.loads(content)
            if len(found) == len(files):
                return {file: found[file] for file in files}
            if self._failed.is_set():
                until = until or time.monotonic() + GRACE_S
                if time.monotonic() > until:
                    raise PartMissingError(errno.ECANCELED, "not every worker wrote its part", name)
                time.sleep(pause)
            else:
                self._failed.wait(pause)
            pause = min(2 * pause, longest)

    def _tell(self, name: str, token: int, file: str, error: BaseException) -> None:
        """The leader clears the stage away; another worker tells the leader why it has no part."""
        with suppress(Exception):  # the disk is full, say: the first error is the one to show
            if self._workers.leads:
                self.depot.discard(name, token)
            else:
                about = [None, first_line(error), None]
                if isinstance(error, OSError) and error.errno is not None:
                    about = [error.errno, error.strerror, f"{socket.gethostname()}: {error.filename}"]
                self._publish(name, token, _receipt(file), {"error": about})
                self.depot.leave(token)


def _receipt(file: str) -> str:
    return f"{file}{RECEIPT}"


def _copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """In memory of their own, on the CPU: training may go on changing them."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
