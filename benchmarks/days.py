"""Days of an environment walked one by one: every day once, under any policy, reduced to its figures.

A day's return is G = sum_t r_t until its episode ends. Policies are compared on the same days with the same keys, so
that what chance does to one it does to all. Mean and 95 % interval over n days are Student's

    mean +- t_{0.975, n-1} s / sqrt(n),    s^2 = sum (G - mean)^2 / (n - 1).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from algorithms import evaluation
from algorithms.evaluation import VIOLATED, room
from algorithms.statistics import student
from gridjax.env.environment import Environment


def day_keys(env: Environment, params: Any, days: int, seed: int) -> jax.Array:
    """As `algorithms.evaluation.day_keys`; the recorded days of restoration were not told apart."""
    return evaluation.day_keys(env, params, days, seed, ("episode",))


def step_keys(key: jax.Array, t: jax.Array) -> jax.Array:
    """The policy's and the environment's keys of a day's step, (2,)."""
    return jax.random.split(jax.random.fold_in(key, t))


def scripted(key: jax.Array, obs: jax.Array, state: Any, memory: Any) -> tuple[jax.Array, Any]:
    """The policy that plays the actions (steps, action_size) in its memory, (actions, step)."""
    del key, obs, state
    actions, t = memory
    return actions[t], (actions, t + 1)


@functools.partial(jax.jit, static_argnames=("env", "policy", "keep_actions"))
def _walk(env: Environment, policy: Callable, keys: jax.Array, params: Any, memory: Any, keep_actions: bool):
    """One day from each key: its sums, and its actions (steps, days, action_size) if they are to be kept."""
    obs, state = jax.vmap(env.reset, in_axes=(0, None))(keys, params)

    def one(key, t, obs, state, memory):
        choose, move = step_keys(key, t)
        action, memory = policy(choose, obs, state, memory)
        obs, state, reward, cost, terminated, truncated, info = env.step(move, state, action, params)
        del info["final_observation"]
        figures = {name: jnp.where(info["solved"], value, 0.0) for name, value in info.items()}
        out = {"return": reward, "steps": jnp.ones_like(reward), "violated": 1.0 * (cost > VIOLATED), "violation": cost}
        return obs, state, memory, {**figures, **out}, terminated | truncated, action

    def body(carry, t):
        obs, state, memory, alive, sums = carry
        obs, state, memory, out, done, action = jax.vmap(one, in_axes=(0, None, 0, 0, 0))(keys, t, obs, state, memory)
        live = jax.tree.map(lambda a: a * alive.reshape(alive.shape + (1,) * (a.ndim - 1)), out)
        sums = jax.tree.map(jnp.add, sums, live)
        return (obs, state, memory, alive & ~done, sums), (action if keep_actions else None)

    shapes = jax.eval_shape(jax.vmap(one, in_axes=(0, None, 0, 0, 0)), keys, jnp.asarray(0), obs, state, memory)[3]
    alive = jnp.ones(keys.shape[0], bool)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, jnp.result_type(s.dtype, float)), shapes)
    (*_, sums), actions = jax.lax.scan(body, (obs, state, memory, alive, zeros), jnp.arange(env.horizon))
    return sums, actions


def walk(
    env: Environment,
    policy: Callable,
    keys: jax.Array,
    params: Any,
    *,
    memory: Any = None,
    at_once: int | None = None,
    keep_actions: bool = False,
) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """Walks a day from each key, `at_once` at a time.

    Args:
      env: the environment.
      policy: as for `gridjax.env.environment.rollout`.
      keys: (days,) as from `day_keys`.
      params: of the environment.
      memory: the policy's, with a leading axis (days,).
      at_once: bounds the memory, and is what the program is compiled for; None is all, or as many as there is `room`.
      keep_actions: also return them.

    Returns:
      Each day's sums over its steps, (days,) or (days, constraints): "return", "steps", "violated" (steps), "violation"
      and the figures of `info`; and the actions (days, steps, action_size), or None.
    """
    count = keys.shape[0]
    at_once = at_once or min(room(env), count)

    def chunk(start: int):
        rows = np.minimum(np.arange(start, start + at_once), count - 1)  # the last chunk is filled up
        part = jax.tree.map(lambda a: a[rows], memory)
        sums, actions = _walk(env, policy, keys[rows], params, part, keep_actions)
        actions = None if actions is None else actions.swapaxes(0, 1)
        return jax.tree.map(lambda a: np.asarray(a)[: count - start], (sums, actions))

    return jax.tree.map(lambda *a: np.concatenate(a), *(chunk(start) for start in range(0, count, at_once)))


def replay(
    env: Environment, keys: jax.Array, params: Any, actions: np.ndarray, at_once: int | None = None
) -> dict[str, np.ndarray]:
    """The sums of days whose actions (days, steps, action_size) are given."""
    whole = np.issubdtype(actions.dtype, np.integer)
    script = (actions.astype(np.int32 if whole else float), np.zeros(len(actions), np.int32))  # one program for all
    return walk(env, scripted, keys, params, memory=script, at_once=at_once)[0]


def interval(values: np.ndarray) -> tuple[float, float]:
    """Mean and half of the 95 % interval (Student) of independent values, (n,); the latter NaN for fewer than two."""
    found = student(values)
    return found.value, (found.high - found.low) / 2
