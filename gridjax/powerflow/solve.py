"""`solve`: one scenario's power flow as a pure function under jit, vmap and grad."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from gridjax.grid import Grid, OperatingPoint
from gridjax.native import calls
from gridjax.powerflow.chord import rough
from gridjax.powerflow.chunks import batched, in_chunks
from gridjax.powerflow.newton import newton
from gridjax.powerflow.response import cotangent, linear_solve, no_change, tangent
from gridjax.powerflow.sweep import (
    Inputs,
    Solution,
    consumption,
    emf,
    fixed_point,
    linear,
    node_voltages,
    prepare,
    slot_currents,
    source_current,
)

ROUGH_STEPS = 12  # where the chord has not converged by then, as with loads that switch their law, it will not
FIELDS = tuple(OperatingPoint.__dataclass_fields__)
DEFAULT_ITERATIONS = {"sweep": 100, "newton": 30, "auto": 100}


@flax.struct.dataclass
class PowerFlow:
    """The solution of one scenario, or of many under `vmap`.

    Attributes:
      v: (nodes,) complex, per unit of the node's base voltage, in the order of `feeder.node_names`. Where
        `converged` is False this is the last iterate, not a solution.
      converged: whether the residual is within the tolerance (and, for Newton, the solution is the operable one).
      iterations: chord steps and sweeps, or Newton steps, made.
      residual: the largest voltage change (per unit of a device's rating) of the last step; infinite where the
        iteration broke down.
      slots: (zones, 2 slots) the grid's own coordinates of the solution: from them powers follow without differences
        of nearly equal voltages.
      source: (2 conductors,) current that the first source delivers, in the grid's own coordinates (see
        `Zones.head_form`), real parts before imaginary ones; per unit of base power over base voltage.
      taken: (2,) active and reactive power that all loads take less what generators give; per unit of base power.
    """

    v: jax.Array
    converged: jax.Array
    iterations: jax.Array
    residual: jax.Array
    slots: jax.Array
    source: jax.Array
    taken: jax.Array


@functools.partial(jax.jit, static_argnames=("method", "tol", "max_iterations"))
def solve(
    grid: Grid,
    point: OperatingPoint,
    *,
    method: str = "sweep",
    tol: float = 1e-8,
    max_iterations: int | None = None,
) -> PowerFlow:
    """Solves the three-phase power flow of one scenario.

    Args:
      grid: a compiled feeder.
      point: the operating point; use `jax.vmap(solve, in_axes=(None, 0))` for many.
      method: "sweep" (backward/forward sweep, started by chord steps; fast where voltages hold up), "newton"
        (Newton-Raphson; for heavily loaded points) or "auto" (sweeps, then Newton for what they did not solve). Static.
      tol: largest voltage change in per unit at which a scenario has converged; at least four units of the grid's
        precision (4.8e-7 in float32). Static.
      max_iterations: None is 100 sweeps or 30 Newton steps; with "auto" it limits the sweeps. Static.

    Returns:
      The power flow. A scenario that does not converge says so and leaves the others of a batch untouched. One in
      which a capacitor bank between two buses has no step in service is never reported as converged, since what
      hangs behind it may be without voltage: take such a bank out of the feeder instead.

    Raises:
      ValueError: an unknown method, a tolerance that is not positive, or fields of the wrong shape.

    Guarantees:
      Derivatives are the implicit ones of the solution (in real coordinates), forward and reverse, whatever the
      method; their cost does not depend on the iterations. Those of a scenario that has not converged are zero, and
      its neighbours in a batch do not notice it.
    """
    if method not in METHODS:
        raise ValueError(f"method {method!r} is unknown: choose one of {sorted(METHODS)}")
    if not tol > 0:
        raise ValueError(f"tol must be positive, not {tol}")
    _check_shapes(grid, point)
    limit = DEFAULT_ITERATIONS[method] if max_iterations is None else max_iterations
    tol = max(tol, 4 * float(jnp.finfo(grid.zones.u_ref.dtype).eps))
    v, slots, source, taken, iterations, residual = _root(grid, point, method, tol, limit)
    return PowerFlow(v, residual <= tol, iterations, residual, slots, source, taken)


def _check_shapes(grid: Grid, point: OperatingPoint) -> None:
    for name in OperatingPoint.__dataclass_fields__:
        want, have = jnp.shape(getattr(grid.nominal, name)), jnp.shape(getattr(point, name))
        if want != have:
            raise ValueError(
                f"point.{name} has shape {have}, the grid needs {want}; for a batch use "
                "jax.vmap(gridjax.solve, in_axes=(None, 0))"
            )


def _lost_series_bank(grid: Grid, point: OperatingPoint) -> jax.Array:
    """Whether a bank between two buses has no step in service: what hangs behind it has no voltage then."""
    banks = grid.series_bank.shape[0]
    if not banks:
        return jnp.zeros((), bool)
    steps = jnp.zeros(banks, point.capacitor.dtype).at[grid.step_bank].add(jnp.abs(point.capacitor))
    return jnp.any((grid.series_bank > 0) & (steps == 0))


def _root(grid: Grid, point: OperatingPoint, method: str, tol: float, limit: int):
    """What `_batched` gives, of one scenario, with implicit derivatives.

    With `u = sweep(u, parameters)`, the tangent solves `(1 - d sweep/d u) du = d sweep/d parameters`. Everything is in
    real coordinates, so that nothing needs to be holomorphic.
    """
    kernel = _batched(method, tol, limit)

    @jax.custom_jvp
    def root(grid, point):
        *found, residual = kernel(grid, _batch(point))
        residual = jnp.where(_lost_series_bank(grid, point), jnp.inf, residual[0])
        return *(a[0] for a in found), residual

    def rule(primals, tangents):
        at_grid, at_point = primals
        solution: Any = root(at_grid, at_point)
        *state, iterations, residual = solution
        change = {k: getattr(tangents[1], k) for k in FIELDS}
        change = {k: t for k, t in change.items() if _moved(t) and t.size}
        by_grid = None
        if any(_moved(t) for t in jax.tree.leaves(tangents[0])):
            by_grid = jax.tree.map(lambda t, a: t if _moved(t) else _still(a), tangents[0], at_grid)
        moves = [jnp.zeros_like(a) for a in state]
        if change or by_grid is not None:
            solved = residual <= tol
            moves = [jnp.where(solved, d, 0.0) for d in _answer(at_grid, at_point, state[1], change, by_grid)]
        no_tangents = np.zeros(iterations.shape, jax.dtypes.float0), jnp.zeros_like(residual)
        return solution, (*moves, *no_tangents)

    root.defjvp(rule, symbolic_zeros=True)
    return root(grid, point)


def _answer(
    grid: Grid, point: OperatingPoint, u: jax.Array, change: dict[str, jax.Array], by_grid: Grid | None
) -> tuple[jax.Array, ...]:
    """The changes of v, u, the source's current and the power taken, with those of some of the point's fields.

    And with that of the grid, if any. They solve a triangular system `A (change, du, dv, ...) = (change, right)`, for
    whose solution and transposed solution JAX takes the batched kernels; derivatives of higher order see A in plain
    terms.
    """

    def whole(part):
        return dataclasses.replace(_still(point), **part)

    def matvec(x):
        part, du, *rest = x
        _, (su, *of_rest) = jax.jvp(lambda p, s: _sweep(grid, p, s), (point, u), (whole(part), du))
        return part, du - su, *(a - b for a, b in zip(rest, of_rest, strict=True))

    def solve_(_, b):
        re, im, du, *rest = TANGENT(grid, _batch(point), u[None], _batch(whole(b[0])), _batch(b[1]))
        return b[0], du[0], *(a + c[0] for a, c in zip(b[2:], (re, im, *rest), strict=True))

    def transposed(_, b):
        part, u_bar, re, im, *rest = b
        bar, du = COTANGENT(grid, _batch(point), u[None], *_batch((re, im, u_bar, *rest)))
        return {k: a + getattr(bar, k)[0] for k, a in part.items()}, du[0], re, im, *rest

    if by_grid is None:
        right = no_change(next(iter(change.values())), jax.eval_shape(lambda s: _sweep(grid, point, s), u))
    else:
        _, right = jax.jvp(lambda g: _sweep(g, point, u), (grid,), (by_grid,))
    _, du, re, im, source, taken = linear_solve(matvec, (change, *right), solve_, transposed)
    return jax.lax.complex(re, im), du, source, taken


def _moved(tangent_) -> bool:
    return type(tangent_) is not SymbolicZero


def _still(tree):
    """No tangent."""

    def zero(a):
        if jnp.issubdtype(jnp.result_type(a), jnp.inexact):
            return jnp.zeros_like(a)
        return np.zeros(jnp.shape(a), jax.dtypes.float0)

    return jax.tree.map(zero, tree)


def _batch(tree):
    """A batch of one."""
    return jax.tree.map(lambda a: a[None], tree)


def _sweep(grid: Grid, point: OperatingPoint, u: jax.Array) -> tuple[jax.Array, ...]:
    """One sweep of a single scenario from the slots' voltages u (zones, 2 slots), all real.

    The next slots' voltages, parts of the nodes' voltages, the first source's current, and the power taken at u.
    """
    inputs = prepare(grid, _batch(point))
    x = slot_currents(grid, inputs, u[..., None])
    y, boundary = linear(grid.zones.tiers, x, inputs.head)
    v = node_voltages(grid, x, boundary)[0]
    source = source_current(grid, emf(grid, inputs), x)[:, 0]
    return y[..., 0], v.real, v.imag, source, consumption(grid, inputs, u[..., None])[:, 0]


def _flat(grid: Grid, inputs: Inputs) -> jax.Array:
    """The no-load solution."""
    return jnp.zeros((*grid.zones.u_ref.shape, inputs.p.shape[-1]), grid.zones.u_ref.dtype)


def _sweeps(grid: Grid, inputs: Inputs, tol: float, limit: int) -> Solution:
    """Chord steps in float32, then exact sweeps."""
    u = _flat(grid, inputs)
    before = jnp.zeros(u.shape[-1], jnp.int32)
    if limit > 1:
        first, before = rough(grid, inputs, tol, min(ROUGH_STEPS, limit // 2))
        u = first.astype(u.dtype)
    found = fixed_point(grid, inputs, u, tol, limit - before)
    return dataclasses.replace(found, iterations=found.iterations + before)


def _newton(grid: Grid, inputs: Inputs, tol: float, limit: int) -> Solution:
    return newton(grid, inputs, _flat(grid, inputs), tol, limit)


def _auto(grid: Grid, inputs: Inputs, tol: float, limit: int) -> Solution:
    """Sweeps, and Newton for the scenarios that they do not solve."""
    first = _sweeps(grid, inputs, tol, limit)
    lost = ~(first.residual <= tol)

    def again(first):
        second = _newton(grid, inputs, tol, DEFAULT_ITERATIONS["newton"])
        second = dataclasses.replace(second, iterations=first.iterations + second.iterations)
        return jax.tree.map(lambda a, b: jnp.where(lost.reshape((1,) * (a.ndim - 1) + lost.shape), a, b), second, first)

    return jax.lax.cond(jnp.any(lost), again, lambda first: first, first)


METHODS = {"sweep": _sweeps, "newton": _newton, "auto": _auto}


def _chunk(grid: Grid, method: str) -> int:
    """Scenarios whose state stays in a processor's cache, about."""
    if method == "newton":
        return 16
    zones, rows = grid.zones.u_ref.shape
    return min(128, max(32, 2**17 // (zones * rows)))


@functools.lru_cache(maxsize=64)
def _batched(method: str, tol: float, limit: int):
    """The solver of a batch: `(grid, points (batch, ...)) -> v (batch, nodes), u, source, taken, steps, residual`.

    Its `vmap` makes one larger batch, since the kernel wants the batch axis last and of its own making.
    """

    def run(grid: Grid, points: OperatingPoint):
        inputs = prepare(grid, points)
        found = METHODS[method](grid, inputs, tol, limit)
        v = node_voltages(grid, found.x, found.boundary)
        source = source_current(grid, emf(grid, inputs), slot_currents(grid, inputs, found.u))
        taken = consumption(grid, inputs, found.u)
        return v, jnp.moveaxis(found.u, -1, 0), source.T, taken.T, found.iterations, found.residual

    def native(grid: Grid, points: OperatingPoint):
        out = calls.solve(grid, points, method, tol, ROUGH_STEPS, limit)
        if method == "auto":
            newton_limit = DEFAULT_ITERATIONS["newton"]
            out = _where_lost(lambda: calls.solve(grid, points, "newton", tol, 0, newton_limit), out, ~(out[-1] <= tol))
        if method != "sweep":  # nearest to the nose, linear systems need elimination
            again = functools.partial(in_chunks, lambda part: run(grid, part), points, _chunk(grid, "newton"))
            out = _where_lost(again, out, ~(out[-1] <= tol))
        return out

    return batched(run, lambda grid: _chunk(grid, method), native)


def _where_lost(again, out, lost: jax.Array):
    """`again()` in place of `out` for the scenarios that are lost, if there are any."""

    def merged(out):
        return jax.tree.map(lambda a, b: jnp.where(lost.reshape(-1, *(1,) * (a.ndim - 1)), a, b), again(), out)

    return jax.lax.cond(jnp.any(lost), merged, lambda out: out, out)


TANGENT = batched(tangent, lambda grid: _chunk(grid, "sweep"), calls.tangent)
COTANGENT = batched(cotangent, lambda grid: _chunk(grid, "sweep"), calls.cotangent)
