"""Work that only some lanes of a batch need.

Under `vmap` a plain `lax.cond` computes both sides in all lanes, and a `while_loop` goes on in all until the last one
is done. `where_any` computes nothing where no lane needs it; `where_some` gathers the lanes that do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def pick(condition: jax.Array, yes: Any, no: Any) -> Any:
    """Leaf by leaf `yes` where the condition holds; its axes are the leaves' leading ones."""

    def one(a, b):
        return jnp.where(condition.reshape(condition.shape + (1,) * (jnp.ndim(a) - condition.ndim)), a, b)

    return jax.tree.map(one, yes, no)


def where_any(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function(*args)` where a condition holds, computed only if it holds anywhere in the whole batch.

    Under `vmap` a plain `lax.cond` computes both sides always.

    Returns:
      A function `(condition, other, *args)`: `function(*args)` where the condition holds, `other` elsewhere.
    """

    @jax.custom_batching.custom_vmap
    def chosen(condition, other, *args):
        return jax.lax.cond(jnp.any(condition), lambda: pick(condition, function(*args), other), lambda: other)

    @chosen.def_vmap
    def rule(size, batched, condition, other, *args):
        axes = jax.tree.map(lambda over: 0 if over else None, tuple(batched[2:]))

        def spread(tree, over):
            def one(a, b):
                return a if b else jnp.broadcast_to(a[None], (size, *a.shape))

            return jax.tree.map(one, tree, over)

        many = jax.vmap(function, in_axes=axes, axis_size=size)
        out = where_any(many)(spread(condition, batched[0]), spread(other, batched[1]), *args)
        return out, jax.tree.map(lambda _: True, out)

    return chosen


def where_some(function: Callable[..., Any], at_once: int = 128) -> Callable[..., Any]:
    """`function(shared, *args)` where a condition holds, computed in those lanes of the batch alone.

    They are gathered, so many at once, so that the work grows with their number, and a loop inside goes on for as long
    as the slowest of those needs. No derivatives in reverse.

    Returns:
      A function `(condition, other, shared, *args)`: `function(shared, *args)` where the condition holds, `other`
      elsewhere. `shared` should be the same in all lanes; where it is not, lanes are computed one after another.
    """

    @jax.custom_batching.custom_vmap
    def lanes(condition, other, shared, args):
        count, width = jnp.sum(condition), min(at_once, condition.shape[0])
        order = jnp.argsort(~condition, stable=True)

        def part(k, out):
            place = k * width + jnp.arange(width)
            row = order[jnp.minimum(place, condition.shape[0] - 1)]
            found = jax.vmap(lambda given: function(shared, *given))(jax.tree.map(lambda a: a[row], args))
            row = jnp.where(place < count, row, condition.shape[0])
            return jax.tree.map(lambda a, b: a.at[row].set(b, mode="drop"), out, found)

        return jax.lax.fori_loop(0, (count + width - 1) // width, part, other)

    @lanes.def_vmap
    def rule(size, batched, condition, other, shared, args):
        def spread(tree, over):
            return jax.tree.map(lambda a, b: a if b else jnp.broadcast_to(a[None], (size, *a.shape)), tree, over)

        own = (condition, other, args)
        condition, other, args = (spread(*one) for one in zip(own, (batched[0], batched[1], batched[3]), strict=True))
        if any(jax.tree.leaves(batched[2])):
            shared = spread(shared, batched[2])
            out = jax.lax.map(lambda one: lanes(*one), (condition, other, shared, args))
        else:
            flat = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), (condition, other, args))
            out = lanes(flat[0], flat[1], shared, flat[2])
            out = jax.tree.map(lambda a: a.reshape(size, -1, *a.shape[1:]), out)
        return out, jax.tree.map(lambda _: True, out)

    def chosen(condition, other, shared, *args):
        out = lanes(*jax.tree.map(lambda a: a[None], (condition, other)), shared, jax.tree.map(lambda a: a[None], args))
        return jax.tree.map(lambda a: a[0], out)

    return chosen
