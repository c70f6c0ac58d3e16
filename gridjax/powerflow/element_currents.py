"""Currents into the elements of one kind, `I = Y v`, or the largest at each of their terminals."""

from __future__ import annotations

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from gridjax.branches import Branches, Taps
from gridjax.extremes import largest
from gridjax.namespace import einsum
from gridjax.native import calls
from gridjax.powerflow.chunks import batched

CHUNK = 64  # scenarios whose currents stay in a processor's cache, about


@flax.struct.dataclass
class Elements:
    """The matrices of one kind of element, volts of all nodes and the ground, and the taps if they have any."""

    branches: Branches
    node_volts: jax.Array
    taps: Taps


@functools.cache
def element_currents(series: bool, peaks: bool):
    """A function of elements, voltages v (nodes,) complex pu and the regulators' taps (regulators,), of one scenario.

    A transformer's currents at other taps than those of its matrix follow from scaled voltages: with `s` the ratio of
    the matrix's taps to the present ones, conductor by conductor, and its ties to ground g, which know nothing of
    taps, `I = s Y (s v) + (1 - s^2) g v`.

    Args:
      series: whether these are lines or switches, whose currents come from the difference of their ends' voltages: a
        switch of 1e-7 ohm has 1e8 times the admittance of a load, and products with both ends' voltages apart would
        leave a current from nowhere.
      peaks: whether it gives amperes (elements, terminals), the largest of a terminal's conductors, and not complex
        amperes (elements, terminals, conductors).
    """

    def plain(elements: Elements, v: jax.Array, tap: jax.Array) -> jax.Array:
        amps = _amperes(elements, v, tap, series)
        return largest(jnp.abs(amps), axis=-1) if peaks else amps

    kernel = batched(
        lambda elements, v, tap: jax.vmap(plain, in_axes=(None, 0, 0))(elements, v, tap),
        lambda _: CHUNK,
        functools.partial(calls.element_currents, series=series, peaks=peaks),
        usable=lambda _: calls.available(),
    )

    @jax.custom_jvp
    def currents(elements, v, tap):
        return kernel(elements, v[None], tap[None])[0]

    def rule(primals, tangents):
        leaves, tree = jax.tree.flatten(primals)
        changes = jax.tree.leaves(tangents, is_leaf=lambda t: type(t) is SymbolicZero)
        moved = [k for k, t in enumerate(changes) if type(t) is not SymbolicZero]
        out: Any = currents(*primals)

        def by_moved(values):
            whole = list(leaves)
            for k, value in zip(moved, values, strict=True):
                whole[k] = value
            return plain(*jax.tree.unflatten(tree, whole))

        if not moved:
            return out, jnp.zeros_like(out)
        return out, jax.jvp(by_moved, ([leaves[k] for k in moved],), ([changes[k] for k in moved],))[1]

    currents.defjvp(rule, symbolic_zeros=True)
    return currents


def _amperes(elements: Elements, v: jax.Array, tap: jax.Array, series: bool) -> jax.Array:
    """Complex amperes into each element of one scenario, (elements, terminals, conductors)."""
    branches, taps = elements.branches, elements.taps
    at = (jnp.append(v, jnp.zeros(1, v.dtype)) * elements.node_volts)[branches.nodes]
    y = jax.lax.complex(branches.y_re, branches.y_im)
    if series:
        return _series(y, at)
    s = tap_ratios(taps, tap)[:, :, None]
    seen = s * at
    amps = einsum("eij,ej->ei", y, seen.reshape(at.shape[0], -1)).reshape(at.shape)
    return s * amps + (1 - s**2) * jax.lax.complex(taps.ground_re, taps.ground_im) * at


def tap_ratios(taps: Taps, tap: jax.Array) -> jax.Array:
    """The taps of the matrices over the present ones, (elements, terminals)."""
    return jnp.where(taps.regulator < tap.shape[0], taps.tap / jnp.append(tap, 1.0)[taps.regulator], 1.0)


def _series(y: jax.Array, v: jax.Array) -> jax.Array:
    """That of two-terminal elements."""
    n = v.shape[2]
    out = []
    for here, there in ((0, 1), (1, 0)):
        own = y[:, here * n : here * n + n, here * n : here * n + n]
        mutual = y[:, here * n : here * n + n, there * n : there * n + n]
        series = einsum("eij,ej->ei", -mutual, v[:, here] - v[:, there])
        out.append(series + einsum("eij,ej->ei", own + mutual, v[:, here]))
    return jnp.stack(out, axis=1)
