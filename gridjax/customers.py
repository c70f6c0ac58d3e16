"""Demand of homes, shops and works over the day, the week and the year, and the comings and goings of electric cars.

Demand of customers of kind k at site i, in per unit of the site's mean over the year:

    m_i(t) = w_k(hour of the week) s_k(day of the year) exp(sigma_i z_i(t) - sigma_i^2 / 2)

where w_k and s_k have the mean 1 over week and year, and z_i is the rough variation of `gridjax.variation`. So the
factor's mean is 1 and its coefficient of variation cv_i = sqrt(exp(sigma_i^2) - 1); at two sites and two instants with
corr(z_i, z_j) = r its covariance is exp(sigma_i sigma_j r) - 1. A site of N customers who vary by themselves has

    cv_i^2 = cv_1^2 / N + cv_inf^2.

Homes' season is the polynomial of the German standard profile H0 (VDEW, "Repraesentative VDEW-Lastprofile", M-32/99,
1999; day n = 1 to 365), winter 1.24, summer 0.78:

    F(n) = -3.92e-10 n^4 + 3.2e-7 n^3 - 7.02e-5 n^2 + 2.1e-3 n + 1.24

The weeks are sums of bells, drawn after the profiles' published features: homes peak at 19 h with a lesser peak in the
morning, later at weekends; shops work from 8 to 18 h, Saturdays until 14 h; works run in two shifts on weekdays.

Cars come home at an hour N(17.6, 3.4^2) after a distance that is log-normal, exp N(3.2, 0.88^2) miles (Tian, Shi and
Jia, "A statistical model for charging power demand of electric vehicles", Power System Technology 34(11), 2010, from
the US household travel survey of 2001), which costs 0.3 kWh a mile; they leave at N(7.5, 1.5^2) the next morning, and
plug in on a share of days: 0.7, the share of cars that charge once a day in the trial of Quiros-Tortos, Ochoa and Lees
("A statistical analysis of EV charging behavior in the UK", IEEE ISGT Latin America, 2015).
"""

from __future__ import annotations

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from gridjax.control.charging import Sessions
from gridjax.variation import FIRST, Factors, vary
from gridjax.weather import YEAR, hours_of_day

HOME, SHOP, WORKS = 0, 1, 2
WEEK_H = 168
SINGLE_CV = 0.9  # of one customer's demand about its mean course
CROWD_CV = 0.05  # what does not even out over many customers
H0 = (1.24, 2.1e-3, -7.02e-5, 3.2e-7, -3.92e-10)


@flax.struct.dataclass
class Customers:
    """Demand at the sites.

    Attributes:
      week: (kinds, 168) hourly means from Monday 0 h, of mean 1.
      season: (kinds, 365) of mean 1.
      kind: (sites,) which row of both.
      sigma: (sites,) of the logarithm.
      variation: of the sites, rough.
      first_weekday: of day 0; 0 is Monday.
    """

    week: jax.Array
    season: jax.Array
    kind: jax.Array
    sigma: jax.Array
    variation: Factors
    first_weekday: jax.Array


@flax.struct.dataclass
class Cars:
    """Electric cars that charge at home.

    Attributes:
      row: (cars,) the load that each is connected with.
      kw: (cars,) the charger's limit.
      efficiency: (cars,) from the terminal to the battery.
      capacity_kwh: (cars,) most that a day's driving can have used.
      arrival: mean and spread of the hour of arrival.
      departure: mean and spread of the hour of departure, the next day.
      log_miles: mean and spread of the logarithm of a day's miles.
      kwh_per_mile: energy in the battery.
      plug_in: share of days.
    """

    row: jax.Array
    kw: jax.Array
    efficiency: jax.Array
    capacity_kwh: jax.Array
    arrival: jax.Array
    departure: jax.Array
    log_miles: jax.Array
    kwh_per_mile: jax.Array
    plug_in: jax.Array


def standard_weeks() -> np.ndarray:
    """Hourly means over the week of homes, shops and works, (3, 168), each of mean 1."""
    hour = np.arange(24) + 0.5

    def bell(middle, width):
        away = (hour - middle + 12) % 24 - 12
        return np.exp(-((away / width) ** 2))

    def open_from(start, stop):
        return 1 / (1 + np.exp(-(hour - start) / 0.5)) / (1 + np.exp((hour - stop) / 0.5))

    home = 0.35 + 0.25 * bell(7.5, 1.7) + 0.15 * bell(13, 3) + 0.6 * bell(19.5, 2.7)
    home_weekend = 0.35 + 0.3 * bell(10.5, 2.5) + 0.25 * bell(14, 3) + 0.55 * bell(19.5, 2.7)
    shop, saturday, closed = 0.25 + open_from(8, 18), 0.25 + 0.9 * open_from(8, 14), np.full(24, 0.25)
    works, quiet = 0.4 + 0.6 * open_from(6, 22), np.full(24, 0.4)
    weeks = np.stack(
        [
            np.concatenate([home] * 5 + [home_weekend] * 2),
            np.concatenate([shop] * 5 + [saturday, closed]),
            np.concatenate([works] * 5 + [quiet] * 2),
        ]
    )
    return weeks / weeks.mean(axis=1, keepdims=True)


