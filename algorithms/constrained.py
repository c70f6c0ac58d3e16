"""Implicit Q-learning under a limit on the cost, with a multiplier that a PID controller sets.

IQL as in `algorithms.iql`, with a second critic and value for the cost c, and the multiplier of A. Stooke, J. Achiam
and P. Abbeel, "Responsive safety in reinforcement learning by PID Lagrangian methods", ICML 2020 (algorithm 2). With
slow critics Q' of the reward and C' of the cost, m = 1 - terminated and the multiplier lambda:

    A    = min_i Q_i'(s, a) - V(s) - lambda (max_i C_i'(s, a) - K(s)),   w = min(exp(beta A), 100)
    L_V, L_Q  as in IQL, on the reward alone
    L_K  = E w (max_i C_i'(s, a) - K(s))^2
    L_C  = E sum_i (C_i(s, a) - c - discount m K(s'))^2
    L_pi = - E w log pi(a | s)

The same weights clone the policy and average the cost: the K that minimises L_K is the mean of C' over the data's
actions in the proportions in which the policy takes them. So K is the discounted cost of the policy that the actor
learns, known without a question about actions that are not in the data (an expectile would be the cost of the data's
cheapest or dearest actions).

What is held to the limit is J = (1 - discount) E K(s) over the states of the data: the policy's mean cost per step, the
steps weighted by the discount, from states as the data have them, not from first states alone. J is the batches'
exponential mean, from 0. With e = J - limit:

    I <- clip(I + k_i e, 0, most),   lambda = clip(k_p max(e, 0) + I + k_d max(e - e', 0), 0, most)

and e' that of the update before. That V is the value without the limit is a known shortcut: the weights compare actions
as if all later steps were free to cost.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from algorithms.batches import Batch
from algorithms.iql import value_loss, weights
from algorithms.learning import (
    Agent,
    Learner,
    Metrics,
    cosine,
    imitation_loss,
    learner,
    minimise,
    released,
    same_shape,
    temporal_loss,
    track,
)
from algorithms.networks import Design
from algorithms.spaces import Space


@flax.struct.dataclass
class Config:
    """Numbers of the constrained agent.

    Attributes:
      limit: of the mean cost per step.
      proportional: k_p, multiplier per unit of cost.
      integral: k_i, likewise, each update.
      derivative: k_d, likewise.
      most: of the multiplier.
      smoothing: share of the newest batch in the mean cost.
      discount: per step.
      expectile: tau of the reward's value.
      temperature: beta, the larger the greedier.
      polyak: of the slow critics.
      rate: Adam's for critics and values.
      actor_rate: Adam's at the start; it falls to zero over `steps` updates.
      steps: see there.
      costs: weight of each entry of the cost in c; empty is 1 for all.
      hidden: widths of the networks' layers.
      norm: whether critics and values have LayerNorm.
      body: of the networks, see `algorithms.networks.Design`.
    """

    limit: float = 0.0
    proportional: float = 1.0
    integral: float = 0.01
    derivative: float = 1.0
    most: float = 100.0
    smoothing: float = 0.01
    discount: float = 0.99
    expectile: float = 0.7
    temperature: float = 3.0
    polyak: float = 0.005
    rate: float = 3e-4
    actor_rate: float = 3e-4
    steps: float = 1e6
    costs: tuple[float, ...] = flax.struct.field(pytree_node=False, default=())
    hidden: tuple[int, ...] = flax.struct.field(pytree_node=False, default=(256, 256))
    norm: bool = flax.struct.field(pytree_node=False, default=False)
    body: str = flax.struct.field(pytree_node=False, default="mlp")

    def design(self, space: Space) -> Design:
        """The networks."""
        return Design(space, self.hidden, critic_norm=self.norm, body=self.body)


@flax.struct.dataclass
class Control:
    """The PID controller: the multiplier (), J (), e' () and I ()."""

    multiplier: jax.Array
    cost: jax.Array
    error: jax.Array
    integral: jax.Array


@flax.struct.dataclass
class State:
    """Networks of the reward and of the cost; `slow` and `slow_cost` are parameters of critics."""

    step: jax.Array
    actor: Learner
    critic: Learner
    value: Learner
    slow: dict
    cost_critic: Learner
    cost_value: Learner
    slow_cost: dict
    control: Control


