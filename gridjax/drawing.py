"""What the pictures show: phases, branches and colours, for `gridjax.plot`, `gridjax.oneline` and `gridjax.page`.

Phases. A node's number is its phase only where three phases run; a centre-tapped service has legs 1 and 2 of a single
phase. So phases are followed from the sources: lines, switches and series elements hand them on conductor by
conductor, transformers phase by phase.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from gridjax.feeder import Feeder, Transformer, split_terminal
from gridjax.graph import to_networkx
from gridjax.grid import Grid, OperatingPoint
from gridjax.powerflow import results
from gridjax.powerflow.solve import PowerFlow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's blue, vermillion and bluish green, distinct with any colour vision ("Color Universal Design", 2008).
PHASES = {1: ("A", "#0072B2"), 2: ("B", "#D55E00"), 3: ("C", "#009E73")}
_RUNAWAY_PU = 1e3  # no picture shows voltages from here on
SECONDARY_KV = 1.0  # line to line; below it a bus is a secondary
# ANSI C84.1-2020, service voltage of 120 to 600 V systems: 114 to 126 V (range A), 110 to 127 V (range B) on 120 V.
RANGE_A = (114 / 120, 126 / 120)
RANGE_B = (110 / 120, 127 / 120)
# Nine colours of viridis (S. van der Walt, N. Smith, 2015) without its palest end, low to high voltage.
VOLTAGE_COLOURS = (
    "#440154",
    "#472c7a",
    "#3b518b",
    "#2c718e",
    "#21908d",
    "#27ad81",
    "#5cc863",
    "#8fd744",
    "#bddf26",
)
TABLES = {
    "line": "lines",
    "switch": "switches",
    "transformer": "transformers",
    "capacitor": "capacitors",
    "reactor": "reactors",
    "admittance": "admittances",
}


class End(NamedTuple):
    """A branch's side: its bus (index in the table) and which of the element's terminals are there."""

    bus: int
    terminals: tuple[int, ...]


class Branch(NamedTuple):
    """An edge of the drawing: an element's kind, name and row in its table, and its two ends."""

    kind: str
    name: str
    row: int
    ends: tuple[End, End]
    closed: bool


def terminals(record: object) -> tuple[str, ...]:
    """The terminals of an element with more than one."""
    if isinstance(record, Transformer):
        return tuple(winding.bus for winding in record.windings)
    if hasattr(record, "terminals"):
        return record.terminals  # type: ignore[attr-defined]
    return (record.bus1, record.bus2)  # type: ignore[attr-defined]


def branches(feeder: Feeder) -> list[Branch]:
    """All edges of the feeder's drawing, in the order of `gridjax.to_networkx`."""
    number = {bus.name: i for i, bus in enumerate(feeder.buses)}
    row = {(kind, r.name): i for kind, table in TABLES.items() for i, r in enumerate(getattr(feeder, table))}
    out = []
    for u, v, key, data in to_networkx(feeder).edges(keys=True, data=True):
        kind, name = key.split(".", 1)
        i = row[kind, name]
        at = [split_terminal(t)[0] for t in terminals(getattr(feeder, TABLES[kind])[i])]
        first, second = (u, v) if at[0] == u else (v, u)
        if first == second:  # a loop on one bus, which no drawing shows
            continue
        ends = [End(number[bus], tuple(k for k, name in enumerate(at) if name == bus)) for bus in (first, second)]
        out.append(Branch(kind, name, i, (ends[0], ends[1]), data["closed"]))
    return out


def _pairs(record: object) -> Iterator[tuple[tuple[str, int], tuple[str, int]]]:
    """Pairs of nodes `(bus, number)` at two terminals of an element that carry one phase."""
    sides = [split_terminal(t) for t in terminals(record)]
    bus, nodes = sides[0]
    live = [n for n in nodes if n]
    for other, numbers in sides[1:]:
        theirs = [n for n in numbers if n]
        if not isinstance(record, Transformer):
            yield from (((bus, a), (other, b)) for a, b in zip(nodes, numbers, strict=False) if a and b)
        elif record.phases == 1 and len(theirs) != len(live):  # a coil between two phases is drawn as the first
            yield from (((bus, a), (other, b)) for a in live[:1] for b in theirs)
        else:
            yield from (((bus, a), (other, b)) for a, b in zip(live, theirs, strict=False))


