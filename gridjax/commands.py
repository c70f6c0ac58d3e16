"""What each command of the command line does: reads, calls gridjax, shows and writes.

Every command takes the parsed options and two consoles (results, messages) and returns the exit code.
"""

from __future__ import annotations

import argparse
import csv
import difflib
import functools
import json
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from gridjax import feeders as shipped
from gridjax import report, scenarios
from gridjax.assembly import compile
from gridjax.drawing import printable
from gridjax.feeder import Feeder
from gridjax.grid import Grid
from gridjax.io.json import read_json, write_json
from gridjax.io.opendss import read_opendss, write_opendss
from gridjax.powerflow import results
from gridjax.powerflow import solve as powerflow
from gridjax.summary import summarize
from gridjax.validate import validate as find_problems

_WARNING_WIDTH = 150


class Refused(Exception):
    """A message for the user and the exit code that goes with it."""

    def __init__(self, message: str, code: int = 2) -> None:
        super().__init__(message)
        self.code = code


def _is_json(path: Path) -> bool:
    return path.name.lower().endswith((".json", ".json.gz"))


def _read(name: str, errors: Console, debug: bool = False) -> Feeder:
    """A shipped feeder by name, or the one in a file; warnings become short lines."""
    with _warnings_shown(errors, debug):
        if name in shipped.NAMES:
            return shipped.load(name)
        path = Path(name)
        if path.suffix.lower() == ".dss":
            return read_opendss(path)
        if _is_json(path):
            return read_json(path)
    if path.is_file():
        raise Refused(f"{name}: unknown kind of file; the suffix must be .dss, .json or .json.gz")
    close = difflib.get_close_matches(name.lower(), shipped.NAMES, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(close)}?" if close else "`gridjax feeders` lists them."
    raise Refused(f"there is no shipped feeder or file {printable(name)!r}; {hint}")


