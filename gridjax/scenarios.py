"""Random load scenarios: drawn by key, solved in chunks of one size, boiled down to a few numbers each.

The draw. Scenario s has a level L_s, uniform between `low` and `high`, which all loads share (the hour of the day), and
each load l its own factor (what its customers do):

    m_sl = min(L_s exp(sigma z_sl - sigma^2 / 2), most),    z_sl ~ N(0, 1),

a log-normal factor of mean 1 and spread sigma. Power factors stay as they are. Scenario s depends on the key and on s
alone, not on how many are drawn or on the chunks.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from gridjax.drawing import RANGE_A, RANGE_B, phase_nodes
from gridjax.extremes import largest, smallest
from gridjax.feeder import Feeder
from gridjax.grid import Grid, OperatingPoint
from gridjax.powerflow.solve import solve


class Draw(NamedTuple):
    """How loads vary: the spread of a single load, the range of the common level, the largest multiplier."""

    spread: float = 0.3
    low: float = 0.5
    high: float = 1.2
    most: float = 2.0


def load_multipliers(key: jax.Array, scenario: jax.Array, point: OperatingPoint, draw: Draw) -> jax.Array:
    """One scenario's factor on each load, (loads,), between 0 and `draw.most`.

    Args:
      key: the key of the whole draw.
      scenario: the scenario's number, an integer.
      point: gives the number of loads and the precision.
      draw: how loads vary.
    """
    level_key, load_key = jax.random.split(jax.random.fold_in(key, scenario))
    dtype = point.load_kw.dtype
    level = jax.random.uniform(level_key, (), dtype, draw.low, draw.high)
    own = jax.random.normal(load_key, point.load_kw.shape, dtype)
    return jnp.minimum(level * jnp.exp(draw.spread * own - draw.spread**2 / 2), draw.most)


def with_loads(point: OperatingPoint, multipliers: jax.Array) -> OperatingPoint:
    """The point with each load's kW and kvar multiplied, (loads,) or a scalar."""
    return dataclasses.replace(point, load_kw=point.load_kw * multipliers, load_kvar=point.load_kvar * multipliers)


@flax.struct.dataclass
class Outcome:
    """What is kept of each scenario, (scenarios,): node numbers index `feeder.node_names`.

    Voltages are those of the phases (nodes 1 to 3); where `converged` is False they mean nothing.
    """

    converged: jax.Array
    iterations: jax.Array
    residual: jax.Array
    min_pu: jax.Array
    min_node: jax.Array
    max_pu: jax.Array
    max_node: jax.Array
    outside_a: jax.Array
    outside_b: jax.Array


@functools.partial(jax.jit, static_argnames=("draw", "method", "tol"))
def _solve_chunk(
    grid: Grid, key: jax.Array, numbers: jax.Array, phases: jax.Array, *, draw: Draw, method: str, tol: float
) -> Outcome:
    def one(number):
        point = with_loads(grid.nominal, load_multipliers(key, number, grid.nominal, draw))
        flow = solve(grid, point, method=method, tol=tol)
        v = jnp.abs(flow.v)
        low, high = jnp.where(phases, v, jnp.inf), jnp.where(phases, v, -jnp.inf)
        beyond = [jnp.sum(phases & ((v < a) | (v > b))) for a, b in (RANGE_A, RANGE_B)]
        return Outcome(
            converged=flow.converged & jnp.all(jnp.isfinite(v)),
            iterations=flow.iterations,
            residual=flow.residual,
            min_pu=smallest(low),
            min_node=jnp.argmin(low),
            max_pu=largest(high),
            max_node=jnp.argmax(high),
            outside_a=beyond[0],
            outside_b=beyond[1],
        )

    return jax.vmap(one)(numbers)


def run(
    feeder: Feeder,
    grid: Grid,
    key: jax.Array,
    scenarios: int,
    *,
    draw: Draw = Draw(),  # noqa: B008 a tuple of constants
    batch_size: int = 500,
    method: str = "sweep",
    tol: float = 1e-8,
) -> Iterator[Outcome]:
    """Solves scenarios 0 to `scenarios - 1`, chunk after chunk.

    All chunks have one size (the last one is padded with repeats and then cut), so that the solver compiles once.

    Args:
      feeder: the tables that `grid` was compiled from.
      grid: the compiled feeder.
      key: the key of the draw.
      scenarios: how many.
      draw: how loads vary.
      batch_size: scenarios in a chunk.
      method: as in `solve`.
      tol: as in `solve`.

    Yields:
      The outcome of each chunk as NumPy arrays, in order.

    Raises:
      ValueError: no scenarios, or no batch size.
    """
    if scenarios < 1 or batch_size < 1:
        raise ValueError(f"{scenarios} scenarios in chunks of {batch_size}: both must be at least 1")
    size = min(batch_size, scenarios)
    phases = jnp.asarray(phase_nodes(feeder))
    for start in range(0, scenarios, size):
        count = min(size, scenarios - start)
        numbers = jnp.asarray(start + np.minimum(np.arange(size), count - 1), jnp.int32)
        outcome = _solve_chunk(grid, key, numbers, phases, draw=draw, method=method, tol=tol)
        yield jax.tree.map(lambda a, n=count: np.asarray(a)[:n], outcome)


def join(outcomes: list[Outcome]) -> Outcome:
    """The chunks' outcomes as one."""
    return jax.tree.map(lambda *parts: np.concatenate(parts), *outcomes)
