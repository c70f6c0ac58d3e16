"""Where a feeder's buses stand in a drawing: their own coordinates, or a computed tree.

The tree: from each bus the branch with the most buses below it runs straight on, the others leave at a right angle,
to both sides in turn. Every subtree gets a rectangle of its own, so that buses never overlap (after the
horizontal-vertical drawings of P. Crescenzi, G. Di Battista, A. Piperno, Computational Geometry 2, 1992).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import networkx as nx
import numpy as np

from gridjax.feeder import Feeder
from gridjax.graph import to_networkx

_GAP = 0.6  # between neighbouring subtrees, of a branch's length


class Placement(NamedTuple):
    """Coordinates of all buses, (buses, 2), in the order of the table, and a note on what was computed."""

    xy: np.ndarray
    note: str


def place(feeder: Feeder) -> Placement:
    """The buses' drawing coordinates.

    Args:
      feeder: any feeder with a source whose terminals name existing buses.

    Returns:
      The feeder's own coordinates where most buses have some (the others stand beside their neighbours),
      otherwise a computed tree. The note is empty when every coordinate is the feeder's own.
    """
    own = np.array([[_number(b.x), _number(b.y)] for b in feeder.buses], float).reshape(-1, 2)
    known = np.asarray(np.isfinite(own).all(axis=1))
    distinct = len(np.unique(own[known], axis=0))
    graph = to_networkx(feeder)
    if distinct < 2 or 2 * known.sum() < len(known):
        return Placement(_tree(feeder, graph), "computed layout: the feeder gives no coordinates")
    if known.all():
        return Placement(own, "")
    missing = int((~known).sum())
    return Placement(_beside(feeder, graph, own, known), f"{missing} of {len(known)} buses placed beside neighbours")


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _spanning(feeder: Feeder, graph: nx.MultiGraph) -> tuple[list[str], dict[str, list[str]]]:
    """A root for each island, the first source's first, and the children of each bus in a breadth-first tree."""
    closed = nx.Graph()
    closed.add_nodes_from(graph)
    closed.add_edges_from((u, v) for u, v, data in graph.edges(data=True) if data["closed"] and u != v)
    roots, children, seen = [], {bus: [] for bus in graph}, set()
    starts = [source.bus.partition(".")[0] for source in feeder.sources]
    for start in (*starts, *graph):
        if start in seen:
            continue
        roots.append(start)
        seen.add(start)
        front = [start]
        for bus in front:
            for other in closed[bus]:
                if other not in seen:
                    seen.add(other)
                    children[bus].append(other)
                    front.append(other)
    return roots, children


class _Box(NamedTuple):
    """A subtree's extent from its root: ahead, behind, to the left and to the right of its own direction."""

    ahead: float
    behind: float
    left: float
    right: float


def _tree(feeder: Feeder, graph: nx.MultiGraph) -> np.ndarray:
    """The computed layout; islands stand below each other."""
    roots, children = _spanning(feeder, graph)
    size: dict[str, int] = {}
    for root in roots:
        order = [root]
        for bus in order:
            order += children[bus]
        for bus in reversed(order):
            size[bus] = 1 + sum(size[child] for child in children[bus])
    place: dict[str, tuple[float, float]] = {}
    offset = 0.0
    for root in roots:
        local: dict[str, complex] = {}
        box = _lay(root, children, size, local)
        offset -= box.left
        for bus, at in local.items():
            place[bus] = (at.real, at.imag + offset)
        offset -= box.right + 2 * _GAP
    return np.array([place[bus.name] for bus in feeder.buses])


def _lay(root: str, children: dict[str, list[str]], size: dict[str, int], out: dict[str, complex]) -> _Box:
    """Places a subtree with its root at 0 and its direction along the real axis; returns its extent.

    Recursion goes into side branches only, each at most half as large, so it is at most log2(buses) deep.
    """
    x, bus = 0.0, root
    behind = ahead = 0.0
    reach = {1: 0.0, -1: 0.0}  # to the left and to the right
    taken = {1: -math.inf, -1: -math.inf}  # how far along each side subtrees stand
    while True:
        below = sorted(children[bus], key=lambda b: -size[b])
        side = 1 if taken[1] <= taken[-1] else -1
        branches = []
        for number, child in enumerate(below[1:]):
            local: dict[str, complex] = {}
            box = _lay(child, children, size, local)
            # Turned to the left (side 1), a subtree's own left points backwards.
            near, far = (box.left, box.right) if side > 0 else (box.right, box.left)
            branches.append((side, near, far, box, local))
            if number < 2 and bus != root:  # the bus moves along, so that the branch leaves at a right angle
                x = max(x, taken[side] + near + _GAP)
            side = -side
        for side, near, far, box, local in branches:
            at = max(x, taken[side] + near + _GAP)
            taken[side] = at + far
            reach[side] = max(reach[side], 1 + box.behind + box.ahead)
            behind, ahead = max(behind, near - at), max(ahead, at + far)
            out |= {name: complex(at, side * (1 + box.behind)) + side * 1j * point for name, point in local.items()}
        out[bus] = complex(x, 0.0)
        ahead = max(ahead, x)
        if not below:
            return _Box(ahead, behind, reach[1], reach[-1])
        bus, x = below[0], x + 1.0


def _beside(feeder: Feeder, graph: nx.MultiGraph, own: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Fills in missing coordinates from the nearest placed neighbours, a small step away from them."""
    number = {bus.name: i for i, bus in enumerate(feeder.buses)}
    xy = own.copy()
    done = known.copy()
    step = 0.02 * float(np.ptp(own[known], axis=0).max())
    front = [bus.name for bus in feeder.buses if done[number[bus.name]]]
    for bus in front:
        for other in graph[bus]:
            i = number[other]
            if not done[i]:
                angle = 2.399963 * i  # the golden angle spreads siblings
                xy[i] = xy[number[bus]] + step * np.array([math.cos(angle), math.sin(angle)])
                done[i] = True
                front.append(other)
    xy[~done] = own[known].min(axis=0) - step  # islands without any coordinate
    return xy