@contextmanager
def _warnings_shown(errors: Console, debug: bool) -> Iterator[None]:
    """Shows warnings as one short line each."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        if issubclass(warning.category, UserWarning):
            text = " ".join(str(warning.message).split())
            text = "".join(letter if letter.isprintable() else "\ufffd" for letter in text)
            if not debug and len(text) > _WARNING_WIDTH:
                text = text[:_WARNING_WIDTH] + "\u2026 (--debug shows all)"
            errors.print(Text(f"warning: {text}", style="yellow"), soft_wrap=True)


def _compile(feeder: Feeder, options: argparse.Namespace, errors: Console) -> Grid:
    fatal = [problem for problem in find_problems(feeder) if problem.fatal]
    if fatal:
        count = f"{len(fatal)} fatal problem{'s' if len(fatal) > 1 else ''}"
        raise Refused(f"{printable(feeder.name)} has {count}, first {fatal[0]}; see `gridjax validate`", 1)
    with _warnings_shown(errors, options.debug), errors.status("compiling the feeder"):
        return compile(feeder, dtype=np.dtype("float32" if options.float32 else "float64"))


def check_folder(*given: Path | str | None) -> None:
    """Finds out before the work whether its files can be written."""
    for path in [Path(one) for one in given if one is not None]:
        if not path.parent.is_dir():
            raise Refused(f"{path}: there is no folder {str(path.parent)!r}; make it first")


def feeders(options: argparse.Namespace, console: Console, errors: Console) -> int:
    """Lists the shipped feeders."""
    console.print(report.feeder_table([_read(name, errors, options.debug) for name in shipped.NAMES], shipped.NAMES))
    return 0


def solve(options: argparse.Namespace, console: Console, errors: Console) -> int:
    """Solves one power flow."""
    to_stdout = options.json == "-"
    check_folder(options.csv, options.plot, Path(options.json) if options.json and not to_stdout else None)
    feeder = _read(options.feeder, errors, options.debug)
    started = time.perf_counter()
    grid = _compile(feeder, options, errors)
    point = scenarios.with_loads(grid.nominal, jnp.asarray(options.scale, grid.nominal.load_kw.dtype))
    with errors.status("compiling the solver"):
        function = functools.partial(powerflow.solve, method=options.method, tol=options.tol)
        solver = jax.jit(function).lower(grid, point).compile()
    compiled = time.perf_counter()
    flow = jax.block_until_ready(solver(grid, point))
    solved = time.perf_counter()
    numbers: dict[str, Any] = {
        "gridjax_version": _version(),
        "method": options.method,
        "tol_pu": options.tol,
        "dtype": str(grid.nominal.load_kw.dtype),
        "load_scale": options.scale,
        "seconds_compile": round(compiled - started, 4),
        "seconds_solve": round(solved - compiled, 6),
        **summarize(feeder, grid, point, flow),
    }
    (errors if to_stdout else console).print(report.solve_table(numbers))
    converged = numbers["converged"]
    if not converged:
        _complain_unconverged(feeder, options, errors)
    rows = _voltage_rows(feeder, grid, flow) if converged else []
    if options.json:
        text = json.dumps(numbers | {"voltages": rows}, indent=1, allow_nan=False)
        sys.stdout.write(text + "\n") if to_stdout else Path(options.json).write_text(text + "\n", encoding="utf-8")
    if options.csv and converged:
        _write_csv(options.csv, rows, ["node", "base_v", "voltage_v", "voltage_pu", "angle_deg"])
    if options.plot:
        with errors.status("drawing"):
            _draw(options, feeder, grid, point, flow)
    return 0 if converged else 1


def _complain_unconverged(feeder: Feeder, options: argparse.Namespace, errors: Console) -> None:
    other = "newton" if options.method == "sweep" else "sweep"
    nothing = "; no CSV written" if options.csv else ""
    errors.print(
        Text(
            f"gridjax: {printable(feeder.name)} did not converge: there is no result{nothing}. Try --method {other}, "
            "a smaller --scale, or look for a fault with `gridjax validate`."
        ),
        soft_wrap=True,
    )


def _version() -> str:
    from gridjax import __version__

    return __version__


def _voltage_rows(feeder: Feeder, grid: Grid, flow: powerflow.PowerFlow) -> list[dict[str, Any]]:
    v, volts = np.asarray(flow.v), np.asarray(results.voltages(grid, flow))
    base = np.asarray(grid.node_volts)
    return [
        {
            "node": name,
            "base_v": float(base[i]),
            "voltage_v": float(abs(volts[i])),
            "voltage_pu": float(abs(v[i])),
            "angle_deg": float(np.degrees(np.angle(v[i]))),
        }
        for i, name in enumerate(feeder.node_names)
    ]


def _write_csv(path: Path, rows: list[dict[str, Any]], fields: list[str]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fields)
        writer.writeheader()
        writer.writerows(rows)


def _draw(options: argparse.Namespace, feeder: Feeder, grid: Grid, point: Any, flow: powerflow.PowerFlow) -> None:
    from gridjax import plot

    if options.plot.suffix.lower() == ".html":
        plot.page(feeder, grid, point, flow, options.plot)
    elif options.picture == "oneline":
        plot.oneline(feeder, grid, point, flow, options.plot)
    else:
        plot.voltage_profile(feeder, flow, options.plot)


def batch(options: argparse.Namespace, console: Console, errors: Console) -> int:
    """Solves random load scenarios."""
    check_folder(options.csv, options.plot)
    feeder = _read(options.feeder, errors, options.debug)
    grid = _compile(feeder, options, errors)
    outcome, seconds = run_with_progress(
        feeder,
        grid,
        options.scenarios,
        errors,
        key=jax.random.key(options.seed),
        draw=scenarios.Draw(spread=options.spread),
        batch_size=options.batch_size,
        method=options.method,
        tol=options.tol,
    )
    console.print(report.batch_table(feeder, outcome, seconds))
    if options.csv:
        _write_csv(options.csv, _outcome_rows(feeder, outcome), _OUTCOME_FIELDS)
    if options.plot:
        from gridjax import plot

        plot.voltage_histogram(feeder.name, outcome, options.plot)
    return 0 if outcome.converged.all() else 1


def run_with_progress(
    feeder: Feeder, grid: Grid, count: int, errors: Console, *, key: jax.Array, **options: Any
) -> tuple[scenarios.Outcome, report.Seconds]:
    """Runs `scenarios.run` with a progress bar on a terminal; returns the outcome and the times.

    The first chunk, which compiles the solver, is run a second time to tell its run time from the compilation.
    """
    started = time.perf_counter()
    with errors.status("compiling the solver"):
        first = min(count, options.get("batch_size", 500))
        next(scenarios.run(feeder, grid, key, first, **options))
    compiled = time.perf_counter()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    chunks = []
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as progress:
        task = progress.add_task("solving", total=count)
        for chunk in scenarios.run(feeder, grid, key, count, **options):
            chunks.append(chunk)
            progress.advance(task, len(chunk.converged))
    run = time.perf_counter() - compiled
    return scenarios.join(chunks), report.Seconds(compile=compiled - started, run=run)


_OUTCOME_FIELDS = [
    "scenario",
    "converged",
    "iterations",
    "residual_pu",
    "min_voltage_pu",
    "min_voltage_node",
    "max_voltage_pu",
    "max_voltage_node",
    "nodes_outside_range_a",
    "nodes_outside_range_b",
]


def _outcome_rows(feeder: Feeder, outcome: scenarios.Outcome) -> list[dict[str, Any]]:
    """One row a scenario; what has not converged has no voltages."""
    names = feeder.node_names
    rows = []
    for i, converged in enumerate(outcome.converged.tolist()):
        residual = float(outcome.residual[i])
        row = {
            "scenario": i,
            "converged": converged,
            "iterations": int(outcome.iterations[i]),
            "residual_pu": residual if np.isfinite(residual) else "",
        }
        if converged:
            row |= {
                "min_voltage_pu": float(outcome.min_pu[i]),
                "min_voltage_node": names[int(outcome.min_node[i])],
                "max_voltage_pu": float(outcome.max_pu[i]),
                "max_voltage_node": names[int(outcome.max_node[i])],
                "nodes_outside_range_a": int(outcome.outside_a[i]),
                "nodes_outside_range_b": int(outcome.outside_b[i]),
            }
        rows.append(row)
    return rows


def validate(options: argparse.Namespace, console: Console, errors: Console) -> int:
    """Lists a feeder's problems."""
    feeder = _read(options.feeder, errors, options.debug)
    problems = find_problems(feeder)
    if not problems:
        console.print(Text(f"{printable(feeder.name)}: no problems found"))
        return 0
    console.print(report.problem_table(feeder, problems))
    return 1 if any(problem.fatal for problem in problems) else 0


def convert(options: argparse.Namespace, console: Console, errors: Console) -> int:
    """Writes a feeder in another format."""
    out: Path = options.out
    if not (_is_json(out) or out.suffix.lower() == ".dss"):
        raise Refused(f"{out}: unknown format; the suffix must be .dss, .json or .json.gz")
    check_folder(out)
    if out.exists() and os.path.exists(options.feeder) and os.path.samefile(out, options.feeder):
        raise Refused(f"{out}: cannot convert a file into itself; give another name")
    feeder = _read(options.feeder, errors, options.debug)
    write = write_json if _is_json(out) else write_opendss
    write(feeder, out)
    console.print(Text(f"{printable(feeder.name)}: wrote {out}"))
    return 0
