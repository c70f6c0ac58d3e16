"""Synthetic days of a feeder, drawn by key: demand, sun, wind and electric cars at every site, correlated.

`region` looks once at a feeder (who is near whom, which entries are photovoltaics or wind); then

    profiles = day(key, region, point, number, steps)         one day's `Profiles`, at any step that divides it
    shapes(key, region, first, steps, count)                   days on end in the compact form, for long runs
    jax.vmap(lambda k: day(k, region, point, 180, 96))(keys)   a thousand different June 30ths

A day follows from the key and its number alone (0 is January 1st), and yet demand and wind go on over midnight and the
weather of a day remembers the day before: see `gridjax.variation`. What is drawn, its statistics and their sources:
`gridjax.customers` for demand and cars, `gridjax.weather` for sun, clouds and wind. The values are those in the middle
of each step, not means over it (but for the cars', which are means).

The defaults of the factor models here, where no source is named, are choices: demand shares 20 % of its variance with
everybody and 30 % with neighbours (over 0.5 km), and lasts 3, 1.5 and 0.75 h; clouds share 20 % over the region and
last half an hour there and 6 minutes locally, which at a drift of 10 m/s reaches over 1.8 km; wind is the same over
the feeder but for 10 %, and lasts 12 h.
"""

from __future__ import annotations

import dataclasses
import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from gridjax.customers import HOME, Cars, Customers, customers, demand, uncontrolled
from gridjax.feeder import Feeder, split_terminal
from gridjax.generation import pv_power
from gridjax.graph import to_networkx
from gridjax.grid import OperatingPoint
from gridjax.profiles import CONSTANT, Kinds, Profiles, Shapes, expand
from gridjax.variation import Factors, factors
from gridjax.weather import Sky, Wind, hours_of_day, irradiance, sky, turbine_power, wind, wind_speed

AVERAGE_LOAD, AVERAGE_SUN = 0.46, 0.2  # of what is rated, on average of the year
GENERATION = ("generation_kw", "generation_kvar")
KW_PER_CUSTOMER = 2.0  # of a load's nominal power: how many customers it stands for
DEMAND = dict(common=0.2, near=0.3, reach_km=0.5, tau_h=(3.0, 1.5, 0.75))
CLOUDS = dict(common=0.2, near=0.8, reach_km=1.8, tau_h=(0.5, 0.1, 0.1))
GUSTS = dict(common=0.9, near=0.05, reach_km=5.0, tau_h=(12.0, 4.0, 1.0))


@flax.struct.dataclass
class Region:
    """All that a feeder's days are drawn from; `sky`, `wind` or `cars` are None where there are none.

    Attributes:
      customers: demand, one site for each column of loads.
      level: (those sites,) mean over the year over the nominal power.
      sky: sun and clouds, one site for each column of photovoltaics.
      oversize: (those sites,) panels' power at 1 kW/m2 over what the inverter lets through.
      wind: one site for each column of wind turbines.
      cars: electric cars, in `day` only.
      kinds: which column each load and generation entry follows: loads' columns, then photovoltaics', then wind's.
    """

    customers: Customers
    level: jax.Array
    sky: Sky | None
    oversize: jax.Array
    wind: Wind | None
    cars: Cars | None
    kinds: Kinds = flax.struct.field(pytree_node=False)


def shapes(key: jax.Array, region: Region, first: jax.Array | int, steps: int, count: int = 1) -> Shapes:
    """Days on end in the compact form, without the cars.

    Args:
      key: of all days.
      region: as from `region`.
      first: the first day's number, an integer; 0 is January 1st.
      steps: how many in each day, static.
      count: how many days, static; they are drawn one after another, so that memory beyond the result is one day's.

    Returns:
      Shapes of (count steps, columns): factors on the point's powers, where photovoltaics stand at full sun (see
      `at_full_sun`) and wind turbines at their rating.
    """
    first = jnp.asarray(first, jnp.int32)
    days = jax.lax.map(lambda n: _columns(key, region, n, steps), first + jnp.arange(count, dtype=jnp.int32))
    p, q, hour = jax.tree.map(lambda a: a.reshape(count * steps, *a.shape[2:]), days)
    return Shapes(p, q, hour, kinds=region.kinds)


@functools.partial(jax.jit, static_argnames=("steps", "count"))
def shapes_each(key: jax.Array, region: Region, first: jax.Array, steps: int, count: int = 1) -> Shapes:
    """As `shapes`, for several first days (days,), a leading axis of the result; compiled once for a kind of region."""
    return jax.lax.map(lambda number: shapes(key, region, number, steps, count), first)


