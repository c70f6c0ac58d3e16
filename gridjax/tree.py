r"""The circuit as a tree of small zones: what the processor's own kernel (`gridjax.powerflow.native`) sweeps over.

The tiers of `gridjax.assembly` make few, large products, which is what XLA and accelerators want. A processor that
keeps a handful of scenarios in its registers wants the least arithmetic instead. So here the circuit is cut at every
bus that matters (an *active* bus: it bears a device, belongs to a switch or a regulated transformer, or branches), and
what lies between is eliminated. A zone hangs at its head and holds the active buses next below, mostly one. With the
formulas of `gridjax.assembly`, and the `Y_in` of the zones below in a zone's own matrix,

    j_head += T j        from the leaves up,
    c = Z j + W c_head   from the root down,

where `c` are the *coordinates* of active buses, the voltages of a bus's nodes less that of its last one, and that one's
own (see "Boundary coordinates" there), and j the currents that go with them. The slots of taps are coordinates too.
Passive nodes bear no device, so their voltages are linear in those around: `v = R (c, c_head)`.

There are two sets of operators: those of the circuit alone, and those of a chord method (`gridjax.powerflow.chord`),
with the loads linearised at the nominal point.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

import flax.struct
import networkx as nx
import numpy as np

from gridjax.layout import Layout, Numbers, drop_matrix
from gridjax.namespace import Array
from gridjax.partition import block_tree


@flax.struct.dataclass
class Tree:
    """Zones from the root down. A coordinate holds a real and an imaginary part, side by side.

    Attributes:
      zones: (zones, 4) first coordinate, how many, first coordinate of the head, how many.
      plain, chord: Z, W and T of each zone, row by row, one zone after the other; `chord_transposed` is the same of the
        transpose, whose W is the transpose of T.
      unit_slot: (units,) where a unit or a tap's slot is in the flattened (zones, slots) of the tiers.
      slope: (units, 2, 2) derivative of a unit's current by its voltage that `chord` contains.
      term_start: (units + 1,) where a unit's terms start; a unit sees the voltage `u = sum of weight c` of its terms.
      term: (terms,) their coordinates.
      term_weight: (terms,).
      direct: (nodes of active buses, 3) a node, its coordinate, and that of its bus's last node or -1 if it is that.
      passive: (zones with passive nodes, 4) such a zone, how many it has, the head's first coordinate, how many.
      passive_node: (passive nodes,).
      recovery: R of these zones, row by row; each complex entry is its real and its imaginary part.
      counts: (7,) zones, units, nodes of active buses, zones with passive nodes, operators' entries, coordinates, and
        nodes: what is there of each but for padding.
      root: (2 heads, 2 heads) the current that the root's coordinates draw by the chord's operators; the plain
        circuit's is `Zones.head_y`.
      heads: coordinates of the root, which come first.
    """

    zones: Array
    plain: Array
    chord: Array
    chord_transposed: Array
    unit_slot: Array
    slope: Array
    term_start: Array
    term: Array
    term_weight: Array
    direct: Array
    passive: Array
    passive_node: Array
    recovery: Array
    counts: Array
    root: Array
    heads: int = flax.struct.field(pytree_node=False)


@dataclass
class _Zone:
    """A zone while the tree is made; buses, and elements as (group, member)."""

    head: int
    active: list[int] = field(default_factory=list)
    passive: list[int] = field(default_factory=list)
    elements: list[tuple[int, int]] = field(default_factory=list)
    taps: list[tuple[int, int]] = field(default_factory=list)
    start: int = 0  # first coordinate
    coordinates: int = 0


def _cut(elements: Sequence[tuple[int, ...]], root: int, needed: set[int]) -> tuple[list[_Zone], list[int]]:
    """The zones from the root down and the zone of each element."""
    tree = block_tree(elements, root)
    hanging = tree.hanging()
    carries: dict[int, bool] = {}
    active = {root}
    for bus in reversed(tree.order):
        below = sum(any(carries[b] for b in tree.blocks[k].buses) for k in hanging.get(bus, ()))
        in_loop = bus != root and len(tree.blocks[tree.inside[bus]].buses) > 1
        if bus in needed or below > 1 or (in_loop and below):
            active.add(bus)
        carries[bus] = bus in active or below > 0
    zones: list[_Zone] = []
    zone_of_block = [-1] * len(tree.blocks)
    heads = [root]
    for head in heads:  # grows while it is walked
        for first in hanging.get(head, ()):
            zone, stack = _Zone(head), [first]
            while stack:
                k = stack.pop()
                zone_of_block[k] = len(zones)
                for bus in tree.blocks[k].buses:
                    if bus in active:
                        zone.active.append(bus)
                        heads.append(bus)
                    else:
                        zone.passive.append(bus)
                        stack.extend(hanging.get(bus, ()))
            zones.append(zone)
    return zones, [zone_of_block[k] for k in tree.of_element]


class _Coordinates:
    """Where the coordinates of buses are, and what they are of the voltages of the buses' nodes."""

    def __init__(self, nodes_of_bus: list[list[int]], floating: set[int]):
        self.nodes_of_bus = nodes_of_bus
        self.floating = floating
        self.first: dict[int, int] = {}
        self.count = 0

    def add(self, bus: int) -> None:
        self.first[bus] = self.count
        self.count += len(self.nodes_of_bus[bus])

    def absolute(self, buses: Sequence[int], more: int = 0) -> np.ndarray:
        """Node voltages from coordinates; `more` coordinates stand for themselves."""
        sizes = [len(self.nodes_of_bus[b]) for b in buses]
        out, at = np.eye(sum(sizes) + more), 0
        for bus, n in zip(buses, sizes, strict=True):
            if bus in self.floating:
                out[at : at + n, at + n - 1] = 1.0
            at += n
        return out

    def of_node(self, bus: int, k: int) -> tuple[int, int]:
        """The coordinate of a bus's node number k, and the one to add to it or -1."""
        first, last = self.first[bus], len(self.nodes_of_bus[bus]) - 1
        return first + k, first + last if bus in self.floating and k < last else -1


