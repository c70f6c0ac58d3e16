"""Conservative Q-learning, CQL(H), over soft actor-critic.

A. Kumar, A. Zhou, G. Tucker and S. Levine, "Conservative Q-learning for offline reinforcement learning", NeurIPS 2020,
eq. 4 and appendix F; T. Haarnoja et al., "Soft actor-critic algorithms and applications", 2018. With slow critics Q',
m = 1 - terminated, and a' ~ pi(s') without an entropy bonus:

    L_Q     = E sum_i (Q_i(s, a) - r - discount m min_i Q_i'(s', a'))^2 + c E sum_i (H_i(s) - Q_i(s, a) - gap)
    H_i(s)  = log integral exp Q_i(s, .)  ~  log mean_j exp(Q_i(s, a_j) - log mu_j(a_j))
    L_pi    = E alpha log pi(a~ | s) - min_i Q_i(s, a~),   a~ ~ pi(s)
    L_alpha = - log alpha E (log pi(a~ | s) + goal)

The a_j are as many uniform actions, samples of pi(s) and samples of pi(s'), all put into Q at s, and mu_j is the
density that each was drawn from: every third of the mean is an estimate without bias of the integral (of the sum, where
actions are positions). The data's own action is not among them. c is a constant and gap 0, or, in the Lagrange form, c
is that constant times a multiplier which rises while H - Q is above the gap (eq. 30):

    L_multiplier = - multiplier E mean_i (H_i(s) - Q_i(s, a) - gap)

Many programs leave out the division in the mean; their gaps are larger by log(3 n) for n samples of a kind.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from algorithms.batches import Batch
from algorithms.learning import (
    Agent,
    Learner,
    Metrics,
    at_least_one,
    learner,
    minimise,
    same_shape,
    temporal_loss,
    track,
)
from algorithms.networks import Design
from algorithms.spaces import Space

TOP = 1e6  # of the multiplier


@flax.struct.dataclass
class Config:
    """Numbers of CQL.

    Attributes:
      discount: per step.
      weight: c, or the constant in it.
      gap: of the Lagrange form.
      entropy: that the policy is to have for each entry that is a number.
      position_entropy: likewise for each position, as a share of the largest.
      polyak: of the slow critics.
      rate: Adam's for the critics.
      actor_rate: Adam's for the actor and log alpha.
      multiplier_rate: Adam's for the multiplier's logarithm.
      samples: actions of each kind.
      lagrange: whether c has a multiplier.
      hidden: widths of the networks' layers.
      norm: whether critics have LayerNorm.
      body: of the networks, see `algorithms.networks.Design`.
    """

    discount: float = 0.99
    weight: float = 5.0
    gap: float = 5.0
    entropy: float = -1.0
    position_entropy: float = 0.2
    polyak: float = 0.005
    rate: float = 3e-4
    actor_rate: float = 1e-4
    multiplier_rate: float = 3e-4
    samples: int = flax.struct.field(pytree_node=False, default=10)
    lagrange: bool = flax.struct.field(pytree_node=False, default=False)
    hidden: tuple[int, ...] = flax.struct.field(pytree_node=False, default=(256, 256))
    norm: bool = flax.struct.field(pytree_node=False, default=False)
    body: str = flax.struct.field(pytree_node=False, default="mlp")

    def design(self, space: Space) -> Design:
        """The networks.

        Raises:
          ValueError: no samples.
        """
        at_least_one(samples=self.samples)
        return Design(space, self.hidden, critic_norm=self.norm, body=self.body, squashed=True, free_std=True)


@flax.struct.dataclass
class State:
    """Networks, the logarithms of alpha and of the multiplier; `slow` are parameters of critics."""

    step: jax.Array
    actor: Learner
    critic: Learner
    slow: dict
    log_alpha: Learner
    log_multiplier: Learner


def uniform(key: jax.Array, space: Space, shape: tuple[int, ...]) -> tuple[jax.Array, float]:
    """Actions (*shape, action_size) that are all as likely, and the logarithm of their probability (density)."""
    whole, number = jax.random.split(key)
    counts = np.array(space.counts)
    size = (*shape, space.action_size)
    action = jax.random.uniform(number, size, jnp.float32, -1.0, 1.0)
    if space.discrete.any():
        most = np.broadcast_to(np.maximum(counts, 1), size)
        place = jax.random.randint(whole, size, 0, most).astype(jnp.float32)
        action = jnp.where(np.broadcast_to(space.discrete, size), place, action)
    return action, -float(np.sum(np.log(np.where(counts > 0, counts, 2))))


def actions(key: jax.Array, actor, batch: Batch, samples: int, design: Design) -> tuple[jax.Array, jax.Array]:
    """The a_j as features (3 samples, rows, feature_size), and log mu_j (3 samples, rows)."""
    rows = batch.reward.shape[0]
    space = design.space
    key, own = jax.random.split(key)
    some, density = uniform(own, space, (samples, rows))
    here, there = (
        jax.vmap(design.act(actor, observation).sample)(jax.random.split(k, samples))
        for k, observation in zip(jax.random.split(key), (batch.observation, batch.next_observation), strict=True)
    )
    same_shape(some, here[0], there[0])
    features = space.features(jnp.concatenate([some, here[0], there[0]]))
    return features, jnp.concatenate([jnp.full((samples, rows), density, jnp.float32), here[1], there[1]])


def log_integral(q: jax.Array, log_density: jax.Array) -> jax.Array:
    """H (critics, rows) of Q (critics, actions, rows) and log mu (actions, rows)."""
    same_shape(q[0], log_density)
    return jax.nn.logsumexp(q - log_density[None], axis=1) - np.float32(np.log(q.shape[1]))


def excess(params, drawn: tuple[jax.Array, jax.Array], batch: Batch, design: Design) -> jax.Array:
    """H_i(s) - Q_i(s, a) for the a_j of `actions`, (critics, rows)."""
    features, log_density = drawn
    observation = jnp.broadcast_to(batch.observation[None], (*log_density.shape, batch.observation.shape[-1]))
    above = log_integral(design.q(params, observation, features), log_density)
    q = design.q(params, batch.observation, design.space.features(batch.action))
    same_shape(above, q)
    return above - q


def critic_loss(
    params, after: jax.Array, drawn: tuple[jax.Array, jax.Array], c: jax.Array, batch: Batch, design: Design,
    config: Config,
) -> tuple[jax.Array, Metrics]:  # fmt: skip
    """L_Q for the next observations' values (rows,), the a_j, and c; the gap is a constant here and left out."""
    loss, metrics = temporal_loss(params, after, batch, config.discount, design)
    over = excess(params, drawn, batch, design)
    loss = loss + c * jnp.mean(jnp.sum(over, axis=0))
    return loss, {**metrics, "excess": jnp.mean(over)}


