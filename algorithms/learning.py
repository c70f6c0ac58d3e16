"""What all agents share: parameters with their optimiser, target networks, rates, and the shape of an agent.

An agent is a module with a config and two pure functions; `Agent` only holds them together:

    state = init(key, config, space)
    state, metrics = update(key, state, batch, config, space)

A config is a pytree whose floating fields are leaves, so that a `vmap` can run over them; its other fields are static.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from algorithms.batches import Batch
from algorithms.networks import Design
from algorithms.private import Release, noisy_mean
from algorithms.spaces import Space

Metrics = dict[str, jax.Array]


class Agent(NamedTuple):
    """An algorithm.

    Attributes:
      name: as the command line has it.
      config: a class; without arguments the published defaults. It has `design(space)`.
      init: `(key, config, space) -> state`; every state has `actor`, a `Learner` of `Design.act`, and `step`.
      update: `(key, state, batch, config, space) -> (state, metrics)`, one step of the optimisers.
      refresh: `(state, data, config, space) -> data`, run over the whole data set between chunks of updates; or None.
      source: what is to be cited.
    """

    name: str
    config: Callable[..., Any]
    init: Callable[[jax.Array, Any, Space], Any]
    update: Callable[[jax.Array, Any, Batch, Any, Space], tuple[Any, Metrics]]
    refresh: Callable[[Any, Batch, Any, Space], Batch] | None = None
    source: str = ""


@flax.struct.dataclass
class Learner:
    """Parameters and the moments of Adam (D. P. Kingma and J. Ba, 2015).

    Attributes:
      params: what is learned.
      moments: of Adam.
      release: how the data may be told of while a private update runs (`algorithms.private_training`); else None.
    """

    params: Any
    moments: Any
    release: Release | None = None


def learner(params: Any) -> Learner:
    """Parameters that have not learned anything yet."""
    return Learner(params, _adam(0.0).init(params))


def descend(of: Learner, gradient: Any, rate: jax.Array | float) -> Learner:
    """One step of Adam."""
    change, moments = _adam(rate).update(gradient, of.moments)
    return Learner(optax.apply_updates(of.params, change), moments, of.release)


def released(of: Learner, tree: Any) -> tuple[Learner, Any]:
    """Numbers of the batch as they may be kept; in a private update those of all trajectories, clipped and noisy."""
    if of.release is None:
        return of, tree
    release, tree = noisy_mean(of.release, tree)
    return Learner(of.params, of.moments, release), tree


def minimise(of: Learner, rate: jax.Array | float, loss: Callable[..., Any], *args: Any) -> tuple[Learner, Metrics]:
    """One step of Adam on `loss(params, *args) -> (loss, metrics)`; returns the metrics."""
    gradient, metrics = jax.grad(loss, has_aux=True)(of.params, *args)
    of, gradient = released(of, gradient)
    return descend(of, gradient, rate), metrics


def imitation_loss(params: Any, weight: jax.Array, batch: Batch, design: Design) -> tuple[jax.Array, Metrics]:
    """- E w log pi(a | s) for weights w (rows,) of the data's actions."""
    log_prob = design.act(params, batch.observation).log_prob(batch.action)
    same_shape(log_prob, weight)
    loss = -jnp.mean(weight * log_prob)
    return loss, {"actor_loss": loss, "log_prob": jnp.mean(log_prob), "weight": jnp.mean(weight)}


def temporal_loss(
    params: Any, after: jax.Array, batch: Batch, discount: jax.Array | float, design: Design
) -> tuple[jax.Array, Metrics]:
    """E sum_i (Q_i(s, a) - r - discount m V(s'))^2 for the next observations' values V(s'), (rows,)."""
    q = design.q(params, batch.observation, design.space.features(batch.action))
    goal = batch.reward + discount * batch.mask * after
    same_shape(q[0], goal)
    loss = jnp.mean(jnp.sum((q - goal[None]) ** 2, axis=0))
    return loss, {"critic_loss": loss, "q": jnp.mean(q)}


def either(now: jax.Array, new: Any, old: Any) -> Any:
    """`new` where `now`, else `old`: for what is updated less often, under any vmap."""
    return jax.tree.map(lambda n, o: jnp.where(now, n, o), new, old)


def numbers_only(name: str, space: Space) -> None:
    """Refuses actions with positions.

    Raises:
      ValueError: the space has some.
    """
    if space.discrete.any():
        entry = int(np.flatnonzero(space.discrete)[0])
        raise ValueError(
            f"{name} takes actions of numbers only, and entry {entry} has {space.counts[entry]} positions: make the "
            'environment with actions="continuous", or take iql, cql, awr or bc'
        )


def at_least_one(**numbers: int) -> None:
    """Refuses numbers below 1.

    Raises:
      ValueError: one is.
    """
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} {number}: take at least 1")


def track(target: Any, params: Any, tau: jax.Array | float) -> Any:
    """Target parameters, moved towards the others by Polyak averaging."""
    return jax.tree.map(lambda t, p: t + tau * (p - t), target, params)


def cosine(rate: jax.Array | float, step: jax.Array, steps: jax.Array | float) -> jax.Array:
    """A rate that falls to zero along half a cosine (I. Loshchilov and F. Hutter, 2017); with 0 steps it stays."""
    done = jnp.where(steps > 0, step / jnp.maximum(steps, 1.0), 0.0)
    return rate * 0.5 * (1.0 + jnp.cos(jnp.pi * jnp.minimum(done, 1.0)))


def same_shape(*arrays: jax.Array) -> None:
    """Refuses arrays of different shapes, so that no (n,) meets an (n, 1)."""
    shapes = {a.shape for a in arrays}
    if len(shapes) > 1:
        raise ValueError(f"arrays of shapes {sorted(shapes)} must not be combined")


def _adam(rate: jax.Array | float) -> optax.GradientTransformation:
    return optax.adam(rate)
