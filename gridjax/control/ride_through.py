"""Whether a unit is in service: abnormal voltages and frequencies, tripping and enter service by IEEE 1547-2018.

Every unit has one status. Clauses 6.4 and 6.5 say by voltage and frequency what it does (`gridjax.control.standard` has
the tables):

    trip              a threshold was exceeded for its clearing time (6.4.1, 6.5.1); no current, until it may enter
                      service: voltage and frequency within limits for the delay, then a ramp (4.10)
    cease             cease to energize at once, without having tripped (6.4.2)
    cessation         momentary cessation: no current, back at once
    permissive        may go on or cease; it goes on here
    mandatory         goes on
    undefined         frequencies for which nothing is required (6.5.2); it goes on here

The lowest applicable voltage (phase to neutral and, with three phases, phase to phase) counts for under-voltage, the
highest one for over-voltage. Timers count while a condition lasts and fall back to 0 with it. The required times of
ride-through are counted as well: `required` says whether a trip would come too early. Frequencies are those of a 60 Hz
system; of another one, offsets from the nominal frequency count.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from gridjax.control import standard
from gridjax.control.inverters import phase_voltages
from gridjax.control.settings import Inverters

STATUS = ("trip", "entering service", "continuous", "mandatory", "permissive", "cessation", "cease", "undefined")
TRIP, ENTERING, CONTINUOUS, MANDATORY, PERMISSIVE, CESSATION, CEASE, UNDEFINED = range(len(STATUS))
_CODE = {
    standard.MANDATORY: MANDATORY,
    standard.PERMISSIVE: PERMISSIVE,
    standard.CESSATION: CESSATION,
    standard.CEASE: CEASE,
}
# Where several regions hold at once, the later one counts.
_WEIGHT = np.array([0, 0, 0, 1, 2, 4, 3, 0])


@flax.struct.dataclass
class Limits:
    """Settings of n units.

    Attributes:
      beyond: (n, 8) thresholds of tripping: over-voltage 2 and 1, under-voltage 1 and 2 in pu, then frequencies in Hz.
      clearing_s: (n, 8) their clearing times.
      low_pu, high_pu, low_hz, high_hz: (n,) limits within which a unit may enter service.
      delay_s, ramp_s: (n,) its delay and the duration of its ramp from nothing to the rated power.
      permit: (n,) whether service is permitted at all; where not, the unit trips.
      region_low, region_high: (n, r) voltages between which a region of ride-through lies.
      region_mode: (n, r) status in it. region_s, region_slope: (n, r) its required time, and per pu above region_low.
      nominal_hz: (n,).
    """

    beyond: jax.Array
    clearing_s: jax.Array
    low_pu: jax.Array
    high_pu: jax.Array
    low_hz: jax.Array
    high_hz: jax.Array
    delay_s: jax.Array
    ramp_s: jax.Array
    permit: jax.Array
    region_low: jax.Array
    region_high: jax.Array
    region_mode: jax.Array
    region_s: jax.Array
    region_slope: jax.Array
    nominal_hz: jax.Array


@flax.struct.dataclass
class Service:
    """The state of n units.

    Attributes:
      status: (n,) index into `STATUS`.
      beyond_s: (n, 8) for how long each threshold has been exceeded.
      within_s: (n,) for how long the unit might have entered service.
      entered: (n,) how far its ramp is, per unit of the rated power; 1.1 is done.
      abnormal_s: (n, 4) for how long the voltage has been low or high, the frequency low or high.
      required: (n,) whether the standard requires it to stay in service now.
    """

    status: jax.Array
    beyond_s: jax.Array
    within_s: jax.Array
    entered: jax.Array
    abnormal_s: jax.Array
    required: jax.Array


_ENTER = standard.EnterService()
_DONE = 1.1  # a ramp goes on to here, so that it has certainly passed 1


def limits(
    s: Inverters,
    category: str | Sequence[str] = "III",
    enter: standard.EnterService = _ENTER,
) -> Limits:
    """The standard's defaults for abnormal-performance categories.

    Args:
      s: the settings, of n rows.
      category: "I", "II" or "III"; one for all units or one for each.
      enter: when and how units enter service.

    Raises:
      ValueError: an unknown category, or not as many as there are units.
    """
    n = s.kva.shape[0]
    each = [category] * n if isinstance(category, str) else list(category)
    if len(each) != n or any(c not in standard.TRIP for c in each):
        raise ValueError(
            f"categories of abnormal performance are I, II and III, {n} of them or one for all: {category}"
        )
    most = max(map(len, standard.RIDE_THROUGH.values()))
    nothing = standard.Region(np.inf, -np.inf, standard.MANDATORY, 0.0)
    tables = [(*standard.RIDE_THROUGH[c], *[nothing] * most)[:most] for c in each]
    region = np.array([[(r.low_pu, r.high_pu, _CODE[r.mode], r.seconds, r.slope) for r in t] for t in tables])
    region = region.reshape(n, most, 5)
    trips = np.array([standard.TRIP[c] for c in each]).reshape(n, 16)
    dtype = s.kva.dtype
    one = jnp.ones(n, dtype)
    low, high, mode, seconds, slope = (jnp.asarray(region[..., k], dtype) for k in range(5))
    return Limits(
        beyond=jnp.asarray(trips[:, 0::2], dtype),
        clearing_s=jnp.asarray(trips[:, 1::2], dtype),
        low_pu=enter.low_pu * one,
        high_pu=enter.high_pu * one,
        low_hz=enter.low_hz * one,
        high_hz=enter.high_hz * one,
        delay_s=enter.delay_s * one,
        ramp_s=enter.ramp_s * one,
        permit=jnp.ones(n, bool),
        region_low=low,
        region_high=high,
        region_mode=mode.astype(jnp.int32),
        region_s=seconds,
        region_slope=slope,
        nominal_hz=s.nominal_hz,
    )


def in_service(limits: Limits, status: int = CONTINUOUS) -> Service:
    """Units that have been in service for long, or, with `TRIP`, that are out of it."""
    n = limits.delay_s.shape[0]
    zero = jnp.zeros_like(limits.delay_s)
    return Service(
        status=jnp.full(n, status, jnp.int32),
        beyond_s=jnp.zeros_like(limits.clearing_s),
        within_s=zero,
        entered=zero if status == TRIP else zero + _DONE,
        abnormal_s=jnp.zeros((n, 4), zero.dtype),
        required=jnp.full(n, status != TRIP),
    )


def extreme_voltages(s: Inverters, v: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The lowest and the highest applicable voltage at each terminal, (n,) each, from `PowerFlow.v`.

    Between phases of a three-phase wye they are in per unit of the rated voltage there.
    """
    at = phase_voltages(s, v)
    full = jnp.append(v, jnp.zeros(1, v.dtype))[s.nodes] * s.scale
    across = full[..., 0] - full[..., 1]
    between = jnp.abs(across - jnp.roll(across, 1, axis=1)) / np.sqrt(3)
    three = jnp.all(s.share > 0, axis=1) & jnp.all(s.nodes[:, :, 1] == s.nodes[:, :1, 1], axis=1)
    here = s.share > 0
    low = jnp.min(jnp.where(here, at, jnp.inf), axis=1)
    high = jnp.max(jnp.where(here, at, -jnp.inf), axis=1)
    low = jnp.where(three, jnp.minimum(low, jnp.min(between, axis=1)), low)
    return low, jnp.where(three, jnp.maximum(high, jnp.max(between, axis=1)), high)


