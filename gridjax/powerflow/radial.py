r"""Radial circuits whose switches are data: which sections a source feeds, and their power flow.

A *section* is what hangs together without switches; its linear circuit never changes. An *edge* joins two sections (a
switch, with its impedance, or a source's impedance with the source's EMF for a section of its own). While the closed
edges make no loop they are a forest hung up at the sources, and so every state of the switches is solved exactly by one
pass up and one down that forest (after D. Shirmohammadi et al., 1988), whose parents are data.

Kron reduction (G. Kron, 1939) leaves of a section its terminals (the nodes where edges end), over which, with Norton
currents `J = T x` of its units' currents x and the injections of its children,

    M v = J + E i,      M = Y + sum over children of P Y' P',      v_p = E' v + z i,

where E picks the terminals of the edge that feeds it, i is that edge's current, z its impedance and v_p = P' v(parent)
the voltage beyond. With the other terminals eliminated (`v = G v_h + K J`),

    Y_h = E' M G,   L = E' (1 - M K),   D = (1 + z Y_h)^-1,   v_h = D (v_p + z L J)
    i = Y' v_p - B J,                   Y' = Y_h D,           B = (1 - Y_h D z) L
    v = Q v_p + R J,                    Q = G D,              R = G D z L + K.

z is never inverted, so that switches of micro-ohms do no harm, and a circuit without shunts (M = 0) is the textbook
sweep. Each unit's voltage is then `u = Z x + W v`, and the power flow is the fixed point `u = sweep(I(u))`.

In a section that no source feeds there is no voltage: all its nodes have 0, and all its units draw nothing.

Guarantees:
  In float64 voltages agree with OpenDSS's to 1e-8 pu in any radial state of the switches. Derivatives by powers, EMF
  and impedances are the implicit ones of the solution, NaN where sweeps do not find them; there are none by switch
  states, which are whole.
"""

from __future__ import annotations

import functools

import flax.struct
import jax
import jax.numpy as jnp

from gridjax.namespace import einsum, matmul
from gridjax.powerflow.injections import factors
from gridjax.powerflow.topology import Sections, Topology

MIN_STEP = 1 / 8
SLOPE_SWEEPS = 300


@flax.struct.dataclass
class RadialFlow:
    """A power flow; complex numbers per unit.

    Attributes:
      v: (nodes,) voltages, 0 where no source feeds.
      live: (nodes,) whether one does.
      edge_current: (edges, conductors) of base power over the nodes' base voltage.
      source: (sources,) power that each EMF delivers.
      taken: () power that all loads take less what generators give.
      converged: whether the last change is within the tolerance.
      iterations: sweeps made.
      residual: the last change.
    """

    v: jax.Array
    live: jax.Array
    edge_current: jax.Array
    source: jax.Array
    taken: jax.Array
    converged: jax.Array
    iterations: jax.Array
    residual: jax.Array


@flax.struct.dataclass
class _Forest:
    """The sections in the order of their depth, with what the passes need."""

    order: jax.Array  # (all,) which section comes when, the sources' EMF first
    rank: jax.Array  # (all,) when a section comes
    parent: jax.Array  # (S,) rank of the parent of each but the EMFs; 0 where none, whose operators are zero
    edge: jax.Array  # (S,)
    near: jax.Array  # E, (S, terminals, conductors)
    far: jax.Array  # P
    z: jax.Array
    live: jax.Array


def _forest(sections: Sections, top: Topology) -> _Forest:
    sources = sections.emf.shape[0]
    order = jnp.argsort(top.depth, stable=True)
    rank = jnp.zeros_like(order).at[order].set(jnp.arange(order.shape[0]))
    below = order[sources:]
    live = top.live[below]
    edge = jnp.where(live, top.up[below], 0)
    side = (sections.edge[edge, 1] == below).astype(int)
    parent = jnp.where(live, rank[sections.edge[edge, 1 - side]], 0)
    return _Forest(
        order, rank, parent, edge, sections.at[edge, side], sections.at[edge, 1 - side], sections.z[edge], live
    )


