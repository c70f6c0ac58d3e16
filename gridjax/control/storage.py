"""Batteries: what they can do within a step, what that leaves stored, what it loses and what it wears.

A battery whose terminal injects p (kW, negative while it charges) over h hours, with idling loss L, moves on its
direct-current side d = p + L, and its energy E goes (EPRI, "OpenDSS Storage Element", 2011)

    E' = E - h d / eff_discharge   for d >= 0        E' = E - h d eff_charge   for d < 0.

So at p = -L it idles: the grid feeds its losses and E stays. At p = 0 it feeds them itself. The powers that keep the
energy between the reserve E_min and the capacity E_max for the whole step are

    -(E_max - E) / (h eff_charge) <= d <= (E - E_min) eff_discharge / h,     |p| <= P_rated,    p^2 + q^2 <= S^2,

and a request is moved to the nearest of them. Reactive power goes first and active power backs off, as in OpenDSS, or
the other way round with `watt_priority`; the reactive power always leaves the room that idling takes.

Wear (Han, Han and Aki, "A practical battery wear model for electric vehicle charging applications", Applied Energy 113,
2014): a cycle from full down to the depth D = 1 - E/E_max and back takes the share of life

    1 / cycles(D) = a D^b,

half of it on the way down, so that a move from D to D' costs |a D'^b - a D^b| / 2 of a new battery, whatever the path:
it is exact for cycles from full and needs no counting of cycles. The default a = 5.24e-4, b = 2.03 is for Li(NiMnCo)O2
cells (Xu, Zhao, Zheng, Litvinov and Kirschen, "Factoring the cycle aging cost of batteries participating in
electricity markets", IEEE Trans. Power Systems 33(2), 2018): 1,908 cycles of full depth. Beside it there may be
a price on each kWh that goes in or out.
"""

from __future__ import annotations

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from gridjax.feeder import Feeder
from gridjax.grid import OperatingPoint

LIFE_AT_FULL_DEPTH = 5.24e-4  # a, of Li(NiMnCo)O2
DEPTH_EXPONENT = 2.03  # b


@flax.struct.dataclass
class Wear:
    """What use costs, one row a battery; money is in any currency.

    Attributes:
      throughput_cost: for each kWh that goes into or out of the store.
      replacement_cost: of a new battery.
      life: share of the life that a cycle of full depth takes, a.
      exponent: how that grows with depth, b >= 1.
    """

    throughput_cost: jax.Array
    replacement_cost: jax.Array
    life: jax.Array
    exponent: jax.Array


@flax.struct.dataclass
class Storages:
    """Settings, one row a battery, in the order of `feeder.storages`.

    Attributes:
      row: (n,) where each stands in `OperatingPoint.generation_kw`.
      kw_rated: limit on the terminal's active power, both ways.
      kva: limit on the inverter's apparent power.
      kwh_rated: capacity.
      kwh_reserve: energy below which it does not discharge.
      kwh_initial: energy at the start.
      charge_efficiency, discharge_efficiency: within (0, 1].
      idling_kw: losses at all times, positive.
      watt_priority: True where reactive power backs off before active.
      wear: what use costs.
    """

    row: jax.Array
    kw_rated: jax.Array
    kva: jax.Array
    kwh_rated: jax.Array
    kwh_reserve: jax.Array
    kwh_initial: jax.Array
    charge_efficiency: jax.Array
    discharge_efficiency: jax.Array
    idling_kw: jax.Array
    watt_priority: jax.Array
    wear: Wear


@flax.struct.dataclass
class StorageState:
    """What is stored, kWh, (n,)."""

    kwh: jax.Array


@flax.struct.dataclass
class Power:
    """Active and reactive power at the terminals, (n,), positive when injected into the grid."""

    kw: jax.Array
    kvar: jax.Array


@flax.struct.dataclass
class StorageBooks:
    """One step's energies in kWh, (n,), and costs.

    `drawn_kwh - delivered_kwh = stored_kwh + charging_loss_kwh + discharging_loss_kwh + idling_loss_kwh`.

    Attributes:
      drawn_kwh: from the grid, at the terminal.
      delivered_kwh: to the grid, at the terminal.
      stored_kwh: by how much the energy in the store grew.
      charging_loss_kwh, discharging_loss_kwh, idling_loss_kwh: heat.
      refused_kw: the request less what was done, positive where the terminal injects less than asked.
      wear_cost: throughput and depth together.
    """

    drawn_kwh: jax.Array
    delivered_kwh: jax.Array
    stored_kwh: jax.Array
    charging_loss_kwh: jax.Array
    discharging_loss_kwh: jax.Array
    idling_loss_kwh: jax.Array
    refused_kw: jax.Array
    wear_cost: jax.Array


