"""Feeders with smart meters: sections of line, constant-power loads, factors on impedances, what meters see.

A *section* is all lines behind which the same loads stand: they carry the same current (but for charging), so that
meters tell one factor of them at most. Lines with no load behind them belong to no section.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np

import gridjax
from gridjax.feeder import Feeder, split_terminal


class Study(NamedTuple):
    """A feeder with meters; arrays are NumPy.

    Attributes:
      feeder, layout: loads are constant powers, for the meters say what they take.
      section: (lines,) which section a line belongs to, -1 where no customer is behind it.
      ohms: (lines,) recorded resistance of a phase.
      ends: (meters, 2) nodes between which a meter lies, customers' first, then the busbar's.
      volts: (meters,) its rated voltage.
      path: (loads, lines) 1.0 for lines between the busbar and a load.
    """

    feeder: Feeder
    layout: gridjax.Layout
    section: np.ndarray
    ohms: np.ndarray
    ends: np.ndarray
    volts: np.ndarray
    path: np.ndarray

    @property
    def sections(self) -> int:
        """How many factors there are."""
        return int(self.section.max()) + 1


def join_series(feeder: Feeder) -> Feeder:
    """Joins lines of one code in series, where nothing else is tied to the bus between: exact without capacitance."""
    tied = {split_terminal(x.bus)[0] for x in (*feeder.loads, *feeder.sources, *feeder.generators)}
    tied |= {split_terminal(w.bus)[0] for t in feeder.transformers for w in t.windings}
    tied |= {split_terminal(b)[0] for x in (*feeder.switches, *feeder.capacitors) for b in (x.bus1, x.bus2) if b}
    lines = {x.name: x for x in feeder.lines}
    at: dict[str, set[str]] = {}
    for x in feeder.lines:
        for terminal in (x.bus1, x.bus2):
            at.setdefault(split_terminal(terminal)[0], set()).add(x.name)
    gone = set()
    for bus in feeder.buses:
        pair = [lines[name] for name in sorted(at.get(bus.name, ()))]
        if bus.name in tied or len(pair) != 2 or len({(x.code, x.unit) for x in pair}) > 1:
            continue
        ends = [t for x in pair for t in (x.bus1, x.bus2) if split_terminal(t)[0] != bus.name]
        for x in pair:
            del lines[x.name]
        one = dataclasses.replace(pair[0], bus1=ends[0], bus2=ends[1], length=pair[0].length + pair[1].length)
        lines[one.name] = one
        for terminal in ends:
            at[split_terminal(terminal)[0]] -= {x.name for x in pair}
            at[split_terminal(terminal)[0]].add(one.name)
        gone.add(bus.name)
    buses = tuple(b for b in feeder.buses if b.name not in gone)
    return feeder.replace(buses=buses, lines=tuple(lines.values()))


def study(feeder: Feeder) -> Study:
    """Makes loads constant powers, finds the sections, places a meter at each phase of each load and at the busbar.

    Raises:
      ValueError: the lines make loops, or are given by geometry.
    """
    loads = tuple(dataclasses.replace(x, model=1, vmin_pu=0.5, vmax_pu=1.5, zipv=None) for x in feeder.loads)
    feeder = feeder.replace(loads=loads)
    layout, parameters = gridjax.lay_out(feeder)
    graph = gridjax.to_networkx(feeder)
    open_ = [edge[:3] for edge in graph.edges(keys=True, data="closed") if not edge[3]]
    graph.remove_edges_from(open_)
    tree = nx.Graph(graph)
    if not nx.is_forest(tree):
        raise ValueError(f"feeder {feeder.name!r} has loops: sections need a radial feeder; open a switch")
    root = split_terminal(feeder.sources[0].bus)[0]
    parents = {child: parent for parent, child in nx.bfs_edges(tree, root)}
    row = {frozenset((split_terminal(x.bus1)[0], split_terminal(x.bus2)[0])): i for i, x in enumerate(feeder.lines)}
    path, busbar = np.zeros((len(loads), len(feeder.lines))), root
    for k, load in enumerate(loads):
        bus = split_terminal(load.bus)[0]
        while bus != root:
            line = row.get(frozenset((bus, parents[bus])))
            if line is not None:
                path[k, line], busbar = 1.0, parents[bus]
            bus = parents[bus]
    behind = [tuple(np.flatnonzero(column)) for column in path.T]
    numbers: dict[tuple, int] = {}
    section = np.array([numbers.setdefault(b, len(numbers)) if b else -1 for b in behind])
    units = layout.unit_device < len(loads)
    names = feeder.node_names
    bus_nodes = next(b.nodes for b in feeder.buses if b.name == busbar)
    bar = np.array([[names.index(f"{busbar}.{n}"), len(names)] for n in bus_nodes])
    ends = np.concatenate([layout.unit_nodes[units], bar])
    volts = np.concatenate([parameters.unit_volts[units], layout.node_volts[bar[:, 0]]])
    return Study(feeder, layout, section, _ohms(layout, parameters), ends, volts, path)


def _ohms(layout: gridjax.Layout, parameters: gridjax.Parameters) -> np.ndarray:
    out = np.zeros(len(layout.feeder.lines))
    for group, p in zip(layout.groups, parameters.elements, strict=True):
        if group.kind == "lines":
            if group.static[2] not in ("matrix", "sequence"):
                raise ValueError("a line is given by geometry: give its code as a matrix or by sequence values")
            own = (2 * p["r1"] + p["r0"]) / 3 if "r1" in p else np.mean(np.diagonal(p["r"], axis1=1, axis2=2), axis=1)
            out[group.rows] = own * p["length"] * p["unit_factor"]
    return out


def scaled(work: Study, parameters: gridjax.Parameters, r: jax.Array, x: jax.Array) -> gridjax.Grid:
    """The grid with factors (sections,) on the resistances and reactances of the sections' lines."""
    elements = []
    for group, p in zip(work.layout.groups, parameters.elements, strict=True):
        if group.kind == "lines":
            which = work.section[group.rows]
            factors = {k: jnp.where(which < 0, 1.0, f[which]) for k, f in (("r", r), ("x", x))}
            p = {
                k: a * factors[k[0]].reshape(-1, *[1] * (a.ndim - 1)) if k in ("r", "r1", "r0", "x", "x1", "x0") else a
                for k, a in p.items()
            }
        elements.append(p)
    return gridjax.assemble(work.layout, dataclasses.replace(parameters, elements=tuple(elements)))


