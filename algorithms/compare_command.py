"""`gridjax compare`: runs beside each other, from what training and `gridjax evaluate` left in their folders.

As the commands of `gridjax.commands`: takes the parsed options and two consoles (results, messages), returns the exit
code. Learning curves come from metrics.csv; returns and costs from evaluation/evaluation.json, which must be of the
same days in all runs.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

from algorithms import charts, comparison, metrics
from algorithms.evaluate_command import FILE, machine_and_versions, write
from gridjax.commands import Refused, check_folder


def compare(options: argparse.Namespace, console: Console, errors: Console) -> int:
    """Compares runs."""
    check_folder(options.out)
    names = _names(options.runs)
    tables = {name: _table(run) for name, run in names.items()}
    wanted = _metrics(tables, options.metric)
    found = {name: _evaluation(run) for name, run in names.items()}
    evaluated = {name: record for name, record in found.items() if record is not None}
    missing = [names[name] for name in found if name not in evaluated]
    options.out.mkdir(exist_ok=True)
    charts.curves(tables, wanted, options.out / "curves.svg")
    last = {name: {m: charts.curve(t, m)[1][-1].tolist() for m in wanted if m in t} for name, t in tables.items()}
    record: dict[str, Any] = {
        "kind": "gridjax comparison", "version": 1, **machine_and_versions(),
        "runs": {name: os.fspath(run) for name, run in names.items()}, "metrics at the end": last,
    }  # fmt: skip
    written = ["comparison.json", "curves.svg"]
    if evaluated:
        rows = _rows(evaluated)
        gained = comparison.gains(rows)
        record |= {"environment": next(iter(evaluated.values()))["environment"], "rows": rows, "gains": gained}
        charts.costs(rows, options.out / "costs.svg")
        charts.returns(rows, options.out / "returns.svg")
        written += ["costs.svg", "returns.svg"]
        first = next(iter(evaluated.values()))
        title = f"{first['episodes']} held-out days of {first['environment']['name']}, 95 % intervals"
        console.print(comparison.returns_table(title, rows, gained))
        console.print(comparison.costs_table(rows))
    write(options.out, written[0], record)
    for run in missing:
        errors.print(Text(f"gridjax: {run} is not evaluated: gridjax evaluate {run}"), soft_wrap=True)
    console.print(Text(", ".join(str(options.out / name) for name in written)), soft_wrap=True)
    return 0


def _names(runs: list[Path]) -> dict[str, Path]:
    """Runs by the shortest ends of their paths that tell them apart."""
    parts = [run.resolve().parts for run in runs]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-length:]) for p in parts]
        if len(set(names)) == len(names):
            return dict(zip(names, runs, strict=True))
    raise Refused("a run is named twice")


def _table(run: Path) -> dict[str, np.ndarray]:
    path = run / "metrics.csv"
    if not path.is_file():
        raise Refused(f"{path} is not there: name the folders of `gridjax train`")
    table = metrics.read(path)
    if not len(table["updates"]):
        raise Refused(f"{path} has no rows yet")
    return table


def _metrics(tables: dict[str, dict[str, np.ndarray]], wanted: list[str] | None) -> list[str]:
    known = list(dict.fromkeys(name for t in tables.values() for name in t if name not in metrics.FIRST))
    unknown = [name for name in wanted or [] if name not in known]
    if unknown:
        raise Refused(f"--metric {unknown[0]}: choose from {', '.join(known)}")
    return wanted or known


def _evaluation(run: Path) -> dict[str, Any] | None:
    path = run / "evaluation" / FILE
    if not path.is_file():
        return None
    record = json.loads(path.read_text(encoding="utf-8"))
    if record.get("kind") != "gridjax evaluation":
        raise Refused(f"{path} is not of `gridjax evaluate`: evaluate the run again")
    return record


def _rows(evaluated: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs' agents, then the baselines of any, once each."""
    first_name, first = next(iter(evaluated.items()))
    rows: dict[str, dict[str, Any]] = {}
    for name, record in evaluated.items():
        for what in ("environment", "episodes"):
            if record[what] != first[what]:
                raise Refused(
                    f"{name} was evaluated with {what} {record[what]}, {first_name} with {first[what]}: evaluate both "
                    "on the same days"
                )
        rows[name] = {**record["rows"][0], "policy": name}
    for record in evaluated.values():
        for row in record["rows"][1:]:
            rows.setdefault(row["policy"], row)
    return list(rows.values())
