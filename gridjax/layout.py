"""From tables to indices: the host half of `compile`.

`lay_out(feeder)` decides everything that depends on the topology alone: which node is where in which zone, which
device's phase sits in which port, which zones make up which larger ones. The numbers (impedances, ratings, laws) go to
`Parameters`, a pytree, from which `gridjax.assembly.assemble` makes the operators. Vocabulary:

- a *slot* of a zone is where a current depends on a voltage: one phase of a device (a *unit*: load, generator,
  capacitor, further source) between two nodes, or one of the two slots of a *tap*, a phase of a regulated winding;
- a *tier* is a generation of zones: those of the lowest hold the circuit, those of the next hold zones.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import flax.struct
import networkx as nx
import numpy as np

from gridjax import feeder as tables
from gridjax.admittance import capacitor_pairs, describe
from gridjax.feeder import Feeder, split_terminal
from gridjax.generation import pv_power, storage_power
from gridjax.partition import Limits, Partition, Zone, hierarchy, partition
from gridjax.powerflow.injections import IMPEDANCE, Laws, generator_law, load_law

Values = Any  # NumPy arrays as `lay_out` makes them, jax.Array or tracers from then on
ZONES_OF_A_ZONE = 8
KINDS = ("sources", "lines", "switches", "transformers", "capacitors", "reactors", "admittances")


@dataclass(frozen=True)
class Group:
    """Linear elements of one shape: their rows in the table `kind`, and where their conductors are.

    `nodes` (n, m) are global node numbers, `local` (n, m) numbers within the zone (`zone` (n,)); the ground has
    the number one past the last. `terminals`: how many conductors each terminal has.
    """

    kind: str
    static: tuple
    rows: np.ndarray
    nodes: np.ndarray
    zone: np.ndarray
    local: np.ndarray
    terminals: tuple[int, ...]


@dataclass(frozen=True)
class Tapped:
    """The phases of regulated windings that share a group and a winding number; arrays (phases,).

    `member` is the place in the group, `phase` the transformer's phase, `volts` and `va` the winding's rating across
    it, `slot` the first of its two slots.
    """

    group: int
    winding: int
    regulator: np.ndarray
    member: np.ndarray
    phase: np.ndarray
    zone: np.ndarray
    volts: np.ndarray
    va: np.ndarray
    slot: np.ndarray


@dataclass(frozen=True)
class Tier:
    """Zones made of the zones of the tier below, padded to one size.

    In a zone, interior nodes are numbered first, then those of the boundary buses, then the ground.
    """

    member: np.ndarray  # (zones, members) zones of the tier below, 0 where there is none
    place: np.ndarray  # (zones below,) position in the flattened (zones, members)
    local: np.ndarray  # (zones, members, boundary below) where the members' boundary nodes are, ground if none
    last: np.ndarray  # (zones, boundary) the last node of the same boundary bus
    filled: np.ndarray  # (zones, interior) whether there is such a node


@dataclass(frozen=True)
class Shape:
    """The static sizes of a grid: equal shapes mean one compilation."""

    nodes: int  # of the feeder
    slots: int  # of a zone, likewise below
    interior: int
    boundary: int
    exponents: bool
    cutoffs: bool
    loads: int
    generators: int
    banks: int
    regulators: int
    steps: int
    sources: int

    @property
    def devices(self) -> int:
        """Loads and generators, then banks, then regulators: the order of a slot's device."""
        return self.loads + self.generators


