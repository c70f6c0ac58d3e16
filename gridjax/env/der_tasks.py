"""DER control on any feeder: a fleet at its loads, days drawn by key, a tariff.

Prices of the defaults are choices: 0.30 money a kWh in the evening peak (17 to 21 h), 0.15 by day, 0.10 at night, a
third of it for what is fed back, 0.05 for a curtailed kWh, 0.50 for a kWh that a car lacks.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from gridjax.assembly import compile
from gridjax.control.charging import Sessions
from gridjax.control.fleet import add_fleet
from gridjax.control.storage import storages
from gridjax.customers import cars as car_habits
from gridjax.customers import stays_each
from gridjax.days import AVERAGE_SUN, at_full_sun, average_load, car_key, region, shapes_each
from gridjax.env.der_control import START_HOUR, DerControl, DerParams, Tariff
from gridjax.env.terminals import neighbours, places
from gridjax.feeder import Feeder
from gridjax.grid import OperatingPoint
from gridjax.namespace import namespace
from gridjax.profiles import Profiles, expand_each

FAILURE_LOADS = 10.0  # a failed power flow costs as much as so many times the rated load does in the evening
EVENING, DAYTIME, NIGHT = 0.30, 0.15, 0.10
HIGHEST_TAP = 1.0125  # published taps suit full load without generation; lightly loaded, they violate the limits


def der_control(
    feeder: Feeder,
    key: jax.Array,
    *,
    days: int = 100,
    hours: float = 1.0,
    fleet: int | None = None,
    batteries: int | None = None,
    cars: int | None = None,
    penetration: float = 1.0,
    seed: int = 0,
) -> tuple[DerControl, DerParams]:
    """The task on a feeder, whose regulators rest where they are, at most two steps above neutral.

    Args:
      feeder: photovoltaics and batteries that it has are used; else `fleet` and `batteries` are added.
      key: of the days.
      days: how many are drawn, evenly over the year; episodes are drawn from them.
      hours: length of a step, of which a whole even number make a day.
      fleet: photovoltaic systems to add; None is one for every other load, unless the feeder has some.
      batteries: to add; None is one for every eighth load, unless the feeder has some.
      cars: chargers to add at loads; None is one for every eighth load.
      penetration: photovoltaic peak power over the loads' rated power.
      seed: of who gets what.

    Returns:
      The environment and its parameters.

    Raises:
      ValueError: numbers that make no sense, or a feeder without loads.
    """
    steps = round(24 / hours)
    if days < 1 or steps < 2 or steps % 2 or abs(steps * hours - 24) > 1e-9:
        raise ValueError(f"{days} days of steps of {hours:g} h: take at least one day, and an even number of steps")
    loads = len(feeder.loads)
    cars = max(1, loads // 8) if cars is None else cars
    feeder = equip(feeder, fleet=fleet, batteries=batteries, penetration=penetration, seed=seed)
    at = np.sort(np.random.default_rng([seed, 1]).integers(0, loads, cars))
    habits = car_habits(at)
    grid = compile(feeder, around=lambda point: average_load(_lowered(point), sun=AVERAGE_SUN))
    grid = dataclasses.replace(grid, nominal=_lowered(grid.nominal))
    profiles, sessions = _days(feeder, grid.nominal, key, habits, days, steps)
    names = [load.name for load in feeder.loads]
    env = DerControl(
        horizon=steps, failure_penalty=-FAILURE_LOADS * hours * EVENING * sum(abs(load.kw) for load in feeder.loads),
        inverters=tuple(pv.name for pv in feeder.pv_systems),
        batteries=tuple(b.name for b in feeder.storages),
        cars=tuple(f"car{k} at {names[i]}" for k, i in enumerate(at)), nodes=feeder.node_names,
    )  # fmt: skip
    first = len(feeder.generators)
    terminals = [d.bus for d in (*feeder.pv_systems, *feeder.storages, *(feeder.loads[i] for i in at))]
    params = DerParams(
        grid=grid, days=profiles, cars=sessions, batteries=storages(feeder),
        pv_row=jnp.arange(first, first + len(feeder.pv_systems)),
        pv_kva=jnp.asarray([pv.kva for pv in feeder.pv_systems], float),
        tariff=_tariff(days, steps), low=jnp.full(len(env.nodes), 0.95), high=jnp.full(len(env.nodes), 1.05),
        place=jnp.asarray(places(feeder, terminals)), neighbour=jnp.asarray(neighbours(feeder, terminals)),
        hours=jnp.asarray(hours, float),
    )  # fmt: skip
    return env, params


def equip(
    feeder: Feeder, *, fleet: int | None = None, batteries: int | None = None, penetration: float = 1.0, seed: int = 0
) -> Feeder:
    """The feeder with the photovoltaics and batteries that `der_control` controls; arguments as there."""
    loads = len(feeder.loads)
    fleet = (0 if feeder.pv_systems else max(1, loads // 2)) if fleet is None else fleet
    batteries = (0 if feeder.storages else max(1, loads // 8)) if batteries is None else batteries
    if not (fleet or batteries):
        return feeder
    return add_fleet(feeder, seed, count=fleet, batteries=batteries, penetration=penetration)


def _lowered(point: OperatingPoint) -> OperatingPoint:
    return dataclasses.replace(point, tap=namespace(point).minimum(point.tap, HIGHEST_TAP))


def _days(
    feeder: Feeder, nominal: OperatingPoint, key: jax.Array, habits, days: int, steps: int
) -> tuple[Profiles, Sessions]:
    """Profiles from noon to noon, (days, steps, ...), and the cars that come on each, (days, cars)."""
    place = region(feeder)
    sun = at_full_sun(feeder, nominal)
    numbers = jnp.asarray(np.linspace(0, 364, days, endpoint=False).astype(np.int32))
    half = steps // 2

    both = shapes_each(key, place, numbers, steps, 2)
    drawn = expand_each(sun, jax.tree.map(lambda a: a[:, half : half + steps], both))
    arrivals = stays_each(car_key(key), habits, numbers)
    # A car that would have come before noon comes at noon.
    arrivals = dataclasses.replace(arrivals, arrival_hour=jnp.maximum(arrivals.arrival_hour, START_HOUR))
    until = jnp.minimum(arrivals.departure_hour, START_HOUR + 24.0)
    arrivals = dataclasses.replace(arrivals, departure_hour=jnp.maximum(until, arrivals.arrival_hour))
    empty = arrivals.departure_hour <= arrivals.arrival_hour
    arrivals = dataclasses.replace(arrivals, wanted_kwh=jnp.where(empty, 0.0, arrivals.wanted_kwh))
    return drawn, arrivals


def _tariff(days: int, steps: int) -> Tariff:
    hour = (START_HOUR + (np.arange(steps) + 0.5) * 24 / steps) % 24
    price = np.where((hour >= 17) & (hour < 21), EVENING, np.where((hour >= 7) & (hour < 23), DAYTIME, NIGHT))
    numbers = (jnp.asarray(a, float) for a in (1 / 3, 0.05, 0.50))
    return Tariff(jnp.asarray(np.tile(price, (days, 1))), *numbers)
