"""What leaves a trajectory under trajectory-level privacy: clipped, summed with that of the others, noise added once.

M. Abadi et al., "Deep learning with differential privacy", CCS 2016, algorithm 1, with a whole trajectory as the
example. For what trajectory k would tell, g_k (the gradient of its own mean loss), p_k = 1 where it was drawn, the
clip C, the noise multiplier z and the public number m of trajectories that are expected:

    g = (sum_k p_k g_k min(1, C / |g_k|) + N(0, (z C)^2 I)) / m

Adding or removing one trajectory moves the sum by at most C. m is a constant: the number that was drawn is as private
as the trajectories. Trajectories are the places of a vmap's named axis, and the sum is a collective over it, so that a
loss that knows nothing of privacy is private as soon as its gradient goes through `noisy_mean`; see
`algorithms.private_training`.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

AXIS = "trajectories"


@dataclass(frozen=True)
class Private:
    """How trajectories are protected; static.

    Attributes:
      clip: C, of the global norm of what one trajectory tells in one release.
      noise_multiplier: z, the noise's standard deviation over C; 0 is no privacy.
      expected: m, how many trajectories an update is expected to see, a public number.
      rows: of a trajectory's steps in an update, drawn with replacement; None takes all, where all are equally long.

    Raises:
      ValueError: numbers that make no sense.
    """

    clip: float
    noise_multiplier: float
    expected: float
    rows: int | None = None

    def __post_init__(self) -> None:
        """Refuses numbers that make no sense."""
        if not (0 < self.clip < math.inf and 0 <= self.noise_multiplier < math.inf and 0 < self.expected < math.inf):
            raise ValueError(f"{self}: take a positive clip and expected number, and a noise multiplier of 0 or more")
        if self.rows is not None and self.rows < 1:
            raise ValueError(f"rows {self.rows}: take at least 1, or None for all steps")


@flax.struct.dataclass
class Release:
    """What a trajectory's releases need; inside a vmap over the axis "trajectories".

    Attributes:
      key: of the noise, the same for all trajectories.
      present: () 1 where the trajectory was drawn, else 0.
      setting: static.
    """

    key: jax.Array
    present: jax.Array
    setting: Private = flax.struct.field(pytree_node=False)


def clipped(tree: Any, clip: float) -> Any:
    """A tree of which the global norm is at most `clip`; zeros where the norm is not finite.

    Guarantees:
      The norm exceeds the clip by no more than the rounding of its own sum. No trajectory can make the sum infinite or
      not a number.
    """
    norm = jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree)))
    scale = clip / jnp.maximum(norm, clip)
    return jax.tree.map(lambda leaf: jnp.where(jnp.isfinite(norm), leaf * scale, 0.0).astype(leaf.dtype), tree)


def noisy_mean(release: Release, tree: Any) -> tuple[Release, Any]:
    """The noisy mean g of what each trajectory would tell, and the release with a key for the next one.

    Args:
      release: of this trajectory.
      tree: g_k, of this trajectory.

    Returns:
      The release, and g, which is the same in all places of the axis.

    Guarantees:
      z-Gaussian in C for adding or removing one trajectory, for ideal arithmetic and randomness: single or double
      precision and JAX's generator are neither.
    """
    key, own = jax.random.split(release.key)
    return release.replace(key=key), gaussian_release(own, release.present, tree, release.setting)  # type: ignore[attr-defined]


# Compiled apart so that it keeps its name in a program, where `algorithms.private_training.releases` counts it.
@functools.partial(jax.jit, static_argnames="setting")
def gaussian_release(key: jax.Array, present: jax.Array, tree: Any, setting: Private) -> Any:
    """g; `noisy_mean` is its caller."""
    mine = jax.tree.map(lambda leaf: leaf * present.astype(leaf.dtype), clipped(tree, setting.clip))
    leaves, form = jax.tree.flatten(jax.lax.psum(mine, AXIS))
    std = setting.noise_multiplier * setting.clip
    noisy = [
        (leaf + std * jax.random.normal(k, leaf.shape, leaf.dtype)) / setting.expected
        for leaf, k in zip(leaves, jax.random.split(key, len(leaves)), strict=True)
    ]
    return jax.tree.unflatten(form, noisy)
