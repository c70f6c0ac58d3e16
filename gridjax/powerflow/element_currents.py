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
from gridjax.powerflow.response import linear_solve, no_change

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

    def plain_adjoint(elements, v, tap, bar):
        def one(v, tap, bar):
            parts = v.real, v.imag, tap
            return jax.vjp(lambda re, im, tap: plain(elements, jax.lax.complex(re, im), tap), *parts)[1](bar)

        return jax.vmap(one)(v, tap, bar)

    adjoint = batched(
        plain_adjoint, lambda _: CHUNK, functools.partial(calls.largest_cotangent, series=series),
        usable=lambda _: calls.available(),
    )  # fmt: skip

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
        if peaks and moved[0] >= len(leaves) - 2:  # nothing of the elements
            return out, answer(*primals, *tangents[1:])
        return out, jax.jvp(by_moved, ([leaves[k] for k in moved],), ([changes[k] for k in moved],))[1]

    def answer(elements, v, tap, dv, dtap):
        """The change of the peaks, for whose transpose JAX takes the kernel: see `gridjax.powerflow.solve._answer`."""
        change = {}
        if type(dv) is not SymbolicZero:
            change |= {"re": dv.real, "im": dv.imag}
        if type(dtap) is not SymbolicZero and dtap.size and not series:
            change |= {"tap": dtap}

        def forward(part):
            point = {"re": v.real, "im": v.imag, "tap": tap}
            still = {k: a for k, a in point.items() if k not in part}

            def of(part):
                at = still | part
                return plain(elements, jax.lax.complex(at["re"], at["im"]), at["tap"])

            return jax.jvp(of, ({k: point[k] for k in part},), (part,))[1]

        def matvec(b):
            return b[0], b[1] - forward(b[0])

        def solve(_, b):
            return b[0], b[1] + forward(b[0])

        def transposed(_, b):
            bars = dict(zip(("re", "im", "tap"), adjoint(elements, v[None], tap[None], b[1][None]), strict=True))
            return {k: a + bars[k][0] for k, a in b[0].items()}, b[1]

        if not change:  # lines have no taps
            return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(plain, elements, v, tap))
        none = no_change(next(iter(change.values())), jax.eval_shape(plain, elements, v, tap))
        return linear_solve(matvec, (change, none), solve, transposed)[1]

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
