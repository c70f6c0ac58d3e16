"""`regulate`: the inverters' curves and the power flow, solved together.

With u the terminal voltages, h(u) the powers of `gridjax.control.inverters.respond` and U(p, q) the voltages of the
power flow, an operating point is at rest where

    u = U(h(u)).

It is sought with an affine model of the power flow around the last one, u_k = U(h(w_k)):

    w_{k+1} solves  w = u_k + S (h(w) - h(w_k)),        S about dU/dh, made once for all scenarios,

so that all corners of the curves are dealt with in the model, and a power flow is spent only on the model's error: the
gap |h(u_k) - h(w_k)| shrinks by the error of S each time. The model itself is solved by semismooth Newton steps
(L. Qi and J. Sun, 1993), their linear systems (1 - S D) d = r, D = dh/du, by conjugate residuals (S. C. Eisenstat,
H. C. Elman, M. H. Schultz, 1983): products with S, which for a batch are one matrix product, and no factorisation.
Derivatives follow from the implicit function theorem,

    (1 - U' D) du = U' dh + dU,

solved likewise with the exact U' and preconditioned by S; forward and reverse.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from gridjax.control.inverters import respond, terminal_voltages
from gridjax.control.settings import NONE, Inverters, Rule, settings
from gridjax.feeder import Feeder
from gridjax.grid import Grid, OperatingPoint
from gridjax.powerflow.solve import PowerFlow, solve

GAP = 1e-8  # at rest, in per unit of a rating
FLOWS = 40  # power flows, at most
_NEWTON, _KRYLOV = 12, 10  # steps in the model, and in each of their linear systems
_EXACT = 16  # steps of the exact linear system for derivatives
_COLUMNS = 64  # sensitivities at once


@flax.struct.dataclass
class Rest:
    """Where a scenario's inverters come to rest.

    Attributes:
      u: (n,) terminal voltages in per unit of the ratings, from which their powers follow.
      gap: the largest difference between a power and what its curve asks for at the last power flow but one, per unit
        of a rating.
      flows: power flows made.
    """

    u: jax.Array
    gap: jax.Array
    flows: jax.Array


def inverters(
    feeder: Feeder, grid: Grid, rules: Rule | Mapping[str, Rule] | None = None, *, smooth: float = 0.0
) -> Inverters:
    """The settings of a feeder's inverters, with the sensitivities that `regulate` wants.

    Args:
      feeder: the tables.
      grid: the same, compiled.
      rules: one for all PV systems and storages, one for each element's name, or None for the standard's defaults.
      smooth: half width in per unit of the rounded corners of curves and limits; 0 for exact ones.

    Returns:
      Arrays with one row for each entry of `OperatingPoint.generation_kw`.

    Raises:
      ValueError: a rule that makes no sense; see `gridjax.control.settings.settings`.
    """
    return with_sensitivities(grid, settings(feeder, Rule() if rules is None else rules, smooth))


@jax.jit
def with_sensitivities(grid: Grid, s: Inverters) -> Inverters:
    """The settings with dU/dp and dU/dq at the nominal loads, half the rated power and no reactive power."""
    if not s.kva.shape[0]:
        return s
    half = jnp.where(s.mode == NONE, grid.nominal.generation_kw, 0.5 * s.rated_kw)
    idle = jnp.where(s.mode == NONE, grid.nominal.generation_kvar, 0.0)

    def voltages(x):
        p, q = x
        return _voltages(grid, grid.nominal, s, half + p * s.kva, idle + q * s.kva, "sweep", 1e-8)

    n = s.kva.shape[0]
    _, product = jax.linearize(voltages, jnp.zeros((2, n), s.kva.dtype))
    units = jnp.eye(2 * n, dtype=s.kva.dtype).reshape(2 * n, 2, n)
    found = jax.lax.map(product, units, batch_size=min(_COLUMNS, n))
    found = jnp.where(jnp.isfinite(found), found, 0.0).T.astype(jnp.float32)
    return dataclasses.replace(s, near_p=found[:, :n], near_q=found[:, n:])


@functools.partial(jax.jit, static_argnames=("tol", "max_flows", "method"))
def regulate(
    grid: Grid,
    point: OperatingPoint,
    s: Inverters,
    f_hz: jax.Array | float | None = None,
    *,
    tol: float = GAP,
    max_flows: int = FLOWS,
    method: str = "sweep",
) -> tuple[OperatingPoint, PowerFlow]:
    """The power flow of one scenario with its inverters at rest on their curves.

    Args:
      grid: a compiled feeder.
      point: `generation_kw` is the available active power, `generation_kvar` the set-point of inverters with constant
        reactive power and of units without control. Use `jax.vmap(regulate, in_axes=(None, 0, None))` for many.
      s: settings from `inverters`.
      f_hz: the frequency; None is the nominal one.
      tol: largest gap, in per unit of a rating, between what an inverter injects and what its curves ask for at the
        voltages of the flow; at least 2e-5 in float32. Static.
      max_flows: power flows to spend at most. Static.
      method: of `solve`. Static.

    Returns:
      The point with what the units inject, and its power flow; `flow.converged` is False where the power flow did not
      converge or the gap is larger than `tol`. Other scenarios of a batch do not notice it.

    Guarantees:
      Derivatives by the point, the settings, the frequency and the grid are those of the fixed point, forward and
      reverse, away from the curves' corners (everywhere, with rounded corners). Where the scenario has not converged,
      voltages count as constants in the curves.
    """
    tol = _tolerance(grid, tol)
    at = settle(grid, point, s, f_hz, tol=tol, max_flows=max_flows, method=method)
    kw, kvar = respond(s, at.u, point.generation_kw, point.generation_kvar, f_hz)
    out = dataclasses.replace(point, generation_kw=kw, generation_kvar=kvar)
    flow = solve(grid, out, method=method, tol=_flow_tolerance(tol))
    fixed = jax.lax.stop_gradient((s, flow.v, point, kw, kvar, f_hz))
    gap = _gap(*fixed)
    return out, dataclasses.replace(flow, converged=flow.converged & (gap <= tol))


def settle(
    grid: Grid,
    point: OperatingPoint,
    s: Inverters,
    f_hz: jax.Array | float | None = None,
    *,
    tol: float = GAP,
    max_flows: int = FLOWS,
    method: str = "sweep",
) -> Rest:
    """Where the inverters of one scenario come to rest; arguments and derivatives as those of `regulate`."""
    tol = _tolerance(grid, tol)
    search = functools.partial(_search, tol=tol, limit=max_flows, method=method)
    system = functools.partial(_step, tol=_flow_tolerance(tol), method=method)

    @jax.custom_jvp
    def rest(data):
        return search(*data)

    def rule(primals, tangents):
        (data,) = primals
        at: Any = rest(data)
        leaves, tree = jax.tree.flatten(data)
        changes = jax.tree.leaves(tangents[0], is_leaf=lambda t: type(t) is SymbolicZero)
        moved = [i for i, t in enumerate(changes) if type(t) is not SymbolicZero and jnp.size(t)]

        def after(part):
            whole = list(leaves)
            for i, a in zip(moved, part, strict=True):
                whole[i] = a
            return system(at.u, *jax.tree.unflatten(tree, whole))

        du = jnp.zeros_like(at.u)
        if moved:
            _, right = jax.jvp(after, ([leaves[i] for i in moved],), ([changes[i] for i in moved],))
            du = jnp.where(at.gap <= 10 * tol, _implicit(system, at.u, data, right), 0.0)
        return at, Rest(u=du, gap=jnp.zeros_like(at.gap), flows=_no_tangent(at.flows))

    rest.defjvp(rule, symbolic_zeros=True)
    return rest((grid, point, s, f_hz))


def _no_tangent(a: jax.Array) -> Any:
    return np.zeros(a.shape, jax.dtypes.float0)


def _tolerance(grid: Grid, tol: float) -> float:
    return max(tol, 150 * float(jnp.finfo(grid.zones.u_ref.dtype).eps))


def _flow_tolerance(tol: float) -> float:
    """Of a power flow whose voltages' error, times a curve's slope, shall not show in the gap."""
    return min(1e-8, 1e-2 * tol)


def _voltages(grid: Grid, point: OperatingPoint, s: Inverters, kw, kvar, method: str, tol: float) -> jax.Array:
    """U(p, q), (n,)."""
    at = dataclasses.replace(point, generation_kw=kw, generation_kvar=kvar)
    return terminal_voltages(s, solve(grid, at, method=method, tol=tol).v)


def _step(u, grid, point, s, f_hz, *, tol: float, method: str) -> jax.Array:
    """U(h(u)), (n,)."""
    kw, kvar = respond(s, u, point.generation_kw, point.generation_kvar, f_hz)
    return _voltages(grid, point, s, kw, kvar, method, tol)


def _gap(s: Inverters, v: jax.Array, point: OperatingPoint, kw: jax.Array, kvar: jax.Array, f_hz) -> jax.Array:
    """The largest difference to what the curves ask for at node voltages v, per unit of a rating."""
    asked = respond(s, terminal_voltages(s, v), point.generation_kw, point.generation_kvar, f_hz)
    return jnp.max(jnp.maximum(jnp.abs(asked[0] - kw), jnp.abs(asked[1] - kvar)) / s.kva, initial=0.0)


def _search(grid, point, s, f_hz, *, tol: float, limit: int, method: str) -> Rest:
    """The fixed point of one scenario, without derivatives.

    It stops when the next power flow can be expected to show a gap within the tolerance, which that of `regulate` does.
    """

    def powers(w):
        kw, kvar = respond(s, w, point.generation_kw, point.generation_kvar, f_hz)
        return kw / s.kva, kvar / s.kva

    def body(carry):
        w, last, _, step, flows = carry
        p, q = powers(w)
        u = _voltages(grid, point, s, p * s.kva, q * s.kva, method, _flow_tolerance(tol))
        u = jnp.where(jnp.isfinite(u), u, w)
        asked = powers(u)
        gap = jnp.max(jnp.maximum(jnp.abs(asked[0] - p), jnp.abs(asked[1] - q)), initial=0.0)
        # Where the model is too poor, its steps are shortened.
        poor = (gap > 0.7 * last) & (flows > 0)
        step = jnp.where(poor, jnp.maximum(step / 2, 1 / 16), jnp.minimum(1.0, 2 * step))
        further = _model(s, powers, w, u, p, q)
        expected = gap * jnp.where(flows == 0, 1.0, jnp.clip(3 * gap / last, 0.01, 1.0))
        # Within the tolerance already, the powers stay what they are: their gap is known.
        return jnp.where(gap <= 0.5 * tol, w, w + step * (further - w)), gap, expected, step, flows + 1

    def going(carry):
        _, gap, expected, _, flows = carry
        return (gap > 0.5 * tol) & (expected > 0.2 * tol) & (flows < limit)

    start = jnp.ones_like(s.kva)
    big = jnp.asarray(1e3, start.dtype)
    begin = start, big, big, jnp.ones_like(big), jnp.zeros((), jnp.int32)
    w, gap, expected, _, flows = jax.lax.while_loop(going, body, begin)
    return Rest(u=w, gap=jnp.minimum(gap, expected), flows=flows)


def _model(s: Inverters, powers: Callable[[jax.Array], Any], w_k, u_k, p_k, q_k) -> jax.Array:
    """The w (n,) with w = u_k + S (h(w) - h(w_k)), to a thousandth of the change that is left to make."""

    def residual(w):
        p, q = powers(w)
        return u_k + _times(s.near_p, p - p_k) + _times(s.near_q, q - q_k) - w

    def body(carry):
        w, r, size, step, count = carry
        by_p, by_q = jax.jvp(powers, (w,), (jnp.ones_like(w),))[1]
        d = residuals(
            lambda z: z - _times(s.near_p, by_p * z) - _times(s.near_q, by_q * z), r, lambda z: z, _KRYLOV, 1e-3
        )
        new = w + step * d
        left = residual(new)
        after = jnp.max(jnp.abs(left), initial=0.0)
        step = jnp.where(after > 0.9 * size, jnp.maximum(step / 2, 1 / 8), 1.0)
        return new, left, after, step, count + 1

    first = residual(w_k)
    size = jnp.max(jnp.abs(first), initial=0.0)
    begin = w_k, first, size, jnp.ones_like(size), jnp.zeros((), jnp.int32)
    return jax.lax.while_loop(lambda c: (c[2] > 1e-3 * size) & (c[4] < _NEWTON), body, begin)[0]


def _times(near: jax.Array, x: jax.Array) -> jax.Array:
    """S x in single precision: it is a model."""
    return (near @ x.astype(near.dtype)).astype(x.dtype)


def residuals(
    matvec: Callable[[jax.Array], jax.Array],
    right: jax.Array,
    near: Callable[[jax.Array], jax.Array],
    steps: int,
    rtol: float,
) -> jax.Array:
    """Solves `matvec(x) = right`, (n,), by generalised conjugate residuals.

    Args:
      matvec: the matrix times a vector.
      right: the right-hand side.
      near: about the inverse's product with a vector.
      steps: at most; static.
      rtol: the residual that is small enough, in units of the largest entry of `right`.
    """
    tiny = float(jnp.finfo(right.dtype).tiny) ** 0.5
    goal = rtol * jnp.max(jnp.abs(right), initial=0.0)

    def body(carry):
        x, r, zs, az, k = carry
        z = near(r)
        a = matvec(z)
        for _ in range(2):  # twice is enough (W. Kahan; B. Parlett, 1980)
            c = az @ a
            z, a = z - c @ zs, a - c @ az
        norm = jnp.sqrt(jnp.sum(a * a))
        z, a = (jnp.where(norm > tiny, b / jnp.maximum(norm, tiny), 0.0) for b in (z, a))
        along = jnp.sum(a * r)
        return x + along * z, r - along * a, zs.at[k].set(z), az.at[k].set(a), k + 1

    def going(carry):
        return (jnp.max(jnp.abs(carry[1]), initial=0.0) > goal) & (carry[4] < steps)

    room = jnp.zeros((steps, *right.shape), right.dtype)
    begin = jnp.zeros_like(right), right, room, room, jnp.zeros((), jnp.int32)
    return jax.lax.while_loop(going, body, begin)[0]


def _implicit(system: Callable[..., jax.Array], u: jax.Array, data: tuple, right: jax.Array) -> jax.Array:
    """The du with du - d system/du du = right."""
    s: Inverters = data[2]
    point, f_hz = data[1], data[3]

    def powers(w):
        kw, kvar = respond(s, w, point.generation_kw, point.generation_kvar, f_hz)
        return kw / s.kva, kvar / s.kva

    by_p, by_q = jax.jvp(powers, (u,), (jnp.ones_like(u),))[1]
    linear = jax.linearize(lambda w: system(w, *data), u)[1]
    rtol = 1e-10 if u.dtype == jnp.float64 else 1e-5

    def forward(z):
        return z - _times(s.near_p, by_p * z) - _times(s.near_q, by_q * z)

    def backward(z):
        return z - by_p * _times(s.near_p.T, z) - by_q * _times(s.near_q.T, z)

    def solve_with(model):
        def near(r):
            return residuals(model, r, lambda z: z, _KRYLOV, 1e-4)

        return lambda matvec, b: residuals(matvec, b, near, _EXACT, rtol)

    return jax.lax.custom_linear_solve(lambda d: d - linear(d), right, solve_with(forward), solve_with(backward))
