"""The largest and the smallest of some numbers, with derivatives that do not depend on how a program is compiled.

`jnp.max` has as its slope 1 over the number of entries that equal the maximum. A compiler may compute the entries
twice, with other roundings, once to find the maximum and once to compare with it; where none is equal, the slope is
1 / 0. Here the slope is that of one entry, which is looked up by its place.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def largest(a: jax.Array, axis: int | None = None) -> jax.Array:
    """As `jnp.max`; of several that are equal the first has the slope."""
    return jnp.max(a, axis)


@largest.defjvp
def _slope(axis, primals, tangents):
    (a,), (change,) = primals, tangents
    if axis is None:
        a, change, axis = a.reshape(-1), change.reshape(-1), 0
    place = jnp.argmax(a, axis=axis, keepdims=True)
    first, moved = (jnp.squeeze(jnp.take_along_axis(x, place, axis=axis), axis=axis) for x in (a, change))
    return first, moved


def smallest(a: jax.Array, axis: int | None = None) -> jax.Array:
    """As `jnp.min`, likewise."""
    return -largest(-a, axis)
