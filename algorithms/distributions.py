"""What an actor puts out: a distribution over actions whose entries are positions or numbers, all independent.

Numbers are normal around tanh(m) with width s ("clipped", as IQL has it: the mean is squashed, the action only
clipped), or the tanh of a normal number ("squashed", as in SAC, T. Haarnoja et al., 2018, eq. 21):

    clipped:   log p(a) = log N(a; tanh(m), s)
    squashed:  a = tanh(u),  log p(a) = log N(u; m, s) - log(1 - a^2)

Positions are categorical. The logarithm of a hybrid action's probability is the sum over its entries.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm

from algorithms.spaces import LIMIT, Space

LOG_2 = float(np.log(2.0))  # a NumPy scalar would make everything double precision


@flax.struct.dataclass
class Distribution:
    """A distribution over actions, leading axes (...).

    Attributes:
      mean: (..., action_size) m of numbers (clipped: tanh(m) already, or where an anchor put it); unused for positions.
      log_std: (..., action_size) log s.
      logits: (..., action_size, most positions), hugely negative beyond an entry's count; of numbers unused.
      space: static.
      squashed: static, see the module's text.
    """

    mean: jax.Array
    log_std: jax.Array
    logits: jax.Array
    space: Space = flax.struct.field(pytree_node=False)
    squashed: bool = flax.struct.field(pytree_node=False, default=False)

    def mode(self) -> jax.Array:
        """The action that is taken when acting for good, (..., action_size)."""
        number = jnp.tanh(self.mean) if self.squashed else jnp.clip(self.mean, -1.0, 1.0)
        return self._either(jnp.argmax(self.logits, axis=-1) if self.space.discrete.any() else number, number)

    def sample(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """An action, (..., action_size), and the logarithm of its probability (density), (...)."""
        whole, number = jax.random.split(key)
        u = self.mean + jnp.exp(self.log_std) * jax.random.normal(number, self.mean.shape, self.mean.dtype)
        a = jnp.tanh(u) if self.squashed else jnp.clip(u, -LIMIT, LIMIT)
        u = u if self.squashed else a
        place = jax.random.categorical(whole, self.logits) if self.space.discrete.any() else a
        action = self._either(place, a)
        return action, self._sum(action, u)

    def log_prob(self, action: jax.Array) -> jax.Array:
        """Logarithm of the probability (density) of actions (..., action_size), (...)."""
        u = jnp.arctanh(jnp.clip(action, -LIMIT, LIMIT)) if self.squashed else action
        return self._sum(action, u)

    def soft(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """A sample's features (..., feature_size) and log probability (...), both with derivatives.

        Numbers by the reparametrisation trick. Positions straight through (Y. Bengio et al., 2013): the sample's own
        features, with the derivative of the mean features; and its own log probability, with the derivative of the mean
        one, the negative entropy, as that of log p at a fixed position has the mean zero.
        """
        action, log_prob = self.sample(key)
        if self.space.discrete.any():
            logs = self._logs()
            mean = jnp.sum(jnp.exp(logs) * logs, axis=(-2, -1))
            change = mean - self._of_positions(action)
            log_prob = log_prob + change - jax.lax.stop_gradient(change)
        return self._through(action), log_prob

    def soft_mode(self) -> jax.Array:
        """The mode's features (..., feature_size) with derivatives, those of positions straight through."""
        return self._through(self.mode())

    def _through(self, action: jax.Array) -> jax.Array:
        hard = self.space.features(action)
        if not self.space.discrete.any():
            return hard
        chance = jax.nn.softmax(self.logits, axis=-1)
        parts = []
        for k, n in enumerate(self.space.counts):
            if not n:
                parts.append(self.space.unit(action)[..., k : k + 1])
            elif self.space.one_hot:
                parts.append(chance[..., k, :n])
            else:
                ladder = jnp.linspace(-1.0, 1.0, n, dtype=chance.dtype) if n > 1 else jnp.full(1, -1.0, chance.dtype)
                parts.append(
                    jnp.sum(chance[..., k, :n] * ladder.reshape((1,) * (chance.ndim - 2) + (n,)), -1)[..., None]
                )
        smooth = jnp.concatenate(parts, axis=-1)
        return smooth + jax.lax.stop_gradient(hard - smooth)

    def _either(self, place: jax.Array, number: jax.Array) -> jax.Array:
        discrete = jnp.asarray(self.space.discrete).reshape((1,) * (number.ndim - 1) + (-1,))
        return jnp.where(discrete, place.astype(number.dtype), number)

    def _sum(self, action: jax.Array, u: jax.Array) -> jax.Array:
        discrete = self.space.discrete
        total = jnp.zeros(self.mean.shape[:-1], self.mean.dtype)
        if not discrete.all():
            of = norm.logpdf(u, self.mean, jnp.exp(self.log_std))
            if self.squashed:
                of = of - 2.0 * (LOG_2 - u - jax.nn.softplus(-2.0 * u))
            keep = jnp.asarray(~discrete).reshape((1,) * (of.ndim - 1) + (-1,))
            total = total + jnp.sum(jnp.where(keep, of, 0.0), axis=-1)
        if discrete.any():
            total = total + self._of_positions(action)
        return total

    def _logs(self) -> jax.Array:
        """Logarithms of the positions' probabilities, (..., entries with positions, most positions)."""
        return jax.nn.log_softmax(self.logits[..., np.flatnonzero(self.space.discrete), :], axis=-1)

    def _of_positions(self, action: jax.Array) -> jax.Array:
        """Logarithm of the probability of an action's positions, (...)."""
        logs = self._logs()
        place = jnp.round(action[..., np.flatnonzero(self.space.discrete)]).astype(jnp.int32)
        return jnp.sum(jnp.take_along_axis(logs, place[..., None], axis=-1)[..., 0], axis=-1)
