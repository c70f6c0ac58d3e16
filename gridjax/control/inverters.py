"""What inverters do by IEEE 1547-2018 in steady state: from voltages and available power to active and reactive power.

With u the mean of the phases' voltages in per unit of the rated one, p in per unit of the rated active power and
q in per unit of the rated apparent power s, positive when injected:

    active power (5.4.2, 4.6.2, 6.5.2.7)   p = min(available, limit, volt-watt(u), 1), and with frequency droop
        f > f_n + d:  p = min(available, volt-watt(u), max(p - (f - f_n - d)/(f_n k), p_least))
        f < f_n - d:  p = min(available, volt-watt(u), p_0 + (f_n - d - f)/(f_n k)),     p_0 the one before
    reactive power (5.3)   q = the set-point | p tan(phi) | volt-var(u) | watt-var(p)

and both within the capability |q| <= c(p) (5.2) and the rating p^2 + q^2 <= 1 (p in per unit of s from here on):

    set-point, volt-var   q within the capability; what of it goes before active power stays,
                          p = min(p, sqrt(1 - q_first^2)), |q| <= sqrt(1 - p^2)
    power factor          both in proportion, but p not below the corner of capability and rating
    watt-var              down along the curve to where it meets the rating

(The standard leaves the last two open; they are done as in EPRI's model of it, report 3002030962, section 3.9.)
Curves and limits are exact, or with rounded corners (`gridjax.control.curves`).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gridjax.control import standard
from gridjax.control.curves import least, most, piecewise, ramp, root_beside, within
from gridjax.control.settings import (
    CONSTANT_POWER_FACTOR,
    FREQUENCY_WATT,
    LOW_POWER,
    NONE,
    VOLT_VAR,
    VOLT_WATT,
    WATT_VAR,
    Inverters,
)

# The capability's jump at the least power is a steep line, as in EPRI's model.
_LOW_POWER = (0.0, standard.LEAST_POWER - 1e-5, standard.LEAST_POWER, standard.FULL_POWER, 1.0)
_LOW_SHARE = (0.0, 0.0, standard.LEAST_POWER / standard.FULL_POWER, 1.0, 1.0)


def phase_voltages(s: Inverters, v: jax.Array) -> jax.Array:
    """Magnitudes of the phases' voltages at the terminals, (n, 3) in per unit of the rating, 0 where there is none.

    Args:
      s: the settings.
      v: (nodes,) complex node voltages, as `PowerFlow.v`.
    """
    at = jnp.append(v, jnp.zeros(1, v.dtype))[s.nodes] * s.scale
    return _magnitude(at[..., 0] - at[..., 1])


def _magnitude(across: jax.Array) -> jax.Array:
    """|z|, with derivative 0 at 0."""
    square = across.real**2 + across.imag**2
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)


def terminal_voltages(s: Inverters, v: jax.Array) -> jax.Array:
    """The mean of the phases' voltages, (n,) in per unit: what the curves see."""
    return jnp.sum(phase_voltages(s, v) * s.share, axis=1)


def respond(
    s: Inverters, u: jax.Array, available_kw: jax.Array, asked_kvar: jax.Array, f_hz: jax.Array | float | None = None
) -> tuple[jax.Array, jax.Array]:
    """What the inverters inject at given voltages.

    Args:
      s: the settings, of n rows.
      u: (n,) terminal voltages in per unit.
      available_kw: (n,) available active power; negative where a battery charges.
      asked_kvar: (n,) set-points of those with constant reactive power.
      f_hz: the frequency, a scalar or (n,); None is the nominal one.

    Returns:
      Active and reactive power, (n,) kW and kvar, positive into the grid. Rows without control return what is asked.
    """
    wanted = wanted_power(s, u, available_kw / s.rated_kw, f_hz)
    q = wanted_reactive(s, u, wanted, asked_kvar / s.kva)
    kw, kvar = deliver(s, wanted, q)
    free = s.mode == NONE
    return jnp.where(free, available_kw, kw), jnp.where(free, asked_kvar, kvar)


def wanted_power(s: Inverters, u: jax.Array, available: jax.Array, f_hz: jax.Array | float | None = None) -> jax.Array:
    """Active power before the apparent-power limit, (n,) per unit of rated_kw; `available` likewise."""
    by_voltage = voltage_limit(s, u)
    p = least(least(available, s.most_power, s.smooth), by_voltage, s.smooth)
    if f_hz is None or FREQUENCY_WATT not in s.used:
        return p
    return least(least(available, by_voltage, s.smooth), droop(s, p, f_hz), s.smooth)


def voltage_limit(s: Inverters, u: jax.Array) -> jax.Array:
    """Volt-watt's limit, (n,) per unit of rated_kw, at most 1."""
    if VOLT_WATT not in s.used:
        return jnp.ones_like(u)
    limit = piecewise(u, s.volt_watt_v, s.volt_watt_p, s.smooth)
    return jnp.where(s.volt_watt, least(limit, jnp.ones_like(limit), s.smooth), 1.0)


def droop(s: Inverters, before: jax.Array, f_hz: jax.Array | float) -> jax.Array:
    """Active power by the frequency, (n,), from what it was `before`; without droop, that."""
    beyond = jnp.broadcast_to(jnp.asarray(f_hz, before.dtype), before.shape) - s.nominal_hz
    unit = s.nominal_hz[None] * s.droop.T
    above = ramp((beyond - s.dead_band_hz[:, 0]) / unit[0], s.smooth)
    below = ramp((-beyond - s.dead_band_hz[:, 1]) / unit[1], s.smooth)
    reduced = most(before - above, least(before, s.least_power, s.smooth), s.smooth)
    return jnp.where(s.frequency_watt, reduced + below, before)


