"""A chord method: sweeps on the circuit with its loads linearised once, at the nominal point.

With `x = K y + r`, K the slopes of the slots' currents at the nominal point, the linear circuit `y = L x` becomes
`y = (1 - L K)^-1 L r`, which has the same tiers of zones with other operators:

    Z' = (1 - Z K)^-1 Z,    W' = (1 - Z K)^-1 W,    T' = T (1 + K Z'),    C = T K W',

where C links the Norton currents to the boundary voltages, and is the K of the next tier (see
`gridjax.powerflow.newton`). The fixed point of `u = L' (I(u) - K u)` is that of the plain sweep, but it is reached in
fewer steps the nearer the loads are to nominal. It runs in float32 and gives the exact sweeps their start.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from gridjax.grid import Chord, Grid, OperatingPoint, Tier
from gridjax.namespace import Array, matmul, namespace
from gridjax.powerflow.newton import block_diagonal, slopes, times_slopes
from gridjax.powerflow.sweep import MIN_STEP, Inputs, fixed_point, linear, mismatch, prepare, slot_currents

ROUGH = 1e-6
SETTLED = 1e-6  # of the nominal point
NEAR = 0.1  # the last change, in per unit, of voltages worth starting from


def linearize(grid: Grid, point: OperatingPoint) -> Chord:
    """The chord operators at a point; derivatives do not pass, for no result depends on them."""
    xp = namespace(grid)
    if xp is jnp:
        grid, point = jax.lax.stop_gradient((grid, point))
    inputs = prepare(grid, jax.tree.map(lambda a: a[None], point))
    u, fine = _settled(grid, inputs) if xp is np else _traced(grid, inputs)
    with np.errstate(all="ignore"):
        by_re, by_im = (xp.where(fine, a, 0.0)[..., 0] for a in slopes(grid, inputs, u))
    tiers: list[Tier] = []
    c = by_re
    for tier in grid.zones.tiers:
        if tiers:
            k = block_diagonal(c[tier.member][None])[0]
            z_k, t_k = matmul(tier.z, k), matmul(tier.t, k)
        else:
            z_k, t_k = (times_slopes(a, by_re[None], by_im[None])[0] for a in (tier.z, tier.t))
        right = xp.concatenate([tier.z, tier.w], axis=2)
        solved = xp.linalg.solve(np.eye(z_k.shape[-1])[None] - z_k, right)
        z, w = xp.split(solved, [z_k.shape[-1]], axis=2)
        tiers.append(dataclasses.replace(tier, z=z, w=w, t=tier.t + matmul(t_k, z)))
        c = matmul(t_k, w)
    chord = Chord(tuple(tiers), by_re, by_im, u[..., 0])
    return jax.tree.map(lambda a: a.astype(np.float32) if a.dtype.kind == "f" else a, chord)


def _traced(grid: Grid, inputs: Inputs) -> tuple[Array, Array]:
    """The slots' voltages at the nominal point and whether they solve it; else those of no load."""
    start = jnp.zeros((*grid.zones.u_ref.shape, 1), grid.zones.u_ref.dtype)
    found = fixed_point(grid, inputs, start, SETTLED, 100)
    fine = found.residual[0] <= SETTLED
    return jnp.where(fine, found.u, 0.0), fine


def _settled(grid: Grid, inputs: Inputs) -> tuple[Array, bool]:
    """The same in NumPy."""
    u, before, length = np.zeros((*grid.zones.u_ref.shape, 1)), np.inf, 1.0
    with np.errstate(all="ignore"):
        for _ in range(100):
            y, _ = linear(grid.zones.tiers, slot_currents(grid, inputs, u), inputs.head)
            size = float(mismatch(inputs, y - u)[0])
            if size <= SETTLED:
                return u, True
            if not np.isfinite(size):
                break
            length = length / 2 if size > 0.95 * before and length > MIN_STEP else length
            u, before = u + length * (y - u), size
    return np.zeros_like(u), False


def rough(grid: Grid, inputs: Inputs, tol: float, max_iterations: int) -> tuple[jax.Array, jax.Array]:
    """The slots' voltages to about 1e-7 by chord steps in float32, and the steps made, (batch,).

    Where the steps have not come near a solution, the voltages are those of no load.
    """
    grid, inputs = jax.tree.map(lambda a: a.astype(jnp.float32) if a.dtype == jnp.float64 else a, (grid, inputs))
    chord, m = grid.chord, grid.shape.slots
    by_re, by_im = (a[..., None] for a in (chord.by_re, chord.by_im))

    def step(u):
        re, im = jnp.tile(u[:, :m], (1, 2, 1)), jnp.tile(u[:, m:], (1, 2, 1))
        rest = slot_currents(grid, inputs, u) - by_re * re - by_im * im
        return linear(chord.tiers, rest, inputs.head)[0]

    u = jnp.broadcast_to(chord.u[..., None], (*chord.u.shape, inputs.p.shape[-1]))
    u, size, iterations = _accelerated(step, inputs, u, max(tol, ROUGH), max_iterations)
    return jnp.where((size < NEAR)[None, None], u, 0.0), iterations


def _accelerated(
    step, inputs: Inputs, u: jax.Array, tol: float, max_iterations: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The fixed point of `step` by D. G. Anderson's method (1965) of depth one, the last change, and the steps made.

    The next point is that between the last two results at which the changes, taken as linear, are least.
    """

    def body(carry):
        u, y_before, change_before, size_before, count, iterations, active = carry
        y = step(u)
        change = y - u
        size = mismatch(inputs, change)
        bend = change - change_before
        slope = jnp.sum(bend * change, axis=(0, 1)) / jnp.maximum(jnp.sum(bend * bend, axis=(0, 1)), 1e-30)
        slope = jnp.where((count > 0) & (size < size_before), jnp.clip(slope, -1.0, 1.0), 0.0)
        keep = (active & jnp.isfinite(size))[None, None]
        u = jnp.where(keep, y - slope[None, None] * (y - y_before), u)
        iterations = iterations + active
        active = active & jnp.isfinite(size) & (size > tol) & (count + 1 < max_iterations)
        return u, y, change, size, count + 1, iterations, active

    batch = u.shape[-1]
    none = jnp.zeros((), jnp.int32), jnp.zeros(batch, jnp.int32), jnp.ones(batch, bool)
    carry = u, u, jnp.zeros_like(u), jnp.full(batch, jnp.inf, u.dtype), *none
    out = jax.lax.while_loop(lambda c: jnp.any(c[-1]), body, carry)
    return out[0], out[3], out[-2]