def actor_loss(params, key: jax.Array, critic, alpha, batch: Batch, design: Design) -> tuple[jax.Array, Metrics]:
    """L_pi; `log_pi` of the metrics is the mean log probability of the samples."""
    features, log_prob = design.act(params, batch.observation).soft(key)
    q = jnp.min(design.q(critic, batch.observation, features), axis=0)
    same_shape(q, log_prob)
    loss = jnp.mean(alpha * log_prob - q)
    return loss, {"actor_loss": loss, "q_actor": jnp.mean(q), "log_pi": jnp.mean(log_prob)}


def alpha_loss(log_alpha: jax.Array, log_pi: jax.Array, goal: jax.Array) -> tuple[jax.Array, Metrics]:
    """L_alpha for the samples' mean log probability ()."""
    loss = -log_alpha * (log_pi + goal)
    return loss, {"alpha": jnp.exp(log_alpha)}


def multiplier(log_multiplier: jax.Array) -> jax.Array:
    """The multiplier, at most 1e6."""
    return jnp.minimum(jnp.exp(log_multiplier), TOP)


def multiplier_loss(log_multiplier: jax.Array, over: jax.Array, gap: jax.Array | float) -> tuple[jax.Array, Metrics]:
    """L_multiplier for the mean of H - Q ()."""
    loss = -multiplier(log_multiplier) * (over - gap)
    return loss, {"multiplier": multiplier(log_multiplier)}


def goal(config: Config, space: Space) -> jax.Array:
    """The policy's entropy that is aimed at, ()."""
    numbers = int((~space.discrete).sum())
    most = float(np.sum(np.log(np.maximum(space.counts, 1))))
    return jnp.asarray(config.entropy * numbers + config.position_entropy * most, jnp.float32)


def init(key: jax.Array, config: Config, space: Space) -> State:
    """New networks, alpha and multiplier 1."""
    actor, critic = config.design(space).begin(key, "actor", "critic")
    zero = jnp.zeros((), jnp.float32)
    return State(jnp.zeros((), jnp.int32), learner(actor), learner(critic), critic, learner(zero), learner(zero))


def update(key: jax.Array, state: State, batch: Batch, config: Config, space: Space) -> tuple[State, Metrics]:
    """One step for the critics, the actor, alpha, the multiplier and the slow critics, in this order."""
    design = config.design(space)
    ahead, draw, own = jax.random.split(key, 3)
    action, _ = design.act(state.actor.params, batch.next_observation).sample(ahead)
    after = jnp.min(design.q(state.slow, batch.next_observation, space.features(action)), axis=0)
    drawn = actions(draw, state.actor.params, batch, config.samples, design)
    factor = multiplier(state.log_multiplier.params) if config.lagrange else 1.0
    c = jnp.asarray(config.weight * factor, jnp.float32)
    critic, of_critic = minimise(state.critic, config.rate, critic_loss, after, drawn, c, batch, design, config)
    alpha = jnp.exp(state.log_alpha.params)
    actor, of_actor = minimise(
        state.actor, config.actor_rate, actor_loss, own, critic.params, alpha, batch, design
    )  # fmt: skip
    log_alpha, of_alpha = minimise(
        state.log_alpha, config.actor_rate, alpha_loss, of_actor["log_pi"], goal(config, space)
    )
    log_multiplier, of_multiplier = state.log_multiplier, {}
    if config.lagrange:
        log_multiplier, of_multiplier = minimise(
            state.log_multiplier, config.multiplier_rate, multiplier_loss, of_critic["excess"], config.gap
        )
    slow = track(state.slow, critic.params, config.polyak)
    metrics = {**of_critic, **of_actor, **of_alpha, **of_multiplier}
    return State(state.step + 1, actor, critic, slow, log_alpha, log_multiplier), metrics


CQL = Agent("cql", Config, init, update, source="Kumar, Zhou, Tucker and Levine, 2020")
