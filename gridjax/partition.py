"""Cutting a circuit into zones: the host half of what makes the sweep cheap.

A zone is a connected part of the circuit. It meets the others at its *boundary* buses: its *head*, on the way to the
source, and its *tails*, where other zones go on. Zones are made so that they have one tail at most (after G. N.
Frederickson, 1985): then zones of zones have few boundary buses too, and the hierarchy over a feeder of any shape is
shallow. Loops, parallel lines and elements with many terminals stay inside one zone, because cuts are made only at
articulation buses (Hopcroft and Tarjan, 1973, by way of networkx). Subtrees are closed greedily from the leaves once
they exceed the limits.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import networkx as nx


@dataclass
class Zone:
    """`head`: a boundary bus, or the root; `buses`: its other buses; `tails`: those where further zones hang."""

    head: int
    buses: list[int]
    tails: list[int]

    @property
    def boundary(self) -> list[int]:
        """The buses at which the zone meets others."""
        return [self.head, *self.tails]


@dataclass
class Partition:
    """Zones, the first at the root; `zone_of_bus`: the zone of which a bus is no head; `zone_of_element`."""

    zones: list[Zone]
    zone_of_bus: dict[int, int]
    zone_of_element: list[int]


@dataclass
class _Block:
    """A biconnected component hung at `top`; `ports`, `nodes`, `tails`: what of its subtree is not in a closed zone."""

    top: int
    buses: list[int]
    own: int = 0
    ports: int = 0
    nodes: int = 0
    tails: int = 0
    zone: int = -1


@dataclass(frozen=True)
class Limits:
    """What a zone should hold at most; a loop too large for it makes a larger zone."""

    ports: int
    nodes: int
    tails: int = 1

    def allow(self, blocks: Collection[_Block], ports: int = 0, nodes: int = 0, tails: int = 0) -> bool:
        """Whether a zone may hold the blocks and so much more."""
        return (
            sum(b.ports for b in blocks) + ports <= self.ports
            and sum(b.nodes for b in blocks) + nodes <= self.nodes
            and sum(b.tails for b in blocks) + tails <= self.tails
        )


@dataclass
class BlockTree:
    """The biconnected components (blocks) of a circuit, hung up at the root.

    Attributes:
      blocks: breadth first from the root.
      inside: the block in which each bus is not the top.
      order: the buses, breadth first.
      of_element: the block of each element: where all its buses but possibly the top one lie inside.
    """

    blocks: list[_Block]
    inside: dict[int, int]
    order: list[int]
    of_element: list[int]

    def hanging(self) -> dict[int, list[int]]:
        """The blocks below each bus."""
        out: dict[int, list[int]] = {}
        for k, block in enumerate(self.blocks):
            out.setdefault(block.top, []).append(k)
        return out


def block_tree(elements: Sequence[tuple[int, ...]], root: int) -> BlockTree:
    """The blocks of the graph in which each element joins all buses it touches."""
    graph = nx.Graph()
    graph.add_node(root)
    for buses in elements:
        graph.add_edges_from(itertools.combinations(sorted(set(buses)), 2))
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

    def block_of(buses: tuple[int, ...]) -> int:
        candidates = sorted({inside[b] for b in buses if b in inside})
        return next(c for c in candidates if all(inside.get(b) == c or blocks[c].top == b for b in buses))

    return BlockTree(blocks, inside, order, [block_of(buses) for buses in elements])


def _close(children: list[_Block], width: int, own: tuple[int, int], limits: Limits):
    """Which of the subtrees at a bus stay open, and how the others are packed into zones."""
    kept: list[_Block] = []
    rest = sorted(children, key=lambda b: (b.tails, b.ports, b.nodes))
    while rest and limits.allow([*kept, rest[0]], own[0] + width, own[1], 1):
        kept.append(rest.pop(0))
    bins: list[list[_Block]] = []
    for block in reversed(rest):  # first fit, decreasing
        for group in bins:
            if limits.allow([*group, block]):
                group.append(block)
                break
        else:
            bins.append([block])
    return kept, bins


@dataclass
class _Cut:
    """Blocks closed into zones, each with its head, and those that stayed open at a bus."""

    closed: list[tuple[int, list[_Block]]] = field(default_factory=list)
    open_at: dict[int, list[_Block]] = field(default_factory=dict)
    tails: set[int] = field(default_factory=set)


def partition(
    elements: Sequence[tuple[int, ...]],
    root: int,
    bus_ports: Sequence[int],
    bus_nodes: Sequence[int],
    limits: Limits,
    element_ports: Sequence[int] | None = None,
    stiff: Collection[tuple[int, int]] = (),
) -> Partition:
    """Cuts the circuit into zones.

    Args:
      elements: the buses that each element touches (shunts touch one).
      root: the index of the bus that stands for the first source's EMF.
      bus_ports: ports (nonlinear devices' phases) at each bus.
      bus_nodes: nodes of each bus; a boundary bus counts as so many ports.
      limits: what a zone should hold.
      element_ports: ports of each element, 0 if None.
      stiff: pairs of buses that shall not bound one zone together.

    Returns:
      The zones. Every bus must be connected to the root.
    """
    tree = block_tree(elements, root)
    for k, ports in zip(tree.of_element, element_ports or (), strict=bool(element_ports)):
        tree.blocks[k].own += ports
    hanging = tree.hanging()

    partners: dict[int, list[int]] = {}
    for a, b in stiff:
        partners.setdefault(a, []).append(b)
        partners.setdefault(b, []).append(a)
    cut = _Cut()
    settled: dict[int, tuple[int, int, int]] = {}  # open ports, nodes and tails at and below a bus
    for bus in reversed(tree.order):
        children = [tree.blocks[k] for k in hanging.get(bus, ())]
        for block in children:
            below = [settled[b] for b in block.buses]
            block.ports, block.nodes, block.tails = (sum(column) for column in zip(*below, strict=True))
            block.ports += block.own
        if bus == root:
            cut.closed.append((bus, children))
            break
        own = (bus_ports[bus], bus_nodes[bus])
        if cut.tails.intersection(partners.get(bus, ())) or limits.allow(children, *own):
            kept, bins = children, []
        else:
            kept, bins = _close(children, bus_nodes[bus], own, limits)
        cut.open_at[bus] = kept
        cut.closed.extend((bus, group) for group in bins)
        if bins:
            cut.tails.add(bus)
        settled[bus] = (
            own[0] + sum(b.ports for b in kept) + bus_nodes[bus] * bool(bins),
            own[1] + sum(b.nodes for b in kept),
            sum(b.tails for b in kept) + bool(bins),
        )
    zones, zone_of_bus = _collect(cut)
    return Partition(zones, zone_of_bus, [tree.blocks[k].zone for k in tree.of_element])


def _collect(cut: _Cut) -> tuple[list[Zone], dict[int, int]]:
    """Lists the buses of each zone."""
    zones: list[Zone] = []
    zone_of_bus: dict[int, int] = {}
    for head, group in reversed(cut.closed):  # root first
        zone = Zone(head=head, buses=[], tails=[])
        stack = list(group)
        while stack:
            block = stack.pop()
            block.zone = len(zones)
            for bus in block.buses:
                zone.buses.append(bus)
                if bus in cut.tails:
                    zone.tails.append(bus)
                zone_of_bus[bus] = len(zones)
                stack.extend(cut.open_at[bus])
        zones.append(zone)
    return zones, zone_of_bus


def hierarchy(first: Partition, root: int, bus_nodes: Sequence[int], members: int) -> list[Partition]:
    """Zones of zones, tier by tier, up to one that holds all.

    Args:
      first: the zones of the lowest tier.
      root: as in `partition`.
      bus_nodes: as in `partition`.
      members: how many zones make up one of the next tier, about.

    Returns:
      The partitions from the lowest tier up; the elements of each are the zones of the one before.
    """
    tiers = [first]
    while len(tiers[-1].zones) > 1:
        zones = tiers[-1].zones
        # A bus of its own makes a zone that touches one bus a branch, which can be packed with others.
        own = range(len(bus_nodes), len(bus_nodes) + len(zones))
        elements = [(*zone.boundary, private) for zone, private in zip(zones, own, strict=True)]
        limits = Limits(members, 10**9) if len(zones) > 2 * members else Limits(10**9, 10**9)
        nodes = [*bus_nodes, *(0 for _ in zones)]
        tiers.append(partition(elements, root, [0] * len(nodes), [0] * len(nodes), limits, [1] * len(zones)))
        for zone in tiers[-1].zones:
            zone.buses = [b for b in zone.buses if b < len(bus_nodes)]
    return tiers