def standard_seasons() -> np.ndarray:
    """Daily factors over the year of homes, shops and works, (3, 365), each of mean 1."""
    n = np.arange(1, YEAR + 1)
    home = np.polynomial.polynomial.polyval(n, H0)
    wave = np.cos(2 * np.pi * (n - 15) / YEAR)
    seasons = np.stack([home, 1 + 0.1 * wave, 1 + 0.03 * wave])
    return seasons / seasons.mean(axis=1, keepdims=True)


def customers(
    variation: Factors,
    kind: np.ndarray,
    count: np.ndarray,
    *,
    weeks: np.ndarray | None = None,
    seasons: np.ndarray | None = None,
    first_weekday: int = 0,
    single_cv: float = SINGLE_CV,
    crowd_cv: float = CROWD_CV,
) -> Customers:
    """Customers at sites.

    Args:
      variation: of the sites.
      kind: (sites,) `HOME`, `SHOP`, `WORKS`, or a row of `weeks`.
      count: (sites,) how many customers each stands for, above 0.
      weeks: (kinds, 168) hourly values from Monday 0 h; None for `standard_weeks`.
      seasons: (kinds, 365) daily factors; None for `standard_seasons`.
      first_weekday: of day 0; 0 is Monday.
      single_cv: coefficient of variation of one customer's demand.
      crowd_cv: that of very many.

    Raises:
      ValueError: a table or a number makes no sense.
    """
    week = standard_weeks() if weeks is None else np.asarray(weeks, float)
    season = standard_seasons() if seasons is None else np.asarray(seasons, float)
    kind, count = np.atleast_1d(kind).astype(int), np.atleast_1d(np.asarray(count, float))
    if week.shape[1:] != (WEEK_H,) or season.shape != (len(week), YEAR):
        raise ValueError(f"weeks must be (kinds, {WEEK_H}) and seasons (kinds, {YEAR}), one row for each kind")
    if not (np.isfinite(week).all() and np.isfinite(season).all() and (week.mean(1) > 0).all()):
        raise ValueError("weeks and seasons must hold numbers, with a mean above 0")
    if kind.size and not 0 <= kind.min() <= kind.max() < len(week):
        raise ValueError(f"there are {len(week)} kinds of customers, but a site has kind {kind.max()} or {kind.min()}")
    if (count <= 0).any() or min(single_cv, crowd_cv) < 0:
        raise ValueError("sites need more than 0 customers, and coefficients of variation must not be negative")
    return Customers(
        week=jnp.asarray(week / week.mean(axis=1, keepdims=True)),
        season=jnp.asarray(season / season.mean(axis=1, keepdims=True)),
        kind=jnp.asarray(kind),
        sigma=jnp.asarray(np.sqrt(np.log1p(single_cv**2 / count + crowd_cv**2))),
        variation=variation,
        first_weekday=jnp.asarray(first_weekday),
    )


def mean_course(customers: Customers, day: jax.Array | int, steps: int) -> jax.Array:
    """The product w s in the middle of each step of a day, (steps, sites); day 0 is January 1st.

    Between the middles of two hours the week is linear, which keeps its mean.
    """
    weekday = (jnp.asarray(day) + customers.first_weekday) % 7
    place = 24 * weekday + hours_of_day(steps) - 0.5
    before = jnp.floor(place)
    part = (place - before)[:, None]
    at = before.astype(int)
    week = (1 - part) * customers.week.T[at % WEEK_H] + part * customers.week.T[(at + 1) % WEEK_H]
    season = customers.season[:, jnp.asarray(day) % YEAR]
    return (week * season[None])[:, customers.kind]


def demand(key: jax.Array, customers: Customers, day: jax.Array | int, steps: int) -> jax.Array:
    """Demand in the middle of each step of a day in per unit of each site's mean over the year, (steps, sites)."""
    z = vary(key, customers.variation, day, steps)
    sigma = customers.sigma[None]
    return mean_course(customers, day, steps) * jnp.exp(sigma * z - sigma**2 / 2)


