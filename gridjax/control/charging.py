"""Electric cars at their chargers: what they take within a step, and what they lack when they leave.

A car is plugged in from its arrival a to its departure b. Of a step from t to t + h it is there for

    h_there = max(min(t + h, b) - max(t, a), 0)

and the terminal's mean power p over the step (kW, positive when drawn) brings its energy e since arrival to

    e' = e + h eff p   for p >= 0,        e' = e + h p / eff_out   for p < 0 (vehicle to grid),

within -spare <= e <= room (what it may give of what it brought, and what its battery still holds), and within
-P_out h_there <= h p <= P h_there. A request is moved to the nearest power that the whole step allows. At departure
max(wanted - e, 0) is booked as not delivered. This is the usual model of a session by arrival, departure, energy and
power limit (Lee, Li and Low, "ACN-Data: analysis and applications of an open EV charging dataset", e-Energy 2019).
"""

from __future__ import annotations

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from gridjax.grid import OperatingPoint


@flax.struct.dataclass
class Sessions:
    """Settings, one row a session (one stay of one car at one charger).

    Attributes:
      row: (n,) where each stands in `OperatingPoint.load_kw`; several may share one.
      arrival_hour, departure_hour: on the clock of `ChargingState.hour`; a row with both equal is empty.
      wanted_kwh: energy in the battery by departure, beyond what the car brought.
      kw: the charger's limit.
      efficiency: of charging, within (0, 1].
      kw_out: limit on what the car gives back, 0 without vehicle to grid.
      efficiency_out: of giving back.
      room_kwh: how much the battery can take since arrival, at least `wanted_kwh`.
      spare_kwh: how much of what it brought may be given back.
    """

    row: jax.Array
    arrival_hour: jax.Array
    departure_hour: jax.Array
    wanted_kwh: jax.Array
    kw: jax.Array
    efficiency: jax.Array
    kw_out: jax.Array
    efficiency_out: jax.Array
    room_kwh: jax.Array
    spare_kwh: jax.Array


@flax.struct.dataclass
class ChargingState:
    """The clock, in hours, and each car's energy since arrival, (n,) kWh (it stays as it is after departure)."""

    hour: jax.Array
    kwh: jax.Array


@flax.struct.dataclass
class ChargingBooks:
    """One step's energies in kWh, (n,): `drawn_kwh - returned_kwh = stored_kwh + loss_kwh`.

    Attributes:
      drawn_kwh, returned_kwh: from and to the grid, at the terminal.
      stored_kwh: by how much the car's energy grew.
      loss_kwh: heat, both ways.
      undelivered_kwh: what a car that left in this step lacked; 0 for all others.
      refused_kw: the request less what was done.
    """

    drawn_kwh: jax.Array
    returned_kwh: jax.Array
    stored_kwh: jax.Array
    loss_kwh: jax.Array
    undelivered_kwh: jax.Array
    refused_kw: jax.Array


def sessions(
    row,
    arrival_hour,
    departure_hour,
    wanted_kwh,
    *,
    kw=7.4,
    efficiency=0.9,
    vehicle_to_grid: tuple | None = None,
    room_kwh=None,
) -> Sessions:
    """Sessions from columns; a scalar serves all rows.

    Args:
      row: the load that each is connected with.
      arrival_hour: when it comes.
      departure_hour: when it leaves.
      wanted_kwh: energy in the battery.
      kw: the charger's limit; 7.4 is one phase of 32 A at 230 V.
      efficiency: from the terminal to the battery.
      vehicle_to_grid: `(kw_out, efficiency_out, spare_kwh)`; None lets no car give anything back.
      room_kwh: None is `wanted_kwh`.

    Raises:
      ValueError: a row makes no sense; the message names it and the cure.
    """
    kw_out, efficiency_out, spare = (0.0, 1.0, 0.0) if vehicle_to_grid is None else vehicle_to_grid
    room = wanted_kwh if room_kwh is None else room_kwh
    given = (arrival_hour, departure_hour, wanted_kwh, kw, efficiency, kw_out, efficiency_out, room, spare)
    place, *rest = np.broadcast_arrays(np.atleast_1d(row), *(np.asarray(a, float) for a in given))
    arrival, departure, wanted, limit, eff, out, eff_out, room, spare = rest
    least, most = np.minimum(eff, eff_out), np.maximum(eff, eff_out)
    rules = {
        "has a value that is not a number": ~np.isfinite(rest).all(axis=0),
        "departs before it arrives: swap them": departure < arrival,
        "has a negative energy or limit: drop the sign": np.min([wanted, limit, out, spare], axis=0) < 0,
        "has an efficiency outside 0 to 1, 0 excluded": ~((least > 0) & (most <= 1)),
        "has less room than it wants: raise room_kwh": room < wanted,
        "has a negative row": place < 0,
    }
    for what, broken in rules.items():
        if np.any(broken):
            raise ValueError(f"session {int(np.argmax(broken))} {what}")
    return Sessions(jnp.asarray(place.astype(int)), *(jnp.asarray(a) for a in rest))


