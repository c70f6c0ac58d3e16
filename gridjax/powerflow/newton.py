"""Newton-Raphson on the slots of all zones, eliminated tier by tier.

With the slots' currents linearised, `x = a + K y` (a 2 x 2 block of K a slot), the outputs of a zone follow from its
boundary voltages v, for all zones at once:

    (1 - Z K) y = Z a + W v,        T x = T (a + K y) = c + C v.

In the next tier the members' Norton currents are thus again linear in the members' boundary voltages, `x' = c + C y'`
with blocks C, and the same elimination goes on to the top. One pass up and one down solve the linearised circuit
exactly: the Newton step of W. F. Tinney and C. E. Hart (1967) in current-injection form. A step that does not reduce
the mismatch of a sweep is halved.

Past the nose of the P-V curve Newton may find the low-voltage solution. There the determinant of the mismatch's
Jacobian, which is the product of the zones' determinants, has changed its sign: such a solution is not reported as
converged.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import lu_factor, lu_solve

from gridjax.grid import Grid, Tier
from gridjax.namespace import Array, einsum, matmul, namespace
from gridjax.powerflow.injections import factors
from gridjax.powerflow.sweep import Inputs, Solution, linear, mismatch, slot_currents

MAX_HALVINGS = 6
STEP = 1e-6  # of differences, in the squared voltage


def _solve(matrix: jax.Array, right: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Solution of (batch, zones, n, n) systems and the sign of their determinants' product, (batch,)."""
    lu, pivots = lu_factor(matrix)
    diagonal = jnp.prod(jnp.sign(jnp.diagonal(lu, axis1=-2, axis2=-1)), axis=(-1, -2))
    swaps = jnp.sum(pivots != jnp.broadcast_to(jnp.arange(pivots.shape[-1]), pivots.shape), axis=(-1, -2))
    return lu_solve((lu, pivots), right), diagonal * (1 - 2 * (swaps % 2))


def slopes(grid: Grid, inputs: Inputs, u: Array) -> tuple[Array, Array]:
    """Derivatives of the slots' currents at u by its real and its imaginary part, (zones, 2 slots, batch).

    In NumPy the laws are differentiated by central differences, to the eight digits that the chord's float32 holds.
    """
    m, xp = grid.shape.slots, namespace(grid, inputs, u)
    u = u + grid.zones.u_ref[..., None]
    re, im = u[:, :m], u[:, m:]
    laws = jax.tree.map(lambda a: a[..., None], grid.units.laws)

    def law(v2):
        fp, fq = factors(laws, v2, grid.shape.exponents, grid.shape.cutoffs)
        return inputs.p * fp, inputs.q * fq

    v2 = re * re + im * im
    if xp is np:
        a, b = law(v2)
        da, db = ((up - down) / (2 * STEP) for up, down in zip(law(v2 + STEP), law(v2 - STEP), strict=True))
    else:
        (a, b), (da, db) = jax.jvp(law, (v2,), (jnp.ones_like(v2),))
    along, across = -2.0 * (da * re + db * im), 2.0 * (db * re - da * im)
    by_re = xp.concatenate([along * re - a, across * re + b], axis=1)
    by_im = xp.concatenate([along * im - b, across * im - a], axis=1)
    return by_re, by_im


def times_slopes(a: Array, by_re: Array, by_im: Array) -> Array:
    """`A K` for an operator A (zones, rows, 2 m) and slopes (batch, zones, 2 m): (batch, zones, rows, 2 m)."""
    m = a.shape[-1] // 2
    re, im = a[None, ..., :m], a[None, ..., m:]
    parts = [re * k[:, :, None, :m] + im * k[:, :, None, m:] for k in (by_re, by_im)]
    return namespace(a, by_re).concatenate(parts, axis=-1)


def block_diagonal(c: Array) -> Array:
    """(batch, zones, members, h, h) as block-diagonal matrices."""
    batch, zones, members, h, _ = c.shape
    full = einsum("bzmij,mn->bzminj", c, np.eye(members, dtype=c.dtype))
    return full.reshape(batch, zones, members * h, members * h)


def _apply(operator: jax.Array, vector: jax.Array) -> jax.Array:
    return einsum("zij,bzj->bzi", operator, vector)


