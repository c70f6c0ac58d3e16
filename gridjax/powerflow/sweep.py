"""The backward/forward sweep over tiers of zones (after D. Shirmohammadi et al., 1988, with zones for buses).

One sweep, given the slots' inputs x (currents of units, compensation of taps):

- up the tiers: each zone's Norton currents `T x`, which are inputs of the zone that holds it;
- down the tiers: the outputs `y = Z x + W v` from the boundary's voltages v, which are the boundary voltages of the
  zone's members, and in the lowest tier the voltages of the units.

For given inputs this is the exact solution of the linear circuit. The power flow is the fixed point
`u = sweep(I(u))`. Everything is in deviations from the no-load solution (see `gridjax.assembly`) and carries the batch
on its last axis, so that every step is one batched matrix product.
"""

from __future__ import annotations

import itertools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from gridjax.grid import Grid, OperatingPoint, Tier
from gridjax.namespace import EXACT, Array, add_at, matmul, namespace
from gridjax.powerflow.injections import factors

MIN_STEP = 1 / 8


@flax.struct.dataclass
class Inputs:
    """Operating points in the slots, batch last; powers in per unit of the base."""

    p: jax.Array  # (zones, slots, batch)
    q: jax.Array
    current: jax.Array  # (zones, 2 slots, batch) injected by further sources, or none without them
    head: jax.Array  # (1, 2 boundary, batch) deviation of the first source's EMF
    weight: jax.Array  # (zones, slots, batch) of changes: 1, of taps their deviation; or none without taps


def device_powers(grid: Grid, points: OperatingPoint) -> tuple[Array, Array]:
    """What the devices of the slots draw at rated voltage in a batch of operating points, (batch, devices + 1) each.

    Loads, generators, banks (their steps' change from nominal), regulators (their taps' deviation, with the sign of a
    power), and a device that draws nothing; per unit of the base.
    """
    s, xp = grid.shape, namespace(grid, points)
    kva = grid.base_va / 1e3
    change = points.capacitor - grid.nominal.capacitor[None]
    batch = change.shape[0]
    banks = xp.zeros((batch, s.banks), change.dtype)
    g = add_at(banks, (slice(None), grid.step_bank), change * grid.step_re[None])
    b = add_at(banks, (slice(None), grid.step_bank), change * grid.step_im[None])
    tap = grid.tap_reference[None] - points.tap
    none = xp.zeros((batch, 1), g.dtype)
    p = xp.concatenate([points.load_kw / kva, -points.generation_kw / kva, g, tap, none], axis=1)
    q = xp.concatenate([points.load_kvar / kva, -points.generation_kvar / kva, -b, 0.0 * tap, none], axis=1)
    return p, q


def head_deviation(grid: Grid, points: OperatingPoint) -> Array:
    """The first source's EMF less that of the no-load solution, (batch, 2 boundary)."""
    return grid.source_emf[None] * (points.source_pu[:, :1] - grid.nominal.source_pu[0])


def prepare(grid: Grid, points: OperatingPoint) -> Inputs:
    """Puts a batch of operating points, (batch, ...), into the slots."""
    s, units, xp = grid.shape, grid.units, namespace(grid, points)
    p, q = device_powers(grid, points)
    batch = p.shape[0]
    current = xp.zeros((0, 0, batch), p.dtype)
    if s.sources > 1:
        pu = points.source_pu.T[units.emf_source]
        current = units.emf[..., None] * xp.concatenate([pu, pu], axis=1)
    share = units.share[..., None]
    p, q = (a.T[units.device] * share for a in (p, q))
    weight = xp.zeros((0, 0, batch), p.dtype)
    if s.regulators:
        # A tap's outputs matter as far as it compensates: its current may be that of a very stiff transformer.
        is_tap = (units.device >= s.devices + s.banks) & (units.share > 0)
        weight = xp.where(is_tap[..., None], abs(p), 1.0)
    return Inputs(p=p, q=q, current=current, head=head_deviation(grid, points).T[None], weight=weight)


