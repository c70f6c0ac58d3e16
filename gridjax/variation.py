"""Random variation that is correlated in time and between neighbours.

A factor model. Site i's variation is a stationary Gaussian process of mean 0 and variance 1,

    z_i(t) = sqrt(a) c(t) + sqrt(b) n_i(t) + sqrt(1 - a - b) o_i(t),    corr(n_i, n_j) = exp(-d_ij / ell),

of a part that all sites share, a part that neighbours share more the nearer they are, and a part of its own; so
corr(z_i, z_j) = a + b exp(-d_ij / ell) at one instant. In time each part has a time constant tau and is either

    rough   r(s) = exp(-s / tau)                    Ornstein and Uhlenbeck (1930): jitters like customers' demand
    smooth  r(s) = (1 + s / tau) exp(-s / tau)      Matern 3/2: crosses a level u upwards 1/(2 pi tau) exp(-u^2/2)
                                                    times an hour (Rice, 1944), as clouds do

Both are sampled exactly at any step. A rough process goes on over midnight though each day is drawn by itself: its
values at midnights X_d come from the key and d alone, and the day's path is tied to the next one (Rasmussen and
Williams, "Gaussian processes for machine learning", 2006, eqs. 2.22 to 2.24, for this covariance):

    x(t) <- x(t) + k(t) (X_{d+1} - x(T)),    k(t) = exp(-(T - t)/tau) (1 - exp(-2 t/tau)) / (1 - exp(-2 T/tau)).

A smooth process begins anew each midnight, when no sun tells.
"""

from __future__ import annotations

import math

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from gridjax.namespace import matmul

DAY_H = 24.0
MEMORY = 16  # days that a midnight's value looks back
LONGEST_H = 48.0  # of a time constant; what a midnight's memory holds
FIRST = 1 << 20  # added to day numbers, so that none is negative where it is folded into a key


@flax.struct.dataclass
class Factors:
    """How much each part weighs and how long it lasts.

    Attributes:
      common, near: shares a and b of the variance, a + b <= 1.
      tau_h: (3,) time constants in hours of the common, the neighbours' and the own part.
      mixing: (sites, rank) the neighbours' parts from independent ones.
      rest: (sites,) what the mixing leaves of each variance, a part of each site's own.
    """

    common: jax.Array
    near: jax.Array
    tau_h: jax.Array
    mixing: jax.Array
    rest: jax.Array


def factors(
    distance_km: np.ndarray,
    *,
    common: float,
    near: float,
    reach_km: float,
    tau_h: tuple[float, float, float],
    rank: int = 64,
) -> Factors:
    """The factor model of sites at given distances.

    Args:
      distance_km: (sites, sites), symmetric, 0 on the diagonal; infinite where sites have nothing in common.
      common: share of the variance that all sites have in common.
      near: share that neighbours have in common.
      reach_km: distance at which that share's correlation falls to 1/e.
      tau_h: time constants of the common, the neighbours' and the own part.
      rank: independent parts to mix; with fewer than there are sites the correlation between neighbours is the best
        of that rank, and each variance remains 1.

    Raises:
      ValueError: shares, distances or time constants make no sense.
    """
    d = np.asarray(distance_km, float)
    if d.ndim != 2 or d.shape[0] != d.shape[1] or np.isnan(d).any() or (d < 0).any() or not np.array_equal(d, d.T):
        raise ValueError("distances must be a square symmetric matrix of numbers that are not negative")
    if min(common, near) < 0 or common + near > 1:
        raise ValueError(f"shares {common:g} and {near:g} of the variance: both must be >= 0 and their sum <= 1")
    if reach_km <= 0 or min(tau_h) <= 0 or max(tau_h) > LONGEST_H:
        raise ValueError(f"reach_km must be above 0 and time constants within 0 to {LONGEST_H:g} hours")
    n = len(d)
    largest = (max(n - rank, 0), n - 1)
    values, vectors = scipy.linalg.eigh(np.exp(-d / reach_km), subset_by_index=largest, driver="evx")
    mixing = vectors * np.sqrt(np.maximum(values, 0.0))
    rest = np.sqrt(np.maximum(1 - (mixing**2).sum(axis=1), 0.0))
    length = np.sqrt((mixing**2).sum(axis=1) + rest**2)  # 1 but for rounding and negative eigenvalues
    return Factors(
        jnp.asarray(float(common)),
        jnp.asarray(float(near)),
        jnp.asarray(np.array(tau_h, float)),
        jnp.asarray(mixing / length[:, None]),
        jnp.asarray(rest / length),
    )


def vary(key: jax.Array, model: Factors, day: jax.Array | int, steps: int, *, smooth: bool = False) -> jax.Array:
    """One day of all sites' variation.

    Args:
      key: of all days.
      model: shares, time constants, mixing.
      day: the day's number, an integer.
      steps: how many in the day; values are those in the middle of each.
      smooth: smooth processes, which begin anew each day; else rough ones, which go on.

    Returns:
      (steps, sites), each value N(0, 1).
    """
    sites, rank = model.mixing.shape
    tau_h = jnp.repeat(model.tau_h, np.array([1, rank + sites, sites]), total_repeat_length=1 + rank + 2 * sites)
    drawn = (_smooth if smooth else _rough)(key, day, steps, tau_h)
    common, mixed, rest, own = jnp.split(drawn, np.cumsum([1, rank, sites]), axis=1)
    near = matmul(mixed, model.mixing.T) + model.rest[None] * rest
    share = jnp.maximum(1 - model.common - model.near, 0.0)
    return jnp.sqrt(model.common) * common + jnp.sqrt(model.near) * near + jnp.sqrt(share) * own


