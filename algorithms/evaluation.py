"""Agents and plain policies in the simulator: held-out days, every one once, reduced to each day's figures.

An episode's return is G = sum_t r_t until it terminates or its time limit comes; nothing after that counts. Policies
are compared on the same days with the same keys, so that what chance does to one it does to all. In step t of the day
with key k the environment draws from `split(move)[0]` and the policy from `choose`, where

    choose, move = split(fold_in(k, t))

which is what `Environment.step` called with `move` would do. Actors compute in single precision, the environment in
whatever its parameters have.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from algorithms.learning import Agent
from algorithms.spaces import Space
from gridjax.env.environment import Environment, Policy
from gridjax.env.lanes import pick
from gridjax.env.tasks import make
from gridjax.env.volt_var import VoltVar

VIOLATED = 1e-6  # a cost above counts as a violation: below are the power flow's own errors
DRAWS = 40  # keys tried for each day
SIZE = 2**18  # entries of observations of the episodes that are walked at once: what bounds the memory
YEAR = 365  # different days of one seed
BY_DAY = ("multiplier", "days", "cars")  # parameters with a leading axis of days
Figures = dict[str, np.ndarray]


def evaluate(
    env: Environment,
    params: Any,
    agent: Agent,
    config: Any,
    space: Space,
    states: Any,
    keys: jax.Array,
    *,
    drawn: bool = False,
    at_once: int | None = None,
) -> Figures:
    """Plays all seeds of an agent on the same episodes.

    Args:
      env: the environment.
      params: its parameters.
      agent: the algorithm.
      config: its numbers, as it was trained with.
      space: of the environment.
      states: of the agents, leading axis (seeds,), as `algorithms.training.train` returns them.
      keys: (episodes,) as from `held_out` or `day_keys`.
      drawn: whether actions are drawn from the agent's distribution; else they are its modes.
      at_once: episodes that run side by side; None is all, or as many as there is `room`.

    Returns:
      Sums over each episode's steps: "return" and "steps" (seeds, episodes), "cost" and "violated" (seeds, episodes,
      constraints), the latter counting steps whose cost is above `VIOLATED`, "terminated" (1 or 0), and the figures of
      `info`, to which a step with a failed power flow adds nothing.

    Raises:
      ValueError: states without an axis of seeds, or a space that is not the environment's.

    Guarantees:
      An episode does not depend on what runs beside it (to rounding).
    """
    if jnp.ndim(states.step) != 1:
        raise ValueError(f"{agent.name}: states without an axis of seeds; give single ones a[None] of every leaf")
    if space.counts != tuple(env.action_counts) or space.observation_size != env.observation_size:
        raise ValueError(f"{agent.name}: the agent's space is not that of this environment, take the one it learned on")
    design, seeds = config.design(space), states.step.shape[0]
    return _in_parts(env, _Actors(design, seeds, drawn), keys, params, states.actor.params, at_once)


def evaluate_policy(
    env: Environment,
    params: Any,
    policy: Policy,
    keys: jax.Array,
    *,
    memory: Any = None,
    at_once: int | None = None,
) -> Figures:
    """Plays a plain policy on episodes.

    Args:
      env: the environment.
      params: its parameters.
      policy: as for `gridjax.env.environment.rollout`.
      keys: (episodes,) as from `held_out` or `day_keys`.
      memory: the policy's at the start of every episode.
      at_once: see `evaluate`.

    Returns:
      As `evaluate`, with a leading axis of one seed.
    """
    return _in_parts(env, _Plain(policy), keys, params, memory, at_once)


def held_out(name: str, seeds: Sequence[int], days: int, **options: Any) -> tuple[Environment, Any, jax.Array]:
    """An environment with many different days, and keys whose episodes are each of them once.

    Args:
      name: one of `gridjax.env.tasks.names()`.
      seeds: of the days; training data have their own seed, which must not be among them.
      days: of each seed, at most 365, spread over the year.
      **options: as for `gridjax.env.tasks.make`.

    Returns:
      Environment, parameters with len(seeds) * days days, keys (len(seeds) * days,).

    Raises:
      ValueError: seeds given twice, or more days than a year has.
    """
    if len(set(seeds)) != len(seeds) or not seeds or not 1 <= days <= YEAR:
        raise ValueError(f"{days} days of seeds {list(seeds)}: take 1 to {YEAR} days of different seeds, at least one")
    made = [make(name, seed=seed, days=days, **options) for seed in seeds]
    env, params = made[0][0], join([one[1] for one in made])
    return env, params, day_keys(env, params, len(seeds) * days, seeds[0])


def join(params: Sequence[Any]) -> Any:
    """Parameters of one environment with the days of all, one after another.

    Raises:
      ValueError: they differ in more than their days.
    """

    def joined(*parts):
        return jax.tree.map(lambda *a: jnp.concatenate(a), *parts)

    first = params[0]
    if len(params) == 1:
        return first
    changes = {n: joined(*(getattr(p, n) for p in params)) for n in BY_DAY if hasattr(first, n)}
    if hasattr(first, "tariff"):
        changes["tariff"] = first.tariff.replace(price=joined(*(p.tariff.price for p in params)))
    out = first.replace(**changes)
    for other in params[1:]:
        rest = other.replace(**changes)
        same = jax.tree.structure(rest) == jax.tree.structure(out)
        if not same or not all(map(np.array_equal, jax.tree.leaves(rest), jax.tree.leaves(out))):
            raise ValueError("these parameters differ in more than their days: make them with the same options")
    return out


def day_keys(
    env: Environment, params: Any, days: int, seed: int, named: Sequence[str] = ("episode", "day")
) -> jax.Array:
    """Keys whose resets begin every one of the days 0 to days - 1 once, in this order.

    An environment whose states do not say by one of the names which day they are in gets as many different keys.

    Raises:
      ValueError: no key was found for a day, as there are fewer of them.
    """
    keys = jax.random.split(jax.random.key(seed), DRAWS * days)
    shape = jax.eval_shape(env.begin, keys[0], params)
    which = next((name for name in named if hasattr(shape, name)), None)
    if which is None:
        return keys[:days]
    begun = jax.jit(jax.vmap(lambda key, params: getattr(env.begin(key, params), which), in_axes=(0, None)))
    _, first = np.unique(np.asarray(begun(keys, params)), return_index=True)
    if len(first) < days:
        raise ValueError(f"only {len(first)} of {days} days begin: make the environment with more of them")
    return keys[first[:days]]


def prices(env: Environment) -> np.ndarray:
    """Of each cost in a score, (costs,): what a failed power flow costs, or 0 where the reward holds the violations."""
    return np.r_[np.full(len(env.constraints), 0.0 if isinstance(env.base, VoltVar) else -env.failure_penalty), 0.0]


def room(env: Environment) -> int:
    """How many episodes fit into a bounded memory."""
    return int(np.clip(SIZE // env.observation_size, 16, 2048))


def step_keys(key: jax.Array, t: jax.Array) -> jax.Array:
    """The policy's and the environment's keys of step t of the day with this key, (2,)."""
    choose, move = jax.random.split(jax.random.fold_in(key, t))
    return jnp.stack([choose, jax.random.split(move)[0]])


@dataclass(frozen=True)
class _Actors:
    """Agents for a batch that lies seed by seed; their parameters (seeds, ...) are the memory.

    Each seed's parameters meet all its episodes in one product of matrices.
    """

    design: Any
    seeds: int
    drawn: bool

    def __call__(self, keys, obs, state, params):
        del state

        def act(params, obs, keys):
            chosen = self.design.act(params, obs)
            return jax.vmap(lambda d, key: d.sample(key)[0])(chosen, keys) if self.drawn else chosen.mode()

        seen = obs.astype(jnp.float32).reshape(self.seeds, -1, obs.shape[-1])
        action = jax.vmap(act)(params, seen, keys.reshape(self.seeds, -1))
        return action.reshape(obs.shape[0], -1), params


@dataclass(frozen=True)
class _Plain:
    """A plain policy for a batch."""

    policy: Policy

    def __call__(self, keys, obs, state, memory):
        return jax.vmap(self.policy)(keys, obs, state, memory)


def _in_parts(env: Environment, act: Any, keys: jax.Array, params: Any, memory: Any, at_once: int | None) -> Figures:
    """Episodes, as many at once as there is room for, so that one program serves all parts."""
    seeds, count = (act.seeds if isinstance(act, _Actors) else 1), keys.shape[0]
    width = min(at_once or max(room(env) // seeds, 1), count)
    parts = []
    for start in range(0, count, width):
        rows = np.minimum(np.arange(start, start + width), count - 1)  # the last part is filled up
        sums = _walk(env, act, seeds, keys[rows], params, memory)
        parts.append(jax.tree.map(lambda a, n=count - start: np.asarray(a)[:, :n], sums))
    return jax.tree.map(lambda *a: np.concatenate(a, axis=1), *parts)


@functools.partial(jax.jit, static_argnames=("env", "act", "seeds"))
def _walk(env: Environment, act: Any, seeds: int, keys: jax.Array, params: Any, memory: Any) -> dict[str, jax.Array]:
    """Sums of the episodes of these keys, each played by every seed: (seeds, keys, ...)."""
    keys = jnp.tile(keys, seeds)
    obs, state = jax.vmap(env.reset, in_axes=(0, None))(keys, params)
    if isinstance(act, _Plain):
        memory = jax.tree.map(lambda a: jnp.broadcast_to(jnp.asarray(a)[None], (keys.shape[0], *jnp.shape(a))), memory)

    def one(move, state, action):
        state, reward, cost, terminated, truncated, info = env.move(move, state, action, params)
        obs, solved = info.pop("final_observation"), info.pop("solved")
        figures = {name: jnp.where(solved, value, 0.0) for name, value in info.items()}
        own = {"return": reward, "cost": cost, "violated": cost > VIOLATED, "steps": True, "terminated": terminated}
        return obs, state, {**figures, **own}, terminated | truncated

    def body(carry, t):
        obs, state, memory, alive, sums = carry
        choose, move = jax.vmap(functools.partial(step_keys, t=t), out_axes=1)(keys)
        action, memory = act(choose, obs, state, memory)
        action = jnp.round(action).astype(jnp.int32) if all(env.action_counts) else jnp.asarray(action, float)
        new, after, out, done = jax.vmap(one)(move, state, action)
        sums = jax.tree.map(lambda s, x: s + pick(alive, jnp.asarray(x, s.dtype), jnp.zeros_like(s)), sums, out)
        # What is over stays as it was: a state after an end may not be one that power flows exist for.
        obs, state = pick(alive & ~done, (new, after), (obs, state))
        return (obs, state, memory, alive & ~done, sums), None

    action = jax.ShapeDtypeStruct((keys.shape[0], env.action_size), jnp.int32 if all(env.action_counts) else float)
    shapes = jax.eval_shape(jax.vmap(one), keys, state, action)[2]
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, jnp.result_type(s.dtype, float)), shapes)
    start = (obs, state, memory, jnp.ones(keys.shape[0], bool), zeros)
    (*_, sums), _ = jax.lax.scan(body, start, jnp.arange(env.horizon))
    return jax.tree.map(lambda a: a.reshape(seeds, -1, *a.shape[1:]), sums)