@dataclass(frozen=True, eq=False)
class Layout:
    """Everything about a feeder that is an index. See the module's text; arrays are NumPy."""

    feeder: Feeder
    shape: Shape
    groups: tuple[Group, ...]
    partition: Partition
    node_volts: np.ndarray  # (nodes + 1,), the ground's is 1
    node_place: np.ndarray  # (nodes,) position in the flattened (zones, interior + boundary)
    unit_place: np.ndarray  # (all units,) position in the flattened (zones, slots)
    unit_nodes: np.ndarray  # (all units, 2) global nodes
    unit_local: np.ndarray  # (all units, 2) local numbers
    unit_device: np.ndarray  # (all units,) loads, then generators, then capacitors, then sources
    unit_share: np.ndarray  # (all units,) 1/phases of loads and generators, 1 of capacitors, 0 of sources
    unit_phase: np.ndarray  # (all units,)
    taps: tuple[Tapped, ...]
    tiers: tuple[Tier, ...]  # above the lowest
    last: np.ndarray  # (zones, boundary) as in `Tier`
    drops: np.ndarray  # (zones, size, size), see `_drops`
    step_bank: np.ndarray  # (steps,)

    @property
    def node_names(self) -> tuple[str, ...]:
        """`"bus.node"` in the order of `PowerFlow.v`."""
        return self.feeder.node_names


@flax.struct.dataclass
class Parameters:
    """Every number that goes into a solve and does not change by scenario, as a pytree.

    `elements[g]` are the stacked `Description.params` of `Layout.groups[g]`; `laws` and `unit_volts` have one entry
    a unit; the source's EMF is `emf_volts` at `emf_angle` (radians), one entry a source; nominal values of the
    operating point follow.
    """

    elements: tuple[dict[str, Values], ...]
    laws: Laws
    unit_volts: Values
    emf_volts: Values
    emf_angle: Values
    source_pu: Values
    load_kw: Values
    load_kvar: Values
    generation_kw: Values
    generation_kvar: Values
    tap: Values
    capacitor: Values


@dataclass
class _Unit:
    """A unit while the layout is made."""

    pair: tuple[str, str]
    volts: float
    law: dict[str, float]
    device: int
    share: float
    phase: int


def _pairs(terminal: str, phases: int, connection: str) -> list[tuple[str, str]]:
    """The two conductors of each phase of a shunt device."""
    bus, nodes = split_terminal(terminal)
    names = [f"{bus}.{n}" for n in nodes]
    if connection == "wye":
        return [(names[k], names[-1]) for k in range(phases)]
    return [(names[k], names[(k + 1) % len(names)]) for k in range(phases)]


def emf_volts(source: tables.Source) -> float:
    """The EMF of one phase: the star voltage of the line-to-line rating, as OpenDSS takes it for any number."""
    phases = len(split_terminal(source.bus)[1])
    return 1e3 * source.base_kv / (2 * math.sin(math.pi / phases) if phases > 1 else 1.0)


def rated_volts(kv: float, phases: int, connection: str) -> float:
    """The rated voltage across one phase."""
    return 1e3 * (kv / math.sqrt(3) if connection == "wye" and phases > 1 else kv)


def generators(feeder: Feeder) -> tuple[tables.Generator | tables.PVSystem | tables.Storage, ...]:
    """All injecting devices, in the order of `OperatingPoint.generation_kw`."""
    return (*feeder.generators, *feeder.pv_systems, *feeder.storages)


def generation(feeder: Feeder) -> tuple[np.ndarray, np.ndarray]:
    """Their nominal kW and kvar."""
    pairs = [(g.kw, g.kvar) for g in feeder.generators]
    pairs += [pv_power(pv) for pv in feeder.pv_systems]
    pairs += [storage_power(s) for s in feeder.storages]
    kw, kvar = np.array(pairs, float).reshape(-1, 2).T
    return kw, kvar


def _units(feeder: Feeder) -> list[_Unit]:
    """Loads, generators, capacitors and all sources but the first, phase by phase."""
    units: list[_Unit] = []
    devices = [(x, load_law(x), 1 / x.phases) for x in feeder.loads]
    devices += [(x, generator_law(x), 1 / x.phases) for x in generators(feeder)]
    for i, (x, law, share) in enumerate(devices):
        volts = rated_volts(x.kv, x.phases, x.connection)
        for k, pair in enumerate(_pairs(x.bus, x.phases, x.connection)):
            units.append(_Unit(pair, volts, law, i, share, k))
    for i, x in enumerate(feeder.capacitors, start=len(devices)):
        d = describe(feeder, x)
        for k, row in enumerate(capacitor_pairs(d.static)):
            a, b = (d.conductors[int(j)] for j in (row.argmax(), row.argmin()))
            volts = rated_volts(x.kv, x.phases, x.connection)
            units.append(_Unit((a, b), volts, IMPEDANCE, i, 1.0, k))
    start = len(devices) + len(feeder.capacitors)
    for i, x in enumerate(feeder.sources[1:], start=start):
        bus, nodes = split_terminal(x.bus)
        volts = emf_volts(x)
        zero = {**IMPEDANCE, "impedance_p": 0.0, "impedance_q": 0.0}
        for k, node in enumerate(nodes):
            units.append(_Unit((f"{bus}.{node}", f"{bus}.0"), volts, zero, i, 0.0, k))
    return units


