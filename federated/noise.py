"""Gaussian noise on pytrees, and keys from the operating system.

    noisy = x + N(0, std^2)   for every entry x of every leaf, all draws independent

In the central mechanism `std` is z C, and the noise goes ONCE onto the sum of all clients' clipped updates: after the
`psum` over shards, with the same key on all of them, so that each holds the same noisy sum. Added before the `psum` it
would come once a shard: with one key its deviation grows with their number, and with a key each with its root.

These numbers come from JAX's threefry generator in floating point. That is good enough for research, and is not a
cryptographic source: keys have 64 bits, and the low-order bits of floating-point noise can tell of the sum underneath
(I. Mironov, "On significance of the least significant bits for differential privacy", CCS 2012). A claim made with them
holds for ideal arithmetic; `federated.statement` says so.
"""

from __future__ import annotations

import math
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Tree = Any


def gaussian(key: jax.Array, tree: Tree, std: jax.Array | float) -> Tree:
    """A pytree with independent normal noise on every entry.

    Args:
      key: for this noise alone. Nobody who must not learn the sum may know it, so keep it out of logs and files.
      tree: arrays of floating numbers.
      std: of the noise, () and at least 0, in the units of the entries.

    Returns:
      The noisy tree; every leaf keeps its shape and type, and has a key of its own.

    Raises:
      ValueError: no key, a negative deviation, or a leaf that is not of floating numbers.
    """
    if key is None:
        raise ValueError(
            "noise needs a key: give jax.random.key(...), or federated.noise.fresh_key() for a real release"
        )
    if isinstance(std, (int, float)) and not std >= 0:
        raise ValueError(f"a deviation of {std}: take 0 or more")
    leaves, structure = jax.tree.flatten(tree)
    leaves = [jnp.asarray(leaf) for leaf in leaves]
    keys = jax.random.split(key, max(len(leaves), 1))
    return jax.tree.unflatten(structure, [_noisy(keys[i], leaf, std) for i, leaf in enumerate(leaves)])


def noise_to_clip(noise_multiplier: float, entries: int, expected: float) -> float:
    """How large a round's noise is beside the largest update of one client: z sqrt(d) / m.

    Noise of z C on each of d entries has a norm of about z C sqrt(d), and the mean divides it by m. If all clients
    agreed and none were below the bound, their mean would have norm C: beyond a ratio of about 1 noise moves the
    parameters more than learning does in a round. Over T rounds it grows by sqrt(T), and learning by at most T.

    Args:
      noise_multiplier: z.
      entries: d, numbers in an update.
      expected: m, the denominator.
    """
    return noise_multiplier * math.sqrt(entries) / expected


def fresh_key() -> jax.Array:
    """A key of 64 bits from the operating system.

    `jax.random.key(seed)` keeps only the low 32 bits of a seed unless x64 is on, and a seed that reproduces a run also
    reproduces its noise, which then protects nobody. Take seeds for data and networks, and this for released noise.
    """
    return jax.random.wrap_key_data(jnp.asarray(np.frombuffer(os.urandom(8), np.uint32)), impl="threefry2x32")


def _noisy(key: jax.Array, leaf: jax.Array, std: jax.Array | float) -> jax.Array:
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        raise ValueError(f"noise goes onto floating numbers, and a leaf is of {leaf.dtype}: leave it out")
    # Draws of half precision would have too few values and too short tails.
    kind = jnp.promote_types(leaf.dtype, jnp.float32)
    draw = jax.random.normal(key, leaf.shape, kind)
    return (leaf.astype(kind) + jnp.asarray(std, kind) * draw).astype(leaf.dtype)
