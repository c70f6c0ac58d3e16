"""How the solution answers to its inputs: the linearised circuit, forward and transposed, for a batch.

Around a solution the slots' currents are `x = K y + r`, K their slopes, and `y = L x` is one sweep. Both the tangent
and the adjoint of the power flow are solutions of `y = c + L K y`, the adjoint with the transposes of L and K. The
transpose of a hierarchy of zones is a hierarchy of zones with `Z^T, W' = T^T, T' = W^T`, so one code serves both.

The equation is solved by iterative refinement (J. H. Wilkinson, 1963): corrections in float32 by the chord operators
(`gridjax.powerflow.chord`), residuals in the grid's precision. Scenarios near the nose, where that does not
converge, are solved by elimination.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gridjax.grid import Grid, OperatingPoint, Tier
from gridjax.namespace import einsum, matmul
from gridjax.powerflow.newton import eliminate, slopes
from gridjax.powerflow.sweep import (
    consumption,
    largest,
    linear,
    prepare,
    slot_currents,
    source_current,
    upwards,
)

INNER = 5  # chord steps a correction
OUTER = 8  # corrections

Slopes = tuple[jax.Array, jax.Array]  # by the real and the imaginary voltage, (zones, 2 slots, batch)


def no_change(like: jax.Array, outcome: Any) -> Any:
    """Zeros shaped like `outcome`, but linear in `like`: JAX transposes only what is. The transpose reads nothing."""
    none = like.ravel()[:0]
    return jax.tree.map(
        lambda a: jax.lax.pad(none, jnp.zeros((), none.dtype), [(0, math.prod(a.shape), 0)]).reshape(a.shape), outcome
    )


def linear_solve(matvec: Callable[[Any], Any], b: Any, solve: Callable, transposed: Callable) -> Any:
    """`jax.lax.custom_linear_solve` of many arrays, whose derivatives JAX refuses where only some of them have any.

    So every array gets the sum of no entries of all the others: to JAX each depends on all, and nothing is computed.
    """
    return _tied(jax.lax.custom_linear_solve(lambda x: _tied(matvec(x)), _tied(b), solve, transposed))


def _tied(tree: Any) -> Any:
    nothing = sum(jnp.sum(a.ravel()[:0]) for a in jax.tree.leaves(tree))
    return jax.tree.map(lambda a: a + nothing, tree)


def _times(k: Slopes, y: jax.Array) -> jax.Array:
    half = y.shape[1] // 2
    return k[0] * jnp.tile(y[:, :half], (1, 2, 1)) + k[1] * jnp.tile(y[:, half:], (1, 2, 1))


def _transposed_slopes(k: Slopes) -> Slopes:
    half = k[0].shape[1] // 2
    (re_re, im_re), (re_im, im_im) = ((a[:, :half], a[:, half:]) for a in k)
    return jnp.concatenate([re_re, re_im], axis=1), jnp.concatenate([im_re, im_im], axis=1)


def _transposed(tiers: tuple[Tier, ...]) -> tuple[Tier, ...]:
    return tuple(
        dataclasses.replace(
            tier, z=jnp.swapaxes(tier.z, 1, 2), w=jnp.swapaxes(tier.t, 1, 2), t=jnp.swapaxes(tier.w, 1, 2)
        )
        for tier in tiers
    )


def _answer(grid: Grid, k: Slopes, c: jax.Array, transpose: bool) -> jax.Array:
    """The y of `y = c + L K y`, or of its transpose with `L^T K^T`, (zones, 2 slots, batch)."""
    tiers, chord = grid.zones.tiers, grid.chord.tiers
    k0 = grid.chord.by_re[..., None], grid.chord.by_im[..., None]
    if transpose:
        tiers, chord = _transposed(tiers), _transposed(chord)
        k, k0 = _transposed_slopes(k), _transposed_slopes(k0)
    head = jnp.zeros((1, tiers[-1].w.shape[2], c.shape[-1]), c.dtype)
    single = k[0].astype(jnp.float32), k[1].astype(jnp.float32)
    rest = single[0] - k0[0], single[1] - k0[1]

    def correct(residual, scale):
        """About `(1 - L K)^-1 residual = residual + L' (rest + ...)`; scaled, so that float32 does not underflow."""
        small = (residual / scale).astype(jnp.float32)
        r = _times(single, small)

        def step(_, d):
            return linear(chord, _times(rest, d) + r, head.astype(jnp.float32))[0]

        d = jax.lax.fori_loop(0, INNER, step, jnp.zeros_like(small))
        return (small + d).astype(residual.dtype) * scale

    tol = 1e-11 if c.dtype == jnp.float64 else 32 * float(jnp.finfo(c.dtype).eps)
    bad = 1e3 * tol if c.dtype == jnp.float64 else 1e2 * tol
    size = jnp.maximum(largest(c), float(jnp.finfo(c.dtype).tiny))

    def body(carry):
        y, residual, error, active, count = carry
        new = y + correct(residual, jnp.maximum(error, float(jnp.finfo(c.dtype).tiny))[None, None])
        left = c + linear(tiers, _times(k, new), head)[0] - new
        after = largest(left)
        better = (active & (after < error))[None, None]
        y, residual = jnp.where(better, new, y), jnp.where(better, left, residual)
        error = jnp.where(better[0, 0], after, error)
        return y, residual, error, active & better[0, 0] & (error > tol * size), count + 1

    error = largest(c)
    carry = jnp.zeros_like(c), c, error, jnp.isfinite(error) & (error > 0), jnp.zeros((), jnp.int32)
    y, _, error, _, _ = jax.lax.while_loop(lambda s: jnp.any(s[3]) & (s[4] < OUTER), body, carry)
    lost = ~(error <= bad * size)

    def direct(y):
        return jnp.where(lost[None, None], eliminate(tiers, *k, c)[0], y)

    return jax.lax.cond(jnp.any(lost), direct, lambda y: y, y)


def tangent(
    grid: Grid, points: OperatingPoint, u: jax.Array, change: OperatingPoint, further: jax.Array
) -> tuple[jax.Array, ...]:
    """How a change of the operating points changes the solution.

    Args:
      grid: the grid.
      points: the operating points, (batch, ...).
      u: (batch, zones, 2 slots) the slots' voltages that solve them.
      change: of the points.
      further: (batch, zones, 2 slots) changes of a sweep's outcome for other reasons.

    Returns:
      Changes of the node voltages, real and imaginary (batch, nodes), of u, of the first source's current (batch,
      2 boundary) and of the power taken (batch, 2).
    """
    u = jnp.moveaxis(u, 0, -1)
    inputs, dinputs = jax.jvp(lambda p: prepare(grid, p), (points,), (change,))
    _, dx = jax.jvp(lambda i: slot_currents(grid, i, u), (inputs,), (dinputs,))
    k = slopes(grid, inputs, u)
    c = linear(grid.zones.tiers, dx, dinputs.head)[0] + jnp.moveaxis(further, 0, -1)
    du = _answer(grid, k, c, transpose=False)
    dx = dx + _times(k, du)
    _, boundary = linear(grid.zones.tiers, dx, dinputs.head)
    zs = grid.zones
    rows = einsum("zij,zjb->bzi", zs.n, dx) + einsum("zij,zjb->bzi", zs.n_boundary, boundary)
    re, im = (a.reshape(a.shape[0], a.shape[1] * a.shape[2])[:, grid.node_place] for a in jnp.split(rows, 2, axis=2))
    amps = source_current(grid, dinputs.head[0], dx)
    _, taken = jax.jvp(lambda i, u: consumption(grid, i, u), (inputs, u), (dinputs, du))
    return re, im, jnp.moveaxis(du, -1, 0), amps.T, taken.T


def cotangent(
    grid: Grid, points: OperatingPoint, u: jax.Array, re: jax.Array, im: jax.Array, u_bar: jax.Array, amps: jax.Array,
    taken: jax.Array,
) -> tuple[OperatingPoint, jax.Array]:  # fmt: skip
    """The transpose of `tangent`: from cotangents of the solution to those of `change` and `further`."""
    u, u_bar, zs = jnp.moveaxis(u, 0, -1), jnp.moveaxis(u_bar, 0, -1), grid.zones
    batch, (zones, rows) = re.shape[0], zs.v_ref.shape
    # By gathering: a scatter would go through the nodes one by one.
    node = jnp.full(zones * rows // 2, grid.shape.nodes, grid.node_place.dtype)
    node = node.at[grid.node_place].set(jnp.arange(grid.shape.nodes, dtype=node.dtype))
    parts = [jnp.pad(a, ((0, 0), (0, 1)))[:, node].reshape(batch, zones, rows // 2) for a in (re, im)]
    v_bar = jnp.concatenate(parts, axis=2)
    direct = einsum("zij,bzi->zjb", zs.n, v_bar)
    boundary = einsum("zij,bzi->zjb", zs.n_boundary, v_bar)
    inputs = prepare(grid, points)
    _, pull_power = jax.vjp(lambda p, u: consumption(grid, prepare(grid, p), u), points, u)
    by_power, more = pull_power(taken.T)
    u_bar = u_bar + more
    k = slopes(grid, inputs, u)
    tiers = _transposed(zs.tiers)
    down, _ = linear(tiers, u_bar, -amps.T[None], boundary)
    x_bar = _answer(grid, k, direct + down, transpose=True)
    further = _times(_transposed_slopes(k), x_bar) + u_bar
    carried = upwards(tiers, further, boundary)
    head_bar = einsum("zij,zjb->zib", tiers[-1].t, carried[-1]) + matmul(amps, zs.head_y).T[None]
    if len(tiers) == 1:
        head_bar = head_bar + boundary
    _, pull = jax.vjp(lambda p: (slot_currents(grid, prepare(grid, p), u), prepare(grid, p).head), points)
    return jax.tree.map(jnp.add, pull((x_bar, head_bar))[0], by_power), jnp.moveaxis(further, -1, 0)
