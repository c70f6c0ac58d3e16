"""ReBRAC: TD3 with penalties of leaving the data's actions for the actor and for the critics, each of its own weight.

D. Tarasov, V. Kurenkov, A. Nikulin and S. Kolesnikov, "Revisiting the minimalist approach to offline reinforcement
learning", NeurIPS 2023. With slow networks Q' and pi', m = 1 - terminated, and the data's next action a'_D:

    a'   = clip(pi'(s') + clip(noise, -c, c), -1, 1),   noise ~ N(0, sigma)
    L_Q  = E sum_i (Q_i(s, a) - r - discount m (min_i Q_i'(s', a') - beta_Q |a' - a'_D|^2))^2
    L_pi = E beta_pi |pi(s) - a|^2 - min_i Q_i(s, pi(s)) / E |min_i Q_i(s, pi(s))|

The squares are sums over an action's entries. Where an episode's log ends, no next action is known and the critics'
penalty is left out. The critics have LayerNorm, the actor has none. The actor and the slow networks move in every
second update.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from algorithms.batches import Batch
from algorithms.learning import Agent, Metrics, at_least_one, minimise, numbers_only, same_shape, temporal_loss
from algorithms.networks import Design
from algorithms.spaces import Space
from algorithms.td3_bc import State, begin, falling, move_actor, noisy_action, squares


@flax.struct.dataclass
class Config:
    """Numbers of ReBRAC; the defaults are those that the paper found for hopper-medium, with batches of 1024 rows.

    Attributes:
      discount: per step.
      actor_penalty: beta_pi.
      critic_penalty: beta_Q.
      noise: sigma of the next actions.
      noise_clip: c.
      polyak: of the slow networks.
      rate: Adam's for the critics; take about 3e-4 with batches of 256 rows.
      actor_rate: Adam's for the actor; likewise.
      steps: updates over which both rates fall to zero along half a cosine; 0 (the paper) leaves them as they are.
      delay: updates of the critics for one of the actor.
      hidden: widths of the networks' layers.
      norm: whether critics have LayerNorm.
      body: of the networks, see `algorithms.networks.Design`.
    """

    discount: float = 0.99
    actor_penalty: float = 0.01
    critic_penalty: float = 0.01
    noise: float = 0.2
    noise_clip: float = 0.5
    polyak: float = 0.005
    rate: float = 1e-3
    actor_rate: float = 1e-3
    steps: float = 0.0
    delay: int = flax.struct.field(pytree_node=False, default=2)
    hidden: tuple[int, ...] = flax.struct.field(pytree_node=False, default=(256, 256, 256))
    norm: bool = flax.struct.field(pytree_node=False, default=True)
    body: str = flax.struct.field(pytree_node=False, default="mlp")

    def design(self, space: Space) -> Design:
        """The networks.

        Raises:
          ValueError: an action's entry is a position, or a delay below 1.
        """
        numbers_only("rebrac", space)
        at_least_one(delay=self.delay)
        return Design(space, self.hidden, critic_norm=self.norm, body=self.body)


def next_value(slow_critic, action: jax.Array, batch: Batch, config: Config, design: Design) -> jax.Array:
    """min_i Q_i'(s', a') - beta_Q |a' - a'_D|^2 for actions a' (rows, action_size), (rows,)."""
    same_shape(action, batch.next_action)
    q = jnp.min(design.q(slow_critic, batch.next_observation, action), axis=0)
    penalty = batch.follows * jnp.sum((action - batch.next_action) ** 2, axis=-1)
    same_shape(q, penalty)
    return q - config.critic_penalty * penalty


def actor_loss(params, critic, batch: Batch, config: Config, design: Design) -> tuple[jax.Array, Metrics]:
    """L_pi."""
    q = jnp.min(design.q(critic, batch.observation, design.act(params, batch.observation).mode()), axis=0)
    square = jnp.mean(jnp.sum(squares(params, batch, design), axis=-1))
    size = jax.lax.stop_gradient(jnp.mean(jnp.abs(q)))
    loss = config.actor_penalty * square - jnp.mean(q) / size
    return loss, {"actor_loss": loss, "square": square, "q_actor": jnp.mean(q)}


def init(key: jax.Array, config: Config, space: Space) -> State:
    """New networks."""
    return begin(key, config.design(space))


def update(key: jax.Array, state: State, batch: Batch, config: Config, space: Space) -> tuple[State, Metrics]:
    """One step for the critics, and in its turn one for the actor and the slow networks."""
    design, config = config.design(space), falling(config, state.step)
    action = noisy_action(key, state.slow_actor, batch.next_observation, config.noise, config.noise_clip, design)
    after = next_value(state.slow_critic, action, batch, config, design)
    critic, of_critic = minimise(state.critic, config.rate, temporal_loss, after, batch, config.discount, design)
    state, of_actor = move_actor(state, critic, config, actor_loss, batch, config, design)
    return state, {**of_critic, **of_actor}


REBRAC = Agent("rebrac", Config, init, update, source="Tarasov, Kurenkov, Nikulin and Kolesnikov, 2023")