def _terminals(kind: str, static: tuple, element: object) -> tuple[int, ...]:
    """How many conductors each terminal of an element has."""
    if kind == "transformers":
        return tuple(len(split_terminal(w.bus)[1]) for w in element.windings)  # type: ignore[attr-defined]
    if kind == "admittances":
        return tuple(len(split_terminal(t)[1]) for t in element.terminals)  # type: ignore[attr-defined]
    return tuple(
        len(split_terminal(t)[1]) for t in (getattr(element, a, None) for a in ("bus", "bus1", "bus2")) if t is not None
    )


@dataclass
class _Element:
    """A linear element while the layout is made."""

    kind: str
    row: int
    description: object
    buses: tuple[int, ...]
    terminals: tuple[int, ...]


class Numbers:
    """Numbers of buses and nodes; bus `count` stands for the EMF of the first source."""

    def __init__(self, feeder: Feeder):
        self.bus = {b.name: i for i, b in enumerate(feeder.buses)}
        self.count = len(feeder.buses)
        self.node = {name: i for i, name in enumerate(feeder.node_names)}
        self.ground = len(self.node)
        self.bus_of_node = [i for i, b in enumerate(feeder.buses) for _ in b.nodes]
        self.nodes_of_bus: list[list[int]] = [[] for _ in feeder.buses]
        for node, bus in enumerate(self.bus_of_node):
            self.nodes_of_bus[bus].append(node)

    def nodes(self, names: Sequence[str]) -> list[int]:
        """The nodes' numbers; the ground's where there is none of that name."""
        return [self.node.get(name, self.ground) for name in names]

    def buses(self, names: Sequence[str]) -> list[int]:
        """The buses of the nodes that are not the ground."""
        return [self.bus[n.rpartition(".")[0]] for n in names if not n.endswith(".0")]


def _elements(feeder: Feeder, numbers: Numbers) -> list[_Element]:
    out = []
    for kind in KINDS:
        for row, x in enumerate(getattr(feeder, kind)):
            d = describe(feeder, x)
            buses = numbers.buses(d.conductors)
            if kind == "sources" and row == 0:
                buses = [*buses, numbers.count]
            out.append(_Element(kind, row, d, tuple(buses), _terminals(kind, d.static, x)))
    return out


def lay_out(feeder: Feeder, zone_ports: int = 24, zone_nodes: int = 512) -> tuple[Layout, Parameters]:
    """Lays out a valid feeder.

    Args:
      feeder: a feeder in which `gridjax.validate` finds no problem.
      zone_ports: ports a zone should hold (see `gridjax.partition`).
      zone_nodes: nodes a zone should hold.

    Returns:
      The indices, and the numbers as float64 NumPy arrays.
    """
    numbers = Numbers(feeder)
    elements = _elements(feeder, numbers)
    units = _units(feeder)
    # The switched current of an opened or closed bank is a unit's: its first bus holds the port.
    unit_bus = [numbers.buses(u.pair)[0] for u in units]
    regulated = {r.transformer: None for r in feeder.regulators}
    ports = np.bincount(unit_bus, minlength=numbers.count + 1)
    for x in elements:
        if x.kind == "transformers" and feeder.transformers[x.row].name in regulated:
            ports[x.buses[-1]] += 2 * feeder.transformers[x.row].phases
    sizes = [len(b.nodes) for b in feeder.buses] + [0]
    # A unit between two buses (a series capacitor) must lie in one zone: it is an element as well.
    buses = [x.buses for x in elements]
    # Between boundaries, their admittance would drown what else a zone does.
    stiff = [
        (x.buses[0], x.buses[-1])
        for x in elements
        if x.kind == "switches" or (x.kind == "transformers" and feeder.transformers[x.row].name in regulated)
    ]
    limits = Limits(zone_ports, zone_nodes)
    cut = partition(buses, numbers.count, ports.tolist(), sizes, limits, stiff=stiff)
    zones = _Zones(feeder, numbers, cut.zones)
    upper = [zones]
    tiers = []
    for above in hierarchy(cut, numbers.count, sizes, ZONES_OF_A_ZONE)[1:]:
        upper.append(_Zones(feeder, numbers, above.zones, upper[-1]))
        tiers.append(_tier(upper[-2], upper[-1], above.zone_of_element))
    groups = _groups(elements, numbers, zones, cut)
    return _finish(feeder, numbers, cut, zones, tuple(tiers), groups, units)


