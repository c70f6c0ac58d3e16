"""Newton-Raphson on the ports of all zones, eliminated from the leaves to the root.

With the units' currents linearised, `x_u = a + K u` (a 2 x 2 block of K a unit), the units of a zone are eliminated,
for all zones at once, from

    (1 - Z_uu K) u = Z_uu a + Z_ui x_i + W_u v_h.

What remains couples the inner slots, taps and children: `y_i = b + Z' x_i + W' v_h`, with `x = (t - t0) y` for a tap
and `x = c + C y` for a child zone, whose Norton current is affine in its head voltage. Each zone in turn becomes such
an affine child, so one pass to the root and one back solve the linearised circuit exactly, taps included: the Newton
step of W. F. Tinney and C. E. Hart (1967) in current-injection form, block by block. A step that does not reduce the
mismatch of a sweep is halved.

Past the nose of the P-V curve Newton may find the low-voltage solution. There the determinant of the mismatch's
Jacobian, which is the product of the blocks' determinants, has changed its sign: such a solution is not reported
as converged.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.scipy.linalg import lu_factor, lu_solve

from gridjax.grid import Grid
from gridjax.powerflow.sweep import (
    Inputs,
    State,
    by_level,
    by_zone,
    choose,
    from_children,
    largest_change,
    last,
    root_head,
    sweep,
    to_heads,
    unit_currents,
)

MAX_HALVINGS = 6


def _solve(matrix: jax.Array, right: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Solution of (batch, zones, n, n) systems and the sign of their determinants' product, (batch,)."""
    lu, pivots = lu_factor(matrix)
    diagonal = jnp.prod(jnp.sign(jnp.diagonal(lu, axis1=-2, axis2=-1)), axis=(-1, -2))
    swaps = jnp.sum(pivots != jnp.broadcast_to(jnp.arange(pivots.shape[-1]), pivots.shape), axis=(-1, -2))
    return lu_solve((lu, pivots), right), diagonal * (1 - 2 * (swaps % 2))


def _identity(n: int, dtype: jax.typing.DTypeLike) -> jax.Array:
    """With axes for batch and zones."""
    return jnp.eye(n, dtype=dtype)[None, None]


def _front(a: jax.Array) -> jax.Array:
    return jnp.moveaxis(a, -1, 0)


