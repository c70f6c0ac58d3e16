"""Behaviour cloning: the policy under which the data's actions are likeliest.

    L_pi = - E log pi(a | s)

(D. A. Pomerleau, "Efficient training of artificial neural networks for autonomous navigation", 1991.) With
`batches.from_dataset(best=0.1)` it clones only the tenth of the episodes with the highest returns, which is called
10%BC (L. Chen et al., "Decision Transformer", 2021).
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from algorithms.batches import Batch
from algorithms.learning import Agent, Learner, Metrics, imitation_loss, learner, minimise
from algorithms.networks import Design
from algorithms.spaces import Space


@flax.struct.dataclass
class Config:
    """Numbers of behaviour cloning.

    Attributes:
      rate: Adam's.
      hidden: widths of the network's layers.
      norm: whether the actor has LayerNorm.
      body: of the networks, see `algorithms.networks.Design`.
    """

    rate: float = 3e-4
    hidden: tuple[int, ...] = flax.struct.field(pytree_node=False, default=(256, 256))
    norm: bool = flax.struct.field(pytree_node=False, default=False)
    body: str = flax.struct.field(pytree_node=False, default="mlp")

    def design(self, space: Space) -> Design:
        """The networks."""
        return Design(space, self.hidden, actor_norm=self.norm, body=self.body)


@flax.struct.dataclass
class State:
    """The network."""

    step: jax.Array
    actor: Learner


def init(key: jax.Array, config: Config, space: Space) -> State:
    """A new network."""
    (actor,) = config.design(space).begin(key, "actor")
    return State(jnp.zeros((), jnp.int32), learner(actor))


def update(key: jax.Array, state: State, batch: Batch, config: Config, space: Space) -> tuple[State, Metrics]:
    """One step of the actor."""
    del key
    weight = jnp.ones_like(batch.reward)
    actor, metrics = minimise(state.actor, config.rate, imitation_loss, weight, batch, config.design(space))
    return State(state.step + 1, actor), metrics


BC = Agent("bc", Config, init, update, source="Pomerleau, 1991")