def plant(layout: Layout, per_unit, chord, tapped, unit_volts: np.ndarray) -> Tree:
    """Makes the tree.

    Args:
      layout: of the feeder.
      per_unit: of each of the layout's groups the elements' nodal matrices.
      chord: of the grid.
      tapped: from `gridjax.assembly.tapped_windings`.
      unit_volts: (units,).
    """
    numbers = Numbers(layout.feeder)
    root = numbers.count
    sources = next(g for g in layout.groups if g.kind == "sources" and g.rows[0] == 0)
    emf = [numbers.ground + 1 + k for k in range(sources.nodes.shape[1])]
    nodes_of_bus = [*numbers.nodes_of_bus, emf]
    bus_of = np.array([*numbers.bus_of_node, -1])  # the ground is no bus

    members = [(g, i) for g, group in enumerate(layout.groups) for i in range(len(group.rows))]
    touched = []
    for g, i in members:
        buses = sorted({int(b) for b in bus_of[layout.groups[g].nodes[i]] if b >= 0})
        touched.append((*buses, root) if layout.groups[g] is sources else tuple(buses))
    conducts = [layout.groups[g].kind != "switches" or bool(np.any(per_unit[g][i])) for g, i in members]
    kept = _without_idle(touched, conducts)
    members, touched = [members[k] for k in kept], [touched[k] for k in kept]
    needed = {int(b) for b in bus_of[layout.unit_nodes].ravel() if b >= 0}
    regulated = {(t.group, int(i)) for t in layout.taps for i in t.member}
    for member, buses in zip(members, touched, strict=True):
        if member in regulated or layout.groups[member[0]].kind == "switches":
            needed.update(buses)
    zones, zone_of = _cut(touched, root, needed)
    for member, z in zip(members, zone_of, strict=True):
        zones[z].elements.append(member)

    place = _Coordinates(nodes_of_bus, _floating(layout, bus_of, root))
    place.add(root)
    tap_coordinate: dict[tuple[int, int], int] = {}
    zone_of_member = dict(zip(members, zone_of, strict=True))
    for k, t in enumerate(layout.taps):
        for i, member in enumerate(t.member):
            zones[zone_of_member[t.group, int(member)]].taps.append((k, i))
    for zone in zones:
        zone.start = place.count
        for bus in zone.active:
            place.add(bus)
        for tap in zone.taps:
            tap_coordinate[tap] = place.count
            place.count += 2
        zone.coordinates = place.count - zone.start

    terms = _terms(layout, numbers, place, tap_coordinate, unit_volts)
    slots = _slots(layout, tap_coordinate)
    slope, slopes = _slopes(zones, terms, slots, chord, layout.shape.slots)
    operators = _Operators(layout, per_unit, tapped, tap_coordinate, nodes_of_bus, place)
    plain, folded, transposed, passive, passive_node, recovery = [], [], [], [], [], []
    heads: list[tuple[int, int]] = []
    y_in: dict[int, list] = {}  # of the zones below each bus
    c_in: dict[int, list] = {}
    for z in range(len(zones) - 1, -1, -1):
        zone = zones[z]
        z_, w, t, r, y = operators.reduce(zone, y_in)
        y_in.setdefault(zone.head, []).append(y)
        # Of the head's coordinates only those that the zone touches.
        used = np.nonzero(np.any(w != 0, axis=0) | np.any(t != 0, axis=1))[0] if z_.size else np.zeros(1, int)
        span = slice(int(used[0]), int(used[-1]) + 1)
        heads.append((place.first[zone.head] + span.start, span.stop - span.start))
        real = [_real(a) for a in (z_, w[:, span], t[span])]
        plain.append(np.concatenate([a.ravel() for a in real]))
        k, at = slopes[z], 0
        for bus in zone.active:
            for start, stop, c in c_in.get(bus, ()):
                k[at + start : at + stop, at + start : at + stop] += c
            at += 2 * len(nodes_of_bus[bus])
        both = np.linalg.solve(np.eye(len(k)) - real[0] @ k, np.concatenate(real[:2], axis=1))
        z_chord, w_chord = both[:, : len(k)], both[:, len(k) :]
        t_chord = real[2] + real[2] @ k @ z_chord
        c_in.setdefault(zone.head, []).append((2 * span.start, 2 * span.stop, real[2] @ k @ w_chord))
        folded.append(np.concatenate([a.ravel() for a in (z_chord, w_chord, t_chord)]))
        transposed.append(np.concatenate([a.T.ravel() for a in (z_chord, t_chord, w_chord)]))
        if len(r):
            nodes = [n for b in zone.passive for n in nodes_of_bus[b]]
            passive.append((z, len(nodes), place.first[zone.head], len(nodes_of_bus[zone.head])))
            passive_node.append(nodes)
            recovery.append(np.stack([r.real, r.imag], axis=-1).ravel())
    direct = [(n, *place.of_node(b, k)) for zone in zones for b in zone.active for k, n in enumerate(nodes_of_bus[b])]
    at_root = np.zeros((2 * len(emf), 2 * len(emf)))
    for first, last, c in c_in.get(root, ()):
        at_root[first:last, first:last] += c
    start = np.cumsum([0, *(len(t) for t in terms)])
    flat = [pair for t in terms for pair in t]
    return Tree(
        zones=np.array([(x.start, x.coordinates, *head) for x, head in zip(zones, heads[::-1], strict=True)]),
        plain=np.concatenate(plain[::-1]),
        chord=np.concatenate(folded[::-1]),
        chord_transposed=np.concatenate(transposed[::-1]),
        unit_slot=slots,
        slope=slope,
        term_start=start,
        term=np.array([c for c, _ in flat], int),
        term_weight=np.array([w for _, w in flat], float),
        direct=np.array(direct, int).reshape(-1, 3),
        passive=np.array(passive, int).reshape(-1, 4),
        passive_node=np.array([n for nodes in passive_node for n in nodes], int),
        recovery=np.concatenate([np.zeros(0), *recovery]),
        counts=np.array(
            [len(zones), len(terms), len(direct), len(passive), sum(map(len, plain)), place.count, numbers.ground]
        ),
        root=at_root,
        heads=len(emf),
    )


