"""The kernel as JAX functions of a grid and a batch of operating points; they stand in for those of the tiers."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from gridjax.grid import Grid, OperatingPoint
from gridjax.powerflow.injections import Laws
from gridjax.powerflow.sweep import device_powers, head_deviation

try:
    from gridjax.native import ffi
except ImportError:  # Numba does not run everywhere: there the tiers solve on every device
    ffi = None

RESPONSE_STEPS = 100  # for a linear response, at most
NEWTON_STEPS = 24  # for one of Newton's linear systems, at most


def usable(grid: Grid) -> bool:
    """Whether a processor can solve this grid by the kernel."""
    return ffi is not None and grid.tree is not None


def _call(name: str, results: list[jax.ShapeDtypeStruct], *arguments: jax.Array) -> list[jax.Array]:
    """Calls a function of the kernel, which takes its buffers for what they should be: int32 or of the grid's type."""
    assert ffi is not None
    dtype = arguments[1].dtype

    def wanted(a):
        if jnp.issubdtype(a.dtype, jnp.integer):
            return jnp.int32
        return jnp.result_type(dtype, jnp.complex64) if jnp.iscomplexobj(a) else dtype

    typed = [a.astype(wanted(a)) for a in arguments]
    return list(jax.ffi.ffi_call(ffi.target(name, np.dtype(dtype)), results)(*typed))