def _inverse(a: jax.Array) -> jax.Array:
    """Of (..., n, n): closed forms up to three, which vectorise over a batch."""
    n = a.shape[-1]
    if n == 1:
        return 1 / a
    if n != 3:
        return jnp.linalg.inv(a)
    b, c = jnp.roll(a, -1, axis=-2), jnp.roll(a, -2, axis=-2)
    cofactor = jnp.roll(b, -1, axis=-1) * jnp.roll(c, -2, axis=-1) - jnp.roll(b, -2, axis=-1) * jnp.roll(c, -1, axis=-1)
    determinant = jnp.sum(a[..., 0, :] * cofactor[..., 0, :], axis=-1)
    return jnp.swapaxes(cofactor, -1, -2) / determinant[..., None, None]


def _times(a: jax.Array, b: jax.Array) -> jax.Array:
    """Products of tiny matrices (..., r, k) and vectors (..., k), which fuse where those of matrices do not."""
    return jnp.sum(a * b[..., None, :], axis=-1)


@flax.struct.dataclass
class _Passes:
    """B, Q, R and Y' of each section but the EMFs, in the forest's order."""

    b: jax.Array
    q: jax.Array
    r: jax.Array
    y: jax.Array


def _reduce(matrix: jax.Array, near: jax.Array, z: jax.Array, live: jax.Array) -> _Passes:
    """The operators of sections with nodal matrices M, (..., terminals, terminals)."""
    n, c = near.shape[-2:]
    turned = jnp.swapaxes(near, -1, -2)
    head = jnp.max(near, axis=-1)
    rest = 1 - head
    grounded = matrix * rest[..., :, None] * rest[..., None, :] + head[..., :, None] * jnp.eye(n, dtype=matrix.dtype)
    k = _inverse(grounded) * rest[..., :, None] * rest[..., None, :]
    g = near - matmul(k, matmul(matrix, near))
    y_h = matmul(turned, matmul(matrix, g))
    el = turned - matmul(turned, matmul(matrix, k))
    return _finish(near, z, live, (k, g, y_h, el), jnp.eye(c, dtype=matrix.dtype))


def _finish(near, z, live, parts, one) -> _Passes:
    k, g, y_h, el = parts
    d = _inverse(one + matmul(z, y_h))
    gd, zel = matmul(g, d), matmul(z, el)
    on = live[..., None, None]
    b = el - matmul(y_h, matmul(d, zel))
    return _Passes(*(jnp.where(on, a, 0.0) for a in (b, gd, matmul(gd, zel) + k, matmul(y_h, d))))


def _passes(sections: Sections, forest: _Forest) -> _Passes:
    """All sections' operators, from the leaves up."""
    complex_ = sections.z.dtype
    near, far = forest.near.astype(complex_), forest.far.astype(complex_)
    if not sections.shunts:  # M = 0, and each section has the terminals of its feeding edge alone
        turned = jnp.swapaxes(near, -1, -2)
        on = forest.live[:, None, None]
        y = jnp.zeros((near.shape[0], *sections.z.shape[1:]), complex_)
        return _Passes(*(jnp.where(on, a, 0.0) for a in (turned, near, matmul(matmul(near, forest.z), turned), y)))
    sources = sections.emf.shape[0]
    own = sections.y[jnp.minimum(forest.order[sources:], sections.count - 1)]
    total, n = forest.order.shape[0], near.shape[1]
    ranks = jnp.arange(sources, total)

    def up(added, one):
        rank, parent, matrix, near, far, z, live = one
        found = _reduce(matrix + added[rank], near, z, live)
        return added.at[parent].add(matmul(matmul(far, found.y), jnp.swapaxes(far, -1, -2))), found

    xs = (ranks, forest.parent, own, near, far, forest.z, forest.live)
    return jax.lax.scan(up, jnp.zeros((total, n, n), complex_), xs, reverse=True)[1]


