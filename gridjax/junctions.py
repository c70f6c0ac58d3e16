"""Where switches' currents follow from what else meets at their ends: needed in float32 only.

A closed switch's ends have the same voltage but for its 1e-4 ohm or less, and in float32 just the same: its current is
what Kirchhoff's law leaves for it.
"""

from __future__ import annotations

import flax.struct
import jax
import numpy as np

from gridjax.branches import Branches, branch_nodes
from gridjax.layout import Layout
from gridjax.namespace import Array, add_at, einsum, namespace

STIFF = 3.0  # times the median admittance at the nodes that have more than switches
RIDGE = 1e-5  # of the normal equations of Kirchhoff's law, so that loops of switches have a solution


@flax.struct.dataclass
class Junctions:
    """What meets at both ends of the switches' conductors, and what its sum says of the switches' currents.

    Attributes:
      element: of each kind of element (2, switches, conductors, most, 3): which element, terminal and conductor.
      here: of each kind (2, switches, conductors, most) 1.0 where there is one, else 0.0.
      unit: (2, switches, conductors, most, 2) zone and slot of a unit.
      amps: (2, switches, conductors, most) amperes out of the node for 1 pu drawn by the unit, 0.0 where there is none.
      correction: (switches, conductors, 2, switches, conductors) change of the current into a switch's first terminal
        by the sum of all currents out of the nodes.
    """

    element: dict[str, jax.Array]
    here: dict[str, jax.Array]
    unit: jax.Array
    amps: jax.Array
    correction: jax.Array


def junctions(layout: Layout, branches: dict[str, Branches], units_volts: Array, base: Array) -> Junctions:
    """Those of a feeder; `units_volts` are (zones, slots)."""
    nodes = branch_nodes(layout)
    xp = namespace(branches, base)
    ground = layout.shape.nodes
    ends = nodes["switches"].swapaxes(0, 1) if "switches" in nodes else np.zeros((2, 0, 1), int)
    element, here = {}, {}
    for kind, table in nodes.items():
        element[kind], here[kind] = _meeting(table, ends, ground)
    unit, drawn = _meeting(layout.unit_nodes, ends, ground)
    sign = np.where(unit[..., 1] == 0, 1.0, -1.0) * drawn
    place = np.append(layout.unit_place, 0)[unit[..., 0]]
    zone, slot = place // layout.shape.slots, place % layout.shape.slots
    return Junctions(
        element={k: xp.asarray(a) for k, a in element.items()},
        here={k: xp.asarray(a) for k, a in here.items()},
        unit=xp.asarray(np.stack([zone, slot], axis=-1)),
        amps=sign * base / units_volts[zone, slot],
        correction=_correction(branches, ends, ground),
    )


def _meeting(nodes: np.ndarray, ends: np.ndarray, ground: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the nodes at the ends are found in an array, and 1.0 for each find: (*ends, most, axes), (*ends, most)."""
    found: dict[int, list[tuple[int, ...]]] = {int(n): [] for n in np.unique(ends) if n != ground}
    for index in zip(*np.nonzero(np.isin(nodes, list(found))), strict=True):
        found[int(nodes[index])].append(tuple(int(i) for i in index))
    most = max(map(len, found.values()), default=0)
    where, here = np.zeros((*ends.shape, most, nodes.ndim), int), np.zeros((*ends.shape, most))
    for place, node in np.ndenumerate(ends):
        for k, index in enumerate(found.get(int(node), ())):
            where[(*place, k)], here[(*place, k)] = index, 1.0
    return where, here


def _correction(branches: dict[str, Branches], ends: np.ndarray, ground: int) -> Array:
    """`Junctions.correction`.

    With A the incidence of the closed switches' conductors on the nodes and r the sums there, the least squares
    solution of r + A d = 0, d = -(A' W A)^-1 A' W r: exact where switches make no loop, and the smallest such d where
    they do. The weights W are small at nodes whose other elements are stiff (sources, regulators), as r is noisy there.
    """
    _, count, k = ends.shape
    if not count:
        return np.zeros((0, k, 2, 0, k))
    xp, y = namespace(branches), branches["switches"].y_re
    conducts = xp.abs(xp.diagonal(y, axis1=1, axis2=2)) > 0
    closed = (conducts[:, :k] & conducts[:, k:]).ravel()
    flat = ends.reshape(2, -1)
    root = _trust(branches, ground)[flat]
    seen = root * closed[None] * np.array([[1.0], [-1.0]])
    same = (flat[:, :, None, None] == flat[None, None]).astype(float)
    normal = einsum("pa,paqb,qb->ab", seen, same, seen) + RIDGE * np.eye(flat.shape[1])
    change = -xp.linalg.inv(normal)[:, None, :] * (seen * root)[None] * closed[:, None, None]
    return change.reshape(count, k, 2, count, k)


def _trust(branches: dict[str, Branches], ground: int) -> Array:
    """Roots of the nodes' weights, (nodes + 1,): 1 to 0, by the admittance of what is there beside switches."""
    xp = namespace(branches)
    stiff = xp.zeros(ground + 1)
    for kind, table in branches.items():
        if kind != "switches":
            y = xp.hypot(*(xp.diagonal(a, axis1=1, axis2=2) for a in (table.y_re, table.y_im)))
            stiff = add_at(stiff, table.nodes, y.reshape(table.nodes.shape))
    usual = STIFF * xp.nanmedian(xp.where(stiff[:ground] > 0, stiff[:ground], np.nan))
    weight = 1.0 / xp.sqrt(1.0 + (stiff / usual) ** 2)
    return xp.where(np.arange(ground + 1) < ground, weight, 0.0)
