"""A feeder cut at its switches: the host half of `gridjax.powerflow.topology` and `radial`.

The primitive admittances are those of `gridjax.admittance`, the units and their laws those of `gridjax.layout`; only
the way they are put together differs. Taps and capacitor banks rest where the feeder has them.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import networkx as nx
import numpy as np

from gridjax.admittance import primitive
from gridjax.feeder import Feeder, split_terminal
from gridjax.grid import Grid
from gridjax.layout import Layout, Parameters, lay_out
from gridjax.powerflow.topology import Sections


@dataclasses.dataclass(frozen=True)
class Cut:
    """What a person wants to know of the sections, on the host.

    Attributes:
      buses: of each section, in the order of the feeder's.
      covers: (switches, 2) whether a switch has all phases of the section on either side.
      load_section: (loads,) where each load is.
      line_section: (lines,) likewise.
    """

    buses: tuple[tuple[str, ...], ...]
    covers: np.ndarray
    load_section: np.ndarray
    line_section: np.ndarray


def closed_everywhere(feeder: Feeder) -> Feeder:
    """The feeder with all its switches closed."""
    return feeder.replace(switches=tuple(dataclasses.replace(s, closed=True) for s in feeder.switches))


def cut(feeder: Feeder, grid: Grid) -> tuple[Sections, Cut]:
    """Cuts a feeder into what its switches can part.

    Args:
      feeder: a valid feeder; how its switches stand does not matter.
      grid: compiled from it with all switches closed, whose precision is taken.

    Raises:
      ValueError: there is no switch, switches join different voltage bases, a switch joins a section to itself, or a
        section has two sources.
    """
    if not feeder.switches:
        raise ValueError(f"feeder {feeder.name!r} has no switches: nothing can be switched")
    layout, parameters = lay_out(closed_everywhere(feeder))
    section_of, members = _components(feeder)
    names = [b.name for b in feeder.buses]
    if len(section_of) < len(names):
        lost = next(b for b in names if b not in section_of)
        raise ValueError(f"bus {lost!r} is in no section")
    edges = _edges(feeder, section_of, len(members))
    arrays = _arrays(feeder, layout, parameters, section_of, members, edges)
    terminals = arrays["y"].shape[1]
    shunts = bool(np.any(arrays["y"])) or terminals > arrays["z"].shape[1]
    used = np.zeros((len(members), terminals), bool)
    for e, pair in enumerate(edges[: len(feeder.switches)]):
        used[pair] |= arrays["at"][e].any(axis=2)
    for e, (s, _) in enumerate(edges[len(feeder.switches) :], start=len(feeder.switches)):
        used[s] |= arrays["at"][e, 0].any(axis=1)
    pad = np.arange(terminals)
    arrays["y"][:, pad, pad] += shunts & ~used  # what only pads has to be invertible
    real = grid.base_va.dtype
    kinds = {"f": real, "c": jnp.result_type(real, jnp.complex64), "i": np.int32}
    plain = {k: jnp.asarray(a, kinds[a.dtype.kind]) for k, a in arrays.items() if k != "laws"}
    laws = {k: jnp.asarray(a, real) for k, a in arrays["laws"].items()}
    return (
        Sections(
            **plain,
            laws=type(parameters.laws)(**laws),
            base_va=grid.base_va,
            shunts=shunts,
            exponents=layout.shape.exponents,
            cutoffs=layout.shape.cutoffs,
        ),
        _facts(feeder, section_of, members),
    )


def _components(feeder: Feeder) -> tuple[dict[str, int], list[list[str]]]:
    """Buses joined by anything but switches, numbered by their first bus."""
    graph = nx.Graph()
    graph.add_nodes_from(b.name for b in feeder.buses)
    for table in (feeder.lines, feeder.capacitors, feeder.reactors):
        graph.add_edges_from((_bus(x.bus1), _bus(x.bus2 or x.bus1)) for x in table)
    for t in feeder.transformers:
        graph.add_edges_from((_bus(t.windings[0].bus), _bus(w.bus)) for w in t.windings[1:])
    for a in feeder.admittances:
        graph.add_edges_from((_bus(a.terminals[0]), _bus(other)) for other in a.terminals[1:])
    order = {b.name: i for i, b in enumerate(feeder.buses)}
    members = sorted(
        (sorted(c, key=order.__getitem__) for c in nx.connected_components(graph)), key=lambda c: order[c[0]]
    )
    return {bus: s for s, c in enumerate(members) for bus in c}, members


def _bus(terminal: str) -> str:
    return split_terminal(terminal)[0]


def _edges(feeder: Feeder, section_of: dict[str, int], count: int) -> np.ndarray:
    """(edges, 2): the switches' sections, then each source's and that of its EMF."""
    kv = {b.name: b.base_kv for b in feeder.buses}
    out = []
    for s in feeder.switches:
        a, b = _bus(s.bus1), _bus(s.bus2)
        if section_of[a] == section_of[b]:
            raise ValueError(
                f"switch.{s.name}: both ends are joined by something else, a loop that no switch opens: "
                "give the other way a switch as well"
            )
        if abs(kv[a] - kv[b]) > 1e-9 * kv[a]:
            raise ValueError(f"switch.{s.name}: joins buses of {kv[a]:g} and {kv[b]:g} kV: give them one base_kv")
        out.append((section_of[a], section_of[b]))
    fed = [section_of[_bus(s.bus)] for s in feeder.sources]
    twice = next((k for k, s in enumerate(fed) if s in fed[:k]), None)
    if twice is not None:
        raise ValueError(f"source.{feeder.sources[twice].name}: its section has another source: put a switch between")
    return np.array([*out, *((s, count + k) for k, s in enumerate(fed))], int)


def _terminals(feeder: Feeder) -> list[tuple[str, ...]]:
    """The terminal of each edge in its first section, and of switches in the second."""
    return [*((s.bus1, s.bus2) for s in feeder.switches), *((s.bus,) for s in feeder.sources)]


def _arrays(feeder, layout: Layout, parameters: Parameters, section_of, members, edges) -> dict:
    node = {name: i for i, name in enumerate(feeder.node_names)}
    ends = [[[node[f"{_bus(t)}.{n}"] for n in split_terminal(t)[1]] for t in pair] for pair in _terminals(feeder)]
    width = max(len(nodes) for pair in ends for nodes in pair)
    number = len(members)
    inside = [
        [node[f"{b.name}.{n}"] for b in feeder.buses if section_of[b.name] == s for n in b.nodes] for s in range(number)
    ]
    heads: list[list[int]] = [[] for _ in range(number)]
    for e, pair in enumerate(ends):
        for side, nodes in enumerate(pair):
            here = heads[edges[e, side]]
            here.extend(n for n in nodes if n not in here)
    terminals = max(width, *map(len, heads))
    at = np.zeros((len(ends), 2, terminals, width))
    for e, pair in enumerate(ends):
        for side, nodes in enumerate(pair):
            for k, n in enumerate(nodes):
                at[e, side, heads[edges[e, side]].index(n), k] = 1
        if len(pair) == 1:
            at[e, 1, range(len(pair[0])), range(len(pair[0]))] = 1
    base, volts = 1e6 * feeder.base_mva, layout.node_volts
    z, emf = _impedances(feeder, layout, parameters, ends, width, base)
    total = number + len(feeder.sources)
    around = [[e for e in range(len(edges)) if s in edges[e]] for s in range(total)]
    degree = max(map(len, around))
    near = np.array([a + [len(edges)] * (degree - len(a)) for a in around])
    beyond = np.array([[sum(edges[e]) - s for e in a] + [s] * (degree - len(a)) for s, a in enumerate(around)])
    linear = _linear(layout, parameters, heads, inside, terminals, base, volts)
    return {"edge": edges, "at": at, "z": z, "near": near, "beyond": beyond, "emf": emf, **linear}


def _impedances(feeder, layout, parameters, ends, width, base) -> tuple[np.ndarray, np.ndarray]:
    """Series impedances of the edges, (edges, width, width), and the sources' EMF at 1 pu, per unit."""
    z = np.zeros((len(ends), width, width), complex)
    emf = np.zeros((len(feeder.sources), width), complex)
    for e, s in enumerate(feeder.switches):
        v = layout.node_volts[ends[e][0]]
        z[e, range(len(v)), range(len(v))] = (s.r_ohm + 1j * s.x_ohm) * base / v**2
    first = len(feeder.switches)
    for g, p in zip(layout.groups, parameters.elements, strict=True):
        if g.kind != "sources":
            continue
        for row, y in zip(g.rows, primitive(g.static, p), strict=True):
            nodes = ends[first + row][0]
            n, v = len(nodes), layout.node_volts[nodes]
            z[first + row, :n, :n] = np.linalg.inv(y) * base / (v[:, None] * v[None, :])
            turn = parameters.emf_angle[row] - 2 * np.pi * np.arange(n) / n
            emf[row, :n] = parameters.emf_volts[row] / v * np.exp(1j * turn)
    return z, emf


