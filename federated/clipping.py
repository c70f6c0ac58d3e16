"""Bounding what one client can change: updates clipped to a norm, given, by layer, or found while learning.

For an update Delta of all parameters and a bound C,

    clip(Delta) = Delta min(1, C / |Delta|),   |Delta| the Euclidean norm over all entries of all leaves

(H. B. McMahan, D. Ramage, K. Talwar and L. Zhang, "Learning differentially private recurrent language models", ICLR
2018). With a bound C_l for every leaf the whole has C = sqrt(sum_l C_l^2). The bound follows a quantile gamma of the
norms (G. Andrew, O. Thakkar, H. B. McMahan and S. Ramaswamy, "Differentially private learning with adaptive clipping",
NeurIPS 2021, algorithm 1 and theorem 1):

    b_i     = 1 if |Delta_i| <= C, else 0
    share   = (sum_i (b_i - 1/2) + N(0, sigma_b^2)) / m + 1/2
    C      <- C exp(-rate (share - gamma))
    z_Delta = (z^-2 - (2 sigma_b)^-2)^(-1/2)

The bits b_i count the updates that were NOT cut. The centred bits have sensitivity 1/2, so that a round which adds
noise of z_Delta C to the sum of updates, and of sigma_b to the bits, is one Gaussian mechanism of noise multiplier z.
The noise of a round belongs to the C that clipped this round: adapt C afterwards.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from federated.noise import gaussian

Tree = Any


def norm(tree: Tree) -> jax.Array:
    """The Euclidean norm over all entries of a pytree.

    Args:
      tree: arrays of floating numbers.

    Returns:
      () in the leaves' common type, at least float32. It neither overflows nor loses small entries on its way.

    Raises:
      ValueError: a leaf of integers, or no leaf.
    """
    leaves = _floating(tree)
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf), initial=0.0) for leaf in leaves]))
    scale = jnp.where(largest > 0, largest, 1.0)
    squares = jnp.stack([jnp.sum(jnp.square(leaf / scale)) for leaf in leaves])
    return scale * jnp.sqrt(jnp.sum(squares))


def clipped(tree: Tree, bound: jax.Array | float) -> tuple[Tree, jax.Array, jax.Array]:
    """An update, scaled down where its norm exceeds the bound.

    Args:
      tree: one client's update; under `vmap` those of many.
      bound: C, above 0.

    Returns:
      The update, in its own types; its norm () before; and `inside` (), 1.0 where the norm is at most the bound, else
      0.0. An update with an entry that is not finite becomes zeros, with norm 0, and counts as inside.

    Raises:
      ValueError: a bound that is not positive, or leaves that are not of floating numbers.

    Guarantees:
      The result's norm is at most `bound`, apart from the rounding of the leaves' type, whatever the update holds.
    """
    _positive(bound)
    tree, size = _finite(tree)
    factor = jnp.minimum(1.0, bound / jnp.where(size > 0, size, 1.0))
    factor = jnp.where(size > bound, factor, 1.0)
    return _scaled(tree, factor), size, (size <= bound).astype(size.dtype)


def layer_bounds(tree: Tree, bound: float) -> Tree:
    """C divided evenly: C_l = C / sqrt(leaves) for every leaf, so that sqrt(sum_l C_l^2) = C.

    Raises:
      ValueError: a bound that is not positive, or no leaf.
    """
    _positive(bound)
    leaves = len(_floating(tree))
    return jax.tree.map(lambda _: bound / math.sqrt(leaves), tree)


def clipped_by_layer(tree: Tree, bounds: Tree) -> tuple[Tree, jax.Array, jax.Array]:
    """An update of which every leaf is scaled down to its own bound.

    Args:
      tree: one client's update.
      bounds: C_l, a pytree like `tree` of positive numbers; see `layer_bounds`.

    Returns:
      As `clipped`: the update, its norm over all leaves before, and 1.0 where every leaf was within its bound.

    Guarantees:
      The result's norm is at most C = sqrt(sum_l C_l^2), which noise and accounting need, apart from rounding.
    """
    for bound in jax.tree.leaves(bounds):
        _positive(bound)
    tree, size = _finite(tree)
    parts = jax.tree.map(clipped, tree, bounds)
    leaves, structure = jax.tree.flatten(tree)
    cut = [part[0] for part in structure.flatten_up_to(parts)]
    inside = [part[2] for part in structure.flatten_up_to(parts)]
    within = jnp.min(jnp.stack([i.astype(size.dtype) for i in inside]))
    return (
        jax.tree.unflatten(structure, [c.astype(leaf.dtype) for c, leaf in zip(cut, leaves, strict=True)]),
        size,
        within,
    )


@dataclass(frozen=True)
class Adaptive:
    """How the bound follows the norms.

    Attributes:
      quantile: gamma, the share of updates that shall stay within the bound; above 0 and below 1.
      rate: of the geometric steps; above 0.
      start: the first C; above 0.
      count_noise: sigma_b of the noise on the centred bits; None takes `count_noise(expected)`.
    """

    quantile: float = 0.5
    rate: float = 0.2
    start: float = 0.1
    count_noise: float | None = None

    def __post_init__(self):
        if not (0 < self.quantile < 1 and self.rate > 0 and self.start > 0):
            raise ValueError(f"{self}: take a quantile between 0 and 1, and a rate and a start above 0")
        if self.count_noise is not None and self.count_noise < 0:
            raise ValueError(f"{self}: a count noise is at least 0")

    def noise_on_counts(self, expected: Any) -> Any:
        """sigma_b for this many expected clients a round, a float or an array."""
        return count_noise(expected) if self.count_noise is None else self.count_noise


def count_noise(expected: Any) -> Any:
    """The sigma_b of the paper's experiments, m / 20 for m expected clients a round."""
    return expected / 20


