"""Piecewise-linear curves and limits: exact, or with rounded corners so that they are differentiable everywhere.

Everything is made of the ramp r(t) = max(t, 0). Its smooth form, with w the half width of the corner,

    r(t) = 0 for t <= -w,   (t + w)^2 / (4 w) for |t| < w,   t for t >= w,

has a continuous derivative, lies above the exact one by at most w/4 and equals it outside the corner, so that dead
bands and plateaus stay what they are. A curve through (x_1, y_1) ... (x_k, y_k), constant beyond its ends, is

    f(x) = y_1 + sum_i (y_{i+1} - y_i) / (x_{i+1} - x_i) (r(x - x_i) - r(x - x_{i+1})).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def ramp(t: jax.Array, width: float = 0.0) -> jax.Array:
    """max(t, 0), its corner rounded within `width` (static, as t) on both sides; derivative 0 at exactly 0."""
    if not width:
        return jnp.where(t > 0, t, 0.0)
    return jnp.where(t >= width, t, jnp.where(t <= -width, 0.0, (t + width) ** 2 / (4 * width)))


def least(a: jax.Array, b: jax.Array, width: float = 0.0) -> jax.Array:
    """min(a, b) of equal shapes."""
    return a - ramp(a - b, width)


def most(a: jax.Array, b: jax.Array, width: float = 0.0) -> jax.Array:
    """max(a, b) of equal shapes."""
    return a + ramp(b - a, width)


def within(x: jax.Array, low: jax.Array, high: jax.Array, width: float = 0.0) -> jax.Array:
    """The value between its limits, all of equal shapes; where the limits cross, `high` holds."""
    return least(most(x, low, width), high, width)


def piecewise(x: jax.Array, xs: jax.Array, ys: jax.Array, width: float = 0.0) -> jax.Array:
    """One curve for each x.

    Args:
      x: (n,) abscissae.
      xs: (n, k) corners, in order; two may coincide where their ordinates do.
      ys: (n, k) values there.
      width: half width of rounded corners in units of x; 0 is exact. Static.

    Returns:
      (n,) values, constant beyond the ends.
    """
    step, rise = jnp.diff(xs, axis=-1), jnp.diff(ys, axis=-1)
    slope = jnp.where(step > 0, rise / jnp.where(step > 0, step, 1.0), 0.0)
    risen = ramp(x[:, None] - xs, width)
    return ys[:, 0] + jnp.sum(slope * (risen[:, :-1] - risen[:, 1:]), axis=-1)


def root_beside(whole: jax.Array, part: jax.Array) -> jax.Array:
    """sqrt(whole^2 - part^2), 0 where `part` is the larger; its derivative is taken to be 0 there, not infinite."""
    left = whole**2 - part**2
    inside = left > 1e-12 * whole**2
    return jnp.where(inside, jnp.sqrt(jnp.where(inside, left, 1.0)), 0.0)
