"""Offline agents as clients' work: some updates on rows of the client's own.

Any agent of the kind of `algorithms.learning.Agent` serves: its state has learners, of which those that are named are
shared, with their optimisers' moments and all else at home. Sharing the actor alone keeps critics, which know most of
a client's rewards, with it. A network whose weights all devices share has parameters of the same shapes on every
feeder, so that utilities with different grids can learn one policy (`Design.body` "device").

Clients that keep each trajectory private own `algorithms.private_training.Trajectories` in place of rows: what leaves
them carries its noise already, and the key of the round is that of their noise.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from algorithms.batches import Batch, rows
from algorithms.learning import Agent, Metrics
from algorithms.private import Private
from algorithms.private_training import Trajectories, draw, trajectories, update
from algorithms.spaces import Space
from federated.sampling import Poisson
from federated.work import Clients, Tree, Work, padded


def agent_work(
    agent: Agent,
    config: Any,
    space: Space,
    *,
    steps: int,
    batch_size: int = 256,
    shared: tuple[str, ...] = ("actor",),
) -> Work:
    """Updates of an agent as the work of a client; `dataclasses.replace` gives it a pull or a merit.

    Args:
      agent: the algorithm.
      config: its numbers, the same for all clients.
      space: of the client's environment.
      steps: updates of a round.
      batch_size: rows of each, drawn with replacement from the client's own.
      shared: the learners of the agent's state whose parameters are shared.

    Raises:
      ValueError: the agent has no such learner, or computes something over the whole data set between updates.
    """
    if agent.refresh is not None:
        raise ValueError(f"{agent.name} works over the whole data set between updates: take another agent")
    config = _floats(config)

    def step(key: jax.Array, state: Any, data: Batch, own: jax.Array) -> tuple[Any, Metrics]:
        pick, move = jax.random.split(key)
        index = jax.random.randint(pick, (batch_size,), 0, own)
        return agent.update(move, state, rows(data, index), config, space)

    return _sharing(step, agent, config, space, steps, shared)


def private_work(
    agent: Agent,
    config: Any,
    space: Space,
    *,
    steps: int,
    private: Private,
    sampler: Poisson,
    shared: tuple[str, ...] = ("actor",),
) -> Work:
    """Updates that keep each of a client's trajectories private, see `algorithms.private_training.update`.

    Args:
      agent: the algorithm.
      config: its numbers.
      space: of the client's environment.
      steps: updates of a round.
      private: how trajectories are protected.
      sampler: how those of an update are drawn.
      shared: learners that are shared.

    Raises:
      ValueError: the agent has no such learner.
    """
    config = _floats(config)

    def step(key: jax.Array, state: Any, data: Trajectories, own: jax.Array) -> tuple[Any, Metrics]:
        del own  # `present` says it
        pick, noise = jax.random.split(key)
        drawn = draw(pick, data, sampler.rate, sampler.most)
        return update(noise, state, drawn, agent=agent, config=config, space=space, private=private)

    return _sharing(step, agent, config, space, steps, shared)


def _sharing(step: Any, agent: Agent, config: Any, space: Space, steps: int, shared: tuple[str, ...]) -> Work:
    """The work of which these learners are shared."""
    shapes = jax.eval_shape(lambda: agent.init(jax.random.key(0), config, space))
    for name in shared:
        if not hasattr(getattr(shapes, name, None), "params"):
            raise ValueError(f"{agent.name} has no learner {name!r} to share: name some of its state's")

    def part(state: Any) -> Tree:
        return {name: getattr(state, name).params for name in shared}

    def join(state: Any, params: Tree) -> Any:
        return state.replace(**{name: getattr(state, name).replace(params=params[name]) for name in shared})

    return Work(step, part, join, steps)


def _floats(config: Any) -> Any:
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), config)


def agents(
    agent: Agent, config: Any, space: Space, batches: list[Batch], key: jax.Array, *, private: bool = False
) -> Clients:
    """New clients that own these data, (clients,); all begin with the same networks.

    Args:
      agent: the algorithm.
      config: its numbers.
      space: of their environment.
      batches: a client's transitions each; sizes may differ.
      key: of the networks' first weights.
      private: whether their data are trajectories, for `private_work`.
    """
    data, own = padded([trajectories(one) for one in batches] if private else batches)
    state = agent.init(key, _floats(config), space)
    state = jax.tree.map(lambda a: jnp.broadcast_to(a, (len(batches), *a.shape)), state)
    return Clients(data, own, state)