def _without_idle(touched: Sequence[tuple[int, ...]], conducts: Sequence[bool]) -> list[int]:
    """All elements but the open switches that close a loop; the others hold together what no source feeds."""
    parts = nx.utils.UnionFind()
    for buses, used in zip(touched, conducts, strict=True):
        if used:
            parts.union(*buses)
    kept = []
    for k, (buses, used) in enumerate(zip(touched, conducts, strict=True)):
        if used or len({parts[b] for b in buses}) > 1:
            parts.union(*buses)
            kept.append(k)
    return kept


def _floating(layout: Layout, bus_of: np.ndarray, root: int) -> set[int]:
    """The buses of sections that no source and no winding ties to the ground."""
    graph = nx.Graph()
    graph.add_nodes_from(range(root))
    grounded = set()
    for group in layout.groups:
        for row in group.nodes:
            ends = np.split(row, np.cumsum(group.terminals)[:-1])
            buses = [[int(b) for b in bus_of[end] if b >= 0] for end in ends]
            if group.kind in ("transformers", "sources"):
                grounded.update(
                    b
                    for end, at in zip(ends, buses, strict=True)
                    for b in at
                    if group.kind == "sources" or layout.shape.nodes in end
                )
            else:
                nx.add_path(graph, [b for end in buses for b in end])
    return {root, *(b for section in nx.connected_components(graph) if not section & grounded for b in section)}


