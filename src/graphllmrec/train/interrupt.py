"""Ctrl-C and SIGTERM, checked between two training steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stop_requests(active: bool) -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether Ctrl-C or SIGTERM has arrived; a second one raises KeyboardInterrupt.

    Outside the main thread, and where not `active`, the signals keep their usual effect.
    """
    requested = threading.Event()
    if not active or threading.current_thread() is not threading.main_thread():
        yield requested.is_set
        return

    def note(_number: int, _frame: FrameType | None) -> None:
        if requested.is_set():
            raise KeyboardInterrupt
        requested.set()

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield requested.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
