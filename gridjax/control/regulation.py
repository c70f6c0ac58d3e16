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
are one matrix product, and no factorisation. Measured at the default tolerance, with volt-var and
volt-watt at work: 1 to 5 power flows and the last one on the 123-bus feeder with 100 inverters, 5 to 15 (8 on average)
on the 8500-node one with 1,200.

Derivatives follow from the implicit function theorem,

    (1 - U' D) du = U' dh + dU,

solved likewise with the exact U' and preconditioned by S; forward and reverse.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from gridjax.control.fixed_point import (
    KRYLOV,
    Rest,
    flow_tolerance,
    powers_of,
    residuals,
    searcher,
    times_near,
    voltages_at,
)
from gridjax.control.inverters import respond, terminal_voltages
from gridjax.control.settings import NONE, Inverters, Rule, settings
from gridjax.feeder import Feeder
from gridjax.grid import Grid, OperatingPoint
from gridjax.namespace import matmul
from gridjax.powerflow.solve import PowerFlow, solve

GAP = 1e-8  # at rest, in per unit of a rating
FLOWS = 40  # power flows, at most
_EXACT = 16  # steps of the exact linear system for derivatives
_COLUMNS = 64  # sensitivities at once


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
        return voltages_at(grid, grid.nominal, s, half + p * s.kva, idle + q * s.kva, "sweep", 1e-8)

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
    flow = solve(grid, out, method=method, tol=flow_tolerance(tol))
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
    search = searcher(tol, max_flows, method)

    @jax.custom_jvp
    def rest(data):
        grid, s, *scenario = data
        return jax.tree.map(lambda a: a[0], search((grid, s), *jax.tree.map(lambda a: a[None], scenario)))

    def after(u, data):
        grid, s, point, *f = data
        kw, kvar = respond(s, u, point.generation_kw, point.generation_kvar, *f)
        return voltages_at(grid, point, s, kw, kvar, method, flow_tolerance(tol))

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


def _gap(s: Inverters, v: jax.Array, point: OperatingPoint, kw: jax.Array, kvar: jax.Array, f_hz) -> jax.Array:
    """The largest difference to what the curves ask for at node voltages v, per unit of a rating."""
    asked = respond(s, terminal_voltages(s, v), point.generation_kw, point.generation_kvar, f_hz)
    return jnp.max(jnp.maximum(jnp.abs(asked[0] - kw), jnp.abs(asked[1] - kvar)) / s.kva, initial=0.0)


def _implicit(after: Callable[..., jax.Array], u: jax.Array, data: tuple, right: jax.Array) -> jax.Array:
    """The du (n,) with du - d after/du du = right."""
    s: Inverters = data[1]
    point, f_hz = jax.tree.map(lambda a: a[None], (data[2], data[3:]))
    slope = jax.jvp(powers_of(s, point, *f_hz), (u[None],), (jnp.ones_like(u[None]),))[1]
    linear = jax.linearize(lambda w: after(w, data), u)[1]
    rtol = 1e-8 if u.dtype == jnp.float64 else 1e-5

    def forward(z):
        return z - times_near(s, slope * jnp.tile(z, 2))

    def backward(z):
        back = slope * matmul(z.astype(s.near.dtype), s.near).astype(z.dtype)
        return z - sum(jnp.split(back, 2, axis=1))

    def solve_with(model):
        def near(r):
            return residuals(model, r, None, KRYLOV, 1e-4)

        return lambda matvec, b: residuals(lambda z: matvec(z[0])[None], b[None], near, _EXACT, rtol)[0]

    return jax.lax.custom_linear_solve(lambda d: d - linear(d), right, solve_with(forward), solve_with(backward))
