"""Fitted Q evaluation: a critic of a given policy, trained on logs.

H. Le, C. Voloshin and Y. Yue, "Batch policy learning under constraints", ICML 2019, algorithm 3, with a slow target in
place of regressions one after another. With pi the evaluated policy, which never changes here,

    L_Q = E (Q(s, a, t) - r - discount m mean_{a' ~ pi(s')} Q'(s', a', t + 1))^2
    value of an episode's first observation:  mean_{a ~ pi} Q(s_0, a, 0)

The policy acts by its mode, or by `samples` draws. Finite: m is 0 in an episode's last row, be it terminated or ended
by the time limit, and the critic sees t, as what is left depends on it; with discount 1 the value is the expected sum
of rewards to the end, which the simulator counts. Otherwise m = 1 - terminated, the critic does not see t, and the
value is that of a task without a time limit, as the agents' own critics have it; take a discount below 1.

Rewards are divided by the spread of the logged returns, and values multiplied by it again. Values are those of the
logged episodes' first observations. Nothing tells from the logs alone by how much the critic is off.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from algorithms.batches import Batch, from_dataset, rows
from algorithms.learning import Learner, Metrics, cosine, learner, minimise, same_shape, track
from algorithms.networks import Design
from algorithms.off_policy import by_rows
from algorithms.spaces import Space
from gridjax.env.datasets import Dataset, returns


@flax.struct.dataclass
class Config:
    """Numbers of fitted Q evaluation.

    Attributes:
      discount: per step.
      polyak: of the target.
      rate: Adam's at the start; it falls to zero over all updates.
      hidden: widths of the critic's layers.
      batch_size: rows of each update.
      updates: how many.
      samples: draws of the evaluated policy; 0 is its mode.
      finite: see the module's text.
    """

    discount: float = 1.0
    polyak: float = 0.005
    rate: float = 1e-3
    hidden: tuple[int, ...] = flax.struct.field(pytree_node=False, default=(256, 256))
    batch_size: int = flax.struct.field(pytree_node=False, default=256)
    updates: int = flax.struct.field(pytree_node=False, default=20_000)
    samples: int = flax.struct.field(pytree_node=False, default=0)
    finite: bool = flax.struct.field(pytree_node=False, default=True)

    def design(self, space: Space) -> Design:
        """The critic's network; with a time limit its observations end with t over the longest episode."""
        if self.finite:
            space = dataclasses.replace(space, offset=(*space.offset, 0.0), scale=(*space.scale, 1.0))
        return Design(space, self.hidden, critic_norm=True, critics=1)


@flax.struct.dataclass
class Seen:
    """Logged rows, and the time of each: (rows,) t over the longest episode, and by how much it grows in a step ()."""

    batch: Batch
    time: jax.Array
    tick: jax.Array

    @classmethod
    def of(cls, data: Dataset, space: Space, scale: float = 1.0) -> Seen:
        """Rows of a data set, rewards divided by `scale`."""
        batch = from_dataset(data, space, reward_scale=1.0 / scale)
        longest = float(data.step.max() + 1)
        return cls(batch, jnp.asarray(data.step / longest, jnp.float32), jnp.asarray(1.0 / longest, jnp.float32))


def critic_loss(params: Any, goal: jax.Array, seen: Seen, config: Config, space: Space) -> tuple[jax.Array, Metrics]:
    """L_Q for goals (rows,)."""
    q = _q(params, seen.batch.observation, seen.time, space.features(seen.batch.action), config, space)
    same_shape(q, goal)
    loss = jnp.mean((q - goal) ** 2)
    return loss, {"critic_loss": loss}


def value(key: jax.Array, critic: Any, policy: Any, seen: Seen, config: Config, space: Space, *, after: bool = False):
    """V of the observations, or of the next ones, (rows,).

    Args:
      key: of the draws.
      critic: parameters.
      policy: the evaluated one, `observation -> Distribution`.
      seen: rows.
      config: of the critic.
      space: of the environment.
      after: whether of the next observations.
    """
    observation = seen.batch.next_observation if after else seen.batch.observation
    time = seen.time + seen.tick if after else seen.time
    chosen = policy(observation)
    if not config.samples:
        return _q(critic, observation, time, space.features(chosen.mode()), config, space)
    keys = jax.random.split(key, config.samples)
    q = jax.vmap(lambda k: _q(critic, observation, time, space.features(chosen.sample(k)[0]), config, space))(keys)
    return jnp.mean(q, axis=0)


