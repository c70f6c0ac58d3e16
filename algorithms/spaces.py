"""What an agent observes and how it acts: sizes, fixed scales, and the features that networks see.

Observations are scaled by fixed numbers, not by statistics of the data: x' = (x - offset) / scale. Voltages in per unit
have offset 1 and scale 0.05, so that the limits of ANSI C84.1 are -1 and 1; a statistic of the data would have to be
shared among owners of data, and privately. An action's entry is a position 0 to n - 1 or a number from -1 to 1.
Networks see it as a number from -1 to 1, or positions as one-hot vectors.

An *anchor* says where a device stands now: gain * observation + shift, a number from -1 to 1. Policies with anchors put
out changes, and critics see the change and its size beside the action, as devices that move wear.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gridjax.env.device_view import DeviceView
from gridjax.env.environment import Environment

LIMIT = 1.0 - 1e-5  # numbers of logged actions are clipped to this, where log densities are finite
VOLTAGE_SCALE = 0.05
TAP_SCALE = 0.1


@dataclass(frozen=True)
class Space:
    """The static side of an agent; hashable, so that programs are compiled once for equal ones.

    Attributes:
      counts: positions of each entry of an action, 0 for a number from -1 to 1 (as `Environment.action_counts`).
      offset: of each entry of an observation.
      scale: likewise, positive.
      constraints: entries of the cost.
      one_hot: whether networks see positions as one-hot vectors; else as numbers from -1 to 1.
      anchor: for each entry of an action the observation's entry that tells where the device stands, with gain and
        shift; (-1, 0, 0) for none; empty where no entry has one.
      view: of the devices, for networks that treat all devices alike; None where there is none.
    """

    counts: tuple[int, ...]
    offset: tuple[float, ...]
    scale: tuple[float, ...]
    constraints: int = 1
    one_hot: bool = False
    anchor: tuple[tuple[int, float, float], ...] = ()
    view: DeviceView | None = None

    @property
    def observation_size(self) -> int:
        """Entries of an observation."""
        return len(self.offset)

    @property
    def action_size(self) -> int:
        """Entries of an action."""
        return len(self.counts)

    @property
    def discrete(self) -> np.ndarray:
        """(action_size,) whether an entry is a position."""
        return np.array(self.counts) > 0

    @property
    def feature_size(self) -> int:
        """Entries of an action's features."""
        return sum(max(n, 1) for n in self.counts) if self.one_hot else len(self.counts)

    def scaled(self, observation: jax.Array) -> jax.Array:
        """(..., observation_size) as networks see it."""
        offset, scale = (jnp.asarray(a, observation.dtype) for a in (self.offset, self.scale))
        return (observation - _aligned(offset, observation)) / _aligned(scale, observation)

    def unit(self, action: jax.Array) -> jax.Array:
        """Each entry as a number from -1 to 1, (..., action_size)."""
        top = np.maximum(np.array(self.counts) - 1, 1).astype(np.float32)
        position = 2.0 * action / _aligned(jnp.asarray(top, action.dtype), action) - 1.0
        return jnp.where(_aligned(jnp.asarray(self.discrete), action), position, action)

    def features(self, action: jax.Array) -> jax.Array:
        """(..., feature_size) of actions (..., action_size)."""
        if not self.one_hot:
            return self.unit(action)
        parts = [
            jax.nn.one_hot(jnp.round(action[..., k]).astype(jnp.int32), n, dtype=action.dtype)
            if n
            else action[..., k : k + 1]
            for k, n in enumerate(self.counts)
        ]
        return jnp.concatenate(parts, axis=-1)

    def standing(self, observation: jax.Array) -> jax.Array:
        """Where the devices stand, (..., action_size), 0 where there is no anchor."""
        if not self.anchor:
            return jnp.zeros((*observation.shape[:-1], self.action_size), observation.dtype)
        index = np.array([max(a[0], 0) for a in self.anchor])
        gain, shift = (jnp.asarray([a[k] for a in self.anchor], observation.dtype) for k in (1, 2))
        stands = observation[..., index]
        return jnp.clip(stands * _aligned(gain, stands) + _aligned(shift, stands), -1.0, 1.0)


def space_of(
    env: Environment, *, one_hot: bool | None = None, anchored: bool = True, view: DeviceView | None = None
) -> Space:
    """The space of an environment, with fixed scales by what its observations are called.

    Args:
      env: the environment.
      one_hot: see `Space`; None is yes where an action's positions have no order (switches of restoration).
      anchored: whether taps and capacitors get anchors, where the observation tells their positions.
      view: `gridjax.env.device_view.device_view(env, params, feeder)`, for the bodies "device" and "graph".
    """
    names = env.observation_names
    offset = [1.0 if name.startswith(("voltage ", "tap ")) else 0.0 for name in names]
    scale = [
        VOLTAGE_SCALE if name.startswith("voltage ") else TAP_SCALE if name.startswith("tap ") else 1.0
        for name in names
    ]
    if one_hot is None:
        one_hot = type(env.base).__name__ == "Restoration"
    return Space(
        counts=tuple(env.action_counts), offset=tuple(offset), scale=tuple(scale), constraints=len(env.cost_names),
        one_hot=one_hot, anchor=_anchor(env) if anchored and not one_hot else (), view=view,
    )  # fmt: skip


def plain_space(observation_size: int, counts: tuple[int, ...], constraints: int = 1) -> Space:
    """A space without scales or anchors, as for environments of other libraries."""
    return Space(counts, (0.0,) * observation_size, (1.0,) * observation_size, constraints)


def _anchor(env: Environment) -> tuple[tuple[int, float, float], ...]:
    """Capacitors stand at 2 c - 1, taps at (ratio - 1) / TAP_SCALE, as all regulators go 10 % up and down."""
    place = {name: k for k, name in enumerate(env.observation_names)}
    out, found = [], False
    for name in env.action_names:
        known = place.get(name, -1)
        if known >= 0 and name.startswith("capacitor "):
            out.append((known, 2.0, -1.0))
        elif known >= 0 and name.startswith("tap "):
            out.append((known, 1 / TAP_SCALE, -1 / TAP_SCALE))
        else:
            out.append((-1, 0.0, 0.0))
            continue
        found = True
    return tuple(out) if found else ()


def _aligned(a: jax.Array, like: Any) -> jax.Array:
    """A vector with leading axes of one, so that no axis is broadcast in silence."""
    return a.reshape((1,) * (like.ndim - 1) + a.shape)
