"""Smaller updates: what a client sends, and how many bytes that is.

    Quantised   each leaf's entries in steps of s = max |x| / (2^(b-1) - 1), rounded up or down by chance so that the
                mean is x itself (D. Alistarh et al., "QSGD", NIPS 2017, eq. 3 with the largest entry as the scale)
    TopK        the largest entries alone; what is left out is added to the next update (error feedback, S. U. Stich,
                J.-B. Cordonnier and M. Jaggi, NeurIPS 2018, alg. 1)

Bytes are what a plain format would need: 4 for each number, b / 8 for each quantised entry and 4 for its leaf's scale,
8 for each kept entry (number and place).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

Tree = Any
NUMBER, PLACE = 4, 4  # bytes


@dataclass(frozen=True)
class Whole:
    """As it is."""


@dataclass(frozen=True)
class Quantised:
    """In so many bits an entry, 2 to 16."""

    bits: int = 8

    def __post_init__(self) -> None:
        """Refuses what makes no sense."""
        if not 2 <= self.bits <= 16:
            raise ValueError(f"{self.bits} bits: take 2 to 16")


@dataclass(frozen=True)
class TopK:
    """This share of all entries, at least one."""

    share: float = 0.1

    def __post_init__(self) -> None:
        """Refuses what makes no sense."""
        if not 0 < self.share <= 1:
            raise ValueError(f"a share of {self.share:g}: take one above 0, at most 1")


Compression = Whole | Quantised | TopK


def compressed(how: Compression, key: jax.Array, update: Tree, residual: Tree) -> tuple[Tree, Tree]:
    """The update as it arrives, and what stays with the client: as the update with `TopK`, else ()."""
    if isinstance(how, Quantised):
        leaves, tree = jax.tree.flatten(update)
        keys = jax.random.split(key, len(leaves))
        return tree.unflatten([_quantised(k, a, how.bits) for k, a in zip(keys, leaves, strict=True)]), residual
    if isinstance(how, TopK):
        whole = jax.tree.map(jnp.add, update, residual)
        size = jnp.concatenate([jnp.abs(a).ravel() for a in jax.tree.leaves(whole)])
        least = jax.lax.top_k(size, kept(how, size.shape[0]))[0][-1]
        sent = jax.tree.map(lambda a: jnp.where(jnp.abs(a) >= least, a, 0.0), whole)
        return sent, jax.tree.map(jnp.subtract, whole, sent)
    return update, residual


def kept(how: TopK, entries: int) -> int:
    """How many entries are sent (more, where several are as large as the last)."""
    return max(1, round(how.share * entries))


def sent_bytes(how: Compression, update: Tree) -> int:
    """Of one update, from its shapes alone."""
    sizes = [math.prod(a.shape) for a in jax.tree.leaves(update)]
    if isinstance(how, Quantised):
        return sum(math.ceil(n * how.bits / 8) + NUMBER for n in sizes)
    if isinstance(how, TopK):
        return kept(how, sum(sizes)) * (NUMBER + PLACE)
    return sum(sizes) * NUMBER


def _quantised(key: jax.Array, x: jax.Array, bits: int) -> jax.Array:
    step = jnp.max(jnp.abs(x)) / (2 ** (bits - 1) - 1)
    ticks = jnp.floor(x / jnp.where(step > 0, step, 1.0) + jax.random.uniform(key, x.shape, x.dtype))
    return jnp.where(step > 0, ticks * step, 0.0)
