"""Inverters in time: `step` takes them from one instant to the next, with response times, ride-through and ramps.

Each function's output follows its curve as a first-order lag. With T the open-loop response time (90 % of the change,
IEEE 1547-2018, clause 3.1) and the input constant during a step of length t,

    y <- x + (y - x) 10^(-t/T),

which is exact for any t; T = 0 is immediate. Reactive power, the volt-watt limit and the power by frequency droop have
a lag each. Droop starts from the power before the disturbance, kept while the frequency is beyond the dead band.
Then come capability and rating (`gridjax.control.inverters`), and whether the unit delivers at all
(`gridjax.control.ride_through`).
"""

from __future__ import annotations

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp

from gridjax.control.curves import least
from gridjax.control.inverters import deliver, droop, terminal_voltages, voltage_limit, wanted_reactive
from gridjax.control.ride_through import (
    CONTINUOUS,
    TRIP,
    Limits,
    Service,
    energized,
    extreme_voltages,
    in_service,
    watch,
)
from gridjax.control.settings import NONE, Inverters
from gridjax.grid import OperatingPoint


@flax.struct.dataclass
class Response:
    """The state of n units.

    Attributes:
      service: whether they are in service.
      q: (n,) reactive power asked for, per unit of kva, behind its lag.
      limit: (n,) volt-watt's limit in per unit of rated_kw, behind its lag.
      p: (n,) active power by frequency droop, likewise.
      before: (n,) active power before the frequency left the dead band.
      delivered: (n,) active power of the last step, per unit of rated_kw.
      off_nominal: (n,) whether the frequency was beyond the dead band.
      drooping: (n,) whether droop is active: it ends when its lag has.
    """

    service: Service
    q: jax.Array
    limit: jax.Array
    p: jax.Array
    before: jax.Array
    delivered: jax.Array
    off_nominal: jax.Array
    drooping: jax.Array


def at_rest(s: Inverters, limits: Limits, point: OperatingPoint, v: jax.Array, status: int = CONTINUOUS) -> Response:
    """Units that have been at node voltages v (`PowerFlow.v`) and nominal frequency for long."""
    u = terminal_voltages(s, v)
    limit = voltage_limit(s, u)
    p = least(least(point.generation_kw / s.rated_kw, s.most_power), limit)
    on = jnp.full(s.kva.shape, status != TRIP)
    none = jnp.zeros(s.kva.shape, bool)
    p = jnp.where(on, p, 0.0)
    q = jnp.where(on, wanted_reactive(s, u, p, point.generation_kvar / s.kva), 0.0)
    return Response(in_service(limits, status), q, limit, p, p, p, none, none)


def step(
    s: Inverters,
    limits: Limits,
    state: Response,
    point: OperatingPoint,
    v: jax.Array,
    f_hz: jax.Array | float,
    seconds: jax.Array | float,
) -> tuple[OperatingPoint, Response]:
    """What the units do in the next `seconds` at given voltages and frequency.

    Args:
      s: settings of n units.
      limits: of tripping, ride-through and enter service.
      state: before the step.
      point: `generation_kw` is the available active power, `generation_kvar` the set-point of constant reactive power
        and of units without control.
      v: (nodes,) complex voltages at their terminals, as `PowerFlow.v`.
      f_hz: the frequency, a scalar or (n,).
      seconds: the length of the step.

    Returns:
      The point with what the units inject (0 kW and 0 kvar where they are out of service), and the state after the
      step; `state.service.status` indexes `ride_through.STATUS`. Units without control inject what is asked.

    Guarantees:
      Differentiable by voltages, powers, settings and time wherever no status changes; statuses have no derivative.
    """
    service = watch(limits, state.service, *extreme_voltages(s, v), f_hz, seconds)
    running = service.status != TRIP
    u = terminal_voltages(s, v)
    available = point.generation_kw / s.rated_kw
    limit = _lag(state.limit, voltage_limit(s, u), s.seconds[:, 1], seconds)
    limit = jnp.where(running, limit, 1.0)
    usual = least(least(available, s.most_power), limit)
    p, before, off, drooping = _droop(s, state, service, usual, available, f_hz, seconds)
    ramped = least(usual, service.entered)
    wanted = jnp.where(drooping, least(least(available, limit), p), ramped)
    wanted = jnp.where(running, wanted, 0.0)
    q = _lag(state.q, wanted_reactive(s, u, wanted, point.generation_kvar / s.kva), s.seconds[:, 0], seconds)
    q = jnp.where(running, q, 0.0)
    on = energized(service)
    kw, kvar = (jnp.where(on, a, 0.0) for a in deliver(s, wanted, q))
    free = s.mode == NONE
    out = dataclasses.replace(
        point,
        generation_kw=jnp.where(free, point.generation_kw, kw),
        generation_kvar=jnp.where(free, point.generation_kvar, kvar),
    )
    return out, Response(service, q, limit, p, before, kw / s.rated_kw, off, drooping)


def _lag(before: jax.Array, target: jax.Array, response_s: jax.Array, seconds: jax.Array | float) -> jax.Array:
    """A first-order lag's output after a step with a constant input."""
    slow = response_s > 0
    left = jnp.where(slow, jnp.exp(-jnp.log(10.0) * seconds / jnp.where(slow, response_s, 1.0)), 0.0)
    return target + (before - target) * left


def _droop(s: Inverters, state: Response, service: Service, usual, available, f_hz, seconds):
    """Power by frequency behind its lag, the power before the disturbance, and whether droop is at work."""
    beyond = jnp.broadcast_to(jnp.asarray(f_hz, usual.dtype), usual.shape) - s.nominal_hz
    off = s.frequency_watt & ((beyond > s.dead_band_hz[:, 0]) | (-beyond > s.dead_band_hz[:, 1]))
    before = jnp.where(off & state.off_nominal, state.before, state.delivered)
    target = jnp.where(off, least(droop(s, before, f_hz), available), usual)
    # Without a disturbance the lag follows at once; after one it leads back.
    lagging = _lag(state.p, target, s.seconds[:, 2], seconds)
    p = jnp.where(off | state.drooping, lagging, target)
    drooping = off | (state.drooping & (jnp.abs(p - target) >= 1e-3))
    running = service.status != TRIP
    return jnp.where(running, p, 0.0), before, off & running, drooping & running