def _sweep(sections: Sections, forest: _Forest, passes: _Passes, emf: jax.Array, injected: jax.Array):
    """Terminal voltages (S, terminals) and the edges' currents into the sections (S, conductors), in their order.

    Args:
      sections: of the feeder.
      forest: of the switches' state.
      passes: of the same.
      emf: (sources, conductors).
      injected: (S, terminals) Norton currents, in the forest's order.
    """
    sources = emf.shape[0]
    total, n = forest.order.shape[0], injected.shape[1]
    ranks = jnp.arange(sources, total)
    far = forest.far.astype(injected.dtype)

    def up(carry, one):
        parent, far, b, rank = one
        out = _times(b, carry[rank])
        return carry.at[parent].add(_times(far, out)), None

    all_injected = jnp.concatenate([jnp.zeros((sources, n), injected.dtype), injected])
    j, _ = jax.lax.scan(up, all_injected, (forest.parent, far, passes.b, ranks), reverse=True)
    own = _times(passes.r, j[sources:])
    start = jnp.zeros((total, n), injected.dtype)
    start = start.at[:sources].set(_times(sections.at[sections.switches :, 1].astype(emf.dtype), emf))

    def down(v, one):
        parent, far, q, own, rank = one
        beyond = _times(jnp.swapaxes(far, -1, -2), v[parent])
        return v.at[rank].set(_times(q, beyond) + own), beyond

    v, beyond = jax.lax.scan(down, start, (forest.parent, far, passes.q, own, ranks))
    return v[sources:], _times(passes.y, beyond) - _times(passes.b, j[sources:])


def solve_radial(
    sections: Sections,
    top: Topology,
    load: tuple[jax.Array, jax.Array],
    source_pu: jax.Array,
    *,
    tol: float = 1e-8,
    max_iterations: int = 100,
) -> RadialFlow:
    """The power flow of one radial state of the switches.

    Args:
      sections: of the feeder.
      top: of closed switches that make no loop and join no sources (`topology`); else the result has no meaning.
      load: (devices,) kW and kvar of loads, then of generators with the opposite sign.
      source_pu: (sources,) EMF of each source in per unit of its rating.
      tol: largest change of a unit's voltage in per unit at convergence; at least four units of the precision. Static.
      max_iterations: of sweeps. Static.
    """
    forest = _forest(sections, top)
    passes = _passes(sections, forest)
    tol = max(tol, 4 * float(jnp.finfo(sections.share.dtype).eps))
    kva = sections.base_va / 1e3
    alive = top.live[: sections.count, None]
    none = jnp.zeros(1, load[0].dtype)
    p, q = (
        jnp.where(alive, jnp.append(a / kva, none)[sections.device] * sections.share, 0.0) for a in (load[0], load[1])
    )
    emf = sections.emf * source_pu[:, None]

    def currents(u):
        fp, fq = factors(sections.laws, u.real**2 + u.imag**2, sections.exponents, sections.cutoffs)
        return -jax.lax.complex(p * fp, -q * fq) * u

    def linear(x):
        j = einsum("stm,sm->st", sections.t, x)
        sources = emf.shape[0]
        v, into = _sweep(sections, forest, passes, emf, j[forest.order[sources:]])
        v = v[forest.rank[: sections.count] - sources]
        return einsum("smk,sk->sm", sections.zu, x) + einsum("smt,st->sm", sections.w, v), v, into

    def gap(u):
        """The sweep's change of the units' voltages, in real coordinates."""
        u = jax.lax.complex(u[0], u[1])
        after = linear(currents(u))[0] - u
        return jnp.where(alive[None], jnp.stack([after.real, after.imag]), -jnp.stack([u.real, u.imag]))

    start, *_ = linear(jnp.zeros(sections.device.shape, sections.z.dtype))
    start = jax.lax.stop_gradient(jnp.stack([start.real, start.imag]))
    u, iterations, residual = _root(gap, start, tol, max_iterations)
    residual = jnp.where(jnp.all(jnp.isfinite(emf)), residual, jnp.inf)  # even where it feeds nothing
    u = jax.lax.complex(u[0], u[1])
    x = currents(u)
    _, v, into = linear(x)
    at = jnp.where(forest.live, forest.edge, sections.edge.shape[0])
    edge_current = jnp.zeros((sections.edge.shape[0], into.shape[1]), into.dtype).at[at].add(into, mode="drop")
    return RadialFlow(
        *_nodes(sections, alive, x, v),
        edge_current=edge_current,
        source=jnp.sum(emf * jnp.conj(edge_current[sections.switches :]), axis=1),
        taken=-jnp.sum(u * jnp.conj(x)),
        converged=residual <= tol,
        iterations=iterations,
        residual=residual,
    )


