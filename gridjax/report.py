"""Tables that the command line shows. Names enter as text, never as markup."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from gridjax.drawing import RANGE_A, RANGE_B, printable
from gridjax.feeder import Feeder
from gridjax.graph import to_networkx
from gridjax.scenarios import Outcome
from gridjax.validate import Problem

_QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)


class Seconds(NamedTuple):
    """How long compiling the solver took, and running it."""

    compile: float
    run: float


def _table(title: str, headings: Sequence[str], left: Sequence[str]) -> Table:
    table = Table(title=Text(title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        table.add_column(heading, justify="left" if heading in left else "right", overflow="fold")
    return table


def _add(table: Table, *cells: Any) -> None:
    table.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in cells))


def feeder_table(feeders: Sequence[Feeder], names: Sequence[str]) -> Table:
    """One row a feeder."""
    headings = ("name", "buses", "nodes", "lines", "transf.", "regul.", "capac.", "loads", "kW", "kvar", "km", "source")
    table = _table("Shipped feeders", headings, ("name", "source"))
    for name, feeder in zip(names, feeders, strict=True):
        km = sum(data["length_km"] for _, _, data in to_networkx(feeder).edges(data=True))
        _add(
            table,
            name,
            len(feeder.buses),
            sum(len(bus.nodes) for bus in feeder.buses),
            len(feeder.lines),
            len(feeder.transformers),
            len(feeder.regulators),
            len(feeder.capacitors),
            len(feeder.loads),
            f"{sum(load.kw for load in feeder.loads):.0f}",
            f"{sum(load.kvar for load in feeder.loads):.0f}",
            f"{km:.1f}",
            printable(feeder.origin.partition(",")[0]),
        )
    return table


def solve_table(numbers: dict[str, Any]) -> Table:
    """The summary of `gridjax.summary.summarize`, with the run's times."""
    table = _table(printable(numbers["feeder"]), ("", "value", "where"), ("", "where"))
    good = numbers["converged"]
    _add(table, "converged", Text("yes", style="green") if good else Text("NO", style="bold red"))
    _add(table, "iterations", f"{numbers['iterations']} ({numbers['method']}, {numbers['dtype']})")
    _add(table, "residual", _show(numbers["residual_pu"], ".2e", " pu"))
    _add(table, "compiling", f"{numbers['seconds_compile']:.2f} s")
    _add(table, "solving", f"{1e3 * numbers['seconds_solve']:.2f} ms")
    if not good:
        return table
    for key, note in (("source", ""), ("losses", "capacitors' kvar included")):
        text = f"{_show(numbers[f'{key}_kw'], ',.2f')} kW, {_show(numbers[f'{key}_kvar'], ',.2f')} kvar"
        _add(table, key, text, note)
    for label, key in (("lowest voltage", "min_voltage"), ("highest voltage", "max_voltage")):
        _add(table, label, _show(numbers[f"{key}_pu"], ".5f", " pu"), printable(numbers[f"{key}_node"]))
    for name, limits in (("a", RANGE_A), ("b", RANGE_B)):
        label = f"outside range {name.upper()} ({limits[0]:.3f} to {limits[1]:.3f})"
        _add(table, label, f"{numbers[f'nodes_outside_range_{name}']} of {numbers['phase_nodes']} nodes")
    if numbers["nodes_ungrounded"]:
        note = "their voltages to ground float: compare phases with each other"
        _add(table, "in ungrounded sections", f"{numbers['nodes_ungrounded']} nodes", note)
    if numbers["most_loaded_element"] is not None:
        loading = _show(numbers["most_loaded_percent"], ".1f", " %")
        _add(table, "most loaded", loading, printable(numbers["most_loaded_element"]))
    for tap in numbers["taps"]:
        _add(table, "tap", f"{tap['tap_pu']:.5f} ({tap['position']:+d})", printable(tap["regulator"]))
    return table


def _show(value: float | None, form: str, unit: str = "") -> str:
    return "-" if value is None else f"{value:{form}}{unit}"


def batch_table(feeder: Feeder, outcome: Outcome, seconds: Seconds) -> Table:
    """How many scenarios converged, how fast, and where their voltages lie."""
    good = np.asarray(outcome.converged, bool)
    table = _table(f"{printable(feeder.name)}: {len(good)} scenarios", ("", "value"), ("",))
    style = "green" if good.all() else "bold red"
    _add(table, "converged", Text(f"{good.sum()} of {len(good)}", style=style))
    _add(table, "iterations, at most", int(outcome.iterations.max()))
    _add(table, "compiling", f"{seconds.compile:.2f} s")
    _add(table, "running", f"{seconds.run:.2f} s, {len(good) / max(seconds.run, 1e-9):,.0f} scenarios/s")
    if not good.any():
        return table
    for label, values in (("lowest voltage (pu)", outcome.min_pu), ("highest voltage (pu)", outcome.max_pu)):
        for q, value in zip(_QUANTILES, np.quantile(values[good], _QUANTILES), strict=True):
            _add(table, f"{label}, {_quantile(q)}", f"{value:.5f}")
    for name, counts in (("A", outcome.outside_a), ("B", outcome.outside_b)):
        share = float((counts[good] > 0).mean())
        _add(table, f"scenarios with a node outside range {name}", f"{100 * share:.1f} %")
    return table


def _quantile(q: float) -> str:
    return {0.0: "minimum", 0.5: "median", 1.0: "maximum"}.get(q, f"{100 * q:.0f} % quantile")


def problem_table(feeder: Feeder, problems: Sequence[Problem]) -> Table:
    """Fatal problems first."""
    fatal = sum(problem.fatal for problem in problems)
    title = f"{printable(feeder.name)}: {fatal} fatal, {len(problems) - fatal} doubtful"
    table = _table(title, ("kind", "element", "problem"), ("kind", "element", "problem"))
    for problem in sorted(problems, key=lambda p: not p.fatal):
        kind = Text("fatal", style="bold red") if problem.fatal else Text("doubt", style="yellow")
        message = "".join(letter if letter.isprintable() else "\ufffd" for letter in problem.message)
        _add(table, kind, printable(problem.element), message)
    return table
