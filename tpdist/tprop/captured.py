"""A window's whole update as one CUDA graph: the host launches it at once, not kernel by kernel.

A graph replays the kernels of one visit on the addresses that they had when it was recorded. So the visit that is
recorded reads copies of its window, of the boundaries beside it and of the carried state, and before every replay the
copies are filled anew. All else that a visit depends on is written into the graph: the plan, the learning rate, the
shape of the window and what is known of it without asking the device. A visit that differs there runs by itself.

The oracle is `visit` (tests/training/test_captured.py). Shape letters: `window.py`.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import fields, replace
from typing import Protocol

import torch
from torch import Tensor

from tpdist.models import LanguageModel
from tpdist.tprop.outcome import Outcome
from tpdist.tprop.plan import Plan
from tpdist.tprop.states import Boundaries
from tpdist.tprop.theta import Theta
from tpdist.tprop.visit import visit
from tpdist.tprop.window import Neighbours, Window

WARM = 3  # visits of a shape before one is recorded: libraries choose their kernels, optimisers make their state

Results = tuple[Outcome, Tensor | None]  # of a visit, and the norm of θ's gradient that it left
Work = Callable[[], Results]


class Graphs(Protocol):
    """What records visits; in tests it does so by hand, on a CPU."""

    def aside(self) -> AbstractContextManager[None]:
        """Where visits run that are not recorded."""
        ...

    def record(self, work: Work) -> tuple[Callable[[], None], Results]:
        """What does the work, and its results, which it fills every time; nothing has been done yet.

        Raises RuntimeError for work that cannot be recorded.
        """
        ...


class CudaGraphs:
    """CUDA's. Visits that are not recorded run on the same stream, so that nothing of theirs lives on another one."""

    def __init__(self, device: torch.device):
        self._stream = torch.cuda.Stream(device)

    @contextmanager
    def aside(self) -> Iterator[None]:
        main = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(main)
        with torch.cuda.stream(self._stream):
            yield
        main.wait_stream(self._stream)

    def record(self, work: Work) -> tuple[Callable[[], None], Results]:
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self._stream.device)
        try:
            # other threads may go on using the device: the one that writes checkpoints does
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                results = work()
        finally:
            torch.cuda.set_stream(current)  # a recording that broke leaves its own behind
        return graph.replay, results


class Captured:
    """`visit`, by one worker that holds the whole window; windows of the most usual shape are replayed.

    say: told once, should a visit not let itself be recorded; training then goes on without.
    """

    def __init__(self, graphs: Graphs, say: Callable[[str], None]):
        self._graphs, self._say = graphs, say
        self._settings: tuple[Plan, float] | None = None
        self._seen: Counter[tuple[object, ...]] = Counter()
        self._held: _Recorded | None = None
        self._works = True

    def __call__(
        self,
        model: LanguageModel,
        plan: Plan,
        theta: Theta,
        window: Window,
        begin: int,
        boundaries: Boundaries,
        carried: Tensor,
        neighbours: Neighbours,
    ) -> Outcome:
        """As `visit`. The outcome's tensors are overwritten by the next visit."""
        if self._settings != (plan, theta.lr):
            self._settings, self._held = (plan, theta.lr), None
            self._seen.clear()
        shape = _shape(window)
        if self._held is None and self._works and self._seen[shape] >= WARM:
            try:
                self._held = _Recorded(self._graphs, model, plan, theta, window, begin, boundaries, carried, neighbours)
            except RuntimeError as error:
                self._works = False
                # what ended a recording; ending it broken is an error of its own
                why = error.__context__ if isinstance(error.__context__, RuntimeError) else error
                self._say(f"run.cuda_graph: no update could be recorded, so they run kernel by kernel: {why}")
        if self._held is not None and self._held.shape == shape:
            return self._held.replay(theta, window, begin, boundaries, carried)
        self._seen[shape] += 1
        with self._graphs.aside(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="This instance was constructed with capturable=True")
            return visit(model, plan, theta, window, begin, boundaries, carried, neighbours)


class _Recorded:
    """One graph, and the tensors that it reads and writes. Making it raises RuntimeError as `Graphs.record` does."""

    def __init__(
        self,
        graphs: Graphs,
        model: LanguageModel,
        plan: Plan,
        theta: Theta,
        window: Window,
        begin: int,
        boundaries: Boundaries,
        carried: Tensor,
        neighbours: Neighbours,
    ):
        self.shape = _shape(window)
        copies = {name: tensor.clone() for name, tensor in _tensors(window).items()}
        self._window, self._carried = replace(window, **copies), carried.clone()
        near = _near(window, begin)
        self._own = Boundaries()
        for name, tensor in boundaries.tensors().items():
            # a place more: the window is not all that the worker owns, and is not visited in place
            self._own.put(name, torch.cat([tensor[:, near], torch.zeros_like(tensor[:, :1])], 1))

        def work() -> Results:
            begin = window.earlier.shape[2]
            outcome = visit(model, plan, theta, self._window, begin, self._own, self._carried, neighbours)
            return outcome, theta.norm

        self._run, self._results = graphs.record(work)

    def replay(self, theta: Theta, window: Window, begin: int, boundaries: Boundaries, carried: Tensor) -> Outcome:
        now, near, own = _tensors(window), _near(window, begin), self._own.tensors()
        for name, tensor in _tensors(self._window).items():
            tensor.copy_(now[name])
        self._carried.copy_(carried)
        for name, tensor in boundaries.tensors().items():
            own[name][:, :-1].copy_(tensor[:, near])
        self._run()
        for name, tensor in boundaries.tensors().items():
            tensor[:, near] = own[name][:, :-1]
        outcome, theta.norm = self._results
        return outcome


def _shape(window: Window) -> tuple[object, ...]:
    """What of a window is written into a graph."""
    known = [getattr(window, field.name) for field in fields(window)]
    return tuple(value.shape if isinstance(value, Tensor) else value for value in known)


def _tensors(window: Window) -> dict[str, Tensor]:
    return {f.name: value for f in fields(window) if isinstance(value := getattr(window, f.name), Tensor)}


def _near(window: Window, begin: int) -> slice:
    """The places in `Boundaries` that a visit reads or writes: its own and those of the blocks before it."""
    return slice(begin - window.earlier.shape[2], begin + window.blocks + 1)