def _at_voltage(grid: Grid, inputs: Inputs, u: Array) -> tuple[Array, ...]:
    """Parts of the slots' voltages, (zones, slots, batch), and their powers times the laws' factors there."""
    m = grid.shape.slots
    u = u + grid.zones.u_ref[..., None]
    re, im = u[:, :m], u[:, m:]
    laws = jax.tree.map(lambda a: a[..., None], grid.units.laws)
    fp, fq = factors(laws, re * re + im * im, grid.shape.exponents, grid.shape.cutoffs)
    return re, im, inputs.p * fp, inputs.q * fq


def slot_currents(grid: Grid, inputs: Inputs, u: Array) -> Array:
    """What the slots inject at voltage deviations `u`, both (zones, 2 slots, batch)."""
    re, im, a, b = _at_voltage(grid, inputs, u)
    x = namespace(u).concatenate([-a * re - b * im, b * re - a * im], axis=1)
    return x + inputs.current if inputs.current.size else x


def consumption(grid: Grid, inputs: Inputs, u: Array) -> Array:
    """Active and reactive power that loads take less what generators give at voltage deviations `u`, (2, batch)."""
    re, im, a, b = _at_voltage(grid, inputs, u)
    counts, v2 = grid.units.device[..., None] < grid.shape.devices, re * re + im * im
    xp = namespace(u)
    return xp.stack([xp.sum(xp.where(counts, f * v2, 0.0), axis=(0, 1)) for f in (a, b)])


def _product(a: Array, x: Array) -> Array:
    """Matrices (zones, i, j) times vectors with a batch (zones, j, batch)."""
    if namespace(a, x) is np:
        return a @ x
    return jax.lax.dot_general(a, x, (((2,), (1,)), ((0,), (0,))), precision=EXACT)


