"""TD3+BC: a deterministic policy that climbs the critics' slope and stays near the data's actions.

S. Fujimoto and S. S. Gu, "A minimalist approach to offline reinforcement learning", NeurIPS 2021, over TD3
(S. Fujimoto, H. van Hoof and D. Meger, 2018). With slow networks Q' and pi' and m = 1 - terminated:

    a'   = clip(pi'(s') + clip(noise, -c, c), -1, 1),   noise ~ N(0, sigma)
    L_Q  = E sum_i (Q_i(s, a) - r - discount m min_i Q_i'(s', a'))^2
    L_pi = - lambda E Q_1(s, pi(s)) + mean (pi(s) - a)^2,   lambda = alpha / E |Q_1(s, pi(s))|     (eq. 3, 5)

The square is the mean over rows and entries of the action; lambda has no derivative. The actor and both slow networks
move in every second update. Where an anchor puts the actor's mean outside -1 to 1, the critics see it clipped and the
square sees it as it is, so that it is drawn back.
"""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from algorithms.batches import Batch
from algorithms.learning import (
    Agent,
    Learner,
    Metrics,
    at_least_one,
    cosine,
    either,
    learner,
    minimise,
    numbers_only,
    same_shape,
    temporal_loss,
    track,
)
from algorithms.networks import Design
from algorithms.spaces import Space


@flax.struct.dataclass
class Config:
    """Numbers of TD3+BC; the defaults are the paper's.

    Attributes:
      discount: per step.
      alpha: of the critics' slope against the square.
      noise: sigma of the next actions.
      noise_clip: c.
      polyak: of the slow networks.
      rate: Adam's for the critics.
      actor_rate: Adam's for the actor.
      steps: updates over which both rates fall to zero along half a cosine; 0 (the paper) leaves them as they are.
      delay: updates of the critics for one of the actor.
      hidden: widths of the networks' layers.
      norm: whether critics have LayerNorm.
      body: of the networks, see `algorithms.networks.Design`.
    """

    discount: float = 0.99
    alpha: float = 2.5
    noise: float = 0.2
    noise_clip: float = 0.5
    polyak: float = 0.005
    rate: float = 3e-4
    actor_rate: float = 3e-4
    steps: float = 0.0
    delay: int = flax.struct.field(pytree_node=False, default=2)
    hidden: tuple[int, ...] = flax.struct.field(pytree_node=False, default=(256, 256))
    norm: bool = flax.struct.field(pytree_node=False, default=False)
    body: str = flax.struct.field(pytree_node=False, default="mlp")

    def design(self, space: Space) -> Design:
        """The networks.

        Raises:
          ValueError: an action's entry is a position, or a delay below 1.
        """
        numbers_only("td3_bc", space)
        at_least_one(delay=self.delay)
        return Design(space, self.hidden, critic_norm=self.norm, body=self.body)


@flax.struct.dataclass
class State:
    """Networks; `slow_actor` and `slow_critic` are parameters."""

    step: jax.Array
    actor: Learner
    critic: Learner
    slow_actor: dict
    slow_critic: dict


def noisy_action(
    key: jax.Array, params, observation: jax.Array, noise: jax.Array | float, most: jax.Array | float, design: Design
) -> jax.Array:
    """The next actions a' at observations (rows, observation_size), (rows, action_size)."""
    action = design.act(params, observation).mode()
    spread = jnp.clip(noise * jax.random.normal(key, action.shape, action.dtype), -most, most)
    return jnp.clip(action + spread, -1.0, 1.0)


def squares(params, batch: Batch, design: Design) -> jax.Array:
    """(pi(s) - a)^2, (rows, action_size)."""
    mean = design.act(params, batch.observation).mean
    same_shape(mean, batch.action)
    return (mean - batch.action) ** 2


def actor_loss(params, critic, batch: Batch, config: Config, design: Design) -> tuple[jax.Array, Metrics]:
    """L_pi (eq. 3 with the lambda of eq. 5)."""
    q = design.q(critic, batch.observation, design.act(params, batch.observation).mode())[0]
    size = jax.lax.stop_gradient(jnp.mean(jnp.abs(q)))
    square = jnp.mean(squares(params, batch, design))
    loss = -config.alpha / size * jnp.mean(q) + square
    return loss, {"actor_loss": loss, "square": square, "q_actor": jnp.mean(q)}


def begin(key: jax.Array, design: Design) -> State:
    """New networks; the slow ones are copies."""
    actor, critic = design.begin(key, "actor", "critic")
    return State(jnp.zeros((), jnp.int32), learner(actor), learner(critic), actor, critic)


def move_actor(state: State, critic: Learner, config, loss, *args) -> tuple[State, Metrics]:
    """The state after the critics' step `critic`, with the actor's and the slow networks' where it is their turn."""
    now = state.step % config.delay == 0
    actor, metrics = minimise(state.actor, config.actor_rate, loss, critic.params, *args)
    actor = either(now, actor, state.actor)
    slow_actor = either(now, track(state.slow_actor, actor.params, config.polyak), state.slow_actor)
    slow_critic = either(now, track(state.slow_critic, critic.params, config.polyak), state.slow_critic)
    return State(state.step + 1, actor, critic, slow_actor, slow_critic), metrics


def falling(config: Any, step: jax.Array) -> Any:
    """The config of TD3+BC or ReBRAC with the rates of this update."""
    share = cosine(1.0, step, config.steps)
    return config.replace(rate=config.rate * share, actor_rate=config.actor_rate * share)


def init(key: jax.Array, config: Config, space: Space) -> State:
    """New networks."""
    return begin(key, config.design(space))


def update(key: jax.Array, state: State, batch: Batch, config: Config, space: Space) -> tuple[State, Metrics]:
    """One step for the critics, and in its turn one for the actor and the slow networks."""
    design, config = config.design(space), falling(config, state.step)
    after = batch.next_observation
    action = noisy_action(key, state.slow_actor, after, config.noise, config.noise_clip, design)
    value = jnp.min(design.q(state.slow_critic, after, action), axis=0)
    critic, of_critic = minimise(state.critic, config.rate, temporal_loss, value, batch, config.discount, design)
    state, of_actor = move_actor(state, critic, config, actor_loss, batch, config, design)
    return state, {**of_critic, **of_actor}


TD3_BC = Agent("td3_bc", Config, init, update, source="Fujimoto and Gu, 2021")