def update_noise(noise_multiplier: float, count_noise: float) -> float:
    """z_Delta: the updates' noise multiplier, so that updates and bits together are one mechanism of multiplier z.

    Args:
      noise_multiplier: z of the round, as accounted; 0 for no noise on the updates (nothing is claimed then).
      count_noise: sigma_b.

    Returns:
      z_Delta, at least z: noise of z_Delta C is added to the sum of the clipped updates.

    Raises:
      ValueError: z >= 2 sigma_b, with which the bits alone cost more than the whole round may.
    """
    if noise_multiplier < 0 or count_noise < 0:
        raise ValueError(f"noise {noise_multiplier} and count noise {count_noise}: neither may be negative")
    if noise_multiplier == 0:
        return 0.0
    if noise_multiplier >= 2 * count_noise:
        raise ValueError(
            f"noise multiplier {noise_multiplier} is not below twice the count noise {count_noise}: the bits of the "
            f"adaptive bound would cost more than the round; take a count noise well above {noise_multiplier / 2}, "
            "more clients a round, or a fixed bound"
        )
    return (noise_multiplier**-2 - (2 * count_noise) ** -2) ** -0.5


def adapted(
    bound: jax.Array | float, centred_sum: jax.Array, key: jax.Array, expected: float | jax.Array, config: Adaptive
) -> jax.Array:
    """The next round's C.

    Args:
      bound: C of this round, which also scales this round's noise.
      centred_sum: () sum over the clients that are present of (inside - 1/2), without noise. An absent client adds 0.
      key: for the noise on the bits; another than that of the updates' noise.
      expected: m, clients expected in a round: a public constant, not how many came.
      config: quantile, rate and noise.

    Returns:
      () C exp(-rate (share - quantile)).

    Guarantees:
      What is released of the bits is the Gaussian mechanism of sensitivity 1/2 (adding, removing or zeroing out one
      client; 1 for replacing one) and deviation sigma_b; `update_noise` accounts for it.
    """
    bits = gaussian(key, jnp.asarray(centred_sum), config.noise_on_counts(expected))
    share = bits / expected + 0.5
    return bound * jnp.exp(-config.rate * (share - config.quantile))


def _floating(tree: Tree) -> list[jax.Array]:
    """The leaves, in their common type and at least float32."""
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    if not leaves or not all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves):
        kinds = sorted({str(leaf.dtype) for leaf in leaves})
        raise ValueError(
            f"an update has leaves of floating numbers, and this one has {kinds or 'none'}: leave others out"
        )
    kind = jnp.result_type(jnp.float32, *(leaf.dtype for leaf in leaves))
    return [leaf.astype(kind) for leaf in leaves]


def _finite(tree: Tree) -> tuple[Tree, jax.Array]:
    """The update, or zeros where an entry is not finite; and its norm."""
    sound = jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in _floating(tree)]))
    tree = jax.tree.map(lambda leaf: jnp.where(sound, leaf, jnp.zeros_like(leaf)), tree)
    return tree, norm(tree)


def _scaled(tree: Tree, factor: jax.Array) -> Tree:
    return jax.tree.map(lambda leaf: (leaf * factor).astype(jnp.asarray(leaf).dtype), tree)


def _positive(bound: Any) -> None:
    if isinstance(bound, (int, float)) and not bound > 0:
        raise ValueError(f"a bound of {bound}: take a positive one")
