"""Networks over the feeder's graph, on feeders of any size.

Buses pass messages to their neighbours (P. Battaglia et al., "Relational inductive biases, deep learning, and graph
networks", 2018). With U(i) the buses next to bus i on the source's side and D(i) those on the other, in each round

    h_i' = h_i + relu(W h_i + W_U mean_{j in U(i)} h_j + W_D mean_{j in D(i)} h_j + b)

with the same weights for all buses and in all rounds; h_i starts as a layer of the voltages of bus i's phases and of
which phases it has. A device reads its bus's h and its own features, but not those of its neighbours, which come
through the graph: after k rounds it knows of what is at most k branches away.

Buses are the leading axis, so that each one's rows lie together. A sum over neighbours reads them one slot after
another, and so does its derivative, along the same branches the other way: nothing is scattered, and sums are the same
each time. There are derivatives in reverse only.
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
        out.append(_gathered(h, sender, receiver, share[receiver], count))
    return out


def at_devices(buses: Buses, h: jax.Array) -> jax.Array:
    """(..., devices, width) of (buses, ..., width): what each device's bus knows."""
    count = len(buses.device)
    return jnp.moveaxis(_gathered(h, np.array(buses.device), np.arange(count), np.ones(count), count), 0, -2)


def _gathered(h: jax.Array, sender: np.ndarray, receiver: np.ndarray, share: np.ndarray, count: int) -> jax.Array:
    """Rows (count, ...): the sum of share * h[sender] over those with the row as their receiver."""
    there, back = _slots(sender, receiver, share, count), _slots(receiver, sender, share, h.shape[0])
    summed = jax.custom_vjp(lambda h: _sum(h, *there))
    summed.defvjp(lambda h: (_sum(h, *there), None), lambda _, slope: (_sum(slope, *back),))
    return summed(h)


def _slots(sender: np.ndarray, receiver: np.ndarray, share: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Senders and their shares by receiver, (slots, count); share 0 where a receiver has fewer."""
    many = np.bincount(receiver, minlength=count)
    index = np.zeros((max(many.max(initial=0), 1), count), int)
    weight = np.zeros(index.shape)
    order = np.argsort(receiver, kind="stable")
    slot = np.arange(len(order)) - np.repeat(np.cumsum(many) - many, many)
    index[slot, receiver[order]] = sender[order]
    weight[slot, receiver[order]] = share[order]
    return index, weight


def _sum(h: jax.Array, index: np.ndarray, weight: np.ndarray) -> jax.Array:
    """Over the slots, (count, ...)."""
    shape = (index.shape[1],) + (1,) * (h.ndim - 1)
    return sum(
        (h[i] * jnp.asarray(w, h.dtype).reshape(shape) for i, w in zip(index, weight, strict=True)),
        jnp.zeros((), h.dtype),
    )


def own_features(view: DeviceView, observation: jax.Array) -> jax.Array:
    """The devices' features, scaled, without those of their neighbours."""
    x = scaled(view, observation)
    first = view.kinds + 1
    return jnp.concatenate([x[..., :first], x[..., view.kinds + VOLTAGES :]], axis=-1)