class _Zones:
    """The nodes of a tier's zones and their local numbers: interior nodes, boundary nodes, then the ground."""

    def __init__(self, feeder: Feeder, numbers: Numbers, zones: list[Zone], below: _Zones | None = None):
        first = split_terminal(feeder.sources[0].bus)[1]
        emf = [numbers.ground + 1 + k for k in range(len(first))]
        nodes = [*numbers.nodes_of_bus, emf]
        present = None if below is None else {n for boundary in below.boundary for n in boundary}
        self.inside: list[list[int]] = []
        self.boundary: list[list[int]] = []
        self.last: list[list[int]] = []
        for zone in zones:
            tails = set(zone.tails)
            inside = [n for b in zone.buses if b not in tails for n in nodes[b]]
            self.inside.append([n for n in inside if present is None or n in present])
            self.boundary.append([n for b in zone.boundary for n in nodes[b]])
            ends = np.cumsum([len(nodes[b]) for b in zone.boundary]) - 1
            self.last.append([int(e) for e, b in zip(ends, zone.boundary, strict=True) for _ in nodes[b]])
        self.n = max(1, *map(len, self.inside))
        self.h = max(map(len, self.boundary))
        self.ground = self.n + self.h
        self.local: list[dict[int, int]] = []
        for inside, boundary in zip(self.inside, self.boundary, strict=True):
            place = {node: k for k, node in enumerate(inside)}
            place.update({node: self.n + k for k, node in enumerate(boundary)})
            place[numbers.ground] = self.ground
            self.local.append(place)

    def last_of(self) -> np.ndarray:
        out = np.tile(np.arange(self.h), (len(self.last), 1))
        for z, last in enumerate(self.last):
            out[z, : len(last)] = last
        return out


def _tier(below: _Zones, zones: _Zones, zone_of_member: list[int]) -> Tier:
    """How the zones `below` make up `zones`."""
    members: list[list[int]] = [[] for _ in zones.inside]
    for m, z in enumerate(zone_of_member):
        members[z].append(m)
    width = max(map(len, members))
    out = Tier(
        member=np.zeros((len(members), width), int),
        place=np.zeros(len(zone_of_member), int),
        local=np.full((len(members), width, below.h), zones.ground),
        last=zones.last_of(),
        filled=np.arange(zones.n) < np.array([len(inside) for inside in zones.inside])[:, None],
    )
    for z, ms in enumerate(members):
        for k, m in enumerate(ms):
            out.member[z, k] = m
            out.place[m] = z * width + k
            out.local[z, k, : len(below.boundary[m])] = [zones.local[z][n] for n in below.boundary[m]]
    return out


