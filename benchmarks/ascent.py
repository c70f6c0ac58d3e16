"""Gradient ascent on whole days of actions through a differentiable environment, and on constant actions.

    J(a) = sum_t [r_t - price . c_t],     a <- clip(a + Adam(dJ/da), -1, 1),     a = (a_0, ..., a_{T-1})

with all of the day known (D. P. Kingma and J. Ba, "Adam", 2015; projected onto the box of actions after every step, the
rate falling as a half cosine). What comes out is attained: the optimum is at least as good; it is no proven bound.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.days import room, step_keys
from gridjax.env.environment import Environment, pick

RATE = 0.1
FLOOR = 0.02  # of the rate, at the end


@functools.partial(jax.jit, static_argnames="env")
def slopes(env: Environment, params: Any, keys: jax.Array, actions: jax.Array, price: jax.Array):
    """J of each day's actions (days, steps, action_size), (days,), and its derivatives; not numbers count as 0."""

    def day(actions, key):
        def body(carry, now):
            (state, alive), (t, action) = carry, now
            own, _ = jax.random.split(step_keys(key, t)[1])  # as `env.step` has it: chance strikes as in a walk
            new, outcome = env.advance(own, state, action, params)
            gain = jnp.where(outcome.solved, outcome.reward - jnp.sum(price * outcome.cost), env.failure_penalty)
            over = outcome.over | ~outcome.solved
            return (pick(outcome.solved, new, state), alive & ~over), jnp.where(alive, gain, 0.0)

        start = (jax.lax.stop_gradient(env.begin(key, params)), jnp.ones((), bool))
        return jnp.sum(jax.lax.scan(body, start, (jnp.arange(env.horizon), actions))[1])

    value, slope = jax.vmap(jax.value_and_grad(day))(actions, keys)
    return value, jnp.nan_to_num(slope, nan=0.0, posinf=0.0, neginf=0.0)


def climb(of: Callable[[Any], tuple[Any, Any]], start: np.ndarray, iterations: int) -> np.ndarray:
    """The best of the points that projected Adam meets, row by row.

    Args:
      of: gives the values (rows,) and derivatives (rows, ...) at points (rows, ...).
      start: (rows, ...) within -1 to 1.
      iterations: so many steps.

    Guarantees:
      No row is worse than its start.
    """
    schedule = optax.cosine_decay_schedule(RATE, max(iterations, 1), FLOOR)
    rule = optax.adam(schedule)

    @jax.jit
    def move(x, slope, memory):
        update, memory = rule.update(-slope, memory)
        return jnp.clip(x + update, -1.0, 1.0), memory

    x = jnp.clip(jnp.asarray(start, float), -1.0, 1.0)
    memory = rule.init(x)
    best, found = x, None
    for k in range(iterations + 1):
        value, slope = of(x)
        if found is None:
            found = value
        better = value > found
        best, found = pick(better, x, best), jnp.maximum(value, found)
        if k < iterations:
            x, memory = move(x, slope, memory)
    return np.asarray(best)


def ascend(
    env: Environment, params: Any, keys: jax.Array, starts: list[np.ndarray], price: np.ndarray, iterations: int
) -> np.ndarray:
    """Actions (days, steps, action_size), on each day the best that was met from any start.

    Args:
      env: an environment of numbers.
      params: of it.
      keys: (days,) as from `benchmarks.days.day_keys`.
      starts: actions (days, steps, action_size); the climb begins from the first, and from the best of them on each
        day.
      price: (constraints,) of the costs.
      iterations: from each start.
    """
    at_once, out = room(env), []
    for first in range(0, keys.shape[0], at_once):
        rows = slice(first, first + at_once)

        def of(x, rows=rows):
            return slopes(env, params, keys[rows], x, price)

        def best(points):
            values = np.stack([of(x)[0] for x in points])
            return np.stack(points)[values.argmax(axis=0), np.arange(values.shape[1])]

        points = [np.asarray(start[rows], float) for start in starts]
        out.append(best([climb(of, start, iterations) for start in (points[0], best(points))]))
    return np.concatenate(out)


def best_constant(
    env: Environment, params: Any, keys: jax.Array, start: np.ndarray, price: np.ndarray, iterations: int
) -> tuple[np.ndarray, float]:
    """The constant action (action_size,) with the best mean J over the days, from one start, and that J."""
    at_once, days = room(env), keys.shape[0]

    def of(x):
        held = jnp.broadcast_to(x[0][None, None], (days, env.horizon, env.action_size))
        parts = [
            slopes(env, params, keys[k : k + at_once], held[k : k + at_once], price) for k in range(0, days, at_once)
        ]
        value = jnp.concatenate([p[0] for p in parts])
        slope = jnp.concatenate([p[1] for p in parts])
        return jnp.mean(value)[None], jnp.mean(jnp.sum(slope, axis=1), axis=0)[None]

    action = climb(of, np.asarray(start)[None], iterations)
    return action[0], float(of(jnp.asarray(action))[0][0])
