"""Flexible loads: demand that is shed for good at a price, or put off and owed.

Of a demand P (kW, positive when consumed) a request sheds s and puts off f (f < 0 catches up), so that over h hours

    p = P - s - f,        B' = B + h (payback f+ - f-),        f = f+ - f-,

where B is the energy owed (a tank, as in the virtual battery of Hao, Sanandaji, Poolla and Vincent, "Aggregate
flexibility of thermostatically controlled loads", IEEE Trans. Power Systems 30(1), 2015) and `payback` >= 1 is what has
to be caught up for each kWh put off. Limits:

    0 <= s <= sheddable P,    f+ <= puttable P,    s + f <= P,    f- <= catch-up limit,    0 <= B <= B_max.

Shedding goes first where both do not fit. What is shed costs its price, and what is owed costs by the hour; what is
still owed at the end of a study is `owed_cost`.
"""

from __future__ import annotations

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from gridjax.grid import OperatingPoint


@flax.struct.dataclass
class FlexibleLoads:
    """Settings, one row a flexible load.

    Attributes:
      row: (n,) where each stands in `OperatingPoint.load_kw`; no two may share one.
      sheddable: share of the demand that may be shed, 0 to 1.
      puttable: share of it that may be put off, 0 to 1.
      owed_most_kwh: most that may be owed.
      catch_up_kw: most that may be caught up, on top of the demand.
      payback: kWh owed for each kWh put off, at least 1.
      shed_price: for each kWh shed.
      delay_price: for each kWh owed and hour.
    """

    row: jax.Array
    sheddable: jax.Array
    puttable: jax.Array
    owed_most_kwh: jax.Array
    catch_up_kw: jax.Array
    payback: jax.Array
    shed_price: jax.Array
    delay_price: jax.Array


@flax.struct.dataclass
class DemandState:
    """What is owed, kWh, (n,)."""

    owed_kwh: jax.Array


@flax.struct.dataclass
class DemandRequest:
    """What is asked of the loads in a step, (n,) kW.

    Attributes:
      demand_kw: what they would take undisturbed, not negative.
      shed_kw: to be shed, positive.
      put_off_kw: to be put off; negative to catch up.
    """

    demand_kw: jax.Array
    shed_kw: jax.Array
    put_off_kw: jax.Array


@flax.struct.dataclass
class DemandBooks:
    """One step's energies in kWh, (n,): `demand_kwh + extra_kwh = served_kwh + shed_kwh + owed_more_kwh`.

    Attributes:
      demand_kwh: wanted by the customers.
      served_kwh: taken from the grid.
      shed_kwh: never served.
      owed_more_kwh: by how much the energy owed grew.
      extra_kwh: what putting off added to the demand.
      cost: of shedding and of owing.
    """

    demand_kwh: jax.Array
    served_kwh: jax.Array
    shed_kwh: jax.Array
    owed_more_kwh: jax.Array
    extra_kwh: jax.Array
    cost: jax.Array


def flexible_loads(
    row,
    *,
    sheddable=0.0,
    puttable=0.0,
    owed_most_kwh=0.0,
    catch_up_kw=0.0,
    payback=1.0,
    shed_price=0.0,
    delay_price=0.0,
) -> FlexibleLoads:
    """Flexible loads from columns (see `FlexibleLoads`); a scalar serves all rows.

    Raises:
      ValueError: a row makes no sense; the message names it and the cure.
    """
    given = (sheddable, puttable, owed_most_kwh, catch_up_kw, payback, shed_price, delay_price)
    place, *rest = np.broadcast_arrays(np.atleast_1d(row), *(np.asarray(a, float) for a in given))
    first_two, others = np.array(rest[:2]), np.array(rest[2:])
    rules = {
        "has a value that is not a number": ~np.isfinite(rest).all(axis=0),
        "has a share outside 0 to 1": ((first_two < 0) | (first_two > 1)).any(axis=0),
        "has a negative limit or price: drop the sign": (others < 0).any(axis=0),
        "has a payback below 1": rest[4] < 1,
        "has a negative row": place < 0,
        "shares its load with another: join them": np.array([np.sum(place == p) > 1 for p in place], bool),
    }
    for what, broken in rules.items():
        if np.any(broken):
            raise ValueError(f"flexible load {int(np.argmax(broken))} {what}")
    return FlexibleLoads(jnp.asarray(place.astype(int)), *(jnp.asarray(a) for a in rest))


def initial(settings: FlexibleLoads) -> DemandState:
    """Nothing owed."""
    return DemandState(jnp.zeros_like(settings.payback))


def undisturbed(settings: FlexibleLoads, point: OperatingPoint) -> DemandRequest:
    """The request that leaves the point's demand alone."""
    demand = point.load_kw[settings.row]
    return DemandRequest(demand, jnp.zeros_like(demand), jnp.zeros_like(demand))


def serve(
    settings: FlexibleLoads, state: DemandState, request: DemandRequest, hours: jax.Array | float
) -> tuple[jax.Array, DemandState, DemandBooks]:
    """Runs all flexible loads for one step.

    Args:
      settings: as from `flexible_loads`.
      state: what is owed at the beginning of the step.
      request: demand and what to do with it; moved to the nearest that the limits allow.
      hours: length of the step, above 0.

    Returns:
      `(kw, state, books)`: (n,) power at the terminals, positive when consumed, the state at the end of the step, and
      the step's books.

    Guarantees:
      What is owed never leaves 0 to its limit, and no power is negative, not by a rounding. The books balance to
      rounding (1e-9 of the energy, in float64). Differentiable but where a request just meets a limit.
    """
    s, demand = settings, request.demand_kw
    shed = jnp.clip(request.shed_kw, 0.0, s.sheddable * demand)
    room = (s.owed_most_kwh - state.owed_kwh) / (s.payback * hours)
    most = jnp.minimum(jnp.minimum(s.puttable * demand, demand - shed), room)
    least = -jnp.minimum(s.catch_up_kw, state.owed_kwh / hours)
    put_off = jnp.clip(request.put_off_kw, least, most)
    later, sooner = jnp.maximum(put_off, 0.0), jnp.maximum(-put_off, 0.0)
    kw = jnp.maximum(demand - shed - put_off, 0.0)  # moves it by its rounding only
    owed = jnp.clip(state.owed_kwh + hours * (s.payback * later - sooner), 0.0, s.owed_most_kwh)
    books = DemandBooks(
        demand_kwh=hours * demand,
        served_kwh=hours * kw,
        shed_kwh=hours * shed,
        owed_more_kwh=owed - state.owed_kwh,
        extra_kwh=hours * (s.payback - 1) * later,
        cost=s.shed_price * hours * shed + s.delay_price * hours * owed,
    )
    return kw, DemandState(owed), books


def owed_cost(settings: FlexibleLoads, state: DemandState) -> jax.Array:
    """What it costs never to serve what is still owed, (n,)."""
    return settings.shed_price * state.owed_kwh


def place(point: OperatingPoint, settings: FlexibleLoads, kw: jax.Array) -> OperatingPoint:
    """The point with the loads at these powers and their own power factors (kvar as it is where the kW were 0)."""
    before = point.load_kw[settings.row]
    ratio = jnp.where(before != 0, kw / jnp.where(before != 0, before, 1.0), 1.0)
    return dataclasses.replace(
        point,
        load_kw=point.load_kw.at[settings.row].set(kw),
        load_kvar=point.load_kvar.at[settings.row].multiply(ratio),
    )