def _unit_table(grid: Grid) -> jax.Array:
    """Laws and places of the units, (units, columns) as `gridjax.native.kernel` numbers them."""
    assert grid.tree is not None and ffi is not None
    units, tree, m = grid.units, grid.tree, grid.shape.slots
    dtype = grid.zones.u_ref.dtype

    def of(a):
        return a.reshape(-1)[tree.unit_slot].astype(dtype)

    place = 2 * m * (tree.unit_slot // m) + tree.unit_slot % m
    pair = [grid.zones.u_ref.reshape(-1)[place + k] for k in (0, m)]
    start = [grid.chord.u.reshape(-1)[place + k].astype(dtype) for k in (0, m)]
    slope = [tree.slope[:, i, j] for i in (0, 1) for j in (0, 1)]
    emf, source = [jnp.zeros_like(pair[0])] * 2, jnp.full_like(pair[0], -1.0)
    if grid.shape.sources > 1:
        emf = [units.emf.reshape(-1)[place + k].astype(dtype) for k in (0, m)]
        source = jnp.where((emf[0] != 0) | (emf[1] != 0), of(units.emf_source), -1.0)
    is_tap = (of(units.device) >= grid.shape.devices + grid.shape.banks) & (of(units.share) > 0)
    laws = [of(getattr(units.laws, k)) for k in Laws.__dataclass_fields__]
    return jnp.stack([*laws, of(units.share), *pair, *start, *slope, *emf, source, is_tap.astype(dtype)], axis=1)


def _circuit(grid: Grid) -> tuple[jax.Array, ...]:
    """The kernel's first arguments."""
    assert grid.tree is not None
    t, m = grid.tree, grid.shape.slots
    place = 2 * m * (t.unit_slot // m) + t.unit_slot % m
    device = grid.units.device.reshape(-1)[t.unit_slot].astype(jnp.int32)
    devices = grid.shape.devices + grid.shape.banks + grid.shape.regulators + 1
    sizes = jnp.array([devices, grid.shape.sources, 2 * t.heads, grid.shape.devices], jnp.int32)
    return (
        t.zones, _unit_table(grid), device, t.term_start, t.term, t.term_weight, t.direct, t.passive, t.passive_node,
        t.recovery, jnp.stack([place, place + m], axis=1), jnp.concatenate([t.counts, sizes]),
    )  # fmt: skip


def _scenarios(grid: Grid, points: OperatingPoint) -> tuple[jax.Array, ...]:
    """Powers of the devices (batch, devices), the root's coordinates (batch, 2 conductors), sources' EMF in pu."""
    p, q = device_powers(grid, points)
    state = p, q, _at_root(grid, head_deviation(grid, points)), points.source_pu
    return tuple(a.astype(grid.zones.u_ref.dtype) for a in state)


def _at_root(grid: Grid, head: jax.Array) -> jax.Array:
    """The root's coordinates, parts side by side, from those of the tiers, (batch, 2 boundary): parts one by one."""
    assert grid.tree is not None
    n = grid.tree.heads
    re, im = jnp.split(head, 2, axis=1)
    return jnp.stack([re[:, :n], im[:, :n]], axis=2).reshape(head.shape[0], 2 * n)


def _from_root(grid: Grid, root: jax.Array) -> jax.Array:
    """The reverse of `_at_root`."""
    wide = ((0, 0), (0, grid.zones.head_form.shape[0] - root.shape[1] // 2))
    return jnp.concatenate([jnp.pad(root[:, k::2], wide) for k in (0, 1)], axis=1)


def _node_pairs(grid: Grid) -> jax.Array:
    """The no-load voltages of all nodes, (nodes, 2)."""
    re, im = (a.reshape(-1)[grid.node_place] for a in jnp.split(grid.zones.v_ref, 2, axis=1))
    return jnp.stack([re, im], axis=1)


def _shapes(grid: Grid, batch: int):
    """Of node voltages, slots' voltages, one number; the root's current and the power taken."""
    assert grid.tree is not None
    dtype = grid.zones.u_ref.dtype

    def real(*shape):
        return jax.ShapeDtypeStruct((batch, *shape), dtype)

    v = jax.ShapeDtypeStruct((batch, grid.shape.nodes), jnp.result_type(dtype, jnp.complex64))
    return v, real(*grid.zones.u_ref.shape), real(), real(2 * grid.tree.heads), real(2)


def _sizes(grid: Grid, batch: int, *limits: int) -> jax.Array:
    return jnp.array([batch, grid.shape.nodes, grid.zones.u_ref.size, *limits], jnp.int32)


def solve(grid: Grid, points: OperatingPoint, method: str, tol: float, chord_limit: int, limit: int):
    """Of a batch node voltages, slots' voltages, the first source's current, power taken, steps and residuals."""
    assert grid.tree is not None
    batch = points.load_kw.shape[0]
    v, u, one, head, taken = _shapes(grid, batch)
    dtype = u.dtype
    sizes = _sizes(grid, batch, limit, int(method == "newton"), min(chord_limit, limit), NEWTON_STEPS)
    v, u, steps, residual, root, taken = _call(
        "solve", [v, u, one, one, head, taken], *_circuit(grid), sizes, jnp.full(1, tol, dtype),
        *_scenarios(grid, points), grid.tree.chord, grid.tree.plain, _node_pairs(grid), grid.tree.root,
    )  # fmt: skip
    zs = grid.zones
    amps = (zs.head_ref[None] + head_deviation(grid, points)) @ zs.head_y.T - _from_root(grid, root)
    return v, u, amps, taken, steps.astype(jnp.int32), jnp.where(residual < 1e29, residual, jnp.inf)


def _tolerance(dtype) -> jax.Array:
    return jnp.full(1, 1e-9 if dtype == jnp.float64 else 8 * float(jnp.finfo(dtype).eps), dtype)


def tangent(grid: Grid, points: OperatingPoint, u: jax.Array, change: OperatingPoint, further: jax.Array):
    """What `gridjax.powerflow.response.tangent` gives; not a number for scenarios without a solution."""
    assert grid.tree is not None
    v, slots, one, head, taken = _shapes(grid, u.shape[0])
    state, changes = jax.jvp(functools.partial(_scenarios, grid), (points,), (change,))
    none = jnp.zeros((grid.shape.nodes, 2), u.dtype)
    dv, du, lost, root, taken = _call(
        "tangent", [v, slots, one, head, taken], *_circuit(grid), _sizes(grid, u.shape[0], RESPONSE_STEPS),
        _tolerance(slots.dtype), *state, grid.tree.chord, u, none, *changes, further, grid.tree.root,
    )  # fmt: skip
    amps = _from_root(grid, changes[2]) @ grid.zones.head_y.T - _from_root(grid, root)
    dv, du, amps, taken = (_nan_where(lost, a) for a in (dv, du, amps, taken))
    return dv.real, dv.imag, du, amps, taken


def cotangent(
    grid: Grid, points: OperatingPoint, u: jax.Array, re: jax.Array, im: jax.Array, u_bar: jax.Array, amps: jax.Array,
    taken: jax.Array,
):  # fmt: skip
    """What `gridjax.powerflow.response.cotangent` gives; not a number for scenarios without a solution."""
    assert grid.tree is not None
    _, slots, one, _, _ = _shapes(grid, u.shape[0])
    state, pull = jax.vjp(functools.partial(_scenarios, grid), points)
    like = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in state]
    *bars, further, lost = _call(
        "cotangent", [*like, slots, one], *_circuit(grid), _sizes(grid, u.shape[0], RESPONSE_STEPS),
        _tolerance(slots.dtype), *state, grid.tree.chord_transposed, u, jax.lax.complex(re, im), u_bar,
        -_at_root(grid, amps), taken, grid.tree.root.T,
    )  # fmt: skip
    bars[2] = bars[2] + _at_root(grid, amps @ grid.zones.head_y)
    return pull(tuple(_nan_where(lost, a) for a in bars))[0], _nan_where(lost, further)


def _nan_where(lost: jax.Array, a: jax.Array) -> jax.Array:
    return jnp.where(lost.reshape(-1, *(1,) * (a.ndim - 1)) > 0, jnp.nan, a)


def available() -> bool:
    """Whether there is a kernel."""
    return ffi is not None


def element_currents(elements, v: jax.Array, tap: jax.Array, *, series: bool, peaks: bool) -> jax.Array:
    """What `gridjax.powerflow.element_currents` gives, of a batch."""
    count, terminals, n = elements.branches.nodes.shape
    batch, dtype = v.shape[0], elements.branches.y_re.dtype
    numbers = (0, count * terminals) if peaks else (count * terminals * n, 0)
    amps, most = _call(
        "currents",
        [
            jax.ShapeDtypeStruct((0 if peaks else batch, count, terminals, n), jnp.result_type(dtype, jnp.complex64)),
            jax.ShapeDtypeStruct((batch if peaks else 0, count, terminals), dtype),
        ],
        *_elements(elements, v, tap, numbers, series),
    )  # fmt: skip
    return most if peaks else amps


def largest_cotangent(elements, v: jax.Array, tap: jax.Array, bar: jax.Array, *, series: bool):
    """Cotangents of the parts of v (batch, nodes) and of the taps from those of the largest currents."""
    batch, dtype = v.shape[0], elements.branches.y_re.dtype
    pairs, taps = _call(
        "largest_cotangent",
        [jax.ShapeDtypeStruct((*v.shape, 2), dtype), jax.ShapeDtypeStruct((batch, tap.shape[1]), dtype)],
        *_elements(elements, v, tap, (0, 0), series), bar,
    )  # fmt: skip
    return pairs[..., 0], pairs[..., 1], taps


def _elements(elements, v: jax.Array, tap: jax.Array, numbers: tuple[int, int], series: bool) -> tuple[jax.Array, ...]:
    """The first arguments of what has to do with currents."""
    branches, taps = elements.branches, elements.taps
    count, terminals, n = branches.nodes.shape
    y = jnp.stack([branches.y_re, branches.y_im], axis=-1)
    mirrored = jnp.zeros(count, bool)
    if series:
        own, mutual, back, beyond = y[:, :n, :n], y[:, :n, n:], y[:, n:, :n], y[:, n:, n:]
        mirrored = jnp.all((own == -mutual) & (own == -back) & (own == beyond), axis=(1, 2, 3))
    sizes = [v.shape[0], *numbers, count, terminals, n, v.shape[1], tap.shape[1], int(series)]
    return (
        branches.nodes, y, elements.node_volts, taps.regulator, jnp.stack([taps.ground_re, taps.ground_im], axis=-1),
        jnp.any(y != 0, axis=(2, 3)).astype(jnp.int32), mirrored.astype(jnp.int32), jnp.array(sizes, jnp.int32), v,
        tap, taps.tap,
    )  # fmt: skip