def initial(settings: Sessions, hour: float | jax.Array = 0.0) -> ChargingState:
    """Nothing delivered yet; the clock at `hour`."""
    zero = jnp.zeros_like(settings.wanted_kwh)
    return ChargingState(jnp.asarray(hour, zero.dtype), zero)


def charge(
    settings: Sessions, state: ChargingState, request: jax.Array, hours: jax.Array | float
) -> tuple[jax.Array, ChargingState, ChargingBooks]:
    """Runs all sessions for one step.

    Args:
      settings: as from `sessions`.
      state: the clock and the energies at the beginning of the step.
      request: (n,) mean power over the step in kW at the terminals, positive when drawn.
      hours: length of the step, above 0.

    Returns:
      `(kw, state, books)`: (n,) mean power over the step, positive when drawn, the state at the end of the step, and
      the step's books.

    Guarantees:
      The energy never leaves -spare to room, not by a rounding. The books balance to rounding (1e-9 of the energy
      moved, in float64). Each departure after the first clock time is booked exactly once. Differentiable but where a
      request just meets a limit, and in the instants of arrival and departure.
    """
    s = settings
    until = state.hour + hours
    there = _there(s, state.hour, until)
    most = jnp.minimum(s.kw * there, (s.room_kwh - state.kwh) / s.efficiency) / hours
    least = -jnp.minimum(s.kw_out * there, (state.kwh + s.spare_kwh) * s.efficiency_out) / hours
    kw = jnp.clip(request, least, most)
    drawn, returned = hours * jnp.maximum(kw, 0.0), hours * jnp.maximum(-kw, 0.0)
    grown = drawn * s.efficiency - returned / s.efficiency_out
    kwh = jnp.clip(state.kwh + grown, -s.spare_kwh, s.room_kwh)  # moves it by its rounding only
    leaves = (s.departure_hour > state.hour) & (s.departure_hour <= until)
    books = ChargingBooks(
        drawn_kwh=drawn,
        returned_kwh=returned,
        stored_kwh=kwh - state.kwh,
        loss_kwh=drawn * (1 - s.efficiency) + returned * (1 / s.efficiency_out - 1),
        undelivered_kwh=jnp.where(leaves, jnp.maximum(s.wanted_kwh - kwh, 0.0), 0.0),
        refused_kw=request - kw,
    )
    return kw, ChargingState(until, kwh), books


def _there(s: Sessions, start: jax.Array, stop: jax.Array) -> jax.Array:
    """Hours between two clock times that each car is plugged in."""
    return jnp.maximum(jnp.minimum(stop, s.departure_hour) - jnp.maximum(start, s.arrival_hour), 0.0)


def _lacking(settings: Sessions, state: ChargingState) -> jax.Array:
    """Energy at the terminal that would deliver what is wanted, kWh."""
    return jnp.maximum(settings.wanted_kwh - state.kwh, 0.0) / settings.efficiency


def at_once(settings: Sessions, state: ChargingState, hours: jax.Array | float) -> jax.Array:
    """The request of uncontrolled charging: all that is lacking, in this step; `charge` clips it."""
    return _lacking(settings, state) / hours


def evenly(settings: Sessions, state: ChargingState, hours: jax.Array | float) -> jax.Array:
    """The request that spreads what is lacking over the rest of each stay."""
    until = state.hour + hours
    left = _there(settings, state.hour, jnp.full((), jnp.inf, state.kwh.dtype))
    share = _there(settings, state.hour, until) / jnp.where(left > 0, left, 1.0)
    return _lacking(settings, state) * share / hours


def at_last(settings: Sessions, state: ChargingState, hours: jax.Array | float) -> jax.Array:
    """The least request that can still deliver what is wanted, at full power from the next step on."""
    later = _there(settings, state.hour + hours, jnp.full((), jnp.inf, state.kwh.dtype))
    return jnp.maximum(_lacking(settings, state) - settings.kw * later, 0.0) / hours


def place(point: OperatingPoint, settings: Sessions, kw: jax.Array) -> OperatingPoint:
    """The point with the cars' power added to the loads that they are connected with."""
    return dataclasses.replace(point, load_kw=point.load_kw.at[settings.row].add(kw))