def meter_voltages(work: Study, v: jax.Array) -> jax.Array:
    """What meters see of node voltages in pu of their rating: (nodes,) to (meters,)."""
    volts = jnp.append(v, 0.0) * jnp.asarray(work.layout.node_volts)
    return jnp.abs(volts[work.ends[:, 0]] - volts[work.ends[:, 1]]) / work.volts


class Demand(NamedTuple):
    """Loads' kW and kvar, positive when consumed, (steps, loads), and the source's voltage in pu, (steps,)."""

    kw: jax.Array
    kvar: jax.Array
    source: jax.Array


def solve_steps(work: Study, grid: gridjax.Grid, demand: Demand) -> jax.Array:
    """Meters' voltages at all steps, (steps, meters); not a number where a step has not converged."""

    def one(kw, kvar, source):
        first = grid.nominal.source_pu.at[0].set(source)
        point = dataclasses.replace(grid.nominal, load_kw=kw, load_kvar=kvar, source_pu=first)
        flow = gridjax.solve(grid, point)
        return jnp.where(flow.converged, meter_voltages(work, flow.v), jnp.nan)

    return jax.vmap(one)(*demand)


def customers(feeder: Feeder) -> list[int]:
    """Loads whose phase can be mistaken: one phase to ground on a bus with nodes 1, 2 and 3."""
    nodes = {b.name: b.nodes for b in feeder.buses}
    split = [split_terminal(x.bus) for x in feeder.loads]
    return [
        i
        for i, (x, (bus, at)) in enumerate(zip(feeder.loads, split, strict=True))
        if x.phases == 1 and x.connection == "wye" and at[-1] == 0 and {1, 2, 3} <= set(nodes[bus])
    ]


def with_labels(feeder: Feeder, labels: np.ndarray) -> Feeder:
    """The feeder with its customers on phases 0, 1, 2, (customers,)."""
    loads = list(feeder.loads)
    for i, label in zip(customers(feeder), labels, strict=True):
        loads[i] = dataclasses.replace(loads[i], bus=f"{split_terminal(loads[i].bus)[0]}.{label + 1}.0")
    return feeder.replace(loads=tuple(loads))


def labels_of(feeder: Feeder) -> np.ndarray:
    """The customers' phases, 0 to 2."""
    return np.array([split_terminal(feeder.loads[i].bus)[1][0] - 1 for i in customers(feeder)])


def customer_meters(work: Study) -> np.ndarray:
    """The customers' rows among the meters."""
    units = work.layout.unit_device[work.layout.unit_device < len(work.feeder.loads)]
    return np.array([int(np.flatnonzero(units == i)[0]) for i in customers(work.feeder)])


def path_errors(work: Study, f: np.ndarray, truth: np.ndarray, covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Relative error of the resistance from the busbar to each load, and its error bar, (loads,) both."""
    live = work.section >= 0
    by_section = np.zeros((len(work.path), work.sections))
    np.add.at(by_section.T, work.section[live], (work.path * work.ohms)[:, live].T)
    total = by_section @ truth
    reached = total > 0
    bar = np.sqrt(np.einsum("ls,st,lt->l", by_section, covariance, by_section))
    return (by_section @ (f - truth))[reached] / total[reached], bar[reached] / total[reached]