def midnight(key: jax.Array, day: jax.Array | int, memory: jax.Array) -> jax.Array:
    """Chains over days of N(0, 1), (columns,), with correlation `memory` (columns,), 0 to 0.7, from one to the next.

    Each day's value follows from the key and the day's number alone (the weighted sum of 16 days' independent draws).
    """
    numbers = jnp.asarray(day, jnp.int32) + FIRST - jnp.arange(MEMORY, dtype=jnp.int32)
    drawn = jax.vmap(lambda n: jax.random.normal(jax.random.fold_in(key, n), memory.shape, memory.dtype))(numbers)
    weights = memory[None] ** jnp.arange(MEMORY, dtype=memory.dtype)[:, None]
    return jnp.sum(weights * drawn, axis=0) / jnp.sqrt(jnp.sum(weights**2, axis=0))


def _rough(key: jax.Array, day: jax.Array | int, steps: int, tau_h: jax.Array) -> jax.Array:
    """Independent rough processes with time constants (columns,): (steps, columns)."""
    chain_key, path_key = jax.random.split(key)
    memory, today = jnp.exp(-DAY_H / tau_h), jnp.asarray(day, jnp.int32)
    first, last = jax.vmap(lambda d: midnight(chain_key, d, memory))(jnp.stack([today, today + 1]))
    noise = jax.random.normal(_of_day(path_key, day), (steps + 1, *tau_h.shape), tau_h.dtype)
    step_h = DAY_H / steps

    def move(x, e, gap_h):
        return jnp.exp(-gap_h / tau_h) * x + jnp.sqrt(-jnp.expm1(-2 * gap_h / tau_h)) * e

    x = move(first, noise[0], step_h / 2)
    end, rest = jax.lax.scan(lambda x, e: (move(x, e, step_h),) * 2, x, noise[1:-1])
    end = move(end, noise[-1], step_h / 2)
    t = ((jnp.arange(steps, dtype=tau_h.dtype) + 0.5) * step_h)[:, None] / tau_h[None]
    whole = (DAY_H / tau_h)[None]
    pull = jnp.exp(t - whole) * jnp.expm1(-2 * t) / jnp.expm1(-2 * whole)
    return jnp.concatenate([x[None], rest]) + pull * (last - end)[None]


def _smooth(key: jax.Array, day: jax.Array | int, steps: int, tau_h: jax.Array) -> jax.Array:
    """Independent smooth processes with time constants (columns,): (steps, columns).

    The state is the value x and its slope times tau, v; in a step of s time constants it is multiplied by
    M = e^-s [[1 + s, s], [-s, 1 - s]], and what is added has the covariance 1 - M M'.
    """
    s = DAY_H / steps / tau_h
    fade = jnp.exp(-s)
    l_xx = fade * jnp.sqrt(_tail(2 * s))
    l_vx = 2 * s**2 * fade**2 / l_xx
    l_vv = jnp.sqrt(jnp.maximum(fade**2 * (jnp.expm1(2 * s) + 2 * s - 2 * s**2) - l_vx**2, 0.0))
    first_key, step_key = jax.random.split(_of_day(key, day))
    first = jax.random.normal(first_key, (2, *s.shape), s.dtype)
    noise = jax.random.normal(step_key, (steps - 1, 2, *s.shape), s.dtype)

    def move(state, e):
        x, v = state
        x, v = (
            fade * ((1 + s) * x + s * v) + l_xx * e[0],
            fade * ((1 - s) * v - s * x) + l_vx * e[0] + l_vv * e[1],
        )
        return (x, v), x

    _, rest = jax.lax.scan(move, (first[0], first[1]), noise)
    return jnp.concatenate([first[:1], rest])


def _of_day(key: jax.Array, day: jax.Array | int) -> jax.Array:
    return jax.random.fold_in(key, jnp.asarray(day, jnp.int32) + FIRST)


def _tail(y: jax.Array) -> jax.Array:
    """exp(y) - 1 - y - y^2/2, by its series where that would cancel."""
    series, term = jnp.zeros_like(y), y**3 / math.factorial(3)
    for k in range(4, 14):
        series, term = series + term, term * y / k
    return jnp.where(y < 1, series, jnp.expm1(y) - y - y**2 / 2)


def correlation(model: Factors, lag_h: float, *, smooth: bool = False) -> np.ndarray:
    """The correlation (sites, sites) that the model implies between z_i(t) and z_j(t + lag)."""
    s = abs(lag_h) / np.asarray(model.tau_h)
    r = np.exp(-s) * (1 + s if smooth else 1)
    mixing, rest, a, b = (np.asarray(x) for x in (model.mixing, model.rest, model.common, model.near))
    near = mixing @ mixing.T + np.diag(rest**2)
    return a * r[0] + b * near * r[1] + (1 - a - b) * r[2] * np.eye(len(rest))


def crossings_per_hour(model: Factors, level: float) -> float:
    """How often a smooth variation crosses a level upwards (Rice's formula)."""
    a, b = float(model.common), float(model.near)
    rate = math.sqrt(float(np.sum(np.array([a, b, 1 - a - b]) / np.asarray(model.tau_h) ** 2)))
    return rate / (2 * math.pi) * math.exp(-(level**2) / 2)