def storages(
    feeder: Feeder,
    *,
    watt_priority: bool = False,
    throughput_cost: float = 0.0,
    replacement_cost: float = 0.0,
    life: float = LIFE_AT_FULL_DEPTH,
    exponent: float = DEPTH_EXPONENT,
) -> Storages:
    """The settings of a feeder's batteries.

    Args:
      feeder: its `storages` give ratings, reserve, efficiencies, idling losses and the energy at the start.
      watt_priority: let reactive power back off before active.
      throughput_cost: money for each kWh into or out of a store.
      replacement_cost: money for each kWh of capacity of a new battery.
      life: share of the life that a cycle of full depth takes.
      exponent: how that grows with depth.

    Raises:
      ValueError: a rating, efficiency or energy makes no sense; the message names the battery and the cure.
    """
    records = feeder.storages
    for r in records:
        _check(r)
    if throughput_cost < 0 or replacement_cost < 0 or life < 0 or exponent < 1:
        raise ValueError("wear: costs and life must not be negative, and the exponent must be at least 1")
    first = len(feeder.generators) + len(feeder.pv_systems)
    rated = _column(records, "kwh_rated")

    def everywhere(value: float) -> jax.Array:
        return jnp.full(len(records), float(value))

    return Storages(
        row=jnp.arange(first, first + len(records)),
        kw_rated=_column(records, "kw_rated"),
        kva=_column(records, "kva"),
        kwh_rated=rated,
        kwh_reserve=_column(records, "reserve_percent") / 100 * rated,
        kwh_initial=_column(records, "kwh_stored"),
        charge_efficiency=_column(records, "charge_efficiency_percent") / 100,
        discharge_efficiency=_column(records, "discharge_efficiency_percent") / 100,
        idling_kw=_column(records, "idling_percent") / 100 * _column(records, "kw_rated"),
        watt_priority=jnp.full(len(records), watt_priority),
        wear=Wear(everywhere(throughput_cost), replacement_cost * rated, everywhere(life), everywhere(exponent)),
    )


def _column(records: tuple, name: str) -> jax.Array:
    return jnp.asarray(np.array([getattr(r, name) for r in records], float))


def _check(r) -> None:  # a feeder.Storage
    what = f"Storage {r.name!r}"
    if min(r.kva, r.kw_rated, r.kwh_rated) <= 0:
        raise ValueError(f"{what}: needs kva, kw_rated and kwh_rated above 0")
    if not 0 <= r.kwh_stored <= r.kwh_rated:
        raise ValueError(f"{what}: kwh_stored {r.kwh_stored:g} is outside 0 to kwh_rated {r.kwh_rated:g}")
    if not 0 <= r.reserve_percent <= 100:
        raise ValueError(f"{what}: reserve_percent {r.reserve_percent:g} is outside 0 to 100")
    for name in ("charge_efficiency_percent", "discharge_efficiency_percent"):
        if not 0 < getattr(r, name) <= 100:
            raise ValueError(f"{what}: {name} {getattr(r, name):g} is outside 0 to 100, 0 excluded")
    if not 0 <= r.idling_percent / 100 * r.kw_rated <= min(r.kw_rated, r.kva):
        raise ValueError(f"{what}: idling_percent {r.idling_percent:g} takes more than the rating lets in; lower it")


def initial(settings: Storages, share: float | jax.Array | None = None) -> StorageState:
    """The energies that the feeder gives, or a share (0 to 1) of each capacity."""
    return StorageState(settings.kwh_initial if share is None else share * settings.kwh_rated)


def idle(settings: Storages) -> Power:
    """The request that leaves the energies as they are: the grid feeds the idling losses."""
    return Power(-settings.idling_kw, jnp.zeros_like(settings.idling_kw))