def cars(row, *, kw=7.4, efficiency=0.9, capacity_kwh=60.0, **changes) -> Cars:
    """Cars at loads `row`; scalars serve all. `changes` are other fields of `Cars`, as plain numbers.

    Raises:
      ValueError: a number makes no sense.
    """
    place, *rest = np.broadcast_arrays(
        np.atleast_1d(row), *(np.asarray(a, float) for a in (kw, efficiency, capacity_kwh))
    )
    habits = {
        "arrival": (17.6, 3.4),
        "departure": (7.5, 1.5),
        "log_miles": (3.2, 0.88),
        "kwh_per_mile": 0.3,
        "plug_in": 0.7,
    }
    unknown = set(changes) - set(habits)
    if unknown:
        raise ValueError(f"cars have no habit {', '.join(sorted(unknown))}: give some of {', '.join(habits)}")
    habits |= changes
    if np.min(rest) <= 0 or np.max(rest[1]) > 1 or not 0 <= habits["plug_in"] <= 1 or habits["kwh_per_mile"] <= 0:
        raise ValueError("cars need kw, capacity_kwh and kwh_per_mile above 0, efficiency and plug_in within 0 to 1")
    return Cars(
        jnp.asarray(place.astype(int)),
        *(jnp.asarray(a) for a in rest),
        **{name: jnp.asarray(np.array(value, float)) for name, value in habits.items()},
    )


def stays(key: jax.Array, cars: Cars, day: jax.Array | int) -> Sessions:
    """The stays that begin on a day, on a clock that starts at its midnight: one row for each car.

    Each is what `gridjax.control.charging` runs. A car that does not plug in has an empty row. Arrivals outside the
    day, and departures before the arrival or later than the next day, are moved to these bounds.

    Args:
      key: of all days.
      cars: who and how.
      day: the day's number.
    """
    keys = jax.random.split(jax.random.fold_in(key, jnp.asarray(day, jnp.int32) + FIRST), 4)
    n, dtype = cars.kw.shape, cars.kw.dtype
    arrival = cars.arrival[0] + cars.arrival[1] * jax.random.normal(keys[0], n, dtype)
    arrival = jnp.clip(arrival, 0.0, 24.0)
    departure = 24 + cars.departure[0] + cars.departure[1] * jax.random.normal(keys[1], n, dtype)
    departure = jnp.clip(departure, arrival, 48.0)
    miles = jnp.exp(cars.log_miles[0] + cars.log_miles[1] * jax.random.normal(keys[2], n, dtype))
    plugged = jax.random.uniform(keys[3], n, dtype) < cars.plug_in
    wanted = jnp.where(plugged, jnp.minimum(miles * cars.kwh_per_mile, cars.capacity_kwh), 0.0)
    zero, one = jnp.zeros_like(wanted), jnp.ones_like(wanted)
    return Sessions(
        row=cars.row,
        arrival_hour=arrival,
        departure_hour=jnp.where(plugged, departure, arrival),
        wanted_kwh=wanted,
        kw=cars.kw,
        efficiency=cars.efficiency,
        kw_out=zero,
        efficiency_out=one,
        room_kwh=wanted,
        spare_kwh=zero,
    )


@jax.jit
def stays_each(key: jax.Array, cars: Cars, day: jax.Array) -> Sessions:
    """As `stays`, for several days (days,), a leading axis of the result."""
    return jax.vmap(stays, in_axes=(None, None, 0))(key, cars, day)


def moved(sessions: Sessions, hours: jax.Array | float) -> Sessions:
    """The same stays on a clock that starts `hours` earlier."""
    arrival, departure = sessions.arrival_hour + hours, sessions.departure_hour + hours
    return dataclasses.replace(sessions, arrival_hour=arrival, departure_hour=departure)


def uncontrolled(key: jax.Array, cars: Cars, day: jax.Array | int, steps: int) -> jax.Array:
    """What each car draws if it charges at full power from its arrival on: means over the steps, (steps, cars) kW.

    The stays that began the day before go on in the morning.
    """
    day = jnp.asarray(day, jnp.int32)
    length = 24.0 / steps
    start = (jnp.arange(steps) * length)[:, None]
    total = jnp.zeros((steps, cars.kw.shape[0]), cars.kw.dtype)
    for stay in (moved(stays(key, cars, day - 1), -24.0), stays(key, cars, day)):
        done = stay.arrival_hour + stay.wanted_kwh / (stay.efficiency * stay.kw)
        until = jnp.minimum(done, stay.departure_hour)[None]
        there = jnp.minimum(start + length, until) - jnp.maximum(start, stay.arrival_hour[None])
        total = total + stay.kw[None] * jnp.maximum(there, 0.0) / length
    return total
