"""`regulate`: the inverters' curves and the power flow, solved together.

With u the terminal voltages, h(u) the powers of `gridjax.control.inverters.respond` and U(p, q) the voltages of the
power flow, an operating point is at rest where

    u = U(h(u)).

It is sought with an affine model of the power flow around the last one, u_k = U(h(w_k)):

    w_{k+1} solves  w = u_k + S (h(w) - h(w_k)),        S about dU/dh, made once for all scenarios,

so that all corners of the curves are dealt with in the model, and a power flow is spent only on the model's error: the
gap |h(u_k) - h(w_k)| shrinks by the error of S each time, and S learns from each power flow (C. G. Broyden, 1965). The
model itself is solved by semismooth Newton steps (L. Qi and J. Sun, 1993), their linear systems (1 - S D) d = r with
D = dh/du by conjugate residuals (S. C. Eisenstat, H. C. Elman, M. H. Schultz, 1983): products with S, which for a batch
are one matrix product, and no factorisation. Measured at the default tolerance: 3 to 5 power flows on the 123-bus
feeder with 100 inverters, 7 to 11 on the 8500-node one with 1,200 of which many are at their volt-watt limit.

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
from gridjax.powerflow.chunks import batched
from gridjax.powerflow.solve import PowerFlow, solve

GAP = 1e-8  # at rest, in per unit of a rating
FLOWS = 40  # power flows, at most
_NEWTON, _KRYLOV = 12, 10  # steps in the model, and in each of their linear systems
_EXACT = 16  # steps of the exact linear system for derivatives
_COLUMNS = 64  # sensitivities at once
_TOGETHER = 256  # scenarios that are sought for together on a processor
_LEARNT = 8  # corrections of the model that are kept


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
    return dataclasses.replace(s, near=found)


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
    search = _searcher(tol, max_flows, method)

    @jax.custom_jvp
    def rest(data):
        grid, s, *scenario = data
        return jax.tree.map(lambda a: a[0], search((grid, s), *jax.tree.map(lambda a: a[None], scenario)))

    def after(u, data):
        grid, s, point, *f = data
        kw, kvar = respond(s, u, point.generation_kw, point.generation_kvar, *f)
        return _voltages(grid, point, s, kw, kvar, method, _flow_tolerance(tol))

    def rule(primals, tangents):
        (data,) = primals
        at: Any = rest(data)
        leaves, tree = jax.tree.flatten(data)
        changes = jax.tree.leaves(tangents[0], is_leaf=lambda t: type(t) is SymbolicZero)
        moved = [i for i, t in enumerate(changes) if type(t) is not SymbolicZero and jnp.size(t)]

        def with_moved(part):
            whole = list(leaves)
            for i, a in zip(moved, part, strict=True):
                whole[i] = a
            return after(at.u, jax.tree.unflatten(tree, whole))

        du = jnp.zeros_like(at.u)
        if moved:
            _, right = jax.jvp(with_moved, ([leaves[i] for i in moved],), ([changes[i] for i in moved],))
            du = jnp.where(at.gap <= 10 * tol, _implicit(after, at.u, data, right), 0.0)
        none: Any = np.zeros(at.flows.shape, jax.dtypes.float0)
        return at, Rest(u=du, gap=jnp.zeros_like(at.gap), flows=none)

    rest.defjvp(rule, symbolic_zeros=True)
    data = (grid, s, point)
    return rest(data if f_hz is None else (*data, jnp.asarray(f_hz, s.kva.dtype)))


def _tolerance(grid: Grid, tol: float) -> float:
    return max(tol, 150 * float(jnp.finfo(grid.zones.u_ref.dtype).eps))


def _flow_tolerance(tol: float) -> float:
    """Of a power flow whose voltages' error, times a curve's slope, shall not show in the gap."""
    return min(1e-8, 1e-2 * tol)


def _voltages(grid: Grid, point: OperatingPoint, s: Inverters, kw, kvar, method: str, tol: float) -> jax.Array:
    """U(p, q), (n,)."""
    at = dataclasses.replace(point, generation_kw=kw, generation_kvar=kvar)
    return terminal_voltages(s, solve(grid, at, method=method, tol=tol).v)


def _gap(s: Inverters, v: jax.Array, point: OperatingPoint, kw: jax.Array, kvar: jax.Array, f_hz) -> jax.Array:
    """The largest difference to what the curves ask for at node voltages v, per unit of a rating."""
    asked = respond(s, terminal_voltages(s, v), point.generation_kw, point.generation_kvar, f_hz)
    return jnp.max(jnp.maximum(jnp.abs(asked[0] - kw), jnp.abs(asked[1] - kvar)) / s.kva, initial=0.0)


@functools.lru_cache(maxsize=64)
def _searcher(tol: float, limit: int, method: str):
    """The search for a batch; its `vmap` makes a larger one: loops inside a vmap would be traced over and over."""

    def run(shared, *scenarios):
        return _search(*shared, *scenarios, tol=tol, limit=limit, method=method)

    return batched(run, lambda _: _TOGETHER)


def _powers(s: Inverters, points: OperatingPoint, *f_hz: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """The map x = h(u) for a batch: (batch, n) voltages to (batch, 2 n) active and reactive powers per unit."""

    def of(u, p, q, *f):
        kw, kvar = respond(s, u, p, q, *f)
        return jnp.concatenate([kw / s.kva, kvar / s.kva])

    return lambda u: jax.vmap(of)(u, points.generation_kw, points.generation_kvar, *f_hz)


def _search(grid, s, points, *f_hz, tol: float, limit: int, method: str) -> Rest:
    """The fixed points of a batch, without derivatives.

    Each stops when the next power flow, that of `regulate`, can be expected to show a gap within the tolerance.
    """
    powers = _powers(s, points, *f_hz)

    def voltages(point, x):
        kw, kvar = (a * s.kva for a in jnp.split(x, 2))
        return _voltages(grid, point, s, kw, kvar, method, _flow_tolerance(tol))

    def going(at: _Search):
        return (at.gap > 0.5 * tol) & (at.expected > 0.2 * tol) & (at.flows < limit)

    def body(at: _Search):
        x, slope = jax.jvp(powers, (at.w,), (jnp.ones_like(at.w),))
        u = jax.vmap(voltages)(points, x)
        u = jnp.where(jnp.isfinite(u), u, at.w)
        gap = jnp.max(jnp.abs(powers(u) - x), axis=1, initial=0.0)
        learnt = _learn(s, at, x, u)
        # Where the model is too poor, its steps are shortened.
        poor = (gap > 0.7 * at.gap) & (at.flows > 0)
        step = jnp.where(poor, jnp.maximum(at.step / 2, 1 / 16), jnp.minimum(1.0, 2 * at.step))
        further = _model(s, learnt, powers, at.w, slope, u, x)
        expected = gap * jnp.where(at.flows == 0, 1.0, jnp.clip(3 * gap / at.gap, 0.01, 1.0))
        # Within the tolerance already, the powers stay what they are: their gap is known.
        w = jnp.where((gap <= 0.5 * tol)[:, None], at.w, at.w + step[:, None] * (further - at.w))
        new = dataclasses.replace(learnt, w=w, gap=gap, expected=expected, step=step, flows=at.flows + 1)
        return _where(going(at), new, at)

    b, n = points.generation_kw.shape
    dtype = s.kva.dtype
    zero, big = jnp.zeros((b, n), dtype), jnp.full(b, 1e3, dtype)
    begin = _Search(
        w=zero + 1, x=jnp.zeros((b, 2 * n), dtype), u=zero, gap=big, expected=big, step=jnp.ones(b, dtype),
        flows=jnp.zeros(b, jnp.int32), along=jnp.zeros((b, _LEARNT, 2 * n), dtype),
        off=jnp.zeros((b, _LEARNT, n), dtype),
    )  # fmt: skip
    end = jax.lax.while_loop(lambda at: jnp.any(going(at)), body, begin)
    return Rest(u=end.w, gap=jnp.minimum(end.gap, end.expected), flows=end.flows)


def _where(which: jax.Array, new: Any, old: Any) -> Any:
    """`new` in the scenarios `which` (batch,), else `old`."""
    return jax.tree.map(lambda a, b: jnp.where(which.reshape(-1, *(1,) * (a.ndim - 1)), a, b), new, old)


@flax.struct.dataclass
class _Search:
    """The state of a batch's search: the model's answer w, the last power flow's x = h(w) and u, what was learnt of S.

    S d is `near d + sum_k off_k (along_k . d)`.
    """

    w: jax.Array
    x: jax.Array
    u: jax.Array
    gap: jax.Array
    expected: jax.Array
    step: jax.Array
    flows: jax.Array
    along: jax.Array
    off: jax.Array


def _learn(s: Inverters, at: _Search, x: jax.Array, u: jax.Array) -> _Search:
    """S corrected so that it holds between the last two power flows (C. G. Broyden, 1965)."""
    d = x - at.x
    square = jnp.sum(d * d, axis=1)
    useful = (at.flows > 0) & (square > 1e-24)
    off = (u - at.u - _times(s, at, d)) / jnp.where(useful, square, 1.0)[:, None]
    here = (jnp.arange(_LEARNT)[None] == (at.flows % _LEARNT)[:, None]) & useful[:, None]
    along, off = (jnp.where(here[..., None], a[:, None], b) for a, b in ((d, at.along), (off, at.off)))
    return dataclasses.replace(at, x=x, u=u, along=along, off=off)


def _times(s: Inverters, learnt: _Search, d: jax.Array) -> jax.Array:
    """S d for a batch, (batch, 2 n) to (batch, n), mostly in single precision: it is a model."""
    share = jnp.einsum("bkm,bm->bk", learnt.along, d)
    return _near(s, d) + jnp.einsum("bk,bkn->bn", share, learnt.off)


def _near(s: Inverters, d: jax.Array) -> jax.Array:
    return (d.astype(s.near.dtype) @ s.near.T).astype(d.dtype)


def _model(s: Inverters, learnt: _Search, powers, w_k, slope, u_k, x_k) -> jax.Array:
    """The w (batch, n) with w = u_k + S (h(w) - x_k), to a thousandth of the change that is left to make.

    `slope` (batch, 2 n) is that of h at w_k, where x_k = h(w_k).
    """

    def body(carry):
        w, slope, r, size, step, count = carry
        d = residuals(lambda z: z - _times(s, learnt, slope * jnp.tile(z, 2)), r, lambda z: z, _KRYLOV, 1e-3)
        new = w + step[:, None] * d
        x, slope_there = jax.jvp(powers, (new,), (jnp.ones_like(new),))
        left = u_k + _times(s, learnt, x - x_k) - new
        after = jnp.max(jnp.abs(left), axis=1, initial=0.0)
        shorter = jnp.where(after > 0.9 * size, jnp.maximum(step / 2, 1 / 8), 1.0)
        going = size > goal
        out = _where(going, (new, slope_there, left, after, shorter), (w, slope, r, size, step))
        return *out, count + 1

    first = u_k - w_k
    size = jnp.max(jnp.abs(first), axis=1, initial=0.0)
    goal = 1e-3 * size
    begin = w_k, slope, first, size, jnp.ones_like(size), jnp.zeros((), jnp.int32)
    return jax.lax.while_loop(lambda c: jnp.any(c[3] > goal) & (c[5] < _NEWTON), body, begin)[0]


def residuals(
    matvec: Callable[[jax.Array], jax.Array],
    right: jax.Array,
    near: Callable[[jax.Array], jax.Array],
    steps: int,
    rtol: float,
) -> jax.Array:
    """Solves `matvec(x) = right` for a batch of systems, (batch, n), by generalised conjugate residuals.

    Args:
      matvec: each system's matrix times its vector.
      right: the right-hand sides.
      near: about the inverse's product with vectors.
      steps: at most; static.
      rtol: the residual that is small enough, in units of the largest entry of a system's `right`.
    """
    tiny = float(jnp.finfo(right.dtype).tiny) ** 0.5
    goal = rtol * jnp.max(jnp.abs(right), axis=1, initial=0.0)

    def body(carry):
        x, r, zs, az, k = carry
        z = near(r)
        a = matvec(z)
        for _ in range(2):  # twice is enough (W. Kahan; B. Parlett, 1980)
            c = jnp.einsum("bkn,bn->bk", az, a)
            z, a = z - jnp.einsum("bk,bkn->bn", c, zs), a - jnp.einsum("bk,bkn->bn", c, az)
        norm = jnp.sqrt(jnp.sum(a * a, axis=1, keepdims=True))
        z, a = (jnp.where(norm > tiny, e / jnp.maximum(norm, tiny), 0.0) for e in (z, a))
        along = jnp.sum(a * r, axis=1, keepdims=True)
        return x + along * z, r - along * a, zs.at[:, k].set(z), az.at[:, k].set(a), k + 1

    def going(carry):
        return jnp.any(jnp.max(jnp.abs(carry[1]), axis=1, initial=0.0) > goal) & (carry[4] < steps)

    room = jnp.zeros((right.shape[0], steps, right.shape[1]), right.dtype)
    begin = jnp.zeros_like(right), right, room, room, jnp.zeros((), jnp.int32)
    return jax.lax.while_loop(going, body, begin)[0]


def _implicit(after: Callable[..., jax.Array], u: jax.Array, data: tuple, right: jax.Array) -> jax.Array:
    """The du (n,) with du - d after/du du = right."""
    s: Inverters = data[1]
    point, f_hz = jax.tree.map(lambda a: a[None], (data[2], data[3:]))
    slope = jax.jvp(_powers(s, point, *f_hz), (u[None],), (jnp.ones_like(u[None]),))[1]
    linear = jax.linearize(lambda w: after(w, data), u)[1]
    rtol = 1e-10 if u.dtype == jnp.float64 else 1e-5

    def forward(z):
        return z - _near(s, slope * jnp.tile(z, 2))

    def backward(z):
        back = slope * (z.astype(s.near.dtype) @ s.near).astype(z.dtype)
        return z - sum(jnp.split(back, 2, axis=1))

    def solve_with(model):
        def near(r):
            return residuals(model, r, lambda z: z, _KRYLOV, 1e-4)

        return lambda matvec, b: residuals(lambda z: matvec(z[0])[None], b[None], near, _EXACT, rtol)[0]

    return jax.lax.custom_linear_solve(lambda d: d - linear(d), right, solve_with(forward), solve_with(backward))
