"""The backward/forward sweep over the tree of zones (after D. Shirmohammadi et al., 1988, with zones for buses).

One sweep, given the slots' inputs x (currents of units, compensation of taps):

- backward, from the leaves: each zone's Norton current `T x`, which is an input of its parent;
- forward, from the source: each zone's head voltage, the taps' compensation `(t - t0) y`, the outputs
  `y = Z x + W v_h`.

For given unit currents and taps this is the exact solution of the linear circuit. The power flow is the fixed
point `u = sweep(I(u))`. Everything is in deviations from the no-load solution (see `gridjax.grid`) and carries the
batch on its last axis, so that every step is one batched matrix product.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from gridjax.grid import Grid, OperatingPoint
from gridjax.powerflow.injections import factors

MIN_STEP = 1 / 8


@flax.struct.dataclass
class Inputs:
    """An operating point in the slots, batch last: powers in per unit of the base, (zones, units, batch)."""

    p: jax.Array
    q: jax.Array
    current: jax.Array  # (zones, 2 units, batch) injected by further sources
    tap: jax.Array  # (levels, width, taps, batch) deviation from the reference
    head: jax.Array  # (2 heads, batch) deviation of the first source's EMF


@flax.struct.dataclass
class State:
    """The unknowns: units' voltages (zones, 2 units, batch), taps' inputs (levels, width, 4 taps, batch)."""

    u: jax.Array
    taps: jax.Array


@flax.struct.dataclass
class Outputs:
    """What a sweep gives besides the next state: zones' inputs and head voltages, batch last."""

    state: State
    x_u: jax.Array  # (zones, 2 units, batch)
    x_i: jax.Array  # (zones, 4 taps + 2 children heads, batch)
    head: jax.Array  # (zones, 2 heads, batch)


def prepare(grid: Grid, point: OperatingPoint) -> Inputs:
    """Puts one scenario's values into the slots; the batch axis has length one."""
    s, units = grid.shape, grid.units
    kva = grid.base_va / 1e3
    p = jnp.concatenate([point.load_kw, -point.generation_kw]) / kva
    q = jnp.concatenate([point.load_kvar, -point.generation_kvar]) / kva
    change = point.capacitor - grid.nominal.capacitor
    banks = max(1, s.steps)
    g = jnp.zeros(banks, p.dtype).at[grid.step_bank].add(change * grid.step_re)
    b = jnp.zeros(banks, p.dtype).at[grid.step_bank].add(change * grid.step_im)
    p, q, g, b = (jnp.append(a, jnp.zeros(1, a.dtype)) for a in (p, q, g, b))

    def pick(device, bank):
        chosen = jnp.where(units.is_bank > 0, bank[units.device], device[units.device])
        return chosen * units.share

    tap = jnp.append(point.tap, jnp.ones(1, point.tap.dtype))[grid.taps.regulator]
    tap = jnp.where(grid.taps.regulator < s.regulators, tap - grid.taps.reference, 0.0)
    pu = point.source_pu[units.emf_source]
    shift = grid.source_emf * (point.source_pu[0] - grid.nominal.source_pu[0])
    inputs = Inputs(
        p=pick(p, g),
        q=pick(q, -b),
        current=units.emf * jnp.concatenate([pu, pu], axis=-1),
        tap=tap,
        head=shift,
    )
    return jax.tree.map(lambda a: a[..., None], inputs)


def start(grid: Grid, batch: int) -> State:
    """The no-load solution as initial state."""
    s, dtype = grid.shape, grid.zones.z_uu.dtype
    return State(
        u=jnp.zeros((grid.zones.z_uu.shape[0], 2 * s.units, batch), dtype),
        taps=jnp.zeros((*grid.zones.tap_ref.shape, batch), dtype),
    )


def unit_currents(grid: Grid, inputs: Inputs, u: jax.Array) -> jax.Array:
    """Currents injected by the units at voltage deviations `u`, (zones, 2 units, batch)."""
    m = grid.shape.units
    absolute = u + grid.zones.u_ref[..., None]
    re, im = absolute[:, :m], absolute[:, m:]
    laws = jax.tree.map(lambda a: a[..., None], grid.units.laws)
    fp, fq = factors(laws, re * re + im * im, grid.shape.exponents, grid.shape.cutoffs)
    a, b = inputs.p * fp, inputs.q * fq
    return inputs.current - jnp.concatenate([a * re + b * im, a * im - b * re], axis=1)


def _product(a: jax.Array, x: jax.Array) -> jax.Array:
    """Matrices (..., i, j) times vectors with a batch (..., j, batch)."""
    return jnp.einsum("...ij,...jb->...ib", a, x)


def by_level(grid: Grid, a: jax.Array) -> jax.Array:
    """From (zones, ...) to (levels, width, ...), zeros where there is no zone."""
    return jnp.concatenate([a, jnp.zeros_like(a[:1])])[grid.zones.zone]


def by_zone(grid: Grid, a: jax.Array) -> jax.Array:
    """From (levels, width, ...) to (zones, ...)."""
    return a.reshape(-1, *a.shape[2:])[grid.zones.place]


def from_children(grid: Grid, currents: jax.Array, child: jax.Array) -> jax.Array:
    """Norton currents of a level (width, 2 heads, batch) as child inputs of the level above."""
    s = grid.shape
    padded = jnp.concatenate([currents, jnp.zeros_like(currents[:1])])
    picked = padded[child].reshape(*child.shape, 2, s.heads, -1)
    return picked.swapaxes(1, 2).reshape(child.shape[0], -1, currents.shape[-1])