def _columns(key: jax.Array, region: Region, number: jax.Array, steps: int):
    """One day's factors on active and reactive powers, (steps, columns), and the hours (steps,)."""
    load_key, sun_key, wind_key, _ = jax.random.split(key, 4)
    load = region.level[None] * demand(load_key, region.customers, number, steps)
    p, q = [load], [load]
    if region.sky is not None:
        sun = irradiance(sun_key, region.sky, number, steps) * region.oversize[None]
        p.append(jnp.minimum(sun, 1.0))
        q.append(jnp.ones_like(sun))
    if region.wind is not None:
        power = turbine_power(region.wind, wind_speed(wind_key, region.wind, number, steps))
        p.append(power)
        q.append(power)
    hour = 24.0 * number + hours_of_day(steps)
    return jnp.concatenate(p, axis=1), jnp.concatenate(q, axis=1), hour.astype(load.dtype)


def day(key: jax.Array, region: Region, point: OperatingPoint, number: jax.Array | int, steps: int) -> Profiles:
    """One day, with the cars charging at once.

    Args:
      key: of all days.
      region: as from `region`.
      point: nominal powers; photovoltaics at full sun (see `at_full_sun`), wind turbines at their rating.
      number: the day, an integer that may be traced; 0 is January 1st.
      steps: how many, static: 24 are hours, 1440 minutes, 86400 seconds.

    Returns:
      Profiles of (steps, loads) and (steps, generators); loads keep their power factors.

    Guarantees:
      The same key and number give the same day, whatever is drawn beside it.
    """
    profiles = expand(point, shapes(key, region, number, steps))
    if region.cars is None:
        return profiles
    kw = uncontrolled(car_key(key), region.cars, number, steps)
    return dataclasses.replace(profiles, load_kw=profiles.load_kw.at[:, region.cars.row].add(kw))


def car_key(key: jax.Array) -> jax.Array:
    """The key that `day` draws the cars' stays from, for `gridjax.customers.stays`."""
    return jax.random.split(key, 4)[3]


def region(
    feeder: Feeder,
    *,
    kind: np.ndarray | int = HOME,
    groups: int | None = None,
    level: float | None = None,
    latitude_deg: float = 40.0,
    first_weekday: int = 0,
    wind_generators: tuple[str, ...] = (),
    cars: Cars | None = None,
) -> Region:
    """What a feeder's days are drawn from; replace its parts for anything else than the defaults.

    Args:
      feeder: its lines say how far sites are from one another.
      kind: of the loads' customers, one number or (loads,): `gridjax.customers.HOME`, `SHOP`, `WORKS`.
      groups: let loads of a kind share their demand with the nearest ones, in about so many columns altogether, and
        photovoltaics likewise; None gives each its own.
      level: mean over the year over the nominal power; None makes the nominal power the highest of the mean course.
      latitude_deg: of the sun.
      first_weekday: of January 1st; 0 is Monday.
      wind_generators: names of the generators that are wind turbines; all other generators and all batteries stay as
        the point has them.
      cars: as from `gridjax.customers.cars`.

    Raises:
      ValueError: the feeder has no loads, a name is unknown, or a number makes no sense.
    """
    if not feeder.loads:
        raise ValueError(f"feeder {feeder.name!r} has no loads to draw days for")
    names = [g.name for g in feeder.generators]
    unknown = set(wind_generators) - set(names)
    if unknown:
        raise ValueError(f"feeder {feeder.name!r} has no generators {', '.join(sorted(unknown))}")
    kind = np.broadcast_to(np.asarray(kind, int), len(feeder.loads))
    turbines = [g for g in feeder.generators if g.name in wind_generators]
    load_at, load_of = _sites(feeder, feeder.loads, kind, groups)
    sun_at, sun_of = _sites(feeder, feeder.pv_systems, np.zeros(len(feeder.pv_systems), int), groups)
    wind_at, wind_of = _sites(feeder, turbines, np.zeros(len(turbines), int), None)
    kw = np.abs([load.kw for load in feeder.loads])
    # The members of a column vary as one: its spread is that of the customers of one of them.
    each = np.array([np.mean(kw[load_of == c]) for c in range(len(load_at))])
    people = customers(
        _model(feeder, [feeder.loads[i] for i in load_at], DEMAND),
        kind[load_at],
        np.maximum(each / KW_PER_CUSTOMER, 1.0),
        first_weekday=first_weekday,
    )
    if level is None:
        highest = np.asarray(people.week).max(axis=1) * np.asarray(people.season).max(axis=1)
        levels = 1 / highest[kind[load_at]]
    else:
        levels = np.full(len(load_at), float(level))
    oversize = np.array([_oversize(pv) for pv in feeder.pv_systems])
    first, rows = len(load_at), iter(wind_of + len(load_at) + len(sun_at))
    generation = [int(next(rows)) if name in wind_generators else CONSTANT for name in names]
    generation += [int(c) + first for c in sun_of] + [CONSTANT] * len(feeder.storages)
    return Region(
        customers=people,
        level=jnp.asarray(levels),
        sky=sky(_model(feeder, [feeder.pv_systems[i] for i in sun_at], CLOUDS), latitude_deg=latitude_deg)
        if len(sun_at)
        else None,
        oversize=jnp.asarray([np.mean(oversize[sun_of == c]) for c in range(len(sun_at))]),
        wind=wind(_model(feeder, [turbines[i] for i in wind_at], GUSTS)) if turbines else None,
        cars=cars,
        kinds=Kinds(
            load=tuple(int(c) for c in load_of),
            generation=tuple(generation),
            actual=(False,) * (len(load_at) + len(sun_at) + len(wind_at)),
        ),
    )


