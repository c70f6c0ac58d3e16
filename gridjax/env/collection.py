"""`collect`: data sets from behaviours, whole episodes side by side.

Episode k runs with `jax.random.key(seed[k])`, half of which begins it and half of which is split over its steps; in
each step half of that is the policy's and half the environment's.
"""

from __future__ import annotations

import functools
import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gridjax.env.behaviours import Behaviour
from gridjax.env.datasets import Dataset, assemble
from gridjax.env.environment import Environment, Policy, Transitions
from gridjax.env.policies import Classical, Constant, Stochastic


def collect(
    env: Environment,
    params: Any,
    behaviours: Sequence[Behaviour],
    key: jax.Array,
    episodes: int,
    *,
    made_by: Mapping[str, Any] | None = None,
    at_once: int = 256,
    progress: bool = False,
) -> Dataset:
    """Whole episodes of behaviours.

    Args:
      env: the environment.
      params: its parameters, of which the data set keeps no copy.
      behaviours: who acts. Each gets its share of the episodes, rounded so that they add up; their order is drawn.
      key: of everything random.
      episodes: how many.
      made_by: the arguments of `gridjax.env.tasks.make` that the environment came from, with "name"; for the header.
      at_once: episodes that run side by side.
      progress: whether to show a bar on a terminal.

    Returns:
      The data set. An episode that ends early, by a failed power flow for instance, is as long as it was.

    Raises:
      ValueError: no episodes, no behaviours, shares that make no sense, or a `made_by` that is not JSON.

    Guarantees:
      The same arguments give the same arrays on the same machine and versions. Episode k is
      `play(env, policy, jax.random.key(seed[k])[None], params, memory)`, whatever runs beside it (to rounding).
    """
    counts = _apportion([b.share for b in behaviours], episodes)
    names = [b.name for b in behaviours]
    if len(set(names)) != len(names) or at_once < 1:
        raise ValueError(f"behaviours {', '.join(names)}: give each its own name, and at least one episode at once")
    for_seeds, for_order = jax.random.split(key)
    seeds = np.asarray(jax.random.bits(for_seeds, (episodes,), jnp.uint32))
    order = np.asarray(jax.random.permutation(for_order, episodes))
    who = np.repeat(np.arange(len(behaviours)), counts)[order]
    header = _header(env, behaviours, key, made_by)
    return assemble(_run(env, params, behaviours, seeds, who, at_once, progress), who, seeds, header)


def _header(
    env: Environment, behaviours: Sequence[Behaviour], key: jax.Array, made_by: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What a data set says of itself; refused before anything runs if it could not be saved."""
    out = {
        "environment": type(env.base).__name__,
        "made_by": dict(made_by or {}),
        "key": np.asarray(jax.random.key_data(key)).tolist(),
        "behaviours": [b.name for b in behaviours],
        "shares": [float(b.share) for b in behaviours],
        "observation_names": list(env.observation_names),
        "action_names": list(env.action_names),
        "action_counts": list(env.action_counts),
        "cost_names": list(env.cost_names),
        "horizon": env.horizon,
        "failure_penalty": env.failure_penalty,
        "versions": _versions(),
    }
    try:
        json.dumps(out, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"made_by {out['made_by']}: take Python's own numbers, texts and lists ({error})") from error
    return out


@functools.partial(jax.jit, static_argnames=("env", "policy"))
def play(
    env: Environment, policy: Policy, keys: jax.Array, params: Any, memory: Any = None
) -> tuple[Transitions, jax.Array]:
    """Episodes of one policy, each from its own key.

    Args:
      env: the environment. Static.
      policy: likewise.
      keys: (episodes,).
      params: of the environment.
      memory: the policy's at the start of each.

    Returns:
      Transitions with leading axes (episodes, horizon), those after an early end without a meaning, and the actions'
      log probabilities (episodes, horizon): NaN where the policy does not know them.
    """
    certain = isinstance(policy, Constant | Classical) and all(env.action_counts)

    def body(carry, key):
        obs, state, memory = carry
        choose, move = jax.random.split(key)
        if isinstance(policy, Stochastic):
            action, log_probability, memory = policy.draw(choose, obs, state, memory)
        else:
            action, memory = policy(choose, obs, state, memory)
            log_probability = jnp.asarray(0.0 if certain else jnp.nan)
        # One type for all behaviours of an environment: positions are whole numbers, all else is floating.
        action = jnp.round(action).astype(jnp.int32) if all(env.action_counts) else jnp.asarray(action, float)
        state, reward, cost, terminated, truncated, info = env.move(move, state, action, params)
        after = info.pop("final_observation")
        seen = Transitions(obs, action, reward, cost, after, terminated, truncated, info)
        return (after, state, memory), (seen, log_probability)

    def episode(key):
        start, walk = jax.random.split(key)
        obs, state = env.reset(start, params)
        start_memory = jax.tree.map(jnp.asarray, memory)
        return jax.lax.scan(body, (obs, state, start_memory), jax.random.split(walk, env.horizon))[1]

    return jax.vmap(episode)(keys)


def _run(
    env: Environment, params: Any, behaviours: Sequence[Behaviour], seeds: np.ndarray, who: np.ndarray, at_once: int,
    progress: bool,
) -> list[Any]:  # fmt: skip
    """Transitions and log probabilities of each episode."""
    from rich.console import Console
    from rich.progress import Progress

    parts: list[Any] = [None] * len(who)
    with Progress(console=Console(stderr=True), disable=not progress, transient=True) as bar:
        for number, behaviour in enumerate(behaviours):
            mine = np.flatnonzero(who == number)
            task = bar.add_task(behaviour.name, total=len(mine))
            width = max(min(at_once, len(mine)), 1)
            for start in range(0, len(mine), width):
                now = mine[start : start + width]
                # The last ones are filled up to the size that is compiled already.
                keys = jax.vmap(jax.random.key)(jnp.asarray(np.resize(seeds[now], width)))
                out = jax.tree.map(_host, play(env, behaviour.policy, keys, params, behaviour.memory))
                for k, episode in enumerate(now):
                    parts[episode] = _until_the_end(jax.tree.map(lambda a, k=k: a[k], out))
                bar.advance(task, len(now))
    return parts


def _host(a: jax.Array) -> np.ndarray:
    out = np.asarray(a)
    kinds = {"f": np.float32, "i": np.int32, "u": np.int32}
    return out.astype(kinds.get(out.dtype.kind, out.dtype))


def _until_the_end(one: Any) -> Any:
    """The transitions up to the first that ends an episode, and what goes with them."""
    seen = one[0]
    ends = np.flatnonzero(seen.terminated | seen.truncated)
    return jax.tree.map(lambda a: a[: ends[0] + 1], one) if len(ends) else one


def _apportion(shares: Sequence[float], total: int) -> np.ndarray:
    """Whole numbers in proportion to the shares that add up to the total (largest remainders, A. Hamilton, 1792)."""
    part = np.asarray(shares, float)
    if total < 1 or not len(part) or not np.all(np.isfinite(part)) or np.any(part < 0) or part.sum() <= 0:
        raise ValueError(
            f"{total} episodes of behaviours with shares {list(shares)}: take at least one of each, above 0"
        )
    exact = total * part / part.sum()
    out = np.floor(exact).astype(int)
    out[np.argsort(out - exact, kind="stable")[: total - out.sum()]] += 1
    return out


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in ("gridjax", "jax", "numpy")}}
