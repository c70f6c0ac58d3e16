"""One signal for all devices of a kind: an aggregator that sends the same set-points to everyone.

    a_i = b_{kind of i}

An environment of hundreds of devices becomes one of a few numbers, which little data suffice for; what devices could do
apart from each other is given away.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gridjax.env.behaviours import kinds
from gridjax.env.environment import Environment, Outcome, Wrapped


@dataclass(frozen=True)
class Broadcast(Wrapped):
    """An environment whose devices of a kind are told the same; made by `broadcast`.

    Attributes:
      env: the environment; states, parameters, observations, rewards and costs are its own.
      tie: (its action_size,) the signal that each entry follows.
      names: of the signals.
    """

    tie: tuple[int, ...]
    names: tuple[str, ...]

    @property
    def action_size(self) -> int:
        """Signals."""
        return len(self.names)

    @property
    def action_counts(self) -> tuple[int, ...]:
        """Choices of each signal."""
        return tuple(self.env.action_counts[self.tie.index(k)] for k in range(self.action_size))

    @property
    def action_names(self) -> tuple[str, ...]:
        """The signals."""
        return self.names

    def advance(self, key: jax.Array, state: Any, action: jax.Array, params: Any) -> tuple[Any, Outcome]:
        """As the environment, with each signal given to all its devices."""
        return self.env.advance(key, state, action[np.array(self.tie)], params)

    def nothing(self) -> jax.Array:
        """The signals that control nothing."""
        action = jnp.asarray(self.inner.nothing())  # type: ignore[attr-defined]
        return action[np.array([self.tie.index(k) for k in range(self.action_size)])]


def broadcast(env: Environment) -> Broadcast:
    """DER control with four signals: reactive power, share fed in, batteries, cars (those kinds that there are).

    Raises:
      ValueError: an environment whose devices have no kinds with a common meaning.
    """
    tie = kinds(env)
    if type(env.base).__name__ != "DerControl":
        raise ValueError(f"{type(env.base).__name__} has no kinds of devices that one signal serves: take DerControl")
    heads = [env.action_names[tie.index(k)].split()[0] for k in range(max(tie) + 1)]
    names = tuple(f"all: {head} ({tie.count(k)})" for k, head in enumerate(heads))
    return Broadcast(env.horizon, env.failure_penalty, env, tie, names)
