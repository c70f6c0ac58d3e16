"""The feeder as a graph: buses and branches for pictures, nodes and conductors for reachability.

Two graphs are meant here and kept apart. The graph of *buses* (`to_networkx`, `distance_km`) has
one edge an element and is what a person draws. The graph of *nodes* (`energised`) has a vertex for
every conductor of every bus and answers which of them a source can reach:

- a line, a closed switch, a series reactor and a series capacitor tie their terminals' conductors
  position by position;
- a transformer ties together the conductors of each phase's coils, over all its windings: the phase
  and the neutral of a wye coil, all conductors of a delta winding;
- an admittance ties all its conductors;
- the ground ties nothing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import networkx as nx

from gridjax.feeder import (
    KM_PER_UNIT,
    Capacitor,
    Feeder,
    Geometry,
    Reactor,
    Transformer,
    split_terminal,
)

Node = tuple[str, int]


class _Branch(NamedTuple):
    """One edge: whose it is, its two terminals, its length and whether it conducts."""

    kind: str
    name: str
    terminal1: str
    terminal2: str
    length_km: float
    closed: bool


def to_networkx(feeder: Feeder) -> nx.MultiGraph:
    """The graph of buses and branches.

    Args:
      feeder: its terminals must name buses that exist; other faults do not matter.

    Returns:
      A graph with a vertex for each bus (attributes `base_kv`, `x`, `y`, `nodes`) and an edge for
      each line, switch, transformer, series capacitor, series reactor and multi-terminal
      admittance, with the key `"line.l1"` and the attributes `kind`, `length_km` (0 but for lines)
      and `closed`. An element with more than two terminals has an edge from its first bus to each
      of the others, all with the same key (one edge, then, to two windings on one bus).

    Raises:
      ValueError: a terminal is malformed or names a bus which is not in the feeder.
    """
    graph = nx.MultiGraph(name=feeder.name)
    for bus in feeder.buses:
        graph.add_node(bus.name, base_kv=bus.base_kv, x=bus.x, y=bus.y, nodes=bus.nodes)
    for branch in _branches(feeder):
        key = f"{branch.kind}.{branch.name}"
        ends = [_bus_of(terminal, key, graph) for terminal in (branch.terminal1, branch.terminal2)]
        graph.add_edge(*ends, key=key, kind=branch.kind, length_km=branch.length_km, closed=branch.closed)
    return graph


def distance_km(feeder: Feeder) -> dict[str, float]:
    """The length of the shortest path from the first source to each bus.

    Only lines have a length; the path runs through closed elements alone.

    Args:
      feeder: a feeder with at least one source.

    Returns:
      A distance in km for every bus, infinite where no closed path leads.

    Raises:
      ValueError: the feeder has no source, or a terminal names no bus, or a length is negative.
    """
    if not feeder.sources:
        raise ValueError(f"feeder {feeder.name!r} has no source to measure from: add one")
    negative = next((line for line in feeder.lines if not line.length >= 0), None)
    if negative is not None:
        raise ValueError(f"line.{negative.name}: length {negative.length} is not a length: give km > 0")
    graph = to_networkx(feeder)
    source = feeder.sources[0]
    start = _bus_of(source.bus, f"source.{source.name}", graph)
    closed = nx.MultiGraph()
    closed.add_nodes_from(graph)
    closed.add_edges_from(edge for edge in graph.edges(data=True) if edge[2]["closed"])
    found = nx.single_source_dijkstra_path_length(closed, start, weight="length_km")
    return {bus.name: float(found.get(bus.name, math.inf)) for bus in feeder.buses}


def energised(feeder: Feeder) -> tuple[set[Node], set[Node]]:
    """The nodes whose voltage is determined.

    Elements with a malformed terminal conduct nothing here; nodes which their bus lacks may appear.

    Args:
      feeder: any feeder.

    Returns:
      The nodes `(bus, number)` that a path of conducting elements joins to a source, and the
      neutrals (nodes 4 and up) that such elements tie to ground.
    """
    neighbours: dict[Node, list[Node]] = {}
    grounded: list[Node] = []
    for group in _node_groups(feeder):
        live = sorted((node for node in group if node[1] != 0), key=lambda node: node[1])
        if len(live) < len(group) and all(number >= 4 for _, number in live):
            grounded += live
        for first, second in itertools.pairwise(live):  # a chain connects as well as a mesh
            neighbours.setdefault(first, []).append(second)
            neighbours.setdefault(second, []).append(first)
    sources = [node for source in feeder.sources for node in _nodes(source.bus)]
    reached = _flood(sources, neighbours)
    neutrals = {node: [other for other in others if other[1] >= 4] for node, others in neighbours.items()}
    return reached, _flood(grounded, neutrals)


def _flood(seeds: list[Node], neighbours: dict[Node, list[Node]]) -> set[Node]:
    """Everything that can be reached from the seeds."""
    found = set(seeds)
    stack = list(found)
    while stack:
        for node in neighbours.get(stack.pop(), ()):
            if node not in found:
                found.add(node)
                stack.append(node)
    return found


def _nodes(terminal: str) -> list[Node]:
    """The nodes of a terminal in conductor order; none if it is malformed."""
    try:
        bus, numbers = split_terminal(terminal)
    except ValueError:
        return []
    return [(bus, number) for number in numbers]


def _bus_of(terminal: str, key: str, graph: nx.MultiGraph) -> str:
    """The bus of a terminal, which must be in the graph."""
    try:
        bus, _ = split_terminal(terminal)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None
    if bus not in graph:
        raise ValueError(f"{key}: unknown bus {bus!r}: add it to the buses or correct the terminal")
    return bus


def _node_groups(feeder: Feeder) -> Iterator[list[Node]]:
    """The groups of nodes (ground included, as number 0) that conducting elements tie together."""
    pairs = [(line.bus1, line.bus2) for line in feeder.lines]
    pairs += [(switch.bus1, switch.bus2) for switch in feeder.switches if switch.closed]
    pairs += [
        (shunt.bus1, shunt.bus2)
        for shunt in (*feeder.capacitors, *feeder.reactors)
        if shunt.bus2 is not None and _conducts(shunt)
    ]
    for bus1, bus2 in pairs:
        yield from (list(pair) for pair in zip(_nodes(bus1), _nodes(bus2), strict=False))
    for transformer in feeder.transformers:
        yield from _coil_groups(transformer)
    for element in feeder.admittances:
        yield [node for terminal in element.terminals for node in _nodes(terminal)]


def _coil_groups(transformer: Transformer) -> Iterator[list[Node]]:
    """For each phase of a transformer the nodes of its coils, over all windings."""
    windings = [(winding.connection, _nodes(winding.bus)) for winding in transformer.windings]
    for phase in range(min(max(transformer.phases, 1), 99)):
        group: list[Node] = []
        for connection, nodes in windings:
            group += nodes if connection == "delta" else nodes[phase : phase + 1] + nodes[-1:]
        yield group


def _conducts(shunt: Capacitor | Reactor) -> bool:
    """Whether a capacitor has a step in service; a reactor always conducts."""
    return not isinstance(shunt, Capacitor) or any(shunt.closed)


def _branches(feeder: Feeder) -> Iterator[_Branch]:
    """Every edge of the graph of buses."""
    codes = {code.name: code for code in feeder.codes}
    for line in feeder.lines:
        unit, code = line.unit, codes.get(line.code)
        if unit == "none" and code is not None and not isinstance(code, Geometry):
            unit = code.unit
        length_km = line.length * KM_PER_UNIT.get(unit, 1.0)
        yield _Branch("line", line.name, line.bus1, line.bus2, length_km, True)
    for switch in feeder.switches:
        yield _Branch("switch", switch.name, switch.bus1, switch.bus2, 0.0, switch.closed)
    for transformer in feeder.transformers:
        buses = [winding.bus for winding in transformer.windings]
        for other in buses[1:]:
            yield _Branch("transformer", transformer.name, buses[0], other, 0.0, True)
    for kind, table in (("capacitor", feeder.capacitors), ("reactor", feeder.reactors)):
        for shunt in table:
            if shunt.bus2 is not None and _is_series(shunt.bus1, shunt.bus2):
                yield _Branch(kind, shunt.name, shunt.bus1, shunt.bus2, 0.0, _conducts(shunt))
    for element in feeder.admittances:
        for other in element.terminals[1:]:
            yield _Branch("admittance", element.name, element.terminals[0], other, 0.0, True)


def _is_series(bus1: str, bus2: str) -> bool:
    """Whether some conductor runs from one bus to another one, not to ground."""
    pairs = zip(_nodes(bus1), _nodes(bus2), strict=False)
    return any(a[0] != b[0] and a[1] != 0 and b[1] != 0 for a, b in pairs)
