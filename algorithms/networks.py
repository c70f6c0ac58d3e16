"""Networks in Flax: actors, critics and values over a space.

A body turns observations (and, in critics, an action's features) into what the heads read. "mlp" sees the whole feeder
as one vector. Weights are orthogonal (A. M. Saxe et al., 2014), those of an actor's last layer small, so that a new
actor begins in the middle of the range, or, with anchors, at rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from algorithms.distributions import Distribution
from algorithms.spaces import Space

SMALL = 1e-2  # of an actor's last layer
LOG_STD = (-5.0, 2.0)
NEVER = -1e9  # logit of a position that there is not; infinity would make derivatives NaN
Parameters = Any


@dataclass(frozen=True)
class Design:
    """How networks are built; hashable.

    Attributes:
      space: what they see and how they act.
      hidden: widths of the hidden layers.
      actor_norm: LayerNorm after each hidden layer of the actor.
      critic_norm: likewise of critics and values.
      squashed: kind of the actor's numbers, see `algorithms.distributions`.
      free_std: whether the numbers' width depends on the observation; else it is one parameter for each entry.
      critics: how many.
    """

    space: Space
    hidden: tuple[int, ...] = (256, 256)
    actor_norm: bool = False
    critic_norm: bool = False
    squashed: bool = False
    free_std: bool = False
    critics: int = 2

    def act(self, params: Parameters, observation: jax.Array) -> Distribution:
        """The actor's distribution at observations (..., observation_size)."""
        return cast(Distribution, Actor(self).apply(params, observation))

    def q(self, params: Parameters, observation: jax.Array, features: jax.Array) -> jax.Array:
        """The critics' values (critics, ...) of observations and actions' features (..., feature_size)."""
        return cast(jax.Array, Critics(self).apply(params, observation, features))

    def v(self, params: Parameters, observation: jax.Array) -> jax.Array:
        """The value (...) of observations."""
        return cast(jax.Array, Value(self).apply(params, observation))

    def begin(self, key: jax.Array, *names: str) -> list[Parameters]:
        """New parameters of networks, each "actor", "critic" or "value", in the order asked for."""
        observation = jnp.zeros((1, self.space.observation_size), jnp.float32)
        features = jnp.zeros((1, self.space.feature_size), jnp.float32)
        kinds: dict[str, tuple[nn.Module, tuple[jax.Array, ...]]] = {
            "actor": (Actor(self), (observation,)),
            "critic": (Critics(self), (observation, features)),
            "value": (Value(self), (observation,)),
        }
        out = []
        for k, name in zip(jax.random.split(key, len(names)), names, strict=True):
            module, inputs = kinds[name]
            out.append(jax.tree.map(lambda a: a.astype(jnp.float32), module.init(k, *inputs)))
        return out


def dense(width: int, scale: float = np.sqrt(2.0)) -> nn.Dense:
    """A layer with orthogonal weights."""
    return nn.Dense(width, kernel_init=nn.initializers.orthogonal(scale))


class Mlp(nn.Module):
    """Hidden layers with rectifiers."""

    hidden: tuple[int, ...]
    norm: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., last width) of (..., anything)."""
        for width in self.hidden:
            x = dense(width)(x)
            if self.norm:
                x = nn.LayerNorm()(x)
            x = nn.relu(x)
        return x


class Actor(nn.Module):
    """The policy."""

    design: Design

    @nn.compact
    def __call__(self, observation: jax.Array) -> Distribution:
        """The distribution over actions at observations (..., observation_size)."""
        design, space = self.design, self.design.space
        most, size = max(space.counts), space.action_size
        h = Mlp(design.hidden, design.actor_norm)(space.scaled(observation))
        numbers = not space.discrete.all()
        mean = dense(size, SMALL)(h) if numbers else jnp.zeros((*h.shape[:-1], size), h.dtype)
        if numbers and design.free_std:
            log_std = jnp.clip(dense(size, SMALL)(h) - 1.0, *LOG_STD)
        elif numbers:
            free = self.param("log_std", nn.initializers.zeros, (size,), h.dtype)
            log_std = jnp.broadcast_to(jnp.clip(free, *LOG_STD).reshape((1,) * (h.ndim - 1) + (size,)), mean.shape)
        else:
            log_std = jnp.zeros_like(mean)
        stands = space.standing(observation)
        if design.squashed:
            mean = mean + jnp.arctanh(jnp.clip(stands, -0.99, 0.99)) if space.anchor else mean
        else:
            mean = stands + jnp.tanh(mean)
        logits = jnp.zeros((*mean.shape, 0), h.dtype)
        if most:
            # With anchors the layer speaks of moves, from the lowest to the highest: a shift by where a device stands.
            width = 2 * most - 1 if space.anchor else most
            raw = dense(size * width, SMALL)(h).reshape(*h.shape[:-1], size, width)
            logits = _positions(space, raw, stands)
        return Distribution(mean, log_std, logits, space, design.squashed)


class Critics(nn.Module):
    """Q of observations and actions' features, several with weights of their own."""

    design: Design

    @nn.compact
    def __call__(self, observation: jax.Array, features: jax.Array) -> jax.Array:
        """(critics, ...)."""
        space = self.design.space
        x = [space.scaled(observation), features]
        if space.anchor:
            moves = jnp.where(_row(np.array([a[0] >= 0 for a in space.anchor]), features), features, 0.0)
            moves = moves - space.standing(observation)
            x += [moves, jnp.abs(moves)]
        x = jnp.concatenate(x, axis=-1)
        return jnp.stack([Head(self.design.hidden, self.design.critic_norm)(x) for _ in range(self.design.critics)])


class Value(nn.Module):
    """V of observations."""

    design: Design

    @nn.compact
    def __call__(self, observation: jax.Array) -> jax.Array:
        """(...)."""
        return Head(self.design.hidden, self.design.critic_norm)(self.design.space.scaled(observation))


class Head(nn.Module):
    """A number (...) of vectors (..., anything)."""

    hidden: tuple[int, ...]
    norm: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Without a last axis, so that no (n,) meets an (n, 1)."""
        return dense(1, 1.0)(Mlp(self.hidden, self.norm)(x))[..., 0]


def _positions(space: Space, raw: jax.Array, stands: jax.Array) -> jax.Array:
    """Logits of positions (..., action_size, most), hugely negative beyond an entry's count."""
    most = max(space.counts)
    counts = np.array(space.counts)
    place = np.arange(most)
    if space.anchor:
        now = jnp.round((stands + 1) / 2 * _row(np.maximum(counts - 1, 0), stands)).astype(jnp.int32)
        free = np.array([a[0] < 0 for a in space.anchor])
        now = jnp.where(_row(free, now), most - 1, now)  # without an anchor the first places of the row are used
        index = place.reshape((1,) * now.ndim + (most,)) - now[..., None] + most - 1
        raw = jnp.take_along_axis(raw, index, axis=-1)
    allowed = (place[None] < counts[:, None]) | (counts[:, None] == 0)
    return jnp.where(_row(allowed, raw), raw, NEVER)


def _row(a: np.ndarray, like: jax.Array) -> jax.Array:
    """With leading axes of one, as many as `like` has."""
    return jnp.asarray(a).reshape((1,) * (like.ndim - a.ndim) + a.shape)
