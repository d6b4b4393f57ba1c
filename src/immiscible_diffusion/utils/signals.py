"""Stop at the next step on a signal: Ctrl-C, SIGTERM (job killed), SIGUSR1 (time nearly up)."""

import signal
import threading
from types import FrameType
from typing import Any


class Interrupted(Exception):
    """Work stopped on a signal, after its state was saved."""

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.signal_number = signal_number


class InterruptGuard:
    """Hold signals back within a ``with`` statement: they set ``received`` and do nothing else.

    A second Ctrl-C raises KeyboardInterrupt. Outside the main thread, where Python cannot catch signals, the guard
    does nothing.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> "InterruptGuard":
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGINT", "SIGTERM", "SIGUSR1"):  # Windows has no SIGUSR1
                if number := getattr(signal, name, None):
                    self._handlers[number] = signal.signal(number, self._receive)
        return self

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number

    def __exit__(self, *error: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
