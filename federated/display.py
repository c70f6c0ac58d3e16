"""What a run of rounds shows while it goes on: a bar on a terminal, and a table in a file."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from federated.accounting import Budget


class Rows:
    """rounds.csv: a row a round; rows beyond the checkpoint that is taken up are dropped."""

    def __init__(self, path: Path, done: int) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in lines[1:] if int(line.split(",", 1)[0]) <= done]
        path.write_text("".join(f"{line}\n" for line in lines[:1] + kept) if done else "")

    def add(self, done: int, values: Mapping[str, float]) -> None:
        """Appends a round."""
        new = self.path.stat().st_size == 0
        with self.path.open("a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(["round", *values])
            writer.writerow([done, *(f"{v:.9g}" for v in values.values())])


class Bar:
    """A progress bar on a terminal: rounds, and what they have spent."""

    def __init__(self, rounds: int, done: int, budget: Budget | None, delta: float, errors: Console) -> None:
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[says]}"),
            TimeRemainingColumn(),
        )  # fmt: skip
        self.bar = Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal)
        self.budget, self.delta = budget, delta
        self.task = self.bar.add_task("rounds", total=rounds, completed=done, says="compiling")

    def __enter__(self) -> Bar:
        self.bar.start()
        return self

    def __exit__(self, *args: object) -> None:
        self.bar.stop()

    def update(self, done: int, epsilon: float) -> None:
        """After a round."""
        of = f" of {self.budget.epsilon:g}" if self.budget else ""
        says = f"epsilon {epsilon:.3g}{of} at {self.delta:.2g}" if math.isfinite(epsilon) else "no privacy"
        self.bar.update(self.task, completed=done, says=says)