def to_heads(grid: Grid, children: jax.Array, parent: jax.Array, slot: jax.Array) -> jax.Array:
    """Head voltages of a level from its parents' child outputs (width, 2 children heads, batch)."""
    s = grid.shape
    split = children.reshape(children.shape[0], 2, s.children, s.heads, -1)
    return split[parent, :, slot].reshape(parent.shape[0], 2 * s.heads, -1)


def root_head(grid: Grid, head: jax.Array) -> jax.Array:
    """The source's EMF in the place of child outputs, from which the first level takes its head."""
    s = grid.shape
    split = jnp.zeros((grid.zones.zone.shape[1], 2, s.children, s.heads, head.shape[-1]), head.dtype)
    split = split.at[0, :, 0].set(head.reshape(2, s.heads, -1))
    return split.reshape(split.shape[0], -1, head.shape[-1])


def sweep(grid: Grid, inputs: Inputs, state: State) -> Outputs:
    """One backward/forward sweep from the given state."""
    zs, k = grid.zones, 4 * grid.shape.taps
    x_u = unit_currents(grid, inputs, state.u)
    norton = by_level(grid, _product(zs.t_u, x_u)) + _product(zs.level_t[..., :k], state.taps)
    y_i = by_level(grid, _product(zs.z_iu, x_u))

    def backward(below, level):
        norton, t, child = level
        x_c = from_children(grid, below, child)
        return norton + _product(t, x_c), x_c

    levels = (norton, zs.level_t[..., k:], zs.child)
    _, x_c = jax.lax.scan(backward, jnp.zeros_like(norton[0]), levels, reverse=True)
    # The taps' ratios act on the way down, so that a cascade of regulators settles in one sweep.
    deviation = jnp.tile(inputs.tap, (1, 1, 4, 1))

    def forward(above, level):
        y, z, w, x_c, x_t, deviation, reference, parent, slot = level
        head = to_heads(grid, above, parent, slot)
        y = y + _product(w, head) + _product(z[..., k:], x_c)
        if k:
            for _ in range(grid.shape.tap_depth + 1):
                y_t = y[:, :k] + _product(z[:, :k, :k], x_t)
                x_t = deviation * (y_t + reference[..., None])
            y = y + _product(z[..., :k], x_t)
        return y[:, k:], (head, x_t)

    levels = (y_i, zs.level_z, zs.level_w, x_c, state.taps, deviation, zs.tap_ref, zs.parent, zs.slot)
    _, (head, x_t) = jax.lax.scan(forward, root_head(grid, inputs.head), levels)
    head = by_zone(grid, head)
    x_i = by_zone(grid, jnp.concatenate([x_t, x_c], axis=2))
    u = _product(zs.z_uu, x_u) + _product(zs.w_u, head) + _product(zs.z_ui, x_i)
    return Outputs(state=State(u=u, taps=x_t), x_u=x_u, x_i=x_i, head=head)


def largest_change(old: State, new: State) -> jax.Array:
    """The largest change of any unknown, per scenario; infinite where it is not a number."""
    change = jnp.max(jnp.abs(new.u - old.u), axis=(0, 1))
    if old.taps.shape[2]:
        change = jnp.maximum(change, jnp.max(jnp.abs(new.taps - old.taps), axis=(0, 1, 2)))
    return jnp.where(jnp.isfinite(change), change, jnp.inf)


def last(a: jax.Array, like: jax.Array) -> jax.Array:
    """A value a scenario with the axes of `like` before it."""
    return a.reshape((1,) * (like.ndim - 1) + a.shape)


def choose(which: jax.Array, new: State, old: State) -> State:
    """`new` in the scenarios where `which` holds, else `old`."""
    return jax.tree.map(lambda a, b: jnp.where(last(which, a), a, b), new, old)


def fixed_point(grid: Grid, inputs: Inputs, state: State, tol: float, max_iterations: int):
    """Sweeps until each scenario's largest change is at most `tol`.

    Where the changes stop shrinking, as with loads that have turned into impedances below vminpu, a scenario goes on
    with half the step. A scenario that has converged is frozen, one that stops being finite is given up: neither
    depends on its neighbours.

    Returns:
      State, iterations (batch,), residual (batch,): the last change that a full step would have made.
    """

    def body(carry):
        state, count, iterations, residual, step, active = carry
        new = sweep(grid, inputs, state).state
        change = largest_change(state, new)
        step = jnp.where((change > 0.95 * residual) & (step > MIN_STEP), step / 2, step)
        keep = active & jnp.isfinite(change)
        further = jax.tree.map(lambda a, b: a + last(step, a) * (b - a), state, new)
        state = choose(keep, further, state)
        residual = jnp.where(active, change, residual)
        iterations = iterations + active
        active = keep & (change > tol) & (count + 1 < max_iterations)
        return state, count + 1, iterations, residual, step, active

    batch = state.u.shape[-1]
    carry = (
        state,
        jnp.zeros((), jnp.int32),
        jnp.zeros(batch, jnp.int32),
        jnp.full(batch, jnp.inf, state.u.dtype),
        jnp.ones(batch, state.u.dtype),
        jnp.ones(batch, bool),
    )
    state, _, iterations, residual, _, _ = jax.lax.while_loop(lambda c: jnp.any(c[5]), body, carry)
    return state, iterations, residual