def watch(
    limits: Limits, state: Service, low: jax.Array, high: jax.Array, f_hz: jax.Array | float, seconds: jax.Array | float
) -> Service:
    """One time step: who trips, who may enter service, who rides through.

    Args:
      limits: settings of n units.
      state: theirs, before the step.
      low: (n,) lowest applicable voltage in per unit during the step.
      high: (n,) highest.
      f_hz: the frequency, a scalar or (n,).
      seconds: the length of the step.

    Returns:
      The state after it.
    """
    hz = jnp.broadcast_to(jnp.asarray(f_hz, low.dtype), low.shape) - limits.nominal_hz + standard.NOMINAL_HZ
    exceeded = _exceeded(limits, low, high, hz)
    beyond_s = jnp.where(exceeded, state.beyond_s + seconds, 0.0)
    trips = jnp.any(exceeded & (beyond_s >= limits.clearing_s), axis=1) | ~limits.permit
    fit = (low >= limits.low_pu) & (high <= limits.high_pu) & (hz >= limits.low_hz) & (hz <= limits.high_hz)
    fit = fit & limits.permit
    within_s = jnp.where(fit, state.within_s + seconds, 0.0)
    enters = (state.status == TRIP) & fit & (within_s >= limits.delay_s)
    mode, abnormal_s, required = _ride_through(limits, state, low, high, hz, seconds)
    status = jnp.where(mode == CONTINUOUS, jnp.where(state.entered > 1, CONTINUOUS, ENTERING), mode)
    status = jnp.where((state.status == TRIP) & ~enters, TRIP, status)
    status = jnp.where(trips, TRIP, status)
    fast = jnp.asarray(seconds / jnp.where(limits.ramp_s > 0, limits.ramp_s, 1.0))
    entered = jnp.where(limits.ramp_s > 0, jnp.minimum(state.entered + fast, _DONE), _DONE)
    return Service(
        status=status.astype(jnp.int32),
        beyond_s=beyond_s,
        within_s=within_s,
        entered=jnp.where(status == TRIP, 0.0, entered),
        abnormal_s=abnormal_s,
        required=required & (status != TRIP),
    )