def _linear(layout: Layout, parameters: Parameters, heads, inside, terminals: int, base: float, volts) -> dict:
    """The sections' operators, padded; see `gridjax.powerflow.radial`."""
    count, ground = len(heads), layout.shape.nodes
    section = np.full(ground + 1, -1)
    for s, nodes in enumerate(inside):
        section[nodes] = s
    full = np.zeros((ground + 1, ground + 1), complex)
    for g, p in zip(layout.groups, parameters.elements, strict=True):
        if g.kind in ("switches", "sources"):
            continue
        for nodes, y in zip(g.nodes, primitive(g.static, p), strict=True):
            np.add.at(full, (nodes[:, None], nodes[None, :]), y * volts[nodes][:, None] * volts[nodes][None, :] / base)
    own = [u for u in range(len(layout.unit_device)) if layout.unit_device[u] < layout.shape.devices]
    units = [[u for u in own if max(section[layout.unit_nodes[u]]) == s] for s in range(count)]
    m, size = max(1, *map(len, units)), max(map(len, inside))
    out = {k: np.zeros(shape, complex) for k, shape in {
        "y": (count, terminals, terminals), "t": (count, terminals, m), "zu": (count, m, m), "w": (count, m, terminals),
        "nz": (count, size, m), "nw": (count, size, terminals),
    }.items()}  # fmt: skip
    device = np.full((count, m), layout.shape.devices)
    share = np.zeros((count, m))
    fill = {k: np.ones((count, m)) for k in vars(parameters.laws)}
    place = np.zeros(ground, int)
    for s in range(count):
        k = len(units[s])
        _section(out, s, full, heads[s], inside[s], _incidence(layout, parameters, units[s], inside[s], volts))
        place[inside[s]] = s * size + np.arange(len(inside[s]))
        device[s, :k], share[s, :k] = layout.unit_device[units[s]], layout.unit_share[units[s]]
        for name, values in vars(parameters.laws).items():
            fill[name][s, :k] = values[units[s]]
    return out | {"device": device, "share": share, "laws": fill, "node_place": place}


