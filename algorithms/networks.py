"""Networks in Flax: actors, critics and values over a space.

A body turns observations (and, in critics, an action's features) into what the heads read. "mlp" sees the whole feeder
as one vector; "device" shares its weights among all devices (`algorithms.device_networks`), and "graph" among all
buses too, which exchange messages along the branches (`algorithms.graph_networks`). Weights begin uniform
(`algorithms.layers`), those of an actor's last layer small, so that a new actor begins in the middle of the range, or,
with anchors, at rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from algorithms.device_networks import DeviceBody, DeviceHead, own_actions, own_numbers
from algorithms.distributions import Distribution
from algorithms.graph_networks import GraphBody, GraphHead, graph
from algorithms.layers import Head, Mlp, dense
from algorithms.spaces import Space
from gridjax.env.device_view import DeviceView

SMALL = 1e-2  # of an actor's last layer
LOG_STD = (-5.0, 2.0)
BODIES = ("mlp", "device", "graph")
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
      body: "mlp", "device" or "graph"; all but the first need a space with a view, the last one with the feeder.
      rounds: of messages, of the body "graph": from how many branches away a device hears.
      width: of what its buses know; most of its time goes into this.

    Raises:
      ValueError: an unknown body, or a view that the space lacks.
    """

    space: Space
    hidden: tuple[int, ...] = (256, 256)
    actor_norm: bool = False
    critic_norm: bool = False
    squashed: bool = False
    free_std: bool = False
    critics: int = 2
    body: str = "mlp"
    rounds: int = 4
    width: int = 16

    def __post_init__(self) -> None:
        """Refuses what cannot be built."""
        if self.body not in BODIES:
            raise ValueError(f"body {self.body!r} is unknown: choose one of {', '.join(BODIES)}")
        if self.body != "mlp" and self.space.view is None:
            raise ValueError(f'body {self.body!r} needs devices: give space_of a view, or take "mlp"')
        if self.body == "graph":
            graph(self.view)

    @property
    def view(self) -> DeviceView:
        """The space's, of bodies that need one."""
        assert self.space.view is not None
        return self.space.view

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


class Actor(nn.Module):
    """The policy."""

    design: Design

    @nn.compact
    def __call__(self, observation: jax.Array) -> Distribution:
        """The distribution over actions at observations (..., observation_size)."""
        design, space = self.design, self.design.space
        most, size = max(space.counts), space.action_size
        h = _trunk(design, observation)
        numbers = not space.discrete.all()
        mean = _entries(design, h, 1)[..., 0] if numbers else jnp.zeros((*observation.shape[:-1], size), h.dtype)
        if numbers and design.free_std:
            log_std = jnp.clip(_entries(design, h, 1)[..., 0] - 1.0, *LOG_STD)
        elif numbers:
            shape = (size,) if design.body == "mlp" else (design.view.kinds, design.view.numbers)
            free = self.param("log_std", nn.initializers.zeros, shape, h.dtype)
            free = jnp.clip(free if design.body == "mlp" else _by_kind(design.view, free), *LOG_STD)
            log_std = jnp.broadcast_to(free.reshape((1,) * (mean.ndim - 1) + (size,)), mean.shape)
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
            raw = _entries(design, h, 2 * most - 1 if space.anchor else most)
            logits = _positions(space, raw, stands)
        return Distribution(mean, log_std, logits, space, design.squashed)


class Critics(nn.Module):
    """Q of observations and actions' features, several with weights of their own."""

    design: Design

    @nn.compact
    def __call__(self, observation: jax.Array, features: jax.Array) -> jax.Array:
        """(critics, ...)."""
        space = self.design.space
        x = [features]
        if space.anchor:
            moves = jnp.where(_row(np.array([a[0] >= 0 for a in space.anchor]), features), features, 0.0)
            moves = moves - space.standing(observation)
            x += [moves, jnp.abs(moves)]
        return jnp.stack([_number(self.design, observation, x) for _ in range(self.design.critics)])


class Value(nn.Module):
    """V of observations."""

    design: Design

    @nn.compact
    def __call__(self, observation: jax.Array) -> jax.Array:
        """(...)."""
        return _number(self.design, observation, [])


def _trunk(design: Design, observation: jax.Array) -> jax.Array:
    """What an actor's last layers read, (..., width), or of each device (..., devices, width)."""
    if design.body == "device":
        return DeviceBody(design.view, design.hidden, design.actor_norm)(observation)
    if design.body == "graph":
        return GraphBody(design.view, design.hidden, design.width, design.rounds, design.actor_norm)(observation)
    return Mlp(design.hidden, design.actor_norm)(design.space.scaled(observation))


def _entries(design: Design, h: jax.Array, count: int) -> jax.Array:
    """A last layer with so many numbers for each entry of an action, (..., action_size, count)."""
    if design.body == "mlp":
        size = design.space.action_size
        return dense(size * count, SMALL)(h).reshape(*h.shape[:-1], size, count)
    return own_numbers(design.view, dense(design.view.numbers * count, SMALL)(h), count)


def _number(design: Design, observation: jax.Array, actions: list[jax.Array]) -> jax.Array:
    """A number (...) of observations and, in critics, of what is known of the actions, each (..., feature_size)."""
    if design.body == "mlp":
        x = jnp.concatenate([design.space.scaled(observation), *actions], axis=-1)
        return Head(design.hidden, design.critic_norm)(x)
    own = [own_actions(design.view, design.space, a) for a in actions]
    if design.body == "graph":
        return GraphHead(design.view, design.hidden, design.width, design.rounds, design.critic_norm)(observation, own)
    return DeviceHead(design.view, design.hidden, design.critic_norm)(observation, own)


def _by_kind(view: DeviceView, free: jax.Array) -> jax.Array:
    """(action_size,) of (kinds, numbers): parameters of an entry are those of its device's kind."""
    kinds = jnp.asarray(np.eye(view.kinds)[list(view.kind)], free.dtype)
    return own_numbers(view, kinds @ free, 1)[..., 0]


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