def wanted_reactive(s: Inverters, u: jax.Array, p: jax.Array, asked: jax.Array) -> jax.Array:
    """Reactive power before the limits, (n,) per unit of kva, from active power p in per unit of rated_kw."""
    q = asked
    if VOLT_VAR in s.used:
        q = jnp.where(s.mode == VOLT_VAR, piecewise(u, s.volt_var_v, s.volt_var_q, s.smooth), q)
    if WATT_VAR in s.used:
        q = jnp.where(s.mode == WATT_VAR, piecewise(p, s.watt_var_p, s.watt_var_q, s.smooth), q)
    if CONSTANT_POWER_FACTOR in s.used:
        q = jnp.where(s.mode == CONSTANT_POWER_FACTOR, p * s.rated_kw / s.kva * s.tangent, q)
    return q


def capability(s: Inverters, p: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The largest reactive power injected and absorbed at p (n,), per unit of kva."""
    if LOW_POWER not in s.used:
        return s.most_injected, s.most_absorbed
    xs, ys = (jnp.tile(jnp.asarray(row, p.dtype), (p.shape[0], 1)) for row in (_LOW_POWER, _LOW_SHARE))
    share = jnp.where(s.reduced_at_low_power, piecewise(jnp.abs(p), xs, ys, s.smooth), 1.0)
    return share * s.most_injected, share * s.most_absorbed


def deliver(s: Inverters, p: jax.Array, q: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Wanted powers within capability and rating: kW and kvar, (n,) each.

    Args:
      s: the settings.
      p: (n,) wanted active power in per unit of rated_kw.
      q: (n,) wanted reactive power in per unit of kva.
    """
    whole = p * s.rated_kw / s.kva  # p in per unit of kva
    kw, kvar = _by_priority(s, p, whole, q)
    for mode, way in ((CONSTANT_POWER_FACTOR, _in_proportion), (WATT_VAR, _along_curve)):
        if mode in s.used:
            this = s.mode == mode
            kw, kvar = (jnp.where(this, a, b) for a, b in zip(way(s, p, whole, q), (kw, kvar), strict=True))
    return kw * s.kva, kvar * s.kva


def _by_priority(s: Inverters, p: jax.Array, whole: jax.Array, q: jax.Array) -> tuple[jax.Array, jax.Array]:
    injected, absorbed = capability(s, p)
    one = jnp.ones_like(p)
    q = within(q, -absorbed, injected, s.smooth)
    first = within(q, -s.first_absorbed, s.first_injected, s.smooth)
    room = root_beside(one, first)
    whole = within(whole, -room, room, s.smooth)
    room = root_beside(one, whole)
    return whole, within(q, -room, room, s.smooth)


def _in_proportion(s: Inverters, _: jax.Array, whole: jax.Array, q: jax.Array) -> tuple[jax.Array, jax.Array]:
    square = whole**2 + q**2
    factor = jnp.where(square > 1, 1 / jnp.sqrt(jnp.where(square > 1, square, 1.0)), 1.0)
    largest = jnp.where(q > 0, s.most_injected, s.most_absorbed)
    corner = root_beside(jnp.ones_like(q), largest)
    size = least(jnp.abs(whole), most(factor * jnp.abs(whole), corner, s.smooth), s.smooth)
    whole = jnp.sign(whole) * size
    injected, absorbed = capability(s, whole * s.kva / s.rated_kw)
    return whole, within(factor * q, -absorbed, injected, s.smooth)


def _along_curve(s: Inverters, p: jax.Array, whole: jax.Array, q: jax.Array) -> tuple[jax.Array, jax.Array]:
    meeting = jnp.where(whole > 0, _meeting(s, 1.0), _meeting(s, -1.0))
    over = whole**2 + q**2 > 1
    size = jnp.where(over, least(jnp.abs(whole), meeting, s.smooth), jnp.abs(whole))
    whole = jnp.sign(whole) * size
    on_curve = piecewise(whole * s.kva / s.rated_kw, s.watt_var_p, s.watt_var_q, s.smooth)
    injected, absorbed = capability(s, p)
    return whole, within(jnp.where(over, on_curve, q), -absorbed, injected, s.smooth)


def _meeting(s: Inverters, sign: float) -> jax.Array:
    """The least |p| (n,), per unit of kva, at which the watt-var curve meets the rating, for p of one sign; else 1."""
    rated = (s.rated_kw / s.kva)[:, None]
    end = jnp.full_like(s.kva, 2.0)[:, None]  # beyond its ends the curve is constant
    xs = jnp.concatenate([-end, s.watt_var_p * rated, end], axis=1) * sign
    ys = jnp.concatenate([s.watt_var_q[:, :1], s.watt_var_q, s.watt_var_q[:, -1:]], axis=1)
    if sign < 0:
        xs, ys = xs[:, ::-1], ys[:, ::-1]
    step = jnp.diff(xs, axis=1)
    slope = jnp.where(step > 0, jnp.diff(ys, axis=1) / jnp.where(step > 0, step, 1.0), 0.0)
    start = ys[:, :-1] - slope * xs[:, :-1]
    # (1 + m^2) p^2 + 2 m b p + b^2 = 1
    inside = 1 + slope**2 - start**2
    root = jnp.sqrt(jnp.where(inside > 0, inside, 1.0))
    at = (-slope * start + root) / (1 + slope**2)
    valid = (inside > 0) & (at >= xs[:, :-1]) & (at <= xs[:, 1:]) & (at >= 0) & (step > 0)
    return jnp.min(jnp.where(valid, at, 1.0), axis=1)