def _units(grid: Grid, inputs: Inputs, u: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The linearised units: constant a (batch, zones, 2 m), slopes by the real and the imaginary part."""
    m = grid.shape.units
    along_re = jnp.zeros_like(u).at[:, :m].set(1.0)
    x, by_re = jax.jvp(lambda v: unit_currents(grid, inputs, v), (u,), (along_re,))
    _, by_im = jax.jvp(lambda v: unit_currents(grid, inputs, v), (u,), (1.0 - along_re,))
    re, im = jnp.tile(u[:, :m], (1, 2, 1)), jnp.tile(u[:, m:], (1, 2, 1))
    return _front(x - by_re * re - by_im * im), _front(by_re), _front(by_im)


def _times(a: jax.Array, by_re: jax.Array, by_im: jax.Array) -> jax.Array:
    """`A K` for an operator A (zones, rows, 2 m): (batch, zones, rows, 2 m)."""
    m = a.shape[-1] // 2
    re, im = a[None, ..., :m], a[None, ..., m:]
    parts = [re * k[:, :, None, :m] + im * k[:, :, None, m:] for k in (by_re, by_im)]
    return jnp.concatenate(parts, axis=-1)


def _eliminate_units(grid: Grid, a: jax.Array, by_re: jax.Array, by_im: jax.Array):
    """Units expressed by `[1, x_i, v_h]`, and what that makes of inner outputs and Norton currents."""
    zs = grid.zones
    batch = a.shape[0]
    columns = jnp.concatenate([zs.z_ui, zs.w_u], axis=-1)
    right = jnp.concatenate(
        [
            jnp.einsum("zij,bzj->bzi", zs.z_uu, a)[..., None],
            jnp.broadcast_to(columns, (batch, *columns.shape)),
        ],
        axis=-1,
    )
    u, sign = _solve(_identity(zs.z_uu.shape[1], a.dtype) - _times(zs.z_uu, by_re, by_im), right)
    y, norton = (_times(op, by_re, by_im) @ u for op in (zs.z_iu, zs.t_u))
    y = y.at[..., 0].add(jnp.einsum("zij,bzj->bzi", zs.z_iu, a))
    norton = norton.at[..., 0].add(jnp.einsum("zij,bzj->bzi", zs.t_u, a))
    return u, y, norton, sign


def _child_slopes(grid: Grid, slope: jax.Array, child: jax.Array) -> jax.Array:
    """The children's slopes C (batch, width, 2 h, 2 h) as one matrix on the child slots of the level above."""
    s = grid.shape
    padded = jnp.concatenate([slope, jnp.zeros_like(slope[:, :1])], axis=1)
    blocks = padded[:, child].reshape(-1, *child.shape, 2, s.heads, 2, s.heads)
    full = jnp.einsum("bwcihjk,cd->bwichjdk", blocks, jnp.eye(s.children, dtype=slope.dtype))
    size = 2 * s.children * s.heads
    return full.reshape(-1, child.shape[0], size, size)


def newton_step(grid: Grid, inputs: Inputs, state: State) -> tuple[State, jax.Array]:
    """The Newton iterate after `state`, and the sign of the Jacobian's determinant at `state`, (batch,)."""
    s, zs = grid.shape, grid.zones
    k, inner = 4 * s.taps, zs.level_z.shape[-1]
    a, by_re, by_im = _units(grid, inputs, state.u)
    u, y, norton, sign_units = _eliminate_units(grid, a, by_re, by_im)
    to_levels = [jnp.swapaxes(by_level(grid, jnp.swapaxes(x, 0, 1)), 1, 2) for x in (y, norton)]
    deviation = jnp.moveaxis(jnp.tile(inputs.tap, (1, 1, 4, 1)), -1, 1)  # (levels, batch, width, 4 taps)
    dtype = zs.level_z.dtype

    def backward(below, level):
        current, slope = below
        y, norton, z, w, t, deviation, reference, child = level
        x_c = _front(from_children(grid, jnp.moveaxis(current, 0, -1), child))
        constant = jnp.concatenate([deviation * reference[None], x_c], axis=-1)
        z = z[None] + y[..., 1 : 1 + inner]
        t = t[None] + norton[..., 1 : 1 + inner]
        children = _child_slopes(grid, slope, child)

        def times(m):
            return jnp.concatenate([m[..., :k] * deviation[:, :, None], m[..., k:] @ children], axis=-1)

        rest = y[..., 0] + jnp.einsum("bwij,bwj->bwi", z, constant)
        right = jnp.concatenate([rest[..., None], w[None] + y[..., 1 + inner :]], axis=-1)
        answer, sign = _solve(_identity(inner, dtype) - times(z), right)
        out = times(t) @ answer
        current = norton[..., 0] + jnp.einsum("bwij,bwj->bwi", t, constant) + out[..., 0]
        slope = norton[..., 1 + inner :] + out[..., 1:]
        return (current, slope), (answer, constant, children, sign)

    batch, width = a.shape[0], zs.zone.shape[1]
    below = (
        jnp.zeros((batch, width, 2 * s.heads), dtype),
        jnp.zeros((batch, width, 2 * s.heads, 2 * s.heads), dtype),
    )
    levels = (*to_levels, zs.level_z, zs.level_w, zs.level_t, deviation, zs.tap_ref, zs.child)
    _, (answer, constant, children, signs) = jax.lax.scan(backward, below, levels, reverse=True)

    def forward(above, level):
        answer, constant, children, deviation, parent, slot = level
        head = _front(to_heads(grid, jnp.moveaxis(above, 0, -1), parent, slot))
        y = answer[..., 0] + jnp.einsum("bwij,bwj->bwi", answer[..., 1:], head)
        slopes = [deviation * y[..., :k], jnp.einsum("bwij,bwj->bwi", children, y[..., k:])]
        x_i = constant + jnp.concatenate(slopes, axis=-1)
        return y[..., k:], jnp.concatenate([x_i, head], axis=-1)

    levels = (answer, constant, children, deviation, zs.parent, zs.slot)
    _, inputs_ = jax.lax.scan(forward, _front(root_head(grid, inputs.head)), levels)
    inputs_ = jnp.swapaxes(inputs_, 1, 2)  # (levels, width, batch, inner + 2 heads)
    known = jnp.swapaxes(by_zone(grid, inputs_), 0, 1)
    new_u = u[..., 0] + jnp.einsum("bzij,bzj->bzi", u[..., 1:], known)
    new = State(u=jnp.moveaxis(new_u, 0, -1), taps=jnp.moveaxis(inputs_[..., :k], 2, -1))
    return new, sign_units * jnp.prod(signs, axis=0)


def newton(grid: Grid, inputs: Inputs, state: State, tol: float, max_iterations: int):
    """Newton steps until each scenario's mismatch is at most `tol`.

    Returns:
      State, iterations (batch,), residual (batch,): the largest mismatch of a sweep, infinite on a solution where
      the Jacobian's determinant is not positive.
    """

    def mismatch(state):
        return largest_change(state, sweep(grid, inputs, state).state)

    def halve(carry):
        old, step, length, _, before, waiting, count = carry
        length = jnp.where(waiting, length / 2, length)
        new = jax.tree.map(lambda a, b: a + last(length, a) * (b - a), old, step)
        after = mismatch(new)
        return old, step, length, after, before, waiting & ~(after < before), count + 1

    def body(carry):
        state, count, iterations, residual, sign, active = carry
        step, sign_new = newton_step(grid, inputs, state)
        # The sign belongs to the point from which the step starts.
        sign = jnp.where(active, sign_new, sign)
        active = active & (residual > tol)
        after = mismatch(step)
        length = jnp.ones_like(residual)
        waiting = active & ~(after < residual)
        carry = (state, step, length, after, residual, waiting, jnp.zeros((), jnp.int32))
        *_, length, after, _, waiting, _ = jax.lax.while_loop(
            lambda c: jnp.any(c[5]) & (c[6] < MAX_HALVINGS), halve, carry
        )
        keep = active & jnp.isfinite(after)
        new = jax.tree.map(lambda a, b: a + last(length, a) * (b - a), state, step)
        state = choose(keep, new, state)
        iterations = iterations + active
        residual = jnp.where(keep, after, residual)
        active = keep & (count + 1 < max_iterations)
        return state, count + 1, iterations, residual, sign, active

    batch = state.u.shape[-1]
    carry = (
        state,
        jnp.zeros((), jnp.int32),
        jnp.zeros(batch, jnp.int32),
        mismatch(state),
        jnp.ones(batch, state.u.dtype),
        jnp.ones(batch, bool),
    )
    state, _, iterations, residual, sign, _ = jax.lax.while_loop(lambda c: jnp.any(c[5]), body, carry)
    return state, iterations, jnp.where(sign > 0, residual, jnp.inf)