def _nodes(sections: Sections, alive: jax.Array, x: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The nodes' voltages, and which of them are live, from the units' currents and the terminals' voltages."""
    inside = einsum("sik,sk->si", sections.nz, x) + einsum("sit,st->si", sections.nw, v)
    inside = jnp.where(alive, inside, 0.0)
    live = jnp.broadcast_to(alive, inside.shape)
    return inside.reshape(-1)[sections.node_place], live.reshape(-1)[sections.node_place]


def _root(gap, start: jax.Array, tol: float, max_iterations: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Where `gap` (2, S, units) vanishes, the sweeps made and the last change; with implicit derivatives."""

    def solve(gap, start):
        def body(carry):
            u, count, before, length, _ = carry
            change = gap(u)
            size = jnp.max(jnp.abs(change), initial=0.0)
            size = jnp.where(jnp.isfinite(size), size, jnp.inf)
            # Loads that turn into impedances below vminpu can make full steps swing.
            length = jnp.where((size > 0.95 * before) & (length > MIN_STEP), length / 2, length)
            u = jnp.where(jnp.isfinite(size), u + length * change, u)
            going = jnp.isfinite(size) & (size > tol) & (count + 1 < max_iterations)
            return u, count + 1, size, length, going

        one = jnp.ones((), start.dtype)
        carry = start, jnp.zeros((), jnp.int32), one * jnp.inf, one, jnp.ones((), bool)
        u, count, size, *_ = jax.lax.while_loop(lambda c: c[-1], body, carry)
        return u, jnp.stack([count.astype(u.dtype), size])  # what is beside the solution has to be real numbers

    linear = functools.partial(_linear, tol=1e-3 * tol)

    def tangent(slope, right):
        return jax.lax.custom_linear_solve(slope, right, linear, linear)

    u, beside = jax.lax.custom_root(gap, start, solve, tangent, has_aux=True)
    count, size = jax.lax.stop_gradient(beside)
    return u, count.astype(jnp.int32), size


def _linear(gap, right: jax.Array, tol: float) -> jax.Array:
    """Solves `gap(x) = right` for the linear `gap(x) = A x - x` by `x <- A x - right`; NaN if that does not settle."""

    def going(carry):
        _, count, size = carry
        return (count == 0) | ((size > goal) & (count < SLOPE_SWEEPS) & jnp.isfinite(size))

    def body(carry):
        x, count, _ = carry
        change = gap(x) - right
        return x + change, count + 1, jnp.max(jnp.abs(change), initial=0.0)

    scale = jnp.max(jnp.abs(right), initial=0.0)
    goal = tol * scale
    start = -right, jnp.zeros((), jnp.int32), jnp.full_like(scale, jnp.inf)
    x, _, size = jax.lax.while_loop(going, body, start)
    # A change is never smaller than the rounding of what it changes.
    rounding = 1e3 * float(jnp.finfo(x.dtype).eps) * jnp.max(jnp.abs(x), initial=0.0)
    return jnp.where(size <= jnp.maximum(goal, rounding), x, jnp.nan)