def eliminate(
    tiers: tuple[Tier, ...], by_re: jax.Array, by_im: jax.Array, constant: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Solves `y = constant + L K y`, L the linear circuit without a change at the source.

    Args:
      tiers: of the circuit.
      by_re: (zones, 2 slots, batch) the slopes K by the real part of y.
      by_im: likewise by the imaginary part.
      constant: (zones, 2 slots, batch).

    Returns:
      y, and the sign of the determinant of `1 - L K`, (batch,).
    """
    by_re, by_im, c = (jnp.moveaxis(k, -1, 0) for k in (by_re, by_im, constant))
    batch = c.shape[0]
    z_k, t_k = (times_slopes(op, by_re, by_im) for op in (tiers[0].z, tiers[0].t))
    sign = jnp.ones(batch, c.dtype)
    answers = []
    a = slope = c
    for k, tier in enumerate(tiers):
        if k:
            blocks = block_diagonal(slope[:, tier.member])
            a = a[:, tier.member].reshape(batch, *tier.z.shape[:2])
            c, z_k, t_k = _apply(tier.z, a), matmul(tier.z[None], blocks), matmul(tier.t[None], blocks)
        w = jnp.broadcast_to(tier.w[None], (batch, *tier.w.shape))
        identity = jnp.eye(tier.z.shape[1], dtype=c.dtype)[None, None]
        y, one = _solve(identity - z_k, jnp.concatenate([c[..., None], w], axis=-1))
        answers.append(y)
        sign = sign * one
        out = matmul(t_k, y)
        a, slope = out[..., 0] + (_apply(tier.t, a) if k else 0.0), out[..., 1:]
    y = answers[-1][..., 0]
    for k in range(len(tiers) - 1, 0, -1):
        h = tiers[k - 1].t.shape[1]
        boundary = y.reshape(batch, y.shape[1] * y.shape[2] // h, h)[:, tiers[k].place]
        y = answers[k - 1][..., 0] + einsum("bzij,bzj->bzi", answers[k - 1][..., 1:], boundary)
    return jnp.moveaxis(y, 0, -1), sign


def newton_step(grid: Grid, inputs: Inputs, u: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The Newton iterate after `u` (zones, 2 slots, batch), and the sign of the Jacobian's determinant at `u`."""
    m = grid.shape.slots
    x = slot_currents(grid, inputs, u)
    by_re, by_im = slopes(grid, inputs, u)
    a = x - by_re * jnp.tile(u[:, :m], (1, 2, 1)) - by_im * jnp.tile(u[:, m:], (1, 2, 1))
    constant, _ = linear(grid.zones.tiers, a, inputs.head)
    return eliminate(grid.zones.tiers, by_re, by_im, constant)


def newton(grid: Grid, inputs: Inputs, u: jax.Array, tol: float, max_iterations: int | jax.Array) -> Solution:
    """Newton steps until each scenario's mismatch is at most `tol`.

    The residual is the largest mismatch of a sweep, infinite on a solution where the Jacobian's determinant is not
    positive.
    """

    def of(u):
        return mismatch(inputs, linear(grid.zones.tiers, slot_currents(grid, inputs, u), inputs.head)[0] - u)

    def halve(carry):
        old, step, length, _, before, waiting, count = carry
        length = jnp.where(waiting, length / 2, length)
        after = of(old + length[None, None] * (step - old))
        return old, step, length, after, before, waiting & ~(after < before), count + 1

    def body(carry):
        u, count, iterations, residual, sign, active = carry
        step, sign_new = newton_step(grid, inputs, u)
        # The sign belongs to the point from which the step starts.
        sign = jnp.where(active, sign_new, sign)
        active = active & (residual > tol)
        after = of(step)
        length = jnp.ones_like(residual)
        waiting = active & ~(after < residual)
        carry = (u, step, length, after, residual, waiting, jnp.zeros((), jnp.int32))
        *_, length, after, _, waiting, _ = jax.lax.while_loop(
            lambda c: jnp.any(c[5]) & (c[6] < MAX_HALVINGS), halve, carry
        )
        keep = active & jnp.isfinite(after)
        u = jnp.where(keep[None, None], u + length[None, None] * (step - u), u)
        iterations = iterations + active
        residual = jnp.where(keep, after, residual)
        active = keep & (count + 1 < max_iterations)
        return u, count + 1, iterations, residual, sign, active

    batch = u.shape[-1]
    carry = (
        u,
        jnp.zeros((), jnp.int32),
        jnp.zeros(batch, jnp.int32),
        of(u),
        jnp.ones(batch, u.dtype),
        jnp.ones(batch, bool),
    )
    u, _, iterations, residual, sign, _ = jax.lax.while_loop(lambda c: jnp.any(c[5]), body, carry)
    x = slot_currents(grid, inputs, u)
    _, boundary = linear(grid.zones.tiers, x, inputs.head)
    return Solution(u, x, boundary, iterations, jnp.where(sign > 0, residual, jnp.inf))