def _groups(
    elements: list[_Element], numbers: Numbers, zones: _Zones, cut: Partition
) -> tuple[tuple[Group, ...], tuple[dict[str, np.ndarray], ...]]:
    """Elements of one kind and shape together, with their stacked parameters."""
    sorted_: dict[tuple, list[tuple[_Element, int]]] = {}
    for x, zone in zip(elements, cut.zone_of_element, strict=True):
        first = x.kind == "sources" and x.row == 0
        key = (x.kind, first, x.description.static, x.terminals)  # type: ignore[attr-defined]
        sorted_.setdefault(key, []).append((x, zone))
    groups, params = [], []
    for (kind, _, static, terminals), members in sorted_.items():
        nodes = np.array([numbers.nodes(x.description.conductors) for x, _ in members])  # type: ignore[attr-defined]
        local = np.array([[zones.local[z][n] for n in row] for row, (_, z) in zip(nodes, members, strict=True)])
        rows = np.array([x.row for x, _ in members])
        zone = np.array([z for _, z in members])
        groups.append(Group(kind, static, rows, nodes, zone, local, terminals))
        each = [x.description.params for x, _ in members]  # type: ignore[attr-defined]
        params.append({k: np.stack([np.asarray(p[k], float) for p in each]) for k in each[0]})
    return tuple(groups), tuple(params)


def _taps(feeder: Feeder, groups: tuple[Group, ...], used: list[int]) -> list[Tapped]:
    """The regulated windings' phases; their slots follow those `used` already, which are counted on."""
    where = {
        feeder.transformers[row].name: (g, i)
        for g, group in enumerate(groups)
        if group.kind == "transformers"
        for i, row in enumerate(group.rows)
    }
    found: dict[tuple[int, int], list[tuple]] = {}
    for r, regulator in enumerate(feeder.regulators):
        g, i = where[regulator.transformer]
        phases = feeder.transformers[groups[g].rows[i]].phases
        winding = feeder.transformers[groups[g].rows[i]].windings[regulator.winding - 1]
        rating = (rated_volts(winding.kv, phases, winding.connection), 1e3 * winding.kva / phases)
        zone = int(groups[g].zone[i])
        for k in range(phases):
            found.setdefault((g, regulator.winding - 1), []).append((r, i, k, zone, *rating, used[zone]))
            used[zone] += 2
    return [Tapped(g, w, *(np.array(column) for column in zip(*rows, strict=True))) for (g, w), rows in found.items()]


def _finish(feeder, numbers, cut, zones, tiers, grouped, units) -> tuple[Layout, Parameters]:
    """Numbers the slots and gathers the arrays."""
    groups, params = grouped
    used = [0] * len(cut.zones)
    place, nodes, local = [], [], []
    for u in units:
        pair = numbers.nodes(u.pair)
        zone = _unit_zone(pair, numbers, cut, zones)
        place.append((zone, used[zone]))
        used[zone] += 1
        nodes.append(pair)
        local.append([zones.local[zone][n] for n in pair])
    taps = _taps(feeder, groups, used)
    width = max(1, *used)
    laws = {k: np.array([u.law[k] for u in units], float) for k in IMPEDANCE}
    shape = Shape(
        nodes=numbers.ground, slots=width, interior=zones.n, boundary=zones.h,
        exponents=bool((laws["extra_p"] != 0).any() or (laws["extra_q"] != 0).any()),
        cutoffs=bool((laws["cutoff"] > 0).any()),
        loads=len(feeder.loads), generators=len(generators(feeder)), banks=len(feeder.capacitors),
        regulators=len(feeder.regulators),
        steps=sum(len(c.kvar) for c in feeder.capacitors), sources=len(feeder.sources),
    )  # fmt: skip
    node_place = np.zeros(numbers.ground, int)
    for bus, z in cut.zone_of_bus.items():
        inside = numbers.nodes_of_bus[bus]
        node_place[inside] = [z * zones.ground + zones.local[z][n] for n in inside]
    layout = Layout(
        feeder=feeder, shape=shape, groups=groups, partition=cut,
        node_volts=np.array([1e3 * b.base_kv for b in feeder.buses for _ in b.nodes] + [1.0]),
        node_place=node_place,
        unit_place=np.array([z * width + s for z, s in place], int),
        unit_nodes=np.array(nodes, int).reshape(-1, 2),
        unit_local=np.array(local, int).reshape(-1, 2),
        unit_device=np.array([u.device for u in units], int),
        unit_share=np.array([u.share for u in units], float),
        unit_phase=np.array([u.phase for u in units], int),
        taps=tuple(taps), tiers=tiers, last=zones.last_of(), drops=_drops(groups, zones, feeder),
        step_bank=np.array([i for i, c in enumerate(feeder.capacitors) for _ in c.kvar], int),
    )  # fmt: skip
    return layout, _parameters(feeder, params, laws, units)


