"""Metrics of training in files: always CSV, and TensorBoard's event files where asked for.

The table has a row for each seed and chunk of updates: updates made so far, the seed, then the metrics' means over the
chunk, with all digits. A run that is taken up after an interruption first drops the rows beyond its checkpoint, so that
its table is byte by byte that of a run without one.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

FIRST = ["updates", "seed"]


def append(path: str | Path, updates: int, metrics: Mapping[str, Any]) -> None:
    """Adds a chunk's rows, which are on the disk when this returns.

    Args:
      path: of the table; made with its column names if it is not there.
      updates: made so far.
      metrics: by name, each (seeds,).

    Raises:
      ValueError: the table has other columns.
    """
    path = Path(path)
    columns = FIRST + sorted(metrics)
    values = {name: np.asarray(metrics[name], float) for name in sorted(metrics)}
    seeds = len(next(iter(values.values())))
    with path.open("a+", newline="", encoding="utf-8") as file:
        file.seek(0)
        there = next(csv.reader(file), None)
        if there is not None and there != columns:
            raise ValueError(f"{path} has columns {', '.join(there)}, not {', '.join(columns)}: name another folder")
        out = csv.writer(file, lineterminator="\n")
        if there is None:
            out.writerow(columns)
        out.writerows([updates, s, *(repr(float(v[s])) for v in values.values())] for s in range(seeds))
        file.flush()
        os.fsync(file.fileno())


def trim(path: str | Path, updates: int) -> None:
    """Drops the rows of more than so many updates, and a last line without an end."""
    path = Path(path)
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [
        line
        for k, line in enumerate(lines)
        if line.endswith("\n") and (k == 0 or int(line.split(",", 1)[0]) <= updates)
    ]
    if kept != lines:
        part = path.with_name(path.name + ".part")
        part.write_text("".join(kept), encoding="utf-8")
        os.replace(part, path)


def read(path: str | Path) -> dict[str, np.ndarray]:
    """A table's columns by name, (rows,)."""
    with Path(path).open(newline="", encoding="utf-8") as file:
        names, *rows = csv.reader(file)
    return {name: np.array([float(row[k]) for row in rows]) for k, name in enumerate(names)}


def needs_tensorboard() -> Any:
    """The writer of event files.

    Raises:
      ImportError: it is not installed.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ImportError("event files need tensorboardX: pip install 'gridjax[tensorboard]'") from error
    return SummaryWriter


@contextmanager
def tensorboard(folder: str | Path, seeds: int, done: int = 0) -> Iterator[Callable[[int, Mapping[str, Any]], None]]:
    """A function `(updates, metrics)` that writes scalars "train/NAME" to a folder of event files for each seed.

    Args:
      folder: in which "seed-0" and so on are.
      seeds: how many.
      done: updates that are there already; TensorBoard hides what earlier files have beyond them.

    Raises:
      ImportError: tensorboardX is not installed.
    """
    SummaryWriter = needs_tensorboard()
    # A file's name has the second it was made in: the suffix keeps a run that is taken up at once from its file.
    new = {"purge_step": done + 1, "filename_suffix": f".{done}"}
    with ExitStack() as stack:
        folders = [str(Path(folder) / f"seed-{s}") for s in range(seeds)]
        writers = [stack.enter_context(SummaryWriter(logdir=name, **new)) for name in folders]

        def write(updates: int, metrics: Mapping[str, Any]) -> None:
            for s, writer in enumerate(writers):
                for name in sorted(metrics):
                    writer.add_scalar(f"train/{name}", float(np.asarray(metrics[name])[s]), updates)
                writer.flush()

        yield write
