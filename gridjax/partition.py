"""Cutting a feeder into zones: the host half of what makes the sweep cheap.

A zone is a connected part of the circuit that hangs at one *head*: a bus of its parent zone, or the EMF of the
first source for the root. Zones form a tree, whatever the circuit: loops, parallel lines and elements with
many terminals stay inside one zone, because cuts are made only at articulation buses (Hopcroft and Tarjan,
1973, by way of networkx). Each zone is later reduced to its ports; small zones make the dense blocks small,
large zones make the tree shallow. Subtrees are closed greedily from the leaves once they exceed the limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import networkx as nx


@dataclass
class Zone:
    """`head`: a bus index (of the parent zone); `buses`: interior buses; `level`: 0 for the root."""

    head: int
    buses: list[int]
    parent: int = -1
    level: int = 0


@dataclass
class Partition:
    """Zones ordered by level; `zone_of_bus` for interior buses, `zone_of_element` in the order given."""

    zones: list[Zone]
    zone_of_bus: dict[int, int]
    zone_of_element: list[int]


@dataclass
class _Block:
    """A biconnected component hung at `top`; `ports`, `nodes`: what of its subtree is not in a closed zone."""

    top: int
    buses: list[int]
    ports: int = 0
    nodes: int = 0
    zone: int = -1
    kept: list[int] = field(default_factory=list)


def _blocks(graph: nx.Graph, root: int) -> tuple[list[_Block], dict[int, int], list[int]]:
    """Blocks in breadth-first order from the root, the block in which each bus is interior, and bus order."""
    at_bus: dict[int, list[list[int]]] = {}
    for component in nx.biconnected_components(graph):
        members: list[int] = sorted(component)  # pyright: ignore[reportAssignmentType]
        for bus in members:
            at_bus.setdefault(bus, []).append(members)
    blocks: list[_Block] = []
    inside: dict[int, int] = {}
    order = [root]
    done: set[int] = set()
    for bus in order:  # grows while it is walked
        for members in at_bus.get(bus, ()):
            if id(members) in done:
                continue
            done.add(id(members))
            below = [b for b in members if b != bus]
            for b in below:
                inside[b] = len(blocks)
            blocks.append(_Block(top=bus, buses=below))
            order.extend(below)
    return blocks, inside, order


def _close(children: list[_Block], room: tuple[int, int], width: int, limits: tuple[int, int]):
    """Which of the subtrees at a bus stay open, and how the others are packed into zones."""
    children = sorted(children, key=lambda b: (b.ports, b.nodes))
    if sum(b.ports for b in children) <= room[0] and sum(b.nodes for b in children) <= room[1]:
        return children, []
    kept: list[_Block] = []
    ports, nodes = width, 0
    while children and ports + children[0].ports <= room[0] and nodes + children[0].nodes <= room[1]:
        block = children.pop(0)
        ports, nodes = ports + block.ports, nodes + block.nodes
        kept.append(block)
    bins: list[list[_Block]] = []
    for block in reversed(children):  # first fit, decreasing
        for group in bins:
            fits_ports = sum(b.ports for b in group) + block.ports <= limits[0]
            if fits_ports and sum(b.nodes for b in group) + block.nodes <= limits[1]:
                group.append(block)
                break
        else:
            bins.append([block])
    return kept, bins


def partition(
    elements: Sequence[tuple[int, ...]],
    root: int,
    bus_ports: Sequence[int],
    bus_nodes: Sequence[int],
    max_ports: int = 24,
    max_nodes: int = 128,
) -> Partition:
    """Cuts the circuit into a tree of zones.

    Args:
      elements: the buses that each linear element touches (shunts touch one).
      root: the index of the bus that stands for the first source's EMF.
      bus_ports: ports (nonlinear devices' phases, tap changers) at each bus.
      bus_nodes: nodes of each bus.
      max_ports: ports a zone should hold; a loop too large for it makes a larger zone.
      max_nodes: the same for nodes.

    Returns:
      The zones in the order of their levels. Every bus must be connected to the root.
    """
    graph = nx.Graph()
    graph.add_node(root)
    for buses in elements:
        distinct = sorted(set(buses))
        graph.add_edges_from((a, b) for i, a in enumerate(distinct) for b in distinct[i + 1 :])
    blocks, inside, order = _blocks(graph, root)
    hanging: dict[int, list[_Block]] = {}
    for block in blocks:
        hanging.setdefault(block.top, []).append(block)

    closed: list[tuple[int, list[_Block]]] = []
    open_at: dict[int, list[_Block]] = {}
    settled: dict[int, tuple[int, int]] = {}  # open ports and nodes at and below a bus
    limits = (max_ports, max_nodes)
    for bus in reversed(order):
        children = hanging.get(bus, [])
        for block in children:
            block.ports = sum(settled[b][0] for b in block.buses)
            block.nodes = sum(settled[b][1] for b in block.buses)
        if bus == root:
            closed.append((bus, children))
            break
        room = (max_ports - bus_ports[bus], max_nodes - bus_nodes[bus])
        kept, bins = _close(children, room, bus_nodes[bus], limits)
        open_at[bus] = kept
        closed.extend((bus, group) for group in bins)
        settled[bus] = (
            bus_ports[bus] + sum(b.ports for b in kept) + bus_nodes[bus] * len(bins),
            bus_nodes[bus] + sum(b.nodes for b in kept),
        )
    return _collect(closed, open_at, inside, blocks, elements)


def _collect(closed, open_at, inside, blocks, elements) -> Partition:
    """Lists the buses of each zone, orders the zones by level, and finds each element's zone."""
    zones: list[Zone] = []
    zone_of_bus: dict[int, int] = {}
    for head, group in reversed(closed):  # root first; a head's zone stands before the zones at it
        zone = Zone(head=head, buses=[])
        stack = list(group)
        while stack:
            block = stack.pop()
            block.zone = len(zones)
            for bus in block.buses:
                zone.buses.append(bus)
                zone_of_bus[bus] = len(zones)
                stack.extend(open_at[bus])
        zones.append(zone)
    for zone in zones[1:]:
        zone.parent = zone_of_bus[zone.head]
        zone.level = zones[zone.parent].level + 1
    rank = sorted(range(len(zones)), key=lambda z: zones[z].level)
    new = {old: i for i, old in enumerate(rank)}
    zone_of_element = []
    for buses in elements:
        # An element lies in the block in which all its buses but possibly the top one are interior.
        candidates = {inside[b] for b in buses if b in inside}
        block = next(blocks[c] for c in candidates if all(inside.get(b) == c or blocks[c].top == b for b in buses))
        zone_of_element.append(new[block.zone])
    ordered = [zones[old] for old in rank]
    for zone in ordered:
        zone.parent = new[zone.parent] if zone.parent >= 0 else -1
    return Partition(
        zones=ordered,
        zone_of_bus={bus: new[z] for bus, z in zone_of_bus.items()},
        zone_of_element=zone_of_element,
    )