def average_load(point: OperatingPoint, *, sun: float = 1.0) -> OperatingPoint:
    """The point with its loads as they are on average of drawn days, for `compile(feeder, around=average_load)`.

    Args:
      point: at rated load.
      sun: the same of generation, `AVERAGE_SUN` where all of it is photovoltaic.
    """
    scale = dict.fromkeys(("load_kw", "load_kvar"), AVERAGE_LOAD) | dict.fromkeys(GENERATION, sun)
    return dataclasses.replace(point, **{name: getattr(point, name) * factor for name, factor in scale.items()})


def at_full_sun(feeder: Feeder, point: OperatingPoint) -> OperatingPoint:
    """The point with all photovoltaics at 1 kW/m2 and their reactive powers as they are."""
    first = len(feeder.generators)
    kw = jnp.asarray([pv_power(_at_full_sun(pv))[0] for pv in feeder.pv_systems], point.generation_kw.dtype)
    return dataclasses.replace(
        point, generation_kw=point.generation_kw.at[first : first + len(feeder.pv_systems)].set(kw)
    )


def _at_full_sun(pv):  # a feeder.PVSystem
    return dataclasses.replace(pv, irradiance=1.0, kvar=0.0)


def _oversize(pv) -> float:
    """The panels' power at full sun over what the inverter lets through."""
    unlimited = dataclasses.replace(_at_full_sun(pv), kva=pv.kva * 1e6, pmpp_percent=1e9, cut_out_percent=0.0)
    if pv.efficiency_curve is not None:  # it is a function of the power over the kVA, which must stay
        curve = (tuple(x / 1e6 for x in pv.efficiency_curve[0]), pv.efficiency_curve[1])
        unlimited = dataclasses.replace(unlimited, efficiency_curve=curve)
    let_through = pv_power(_at_full_sun(pv))[0]
    return pv_power(unlimited)[0] / let_through if let_through > 0 else 1.0


def _model(feeder: Feeder, records: list, numbers: dict) -> Factors:
    return factors(distances_km(feeder, [split_terminal(r.bus)[0] for r in records]), **numbers)


def distances_km(feeder: Feeder, buses: list[str]) -> np.ndarray:
    """The lengths of the shortest ways along the lines between buses, (buses, buses); infinite where there is none."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import dijkstra

    number = {bus.name: i for i, bus in enumerate(feeder.buses)}
    best: dict[tuple[int, int], float] = {}
    for a, b, data in to_networkx(feeder).edges(data=True):
        if data["closed"] and a != b:
            at = (min(number[a], number[b]), max(number[a], number[b]))
            best[at] = min(best.get(at, np.inf), max(float(data["length_km"]), 1e-9))  # 0 would be no edge
    ends = np.array(list(best), int).reshape(-1, 2)
    graph = coo_array((list(best.values()), (ends[:, 0], ends[:, 1])), shape=(len(number),) * 2).tocsr()
    at, back = np.unique([number[bus] for bus in buses], return_inverse=True)
    between = dijkstra(graph, directed=False, indices=at)[:, at]
    between = (between + between.T) / 2  # the same to the last bit both ways
    return between[np.ix_(back, back)]


def _sites(feeder: Feeder, records, kind: np.ndarray, groups: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Which records stand for a column, and each record's column."""
    n = len(records)
    if groups is None or groups >= n:
        return np.arange(n), np.arange(n)
    if groups < 1:
        raise ValueError(f"{groups} groups: give at least 1, or None for a column each")
    d = distances_km(feeder, [split_terminal(r.bus)[0] for r in records])
    centres, of = [], np.zeros(n, int)
    for k in np.unique(kind):
        rows = np.flatnonzero(kind == k)
        wanted = max(1, round(groups * len(rows) / n))
        chosen = [rows[0]]
        while len(chosen) < min(wanted, len(rows)):  # the one farthest from all chosen comes next
            chosen.append(rows[np.argmax(d[np.ix_(rows, chosen)].min(axis=1))])
        of[rows] = len(centres) + np.argmin(d[np.ix_(rows, chosen)], axis=1)
        centres += chosen
    return np.array(centres), of