def _incidence(layout: Layout, parameters: Parameters, units, inside, volts) -> np.ndarray:
    """F: what the units inject at the section's nodes, (inside, units)."""
    index = {n: i for i, n in enumerate(inside)}
    f = np.zeros((len(inside), len(units)))
    for k, u in enumerate(units):
        for side, sign in ((0, 1.0), (1, -1.0)):
            n = int(layout.unit_nodes[u, side])
            if n in index:
                f[index[n], k] += sign * volts[n] / parameters.unit_volts[u]
    return f


def _section(out: dict, s: int, full, heads: list[int], inside: list[int], f: np.ndarray) -> None:
    """Kron reduction of one section to its terminals, written into the padded operators."""
    index = {n: i for i, n in enumerate(inside)}
    head = [index[n] for n in heads]
    rest = [i for i in range(len(inside)) if i not in head]
    y = full[np.ix_(inside, inside)]
    h, m, n = len(head), f.shape[1], len(inside)
    solved = np.linalg.solve(y[np.ix_(rest, rest)], np.concatenate([f[rest], -y[np.ix_(rest, head)]], axis=1))
    nz, nw = np.zeros((n, m), complex), np.zeros((n, h), complex)
    nz[rest], nw[rest] = solved[:, :m], solved[:, m:]
    nw[head, range(h)] = 1
    out["nz"][s, :n, :m], out["nw"][s, :n, :h] = nz, nw
    out["zu"][s, :m, :m], out["w"][s, :m, :h] = f.T @ nz, f.T @ nw
    out["t"][s, :h, :m] = f[head] - y[np.ix_(head, rest)] @ nz[rest]
    out["y"][s, :h, :h] = y[np.ix_(head, head)] + y[np.ix_(head, rest)] @ nw[rest]


def _facts(feeder: Feeder, section_of: dict[str, int], members: list[list[str]]) -> Cut:
    phases = [set() for _ in members]
    for bus in feeder.buses:
        phases[section_of[bus.name]].update(bus.nodes)
    covers = [
        [phases[section_of[_bus(t)]] <= set(split_terminal(t)[1]) for t in (s.bus1, s.bus2)] for s in feeder.switches
    ]
    return Cut(
        buses=tuple(map(tuple, members)),
        covers=np.array(covers),
        load_section=np.array([section_of[_bus(x.bus)] for x in feeder.loads], int),
        line_section=np.array([section_of[_bus(x.bus1)] for x in feeder.lines], int),
    )
