"""A block: clients of one kind that work side by side in one place, and the sums over them.

Clients work `at_once` at a time, so that memory is bounded and time grows with their number. Each draws from its own
number and the round's key. One whose update is not finite counts as absent and stays as it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from federated import aggregation
from federated.aggregation import Mean, Rule, Weighted
from federated.clipping import clipped, norm
from federated.compression import Compression, compressed
from federated.work import Clients, Metrics, Tree, Work, local


@dataclass(frozen=True)
class Sending:
    """How clients send their updates; fields of `federated.round.Federation`."""

    rule: Rule
    compression: Compression
    at_once: int
    singly: bool = False

    @property
    def with_all(self) -> bool:
        """Whether all single updates are needed, by the rule or for sums of integers."""
        return self.singly or not isinstance(self.rule, Mean | Weighted)


@flax.struct.dataclass
class Given:
    """What the server tells the clients: theta, c of SCAFFOLD and C, see `federated.round.Server`."""

    shared: Tree
    control: Tree
    bound: jax.Array


@flax.struct.dataclass
class Cohort:
    """Clients of one group that were asked: the clients, (places, ...), their numbers and whether they are present."""

    clients: Clients
    ids: jax.Array
    present: jax.Array


@flax.struct.dataclass
class Sums:
    """Over clients: weighted updates, weights, changes of variates, how many, centred bits, norms, lost, metrics."""

    update: Tree
    weight: jax.Array
    variate: Tree
    present: jax.Array
    bits: jax.Array
    norm: jax.Array
    lost: jax.Array
    metrics: Metrics


def block(work: Work, sending: Sending, key: jax.Array, given: Given, cohort: Cohort) -> tuple[Sums, Clients, Any]:
    """The work of one place's clients of one group.

    Args:
      work: what they do. Static.
      sending: how they send it. Static.
      key: of the round.
      given: what the server tells them.
      cohort: the clients.

    Returns:
      Sums over the clients, the clients afterwards (places, ...), and, where they are needed, all single updates with
      their weights, rows and merits; else ().
    """
    with_all = sending.with_all

    def one(client, number, present):
        own, send = jax.random.split(jax.random.fold_in(key, number))
        update, after, metrics = local(work, own, given.shared, given.control, client)
        update, residual = compressed(sending.compression, send, update, client.residual)
        after = after.replace(residual=residual)  # type: ignore[attr-defined]
        fine = jnp.isfinite(norm(update))
        update, size, inside = clipped(update, given.bound)
        here = present * fine
        merit = work.merit(metrics) if work.merit else jnp.zeros(())
        after = jax.tree.map(lambda new, old: jnp.where(here > 0, new, old), after, client)
        rule = sending.rule
        w = here * (aggregation.weight(rule, client.rows, merit, merit) if isinstance(rule, Mean | Weighted) else 1.0)
        zero = jax.tree.map(lambda a: jnp.where(here > 0, w.astype(a.dtype) * a, 0), update)
        gap = jax.tree.map(jnp.subtract, after.variate, client.variate)
        figures = {k: jnp.where(here > 0, v, 0.0) for k, v in metrics.items()}
        bits = present * (inside - 0.5)  # a lost one's update is zero, which is inside
        sums = Sums(zero, w, gap, here, bits, here * size, present * ~fine, figures)
        return sums, after, (update, here, client.rows, merit)

    places = cohort.ids.shape[0]
    lanes = max(n for n in range(1, min(places, sending.at_once) + 1) if places % n == 0)
    xs = (cohort.clients, cohort.ids, cohort.present)
    xs = jax.tree.map(lambda a: a.reshape(places // lanes, lanes, *a.shape[1:]), xs)

    def chunk(total, x):
        sums, after, single = jax.vmap(one)(*x)
        total = jax.tree.map(lambda t, s: t + jnp.sum(s, axis=0), total, sums)
        return total, (after, single if with_all else ())

    shapes = jax.eval_shape(lambda x: jax.vmap(one)(*x)[0], jax.tree.map(lambda a: a[0], xs))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape[1:], s.dtype), shapes)
    sums, (after, single) = jax.lax.scan(chunk, zeros, xs)
    flat = jax.tree.map(lambda a: a.reshape(places, *a.shape[2:]), (after, single))
    return sums, *flat