def node_phases(feeder: Feeder) -> np.ndarray:
    """The phase of each node, (nodes,): 1, 2, 3, or 0 for neutrals and other conductors."""
    neighbours = defaultdict(list)
    for table in TABLES.values():
        for record in getattr(feeder, table):
            if getattr(record, "bus2", "") is None or not getattr(record, "closed", True):
                continue
            for a, b in _pairs(record):
                neighbours[a].append(b)
                neighbours[b].append(a)
    phase: dict[tuple[str, int], int] = {}
    for source in feeder.sources:
        bus, nodes = split_terminal(source.bus)
        phase |= {(bus, n): n for n in nodes if 1 <= n <= 3}
    front = deque(phase)
    while front:
        node = front.popleft()
        for other in neighbours[node]:
            if other not in phase and other[1] <= 3:
                phase[other] = phase[node]
                front.append(other)
    every = [(bus.name, n) for bus in feeder.buses for n in bus.nodes]
    return np.array([phase.get(node, node[1] if node[1] <= 3 else 0) for node in every], int)


def conductor_pairs(feeder: Feeder, edges: list[Branch]) -> list[tuple[int, int, int]]:
    """The profile's lines: `(branch, node, node)` for each conductor of each closed branch, neutrals left out."""
    first = np.concatenate([[0], np.cumsum([len(bus.nodes) for bus in feeder.buses])])
    node = {(bus.name, n): int(first[i]) + k for i, bus in enumerate(feeder.buses) for k, n in enumerate(bus.nodes)}
    out = []
    for b, edge in enumerate(edges):
        if not edge.closed:
            continue
        names = tuple(feeder.buses[end.bus].name for end in edge.ends)
        for a, c in _pairs(getattr(feeder, TABLES[edge.kind])[edge.row]):
            if (a[0], c[0]) in (names, names[::-1]) and a in node and c in node and max(a[1], c[1]) <= 3:
                out.append((b, node[a], node[c]))
    return out


def is_secondary(feeder: Feeder) -> np.ndarray:
    """Whether each bus is below 1 kV line to line, (buses,); none is in a feeder whose lines all are."""
    low = {bus.name: bus.base_kv * 3**0.5 < SECONDARY_KV for bus in feeder.buses}
    if all(low[split_terminal(line.bus1)[0]] for line in feeder.lines):
        return np.zeros(len(low), bool)
    return np.array(list(low.values()), bool)


def phase_nodes(feeder: Feeder) -> np.ndarray:
    """Which nodes are phases, (nodes,): numbers 1 to 3. Neutrals (4 and up) count in no voltage limit."""
    return np.array([n <= 3 for bus in feeder.buses for n in bus.nodes], bool)


def node_bus(feeder: Feeder) -> np.ndarray:
    """The bus of each node, (nodes,)."""
    return np.repeat(np.arange(len(feeder.buses)), [len(bus.nodes) for bus in feeder.buses])