def of_each(costs: tuple[float, ...], space: Space) -> jax.Array:
    """The weight of each entry of the cost, (constraints,).

    Raises:
      ValueError: not as many weights as the cost has entries.
    """
    out = costs or (1.0,) * space.constraints
    if len(out) != space.constraints:
        raise ValueError(f"{len(out)} weights for {space.constraints} costs: give one for each, or none")
    return jnp.asarray(out, jnp.float32)


def priced(batch: Batch, costs: tuple[float, ...], space: Space) -> Batch:
    """The batch with the cost c in place of the reward."""
    return batch.replace(reward=batch.cost @ of_each(costs, space))  # type: ignore[attr-defined]


def cost_value_loss(params, c: jax.Array, weight: jax.Array, batch: Batch, design: Design) -> tuple[jax.Array, Metrics]:
    """L_K for the slow critics' larger cost c (rows,) and w (rows,)."""
    k = design.v(params, batch.observation)
    same_shape(k, c, weight)
    loss = jnp.mean(weight * (c - k) ** 2)
    return loss, {"cost_value_loss": loss, "k": jnp.mean(k)}


def controlled(control: Control, cost: jax.Array, config: Config) -> Control:
    """The controller after a batch's estimate of the mean cost per step ()."""
    same_shape(control.cost, cost)
    smooth = control.cost + config.smoothing * (cost - control.cost)
    error = smooth - config.limit
    integral = jnp.clip(control.integral + config.integral * error, 0.0, config.most)
    rise = jnp.maximum(error - control.error, 0.0)
    wanted = config.proportional * jnp.maximum(error, 0.0) + integral + config.derivative * rise
    return Control(jnp.clip(wanted, 0.0, config.most), smooth, error, integral)


def init(key: jax.Array, config: Config, space: Space) -> State:
    """New networks, and a multiplier of 0."""
    of_each(config.costs, space)  # refused here rather than in the first update
    names = ("actor", "critic", "value", "critic", "value")
    actor, critic, value, cost_critic, cost_value = config.design(space).begin(key, *names)
    zero = jnp.zeros((), jnp.float32)
    return State(
        jnp.zeros((), jnp.int32), learner(actor), learner(critic), learner(value), critic, learner(cost_critic),
        learner(cost_value), cost_critic, Control(zero, zero, zero, zero),
    )  # fmt: skip


def update(key: jax.Array, state: State, batch: Batch, config: Config, space: Space) -> tuple[State, Metrics]:
    """One step for V, K, the multiplier, the actor, Q, C and the slow critics, in this order."""
    del key
    design = config.design(space)
    features, both = space.features(batch.action), jnp.stack([batch.observation, batch.next_observation])
    q = jnp.min(design.q(state.slow, batch.observation, features), axis=0)
    c = jnp.max(design.q(state.slow_cost, batch.observation, features), axis=0)
    value, of_value = minimise(state.value, config.rate, value_loss, q, batch, config, design)
    v, v_after = design.v(value.params, both)
    k_before = design.v(state.cost_value.params, batch.observation)
    same_shape(q, v, c, k_before)
    weight = weights(q - v - state.control.multiplier * (c - k_before), config.temperature)

    cost_value, of_k = minimise(state.cost_value, config.rate, cost_value_loss, c, weight, batch, design)
    k, k_after = design.v(cost_value.params, both)
    cost_value, cost = released(cost_value, (1.0 - config.discount) * jnp.mean(k))
    control = controlled(state.control, cost, config)
    rate = cosine(config.actor_rate, state.step, config.steps)
    actor, of_actor = minimise(state.actor, rate, imitation_loss, weight, batch, design)

    critic, of_critic = minimise(
        state.critic, config.rate, temporal_loss, v_after, batch, config.discount, design
    )  # fmt: skip
    costly = priced(batch, config.costs, space)
    cost_critic, of_cost = minimise(
        state.cost_critic, config.rate, temporal_loss, k_after, costly, config.discount, design
    )
    slow = track(state.slow, critic.params, config.polyak)
    slow_cost = track(state.slow_cost, cost_critic.params, config.polyak)
    of_cost = {"cost_critic_loss": of_cost["critic_loss"], "c": of_cost["q"]}
    of_control = {"cost_per_step": control.cost, "multiplier": control.multiplier}
    metrics = {**of_value, **of_k, **of_actor, **of_critic, **of_cost, **of_control}
    return State(state.step + 1, actor, critic, value, slow, cost_critic, cost_value, slow_cost, control), metrics


CONSTRAINED = Agent(
    "constrained", Config, init, update, source="Kostrikov, Nair and Levine, 2022; Stooke, Achiam and Abbeel, 2020"
)
