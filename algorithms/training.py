"""Training: many updates in one compiled scan, several seeds and configs at once.

Update k of seed s draws its rows, and whatever else is random, from `fold_in(fold_in(key, s), k)`: a run that is taken
up again at any chunk goes on with the same numbers. What an agent computes anew at the start of each chunk (`refresh`)
depends on where chunks begin.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from algorithms.batches import Batch, sample
from algorithms.learning import Agent, Metrics
from algorithms.spaces import Space

Seen = Callable[[int, Any, Metrics], None]


class Diverged(ValueError):
    """A loss is not finite."""


def seed_keys(key: jax.Array, seeds: int) -> jax.Array:
    """A key for each seed, (seeds,); the first ones do not depend on how many there are."""
    return jax.vmap(lambda s: jax.random.fold_in(key, s))(jnp.arange(seeds))


@functools.partial(jax.jit, static_argnames=("agent", "space"))
def begin(agent: Agent, space: Space, keys: jax.Array, config: Any) -> Any:
    """States of all seeds, leading axis (seeds,), before the first update; `config` with or without that axis."""
    return jax.vmap(lambda key, c: agent.init(key, c, space), in_axes=(0, _axes(config)))(keys, config)


@functools.partial(jax.jit, static_argnames=("agent", "space", "updates", "batch_size"), donate_argnames=("states",))
def chunk(
    agent: Agent, space: Space, keys: jax.Array, states: Any, data: Batch, config: Any, *, updates: int, batch_size: int
) -> tuple[Any, Metrics]:
    """So many updates of all seeds.

    Args:
      agent: the algorithm. Static.
      space: of the environment. Static.
      keys: (seeds,).
      states: of the agents, leading axis (seeds,); given away.
      data: the whole data set, the same for all seeds.
      config: of the agent; leaves () the same for all seeds, or (seeds,).
      updates: how many. Static.
      batch_size: rows of each. Static.

    Returns:
      The states, and the metrics' means over the updates, (seeds,).
    """

    def one(key, state, config):
        mine = data if agent.refresh is None else agent.refresh(state, data, config, space)

        def body(state, _):
            draw, own = jax.random.split(jax.random.fold_in(key, state.step))
            return agent.update(own, state, sample(draw, mine, batch_size), config, space)

        state, metrics = jax.lax.scan(body, state, None, length=updates)
        return state, jax.tree.map(lambda m: jnp.mean(m, axis=0), metrics)

    return jax.vmap(one, in_axes=(0, 0, _axes(config)))(keys, states, config)


def train(
    agent: Agent,
    config: Any,
    space: Space,
    data: Batch,
    key: jax.Array,
    *,
    updates: int,
    seeds: int = 1,
    batch_size: int = 256,
    every: int = 1000,
    states: Any = None,
    seen: Seen | None = None,
) -> Any:
    """Trains seeds side by side.

    Args:
      agent: the algorithm.
      config: of the agent; leaves () the same for all seeds, or (seeds,).
      space: of the environment.
      data: the whole data set.
      key: of everything random.
      updates: in all, counted from a new agent.
      seeds: how many agents.
      batch_size: rows of each update.
      every: updates of one chunk, which is one call of a compiled program.
      states: to go on with, as `seen` got them; None begins anew.
      seen: called after each chunk with the updates made, the states and the metrics' means (seeds,).

    Returns:
      The states, leading axis (seeds,).

    Raises:
      ValueError: numbers that make no sense; `Diverged`, a loss that is not finite.

    Guarantees:
      The same arguments give the same bits on the same machine and versions, in one go or taken up after any chunk.
      So does a run taken up with more updates, unless the agent has `refresh` and its last chunk was shorter than
      `every`: then the next chunk begins where none would have begun in one go.
    """
    if min(updates, seeds, batch_size, every) < 1:
        raise ValueError(f"{updates} updates of {seeds} seeds by {batch_size} rows: take at least one of each")
    keys = seed_keys(key, seeds)
    config = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), config)
    start, walk = jax.vmap(functools.partial(jax.random.split, num=2), out_axes=1)(keys)
    states = begin(agent, space, start, config) if states is None else states
    done = int(states.step[0])
    while done < updates:
        now = min(every - done % every, updates - done)
        states, metrics = chunk(agent, space, walk, states, data, config, updates=now, batch_size=batch_size)
        done += now
        bad = [name for name, value in metrics.items() if not bool(jnp.all(jnp.isfinite(value)))]
        if bad:
            raise Diverged(
                f"{agent.name}: {', '.join(bad)} is not finite after {done} updates: lower the rates, or scale rewards"
            )
        if seen is not None:
            seen(done, states, metrics)
    return states


def _axes(config: Any) -> Any:
    return jax.tree.map(lambda x: 0 if jnp.ndim(x) else None, config)
