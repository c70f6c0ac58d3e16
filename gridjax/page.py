"""`page`: a solved feeder as one HTML file that needs nothing else.

The file holds both pictures as SVG, the values as JSON and a short script; its content security policy forbids every
request. Names come from whoever wrote the feeder: they are escaped in the text, and the script only ever sets them as
text.
"""

from __future__ import annotations

import html
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from gridjax import svg
from gridjax.drawing import (
    VOLTAGE_COLOURS,
    Branch,
    BranchValues,
    branch_values,
    branches,
    bus_minimum,
    drawable,
    magnitudes,
    node_bus,
    node_phases,
    printable,
)
from gridjax.feeder import Feeder
from gridjax.graph import distance_km
from gridjax.grid import Grid, OperatingPoint
from gridjax.oneline import branch_widths
from gridjax.placement import place
from gridjax.powerflow.solve import PowerFlow
from gridjax.summary import summarize

_TEMPLATE = Path(__file__).with_name("page.html")
# The voltage scale on a dark ground, low to high.
_DARK_COLOURS = ("#8a7bf2", "#5f8fee", "#3fa9dc", "#35bfae", "#4fd08f", "#85dd6b", "#b9e54e", "#e2ec3f", "#fdf38f")
_LABELS = {
    "converged": "converged",
    "iterations": "iterations",
    "residual_pu": "residual (pu)",
    "min_voltage_pu": "lowest voltage (pu)",
    "max_voltage_pu": "highest voltage (pu)",
    "nodes_outside_range_a": "nodes outside range A",
    "nodes_outside_range_b": "nodes outside range B",
    "source_kw": "source (kW)",
    "source_kvar": "source (kvar)",
    "losses_kw": "losses (kW)",
    "losses_kvar": "losses (kvar)",
    "most_loaded_percent": "highest loading (%)",
}
_WHERE = {
    "min_voltage_pu": "min_voltage_node",
    "max_voltage_pu": "max_voltage_node",
    "most_loaded_percent": "most_loaded_element",
}


def page(feeder: Feeder, grid: Grid, point: OperatingPoint, flow: PowerFlow, path: str | Path) -> None:
    """Writes a self-contained page with the one-line diagram, the voltage profile and every value.

    Args:
      feeder: the tables that `grid` was compiled from.
      grid: the compiled feeder.
      point: what was solved.
      flow: one scenario's power flow. One that has not converged is stamped so.
      path: the HTML file to write.

    Raises:
      ValueError: the flow is of many scenarios or of another feeder.
    """
    v = magnitudes(feeder, flow)
    km = np.array(list(distance_km(feeder).values()))
    xy, note = place(feeder)
    at, height = svg.fit(xy)
    edges = branches(feeder)
    values = branch_values(grid, point, flow, edges)
    widths, meaning = branch_widths(values, len(xy))
    failed = not bool(flow.converged)
    lowest = bus_minimum(feeder, v)
    km_of_node = km[node_bus(feeder)]
    shown = drawable(feeder, v) & np.isfinite(km_of_node)
    profile, x, y = svg.profile(feeder, edges, km_of_node, v, shown, failed)
    data = {
        "buses": _bus_data(feeder, grid, flow, at, km),
        "branches": _branch_data(edges, values),
        "x": list(x),
        "y": list(y),
    }
    _, low, high = svg.bins(lowest)
    parts = {
        **_style_parts(len(xy)),
        "title": html.escape(printable(feeder.name)),
        "banner": _BANNER if failed else "",
        "note": html.escape(f"Line width: {meaning}." + (f" {note[:1].upper()}{note[1:]}." if note else "")),
        "summary": _summary(summarize(feeder, grid, point, flow)),
        "scale": scale(low, high),
        "oneline": svg.diagram(feeder, edges, at, height, lowest, widths, failed),
        "profile": profile,
        "data": json_text(data),
        "origin": html.escape(_first(feeder.origin)),
    }
    Path(path).write_text(filled(_TEMPLATE, parts), encoding="utf-8")


_BANNER = (
    '<p class="banner" role="alert">Not converged: the numbers of this page are the last iterate, not a solution.</p>'
)


def filled(template: Path, parts: dict[str, str]) -> str:
    """A template with its parts, which stand there as @@name@@."""
    text = template.read_text(encoding="utf-8")
    return re.sub(r"@@(\w+)@@", lambda match: parts[match[1]], text)  # one pass: parts are never searched


