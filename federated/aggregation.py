"""How the clients' updates become one.

For updates Delta_i of those present, with rows n_i,

    Mean          sum_i Delta_i / number (or a fixed, public denominator)
    Weighted      sum_i n_i Delta_i / sum_i n_i                       (McMahan et al. 2017, alg. 1)
    Merit         sum_i w_i Delta_i, w_i ~ n_i exp(merit_i / T)       (after D. Rengarajan et al., "Federated ensemble-
                                                                       directed offline RL", 2024, eq. 6)
    Median        of each coordinate                                  (D. Yin et al., ICML 2018, def. 1)
    TrimmedMean   of each coordinate without its lowest and highest   (the same, def. 2)
    Krum          the mean of the `keep` updates whose n - f - 2 nearest ones are nearest
                                                                      (P. Blanchard et al., NIPS 2017)

Only `Mean` has a sensitivity that does not depend on the others' values, the clip's norm over the denominator: it alone
has a privacy claim, and `federated.round` refuses the others under privacy. The last three need every single update,
and so exclude secure aggregation, which shows the sum alone. Bounding norms is `federated.clipping`, under any rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

Tree = Any
TINY = 1e-12


@dataclass(frozen=True)
class Mean:
    """Everyone counts the same."""


@dataclass(frozen=True)
class Weighted:
    """By rows of data."""


@dataclass(frozen=True)
class Merit:
    """By rows and by how good a client's result is; T is in the units of the merit."""

    temperature: float = 1.0


@dataclass(frozen=True)
class Median:
    """Of each coordinate, the middle one or the mean of the two middle ones."""


@dataclass(frozen=True)
class TrimmedMean:
    """Without this share of the lowest and of the highest, each rounded down; below a half."""

    share: float = 0.2


@dataclass(frozen=True)
class Krum:
    """For at most `byzantine` bad ones; `keep` above 1 is multi-Krum."""

    byzantine: int
    keep: int = 1


Linear = Mean | Weighted | Merit
Single = Median | TrimmedMean | Krum
Rule = Linear | Single


def weight(rule: Linear, rows: jax.Array, merit: jax.Array, most: jax.Array) -> jax.Array:
    """A client's weight, before it is divided by their sum; `most` is the highest merit of all present."""
    if isinstance(rule, Mean):
        return jnp.ones_like(merit)
    n = rows.astype(merit.dtype)
    return n if isinstance(rule, Weighted) else n * jnp.exp((merit - most) / rule.temperature)


def combined(rule: Single, updates: Tree, present: jax.Array) -> Tree:
    """One update from all single ones.

    Args:
      rule: how.
      updates: leaves (clients, ...).
      present: (clients,) 1 or 0; the absent ones have no part in it.

    Raises:
      ValueError: a share of a half or more, or Krum with numbers that leave no neighbour even if all are present.
    """
    if isinstance(rule, Krum):
        return _krum(rule, updates, present)
    if isinstance(rule, TrimmedMean) and not 0 <= rule.share < 0.5:
        raise ValueError(f"a trimmed share of {rule.share:g}: take one from 0 to below 0.5")
    number = jnp.sum(present > 0)

    def one(leaf):
        here = _column(present > 0, leaf)
        ordered = jnp.sort(jnp.where(here, leaf, jnp.inf), axis=0)  # the absent ones come last
        place = jnp.arange(leaf.shape[0])
        if isinstance(rule, Median):
            counts = 0.5 * ((place == (number - 1) // 2) + 1.0 * (place == number // 2))
        else:
            cut = jnp.floor(rule.share * number + 1e-9)
            inside = (place >= cut) & (place < number - cut)
            counts = inside / jnp.maximum(number - 2 * cut, 1)
        chosen = jnp.where(_column(counts > 0, leaf), ordered, 0.0)  # never 0 * inf
        return jnp.sum(chosen * _column(counts.astype(leaf.dtype), leaf), axis=0)

    return jax.tree.map(one, updates)


def _krum(rule: Krum, updates: Tree, present: jax.Array) -> Tree:
    clients = present.shape[0]
    if rule.byzantine < 0 or not 1 <= rule.keep <= clients or clients - rule.byzantine - 2 < 1:
        raise ValueError(
            f"Krum for {rule.byzantine} bad ones of {clients}, keeping {rule.keep}: it needs at least three more "
            "clients than bad ones, and keeps at most all"
        )
    flat = jnp.concatenate([leaf.reshape(clients, -1) for leaf in jax.tree.leaves(updates)], axis=1)
    square = jax.lax.map(lambda one: jnp.sum((flat - one[None]) ** 2, axis=1), flat)
    both = (present[:, None] > 0) & (present[None] > 0) & ~jnp.eye(clients, dtype=bool)
    near = jnp.sort(jnp.where(both, square, jnp.inf), axis=1)
    counted = jnp.arange(clients)[None] < jnp.maximum(jnp.sum(present > 0) - rule.byzantine - 2, 1)
    score = jnp.where(present > 0, jnp.sum(jnp.where(counted, near, 0.0), axis=1), jnp.inf)
    rank = jnp.argsort(jnp.argsort(score))
    kept = (rank < rule.keep) & (present > 0)
    share = kept / jnp.maximum(jnp.sum(kept), 1)
    return jax.tree.map(
        lambda a: jnp.sum(jnp.where(_column(kept, a), a, 0.0) * _column(share.astype(a.dtype), a), axis=0), updates
    )


def _column(x: jax.Array, like: jax.Array) -> jax.Array:
    return x.reshape((-1,) + (1,) * (like.ndim - 1))
