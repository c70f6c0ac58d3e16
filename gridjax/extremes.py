"""The largest and the smallest of some numbers, with derivatives that do not depend on how a program is compiled.

`jnp.max` has as its slope 1 over the number of entries that equal the maximum. A compiler may compute the entries
twice, with other roundings, once to find the maximum and once to compare with it; where none is equal, the slope is
1 / 0. Here the entry is chosen first, and the slope is that of the entry.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def largest(a: jax.Array, axis: int | None = None) -> jax.Array:
    """As `jnp.max`; of several that are equal the first has the slope."""
    if axis is None:
        a, axis = a.reshape(-1), 0
    place = jnp.argmax(jax.lax.stop_gradient(a), axis=axis, keepdims=True)
    return jnp.squeeze(jnp.take_along_axis(a, place, axis=axis), axis=axis)


def smallest(a: jax.Array, axis: int | None = None) -> jax.Array:
    """As `jnp.min`, likewise."""
    return -largest(-a, axis)
