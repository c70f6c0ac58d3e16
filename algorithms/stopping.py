"""Stopping long work by a signal, at a place of its own choice."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def signals() -> Iterator[list[int]]:
    """Collects the first SIGINT and SIGTERM; a second one acts as it always does."""
    caught: list[int] = []
    old: dict[int, Any] = {}

    def note(number: int, frame: Any) -> None:
        del frame
        caught.append(number)
        signal.signal(number, old[number])

    if threading.current_thread() is threading.main_thread():
        old = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