def magnitudes(feeder: Feeder, flow: PowerFlow) -> np.ndarray:
    """|V| in pu of each node, (nodes,).

    Raises:
      ValueError: the flow is of many scenarios, or of another feeder.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # the last iterate of a flow that has run away
        v = np.abs(np.asarray(flow.v))
    nodes = sum(len(bus.nodes) for bus in feeder.buses)
    if v.shape != (nodes,):
        cure = "for a batch take one scenario: jax.tree.map(lambda a: a[0], flow)"
        raise ValueError(f"flow.v has the shape {v.shape}, but {feeder.name!r} has {nodes} nodes; {cure}")
    return v


def drawable(feeder: Feeder, v: np.ndarray) -> np.ndarray:
    """Which nodes a picture can show, (nodes,): phases with a finite voltage that has not run away."""
    return phase_nodes(feeder) & (v < _RUNAWAY_PU)


def bus_minimum(feeder: Feeder, v: np.ndarray) -> np.ndarray:
    """The lowest phase voltage of each bus that can be drawn, (buses,); NaN where it has none."""
    usable = drawable(feeder, v)
    out = np.full(len(feeder.buses), np.inf)
    np.minimum.at(out, node_bus(feeder)[usable], v[usable])
    return np.where(np.isfinite(out), out, np.nan)


@jax.jit
def _all_results(grid: Grid, point: OperatingPoint, flow: PowerFlow) -> dict[str, Any]:
    names = ("currents", "powers", "loading", "losses", "source_power")
    return {name: getattr(results, name)(grid, point, flow) for name in names}


def all_results(grid: Grid, point: OperatingPoint, flow: PowerFlow) -> dict[str, Any]:
    """Currents, powers, loading, losses and source power as NumPy arrays, under the names of their functions."""
    return jax.tree.map(np.asarray, _all_results(grid, point, flow))


class BranchValues(NamedTuple):
    """What flows in each branch: currents and powers into it at both ends, (branches, 2), losses, loading."""

    amps: np.ndarray  # the largest conductor's
    kva: np.ndarray  # complex
    loss_kva: np.ndarray  # complex, (branches,), of the whole element
    loading: np.ndarray  # (branches,), NaN where the feeder gives no rating


def branch_values(grid: Grid, point: OperatingPoint, flow: PowerFlow, edges: list[Branch]) -> BranchValues:
    """Currents, powers, losses and loading of the branches."""
    found = all_results(grid, point, flow)
    with np.errstate(over="ignore", invalid="ignore"):
        amps = {k: np.abs(a).max(axis=2) for k, a in found["currents"].items()}
        kva = {k: s.sum(axis=2) for k, s in found["powers"].items()}
    load = found["loading"]
    shape = (len(edges), 2)
    out = BranchValues(
        np.zeros(shape), np.zeros(shape, complex), np.zeros(shape[0], complex), np.full(shape[0], np.nan)
    )
    for b, edge in enumerate(edges):
        table = TABLES[edge.kind]
        out.loss_kva[b] = kva[table][edge.row].sum()
        for e, end in enumerate(edge.ends):
            at = list(end.terminals)
            out.amps[b, e] = amps[table][edge.row, at].max()
            out.kva[b, e] = kva[table][edge.row, at].sum()
        if table in load and np.isfinite(np.asarray(grid.rating_a[table][edge.row])).any():
            out.loading[b] = load[table][edge.row].max()
    return out


def bus_devices(feeder: Feeder) -> dict[str, list[int]]:
    """The buses (indices) where symbols stand: sources, shunt capacitors."""
    number = {bus.name: i for i, bus in enumerate(feeder.buses)}
    series = {edge.name for edge in branches(feeder) if edge.kind == "capacitor"}
    return {
        "source": [number[split_terminal(s.bus)[0]] for s in feeder.sources],
        "capacitor": [number[split_terminal(c.bus1)[0]] for c in feeder.capacitors if c.name not in series],
    }


def branch_symbols(feeder: Feeder, edges: list[Branch]) -> dict[str, list[int]]:
    """The branches (indices) where symbols stand: regulators, transformers, service transformers, switches."""
    regulated = {regulator.transformer for regulator in feeder.regulators}
    secondary = is_secondary(feeder)
    out: dict[str, list[int]] = {
        name: [] for name in ("transformer", "service transformer", "regulator", "closed switch", "open switch")
    }
    transformers = sum(edge.kind == "transformer" for edge in edges)
    for b, edge in enumerate(edges):
        if edge.kind == "transformer":
            service = transformers > 30 and any(secondary[end.bus] for end in edge.ends)
            out["regulator" if edge.name in regulated else "service transformer" if service else "transformer"].append(
                b
            )
        elif edge.kind == "switch":
            out["closed switch" if edge.closed else "open switch"].append(b)
    return out


def printable(name: str) -> str:
    """A name for a terminal or a picture: characters that print as themselves, and not too many of them."""
    text = "".join(letter if letter.isprintable() else "\ufffd" for letter in name)
    return text if len(text) <= 60 else text[:59] + "\u2026"


def stamp(figure: Figure, axes: Axes) -> None:
    """Marks a picture of a flow that has not converged."""
    axes.text(
        0.5,
        0.5,
        "NOT CONVERGED",
        transform=axes.transAxes,
        ha="center",
        va="center",
        rotation=20,
        fontsize=44,
        fontweight="bold",
        color="#c00000",
        alpha=0.6,
        zorder=100,
        gid="not-converged",
    )
    figure.suptitle("Not converged: the last iterate, not a solution", color="#c00000", fontsize=12)