def linear(tiers: tuple[Tier, ...], x: Array, head: Array, norton: Array | None = None) -> tuple[Array, Array]:
    """Solves the linear circuit.

    Args:
      tiers: from the lowest up.
      x: (zones, 2 slots, batch) inputs of the slots.
      head: (1, 2 boundary, batch) the topmost zone's boundary voltages.
      norton: (zones, 2 boundary, batch) further currents at the zones' boundaries, if any.

    Returns:
      The slots' outputs (zones, 2 slots, batch) and the zones' boundary voltages (zones, 2 boundary, batch).
    """
    inputs = upwards(tiers, x, norton)
    y, boundary = x, head
    for k in range(len(tiers) - 1, -1, -1):
        y = _product(tiers[k].z, inputs[k]) + _product(tiers[k].w, boundary)
        if k:
            h = tiers[k - 1].t.shape[1]
            boundary = y.reshape(y.shape[0] * y.shape[1] // h, h, x.shape[-1])[tiers[k].place]
    return y, boundary


def upwards(tiers: tuple[Tier, ...], x: Array, norton: Array | None = None) -> list[Array]:
    """Every tier's inputs, (zones, columns, batch), from those of the slots; `norton` as in `linear`."""
    inputs = [x]
    for tier, above in itertools.pairwise(tiers):
        up = _product(tier.t, inputs[-1])
        if norton is not None and len(inputs) == 1:
            up = up + norton
        inputs.append(up[above.member].reshape(above.z.shape[0], above.z.shape[1], x.shape[-1]))
    return inputs


def emf(grid: Grid, inputs: Inputs) -> Array:
    """The first source's EMF, (2 boundary, batch), in boundary coordinates."""
    return grid.zones.head_ref[:, None] + inputs.head[0]


def source_current(grid: Grid, emf: Array, x: Array) -> Array:
    """What the first source delivers, (2 boundary, batch), in boundary coordinates and per unit of the base.

    Args:
      grid: the grid.
      emf: (2 boundary, batch) its EMF, in such coordinates too; or their changes.
      x: (zones, 2 slots, batch) inputs of the slots; or their changes.
    """
    zs = grid.zones
    return matmul(zs.head_y, emf) - matmul(zs.tiers[-1].t[0], upwards(zs.tiers, x)[-1][0])


def node_voltages(grid: Grid, x: jax.Array, boundary: jax.Array) -> jax.Array:
    """All nodes' complex voltages in per unit, (batch, nodes), from the slots' inputs and the boundary voltages."""
    zs = grid.zones
    operator = jnp.concatenate([zs.n, zs.n_boundary], axis=2)
    inputs = jnp.concatenate([x, boundary], axis=1)
    half = operator.shape[1] // 2
    # The product itself brings the batch to the front, which costs less than to transpose its result.
    re, im = (
        jax.lax.dot_general(inputs, rows, (((1,), (2,)), ((0,), (0,))), precision=EXACT) + ref[:, None]
        for rows, ref in zip(jnp.split(operator, [half], 1), jnp.split(zs.v_ref, [half], 1), strict=True)
    )
    v = jnp.swapaxes(jax.lax.complex(re, im), 0, 1)
    return v.reshape(v.shape[0], v.shape[1] * v.shape[2])[:, grid.node_place]


def mismatch(inputs: Inputs, change: Array) -> Array:
    """The largest change of the slots' voltages, those of taps as far as they matter, (batch,)."""
    if inputs.weight.size:
        change = change * namespace(change).concatenate([inputs.weight, inputs.weight], axis=1)
    return largest(change)


def largest(change: Array) -> Array:
    """The largest entry of (zones, 2 slots, batch) for each scenario; infinite where one is not a number."""
    xp = namespace(change)
    change = xp.max(abs(change), axis=(0, 1))
    return xp.where(xp.isfinite(change), change, np.inf)


@flax.struct.dataclass
class Solution:
    """Slots' voltages; the sweep that led to them: the slots' inputs and the boundary voltages; how it went."""

    u: jax.Array  # (zones, 2 slots, batch)
    x: jax.Array
    boundary: jax.Array
    iterations: jax.Array  # (batch,)
    residual: jax.Array


def fixed_point(grid: Grid, inputs: Inputs, u: jax.Array, tol: float, max_iterations: int | jax.Array) -> Solution:
    """Sweeps from the slots' voltages u until each scenario's largest change is at most `tol`."""

    def step(u):
        x = slot_currents(grid, inputs, u)
        return x, *linear(grid.zones.tiers, x, inputs.head)

    return _iterate(step, grid, inputs, u, tol, max_iterations)


def _iterate(step, grid: Grid, inputs: Inputs, u: jax.Array, tol: float, max_iterations: int | jax.Array) -> Solution:
    """Repeats `step(u) -> (x, next u, boundary)` until each scenario's largest change is at most `tol`.

    Where the changes stop shrinking, as with loads that have turned into impedances below vminpu, a scenario goes on
    with half the step. A scenario that has converged is frozen, one that stops being finite is given up: neither
    depends on its neighbours. The residual is the last change that a full step would have made.
    """

    def body(carry):
        old, count, length, active = carry
        x, y, boundary = step(old.u)
        change = y - old.u
        size = mismatch(inputs, change)
        length = jnp.where((size > 0.95 * old.residual) & (length > MIN_STEP), length / 2, length)
        keep = (active & jnp.isfinite(size))[None, None]
        new = Solution(
            u=jnp.where(keep, old.u + length[None, None] * change, old.u),
            x=jnp.where(keep, x, old.x),
            boundary=jnp.where(keep, boundary, old.boundary),
            iterations=old.iterations + active,
            residual=jnp.where(active, size, old.residual),
        )
        return new, count + 1, length, active & jnp.isfinite(size) & (size > tol) & (count + 1 < limit)

    batch = u.shape[-1]
    limit = jnp.broadcast_to(jnp.asarray(max_iterations, jnp.int32), (batch,))
    nothing = Solution(
        u=u,
        x=jnp.zeros_like(u),
        boundary=jnp.zeros((u.shape[0], grid.zones.tiers[0].t.shape[1], batch), u.dtype),
        iterations=jnp.zeros(batch, jnp.int32),
        residual=jnp.full(batch, jnp.inf, u.dtype),
    )
    carry = nothing, jnp.zeros((), jnp.int32), jnp.ones(batch, u.dtype), jnp.ones(batch, bool)
    return jax.lax.while_loop(lambda c: jnp.any(c[3]), body, carry)[0]