def fit(key: jax.Array, design: Any, params: Any, data: Dataset, space: Space, config: Config) -> tuple[Any, float]:
    """Critics of evaluated policies.

    Args:
      key: of everything random.
      design: of the policies' networks.
      params: of the actors, leading axis (seeds,).
      data: the logs.
      space: of the environment.
      config: of the critics.

    Returns:
      The critics' parameters, leading axis (seeds,), and the number that their values are to be multiplied by.

    Raises:
      ValueError: no time limit and no discount, or critics that diverge.
    """
    if not config.finite and not float(config.discount) < 1:
        raise ValueError("without a time limit the values are sums without an end: take a discount below 1")
    spread = float(np.std(returns(data)))
    scale = spread if spread > 0 else max(float(np.abs(returns(data)).mean()), 1.0)
    seeds = jax.tree.leaves(params)[0].shape[0]
    numbers = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), config)
    keys = jax.random.split(key, seeds)
    critics, loss = _fit(keys, params, Seen.of(data, space, scale), numbers, design=design, space=space)
    if not np.isfinite(np.asarray(loss)).all():
        raise ValueError("the critic of fitted Q evaluation diverges: lower its rate or its discount")
    return critics, scale


def values(
    key: jax.Array, critics: Any, scale: float, design: Any, params: Any, data: Dataset, space: Space, config: Config
) -> tuple[np.ndarray, np.ndarray]:
    """Q of the logged actions and V of the logged observations, (seeds, rows) each, in units of the rewards.

    V of the rows whose step is 0 is what the evaluated policy's episodes are worth.
    """
    seen = Seen.of(data, space)

    @jax.jit
    def some(part):
        batch, time = part
        mine = Seen(batch, time, seen.tick)

        def one(critic, params):
            q = _q(critic, mine.batch.observation, mine.time, space.features(mine.batch.action), config, space)
            return q, value(key, critic, lambda o: design.act(params, o), mine, config, space)

        return jnp.concatenate(jax.vmap(one)(critics, params))

    q, v = np.split(by_rows(some, (seen.batch, seen.time)) * scale, 2)
    return q, v


@functools.partial(jax.jit, static_argnames=("design", "space"))
def _fit(keys: jax.Array, params: Any, seen: Seen, config: Config, *, design: Any, space: Space):
    """All updates of all seeds in one scan; also the last loss."""
    mine = config.design(space)

    def one(key, params):
        start, walk = jax.random.split(key)
        (critic,) = mine.begin(start, "critic")

        def body(carry, step):
            critic, target = carry
            draw, own = jax.random.split(jax.random.fold_in(walk, step))
            index = jax.random.randint(draw, (config.batch_size,), 0, seen.time.shape[0])
            some = Seen(rows(seen.batch, index), seen.time[index], seen.tick)
            goal = _goal(own, target, lambda o: design.act(params, o), some, config, space)
            rate = cosine(config.rate, step, config.updates)
            critic, metrics = minimise(critic, rate, critic_loss, goal, some, config, space)
            return (critic, track(target, critic.params, config.polyak)), metrics["critic_loss"]

        first: tuple[Learner, Any] = (learner(critic), critic)
        (critic, _), loss = jax.lax.scan(body, first, jnp.arange(config.updates))
        return critic.params, loss[-1]

    return jax.vmap(one)(keys, params)


def _goal(key: jax.Array, target: Any, policy: Any, seen: Seen, config: Config, space: Space) -> jax.Array:
    goes_on = seen.batch.follows if config.finite else seen.batch.mask
    after = value(key, target, policy, seen, config, space, after=True)
    same_shape(after, goes_on)
    return seen.batch.reward + config.discount * goes_on * after


def _q(params: Any, observation: jax.Array, time: jax.Array, features: jax.Array, config: Config, space: Space):
    """(rows,)."""
    if config.finite:
        observation = jnp.concatenate([observation, time[:, None]], axis=-1)
    return config.design(space).q(params, observation, features)[0]