def _real(a: Array) -> np.ndarray:
    """The real form of a complex operator, real and imaginary parts side by side."""
    out = np.empty((2 * a.shape[0], 2 * a.shape[1]))
    out[::2, ::2] = out[1::2, 1::2] = a.real
    out[::2, 1::2], out[1::2, ::2] = -a.imag, a.imag
    return out


def _terms(layout: Layout, numbers: Numbers, place: _Coordinates, tap_coordinate, unit_volts):
    """What each unit sees, then each tap's two slots: (coordinate, weight) pairs."""
    out = []
    for pair, volts in zip(layout.unit_nodes.tolist(), unit_volts, strict=True):
        seen: dict[int, float] = {}
        for node, sign in zip(pair, (1.0, -1.0), strict=True):
            if node == numbers.ground:
                continue
            bus = numbers.bus_of_node[node]
            inside = numbers.nodes_of_bus[bus]
            for c in place.of_node(bus, inside.index(node)):
                seen[c] = seen.get(c, 0.0) + sign * layout.node_volts[node] / volts
        out.append([(c, w) for c, w in sorted(seen.items()) if c >= 0 and w != 0])
    for c in tap_coordinate.values():
        out.extend([[(c, 1.0)], [(c + 1, 1.0)]])
    return out


def _slots(layout: Layout, tap_coordinate) -> np.ndarray:
    """The units' and taps' places in the flattened (zones, slots)."""
    taps = [layout.taps[k].zone[i] * layout.shape.slots + layout.taps[k].slot[i] for k, i in tap_coordinate]
    return np.array([*layout.unit_place, *(int(s) + side for s in taps for side in (0, 1))], int)


