"""Networks that treat all devices alike, on feeders of any size.

A layer sees each device's vector and the mean over all of them (M. Zaheer et al., "Deep sets", 2017, eq. 4):

    x_d' = relu(W x_d + U mean_e x_e + b)

so that the policy of permuted devices is the permuted policy. Values read the mean over the devices after the last
layer, which does not depend on their order. The number of parameters does not depend on how many devices there are.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from algorithms.layers import Head, dense
from algorithms.spaces import VOLTAGE_SCALE, Space
from gridjax.env.device_view import VOLTAGES, DeviceView


class Shared(nn.Module):
    """Layers with the same weights for all devices."""

    hidden: tuple[int, ...]
    norm: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., devices, last width) of (..., devices, anything)."""
        for width in self.hidden:
            mean = jnp.mean(x, axis=-2, keepdims=True)
            x = dense(width, 1.0)(x) + dense(width, 1.0, bias=False)(mean)
            if self.norm:
                x = nn.LayerNorm()(x)
            x = nn.relu(x)
        return x


class DeviceBody(nn.Module):
    """What a policy reads for each device, (..., devices, last width) of observations."""

    view: DeviceView
    hidden: tuple[int, ...]
    norm: bool

    @nn.compact
    def __call__(self, observation: jax.Array) -> jax.Array:
        """See the class."""
        return Shared(self.hidden, self.norm)(scaled(self.view, observation))


class DeviceHead(nn.Module):
    """A number (...) of observations and the devices' actions.

    Its last hidden layer reads the mean over the devices; those before are shared by them.
    """

    view: DeviceView
    hidden: tuple[int, ...]
    norm: bool

    @nn.compact
    def __call__(self, observation: jax.Array, actions: Sequence[jax.Array]) -> jax.Array:
        """Of `actions` (..., devices, anything) each device sees its own."""
        x = jnp.concatenate([scaled(self.view, observation), *actions], axis=-1)
        each = Shared(self.hidden, self.norm)(x)
        return Head(self.hidden[-1:], self.norm)(jnp.mean(each, axis=-2))


def scaled(view: DeviceView, observation: jax.Array) -> jax.Array:
    """The devices' features with voltages in fixed per-unit numbers, as in `algorithms.spaces`."""
    offset, scale = np.zeros(view.feature_size), np.ones(view.feature_size)
    offset[view.kinds : view.kinds + VOLTAGES] = 1.0
    scale[view.kinds : view.kinds + VOLTAGES] = VOLTAGE_SCALE
    x = view.features(observation)
    offset, scale = (jnp.asarray(a, x.dtype).reshape((1,) * (x.ndim - 1) + a.shape) for a in (offset, scale))
    return (x - offset) / scale


def own_actions(view: DeviceView, space: Space, features: jax.Array) -> jax.Array:
    """(..., devices, numbers * width) of an action's features (..., feature_size): each device has its own.

    The width is 1, or with one-hot features the highest number of positions.
    """
    if space.one_hot:
        width, start, rows = max(1, *space.counts), 0, []
        for n in space.counts:
            own = features[..., start : start + max(n, 1)]
            rows.append(jnp.pad(own, [(0, 0)] * (own.ndim - 1) + [(0, width - own.shape[-1])]))
            start += max(n, 1)
        entries = jnp.stack(rows, axis=-2)
    else:
        entries = features[..., None]
    own = view.of_action(entries)
    return own.reshape(*own.shape[:-2], view.devices, -1)


def own_numbers(view: DeviceView, x: jax.Array, count: int) -> jax.Array:
    """(..., action_size, count) of the devices' (..., devices, numbers * count)."""
    return view.to_action(x.reshape(*x.shape[:-2], view.devices * view.numbers, count))
