"""Advantage-weighted regression.

X. B. Peng, A. Kumar, G. Zhang and S. Levine, "Advantage-weighted regression: simple and scalable off-policy
reinforcement learning", 2019, with the TD(lambda) returns of its algorithm 1. With m = 1 - terminated, and f = 1 where
the log goes on in the next row:

    G_t  = r_t + discount m_t (V(s_t+1) + lambda f_t (G_t+1 - V(s_t+1)))
    L_V  = E (G - V(s))^2
    L_pi = - E min(exp((G - V(s)) / temperature), 20) log pi(a | s)                      (eq. 2, clipped as in sec. 3.3)

The returns are those of the behaviour that made the data; they are computed anew for the whole data set at the start of
each chunk of updates (`refresh`), with the values of that moment. Where the time limit cut an episode off (m = 1,
f = 0), the value of its last observation stands for the rest.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from algorithms.batches import Batch
from algorithms.learning import Agent, Learner, Metrics, imitation_loss, learner, minimise, same_shape
from algorithms.networks import Design
from algorithms.spaces import Space

MOST = 20.0  # weight of a single action
ROWS = 8192  # observations whose values are computed at once


@flax.struct.dataclass
class Config:
    """Numbers of AWR.

    Attributes:
      discount: per step.
      trace: lambda, 0 (one step) to 1 (the whole episode).
      temperature: of the weights; the smaller the greedier.
      rate: Adam's for values.
      actor_rate: Adam's for the actor.
      hidden: widths of the networks' layers.
      norm: whether values have LayerNorm.
      body: of the networks, see `algorithms.networks.Design`.
    """

    discount: float = 0.99
    trace: float = 0.95
    temperature: float = 1.0
    rate: float = 3e-4
    actor_rate: float = 3e-4
    hidden: tuple[int, ...] = flax.struct.field(pytree_node=False, default=(256, 256))
    norm: bool = flax.struct.field(pytree_node=False, default=False)
    body: str = flax.struct.field(pytree_node=False, default="mlp")

    def design(self, space: Space) -> Design:
        """The networks."""
        return Design(space, self.hidden, critic_norm=self.norm, body=self.body)


@flax.struct.dataclass
class State:
    """Networks."""

    step: jax.Array
    actor: Learner
    value: Learner


def lambda_returns(after: jax.Array, data: Batch, config: Config) -> jax.Array:
    """G (rows,) of a data set in the order of its episodes, for the next observations' values (rows,)."""
    same_shape(after, data.reward)

    def back(later, row):
        reward, mask, follows, value = row
        mine = reward + config.discount * mask * (value + config.trace * follows * (later - value))
        return mine, mine

    columns = (data.reward, data.mask, data.follows, after)
    return jax.lax.scan(back, jnp.zeros_like(after[0]), columns, reverse=True, unroll=8)[1]


def weights(advantage: jax.Array, temperature: jax.Array | float) -> jax.Array:
    """min(exp(A / temperature), 20)."""
    return jnp.minimum(jnp.exp(advantage / temperature), MOST)


def value_loss(params, batch: Batch, design: Design) -> tuple[jax.Array, Metrics]:
    """L_V."""
    v = design.v(params, batch.observation)
    same_shape(v, batch.value)
    loss = jnp.mean((batch.value - v) ** 2)
    return loss, {"value_loss": loss, "v": jnp.mean(v)}


def init(key: jax.Array, config: Config, space: Space) -> State:
    """New networks."""
    actor, value = config.design(space).begin(key, "actor", "value")
    return State(jnp.zeros((), jnp.int32), learner(actor), learner(value))


def refresh(state: State, data: Batch, config: Config, space: Space) -> Batch:
    """The data set with its returns in `value`."""
    design = config.design(space)
    after = jax.lax.map(lambda s: design.v(state.value.params, s), data.next_observation, batch_size=ROWS)
    return data.replace(value=lambda_returns(after, data, config))  # type: ignore[attr-defined]


def update(key: jax.Array, state: State, batch: Batch, config: Config, space: Space) -> tuple[State, Metrics]:
    """One step for V, and one for the actor with the new V."""
    del key
    design = config.design(space)
    value, of_value = minimise(state.value, config.rate, value_loss, batch, design)
    advantage = batch.value - design.v(value.params, batch.observation)
    weight = weights(advantage, config.temperature)
    actor, of_actor = minimise(state.actor, config.actor_rate, imitation_loss, weight, batch, design)
    return State(state.step + 1, actor, value), {**of_value, **of_actor, "advantage": jnp.mean(advantage)}


AWR = Agent("awr", Config, init, update, refresh, source="Peng, Kumar, Zhang and Levine, 2019")