def _slopes(zones: list[_Zone], terms, slots: np.ndarray, chord, m: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """The units' slopes at the nominal point, (units, 2, 2), and what they are in the zones' coordinates.

    A unit between two zones' buses has none: it is a bank of capacitors, whose current at the nominal point is linear.
    """
    at = 2 * m * (slots // m) + slots % m
    by_re, by_im = (np.asarray(a, float).ravel() for a in (chord.by_re, chord.by_im))
    slope = np.stack([np.stack([by[at], by[at + m]], axis=-1) for by in (by_re, by_im)], axis=-1)
    out = [np.zeros((2 * z.coordinates, 2 * z.coordinates)) for z in zones]
    owner = np.array([k for k, z in enumerate(zones) for _ in range(z.coordinates)], int)
    first = zones[0].start  # the root's coordinates come before
    for unit, pairs in enumerate(terms):
        own = {int(owner[c - first]) for c, _ in pairs}
        if len(own) > 1:
            slope[unit] = 0.0
            continue
        zone = own.pop()
        for c, w in pairs:
            for c2, w2 in pairs:
                i, j = 2 * (c - zones[zone].start), 2 * (c2 - zones[zone].start)
                out[zone][i : i + 2, j : j + 2] += w * w2 * slope[unit]
    return slope, out


@dataclasses.dataclass
class _Operators:
    """Kron reduction zone by zone."""

    layout: Layout
    per_unit: list
    tapped: list
    tap_coordinate: dict
    nodes_of_bus: list
    place: _Coordinates

    def reduce(self, zone: _Zone, y_in: dict[int, list]):
        """Z, W, T, R in coordinates, and Y_in at the head's nodes."""
        active = [n for b in zone.active for n in self.nodes_of_bus[b]]
        passive = [n for b in zone.passive for n in self.nodes_of_bus[b]]
        head = self.nodes_of_bus[zone.head]
        a, m, size = len(active), len(active) + len(passive), len(active) + len(passive) + len(head)
        local = {n: k for k, n in enumerate([*active, *passive, *head])}
        y, stiff, t_v = self._nodal(zone, local, size)
        at = 0
        for bus in zone.active:
            n = len(self.nodes_of_bus[bus])
            for below in y_in.get(bus, ()):
                y[at : at + n, at : at + n] += below
            at += n
        if stiff:
            y = t_v.T @ y @ t_v + sum(drop.T @ series @ drop for series, drop in stiff)

        taps = 2 * len(zone.taps)
        absolute = self.place.absolute(zone.active, taps)
        at_head = self.place.absolute([zone.head])
        f = np.zeros((size, a + taps), complex)
        g = np.zeros((a + taps, size), complex)
        d = np.zeros((a + taps, a + taps), complex)
        g[:a, :a] = np.linalg.inv(absolute[:a, :a])
        f[:a, :a] = g[:a, :a].T
        self._tap(zone, local, a, f, g, d)
        f, g = t_v.T @ f, g @ t_v

        solved = np.linalg.solve(y[:m, :m], np.concatenate([f[:m], -y[:m, m:]], axis=1))
        n, n_head = solved[:, : a + taps], solved[:, a + taps :]
        z = g[:, :m] @ n + d
        w = (g[:, :m] @ n_head + g[:, m:]) @ at_head
        t = at_head.T @ (f[m:] - y[m:, :m] @ n)
        y_head = y[m:, m:] + y[m:, :m] @ n_head
        if not passive:
            return z, w, t, np.zeros((0, 0)), y_head
        # The active nodes' own variables from their voltages; no passive node is within them.
        keep = [*range(a), *range(m, size)]
        known = np.linalg.inv(t_v[np.ix_(keep, keep)])
        inner = -np.linalg.solve(y[a:m, a:m], y[a:m, keep] @ known)
        r = t_v[a:m, a:m] @ inner + t_v[a:m][:, keep] @ known
        coordinates = np.zeros((a + len(head), a + len(head)))
        coordinates[:a, :a], coordinates[a:, a:] = absolute[:a, :a], at_head
        r = r @ coordinates
        return z, w, t, np.concatenate([r[:, :a], np.zeros((len(r), taps)), r[:, a:]], axis=1), y_head

    def _nodal(self, zone: _Zone, local: dict[int, int], size: int):
        """The nodal matrix without switches and the first source; these as (admittance, drop); the change of variables.

        The matrix is in nodes, drops are in the variables that `gridjax.layout.drop_matrix` makes of them.
        """
        layout = self.layout
        y = np.zeros((size, size), complex)
        stiff, pairs = [], []
        for g, i in zone.elements:
            group, p = layout.groups[g], self.per_unit[g][i]
            at = [local.get(n, -1) for n in group.nodes[i].tolist()]
            first = group.kind == "sources" and group.rows[0] == 0
            if not first and group.kind != "switches":
                here = [k for k, where in enumerate(at) if where >= 0]
                where = np.array(at)[here]
                np.add.at(y, (where[:, None], where[None, :]), p[np.ix_(here, here)])
                continue
            n = len(at) if first else len(at) // 2
            there = list(range(size - n, size)) if first else at[n:]
            volts = layout.node_volts[group.nodes[i]]
            drop = np.zeros((n, size))
            for k in range(n):
                ratio = 1.0 if first or abs(volts[k] - volts[n + k]) < 1e-9 * volts[k] else volts[n + k] / volts[k]
                if at[k] >= 0:
                    drop[k, at[k]] += 1.0
                if there[k] >= 0:
                    drop[k, there[k]] -= ratio
                if at[k] >= 0 and there[k] >= 0 and ratio == 1.0:
                    pairs.append((there[k], at[k]) if first else (at[k], there[k]))
            stiff.append((p[:n, :n], drop))
        head = range(size - len(self.nodes_of_bus[zone.head]), size)
        t_v = drop_matrix(pairs, size, head) if pairs else np.eye(size)
        return y, [(series, drop @ t_v) for series, drop in stiff], t_v

    def _tap(self, zone: _Zone, local: dict[int, int], a: int, f, g, d) -> None:
        """Adds the slots of the zone's taps to F, G, D."""
        row = {tap: a + 2 * k for k, tap in enumerate(zone.taps)}
        for (k, i), e in row.items():
            t, tap = self.layout.taps[k], self.tapped[k]
            at = [local.get(n, -1) for n in self.layout.groups[t.group].nodes[t.member[i]].tolist()]
            for c, where in enumerate(at):
                if where >= 0:
                    f[where, e] += tap.e_in[i, c]
                    f[where, e + 1] += tap.j_in[i, c]
                    g[e, where] += tap.w_out[i, c]
                    g[e + 1, where] += tap.i_out[i, c]
            d[e, e] = d[e + 1, e + 1] = -1 / tap.own[i]
            for other, mine, theirs, stiff in tap.direct:
                for p in np.nonzero(mine == i)[0]:
                    d[e + 1, row[other, int(theirs[p])]] -= stiff[p]