def _drops(groups: tuple[Group, ...], zones: _Zones, feeder: Feeder) -> np.ndarray:
    """The change of variables `v = T v'` which makes a switch's far end its near end plus a drop.

    Beside a switch of 1e-7 ohm, or such a source, the other admittances at its nodes would drown in the rounding of a
    nodal matrix; in terms of drops it stands alone on the diagonal. T is (zones, size, size) over interior, boundary
    and ground nodes. Switches between unequal voltage bases are left as they are.
    """
    volts = [b.base_kv for b in feeder.buses for _ in b.nodes] + [0.0]
    edges: dict[int, list[tuple[int, int]]] = {}
    for g in groups:
        if g.kind == "sources" and g.rows[0] == 0:
            edges.setdefault(int(g.zone[0]), []).extend((zones.n + k, int(bus)) for k, bus in enumerate(g.local[0]))
        if g.kind != "switches":
            continue
        n = g.local.shape[1] // 2
        for nodes, local, zone in zip(g.nodes, g.local, g.zone.tolist(), strict=True):
            for k in range(n):
                a, b = volts[nodes[k]], volts[nodes[n + k]]
                if a and abs(a - b) < 1e-9 * a:
                    edges.setdefault(zone, []).append((int(local[k]), int(local[n + k])))
    size = zones.ground + 1
    out = np.tile(np.eye(size), (len(zones.local), 1, 1))
    for zone, pairs in edges.items():
        out[zone] = drop_matrix(pairs, size, range(zones.n, size))
    return out


def drop_matrix(pairs: Sequence[tuple[int, int]], size: int, given: Collection[int]) -> np.ndarray:
    """The change of variables `v = T v'`, (size, size), for pairs of nodes that switches join.

    Drops are counted from the `given` nodes where one is touched, for these are not solved for.
    """
    out = np.eye(size)
    graph = nx.Graph(pairs)
    done: set[int] = set()
    for start in ([node for node in graph if node in given], *([node] for node in graph if node not in given)):
        queue = [node for node in start if node not in done]
        done.update(queue)
        for near in queue:  # grows while it is walked
            for far in graph[near]:
                if far not in done:
                    out[far] += out[near]
                    done.add(far)
                    queue.append(far)
    return out


def _unit_zone(pair: list[int], numbers: Numbers, cut: Partition, zones: _Zones) -> int:
    """The zone that knows both nodes of a unit."""
    buses = [numbers.bus_of_node[n] for n in pair if n != numbers.ground]
    candidates = {cut.zone_of_bus[b] for b in buses}
    return next(z for z in sorted(candidates, reverse=True) if all(n in zones.local[z] for n in pair))


def _parameters(feeder: Feeder, params, laws, units: list[_Unit]) -> Parameters:
    kw, kvar = generation(feeder)
    transformers = {t.name: t for t in feeder.transformers}
    return Parameters(
        elements=params,
        laws=Laws(**laws),
        unit_volts=np.array([u.volts for u in units], float),
        emf_volts=np.array([emf_volts(s) for s in feeder.sources]),
        emf_angle=np.array([math.radians(s.angle_deg) for s in feeder.sources]),
        source_pu=np.array([s.pu for s in feeder.sources], float),
        load_kw=np.array([x.kw for x in feeder.loads], float),
        load_kvar=np.array([x.kvar for x in feeder.loads], float),
        generation_kw=kw,
        generation_kvar=kvar,
        tap=np.array(
            [transformers[r.transformer].windings[r.winding - 1].tap for r in feeder.regulators],
            float,
        ),
        capacitor=np.array([float(s) for c in feeder.capacitors for s in c.closed], float),
    )
