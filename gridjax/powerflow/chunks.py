"""From one scenario to many: `vmap` as one larger batch, in chunks that stay in a cache, over all devices."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

from gridjax.native import calls


def batched(
    run: Callable[..., Any],
    chunk: Callable[[Any], int],
    native: Callable[..., Any] | None = None,
    usable: Callable[[Any], bool] = calls.usable,
) -> Callable[..., Any]:
    """A function of a grid and batches as one whose `vmap` over scenarios makes a larger batch.

    A plain vmap would batch loops, and put the batch first, where every product is a transpose. Under
    `jax.set_mesh(mesh)`, mesh axes being `AxisType.Auto`, a batch that the devices divide is spread over them.

    Args:
      run: `(grid, *batches)` to a pytree, scenario by scenario; batches and results are pytrees of (batch, ...).
      chunk: from a grid to the scenarios of a chunk.
      native: what a processor runs instead, whole batches at a time.
      usable: for which grids it can; those that have a tree.
    """

    def tiers(grid, *batches):
        return in_chunks(lambda part: run(grid, *part), batches, chunk(grid))

    def on_device(grid, *batches):
        if native is None or not usable(grid):
            return tiers(grid, *batches)
        return _by_platform(native, tiers, grid, *batches)

    many = functools.partial(_over_devices, on_device)

    kernel = jax.custom_batching.custom_vmap(many)

    @kernel.def_vmap
    def rule(size, over, grid, *batches):
        if not any(jax.tree.leaves(over)):  # as when only a tangent has an axis
            out = many(grid, *batches)
            return out, jax.tree.map(lambda _: False, out)
        over_grid, *over_batches = over
        batches = jax.tree.map(
            lambda a, b: a if b else jnp.broadcast_to(a[None], (size, *a.shape)), batches, tuple(over_batches)
        )
        if any(jax.tree.leaves(over_grid)):
            in_turn = functools.partial(_in_turn, many, over_grid)
            together = functools.partial(_together, functools.partial(_over_devices, tiers), over_grid, chunk)
            here = native is not None and usable(grid)
            out = _by_platform(in_turn, together, grid, *batches) if here else together(grid, *batches)
        else:
            flat = jax.tree.map(lambda a: a.reshape(a.shape[0] * a.shape[1], *a.shape[2:]), batches)
            out = kernel(grid, *flat)
            out = jax.tree.map(lambda a: a.reshape(size, a.shape[0] // size, *a.shape[1:]), out)
        return out, jax.tree.map(lambda _: True, out)

    return kernel


def _by_platform(processor: Callable[..., Any], others: Callable[..., Any], *args: Any) -> Any:
    """What a processor runs, or what the others do, on the one that the program is compiled for."""
    if jax.default_backend() == "cpu":  # then there is nothing else
        return processor(*args)
    return jax.lax.platform_dependent(*args, cpu=processor, default=others)


def _over_devices(function: Callable[..., Any], grid: Any, *batches: Any) -> Any:
    """A batch over all devices of the mesh that is set, if they divide it."""
    mesh = jax.sharding.get_abstract_mesh()
    rows = jax.tree.leaves(batches)[0].shape[0]
    if mesh.empty or rows % mesh.size or any(kind != AxisType.Auto for kind in mesh.axis_types):
        return function(grid, *batches)
    over = PartitionSpec(mesh.axis_names)
    specs = (PartitionSpec(), *(over for _ in batches))
    return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=over, check_vma=False)(grid, *batches)


def _parts(grid: Any, over: Any) -> tuple[list, Callable[[list], Any]]:
    """The leaves of stacked grids that differ from grid to grid, and how one's make a grid."""
    leaves, tree = jax.tree.flatten(grid)
    mapped = jax.tree.leaves(over)

    def whole(own):
        parts = iter(own)
        return jax.tree.unflatten(tree, [next(parts) if m else leaf for leaf, m in zip(leaves, mapped, strict=True)])

    return [leaf for leaf, m in zip(leaves, mapped, strict=True) if m], whole


def _in_turn(many: Callable[..., Any], over: Any, grid: Any, *batches: Any) -> Any:
    """`many` for grids of their own batches each, one after the other."""
    own, whole = _parts(grid, over)
    return jax.lax.map(lambda args: many(whole(args[0]), *args[1]), (own, batches))


def _together(many: Callable[..., Any], over: Any, chunk: Callable[[Any], int], grid: Any, *batches: Any) -> Any:
    """The same for as many grids at once as make up a chunk."""
    own, whole = _parts(grid, over)
    scenarios = jax.tree.leaves(batches)[0].shape[1]
    at_once = max(1, chunk(whole([leaf[0] for leaf in own])) // max(1, scenarios))
    return in_chunks(jax.vmap(lambda args: many(whole(args[0]), *args[1])), (own, batches), at_once)


def in_chunks(function: Callable[[Any], Any], batch: Any, size: int) -> Any:
    """Applies a batched function to a batch: on a processor chunk by chunk, elsewhere at once.

    Args:
      function: maps a pytree of arrays (n, ...) to one of arrays (n, ...), row by row, for any n.
      batch: a pytree of arrays (batch, ...).
      size: rows of a chunk, about.

    Returns:
      What `function(batch)` returns.
    """
    rows = jax.tree.leaves(batch)[0].shape[0]
    if rows <= size:
        return function(batch)
    return jax.lax.platform_dependent(batch, cpu=lambda b: _chunked(function, b, rows, size), default=function)


def _chunked(function: Callable[[Any], Any], batch: Any, rows: int, size: int) -> Any:
    chunks = -(-rows // size)
    size = -(-rows // chunks)
    short = chunks * size - rows  # the last scenario again and again

    def split(a):
        a = jnp.concatenate([a, jnp.broadcast_to(a[-1:], (short, *a.shape[1:]))]) if short else a
        return a.reshape(chunks, size, *a.shape[1:])

    out = jax.lax.map(function, jax.tree.map(split, batch))
    return jax.tree.map(lambda a: a.reshape(chunks * size, *a.shape[2:])[:rows], out)
