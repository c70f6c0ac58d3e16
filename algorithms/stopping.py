"""Stopping long work by a signal, at a place of its own choice, and going on with it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from algorithms import checkpoints
from gridjax.commands import Refused


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


def to_go_on(
    out: Path, resume: bool, errors: Console, kind: str = checkpoints.FORMAT
) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint to go on from and its header, if there is one.

    Raises:
      Refused: there is a run, and nobody asked to go on with it.
    """
    if not resume:
        if any((out / "checkpoints").glob("update-*")):
            raise Refused(f"{out} holds a run: go on with it by --resume, or take another --out")
        return None
    found = checkpoints.newest(out, kind)
    if found is None:
        errors.print(Text(f"gridjax: {out} has no checkpoint yet: it begins anew"), soft_wrap=True)
        return None
    path, head, wrong = found
    for text in wrong:
        errors.print(Text(f"gridjax: {text}; {path.name} is taken"), soft_wrap=True)
    return path, head
