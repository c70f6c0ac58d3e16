"""The search for the fixed point of a batch of scenarios; the method is described in `gridjax.control.regulation`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from gridjax.control.inverters import respond, terminal_voltages
from gridjax.control.settings import Inverters
from gridjax.grid import Grid, OperatingPoint
from gridjax.namespace import einsum, matmul
from gridjax.powerflow.chunks import batched
from gridjax.powerflow.solve import solve

_NEWTON = 12  # steps in the model
KRYLOV = 10  # in each of their linear systems
_TOGETHER = 256  # scenarios that are sought for together on a processor
_LEARNT = 8  # corrections of the model that are kept


@flax.struct.dataclass
class Rest:
    """Where a scenario's inverters come to rest.

    Attributes:
      u: (n,) terminal voltages in per unit of the ratings, from which their powers follow.
      gap: the largest difference between a power and what its curve asks for at the last power flow but one, per unit
        of a rating.
      flows: power flows made.
    """

    u: jax.Array
    gap: jax.Array
    flows: jax.Array


def flow_tolerance(tol: float) -> float:
    """Of a power flow whose voltages' error, times a curve's slope, shall not show in the gap."""
    return min(1e-8, 1e-2 * tol)


def voltages_at(grid: Grid, point: OperatingPoint, s: Inverters, kw, kvar, method: str, tol: float) -> jax.Array:
    """U(p, q), (n,)."""
    at = dataclasses.replace(point, generation_kw=kw, generation_kvar=kvar)
    return terminal_voltages(s, solve(grid, at, method=method, tol=tol).v)


@functools.lru_cache(maxsize=64)
def searcher(tol: float, limit: int, method: str):
    """The search for a batch; its `vmap` makes a larger one: loops inside a vmap would be traced over and over."""

    def run(shared, *scenarios):
        return _search(*shared, *scenarios, tol=tol, limit=limit, method=method)

    return batched(run, lambda _: _TOGETHER)


def powers_of(s: Inverters, points: OperatingPoint, *f_hz: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """The map x = h(u) for a batch: (batch, n) voltages to (batch, 2 n) active and reactive powers per unit."""

    def of(u, p, q, *f):
        kw, kvar = respond(s, u, p, q, *f)
        return jnp.concatenate([kw / s.kva, kvar / s.kva])

    return lambda u: jax.vmap(of)(u, points.generation_kw, points.generation_kvar, *f_hz)


def _search(grid, s, points, *f_hz, tol: float, limit: int, method: str) -> Rest:
    """The fixed points of a batch, without derivatives.

    Each stops when the next power flow, that of `regulate`, can be expected to show a gap within the tolerance.
    """
    powers = powers_of(s, points, *f_hz)

    def voltages(point, x):
        kw, kvar = (a * s.kva for a in jnp.split(x, 2))
        return voltages_at(grid, point, s, kw, kvar, method, flow_tolerance(tol))

    def going(at: _Search):
        return (at.gap > 0.5 * tol) & (at.expected > 0.2 * tol) & (at.flows < limit)

    def body(at: _Search):
        x, slope = jax.jvp(powers, (at.w,), (jnp.ones_like(at.w),))
        u = jax.vmap(voltages)(points, x)
        u = jnp.where(jnp.isfinite(u), u, at.w)
        gap = jnp.max(jnp.abs(powers(u) - x), axis=1, initial=0.0)
        learnt = _learn(s, at, x, u)
        # Where the model is too poor, its steps are shortened.
        poor = (gap > (1 - 0.2 * at.step) * at.gap) & (at.flows > 0)
        step = jnp.where(poor, jnp.maximum(at.step / 2, 1 / 16), jnp.minimum(1.0, 2 * at.step))
        further = _model(s, learnt, powers, at.w, slope, u, x)
        # What is learnt makes a step good now and then: the worse of the last two counts.
        rate = jnp.where(at.flows == 0, 0.0, gap / at.gap)
        likely = jnp.clip(3 * jnp.maximum(rate, at.rate), 0.02, 1.0)
        expected = gap * jnp.where(at.flows == 0, 1.0, likely)
        # Within the tolerance already, the powers stay what they are: their gap is known.
        w = jnp.where((gap <= 0.5 * tol)[:, None], at.w, at.w + step[:, None] * (further - at.w))
        new = dataclasses.replace(learnt, w=w, gap=gap, rate=rate, expected=expected, step=step, flows=at.flows + 1)
        return _where(going(at), new, at)

    b, n = points.generation_kw.shape
    dtype = s.kva.dtype
    zero, big = jnp.zeros((b, n), dtype), jnp.full(b, 1e3, dtype)
    begin = _Search(
        w=zero + 1, x=jnp.zeros((b, 2 * n), dtype), u=zero, gap=big, rate=jnp.zeros(b, dtype), expected=big,
        step=jnp.ones(b, dtype), flows=jnp.zeros(b, jnp.int32), along=jnp.zeros((b, _LEARNT, 2 * n), dtype),
        off=jnp.zeros((b, _LEARNT, n), dtype),
    )  # fmt: skip
    end = jax.lax.while_loop(lambda at: jnp.any(going(at)), body, begin)
    return Rest(u=end.w, gap=jnp.minimum(end.gap, end.expected), flows=end.flows)


def _where(which: jax.Array, new: Any, old: Any) -> Any:
    """`new` in the scenarios `which` (batch,), else `old`."""
    return jax.tree.map(lambda a, b: jnp.where(which.reshape(-1, *(1,) * (a.ndim - 1)), a, b), new, old)


@flax.struct.dataclass
class _Search:
    """The state of a batch's search: the model's answer w, the last power flow's x = h(w) and u, what was learnt of S.

    S d is `near d + sum_k off_k (along_k . d)`.
    """

    w: jax.Array
    x: jax.Array
    u: jax.Array
    gap: jax.Array
    rate: jax.Array
    expected: jax.Array
    step: jax.Array
    flows: jax.Array
    along: jax.Array
    off: jax.Array


def _learn(s: Inverters, at: _Search, x: jax.Array, u: jax.Array) -> _Search:
    """S corrected so that it holds between the last two power flows (C. G. Broyden, 1965)."""
    d = x - at.x
    square = jnp.sum(d * d, axis=1)
    useful = (at.flows > 0) & (square > 1e-24)
    off = (u - at.u - _times(s, at, d)) / jnp.where(useful, square, 1.0)[:, None]
    here = (jnp.arange(_LEARNT)[None] == (at.flows % _LEARNT)[:, None]) & useful[:, None]
    along, off = (jnp.where(here[..., None], a[:, None], b) for a, b in ((d, at.along), (off, at.off)))
    return dataclasses.replace(at, x=x, u=u, along=along, off=off)


def _times(s: Inverters, learnt: _Search, d: jax.Array) -> jax.Array:
    """S d for a batch, (batch, 2 n) to (batch, n), mostly in single precision: it is a model."""
    share = einsum("bkm,bm->bk", learnt.along, d)
    return times_near(s, d) + einsum("bk,bkn->bn", share, learnt.off)


def times_near(s: Inverters, d: jax.Array) -> jax.Array:
    """The given sensitivities times d for a batch, (batch, 2 n) to (batch, n)."""
    return matmul(d.astype(s.near.dtype), s.near.T).astype(d.dtype)


def _model(s: Inverters, learnt: _Search, powers, w_k, slope, u_k, x_k) -> jax.Array:
    """The w (batch, n) with w = u_k + S (h(w) - x_k), to a two-hundredth of the change that is left to make.

    `slope` (batch, 2 n) is that of h at w_k, where x_k = h(w_k).
    """
    single = s.near.dtype
    coarse = dataclasses.replace(learnt, along=learnt.along.astype(single), off=learnt.off.astype(single))

    def direction(slope, r):
        return residuals(lambda z: z - _times(s, coarse, slope * jnp.tile(z, 2)), r, None, KRYLOV, 1e-2)

    def body(carry):
        w, slope, r, size, step, count = carry
        unit = jnp.where(size > 0, size, 1.0)[:, None]
        d = direction(slope.astype(single), (r / unit).astype(single)).astype(w.dtype)
        new = w + step[:, None] * unit * d
        x, slope_there = jax.jvp(powers, (new,), (jnp.ones_like(new),))
        left = u_k + _times(s, learnt, x - x_k) - new
        after = jnp.max(jnp.abs(left), axis=1, initial=0.0)
        shorter = jnp.where(after > (1 - 0.1 * step) * size, jnp.maximum(step / 2, 1 / 8), 1.0)
        going = size > goal
        out = _where(going, (new, slope_there, left, after, shorter), (w, slope, r, size, step))
        return *out, count + 1

    first = u_k - w_k
    size = jnp.max(jnp.abs(first), axis=1, initial=0.0)
    goal = 5e-3 * size
    begin = w_k, slope, first, size, jnp.ones_like(size), jnp.zeros((), jnp.int32)
    return jax.lax.while_loop(lambda c: jnp.any(c[3] > goal) & (c[5] < _NEWTON), body, begin)[0]


def residuals(
    matvec: Callable[[jax.Array], jax.Array],
    right: jax.Array,
    near: Callable[[jax.Array], jax.Array] | None,
    steps: int,
    rtol: float,
) -> jax.Array:
    """Solves `matvec(x) = right` for a batch of systems, (batch, n), by generalised conjugate residuals.

    Args:
      matvec: each system's matrix times its vector.
      right: the right-hand sides.
      near: about the inverse's product with vectors; None is the identity.
      steps: at most; static.
      rtol: the residual that is small enough, in units of the largest entry of a system's `right`.
    """
    tiny = float(jnp.finfo(right.dtype).tiny) ** 0.5
    goal = rtol * jnp.max(jnp.abs(right), axis=1, initial=0.0)

    def body(carry):
        x, r, zs, az, k = carry
        z = r if near is None else near(r)
        a = matvec(z)
        for _ in range(2):  # twice is enough (W. Kahan; B. Parlett, 1980)
            c = einsum("bkn,bn->bk", az, a)
            z, a = z - einsum("bk,bkn->bn", c, zs), a - einsum("bk,bkn->bn", c, az)
        norm = jnp.sqrt(jnp.sum(a * a, axis=1, keepdims=True))
        z, a = (jnp.where(norm > tiny, e / jnp.maximum(norm, tiny), 0.0) for e in (z, a))
        along = jnp.sum(a * r, axis=1, keepdims=True)
        return x + along * z, r - along * a, zs.at[:, k].set(z), az.at[:, k].set(a), k + 1

    def going(carry):
        return jnp.any(jnp.max(jnp.abs(carry[1]), axis=1, initial=0.0) > goal) & (carry[4] < steps)

    room = jnp.zeros((right.shape[0], steps, right.shape[1]), right.dtype)
    begin = jnp.zeros_like(right), right, room, room, jnp.zeros((), jnp.int32)
    return jax.lax.while_loop(going, body, begin)[0]
