"""`solve`: one scenario's power flow as a pure function under jit, vmap and grad."""

from __future__ import annotations

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.scipy.sparse.linalg import gmres

from gridjax.grid import Grid, OperatingPoint
from gridjax.powerflow.newton import newton
from gridjax.powerflow.sweep import Inputs, State, fixed_point, prepare, start, sweep

METHODS = {"sweep": fixed_point, "newton": newton}
DEFAULT_ITERATIONS = {"sweep": 100, "newton": 30}


@flax.struct.dataclass
class PowerFlow:
    """The solution of one scenario, or of many under `vmap`.

    Attributes:
      v: (nodes,) complex, per unit of the node's base voltage, in the order of `feeder.node_names`. Where
        `converged` is False this is the last iterate, not a solution.
      converged: whether the residual is within the tolerance (and, for Newton, the solution is the operable one).
      iterations: sweeps or Newton steps made.
      residual: the largest voltage change (per unit of a device's rating) that one more exact solution of the
        linear circuit with the present currents makes; infinite where the iteration broke down.
    """

    v: jax.Array
    converged: jax.Array
    iterations: jax.Array
    residual: jax.Array


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
      method: "sweep" (backward/forward sweep; fast where voltages hold up) or "newton" (Newton-Raphson; for
        heavily loaded points). Static.
      tol: largest voltage change in per unit at which a scenario has converged; at least four units of the grid's
        precision (4.8e-7 in float32). Static.
      max_iterations: None is 100 sweeps or 30 Newton steps. Static.

    Returns:
      The power flow. A scenario that does not converge says so and leaves the others of a batch untouched. One in
      which a capacitor bank between two buses has no step in service is never reported as converged, since what
      hangs behind it may be without voltage: take such a bank out of the feeder instead.

    Raises:
      ValueError: an unknown method, a tolerance that is not positive, or fields of the wrong shape.

    Guarantees:
      Derivatives are the implicit ones of the solution (in real coordinates), forward and reverse, whatever the
      method; their cost does not depend on the iterations. Where `converged` is False they mean nothing.
    """
    if method not in METHODS:
        raise ValueError(f"method {method!r} is unknown: choose one of {sorted(METHODS)}")
    if not tol > 0:
        raise ValueError(f"tol must be positive, not {tol}")
    _check_shapes(grid, point)
    limit = DEFAULT_ITERATIONS[method] if max_iterations is None else max_iterations
    tol = max(tol, 4 * float(jnp.finfo(grid.zones.z_uu.dtype).eps))
    inputs = prepare(grid, point)
    state, iterations, residual = _root(grid, inputs, method, tol, limit)
    residual = jnp.where(_lost_series_bank(grid, point), jnp.inf, residual)
    v = _node_voltages(grid, inputs, state)
    return PowerFlow(
        v=v[..., 0],
        converged=residual[0] <= tol,
        iterations=iterations[0],
        residual=residual[0],
    )


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


def _root(grid: Grid, inputs: Inputs, method: str, tol: float, limit: int):
    """The state that a sweep leaves as it is, by the chosen method, with implicit derivatives.

    With `s = sweep(s, parameters)`, the tangent solves `(1 - d sweep/d s) ds = d sweep/d parameters`. Everything is in
    real coordinates, so that nothing needs to be holomorphic.
    """
    kernel = _batched(METHODS[method], tol, limit)

    @jax.custom_jvp
    def root(grid: Grid, inputs: Inputs):
        return kernel(grid, inputs, start(grid, inputs.p.shape[-1]))

    @root.defjvp
    def _(primals, tangents):
        state, iterations, residual = root(*primals)
        _, right = jax.jvp(lambda g, i: sweep(g, i, state).state, primals, tangents)
        at_grid, at_inputs = primals
        linearized: Any = jax.linearize(lambda s: sweep(at_grid, at_inputs, s).state, state)
        # As one vector: a feeder without taps has an empty part, which linear solves do not transpose.
        flat, to_state = ravel_pytree(right)
        unravel: Any = to_state

        def matvec(d):
            return d - ravel_pytree(linearized[1](unravel(d)))[0]

        tangent = unravel(jax.lax.custom_linear_solve(matvec, flat, _krylov, _krylov))
        no_tangents = np.zeros(iterations.shape, jax.dtypes.float0), jnp.zeros_like(residual)
        return (state, iterations, residual), (tangent, *no_tangents)

    return root(grid, inputs)


def _krylov(matvec, right):
    """GMRES (Y. Saad and M. H. Schultz, 1986): also near the nose, where substitution would not converge."""
    tol = 1e-4 * float(jnp.finfo(right.dtype).eps) ** 0.5
    return gmres(matvec, right, tol=tol, restart=30, maxiter=20)[0]


@functools.lru_cache(maxsize=64)
def _batched(method, tol: float, limit: int):
    """The method as a function whose `vmap` over scenarios runs one batched iteration, batch axis last.

    A plain vmap would put the batch first and make every product a transpose (see `gridjax.powerflow.sweep`).
    """

    @jax.custom_batching.custom_vmap
    def kernel(grid, inputs, state):
        return method(grid, inputs, state, tol, limit)

    @kernel.def_vmap
    def rule(size, batched, grid, inputs, state):
        over_grid, over_inputs, over_state = batched
        if any(jax.tree.leaves(over_grid)):
            axes = [jax.tree.map(lambda b: 0 if b else None, t) for t in batched]
            out = jax.vmap(lambda g, i, s: method(g, i, s, tol, limit), in_axes=tuple(axes))(grid, inputs, state)
            return out, jax.tree.map(lambda _: True, out)

        def last(x, b):  # (size, ..., inner) or (..., inner) to (..., size * inner)
            x = jnp.moveaxis(x, 0, -2) if b else jnp.broadcast_to(x[..., None, :], (*x.shape[:-1], size, x.shape[-1]))
            return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])

        out = kernel(
            grid,
            jax.tree.map(last, inputs, over_inputs),
            jax.tree.map(last, state, over_state),
        )

        def first(x):
            return jnp.moveaxis(x.reshape(*x.shape[:-1], size, x.shape[-1] // size), -2, 0)

        return jax.tree.map(first, out), jax.tree.map(lambda _: True, out)

    return kernel


def _node_voltages(grid: Grid, inputs: Inputs, state: State) -> jax.Array:
    """All nodes' complex voltages in per unit, (nodes, batch)."""
    s, zs = grid.shape, grid.zones
    out = sweep(grid, inputs, state)
    v = sum(
        jnp.einsum("zij,zjb->zib", op, x) for op, x in ((zs.n_u, out.x_u), (zs.n_i, out.x_i), (zs.n_head, out.head))
    )
    v = v + zs.v_ref[..., None]
    batch = v.shape[-1]
    re = v[:, : s.interior].reshape(-1, batch)[grid.node_place]
    im = v[:, s.interior :].reshape(-1, batch)[grid.node_place]
    return jax.lax.complex(re, im)
