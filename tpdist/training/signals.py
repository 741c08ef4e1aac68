"""Ctrl-C, SIGTERM and a terminal that goes end a run between two updates, with everything saved."""

import signal
import threading
from types import FrameType
from typing import Any


class Regroup(Exception):  # noqa: N818 - nothing went wrong
    """All workers stand at the end of an epoch, with everything saved, and wait to go on in another number."""


class StopSignal:
    """While entered, the first SIGINT, SIGTERM or SIGHUP sets `received`; a second SIGINT interrupts at once.

    at_epoch_end: whoever hosts the worker wants `Regroup` at the end of the epoch.
    """

    def __init__(self) -> None:
        self.received = False
        self.at_epoch_end = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            numbers = [signal.SIGINT, signal.SIGTERM]
            if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup sets it
                numbers.append(signal.SIGHUP)
            for number in numbers:
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = True
