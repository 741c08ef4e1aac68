"""A timeline of a few updates, for `chrome://tracing` or ui.perfetto.dev: what overlaps, and what waits."""

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

SKIPPED = 3  # updates first, in which things are loaded and allocated


class Profile:
    """Traces `updates` updates into `<directory>/step-<first>-<worker>.json`; None traces nothing."""

    def __init__(self, updates: int | None, directory: Path, worker: str, done: int):
        self._profile = None
        if updates is None:
            return
        directory.mkdir(parents=True, exist_ok=True)
        file = directory / f"step-{done + SKIPPED + 1:08d}-{worker}.json"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
        self._profile = profile(
            activities=activities,
            schedule=schedule(wait=SKIPPED - 1, warmup=1, active=updates, repeat=1),
            on_trace_ready=lambda found: found.export_chrome_trace(str(file)),
        )
        self._profile.start()

    def step(self) -> None:
        """After every update."""
        if self._profile is not None:
            self._profile.step()

    def close(self) -> None:
        if self._profile is not None:
            self._profile.stop()