def style(buses: int) -> str:
    """The style sheet of a page with a diagram of so many buses, for other pages."""
    found = re.search("<style>(.*)</style>", _TEMPLATE.read_text(encoding="utf-8"), re.DOTALL)
    assert found
    parts = _style_parts(buses)
    return re.sub(r"@@(\w+)@@", lambda match: parts[match[1]], found[1])


def _style_parts(buses: int) -> dict[str, str]:
    return {
        "colours": _colours(VOLTAGE_COLOURS),
        "dark_colours": _colours(_DARK_COLOURS),
        "dot": "4" if buses <= 1000 else "2.2",
    }


def _first(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text[:400])


def json_text(data: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def number(value: float, digits: int) -> float | None:
    """A number for JSON, None where it is not finite."""
    return round(float(value), digits) if math.isfinite(value) else None


def _bus_data(feeder: Feeder, grid: Grid, flow: PowerFlow, at: np.ndarray, km: np.ndarray) -> list[dict[str, Any]]:
    """Each bus's name, place and nodes: [number, phase, volts, pu, degrees]."""
    v = np.asarray(flow.v)
    with np.errstate(over="ignore", invalid="ignore"):
        pu = np.abs(v)
        volts = pu * np.asarray(grid.node_volts)[:-1]
    degrees, phase = np.degrees(np.angle(v)), node_phases(feeder)
    out, i = [], 0
    for bus, (x, y), distance in zip(feeder.buses, at.tolist(), km.tolist(), strict=True):
        nodes = []
        for node in bus.nodes:
            values = (number(volts[i], 4), number(pu[i], 6), number(degrees[i], 4))
            nodes.append([node, "-ABC"[phase[i]], *values])
            i += 1
        kv = number(bus.base_kv, 6)
        out.append({"name": bus.name, "kv": kv, "x": x, "y": y, "km": number(distance, 4), "nodes": nodes})
    return out


def _branch_data(edges: list[Branch], values: BranchValues) -> list[dict[str, Any]]:
    """Each branch's name, ends ([amps, kW, kvar] into it), loss and loading."""
    out = []
    for b, edge in enumerate(edges):
        ends = [
            [number(values.amps[b, e], 4), number(values.kva[b, e].real, 4), number(values.kva[b, e].imag, 4)]
            for e in (0, 1)
        ]
        loss = values.loss_kva[b]
        out.append(
            {
                "name": f"{edge.kind}.{edge.name}",
                "buses": [edge.ends[0].bus, edge.ends[1].bus],
                "closed": edge.closed,
                "ends": ends,
                "loss": [number(loss.real, 5), number(loss.imag, 5)],
                "loading": number(values.loading[b], 5),
            }
        )
    return out


def _colours(stops: tuple[str, ...]) -> str:
    """The voltage scale's classes, interpolated between the stops."""
    rgb = np.array([[int(stop[i : i + 2], 16) for i in (1, 3, 5)] for stop in stops], float)
    at = np.linspace(0, len(stops) - 1, svg.BINS)
    channels = [np.interp(at, np.arange(len(stops)), rgb[:, k]) for k in range(3)]
    colours = np.round(np.stack(channels, axis=1)).astype(int).tolist()
    return "".join(f".c{i}{{--c:#{r:02x}{g:02x}{b:02x}}}" for i, (r, g, b) in enumerate(colours))


def scale(low: float, high: float) -> str:
    """The steps of the voltage scale between its ends."""
    steps = "".join(f'<span class="c{i}"></span>' for i in range(svg.BINS))
    return f'<span>{low:.4f} pu</span><span class="steps">{steps}</span><span>{high:.4f} pu</span>'


def _summary(numbers: dict[str, Any]) -> str:
    """The rows of the summary table."""
    rows = []
    for key, label in _LABELS.items():
        where = numbers.get(_WHERE.get(key, ""))
        rows.append(_row(label, _text(key, numbers[key]), printable(where) if where else ""))
    for tap in numbers["taps"]:
        rows.append(
            _row(f"tap of {printable(tap['regulator'])}", f"{tap['tap_pu']:.5f}", f"{tap['position']:+d}\u00a0steps")
        )
    return "".join(rows)


def _row(*cells: str) -> str:
    label, value, where = map(html.escape, cells)
    return f'<tr><th scope="row">{label}</th><td>{value}</td><td class="name">{where}</td></tr>'


def _text(key: str, value: Any) -> str:
    if value is None:
        return "\u2013"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value)
    return f"{value:.2e}" if key == "residual_pu" else f"{value:.4f}" if key.endswith("_pu") else f"{value:,.1f}"
