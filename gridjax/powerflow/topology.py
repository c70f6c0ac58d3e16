"""Which sections of a radial circuit a source feeds, its switches being data.

A *section* is what hangs together without switches. An *edge* joins two sections: a switch, or a source's impedance
with the source's EMF for a section of its own. While the closed edges make no loop they are a forest hung up at the
sources; `gridjax.powerflow.radial` solves the power flow of such a state.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from gridjax.powerflow.injections import Laws

FAR = 10**6  # the depth of a section that no source feeds


@flax.struct.dataclass
class Sections:
    """A feeder cut at its switches; made by `gridjax.control.sections.cut`. S sections, then one for each source's EMF.

    Attributes:
      edge: (edges, 2) the sections that each switch, then each source joins.
      at: (edges, 2, terminals, conductors) 1.0 where a conductor ends at a terminal of either section.
      z: (edges, conductors, conductors) complex impedance.
      near: (all sections, degree) their edges; one past the last edge where there are fewer.
      beyond: (all sections, degree) the sections beyond these.
      y: (S, terminals, terminals) complex Y; t: T; zu: Z; w: W; of nodes likewise nz and nw, (S, inside, ...).
      device: (S, units) whose load or generator; share: its part of the power.
      laws: (S, units).
      node_place: (nodes,) in the flattened (S, inside).
      emf: (sources, conductors) complex, at 1 pu.
      base_va: ().
      shunts: whether any section has a linear circuit of its own. Static.
      exponents: as in `gridjax.powerflow.injections.factors`. Static.
      cutoffs: likewise. Static.
    """

    edge: jax.Array
    at: jax.Array
    z: jax.Array
    near: jax.Array
    beyond: jax.Array
    y: jax.Array
    t: jax.Array
    zu: jax.Array
    w: jax.Array
    nz: jax.Array
    nw: jax.Array
    device: jax.Array
    share: jax.Array
    laws: Laws
    node_place: jax.Array
    emf: jax.Array
    base_va: jax.Array
    shunts: bool = flax.struct.field(pytree_node=False)
    exponents: bool = flax.struct.field(pytree_node=False)
    cutoffs: bool = flax.struct.field(pytree_node=False)

    @property
    def count(self) -> int:
        """How many sections there are, those of the sources' EMF not counted."""
        return self.y.shape[0]

    @property
    def switches(self) -> int:
        """How many edges are switches; those of the sources follow."""
        return self.edge.shape[0] - self.emf.shape[0]


@flax.struct.dataclass
class Topology:
    """What the closed edges make of the sections (all of them, those of the sources' EMF last).

    Attributes:
      island: (all sections,) the lowest number of a section that it hangs together with.
      depth: (all sections,) edges between it and its source, `FAR` where there is none.
      up: (all sections,) the edge that feeds it, one past the last edge where none does.
      guard: (all sections,) the nearest guarding edge on the way to its source, likewise.
    """

    island: jax.Array
    depth: jax.Array
    up: jax.Array
    guard: jax.Array

    @property
    def live(self) -> jax.Array:
        """(all sections,) whether a source feeds it."""
        return self.depth < FAR


def topology(sections: Sections, closed: jax.Array, guards: jax.Array | None = None) -> Topology:
    """Islands, and the forest hung up at the sources, by propagation along closed edges.

    Args:
      sections: of the feeder.
      closed: (switches,) bool.
      guards: (switches,) bool, which edges guard what lies beyond them; None: all.

    Returns:
      The topology. Where closed edges make a loop, `up` is a way of fewest edges to a source.
    """
    total, edges = sections.near.shape[0], sections.edge.shape[0]
    closed = jnp.concatenate([closed.astype(bool), jnp.ones(edges - sections.switches, bool), jnp.zeros(1, bool)])
    watch = jnp.ones(sections.switches, bool) if guards is None else guards.astype(bool)
    watch = jnp.concatenate([watch, jnp.zeros(edges - sections.switches + 1, bool)])
    joined = closed[sections.near]
    number = jnp.arange(total, dtype=jnp.int32)
    root = number >= sections.count

    def step(carry):
        island, depth, up, guard, _ = carry
        island_new = jnp.minimum(island, jnp.min(jnp.where(joined, island[sections.beyond], total), axis=1))
        offered = jnp.where(joined, depth[sections.beyond] + 1, FAR)
        best = jnp.argmin(offered, axis=1)
        least = jnp.take_along_axis(offered, best[:, None], axis=1)[:, 0]
        nearer = least < depth
        edge = jnp.take_along_axis(sections.near, best[:, None], axis=1)[:, 0]
        parent = jnp.take_along_axis(sections.beyond, best[:, None], axis=1)[:, 0]
        depth_new = jnp.where(nearer, least, depth)
        up = jnp.where(nearer, edge, up)
        guard = jnp.where(nearer, jnp.where(watch[edge], edge, guard[parent]), guard)
        changed = jnp.any(nearer) | jnp.any(island_new != island)
        return island_new, depth_new, up, guard, changed

    none = jnp.full(total, edges, jnp.int32)
    depth = jnp.where(root, 0, FAR).astype(jnp.int32)
    start = number, depth, none, none, jnp.ones((), bool)
    return Topology(*jax.lax.while_loop(lambda c: c[-1], step, start)[:4])


def islands_with(top: Topology, marked: jax.Array) -> jax.Array:
    """(all sections,) whether a section's island holds one that is marked, (all sections,) bool."""
    return jnp.any((top.island[:, None] == top.island[None, :]) & marked[None, :], axis=1)