def reach(settings: Storages, state: StorageState, hours: jax.Array | float) -> tuple[jax.Array, jax.Array]:
    """The lowest and highest power at the terminals that the energies allow for so many hours, kW, (n,).

    The ratings limit it further.
    """
    s = settings
    lowest = jnp.minimum(state.kwh, s.kwh_reserve)
    out_most = (state.kwh - lowest) * s.discharge_efficiency / hours - s.idling_kw
    in_most = (s.kwh_rated - state.kwh) / (s.charge_efficiency * hours) + s.idling_kw
    return -in_most, out_most


def operate(
    settings: Storages, state: StorageState, request: Power, hours: jax.Array | float
) -> tuple[Power, StorageState, StorageBooks]:
    """Runs all batteries for one step.

    Args:
      settings: as from `storages`.
      state: energies at the beginning of the step; one below the reserve may charge and idle.
      request: power wanted at the terminals, constant over the step.
      hours: length of the step, above 0.

    Returns:
      `(power, state, books)`: the power at the terminals, the energies at the end of the step, and the step's books.

    Guarantees:
      The energy never leaves 0 to capacity, and never falls below the reserve, not by a rounding. The books balance to
      rounding (1e-9 of the energy moved, in float64). Differentiable but where a request just meets a limit.
    """
    s = settings
    lowest = jnp.minimum(state.kwh, s.kwh_reserve)
    power = _within_rating(s, request, *reach(s, state, hours))
    direct = power.kw + s.idling_kw
    discharge, charge = jnp.maximum(direct, 0.0), jnp.maximum(-direct, 0.0)
    moved = charge * s.charge_efficiency - discharge / s.discharge_efficiency
    kwh = jnp.clip(state.kwh + hours * moved, lowest, s.kwh_rated)  # moves it by its rounding only
    books = StorageBooks(
        drawn_kwh=hours * jnp.maximum(-power.kw, 0.0),
        delivered_kwh=hours * jnp.maximum(power.kw, 0.0),
        stored_kwh=kwh - state.kwh,
        charging_loss_kwh=hours * charge * (1 - s.charge_efficiency),
        discharging_loss_kwh=hours * discharge * (1 / s.discharge_efficiency - 1),
        idling_loss_kwh=hours * s.idling_kw * jnp.ones_like(power.kw),
        refused_kw=request.kw - power.kw,
        wear_cost=wear_cost(s, state.kwh, kwh),
    )
    return power, StorageState(kwh), books


def _within_rating(s: Storages, request: Power, low: jax.Array, high: jax.Array) -> Power:
    """The power nearest to the request within the ratings and the range that the energy allows, kW."""
    most = jnp.minimum(s.kw_rated, s.kva)
    kw_first = jnp.clip(request.kw, jnp.maximum(-most, low), jnp.minimum(most, high))
    room = jnp.where(s.watt_priority, _leg(s.kva, kw_first), _leg(s.kva, s.idling_kw))
    kvar = jnp.clip(request.kvar, -room, room)
    left = jnp.where(s.watt_priority, most, jnp.minimum(most, _leg(s.kva, kvar)))
    kw = jnp.clip(request.kw, jnp.maximum(-left, low), jnp.minimum(left, high))
    return Power(kw, kvar)


def _leg(hypotenuse: jax.Array, leg: jax.Array) -> jax.Array:
    """The other leg of a right triangle, with a finite derivative where there is none left."""
    square = (hypotenuse - leg) * (hypotenuse + leg)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)


def wear_cost(settings: Storages, kwh: jax.Array, kwh_after: jax.Array) -> jax.Array:
    """What it costs to bring the stores from some energies to others, (n,)."""
    wear = settings.wear

    def life(energy):
        depth = jnp.clip(1 - energy / settings.kwh_rated, 0.0, 1.0)
        return wear.life * depth**wear.exponent

    depths = wear.replacement_cost * jnp.abs(life(kwh_after) - life(kwh)) / 2
    return wear.throughput_cost * jnp.abs(kwh_after - kwh) + depths


def place(point: OperatingPoint, settings: Storages, power: Power) -> OperatingPoint:
    """The point with the batteries' power at their entries of the generation."""
    return dataclasses.replace(
        point,
        generation_kw=point.generation_kw.at[settings.row].set(power.kw),
        generation_kvar=point.generation_kvar.at[settings.row].set(power.kvar),
    )
