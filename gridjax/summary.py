"""The numbers that a person asks first of a solved feeder, on the host."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gridjax.drawing import RANGE_A, RANGE_B, all_results, branches, magnitudes, phase_nodes
from gridjax.feeder import Feeder
from gridjax.grid import Grid, OperatingPoint
from gridjax.powerflow.solve import PowerFlow

_KIND = {"lines": "line", "switches": "switch", "transformers": "transformer"}


def floating_nodes(feeder: Feeder) -> int:
    """How many phase nodes lie in three-wire sections, where the voltage to ground says little.

    A section is what lines, switches and series elements join; it is grounded by a source, or by a transformer's
    winding that has a conductor or its neutral on ground.
    """
    group = list(range(len(feeder.buses)))

    def find(i: int) -> int:
        while group[i] != i:
            group[i] = group[group[i]]
            i = group[i]
        return i

    for edge in branches(feeder):
        if edge.kind != "transformer" and edge.closed:
            group[find(edge.ends[0].bus)] = find(edge.ends[1].bus)
    number = {bus.name: i for i, bus in enumerate(feeder.buses)}
    tied = [source.bus.partition(".")[0] for source in feeder.sources]
    for transformer in feeder.transformers:
        for w in transformer.windings:
            bus, *nodes = w.bus.split(".")
            neutral = w.r_neutral_ohm is not None or int(nodes[-1]) > 3  # tied by an impedance, or led out
            if "0" in nodes or (w.connection == "wye" and neutral):
                tied.append(bus)
    grounded = {find(number[bus]) for bus in tied}
    floating = (bus for i, bus in enumerate(feeder.buses) if find(i) not in grounded)
    return sum(n <= 3 for bus in floating for n in bus.nodes)


def summarize(feeder: Feeder, grid: Grid, point: OperatingPoint, flow: PowerFlow) -> dict[str, Any]:
    """The summary of one scenario, ready for JSON: plain numbers, units in the keys, None where there is no value.

    Args:
      feeder: the tables that `grid` was compiled from.
      grid: the compiled feeder.
      point: what was solved.
      flow: its power flow; where it has not converged, its voltages are no solution and all results are None.

    Returns:
      Convergence, source power, losses, extreme voltages and their nodes, nodes outside the ranges of ANSI C84.1,
      the most loaded element and the taps.
    """
    v = magnitudes(feeder, flow)
    converged = bool(flow.converged) and bool(np.isfinite(v).all())
    out: dict[str, Any] = {
        "feeder": feeder.name,
        "buses": len(feeder.buses),
        "nodes": len(v),
        "converged": converged,
        "iterations": int(flow.iterations),
        "residual_pu": _finite(flow.residual),
    }
    found = all_results(grid, point, flow)
    source, loss = found["source_power"].sum(), found["losses"]
    names = np.array(feeder.node_names)
    phase = phase_nodes(feeder)
    low, high = (int(pick(np.where(phase, v, fill))) for pick, fill in ((np.argmin, np.inf), (np.argmax, -np.inf)))
    element, loaded = most_loaded(feeder, grid, found["loading"])
    values = {
        "source_kw": _finite(source.real),
        "source_kvar": _finite(source.imag),
        "losses_kw": _finite(loss.real),
        "losses_kvar": _finite(loss.imag),
        "min_voltage_pu": _finite(v[low]),
        "min_voltage_node": str(names[low]),
        "max_voltage_pu": _finite(v[high]),
        "max_voltage_node": str(names[high]),
        "phase_nodes": int(phase.sum()),
        "nodes_outside_range_a": int((phase & outside(v, RANGE_A)).sum()),
        "nodes_outside_range_b": int((phase & outside(v, RANGE_B)).sum()),
        "nodes_ungrounded": floating_nodes(feeder),
        "most_loaded_element": element,
        "most_loaded_percent": None if loaded is None else _finite(100 * loaded),
    }
    out |= values if converged else dict.fromkeys(values)
    out["taps"] = taps(feeder, point)
    return out


def outside(v: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """Which voltages are outside a range, with a tolerance for rounding."""
    return (v < limits[0] - 1e-9) | (v > limits[1] + 1e-9)


def most_loaded(feeder: Feeder, grid: Grid, loading: dict[str, np.ndarray]) -> tuple[str | None, float | None]:
    """The element with the largest current over its rating, and that ratio; None where nothing has a rating."""
    best: tuple[str | None, float | None] = (None, None)
    for table, ratio in loading.items():
        rated = np.isfinite(np.asarray(grid.rating_a[table]))
        ratio = np.where(rated, ratio, -np.inf)
        if not rated.any():
            continue
        row = np.unravel_index(int(np.argmax(ratio)), ratio.shape)
        value = float(ratio[row])
        if best[1] is None or value > best[1]:
            best = (f"{_KIND[table]}.{getattr(feeder, table)[row[0]].name}", value)
    return best


def taps(feeder: Feeder, point: OperatingPoint) -> list[dict[str, Any]]:
    """The regulators' taps: turns ratio, and the position in steps from neutral."""
    windings = {t.name: t.windings for t in feeder.transformers}
    out = []
    for regulator, tap in zip(feeder.regulators, np.asarray(point.tap, float), strict=True):
        w = windings[regulator.transformer][regulator.winding - 1]
        step = (w.max_tap - w.min_tap) / max(w.num_taps, 1)
        position = round((float(tap) - 1) / step) if step > 0 else 0
        out.append({"regulator": regulator.name, "tap_pu": round(float(tap), 6), "position": position})
    return out


def _finite(value: Any) -> float | None:
    """A Python float, None for NaN and infinities."""
    number = float(value)
    return number if math.isfinite(number) else None