def energized(state: Service) -> jax.Array:
    """Whether a unit delivers current, (n,)."""
    return ~((state.status == TRIP) | (state.status == CESSATION) | (state.status == CEASE))


def _exceeded(limits: Limits, low: jax.Array, high: jax.Array, hz: jax.Array) -> jax.Array:
    """Which thresholds of tripping are exceeded, (n, 8)."""
    seen = jnp.stack([high, high, low, low, hz, hz, hz, hz], axis=1)
    over = np.array([True, True, False, False] * 2)[None]
    return jnp.where(over, seen > limits.beyond, seen < limits.beyond)


def _ride_through(limits: Limits, state: Service, low, high, hz, seconds):
    """The status asked for, how long things have been abnormal, and whether the required time is not over yet."""
    least, most = standard.CONTINUOUS_PU
    least_hz, most_hz = standard.CONTINUOUS_HZ
    abnormal = jnp.stack([low < least, high > most, hz < least_hz, hz > most_hz], axis=1)
    abnormal_s = jnp.where(abnormal, state.abnormal_s + seconds, 0.0)
    under = limits.region_high <= least
    inside_under = (low[:, None] >= limits.region_low) & (low[:, None] < limits.region_high)
    inside_over = (high[:, None] > limits.region_low) & (high[:, None] <= limits.region_high)
    inside = jnp.where(under, inside_under, inside_over)
    rank = jnp.where(inside, jnp.asarray(_WEIGHT)[limits.region_mode], 0)
    chosen = jnp.take_along_axis(limits.region_mode, jnp.argmax(rank, axis=1)[:, None], axis=1)[:, 0]
    by_voltage = jnp.where(jnp.any(inside, axis=1), chosen, CONTINUOUS)
    low_hz, high_hz = standard.MANDATORY_HZ
    undefined = (hz < low_hz) | (hz > high_hz)
    off_nominal = abnormal[:, 2] | abnormal[:, 3]
    mode = jnp.where((by_voltage == CONTINUOUS) & off_nominal, MANDATORY, by_voltage)
    mode = jnp.where(undefined, UNDEFINED, mode)
    reach = jnp.where(under, (low[:, None] - limits.region_low), 0.0)
    time = limits.region_s + limits.region_slope * jnp.where(inside, reach, 0.0)
    timer = jnp.where(under, abnormal_s[:, :1], abnormal_s[:, 1:2])
    over_v = jnp.any(inside & (timer > time), axis=1)
    over_f = jnp.any(abnormal_s[:, 2:] > standard.MANDATORY_HZ_SECONDS, axis=1) | undefined
    return mode, abnormal_s, ~(over_v | over_f)
