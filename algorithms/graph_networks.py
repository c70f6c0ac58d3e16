"""Networks over the feeder's graph, on feeders of any size.

Buses pass messages to their neighbours (P. Battaglia et al., "Relational inductive biases, deep learning, and graph
networks", 2018). With U(i) the buses next to bus i on the source's side and D(i) those on the other, in each round

    h_i' = h_i + relu(W h_i + W_U mean_{j in U(i)} h_j + W_D mean_{j in D(i)} h_j + b)

with the same weights for all buses and in all rounds; h_i starts as a layer of the voltages of bus i's phases and of
which phases it has. A device reads its bus's h and its own features, but not those of its neighbours, which come
through the graph: after k rounds it knows of what is at most k branches away.

The means are one product with a constant matrix; buses are the leading axis, so that it is a plain one. On feeders too
large for that, messages are summed along branches.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from algorithms.device_networks import scaled
from algorithms.layers import Head, Mlp, dense
from algorithms.spaces import VOLTAGE_SCALE
from gridjax.env.device_view import VOLTAGES, Buses, DeviceView

DENSE = 512  # buses up to which means are a product


class Messages(nn.Module):
    """What buses know after some rounds."""

    buses: Buses
    width: int
    rounds: int
    norm: bool = False

    @nn.compact
    def __call__(self, observation: jax.Array) -> jax.Array:
        """(buses, ..., width) of observations (..., observation_size)."""
        h = nn.relu(dense(self.width)(bus_features(self.buses, observation)))
        if not self.rounds:
            return h
        own, sent = dense(self.width, 1.0), dense(self.width, 1.0, bias=False)
        norm = nn.LayerNorm() if self.norm else None
        for _ in range(self.rounds):
            change = own(h) + sent(jnp.concatenate(means(self.buses, h), axis=-1))
            h = h + nn.relu(change if norm is None else norm(change))
        return h


class GraphBody(nn.Module):
    """What a policy reads for each device, (..., devices, last width) of observations."""

    view: DeviceView
    hidden: tuple[int, ...]
    width: int
    rounds: int
    norm: bool

    @nn.compact
    def __call__(self, observation: jax.Array) -> jax.Array:
        """See the class."""
        buses = graph(self.view)
        h = Messages(buses, self.width, self.rounds, self.norm)(observation)
        x = jnp.concatenate([at_devices(buses, h), own_features(self.view, observation)], axis=-1)
        return Mlp(self.hidden, self.norm)(x)


class GraphHead(nn.Module):
    """A number (...) of observations and the devices' actions.

    Its last hidden layer reads the means over the devices and over all buses.
    """

    view: DeviceView
    hidden: tuple[int, ...]
    width: int
    rounds: int
    norm: bool

    @nn.compact
    def __call__(self, observation: jax.Array, actions: Sequence[jax.Array]) -> jax.Array:
        """Of `actions` (..., devices, anything) each device sees its own."""
        buses = graph(self.view)
        h = Messages(buses, self.width, self.rounds, self.norm)(observation)
        x = jnp.concatenate([at_devices(buses, h), own_features(self.view, observation), *actions], axis=-1)
        each = Mlp(self.hidden, self.norm)(x)
        both = jnp.concatenate([jnp.mean(each, axis=-2), jnp.mean(h, axis=0)], axis=-1)
        return Head(self.hidden[-1:], self.norm)(both)


def graph(view: DeviceView) -> Buses:
    """The view's graph.

    Raises:
      ValueError: a view that was made without the feeder.
    """
    if view.buses is None:
        raise ValueError('body "graph" needs the feeder: give it to device_view')
    return view.buses


def bus_features(buses: Buses, observation: jax.Array) -> jax.Array:
    """(buses, ..., 6): the phases' voltages, scaled, 0 where there is none, and whether there is one."""
    entry = np.array(buses.voltage)
    x = jnp.moveaxis(observation, -1, 0)[np.maximum(entry, 0)]
    x = jnp.moveaxis(x, 1, -1)
    shape = (entry.shape[0],) + (1,) * (observation.ndim - 1) + (entry.shape[1],)
    there = jnp.asarray(entry >= 0).reshape(shape)
    mask = jnp.broadcast_to(there, x.shape).astype(x.dtype)
    return jnp.concatenate([jnp.where(there, (x - 1.0) / VOLTAGE_SCALE, 0.0), mask], axis=-1)


def means(buses: Buses, h: jax.Array) -> list[jax.Array]:
    """Of h (buses, ..., width) the means over the neighbours on the source's side, and on the other; 0 of none."""
    count, edges = len(buses.voltage), np.array(buses.edges, int).reshape(-1, 2)
    out = []
    for sender, receiver in ((edges[:, 0], edges[:, 1]), (edges[:, 1], edges[:, 0])):
        share = 1.0 / np.maximum(np.bincount(receiver, minlength=count), 1)
        if count <= DENSE:
            table = np.zeros((count, count))
            table[receiver, sender] = share[receiver]
            out.append(jnp.tensordot(jnp.asarray(table, h.dtype), h, axes=1))
        else:
            total = jax.ops.segment_sum(h[sender], receiver, num_segments=count)
            out.append(total * jnp.asarray(share, h.dtype).reshape((count,) + (1,) * (h.ndim - 1)))
    return out


def at_devices(buses: Buses, h: jax.Array) -> jax.Array:
    """(..., devices, width) of (buses, ..., width): what each device's bus knows."""
    if len(buses.voltage) <= DENSE:
        table = np.eye(len(buses.voltage))[list(buses.device)]
        own = jnp.tensordot(jnp.asarray(table, h.dtype), h, axes=1)
    else:
        own = h[np.array(buses.device)]
    return jnp.moveaxis(own, 0, -2)


def own_features(view: DeviceView, observation: jax.Array) -> jax.Array:
    """The devices' features, scaled, without those of their neighbours."""
    x = scaled(view, observation)
    first = view.kinds + 1
    return jnp.concatenate([x[..., :first], x[..., view.kinds + VOLTAGES :]], axis=-1)
