"""Implicit Q-learning.

I. Kostrikov, A. Nair and S. Levine, "Offline reinforcement learning with implicit Q-learning", ICLR 2022.

With u = min_i Q_i'(s, a) - V(s), Q' the target critics and m = 1 - terminated:

    L_V  = E |tau - 1(u < 0)| u^2                                                 (eq. 5)
    L_Q  = E sum_i (Q_i(s, a) - r - discount m V(s'))^2                           (eq. 6)
    L_pi = - E min(exp(beta u), 100) log pi(a | s)                                (eq. 7)

No action but those of the data is ever asked about. In one update V goes first, and the others use the new one. The
actor may also be extracted by the critics' slope (S. Park et al., "Is value learning really the main bottleneck in
offline RL?", NeurIPS 2024, "DDPG+BC"), which leaves the data's actions as far as `alpha` lets it:

    L_pi = - E Q(s, pi(s)) / mean |Q| - alpha E log pi(a | s)

where numbers count as normal with width 1, so that alpha alone says how far.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from algorithms.batches import Batch
from algorithms.learning import (
    Agent,
    Learner,
    Metrics,
    cosine,
    imitation_loss,
    learner,
    minimise,
    same_shape,
    temporal_loss,
    track,
)
from algorithms.networks import Design
from algorithms.spaces import Space

MOST = 100.0  # weight of a single action
EXTRACTIONS = ("weights", "slope")


@flax.struct.dataclass
class Config:
    """Numbers of IQL; the defaults are those of the paper's locomotion tasks.

    Attributes:
      discount: per step.
      expectile: tau, 0.5 (the mean) to 1 (the best of the data).
      temperature: beta, the larger the greedier.
      alpha: of log pi in the slope's extraction.
      polyak: of the target critics.
      rate: Adam's for critics and values.
      actor_rate: Adam's at the start; it falls to zero over `steps` updates.
      steps: see there.
      hidden: widths of the networks' layers.
      norm: whether critics and values have LayerNorm.
      extraction: "weights" (eq. 7) or "slope".
      body: of the networks, see `algorithms.networks.Design`.
    """

    discount: float = 0.99
    expectile: float = 0.7
    temperature: float = 3.0
    alpha: float = 1.0
    polyak: float = 0.005
    rate: float = 3e-4
    actor_rate: float = 3e-4
    steps: float = 1e6
    hidden: tuple[int, ...] = flax.struct.field(pytree_node=False, default=(256, 256))
    norm: bool = flax.struct.field(pytree_node=False, default=False)
    extraction: str = flax.struct.field(pytree_node=False, default="weights")
    body: str = flax.struct.field(pytree_node=False, default="mlp")

    def design(self, space: Space) -> Design:
        """The networks.

        Raises:
          ValueError: an extraction or a body that there is not.
        """
        if self.extraction not in EXTRACTIONS:
            raise ValueError(f"extraction {self.extraction!r} is unknown: choose one of {', '.join(EXTRACTIONS)}")
        return Design(space, self.hidden, critic_norm=self.norm, body=self.body)


@flax.struct.dataclass
class State:
    """Networks; `target` are the parameters of the slow critics."""

    step: jax.Array
    actor: Learner
    critic: Learner
    value: Learner
    target: dict


def expectile_loss(u: jax.Array, expectile: jax.Array | float) -> jax.Array:
    """|tau - 1(u < 0)| u^2 (eq. 5)."""
    return jnp.where(u < 0, 1.0 - expectile, expectile) * u**2


def weights(advantage: jax.Array, temperature: jax.Array | float) -> jax.Array:
    """min(exp(beta u), 100) (eq. 7)."""
    return jnp.minimum(jnp.exp(temperature * advantage), MOST)


def value_loss(params, q: jax.Array, batch: Batch, config: Config, design: Design) -> tuple[jax.Array, Metrics]:
    """L_V for the target critics' smaller value q, (rows,)."""
    v = design.v(params, batch.observation)
    same_shape(v, q)
    loss = jnp.mean(expectile_loss(q - v, config.expectile))
    return loss, {"value_loss": loss, "v": jnp.mean(v)}


def slope_loss(params, critic, batch: Batch, config: Config, design: Design) -> tuple[jax.Array, Metrics]:
    """L_pi of the slope's extraction."""
    chosen = design.act(params, batch.observation)
    q = jnp.min(design.q(critic, batch.observation, chosen.soft_mode()), axis=0)
    wide = chosen.replace(log_std=jnp.zeros_like(chosen.log_std))  # type: ignore[attr-defined]
    log_prob = wide.log_prob(batch.action)
    same_shape(q, log_prob)
    size = jax.lax.stop_gradient(jnp.mean(jnp.abs(q)))
    loss = -jnp.mean(q) / size - config.alpha * jnp.mean(log_prob)
    return loss, {"actor_loss": loss, "log_prob": jnp.mean(log_prob), "q_actor": jnp.mean(q)}


def init(key: jax.Array, config: Config, space: Space) -> State:
    """New networks."""
    actor, critic, value = config.design(space).begin(key, "actor", "critic", "value")
    return State(jnp.zeros((), jnp.int32), learner(actor), learner(critic), learner(value), critic)


def update(key: jax.Array, state: State, batch: Batch, config: Config, space: Space) -> tuple[State, Metrics]:
    """One step for V, the actor, Q and the target, in this order."""
    del key
    design = config.design(space)
    features = space.features(batch.action)
    q = jnp.min(design.q(state.target, batch.observation, features), axis=0)
    value, of_value = minimise(state.value, config.rate, value_loss, q, batch, config, design)
    v, after = design.v(value.params, jnp.stack([batch.observation, batch.next_observation]))
    rate = cosine(config.actor_rate, state.step, config.steps)
    critic, of_critic = minimise(state.critic, config.rate, temporal_loss, after, batch, config.discount, design)
    if config.extraction == "slope":
        actor, of_actor = minimise(state.actor, rate, slope_loss, critic.params, batch, config, design)
    else:
        weight = weights(q - v, config.temperature)
        actor, of_actor = minimise(state.actor, rate, imitation_loss, weight, batch, design)
    target = track(state.target, critic.params, config.polyak)
    metrics = {**of_value, **of_critic, **of_actor, "advantage": jnp.mean(q - v)}
    return State(state.step + 1, actor, critic, value, target), metrics


IQL = Agent("iql", Config, init, update, source="Kostrikov, Nair and Levine, 2022")
