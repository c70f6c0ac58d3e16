"""How voltages and losses answer to the devices' powers: derivatives of the solution, not of an approximation."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from gridjax.grid import Grid, OperatingPoint
from gridjax.powerflow.results import losses
from gridjax.powerflow.solve import solve


def dv_dp(
    grid: Grid,
    point: OperatingPoint,
    *,
    of: str = "loads",
    along: jax.Array | None = None,
    weights: jax.Array | None = None,
    **options,
) -> jax.Array:
    """Voltage magnitudes' derivatives by active power, in per unit a kW.

    Args:
      grid: a compiled feeder.
      point: the operating point; they are those of its solution.
      of: "loads" (consumption counts positive: mostly negative derivatives) or "generators" (production).
      along: (devices,) kW; asks for the product `J along`, which costs about one solution.
      weights: (nodes,); asks for the product `weights J`, likewise.
      options: of `solve`.

    Returns:
      J (nodes, devices); with `along` (nodes,), with `weights` (devices,). NaN where the solution did not converge.

    Raises:
      ValueError: an unknown `of`, or both products asked for.
    """
    return _voltages(grid, point, _field(of, "kw"), along, weights, options)


def dv_dq(
    grid: Grid,
    point: OperatingPoint,
    *,
    of: str = "loads",
    along: jax.Array | None = None,
    weights: jax.Array | None = None,
    **options,
) -> jax.Array:
    """Voltage magnitudes' derivatives by reactive power, in per unit a kvar; see `dv_dp`."""
    return _voltages(grid, point, _field(of, "kvar"), along, weights, options)


def dloss_dp(grid: Grid, point: OperatingPoint, *, of: str = "loads", **options) -> jax.Array:
    """The active losses' derivatives by each device's active power, kW a kW, (devices,); see `dv_dp`."""
    return _losses(grid, point, _field(of, "kw"), options)


def dloss_dq(grid: Grid, point: OperatingPoint, *, of: str = "loads", **options) -> jax.Array:
    """The active losses' derivatives by each device's reactive power, kW a kvar, (devices,); see `dv_dp`."""
    return _losses(grid, point, _field(of, "kvar"), options)


def _field(of: str, unit: str) -> str:
    names = {"loads": "load", "generators": "generation"}
    if of not in names:
        raise ValueError(f"of={of!r} is unknown: choose 'loads' or 'generators'")
    return f"{names[of]}_{unit}"


def _voltages(grid: Grid, point: OperatingPoint, field: str, along, weights, options: dict) -> jax.Array:
    if along is not None and weights is not None:
        raise ValueError("ask for one product: along or weights")
    return _slopes(grid, point, along, weights, field=field, options=tuple(sorted(options.items())))


@functools.partial(jax.jit, static_argnames=("field", "options"))
def _slopes(grid: Grid, point: OperatingPoint, along, weights, *, field: str, options: tuple) -> jax.Array:
    def magnitudes(power):
        flow = solve(grid, dataclasses.replace(point, **{field: power}), **dict(options))
        return jnp.abs(flow.v), flow.converged

    power = getattr(point, field)
    if weights is not None:
        _, pull, converged = jax.vjp(magnitudes, power, has_aux=True)
        found = pull(jnp.asarray(weights, power.dtype))[0]
    else:
        _, product, converged = jax.linearize(magnitudes, power, has_aux=True)
        if along is not None:
            found = product(jnp.asarray(along, power.dtype))
        else:
            found = jax.vmap(product, out_axes=1)(jnp.eye(power.shape[0], dtype=power.dtype))
    return jnp.where(converged, found, jnp.nan)


@functools.partial(jax.jit, static_argnames=("field", "options"))
def _loss_slopes(grid: Grid, point: OperatingPoint, *, field: str, options: tuple) -> jax.Array:
    def lost(power):
        at = dataclasses.replace(point, **{field: power})
        flow = solve(grid, at, **dict(options))
        return losses(grid, at, flow).real, flow.converged

    found, converged = jax.grad(lost, has_aux=True)(getattr(point, field))
    return jnp.where(converged, found, jnp.nan)


def _losses(grid: Grid, point: OperatingPoint, field: str, options: dict) -> jax.Array:
    return _loss_slopes(grid, point, field=field, options=tuple(sorted(options.items())))
